"""What the guards of replay are worth where it goes wrong: chapter 12's harsh settings on `reviews`, ten seeds an arm.

    python benchmarks/without_guards.py

Arms: the harsh settings with the guards off and on, the same without any replay, and replay as careful as the
explorer's. The settings were written down before these seeds were run. A curve is added to
ppo_lib/lab/stored/without_guards/curves.csv as soon as its run is over; a killed program goes on where it was.
"""

import argparse
import itertools
import multiprocessing
import os

from record import RESULTS, Curves, provenance, write_json

FOLDER = RESULTS / "without_guards"
SEEDS = range(300, 310)
EPISODES = 128
HARSH = {"learning_rate": 3e-3, "replay_sample_size": 24, "minibatch_size": 8}
GUARDS_OFF = {"correction": "none", "replay_recency": None, "staleness_threshold": 10**6, "max_replay_reuse": 10**6,
              "max_replay_kl": None, "min_ess": 0.0}  # fmt: skip
ARMS = {
    "guards off": HARSH | GUARDS_OFF,
    "guards on": HARSH,
    "no replay": HARSH | {"replay_sample_size": 0},
    "careful": {"learning_rate": 1e-3, "replay_sample_size": 24, "minibatch_size": 32},
}
COLUMNS = ("responses", "tokens", "objective", "score", "kl", "entropy", "ess", "distance")


def work(job: tuple[str, int]) -> tuple[tuple[str, int], list[dict]]:
    """The curve of an arm and seed, in a process of its own."""
    import torch

    from ppo_lib.lab.explorer import trained_curve

    torch.set_num_threads(1)
    name, seed = job
    return job, trained_curve(ARMS[name], EPISODES, seed)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    curves = Curves(FOLDER / "curves.csv", ("arm", "seed"), COLUMNS)
    jobs = curves.lacking((name, seed) for seed, name in itertools.product(SEEDS, ARMS))
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for key, curve in pool.imap_unordered(work, jobs):
            print(key, [round(row["objective"], 2) for row in curve], flush=True)
            curves.add(key, ([f"{row[name]:.6g}" for name in COLUMNS] for row in curve))
    settings = {"arms": ARMS, "seeds": list(SEEDS), "episodes": EPISODES}
    write_json(FOLDER / "runs.json", settings | provenance())


if __name__ == "__main__":
    main()
