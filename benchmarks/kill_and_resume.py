"""Kill v1 runs at random moments, resume them, and compare the end with that of a run that nothing disturbed.

    python benchmarks/kill_and_resume.py

Each run trains on `reviews` with a cosine schedule, accumulation, an adaptive KL coefficient, evaluation, and a
checkpoint after every update. It is killed with SIGKILL one to three times, in turn at a random moment and while it
saves, and resumed each time with `resume_from_checkpoint=True`. In the end its weights, optimiser states, metrics and
samples are compared with those of the uninterrupted run of the same seed, bit for bit. What a kill left behind is
looked at from outside, before the run is resumed: which checkpoints are whole by their checksums, and whether it had
been writing one.

The parent imports everything once and forks; it never computes. A program that was stopped goes on with the next run.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads in the parent: it forks
os.environ["TQDM_DISABLE"] = "1"

import argparse
import hashlib
import json
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, ROOT, provenance, read_csv, write_csv, write_json

from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.running import checkpoint

SETTINGS = {
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "minibatch_size": 4,
    "num_ppo_epochs": 2,
    "lr_scheduler": "cosine",
    "warmup_updates": 2,
    "kl_target": 1.0,
    "kl_horizon": 100,
    "eval_every": 2,
    "early_stopping_patience": 50,
    "save_every": 1,
    "keep_last": 2,
}
SEEDS = 5  # runs share the uninterrupted run of their seed
MOST_KILLS = 3  # of one run
POLL = 0.0005  # seconds between looks at a run that is to be killed while it saves
NONE = -1  # in the table: there is none


def train(folder: Path, seed: int, updates: int) -> None:
    """In a child: train, or go on, and note where it went on from."""
    torch.set_num_threads(1)
    for seed_of_process in (random.seed, np.random.seed, torch.manual_seed):
        seed_of_process(seed)
    world = worlds.load("reviews")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = PPOTrainer(
            resume_from_checkpoint=True,
            output_dir=str(folder),
            seed=seed,
            total_episodes=updates * SETTINGS["batch_size"] * SETTINGS["gradient_accumulation_steps"],
            **SETTINGS,
        )
    passed_over = [str(warning.message) for warning in caught if "passed over" in str(warning.message)]
    started = {"from": len(trainer.history) if trainer.resumed_state else NONE, "passed_over": passed_over}
    write_json(folder.with_name(folder.name + "-start.json"), started)
    trainer.train(world.prompts, world.heldout_prompts[:8])


def fork(work: Callable[[], None], log: Path) -> int:
    """The id of a child that does `work`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> bool:
    """Whether the child is gone.

    Raises:
        RuntimeError: it failed by itself.
    """
    done, status = os.waitpid(child, os.WNOHANG)
    if done and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"a run failed with status {os.waitstatus_to_exitcode(status)}: see its log")
    return bool(done)


def names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def newest(names: list[str]) -> int:
    """The update of the newest checkpoint among `names`."""
    updates = [int(name.removeprefix(checkpoint.PREFIX)) for name in names if name.startswith(checkpoint.PREFIX)]
    return max(updates, default=NONE)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint has the files that its manifest names, by their checksums; judged apart from `ppo_lib`."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = manifest["sha256"].items()
        return len(files) == 2 and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in files
        )
    except (OSError, ValueError, KeyError):
        return False


def kill(child: int, folder: Path, moment: float, at_save: int | None) -> dict | None:
    """Kill a run `moment` seconds after its start, or after the beginning of its `at_save`-th save; what it left.

    Returns:
        None if the run ended before.
    """
    checkpoints, start, saves, writing = folder / "checkpoints", time.perf_counter(), 0, set()
    while True:
        if at_save is not None:
            now = {name for name in names_in(checkpoints) if name.startswith(checkpoint.ASIDE)}
            saves += len(now - writing)
            writing = now
            if saves >= at_save:
                time.sleep(moment)
                break
        elif time.perf_counter() - start >= moment:
            break
        if ended(child):
            return None
        time.sleep(POLL)
    seconds = time.perf_counter() - start
    seen = newest(names_in(checkpoints))  # renamed, so whole, before the kill
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return None
    left = names_in(checkpoints)
    whole = [name for name in left if name.startswith(checkpoint.PREFIX) and is_whole(checkpoints / name)]
    log = folder / "metrics.jsonl"
    return {
        "aimed_at_save": int(at_save is not None),
        "seconds": round(seconds, 4),
        "updates_logged": sum('"objective/scores"' in line for line in log.open()) if log.exists() else 0,
        "while_writing": int(any(name.startswith(checkpoint.ASIDE) for name in left)),
        "while_removing": int(any(name.startswith(checkpoint.PREFIX) and name not in whole for name in left)),
        "newest_seen": seen,
        "newest_whole": newest(whole),
    }


def one_run(number: int, seed: int, updates: int, work: Path, length: float, rng: random.Random) -> tuple[dict, list]:
    """Start a run, kill and resume it until it ends; how it ended, and its kills.

    `length` is how long a run lasts here, in seconds: random moments are drawn from it.
    """
    folder = work / f"run{number:03d}"
    log, planned = folder.with_name(folder.name + ".log"), rng.randint(1, MOST_KILLS)
    while True:  # until at least one kill came in time
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        kills, resumes, left = [], [], length
        aim = rng.random() < 0.5
        while True:
            child = fork(lambda: train(folder, seed, updates), log)
            done = False
            if len(kills) < planned:
                # A save lasts a few hundredths of a second; a little more also hits what comes right after it.
                at_save = rng.randint(1, max(1, round(updates * left / length))) if aim else None
                moment = rng.uniform(0, 0.04) if aim else rng.uniform(0, left)
                killed = kill(child, folder, moment, at_save)
                done = killed is None
            else:
                while not ended(child):
                    time.sleep(0.01)
                done = True
            # A child that was killed before it had loaded anything wrote no note.
            note = folder.with_name(folder.name + "-start.json")
            start = json.loads(note.read_text()) if note.exists() else None
            note.unlink(missing_ok=True)
            resumes.append(start)
            if done:
                break
            kills.append({"run": number, "seed": seed, "kill": len(kills) + 1, **killed})
            left = max(0.5, length * (1 - max(killed["newest_whole"], 0) / updates))
            aim = not aim
        if kills:
            break
    # The start that followed a kill says where it went on; one that died too early says nothing and loaded nothing.
    for row, start in zip(kills, resumes[1:], strict=True):
        row["resumed_from"] = start["from"] if start else row["newest_whole"]
        row["died_again_before_loading"] = int(start is None)
        row["passed_over"] = len(start["passed_over"]) if start else 0
    return {"run": number, "seed": seed, "kills": len(kills)}, kills


def outcome(folder: Path, updates: int) -> dict:
    """What a finished run left, apart from times, its own name and its folder's."""
    name = checkpoint.name_of(updates)
    state = checkpoint.load_checkpoint(folder / "checkpoints" / name)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("eps", None)
    history = [{k: v for k, v in row.items() if k != "eps"} for row in checkpoint.rows_of(state.pop("history"))]
    weights = {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("model/**/*.safetensors"))}
    best = {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("best/**/*.safetensors"))}
    state.pop("run_id")
    state["config"].pop("output_dir")
    return {"weights": weights, "best": best, "metrics": rows, "history": history, "state": state}


def same(a, b) -> bool:
    """Equality to the last bit of nested states."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a and b != b)


def summarise(runs: list[dict], kills: list[dict], planned: int, updates: int, facts: dict) -> dict:
    loaded = [row for row in kills if not row["died_again_before_loading"]]
    return {
        "runs": len(runs),
        "runs_planned": planned,
        "runs_resumed_to_the_end": sum(run["finished"] for run in runs),
        "weights_identical": sum(run["weights_identical"] for run in runs),
        "best_weights_identical": sum(run["best_identical"] for run in runs),
        "metrics_identical": sum(run["metrics_identical"] for run in runs),
        "whole_state_identical": sum(run["state_identical"] for run in runs),
        "kills": len(kills),
        "kills_aimed_at_a_save": sum(row["aimed_at_save"] for row in kills),
        "kills_while_writing_a_checkpoint": sum(row["while_writing"] for row in kills),
        "kills_while_removing_an_old_one": sum(row["while_removing"] for row in kills),
        "kills_before_the_first_checkpoint": sum(row["newest_whole"] == NONE for row in kills),
        "broken_checkpoints_loaded": sum(row["resumed_from"] != row["newest_whole"] for row in loaded),
        "last_good_ones_lost": sum(row["newest_whole"] < row["newest_seen"] for row in kills),
        "updates": updates,
        "settings": SETTINGS,
        "seeds": SEEDS,
        **facts,
    }


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--results", type=Path, default=RESULTS / "kill_and_resume")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "kill_and_resume")
    arguments = parser.parse_args(argv)
    results, work, updates = arguments.results, arguments.work, arguments.updates
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    runs, kills, facts = [], [], provenance("accelerate")
    if (results / "summary.json").exists():
        runs, kills = read_csv(results / "runs.csv"), read_csv(results / "kills.csv")
        stored = json.loads((results / "summary.json").read_text())
        facts = {name: stored[name] for name in facts}
    references: dict[int, tuple[dict, float]] = {}
    for number in range(len(runs), arguments.runs):
        seed = number % min(SEEDS, arguments.runs)
        if seed not in references:
            folder = work / f"whole{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            start = time.perf_counter()
            child = fork(lambda: train(folder, seed, updates), folder.with_suffix(".log"))  # noqa: B023
            while not ended(child):
                time.sleep(0.01)
            references[seed] = outcome(folder, updates), time.perf_counter() - start
        whole, length = references[seed]
        run, killed = one_run(number, seed, updates, work, length, random.Random(f"{arguments.seed} {number}"))
        end = outcome(work / f"run{number:03d}", updates)
        run["finished"] = int(len(end["history"]) == updates)
        run["weights_identical"] = int(bool(end["weights"]) and end["weights"] == whole["weights"])
        run["best_identical"] = int(end["best"] == whole["best"])
        run["metrics_identical"] = int(
            same(end["metrics"], whole["metrics"]) and same(end["history"], whole["history"])
        )
        run["state_identical"] = int(same(end["state"], whole["state"]))
        runs.append(run)
        kills += killed
        summary = summarise(runs, kills, arguments.runs, updates, facts)
        write_json(results / "summary.json", summary)
        write_csv(results / "runs.csv", runs)
        write_csv(results / "kills.csv", kills)
        print(run, [row["updates_logged"] for row in killed], flush=True)
        if run["weights_identical"] and run["metrics_identical"] and run["state_identical"]:
            shutil.rmtree(work / f"run{number:03d}")  # a run that went wrong is kept, to be looked at
    print(json.dumps(summary, indent=1), flush=True)
    return summary


if __name__ == "__main__":
    main()
