"""Masked statistics, KL estimators, token rewards and GAE against enumeration, definitions and invariances."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.estimators import gae, kl_k1, kl_k2, kl_k3, masked_mean, masked_var, token_rewards, whiten
from tests.unit.tiny import hand_rollout

PI = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
REF = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)


def expectation(estimator):
    """Σ_a π(a) · estimator(log π(a), log π_ref(a)): every action of the 3-token vocabulary, no sampling."""
    return (PI * estimator(PI.log(), REF.log())).sum().item()


def test_kl_estimators_in_expectation():
    exact = (PI * (PI / REF).log()).sum().item()
    assert expectation(kl_k1) == pytest.approx(exact, abs=1e-12), "k1 has the wrong sign or direction"
    assert expectation(kl_k3) == pytest.approx(exact, abs=1e-12), "k3 mixes the direction of the KL"
    assert expectation(kl_k2) != pytest.approx(exact, abs=1e-3), "k2 is biased; an unbiased one is not k2"
    half_square = (PI * (PI / REF).log() ** 2).sum().item() / 2
    assert expectation(kl_k2) == pytest.approx(half_square, abs=1e-12), "k2 is not half the squared log-ratio"


def test_k3_is_never_negative():
    logp, ref = torch.linspace(-9, -0.01, 50)[:, None], torch.linspace(-9, -0.01, 50)[None]
    assert (kl_k3(logp, ref) >= 0).all(), "k3 is never negative"
    assert (kl_k1(logp, ref) < 0).any(), "k1 may be negative; an absolute value was taken"


def test_kl_of_a_sequence_by_enumeration():
    """Summed over the tokens of a two-token response, k1's expectation is the KL of whole responses."""
    second_pi = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    second_ref = torch.tensor([[0.2, 0.4, 0.4], [0.3, 0.3, 0.4], [0.6, 0.2, 0.2]], dtype=torch.float64)
    by_tokens = exact = 0.0
    for a, b in itertools.product(range(3), repeat=2):
        p, q = PI[a] * second_pi[a, b], REF[a] * second_ref[a, b]
        exact += (p * (p / q).log()).item()
        logp, ref = torch.stack([PI[a], second_pi[a, b]]).log(), torch.stack([REF[a], second_ref[a, b]]).log()
        by_tokens += (p * kl_k1(logp, ref).sum()).item()
    assert by_tokens == pytest.approx(exact, abs=1e-12), "k1 over the tokens does not sum to the KL of responses"


def test_masked_statistics_ignore_what_is_masked():
    x = torch.tensor([[1.0, 2.0, 1e9], [3.0, float("nan"), float("inf")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == pytest.approx(2.0), "the mean runs over padding: divide by mask.sum()"
    assert masked_var(x, mask).item() == pytest.approx(1.0), "the variance is not the unbiased one over the mask"
    two = mask & (x < 3)
    assert masked_var(x, two).item() == pytest.approx(0.5), "the variance of two values does not divide by n − 1 = 1"
    white = whiten(x, mask)
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-6), "whitening does not shift the mean to 0"
    assert white[mask].std().item() == pytest.approx(1.0, abs=1e-6), "whitening does not scale the variance to 1"
    assert (white[~mask] == 0).all(), "whitening leaves something in the padding"


def test_whiten_can_keep_the_mean():
    x, mask = torch.tensor([[1.0, 2.0, 6.0]]), torch.ones(1, 3, dtype=torch.bool)
    kept = whiten(x, mask, shift_mean=False)
    assert kept.mean().item() == pytest.approx(3.0, abs=1e-6), "shift_mean is inverted: False must keep the mean"
    assert kept.std().item() == pytest.approx(1.0, abs=1e-6), "without shift_mean the variance must still be 1"


def test_score_lands_on_the_last_sampled_token():
    r = hand_rollout()
    same = r.logprobs
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0]), same, same, r.mask, kl_coef=0.1)
    expected = torch.zeros(3, 4)
    expected[0, 2], expected[1, 0], expected[2, 3] = 10.0, 20.0, 30.0
    assert (rewards[~r.mask] == 0).all(), "the score lands on padding: the last column need not be sampled"
    assert torch.equal(rewards, expected), "the score lands before the last sampled token (the EOS)"


def test_token_rewards_charge_the_kl():
    r = hand_rollout()
    rewards = token_rewards(torch.zeros(3), r.logprobs, r.ref_logprobs, r.mask, kl_coef=0.1)
    expected = -0.1 * (r.logprobs - r.ref_logprobs)
    assert torch.allclose(rewards[r.mask], expected[r.mask]), "the KL penalty has the wrong sign or size"
    assert (rewards[~r.mask] == 0).all(), "the KL penalty is charged on padding: mask it"


def gae_by_definition(rewards, values, length, ended, gamma, lam, bootstrap_cut):
    """A_t = Σ_k (γλ)^k δ_{t+k}, written as the double sum of the paper, one response."""
    after = values[length] if bootstrap_cut and not ended else 0.0
    states = [*values[:length].tolist(), float(after)]
    deltas = [rewards[t].item() + gamma * states[t + 1] - states[t] for t in range(length)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]


@pytest.mark.parametrize("bootstrap_cut", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (1.0, 1.0)])
def test_gae_equals_its_definition(gamma, lam, bootstrap_cut):
    r = hand_rollout()
    rewards = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    advantages, returns = gae(rewards, r.values, r.mask, r.ended, gamma, lam, bootstrap_cut)
    after = r.values.clone()
    after[torch.arange(3), r.lengths] += 5.0  # of the state that each response ends in
    moved = (gae(rewards, after, r.mask, r.ended, gamma, lam, bootstrap_cut)[0] != advantages).any(dim=1)
    valued = bootstrap_cut & ~r.ended
    assert not (moved & r.ended).any(), "the state after an EOS is valued, as if a response that ended went on"
    assert moved.equal(valued), "bootstrap_cut is ignored, or the state after a cut is valued without it"
    for row, length in enumerate(r.lengths.tolist()):
        expected = gae_by_definition(rewards[row], r.values[row], length, bool(r.ended[row]), gamma, lam, bootstrap_cut)
        got = advantages[row, :length].tolist()
        assert got == pytest.approx(expected, abs=1e-5), "GAE differs from the double sum Σ (γλ)^k δ"
        assert returns[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, r.values[row, :length].tolist(), strict=True)], abs=1e-5
        ), "returns are not advantages + values"
    assert (advantages[~r.mask] == 0).all() and (returns[~r.mask] == 0).all(), "padding has advantages or returns"


@pytest.mark.parametrize("bootstrap_cut", [False, True])
def test_nothing_is_valued_after_the_end(bootstrap_cut):
    """The advantage of the last token is r − V, whatever the critic says of the place after it."""
    r = hand_rollout()
    rewards = torch.ones(3, 4)
    advantages, _ = gae(rewards, r.values, r.mask, r.ended, 1.0, 0.0, bootstrap_cut)
    for row, last in enumerate((r.lengths - 1).tolist()):
        own = 1.0 - r.values[row, last].item()
        if r.ended[row]:
            assert advantages[row, last].item() == pytest.approx(own, abs=1e-5), "the value after EOS is counted"
        else:
            after = bootstrap_cut * r.values[row, last + 1].item()
            assert advantages[row, last].item() == pytest.approx(own + after, abs=1e-5), (
                "the value after a cut response must count with `bootstrap_cut`, and only with it"
            )


def test_lambda_zero_is_one_step_ahead():
    r = hand_rollout()
    rewards = torch.ones(3, 4)
    advantages, _ = gae(rewards, r.values, r.mask, r.ended, 1.0, 0.0)
    one_step = rewards + r.values[:, 1:] - r.values[:, :-1]
    inner = r.mask[:, 1:]  # every token but the last of each response
    assert torch.allclose(advantages[:, :-1][inner], one_step[:, :-1][inner], atol=1e-5), (
        "λ is forgotten: with λ = 0 an advantage is its own δ"
    )


def test_gamma_zero_sees_no_next_state():
    r = hand_rollout()
    advantages, _ = gae(torch.ones(3, 4), r.values, r.mask, r.ended, 0.0, 0.0)
    assert torch.allclose(advantages[r.mask], (1.0 - r.values[:, :-1])[r.mask], atol=1e-5), (
        "γ is forgotten on the value of the next state: with γ = 0 an advantage is r − V"
    )


def test_lambda_one_is_the_monte_carlo_return():
    r = hand_rollout()
    rewards = torch.ones(3, 4)
    _, returns = gae(rewards, r.values, r.mask, r.ended, 1.0, 1.0)
    assert returns[2].tolist() == pytest.approx([4.0, 3.0, 2.0, 1.0], abs=1e-5), (
        "GAE runs forwards: with λ = 1 a return is the sum of the rewards from its token on"
    )


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), extra=st.integers(1, 3), seed=st.integers(0, 99))
def test_more_padding_and_garbage_change_nothing(lengths, extra, seed):
    """Wider padding filled with NaN leaves rewards, advantages and returns of the real tokens as they were."""
    r = hand_rollout(lengths, [n % 2 == 0 for n in lengths], width=5, seed=seed)
    wide = [
        torch.cat([x, torch.full((len(lengths), extra), fill)], dim=1)
        for x, fill in [(r.logprobs, torch.nan), (r.ref_logprobs, torch.nan), (r.values, torch.nan)]
    ]
    wide_mask = torch.cat([r.mask, torch.zeros(len(lengths), extra, dtype=torch.bool)], dim=1)

    def estimate(logprobs, ref_logprobs, values, mask):
        rewards = token_rewards(r.scores, logprobs, ref_logprobs, mask, 0.1)
        advantages, returns = gae(rewards, values, mask, r.ended, 0.99, 0.9, bootstrap_cut=True)
        return rewards, advantages, returns, whiten(advantages, mask)

    narrow_estimates = estimate(r.logprobs, r.ref_logprobs, r.values, r.mask)
    for narrow, padded in zip(narrow_estimates, estimate(*wide, wide_mask), strict=True):
        assert torch.allclose(narrow, padded[:, :5], atol=1e-6), "what stands in the padding leaks into the estimates"
        assert (padded[:, 5:] == 0).all(), "the estimates are not zero in the padding"
