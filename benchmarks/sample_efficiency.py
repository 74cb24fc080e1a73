"""How many generated tokens does a run need to reach an objective? Replay against tuned on-policy PPO.

    python benchmarks/sample_efficiency.py tune      # every family tries settings, on tuning seeds
    python benchmarks/sample_efficiency.py run       # the best of them, frozen, on fresh seeds
    python benchmarks/sample_efficiency.py ablate    # replay without one of its parts, on some of these seeds
    python benchmarks/sample_efficiency.py evaluations   # CPU seconds of one evaluation
    python benchmarks/sample_efficiency.py analyse   # every table from the stored runs, in seconds
    python benchmarks/sample_efficiency.py repeat sparse replay 110     # one stored run again, and compared

The objective is score − β·KL on 64 held-out prompts, always judged by the world's own reward, each EVERY responses.
`tune`, `run` and `ablate` add each finished run to a file and go on where they were killed.

Costs are generated tokens, optimiser steps, CPU seconds of one thread (the machine may be busy: its clock would tell
nothing), and those of them that went into generation. Only the column `cpu` has the evaluations in it; `evaluations`
measures what one of them takes, and the tables take it out again.
"""

import argparse
import contextlib
import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from efficiency_tables import ARMS, analyse
from record import RESULTS, Curves, add_line, provenance, read_lines, write_json

from ppo_lib import ppo_v1, ppo_v2, worlds
from ppo_lib.config import REPLAY_SETTINGS, ReplayConfig
from ppo_lib.data import PPODataset
from ppo_lib.estimators import kl_k1
from ppo_lib.ppo import Metrics
from ppo_lib.rollout import Rollout
from ppo_lib.worlds import reviews

FOLDER = RESULTS / "sample_efficiency"
EVERY = 32  # generated responses between evaluations
TUNING_SEEDS = (1, 2, 3)  # all tries run on the first, the best of them on the others too
SEEDS = tuple(range(110, 120))  # seen by no tuning; earlier comparisons had 100 to 109
ABLATION_SEEDS = SEEDS[:5]
VARIED = {"ppo": 6, "naive": 3, "replay": 3, "grpo": 0}  # tried again with another λ; GRPO has none
WIDE = {"ppo": 24, "naive": 0, "replay": 24, "grpo": 0}  # drawn from a wider grid
IMPROVED = 4  # of replay's settings are tried with what came last: PPO and replay try 54 settings each
FINALISTS = {"ppo": 12, "naive": 2, "replay": 6, "grpo": 2}  # tried on all tuning seeds
HEALTH = {"reuse": "efficiency/reuse_ratio", "ess": "replay/ess", "distance": "replay/kl", "age": "replay/batch_age",
          "held": "replay/size"}  # fmt: skip
COLUMNS = ("responses", "tokens", "steps", "objective", "score", "kl", "entropy", "cpu", "generating", *HEALTH)
NO_REPLAY = {"reuse": 1.0, "ess": 1.0, "distance": 0.0, "age": 0.0, "held": 0}


@dataclass(frozen=True)
class Task:
    """What is to be learned: a world, whether its learned proxy is the reward, and how long runs are."""

    world: str
    episodes: int  # of a final run
    tuning_episodes: int
    learning_rates: tuple[float, ...]  # that every family tries
    proxy: bool = False
    tuned_on: str | None = None  # the task whose frozen settings it takes; None tunes its own


TASKS = {
    "dense": Task("reviews", 640, 480, (5e-4, 1e-3, 2e-3)),
    "sparse": Task("reviews-sparse", 960, 640, (5e-4, 1e-3, 2e-3)),
    "sums": Task("sums", 800, 480, (1e-4, 3e-4, 1e-3)),
    "proxy": Task("reviews", 640, 480, (5e-4, 1e-3, 2e-3), proxy=True, tuned_on="dense"),
}


class GRPOTrainer(ppo_v1.PPOTrainer):
    """Group-relative advantages in place of a critic (Shao et al. 2024, arXiv 2402.03300); KL stays in the reward."""

    def assign_credit(self, rollout: Rollout) -> None:
        super().assign_credit(rollout)
        scores = rollout.scores.view(-1, self.config.group_size)
        relative = (scores - scores.mean(dim=1, keepdim=True)) / (scores.std(dim=1, keepdim=True) + 1e-4)
        kl = kl_k1(rollout.logprobs, rollout.ref_logprobs).masked_fill(~rollout.mask, 0.0)
        still_to_pay = kl.flip(1).cumsum(dim=1).flip(1)
        advantages = relative.flatten()[:, None] - self.kl_coef * still_to_pay
        rollout.advantages = advantages.masked_fill(~rollout.mask, 0.0)


class Meter:
    """Beside a trainer class: counts what its run costs, evaluations in `cpu` alone, and the rehearsal nowhere."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.cost = {"tokens": 0, "steps": 0, "cpu": 0.0, "generating": 0.0}
        self.health = NO_REPLAY

    def respond(self, *arguments, **keywords) -> Rollout:
        start = time.process_time()
        rollout = super().respond(*arguments, **keywords)
        self.cost["generating"] += time.process_time() - start
        self.cost["tokens"] += int(rollout.mask.sum())
        return rollout

    def step(self, minibatch: Rollout) -> Metrics:
        self.cost["steps"] += 1
        return super().step(minibatch)

    def train_step(self, prompts: list[str]) -> tuple[Metrics, Rollout]:
        start = time.process_time()
        metrics, rollout = super().train_step(prompts)
        self.cost["cpu"] += time.process_time() - start
        self.health = {name: metrics.get(metric, NO_REPLAY[name]) for name, metric in HEALTH.items()}
        return metrics, rollout

    def rehearse(self, dataset: PPODataset) -> None:
        with self.uncounted():
            super().rehearse(dataset)

    def evaluate_at(self, update: int) -> Metrics:
        with self.uncounted():
            return super().evaluate_at(update)

    @contextlib.contextmanager
    def uncounted(self):
        cost = dict(self.cost)
        yield
        self.cost = cost


FAMILIES = {
    "ppo": ppo_v1.PPOTrainer,
    "grpo": GRPOTrainer,
    "naive": ppo_v2.PPOTrainerWithReplay,
    "replay": ppo_v2.PPOTrainerWithReplay,
}


def train(
    task: Task, family: str, settings: dict, seed: int, every: int | None = None, meter: type = Meter
) -> list[dict]:
    """One run: a row for each evaluation, the first before any update; they are EVERY responses apart, or `every`."""
    torch.set_num_threads(1)
    world = worlds.load(task.world)
    settings = {"total_episodes": task.episodes, "seed": seed, "device": "cpu", "response_logits_only": True} | settings
    rollout = settings["batch_size"] * settings.get("group_size", 1)
    trainer_class = type(FAMILIES[family].__name__, (meter, FAMILIES[family]), {})
    trainer = trainer_class(
        task.world,
        reviews.load_reward_model() if task.proxy else world.reward,
        eval_reward=world.reward,
        eval_every=max((every or EVERY) // rollout, 1),
        eval_samples=0,
        **settings,
    )
    rows = []

    def note(metrics: Metrics, cost: dict, health: dict) -> None:
        rows.append({
            "responses": metrics["update"] * rollout, **cost, **health,
            "objective": metrics["eval/score"] - trainer.config.kl_coef * metrics["eval/kl"],
            "score": metrics["eval/score"], "kl": metrics["eval/kl"], "entropy": metrics["eval/entropy"],
        })  # fmt: skip

    def callback(trainer, rollout, metrics) -> None:
        if "eval/score" in metrics:
            note(metrics, trainer.cost, trainer.health)

    trainer.train(world.prompts, world.heldout_prompts, callback)
    note(trainer.evaluations[0] | {"update": 0}, dict.fromkeys(trainer.cost, 0), NO_REPLAY)
    return [rows[-1], *rows[:-1]]


SAMPLING = {  # which earlier responses are replayed
    "recent": {"replay_recency": 4.0},
    "telling": {
        "replay_recency": None,
        "replay_priority": 1.0,
        "replay_priority_correction": 0.5,
        "replay_keep_best": 0.05,
    },
}


def candidates(family: str, task: Task) -> list[dict]:
    """The settings that a family tries on a task first. On-policy PPO tries three times as many as any other."""
    rates, whiten = task.learning_rates, (True, False)
    if family == "ppo":
        grid = (
            {"num_ppo_epochs": e, "learning_rate": lr, "batch_size": b, "minibatch_size": b, "whiten_advantages": w}
            for e, lr, b, w in itertools.product((1, 2, 4, 8), rates, (8, 16, 32), whiten)
        )
        return drawn(24, grid)
    if family == "grpo":
        grid = (
            {"num_ppo_epochs": e, "learning_rate": lr, "batch_size": b, "group_size": g, "whiten_advantages": False}
            for e, lr, (b, g) in itertools.product((1, 2, 4), rates, ((4, 8), (8, 4)))
        )
        return drawn(8, grid)
    correction = "none" if family == "naive" else "decoupled"
    grid = (
        {"batch_size": 8, "replay_sample_size": n, "minibatch_size": 8 + n, "learning_rate": lr,
         "whiten_advantages": w, "correction": correction, **sampling}
        for n, lr, w, sampling in itertools.product((24, 56), rates, whiten, SAMPLING.values())
    )  # fmt: skip
    return drawn(8, grid)


def wide(family: str, task: Task) -> list[dict]:
    """Points of a grid that also varies what the first one holds fixed, learning rates beyond its edges included."""
    rates = (task.learning_rates[0] / 2, *task.learning_rates, task.learning_rates[-1] * 2)
    common = itertools.product((2, 4, 8), rates, (8, 16, 32), (0.95, 1.0), (True, False))
    names = ("num_ppo_epochs", "learning_rate", "batch_size", "lam", "whiten_advantages")
    shared = [dict(zip(names, values, strict=True)) for values in common]
    if family == "ppo":
        grid = (
            s | {"minibatch_size": s["batch_size"] // parts, "cliprange": clip}
            for s, parts, clip in itertools.product(shared, (1, 2), (0.2, 0.3))
        )
    else:
        grid = (
            s | {"replay_sample_size": times * s["batch_size"],
                 "minibatch_size": (1 + times) * s["batch_size"] // parts,
                 "replay_recency": recency, "replay_keep_best": kept, "max_replay_reuse": reuse}
            for s, times, parts, recency, kept, reuse in itertools.product(
                shared, (1, 3), (1, 2), (2.0, 8.0, None), (0.0, 0.05), (2, 8)
            )
        )  # fmt: skip
    return drawn(WIDE[family], grid)


def drawn(tries: int, grid: Iterable[dict]) -> list[dict]:
    """So many points of a grid, the same ones each time."""
    points = list(grid)
    random.Random(0).shuffle(points)
    return points[:tries]


# What the frozen replay settings of a task are changed by, one thing at a time.
ABLATIONS = {
    "no replay": {"replay_sample_size": 0},
    "half the replay": lambda s: {"replay_sample_size": s["replay_sample_size"] // 2},
    "no correction": {"correction": "none"},
    "coupled clip": {"correction": "coupled"},
    "C = 1": {"importance_cap": 1.0},
    "sequence weights": {"importance_level": "sequence"},
    "second-moment mask": {"second_moment_limit": 0.04},
    "uniform": {"replay_recency": None, "replay_priority": 0.0, "replay_keep_best": 0.0},
    "recency": SAMPLING["recent"] | {"replay_priority": 0.0, "replay_keep_best": 0.0},
    "priority": {"replay_recency": 8.0, "replay_priority": 1.0, "replay_keep_best": 0.0},
    "keep the best": {"replay_recency": None, "replay_priority": 0.0, "replay_keep_best": 0.05},
    "reuse at most 2": {"max_replay_reuse": 2},
    "gains only": {"replay_gains_only": True},
    "gains and losses": {"replay_gains_only": False},
    "spaced": {"replay_spacing": 3},
    "not spaced": {"replay_spacing": 0},
    "fading": {"replay_anneal": 0.5},
    "one epoch": {"num_ppo_epochs": 1},
}
ABLATED = ("sparse", "dense")


def frozen() -> dict[str, dict[str, dict]]:
    """The settings of every arm on every task, chosen by `tune`: task → arm → settings."""
    path = FOLDER / "frozen.json"
    if not path.exists():
        raise SystemExit(f"{path} is not there: run `python benchmarks/sample_efficiency.py tune` first")
    return json.loads(path.read_text())["settings"]


def has_arm(task_name: str, name: str) -> bool:
    """Whether the arm is run on this task."""
    if name == "runner-up":  # there is none after a tuning with a single finalist
        return name in frozen()[TASKS[task_name].tuned_on or task_name]
    return name != "naive" or task_name in ABLATED


def arm(task_name: str, name: str) -> tuple[str, dict]:
    """The family and settings of an arm or ablation, from the frozen ones."""
    chosen = frozen()[TASKS[task_name].tuned_on or task_name]
    if name in FAMILIES:
        return name, chosen[name]
    if name == "runner-up":  # PPO's second best: was the best a lucky choice, or an unlucky one?
        return "ppo", chosen[name]
    replay = chosen["replay"]
    if name == "same":  # v1 with the settings of replay and one epoch
        return "ppo", without_replay(replay)
    change = ABLATIONS[name](replay) if callable(ABLATIONS[name]) else ABLATIONS[name]
    settings = replay | change
    fits = settings["batch_size"] + settings["replay_sample_size"]
    return "replay", settings | {"minibatch_size": min(settings["minibatch_size"], fits)}


def without_replay(settings: dict) -> dict:
    """Replay's settings as far as v1 has them, and one epoch."""
    shared = {key: value for key, value in settings.items() if key not in REPLAY_SETTINGS}
    return shared | {"minibatch_size": settings["batch_size"], "num_ppo_epochs": 1}


def whole(settings: dict) -> dict:
    """The settings with the defaults of all others."""
    return dataclasses.asdict(ReplayConfig(**settings))


def work(job: tuple) -> tuple[tuple, list[dict]]:
    """A job in a worker process: (key, task name, episodes, family, settings, seed) → its key and curve."""
    key, task_name, episodes, family, settings, seed = job
    return key, train(TASKS[task_name], family, settings | {"total_episodes": episodes}, seed)


def in_parallel(jobs: list[tuple], workers: int, by=None):
    """The results of `work`, or of another function, as they come."""
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=16) as pool:
        for done, (key, curve) in enumerate(pool.imap_unordered(by or work, jobs), 1):
            print(f"{done}/{len(jobs)} {key}: last objective {curve[-1]['objective']:.3f}", flush=True)
            yield key, curve


# Replay has more settings than a grid can hold. What else it tries, each a change to its best so far on a task:
NEARBY = (
    {"num_ppo_epochs": 8}, {"batch_size": 4, "replay_sample_size": 60, "minibatch_size": 64},
    {"replay_recency": 16.0}, {"max_replay_reuse": 32, "staleness_threshold": 64}, {"importance_cap": 1.0},
    {"cliprange": 0.3}, {"min_ess": 0.0},
)  # fmt: skip


# What was thought of last: learning from the gains of old responses alone, and rest between two uses.
LAST_IDEAS = (
    {"replay_gains_only": True}, {"replay_gains_only": True, "replay_spacing": 3}, {"replay_spacing": 3},
)  # fmt: skip


def tries_of(stage: str, family: str, task: Task, tried: list[dict]) -> list[dict]:
    """The settings to run in a stage of the tuning, from what the family's earlier ones have shown.

    "first": points of a grid. "varied": the best of them with λ = 1 in GAE. "nearby": for replay alone, one change at
    a time to its best. "wide": points of a wider grid. "last ideas": for replay alone, changes to its four best. PPO
    and replay try 54 settings each. "finalists": the best on further seeds.
    """
    tried = sorted((r for r in tried if r["seed"] == TUNING_SEEDS[0]), key=lambda row: row["mean"], reverse=True)
    first = candidates(family, task)
    varied = [row["settings"] | {"lam": 1.0} for row in tried if row["settings"] in first][: VARIED[family]]
    if stage == "first":
        return first
    if stage == "varied":
        return varied
    if stage == "nearby":
        best = [row["settings"] for row in tried if row["settings"] in first + varied]
        return [best[0] | change for change in NEARBY] if family == "replay" else []
    if stage == "wide":
        return wide(family, task) if WIDE[family] else []
    if stage == "last ideas":
        best = [row["settings"] for row in tried if not row["settings"].keys() & LAST_IDEAS[1].keys()][:IMPROVED]
        return [one | change for one in best for change in LAST_IDEAS] if family == "replay" else []
    return [row["settings"] for row in tried[: FINALISTS[family]]]


def tune(arguments) -> None:
    """Tries on the first tuning seed, the best of them on the others; the best mean objective is frozen."""
    path = FOLDER / "tuning.jsonl"
    names = [name for name in arguments.tasks if not TASKS[name].tuned_on]
    for stage in ("first", "varied", "nearby", "wide", "last ideas", "finalists"):
        tried = read_lines(path)
        jobs = []
        for name, family in itertools.product(names, FAMILIES):
            mine = [row for row in tried if (row["task"], row["family"]) == (name, family)]
            seeds = TUNING_SEEDS[1:] if stage == "finalists" else TUNING_SEEDS[:1]
            for settings, seed in itertools.product(tries_of(stage, family, TASKS[name], mine), seeds):
                if not any(row["settings"] == settings and row["seed"] == seed for row in mine):
                    key = (name, family, seed, json.dumps(settings))
                    jobs.append((key, name, TASKS[name].tuning_episodes, family, settings, seed))
        random.Random(0).shuffle(jobs)  # whatever is slow or busy falls on all families alike
        for (name, family, seed, settings), curve in in_parallel(jobs, arguments.workers):
            mean = sum(row["objective"] for row in curve) / len(curve)
            row = {"task": name, "family": family, "seed": seed, "mean": round(mean, 4)}
            row |= {"objective": [round(r["objective"], 3) for r in curve], "settings": json.loads(settings)}
            add_line(path, row)
    freeze(read_lines(path))


def freeze(tried: list[dict]) -> None:
    """Write down, for each task and family, the settings with the best mean over all tuning seeds."""
    runs, means, chosen = {}, {}, {}
    for row in tried:
        runs.setdefault(row["task"], Counter())[row["family"]] += 1
        key = (row["task"], row["family"], json.dumps(row["settings"]))
        means.setdefault(key, []).append(row["mean"])
    for (task, family, settings), found in sorted(means.items(), key=lambda item: statistics.fmean(item[1])):
        if len(found) == len(TUNING_SEEDS):
            of_task = chosen.setdefault(task, {})
            if family == "ppo" and family in of_task:
                of_task["runner-up"] = of_task[family]
            of_task[family] = json.loads(settings)  # the best comes last
    write_json(FOLDER / "frozen.json", {"settings": chosen, "tuning_runs": runs, **provenance("scipy")})


def run(arguments) -> None:
    """Every arm on fresh seeds."""
    add_curves([(t, a, s) for s in SEEDS for t in arguments.tasks for a in ARMS if has_arm(t, a)], arguments)


def ablate(arguments) -> None:
    """Replay without one of its parts, or with another in its place, for as long as a run of the tuning."""
    add_curves(
        [(t, a, s) for t in ABLATED if t in arguments.tasks for a in ABLATIONS for s in ABLATION_SEEDS], arguments
    )


def add_curves(keys: list[tuple[str, str, int]], arguments) -> None:
    """Train what is not there yet of (task, arm, seed); a curve is added to curves.csv as soon as its run is over."""
    curves, jobs = Curves(FOLDER / "curves.csv", ("task", "arm", "seed"), COLUMNS), []
    for key in curves.lacking(keys):
        task_name, name, seed = key
        family, settings = arm(task_name, name)
        changes_nothing = name in ABLATIONS and whole(settings) == whole(arm(task_name, "replay")[1])
        if not changes_nothing:
            task = TASKS[task_name]
            episodes = task.tuning_episodes if name in ABLATIONS else task.episodes
            jobs.append((key, task_name, episodes, family, settings, seed))
    for key, curve in in_parallel(jobs, arguments.workers):
        curves.add(key, map(stored, curve))
    write_json(FOLDER / "runs.json", {"settings": frozen(), **provenance("scipy")})


def evaluations(arguments) -> None:
    """Write down how many CPU seconds an evaluation takes on each task, the least of nine."""
    torch.set_num_threads(1)
    found = {}
    for name, task in TASKS.items():
        world, times = worlds.load(task.world), []
        trainer = ppo_v1.PPOTrainer(task.world, world.reward, device="cpu", eval_samples=0, response_logits_only=True)
        trainer.eval_dataset = PPODataset(world.heldout_prompts)
        for _ in range(10):
            start = time.process_time()
            trainer.evaluate_at(0)
            times.append(time.process_time() - start)
        found[name] = round(min(times[1:]), 4)  # whatever else the machine does only adds
    write_json(FOLDER / "evaluations.json", {"cpu_seconds": found, **provenance()})
    print(found)


def stored(row: dict) -> list:
    """A row of a curve as it is written: 5 significant digits."""
    return [f"{row[name]:.5g}" if isinstance(row[name], float) else row[name] for name in COLUMNS]


def repeat(arguments) -> None:
    """Run one stored run again and compare its curve, all columns but the CPU times, with the stored one."""
    task_name, name, seed = arguments.run[0], arguments.run[1], int(arguments.run[2])
    with open(FOLDER / "curves.csv", newline="", encoding="utf-8") as file:
        was = [r for r in csv.DictReader(file) if (r["task"], r["arm"], r["seed"]) == (task_name, name, str(seed))]
    if not was:
        raise SystemExit(f"there is no stored run {task_name} {name} {seed}")
    family, settings = arm(task_name, name)
    now = train(TASKS[task_name], family, settings | {"total_episodes": int(was[-1]["responses"])}, seed)
    same = [name for name in COLUMNS if name not in ("cpu", "generating")]
    differing = {
        column
        for old, new in zip(was, now, strict=True)
        for column, value in zip(COLUMNS, stored(new), strict=True)
        if column in same and old[column] != str(value)
    }
    if differing:
        print(f"differs from the stored run in {', '.join(sorted(differing))}: another machine or version rounds apart")
        raise SystemExit(1)
    print(f"{len(now)} evaluations, equal to the stored ones in {', '.join(same)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {
        "tune": tune,
        "run": run,
        "ablate": ablate,
        "evaluations": evaluations,
        "analyse": lambda _: analyse(FOLDER),
        "repeat": repeat,
    }
    parser.add_argument("command", choices=commands)
    parser.add_argument("run", nargs="*", metavar="TASK ARM SEED", help="for `repeat`")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="all but `analyse` and `repeat`")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    if arguments.command == "repeat" and len(arguments.run) != 3:
        parser.error("repeat takes a task, an arm and a seed")
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
