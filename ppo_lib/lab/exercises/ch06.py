"""Exercises of chapter 6: the optimum of the KL-regularised objective, its dashboard, and when a run got there."""

import math

import torch

from ppo_lib.lab.exercises.check import Exercise


def _best_policy(ref_logprobs, rewards, beta):
    return torch.softmax(ref_logprobs + rewards / beta, dim=-1)


def _objective_kl(logprobs, ref_logprobs, mask):
    return (logprobs - ref_logprobs).masked_fill(~mask, 0.0).sum(dim=1).mean()


def _responses_to_reach(scores, threshold, batch_size, hold=3):
    for start in range(len(scores) - hold + 1):
        if all(score >= threshold for score in scores[start : start + hold]):
            return (start + 1) * batch_size
    return None


def _first_touch(scores, threshold, batch_size, hold=3):
    return next(((i + 1) * batch_size for i, score in enumerate(scores) if score >= threshold), None)


def _end_of_the_hold(scores, threshold, batch_size, hold=3):
    first = _responses_to_reach(scores, threshold, batch_size, hold)
    return None if first is None else first + (hold - 1) * batch_size


def _counts_from_zero(scores, threshold, batch_size, hold=3):
    first = _responses_to_reach(scores, threshold, batch_size, hold)
    return None if first is None else first - batch_size


def _must_exceed(scores, threshold, batch_size, hold=3):
    return _responses_to_reach([math.nextafter(score, -math.inf) for score in scores], threshold, batch_size, hold)


def _last_window_missed(scores, threshold, batch_size, hold=3):
    return _responses_to_reach(scores[:-1], threshold, batch_size, hold)


def _never_is_zero(scores, threshold, batch_size, hold=3):
    return _responses_to_reach(scores, threshold, batch_size, hold) or 0


def _always_three(scores, threshold, batch_size, hold=3):
    return _responses_to_reach(scores, threshold, batch_size)


def _counts_rollouts(scores, threshold, batch_size, hold=3):
    first = _responses_to_reach(scores, threshold, batch_size, hold)
    return None if first is None else first // batch_size


_REF = torch.tensor([0.5, 0.3, 0.2]).log()
best_policy = Exercise(
    "best_policy",
    solution=_best_policy,
    inputs=[
        (_REF, torch.tensor([0.0, 1.0, 0.0]), 0.5),
        (_REF, torch.tensor([1.0, -1.0, 2.0]), 2.0),
        (torch.tensor([0.1, 0.2, 0.3, 0.4]).log(), torch.tensor([2.0, -3.0, 0.5, 1.0]), 1.0),
    ],
    mistakes={
        "you multiplied the reward by β: a small β must tilt more, so divide.": lambda ref, r, beta: torch.softmax(
            ref + r * beta, dim=-1
        ),
        "the reference is missing: this tilts a uniform policy.": lambda ref, r, beta: torch.softmax(r / beta, dim=-1),
        "your probabilities do not sum to 1: divide by their sum.": lambda ref, r, beta: torch.exp(ref + r / beta),
        "these are log-probabilities: take the exponential.": lambda ref, r, beta: torch.log_softmax(
            ref + r / beta, dim=-1
        ),
        "you tilted away from the reward: the sign is wrong.": lambda ref, r, beta: torch.softmax(
            ref - r / beta, dim=-1
        ),
    },
)

_LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-0.5, -9.0, -9.0]])
_REF_LOGPROBS = torch.tensor([[-1.5, -2.5, -2.0], [-1.0, -3.0, -1.0]])
_MASK = torch.tensor([[True, True, True], [True, False, False]])
objective_kl = Exercise(
    "objective_kl",
    solution=_objective_kl,
    inputs=[
        (_LOGPROBS, _REF_LOGPROBS, _MASK),
        (_REF_LOGPROBS, _LOGPROBS, _MASK),
        (_LOGPROBS.T, -torch.ones(3, 2), torch.tensor([[True, True], [True, False], [True, True]])),
    ],
    mistakes={
        "padding counts in your sum: zero it with the mask first.": lambda new, ref, mask: (new - ref).sum(1).mean(),
        "that is KL per token: sum over a response's tokens, then average over responses.": lambda new, ref, mask: (
            new - ref
        )[mask].mean(),
        "that is the mean of each response's mean: sum over its tokens instead.": lambda new, ref, mask: (
            (new - ref).masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
        ).mean(),
        "the sign is turned around: log π minus log π_ref.": lambda new, ref, mask: -_objective_kl(new, ref, mask),
        "you forgot to average over the responses.": lambda new, ref, mask: (new - ref)[mask].sum(),
    },
)

responses_to_reach = Exercise(
    "responses_to_reach",
    solution=_responses_to_reach,
    inputs=[
        ([0.1, 1.2, 0.3, 1.0, 1.1, 1.3, 0.2], 1.0, 32),
        ([1.2, 0.3, 1.1, 1.0, 1.4], 1.0, 16),
        ([2.0, 2.0, 2.0], 1.0, 8),
        ([0.9, 1.0, 1.5, 0.7, 2.0, 0.9, 1.5, 1.0], 1.0, 10),
        ([0.2, 0.6, 0.5, 0.1, 0.5, 0.7, 0.9, 0.8, 0.6], 0.5, 4, 2),
        ([3.0, 3.0, 0.5, 3.0, 0.5, 3.0], 1.0, 10),
        ([0.3, 0.8, 0.7, 0.9], 0.75, 6, 1),
        ([2.0, 2.0], 1.0, 8),
        ([-2.0, -1.0, -1.0, -1.0, -1.0], -1.0, 5, 4),
    ],
    mistakes={
        "one lucky rollout counted: the score must hold for `hold` rollouts in a row.": _first_touch,
        "that is where the hold ends: return where it begins.": _end_of_the_hold,
        "rollout 0 ends after `batch_size` responses, not after none.": _counts_from_zero,
        "you counted rollouts: multiply by the batch size.": _counts_rollouts,
        "a score that equals the threshold reaches it: compare with >=.": _must_exceed,
        "the last `hold` rollouts may be the first that hold: your last window is missing.": _last_window_missed,
        "a run that never holds the threshold has no number: return None.": _never_is_zero,
        "you always ask for three in a row: use `hold`.": _always_three,
    },
)
