"""Every stored summary is what its program makes of the stored runs: no number is from other data or other code."""

import dataclasses
import json
import shutil

import pytest

import toc
from ppo_lib.config import ReplayConfig
from ppo_lib.lab import stored

FOLDER = toc.ROOT / "ppo_lib/lab/stored"


@pytest.fixture
def program(program_of, monkeypatch):
    """A program of `benchmarks/` by its name, and what it will have written, by file name."""

    def load(name):
        module, written = program_of(name), {}
        monkeypatch.setattr(module, "write_json", lambda path, content: written.update({path.name: content}))
        return module, written

    return load


def differences(made, kept, path="") -> list[str]:
    """Every number that a summary holds and the program does not make, or the other way round.

    The last of three digits may be another: processors add up in other orders.
    """
    made, kept = (dict(enumerate(one)) if isinstance(one, list) else one for one in (made, kept))
    if isinstance(made, dict) and isinstance(kept, dict):
        keys = [*made, *(key for key in kept if key not in made)]
        return [d for key in keys for d in differences(made.get(key), kept.get(key), f"{path}.{key}")]
    same = abs(made - kept) < 1.5e-3 if isinstance(made, float) and isinstance(kept, float) else made == kept
    return [] if same else [f"{path[1:]}: {made} from the runs, {kept} in the summary"]


def check(made: dict, kept: dict, *names: str) -> None:
    found = [line for name in names for line in differences(made[name], kept[name], f".{name}")]
    assert not found, f"{len(found)} numbers are not those of the stored runs: {'; '.join(found[:4])}"


def test_sample_efficiency(program, tmp_path):
    tables, written = program("efficiency_tables")
    for name in ("curves.csv", "evaluations.json"):
        shutil.copy(FOLDER / "sample_efficiency" / name, tmp_path)
    made = json.loads(json.dumps(tables.analyse(tmp_path)))
    check(made, stored.load("sample_efficiency/summary.json"), "tasks", "ablations")
    assert written["summary.json"]["tasks"] == made["tasks"], "what is stored is not what was computed"


def test_the_settings_of_sample_efficiency(program):
    """The frozen ones are the best over the tuning seeds in the runs of the tuning that are stored."""
    study, written = program("sample_efficiency")
    study.freeze(stored.load("sample_efficiency/tuning.jsonl"))
    check(written["frozen.json"], stored.load("sample_efficiency/frozen.json"), "settings", "tuning_runs")
    for task, arms in stored.load("sample_efficiency/runs.json")["settings"].items():
        assert arms.items() <= written["frozen.json"]["settings"][task].items(), f"{task}: not run as tuning chose"


def test_the_second_study_of_replay(program):
    """What is frozen is the best of the stored tuning, and the tables are those of the stored runs."""
    study, written = program("replay_study")
    study.freeze(stored.load("replay_study/tuning.jsonl"))
    check(written["frozen.json"], stored.load("replay_study/frozen.json"), "chosen")
    made = json.loads(json.dumps({"tasks": study.analyse(None)}))
    check(made, stored.load("replay_study/summary.json"), "tasks")


def test_the_defaults_of_v2(program, tmp_path):
    """`ReplayConfig()` is what the rule takes from the stored tuning, and the page's numbers are those of the runs."""
    defaults, written = program("default_settings")
    names = ("arm", "tried", "settings", "smallest_leads")
    made = defaults.chosen(defaults.ranked(defaults.tried_so_far(), defaults.ROUNDS[-1][1]))
    check(made, stored.load("default_settings/chosen.json"), *names)
    config = dataclasses.asdict(ReplayConfig())
    assert made["settings"].items() <= config.items(), "`ReplayConfig()` is another setting than the one chosen"
    of_that_day = defaults.arm_settings(made["arm"])[1]
    changed = {name for name, value in of_that_day.items() if config[name] != value}
    assert not changed, f"the defaults of {changed} changed since v2's were measured: measure them again"
    made = defaults.analyse(None)
    check({"tasks": made}, stored.load("default_settings/summary.json"), "tasks")


def test_the_choice_of_the_defaults(program):
    """The smallest lead on any task decides, and the clip goes before another objective that is little better."""
    defaults, _ = program("default_settings")
    clip, regression = "8+24, half the rate", "8+24, regression, half the rate"
    tried = {
        "v1": {"dense": {1: 0.5, 2: 0.7}, "sums": {1: 0.0, 2: 0.2}},
        clip: {"dense": {1: 0.6, 2: 0.8}, "sums": {1: 0.9, 2: 0.9}},
        regression: {"dense": {1: 0.7, 2: 0.9}, "sums": {1: 0.2, 2: 0.4}},
        "before": {"dense": {1: 9.0, 2: 9.0}, "sums": {1: 9.0}},  # did not run on all seeds
    }
    leads = defaults.ranked(tried, 2)
    assert [arm for _, arm in leads] == [regression, clip] and leads[0][0] == pytest.approx(0.2)
    assert defaults.chosen(leads)["arm"] == regression, "0.1 more is more than the margin"
    nearly = [(0.14, regression), (0.1, clip)]
    assert defaults.chosen(nearly)["arm"] == clip, "0.04 more is not worth another objective"
    assert defaults.chosen([(0.1, clip), (0.0, regression)])["arm"] == clip


def test_other_orders_of_replay(program):
    orders, written = program("replay_orders")
    orders.analyse()
    names = ("orders", "against_ppo", "of_one_seed", "end_minus_ppo", "runs", "collapsed")
    check(written["summary.json"], stored.load("replay_orders/summary.json"), *names)


def test_the_time_of_v1(program):
    overhead, _ = program("v1_overhead")
    rows, kept = stored.load("v1_overhead/pairs.csv"), stored.load("v1_overhead/summary.json")
    check(overhead.summary_of(rows), kept, "pairs", "cpu_ratio", "ratio_of_sums", "cpu_seconds_per_update_v0")


def test_the_soak(program):
    soak, _ = program("soak")
    kept = stored.load("soak/summary.json")
    rows = soak.read_csv(FOLDER / "soak/memory.csv")
    check({"growth": soak.growth(rows, kept["warm"])}, kept, "growth")


def test_the_kills(program, monkeypatch):
    for variable in ("TQDM_DISABLE", "TOKENIZERS_PARALLELISM"):  # which that program sets as it is imported
        monkeypatch.setenv(variable, "1")
    kills, _ = program("kill_and_resume")
    tables = [kills.read_csv(FOLDER / f"kill_and_resume/{name}.csv") for name in ("runs", "kills")]
    kept = stored.load("kill_and_resume/summary.json")
    made = kills.summarise(*tables, kept["runs_planned"], kept["updates"], {})
    check(made, kept, *made)


def test_the_preset_of_8_gb(program):
    preset, _ = program("preset_8gb")
    kept = stored.load("preset_8gb/summary.json")
    made = preset.summarise(FOLDER / "preset_8gb", kept["updates_planned"])
    check(made, kept, "memory", "peak_ratio", "peak_ratio_without_libraries", "held_out_prompts", "runs")


def test_the_grid_of_where_the_book_was_run(program):
    sturdy, written = program("sturdy")
    sturdy.tables()
    kept = stored.load("sturdy/summary.json")
    check(written["summary.json"], kept, "total", "variants", "times", "machines", "commits")
