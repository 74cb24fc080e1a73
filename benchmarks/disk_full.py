"""Fill the disk while v1 trains: the run must say so and go on, and the checkpoint before must load and resume exactly.

    python benchmarks/disk_full.py                    # a small file system of its own, in a user namespace (Linux)
    python benchmarks/disk_full.py --limit file-size  # no file may grow beyond 64 kB; needs no rights at all

The run saves after every update. After update 3 the disk is filled up, after update 6 there is room again. While it is
full, the newest whole checkpoint is copied elsewhere and resumed there. In the end the run itself, the resumed copy and
a run whose disk was never full must have the same weights, metrics and samples, bit for bit.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from kill_and_resume import is_whole, outcome, same
from record import RESULTS, provenance, write_json

from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.running import checkpoint

SETTINGS = {
    "batch_size": 4,
    "minibatch_size": 4,
    "num_ppo_epochs": 1,
    "lr_scheduler": "cosine",
    "eval_every": 2,
    "save_every": 1,
    "total_episodes": 4 * 8,
}
FULL_AFTER, ROOM_AFTER, UPDATES = 3, 6, 8
MEGABYTES = 24  # of the small file system
FILE_SIZE = 64 * 1024  # bytes


def fill(folder: Path) -> Path:
    """Write until the disk is full."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    return ballast


class Limit:
    """A disk that can be full: a small file system, or a limit on the size of a file."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder = kind, folder
        if kind == "file-size":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with an error, as on a full disk

    def on(self) -> None:
        if self.kind == "file-size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, resource.RLIM_INFINITY))
        else:
            self.ballast = fill(self.folder)

    def off(self) -> None:
        if self.kind == "file-size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:
            self.ballast.unlink()


def trainer_in(folder: Path, seed: int, resume: bool = False) -> PPOTrainer:
    for seed_of_process in (random.seed, np.random.seed, torch.manual_seed):
        seed_of_process(seed)
    return PPOTrainer(output_dir=str(folder), seed=seed, resume_from_checkpoint=resume or None, **SETTINGS)


def run(kind: str, disk: Path, elsewhere: Path, seed: int) -> dict:
    """The run on a disk that is full for a while, and its comparison with one that never was."""
    world, limit, copy = worlds.load("reviews"), Limit(kind, disk), elsewhere / "copy"
    prompts, heldout = world.prompts, world.heldout_prompts[:4]
    seen = {}

    def watch(trainer, rollout, metrics) -> None:
        update = metrics["update"]
        if update == FULL_AFTER + 1:  # its predecessor was saved, this one cannot be
            limit.on()
        if update == ROOM_AFTER:
            limit.off()  # for the copy, where the limit is one of files
            shutil.copytree(trainer.checkpoint_dir, copy / "checkpoints")
            lines = (trainer.checkpoint_dir.parent / "metrics.jsonl").read_text().splitlines()
            seen["log_lines_while_full"] = len(lines)
            for line in lines:
                json.loads(line)  # no half line

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_in(disk / "run", seed)
        trainer.train(prompts, heldout, watch)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    _, newest, passed_over = checkpoint.load_newest(copy / "checkpoints")
    whole_while_full = is_whole(newest)
    resumed = trainer_in(copy, seed, resume=True)
    went_on_from = len(resumed.history)
    resumed.train(prompts, heldout)
    trainer_in(elsewhere / "whole", seed).train(prompts, heldout)
    whole, end, copied = (outcome(folder, UPDATES) for folder in (elsewhere / "whole", disk / "run", copy))
    return {
        "limit": kind,
        "failed_saves": sum("saving a checkpoint" in text for text in said),
        "said": sorted({text.replace(str(disk), "…") for text in said}),
        "newest_checkpoint_while_full": newest.name,
        "whole_while_full": whole_while_full,
        "half_written_left": len(list((copy / "checkpoints").glob(f"{checkpoint.ASIDE}*"))),
        "passed_over": len(passed_over),
        "resumed_from": went_on_from,
        "resumed_copy_identical": {name: same(copied[name], whole[name]) for name in whole},
        "run_itself_identical": {name: same(end[name], whole[name]) for name in whole},
        "best_update": trainer.best.update,  # one within the full time could not be kept, and is not saved again
        **seen,
        "updates": UPDATES,
        "settings": SETTINGS,
        "seed": seed,
        **provenance("accelerate"),
    }


def inside_small_disk(arguments: list[str]) -> None:
    """Run this program again where `disk` is a small file system that no other process sees."""
    with tempfile.TemporaryDirectory() as disk:
        script = 'mount -t tmpfs -o size="$1" small "$2" && shift 2 && exec "$@"'
        again = [sys.executable, __file__, *arguments, f"--disk={disk}"]
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", f"{MEGABYTES}m", disk]
        subprocess.run([*command, *again], check=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", choices=("file-system", "file-size"), default="file-system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "disk_full")
    parser.add_argument("--disk", type=Path, help="the small file system, where it is mounted already")
    arguments = parser.parse_args(argv)
    if arguments.limit == "file-system" and not arguments.disk:
        return inside_small_disk(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as elsewhere:
        disk = arguments.disk or Path(elsewhere) / "disk"
        result = run(arguments.limit, disk, Path(elsewhere), arguments.seed)
    path = arguments.results / "summary.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**stored, arguments.limit: result})
    print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
