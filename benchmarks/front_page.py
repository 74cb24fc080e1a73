"""The run that the book's front page plays: v0 with its defaults on `reviews`, looked at after each of thirty updates.

    nice python benchmarks/front_page.py

One seed, 0, and one thread. After each update the policy answers the held-out prompts, always with the same random
numbers. Of their responses the page shows those to the shortest prompts, so that they fit on a phone.
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


def look(trainer: PPOTrainer, prompts: list[str], shown: list[str]) -> tuple[dict, list[dict]]:
    """What the policy is worth now on the held-out `prompts`, and its responses to those that are `shown`."""
    update = len(trainer.history)
    rollout = trainer.respond(prompts, torch.Generator().manual_seed(DICE))
    trainer.score(rollout)
    trainer.estimate(rollout)
    metrics = trainer.rollout_metrics(rollout)
    means = {"score": "objective/scores", "kl": "objective/kl", "entropy": "objective/entropy"}
    kl = kl_k1(rollout.logprobs, rollout.ref_logprobs).sum(dim=1)
    rows = []
    for prompt in shown:
        row = prompts.index(prompt)
        last = int(rollout.lengths[row]) - 1
        rows.append({
            "update": update,
            "prompt": prompt,
            "response": rollout.responses[row],
            "score": rollout.scores[row].item(),
            "guess": rollout.values[row, last].item(),  # the critic's, before the last token
            "kl": kl[row].item(),
            "logprob": rollout.logprobs[row].sum().item(),
            "ref_logprob": rollout.ref_logprobs[row].sum().item(),
        })  # fmt: skip
    return {"update": update, **{name: metrics[metric] for name, metric in means.items()}}, rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--results", type=Path, default=RESULTS / "front_page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start, world = time.perf_counter(), worlds.load("reviews")
    shown = sorted(world.heldout_prompts, key=len)[:SHOWN]
    batch = PPOTrainer.config_class().batch_size
    trainer = PPOTrainer(seed=SEED, device="cpu", total_episodes=batch * options.updates)
    looks = [look(trainer, world.heldout_prompts, shown)]
    trainer.train(world.prompts, lambda *_: looks.append(look(trainer, world.heldout_prompts, shown)))
    write_csv(options.results / "updates.csv", [means for means, _ in looks])
    write_csv(options.results / "responses.csv", [row for _, rows in looks for row in rows])
    settings = {"seed": SEED, "dice": DICE, "updates": options.updates, "prompts": len(world.heldout_prompts)}
    run = {**settings, "shown": shown, "config": dataclasses.asdict(trainer.config)}
    write_json(options.results / "run.json", run | {"seconds": time.perf_counter() - start, **provenance()})


if __name__ == "__main__":
    main()
