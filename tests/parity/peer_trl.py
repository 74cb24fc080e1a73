"""TRL 1.12.0, the last release with a PPO trainer."""

import pytest
import torch
from cases import SEEDS, case, same
from trl.experimental.ppo import ppo_trainer as trl
from trl.trainer.utils import selective_log_softmax

from ppo_lib.estimators import gae, masked_mean, masked_var, token_rewards, whiten
from ppo_lib.losses import policy_loss, value_loss
from ppo_lib.rollout import logprobs_of


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_statistics(seed):
    c = case(seed)
    same(masked_mean(c.rewards, c.mask), trl.masked_mean(c.rewards, c.mask), "masked mean")
    if c.mask.sum() > 1:
        same(masked_var(c.rewards, c.mask), trl.masked_var(c.rewards, c.mask), "masked variance")
        for shift in (True, False):
            theirs = trl.masked_whiten(c.rewards, c.mask, shift_mean=shift).masked_fill(~c.mask, 0.0)
            same(whiten(c.rewards, c.mask, shift), theirs, f"whitening with shift_mean={shift}")


@pytest.mark.parametrize("seed", SEEDS)
def test_log_probabilities(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, actions = torch.randn(3, 5, 11, generator=generator), torch.randint(11, (3, 5), generator=generator)
    same(logprobs_of(logits, actions), selective_log_softmax(logits, actions), "log-probability")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_ends_where_trl_truncates(seed):
    """What our mask keeps of a response is what `truncate_response` keeps of it."""
    c = case(seed)
    ids = torch.where(c.mask, 5, 9)
    last = c.mask.sum(1) - 1
    ids[torch.arange(len(ids)), last] = 2  # the stop token ends each response
    truncated = trl.truncate_response(2, 0, ids)
    assert torch.equal(truncated != 0, c.mask)


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_gradients(seed):
    """The formulas of TRL's training loop, with its own masked mean."""
    c = case(seed)
    mine = c.new_logprobs.clone().requires_grad_()
    theirs = c.new_logprobs.clone().requires_grad_()
    ours = policy_loss(mine, c.logprobs, c.rewards, c.mask, 0.2)
    ratio = torch.exp(theirs - c.logprobs)
    peer = trl.masked_mean(torch.max(-c.rewards * ratio, -c.rewards * ratio.clamp(0.8, 1.2)), c.mask)
    same(ours, peer, "policy loss")
    ours.backward()
    peer.backward()
    same(mine.grad, theirs.grad, "gradient of the policy loss")
    returns, old = c.rewards + c.values[:, :-1], c.values[:, :-1]
    clipped = torch.clamp(c.new_values, old - 0.2, old + 0.2)
    squares = torch.max((c.new_values - returns) ** 2, (clipped - returns) ** 2)
    same(value_loss(c.new_values, old, returns, c.mask, 0.2), 0.5 * trl.masked_mean(squares, c.mask), "value loss")


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages(seed):
    """TRL's recursion, run on values that are zero from the end of each response on."""
    c = case(seed)
    rewards = token_rewards(c.scores, c.logprobs, c.ref_logprobs, c.mask, 0.1)
    values, last, reversed_advantages = c.values[:, :-1], 0, []
    for t in reversed(range(c.mask.shape[1])):
        next_values = values[:, t + 1] if t < c.mask.shape[1] - 1 else 0.0
        last = rewards[:, t] + c.gamma * next_values - values[:, t] + c.gamma * c.lam * last
        reversed_advantages.append(last)
    peer = torch.stack(reversed_advantages[::-1], dim=1).masked_fill(~c.mask, 0.0)
    advantages, returns = gae(rewards, c.values, c.mask, c.ended, c.gamma, c.lam)
    same(advantages, peer, "advantage")
    same(returns, (peer + values).masked_fill(~c.mask, 0.0), "return")
