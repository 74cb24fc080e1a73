"""`sample_efficiency.py` for SmolLM2-135M on a GPU: replay against tuned PPO, cheerful replies as the objective.

    python benchmarks/smollm2_efficiency.py run        # tuning on two seeds, then the best of each family on fresh ones
    python benchmarks/smollm2_efficiency.py analyse    # the table from the stored runs

Families and measure are those of `sample_efficiency.py`; the tuning is smaller, equally large for both. Runs share the
GPU (each takes up to 17 GB of it), each finished one is added to runs.jsonl, and `run` goes on where it was stopped.
"""

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import torch
from efficiency_tables import arm_table, thresholds
from record import RESULTS, add_line, provenance, read_lines, write_json
from sample_efficiency import COLUMNS, Task, stored, train, without_replay

FOLDER = RESULTS / "smollm2_efficiency"
TASK = Task("smollm2", episodes=512, tuning_episodes=384, learning_rates=(2e-5, 5e-5, 1e-4))
COMMON = {"device": "cuda", "max_new_tokens": 24}
TUNING_SEEDS, FINALISTS, SEEDS = (1, 2), 3, tuple(range(100, 108))


def candidates(family: str) -> list[dict]:
    """Nine settings of a family."""
    if family == "ppo":
        shapes = [{"batch_size": b, "minibatch_size": b, "num_ppo_epochs": e} for b, e in ((16, 2), (16, 4), (32, 4))]
    else:
        shapes = [
            {"batch_size": fresh, "replay_sample_size": more, "minibatch_size": fresh + more, "num_ppo_epochs": 4,
             "max_replay_reuse": reuse, "replay_recency": recency}
            for fresh, more, reuse, recency in ((16, 48, 8, 4.0), (16, 16, 2, 2.0), (32, 32, 2, 2.0))
        ]  # fmt: skip
    return [s | {"learning_rate": rate} for s, rate in itertools.product(shapes, TASK.learning_rates)]


def work(job: dict) -> dict:
    """A run in a worker process."""
    torch.set_float32_matmul_precision("high")
    family = "replay" if job["arm"] == "replay" else "ppo"
    curve = train(TASK, family, COMMON | {"total_episodes": job["episodes"]} | job["settings"], job["seed"])
    torch.cuda.empty_cache()
    return job | {"curve": [dict(zip(COLUMNS, map(float, stored(row)), strict=True)) for row in curve]}


def runs_of(folder: Path) -> list[dict]:
    return read_lines(folder / "runs.jsonl")


def do(jobs: list[dict], pool, folder: Path, until: float) -> None:
    """Run what is not stored yet; end the program at `until` on the clock."""
    known = [{key: run[key] for key in jobs[0]} for run in runs_of(folder)]
    results = pool.imap_unordered(work, [job for job in jobs if job not in known])
    with contextlib.suppress(StopIteration):
        for number in itertools.count(1):
            try:
                run = results.next(timeout=max(0.1, until - time.monotonic()))
            except multiprocessing.TimeoutError:
                raise SystemExit("the time is over: run this again to go on") from None
            add_line(folder / "runs.jsonl", run)
            print(f"{number} {run['stage']} {run['arm']} {run['seed']}: {mean(run):.3f}", flush=True)


def mean(run: dict) -> float:
    return statistics.fmean(row["objective"] for row in run["curve"])


def best(runs: list[dict], family: str, count: int) -> list[dict]:
    """The settings of a family with the best means over the tuning seeds they were tried on, the most tried first."""
    tried: dict[str, list[float]] = {}
    for run in runs:
        if run["stage"] == "tuning" and run["arm"] == family:
            tried.setdefault(json.dumps(run["settings"]), []).append(mean(run))
    order = sorted(tried, key=lambda key: (len(tried[key]), statistics.fmean(tried[key])), reverse=True)
    return [json.loads(key) for key in order[:count]]


def run(arguments) -> None:
    folder, until = arguments.folder, time.monotonic() + arguments.seconds
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    families = ("ppo", "replay")

    def tuning(family: str, settings: dict, seed: int) -> dict:
        return {"stage": "tuning", "arm": family, "seed": seed, "episodes": TASK.tuning_episodes, "settings": settings}

    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        now = functools.partial(do, pool=pool, folder=folder, until=until)
        now([tuning(f, settings, TUNING_SEEDS[0]) for settings in zip(*map(candidates, families), strict=True)
             for f, settings in zip(families, settings, strict=True)])  # fmt: skip
        tried = runs_of(folder)
        now([tuning(f, settings, TUNING_SEEDS[1]) for f in families for settings in best(tried, f, FINALISTS)])
        chosen = {family: best(runs_of(folder), family, 1)[0] for family in families}
        chosen["same"] = without_replay(chosen["replay"])
        now([{"stage": "final", "arm": arm, "seed": seed, "episodes": TASK.episodes, "settings": settings}
             for seed in SEEDS for arm, settings in chosen.items()])  # fmt: skip
        pool.terminate()
    write_json(folder / "provenance.json", {"common": COMMON} | provenance("scipy"))


def analyse(arguments) -> None:
    """Write summary.json: the arms as in `sample_efficiency.py`, tokens only, for runs share the machine's time."""
    arms: dict[str, dict[int, list[dict]]] = {}
    runs = runs_of(arguments.folder)
    for one in runs:
        if one["stage"] == "final":
            arms.setdefault(one["arm"], {})[one["seed"]] = one["curve"]
    seeds = set.intersection(*(set(some) for some in arms.values()))
    arms = {arm: {seed: some[seed] for seed in sorted(seeds)} for arm, some in arms.items()}
    levels = thresholds(arms["ppo"])
    summary = {
        "thresholds": levels,
        "start": statistics.fmean(curve[0]["objective"] for curve in arms["ppo"].values()),
        "tuning_runs": {f: sum(r["stage"] == "tuning" and r["arm"] == f for r in runs) for f in ("ppo", "replay")},
        "settings": {one["arm"]: one["settings"] for one in runs if one["stage"] == "final"},
        "arms": {arm: arm_table(some, arms, levels) for arm, some in arms.items()},
    }
    for table in summary["arms"].values():
        for name in [name for name in table if name in ("total_cpu", "total_generating")]:
            del table[name]
        for row in table["until"].values():
            for name in [name for name in row if name == "cpu" or name.startswith("time_")]:
                del row[name]
    write_json(arguments.folder / "summary.json", summary)
    for arm, table in summary["arms"].items():
        row = table["until"]["90"]
        print(f"{arm:8} {table['runs']} runs, {row['tokens']} tokens, x{row.get('against_ppo')}, "
              f"final {table['final_objective']}")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "analyse"))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long; a later `run` goes on")
    arguments = parser.parse_args(argv)
    {"run": run, "analyse": analyse}[arguments.command](arguments)


if __name__ == "__main__":
    main()
