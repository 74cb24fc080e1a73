"""What the trainer passes to the pure functions: its estimates, its loss and its epochs, recomputed by hand.

Each setting and each network differs here from its default and from the others, so that a mix-up shows.
"""

import pytest
import torch

from ppo_lib.data import PPODataset
from ppo_lib.estimators import gae, masked_mean, token_rewards
from ppo_lib.losses import entropy_of, policy_loss, value_loss
from ppo_lib.ppo import PPOTrainer
from ppo_lib.rollout import logprobs_of, response_logits, response_values
from tests.unit.test_trainer import SMALL_RUN, estimated, trainer, vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer, likely_eos, tiny_policy

DISTINCT = SMALL_RUN | dict(
    gamma=0.9,
    lam=0.7,
    cliprange=0.1,
    cliprange_value=0.3,
    temperature=0.7,
    kl_coef=0.3,
    vf_coef=0.4,
    entropy_coef=0.2,
    bootstrap_cut=True,
    whiten_advantages=False,
)


def distinct_trainer():
    """A trainer whose reference is not its policy and whose critic already says something."""
    ppo = PPOTrainer(
        likely_eos(tiny_policy()), vowels, tokenizer=byte_tokenizer(), reference=tiny_policy(seed=1), **DISTINCT
    )
    torch.nn.init.normal_(ppo.critic.value_head.weight, generator=torch.Generator().manual_seed(0))
    return ppo


def moved_away(rollout):
    """The rollout with other old log-probabilities and values, so that ratios and values lie beyond both clips."""
    generator = torch.Generator().manual_seed(4)
    moved = rollout.select(torch.arange(len(rollout)))
    moved.logprobs = rollout.logprobs + 0.5 * torch.randn(rollout.logprobs.shape, generator=generator)
    moved.values = rollout.values + torch.randn(rollout.values.shape, generator=generator)
    return moved


def same(mine, expected, mask):
    return torch.allclose(mine[mask], expected[mask], atol=1e-4)


@torch.no_grad()
def test_estimates_are_those_of_the_settings():
    ppo = distinct_trainer()
    rollout = estimated(ppo)
    mask, ended = rollout.mask, rollout.ended
    assert 0 < ended.sum() < len(ended), "the test needs responses that ended and responses that were cut"
    reference = logprobs_of(response_logits(ppo.reference, rollout, 0.7), rollout.response_ids)
    assert same(rollout.ref_logprobs, reference, mask), "the reference's log-probs are not at the run's temperature"
    values = response_values(ppo.critic, rollout)
    assert rollout.values.shape == values.shape, "the values lack the one after the last token: they have T+1 columns"
    assert torch.allclose(rollout.values, values, atol=1e-4), "the values are not the critic's"
    rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, 0.3)
    paid = token_rewards(rollout.scores, rollout.ref_logprobs, rollout.logprobs, mask, 0.3)
    assert not same(rollout.rewards, paid, mask), "the KL penalty has the wrong sign: policy and reference are swapped"
    assert same(rollout.rewards, rewards, mask), "`kl_coef` is not the price of the KL in the token rewards"
    advantages, returns = gae(rewards, values, mask, ended, 0.9, 0.7, True)
    swapped, _ = gae(rewards, values, mask, ended, 0.7, 0.9, True)
    assert not same(rollout.advantages[ended], swapped[ended], mask[ended]), "γ and λ are swapped"
    assert same(rollout.advantages[ended], advantages[ended], mask[ended]), "γ or λ is not that of the settings"
    assert same(rollout.advantages[~ended], advantages[~ended], mask[~ended]), "`bootstrap_cut` is ignored"
    assert not same(rollout.returns, advantages, mask), "the returns are the advantages: V(s_t) is not added back"
    assert same(rollout.returns, returns, mask), "the returns are not those of GAE"


@torch.no_grad()
def test_the_loss_takes_the_right_tensors():
    """On an untouched rollout no clip bites, and each term shows which tensors it was given."""
    ppo = distinct_trainer()
    rollout = estimated(ppo)
    mask, values = rollout.mask, rollout.values[:, :-1]
    _, metrics = ppo.loss(rollout)
    mean = masked_mean(rollout.advantages, mask).item()
    assert metrics["loss/policy_avg"].item() != pytest.approx(mean, abs=1e-4), (
        "the policy loss has the wrong sign: minimising it lowers the chance of good tokens"
    )
    of_returns = masked_mean(rollout.returns, mask).item()
    assert metrics["loss/policy_avg"].item() != pytest.approx(-of_returns, abs=1e-4), (
        "the policy loss takes the returns for the advantages"
    )
    assert metrics["loss/policy_avg"].item() == pytest.approx(-mean, abs=1e-4), (
        "the policy loss is not that of the advantages"
    )
    perfect = rollout.select(torch.arange(len(rollout)))
    perfect.returns = perfect.advantages = values
    assert ppo.loss(perfect)[1]["loss/value_avg"].item() == pytest.approx(0.0, abs=1e-6), (
        "the loss takes the values after each token: V(s_t) is that before token t"
    )
    for wrong, slip in ((rollout.advantages, "the advantages"), (rollout.rewards, "the rewards")):
        off = 0.5 * masked_mean((values - wrong) ** 2, mask).item()
        assert metrics["loss/value_avg"].item() != pytest.approx(off, rel=1e-4), f"the critic learns {slip}"
    error = 0.5 * masked_mean((values - rollout.returns) ** 2, mask).item()
    assert metrics["loss/value_avg"].item() != pytest.approx(2 * error, rel=1e-4), "the value loss is not halved"
    assert metrics["loss/value_avg"].item() == pytest.approx(error, rel=1e-4), (
        "the targets of the value loss are not the returns"
    )


@torch.no_grad()
def test_the_loss_is_that_of_the_settings():
    ppo = distinct_trainer()
    rollout = moved_away(estimated(ppo))
    mask = rollout.mask
    logits = response_logits(ppo.policy, rollout, 0.7)
    logprobs, values = logprobs_of(logits, rollout.response_ids), response_values(ppo.critic, rollout)[:, :-1]
    loss, metrics = ppo.loss(rollout)
    told = metrics["loss/policy_avg"].item()
    policy = policy_loss(logprobs, rollout.logprobs, rollout.advantages, mask, 0.1)
    of_critic = policy_loss(logprobs, rollout.logprobs, rollout.advantages, mask, 0.3).item()
    assert told != pytest.approx(of_critic, abs=1e-5), "the policy's clip takes `cliprange_value`"
    turned = policy_loss(rollout.logprobs, logprobs, rollout.advantages, mask, 0.1).item()
    assert told != pytest.approx(turned, abs=1e-5), "the ratio is upside down: π_old/π_θ"
    assert told == pytest.approx(policy.item(), abs=1e-5), "`cliprange` is ignored"
    told = metrics["loss/value_avg"].item()
    value = value_loss(values, rollout.values[:, :-1], rollout.returns, mask, 0.3)
    of_policy = value_loss(values, rollout.values[:, :-1], rollout.returns, mask, 0.1).item()
    assert told != pytest.approx(of_policy, abs=1e-5), "the value clip takes `cliprange`"
    around = value_loss(values, rollout.values[:, 1:], rollout.returns, mask, 0.3).item()
    assert told != pytest.approx(around, abs=1e-5), "values are clipped around those after each token"
    assert told == pytest.approx(value.item(), abs=1e-5), "`cliprange_value` is ignored"
    entropy = masked_mean(entropy_of(logits), mask)
    assert metrics["policy/entropy_avg"].item() == pytest.approx(entropy.item(), abs=1e-5), (
        "the entropy is not that of the distributions sampled from"
    )
    rest = (loss - policy).item()
    added = (0.4 * value + 0.2 * entropy).item()
    assert rest != pytest.approx(added, abs=1e-5), "the entropy is added to the loss: it is a bonus, subtract it"
    swapped = (0.2 * value - 0.4 * entropy).item()
    assert rest != pytest.approx(swapped, abs=1e-5), "`vf_coef` and `entropy_coef` are swapped"
    assert rest + 0.2 * entropy.item() == pytest.approx(0.4 * value.item(), abs=1e-5), (
        "the value loss is not weighted by `vf_coef`"
    )


def test_the_entropy_bonus_lowers_the_loss():
    ppo = trainer(entropy_coef=0.0)
    rollout = estimated(ppo)
    without, metrics = ppo.loss(rollout)
    ppo.config.entropy_coef = 0.5
    bonus, _ = ppo.loss(rollout)
    gained, expected = (without - bonus).item(), 0.5 * metrics["policy/entropy_avg"].item()
    assert gained > -1e-5, "the entropy bonus has the wrong sign: subtract it from the loss"
    assert gained > 1e-5, "`entropy_coef` is ignored: the entropy never reaches the loss"
    assert gained == pytest.approx(expected, abs=1e-5), "the entropy bonus is not `entropy_coef` times the entropy"


def passes_over(num_ppo_epochs):
    """Rows of each minibatch that `update` passes to `step`, in order: 8 rows in minibatches of 3."""
    ppo = trainer(minibatch_size=3, num_ppo_epochs=num_ppo_epochs)
    rollout = estimated(ppo)
    rollout.prompts = [str(row) for row in range(8)]
    seen = []

    def spy(minibatch):
        seen.append([int(row) for row in minibatch.prompts])
        return {"loss": float(len(seen))}

    ppo.step = spy
    return seen, ppo.update(rollout)


def test_an_epoch_takes_every_row_once():
    minibatches, metrics = passes_over(1)
    assert len(minibatches) > 1, "an epoch stops after its first minibatch"
    assert sum(map(len, minibatches)) == 8, "an epoch drops the rest of 8 rows in minibatches of 3"
    assert sorted(sum(minibatches, [])) == list(range(8)), "an epoch takes a row twice"
    assert metrics == {"loss": 2.0}, "the metrics of an update are not the mean of its steps'"


def test_there_are_num_ppo_epochs_passes():
    minibatches, _ = passes_over(3)
    rows = sum(minibatches, [])
    assert sorted(rows) == sorted([*range(8)] * 3), "`num_ppo_epochs` is ignored: not every row is taken that often"
    assert rows[:8] != rows[8:16], "every epoch takes the rows in the same order: shuffle them anew"


def test_each_step_has_a_gradient_of_its_own():
    ppo = trainer(max_grad_norm=1e9)
    rollout = estimated(ppo)
    ppo.step(rollout)
    networks = [*ppo.policy.parameters(), *ppo.critic.parameters()]
    fresh = torch.autograd.grad(ppo.loss(rollout)[0], networks, allow_unused=True)
    ppo.step(rollout)
    for parameter, gradient in zip(networks, fresh, strict=True):
        expected = torch.zeros_like(parameter) if gradient is None else gradient
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(got, expected, atol=1e-5), "gradients of earlier steps pile up: zero them before each"


def test_policy_and_critic_both_learn():
    ppo = trainer(learning_rate=3e-3)
    before = {name: p.clone() for name, p in ppo.policy.named_parameters()}
    ppo.train(PPODataset(PROMPTS))
    assert (ppo.critic.value_head.weight != 0).any(), "the critic never learns: its weights are not in the optimiser"
    still = [name for name, p in ppo.policy.named_parameters() if torch.equal(before[name], p)]
    assert not still, f"the policy never learns: {still} did not move"
    assert [group["lr"] for group in ppo.optimizer.param_groups] == [3e-3], "`learning_rate` is ignored"
