"""Exercises of chapter 9: the patience rule, the error of a paired difference, one step of the KL controller."""

import math

import torch

from ppo_lib.lab.exercises.check import Exercise


def _patience(scores, patience, min_delta=0.0):
    best, kept = -math.inf, 0
    for index, score in enumerate(scores):
        if score > best + min_delta:
            best, kept = score, index
        elif index - kept >= patience:
            return index, kept
    return None, kept


def _one_too_late(scores, patience, min_delta=0.0):
    return _patience(scores, patience + 1, min_delta)


def _against_the_previous(scores, patience, min_delta=0.0):
    previous, kept, waited = -math.inf, None, 0
    for index, score in enumerate(scores):
        waited = 0 if score > previous + min_delta else waited + 1
        kept = index if waited == 0 else kept
        previous = score
        if waited >= patience:
            return index, kept
    return None, kept


def _never_reset(scores, patience, min_delta=0.0):
    best, kept, waited = -math.inf, None, 0
    for index, score in enumerate(scores):
        if score > best + min_delta:
            best, kept = score, index
        else:
            waited += 1
            if waited >= patience:
                return index, kept
    return None, kept


def _keeps_the_last(scores, patience, min_delta=0.0):
    stopped, _ = _patience(scores, patience, min_delta)
    return stopped, len(scores) - 1 if stopped is None else stopped


def _ties_win(scores, patience, min_delta=0.0):
    """The rule with >= for >: the slightest bit less is asked for."""
    best, kept = -math.inf, 0
    for index, score in enumerate(scores):
        if score >= best + min_delta:
            best, kept = score, index
        elif index - kept >= patience:
            return index, kept
    return None, kept


def _starts_at_zero(scores, patience, min_delta=0.0):
    stopped, kept = _patience([0.0, *scores], patience, min_delta)
    return None if stopped is None else stopped - 1, max(kept - 1, 0)


def _no_min_delta(scores, patience, min_delta=0.0):
    return _patience(scores, patience)


patience_rule = Exercise(
    "patience_rule",
    solution=_patience,
    inputs=[
        ([0.2, 0.5, 0.9, 0.8, 0.85, 0.7, 1.3], 3),
        ([0.5, 0.54, 0.58, 0.59, 0.6, 0.3], 2, 0.05),
        ([0.1, 0.0, 0.3, 0.2, 0.4, 0.3], 3),
        ([0.5, 0.5, 0.25, 0.5, 0.75], 3),
        ([1.0, 1.25, 1.0, 1.5, 1.5], 2, 0.25),
        ([-8.0, -6.0, -5.5, -7.0, -5.0], 2, 0.25),
        ([4.0, 4.5, 4.75, 4.0, 5.5], 2, 0.25),
        ([0.3, 0.2, 0.4], 1),
        ([0.7], 2),
    ],
    mistakes={
        "you compare with the evaluation before: compare with the best so far.": _against_the_previous,
        "one evaluation too late: stop at the `patience`-th one in a row that brings no new best.": _one_too_late,
        "your count is not set back to 0 by a new best.": _never_reset,
        "an evaluation exactly `min_delta` above the best is no new best: more is asked for, so >.": _ties_win,
        "scores may be negative: the first evaluation is the best so far, whatever it is.": _starts_at_zero,
        "you keep the last model: keep that of the best evaluation.": _keeps_the_last,
        "`min_delta` changes nothing in your rule: a new best beats the old one by more than that.": _no_min_delta,
    },
)


def _paired_error(before, after):
    return (after - before).std() / len(before) ** 0.5


_BEFORE = torch.tensor([0.1, -0.4, 0.9, 1.2, -1.0, 0.3])
_AFTER = torch.tensor([0.4, -0.2, 0.8, 1.7, -0.9, 0.7])
paired_error = Exercise(
    "paired_error",
    solution=_paired_error,
    inputs=[(_BEFORE, _AFTER), (_AFTER[:4], -_BEFORE[:4])],
    mistakes={
        "you added the two variances as if the prompts had nothing in common: take the differences first.": (
            lambda before, after: ((before.var() + after.var()) / len(before)) ** 0.5
        ),
        "that is the spread of single differences: divide by the square root of their number.": (
            lambda before, after: (after - before).std()
        ),
        "you divided by N: the standard deviation shrinks with its square root.": (
            lambda before, after: (after - before).std() / len(before)
        ),
        "that is the variance of the mean difference: take the square root.": (
            lambda before, after: (after - before).var() / len(before)
        ),
        "you divided by N inside the standard deviation: the mean is estimated too, so N − 1 (torch's default).": (
            lambda before, after: (after - before).std(unbiased=False) / len(before) ** 0.5
        ),
        "that is the mean difference: its standard error is asked for.": lambda before, after: (after - before).mean(),
    },
)


def _next_beta(beta, kl, target, responses, horizon):
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * responses / horizon)


def _swapped(beta, kl, target, responses, horizon):
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 - error * responses / horizon)


def _unbounded(beta, kl, target, responses, horizon):
    return beta * (1 + (kl / target - 1) * responses / horizon)


def _absolute(beta, kl, target, responses, horizon):
    return beta * (1 + min(max(kl - target, -0.2), 0.2) * responses / horizon)


def _added(beta, kl, target, responses, horizon):
    return beta + min(max(kl / target - 1, -0.2), 0.2) * responses / horizon


def _no_horizon(beta, kl, target, responses, horizon):
    return beta * (1 + min(max(kl / target - 1, -0.2), 0.2))


next_beta = Exercise(
    "next_beta",
    solution=_next_beta,
    inputs=[
        (0.05, 9.0, 6.0, 32, 64),
        (0.05, 1.0, 8.0, 32, 64),
        (0.02, 6.6, 6.0, 16, 64),
        (0.1, 6.05, 6.0, 32, 10_000),
        (0.3, 3.0, 2.75, 8, 16),
    ],
    atol=1e-7,
    mistakes={
        "turned around: too much KL must make KL dearer, so β grows.": _swapped,
        "your error is not bounded: clip it to ±0.2, or one strange rollout moves β a long way.": _unbounded,
        "take the relative error, KL / target − 1: 1 nat too many is much at a target of 2, little at 50.": (_absolute),
        "you add to β: multiply it, or it can become negative.": _added,
        "the horizon is missing: scale the error by responses / horizon.": _no_horizon,
    },
)
