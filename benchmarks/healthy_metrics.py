"""What every metric of v1 is in runs that go well: the default run on `reviews`, with held-out prompts.

    python benchmarks/healthy_metrics.py

The page "Every metric on one page" shows the median over all updates of all seeds, and the middle 90 %.
"""

import numpy as np
import torch
from record import RESULTS, provenance, write_json

from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOConfigV1, PPOTrainer

SEEDS = range(5)
LEFT_OUT = {"update", "episode", "eps", "lr"}  # they count, or say how fast the machine is


def main() -> None:
    torch.set_num_threads(1)
    world = worlds.load("reviews")
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        trainer = PPOTrainer("reviews", seed=seed, device="cpu")
        trainer.train(world.prompts, world.heldout_prompts)
        for row in [*trainer.history, trainer.evaluations[0]]:
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        print(f"seed {seed}: held out {trainer.history[-1]['eval/score']:.2f}", flush=True)
    rows = {
        name: {
            "median": float(np.median(values)),
            "low": float(np.quantile(values, 0.05)),
            "high": float(np.quantile(values, 0.95)),
        }
        for name, values in found.items()
        if name not in LEFT_OUT
    }  # fmt: skip
    settings = {"seeds": list(SEEDS), "updates": PPOConfigV1().num_updates}
    write_json(RESULTS / "healthy_metrics.json", provenance() | settings | {"metrics": rows})


if __name__ == "__main__":
    main()
