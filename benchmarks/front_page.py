"""The run that the book's front page plays: v0 with its defaults on `reviews`, looked at after each of thirty updates.

    nice python benchmarks/front_page.py

One seed, 0, and one thread. After each update the policy answers the held-out prompts, always with the same random
numbers. The page shows the means, and the responses to the most ordinary prompts: those whose scores before and after
the run lie nearest to the means of all.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch
from record import RESULTS, ROOT, provenance, write_csv, write_json

sys.path.insert(0, str(ROOT))

from ppo_lib import worlds
from ppo_lib.estimators import kl_k1
from ppo_lib.ppo import PPOTrainer

SEED, DICE, UPDATES, SHOWN = 0, 0, 30, 3


def look(trainer: PPOTrainer, prompts: list[str]) -> tuple[dict, list[dict]]:
    """What the policy is worth now on the held-out `prompts`: the means, and a row for each response."""
    update = len(trainer.history)
    rollout = trainer.respond(prompts, torch.Generator().manual_seed(DICE))
    trainer.score(rollout)
    trainer.estimate(rollout)
    metrics = trainer.rollout_metrics(rollout)
    last = rollout.lengths - 1
    columns = {
        "score": rollout.scores,
        "guess": rollout.values.gather(1, last[:, None])[:, 0],  # the critic's, before the last token
        "kl": kl_k1(rollout.logprobs, rollout.ref_logprobs).sum(dim=1),
        "logprob": rollout.logprobs.sum(dim=1),
        "ref_logprob": rollout.ref_logprobs.sum(dim=1),
    }
    rows = [
        {"update": update, "prompt": prompt, "response": text, **dict(zip(columns, numbers, strict=True))}
        for prompt, text, *numbers in zip(
            prompts, rollout.responses, *(column.tolist() for column in columns.values()), strict=True
        )
    ]
    means = {"score": "objective/scores", "kl": "objective/kl", "entropy": "objective/entropy"}
    return {"update": update, **{name: metrics[metric] for name, metric in means.items()}}, rows


def most_ordinary(looks: list[tuple[dict, list[dict]]]) -> list[str]:
    """The prompts whose responses score nearest to the mean of all, before the first update and after the last."""
    (before, first), *_, (after, last) = looks
    distance = {
        one["prompt"]: abs(one["score"] - before["score"]) + abs(other["score"] - after["score"])
        for one, other in zip(first, last, strict=True)
    }
    return sorted(distance, key=distance.get)[:SHOWN]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--results", type=Path, default=RESULTS / "front_page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    note, start, world = provenance(), time.perf_counter(), worlds.load("reviews")
    prompts, batch = world.heldout_prompts, PPOTrainer.config_class().batch_size
    trainer = PPOTrainer(seed=SEED, device="cpu", total_episodes=batch * options.updates)
    looks = [look(trainer, prompts)]
    trainer.train(world.prompts, lambda *_: looks.append(look(trainer, prompts)))
    shown = most_ordinary(looks)
    run = {"seed": SEED, "dice": DICE, "updates": options.updates, "prompts": len(prompts), "shown": shown}
    run |= {"settings": dataclasses.asdict(trainer.config), "seconds": round(time.perf_counter() - start, 1), **note}
    write_json(options.results / "run.json", run)
    write_csv(options.results / "updates.csv", [means for means, _ in looks])
    write_csv(options.results / "responses.csv", [row for _, rows in looks for row in rows if row["prompt"] in shown])


if __name__ == "__main__":
    main()
