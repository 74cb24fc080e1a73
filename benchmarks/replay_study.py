"""Replay against the strongest on-policy PPO that a search finds: the second study, by a protocol written before it.

    python benchmarks/replay_study.py tune       # successive halving of both families' settings, on tuning seeds
    python benchmarks/replay_study.py run        # the best of each, frozen, on seeds that chose nothing
    python benchmarks/replay_study.py analyse    # every table from the stored runs, in seconds

The protocol is `replay_study.md`, beside this file. `tune` and `run` add each finished run to a file and go on where
they were stopped; a run's random numbers are of its task, arm and seed, so no two arms share a draw of luck.
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import sample_efficiency
import torch
from efficiency_tables import reached, read_curves, rounded, until_horizon, with_dearer_generation
from record import RESULTS, Curves, add_line, provenance, read_lines, write_json
from sample_efficiency import COLUMNS, TASKS, Meter, Task, in_parallel, stored
from scipy import stats

from ppo_lib.config import PPOConfigV1, ReplayConfig
from ppo_lib.estimators import kl_k1
from ppo_lib.lab.efficiency import collapsed
from ppo_lib.ppo import Metrics
from ppo_lib.rewards import score_responses

FOLDER = RESULTS / "replay_study"
FAMILIES = ("ppo", "replay")
EVERY = {"tuning": 16, "report": 8}  # generated responses between evaluations, or a rollout, if that is more
# Successive halving: so many settings stay, each with all seeds up to this one.
ROUNDS = ((40, 1), (12, 3), (4, 8))
SEEDS = tuple(range(200, 220))
MORE_SEEDS = {"sparse": tuple(range(200, 230))}
# Arm → whose settings. The last two are controls: the same settings on other random numbers.
ARMS = {"ppo": "ppo", "replay": "replay", "twin": "ppo", "reshuffle": "replay"}
AGAINST = {"ppo": "ppo", "replay": "ppo", "twin": "ppo", "reshuffle": "replay"}
# Settings of a run that `sample_efficiency.train` gives, or that change nothing about what is learned.
OF_THE_RUN = {"model", "output_dir", "seed", "device", "total_episodes", "response_logits_only", "eval_every",
              "eval_samples", "report_to", "project", "wandb_mode", "save_every", "keep_last"}  # fmt: skip
SHARES = (50, 75, 90, 100)  # thresholds, in percent of what arm `ppo` gains
LAST = 160  # responses whose mean objective is the end of a run
GENERATING_SHARES = (20, 60, 90)  # percent of arm ppo's time that generation is made to take

Runs = dict[int, list[dict]]  # seed → the rows of its curve


class Judge(Meter):
    """A `Meter` whose evaluations are sampled at temperature 1, whatever the run's own is, and cost nothing."""

    def evaluate_at(self, update: int) -> Metrics:
        start, heat = time.process_time(), self.config.temperature
        self.config.temperature = 1.0
        with self.uncounted(), torch.no_grad():
            rollout = self.respond(self.eval_dataset.prompts, torch.Generator().manual_seed(self.config.seed))
            scores = score_responses(self.eval_reward, rollout.prompts, rollout.responses)
            kl = kl_k1(rollout.logprobs, self.reference_logprobs(rollout)).masked_fill(~rollout.mask, 0.0)
        self.config.temperature = heat
        if update:  # within `train_step`, which counts its whole time
            self.cost["cpu"] -= time.process_time() - start
        metrics = {
            "eval/score": scores.mean().item(),
            "eval/kl": kl.sum(dim=1).mean().item(),
            "eval/entropy": -rollout.logprobs.masked_fill(~rollout.mask, 0.0).sum(dim=1).mean().item(),
        }
        self.evaluations.append({"update": update, **metrics})
        return metrics


# The space that both families are tried in, and what replay has besides. A value that comes twice is drawn as often.
SHARED = {
    "num_ppo_epochs": (1, 2, 4, 8),
    "batch_size": (8, 16, 32),
    "parts": (1, 2),  # optimiser steps of a pass
    "lam": (0.95, 1.0),
    "whiten_advantages": (True, False),
    "cliprange": (0.2, 0.3),
    "cliprange_high": (None, 0.4),
    "kl_stop": (None, 0.02, 0.1),
    "lr_scheduler": ("constant", "linear"),
    "critic_warmup": (0, 4),
    "policy_objective": ("clip", "regression"),
    "regression_scale": (0.25, 0.5, 1.0),
    "regression_floor": (0.2, 0.3),
    "heat": (None, None, 1.2, 1.4),  # PPO: `temperature`; replay: `behaviour_temperature`
}
OF_REPLAY = {
    "times": (1, 3, 7),  # replayed responses for each fresh one
    "replay_recency": (2.0, 8.0, None),
    "replay_keep_best": (0.0, 0.05),
    "max_replay_reuse": (2, 8),
    "replay_gains_only": (False, True),
    "replay_spacing": (0, 3),
    "min_ess": (0.0, 0.1),
}
# What was seen to be good before: the best of the first study's tuning, and the trials that led to this one.
EARLIER = 4  # settings of the first study's tuning, the best of the family
REGRESSION = {"policy_objective": "regression", "regression_floor": 0.3}
TRIALS = {
    "ppo": (
        {"kl_stop": 0.05}, {"lr_scheduler": "linear"}, REGRESSION | {"regression_scale": 0.5},
        REGRESSION | {"regression_scale": 1.0}, {"critic_warmup": 4}, {"cliprange_high": 0.4},
    ),
    "replay": (
        REGRESSION | {"regression_scale": 0.5, "replay_gains_only": False, "replay_spacing": 0},
        REGRESSION | {"regression_scale": 1.0, "replay_gains_only": False, "replay_spacing": 0},
        REGRESSION | {"regression_scale": 0.5, "behaviour_temperature": 1.4},
        REGRESSION | {"regression_scale": 0.25, "batch_size": 8, "replay_sample_size": 24, "minibatch_size": 32,
                      "max_replay_reuse": 8},
        {"behaviour_temperature": 1.4}, {"lr_scheduler": "linear"},
    ),
}  # fmt: skip


def candidates(name: str, family: str) -> list[dict]:
    """The settings that enter the first round on a task: earlier good ones, changes to the best of them, and draws."""
    tuned = rows_of(read_lines(sample_efficiency.FOLDER / "tuning.jsonl"), name, family)
    known = survivors(tuned, EARLIER, len(sample_efficiency.TUNING_SEEDS))
    found = [*known, *(known[0] | change for change in TRIALS[family])]
    points = draws(TASKS[name], family, random.Random(f"{name} {family}"))
    while len(found) < ROUNDS[0][0]:
        settings = next(points)
        if settings not in found:
            found.append(settings)
    return found


def rows_of(rows: list[dict], name: str, family: str) -> list[dict]:
    """Those of a tuning that are a family's on a task."""
    return [row for row in rows if (row["task"], row["family"]) == (name, family)]


def draws(task: Task, family: str, chance: random.Random) -> Iterator[dict]:
    """Points of the space, at random; those that make no update are left out."""
    rates = (task.learning_rates[0] / 2, *task.learning_rates, task.learning_rates[-1] * 2)
    space = SHARED | {"learning_rate": rates} | (OF_REPLAY if family == "replay" else {})
    while True:
        point = {name: chance.choice(values) for name, values in space.items()}
        heat, times, parts = point.pop("heat"), point.pop("times", 0), point.pop("parts")
        fresh = point["batch_size"]
        if (1 + times) * fresh > 128:
            continue
        point["minibatch_size"] = (1 + times) * fresh // parts
        if family == "replay":
            point |= {"replay_sample_size": times * fresh, "behaviour_temperature": heat}
        elif heat:
            point["temperature"] = heat
        if point["policy_objective"] == "clip":
            del point["regression_scale"], point["regression_floor"]
        else:
            del point["cliprange"], point["cliprange_high"]
        yield point


def means_of(rows: list[dict], seeds: int) -> dict[str, float]:
    """Settings, as JSON → their mean objective over the first `seeds` seeds; those that ran on all of them."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["seed"] <= seeds:
            found.setdefault(json.dumps(row["settings"]), {})[row["seed"]] = row["mean"]
    return {key: statistics.fmean(by_seed.values()) for key, by_seed in found.items() if len(by_seed) == seeds}


def survivors(rows: list[dict], number: int, seeds: int) -> list[dict]:
    """The best `number` of those that ran on the first `seeds` seeds, the best first."""
    means = means_of(rows, seeds)
    return [json.loads(key) for key in sorted(means, key=means.__getitem__, reverse=True)[:number]]


def tune(arguments) -> None:
    path, before = FOLDER / "tuning.jsonl", 0
    names = [name for name in arguments.tasks if not TASKS[name].tuned_on]
    for number, seeds in ROUNDS:
        tried, jobs = read_lines(path), []
        for name, family in itertools.product(names, FAMILIES):
            mine = rows_of(tried, name, family)
            settings = survivors(mine, number, before) if before else candidates(name, family)
            done = {(json.dumps(row["settings"]), row["seed"]) for row in mine}
            for one, seed in itertools.product(settings, range(1, seeds + 1)):
                if (json.dumps(one), seed) not in done:
                    jobs.append(((name, family, json.dumps(one), seed), name, family, one, seed, "tuning"))
        random.Random(0).shuffle(jobs)  # whatever is slow or busy falls on all families alike
        for (name, family, settings, seed), curve in in_parallel(jobs, arguments.workers, work):
            row = {"task": name, "family": family, "seed": seed}
            row |= {"mean": round(mean_of(curve), 4), "tokens": curve[-1]["tokens"]}
            row |= {"end": round(curve[-1]["objective"], 3), "cpu": round(curve[-1]["cpu"], 1)}
            add_line(path, row | {"settings": json.loads(settings)})
        before = seeds
    freeze(read_lines(path))


def work(job: tuple) -> tuple[tuple, list[dict]]:
    """A job in a worker process: (key, task name, family, settings, seed, stage) → its key and curve."""
    key, name, family, settings, seed, stage = job
    task = TASKS[name]
    episodes = task.episodes if stage == "report" else task.tuning_episodes
    luck = zlib.crc32(f"{stage} {name} {key[1]} {seed}".encode())  # in a report `key[1]` is the arm
    settings = settings | {"total_episodes": episodes}
    return key, sample_efficiency.train(task, family, settings, luck, EVERY[stage], Judge)


def freeze(rows: list[dict]) -> None:
    """Write down, for each task and family, the settings with the best mean over all tuning seeds."""
    chosen: dict[str, dict] = {}
    for name, family in sorted({(row["task"], row["family"]) for row in rows}):
        mine = rows_of(rows, name, family)
        best = survivors(mine, 1, ROUNDS[-1][1])
        if best:
            mean = means_of(mine, ROUNDS[-1][1])[json.dumps(best[0])]
            chosen.setdefault(name, {})[family] = {"settings": best[0], "mean": round(mean, 4), "runs": len(mine)}
    defaults = {family: others(family) for family in FAMILIES}
    write_json(FOLDER / "frozen.json", {"chosen": chosen, "defaults": defaults, **provenance("scipy")})


def others(family: str) -> dict:
    """The defaults of a family's settings that say how it learns: frozen too, for a default may change."""
    config = {"ppo": PPOConfigV1, "replay": ReplayConfig}[family]
    return {name: value for name, value in dataclasses.asdict(config()).items() if name not in OF_THE_RUN}


def settings_of(name: str, arm: str) -> tuple[str, dict]:
    """Family and settings of an arm on a task, defaults of that day included."""
    frozen = json.loads((FOLDER / "frozen.json").read_text("utf8"))
    family = ARMS[arm]
    return family, frozen["defaults"][family] | frozen["chosen"][TASKS[name].tuned_on or name][family]["settings"]


def run(arguments) -> None:
    """Every arm on the report seeds; a curve is added to curves.csv as soon as its run is over."""
    keys = [(n, arm, s) for n in arguments.tasks for s in MORE_SEEDS.get(n, SEEDS) for arm in ARMS]
    keys.sort(key=lambda key: key[2])  # so that what is stopped has the first seeds of all
    curves, jobs = Curves(FOLDER / "curves.csv", ("task", "arm", "seed"), COLUMNS), []
    for key in curves.lacking(keys):
        jobs.append((key, key[0], *settings_of(*key[:2]), key[2], "report"))
    for key, curve in in_parallel(jobs, arguments.workers, work):
        curves.add(key, map(stored, curve))
    write_json(FOLDER / "runs.json", provenance("scipy"))


def mean_of(curve: list[dict]) -> float:
    """The mean objective over a whole run."""
    return statistics.fmean(row["objective"] for row in curve)


def end_of(curve: list[dict]) -> float:
    """The mean objective over the last responses of a run."""
    return mean_of([row for row in curve if row["responses"] > curve[-1]["responses"] - LAST])


def with_interval(of_means: Callable, baseline: list[float], other: list[float]) -> list[float]:
    """`of_means` of both means, and its 95 % interval; the runs of either are drawn independently."""

    def statistic(a, b, axis=-1):
        return of_means(np.mean(a, axis=axis), np.mean(b, axis=axis))

    found = stats.bootstrap(
        (baseline, other), statistic, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return rounded((statistic(baseline, other), found.low, found.high))


def cheaper(baseline: list[float], other: list[float]) -> list[float]:
    """Mean of `baseline` over mean of `other`, with its interval."""
    return with_interval(lambda mine, its: mine / its, baseline, other)


def higher(baseline: list[float], other: list[float]) -> list[float]:
    """Mean of `other` less mean of `baseline`, with its interval."""
    return with_interval(lambda mine, its: its - mine, baseline, other)


def compared(baseline: Runs, other: Runs, threshold: float, cost: str = "tokens") -> list[float]:
    """How many times cheaper `other` reaches the threshold, both cut off where the shortest of all their runs ends."""
    horizon = min(curve[-1][cost] for runs in (baseline, other) for curve in runs.values())
    return cheaper(*(until_horizon(runs, threshold, cost, horizon) for runs in (baseline, other)))


def table_of(arms: dict[str, Runs]) -> dict:
    """Of a task: thresholds, and for each arm what it takes to them, what that is against PPO, and how it ends."""
    ppo = arms["ppo"]
    start = statistics.fmean(curve[0]["objective"] for curve in ppo.values())
    gain = statistics.fmean(map(end_of, ppo.values())) - start
    levels = {share: start + share / 100 * gain for share in SHARES}
    spent, generating = (sum(curve[-1][name] for curve in ppo.values()) for name in ("cpu", "generating"))
    table: dict = {"start": round(start, 4), "thresholds": {str(share): round(levels[share], 4) for share in SHARES}}
    table["generating_share"] = round(generating / spent, 3)
    for name, runs in arms.items():
        against = arms[AGAINST[name]]
        row: dict = {"runs": len(runs), "collapsed": sum(map(collapsed, runs.values()))}
        row["end"] = round(statistics.fmean(map(end_of, runs.values())), 3)
        row["cpu"] = round(statistics.fmean(curve[-1]["cpu"] for curve in runs.values()), 1)
        row["k"] = round(statistics.fmean(map(price_of_a_token, runs.values())), 2)
        tokens, never = reached(runs, levels[90], "tokens")
        row |= {"tokens": round(statistics.fmean(tokens)), "never": never}
        if against is not runs:
            row["end_less"] = higher([end_of(curve) for curve in against.values()], [end_of(c) for c in runs.values()])
            row["cheaper"] = {str(share): compared(against, runs, levels[share]) for share in SHARES}
            row["faster"] = {}
            for share in GENERATING_SHARES:
                factor = share / (100 - share) * (spent - generating) / generating
                dearer = [{s: with_dearer_generation(c, factor) for s, c in some.items()} for some in (against, runs)]
                row["faster"][str(share)] = cheaper(*(reached(some, levels[90], "time")[0] for some in dearer))
        table.setdefault("arms", {})[name] = row
    table["verdict"] = verdict(table["arms"])
    return table


def price_of_a_token(curve: list[dict]) -> float:
    """CPU time of generating a token over that of training on one, in all passes of an update, in a whole run."""
    last = curve[-1]
    trained = sum(
        after["reuse"] * after["tokens"] - before["reuse"] * before["tokens"]
        for before, after in itertools.pairwise(curve)
    )
    return (last["generating"] / last["tokens"]) / ((last["cpu"] - last["generating"]) / trained)


def verdict(arms: dict) -> str:
    """In words, by a rule: what the lower ends of the intervals at 90 % allow, and whether the controls hold 1."""
    replay = arms["replay"]
    if replay["cheaper"]["90"][1] <= 1:
        words = "v1: no gain is shown"
    elif replay["faster"]["60"][1] > 1:
        words = "v2"
    else:
        words = "v2 where you pay by the token, v1 where you pay by the hour"
    if replay["end_less"][2] < 0:
        words += "; v2 ends lower"
    lucky = [name for name in ("twin", "reshuffle") if not 0.9 <= arms[name]["cheaper"]["90"][0] <= 1.1]
    return words + (
        f" (luck: the control {' and the control '.join(lucky)} is off by more than a tenth)" if lucky else ""
    )


def analyse(arguments) -> dict:
    """Write summary.json beside the curves; a task counts once each of its arms has runs."""
    found = {}
    for name, arms in read_curves(FOLDER / "curves.csv").items():
        if all(len(arms.get(arm, {})) > 1 for arm in ARMS):
            found[name] = table_of({arm: arms[arm] for arm in ARMS})
    write_json(FOLDER / "summary.json", {"tasks": found, **provenance("scipy")})
    for name, table in found.items():
        for arm, row in table["arms"].items():
            print(name, arm, row)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"tune": tune, "run": run, "analyse": analyse}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
