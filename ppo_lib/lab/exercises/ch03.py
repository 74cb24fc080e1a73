"""Exercises of chapter 3: k3 by hand, a mean per response, and token rewards with a price for not ending."""

import math

import torch
from torch import Tensor

from ppo_lib.estimators import masked_mean, token_rewards
from ppo_lib.lab.exercises.check import Exercise

k3_by_hand = Exercise(
    "k3_by_hand",
    solution=0.5 - 1 - math.log(0.5),
    mistakes={
        "the ratio is upside down: k3 takes π_ref / π on samples of π.": 2 - 1 - math.log(2),
        "that is k1, log π − log π_ref.": math.log(2),
        "that is −k1: the direction is KL(π ‖ π_ref), so log π comes first.": -math.log(2),
        "that is k2, half the square of the log-ratio.": 0.5 * math.log(2) ** 2,
        "the logarithm is subtracted, not added: k3 = ratio − 1 − log(ratio).": 0.5 - 1 + math.log(0.5),
        "the −1 is missing: without it k3 would be 1 where both agree.": 0.5 - math.log(0.5),
    },
    atol=2e-3,
)


def _response_means(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)


def _batches() -> list[tuple[Tensor, Tensor]]:
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
    x = torch.tensor([[-1.0, -2.0, -3.0, -6.0], [-4.0, -1.0, 8.0, 5.0], [-7.0, 9.0, 3.0, 1.0]])
    zeros = torch.tensor([[0.0, -2.0, 5.0], [0.5, 0.0, 0.0]])
    return [(x, mask), (x.masked_fill(~mask, float("nan")), mask), (zeros, torch.tensor([[1, 1, 0], [1, 1, 1]]).bool())]


response_means = Exercise(
    "response_means",
    solution=_response_means,
    inputs=_batches,
    mistakes={
        "you averaged over padding: divide by mask.sum(dim=1), not by T.": lambda x, mask: x.mean(dim=1),
        "the padding is zero now but still counts: divide by mask.sum(dim=1), not by T.": lambda x, mask: x.masked_fill(
            ~mask, 0.0
        ).mean(dim=1),
        "NaN times zero is NaN: use masked_fill(~mask, 0.0) instead of multiplying by the mask.": lambda x, mask: (
            (x * mask).sum(dim=1) / mask.sum(dim=1)
        ),
        "you summed each response, and did not divide by its number of sampled tokens.": lambda x, mask: x.masked_fill(
            ~mask, 0.0
        ).sum(dim=1),
        "every row is divided by the tokens of the whole batch: mask.sum() needs dim=1.": lambda x, mask: (
            x.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum()
        ),
        "that is one mean for the whole batch: sum over dim=1 for one mean per response.": masked_mean,
        "you averaged over the batch (dim=0), one number per column: a response is a row, dim=1.": lambda x, mask: (
            x.masked_fill(~mask, 0.0).sum(dim=0) / mask.sum(dim=0)
        ),
        "the mask is inverted: masked_fill fills where its argument is true, so pass ~mask.": lambda x, mask: (
            x.masked_fill(mask, 0.0).sum(dim=1) / mask.sum(dim=1)
        ),
    },
)

Rewards = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, float]


def _penalised(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    return torch.where(ended, scores, scores - penalty)


def _rewards_with_penalty(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    return token_rewards(_penalised(scores, ended, penalty), logprobs, ref_logprobs, mask, kl_coef)


def _score_in_last_column(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    rewards = token_rewards(torch.zeros_like(scores), logprobs, ref_logprobs, mask, kl_coef)
    rewards[:, -1] += _penalised(scores, ended, penalty)
    return rewards


def _score_one_late(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    rewards = token_rewards(torch.zeros_like(scores), logprobs, ref_logprobs, mask, kl_coef)
    after = mask.sum(dim=1).clamp(max=mask.shape[1] - 1)
    rewards[torch.arange(len(after)), after] += _penalised(scores, ended, penalty)
    return rewards


def _score_on_every_token(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    rewards = token_rewards(torch.zeros_like(scores), logprobs, ref_logprobs, mask, kl_coef)
    return rewards + _penalised(scores, ended, penalty)[:, None] * mask


def _kl_on_padding(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    outside = (-kl_coef * (logprobs - ref_logprobs)).masked_fill(mask, 0.0)
    return _rewards_with_penalty(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty) + outside


def _inputs() -> list[Rewards]:
    logprobs = torch.tensor([[-1.0, -0.5, -2.0, -0.3], [-0.7, -1.2, -0.4, -0.9], [-0.2, -3.0, -1.0, -1.5]])
    ref_logprobs = torch.tensor([[-1.5, -0.5, -1.8, -4.0], [-0.7, -2.2, -0.4, -1.2], [-0.6, -1.0, -2.0, -0.5]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True], [True, True, False, False]])
    ended = torch.tensor([True, False, True])
    return [
        (torch.tensor([1.0, -0.5, 0.3]), logprobs, ref_logprobs, mask, ended, 0.1, 2.0),
        (torch.tensor([0.2, 0.4]), ref_logprobs[:2], logprobs[:2], mask[[2, 0]], ended[1:], 0.3, 0.5),
    ]


rewards_with_penalty = Exercise(
    "rewards_with_penalty",
    solution=_rewards_with_penalty,
    inputs=_inputs,
    mistakes={
        "the score is in the last column, which is padding where a response ended early: use mask.sum(dim=1) - 1.": (
            _score_in_last_column
        ),
        "the score is one token late, on padding: the last sampled token is mask.sum(dim=1) - 1.": _score_one_late,
        "the score is on every token: it belongs on the last sampled one only.": _score_on_every_token,
        "the sign of the KL is turned around: you pay the policy for leaving the reference.": (
            lambda s, lp, ref, m, e, beta, p: _rewards_with_penalty(s, ref, lp, m, e, beta, p)
        ),
        "kl_coef is missing: multiply k1 by it.": (
            lambda s, lp, ref, m, e, beta, p: _rewards_with_penalty(s, lp, ref, m, e, 1.0, p)
        ),
        "the KL penalty is missing: every sampled token pays kl_coef · k1.": (
            lambda s, lp, ref, m, e, beta, p: _rewards_with_penalty(s, lp, ref, m, e, 0.0, p)
        ),
        "padding pays a KL penalty: rewards must be 0 where the mask is false.": _kl_on_padding,
        "the wrong responses pay: the penalty is for those that did not end.": (
            lambda s, lp, ref, m, e, beta, p: _rewards_with_penalty(s, lp, ref, m, ~e, beta, p)
        ),
        "the penalty is added, so being cut off is rewarded: subtract it.": (
            lambda s, lp, ref, m, e, beta, p: _rewards_with_penalty(s, lp, ref, m, e, beta, -p)
        ),
        "nobody pays the penalty: subtract it from the score where ended is false.": (
            lambda s, lp, ref, m, e, beta, p: token_rewards(s, lp, ref, m, beta)
        ),
    },
)
