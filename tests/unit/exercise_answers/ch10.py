"""Answers to chapter 10: what old samples are worth, the decoupled loss, the backward pass with traces."""

import math

import numpy as np
import torch


def counted(logprobs, behaviour_logprobs, mask):
    total = squares = count = 0.0
    for b, t in mask.nonzero().tolist():
        c = math.exp(logprobs[b, t] - behaviour_logprobs[b, t])
        total, squares, count = total + c, squares + c * c, count + 1
    return total**2 / (count * squares)


def in_place(logprobs, behaviour_logprobs, mask):
    logprobs -= behaviour_logprobs
    logprobs.exp_()
    logprobs[~mask] = 0
    return logprobs.sum() ** 2 / mask.sum() / (logprobs**2).sum()


def share(c):
    return c.sum() ** 2 / (len(c) * (c**2).sum())


def ratios(new, old, mask):
    return (new - old).masked_fill(~mask, 0.0).exp()


def loss_with(
    rho=lambda new, prox, behaviour, mask: ratios(new, prox, mask),
    weight=lambda new, prox, behaviour, mask, cap: ratios(prox, behaviour, mask).clamp(max=cap),
    over=lambda x, mask: x[mask].mean(),
    inner=torch.minimum,
):
    """The decoupled loss, with parts that may be exchanged."""

    def answer(new, prox, behaviour, a, mask, eps, cap):
        r = rho(new, prox, behaviour, mask)
        return -over(weight(new, prox, behaviour, mask, cap) * inner(r * a, r.clamp(1 - eps, 1 + eps) * a), mask)

    return answer


LOSS = loss_with()


def loss_by_token(new, prox, behaviour, advantages, mask, cliprange, cap):
    terms = []
    for n, p, b, a in zip(*(x[mask].tolist() for x in (new, prox, behaviour, advantages)), strict=True):
        rho = math.exp(n - p)
        terms.append(min(math.exp(p - b), cap) * max(-rho * a, -min(max(rho, 1 - cliprange), 1 + cliprange) * a))
    return sum(terms) / len(terms)


def weight_in_the_advantage(new, prox, behaviour, advantages, mask, cliprange, cap):
    new, prox, behaviour, advantages = (x[mask] for x in (new, prox, behaviour, advantages))
    advantages = advantages * torch.exp(prox - behaviour).clamp(max=cap)
    ratio = torch.exp(new - prox)
    return torch.mean(torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)))


def rows(x, mask):
    return torch.stack([row[kept].mean() for row, kept in zip(x, mask, strict=True)]).mean()


def traced(deltas, ratios, gamma, lam, traces=lambda c: c.clamp(max=1.0)):
    carried, out = torch.zeros(len(deltas)), []
    for delta, trace in zip(reversed(deltas.T), reversed(traces(ratios).T), strict=True):
        out.append(delta + gamma * lam * carried)
        carried = trace * out[-1]
    return torch.stack(out[::-1], dim=1)


def traced_sums(deltas, ratios, gamma, lam):
    out = [[0.0] * deltas.shape[1] for _ in deltas]
    for b, (row, c) in enumerate(zip(deltas.tolist(), ratios.tolist(), strict=True)):
        for t in range(len(row)):
            for later in range(t, len(row)):
                between = math.prod(min(1.0, c[k]) for k in range(t + 1, later + 1))
                out[b][t] += (gamma * lam) ** (later - t) * between * row[later]
    return out


def traced_in_place(deltas, ratios, gamma, lam):
    ratios[ratios > 1] = 1
    for t in range(deltas.shape[1] - 2, -1, -1):
        deltas[:, t] += gamma * lam * ratios[:, t + 1] * deltas[:, t + 1]
    return deltas


def own_trace(deltas, ratios, gamma, lam):
    advantages = torch.zeros_like(deltas)
    behind = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        behind = advantages[:, t] = deltas[:, t] + gamma * lam * ratios[:, t].clamp(max=1) * behind
    return advantages


def trace_kept(deltas, ratios, gamma, lam):
    advantages = torch.zeros_like(deltas)
    behind = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        behind = advantages[:, t] = ratios[:, t].clamp(max=1) * (deltas[:, t] + gamma * lam * behind)
    return advantages


def forwards(deltas, ratios, gamma, lam):
    return traced(deltas.flip(1), ratios.flip(1), gamma, lam).flip(1)


RIGHT = {
    "share_of_samples": {
        "float": counted,
        "in place": in_place,
        "means": lambda new, old, mask: (c := (new[mask] - old[mask]).exp()).mean() ** 2 / c.square().mean(),
        "numpy": lambda new, old, mask: (c := np.exp((new - old).numpy()[mask])).sum() ** 2 / (c**2).sum() / len(c),
        "logs": lambda new, old, mask: (
            2 * (new - old)[mask].logsumexp(0) - (2 * (new - old)[mask]).logsumexp(0) - mask.sum().log()
        ).exp(),
    },
    "decoupled_loss": {
        "float": loss_by_token,
        "weight in the advantage": weight_in_the_advantage,
        "parts": LOSS,
        "sum over count": loss_with(over=lambda x, mask: x.masked_fill(~mask, 0.0).sum() / mask.sum()),
    },
    "old_advantages": {
        "columns": traced,
        "sums as lists": traced_sums,
        "in place": traced_in_place,
        "numpy": lambda *arguments: traced(*arguments).numpy(),
    },
}
WRONG = {
    "share_of_samples": {
        "number of samples": lambda new, old, mask: share((new - old)[mask].exp()) * mask.sum(),
        "padding counts": lambda new, old, mask: share((new - old).exp().flatten()),
        "padding is 1": lambda new, old, mask: share(ratios(new, old, mask).flatten()),
        "padding in the number": lambda new, old, mask: share((new - old)[mask].exp()) * mask.sum() / mask.numel(),
        "multiplied by the mask": lambda new, old, mask: (
            (c := (new - old).exp() * mask).sum() ** 2 / (mask.sum() * (c**2).sum())
        ),
        "turned over": lambda new, old, mask: share((old - new)[mask].exp()),
        "log-ratios": lambda new, old, mask: share((new - old)[mask]),
        "formula turned over": lambda new, old, mask: 1 / share((new - old)[mask].exp()),
        "not squared": lambda new, old, mask: (c := (new - old)[mask].exp()).sum() / (len(c) * (c**2).sum()),
        "square of the sum below": lambda new, old, mask: (
            (c := (new - old)[mask].exp()).sum() ** 2 / (len(c) * c.sum() ** 2)
        ),
        "whole responses": lambda new, old, mask: share((new - old).masked_fill(~mask, 0.0).sum(1).exp()),
        "mean over responses": lambda new, old, mask: torch.stack(
            [share((n - o)[m].exp()) for n, o, m in zip(new, old, mask, strict=True)]
        ).mean(),
        "root": lambda new, old, mask: share((new - old)[mask].exp()).sqrt(),
        "old ignored": lambda new, old, mask: share(new[mask].exp()),
        "truncated": lambda new, old, mask: share((new - old)[mask].exp().clamp(max=1)),
        "percent": lambda new, old, mask: share((new - old)[mask].exp()) * 100,
    },
    "decoupled_loss": {
        "coupled": loss_with(
            rho=lambda new, prox, behaviour, mask: ratios(new, behaviour, mask), weight=lambda *_: torch.ones(())
        ),
        "no weight": loss_with(weight=lambda *_: torch.ones(())),
        "no cap": loss_with(weight=lambda new, prox, behaviour, mask, cap: ratios(prox, behaviour, mask)),
        "cap is a floor": loss_with(
            weight=lambda new, prox, behaviour, mask, cap: ratios(prox, behaviour, mask).clamp(min=cap)
        ),
        "cap on both sides": loss_with(
            weight=lambda new, prox, behaviour, mask, cap: ratios(prox, behaviour, mask).clamp(1 / cap, cap)
        ),
        "cap of 1": loss_with(
            weight=lambda new, prox, behaviour, mask, cap: ratios(prox, behaviour, mask).clamp(max=1)
        ),
        "weight turned over": loss_with(
            weight=lambda new, prox, behaviour, mask, cap: ratios(behaviour, prox, mask).clamp(max=cap)
        ),
        "weight from today's": loss_with(
            weight=lambda new, prox, behaviour, mask, cap: ratios(new, behaviour, mask).clamp(max=cap)
        ),
        "clip around behaviour": loss_with(rho=lambda new, prox, behaviour, mask: ratios(new, behaviour, mask)),
        "ratio turned over": loss_with(rho=lambda new, prox, behaviour, mask: ratios(prox, new, mask)),
        "larger": loss_with(inner=torch.maximum),
        "not clipped": loss_with(inner=lambda plain, clipped: plain),
        "clipped only": loss_with(inner=lambda plain, clipped: clipped),
        "sign": lambda *arguments: -LOSS(*arguments),
        "padding in the mean": loss_with(over=lambda x, mask: x.masked_fill(~mask, 0.0).mean()),
        "padding counts": lambda *a: LOSS(*a[:4], torch.ones_like(a[4]), *a[5:]),
        "mean of the responses' means": loss_with(over=rows),
        "sum": loss_with(over=lambda x, mask: x[mask].sum()),
        "divided by the weights": lambda new, prox, behaviour, a, mask, eps, cap: (
            LOSS(new, prox, behaviour, a, mask, eps, cap) / ratios(prox, behaviour, mask).clamp(max=cap)[mask].mean()
        ),
        "0.2 and 2": lambda *a: LOSS(*a[:5], 0.2, 2.0),
    },
    "old_advantages": {
        "no traces": lambda d, c, gamma, lam: traced(d, torch.ones_like(c), gamma, lam),
        "not cut": lambda d, c, gamma, lam: traced(d, c, gamma, lam, lambda c: c),
        "at least 1": lambda d, c, gamma, lam: traced(d, c, gamma, lam, lambda c: c.clamp(min=1)),
        "turned over": lambda d, c, gamma, lam: traced(d, 1 / c, gamma, lam),
        "own trace": own_trace,
        "trace kept": trace_kept,
        "forwards": forwards,
        "gamma ignored": lambda d, c, gamma, lam: traced(d, c, 1.0, lam),
        "lambda ignored": lambda d, c, gamma, lam: traced(d, c, gamma, 1.0),
        "nothing carried": lambda d, c, gamma, lam: d,
        "deltas traced": lambda d, c, gamma, lam: traced(d * c.clamp(max=1), c, gamma, lam),
        "deltas traced, plain pass": lambda d, c, gamma, lam: traced(
            d * c.clamp(max=1), torch.ones_like(c), gamma, lam
        ),
        "sign": lambda *arguments: -traced(*arguments),
        "traces 0 or 1": lambda d, c, gamma, lam: traced(d, (c >= 1).float(), gamma, lam),
        "mean of the ratios": lambda d, c, gamma, lam: traced(d, c.mean(1, keepdim=True).expand(c.shape), gamma, lam),
    },
}
