"""Numbers on the book's pages come from stored results, and a page that names one which is not there is not built."""

import importlib.util
import re
from unittest.mock import Mock

import pytest

import toc
from ppo_lib import worlds
from ppo_lib.config import PPOConfigV1, ReplayConfig
from ppo_lib.lab import stored
from ppo_lib.lab.efficiency import cost_until, ratio_interval
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.replay import most_held
from tests.unit.test_trainer import vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer, likely_eos, tiny_policy

RUN = "smollm2_vader/seed0"
PAGES = {path.stem: path.read_text("utf8") for path in (toc.ROOT / "book").glob("*.md")}


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


@pytest.mark.parametrize("name", PAGES)
def test_a_bar_within_a_role_does_not_end_a_cell(name):
    """In a row of a table the bar before a format is written with a backslash."""
    rows = [line for line in PAGES[name].split("\n") if line.startswith("|")]
    cut = [role for row in rows for role in re.findall(r"\{[a-z-]+\}`[^`]*`", row) if re.search(r"(?<!\\)\|", role)]
    assert not cut, cut


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


CONTROLS = {"uniform", "recency", "keep the best"}  # on `reviews`: rules that choose where all that are ready are drawn


def test_the_controls_of_the_ablation_change_nothing_but_the_order():
    chosen = stored.load(f"{EFFICIENCY}/frozen.json")["settings"]
    dense, sparse = chosen["dense"]["replay"], chosen["sparse"]["replay"]
    assert (dense["replay_sample_size"], dense["max_replay_reuse"] * dense["batch_size"]) == (96, 64), "asked, ready"
    assert (sparse["replay_sample_size"], 8 * sparse["batch_size"]) == (56, 64), "the page says: 56 of up to 64"
    assert "max_replay_reuse" not in sparse and ReplayConfig().max_replay_reuse == 8
    trainer = PPOTrainerWithReplay(
        likely_eos(tiny_policy(sharpness=2.0)), vowels, tokenizer=byte_tokenizer(), device="cpu", max_new_tokens=4,
        num_ppo_epochs=1, total_episodes=48, batch_size=4, minibatch_size=4, replay_sample_size=12, max_replay_reuse=2,
        replay_spacing=3, max_replay_kl=None, min_ess=0.0,
    )  # fmt: skip
    trainer.train(PROMPTS)
    assert [row["replay/sampled"] for row in trainer.history] == [0] * 3 + [4] * 3 + [8] * 6, "not all that are ready"
    table = stored.load(f"{EFFICIENCY}/summary.json")["ablations"]["dense"]
    assert table["uniform"] == table["keep the best"], "the page says that these two drew alike"
    assert all(table[name]["times_dearer"][1] > 1 for name in CONTROLS), "the controls no longer look dearer"
    luck = max(table[name]["times_dearer"][0] for name in CONTROLS)
    beyond = {name for name, row in table.items() if row["times_dearer"][1] > luck}
    assert beyond == {"no replay", "gains and losses", "one epoch"}, beyond
    shown = PAGES["versions_compared"].split("#ablations.dense\n:rows:")[1].split("\n")[0]
    named = [pair.strip().rpartition(" = ")[0] or pair.strip() for pair in shown.split(";")]
    assert set(named) == set(table) and all(f"{name} (control)" in shown for name in CONTROLS)


def test_the_gain_on_reviews_is_within_luck():
    """On the ablation's seeds and as long: v2's full method against tuned PPO, and the controls against it."""
    runs, level = {}, stored.load(f"{EFFICIENCY}/summary.json")["tasks"]["dense"]["thresholds"]["90"]
    for row in stored.load(f"{EFFICIENCY}/curves.csv"):
        if row["task"] == "dense" and row["responses"] <= 480:
            runs.setdefault(row["arm"], {}).setdefault(row["seed"], []).append(row)
    intervals = {}
    for arm in ("replay", *sorted(CONTROLS)):
        seeds = sorted(runs["uniform"])
        horizon = min(runs[name][seed][-1]["tokens"] for name in (arm, "ppo") for seed in seeds)
        needed = [
            [
                min(tokens, horizon) if held else horizon
                for tokens, held in (cost_until(runs[n][s], level) for s in seeds)
            ]
            for n in ("ppo", arm)
        ]
        intervals[arm] = ratio_interval(*needed)
    assert intervals["replay"][1] > 1, intervals
    assert all(intervals[name][1] < 1 < intervals[name][2] for name in CONTROLS), intervals


def test_the_gain_on_reviews_is_gone_in_other_orders():
    found = stored.load("replay_orders/summary.json")
    first, *others = (row["against_ppo"] for row in found["orders"].values())
    assert first == against("dense", "ppo") and len(others) == 2 and found["runs"] == 30 and found["collapsed"] == 1
    assert all(low < 1 < high and ratio < 1 for ratio, low, high in others), "another order shows a gain: say so"
    ratio, low, high = found["against_ppo"]
    assert low < 1 < high, "the question is no longer open: say so"
    log = (toc.ROOT / "CHANGELOG.md").read_text("utf8")
    assert f"it is {ratio:.2f}, {low:.2f} to {high:.2f}" in log
    arm, settings = stored.load("replay_orders/curves.csv"), stored.load(f"{EFFICIENCY}/frozen.json")["settings"]
    assert {row["arm"] for row in arm} == {"order 1", "order 2"} and len({row["seed"] for row in arm}) == 10
    assert settings["dense"]["replay"]["replay_sample_size"] == 96, "not all that are ready are replayed"


def test_sentences_about_v2_in_words():
    arms = {task: arms_of(task) for task in ("dense", "sparse", "sums", "proxy")}
    assert 7 < arms["sparse"]["replay"]["total_reuse"] < 8, "trained on more than seven times"
    steps = {name: arms["sums"][name]["until"]["90"]["steps"] for name in ("ppo", "replay")}
    assert steps["ppo"] > 3 * steps["replay"], "on sums tuned PPO takes more steps than v2"
    assert arms["sums"]["replay"]["final_objective_minus_ppo"][1] > 0, "on sums v2 goes on where PPO levels off"
    times = arms["sparse"]["replay"]["until"]["90"]["time_against_ppo"]
    assert all(ratio < 1 / 2 for ratio, *_ in times.values()), "several times slower on reviews-sparse"
    lengths: dict = {}
    for row in stored.load(f"{EFFICIENCY}/curves.csv"):
        if row["arm"] in ("ppo", "replay"):
            lengths[row["task"]] = max(row["responses"], lengths.get(row["task"], 0))
    assert (min(lengths.values()), max(lengths.values())) == (640, 960), lengths
    first = stored.load(f"{EFFICIENCY}/earlier_tunings.json")["tasks"]
    assert first["dense"]["settings"]["first"]["replay"]["replay_priority"] == 1.0, "priorities won on reviews once"
    assert "replay_priority" not in first["sparse"]["settings"]["first"]["replay"]


def test_sentences_about_the_preset_in_words():
    """What the results page says beside the numbers that it takes from the file."""
    found = stored.load("preset_8gb/summary.json")
    v0, v1 = (run["held_out_after"]["score"] - run["held_out_before"]["score"] for run in found["runs"])
    assert v1 > v0 and found["updates_planned"] * 8 == 160
    assert PPOConfigV1.preset("8gb").learning_rate == 3e-4
    assert {run["device"] for run in found["memory"].values()} == {stored.load("v1_overhead/summary.json")["device"]}


def test_sizes_that_the_guides_name():
    assert 87_500 < sum(weight.numel() for weight in worlds.load().model.parameters()) < 88_500
    sizes = {name: ReplayConfig.preset(name) for name in ("8gb", "16gb", "32gb")}
    of = {n: (c.replay_buffer_size, c.replay_sample_size, c.rollout_size) for n, c in sizes.items()}
    assert of["32gb"] == (2000, 64, 32) and of["16gb"] == (1000, 32, 8) and not sizes["8gb"].use_replay_buffer
    for name, config in sizes.items():
        most = most_held(config.rollout_size, config.staleness_threshold, config.replay_buffer_size)
        said = f"room for {config.replay_buffer_size:,}, of which at most {most} are ever held"
        assert name == "8gb" or said in PAGES["decision_guide"], said


def test_what_the_log_of_changes_says():
    log = (toc.ROOT / "CHANGELOG.md").read_text("utf8")
    for task, digits in (("sums", 1), ("sparse", 1), ("dense", 2)):
        ratio, low, high = (f"{number:.{digits}f}" for number in against(task, "ppo"))
        assert re.search(rf"\({ratio} times,\s+(95 % interval )?{low} to {high}\)", log), (task, ratio, low, high)
    rows = {
        (r["batch"], r["precision"]): r["ratios"]["ours"]["median"] for r in stored.load("speed/gpu.json")["sampling"]
    }
    rates = [f"{rows[batch, 'float32']:.1f}" for batch in (64, 512)]
    assert (
        f"{rates[0]} times as fast as by `generate` with 64 responses at a time, and {rates[1]} times with 512" in log
    )
    assert "Xeon" in stored.load(f"{EFFICIENCY}/summary.json")["device"]


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


def test_replay_without_guards_ends_lower_while_the_score_rises():
    """The decision guide says so, and chapter 12 shows the settings of these runs."""
    runs: dict = {}
    for row in stored.load("without_guards/curves.csv"):
        runs.setdefault(row["arm"], {}).setdefault(row["seed"], []).append(row)
    late = {arm: {s: sum(r["objective"] for r in c[-3:]) / 3 for s, c in of.items()} for arm, of in runs.items()}
    assert all(len(of) == 10 for of in runs.values()) and len(runs) == 4
    assert all(late["guards off"][seed] < late["careful"][seed] for seed in late["careful"])
    assert all(curve[-1]["score"] > curve[0]["score"] for curve in runs["guards off"].values())
    arms = stored.load("without_guards/runs.json")["arms"]
    chapter = (toc.ROOT / "chapters/12_sample_efficiency_lab.ipynb").read_text("utf8")
    for settings in (arms["careful"], arms["guards on"]):
        shown = ", ".join(f'"{name}": {value:g}' for name, value in settings.items()).replace("0.001", "1e-3")
        assert shown.replace("0.003", "3e-3").replace('"', '\\"') in chapter, shown


SAYS_TIMES = ("versions_compared", "v1_improvements", "speed", "decision_guide", "replay_guide")


@pytest.mark.parametrize("name", SAYS_TIMES)
def test_pages_that_give_times_or_memory_name_the_processor(name):
    """One machine's seconds are not another's."""
    assert re.search(r"\{stored\}`[\w/]+\.json#[\w.]*device`", PAGES[name]), f"{name} does not say where"
