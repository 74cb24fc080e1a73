"""Exercises of chapter 1, text as decisions."""

import torch

from ppo_lib.lab.exercises.check import Exercise
from ppo_lib.losses import entropy_of as _entropy

NAN, INF = float("nan"), float("inf")


def _sequence_logprob(logprobs, mask):
    return logprobs.masked_fill(~mask, 0.0).sum(dim=1)


sequence_logprob = Exercise(
    "sequence_logprob",
    solution=_sequence_logprob,
    inputs=[
        (torch.tensor([[-0.5, -1.0, -2.0]]), torch.tensor([[True, True, True]])),
        (torch.tensor([[-0.5, -1, 7], [-3, -0.1, -0.2]]), torch.tensor([[True, True, False], [True, True, True]])),
        (torch.tensor([[-0.5, -1, NAN], [-3, -INF, 0]]), torch.tensor([[True, True, False], [True, False, False]])),
    ],
    mistakes={
        "you added up the padding too: only places where `mask` is true count.": lambda x, mask: x.sum(dim=1),
        "multiplying by the mask keeps NaN (0 · NaN is NaN): use masked_fill(~mask, 0.0).": lambda x, mask: (
            x * mask
        ).sum(dim=1),
        "that is a mean over tokens: the log-probability of a response is their sum.": lambda x, mask: (
            _sequence_logprob(x, mask) / mask.sum(dim=1)
        ),
        "you divided by T, padding included: the log-probability of a response is a sum.": lambda x, mask: (
            _sequence_logprob(x, mask) / mask.shape[1]
        ),
        "you multiplied the logarithms: probabilities are multiplied, so logarithms are added.": lambda x, mask: (
            x.masked_fill(~mask, 1.0).prod(dim=1)
        ),
        "that is the probability of the response: its logarithm is asked for.": lambda x, mask: _sequence_logprob(
            x, mask
        ).exp(),
        "you added up the whole batch: one number for each response, so sum over dim=1.": lambda x, mask: (
            _sequence_logprob(x, mask).sum()
        ),
        "the mask is upside down: it is true on real tokens, masked_fill wants the others, ~mask.": lambda x, mask: (
            x.masked_fill(mask, 0.0).sum(dim=1)
        ),
    },
)


def _entropy_through_zero(logits):
    p = torch.softmax(logits, dim=-1)
    return -(p * p.log()).sum(dim=-1)


entropy_of = Exercise(
    "entropy_of",
    solution=_entropy,
    inputs=[
        (torch.tensor([0.0, 0.0, 0.0, 0.0]),),
        (torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 200.0]]),),
        (torch.linspace(-3, 3, 24).reshape(2, 3, 4),),
    ],
    mistakes={
        "the sign is the wrong way round: entropy is −Σ p log p, never negative.": lambda logits: -_entropy(logits),
        "that is entropy in bits: use the natural logarithm.": lambda logits: _entropy(logits) / 0.6931472,
        "you took the mean over the vocabulary: entropy is a sum over all tokens.": lambda logits: (
            _entropy(logits) / logits.shape[-1]
        ),
        "logits are not log-probabilities: apply log_softmax first.": lambda x: -(x.exp() * x).sum(dim=-1),
        "you summed −log p without its weight p: each token counts by its probability.": lambda logits: (
            -torch.log_softmax(logits, dim=-1).sum(dim=-1)
        ),
        "you averaged over the states too: one entropy for each row of logits.": lambda logits: _entropy(logits).mean(),
        "the softmax runs over the wrong dimension: the vocabulary is the last one.": lambda logits: (
            -(torch.softmax(logits, dim=0) * torch.log_softmax(logits, dim=0)).sum(dim=-1)
        ),
        "a probability that rounds to 0 gave 0 · log 0 = NaN: use log_softmax, not softmax().log().": (
            _entropy_through_zero
        ),
    },
)


def _response_mask(response_ids, eos):
    is_eos = (response_ids == eos).long()
    return (is_eos.cumsum(dim=1) - is_eos) == 0


def _to_last_eos(response_ids, eos):
    is_eos = (response_ids == eos).long()
    eos_to_come = is_eos.flip(1).cumsum(dim=1).flip(1)
    return (eos_to_come > 0) | (is_eos.sum(dim=1, keepdim=True) == 0)


def _one_too_many(response_ids, eos):
    mask = _response_mask(response_ids, eos)
    return torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)


response_mask = Exercise(
    "response_mask",
    solution=_response_mask,
    inputs=[
        (torch.tensor([[5, 6, 1, 0, 0]]), 1),
        (torch.tensor([[5, 1, 7, 1, 0], [5, 6, 7, 8, 9], [1, 1, 1, 1, 1]]), 1),
        (torch.tensor([[0, 6, 0, 2, 2], [2, 5, 6, 7, 8]]), 2),
    ],
    mistakes={
        "the first EOS is missing: the policy chose it, it is the decision to stop.": lambda ids, eos: (
            (ids == eos).long().cumsum(dim=1) == 0
        ),
        "your mask drops every EOS and keeps what stands between them: keep the first, drop all after.": (
            lambda ids, eos: ids != eos
        ),
        "your mask runs to the last EOS: nothing after the first one was chosen.": _to_last_eos,
        "you took token 0 for padding: padding can be chosen, and rubbish can be anything.": lambda ids, eos: ids != 0,
        "a row without EOS lost its tokens: all of them were chosen.": lambda ids, eos: (
            _response_mask(ids, eos) & (ids == eos).any(dim=1, keepdim=True)
        ),
        "your mask keeps one token too many: the one after the first EOS.": _one_too_many,
        "your mask is upside down: true means that the token was chosen.": lambda ids, eos: ~_response_mask(ids, eos),
    },
)
