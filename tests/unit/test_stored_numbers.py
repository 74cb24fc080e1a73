"""Numbers on the book's pages come from stored results, and a page that names one which is not there is not built."""

import importlib.util
from unittest.mock import Mock

import pytest

import toc
from ppo_lib import stored

RUN = "smollm2_vader/seed0"


@pytest.fixture(scope="module")
def ppo_book():
    spec = importlib.util.spec_from_file_location("ppo_book", toc.ROOT / "book/_ext/ppo_book.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_number_is_that_of_the_file(ppo_book):
    run, metrics = stored.load(f"{RUN}/run.json"), stored.load(f"{RUN}/metrics.csv")
    score = run["heldout_after"]["mean_score"]
    assert ppo_book.stored_number(f"{RUN}/run.json#heldout_after.mean_score|.2f") == f"{score:.2f}"
    assert ppo_book.stored_number(f"{RUN}/run.json#heldout_after.mean_score / 10|.3f") == f"{score / 10:.3f}"
    assert ppo_book.stored_number(f"{RUN}/run.json#heldout_watched.1.update") == "20"
    last = metrics[-1]["objective/scores"]
    assert ppo_book.stored_number(f"{RUN}/metrics.csv#-1.objective/scores|.3f") == f"{last:.3f}"


@pytest.mark.parametrize(
    "text",
    [
        "no_such_run/run.json#seconds|.1f",
        f"{RUN}/run.json#no_such_number|.1f",
        f"{RUN}/run.json#heldout_watched.99.update",
        f"{RUN}/run.json#heldout_after|.1f",
        f"{RUN}/run.json#seconds|no format",
    ],
)
def test_a_number_that_is_not_there_is_a_warning(ppo_book, text):
    """Warnings fail the build of the book."""
    inliner = Mock()
    shown, messages = ppo_book.StoredRole()("stored", f"{{stored}}`{text}`", text, 7, inliner)
    inliner.reporter.warning.assert_called_once()
    said, line = inliner.reporter.warning.call_args.args[0], inliner.reporter.warning.call_args.kwargs["line"]
    assert f"stored {text}" in said and line == 7
    assert (shown, messages) == ([inliner.problematic.return_value], [inliner.reporter.warning.return_value])


def test_a_number_that_is_there_is_plain_text(ppo_book):
    shown, messages = ppo_book.StoredRole()("stored", "", f"{RUN}/run.json#heldout_watched.0.update", 7, Mock())
    assert ([node.astext() for node in shown], messages) == (["10"], [])


def table(ppo_book, what, options, content):
    """The lines of a `stored-table`, whose directive needs nothing else of a page."""
    directive = object.__new__(ppo_book.StoredTable)
    directive.arguments, directive.options, directive.content = [what], options, content
    return directive.lines()


def test_a_table_holds_the_numbers_of_the_file(ppo_book):
    rows = [row for row in stored.load("buffer_memory/measured.json")["rows"] if row["way"] == "buffer"]
    lines = table(
        ppo_book,
        "buffer_memory/measured.json#rows",
        {"where": "way = buffer"},
        ["tokens | {max_new_tokens}", "", "MB | {computed_bytes_per_1000 / 1e6:.2f} MB"],
    )
    assert lines[:2] == ["| tokens | MB |", "| --- | ---: |"]
    assert lines[2:] == [f"| {r['max_new_tokens']} | {r['computed_bytes_per_1000'] / 1e6:.2f} MB |" for r in rows]


def test_rows_of_a_table_are_chosen_and_named(ppo_book):
    what, content = "preset_8gb/summary.json#memory", ["stage | {label}", "GiB | {peak_mib / 1024:.1f}"]
    memory = stored.load("preset_8gb/summary.json")["memory"]
    lines = table(ppo_book, what, {"rows": "v1 = *v1*; v0"}, content)
    assert lines[2:] == [
        f"| {label} | {memory[key]['peak_mib'] / 1024:.1f} |" for key, label in (("v1", "*v1*"), ("v0", "v0"))
    ]
    with pytest.raises(LookupError):
        table(ppo_book, what, {"rows": "v7 = v7"}, content)
    with pytest.raises(LookupError):
        table(ppo_book, what, {}, ["stage | {nothing:.1f}"])


def test_what_was_not_measured_is_a_dash(ppo_book):
    assert ppo_book.FromRow().vformat("{a:.1f} of {b.1:.1f}", (), {"a": None, "b": [0, float("nan")]}) == "– of –"


# What the pages conclude from the stored numbers in words.

EFFICIENCY = "sample_efficiency"


def test_the_opponent_of_replay_was_tuned_as_long():
    for task, runs in stored.load(f"{EFFICIENCY}/frozen.json")["tuning_runs"].items():
        assert abs(runs["ppo"] - runs["replay"]) < 10, f"on {task} the numbers of tries are far apart"
        assert min(runs["ppo"], runs["replay"]) > 3 * max(runs["naive"], runs["grpo"])


def test_the_guides_show_the_settings_that_tuning_chose():
    chosen = stored.load(f"{EFFICIENCY}/frozen.json")["settings"]
    sparse, dense = chosen["sparse"]["replay"], chosen["dense"]["replay"]
    rare = {"whiten_advantages": False, "lam": 1.0, "learning_rate": 5e-4, "minibatch_size": 64}
    assert rare.items() <= sparse.items() and (sparse["min_ess"], sparse["replay_recency"]) == (0.0, 4.0)
    shown = {
        "batch_size": 32, "replay_sample_size": 96, "max_replay_reuse": 2, "replay_recency": 2.0, "lam": 1.0,
        "replay_keep_best": 0.05, "minibatch_size": 64, "learning_rate": 2e-3, "whiten_advantages": False,
        "replay_gains_only": True, "replay_spacing": 3,
    }  # fmt: skip
    assert shown.items() <= dense.items()
    assert not any("replay_priority" in task["replay"] for task in chosen.values()), "priorities won a tuning"
    reused = {name: task["replay"].get("max_replay_reuse", 8) for name, task in chosen.items()}
    assert reused == {"dense": 2, "sparse": 8, "sums": 2}
    gains = {name: task["replay"].get("replay_gains_only", False) for name, task in chosen.items()}
    assert gains == {"dense": True, "sparse": False, "sums": True}, "the pages say who learns from gains alone"


def test_the_buffer_takes_megabytes():
    rows = stored.load("buffer_memory/measured.json")["rows"]
    measured = {row["max_new_tokens"]: row["measured_bytes_per_1000"] for row in rows if row["way"] == "buffer"}
    assert measured[24] < 309_000 and max(measured.values()) < 20e6
    assert [rows[place]["max_new_tokens"] for place in (4, 6)] == [512, 1024]
    assert rows[4]["way"] == rows[6]["way"] == "buffer"


def test_no_cost_of_v1_is_seen_above_the_noise():
    low, high = stored.load("v1_overhead/summary.json")["cpu_ratio"]["quartiles"]
    assert low < 1 < high


def test_a_token_costs_more_than_twice_as_much_in_small_rollouts():
    arms = stored.load(f"{EFFICIENCY}/summary.json")["tasks"]["sparse"]["arms"]
    chosen = stored.load(f"{EFFICIENCY}/frozen.json")["settings"]
    assert (chosen["sparse"]["replay"]["batch_size"], chosen["sparse"]["ppo"]["batch_size"]) == (8, 32)
    v2, ppo = (arms[name]["total_generating"] / arms[name]["total_tokens"] for name in ("replay", "ppo"))
    assert 2 < v2 / ppo < 3.5
    for task in ("dense", "sums"):
        assert chosen[task]["replay"]["batch_size"] >= chosen[task]["ppo"]["batch_size"]


def test_the_best_settings_of_ppo_had_several_epochs():
    chosen = stored.load(f"{EFFICIENCY}/frozen.json")["settings"]
    assert {task["ppo"]["num_ppo_epochs"] for task in chosen.values()} == {2, 4, 8}


def test_ideas_that_tuning_tried_last():
    """What the replay guide says of them: beside the same settings, on the first tuning seed."""
    tried = [row for row in stored.load(f"{EFFICIENCY}/tuning.jsonl") if row["family"] == "replay" and row["seed"] == 1]
    new = ("replay_gains_only", "replay_spacing")
    plain = {str((row["task"], row["settings"])): row["mean"] for row in tried}
    alone, sparse_gains = [], []
    for row in tried:
        settings = {name: value for name, value in row["settings"].items() if name not in new}
        before = plain.get(str((row["task"], settings)))
        if row["settings"].get("replay_spacing") and not row["settings"].get("replay_gains_only"):
            alone.append(row["mean"] - before)
        if row["task"] == "sparse" and row["settings"].get("replay_gains_only"):
            sparse_gains.append(row["mean"])
    assert len(alone) == 12 and sum(change < 0 for change in alone) > 8, "spacing alone no longer hurts mostly"
    assert len(sparse_gains) == 8 and max(sparse_gains) < 0.05, "gains alone learned something on reviews-sparse"


def arms_of(task: str) -> dict:
    return stored.load(f"{EFFICIENCY}/summary.json")["tasks"][task]["arms"]


def against(task: str, opponent: str) -> list[float]:
    """v2's ratio of tokens to 90 %, and its interval."""
    return arms_of(task)["replay"]["until"]["90"][f"against_{opponent}"]


def test_where_replay_pays():
    for task in ("sparse", "dense", "sums"):
        assert against(task, "ppo")[1] > 1, f"the interval on {task} does not lie above 1"
    ratio, low, _ = against("proxy", "ppo")
    assert low < 1 < ratio, "on proxy the interval no longer holds 1: say so on the pages"
    half = {t: arms_of(t)["replay"]["until"]["50"]["against_ppo"] for t in ("dense", "sparse", "sums", "proxy")}
    assert [task for task, (_, low, _) in half.items() if low > 1] == ["sparse"], half
    assert [task for task, (*_, high) in half.items() if high < 1] == ["sums"], half


def test_the_second_best_of_ppo_is_better_on_one_task():
    second = {t: arms_of(t)["runner-up"]["until"]["90"]["against_ppo"] for t in ("dense", "sparse", "sums", "proxy")}
    assert [task for task, (_, low, _) in second.items() if low > 1] == ["sparse"], second
    _, low, high = against("sparse", "runner-up")
    assert low < 1 < high, "on sparse v2 is surely better than PPO's second best: say so"
    assert all(against(task, "runner-up")[1] > 1 for task in ("dense", "sums", "proxy"))


def test_one_epoch_needs_more_tokens():
    intervals = {task: against(task, "same") for task in ("dense", "sparse", "sums", "proxy")}
    assert all(low > 1 for _, low, _ in intervals.values())
    assert [task for task, (ratio, *_) in intervals.items() if ratio >= 2] == ["dense", "sparse", "sums"]


def test_no_run_of_replay_and_none_of_tuned_ppo_collapsed():
    arms = {task: arms_of(task) for task in ("dense", "sparse", "sums", "proxy")}
    assert not any(arm["replay"]["collapsed"] for arm in arms.values())
    assert sum(arm["replay"]["runs"] for arm in arms.values()) == 40
    runs: dict = {}
    for row in stored.load(f"{EFFICIENCY}/curves.csv"):
        runs.setdefault((row["task"], row["arm"], row["seed"]), []).append(row["objective"])
    fell = [arm for (_, arm, _), run in runs.items() if arm in ("ppo", "replay") and min(run) < run[0] - 0.5]
    assert fell == ["replay"] * 2, f"runs that fell below their start on the way: {fell}"
    assert not any(arm["ppo"]["collapsed"] for arm in arms.values())


def test_what_replay_costs_in_time():
    times = {t: arms_of(t)["replay"]["until"]["90"]["time_against_ppo"] for t in ("dense", "sparse", "sums", "proxy")}
    assert all(high < 1 for *_, high in times["sparse"].values()), "replay is no longer surely slower on reviews-sparse"
    for ratio, low, _ in times["sums"].values():
        assert low > 1.39 and 1.8 < ratio < 2.2, "replay is no longer about twice as fast on sums"
    assert all(low < 1 < high for _, low, high in times["dense"].values()), "times on reviews are no longer equal"
    assert times["proxy"]["1"][2] < 1 and times["proxy"]["5"][2] > 1, "learned reward: slower unless it is dear"


def test_what_the_ablations_say():
    tables = stored.load(f"{EFFICIENCY}/summary.json")["ablations"]
    assert {row["runs"] for table in tables.values() for row in table.values()} == {5}
    dearer = {task: {n for n, row in table.items() if row["times_dearer"][1] > 1} for task, table in tables.items()}
    assert dearer["dense"] == tables["dense"].keys() - {"fading"} and dearer["sparse"] == {"one epoch"}, dearer
    cheaper = {task: {n for n, row in table.items() if row["times_dearer"][2] < 1} for task, table in tables.items()}
    assert cheaper == {"dense": set(), "sparse": {"half the replay", "keep the best"}}, cheaper


def test_naive_replay_beside_v2():
    ratios = {}
    for task in ("dense", "sparse"):
        naive, v2 = (arms_of(task)[name]["until"]["90"]["tokens"] for name in ("naive", "replay"))
        ratios[task] = naive / v2
    assert abs(ratios["sparse"] - 1) < 0.15 and 1.6 < ratios["dense"] < 1.8, ratios


def test_grpo_needs_more_tokens_than_tuned_ppo_but_on_one_task():
    for task in ("dense", "sparse", "sums", "proxy"):
        grpo, ppo = (arms_of(task)[name]["until"]["90"]["tokens"] for name in ("grpo", "ppo"))
        assert grpo > 1.2 * ppo or task == "sparse", task
    sparse = arms_of("sparse")
    assert abs(sparse["grpo"]["until"]["90"]["tokens"] / sparse["ppo"]["until"]["90"]["tokens"] - 1) < 0.15
    assert sparse["grpo"]["final_objective_minus_ppo"][2] < 0
