"""The troubleshooting page says what a fault looks like: the stored runs look so, and the healthy ones do not."""

import ast
import contextlib
import json
import math
import re
from statistics import fmean

import pytest

import toc
from ppo_lib.lab import gallery
from ppo_lib.lab.stored import load
from tests.mutations.planting import planted

PAGE = (toc.ROOT / "book/troubleshooting.md").read_text("utf8")
FAULTS, ERRORS = PAGE.split("## Errors you may meet")
HEALTHY = {fault.beside for fault in gallery.FAULTS.values()}


@pytest.fixture
def program(program_of):
    return program_of("failure_gallery")


def test_a_phase_sums_up_a_run_in_one_number():
    run = [{"objective/kl": value} for value in (3.0, -1, math.nan, 4, 1, 5, 9, 2, 6)]
    expected = {
        gallery.FIRST: 3, gallery.MEAN: 29 / 8, gallery.LAST: 23 / 5, gallery.HIGHEST: 9, gallery.LOWEST: -1,
        gallery.JITTER: 31 / 7,
    }  # fmt: skip
    found = {phase: gallery.Sign("objective/kl", phase).value(run) for phase in gallery.PHASES}
    assert found == pytest.approx(expected), "a phase is not what it is called, or NaN is not left out"
    assert gallery.Sign("objective/kl", gallery.LAST, below=-0.12345).text() == (
        "KL to the reference in the last 5 updates below −0.123"
    ), "a sign in words has another side, phase or bound, or a hyphen for its minus"


def test_stored_rows_become_runs_by_seed_with_the_gap(monkeypatch):
    names = ("objective/rlhf_reward", "objective/scores", "objective/non_score_reward")
    rows = [{"seed": seed, **dict(zip(names, (9.0, 4.0, 2.0 + seed), strict=True))} for seed in (1, 0, 1)]
    monkeypatch.setattr(gallery, "load", {"failure_gallery/kl_sign.csv": rows}.__getitem__)
    assert [[row["gap"] for row in run] for run in gallery.runs("kl_sign")] == [[3], [2, 2]], (
        "not a run for each seed, or the gap is not reward − score − penalty"
    )


@pytest.mark.parametrize("name", gallery.FAULTS)
def test_every_sign_is_in_the_faulty_runs_and_in_no_healthy_one(name):
    fault = gallery.FAULTS[name]
    faulty, healthy = gallery.runs(name), gallery.runs(fault.beside)
    assert len(faulty) >= 2, f"{name}: the fault was run on one seed, which may be noise"
    assert len(healthy) >= 2, f"{fault.beside}: the healthy run has one seed, which may be noise"
    assert fault.signs, f"{name}: nothing is said of what to see"
    for sign in fault.signs:
        values, usual = [sign.value(run) for run in faulty], [sign.value(run) for run in healthy]
        assert all(sign.holds(run) for run in faulty), f"{name}: not {sign.text()} in all runs: {values}"
        assert not any(sign.holds(run) for run in healthy), f"{name}: a healthy run has {sign.text()} too: {usual}"
        assert sign.metric in fault.panels, f"{name}: the figure does not show {sign.metric}"


def test_a_sign_has_one_bound_and_can_fail():
    run = [{"objective/kl": value} for value in (0.0, 1.0, math.nan, 5.0)]
    for fault in gallery.FAULTS.values():
        assert all(math.isnan(sign.above) != math.isnan(sign.below) for sign in fault.signs), (
            f"a sign of {fault.title!r} has no bound, and cannot show, or two"
        )
    above = gallery.Sign("objective/kl", "on average", above=1.9)
    assert above.holds(run), "an update without the number (NaN) counts in the mean"
    assert not above.holds(run[:2]), "a sign holds on the wrong side of its bound: 0.5 is not above 1.9"
    jumps = gallery.Sign("objective/kl", "from update to update", below=2.0)
    assert jumps.value(run) == 2.5, "jumps are not mean sizes of steps, from one number to the next that is there"
    assert not jumps.holds(run), "a sign holds on the wrong side of its bound: 2.5 is not below 2"


def test_a_figure_s_text_has_the_range_of_each_kind(monkeypatch):
    def runs(name):
        ends = {"loss_sign": (-1.5, -2.5, -2.0), "healthy": (0.75, 1.25)}[name]
        return [[{"episode": 1.0, **dict.fromkeys(gallery.LABELS, end)}] for end in ends]

    monkeypatch.setattr(gallery, "runs", runs)
    alt = gallery.figure("loss_sign").layout.meta["alt"]
    assert "score in the last 5 updates: −2.5 to −1.5 with the fault, 0.75 to 1.25 without;" in alt, (
        "the text of a figure does not say the lowest and highest end of each kind of run"
    )


def test_stored_runs_are_those_of_the_program(program):
    """Same settings, seeds and bugs; and each bug still fits the code."""
    assert set(program.CASES) == {*gallery.FAULTS, *HEALTHY}, "a case without an entry, or an entry without a case"
    for name, case in program.CASES.items():
        note = load(f"failure_gallery/{name}.json")
        bug = case.bug and {"in": case.bug[0].__qualname__, "instead_of": case.bug[1], "stands": case.bug[2]}
        assert note["settings"] == case.settings, f"{name} was run with other settings: run it again"
        assert note["bug"] == bug, f"{name} was run with another bug: run it again"
        assert sorted(run["seed"] for run in note["runs"]) == list(program.SEEDS), f"{name} was run with other seeds"
        assert [len(run) for run in gallery.runs(name)] == [case.updates] * len(program.SEEDS), (
            f"a stored run of {name} has lost updates, or has another length than the program's"
        )
        with planted(*case.bug) if case.bug else contextlib.nullcontext():
            pass


def test_a_fault_run_again_looks_as_it_is_stored(program):
    """A small sample of the long benchmark: two updates without a fault and with two of them, live."""
    case = program.Case({"batch_size": 8, "minibatch_size": 8})
    healthy = program.run(case, seed=0, updates=2)
    moving = program.run(program.Case(case.settings, alter=program.moving_reference), seed=0, updates=2)
    lost = program.run(program.Case(case.settings, bug=program.CASES["old_logprobs_recomputed"].bug), 0, updates=2)
    assert abs(healthy[1]["objective/kl"]) > 1e-4, "in the healthy run the reference moves too"
    assert abs(moving[1]["objective/kl"]) < 1e-4, "the reference did not move"
    assert healthy[1]["val/ratio_var"] > 0, "in the healthy run the ratio compares the policy with itself too"
    assert lost[1]["val/ratio_var"] == 0, "the ratio compares two policies after all"
    assert healthy[0]["objective/scores"] == moving[0]["objective/scores"], "the runs do not start alike"


def test_seeds_are_done_once_and_again_when_named(program, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(program, "provenance", lambda: {})
    monkeypatch.setattr(program, "CASES", {"tiny": program.Case({"batch_size": 2})})

    def run(case, seed):
        done.append(seed)
        return [{"seed": seed, "update": 1, "objective/scores": 0.123456789}]

    monkeypatch.setattr(program, "run", run)
    for arguments in ([], [], ["tiny", "--seeds", "1"]):
        program.main([*arguments, "--results", str(tmp_path)])
    assert done == [*program.SEEDS, 1], "a stored run was done again, or a named one was not"
    stored = (tmp_path / "tiny.csv").read_text()
    assert stored.count("\n1,1,") < 2, "a run that is done again is stored beside the old one"
    assert stored == "seed,update,objective/scores\n0,1,0.12346\n1,1,0.12346\n", (
        "not a row for each update of each seed, in order, to five digits"
    )
    assert [run["seed"] for run in json.loads((tmp_path / "tiny.json").read_text())["runs"]] == [0, 1], (
        "the note on the runs lists a seed twice, or not all of them"
    )


def test_figures_have_both_kinds_of_runs_and_texts():
    for name, fault in gallery.FAULTS.items():
        figure = gallery.figure(name)
        names = [trace.name for trace in figure.data]
        assert names.count("with the fault") == 2 * len(fault.panels), f"{name}: a panel lacks a run with the fault"
        assert names.count("healthy") == 2 * len(fault.panels), f"{name}: a panel lacks a healthy run to compare with"
        assert fault.see in figure.layout.meta["caption"], f"{name}: the caption does not say what to see"
        assert "`" not in figure.layout.meta["alt"], f"{name}: the alt text has markup in it, which is read aloud"
        assert fault.title.replace("`", "") in figure.layout.meta["alt"], (
            f"{name}: the alt text does not name the fault"
        )
    with pytest.raises(ValueError, match="no fault 'nothing' in the gallery; there are .*kl_sign"):
        gallery.figure("nothing")
    titles = [fault.title.replace("`", "") for fault in gallery.FAULTS.values()]
    assert gallery.chooser().controls[0]["texts"] == titles, "a fault cannot be chosen, or stands under another's title"


def test_what_captions_and_page_say_beyond_the_signs():
    """Sentences about the runs that no bound of a sign bears."""

    def of(name, metric):
        return [[row[metric] for row in run] for run in gallery.runs(name)]

    def late(values):
        return fmean(values[-5:])

    usual = {metric: of("healthy", metric) for metric in (gallery.APPROX, gallery.ENTROPY, gallery.VALUE)}
    longest_step = max(map(max, usual[gallery.APPROX]))
    start = max(step[0] for step in usual[gallery.APPROX])
    assert all(step[0] > 100 * start for step in of("learning_rate_high", gallery.APPROX)), (
        "learning_rate_high: the first update does not go hundreds of times too far"
    )
    assert all(step[0] > longest_step for step in of("no_clip", gallery.APPROX)), (
        "no_clip: the first update goes no further than a healthy one may"
    )
    assert all(max(step) > 50 * longest_step for step in of("no_clip", gallery.APPROX)), (
        "no_clip: later updates do not go far further than healthy ones"
    )
    assert all(max(step) > 10 * longest_step for step in of("temperature_low", gallery.APPROX)), (
        "temperature_low: no update moves the policy more than ten times as far as healthy ones"
    )
    for name, part in (("temperature_low", 1 / 4), ("batch_small", 1 / 2)):
        for entropy in of(name, gallery.ENTROPY):
            healthy = [run[int(part * len(run)) - 1] for run in usual[gallery.ENTROPY]]
            assert entropy[int(part * len(entropy)) - 1] < 0.75 * min(healthy), f"{name}: entropy does not fall early"
    stuck = [run for run in gallery.runs("batch_small") if len({row[gallery.SCORE] for row in run[-5:]}) == 1]
    assert len(stuck) == 1, "batch_small: other than one of the two runs ends with the same text again and again"
    assert stuck[0][-1][gallery.ENTROPY] < 0.05, "batch_small: the run with one score has more than one text to it"
    assert stuck[0][-1][gallery.SCORE] < 0, "batch_small: the text that comes again and again is not a poor one"
    ended = sorted(late(values) / 32 for values in of("too_short", gallery.ENDED))
    assert ended[1] > 0.9, "too_short: neither run learns to end early"
    assert ended[0] < 0.5, "too_short: both runs learn to end early"
    assert all(late(loss) > fmean(loss[:5]) for loss in of("critic_frozen", gallery.VALUE)), (
        "critic_frozen: the value loss falls though the critic does not learn"
    )
    assert all(late(loss) < fmean(loss[:5]) / 2 for loss in usual[gallery.VALUE]), (
        "the value loss of a healthy run does not fall either"
    )
    assert not any(map(any, of("critic_frozen", "val/explained_variance"))), (
        "critic_frozen: the explained variance leaves 0"
    )
    least = min(map(fmean, usual[gallery.VALUE]))
    assert all(fmean(loss) < least / 4 for loss in of("score_on_padding", gallery.VALUE)), (
        "score_on_padding: the value loss is not far below the healthy one"
    )
    assert all(fmean(loss) > 1000 * least for loss in of("reward_scale", gallery.VALUE)), (
        "reward_scale: the value loss is not thousands of times the healthy one"
    )
    penalties, spreads = (of("kl_coef_high", f"objective/{name}") for name in ("non_score_reward", "scores_std"))
    assert all(-late(p) > late(s) for p, s in zip(penalties, spreads, strict=True)), (
        "kl_coef_high: the KL penalty is no larger than the spread of the scores"
    )
    judged = [[x for x in values if not math.isnan(x)] for values in of("no_kl", gallery.GOLD)]
    assert all(values[-1] < values[0] - 1 for values in judged), "no_kl: the score of the judge does not fall"
    healthy = max(map(late, of("healthy_proxy", gallery.SCORE)))
    assert all(late(score) > healthy for score in of("no_kl", gallery.SCORE)), (
        "no_kl: what is trained on does not rise above the healthy runs"
    )
    assert all(late(score) > score[0] + 1 for score in of("reference_moves", gallery.SCORE)), (
        "reference_moves: the policy does not learn, so that a KL of 0 gives nothing away"
    )
    assert all(min(score[:10]) < -2.9 for score in of("loss_sign", gallery.SCORE)), (
        "loss_sign: the score does not fall to the worst there is, which is −3"
    )
    assert any(late(score) < max(score) - 1 for score in of("kl_sign", gallery.SCORE)), (
        "kl_sign: in no run the score falls after a while"
    )
    for entropy in of("mean_over_padding", gallery.ENTROPY):
        assert entropy[0] < 0.75 * min(run[0] for run in usual[gallery.ENTROPY]), (
            "mean_over_padding: the entropy is not too small"
        )


def test_the_page_shows_every_fault_under_its_title():
    parts = [part.split("\n", 1) for part in FAULTS.split("\n### ")[1:]]
    sections = {title: re.search(r"ppo_lib\.lab\.gallery\.figure (\w+)", text)[1] for title, text in parts}
    shown = {name: title for title, name in sections.items()}
    assert shown.keys() == gallery.FAULTS.keys(), "the page leaves out a fault, or shows one that the gallery lacks"
    assert shown == {name: fault.title for name, fault in gallery.FAULTS.items()}, (
        "a figure stands under another title than its fault's"
    )
    for title, name in sections.items():
        section = FAULTS.split(f"\n### {title}\n")[1].split("\n### ")[0]
        assert all(word in section for word in ("**You see**", "**Cause.**", "**Fix.**")), f"{name} lacks a part"


def test_the_table_leads_to_every_fault():
    headings = {re.sub(r"[^\w]+", "-", title.lower()).strip("-") for title in re.findall(r"^### (.+)$", FAULTS, re.M)}
    table = FAULTS.split("## What you see")[1].split("## Bad settings")[0]
    targets = set(re.findall(r"\]\(#([^)]+)\)", table))
    assert targets <= headings, f"no such section: {targets - headings}"
    assert not headings - targets, f"the table leads nobody to {headings - targets}"


def library_texts() -> str:
    """Every string in the library's source, with `…` for what an f-string fills in."""
    texts = []
    for path in (toc.ROOT / "ppo_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_on_the_page_are_the_library_s():
    texts = re.sub(r"`|…\w*", "…", library_texts()).replace("…", "")
    cells = [cell for cell in re.findall(r"^\| (.*?`) \|", ERRORS, re.M)]
    messages = [message for cell in cells for _, message in re.findall(r"(`+)(.+?)\1(?!`)", cell)]
    assert len(messages) >= 25, "the test does not find the messages on the page"
    for message in messages:
        for piece in message.replace("`", "").split("…"):
            assert piece.strip() in texts, f"ppo_lib says nothing like {piece.strip()!r} (in {message!r})"
