"""The grid of runs that the explorer of chapter 12 shows: what four settings of the buffer do on `reviews`.

    python benchmarks/replay_explorer.py

Every point of the grid is trained on the same seeds, as is tuned on-policy PPO. A curve is added to
ppo_lib/lab/stored/replay_explorer/curves.csv as soon as its run is over; a killed program goes on where it was.
"""

import argparse
import itertools

from record import RESULTS, Curves, provenance, write_json
from sample_efficiency import COLUMNS, frozen, in_parallel, stored

FOLDER = RESULTS / "replay_explorer"
SEEDS = (200, 201, 202, 203, 204)
EPISODES = 256
SLIDERS = {
    "replay_buffer_size": (64, 256),
    "replay_sample_size": (8, 24, 56),
    "max_replay_reuse": (2, 8),
    "staleness_threshold": (4, 32),
}
FIXED = {"batch_size": 8, "learning_rate": 1e-3}  # everything else has its default


def jobs() -> list[tuple]:
    """All runs, seed by seed: key (four settings, seed), task, episodes, family, settings, seed."""
    found = []
    for seed in SEEDS:
        key = (*(0 for _ in SLIDERS), seed)
        found.append((key, "dense", EPISODES, "ppo", frozen()["dense"]["ppo"], seed))
        for point in itertools.product(*SLIDERS.values()):
            settings = FIXED | dict(zip(SLIDERS, point, strict=True))
            settings["minibatch_size"] = settings["batch_size"] + settings["replay_sample_size"]
            found.append(((*point, seed), "dense", EPISODES, "replay", settings, seed))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    curves, wanted = Curves(FOLDER / "curves.csv", (*SLIDERS, "seed"), COLUMNS), {job[0]: job for job in jobs()}
    for key, curve in in_parallel([wanted[key] for key in curves.lacking(wanted)], arguments.workers):
        curves.add(key, map(stored, curve))
    write_json(
        FOLDER / "runs.json",
        {"sliders": SLIDERS, "fixed": FIXED, "on-policy": frozen()["dense"]["ppo"], "seeds": SEEDS,
         "episodes": EPISODES, **provenance("scipy")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
