"""What programs in `benchmarks/` make of what they measured: means, medians, errors and counts of known numbers."""

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from tests.unit.tiny import hand_rollout


@pytest.fixture
def program(program_of):
    return program_of


# record.py


def test_a_table_is_stored_with_six_digits_and_read_again(program, tmp_path):
    record = program("record")
    record.write_csv(tmp_path / "t.csv", [{"seed": 3, "score": 0.123456789}, {"seed": 4, "score": 1234567.8}])
    assert (tmp_path / "t.csv").read_text() == "seed,score\n3,0.123457\n4,1.23457e+06\n"
    rows = record.read_csv(tmp_path / "t.csv")
    assert rows == [{"seed": 3, "score": 0.123457}, {"seed": 4, "score": 1234570}], "numbers are not those of the file"
    assert [type(row["seed"]) for row in rows] == [int, int], "whole numbers are no integers again"
    record.write_json(tmp_path / "deep/s.json", {"β": [1, None]})
    assert (tmp_path / "deep/s.json").read_text(encoding="utf-8") == '{\n "β": [\n  1,\n  null\n ]\n}\n'
    assert [path.name for path in tmp_path.rglob("*.part")] == [], "half-written files are left"


# soak.py, preset_8gb.py, smollm2_vader.py


def test_memory_grows_from_window_to_window_of_the_longest_piece(program):
    """Notes at 10, 20, …: those of the longer session from 30 updates on; medians of three notes each."""
    soak = program("soak")
    memory = [900, 900, 104, 100, 101, 150, 120, 122, 130]
    short = {"session": 0, "resident_mib": 1.0, "anonymous_mib": 1.0, "open_files": 3}
    rows = [{"update": 10, **short}, {"update": 20, **short}]
    rows += [
        {"update": 10 * n, "session": 1, "resident_mib": 2.0 * m, "anonymous_mib": float(m), "open_files": 5 + n % 4}
        for n, m in enumerate(memory, 3)
    ]
    found = soak.growth(rows, warm=30, window=3)
    assert (found["from_update"], found["to_update"]) == (50, 110), "not 30 updates after the piece began, to its end"
    assert (found["anonymous_mib_first"], found["anonymous_mib_last"]) == (101, 122), "not medians of the windows"
    assert (found["resident_mib_first"], found["anonymous_mib_highest"]) == (202, 150)
    assert found["memory_growth"] == round(21 / 202, 5), "not the growth of what is no file's, over all at the start"
    assert (found["descriptors_first"], found["descriptors_last"], found["descriptors_highest"]) == (6, 8, 8)
    assert found["descriptor_growth"] == 2
    assert soak.growth(rows, warm=50, window=3) == {}, "windows that overlap give a growth"


def test_a_log_is_whole_when_it_has_every_update_once_and_in_order(program, tmp_path):
    soak = program("soak")
    config = SimpleNamespace(num_updates=5, eval_every=2)
    for updates in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 3, 4, 5], [0, 2, 1, 3, 4, 5], [0, 1]):
        rows = [{"update": update} | ({} if update % 2 else {"eval/score": 1.0}) for update in updates]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = soak.read_log(tmp_path / "metrics.jsonl", config)
        assert found["whole"] == (updates == [0, 1, 2, 3, 4, 5]), f"{updates} pass for whole, or do not"
        assert found["rows"] == len(updates) and found["evaluations"] == len([u for u in updates if u % 2 == 0])
        assert found["evaluations_expected"] == 4, "not one before the run, every second update, and the last"


def test_a_reward_curve_begins_and_ends_with_five_updates(program):
    preset = program("preset_8gb")
    scores = [1, 0, 0, 0, 4, 50, 2, 2, 2, 2, 7.0]
    rows = [{"objective/scores": score, "objective/kl": number} for number, score in enumerate(scores)]
    assert preset.curve(rows) == {"updates": 11, "score_first_5": 1, "score_last_5": 3, "kl_last_5": 8}, (
        "not the means of the first and the last five updates"
    )


def test_held_out_scores_have_the_standard_error_of_their_mean(program, monkeypatch):
    preset = program("preset_8gb")
    lengths, scores = [3, 1, 4, 2, 2, 3, 4, 1, 1, 4], [1.0, 3, 3, 3, 5, 1, 1, 5, 3, 5]
    asked, rollouts = [], []

    def respond(prompts, generator):
        first = sum(map(len, asked))
        asked.append(prompts)
        some = lengths[first : first + len(prompts)]
        rollouts.append(hand_rollout(some, [True] * len(some), seed=first))
        rollouts[-1].prompts = prompts
        return rollouts[-1]

    monkeypatch.setattr(
        preset, "score_responses", lambda reward, prompts, _: torch.tensor([scores[int(p)] for p in prompts])
    )
    trainer = SimpleNamespace(respond=respond, reward=None, reference_logprobs=lambda rollout: rollout.ref_logprobs)
    found = preset.held_out(trainer, [str(n) for n in range(10)])
    assert [len(prompts) for prompts in asked] == [8, 2], "a prompt is left out"
    assert found["score"] == 3 and found["standard_error"] == pytest.approx((24 / 9) ** 0.5 / 10**0.5), (
        "not the sample's deviation (ddof 1) over √n"
    )
    kl = [(r.logprobs - r.ref_logprobs)[r.mask].sum().item() for r in rollouts]
    assert found["kl"] == pytest.approx(sum(kl) / 10, rel=1e-5), "not the mean KL of a response, padding left out"


def test_samples_of_a_prompt_are_averaged_before_the_error(program, monkeypatch):
    """Two samples of each of three prompts: means 2, 4 and 9, whose deviation is √13."""
    vader = program("smollm2_vader")
    scores = iter([torch.tensor([1.0, 4.0, 6.0]), torch.tensor([3.0, 4.0, 12.0])])
    lengths, seeds = iter([(3, 1, 4), (1, 1, 2)]), []

    def collect(prompts, generator):
        seeds.append(generator.initial_seed())
        rollout = hand_rollout(next(lengths), (True, False, False), seed=len(seeds))
        rollout.logprobs = rollout.logprobs.masked_fill(~rollout.mask, 0.0)
        return rollout

    def score(rollout):
        rollout.scores = next(scores)

    monkeypatch.setattr(vader, "response_logits", lambda model, rollout, temperature: (model, temperature))
    monkeypatch.setattr(vader, "logprobs_of", lambda logits, ids: torch.full(ids.shape, -0.25))
    trainer = SimpleNamespace(
        collect=collect, score=score, history=[0] * 7, reference="r", config=SimpleNamespace(temperature=0.7)
    )
    result, rollout = vader.evaluate(trainer, ["a", "b", "c"], 2)
    assert result["mean_score"] == 5 and result["standard_error"] == pytest.approx((13 / 3) ** 0.5), (
        "not the deviation of the prompts' means over √prompts"
    )
    assert (result["update"], result["responses"], result["tokens_per_response"]) == (7, 6, 2), "counted otherwise"
    assert result["ended"] == pytest.approx(1 / 3) and seeds == [1000, 1001] and rollout.scores[2] == 6
    firsts = [hand_rollout(some, (True, False, False), seed=n) for n, some in ((1, (3, 1, 4)), (2, (1, 1, 2)))]
    kl = sum((r.logprobs[r.mask] + 0.25).sum().item() for r in firsts) / 6
    assert result["kl_per_response"] == pytest.approx(kl, rel=1e-5), "not log π − log π_ref of a response's tokens"


# when_to_stop.py


def golds(*values):
    return [{"update": number, "gold": value} for number, value in enumerate(values, 1)]


def test_patience_ends_a_run_and_keeps_its_best(program):
    stop_of = program("when_to_stop").stop_of
    assert stop_of(golds("", 1.0, "", 3.0, "", 2.0, "", 2.0, "", 3.0, "", 2.9, "", 9.0)) == (12, 4), (
        "not the fourth evaluation without a better one, and the best before"
    )
    assert stop_of(golds("", 1.0, "", 0.5, "", 0.5, "", 0.5, "")) == (9, 2), "a run that patience never ends goes on"


def test_policies_are_judged_again_with_the_same_dice(program, monkeypatch):
    """Differences from the kept one's are paired: 1, 3, 1, 3 with mean 2 and error √(4/3) / 2."""
    stop, dice, loaded = program("when_to_stop"), [], []
    scores = iter([torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 5.0, 4.0, 7.0])])
    world = SimpleNamespace(
        model=SimpleNamespace(load_state_dict=loaded.append), tokenizer=None, heldout_prompts=["p", "q"], reward=None
    )

    def sample(model, tokenizer, prompts, tokens, generator):
        dice.append((generator.initial_seed(), len(prompts)))
        return SimpleNamespace(prompts=prompts, responses=prompts)

    monkeypatch.setattr(stop, "worlds", SimpleNamespace(load=lambda name: world))
    monkeypatch.setattr(stop, "sample", sample)
    monkeypatch.setattr(stop, "score_responses", lambda *_: next(scores))
    kept, later = stop.judged_again(7, {"kept": (4, "weights 4"), "stopped": (12, "weights 12")})
    assert loaded == ["weights 4", "weights 12"], "another policy answers"
    assert dice == [(1_000_007, 16)] * 2, "policies do not answer with the same dice, eight copies of each prompt"
    assert (kept["minus_kept"], kept["error"]) == (0, 0), "the kept policy differs from itself: errors are not paired"
    assert list(kept.values())[:4] == [7, "kept", 4, 2.5], "a row is not seed, policy, update and mean gold score"
    assert (later["gold"], later["minus_kept"]) == (4.5, 2), "the difference is not that from the kept policy"
    assert later["error"] == pytest.approx((4 / 3) ** 0.5 / 2), "not the error of the paired differences"


def test_a_seed_is_run_once_and_its_numbers_have_four_digits(program, monkeypatch, tmp_path):
    stop, ran = program("when_to_stop"), []
    assert list(stop.rounded({"a": 0.123456, "b": 12345, "c": "", "d": 123456.0}).values()) == [
        "0.1235", 12345, "", "1.235e+05",
    ], "not four significant digits"  # fmt: skip

    def both_runs(seed):
        ran.append(seed)
        return [{"seed": seed, "gold": 1 / 3}], [{"seed": seed, "minus_kept": -2 / 3}]

    monkeypatch.setattr(stop, "both_runs", both_runs)
    for seeds in (["3", "5"], ["5", "4"]):
        stop.main(["--results", str(tmp_path), "--seeds", *seeds])
    assert ran == [3, 5, 4], "a stored seed is run again, or one is left out"
    assert (tmp_path / "curves.csv").read_text() == "seed,gold\n3,0.3333\n5,0.3333\n4,0.3333\n"
    assert (tmp_path / "again.csv").read_text() == "seed,minus_kept\n3,-0.6667\n5,-0.6667\n4,-0.6667\n"
    sessions = json.loads((tmp_path / "runs.json").read_text())["sessions"]
    assert [[run["seed"] for run in session["runs"]] for session in sessions] == [[3, 5], [4]]


def test_the_second_look_is_at_the_policies_of_both_runs(program, monkeypatch):
    stop = program("when_to_stop")
    curves = {name: [{"run": name}] for name in ("free", "leashed")}
    monkeypatch.setattr(stop, "train", lambda name, seed: (curves[name], {u: f"{name} {u}" for u in range(41)}))
    monkeypatch.setattr(stop, "stop_of", lambda curve: {"free": (18, 10)}[curve[0]["run"]])
    monkeypatch.setattr(stop, "judged_again", lambda seed, policies: policies)
    rows, policies = stop.both_runs(3)
    assert rows == [{"run": "free"}, {"run": "leashed"}]
    assert policies == {
        "kept": (10, "free 10"), "stopped": (18, "free 18"), "free_28": (28, "free 28"), "free_40": (40, "free 40"),
        "leashed_28": (28, "leashed 28"), "leashed_40": (40, "leashed 40"),
    }, "a policy is that of another update or run"  # fmt: skip


def test_samples_are_judged_by_the_gold_reward(program, monkeypatch):
    """Two updates, of which the second has an evaluation with two held-out texts."""
    stop = program("when_to_stop")
    world = SimpleNamespace(
        prompts=["p"], heldout_prompts=["h"], reward=lambda prompts, texts: [float(len(t)) for t in texts]
    )

    class Trainer:
        def __init__(self, **settings):
            self.history, self.settings = [], settings
            self.policy = torch.nn.Linear(1, 1)
            text = {"prompt": "h", "sampled": "four", "greedy": "seven 7"}
            self.samples = [text | {"update": 2}, text | {"update": 2, "sampled": "sixsix"}, text | {"update": 0}]

        def train(self, prompts, heldout, callback):
            for update in (1, 2):
                self.history.append({"update": update, **dict.fromkeys(stop.METRICS, update)})
                callback(self, None, None)
            self.history[-1]["eval/score"] = 0.75
            return self.history

    monkeypatch.setattr(stop, "worlds", SimpleNamespace(load=lambda name: world))
    monkeypatch.setattr(stop, "PPOTrainer", Trainer)
    curve, weights = stop.train("leashed", 5)
    assert [(row["proxy"], row["gold"], row["gold_greedy"]) for row in curve] == [("", "", ""), (0.75, 5, 7)], (
        "not the mean gold score of the update's own texts, sampled and greedy"
    )
    assert list(weights) == [2] and {(row["seed"], row["run"]) for row in curve} == {(5, "leashed")}


# replay_explorer.py, without_guards.py


def test_the_explorer_s_grid_has_every_point_on_every_seed(program, monkeypatch, tmp_path):
    explorer, ran = program("replay_explorer"), []
    monkeypatch.setattr(explorer, "frozen", lambda: {"dense": {"ppo": {"tuned": 1}, "replay": {}}, "sparse": {}})
    jobs = explorer.jobs()
    assert len(jobs) == len({job[0] for job in jobs}) == 5 * (1 + 2 * 3 * 2 * 2)
    for (*point, of_key), task, episodes, family, settings, seed in jobs:
        assert (task, episodes, seed) == ("dense", 256, of_key) and seed in explorer.SEEDS
        if any(point):
            own = dict(zip(explorer.SLIDERS, point, strict=True)) | {"minibatch_size": 8 + point[1]}
            assert family == "replay" and settings == explorer.FIXED | own, "not a point's settings in one minibatch"
        else:
            assert (family, settings) == ("ppo", {"tuned": 1}), "the baseline is not tuned on-policy PPO"

    def in_parallel(jobs, workers):
        for key, *_ in jobs:
            ran.append(key)
            yield key, [dict.fromkeys(explorer.COLUMNS, 0.123456789)]

    monkeypatch.setattr(explorer, "FOLDER", tmp_path)
    monkeypatch.setattr(explorer, "in_parallel", in_parallel)
    explorer.main([])
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == ",".join((*explorer.SLIDERS, "seed", *explorer.COLUMNS)) and len(lines) == 126
    assert lines[1] == "0,0,0,0,200" + ",0.12346" * len(explorer.COLUMNS), "a column is another's"
    kept = [line for line in lines if not line.startswith("64,24,2,4,202")]
    (tmp_path / "curves.csv").write_text("\n".join(kept) + "\n")
    ran.clear()
    explorer.main([])
    assert ran == [(64, 24, 2, 4, 202)], "not the missing run alone"


def test_runs_without_guards_are_those_of_their_arms(program, monkeypatch, tmp_path):
    guards, ran = program("without_guards"), []

    class Pool:
        def __init__(self, workers):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def imap_unordered(self, work, jobs):
            return map(work, jobs)

    def trained_curve(settings, episodes, seed):
        ran.append((settings, episodes, seed))
        return [dict.fromkeys(guards.COLUMNS, 0.123456789)]

    monkeypatch.setattr(guards, "FOLDER", tmp_path)
    monkeypatch.setattr(guards, "SEEDS", (300, 301))
    monkeypatch.setattr(guards, "multiprocessing", SimpleNamespace(get_context=lambda kind: SimpleNamespace(Pool=Pool)))
    monkeypatch.setattr(guards, "os", SimpleNamespace(environ={}))
    monkeypatch.setattr("ppo_lib.lab.explorer.trained_curve", trained_curve)
    guards.main([])
    assert ran == [(settings, 128, seed) for seed in (300, 301) for settings in guards.ARMS.values()], (
        "an arm is another's"
    )
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[1] == "guards off,300" + ",0.123457" * len(guards.COLUMNS) and len(lines) == 9
    (tmp_path / "curves.csv").write_text("\n".join(line for line in lines if not line.startswith("careful,300")) + "\n")
    ran.clear()
    guards.main([])
    assert [(settings, seed) for settings, _, seed in ran] == [(guards.ARMS["careful"], 300)], (
        "not the missing run alone"
    )


# sturdy.py


def test_the_grid_counts_the_newest_run_of_each_chapter(program, monkeypatch):
    sturdy, written = program("sturdy"), {}
    variants = {name: SimpleNamespace(words=name.upper()) for name in ("native", "avx2")}
    run = {"device": "d", "kernel": "k", "commit": "0123456789abcdef"}
    rows = [
        {"variant": variant, "chapter": chapter, "passed": passed, "seconds": seconds, **run}
        for variant, chapter, passed, seconds in (
            ("native", "01_a", False, 900), ("native", "01_a", True, 60), ("native", "02_b", True, 120),
            ("avx2", "01_a", True, 30), ("avx2", "01_a", False, 45), ("full", "02_b", True, 240),
        )
    ]  # fmt: skip
    chapters = SimpleNamespace(glob=lambda pattern: [Path("02_b.ipynb"), Path("01_a.ipynb")])
    monkeypatch.setattr(sturdy, "VARIANTS", variants)
    monkeypatch.setattr(sturdy, "toc", SimpleNamespace(CHAPTERS=chapters))
    monkeypatch.setattr(sturdy, "read_rows", lambda: rows)
    monkeypatch.setattr(sturdy, "write_json", lambda path, content: written.update(content))
    sturdy.tables()
    native, other = written["variants"]["native"], written["variants"]["avx2"]
    assert native == {"words": "NATIVE", "ch01": "✓", "ch02": "✓", "passed": 2, "run": 2, "minutes": 3}, (
        "an older run counts"
    )
    assert other == {"words": "AVX2", "ch01": "✗", "ch02": "·", "passed": 0, "run": 1, "minutes": 0.75}
    assert written["total"] == {"passed": 2, "run": 3, "share": pytest.approx(200 / 3)}
    assert written["times"] == {"01_a": {"fast": 60, "full": None}, "02_b": {"fast": 120, "full": 240}}
    assert written["machines"] == [{"device": "d", "kernel": "k"}] and written["commits"] == ["0123456789"]


def test_a_margin_is_the_worst_over_all_kernels(program, monkeypatch, tmp_path):
    sturdy = program("sturdy")
    monkeypatch.setattr(sturdy, "TESTS", tmp_path / "tests.json")

    def suite(reward, kl):
        notes = [{"what": "reward", "threshold": 1.0, "value": reward, "above": True},
                 {"what": "KL", "threshold": 5.0, "value": kl, "above": False}]  # fmt: skip
        properties = "".join(f"<property name='margin' value='{json.dumps(note)}'/>" for note in notes)
        return ElementTree.fromstring(
            "<testsuite tests='9' failures='2' errors='1' skipped='3' time='1.5'>"
            f"<testcase name='learns'><properties>{properties}</properties></testcase>"
            "<testcase name='falls'><failure/></testcase></testsuite>"
        )

    for kernel, numbers in (("native", (1.5, 2.0)), ("avx2", (1.2, 1.0)), ("sse41", (1.9, 3.0))):
        sturdy.store_tests(kernel, suite(*numbers), {"commands_failed": 0, "test_seconds": 70.5})
    content = json.loads((tmp_path / "tests.json").read_text())
    row = content["kernels"]["avx2"]
    assert (row["passed"], row["test_seconds"], row["failed"]) == (3, 70.5, ["falls"]), "not the tests that passed"
    worst = {row["what"]: row["worst"] for row in content["margins"]}
    assert worst == {"reward": 1.2, "KL": 3.0}, "not the nearest to its threshold, or beyond it, of all kernels"
