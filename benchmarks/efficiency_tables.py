"""The tables of `sample_efficiency.py`, made from its stored curves: thresholds, ratios with intervals, costs."""

import csv
import json
from pathlib import Path

import numpy as np
from record import provenance, write_json

from ppo_lib.lab.efficiency import (
    area,
    collapsed,
    cost_until,
    mean_interval,
    probability_of_improvement,
    ratio_interval,
)

ARMS = ("ppo", "replay", "same", "grpo", "naive", "runner-up")  # all others are ablations
SHARES = (50, 75, 90, 100)  # thresholds: percent of what tuned PPO gains from its start to its end
LAST = 5  # evaluations at a run's end whose mean is its final value
GENERATION = (1, 5, 20)  # how many times dearer generating is made than it was on the machine
GENERATING_SHARE = 0.6  # and made so dear that it takes this share of tuned PPO's time

Curve = list[dict]


def read_curves(path: Path) -> dict[str, dict[str, dict[int, Curve]]]:
    """Task → arm → seed → the rows of its curve in order."""
    curves: dict = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            task, arm, seed = row.pop("task"), row.pop("arm"), int(row.pop("seed"))
            numbers = {name: float(value) for name, value in row.items()}
            curves.setdefault(task, {}).setdefault(arm, {}).setdefault(seed, []).append(numbers)
    return curves


def final(curve: Curve, name: str = "objective") -> float:
    return float(np.mean([row[name] for row in curve[-LAST:]]))


def thresholds(baseline: dict[int, Curve]) -> dict[int, float]:
    """Share in percent → objective, from the mean start and the mean end of the baseline's runs."""
    start = float(np.mean([curve[0]["objective"] for curve in baseline.values()]))
    gain = float(np.mean([final(curve) for curve in baseline.values()])) - start
    return {share: start + share / 100 * gain for share in SHARES}


def with_dearer_generation(curve: Curve, factor: float) -> Curve:
    """The curve with `time`: CPU seconds had generation taken `factor` times as long."""
    return [row | {"time": row["cpu"] + (factor - 1) * row["generating"]} for row in curve]


def reached(runs: dict[int, Curve], threshold: float, cost: str) -> tuple[list[float], int]:
    """What each run, by seed, had cost until it held the threshold, and how many never did."""
    found = [cost_until(runs[seed], threshold, cost) for seed in sorted(runs)]
    return [paid for paid, _ in found], sum(not held for _, held in found)


def until_horizon(runs: dict[int, Curve], threshold: float, cost: str, horizon: float) -> list[float]:
    """As `reached`, but no run is followed further than `horizon`: what is compared must be cut off alike."""
    found = [cost_until(runs[seed], threshold, cost) for seed in sorted(runs)]
    return [min(paid, horizon) if held else horizon for paid, held in found]


def rounded(values) -> list[float]:
    return [round(float(value), 3) for value in values]


def compared(runs: dict[int, Curve], baseline: dict[int, Curve], threshold: float, cost: str = "tokens") -> list[float]:
    """How many times cheaper `runs` are than `baseline` to the threshold, with its interval, on the seeds of both.

    In tokens both are followed as far as the shortest run among them: a ratio of restricted means. In time they cannot
    be, a run of one may be over before one of the other has got anywhere: each counts as far as it went.
    """
    seeds = sorted(runs.keys() & baseline.keys())
    pair = [{seed: some[seed] for seed in seeds} for some in (baseline, runs)]
    if cost == "tokens":
        horizon = min(curve[-1][cost] for some in pair for curve in some.values())
        return rounded(ratio_interval(*(until_horizon(some, threshold, cost, horizon) for some in pair)))
    return rounded(ratio_interval(*(reached(some, threshold, cost)[0] for some in pair)))


def until(runs: dict[int, Curve], arms: dict[str, dict[int, Curve]], threshold: float) -> dict:
    """What an arm takes to a threshold, and how that compares with the baselines."""
    tokens, censored = reached(runs, threshold, "tokens")
    row = {"tokens": round(float(np.mean(tokens))), "median": round(float(np.median(tokens))), "censored": censored}
    for cost in ("responses", "steps", "cpu"):
        row[cost] = round(float(np.mean(reached(runs, threshold, cost)[0])), 1)
    for name in ("ppo", "same", "runner-up"):
        baseline = arms.get(name, {})
        if len(baseline) > 1:
            row[f"against_{name}"] = compared(runs, baseline, threshold)
            row[f"time_against_{name}"] = times_compared(runs, baseline, arms["ppo"], threshold)
    never = [until_horizon(some, threshold, "tokens", float("inf")) for some in (arms["ppo"], runs)]
    row["better_than_ppo"] = round(probability_of_improvement(*never), 3)
    return row


def times_compared(
    runs: dict[int, Curve], baseline: dict[int, Curve], ppo: dict[int, Curve], threshold: float
) -> dict[str, list[float]]:
    """How many times faster `runs` are to the threshold, for several prices of generation."""
    spent, generating = (sum(curve[-1][name] for curve in ppo.values()) for name in ("cpu", "generating"))
    level = GENERATING_SHARE / (1 - GENERATING_SHARE) * (spent - generating) / generating
    found = {}
    for name, factor in [(str(factor), factor) for factor in GENERATION] + [("60 % of the time", level)]:
        dearer = [{s: with_dearer_generation(curve, factor) for s, curve in some.items()} for some in (runs, baseline)]
        found[name] = compared(*dearer, threshold, "time")
    return found


def arm_table(runs: dict[int, Curve], arms: dict[str, dict[int, Curve]], levels: dict[int, float]) -> dict:
    ppo = arms["ppo"]
    seeds = sorted(runs.keys() & ppo.keys())
    width = min(curve[-1]["tokens"] for some in arms.values() for curve in some.values())
    table = {"runs": len(runs), "collapsed": sum(collapsed(curve) for curve in runs.values())}
    for name in ("objective", "score", "kl", "entropy"):
        table[f"final_{name}"] = rounded(mean_interval([final(curve, name) for curve in runs.values()]))
        differences = [final(runs[s], name) - final(ppo[s], name) for s in seeds]
        table[f"final_{name}_minus_ppo"] = rounded(mean_interval(differences))
    for name in ("cpu", "generating", "steps", "tokens", "reuse"):
        table[f"total_{name}"] = round(float(np.mean([curve[-1][name] for curve in runs.values()])), 2)
    table["area"] = rounded(mean_interval([area(curve, width) for curve in runs.values()]))
    table["area_minus_ppo"] = rounded(mean_interval([area(runs[s], width) - area(ppo[s], width) for s in seeds]))
    table["health"] = {name: quantiles_of(runs, name) for name in ("ess", "distance", "age", "held")}
    return table | {"until": {str(share): until(runs, arms, level) for share, level in levels.items()}}


def quantiles_of(runs: dict[int, Curve], name: str) -> list[float]:
    """The 5 %, 50 % and 95 % quantiles of what was seen at all evaluations but the first three of each run."""
    return rounded(np.quantile([row[name] for curve in runs.values() for row in curve[3:]], (0.05, 0.5, 0.95)))


def ablation_table(arms: dict[str, dict[int, Curve]], names: list[str], levels: dict[int, float]) -> dict:
    """Each ablation beside the full method, both cut off where the ablation's runs end, on the same seeds."""
    table = {}
    for name in names:
        runs = arms[name]
        end = max(curve[-1]["responses"] for curve in runs.values())
        full = {s: [row for row in arms["replay"][s] if row["responses"] <= end] for s in runs if s in arms["replay"]}
        if len(full) < 2:
            continue
        runs = {s: runs[s] for s in full}
        table[name] = {"runs": len(runs), "responses": round(end)}
        for label, some in (("", runs), ("full_", full)):
            tokens, censored = reached(some, levels[90], "tokens")
            table[name] |= {
                f"{label}tokens": round(float(np.mean(tokens))),
                f"{label}censored": censored,
                f"{label}final": round(float(np.mean([final(curve) for curve in some.values()])), 3),
                f"{label}area": round(float(np.mean([np.mean([r["objective"] for r in c]) for c in some.values()])), 3),
            }
        table[name]["times_dearer"] = compared(full, runs, levels[90])
    return table


def analyse(folder: Path) -> dict:
    """Write summary.json beside the curves; tasks and arms that have not run yet are left out."""
    tasks, ablations = {}, {}
    evaluation = json.loads((folder / "evaluations.json").read_text())["cpu_seconds"]
    for task, arms in read_curves(folder / "curves.csv").items():
        for curve in [curve for runs in arms.values() for curve in runs.values()]:
            for number, row in enumerate(curve):
                row["cpu"] -= number * evaluation[task]
        if len(arms.get("ppo", {})) < 2:
            continue
        levels, of_task = thresholds(arms["ppo"]), {a: arms[a] for a in ARMS if len(arms.get(a, {})) > 1}
        tasks[task] = {
            "start": round(float(np.mean([curve[0]["objective"] for curve in arms["ppo"].values()])), 4),
            "thresholds": {str(share): round(level, 4) for share, level in levels.items()},
            "arms": {name: arm_table(runs, of_task, levels) for name, runs in of_task.items()},
        }
        ablations[task] = ablation_table(arms, [a for a in arms if a not in ARMS], levels)
    summary = {"tasks": tasks, "ablations": {task: table for task, table in ablations.items() if table}}
    write_json(folder / "summary.json", summary | provenance("scipy"))
    for task, table in tasks.items():
        print(task, {share: level for share, level in table["thresholds"].items()})
        for name, row in table["arms"].items():
            for share in ("90", "100"):
                to = row["until"][share]
                print(
                    f"  {name:8}{share:>4} %: {to['tokens']:7} tokens, {to['censored']}/{row['runs']} never, "
                    f"x{to['against_ppo']} against ppo, final {row['final_objective'][0]:.3f}, "
                    f"KL {row['final_kl'][0]:.2f}, {row['collapsed']} collapsed"
                )
    for task, table in summary["ablations"].items():
        for name, row in table.items():
            print(
                f"  {task} {name:20} {row['tokens']} tokens (full {row['full_tokens']}), x{row['times_dearer']} dearer"
            )
    return summary
