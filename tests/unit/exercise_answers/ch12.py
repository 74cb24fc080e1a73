"""Answers to chapter 12: tokens until a threshold, a paired bootstrap, the probability of improvement."""

from bisect import bisect_left, bisect_right

import numpy as np
import torch


def windows(values, tokens, threshold, hold=3):
    for start in range(len(values) - hold + 1):
        if all(value >= threshold for value in values[start : start + hold]):
            return tokens[start], True
    return tokens[-1], False


def recursive(values, tokens, threshold, hold=3):
    if len(values) >= hold and min(values[:hold]) >= threshold:
        return [tokens[0], True]
    return recursive(values[1:], tokens[1:], threshold, hold) if len(values) > 1 else [tokens[-1], False]


def as_text(values, tokens, threshold, hold=3):
    start = "".join("01"[value >= threshold] for value in values).find("1" * hold)
    return (tokens[start], True) if start >= 0 else (tokens[-1], False)


def until_with(
    reached=lambda window, threshold: min(window) >= threshold,
    place=lambda start, hold: start,
    last=lambda count, hold: count - hold + 1,
    never=lambda tokens: (tokens[-1], False),
    starts=lambda found: found[0],
):
    """The function with parts that may be exchanged."""

    def until(values, tokens, threshold, hold=3):
        count = range(last(len(values), hold))
        found = [start for start in count if reached(values[start : start + hold], threshold)]
        return (tokens[place(starts(found), hold)], True) if found else never(tokens)

    return until


def not_in_a_row(values, tokens, threshold, hold=3):
    found = [index for index, value in enumerate(values) if value >= threshold]
    return (tokens[found[0]], True) if len(found) >= hold else (tokens[-1], False)


def resampled(baseline, other, draws):
    return [sum(baseline[row].tolist()) / sum(other[row].tolist()) for row in draws]


def two_ends(ratios):
    return ratios.quantile(torch.tensor([0.025, 0.975]))


def interval_of(ratios):
    return lambda baseline, other, draws: two_ends(ratios(baseline, other, draws))


def sums(baseline, other, draws):
    return baseline[draws].sum(1) / other[draws].sum(1)


def looped(baseline, other):
    wins = 0.0
    for b in baseline:
        for o in other:
            if o < b:
                wins += 1.0
            elif o == b:
                wins += 0.5
    return wins / len(baseline) / len(other)


def searched(baseline, other):
    runs = sorted(other)
    return sum(bisect_left(runs, b) + bisect_right(runs, b) for b in baseline) / (2 * len(baseline) * len(other))


def signs(baseline, other):
    return torch.tensor(baseline).double()[:, None].sub(torch.tensor(other).double()).sign()


RIGHT = {
    "tokens_until": {
        "windows": windows,
        "recursion, a list": recursive,
        "text": as_text,
        "parts": until_with(),
        "numpy": lambda *arguments: (np.int64((found := windows(*arguments))[0]), np.bool_(found[1])),
        "1 and 0": lambda *arguments: ((found := windows(*arguments))[0], int(found[1])),
    },
    "paired_interval": {
        "means": interval_of(lambda b, o, draws: b[draws].mean(1) / o[draws].mean(1)),
        "numpy": lambda b, o, draws: np.quantile(resampled(b, o, draws), [0.025, 0.975]),
        "percentiles, a list": lambda b, o, draws: [np.percentile(resampled(b, o, draws), p) for p in (2.5, 97.5)],
        "two quantiles": lambda b, o, draws: torch.stack([sums(b, o, draws).quantile(q) for q in (0.025, 0.975)]),
        "sorted": lambda b, o, draws: sums(b, o, draws).sort().values[[len(draws) // 40, len(draws) * 39 // 40]],
        "double": lambda b, o, draws: torch.tensor(np.quantile(sums(b, o, draws).double().numpy(), [0.025, 0.975])),
    },
    "improvement": {
        "loops": looped,
        "search": searched,
        "signs": lambda baseline, other: (signs(baseline, other).mean() + 1) / 2,
        "numpy": lambda baseline, other: np.mean([0.5 + 0.5 * np.sign(b - o) for b in baseline for o in other]),
    },
}
WRONG = {
    "tokens_until": {
        "must exceed": until_with(reached=lambda window, threshold: min(window) > threshold),
        "last window missed": until_with(last=lambda count, hold: count - hold),
        "windows cut short": until_with(last=lambda count, hold: count),
        "end of the window": until_with(place=lambda start, hold: start + hold - 1),
        "one before": until_with(place=lambda start, hold: max(0, start - 1)),
        "one after": until_with(place=lambda start, hold: start + 1),
        "one is enough": lambda values, tokens, threshold, hold=3: windows(values, tokens, threshold, 1),
        "always three": lambda values, tokens, threshold, hold=3: windows(values, tokens, threshold, 3),
        "mean of the window": until_with(reached=lambda window, threshold: sum(window) / len(window) >= threshold),
        "last of the window": until_with(reached=lambda window, threshold: window[-1] >= threshold),
        "best of the window": until_with(reached=lambda window, threshold: max(window) >= threshold),
        "None for never": until_with(never=lambda tokens: None),
        "None tokens for never": until_with(never=lambda tokens: (None, False)),
        "nothing spent for never": until_with(never=lambda tokens: (0, False)),
        "sum for never": until_with(never=lambda tokens: (sum(tokens), False)),
        "true for never": until_with(never=lambda tokens: (tokens[-1], True)),
        "the last time": until_with(starts=lambda found: found[-1]),
        "not in a row": not_in_a_row,
        "tokens only": lambda *arguments: windows(*arguments)[0],
        "always held": lambda *arguments: (windows(*arguments)[0], True),
        "swapped": lambda *arguments: windows(*arguments)[::-1],
        "position": lambda values, tokens, *rest: (
            ((found := windows(values, tokens, *rest)), found)[0] and (tokens.index(found[0]), found[1])
        ),
    },
    "paired_interval": {
        "mean of the ratios": interval_of(lambda b, o, draws: (b[draws] / o[draws]).mean(1)),
        "turned over": interval_of(lambda b, o, draws: sums(o, b, draws)),
        "not paired": interval_of(lambda b, o, draws: b[draws].sum(1) / o[draws.flip(0)].sum(1)),
        "other not resampled": interval_of(lambda b, o, draws: b[draws].sum(1) / o.sum()),
        "90 %": lambda b, o, draws: sums(b, o, draws).quantile(torch.tensor([0.05, 0.95])),
        "2.5 and 97.5 % off": lambda b, o, draws: sums(b, o, draws).quantile(torch.tensor([0.0025, 0.975])),
        "upper end first": lambda b, o, draws: two_ends(sums(b, o, draws)).flip(0),
        "smallest and largest": lambda b, o, draws: torch.stack([sums(b, o, draws).min(), sums(b, o, draws).max()]),
        "normal": lambda b, o, draws: sums(b, o, draws).mean() + sums(b, o, draws).std() * torch.tensor([-1.96, 1.96]),
        "difference": interval_of(lambda b, o, draws: (b[draws] - o[draws]).mean(1)),
        "all resamples": lambda b, o, draws: sums(b, o, draws),
        "over the resamples": interval_of(lambda b, o, draws: b[draws].sum(0) / o[draws].sum(0)),
        "draws ignored": interval_of(lambda b, o, draws: b / o),
        "medians": interval_of(lambda b, o, draws: b[draws].median(1).values / o[draws].median(1).values),
        "the ratio": lambda b, o, draws: b.sum() / o.sum(),
        "95 % upwards": lambda b, o, draws: sums(b, o, draws).quantile(torch.tensor([0.0, 0.95])),
    },
    "improvement": {
        "ties are wins": lambda baseline, other: (signs(baseline, other) >= 0).double().mean(),
        "ties are losses": lambda baseline, other: (signs(baseline, other) > 0).double().mean(),
        "ties left out": lambda baseline, other: (
            (s := signs(baseline, other))[s != 0].gt(0).double().mean().nan_to_num(0)
        ),
        "higher costs win": lambda baseline, other: looped(other, baseline),
        "equal seeds only": lambda baseline, other: (
            sum((b > o) + 0.5 * (b == o) for b, o in zip(baseline, other, strict=False))
            / min(len(baseline), len(other))
        ),
        "count": lambda baseline, other: looped(baseline, other) * len(baseline) * len(other),
        "squared number": lambda baseline, other: looped(baseline, other) * len(other) / len(baseline),
        "divided by all runs": lambda baseline, other: (
            looped(baseline, other) * len(baseline) * len(other) / (len(baseline) + len(other))
        ),
        "means compared": lambda baseline, other: float(sum(baseline) / len(baseline) > sum(other) / len(other)),
        "share of the cost": lambda baseline, other: 1 - sum(other) / len(other) / (sum(baseline) / len(baseline)),
        "difference of the chances": lambda baseline, other: signs(baseline, other).mean(),
        "best runs": lambda baseline, other: sum(o < min(baseline) for o in other) / len(other),
        "against the mean": lambda baseline, other: sum(o < sum(baseline) / len(baseline) for o in other) / len(other),
        "always half": lambda baseline, other: 0.5,
        "the first runs": lambda baseline, other: looped(baseline[:2], other[:2]),
    },
}
