"""Exercises of chapter 12: censored costs, a bootstrap of pairs, the probability of improvement."""

import torch

from ppo_lib.lab.exercises.check import Exercise


def _held(values, threshold, hold, place):
    run = 0
    for index, value in enumerate(values):
        run = run + 1 if value >= threshold else 0
        if run == hold:
            return place(index, hold)
    return None


def _cost(values, tokens, threshold, hold=3):
    index = _held(values, threshold, hold, lambda at, hold: at - hold + 1)
    return (tokens[-1], False) if index is None else (tokens[index], True)


def _one_is_enough(values, tokens, threshold, hold=3):
    return _cost(values, tokens, threshold, 1)


def _not_in_a_row(values, tokens, threshold, hold=3):
    reached = [index for index, value in enumerate(values) if value >= threshold]
    return (tokens[reached[0]], True) if len(reached) >= hold else (tokens[-1], False)


def _at_the_last(values, tokens, threshold, hold=3):
    index = _held(values, threshold, hold, lambda at, hold: at)
    return (tokens[-1], False) if index is None else (tokens[index], True)


def _last_window_missed(values, tokens, threshold, hold=3):
    cost, held = _cost(values[:-1], tokens[:-1], threshold, hold)
    return (cost, True) if held else (tokens[-1], False)


def _strictly_above(values, tokens, threshold, hold=3):
    return _cost([value - 1e-9 for value in values], tokens, threshold, hold)


def _dropped(values, tokens, threshold, hold=3):
    cost, held = _cost(values, tokens, threshold, hold)
    return (cost if held else float("nan"), held)


def _said_to_hold(values, tokens, threshold, hold=3):
    return _cost(values, tokens, threshold, hold)[0], True


_TOKENS = [0, 300, 600, 900, 1200, 1500, 1800]
tokens_until = Exercise(
    "tokens_until",
    solution=_cost,
    inputs=[
        ([0.1, 0.6, 0.2, 0.5, 0.7, 0.8, 0.9], _TOKENS, 0.5),
        ([0.1, 0.6, 0.2, 0.7, 0.3, 0.8, 0.4], _TOKENS, 0.5),
        ([0.1, 0.6, 0.2, 0.3, 0.3, 0.7, 0.3], _TOKENS, 0.5),
        ([0.1, 0.6, 0.7, 0.4, 0.6, 0.6, 0.6], _TOKENS, 0.5, 2),
        ([0.1, 0.6, 0.4, 0.2, 0.5, 0.6, 0.5], _TOKENS, 0.5),
        ([0.1, 0.2, 0.3, 0.1, 0.2, 0.7, 0.8], _TOKENS, 0.5),
        ([0.9, 0.9], [100, 250], 0.5),
        ([2.5, 2.0, 1.0, 2.0], [70, 110, 200, 340], 2.0, 1),
        ([-3.0, -1.0, -1.5, -1.0, -0.5], [5, 10, 30, 35, 60], -2.0, 4),
    ],
    mistakes={
        "one evaluation above the threshold can be luck: it must hold `hold` in a row.": _one_is_enough,
        "you count evaluations above the threshold: they must follow each other, so set the count back.": _not_in_a_row,
        "too late: the cost is that of the first of the evaluations in a row, not of the last.": _at_the_last,
        "reaching the threshold exactly counts: compare with >=.": _strictly_above,
        "the last `hold` evaluations may be the first that hold: your last window is missing.": _last_window_missed,
        "a run that never holds it is censored, not missing: return the last cost and False.": _dropped,
        "you say that a censored run held the threshold: the second value must be False.": _said_to_hold,
    },
)


_TAILS = torch.tensor([0.025, 0.975])


def _interval(baseline, other, draws):
    ratios = baseline[draws].sum(dim=1) / other[draws].sum(dim=1)
    return ratios.quantile(_TAILS)


def _apart(baseline, other, draws):
    return (baseline[draws].sum(dim=1) / other[draws.roll(1, dims=0)].sum(dim=1)).quantile(_TAILS)


def _one_arm_only(baseline, other, draws):
    return (baseline[draws].sum(dim=1) / other.sum()).quantile(_TAILS)


def _mean_of_ratios(baseline, other, draws):
    return (baseline[draws] / other[draws]).mean(dim=1).quantile(_TAILS)


def _upside_down(baseline, other, draws):
    return (other[draws].sum(dim=1) / baseline[draws].sum(dim=1)).quantile(_TAILS)


def _ninety(baseline, other, draws):
    return (baseline[draws].sum(dim=1) / other[draws].sum(dim=1)).quantile(torch.tensor([0.05, 0.95]))


def _whole_range(baseline, other, draws):
    ratios = baseline[draws].sum(dim=1) / other[draws].sum(dim=1)
    return torch.stack([ratios.min(), ratios.max()])


def _costs(seed):
    generator = torch.Generator().manual_seed(seed)
    baseline, other = 800 + 1600 * torch.rand(2, 6, generator=generator)
    return baseline, other / 2, torch.randint(6, (401, 6), generator=generator)


paired_interval = Exercise(
    "paired_interval",
    solution=_interval,
    inputs=[_costs(0), _costs(1)],
    mistakes={
        "you drew the seeds of the two arms apart: take the same row of `draws` for both.": (_apart),
        "only the baseline is resampled: take the same seeds of the other arm.": _one_arm_only,
        "that is a mean of ratios: divide the two sums.": _mean_of_ratios,
        "upside down: how many times cheaper `other` is, so the baseline's tokens stand above.": _upside_down,
        "that holds 90 % of the ratios: 95 % lie between the quantiles 0.025 and 0.975.": _ninety,
        "that is the whole range: leave 2.5 % out at each end.": _whole_range,
    },
)


def _improvement(baseline, other):
    wins = sum((b > o) + 0.5 * (b == o) for b in baseline for o in other)
    return wins / (len(baseline) * len(other))


improvement = Exercise(
    "improvement",
    solution=_improvement,
    inputs=[([4, 8], [3, 5]), ([5, 5, 9], [5, 7, 1]), ([100, 300, 200], [250, 250, 90]), ([6, 2, 7, 5], [6, 3])],
    mistakes={
        "fewer tokens are better: count the pairs in which `other` costs less.": (
            lambda baseline, other: 1 - _improvement(baseline, other)
        ),
        "a tie is half a win: add 0.5 for it.": (
            lambda baseline, other: sum(b > o for b in baseline for o in other) / (len(baseline) * len(other))
        ),
        "a tie is only half a win: you counted it whole.": (
            lambda baseline, other: sum(b >= o for b in baseline for o in other) / (len(baseline) * len(other))
        ),
        "you compared each run with the one of its own seed only: compare every run with every run.": (
            lambda baseline, other: (
                sum((b > o) + 0.5 * (b == o) for b, o in zip(baseline, other, strict=False)) / len(baseline)
            )
        ),
        "you did not divide by the number of pairs.": (
            lambda baseline, other: sum((b > o) + 0.5 * (b == o) for b in baseline for o in other)
        ),
    },
)
