"""Correcting for another policy: importance ratios, their effective sample size, V-trace. Pure functions.

All tensors are [B, T] unless said otherwise; `mask` is true on the sampled tokens. μ is the behaviour policy, which
sampled; π_k the proximal one, which is to be improved. On fresh data they are the same and every ratio is 1.
"""

import torch
from torch import Tensor

from ppo_lib.estimators import gae


def importance_ratios(logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    """π_k/μ of each token, 1 outside `mask`; with level "sequence", of the whole response at each of its tokens."""
    log_ratio = (logprobs - behaviour_logprobs).masked_fill(~mask, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).masked_fill(~mask, 0.0)
    return log_ratio.exp()


def effective_sample_size(ratios: Tensor) -> float:
    """(Σ c)² / (n Σ c²) of n ratios: how many even samples the weighted ones are worth, as a share of n.

    Source: Kong 1992; 1 where all ratios are equal, 1/n where one outweighs the rest.
    """
    return (ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum())).item()


def second_moment_mask(ratios: Tensor, mask: Tensor, limit: float) -> Tensor:
    """1.0 where a token is kept; the furthest are left out until the mean of (log c)² is at most `limit`.

    Source: second-moment trust policy optimisation (arXiv 2510.01161), in one pass over the sorted tokens.
    """
    moments = torch.where(mask, ratios.log() ** 2, torch.inf)
    order = moments.flatten().argsort()
    means = moments.flatten()[order].cumsum(0) / torch.arange(1, order.numel() + 1, device=order.device)
    kept = torch.zeros_like(moments).flatten()
    kept[order[means <= limit]] = 1.0
    return kept.view_as(moments)


def vtrace(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    ended: Tensor,
    traces: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap_cut: bool = False,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of π_k from responses of μ.

        A_t = δ_t + γ λ c̄_{t+1} A_{t+1},    y_t = V(s_t) + c̄_t A_t

    Args:
        traces: c̄, truncated ratios min(c̄_max, π_k/μ); where all are 1, this is `estimators.gae`.
        rewards, values, mask, ended, gamma, lam, bootstrap_cut: as in `estimators.gae`; values are [B, T+1].

    Returns:
        advantages and targets [B, T], zero outside `mask`.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), with λ; GePPO, Queeney et al. 2021 (arXiv 2111.00072).
    """
    deltas, _ = gae(rewards, values, mask, ended, gamma, 0.0, bootstrap_cut)
    advantages = torch.zeros_like(deltas)
    reaching_back = torch.zeros_like(deltas[:, 0])  # c̄_{t+1} A_{t+1}
    for t in reversed(range(mask.shape[1])):
        advantages[:, t] = deltas[:, t] + gamma * lam * reaching_back
        reaching_back = traces[:, t] * advantages[:, t]
    targets = (traces * advantages + values[:, :-1]).masked_fill(~mask, 0.0)
    return advantages, targets
