"""The tables of sample efficiency: every column, arm, seed, share and cut-off is the right one, on curves made by hand.

No two columns, arms, lengths or seeds are alike here, nothing starts at 0, and means differ from medians.
"""

import contextlib
import importlib
import json

import numpy as np
import pytest

import toc
from ppo_lib.lab.efficiency import area, mean_interval, ratio_interval

COLUMNS = ("responses", "tokens", "steps", "objective", "score", "kl", "entropy", "cpu", "generating",
           "reuse", "ess", "distance", "age", "held")  # fmt: skip


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(toc.ROOT / "benchmarks"))
    return importlib.import_module("efficiency_tables")


def curve(objectives, pace: int = 1):
    """An evaluation of each objective; every column grows by another amount, all of them by `pace` times as much."""
    return [
        {name: float(pace * number * (place + 1)) for place, name in enumerate(COLUMNS)} | {"objective": float(value)}
        for number, value in enumerate(objectives)
    ]


def arriving(at: int | None, end: int, level: float = 1.0):
    """A curve that begins at −1, costs 1 token an evaluation, and is at `level` from evaluation `at` on."""
    rows = curve([-1.0 if at is None or number < at else level for number in range(end + 1)])
    return [row | {"tokens": float(number)} for number, row in enumerate(rows)]


def rounded(numbers):
    return [round(float(number), 3) for number in numbers]


def test_a_file_of_curves_is_told_apart_by_task_arm_and_seed(tables, tmp_path):
    lines = ["a,x,10,0,-1", "a,x,9,0,-2", "b,x,10,0,-3", "a,y,10,0,-4", "a,x,10,5,0.5"]
    (tmp_path / "curves.csv").write_text("\n".join(["task,arm,seed,tokens,objective", *lines]) + "\n")
    first, then = {"tokens": 0.0, "objective": -1.0}, {"tokens": 5.0, "objective": 0.5}
    assert tables.read_curves(tmp_path / "curves.csv") == {
        "a": {"x": {10: [first, then], 9: [{"tokens": 0, "objective": -2}]}, "y": {10: [first | {"objective": -4}]}},
        "b": {"x": {10: [first | {"objective": -3}]}},
    }, "rows of a task, arm or seed are mixed or out of order"


def test_a_final_value_is_the_mean_of_the_last_five_evaluations(tables):
    run = curve([50, 40, -1, -2, -4, -8, 30])
    assert tables.final(run) == pytest.approx(3.0), "not the mean of the last five (four: 4; their median: −2)"
    assert tables.final(run, "kl") == pytest.approx(4 * run[1]["kl"]), "the final value of another column"


def test_thresholds_are_shares_of_the_gain_from_the_mean_start(tables):
    """Starts −4, −1, 8 with mean 1; ends 10, 12, 32 with mean 18: half of the gain is at 9.5."""
    baseline = {seed: curve([start, 99, *[end] * 5]) for seed, start, end in ((7, -4, 10), (8, -1, 12), (9, 8, 32))}
    found = tables.thresholds(baseline)
    assert list(found) == [50, 75, 90, 100], "the shares are not those of the pages"
    assert found[100] == pytest.approx(18), "the end is not the mean of the baseline's final values (median: 12)"
    assert found[50] != pytest.approx(9), "thresholds are measured from 0, not from where the runs start"
    assert found == pytest.approx({50: 9.5, 75: 13.75, 90: 16.3, 100: 18}), (
        "not mean start + share of (mean end − mean start)"
    )


def test_generation_is_made_dearer_and_nothing_else(tables):
    run = [{"cpu": 10.0, "generating": 3.0, "tokens": 7.0}]
    assert tables.with_dearer_generation(run, 5)[0]["time"] == 7 + 5 * 3, "not what is no generation + 5 × generation"
    assert tables.with_dearer_generation(run, 1)[0]["time"] == 10, "at its own price generation does not cost its own"
    assert tables.with_dearer_generation(run, 5)[0] == {"time": 22} | run[0], "a column is lost"
    assert run == [{"cpu": 10.0, "generating": 3.0, "tokens": 7.0}], "the curve itself is changed"


def test_what_an_arm_paid_to_a_threshold(tables):
    runs = {10: arriving(4, 20), 9: arriving(None, 15), 11: arriving(6, 9)}
    assert tables.reached(runs, 0.5, "tokens") == ([15, 4, 6], 1), (
        "not the costs of the runs by seed, 9 to 11, and the number of those that never held it"
    )
    assert tables.reached(runs, 0.5, "steps") == ([45, 12, 18], 1), "the costs are those of another column"
    assert tables.reached(runs, 1.5, "tokens") == ([15, 20, 9], 3), "where no run arrives not all are censored"


def test_no_run_is_followed_beyond_the_horizon(tables):
    runs = {10: arriving(4, 20), 9: arriving(None, 5), 11: arriving(12, 20), 12: arriving(None, 30)}
    costs = tables.until_horizon(runs, 0.5, "tokens", 10)
    assert costs[1] == 4, "a run that arrived before the horizon does not cost what it paid"
    assert costs[2] == 10, "a run that arrives after the horizon is not cut off there"
    assert costs[3] == 10, "a run that never arrives is followed beyond the horizon"
    assert costs == [10, 4, 10, 10], "not the costs by seed, 9 to 12; one that never arrives costs the horizon"
    assert tables.until_horizon(runs, 0.5, "steps", 36) == [36, 12, 36, 36], "the costs are those of another column"


# Two arms on seeds of their own, 1 to 3 of them common, in no order; a run of each never arrives.
BASELINE = {3: arriving(4, 9), 1: arriving(None, 6), 2: arriving(8, 10), 9: arriving(1, 5)}
RUNS = {2: arriving(3, 8), 30: arriving(2, 4), 1: arriving(2, 7), 3: arriving(None, 11)}


def test_a_comparison_cuts_both_arms_off_at_the_shortest_run(tables):
    """On seeds 1, 2 and 3 the shortest run has 6 tokens."""
    costs = [6, 6, 4], [2, 3, 6]
    right, wrong = rounded(ratio_interval(*costs)), {
        "turned around": costs[::-1],
        "cut off at the longest run": ([11, 8, 4], [2, 3, 11]),
        "of runs that are not cut off at one horizon": ([6, 8, 4], [2, 3, 11]),
        "cut off at the shortest run of other seeds": ([4, 4, 4], [2, 3, 4]),
        "of pairs that do not share a seed": ([4, 6, 6], [3, 2, 6]),
        "of runs taken by their places, not by their seeds": ([4, 4, 4], [3, 2, 2]),
    }  # fmt: skip
    found = tables.compared(RUNS, BASELINE, 0.5)
    named = {what: rounded(ratio_interval(*other)) for what, other in wrong.items()}
    told = [what for what, interval in named.items() if interval == found]
    assert found == right, f"the ratio is {' or '.join(told) or 'another'}: {found}"
    turned = tables.compared(BASELINE, RUNS, 0.5)
    assert turned == rounded(ratio_interval(*costs[::-1])), "the shortest run is looked for in one of the arms alone"


def test_a_comparison_in_time_counts_every_run_as_far_as_it_went(tables):
    with_time = [
        {seed: [row | {"time": 2 * row["tokens"]} for row in run] for seed, run in some.items()}
        for some in (RUNS, BASELINE)
    ]
    found, right = tables.compared(*with_time, 0.5, "time"), rounded(ratio_interval([12, 16, 8], [4, 6, 22]))
    assert found != rounded(ratio_interval([12, 12, 8], [4, 6, 12])), "in time, too, runs are cut off at the shortest"
    assert found == right, "not the ratio of mean times on the common seeds, by seed"


def timed(at: int, end: int, pace: float, generating: float):
    """A run that arrives at evaluation `at`; each evaluation took `pace` seconds, of which it generated some."""
    rows = enumerate(arriving(at, end))
    return [row | {"cpu": pace * number, "generating": generating * number} for number, row in rows]


def test_dear_generation_takes_sixty_percent_of_tuned_ppos_time(tables):
    """PPO spent 60 s, 6 of them generating: at 13.5 times the price generation takes 81 of 135 s."""
    ppo = {1: timed(5, 10, 2.0, 0.1), 2: timed(5, 20, 2.0, 0.25)}
    runs, baseline = {1: timed(2, 9, 3.0, 1.0), 2: timed(2, 9, 3.0, 1.0)}, {s: timed(4, 8, 1.0, 0.5) for s in (1, 2)}
    found = tables.times_compared(runs, baseline, ppo, 0.5)
    assert list(found) == ["1", "5", "20", "60 % of the time"], "the prices are not those of the pages"
    for name, price in (("1", 1), ("5", 5), ("20", 20), ("60 % of the time", 13.5)):
        ratio = 4 * (0.5 + 0.5 * price) / (2 * (2 + price))
        assert found[name][0] == pytest.approx(ratio, abs=6e-4), f"the price {name} is not {price} × generation's own"


def arms_of_a_study():
    """Arms of other paces and lengths; on seeds 1 and 2 all of them have runs, PPO on a third."""
    return {
        "ppo": {3: arriving(9, 30), 1: arriving(4, 20), 2: arriving(5, 24)},
        "replay": {2: arriving(2, 22), 1: arriving(3, 25)},
        "same": {1: arriving(11, 26), 2: arriving(12, 18)},
        "grpo": {1: arriving(8, 28), 2: arriving(10, 29)},
        "runner-up": {1: arriving(6, 23), 2: arriving(7, 27)},
    }


def test_what_an_arm_takes_to_a_threshold(tables):
    arms, runs = arms_of_a_study(), {1: arriving(2, 40), 2: arriving(3, 25), 3: arriving(None, 10)}
    row = tables.until(runs, arms, 0.5)
    assert row["tokens"] == 5, "not the mean of what the runs paid: 2, 3 and, censored, 10 (median: 3)"
    assert row["median"] == 3, "not the median of what the runs paid (mean: 5)"
    assert row["censored"] == 1, "the run that never arrives is not counted"
    for name, cost in (("responses", 5.0), ("steps", 15.0), ("cpu", 40.0)):
        assert row[name] == cost, f"the {name} are those of another column"
    assert tables.until(arms["same"], arms, 0.5)["responses"] == 11.5, "costs are not rounded to one digit"
    for name in ("ppo", "same", "runner-up"):
        assert row[f"against_{name}"] == tables.compared(runs, arms[name], 0.5), f"not compared with {name}"
        times = tables.times_compared(runs, arms[name], arms["ppo"], 0.5)
        assert row[f"time_against_{name}"] == times, f"times are not compared with {name}, at prices that PPO's make"
    assert row["better_than_ppo"] == 0.667, "not the share of 9 pairs that beat PPO's run, a censored one beaten by all"
    expected = {"tokens", "median", "censored", "responses", "steps", "cpu", "better_than_ppo"}
    ways = {f"{time}against_{name}" for name in ("ppo", "same", "runner-up") for time in ("", "time_")}
    assert set(row) == expected | ways, "a column is missing, or one too many"


def test_an_arm_of_one_run_is_no_opponent(tables):
    arms = arms_of_a_study()
    del arms["runner-up"], arms["same"][2]
    row = tables.until(arms["replay"], arms, 0.5)
    assert not [name for name in row if "runner-up" in name], "an arm is compared with one that has no runs"
    assert not [name for name in row if "same" in name], "an arm is compared with one of a single run: no interval"


def test_two_runs_that_never_arrive_are_equally_good(tables):
    """However long each was followed."""
    arms = {"ppo": {1: arriving(None, 20), 2: arriving(None, 30)}}
    found = tables.until({1: arriving(None, 5), 2: arriving(4, 9)}, arms, 0.5)["better_than_ppo"]
    assert found == 0.75, "a run that never arrives is counted by its length"


def test_the_table_of_an_arm(tables):
    arms, levels = arms_of_a_study(), {50: 0.5, 90: 0.9}
    for place, runs in enumerate(arms.values()):
        for seed, run in runs.items():
            for number, row in enumerate(run):
                row["kl"] = 1000.0 * place + 100 * seed + number**2
                row["ess"] = 1 / (1 + number + 10 * seed)
    runs, ppo, table = arms["replay"], arms["ppo"], tables.arm_table(arms["replay"], arms, levels)
    assert table["runs"] == 2, "not the runs of the arm are counted"
    assert table["collapsed"] == 0, "a run that holds its gain is said to have collapsed"
    for name in ("objective", "score", "kl", "entropy"):
        ends = {seed: tables.final(run, name) for seed, run in runs.items()}
        assert table[f"final_{name}"] == rounded(mean_interval(list(ends.values()))), f"not the runs' final {name}"
        gains = [ends[seed] - tables.final(ppo[seed], name) for seed in (1, 2)]
        assert table[f"final_{name}_minus_ppo"] == rounded(mean_interval(gains)), (
            f"the gain in {name} is not that over PPO's run of the same seed"
        )
    for name in ("cpu", "generating", "steps", "tokens", "reuse"):
        total = np.mean([runs[1][-1][name], runs[2][-1][name]])
        assert table[f"total_{name}"] == round(total, 2), f"total {name}: not the mean of what the runs ended with"
    width = 18  # of the shortest run of all arms, one of `same`
    areas = {seed: area(run, width) for seed, run in runs.items()}
    assert table["area"] == rounded(mean_interval(list(areas.values()))), "areas have not the width of the shortest run"
    gains = [areas[seed] - area(ppo[seed], width) for seed in (1, 2)]
    assert table["area_minus_ppo"] == rounded(mean_interval(gains)), "not the gain in area over PPO's of the same seed"
    for name in ("ess", "distance", "age", "held"):
        seen = [row[name] for run in runs.values() for row in run[3:]]
        assert table["health"][name] == rounded(np.quantile(seen, (0.05, 0.5, 0.95))), f"health: not {name}'s quantiles"
    for share, level in levels.items():
        assert table["until"][str(share)] == tables.until(runs, arms, level), f"{share} % is another threshold"


def test_totals_have_two_digits_and_runs_that_collapse_are_counted(tables):
    fallen = curve([0, 0, 3, 3, 3, *[0] * 6], pace=1 / 3)
    arms = {"ppo": {1: curve([0] * 9), 2: curve([1] * 9)}, "naive": {1: fallen, 2: curve([0] * 9), 3: fallen}}
    table = tables.arm_table(arms["naive"], arms, {90: 0.9})
    assert table["collapsed"] == 2, "collapsed runs are not counted"
    assert table["total_cpu"] == round((2 * 10 / 3 + 8) * 8 / 3, 2), "not the mean total of three runs, to two digits"


def test_health_leaves_out_the_first_three_evaluations(tables):
    """Of 0 to 20 after three that are beside the point: quantiles 1, 10 and 19."""
    runs = {1: [{"ess": value} for value in (99, 99, 99, *range(0, 11))]}
    runs[2] = [{"ess": value} for value in (-99, -99, -99, *range(11, 21))]
    assert tables.quantiles_of(runs, "ess") == [1, 10, 19], "not the 5, 50 and 95 % quantiles from the fourth on"


def test_an_ablation_is_compared_with_the_full_method_as_long_and_on_the_same_seeds(tables):
    """The ablation's runs end after 12 responses; what the full method does later, at 50, must not be seen."""
    full = {seed: arriving(at, 30) for seed, at in ((1, 2), (2, 5), (3, 20), (4, 3))}
    for row in (row for run in full.values() for row in run[13:]):
        row["objective"] = 50.0
    cut = {3: arriving(9, 12), 1: arriving(6, 12), 2: arriving(None, 10), 8: arriving(1, 12)}
    arms = {"replay": full, "no replay": cut, "on one seed": {1: arriving(1, 9), 8: arriving(1, 9)}}
    found = tables.ablation_table(arms, ["no replay", "on one seed"], {90: 0.9, 50: -2})
    assert list(found) == ["no replay"], "an ablation with one common seed has no interval"
    row = found["no replay"]
    assert row["runs"] == 3, "not the seeds that both arms have"
    assert row["responses"] == 12, "not the length of the ablation's longest run"
    assert row["tokens"] == 8, "not what the ablation took to 90 %: 9, 6 and, censored, 10"
    assert row["censored"] == 1, "the ablation's run that never arrives is not counted"
    assert row["full_tokens"] == 6, "not what the full method took: 2, 5 and, censored, 12"
    assert row["full_censored"] == 1, "a full run that arrives after the ablation's end is not counted as censored"
    assert row["final"] == 0.2, "not the mean of the ablation's final values: 0.6, 1 and −1"
    assert row["full_final"] == 0.333, "the full method's end is not where the ablation ends: at 1, 1 and −1"
    assert row["area"] == round((-5 / 13 + 1 / 13 - 1) / 3, 3), "not the mean over the ablation's runs of their means"
    assert row["full_area"] == round((9 / 13 + 3 / 13 - 1) / 3, 3), "the full method's area has another width"
    dearer = rounded(ratio_interval([6, 10, 9], [2, 5, 10]))
    assert row["times_dearer"] == dearer, "not the ablation's tokens over the full method's, cut off alike"


def write_study(folder, tasks):
    """`curves.csv` and `evaluations.json` of a study; the stored CPU time has the evaluations in it."""
    seconds = {task: 0.25 * (place + 1) for place, task in enumerate(tasks)}
    with open(folder / "curves.csv", "w") as file:
        print("task", "arm", "seed", *COLUMNS, sep=",", file=file)
        for task, arms in tasks.items():
            for arm, runs in arms.items():
                for seed, run in runs.items():
                    for number, row in enumerate(run):
                        stored = row | {"cpu": row["cpu"] + number * seconds[task]}
                        print(task, arm, seed, *(stored[name] for name in COLUMNS), sep=",", file=file)
    (folder / "evaluations.json").write_text(json.dumps({"cpu_seconds": seconds}))


def test_the_summary_of_a_study(tables, tmp_path, capsys):
    """Two tasks; on one an arm has a single run, on a third PPO has: what cannot be compared is left out."""
    arms = arms_of_a_study()
    ablation = {1: arriving(4, 12), 2: arriving(6, 12)}
    few = {"ppo": arms["same"], "replay": {1: arriving(1, 20)}, "grpo": arms["grpo"]}
    write_study(tmp_path, {"dense": arms | {"one epoch": ablation}, "sums": few, "new": {"ppo": {1: arriving(2, 9)}}})
    summary = tables.analyse(tmp_path)
    assert list(summary["tasks"]) == ["dense", "sums"], "a task whose PPO has one run has no intervals"
    assert list(summary["tasks"]["dense"]["arms"]) == list(arms), "arms are missing, or an ablation is taken for one"
    assert list(summary["tasks"]["sums"]["arms"]) == ["ppo", "grpo"], "an arm with one run has no interval"
    for task, of_task in (("dense", arms), ("sums", {name: few[name] for name in ("ppo", "grpo")})):
        table, levels = summary["tasks"][task], tables.thresholds(of_task["ppo"])
        assert table["start"] == -1.0, "not where PPO's runs start"
        assert table["thresholds"] == {str(share): round(level, 4) for share, level in levels.items()}, (
            f"{task}: the thresholds are those of another task, or of another arm than PPO"
        )
        for name, runs in of_task.items():
            assert table["arms"][name]["total_cpu"] == tables.arm_table(runs, of_task, levels)["total_cpu"], (
                f"{task}: the evaluations are not taken out of the CPU time once each"
            )
            assert table["arms"][name] == tables.arm_table(runs, of_task, levels), f"{task}: the table of {name}"
    levels = tables.thresholds(arms["ppo"])
    expected = tables.ablation_table(arms | {"one epoch": ablation}, ["one epoch"], levels)
    assert summary["ablations"] == {"dense": expected}, "the ablations are not those of the task"
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["tasks"] == summary["tasks"], "what is stored is not what is said"
    assert "scipy" in stored["versions"], "the summary does not say which scipy made its intervals"
    to = summary["tasks"]["dense"]["arms"]["replay"]["until"]["90"]
    out = capsys.readouterr().out
    assert f"replay    90 %:       2 tokens, 0/2 never, x{to['against_ppo']} against ppo, final 1.000, KL" in out, (
        "an arm's printed line has other numbers than its table"
    )
    row = summary["ablations"]["dense"]["one epoch"]
    assert "dense {'50': 0.0, '75': 0.5, '90': 0.8, '100': 1.0}" in out, "the printed thresholds are others"
    assert f"dense one epoch            5 tokens (full 2), x{row['times_dearer']} dearer" in out, (
        "an ablation's printed line has other numbers than its table"
    )


def test_the_start_of_a_task_is_the_mean_of_ppos_first_evaluations(tables, tmp_path):
    starts = {1: -0.5, 2: -0.25, 3: 2.25678}
    write_study(tmp_path, {"dense": {"ppo": {seed: curve([start, 1, 1, *[3] * 7]) for seed, start in starts.items()}}})
    table = tables.analyse(tmp_path)["tasks"]["dense"]
    assert table["start"] == 0.5023, "not the mean start of PPO's runs, to four digits (median −0.25)"
    assert table["thresholds"]["50"] == 1.7511, "thresholds have not four digits"


# other programs whose tables are made of such curves


def collapsing(end: int):
    """A curve that gains for three evaluations, never arrives, and loses it all."""
    rows = arriving(None, end)
    return [row | {"objective": 0.5} if 0 < number < 4 else row for number, row in enumerate(rows)]


@pytest.fixture
def orders(tables, monkeypatch, tmp_path):
    """`replay_orders.py` with stored runs of PPO and of two orders on two seeds; the shortest has 11 tokens."""
    module = importlib.import_module("replay_orders")
    ppo, first = {1: arriving(4, 12), 2: arriving(6, 14)}, {2: arriving(8, 15), 1: arriving(2, 13)}
    for folder, arms in (("study", {"ppo": ppo, "replay": first}), ("orders", {})):
        (tmp_path / folder).mkdir()
        write_study(tmp_path / folder, {"dense": arms, "sums": {}})
    write_study(tmp_path / "orders", {"dense": {"order 1": {1: arriving(7, 20), 2: collapsing(11)}}})
    for name, value in {"FOLDER": tmp_path / "study", "OUT": tmp_path / "orders", "SEEDS": (1, 2)}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "provenance", lambda *packages: {})
    return module


def test_orders_of_a_seed_are_averaged_before_they_are_compared(orders, tables):
    orders.analyse()
    found = json.loads((orders.OUT / "summary.json").read_text())
    assert [(name, row["tokens"]) for name, row in found["orders"].items()] == [("order 0", 5), ("order 1", 9)], (
        "not the mean tokens of each order's runs, none followed further than the shortest"
    )
    for name, costs in (("order 0", [2, 8]), ("order 1", [7, 11])):
        assert found["orders"][name]["against_ppo"] == rounded(ratio_interval([4, 6], costs)), f"{name} against PPO"
    assert found["against_ppo"] == rounded(ratio_interval([4, 6], [4.5, 9.5])), (
        "not PPO's tokens over the mean of the orders, seed by seed"
    )
    assert found["of_one_seed"] == [3.5, 1.375], "not the dearest over the cheapest order of each seed"
    assert found["end_minus_ppo"] == -0.5, "not the mean gain over PPO's end of the same seed: 0, 0, 0 and −2"
    assert found["runs"] == 4, "not every order of every seed is counted as a run"
    assert found["collapsed"] == 1, "the run that lost its gain is not counted as collapsed, or others are"


def test_missing_orders_are_run_with_dice_of_their_own(orders, monkeypatch):
    monkeypatch.setattr(orders, "arm", lambda task, name: (name, {"of": task}))
    asked, opened = [], []

    @contextlib.contextmanager
    def shuffled(seed):
        opened.append(seed)
        yield

    monkeypatch.setattr(orders, "shuffled", shuffled)
    monkeypatch.setattr(orders, "train", lambda *arguments: asked.append(arguments) or arriving(3, 4))
    orders.run()
    task = orders.TASKS["dense"]
    assert asked == [(task, "replay", {"of": "dense"}, seed) for seed in (1, 2)], "not order 2 alone, of the chosen arm"
    assert opened == [2001, 2002], "two runs share their order"
    arms = orders.read_curves(orders.OUT / "curves.csv")["dense"]
    assert {name: sorted(runs) for name, runs in arms.items()} == {"order 1": [1, 2], "order 2": [1, 2]}, (
        "a run is stored under another order or seed, or those stored before are lost"
    )
    assert [row["objective"] for row in arms["order 2"][2]] == [-1, -1, -1, 1, 1], "a column holds another's numbers"


def test_another_order_holds_the_same_responses(orders, monkeypatch):
    class Batch(list):
        def select(self, places):
            return Batch(self[place] for place in places)

    batches = iter([Batch(range(50)), None, Batch(range(50))])
    monkeypatch.setattr(orders.ReplayBuffer, "sample", lambda self, count: next(batches))
    plain = orders.ReplayBuffer.sample
    with pytest.raises(ZeroDivisionError), orders.shuffled(3):
        first, none, second = (orders.ReplayBuffer.sample(None, 50) for _ in range(3))
        raise ZeroDivisionError
    assert sorted(first) == sorted(second) == list(range(50)), "a shuffled batch lost or doubled a response"
    assert none is None, "an empty draw is shuffled into something else"
    assert first != list(range(50)), "the batch is handed out in its own order"
    assert first != second, "every batch is shuffled by the same dice"
    assert orders.ReplayBuffer.sample is plain, "the buffer stays shuffled after the run"


@pytest.fixture
def smollm2(tables, monkeypatch):
    module = importlib.import_module("smollm2_efficiency")
    monkeypatch.setattr(module, "provenance", lambda *packages: {})
    return module


def final_runs(arm: str, runs: dict) -> list[dict]:
    return [{"stage": "final", "arm": arm, "seed": s, "settings": {"of": arm}, "curve": run} for s, run in runs.items()]


def test_the_table_of_smollm2_is_that_of_common_seeds(smollm2, tables, tmp_path):
    arms = arms_of_a_study()
    stored = [run for arm in ("ppo", "replay", "same") for run in final_runs(arm, arms[arm])]
    tuned = [run | {"stage": "tuning", "settings": {}} for run in stored if run["arm"] != "same"]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in tuned + stored))
    smollm2.main(["analyse", "--folder", str(tmp_path)])
    found = json.loads((tmp_path / "summary.json").read_text())
    common = {arm: {seed: arms[arm][seed] for seed in (1, 2)} for arm in ("ppo", "replay", "same")}
    levels = tables.thresholds(common["ppo"])
    assert found["thresholds"] == {str(share): level for share, level in levels.items()}, (
        "thresholds are not those of PPO's final runs on the seeds that all arms have"
    )
    assert found["start"] == -1, "not where PPO's runs start"
    assert found["tuning_runs"] == {"ppo": 3, "replay": 2}, "runs of the tuning are miscounted: final ones among them"
    assert found["settings"]["replay"] == {"of": "replay"}, "the settings are those of a run of the tuning"
    for arm, runs in common.items():
        table = tables.arm_table(runs, common, levels)
        del table["total_cpu"], table["total_generating"]
        for row in table["until"].values():
            for name in [name for name in row if name == "cpu" or name.startswith("time")]:
                del row[name]
        assert found["arms"][arm] == json.loads(json.dumps(table)), f"{arm}: not its table on common seeds"


def test_the_best_of_smollm2_are_the_most_tried_with_the_best_mean(smollm2):
    means = {"a": [0.9], "b": [0.2, 0.8], "c": [0.6, 0.5], "d": [0.3], "e": [9.0]}
    runs = [
        {"stage": "final" if name == "e" else "tuning", "arm": arm, "seed": seed, "settings": {"name": arm + name},
         "curve": [{"objective": mean - 1}, {"objective": mean + 1}]}
        for arm in ("ppo", "replay") for name, of_seeds in means.items() for seed, mean in enumerate(of_seeds)
    ]  # fmt: skip
    names = [settings["name"] for settings in smollm2.best(runs, "ppo", 3)]
    assert names == ["ppoc", "ppob", "ppoa"], "not those with two seeds by their means, then those with one"
    for family in ("ppo", "replay"):
        assert len({json.dumps(settings) for settings in smollm2.candidates(family)}) == 9, "not tuned alike"
