"""Answers to chapter 11: who stays, who is drawn, the steady state."""

import math
from collections import namedtuple

import numpy as np
import torch

Steady = namedtuple("Steady", "uses draws")


def one_by_one(ages, uses, staleness_threshold, max_reuse):
    return [
        age <= staleness_threshold and use < max_reuse for age, use in zip(ages.tolist(), uses.tolist(), strict=True)
    ]


def struck_out(ages, uses, staleness_threshold, max_reuse):
    keep = torch.ones(len(ages), dtype=torch.bool)
    keep[ages > staleness_threshold] = False
    keep[uses >= max_reuse] = False
    return keep


def weights(scores, ages, alpha, tau):
    return (scores - scores.mean()).abs() ** alpha * torch.exp(-ages / tau)


def normalised(w):
    return w / w.sum()


def in_python(scores, ages, alpha, tau):
    mean = sum(scores.tolist()) / len(scores)
    w = [abs(s - mean) ** alpha * math.exp(-a / tau) for s, a in zip(scores.tolist(), ages.tolist(), strict=True)]
    return [x / sum(w) for x in w]


def in_place(scores, ages, alpha, tau):
    scores -= scores.mean()
    scores.abs_().pow_(alpha)
    scores *= torch.exp(-ages / tau)
    scores /= scores.sum()
    return scores


def by_cases(fresh, sample, max_reuse):
    if sample >= fresh * max_reuse:
        return [max_reuse, fresh * max_reuse]
    return [sample / fresh, sample]


RIGHT = {
    "stays": {
        "list": one_by_one,
        "struck out": struck_out,
        "numpy": lambda ages, uses, threshold, limit: np.logical_and(ages.numpy() <= threshold, uses.numpy() < limit),
        "negated": lambda ages, uses, threshold, limit: ~((ages > threshold) | (uses >= limit)),
        "integers": lambda ages, uses, threshold, limit: (ages <= threshold).int() * (uses < limit).int(),
    },
    "draw_probabilities": {
        "list": in_python,
        "in place": in_place,
        "numpy": lambda *arguments: np.array(in_python(*arguments)),
        "double": lambda scores, ages, alpha, tau: normalised(weights(scores.double(), ages.double(), alpha, tau)),
        "two shares": lambda scores, ages, alpha, tau: normalised(
            normalised((scores - scores.mean()).abs() ** alpha) * torch.softmax(-ages / tau, 0)
        ),
    },
    "steady_state": {
        "cases, a list": by_cases,
        "tuple with a name": lambda *arguments: Steady(*by_cases(*arguments)),
        "draws first": lambda fresh, sample, limit: (
            (draws := min(sample, fresh * limit)) / fresh,
            draws,
        ),
        "tensor": lambda *arguments: torch.tensor([float(x) for x in by_cases(*arguments)]),
        "numpy": lambda *arguments: np.array(by_cases(*arguments), dtype=float),
    },
}
WRONG = {
    "stays": {
        "too young": lambda ages, uses, threshold, limit: (ages < threshold) & (uses < limit),
        "one use more": lambda ages, uses, threshold, limit: (ages <= threshold) & (uses <= limit),
        "one is enough": lambda ages, uses, threshold, limit: (ages <= threshold) | (uses < limit),
        "age only": lambda ages, uses, threshold, limit: ages <= threshold,
        "uses only": lambda ages, uses, threshold, limit: uses < limit,
        "who leaves": lambda ages, uses, threshold, limit: ~((ages <= threshold) & (uses < limit)),
        "limits swapped": lambda ages, uses, threshold, limit: (ages <= limit) & (uses < threshold),
        "positions": lambda ages, uses, threshold, limit: ((ages <= threshold) & (uses < limit)).nonzero().flatten(),
        "how many": lambda ages, uses, threshold, limit: ((ages <= threshold) & (uses < limit)).sum(),
        "the unused only": lambda ages, uses, threshold, limit: (ages <= threshold) & (uses == 0),
        "all": lambda ages, uses, threshold, limit: torch.ones_like(ages, dtype=torch.bool),
        "at the limits only": lambda ages, uses, threshold, limit: (ages == threshold) & (uses < limit),
        "any of them": lambda ages, uses, threshold, limit: ((ages <= threshold) & (uses < limit)).any(),
    },
    "draw_probabilities": {
        "not divided": weights,
        "ages ignored": lambda scores, ages, alpha, tau: normalised((scores - scores.mean()).abs() ** alpha),
        "scores ignored": lambda scores, ages, alpha, tau: torch.softmax(-ages / tau, 0),
        "alpha ignored": lambda scores, ages, alpha, tau: normalised(weights(scores, ages, 1.0, tau)),
        "tau ignored": lambda scores, ages, alpha, tau: normalised(weights(scores, ages, alpha, 1.0)),
        "old ones preferred": lambda scores, ages, alpha, tau: normalised(weights(scores, -ages, alpha, tau)),
        "mean not subtracted": lambda scores, ages, alpha, tau: normalised(
            scores.abs() ** alpha * torch.exp(-ages / tau)
        ),
        "median": lambda scores, ages, alpha, tau: normalised(
            (scores - scores.median()).abs() ** alpha * torch.exp(-ages / tau)
        ),
        "times alpha": lambda scores, ages, alpha, tau: normalised(
            (scores - scores.mean()).abs() * alpha * torch.exp(-ages / tau)
        ),
        "times tau": lambda scores, ages, alpha, tau: normalised(weights(scores, ages, alpha, 1 / tau)),
        "softmax": lambda scores, ages, alpha, tau: torch.softmax(weights(scores, ages, alpha, tau), 0),
        "gains only": lambda scores, ages, alpha, tau: normalised(
            (scores - scores.mean()).clamp(min=0) ** alpha * torch.exp(-ages / tau)
        ),
        "power of all": lambda scores, ages, alpha, tau: normalised(weights(scores, ages, 1.0, tau) ** alpha),
        "base 2": lambda scores, ages, alpha, tau: normalised(
            (scores - scores.mean()).abs() ** alpha * 2 ** (-ages / tau)
        ),
        "added": lambda scores, ages, alpha, tau: normalised(
            (scores - scores.mean()).abs() ** alpha + torch.exp(-ages / tau)
        ),
        "uniform": lambda scores, ages, alpha, tau: torch.full_like(scores, 1 / len(scores)),
    },
    "steady_state": {
        "no limit": lambda fresh, sample, limit: (sample / fresh, sample),
        "always the limit": lambda fresh, sample, limit: (limit, limit * fresh),
        "larger of the two": lambda fresh, sample, limit: (
            max(sample / fresh, limit),
            max(sample / fresh, limit) * fresh,
        ),
        "turned over": lambda fresh, sample, limit: (u := min(fresh / sample, limit), u * fresh),
        "whole uses": lambda fresh, sample, limit: (u := min(sample // fresh, limit), u * fresh),
        "rounded": lambda fresh, sample, limit: (u := min(round(sample / fresh), limit), u * fresh),
        "draws are the sample": lambda fresh, sample, limit: (min(sample / fresh, limit), sample),
        "draws from the sample": lambda fresh, sample, limit: (u := min(sample / fresh, limit), u * sample),
        "swapped": lambda *arguments: by_cases(*arguments)[::-1],
        "one more use": lambda fresh, sample, limit: (u := min(sample / fresh + 1, limit), u * fresh),
        "uses only": lambda *arguments: by_cases(*arguments)[0],
        "limit one less": lambda fresh, sample, limit: by_cases(fresh, sample, limit - 1),
        "uses of the draws": lambda fresh, sample, limit: (min(sample, limit) / fresh, min(sample, limit)),
        "at least one use": lambda fresh, sample, limit: (u := max(1, min(sample / fresh, limit)), u * fresh),
    },
}
