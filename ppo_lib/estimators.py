"""Masked statistics, KL estimators, token rewards and GAE: pure functions of tensors.

B responses, T tokens each. `mask` [B, T] is true on the tokens that were sampled, the EOS included;
what the other places hold never matters.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` [B, T] over the places where `mask` [B, T] is true: a scalar, one mean over all tokens."""
    return x.masked_fill(~mask, 0.0).sum() / mask.sum()


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of `x` [B, T] over `mask`: a scalar, 0 when fewer than two places are true."""
    n = mask.sum()
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask) * n / (n - 1).clamp(min=1)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale `x` [B, T] to variance 1 over `mask`; to mean 0 as well, unless `shift_mean` is false."""
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return (white if shift_mean else white + mean).masked_fill(~mask, 0.0)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1 = log π − log π_ref per token: unbiased for KL(π ‖ π_ref) on samples of π, may be negative.

    Source: Schulman, "Approximating KL divergence" (2020), joschu.net/blog/kl-approx.html.
    """
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2 = ½ (log π − log π_ref)² per token: never negative, low variance, biased (Schulman 2020)."""
    return 0.5 * (logprobs - ref_logprobs) ** 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 = π_ref/π − 1 − log(π_ref/π) per token: never negative *and* unbiased (Schulman 2020)."""
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: −β·(log π − log π_ref), and the score on the last sampled token.

    Args:
        scores: [B], what the reward says of each whole response.
        logprobs, ref_logprobs: [B, T], under the policy that sampled and under the reference.
        mask: [B, T].
        kl_coef: β.

    Returns:
        [B, T], zero outside `mask`. The last sampled token is the EOS where there is one, never padding.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), equation 2.
    """
    rewards = (-kl_coef * kl_k1(logprobs, ref_logprobs)).masked_fill(~mask, 0.0)
    last = mask.sum(dim=1) - 1  # [B]
    rewards[torch.arange(len(last), device=last.device), last] += scores
    return rewards


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    ended: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap_cut: bool = False,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the response tokens.

        δ_t = r_t + γ V(s_{t+1}) − V(s_t),    A_t = δ_t + γλ A_{t+1},    return_t = A_t + V(s_t)

    Args:
        rewards: [B, T].
        values: [B, T+1]; `values[:, t]` is V of the state *before* token t, so the last column is the
            value after token T−1.
        mask: [B, T].
        ended: [B] bool, true where the response finished with EOS.
        bootstrap_cut: whether a response cut off at the token limit is valued as if it went on. Off by
            default: the score has judged the cut text as it stands, so nothing more is to come.

    Returns:
        advantages [B, T] (not whitened) and returns [B, T], both zero outside `mask`.

    Source: Schulman et al. 2015 (arXiv 1506.02438), equations 11 to 16.
    """
    goes_on = torch.zeros_like(mask)  # [B, T], whether there is a state worth valuing after token t
    goes_on[:, :-1] = mask[:, 1:]
    if bootstrap_cut:
        goes_on |= mask & ~ended[:, None]
    next_values = values[:, 1:].masked_fill(~goes_on, 0.0)
    deltas = (rewards + gamma * next_values - values[:, :-1]).masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(mask.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    returns = (advantages + values[:, :-1]).masked_fill(~mask, 0.0)
    return advantages, returns
