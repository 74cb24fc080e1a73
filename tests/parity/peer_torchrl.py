"""torchrl 0.14.1: generalised advantage estimation with the end of an episode marked as `done`."""

import pytest
import torch
from cases import SEEDS, assert_same, case
from torchrl.objectives.value.functional import generalized_advantage_estimate

from ppo_lib.estimators import gae


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bootstrap_cut", [False, True])
def test_advantages(seed, bootstrap_cut):
    """Our end of a response is their `done`; a cut one that goes on in value is done but not terminated."""
    c = case(seed)
    ended = torch.arange(len(c.mask)) % 2 == 0
    done = torch.zeros_like(c.mask)
    done[torch.arange(len(done)), c.mask.sum(1) - 1] = True
    terminated = done & ended[:, None] if bootstrap_cut else done
    values = torch.randn(c.values.shape, generator=torch.Generator().manual_seed(seed))
    peer, _ = generalized_advantage_estimate(
        c.gamma,
        c.lam,
        values[:, :-1, None],
        values[:, 1:, None],
        c.rewards[..., None],
        done[..., None],
        terminated[..., None],
    )
    advantages, _ = gae(c.rewards, values, c.mask, ended, c.gamma, c.lam, bootstrap_cut)
    assert_same(advantages, peer.squeeze(-1).masked_fill(~c.mask, 0.0), "advantage")
