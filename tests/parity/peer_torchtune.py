"""torchtune 0.6.1. Its advantages are whitened with an inverted `shift_mean`, so returns are compared instead."""

import pytest
import torch
from cases import SEEDS, assert_same, case
from torchtune.rlhf import estimate_advantages, get_rewards_ppo
from torchtune.rlhf.loss import PPOLoss

from ppo_lib.estimators import gae, token_rewards
from ppo_lib.losses import policy_loss, value_loss


@pytest.mark.parametrize("seed", SEEDS)
def test_returns(seed):
    c = case(seed)
    _, peer = estimate_advantages(c.values[:, :-1], c.rewards, c.gamma, c.lam, masks=c.mask)
    _, returns = gae(c.rewards, c.values, c.mask, c.ended, c.gamma, c.lam)
    assert_same(returns, peer.masked_fill(~c.mask, 0.0), "return")


@pytest.mark.parametrize("seed", SEEDS)
def test_token_rewards(seed):
    c = case(seed)
    last = c.mask.sum(1) - 1
    logprobs, ref = (x.masked_fill(~c.mask, 0.0) for x in (c.logprobs, c.ref_logprobs))
    peer, _, _ = get_rewards_ppo(c.scores, logprobs, ref, 0.1, last)
    assert_same(token_rewards(c.scores, c.logprobs, c.ref_logprobs, c.mask, 0.1), peer, "token reward")


@pytest.mark.parametrize("seed", SEEDS)
def test_losses(seed):
    c = case(seed)
    old, returns = c.values[:, :-1], c.rewards + c.values[:, :-1]
    peer = PPOLoss(epsilon=0.2, value_clip_range=0.2, value_coeff=1.0)
    _, policy, value, *_ = peer(
        c.logprobs,
        c.new_logprobs,
        c.rewards,
        old,
        c.new_values,
        returns,
        padding_masks=c.mask,
        value_padding_masks=c.mask,
    )
    assert_same(policy_loss(c.new_logprobs, c.logprobs, c.rewards, c.mask, 0.2), torch.as_tensor(policy), "policy loss")
    assert_same(value_loss(c.new_values, old, returns, c.mask, 0.2), torch.as_tensor(value), "value loss")
