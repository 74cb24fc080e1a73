"""The replay explorer's Python side: what it computes from stored runs, and what its button does."""

import itertools
import json

import pytest

from ppo_lib.lab.efficiency import ratio_interval
from ppo_lib.lab.explorer import HEALTH, ReplayExplorer, trained_curve

ABOUT = {
    "sliders": {
        "replay_buffer_size": [16, 64, 256],
        "replay_sample_size": [8, 24, 56],
        "max_replay_reuse": [2, 8],
        "staleness_threshold": [2, 16],
    },
    "fixed": {"batch_size": 8, "learning_rate": 1e-3},
    "episodes": 96,
}
GAINS = [0.0, 0.5, 1.0, 1.0, 1.0]


def rows_of(place, seed, objectives, every):
    return [
        dict(zip(ABOUT["sliders"], place, strict=True))
        | {"seed": float(seed), "tokens": every * n, "objective": objective, "reuse": 4.0, "ess": 0.5, "distance": 0.1}
        | {"age": 1.0, "held": 8.0}
        for n, objective in enumerate(objectives)
    ]


def stored_rows(seeds=(1, 2)):
    """Replay generates half of what on-policy PPO does at each evaluation, and is as good there."""
    places = [(0, 0, 0, 0), *itertools.product(*ABOUT["sliders"].values())]
    return [row for seed in seeds for place in places for row in rows_of(place, seed, GAINS, 50 if any(place) else 100)]


@pytest.fixture
def explorer():
    return ReplayExplorer(stored_rows(), ABOUT, caption="What to see.")


def chosen(explorer, which):
    """Slider positions: all at their lowest, as they open, or all at their highest value."""
    highest = [len(values) - 1 for values in ABOUT["sliders"].values()]
    return {"minimum": [0, 0, 0, 0], "default": list(explorer.positions), "maximum": highest}[which]


TWO = {
    "sliders": {
        "replay_buffer_size": [40, 80], "replay_sample_size": [8], "max_replay_reuse": [2], "staleness_threshold": [4],
    },
    "fixed": {"batch_size": 8, "learning_rate": 1e-3},
    "episodes": 96,
}  # fmt: skip
ON_POLICY = {  # seed: objectives, tokens between evaluations; starts −3, −1, −8 and ends 1, 3, 8
    1: ([-3, -1, 1, 1, 2, 0], 100), 2: ([-1, -1, -1, 3, 3, 3], 120), 3: ([-8, -8, 8, 8, 9, 7], 90),
}  # fmt: skip
REPLAYED = {2: ([-1, -1, 2, 4, 4, 4], 80), 1: ([-3, 1, 1, 3, 4, 2], 50), 9: ([100] * 6, 1)}
LONGER = {seed: (objectives, 4 * every) for seed, (objectives, every) in REPLAYED.items()}


def two_points():
    """An explorer of two settings, whose runs differ in everything, beside on-policy PPO."""
    rows = []
    for place, runs in (((0, 0, 0, 0), ON_POLICY), ((40, 8, 2, 4), REPLAYED), ((80, 8, 2, 4), LONGER)):
        for seed, (objectives, every) in runs.items():
            for n, objective in enumerate(objectives):
                row = {"seed": float(seed), "tokens": every * n, "objective": objective, "reuse": seed + 0.3337 * n}
                row |= {"ess": seed / 10 + n / 100, "age": seed * n, "held": 10 * seed * n}
                rows.append(dict(zip(TWO["sliders"], place, strict=True)) | row)
    return ReplayExplorer(rows, TWO, start={"replay_buffer_size": 40}, caption="c")


def test_thresholds_are_shares_of_what_on_policy_ppo_gains_from_its_start():
    """From −4 to 4 on average (medians: −3 and 3)."""
    assert two_points().levels == pytest.approx([0, 2, 3.2]), "not mean start + share of (mean end − mean start)"


def test_costs_of_a_point_are_compared_on_common_seeds_as_far_as_the_shortest_run():
    """Seeds 1 and 2 are common; their shortest run has 250 tokens."""
    explorer = two_points()
    until, own = explorer.grid["points"][0]["until"], explorer.grid["baseline"]["until"]
    assert [row["tokens"] for row in until] == [105, 155, 245], "not mean costs, a run that never holds at its end"
    assert [row["never"] for row in until] == [0, 0, 1] and {row["runs"] for row in until} == {2}
    assert [row["tokens"] for row in own] == [247, 347, 427] and {row["runs"] for row in own} == {3}
    costs = ([200, 250], [50, 160]), ([250, 250], [150, 160]), ([250, 250], [250, 240])
    for row, (theirs, ours) in zip(until, costs, strict=True):
        expected = [float(f"{number:.4g}") for number in ratio_interval(theirs, ours)]
        assert row["ratio"] == expected, "not on-policy PPO's tokens over the point's, both cut off at the shortest run"
    assert {tuple(row["ratio"]) for row in own} == {(1, 1, 1)}, "on-policy PPO is not as good as itself"
    longer = explorer.grid["points"][1]["until"][0]["ratio"][0]  # here PPO's run of 500 tokens is the shortest
    assert longer == pytest.approx((200 + 360) / (200 + 500), abs=1e-3), "the shortest run is not looked for in PPO's"


def test_a_point_shows_mean_and_range_of_its_runs():
    explorer = two_points()
    point, baseline = explorer.grid["points"][0], explorer.grid["baseline"]
    assert point["tokens"] == [0, 65, 130, 195, 260, 325], "not the mean tokens of the runs on common seeds"
    assert point["objective"] == [-2, 0, 1.5, 3.5, 4, 3], "the curve is not the mean of the runs"
    assert point["low"] == [-3, -1, 1, 3, 4, 2] and point["high"] == [-1, 1, 2, 4, 4, 4], "not lowest and highest"
    assert (point["final"], baseline["final"]) == (3.5, 4), "the end is not the mean of the last three evaluations"
    assert point["reuse"] == 3.17, "reuse is not that of the end"
    assert point["ess"] == [0.16, 0.17, 0.18, 0.19, 0.2], "not the mean ESS from the first update on"
    assert point["age"] == [0.375, 0.75, 1.125, 1.5, 1.875], "age is not a share of the staleness threshold"
    assert point["fill"] == [0.375, 0.75, 1.125, 1.5, 1.875], "fill is not a share of the buffer's size"
    assert baseline["age"] == [2, 4, 6, 8, 10], "on-policy PPO's age is a share of something"
    assert explorer.grid["levels"] == [0, 2, 3.2] and explorer.grid["shares"] == (50, 75, 90)


def test_an_own_run_is_shown_like_the_stored_ones(monkeypatch):
    explorer, asked = two_points(), []
    curve = [
        {"responses": 32 * n, "tokens": 7 * n, "objective": v, "ess": 1 - n / 3, "age": 2 * n, "held": 3 * n}
        for n, v in enumerate([-4, 1, 1, 1, 0])
    ]
    monkeypatch.setattr("ppo_lib.lab.explorer.trained_curve", lambda *settings: asked.append(settings[:3]) or curve)
    explorer.train()
    settings = {"batch_size": 8, "learning_rate": 1e-3, "replay_buffer_size": 40, "replay_sample_size": 8}
    settings |= {"max_replay_reuse": 2, "staleness_threshold": 4, "minibatch_size": 16}
    assert asked == [(settings, 96, 0)], "not the chosen setting, all in one minibatch, as long as the stored runs"
    (run,) = explorer.runs
    first, *others = run["until"]
    assert first == {"tokens": 7, "held": True} and others == [{"tokens": 28, "held": False}] * 2, "not what it cost"
    assert run["tokens"] == [0, 7, 14, 21, 28] and run["objective"] == [-4, 1, 1, 1, 0]
    assert run["ess"] == [0.6667, 0.3333, 0, -0.3333] and run["age"] == [0.5, 1, 1.5, 2], "not shares to four digits"
    assert run["fill"] == [0.075, 0.15, 0.225, 0.3]


def test_points_stand_in_the_order_in_which_the_sliders_count(explorer):
    texts = [len(control["texts"]) for control in explorer.grid["controls"]]
    points = explorer.grid["points"]
    assert texts == [3, 3, 2, 2] and len(points) == 36
    assert [point["age"][0] for point in points] == [0.5, 0.0625] * 18, "the last slider does not count first"
    assert [point["fill"][0] for point in points[::12]] == [0.5, 0.125, 0.03125], "the first slider does not count last"
    assert explorer.setting == {
        "replay_buffer_size": 64, "replay_sample_size": 24, "max_replay_reuse": 8, "staleness_threshold": 16
    }  # fmt: skip
    json.dumps(explorer.get_state(["grid", "positions", "runs"]), allow_nan=False)


def test_a_grid_with_a_gap_is_refused():
    rows = [row for row in stored_rows() if row["replay_sample_size"] != 56 or row["seed"] == 1]
    with pytest.raises(ValueError, match="'replay_sample_size': 56.*fewer than two runs"):
        ReplayExplorer(rows, ABOUT, caption="c")


def test_a_start_is_taken(explorer):
    opened = ReplayExplorer(stored_rows(), ABOUT, caption="c", start={"replay_sample_size": 8})
    assert opened.setting["replay_sample_size"] == 8 and "replay sample size from 8 to 56" in repr(opened)


@pytest.mark.parametrize("which", ["minimum", "default", "maximum"])
def test_button_trains_and_keeps_the_run(explorer, which):
    sent, told = [], []
    explorer.send = lambda content, buffers=None: sent.append(content)
    explorer.observe(lambda change: told.append(dict(change["new"])), names="training")
    explorer.positions = chosen(explorer, which)
    explorer.episodes = 32
    explorer._handle_custom_msg({"type": "hello"}, [])
    assert sent == [{"type": "here"}], "the page must hear that Python is there"
    explorer._handle_custom_msg({"type": "train"}, [])
    (run,) = explorer.runs
    assert run["positions"] == chosen(explorer, which) and run["seed"] == 0
    assert len(run["tokens"]) == 2 and len(run["ess"]) == 1 and len(run["until"]) == 3
    assert [step.get("responses") for step in told] == [0, 32, None], "the page hears how far the run is, and its end"
    json.dumps(explorer.runs, allow_nan=False)


def test_a_second_press_takes_the_next_seed(explorer, monkeypatch):
    seeds = []
    curve = [{"tokens": n, "objective": 0.0, "responses": 32 * n, **dict.fromkeys(HEALTH, 0.0)} for n in range(2)]
    monkeypatch.setattr("ppo_lib.lab.explorer.trained_curve", lambda *settings: seeds.append(settings[2]) or curve)
    explorer.train()
    explorer.train()
    explorer.positions = [0, 0, 0, 0]
    explorer.train()
    assert seeds == [0, 1, 0]


def test_a_failing_run_is_told_and_raised(explorer, monkeypatch):
    def fail(*_):
        raise FloatingPointError("the loss is NaN")

    monkeypatch.setattr("ppo_lib.lab.explorer.trained_curve", fail)
    with pytest.raises(FloatingPointError):
        explorer._receive(explorer, {"type": "train"}, [])
    assert explorer.failure == "FloatingPointError: the loss is NaN" and explorer.training == {} and not explorer.runs


def test_a_curve_begins_before_any_update_and_is_told_as_it_grows():
    heard = []
    settings = {"replay_sample_size": 8, "minibatch_size": 16}
    curve = trained_curve(settings, episodes=64, seed=1, heard=lambda curve: heard.append(len(curve)))
    assert [row["responses"] for row in curve] == [0, 32, 64] and heard == [2, 3]
    assert curve[0]["tokens"] == 0 and curve[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert curve[-1]["objective"] == pytest.approx(curve[-1]["score"] - 0.05 * curve[-1]["kl"])
    assert curve[-1]["reuse"] > 1.5, "each update after the first replays as much as it generates"
    assert curve == trained_curve(settings, episodes=64, seed=1), "the same seed must give the same curve"
