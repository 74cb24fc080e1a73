"""Train v1 for thousands of updates and watch whether memory or open files grow.

    python benchmarks/soak.py

The run is small (world `reviews`, 4 responses an update) and has everything on that writes or keeps something:
evaluation, checkpoints, JSON lines and TensorBoard. Resident memory and open file descriptors are noted every 10
updates. Growth is counted from update 200, when caches are warm, to the end, within one process: that of memory that is
no file's, as a share of all resident memory at the start. (A busy system takes pages of files back, which would hide
growth.) A run that was killed goes on from its last checkpoint when the same command is given again; growth is then
that of the longest piece.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import time
from pathlib import Path

import torch
from record import RESULTS, ROOT, provenance, read_csv, write_csv, write_json

from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOConfigV1, PPOTrainer

SETTINGS = {
    "batch_size": 4,
    "minibatch_size": 4,
    "num_ppo_epochs": 1,
    "learning_rate": 2e-4,
    "lr_scheduler": "cosine",
    "warmup_updates": 20,
    "eval_every": 50,
    "save_every": 50,
    "report_to": ["tensorboard"],
}
WARM = 200  # updates before growth counts
NOTE_EVERY = 10  # updates
WINDOW = 10  # notes whose median stands for "at the start" and "at the end"


def memory_mib() -> dict[str, float]:
    """Memory of this process that is in RAM, all of it and the part that is no file's, in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"resident_mib": "VmRSS", "anonymous_mib": "RssAnon"}
    return {name: int(status[field].split()[0]) / 1024 for name, field in fields.items()}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def growth(rows: list[dict], warm: int, window: int = WINDOW) -> dict:
    """How memory and descriptors changed after the first `warm` updates of the longest piece in one process."""
    pieces = [list(piece) for _, piece in itertools.groupby(rows, key=lambda row: row["session"])]
    piece = max(pieces, key=len)
    piece = [row for row in piece if row["update"] >= piece[0]["update"] - NOTE_EVERY + warm]
    if len(piece) < 2 * window:
        return {}
    found = {"from_update": piece[0]["update"], "to_update": piece[-1]["update"]}
    for name in ("resident_mib", "anonymous_mib"):
        found[f"{name}_first"] = round(statistics.median(row[name] for row in piece[:window]), 2)
        found[f"{name}_last"] = round(statistics.median(row[name] for row in piece[-window:]), 2)
        found[f"{name}_highest"] = round(max(row[name] for row in piece), 2)
    grown = found["anonymous_mib_last"] - found["anonymous_mib_first"]
    return {
        **found,
        "memory_growth": round(grown / found["resident_mib_first"], 5),
        "descriptors_first": piece[0]["open_files"],
        "descriptors_last": piece[-1]["open_files"],
        "descriptors_highest": max(row["open_files"] for row in piece),
        "descriptor_growth": piece[-1]["open_files"] - piece[0]["open_files"],
    }


def read_log(path: Path, config: PPOConfigV1) -> dict:
    """Every line of the run's `metrics.jsonl` parsed, and whether it has each update once and in order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    evaluated = [row["update"] for row in rows if "eval/score" in row]
    return {
        "rows": len(rows),
        "whole": [row["update"] for row in rows] == list(range(config.num_updates + 1)),
        "evaluations": len(evaluated),
        "evaluations_expected": 1 + math.ceil(config.num_updates / config.eval_every),
    }


def read_tensorboard(folder: Path) -> int:
    """The number of updates that TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = next(folder.rglob("events.out.tfevents.*")).parent
    reader = EventAccumulator(str(events), size_guidance={"scalars": 0})
    return len({event.step for event in reader.Reload().Scalars("objective/scores")})


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=5_000)
    parser.add_argument("--warm", type=int, default=WARM, help="updates before growth counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "soak")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "soak", help="the run's output_dir")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    world = worlds.load("reviews")
    total = arguments.updates * SETTINGS["batch_size"]
    trainer = PPOTrainer(
        resume_from_checkpoint=True,
        output_dir=str(arguments.work),
        seed=arguments.seed,
        total_episodes=total,
        **SETTINGS,
    )
    rows, facts = [], {"seconds": 0.0, **provenance("accelerate", "tensorboard")}
    if trainer.history and (arguments.results / "summary.json").exists():
        facts = json.loads((arguments.results / "summary.json").read_text())["facts"]
        rows = [row for row in read_csv(arguments.results / "memory.csv") if row["update"] <= len(trainer.history)]
    session = rows[-1]["session"] + 1 if rows else 0
    start, before = time.perf_counter(), facts["seconds"]

    def store(**more) -> dict:
        facts["seconds"] = round(before + time.perf_counter() - start, 1)
        summary = {
            "updates_done": len(trainer.history),
            "updates_planned": arguments.updates,
            "sessions": session + 1,
            "warm": arguments.warm,
            "growth": growth(rows, arguments.warm),
            **more,
            "settings": SETTINGS,
            "seed": arguments.seed,
            "facts": facts,
        }
        write_json(arguments.results / "summary.json", summary)
        write_csv(arguments.results / "memory.csv", rows)
        return summary

    def note(trainer, rollout, metrics) -> None:
        update = metrics["update"]
        if update % NOTE_EVERY == 0:
            noted = {**memory_mib(), "open_files": open_files()}
            rows.append({"update": update, "session": session, **noted, "score": metrics["objective/scores"]})
        if update % 100 == 0:
            print({**store()["growth"], "update": update, **rows[-1]}, flush=True)

    trainer.train(world.prompts, world.heldout_prompts[:16], note)
    summary = store(
        log=read_log(arguments.work / "metrics.jsonl", trainer.config),
        tensorboard_updates=read_tensorboard(arguments.work / "tensorboard"),
        checkpoints=sorted(path.name for path in trainer.checkpoint_dir.iterdir()),
        best_update=trainer.best.update,
        heldout_score_first=trainer.evaluations[0]["eval/score"],
        heldout_score_last=trainer.evaluations[-1]["eval/score"],
    )
    print(summary, flush=True)
    return summary


if __name__ == "__main__":
    main()
