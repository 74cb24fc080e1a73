"""How sample efficiency is measured: thresholds that are held, censored runs, ratios with intervals, the tables."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toc
from ppo_lib import worlds
from ppo_lib.lab import efficiency


def curve(values, every=100):
    return [{"tokens": every * i, "objective": value} for i, value in enumerate(values)]


def test_a_threshold_counts_once_it_is_held():
    assert efficiency.first_held([0, 1, 0, 1, 1, 1, 0], 1.0) == 3, "a single lucky evaluation counts as having arrived"
    assert efficiency.first_held([0, 1, 1], 1.0) is None, "two evaluations count as three"
    assert efficiency.first_held([1, 1, 1], 1.0) == 0, "a threshold that is reached exactly does not count"


def test_a_run_that_never_arrives_is_censored_at_its_end():
    assert efficiency.cost_until(curve([0, 1, 1, 1]), 0.5) == (100, True)
    assert efficiency.cost_until(curve([0, 0, 1, 0]), 0.5) == (300, False), (
        "a run that never arrives is dropped or free"
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=2, max_size=12))
def test_a_ratio_lies_in_its_interval_and_turns_around(costs):
    baseline, other = zip(*costs, strict=True)
    ratio, low, high = efficiency.ratio_interval(baseline, other)
    assert low <= ratio * (1 + 1e-9) and ratio <= high * (1 + 1e-9)
    assert ratio == pytest.approx(sum(baseline) / sum(other)), "the ratio is not that of the means"
    assert efficiency.ratio_interval(other, baseline)[0] == pytest.approx(1 / ratio)


def test_pairs_stay_together_in_the_bootstrap():
    hard_and_easy = np.array([100.0, 200, 400, 800, 1600])
    ratio, low, high = efficiency.ratio_interval(2 * hard_and_easy, hard_and_easy)
    assert (low, high) == pytest.approx((2, 2)), "seeds are drawn apart: equally hard ones no longer meet"


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for trial in range(60):
        costs = rng.gamma(20.0, size=(2, 12)) * [[200.0], [100.0]]
        _, low, high = efficiency.ratio_interval(*costs, seed=trial)
        held += low <= 2.0 <= high
    assert 48 <= held, f"only {held} of 60 intervals of 95 % hold the true ratio"


def test_probability_of_improvement():
    assert efficiency.probability_of_improvement([10, 20], [1, 2]) == 1.0, "cheaper runs count as worse"
    assert efficiency.probability_of_improvement([10, 20], [10, 20]) == 0.5
    assert efficiency.probability_of_improvement([1, 2], [10, 20]) == 0.0


def test_area_and_collapse():
    assert efficiency.area(curve([0, 1, 1]), until=200) == pytest.approx(0.75)
    assert efficiency.area(curve([0, 1, 1, 5]), until=200) == pytest.approx(0.75), "what comes later is counted"
    assert efficiency.collapsed(curve([0, 1, 2, 2, 2, 0, 0, 0]))
    assert not efficiency.collapsed(curve([0, 1, 2, 2, 2, 1.5, 1.6, 1.5]))
    assert not efficiency.collapsed(curve([0, 0, 0, 0])), "a run that never rose cannot fall"


@pytest.fixture
def programs(monkeypatch):
    monkeypatch.syspath_prepend(str(toc.ROOT / "benchmarks"))
    return importlib.import_module("sample_efficiency"), importlib.import_module("efficiency_tables")


def test_tables_of_curves_whose_ratio_is_known(programs, tmp_path):
    """The baseline needs exactly twice the tokens and, generation being free of charge, the same CPU time."""
    program, tables = programs
    lines = [",".join(("task", "arm", "seed", *program.COLUMNS))]
    for arm, pace in (("ppo", 1), ("replay", 2)):
        for seed in range(4):
            for i in range(41):
                row = dict.fromkeys(program.COLUMNS, 0) | {"objective": min(1.0, pace * i / 20), "tokens": 10 * i}
                row |= {"responses": i, "cpu": float((pace + 0.5) * i), "generating": 0.25 * i}
                lines.append(",".join(map(str, ("dense", arm, seed, *row.values()))))
    (tmp_path / "curves.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "evaluations.json").write_text('{"cpu_seconds": {"dense": 0.5}}')
    table = tables.analyse(tmp_path)["tasks"]["dense"]
    assert table["thresholds"] == {"50": 0.5, "75": 0.75, "90": 0.9, "100": 1.0}
    to = table["arms"]["replay"]["until"]["90"]
    assert to["tokens"] == 90 and table["arms"]["ppo"]["until"]["90"]["tokens"] == 180
    assert to["against_ppo"] == [2.0, 2.0, 2.0] and to["better_than_ppo"] == 1.0
    assert to["time_against_ppo"]["1"][0] == pytest.approx(1.0), "CPU time is not counted to the same threshold"
    assert to["time_against_ppo"]["5"][0] == pytest.approx((18 + 4 * 4.5) / (18 + 4 * 2.25), abs=1e-3)
    dear = (18 + 3.5 * 4.5) / (18 + 3.5 * 2.25)  # 0.75 s of training a step, so 1.125 s of generation, 4.5 times 0.25 s
    assert to["time_against_ppo"]["60 % of the time"][0] == pytest.approx(dear, abs=1e-3)
    assert json.loads((tmp_path / "summary.json").read_text())["tasks"]["dense"] == table


def test_the_program_tunes_runs_goes_on_and_repeats(programs, tmp_path, monkeypatch, capsys):
    """One tiny task, in this process: what is stored is what the same command makes again."""
    program, _ = programs
    task = program.Task("reviews", 64, 32, (1e-3,))
    replay = {"batch_size": 8, "replay_sample_size": 8, "minibatch_size": 16, "whiten_advantages": True}
    tries = {
        "ppo": [{"batch_size": 8, "minibatch_size": 8, "num_ppo_epochs": 1}, {"batch_size": 16, "minibatch_size": 16}],
        "grpo": [{"batch_size": 4, "group_size": 2, "minibatch_size": 8, "num_ppo_epochs": 1}],
        "naive": [replay | {"correction": "none", "learning_rate": 1e-3}],
        "replay": [replay | {"learning_rate": 1e-3}],
    }
    ones = dict.fromkeys(program.FAMILIES, 1)
    for name, value in {
        "FOLDER": tmp_path, "TASKS": {"dense": task}, "SEEDS": (7, 8), "ABLATION_SEEDS": (7, 8),
        "FINALISTS": ones, "VARIED": ones, "WIDE": dict.fromkeys(program.FAMILIES, 0),
        "TUNING_SEEDS": (1, 2), "ABLATIONS": {"no replay": {"replay_sample_size": 0}}, "EVERY": 16,
        "candidates": lambda family, task: tries[family],
        "in_parallel": lambda jobs, workers: map(program.work, jobs),
    }.items():  # fmt: skip
        monkeypatch.setattr(program, name, value)
    whole = worlds.load("reviews")  # one world for all runs, with fewer held-out prompts: 47 runs are many
    small = dataclasses.replace(whole, heldout_prompts=whole.heldout_prompts[:6])
    monkeypatch.setattr(program, "worlds", SimpleNamespace(load=lambda name: small))
    program.main(["tune", "--tasks", "dense"])
    frozen = json.loads((tmp_path / "frozen.json").read_text())
    assert frozen["settings"]["dense"]["ppo"] in tries["ppo"] + [t | {"lam": 1.0} for t in tries["ppo"]]
    assert set(program.TUNING_SEEDS).isdisjoint((100, 109)) and frozen["tuning_runs"]["dense"]["ppo"] == 4
    program.main(["run", "--tasks", "dense"])
    program.main(["ablate", "--tasks", "dense"])
    stored = (tmp_path / "curves.csv").read_text()
    arms = {tuple(line.split(",")[1:3]) for line in stored.splitlines()[1:]}
    run = [a for a in program.ARMS if a != "runner-up"] + ["no replay"]  # a single finalist has no runner-up
    assert arms == {(a, s) for a in run for s in ("7", "8")}
    kept = [line for line in stored.splitlines() if not line.startswith("dense,replay,8")]
    (tmp_path / "curves.csv").write_text("\n".join(kept) + "\n")
    program.main(["run", "--tasks", "dense"])
    again = (tmp_path / "curves.csv").read_text()
    without_time = [program.COLUMNS.index(name) + 3 for name in ("cpu", "generating")]

    def rows(text):
        return sorted([v for i, v in enumerate(line.split(",")) if i not in without_time] for line in text.splitlines())

    assert rows(again) == rows(stored), "a run that was missing comes out otherwise, or one that was there ran again"
    program.main(["repeat", "dense", "replay", "7"])
    assert "equal to the stored ones" in capsys.readouterr().out
    (tmp_path / "curves.csv").write_text(again.replace("dense,replay,7,16,", "dense,replay,7,17,"))
    with pytest.raises(SystemExit):
        program.main(["repeat", "dense", "replay", "7"])


def test_tuning_seeds_are_not_counted_seeds(programs):
    program, _ = programs
    assert not set(program.TUNING_SEEDS) & set(program.SEEDS), "the settings were chosen on seeds that count"
    assert len(program.SEEDS) >= 10
    task, further = program.TASKS["dense"], len(program.TUNING_SEEDS) - 1
    runs = {
        family: len(program.candidates(family, task)) + program.VARIED[family] + program.WIDE[family]
        + further * program.FINALISTS[family] + (len(program.NEARBY) if family == "replay" else 0)
        for family in program.FAMILIES
    }  # fmt: skip
    assert runs["ppo"] == max(runs.values()), f"on-policy PPO is tuned less than another family: {runs}"
    for family in ("ppo", "replay"):
        assert len({json.dumps(s) for s in program.wide(family, task)}) == program.WIDE[family]
