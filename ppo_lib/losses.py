"""The terms of the loss: pure functions of tensors, each one mean over all response tokens.

All tensors are [B, T]; `mask` is true on the sampled tokens. Source of the clipped terms: Schulman et al.
2017 (arXiv 1707.06347), equation 7; the value clip comes from the baselines implementation of that paper.
"""

import torch
from torch import Tensor

from ppo_lib.estimators import masked_mean


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Tensor:
    """−mean over tokens of min(r A, clip(r, 1−ε, 1+ε) A), with r = π_θ / π_old.

    Args:
        logprobs: log π_θ of the sampled tokens, carries the gradient.
        old_logprobs: log π_old, of the policy that sampled them.
        cliprange: ε; a tensor [B, T] gives each token its own.
    """
    ratio = torch.exp((logprobs - old_logprobs).masked_fill(~mask, 0.0))
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)


def clip_fraction(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Tensor:
    """Share of tokens whose gradient the clip removes: r beyond 1+ε with A > 0, or below 1−ε with A < 0."""
    ratio = torch.exp((logprobs - old_logprobs).masked_fill(~mask, 0.0))
    stopped = ((advantages > 0) & (ratio > 1 + cliprange)) | ((advantages < 0) & (ratio < 1 - cliprange))
    return masked_mean(stopped.float(), mask)


def regression_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    scale: float,
    floor: float,
    weights: Tensor | float = 1.0,
) -> Tensor:
    """η/2 · mean over tokens of w (log r − clip(A/η, −τ, 5))²: pulls the ratio r = π_θ / π_old of a token to exp(A/η).

    That is the policy which gains most where each nat of KL(π_θ ‖ π_old) costs η; at r = 1 the gradient is that of the
    clipped objective. In place of the clip's wall there is a target, whichever policy sampled the token.

    Args:
        logprobs: log π_θ of the sampled tokens, carries the gradient.
        old_logprobs: log π_old, of the policy at the start of the update.
        scale: η, in units of the advantage: A = η asks for a ratio of e.
        floor: τ, in nats: a token is pushed down by no more.
        weights: [B, T], what each token counts.

    Source: mirror descent policy optimisation, Tomar et al. 2020 (arXiv 2005.09814); log-ratios as what is regressed
    on, Gao et al. 2024 (arXiv 2404.16767).
    """
    target = (advantages / scale).clamp(-floor, 5.0)
    error = (logprobs - old_logprobs - target).masked_fill(~mask, 0.0)
    return 0.5 * scale * masked_mean(weights * error**2, mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float) -> Tensor:
    """½ mean over tokens of max((V − R)², (V_clipped − R)²); V_clipped stays within ε of the old value.

    Args:
        values: V_θ(s_t), carries the gradient.
        old_values: V(s_t) when the rollout was taken.
        returns: R_t, the targets.
    """
    values = values.masked_fill(~mask, 0.0)
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def value_clip_fraction(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float
) -> Tensor:
    """Share of tokens where the clipped value has the larger error, so that the value's gradient is removed."""
    moved = values - old_values
    clipped = old_values + moved.clamp(-cliprange_value, cliprange_value)
    stopped = (moved.abs() > cliprange_value) & ((clipped - returns) ** 2 > (values - returns) ** 2)
    return masked_mean(stopped.float(), mask)


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of the distributions given by `logits` [..., V]: [...]."""
    logp = torch.log_softmax(logits, dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)
