"""Exercises of chapter 10: the effective sample size, the decoupled loss, advantages by V-trace."""

import torch

from ppo_lib.estimators import masked_mean
from ppo_lib.lab.exercises.check import Exercise


def _ess(logprobs, behaviour_logprobs, mask):
    weights = (logprobs - behaviour_logprobs)[mask].exp()
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum())


def _padding_counts(logprobs, behaviour_logprobs, mask):
    weights = (logprobs - behaviour_logprobs).masked_fill(~mask, 0.0).exp().flatten()
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum())


def _logs_as_weights(logprobs, behaviour_logprobs, mask):
    weights = (logprobs - behaviour_logprobs)[mask]
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum())


def _a_count(logprobs, behaviour_logprobs, mask):
    return _ess(logprobs, behaviour_logprobs, mask) * mask.sum()


def _sum_not_squared(logprobs, behaviour_logprobs, mask):
    weights = (logprobs - behaviour_logprobs)[mask].exp()
    return weights.sum() / (len(weights) * (weights**2).sum())


_GENERATOR = torch.Generator().manual_seed(0)
_MASK = torch.tensor([[True, True, True, True], [True, True, True, False], [True, False, False, False]])
_BEHAVIOUR = -2 * torch.rand(3, 4, generator=_GENERATOR)
_PROXIMAL = _BEHAVIOUR + 0.8 * torch.randn(3, 4, generator=_GENERATOR)
_NOW = _PROXIMAL + 0.3 * torch.randn(3, 4, generator=_GENERATOR)
_ADVANTAGES = torch.randn(3, 4, generator=_GENERATOR)

share_of_samples = Exercise(
    "share_of_samples",
    solution=_ess,
    inputs=[
        (_PROXIMAL, _BEHAVIOUR, _MASK),
        (_NOW.masked_fill(~_MASK, 50.0), _BEHAVIOUR.masked_fill(~_MASK, -50.0), _MASK),
        (_BEHAVIOUR[:, 1:], _NOW[:, 1:], _MASK[:, 1:]),
    ],
    mistakes={
        "padding counts in your share: take the ratios where `mask` is true.": _padding_counts,
        "your ratios are upside down: π_k over μ, and μ is the policy that sampled.": (
            lambda logprobs, behaviour, mask: _ess(behaviour, logprobs, mask)
        ),
        "those are the logs of the ratios: take `exp` first.": _logs_as_weights,
        "that is a number of samples: divide by how many there are.": _a_count,
        "square the sum: (Σ c)², not Σ c.": _sum_not_squared,
    },
)


def _decoupled(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    ratio = (logprobs - proximal_logprobs).masked_fill(~mask, 0.0).exp()
    weight = (proximal_logprobs - behaviour_logprobs).masked_fill(~mask, 0.0).exp().clamp(max=cap)
    smaller = torch.minimum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages)
    return -masked_mean(weight * smaller, mask)


def _coupled(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    return _decoupled(logprobs, behaviour_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap)


def _coupled_and_weighted(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    weight = (proximal_logprobs - behaviour_logprobs).masked_fill(~mask, 0.0).exp().clamp(max=cap)
    return _coupled(logprobs, proximal_logprobs, behaviour_logprobs, weight * advantages, mask, cliprange, cap)


def _moving_weight(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    weight = (logprobs - behaviour_logprobs).masked_fill(~mask, 0.0).exp().clamp(max=cap)
    return _decoupled(logprobs, proximal_logprobs, proximal_logprobs, weight * advantages, mask, cliprange, cap)


def _upside_down(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    swapped = 2 * proximal_logprobs - behaviour_logprobs
    return _decoupled(logprobs, proximal_logprobs, swapped, advantages, mask, cliprange, cap)


def _larger(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    return -_decoupled(logprobs, proximal_logprobs, behaviour_logprobs, -advantages, mask, cliprange, cap)


def _over_everything(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    loss = _decoupled(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap)
    return loss * mask.sum() / mask.numel()


def _over_weights(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap):
    loss = _decoupled(logprobs, proximal_logprobs, behaviour_logprobs, advantages, mask, cliprange, cap)
    weight = (proximal_logprobs - behaviour_logprobs)[mask].exp().clamp(max=cap)
    return loss * mask.sum() / weight.sum()


decoupled_loss = Exercise(
    "decoupled_loss",
    solution=_decoupled,
    inputs=[
        (_NOW, _PROXIMAL, _BEHAVIOUR, _ADVANTAGES, _MASK, 0.2, 1.5),
        (_NOW, _PROXIMAL, _BEHAVIOUR, _ADVANTAGES.masked_fill(~_MASK, 9.0), _MASK, 0.1, 0.9),
        (_PROXIMAL[:, 1:], _NOW[:, 1:], _BEHAVIOUR[:, :3], -_ADVANTAGES[:, 1:], _MASK[:, 1:], 0.3, 1.2),
    ],
    mistakes={
        "that is the coupled clip, centred on μ: centre it on π_k and let a weight correct for μ.": _coupled,
        "the weight is right, but your clip is still centred on μ: centre it on π_k.": _coupled_and_weighted,
        "the weight is missing: multiply each token by min(π_k/μ, C).": (
            lambda now, proximal, behaviour, advantages, mask, cliprange, cap: _decoupled(
                now, proximal, proximal, advantages, mask, cliprange, 1.0
            )
        ),
        "your weight is not truncated: no token weighs more than C.": (
            lambda now, proximal, behaviour, advantages, mask, cliprange, cap: _decoupled(
                now, proximal, behaviour, advantages, mask, cliprange, float("inf")
            )
        ),
        "your weight moves with π_θ: it is π_k/μ, fixed before the first step.": _moving_weight,
        "your weight is upside down: π_k over μ, and μ is the policy that sampled.": _upside_down,
        "you took the larger of the two terms: the objective is their minimum.": _larger,
        "that is the objective: the loss is minus it.": lambda *arguments: -_decoupled(*arguments),
        "you averaged over padding: divide by mask.sum(), not by numel().": _over_everything,
        "you divided by the sum of the weights: one mean over all tokens, as on fresh data.": _over_weights,
    },
)


def _old_advantages(deltas, ratios, gamma, lam):
    traces, advantages = ratios.clamp(max=1.0), torch.zeros_like(deltas)
    behind = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        advantages[:, t] = deltas[:, t] + gamma * lam * behind
        behind = traces[:, t] * advantages[:, t]
    return advantages


def _untruncated(deltas, ratios, gamma, lam):
    advantages, behind = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        advantages[:, t] = deltas[:, t] + gamma * lam * behind
        behind = ratios[:, t] * advantages[:, t]
    return advantages


def _own_ratio(deltas, ratios, gamma, lam):
    traces, advantages = ratios.clamp(max=1.0), torch.zeros_like(deltas)
    behind = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        behind = advantages[:, t] = deltas[:, t] + gamma * lam * traces[:, t] * behind
    return advantages


def _delta_weighted(deltas, ratios, gamma, lam):
    traces, advantages = ratios.clamp(max=1.0), torch.zeros_like(deltas)
    behind = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        behind = advantages[:, t] = traces[:, t] * (deltas[:, t] + gamma * lam * behind)
    return advantages


def _first_to_last(deltas, ratios, gamma, lam):
    return _old_advantages(deltas.flip(1), ratios.flip(1), gamma, lam).flip(1)


old_advantages = Exercise(
    "old_advantages",
    solution=_old_advantages,
    inputs=[
        (torch.tensor([[-0.25, 0.75]]), torch.tensor([[0.5, 0.2]]), 1.0, 1.0),
        (_ADVANTAGES, (_PROXIMAL - _BEHAVIOUR).exp(), 0.9, 0.8),
    ],
    mistakes={
        "that is GAE: multiply what comes back from the next token by its truncated ratio.": (
            lambda deltas, ratios, gamma, lam: _old_advantages(deltas, torch.ones_like(ratios), gamma, lam)
        ),
        "your traces are not truncated: use min(1, ratio).": _untruncated,
        "you used the token's own ratio: A_t brings back c̄ of token t+1.": _own_ratio,
        "you weighed δ_t as well: only what comes back from later tokens carries a trace.": _delta_weighted,
        "λ is missing.": lambda deltas, ratios, gamma, lam: _old_advantages(deltas, ratios, gamma, 1.0),
        "you walked from the first token to the last: start at the last.": _first_to_last,
    },
)
