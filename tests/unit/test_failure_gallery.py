"""The troubleshooting page says what a fault looks like: the stored runs look so, and the healthy ones do not."""

import ast
import contextlib
import importlib
import json
import math
import re

import pytest

import toc
from ppo_lib import gallery
from ppo_lib.stored import load
from tests.mutations.planting import planted

PAGE = (toc.ROOT / "book/troubleshooting.md").read_text("utf8")
FAULTS, ERRORS = PAGE.split("## Errors you may meet")
HEALTHY = {fault.beside for fault in gallery.FAULTS.values()}


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(toc.ROOT / "benchmarks"))
    return importlib.import_module("failure_gallery")


@pytest.mark.parametrize("name", gallery.FAULTS)
def test_every_sign_is_in_the_faulty_runs_and_in_no_healthy_one(name):
    fault = gallery.FAULTS[name]
    faulty, healthy = gallery.runs(name), gallery.runs(fault.beside)
    assert len(faulty) >= 2 and len(healthy) >= 2, "one seed may be noise"
    assert fault.signs, f"{name}: nothing is said of what to see"
    for sign in fault.signs:
        values, usual = [sign.value(run) for run in faulty], [sign.value(run) for run in healthy]
        assert all(sign.holds(run) for run in faulty), f"{name}: not {sign.text()} in all runs: {values}"
        assert not any(sign.holds(run) for run in healthy), f"{name}: a healthy run has {sign.text()} too: {usual}"
        assert sign.metric in fault.panels, f"{name}: the figure does not show {sign.metric}"


def test_a_sign_has_one_bound_and_can_fail():
    run = [{"objective/kl": value} for value in (0.0, 1.0, math.nan, 5.0)]
    for fault in gallery.FAULTS.values():
        assert all(math.isnan(sign.above) != math.isnan(sign.below) for sign in fault.signs), fault.title
    above = gallery.Sign("objective/kl", "on average", above=1.9)
    assert above.holds(run) and not above.holds(run[:2]), "NaN must be left out, and 0.5 is not above 1.9"
    jumps = gallery.Sign("objective/kl", "from update to update", below=2.0)
    assert jumps.value(run) == 2.5 and not jumps.holds(run)


def test_stored_runs_are_those_of_the_program(program):
    """Same settings, seeds and bugs; and each bug still fits the code."""
    assert set(program.CASES) == {*gallery.FAULTS, *HEALTHY}, "a case without an entry, or an entry without a case"
    for name, case in program.CASES.items():
        note = load(f"failure_gallery/{name}.json")
        bug = case.bug and {"in": case.bug[0].__qualname__, "instead_of": case.bug[1], "stands": case.bug[2]}
        assert note["settings"] == case.settings, f"{name} was run with other settings: run it again"
        assert note["bug"] == bug, f"{name} was run with another bug: run it again"
        assert sorted(run["seed"] for run in note["runs"]) == list(program.SEEDS), name
        assert [len(run) for run in gallery.runs(name)] == [case.updates] * len(program.SEEDS), name
        with planted(*case.bug) if case.bug else contextlib.nullcontext():
            pass


def test_a_fault_run_again_looks_as_it_is_stored(program):
    """A small sample of the long benchmark: two updates without a fault and with two of them, live."""
    case = program.Case({"batch_size": 8, "minibatch_size": 8})
    healthy = program.run(case, seed=0, updates=2)
    moving = program.run(program.Case(case.settings, alter=program.moving_reference), seed=0, updates=2)
    lost = program.run(program.Case(case.settings, bug=program.CASES["old_logprobs_recomputed"].bug), 0, updates=2)
    assert abs(moving[1]["objective/kl"]) < 1e-4 < abs(healthy[1]["objective/kl"]), "the reference did not move"
    assert lost[1]["val/ratio_var"] == 0 < healthy[1]["val/ratio_var"], "the ratio compares two policies after all"
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
    assert (tmp_path / "tiny.csv").read_text() == "seed,update,objective/scores\n0,1,0.12346\n1,1,0.12346\n"
    assert [run["seed"] for run in json.loads((tmp_path / "tiny.json").read_text())["runs"]] == [0, 1]


def test_figures_have_both_kinds_of_runs_and_texts():
    for name, fault in gallery.FAULTS.items():
        figure = gallery.figure(name)
        names = [trace.name for trace in figure.data]
        assert names.count("healthy") == names.count("with the fault") == 2 * len(fault.panels), name
        assert fault.see in figure.layout.meta["caption"] and "`" not in figure.layout.meta["alt"]
        assert fault.title.replace("`", "") in figure.layout.meta["alt"]
    with pytest.raises(ValueError, match="no fault 'nothing' in the gallery; there are .*kl_sign"):
        gallery.figure("nothing")
    titles = [fault.title.replace("`", "") for fault in gallery.FAULTS.values()]
    assert gallery.chooser().controls[0]["texts"] == titles


def test_the_page_shows_every_fault_under_its_title():
    parts = [part.split("\n", 1) for part in FAULTS.split("\n### ")[1:]]
    sections = {title: re.search(r"ppo_lib\.gallery\.figure (\w+)", text)[1] for title, text in parts}
    shown = {name: title for title, name in sections.items()}
    assert shown == {name: fault.title for name, fault in gallery.FAULTS.items()}
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
    for path in (toc.ROOT / "ppo_lib").glob("*.py"):
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
    assert len(messages) >= 25
    for message in messages:
        for piece in message.replace("`", "").split("…"):
            assert piece.strip() in texts, f"ppo_lib says nothing like {piece.strip()!r} (in {message!r})"
