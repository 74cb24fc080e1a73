"""Which settings should v2 have where nobody tunes? Chosen against default v1, by the protocol in `replay_study.md`.

    python benchmarks/default_settings.py choose    # settings on tuning seeds, halved successively
    python benchmarks/default_settings.py report    # the chosen one beside default v1, on seeds that chose nothing
    python benchmarks/default_settings.py analyse   # the table from the stored runs

`choose` and `report` add each finished run to a file and go on where they were stopped.
"""

import argparse
import itertools
import json
import random
import statistics
import zlib

import sample_efficiency
from efficiency_tables import read_curves
from record import RESULTS, Curves, add_line, provenance, read_lines, write_json
from replay_study import Judge, end_of, higher, mean_of, others
from sample_efficiency import COLUMNS, TASKS, in_parallel, stored

FOLDER = RESULTS / "default_settings"
EVERY = 32  # generated responses between evaluations
ROUNDS = ((None, 1), (6, 3), (2, 6))  # so many settings stay, each with all seeds up to this one
SEEDS = tuple(range(300, 320))
NEVER = 0.05  # an end below it, on a task that begins at 0: the run never learned
MARGIN = 0.05  # by which another objective's smallest lead has to be larger than the clip's

V1 = {"batch_size": 32, "minibatch_size": 32, "num_ppo_epochs": 4, "learning_rate": 1e-3}
BEFORE = {"batch_size": 8, "replay_sample_size": 56, "minibatch_size": 32, "num_ppo_epochs": 4, "learning_rate": 1e-3}
SHAPES = {  # of an update: fresh responses, replayed ones, responses of a step
    "8+24": {"batch_size": 8, "replay_sample_size": 24, "minibatch_size": 32},
    "16+16": {"batch_size": 16, "replay_sample_size": 16, "minibatch_size": 32},
    "16+48": {"batch_size": 16, "replay_sample_size": 48, "minibatch_size": 64},
    "8+56": {"batch_size": 8, "replay_sample_size": 56, "minibatch_size": 64},
}
WAYS = {
    "as before": {},
    "half the passes": {"num_ppo_epochs": 2},
    "half the rate": {"learning_rate": 5e-4},
    "regression, half the rate": {"policy_objective": "regression", "learning_rate": 5e-4},
}
CANDIDATES = {"before": BEFORE}
CANDIDATES |= {f"{shape}, {way}": BEFORE | SHAPES[shape] | WAYS[way] for shape, way in itertools.product(SHAPES, WAYS)}
CANDIDATES["8+24, half the rate, hot"] = CANDIDATES["8+24, half the rate"] | {"behaviour_temperature": 1.4}
CANDIDATES["8+24, half the rate, gains"] = CANDIDATES["8+24, half the rate"] | {"replay_gains_only": True}

Tried = dict[str, dict[str, dict[int, float]]]  # arm → task → seed → the mean objective of the run


def work(job: tuple) -> tuple[tuple, list[dict]]:
    """A job in a worker process: (key, family, settings, responses) → its key (task, arm, seed) and curve."""
    key, family, settings, episodes = job
    name, arm, seed = key
    luck = zlib.crc32(f"defaults {name} {arm} {seed}".encode())
    settings = settings | {"total_episodes": episodes}
    return key, sample_efficiency.train(TASKS[name], family, settings, luck, EVERY, Judge)


def defaults_of_that_day() -> dict[str, dict]:
    """Family → the defaults of all settings, as they were when the choosing began."""
    path = FOLDER / "defaults.json"
    if not path.exists():
        write_json(path, {family: others(family) for family in ("ppo", "replay")} | provenance("scipy"))
    return json.loads(path.read_text("utf8"))


def arm_settings(arm: str) -> tuple[str, dict]:
    """Family and settings of an arm: `v1`, or a candidate for v2."""
    family = "ppo" if arm == "v1" else "replay"
    return family, defaults_of_that_day()[family] | (V1 if arm == "v1" else CANDIDATES[arm])


def tried_so_far() -> Tried:
    found: Tried = {}
    for row in read_lines(FOLDER / "tuning.jsonl"):
        found.setdefault(row["arm"], {}).setdefault(row["task"], {})[row["seed"]] = row["mean"]
    return found


def smallest_lead(tried: Tried, arm: str, seeds: int) -> float:
    """Of an arm over v1, on the task where it is smallest; means over the first `seeds` seeds."""

    def mean(name: str, task: str) -> float:
        return statistics.fmean(tried[name][task][seed] for seed in range(1, seeds + 1))

    return min(mean(arm, task) - mean("v1", task) for task in tried["v1"])


def ranked(tried: Tried, seeds: int) -> list[tuple[float, str]]:
    """(smallest lead, arm), the best first, of those that ran on the first `seeds` seeds of each task."""
    whole = [
        arm for arm, tasks in tried.items()
        if arm != "v1" and tasks.keys() == tried["v1"].keys()
        and all(set(range(1, seeds + 1)) <= by_seed.keys() for by_seed in tasks.values())
    ]  # fmt: skip
    return sorted(((smallest_lead(tried, arm, seeds), arm) for arm in whole), reverse=True)


def choose(arguments) -> None:
    names, arms = [name for name in TASKS if not TASKS[name].tuned_on], list(CANDIDATES)
    before = 0
    for number, seeds in ROUNDS:
        tried = tried_so_far()
        if number:
            arms = [arm for _, arm in ranked(tried, before)[:number]]
        wanted = [(name, arm, seed) for name in names for arm in arms for seed in range(1, seeds + 1)]
        wanted += [(name, "v1", seed) for name in names for seed in range(1, seeds + 1)]
        jobs = [
            (key, *arm_settings(key[1]), TASKS[key[0]].tuning_episodes)
            for key in wanted if key[2] not in tried.get(key[1], {}).get(key[0], {})
        ]  # fmt: skip
        random.Random(0).shuffle(jobs)
        for (name, arm, seed), curve in in_parallel(jobs, arguments.workers, work):
            row = {"task": name, "arm": arm, "seed": seed}
            row |= {"mean": round(mean_of(curve), 4), "end": round(end_of(curve), 4)}
            add_line(FOLDER / "tuning.jsonl", row | {"tokens": curve[-1]["tokens"], "cpu": round(curve[-1]["cpu"], 1)})
        before = seeds
    write_json(FOLDER / "chosen.json", chosen(ranked(tried_so_far(), before)) | provenance("scipy"))


def chosen(leads: list[tuple[float, str]]) -> dict:
    """The best, or the next one with the clip where it is nearly as good, and what came of all that went to the end."""
    best = leads[0]
    clipped = next((one for one in leads if CANDIDATES[one[1]].get("policy_objective", "clip") == "clip"), None)
    if clipped and clipped[0] >= best[0] - MARGIN:
        best = clipped
    return {
        "arm": best[1],
        "tried": len(CANDIDATES),
        "settings": CANDIDATES[best[1]],
        "smallest_leads": {arm: round(n, 4) for n, arm in leads},
    }


def arms_of_report() -> list[str]:
    """Default v1, the chosen default of v2, and the other setting that was tried to the end."""
    found = json.loads((FOLDER / "chosen.json").read_text("utf8"))
    return ["v1", found["arm"], *(arm for arm in found["smallest_leads"] if arm != found["arm"])]


def report(arguments) -> None:
    keys = [(name, arm, seed) for seed in SEEDS for name in TASKS for arm in arms_of_report()]
    curves = Curves(FOLDER / "curves.csv", ("task", "arm", "seed"), COLUMNS)
    jobs = [(key, *arm_settings(key[1]), TASKS[key[0]].episodes) for key in curves.lacking(keys)]
    for key, curve in in_parallel(jobs, arguments.workers, work):
        curves.add(key, map(stored, curve))
    write_json(FOLDER / "runs.json", provenance("scipy"))


def analyse(arguments) -> dict:
    """Write summary.json: of each task and arm the mean over a run, the end, and what they are less v1's."""
    role = dict(zip(arms_of_report(), ("v1", "default", "other"), strict=True))
    found: dict = {}
    for name, arms in read_curves(FOLDER / "curves.csv").items():
        values = {
            arm: {
                "mean": list(map(mean_of, runs.values())),
                "end": list(map(end_of, runs.values())),
                "cpu": [curve[-1]["cpu"] for curve in runs.values()],
                "tokens": [curve[-1]["tokens"] for curve in runs.values()],
            }
            for arm, runs in arms.items()
        }
        for arm, of_arm in values.items():
            row: dict = {"runs": len(of_arm["mean"])}
            row["never_learned"] = sum(end_of(curve) < NEVER for curve in arms[arm].values())
            row |= {measure: round(statistics.fmean(of_arm[measure]), 3) for measure in of_arm}
            if arm != "v1":
                row |= {
                    f"{measure}_less": higher(values["v1"][measure], of_arm[measure]) for measure in ("mean", "end")
                }
            found.setdefault(name, {})[role[arm]] = row
            print(name, role[arm], row)
    write_json(FOLDER / "summary.json", {"tasks": found, **provenance("scipy")})
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"choose": choose, "report": report, "analyse": analyse}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
