"""Exercises of chapter 5: the ratio, the clipped loss, the entropy of a policy over response tokens."""

import torch
from torch import Tensor

from ppo_lib.estimators import masked_mean
from ppo_lib.lab.exercises.check import Exercise
from ppo_lib.losses import entropy_of, policy_loss

OLD = torch.log(torch.tensor([[0.5, 0.2, 0.4, 0.1], [0.3, 0.6, 1.0, 1.0]]))  # [2, 4]
NEW = torch.log(torch.tensor([[0.9, 0.1, 0.5, 0.1], [0.2, 0.3, 0.2, 0.6]]))  # [2, 4]
ADVANTAGES = torch.tensor([[1.0, -0.5, 2.0, -1.5], [0.7, -2.0, 3.0, -4.0]])  # [2, 4]
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])  # [2, 4], two places are padding
LOGITS = torch.tensor(
    [[[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [0.0, 3.0, 0.0]], [[1.0, 0.0, 1.0], [9.0, 0.0, 0.0], [4.0, 1.0, 0.0]]]
)  # [2, 3, 3]
LOGITS_MASK = torch.tensor([[True, True, True], [True, False, False]])  # [2, 3]


def ratio_solution(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.exp((logprobs - old_logprobs).masked_fill(~mask, 0.0))


ratio = Exercise(
    "ratio_of",
    solution=ratio_solution,
    inputs=[
        (NEW, OLD, MASK),
        (OLD[:, :3], NEW[:, :3], MASK[:, 1:]),
        (NEW.masked_fill(~MASK, 500.0), OLD.masked_fill(~MASK, -500.0), MASK),
    ],
    mistakes={
        "that is the log of the ratio: take torch.exp of the difference.": lambda new, old, mask: (
            new - old
        ).masked_fill(~mask, 0.0),
        "upside down: the policy being trained goes on top, π_θ / π_old.": lambda new, old, mask: torch.exp(
            (old - new).masked_fill(~mask, 0.0)
        ),
        "you divided log-probabilities: a quotient of probabilities is the exp of a difference of their logs.": (
            lambda new, old, mask: (new / old).masked_fill(~mask, 1.0)
        ),
        "the padding has a ratio too: fill the difference with 0 outside the mask, before the exp.": (
            lambda new, old, mask: torch.exp(new - old)
        ),
        "on padding exp overflowed, and infinity · 0 is NaN: fill the difference with 0 before the exp.": (
            lambda new, old, mask: torch.exp(new - old) * mask + ~mask
        ),
        "you multiplied by the mask after the exp, which leaves 0 on padding: fill the difference with 0 before it, so "
        "that padding has ratio 1.": lambda new, old, mask: torch.exp(new - old).masked_fill(~mask, 0.0),
    },
)


def _loss(new, old, advantages, mask, cliprange, *, pick=torch.minimum, sign=-1.0, mean=masked_mean):
    """The clipped loss with one part exchanged."""
    ratio = torch.exp(new - old)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return sign * mean(pick(ratio * advantages, clipped * advantages), mask)


def _advantage_clipped(new, old, advantages, mask, cliprange):
    ratio = torch.exp(new - old)
    return -masked_mean(torch.minimum(ratio * advantages, ratio * advantages.clamp(1 - cliprange, 1 + cliprange)), mask)


def _without_exp(new, old, advantages, mask, cliprange):
    ratio = new - old
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)


def _unclipped(new, old, advantages, mask, cliprange):
    return -masked_mean(torch.exp(new - old) * advantages, mask)


def _mean_with_padding(x, mask):
    return x.masked_fill(~mask, 0.0).mean()


def _mean_of_response_means(x, mask):
    return (x.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)).mean()


clipped_loss = Exercise(
    "clipped_loss",
    solution=policy_loss,
    inputs=[
        (NEW, OLD, ADVANTAGES, MASK, 0.2),
        (OLD, NEW, ADVANTAGES, MASK, 0.1),
        (NEW[:, :3], OLD[:, 1:], -ADVANTAGES[:, :3], MASK[:, 1:], 0.3),
    ],
    mistakes={
        "you took the larger of the two terms: the clip is pessimistic, so it is torch.minimum.": (
            lambda *given: _loss(*given, pick=torch.maximum)
        ),
        "the sign is missing: an optimiser minimises, and the objective is to be raised.": (
            lambda *given: _loss(*given, sign=1.0)
        ),
        "you clipped the advantages: it is the ratio that stays within 1 ± ε.": _advantage_clipped,
        "your ratio is a difference of log-probabilities: take its torch.exp.": _without_exp,
        "the clipped term alone: without the minimum, a token that moved the wrong way has no gradient to come back.": (
            lambda *given: _loss(*given, pick=lambda plain, clipped: clipped)
        ),
        "nothing is clipped: compare ratio * advantages with clipped ratio * advantages.": _unclipped,
        "you averaged over padding: divide by mask.sum(), not by numel().": (
            lambda *given: _loss(*given, mean=lambda x, mask: x.mean())
        ),
        "padding is zeroed but still counted: divide by mask.sum(), not by numel().": (
            lambda *given: _loss(*given, mean=_mean_with_padding)
        ),
        "you averaged each response first, so tokens of short responses weigh more: take one mean over all tokens.": (
            lambda *given: _loss(*given, mean=_mean_of_response_means)
        ),
        "you summed the tokens: divide by mask.sum(), or long batches take larger steps.": (
            lambda *given: _loss(*given, mean=lambda x, mask: x.masked_fill(~mask, 0.0).sum())
        ),
    },
)


def mean_entropy_solution(logits: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(entropy_of(logits), mask)


def _negative_entropy(logits, mask):
    return -mean_entropy_solution(logits, mask)


def _mean_over_padding(logits, mask):
    return entropy_of(logits).mean()


def _mean_over_vocabulary(logits, mask):
    logp = torch.log_softmax(logits, dim=-1)
    return masked_mean(-(logp.exp() * logp).mean(dim=-1), mask)


def _unweighted(logits, mask):
    return masked_mean(-torch.log_softmax(logits, dim=-1).mean(dim=-1), mask)


def _not_normalised(logits, mask):
    return masked_mean(-(logits.exp() * logits).sum(dim=-1), mask)


def _over_time(logits, mask):
    logp = torch.log_softmax(logits, dim=1)
    return masked_mean(-(logp.exp() * logp).sum(dim=-1), mask)


def _in_bits(logits, mask):
    return mean_entropy_solution(logits, mask) / torch.log(torch.tensor(2.0))


mean_entropy = Exercise(
    "mean_entropy",
    solution=mean_entropy_solution,
    inputs=[(LOGITS, LOGITS_MASK), (-0.5 * LOGITS[:, :2], LOGITS_MASK[:, 1:] | LOGITS_MASK[:, :2])],
    mistakes={
        "the minus is missing: −Σ p log p is never negative.": _negative_entropy,
        "you averaged over padding: divide by mask.sum(), not by numel().": _mean_over_padding,
        "you took the mean over the vocabulary: an entropy is a sum over it.": _mean_over_vocabulary,
        "each log-probability must be weighted by its probability: −Σ p log p.": _unweighted,
        "these are logits, not log-probabilities: take log_softmax first.": _not_normalised,
        "your softmax runs over the tokens of the response: the vocabulary is the last dimension.": _over_time,
        "that is in bits: use the natural logarithm.": _in_bits,
    },
)
