"""Answers to chapter 9: the patience rule, the error of a paired difference, one step of the controller."""

import math
import statistics

import numpy as np
import torch


def patience_with(
    beats=lambda score, best, min_delta: score > best + min_delta,
    enough=lambda waited, patience: waited >= patience,
    in_a_row=True,
):
    """The rule, with parts that may be exchanged."""

    def rule(scores, patience, min_delta=0.0):
        best, kept, waited = -math.inf, None, 0
        for index, score in enumerate(scores):
            if kept is None or beats(score, best, min_delta):
                best, kept = score, index
                waited = 0 if in_a_row else waited
            else:
                waited += 1
                if enough(waited, patience):
                    return index, kept
        return None, kept

    return rule


RULE = patience_with()


def while_loop(scores, patience, min_delta=0.0):
    kept = at = 0
    while at + 1 < len(scores):
        at += 1
        if scores[at] - scores[kept] > min_delta:
            kept = at
        if at - kept == patience:
            return [at, kept]
    return [None, kept]


def recursive(scores, patience, min_delta=0.0, kept=0, at=1):
    if at >= len(scores):
        return None, kept
    if scores[at] > scores[kept] + min_delta:
        return recursive(scores, patience, min_delta, at, at + 1)
    return (at, kept) if at - kept >= patience else recursive(scores, patience, min_delta, kept, at + 1)


def keeps_the_maximum(scores, patience, min_delta=0.0):
    stopped, kept = RULE(scores, patience, min_delta)
    seen = scores if stopped is None else scores[: stopped + 1]
    return stopped, max(range(len(seen)), key=seen.__getitem__)


def keeps_the_best_of_all(scores, patience, min_delta=0.0):
    return RULE(scores, patience, min_delta)[0], max(range(len(scores)), key=scores.__getitem__)


def compares_with_the_one_before(scores, patience, min_delta=0.0):
    kept, waited = 0, 0
    for index in range(1, len(scores)):
        if scores[index] > scores[index - 1] + min_delta:
            waited, kept = 0, index
        else:
            waited += 1
            if waited >= patience:
                return index, kept
    return None, kept


def starts_at_0(scores, patience, min_delta=0.0):
    best, kept = 0.0, 0
    for index, score in enumerate(scores):
        if score > best + min_delta:
            best, kept = score, index
        elif index - kept >= patience:
            return index, kept
    return None, kept


def best_follows_every_gain(scores, patience, min_delta=0.0):
    best, kept, waited = -math.inf, None, 0
    for index, score in enumerate(scores):
        waited = 0 if score > best + min_delta else waited + 1
        if score > best:
            best, kept = score, index
        if waited >= patience:
            return index, kept
    return None, kept


def changed(number):
    """The rule with its pair handed through `number(stopped, kept, scores)`."""
    return lambda scores, *rest: number(*RULE(scores, *rest), scores)


def in_python(before, after):
    differences = [b - a for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    return statistics.stdev(differences) / math.sqrt(len(differences))


def by_cases(beta, kl, target, responses, horizon):
    error = (kl - target) / target
    if error > 0.2:
        error = 0.2
    elif error < -0.2:
        error = -0.2
    return beta + beta * error * responses / horizon


def beta_with(error, limit=0.2):
    """A step that grows β by `error(kl, target)`, clipped to ±limit."""

    def step(beta, kl, target, responses, horizon):
        return beta * (1 + min(max(error(kl, target), -limit), limit) * responses / horizon)

    return step


def relative(kl, target):
    return kl / target - 1


RIGHT = {
    "patience_rule": {
        "counter": RULE,
        "while, a list": while_loop,
        "recursion": recursive,
        "tensor for kept": changed(lambda stopped, kept, scores: (stopped, torch.tensor(kept))),
        "numpy": changed(lambda stopped, kept, scores: (stopped, np.int64(kept))),
    },
    "paired_error": {
        "statistics": in_python,
        "other way round": lambda before, after: torch.std(before - after) / math.sqrt(len(after)),
        "numpy": lambda before, after: np.std((after - before).numpy(), ddof=1) / np.sqrt(len(after)),
        "variance": lambda before, after: ((after - before).var() / len(before)).sqrt(),
        "population and N − 1": lambda before, after: (after - before).std(correction=0) / (len(after) - 1) ** 0.5,
    },
    "next_beta": {
        "cases": by_cases,
        "numpy": lambda beta, kl, target, n, horizon: beta * (1 + np.clip(kl / target - 1, -0.2, 0.2) * n / horizon),
        "tensor": lambda beta, kl, target, n, horizon: (
            beta * (1 + torch.tensor((kl - target) / target).clamp(-0.2, 0.2) * n / horizon)
        ),
        "median": lambda beta, kl, target, n, horizon: (
            beta + beta * (n / horizon) * statistics.median([-0.2, kl / target - 1, 0.2])
        ),
    },
}
WRONG = {
    "patience_rule": {
        "as good is better": patience_with(beats=lambda score, best, min_delta: score >= best + min_delta),
        "min_delta ignored": patience_with(beats=lambda score, best, min_delta: score > best),
        "min_delta the other way": patience_with(beats=lambda score, best, min_delta: score > best - min_delta),
        "min_delta relative": patience_with(beats=lambda score, best, min_delta: score > best * (1 + min_delta)),
        "smaller is better": patience_with(beats=lambda score, best, min_delta: score < best - min_delta),
        "one evaluation late": patience_with(enough=lambda waited, patience: waited > patience),
        "one evaluation early": patience_with(enough=lambda waited, patience: waited >= patience - 1),
        "patience is 3": patience_with(enough=lambda waited, patience: waited >= 3),
        "not in a row": patience_with(in_a_row=False),
        "keeps the maximum": keeps_the_maximum,
        "keeps the best of all": keeps_the_best_of_all,
        "compared with the one before": compares_with_the_one_before,
        "best starts at 0": starts_at_0,
        "best follows every gain": best_follows_every_gain,
        "stops before": changed(lambda stopped, kept, scores: (None if stopped is None else stopped - 1, kept)),
        "counted from 1": changed(lambda stopped, kept, scores: (None if stopped is None else stopped + 1, kept + 1)),
        "swapped": changed(lambda stopped, kept, scores: (kept, stopped)),
        "the end for never": changed(lambda stopped, kept, scores: (len(scores) if stopped is None else stopped, kept)),
        "the last for never": changed(
            lambda stopped, kept, scores: (len(scores) - 1 if stopped is None else stopped, kept)
        ),
        "the score": changed(lambda stopped, kept, scores: (stopped, scores[kept])),
        "kept is where it stopped": changed(lambda stopped, kept, scores: (stopped, stopped)),
    },
    "paired_error": {
        "not divided": lambda before, after: (after - before).std(),
        "divided by N": lambda before, after: (after - before).std() / len(before),
        "not paired": lambda before, after: ((before.var() + after.var()) / len(before)).sqrt(),
        "variance": lambda before, after: (after - before).var() / len(before),
        "only after": lambda before, after: after.std() / len(after) ** 0.5,
        "difference of errors": lambda before, after: (after.std() - before.std()).abs() / len(after) ** 0.5,
        "mean": lambda before, after: (after - before).mean(),
        "root of N − 1": lambda before, after: (after - before).std() / (len(before) - 1) ** 0.5,
        "both samples": lambda before, after: (after - before).std() / (2 * len(before)) ** 0.5,
        "around 0": lambda before, after: ((after - before).square().mean() / len(before)).sqrt(),
        "absolute differences": lambda before, after: (after - before).abs().std() / len(before) ** 0.5,
        "two errors": lambda before, after: 2 * (after - before).std() / len(before) ** 0.5,
        "t": lambda before, after: (after - before).mean() / ((after - before).std() / len(before) ** 0.5),
    },
    "next_beta": {
        "not clipped": beta_with(relative, math.inf),
        "clipped above only": lambda beta, kl, target, n, horizon: (
            beta * (1 + min(relative(kl, target), 0.2) * n / horizon)
        ),
        "clipped below only": lambda beta, kl, target, n, horizon: (
            beta * (1 + max(relative(kl, target), -0.2) * n / horizon)
        ),
        "clipped to ±0.1": beta_with(relative, 0.1),
        "clipped to ±1": beta_with(relative, 1.0),
        "sign": beta_with(lambda kl, target: 1 - kl / target),
        "turned over": beta_with(lambda kl, target: target / kl - 1),
        "not relative": beta_with(lambda kl, target: kl - target),
        "relative to the KL": beta_with(lambda kl, target: (kl - target) / kl),
        "logarithm": beta_with(lambda kl, target: math.log(kl / target)),
        "added": lambda beta, kl, target, n, horizon: beta + by_cases(1, kl, target, n, horizon) - 1,
        "responses ignored": lambda beta, kl, target, n, horizon: by_cases(beta, kl, target, 1, horizon),
        "horizon ignored": lambda beta, kl, target, n, horizon: by_cases(beta, kl, target, n, 1),
        "horizon over responses": lambda beta, kl, target, n, horizon: by_cases(beta, kl, target, horizon, n),
        "clipped after": lambda beta, kl, target, n, horizon: (
            beta * (1 + min(max(relative(kl, target) * n / horizon, -0.2), 0.2))
        ),
        "the factor": lambda beta, kl, target, n, horizon: by_cases(1, kl, target, n, horizon),
        "always full steps": beta_with(lambda kl, target: 1.0 if kl > target else -1.0),
        "compounded": lambda beta, kl, target, n, horizon: (
            beta * (1 + min(max(relative(kl, target), -0.2), 0.2)) ** (n / horizon)
        ),
    },
}
