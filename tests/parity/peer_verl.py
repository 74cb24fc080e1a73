"""verl 0.9.1. Its policy loss has a second clip for negative advantages, moved out of the way by `clip_ratio_c`."""

import pytest
from cases import SEEDS, assert_same, case
from verl.trainer.ppo import core_algos as verl

from ppo_lib.estimators import gae, kl_k1, kl_k2, kl_k3, masked_mean, whiten
from ppo_lib.losses import policy_loss, value_loss


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_and_returns(seed):
    c = case(seed)
    if c.mask.sum() < 2:
        c.mask[:] = True
    mask = c.mask.float()
    peer_advantages, peer_returns = verl.compute_gae_advantage_return(c.rewards, c.values[:, :-1], mask, c.gamma, c.lam)
    advantages, returns = gae(c.rewards, c.values, c.mask, c.ended, c.gamma, c.lam)
    assert_same(whiten(advantages, c.mask), peer_advantages.masked_fill(~c.mask, 0.0), "whitened advantage")
    assert_same(returns, peer_returns.masked_fill(~c.mask, 0.0), "return")


@pytest.mark.parametrize("seed", SEEDS)
def test_losses(seed):
    c = case(seed)
    mask, old, returns = c.mask.float(), c.values[:, :-1], c.rewards + c.values[:, :-1]
    policy, *_ = verl.compute_policy_loss(
        c.logprobs, c.new_logprobs, c.rewards, mask, cliprange=0.2, clip_ratio_c=1e6, loss_agg_mode="token-mean"
    )
    assert_same(policy_loss(c.new_logprobs, c.logprobs, c.rewards, c.mask, 0.2), policy, "policy loss")
    value, _ = verl.compute_value_loss(c.new_values, returns, old, mask, 0.2, loss_agg_mode="token-mean")
    assert_same(value_loss(c.new_values, old, returns, c.mask, 0.2), value, "value loss")
    assert_same(masked_mean(c.rewards, c.mask), verl.agg_loss(c.rewards, mask, "token-mean"), "token mean")


@pytest.mark.parametrize(("name", "mine"), [("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)])
@pytest.mark.parametrize("seed", SEEDS)
def test_kl_estimators(seed, name, mine):
    c = case(seed)
    assert_same(mine(c.logprobs, c.ref_logprobs), verl.kl_penalty(c.logprobs, c.ref_logprobs, name), name)
