"""Sample efficiency, measured: what a run had generated when it first held a threshold, and ratios with intervals.

A *curve* is a run's evaluations in order: one row each, with what had been generated until then and how good it was.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def first_held(values: Sequence[float], threshold: float, hold: int = 3) -> int | None:
    """Index of the first of `hold` values in a row that reach `threshold`; None where that never happens."""
    reached = 0
    for index, value in enumerate(values):
        reached = reached + 1 if value >= threshold else 0
        if reached == hold:
            return index - hold + 1
    return None


def cost_until(curve: Sequence[dict], threshold: float, cost: str = "tokens", hold: int = 3) -> tuple[float, bool]:
    """What a run had cost when its objective first held `threshold`, and whether it ever did.

    A run that never does is *censored*: its whole cost is what it would have cost at least.
    """
    index = first_held([row["objective"] for row in curve], threshold, hold)
    return (curve[-1][cost], False) if index is None else (curve[index][cost], True)


def ratio_interval(baseline: Sequence[float], other: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """How many times cheaper `other` is: mean baseline / mean other, and a 95 % bootstrap interval over seeds.

    Args:
        baseline, other: costs of n ≥ 2 runs, paired by seed; those of censored runs are cut off at the run's length
            (restricted means), which understates a ratio where the baseline is censored.

    Source: Efron and Tibshirani 1993, percentile bootstrap of pairs.
    """

    def ratio(a, b, axis=-1):
        return np.mean(a, axis=axis) / np.mean(b, axis=axis)

    pairs = (np.asarray(baseline, float), np.asarray(other, float))
    interval = stats.bootstrap(
        pairs, ratio, paired=True, n_resamples=10_000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(ratio(*pairs)), float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean of n ≥ 2 runs and its 95 % bootstrap interval."""
    runs = np.asarray(values, float)
    if np.ptp(runs) == 0:  # scipy warns that there is nothing to resample
        return float(runs[0]), float(runs[0]), float(runs[0])
    interval = stats.bootstrap(
        (runs,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(runs.mean()), float(interval.low), float(interval.high)


def probability_of_improvement(baseline: Sequence[float], other: Sequence[float]) -> float:
    """How likely a run of `other` is to cost less than one of `baseline`, ties counted half.

    Source: Agarwal et al. 2021 (arXiv 2108.13264), from the Mann–Whitney statistic.
    """
    return float(stats.mannwhitneyu(baseline, other).statistic / (len(baseline) * len(other)))


def area(curve: Sequence[dict], until: float, cost: str = "tokens") -> float:
    """Mean objective over the first `until` of cost: the area under the curve, divided by its width."""
    grid = np.linspace(0.0, until, 257)
    return float(np.trapezoid(np.interp(grid, [r[cost] for r in curve], [r["objective"] for r in curve]), grid) / until)


def collapsed(curve: Sequence[dict], hold: int = 3) -> bool:
    """Whether a run ends by losing half of what it had gained at its best; all means are over `hold` evaluations."""
    values = [row["objective"] for row in curve]
    smooth = np.convolve(values, np.ones(hold) / hold, mode="valid")
    best = smooth.max() - values[0]
    return bool(best > 0 and smooth[-1] - values[0] < best / 2)
