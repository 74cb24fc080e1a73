"""TRL 1.12.0, the last release with a PPO trainer."""

from types import SimpleNamespace

import pytest
import torch
from cases import SEEDS, assert_same, case
from trl.experimental.ppo import ppo_trainer as trl
from trl.trainer.utils import selective_log_softmax

from ppo_lib.estimators import gae, masked_mean, masked_var, token_rewards, whiten
from ppo_lib.losses import policy_loss, value_loss
from ppo_lib.rollout import logprobs_of, sample
from tests.unit.tiny import byte_tokenizer


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_statistics(seed):
    c = case(seed)
    assert_same(masked_mean(c.rewards, c.mask), trl.masked_mean(c.rewards, c.mask), "masked mean")
    if c.mask.sum() > 1:
        assert_same(masked_var(c.rewards, c.mask), trl.masked_var(c.rewards, c.mask), "masked variance")
        for shift in (True, False):
            theirs = trl.masked_whiten(c.rewards, c.mask, shift_mean=shift).masked_fill(~c.mask, 0.0)
            assert_same(whiten(c.rewards, c.mask, shift), theirs, f"whitening with shift_mean={shift}")


@pytest.mark.parametrize("seed", SEEDS)
def test_log_probabilities(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, actions = torch.randn(3, 5, 11, generator=generator), torch.randint(11, (3, 5), generator=generator)
    assert_same(logprobs_of(logits, actions), selective_log_softmax(logits, actions), "log-probability")


class Script:
    """A policy that says `ids` [B, T], one column a step, whatever it reads."""

    device, generation_config = torch.device("cpu"), None

    def __init__(self, ids):
        self.ids = ids

    def forward(self, input_ids, attention_mask, past_key_values, use_cache):
        step = past_key_values or 0
        logits = 1e4 * torch.nn.functional.one_hot(self.ids[:, step], 258).float()
        return SimpleNamespace(logits=logits[:, None], past_key_values=step + 1)

    __call__ = forward


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_ends_where_trl_truncates(seed):
    """The mask of a sampled rollout keeps what `truncate_response` keeps of the same tokens; some rows have no EOS."""
    c = case(seed)
    tokenizer = byte_tokenizer()
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = torch.randint(eos, c.mask.shape, generator=torch.Generator().manual_seed(seed))
    ids[torch.arange(len(ids)), c.mask.sum(1) - 1] = eos
    ids[0] = ids[0].clamp(max=eos - 1)
    rollout = sample(Script(ids), tokenizer, ["prompt"] * len(ids), ids.shape[1])
    kept = trl.truncate_response(eos, pad, ids) != pad
    assert torch.equal(rollout.mask, kept[:, : rollout.mask.shape[1]]), "the mask keeps other tokens than TRL does"
    assert torch.equal(rollout.response_ids[rollout.mask], ids[kept]), "the tokens kept are not those the policy said"


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_and_gradients(seed):
    """The formulas of TRL's training loop, with its own masked mean."""
    c = case(seed)
    mine = c.new_logprobs.clone().requires_grad_()
    theirs = c.new_logprobs.clone().requires_grad_()
    ours = policy_loss(mine, c.logprobs, c.rewards, c.mask, 0.2)
    ratio = torch.exp(theirs - c.logprobs)
    peer = trl.masked_mean(torch.max(-c.rewards * ratio, -c.rewards * ratio.clamp(0.8, 1.2)), c.mask)
    assert_same(ours, peer, "policy loss")
    ours.backward()
    peer.backward()
    assert_same(mine.grad, theirs.grad, "gradient of the policy loss")
    returns, old = c.rewards + c.values[:, :-1], c.values[:, :-1]
    clipped = torch.clamp(c.new_values, old - 0.2, old + 0.2)
    squares = torch.max((c.new_values - returns) ** 2, (clipped - returns) ** 2)
    peer = 0.5 * trl.masked_mean(squares, c.mask)
    assert_same(value_loss(c.new_values, old, returns, c.mask, 0.2), peer, "value loss")


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_against_trls_recursion_retyped(seed):
    """A copy of the recursion inside TRL's `train`, run on values that are zero from the end of each response on."""
    c = case(seed)
    rewards = token_rewards(c.scores, c.logprobs, c.ref_logprobs, c.mask, 0.1)
    values, last, reversed_advantages = c.values[:, :-1], 0, []
    for t in reversed(range(c.mask.shape[1])):
        next_values = values[:, t + 1] if t < c.mask.shape[1] - 1 else 0.0
        last = rewards[:, t] + c.gamma * next_values - values[:, t] + c.gamma * c.lam * last
        reversed_advantages.append(last)
    peer = torch.stack(reversed_advantages[::-1], dim=1).masked_fill(~c.mask, 0.0)
    advantages, returns = gae(rewards, c.values, c.mask, c.ended, c.gamma, c.lam)
    assert_same(advantages, peer, "advantage")
    assert_same(returns, (peer + values).masked_fill(~c.mask, 0.0), "return")
