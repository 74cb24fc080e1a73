"""Measure the peak memory of one PPO update of SmolLM2-135M, technique by technique.

    python benchmarks/memory_techniques.py

Each run is a process of its own: it answers the same 8 prompts with up to 32 tokens, and takes 2 optimiser steps from
all 8 responses. Two, because Adam has no states before its first step. The peak is the process's largest resident
memory as the kernel counts it (`ru_maxrss`). Weights, gradients and optimiser states are counted from the tensors.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

RESPONSES = 8
MICRO_BATCHES = (1, 8)
SETTINGS = {
    "total_episodes": RESPONSES,
    "num_ppo_epochs": 2,
    "max_new_tokens": 32,
    "temperature": 0.7,
    "learning_rate": 1e-5,
}
ALL = ["activation_checkpointing", "response_logits_only", "lora_rank", "frozen_dtype", "mixed_precision"]
TECHNIQUES = {
    "plain": {},
    "response logits": {"response_logits_only": True},
    "checkpointing": {"activation_checkpointing": True},
    "bf16": {"mixed_precision": "bf16"},
    "8-bit optimiser": {"optimizer": "adamw_8bit"},
    "LoRA": {"lora_rank": 16},
    "LoRA, frozen bf16": {"lora_rank": 16, "frozen_dtype": "bfloat16"},
    "8gb": None,  # the preset's own settings of the memory
}
# glibc keeps freed blocks below a threshold that it raises as it goes; a fixed one gives them back, so that the
# peak is what the run needs and not what it once needed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def bytes_of(tensors) -> int:
    """Bytes of tensors, each storage counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Most bytes of this process that were ever in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_trainer(stage: str, technique: str, micro_batch: int):
    from ppo_lib import ppo, ppo_v1
    from ppo_lib.config import PPOConfigV1
    from ppo_lib.worlds import smollm2

    world = smollm2.load()
    parts = {"tokenizer": world.tokenizer, "seed": 0, **SETTINGS}
    if stage == "v0":
        trainer = ppo.PPOTrainer(world.model, world.reward, batch_size=RESPONSES, minibatch_size=micro_batch, **parts)
        return trainer, world.prompts[:RESPONSES]
    settings = TECHNIQUES[technique]
    if settings is None:
        preset = PPOConfigV1.preset("8gb")
        settings = {name: getattr(preset, name) for name in ALL}
    trainer = ppo_v1.PPOTrainer(
        world.model, world.reward, batch_size=micro_batch, minibatch_size=micro_batch,
        gradient_accumulation_steps=RESPONSES // micro_batch, **settings, **parts,
    )  # fmt: skip
    return trainer, world.prompts[:RESPONSES]


def measure(stage: str, technique: str, micro_batch: int) -> dict:
    """One update in this process."""
    import torch

    import ppo_lib.ppo_v1  # noqa: F401 (counted among the libraries)
    import ppo_lib.worlds.smollm2  # noqa: F401

    torch.set_num_threads(1)
    libraries = resident()
    trainer, prompts = make_trainer(stage, technique, micro_batch)
    loaded = peak()
    start, cpu = time.perf_counter(), time.process_time()
    metrics, rollout = trainer.train_step(prompts)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    networks = {id(network): network for network in (trainer.policy, trainer.critic, trainer.reference)}.values()
    parameters = [p for network in networks for p in network.parameters()]
    trained = [p for p in parameters if p.requires_grad]
    states = [v for state in trainer.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return {
        "stage": stage,
        "technique": technique,
        "micro_batch": micro_batch,
        "peak_bytes": peak(),
        "loaded_bytes": loaded,  # the peak before the update
        "libraries_bytes": libraries,
        "weights_bytes": bytes_of(parameters),
        "gradients_bytes": bytes_of(p.grad for p in trained if p.grad is not None),
        "optimizer_bytes": bytes_of(states),
        "trained_weights": sum(p.numel() for p in trained),
        "prompt_tokens": rollout.prompt_ids.shape[1],
        "response_tokens": rollout.response_ids.shape[1],
        "sampled_tokens": int(rollout.mask.sum()),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "first_ratio": metrics["val/ratio"],
    }


def run(stage: str, technique: str, micro_batch: int) -> dict:
    """`measure` in a fresh process; a technique that cannot run here says why."""
    arguments = ["--stage", stage, "--technique", technique, "--micro-batch", str(micro_batch)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, env={**os.environ, **ALLOCATOR}
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"stage": stage, "technique": technique, "micro_batch": micro_batch, "error": last}
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("v0", "v1"), help="measure one run in this process and print it")
    parser.add_argument("--technique", choices=TECHNIQUES, default="plain")
    parser.add_argument("--micro-batch", type=int, choices=MICRO_BATCHES, default=RESPONSES)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.stage:
        print(json.dumps(measure(arguments.stage, arguments.technique, arguments.micro_batch)))
        return

    from record import RESULTS, provenance, write_json

    results = arguments.results or RESULTS / "memory_techniques"
    facts = {
        "model": "SmolLM2-135M-Instruct",
        "responses": RESPONSES,
        "settings": SETTINGS,
        "allocator": ALLOCATOR,
        **provenance("accelerate", "peft", "bitsandbytes"),
        "threads": 1,
    }
    path = results / "run.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    done = {(row["stage"], row["technique"], row["micro_batch"]) for row in rows}
    plan = [("v0", "plain", 8), ("v1", "8gb", 1), ("v1", "plain", 1), ("v1", "plain", 8)]
    plan += [("v1", technique, RESPONSES) for technique in TECHNIQUES if technique != "plain"]
    for stage, technique, size in plan:
        if (stage, technique, size) in done:
            continue
        done.add((stage, technique, size))
        rows.append(run(stage, technique, size))
        write_json(path, {**facts, "rows": rows})
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
