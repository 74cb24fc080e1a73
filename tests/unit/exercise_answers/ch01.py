"""Answers to chapter 1: the log-probability of a response, entropy, the mask from tokens."""

import math

import torch
from torch.distributions import Categorical


def zeroed_in_place(logprobs, mask):
    logprobs[~mask] = 0
    return logprobs.sum(-1)


def sums_as_a_list(logprobs, mask):
    return [sum(p for p, real in zip(*row, strict=True) if real) for row in zip(logprobs.tolist(), mask, strict=True)]


def nested_entropy(logits):
    if logits.ndim > 1:
        return torch.stack([nested_entropy(row) for row in logits])
    p = torch.softmax(logits, 0)
    return sum(-x * math.log(x) for x in p.double().tolist() if x) * torch.ones(())


def rows_until(response_ids, eos):
    rows = []
    for row in response_ids.tolist():
        length = row.index(eos) + 1 if eos in row else len(row)
        rows.append([True] * length + [False] * (len(row) - length))
    return rows


def by_position(response_ids, eos):
    is_eos = response_ids == eos
    first = torch.where(is_eos.any(1), is_eos.int().argmax(1), response_ids.shape[1])
    return torch.arange(response_ids.shape[1]) <= first[:, None]


def shifted(response_ids, eos):
    seen = (response_ids == eos).cummax(1).values
    return torch.cat([torch.ones_like(seen[:, :1]), ~seen[:, :-1]], dim=1)


def until_the_last(response_ids, eos):
    is_eos = response_ids == eos
    after = is_eos.flip(1).cumsum(1).flip(1) > 0
    return after | ~is_eos.any(1, keepdim=True)


def without_eos_nothing(response_ids, eos):
    is_eos = (response_ids == eos).long()
    return (is_eos.cumsum(1) - is_eos == 0) & is_eos.any(1, keepdim=True)


RIGHT = {
    "sequence_logprob": {
        "where": lambda logprobs, mask: torch.where(mask, logprobs, 0.0).sum(1),
        "rows": lambda logprobs, mask: torch.stack([row[kept].sum() for row, kept in zip(logprobs, mask, strict=True)]),
        "in place": zeroed_in_place,
        "list": sums_as_a_list,
        "numpy": lambda logprobs, mask: logprobs.numpy().sum(axis=1, where=mask.numpy()),
    },
    "entropy_of": {
        "distribution": lambda logits: Categorical(logits=logits).entropy(),
        "entr": lambda logits: torch.special.entr(logits.softmax(-1)).sum(-1),
        "logsumexp": lambda logits: logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1),
        "recursion": nested_entropy,
        "numpy": lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).numpy().sum(-1),
    },
    "response_mask": {
        "rows of lists": rows_until,
        "position": by_position,
        "shifted": shifted,
        "numpy": lambda response_ids, eos: shifted(response_ids, eos).numpy(),
    },
}
WRONG = {
    "sequence_logprob": {
        "padding summed": lambda logprobs, mask: logprobs.sum(1),
        "mean": lambda logprobs, mask: logprobs.masked_fill(~mask, 0).sum(1) / mask.sum(1),
        "probability": lambda logprobs, mask: logprobs.masked_fill(~mask, 0).sum(1).exp(),
        "over the batch": lambda logprobs, mask: logprobs.masked_fill(~mask, 0).sum(0),
        "one number": lambda logprobs, mask: logprobs.masked_fill(~mask, 0).sum(),
        "column kept": lambda logprobs, mask: logprobs.masked_fill(~mask, 0).sum(1, keepdim=True),
        "sign": lambda logprobs, mask: -logprobs.masked_fill(~mask, 0).sum(1),
        "mask inverted": lambda logprobs, mask: logprobs.masked_fill(mask, 0).sum(1),
        "product": lambda logprobs, mask: logprobs.masked_fill(~mask, 1).prod(1),
        "last token dropped": lambda logprobs, mask: logprobs.masked_fill(~mask, 0)[:, :-1].sum(1),
        "last real token dropped": lambda logprobs, mask: torch.stack(
            [row[kept][:-1].sum() for row, kept in zip(logprobs, mask, strict=True)]
        ),
        "not summed": lambda logprobs, mask: logprobs.masked_fill(~mask, 0),
    },
    "entropy_of": {
        "bits": lambda logits: Categorical(logits=logits).entropy() / math.log(2),
        "sign": lambda logits: -Categorical(logits=logits).entropy(),
        "mean over V": lambda logits: torch.special.entr(logits.softmax(-1)).mean(-1),
        "first dimension": lambda logits: torch.special.entr(logits.softmax(0)).sum(0),
        "everything summed": lambda logits: Categorical(logits=logits).entropy().sum(),
        "share of the largest": lambda logits: Categorical(logits=logits).entropy() / math.log(logits.shape[-1]),
        "logits taken for logs": lambda logits: -(logits.exp() * logits).sum(-1),
        "without exp": lambda logits: -(logits.log_softmax(-1) * logits).sum(-1),
        "surprise of the likeliest": lambda logits: -logits.log_softmax(-1).amax(-1),
        "always uniform": lambda logits: torch.full(logits.shape[:-1], math.log(logits.shape[-1])),
        "second dimension": lambda logits: torch.special.entr(logits.softmax(min(1, logits.ndim - 1))).sum(
            min(1, logits.ndim - 1)
        ),
    },
    "response_mask": {
        "EOS left out": lambda response_ids, eos: (response_ids == eos).cumsum(1) == 0,
        "only EOS": lambda response_ids, eos: response_ids != eos,
        "until the second": lambda response_ids, eos: (response_ids == eos).cumsum(1) <= 1,
        "until the last": until_the_last,
        "nothing without EOS": without_eos_nothing,
        "all true": lambda response_ids, eos: torch.ones_like(response_ids, dtype=torch.bool),
        "inverted": lambda response_ids, eos: ~shifted(response_ids, eos),
        "EOS is 0": lambda response_ids, eos: shifted(response_ids, 0),
        "EOS is the largest id": lambda response_ids, eos: shifted(response_ids, response_ids.max()),
        "along the batch": lambda response_ids, eos: shifted(response_ids.T, eos).T,
        "first row for all": lambda response_ids, eos: shifted(response_ids, eos)[:1].expand(response_ids.shape),
        "one too far": lambda response_ids, eos: torch.cat(
            [torch.ones_like(response_ids[:, :1]).bool(), shifted(response_ids, eos)[:, :-1]], dim=1
        ),
    },
}
