"""One thread or all: seconds of an update of v0 on models of growing size, alone on the machine and beside another run.

    python benchmarks/threads.py    # about six minutes; leave the machine alone

Each size is a Llama with the vocabulary of `reviews`. Numbers of threads take turns, so that a machine that slows down
slows both. `ppo_lib.running.threads.SMALL` lies between the size at which all threads gain little alone and the next.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import torch
from record import RESULTS, provenance, write_json
from transformers import LlamaConfig, LlamaForCausalLM

from ppo_lib import worlds
from ppo_lib.ppo import PPODataset, PPOTrainer
from ppo_lib.running import threads

SIZES = {"88 k": (0, 0), "0.5 M": (96, 3), "1.2 M": (160, 3), "3.7 M": (256, 4)}  # name: width and layers; 0: `reviews`
ROUNDS = 5


def trainer_of(width: int, layers: int) -> PPOTrainer:
    world = worlds.load("reviews")
    if not width:
        return PPOTrainer(device="cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=world.model.config.vocab_size, hidden_size=width, intermediate_size=3 * width,
        max_position_embeddings=128, num_hidden_layers=layers, num_attention_heads=8,
        eos_token_id=world.tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return PPOTrainer(LlamaForCausalLM(config), world.reward, tokenizer=world.tokenizer, device="cpu")


def update_seconds(trainer: PPOTrainer, count: int) -> float:
    torch.set_num_threads(count)
    torch.manual_seed(0)
    start = time.perf_counter()
    trainer.train_step(next(trainer.batches))
    return time.perf_counter() - start


def measure(trainer: PPOTrainer, most: int) -> dict[int, list[float]]:
    found = {1: [], most: []}
    for _ in range(ROUNDS):
        for count in found:
            found[count].append(update_seconds(trainer, count))
    return found


def main() -> None:
    most, rows = max(2, threads._by_default), []
    for name, (width, layers) in SIZES.items():
        trainer = trainer_of(width, layers)
        trainer.prepare(PPODataset(worlds.load("reviews").prompts))
        update_seconds(trainer, most)
        row = {"size": name, "parameters": sum(p.numel() for p in trainer.policy.parameters())}
        for how in ("alone", "beside"):  # beside another run
            other = subprocess.Popen([sys.executable, __file__, "burn"]) if how != "alone" else None
            found = measure(trainer, most)
            if other:
                other.kill()
                other.wait()
            medians = {count: statistics.median(seconds) for count, seconds in found.items()}
            row[how] = {
                "one": medians[1], "all": medians[most], "gain": medians[1] / medians[most],
                "range_of_gain": [min(found[1]) / max(found[most]), max(found[1]) / min(found[most])],
            }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    write_json(RESULTS / "threads.json", {"threads": most, "sizes": rows, "provenance": provenance()})


def burn() -> None:
    """Another run on the machine: the tiny model with all threads, as torch would have it."""
    os.environ["TQDM_DISABLE"] = "1"
    trainer = PPOTrainer(device="cpu", total_episodes=10**9)
    torch.set_num_threads(max(2, threads._by_default))
    trainer.train(PPODataset(worlds.load("reviews").prompts))


if __name__ == "__main__":
    burn() if sys.argv[1:] == ["burn"] else main()
