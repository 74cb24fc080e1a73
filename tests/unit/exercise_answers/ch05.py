"""Answers to chapter 5: the ratio, the clipped loss, mean entropy."""

import math

import numpy as np
import torch
from torch.distributions import Categorical


def ratio_by_token(logprobs, old_logprobs, mask):
    return [
        [math.exp(new - old) if real else 1.0 for new, old, real in zip(*row, strict=True)]
        for row in zip(logprobs.tolist(), old_logprobs.tolist(), mask.tolist(), strict=True)
    ]


def ratio_in_place(logprobs, old_logprobs, mask):
    logprobs -= old_logprobs
    logprobs[~mask] = 0
    return logprobs.exp_()


def loss_of(term, over=lambda x, mask: x[mask].mean()):
    """Minus a mean of `term(ratio, advantages, ε)`."""

    def answer(logprobs, old_logprobs, advantages, mask, cliprange):
        ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()
        return -over(term(ratio, advantages, cliprange), mask)

    return answer


def smaller(ratio, advantages, cliprange):
    return torch.minimum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages)


def by_sign(logprobs, old_logprobs, advantages, mask, cliprange):
    total = 0.0
    for new, old, a in zip(logprobs[mask], old_logprobs[mask], advantages[mask], strict=True):
        ratio = math.exp(new - old)
        total += float(a) * (min(ratio, 1 + cliprange) if a > 0 else max(ratio, 1 - cliprange))
    return -total / int(mask.sum())


def larger_loss(logprobs, old_logprobs, advantages, mask, cliprange):
    ratio = torch.exp((logprobs - old_logprobs)[mask])
    kept = advantages[mask]
    return torch.max(-kept * ratio, -kept * torch.clamp(ratio, 1.0 - cliprange, 1.0 + cliprange)).mean()


def mean_of_rows(x, mask):
    return torch.stack([row[kept].mean() for row, kept in zip(x, mask, strict=True)]).mean()


def clipped_logs(logprobs, old_logprobs, advantages, mask, cliprange):
    difference = (logprobs - old_logprobs)[mask]
    kept = advantages[mask]
    return -torch.minimum(difference.exp() * kept, difference.clamp(-cliprange, cliprange).exp() * kept).mean()


RIGHT_LOSS = loss_of(smaller)


def entropies(logits):
    return Categorical(logits=logits).entropy()


def entropy_by_token(logits, mask):
    found = []
    for b, t in mask.nonzero().tolist():
        p = logits[b, t].softmax(0)
        found.append(-(p * p.log()).sum().item())
    return sum(found) / len(found)


RIGHT = {
    "ratio": {
        "where": lambda new, old, mask: torch.where(mask, torch.exp(new - old), 1.0),
        "list": ratio_by_token,
        "in place": ratio_in_place,
        "numpy": lambda new, old, mask: np.exp(np.where(mask, new - old, 0.0)),
        "filled": lambda new, old, mask: torch.exp(new - old).masked_fill(~mask, 1.0),
        "difference multiplied by the mask": lambda new, old, mask: torch.exp((new - old) * mask),
        "quotient": lambda new, old, mask: torch.where(mask, new.exp() / old.exp(), torch.ones(())),
    },
    "clipped_loss": {
        "larger of the losses": larger_loss,
        "by the sign of the advantage": by_sign,
        "minimum": RIGHT_LOSS,
        "numpy": lambda *arguments: RIGHT_LOSS(*arguments).numpy(),
        "sum over count": loss_of(smaller, lambda x, mask: x.masked_fill(~mask, 0.0).sum() / mask.sum()),
    },
    "mean_entropy": {
        "distribution": lambda logits, mask: entropies(logits)[mask].mean(),
        "of real tokens only": lambda logits, mask: torch.special.entr(logits[mask].softmax(-1)).sum(-1).mean(),
        "float": entropy_by_token,
        "padding multiplied away": lambda logits, mask: (
            (-(logits.log_softmax(-1).exp() * logits.log_softmax(-1)).sum(-1) * mask).sum() / mask.sum()
        ),
        "sum over count": lambda logits, mask: torch.where(mask, entropies(logits), 0.0).sum() / mask.sum(),
    },
}
WRONG = {
    "ratio": {
        "padding kept": lambda new, old, mask: torch.exp(new - old),
        "padding 0": lambda new, old, mask: torch.where(mask, torch.exp(new - old), 0.0),
        "multiplied by the mask after exp": lambda new, old, mask: torch.exp(new - old) * mask + ~mask,
        "turned over": lambda new, old, mask: torch.exp((old - new).masked_fill(~mask, 0.0)),
        "log-ratio": lambda new, old, mask: (new - old).masked_fill(~mask, 0.0),
        "quotient of logs": lambda new, old, mask: torch.where(mask, new / old, 1.0),
        "difference of probabilities": lambda new, old, mask: torch.where(mask, new.exp() - old.exp(), 1.0),
        "whole responses": lambda new, old, mask: (
            (new - old).masked_fill(~mask, 0.0).sum(1, keepdim=True).exp().expand(mask.shape)
        ),
        "clipped": lambda new, old, mask: torch.exp((new - old).masked_fill(~mask, 0.0)).clamp(0.8, 1.2),
        "at most 1": lambda new, old, mask: torch.exp((new - old).masked_fill(~mask, 0.0)).clamp(max=1),
        "flat": lambda new, old, mask: torch.exp(new - old)[mask],
        "old ignored": lambda new, old, mask: torch.exp(new.masked_fill(~mask, 0.0)),
        "first order": lambda new, old, mask: 1 + (new - old).masked_fill(~mask, 0.0),
        "all 1": lambda new, old, mask: torch.ones_like(new),
        "mask inverted": lambda new, old, mask: torch.exp((new - old).masked_fill(mask, 0.0)),
    },
    "clipped_loss": {
        "not clipped": loss_of(lambda ratio, a, eps: ratio * a),
        "clipped only": loss_of(lambda ratio, a, eps: ratio.clamp(1 - eps, 1 + eps) * a),
        "larger": loss_of(lambda ratio, a, eps: torch.maximum(ratio * a, ratio.clamp(1 - eps, 1 + eps) * a)),
        "sign": lambda *arguments: -RIGHT_LOSS(*arguments),
        "padding in the mean": loss_of(smaller, lambda x, mask: x.masked_fill(~mask, 0.0).mean()),
        "padding counts": lambda new, old, a, mask, eps: RIGHT_LOSS(new, old, a, torch.ones_like(mask), eps),
        "mean of the responses' means": loss_of(smaller, mean_of_rows),
        "sum": loss_of(smaller, lambda x, mask: x[mask].sum()),
        "ratio turned over": lambda new, old, a, mask, eps: RIGHT_LOSS(old, new, a, mask, eps),
        "upper bound only": loss_of(lambda ratio, a, eps: torch.minimum(ratio * a, ratio.clamp(max=1 + eps) * a)),
        "lower bound only": loss_of(lambda ratio, a, eps: torch.minimum(ratio * a, ratio.clamp(min=1 - eps) * a)),
        "0.2 for ε": lambda new, old, a, mask, eps: RIGHT_LOSS(new, old, a, mask, 0.2),
        "logs clipped": clipped_logs,
        "smaller of the ratios": loss_of(lambda ratio, a, eps: torch.minimum(ratio, ratio.clamp(1 - eps, 1 + eps)) * a),
        "advantages whitened": lambda new, old, a, mask, eps: RIGHT_LOSS(
            new, old, (a - a[mask].mean()) / a[mask].std(), mask, eps
        ),
        "clip of the product": loss_of(
            lambda ratio, a, eps: torch.minimum(ratio * a, (ratio * a).clamp(1 - eps, 1 + eps))
        ),
        "no mean": loss_of(smaller, lambda x, mask: x.masked_fill(~mask, 0.0)),
        "advantages ignored": loss_of(lambda ratio, a, eps: ratio.clamp(1 - eps, 1 + eps)),
    },
    "mean_entropy": {
        "padding in the mean": lambda logits, mask: entropies(logits.nan_to_num(0)).mean(),
        "zeros in the mean": lambda logits, mask: torch.where(mask, entropies(logits.nan_to_num(0)), 0.0).mean(),
        "bits": lambda logits, mask: entropies(logits.nan_to_num(0))[mask].mean() / math.log(2),
        "sign": lambda logits, mask: -entropies(logits.nan_to_num(0))[mask].mean(),
        "sum": lambda logits, mask: entropies(logits.nan_to_num(0))[mask].sum(),
        "mean over V": lambda logits, mask: torch.special.entr(logits.softmax(-1)).mean(-1)[mask].mean(),
        "along the tokens": lambda logits, mask: torch.special.entr(logits.softmax(1)).sum(-1)[mask].mean(),
        "mean of the responses' means": lambda logits, mask: mean_of_rows(entropies(logits.nan_to_num(0)), mask),
        "one for each token": lambda logits, mask: entropies(logits.nan_to_num(0)).masked_fill(~mask, 0.0),
        "entropy of the mean": lambda logits, mask: entropies(logits[mask].mean(0)),
        "of the uniform": lambda logits, mask: math.log(logits.shape[-1]),
        "share of the largest": lambda logits, mask: (
            entropies(logits.nan_to_num(0))[mask].mean() / math.log(logits.shape[-1])
        ),
    },
}
