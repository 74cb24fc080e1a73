"""SmolLM2-135M with v1's 8 GB preset against v0 with the same rollouts: peak memory, and the reward curve.

    python benchmarks/preset_8gb.py

Both sample 8 responses an update and take optimiser steps from all 8: v0 with the 8 in memory at once (batch_size 8,
minibatch_size 8), v1 as the preset says (1 response at a time, 8 accumulated, adapters, bfloat16, recomputed
activations). The reward is VADER's compound sentiment. Peak memory is the largest resident memory of a fresh process
that does 2 updates (Adam has no states before its first step). The number of updates of the reward curve is fixed
beforehand. A run that was killed goes on when the same command is given again.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from record import RESULTS, ROOT, provenance, read_csv, write_csv, write_json
from smollm2_vader import load_checkpoint, save_checkpoint

from ppo_lib import ppo, ppo_v1
from ppo_lib.data import as_dataset
from ppo_lib.rewards import score_responses
from ppo_lib.worlds import smollm2

ARMS = ("v0", "v1")
RESPONSES = 8
SHARED = {"num_ppo_epochs": 2, "max_new_tokens": 16, "temperature": 0.7, "kl_coef": 0.05}
V0 = {"batch_size": RESPONSES, "minibatch_size": RESPONSES, "learning_rate": 3e-5}
HELD_OUT = 32  # prompts
LAST = 5  # updates whose mean score ends the curve
PROGRAM = Path(__file__)


def resident_mib() -> float:
    """Memory of this process that is in RAM, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """The largest resident memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_trainer(arm: str, world, seed: int, updates: int, **v1_settings) -> ppo.PPOTrainer:
    shared = {**SHARED, "seed": seed, "total_episodes": updates * RESPONSES}
    if arm == "v0":
        return ppo.PPOTrainer(world.model, world.reward, tokenizer=world.tokenizer, **V0, **shared)
    config = ppo_v1.PPOConfigV1.preset("8gb", **shared, **v1_settings)
    resume = True if config.output_dir else None
    return ppo_v1.PPOTrainer(
        world.model, world.reward, tokenizer=world.tokenizer, config=config, resume_from_checkpoint=resume
    )


def measure(arm: str) -> dict:
    """Two updates in this process, and what they needed."""
    import peft  # noqa: F401 (counted among the libraries in both arms)

    libraries = resident_mib()
    world = smollm2.load()
    trainer = make_trainer(arm, world, seed=0, updates=2)
    prepared = peak_mib()
    trainer.prepare(as_dataset(world.prompts))
    for _ in range(2):
        metrics, _ = trainer.train_step(next(trainer.batches))
        trainer.log(metrics)
    return {
        "peak_mib": round(peak_mib(), 1),
        "libraries_mib": round(libraries, 1),
        "peak_minus_libraries_mib": round(peak_mib() - libraries, 1),
        "peak_until_training_mib": round(prepared, 1),
    }


@torch.no_grad()
def held_out(trainer: ppo.PPOTrainer, prompts: list[str]) -> dict:
    """Score and KL of one response to each held-out prompt, 8 at a time; the same random numbers each time."""
    generator = torch.Generator().manual_seed(1000)
    scores, kl = [], []
    for first in range(0, len(prompts), RESPONSES):
        rollout = trainer.respond(prompts[first : first + RESPONSES], generator)
        scores += score_responses(trainer.reward, rollout.prompts, rollout.responses).tolist()
        difference = (rollout.logprobs - trainer.reference_logprobs(rollout)).masked_fill(~rollout.mask, 0.0)
        kl += difference.sum(dim=1).tolist()
    error = statistics.stdev(scores) / len(scores) ** 0.5
    return {"score": statistics.mean(scores), "standard_error": error, "kl": statistics.mean(kl)}


class Store:
    """The stored curve of one arm and seed, written anew after each update."""

    def __init__(self, results: Path, arm: str, seed: int):
        self.curve, self.path = results / f"{arm}.csv", results / f"{arm}-seed{seed}.json"
        self.seed = seed
        self.run = json.loads(self.path.read_text()) if self.path.exists() else {}

    def update(self, trainer: ppo.PPOTrainer) -> None:
        """Store the updates so far, and bring `summary.json` up to date."""
        rows = read_csv(self.curve) if self.curve.exists() else []
        rows = [row for row in rows if row["seed"] != self.seed]
        rows += [{"seed": self.seed, **metrics} for metrics in trainer.history]
        write_csv(self.curve, rows)
        last = trainer.history[-1]
        print(last["update"], f"score {last['objective/scores']:.3f} KL {last['objective/kl']:.2f}", flush=True)
        self.note(updates_done=len(trainer.history), peak_mib=round(peak_mib(), 1))
        summarise(self.path.parent, self.run["updates_planned"])

    def note(self, **more) -> None:
        self.run |= more
        write_json(self.path, self.run)


def train(arm: str, seed: int, updates: int, results: Path, work: Path) -> None:
    """Train one arm in this process, or what is left of it."""
    world = smollm2.load()
    prompts, work = world.heldout_prompts[:HELD_OUT], work / f"{arm}-seed{seed}"
    store = Store(results, arm, seed)
    trainer = make_trainer(arm, world, seed, updates, output_dir=str(work), save_every=2)
    if not store.run:
        store.note(seed=seed, updates_planned=updates, **provenance("vaderSentiment", "peft", "accelerate"))
    if arm == "v1":
        if not trainer.history:
            store.note(held_out_before=held_out(trainer, prompts))
        trainer.train(world.prompts, callback=lambda trainer, *_: store.update(trainer))
    else:
        trainer.prepare(as_dataset(world.prompts))
        progress = load_checkpoint(work, trainer)
        if progress is None:
            store.note(held_out_before=held_out(trainer, prompts))
        else:
            trainer.batches.waiting = progress["waiting"]
        while len(trainer.history) < updates:
            metrics, _ = trainer.train_step(next(trainer.batches))
            trainer.log(metrics)
            store.update(trainer)
            if len(trainer.history) % 5 == 0 and len(trainer.history) < updates:
                save_checkpoint(work, trainer, {"waiting": trainer.batches.waiting})
    store.note(held_out_after=held_out(trainer, prompts))


def curve(rows: list[dict]) -> dict:
    """How the reward of one run began and ended."""
    scores = [row["objective/scores"] for row in rows]
    return {
        "updates": len(rows),
        f"score_first_{LAST}": round(statistics.mean(scores[:LAST]), 3),
        f"score_last_{LAST}": round(statistics.mean(scores[-LAST:]), 3),
        f"kl_last_{LAST}": round(statistics.mean(row["objective/kl"] for row in rows[-LAST:]), 2),
    }


def summarise(results: Path, updates: int) -> dict:
    """`summary.json` from what the processes stored."""
    memory = {arm: json.loads((results / f"memory-{arm}.json").read_text()) for arm in ARMS}
    runs = []
    for path in sorted(results.glob("v?-seed*.json")):
        run, arm = json.loads(path.read_text()), path.name[:2]
        table = results / f"{arm}.csv"
        rows = [row for row in read_csv(table) if row["seed"] == run["seed"]] if table.exists() else []
        runs.append({"arm": arm, "finished": "held_out_after" in run, **run, **(curve(rows) if rows else {})})
    preset = dataclasses.asdict(ppo_v1.PPOConfigV1.preset("8gb"))
    plain = dataclasses.asdict(ppo_v1.PPOConfigV1())
    summary = {
        "memory": memory,
        "peak_ratio": round(memory["v1"]["peak_mib"] / memory["v0"]["peak_mib"], 3),
        "peak_ratio_without_libraries": round(
            memory["v1"]["peak_minus_libraries_mib"] / memory["v0"]["peak_minus_libraries_mib"], 3
        ),
        "updates_planned": updates,
        "settings": {
            "shared": SHARED,
            "v0": V0,
            "v1": {name: value for name, value in preset.items() if value != plain[name]},
        },
        "held_out_prompts": HELD_OUT,
        "runs": runs,
    }
    write_json(results / "summary.json", summary)
    return summary


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "preset_8gb")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "preset_8gb", help="where checkpoints go")
    parser.add_argument("--measure", choices=ARMS, help="only measure the memory of one arm, in this process")
    parser.add_argument("--train", choices=ARMS, help="only train one arm with the first seed, in this process")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("medium")  # multiply in bfloat16 where the CPU can (AMX), in both arms
    results, work = arguments.results, arguments.work
    if arguments.measure:
        facts = measure(arguments.measure) | provenance("peft", "accelerate")
        return write_json(results / f"memory-{arguments.measure}.json", facts)
    if arguments.train:
        return train(arguments.train, arguments.seeds[0], arguments.updates, results, work)
    command = [sys.executable, str(PROGRAM), f"--results={results}", f"--work={work}", f"--threads={arguments.threads}"]
    for arm in ARMS:
        if not (results / f"memory-{arm}.json").exists():
            subprocess.run([*command, f"--measure={arm}"], check=True)
    summarise(results, arguments.updates)
    for seed in arguments.seeds:
        for arm in ARMS:
            stored = results / f"{arm}-seed{seed}.json"
            if not (stored.exists() and "held_out_after" in json.loads(stored.read_text())):
                subprocess.run(
                    [*command, f"--train={arm}", f"--seeds={seed}", f"--updates={arguments.updates}"], check=True
                )
            print(summarise(results, arguments.updates), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
