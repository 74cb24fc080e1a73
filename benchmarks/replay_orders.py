"""Is v2's lead over tuned PPO on `reviews` luck? The chosen settings again, the replayed responses in other orders.

    python benchmarks/replay_orders.py     # every seed in every order; goes on where it was stopped
    python benchmarks/replay_orders.py analyse

On `reviews` all responses that are ready are replayed, whatever rule should choose. What the order changes is only
which of them share a minibatch, so runs of the same seed and another order are equally good runs of the same method.
Order 0 is that of the stored runs of `sample_efficiency.py`, whose PPO is the opponent here too.
"""

import argparse
import contextlib

import numpy as np
import torch
from efficiency_tables import compared, final, read_curves, rounded, thresholds
from record import RESULTS, Curves, provenance, write_json
from sample_efficiency import COLUMNS, FOLDER, SEEDS, TASKS, arm, stored, train

from ppo_lib.lab.efficiency import collapsed, cost_until, ratio_interval
from ppo_lib.replay import ReplayBuffer

OUT = RESULTS / "replay_orders"
ORDERS = (1, 2)


@contextlib.contextmanager
def shuffled(seed: int):
    """Within it, a buffer hands out what it has drawn in another order, by random numbers of its own."""
    sample, generator = ReplayBuffer.sample, torch.Generator().manual_seed(seed)

    def in_another_order(self, *arguments):
        batch = sample(self, *arguments)
        return batch if batch is None else batch.select(torch.randperm(len(batch), generator=generator))

    ReplayBuffer.sample = in_another_order
    try:
        yield
    finally:
        ReplayBuffer.sample = sample


def run() -> None:
    """Train what is not there yet; a curve is added as soon as its run is over."""
    curves = Curves(OUT / "curves.csv", ("task", "arm", "seed"), COLUMNS)
    for key in curves.lacking(("dense", f"order {order}", seed) for order in ORDERS for seed in SEEDS):
        _, order, seed = key
        with shuffled(1000 * int(order.removeprefix("order ")) + seed):
            curve = train(TASKS["dense"], *arm("dense", "replay"), seed)
        curves.add(key, map(stored, curve))
        print(f"{order}, seed {seed}: last objective {curve[-1]['objective']:.3f}", flush=True)


def analyse() -> None:
    """v2 against tuned PPO, order by order and with all orders of a seed averaged."""
    arms = read_curves(FOLDER / "curves.csv")["dense"]
    orders = {"order 0": arms["replay"]} | read_curves(OUT / "curves.csv")["dense"]
    level = thresholds(arms["ppo"])[90]
    horizon = min(curve[-1]["tokens"] for runs in (arms["ppo"], *orders.values()) for curve in runs.values())

    def needed(runs) -> list[float]:
        found = [cost_until(runs[seed], level) for seed in SEEDS]
        return [min(tokens, horizon) if held else horizon for tokens, held in found]

    ppo, table = needed(arms["ppo"]), np.array([needed(runs) for runs in orders.values()])  # [orders, seeds]
    ends = np.array([[final(runs[seed]) - final(arms["ppo"][seed]) for seed in SEEDS] for runs in orders.values()])
    content = {
        "orders": {
            name: {"against_ppo": compared(runs, arms["ppo"], level), "tokens": round(float(row.mean()))}
            for (name, runs), row in zip(orders.items(), table, strict=True)
        },
        "against_ppo": rounded(ratio_interval(ppo, table.mean(axis=0))),
        "of_one_seed": rounded((table.max(axis=0) / table.min(axis=0)).tolist()),  # dearest over cheapest order
        "end_minus_ppo": round(float(ends.mean()), 3),
        "runs": table.size,
        "collapsed": sum(collapsed(curve) for runs in orders.values() for curve in runs.values()),
        **provenance("scipy"),
    }
    write_json(OUT / "summary.json", content)
    for name, row in content["orders"].items():
        print(name, row["against_ppo"])
    print("all orders", content["against_ppo"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="run", choices=["run", "analyse"])
    if parser.parse_args().what == "run":
        run()
    analyse()
