"""What v1 costs over v0 at equal settings: both do the same updates in turn, in one process.

    python benchmarks/v1_overhead.py

With its own settings off v1 computes what v0 computes, bit for bit, so update i is the same work in both. A pair is a
few updates of v0 and the same of v1, the first of the two changing from pair to pair. Wall-clock time suffers from
whatever else the machine does; the process's CPU time much less, and is what the stored ratio is about. The first
pair warms up and is not counted.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from record import RESULTS, provenance, write_csv, write_json

from ppo_lib import ppo, ppo_v1, worlds
from ppo_lib.data import as_dataset

UPDATES = 2  # of each trainer in a pair


def timed(trainer: ppo.PPOTrainer, updates: int) -> tuple[float, float]:
    """CPU and wall-clock seconds of some updates, logging included."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(updates):
        metrics, _ = trainer.train_step(next(trainer.batches))
        trainer.log(metrics)
    return time.process_time() - cpu, time.perf_counter() - wall


def spread(ratios: list[float]) -> dict:
    low, median, high = statistics.quantiles(ratios, n=4)
    named = {"median": median, "quartiles": [low, high], "range": [min(ratios), max(ratios)]}
    return {
        name: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 4)
        for name, value in named.items()
    }


def summary_of(rows: list[dict]) -> dict:
    """v1's time over v0's: pair by pair, and of all pairs together."""
    total = {c: sum(row[f"{c}_v1"] for row in rows) / sum(row[f"{c}_v0"] for row in rows) for c in ("cpu", "wall")}
    return {
        "pairs": len(rows),
        "cpu_ratio": spread([row["cpu_v1"] / row["cpu_v0"] for row in rows]),
        "wall_ratio": spread([row["wall_v1"] / row["wall_v0"] for row in rows]),
        "ratio_of_sums": {clock: round(ratio, 4) for clock, ratio in total.items()},
        "cpu_seconds_per_update_v0": round(sum(row["cpu_v0"] for row in rows) / len(rows) / UPDATES, 4),
    }


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "v1_overhead")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    world = worlds.load("reviews")
    settings = {"seed": arguments.seed, "total_episodes": 32 * UPDATES * (arguments.pairs + 1)}
    trainers = {"v0": ppo.PPOTrainer(**settings), "v1": ppo_v1.PPOTrainer(**settings)}
    for trainer in trainers.values():
        trainer.prepare(as_dataset(world.prompts))
    rows = []
    for pair in range(arguments.pairs + 1):
        order = list(trainers) if pair % 2 == 0 else list(trainers)[::-1]
        row = {"pair": pair, "first_is_v1": pair % 2}
        for name in order:
            row[f"cpu_{name}"], row[f"wall_{name}"] = timed(trainers[name], UPDATES)
        if pair:
            rows.append(row)
    scores = {name: [m["objective/scores"] for m in trainer.history] for name, trainer in trainers.items()}
    summary = {
        **summary_of(rows),
        "updates_in_a_pair": UPDATES,
        "same_scores": scores["v0"] == scores["v1"],
        "settings": "the defaults of both",
        "seed": arguments.seed,
        **provenance("accelerate"),
    }
    write_json(arguments.results / "summary.json", summary)
    write_csv(arguments.results / "pairs.csv", rows)
    print(summary, flush=True)
    return summary


if __name__ == "__main__":
    main()
