"""The loss terms against hand tables, finite differences on a 3-token vocabulary, and invariances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.losses import (
    clip_fraction,
    entropy_of,
    policy_loss,
    regression_loss,
    value_clip_fraction,
    value_loss,
)

ONE = torch.ones(1, 1, dtype=torch.bool)


def one(x):
    return torch.tensor([[float(x)]])


# In this order each row can fail by its own mistake alone, given that the rows above it pass.
SURROGATES = [
    (1.0, 2.0, 2.0, "the policy loss has the wrong sign: at r = 1 it is −A"),
    (1.1, 1.0, 1.1, "the ratio is upside down: r = π_θ / π_old"),
    (0.5, 1.0, 0.5, "the clip is not pessimistic: take the minimum of r A and clip(r) A, not the maximum"),
    (1.5, -1.0, -1.5, "the clip is not pessimistic: take the minimum of r A and clip(r) A, not the maximum"),
    (1.5, 1.0, 1.2, "the policy's clip is lost: beyond 1+ε the surrogate must stay at (1+ε) A"),
    (0.5, -1.0, -0.8, "the policy's clip is lost: below 1−ε the surrogate must stay at (1−ε) A"),
]


@pytest.mark.parametrize(("ratio", "advantage", "expected", "mistake"), SURROGATES)
def test_clipped_surrogate_by_hand(ratio, advantage, expected, mistake):
    loss = policy_loss(one(ratio).log(), one(0.0), one(advantage), ONE, cliprange=0.2)
    assert -loss.item() == pytest.approx(expected, abs=1e-6), mistake


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.1, 1.0, True), (1.5, 1.0, False), (0.5, 1.0, True), (1.5, -1.0, True), (0.5, -1.0, False), (0.9, -1.0, True)],
)
def test_gradient_dies_exactly_where_the_clip_bites(ratio, advantage, moves):
    logprob = one(ratio).log().requires_grad_()
    policy_loss(logprob, one(0.0), one(advantage), ONE, cliprange=0.2).backward()
    assert (logprob.grad.item() != 0) == moves, "the clip removes the gradient on the wrong side"
    fraction = clip_fraction(logprob, one(0.0), one(advantage), ONE, 0.2).item()
    assert fraction == float(not moves), "the clip fraction does not count the tokens that lost their gradient"


def test_on_the_edge_of_the_clip_nothing_is_counted():
    up, down = one(1.5).log().exp().item(), one(0.5).log().exp().item()
    cases = {
        "a token whose advantage is 0 has no gradient to lose": [(1.5, 0.0, 0.2), (0.5, 0.0, 0.2)],
        "at exactly 1±ε nothing is clipped yet": [(1.5, 1.0, up - 1), (0.5, -1.0, 1 - down)],
    }
    for rule, tokens in cases.items():
        for ratio, advantage, cliprange in tokens:
            counted = clip_fraction(one(ratio).log(), one(0.0), one(advantage), ONE, cliprange).item()
            assert counted == 0, f"the clip fraction counts what is not clipped: {rule}"


def test_policy_gradient_against_finite_differences():
    """Σ_a π_old(a) · surrogate(a) is the true objective; its gradient must be that of E_π[A] at π = π_old."""
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    gains = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    old = torch.log_softmax(theta, 0)

    def true_objective(parameters):
        return (torch.softmax(parameters, 0) * gains).sum()

    step, numeric = 1e-6, []
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = step
        numeric.append(((true_objective(theta + shift) - true_objective(theta - shift)) / (2 * step)).item())
    free = theta.clone().requires_grad_()
    logprobs = torch.log_softmax(free, 0)
    for a, share in enumerate(old.exp()):  # how often each action would have been sampled
        loss = policy_loss(logprobs[a].view(1, 1), old[a].view(1, 1), gains[a].view(1, 1), ONE, 0.2)
        (share * loss).backward(retain_graph=True)
    assert (-free.grad).tolist() == pytest.approx(numeric, abs=1e-6), "the policy gradient differs from ∇E[A]"


# Three actions: the policy at the start of the update, advantages whose best answer is a distribution, and η.
OLD, ETA = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 0.5
GAINS = torch.tensor([-0.1, 0.2, 0.4], dtype=torch.float64)
BEST = OLD * (GAINS / ETA).exp() / (OLD * (GAINS / ETA).exp()).sum()  # where each nat of KL to OLD costs η
CENTRED = ETA * (BEST / OLD).log()  # the same advantages, measured from their soft mean


def regressed(logits, sampled_by, gains, eta=ETA, floor=9.0):
    """The expected loss over the three actions, enumerated, and its gradient."""
    theta = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(theta, 0)
    terms = [
        share * regression_loss(logprobs[a].view(1, 1), OLD.log()[a].view(1, 1), gains[a].view(1, 1), ONE, eta, floor)
        for a, share in enumerate(sampled_by)
    ]
    loss = torch.stack(terms).sum()
    return loss, torch.autograd.grad(loss, theta)[0]


@pytest.mark.parametrize("sampled_by", [OLD, torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)])
def test_regression_ends_at_the_best_policy_whoever_sampled(sampled_by):
    """π* ∝ π_k exp(A/η), by descent from π_k, on what π_k sampled and on what another policy did."""
    logits = OLD.log().clone()
    for _ in range(3000):
        logits = logits - 0.5 * regressed(logits, sampled_by, CENTRED)[1]
    learned = torch.softmax(logits, 0).tolist()
    assert learned == pytest.approx(BEST.tolist(), abs=1e-4), "regression does not end at π_k exp(A/η), normalised"


def test_regression_stays_at_the_best_policy_whatever_is_added_to_the_advantages():
    """On its own samples: a constant moves no gradient, as no baseline does."""
    _, gradient = regressed(BEST.log(), BEST, GAINS)
    assert gradient.abs().max() < 1e-12, "the gradient at π_k exp(A/η), normalised, is not 0 on its own samples"


def test_the_first_step_of_regression_is_that_of_the_policy_gradient():
    theta = OLD.log().clone().requires_grad_()
    (-(torch.softmax(theta, 0) * GAINS).sum()).backward()
    _, gradient = regressed(OLD.log(), OLD, GAINS)
    assert torch.allclose(gradient, theta.grad), "at r = 1 the gradient of regression is not −A ∇log π"


@pytest.mark.parametrize(
    ("advantage", "target", "mistake"),
    [
        (0.1, 0.2, "the target of log r is not A/η"),
        (-9.0, -0.3, "a token to be avoided is pushed down by more than τ"),
        (9.0, 5.0, "a token is pulled up by more than 5 nats"),
    ],
)
def test_what_regression_aims_at(advantage, target, mistake):
    loss = regression_loss(one(target), one(0.0), one(advantage), ONE, 0.5, 0.3).item()
    assert loss == pytest.approx(0.0, abs=1e-12), mistake
    loss = regression_loss(one(target + 2.0), one(0.0), one(advantage), ONE, 0.5, 0.3).item()
    assert loss == pytest.approx(0.5 * 0.5 * 4), "the loss is not η/2 times the squared distance to the target"


def test_regression_is_one_weighted_mean_over_all_tokens():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    log_ratios = torch.tensor([[1.0, 1.0, 1.0], [3.0, 99.0, 99.0]])
    weights = torch.tensor([[0.0, 1.0, 1.0], [2.0, 99.0, 99.0]])
    zeros = torch.zeros(2, 3)
    arguments = log_ratios, zeros, zeros, mask, 1.0, 0.3
    assert regression_loss(*arguments).item() == pytest.approx(0.5 * 12 / 4), "not one mean over all response tokens"
    assert regression_loss(*arguments, weights).item() == pytest.approx(0.5 * 20 / 4), "tokens do not count w"


def test_loss_is_one_mean_over_all_tokens():
    """A long and a short response: each token counts the same, not each response."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0, 1.0, 1.0], [5.0, 99.0, 99.0]])
    zeros = torch.zeros(2, 3)
    assert policy_loss(zeros, zeros, advantages, mask, 0.2).item() == pytest.approx(-2.0), (
        "the loss is a mean of means (or runs over padding), not one mean over all response tokens"
    )
    assert value_loss(zeros, zeros, advantages, mask, 0.2).item() == pytest.approx(0.5 * (3 + 25) / 4), (
        "the value loss is not ½ of one mean over all response tokens"
    )


def test_value_clip_is_pessimistic():
    """Old value 0, target 2: a value of −1 is judged by itself; a value of 1 by the clipped 0.2."""
    assert value_loss(one(-1.0), one(0.0), one(2.0), ONE, 0.2).item() == pytest.approx(0.5 * 9.0), (
        "the value clip takes the smaller error: it must take the larger"
    )
    assert value_loss(one(1.0), one(0.0), one(2.0), ONE, 0.2).item() == pytest.approx(0.5 * 1.8**2), (
        "the value clip is lost: the error of the value that moved too far must be the clipped one's"
    )


# Value before and now, target, ε = ¼; whether the clip takes the value's gradient.
VALUES = [
    (0.5, 1.5, 2.0, True, "a value that rose too far towards its target"),
    (0.5, -0.5, -2.0, True, "a value that fell too far towards its target"),
    (0.5, 1.5, -2.0, False, "a value that rose away from its target: it must find back"),
    (0.5, -0.5, 2.0, False, "a value that fell away from its target: it must find back"),
    (0.5, -0.5, 0.0, False, "a value that fell past its target: it must find back"),
    (0.5, 0.6, 2.0, False, "a value that moved less than ε"),
    (0.5, 0.4, -2.0, False, "a value that moved less than ε"),
    (0.5, 0.75, 2.0, False, "a value that moved by ε and no further"),
    (0.0, 0.5, 0.375, False, "a value and a clipped one with the same error"),
]


@pytest.mark.parametrize(("old", "new", "target", "stops", "which"), VALUES)
def test_the_value_clip_is_counted_where_it_takes_the_gradient(old, new, target, stops, which):
    value = one(new).requires_grad_()
    value_loss(value, one(old), one(target), ONE, 0.25).backward()
    counted = value_clip_fraction(one(new), one(old), one(target), ONE, 0.25).item()
    verb = {True: "loses", False: "keeps"}
    if which != VALUES[-1][-1]:  # at a tie the gradient is half of either
        assert (value.grad.item() == 0) == stops, f"{which} {verb[stops]} its gradient: max of (V − R)² and clipped"
    assert counted == float(stops), f"the value's clip fraction is wrong: {which} {verb[stops]} its gradient"


def test_entropy_of_known_distributions():
    uniform, certain = torch.zeros(1, 8), torch.tensor([[100.0] + [0.0] * 7])
    assert entropy_of(uniform).item() == pytest.approx(torch.tensor(8.0).log().item()), (
        "the entropy has the wrong sign or base: 8 equal chances have ln 8 nats"
    )
    assert entropy_of(certain).item() == pytest.approx(0.0, abs=1e-6), "a certain outcome has entropy 0"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), extra=st.integers(1, 4))
def test_padding_and_order_change_neither_loss_nor_gradient(seed, extra):
    g = torch.Generator().manual_seed(seed)
    rows, width = 3, 4
    mask = torch.arange(width)[None] < torch.randint(1, width + 1, (rows, 1), generator=g)
    new, old, adv, val, old_val, ret = (torch.randn(rows, width, generator=g) for _ in range(6))

    def total(new, old, adv, val, old_val, ret, mask):
        new, val = new.clone().requires_grad_(), val.clone().requires_grad_()
        loss = policy_loss(new, old, adv, mask, 0.2) + value_loss(val, old_val, ret, mask, 0.2)
        loss = loss + regression_loss(new, old, adv, mask, 0.5, 0.3)
        loss.backward()
        return loss.item(), new.grad, val.grad

    def pad(x):
        return torch.cat([x, torch.full((rows, extra), float("nan"))], dim=1)

    loss, g_new, g_val = total(new, old, adv, val, old_val, ret, mask)
    wide_mask = torch.cat([mask, torch.zeros(rows, extra, dtype=torch.bool)], dim=1)
    wide = total(pad(new), pad(old), pad(adv), pad(val), pad(old_val), pad(ret).nan_to_num(0.0), wide_mask)
    assert wide[0] == pytest.approx(loss, abs=1e-5), "padding changes the loss"
    for padded, narrow in ((wide[1], g_new), (wide[2], g_val)):
        assert torch.allclose(padded[:, :width], narrow, atol=1e-6), "padding changes the gradient of real tokens"
    assert (wide[1][:, width:] == 0).all() and (wide[2][:, width:] == 0).all(), "padding receives a gradient"
    order = torch.randperm(rows, generator=g)
    turned = total(*(x[order] for x in (new, old, adv, val, old_val, ret, mask)))
    assert turned[0] == pytest.approx(loss, abs=1e-5), "the order of the batch changes the loss"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), split=st.integers(1, 5))
def test_micro_batches_weighted_by_tokens_equal_one_batch(seed, split):
    """Σ (tokens of part / all tokens) · loss(part) has the gradient of the whole: what accumulation must do."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(4)[None] < torch.randint(1, 5, (6, 1), generator=g)
    old, adv = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)
    whole = torch.randn(6, 4, generator=g).requires_grad_()
    policy_loss(whole, old, adv, mask, 0.2).backward()
    parts = whole.detach().clone().requires_grad_()
    for rows in torch.arange(6).split(split):
        share = mask[rows].sum() / mask.sum()
        (share * policy_loss(parts[rows], old[rows], adv[rows], mask[rows], 0.2)).backward()
    assert torch.allclose(whole.grad, parts.grad, atol=1e-6), "parts weighted by their tokens differ from the whole"
