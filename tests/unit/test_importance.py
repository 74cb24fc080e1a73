"""Importance ratios, effective sample size, second-moment mask and V-trace: by hand, and equal to GAE on fresh data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.config import ReplayConfig
from ppo_lib.estimators import gae
from ppo_lib.importance import effective_sample_size, importance_ratios, second_moment_mask, vtrace
from tests.unit.tiny import hand_rollout


def made(seed=0):
    rollout = hand_rollout(seed=seed)
    rewards = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(seed + 1))
    return rollout, rewards.masked_fill(~rollout.mask, 0.0)


def test_ratios_by_hand():
    mask = torch.tensor([[True, True, False]])
    logprobs, behaviour = torch.tensor([[-1.0, -2.0, 7.0]]), torch.tensor([[-2.0, -2.0, -9.0]])
    token = importance_ratios(logprobs, behaviour, mask)
    assert token[0, 0] > 1, "the ratio is upside down, μ/π_k: what π_k likes more must weigh more"
    assert token[0, 2] == 1, "padding has a ratio of its own"
    assert torch.allclose(token, torch.tensor([[2.7183, 1.0, 1.0]]), atol=1e-4), "the ratio is not π_k/μ"
    sequence = importance_ratios(logprobs - 1, behaviour, mask, "sequence")
    assert sequence[0, 0] == sequence[0, 1], "the tokens of a sequence have ratios of their own"
    assert torch.allclose(sequence, torch.tensor([[0.3679, 0.3679, 1.0]]), atol=1e-4), (
        "a sequence's ratio is not the product of its tokens': add up the logarithms"
    )


def test_left_to_themselves_ratios_are_of_tokens_and_targets_of_a_default_run():
    """What a call without settings gives is what `ReplayConfig()` trains with."""
    config, (rollout, rewards) = ReplayConfig(), made()
    ratios = importance_ratios(rollout.logprobs, 2 * rollout.logprobs, rollout.mask)
    by_token = importance_ratios(rollout.logprobs, 2 * rollout.logprobs, rollout.mask, config.importance_level)
    assert torch.equal(ratios, by_token), "`importance_ratios` has another default than `importance_level`"
    arguments = (rewards, rollout.values, rollout.mask, rollout.ended)
    for rule, by_default, named in (
        ("gae", gae(*arguments), gae(*arguments, config.gamma, config.lam, config.bootstrap_cut)),
        ("vtrace", vtrace(*arguments, ratios), vtrace(*arguments, ratios, config.gamma, config.lam)),
    ):
        assert torch.equal(by_default[0], named[0]), f"the defaults of `{rule}` are not the settings' γ, λ and cut"


@pytest.mark.parametrize("rule", ["gae", "vtrace"])
def test_a_response_of_one_token_has_one_reward(rule):
    rewards, values, mask = torch.tensor([[2.0]]), torch.tensor([[0.5, 9.0]]), torch.ones(1, 1, dtype=torch.bool)
    arguments = rewards, values, mask, torch.tensor([True])
    advantages, targets = gae(*arguments) if rule == "gae" else vtrace(*arguments, torch.tensor([[0.5]]))
    assert advantages.item() == 1.5, f"{rule}: A of the only token is r − V"
    assert targets.item() == (2.0 if rule == "gae" else 1.25), f"{rule}: the target is V + c̄ A"


def test_effective_sample_size_by_hand():
    assert effective_sample_size(torch.ones(5)) == pytest.approx(1.0), "even weights are not worth all samples"
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25), "one of n is not worth 1/n"
    assert effective_sample_size(torch.tensor([1.0, 1.0, 4.0])) == pytest.approx(2 / 3), "(1+1+4)²/(3·18) is not 2/3"


def test_second_moment_mask_leaves_out_the_furthest():
    ratios = torch.tensor([[1.0, 1.1, 5.0, 100.0]])
    mask = torch.tensor([[True, True, True, False]])
    kept = second_moment_mask(ratios, mask, 0.1)
    assert kept.tolist() == [[1.0, 1.0, 0.0, 0.0]], "the mask does not leave out the furthest tokens and padding"
    twice = torch.tensor([[1.0, 2.0]])
    exactly = (twice[0, 1].log() ** 2 / 2).item()  # the mean of both, as the first has no moment
    assert second_moment_mask(twice, mask[:, :2], exactly).sum() == 2, "a mean of exactly the limit is allowed"
    assert second_moment_mask(ratios, mask, 100.0).tolist() == [[1.0, 1.0, 1.0, 0.0]], (
        "tokens within the limit are left out, or padding counts among them"
    )


def test_padding_does_not_count_in_the_second_moment():
    """(log 2)² = 0.48: over the two tokens the mean is 0.48, over all four places it would be 0.24."""
    ratios = torch.tensor([[2.0, 2.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False, False]])
    assert second_moment_mask(ratios, mask, 0.3).sum() == 0, "padding dilutes the second moment"


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1), cut=st.booleans())
def test_vtrace_is_gae_on_fresh_data(seed, gamma, lam, cut):
    rollout, rewards = made(seed)
    arguments = (rewards, rollout.values, rollout.mask, rollout.ended)
    expected = gae(*arguments, gamma, lam, cut)
    mine = vtrace(*arguments, torch.ones_like(rewards), gamma, lam, cut)
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True)), "with all ratios 1 V-trace is not GAE"


def test_vtrace_by_hand():
    """Two tokens, γ = λ = 1, rewards (0, 1), V = (0.5, 0.25): δ = (−0.25, 0.75); c̄ = (0.5, 0.2)."""
    mask, ended = torch.ones(1, 2, dtype=torch.bool), torch.tensor([True])
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25, 9.0]])
    advantages, targets = vtrace(rewards, values, mask, ended, torch.tensor([[0.5, 0.2]]), 1.0, 1.0)
    expected = torch.tensor([[-0.25 + 0.2 * 0.75, 0.75]])
    assert torch.allclose(advantages, expected), "c̄ of the next token is not the trace"
    assert torch.allclose(targets, torch.tensor([[0.5 + 0.5 * -0.1, 0.25 + 0.2 * 0.75]])), "y is not V + c̄ A"


def test_vtrace_ignores_padding():
    rollout, rewards = made()
    traces = torch.rand(rewards.shape, generator=torch.Generator().manual_seed(3))
    clean = vtrace(rewards, rollout.values, rollout.mask, rollout.ended, traces)
    dirty = rewards.masked_fill(~rollout.mask, 1e6), traces.masked_fill(~rollout.mask, 1e6)
    again = vtrace(dirty[0], rollout.values, rollout.mask, rollout.ended, dirty[1])
    assert all(torch.equal(a, b) for a, b in zip(clean, again, strict=True)), "padding leaks into V-trace"
