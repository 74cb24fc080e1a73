"""Answers to chapter 3: k3 by hand, a mean for each response, pay for not ending."""

import math
from fractions import Fraction

import numpy as np
import torch


def means_as_a_list(x, mask):
    means = []
    for row, kept in zip(x, mask, strict=True):
        values = [value for value, real in zip(row.tolist(), kept.tolist(), strict=True) if real]
        means.append(sum(values) / len(values))
    return means


def zeroed_in_place(x, mask):
    x[~mask] = 0
    return x.sum(-1) / mask.sum(-1)


def token_by_token(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    out = torch.zeros_like(logprobs)
    for b in range(len(scores)):
        length = int(mask[b].sum())
        for t in range(length):
            out[b, t] = -kl_coef * (logprobs[b, t] - ref_logprobs[b, t])
        out[b, length - 1] += scores[b] - (0 if ended[b] else penalty)
    return out


def scattered(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    out = (kl_coef * (ref_logprobs - logprobs)).masked_fill(~mask, 0.0)
    scores -= penalty * ~ended
    return out.scatter_add(1, mask.sum(1, keepdim=True) - 1, scores[:, None])


def kl_only(logprobs, ref_logprobs, mask, kl_coef):
    return (kl_coef * (ref_logprobs - logprobs)).masked_fill(~mask, 0.0)


def last_column(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    out = kl_only(logprobs, ref_logprobs, mask, kl_coef)
    out[:, -1] += scores - penalty * ~ended
    return out


def paid_in_the_last_column(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    out = token_by_token(scores, logprobs, ref_logprobs, mask, torch.ones_like(ended), kl_coef, penalty)
    out[:, -1] -= penalty * ~ended
    return out


def no_kl_at_the_end(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    out = kl_only(logprobs, ref_logprobs, mask, kl_coef)
    out[torch.arange(len(scores)), mask.sum(1) - 1] = scores - penalty * ~ended
    return out


def k3_price(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    log_ratio = ref_logprobs - logprobs
    return token_by_token(scores, log_ratio.exp() - 1 - log_ratio, 0 * logprobs, mask, ended, kl_coef, penalty)


def padding_kept(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty):
    everything = torch.ones_like(mask)
    out = token_by_token(scores, logprobs, ref_logprobs, mask, ended, kl_coef, penalty)
    return torch.where(mask, out, kl_only(logprobs, ref_logprobs, everything, kl_coef))


RIGHT = {
    "k3_by_hand": {
        "math": math.log(2) - 0.5,
        "numpy": np.float64(0.5) - 1 - np.log(0.5),
        "float32": np.float32(math.log(2) - 0.5),
        "tensor": torch.tensor(0.5) - 1 - torch.tensor(0.5).log(),
        "by hand": 0.193,
        "four places": 0.1931,
        "fraction": Fraction(1, 2) - 1 + Fraction(math.log(2)),
    },
    "response_means": {
        "list": means_as_a_list,
        "in place": zeroed_in_place,
        "rows": lambda x, mask: torch.stack([row[kept].mean() for row, kept in zip(x, mask, strict=True)]),
        "numpy": lambda x, mask: x.numpy().mean(axis=1, where=mask.numpy()),
        "nanmean": lambda x, mask: x.where(mask, torch.nan).nanmean(dim=1),
    },
    "rewards_with_penalty": {
        "loops": token_by_token,
        "scatter, in place": scattered,
        "numpy": lambda *arguments: token_by_token(*arguments).numpy(),
        "lists": lambda *arguments: token_by_token(*arguments).tolist(),
    },
}
WRONG = {
    "k3_by_hand": {
        "k1": math.log(2),
        "ratio turned over": 1 - math.log(2),
        "k2": math.log(2) ** 2 / 2,
        "sign": 0.5 - math.log(2),
        "log added": 0.5 - 1 + math.log(0.5),
        "base 2": 0.5,
        "base 10": 0.5 - 1 - math.log10(0.5),
        "without the 1": 0.5 - math.log(0.5),
        "rounded too far": 0.2,
        "only the ratio": 0.5,
        "with the probabilities": 0.5 * (math.log(2) - 0.5),
        "text": "0.193",
        "two numbers": (0.5, 0.693),
    },
    "response_means": {
        "padding counts": lambda x, mask: x.mean(1),
        "multiplied by the mask": lambda x, mask: (x * mask).sum(1) / mask.sum(1),
        "divided by T": lambda x, mask: x.masked_fill(~mask, 0).mean(1),
        "one mean": lambda x, mask: x[mask].mean(),
        "sum": lambda x, mask: x.masked_fill(~mask, 0).sum(1),
        "over the batch": lambda x, mask: x.masked_fill(~mask, 0).sum(0) / mask.sum(0),
        "column": lambda x, mask: x.masked_fill(~mask, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True),
        "divided by all tokens": lambda x, mask: x.masked_fill(~mask, 0).sum(1) / mask.sum(),
        "one off": lambda x, mask: x.masked_fill(~mask, 0).sum(1) / (mask.sum(1) + 1),
        "inverted": lambda x, mask: x.masked_fill(mask, 0).sum(1) / mask.sum(1),
        "nan is 0, padding counts": lambda x, mask: x.nan_to_num(0).sum(1) / mask.sum(1),
        "median": lambda x, mask: torch.stack([row[kept].median() for row, kept in zip(x, mask, strict=True)]),
        "0 left out": lambda x, mask: x.masked_fill(~mask, 0).sum(1) / (x.masked_fill(~mask, 0) != 0).sum(1),
    },
    "rewards_with_penalty": {
        "who ended pays": lambda s, p, q, mask, ended, kl, penalty: token_by_token(s, p, q, mask, ~ended, kl, penalty),
        "penalty added": lambda s, p, q, mask, ended, kl, penalty: token_by_token(s, p, q, mask, ended, kl, -penalty),
        "nobody pays": lambda s, p, q, mask, ended, kl, penalty: token_by_token(s, p, q, mask, ended, kl, 0),
        "all pay": lambda s, p, q, mask, ended, kl, penalty: token_by_token(s - penalty, p, q, mask, ended, kl, 0),
        "KL is a gain": lambda s, p, q, mask, ended, kl, penalty: token_by_token(s, p, q, mask, ended, -kl, penalty),
        "KL without price": lambda s, p, q, mask, ended, kl, penalty: token_by_token(s, p, q, mask, ended, 1, penalty),
        "penalty times the price": lambda s, p, q, mask, ended, kl, penalty: token_by_token(
            s, p, q, mask, ended, kl, penalty * kl
        ),
        "score in the last column": last_column,
        "penalty in the last column": paid_in_the_last_column,
        "no KL at the end": no_kl_at_the_end,
        "k3": k3_price,
        "padding kept": padding_kept,
        "score everywhere": lambda s, p, q, mask, ended, kl, penalty: (
            kl_only(p, q, mask, kl) + (s - penalty * ~ended)[:, None] * mask
        ),
        "penalty instead of the score": lambda s, p, q, mask, ended, kl, penalty: token_by_token(
            torch.where(ended, s, torch.zeros_like(s)), p, q, mask, ended, kl, penalty
        ),
        "penalty at every token": lambda s, p, q, mask, ended, kl, penalty: (
            token_by_token(s, p, q, mask, ended, kl, 0) - penalty * (mask & ~ended[:, None])
        ),
    },
}
