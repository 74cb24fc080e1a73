"""Every stored summary is what its program makes of the stored runs: no number is from other data or other code."""

import json
import shutil

import pytest

import toc
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
