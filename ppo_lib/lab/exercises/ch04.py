"""Exercises of chapter 4: TD errors, the backward pass of GAE, and what goes to the update."""

import torch

from ppo_lib.estimators import whiten
from ppo_lib.lab.exercises.check import Exercise


def _td_errors(rewards, values, mask, gamma):
    goes_on = torch.zeros_like(mask)
    goes_on[:, :-1] = mask[:, 1:]
    next_values = values[:, 1:].masked_fill(~goes_on, 0.0)
    return (rewards + gamma * next_values - values[:, :-1]).masked_fill(~mask, 0.0)


def _next_values(values, mask):
    goes_on = torch.zeros_like(mask)
    goes_on[:, :-1] = mask[:, 1:]
    return values[:, 1:].masked_fill(~goes_on, 0.0)


def _td_without_end(rewards, values, mask, gamma):
    return (rewards + gamma * values[:, 1:] - values[:, :-1]).masked_fill(~mask, 0.0)


def _td_same_value(rewards, values, mask, gamma):
    return (rewards + gamma * values[:, :-1] - values[:, :-1]).masked_fill(~mask, 0.0)


def _td_late(rewards, values, mask, gamma):
    """Uses V after the token where V before it belongs, and the one after that as the next."""
    following = torch.zeros_like(rewards)
    following[:, :-1] = _next_values(values, mask)[:, 1:]
    return (rewards + gamma * following - values[:, 1:]).masked_fill(~mask, 0.0)


def _td_wrong_sign(rewards, values, mask, gamma):
    return (rewards + values[:, :-1] - gamma * _next_values(values, mask)).masked_fill(~mask, 0.0)


def _td_no_discount(rewards, values, mask, gamma):
    return _td_errors(rewards, values, mask, 1.0)


def _td_padding_kept(rewards, values, mask, gamma):
    return rewards + gamma * _next_values(values, mask) - values[:, :-1]


def _td_inputs():
    rewards = torch.tensor([[-0.1, 0.0, 0.0, 1.0], [0.0, 0.5, 0.0, 0.0]])
    values = torch.tensor([[0.4, 0.2, 0.3, 0.6, 0.7], [0.1, 0.3, 0.9, -0.8, 0.5]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    short = torch.tensor([[0.3, -0.2, 0.1], [2.0, 0.0, 0.0]]), values[:, 1:], mask[:, 1:]
    return [(rewards, values, mask, 0.9), (rewards, values, mask, 1.0), (*short, 0.8)]


td_errors = Exercise(
    "td_errors",
    solution=_td_errors,
    inputs=_td_inputs,
    mistakes={
        "you added the value of a state after the end: nothing follows the last sampled token, so put 0 there, "
        "whatever the critic says of the padding.": _td_without_end,
        "the next value is off by one: V(s_{t+1}) is values[:, t + 1], and you took values[:, t].": _td_same_value,
        "your values are one column late: V(s_t), before token t, is values[:, t].": _td_late,
        "the signs of the two values are swapped: add the next value, subtract the one before.": _td_wrong_sign,
        "γ is missing: it multiplies the next value.": _td_no_discount,
        "you left numbers on the padding: put 0 where `mask` is false, or the backward sum carries them into real "
        "tokens.": _td_padding_kept,
    },
)


def _backward(deltas, mask, gamma, lam):
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = (deltas[:, t] + gamma * lam * running).masked_fill(~mask[:, t], 0.0)
        advantages[:, t] = running
    return advantages


def _backward_leaking(deltas, mask, gamma, lam):
    return _backward(deltas, torch.ones_like(mask), gamma, lam).masked_fill(~mask, 0.0)


def _backward_padding_shown(deltas, mask, gamma, lam):
    return _backward(deltas, torch.ones_like(mask), gamma, lam)


def _backward_one_minus_lam(deltas, mask, gamma, lam):
    return _backward(deltas, mask, gamma, 1 - lam)


def _backward_weighted_delta(deltas, mask, gamma, lam):
    return _backward((1 - lam) * deltas, mask, gamma, lam)


def _backward_without_gamma(deltas, mask, gamma, lam):
    return _backward(deltas, mask, 1.0, lam)


def _backward_without_lam(deltas, mask, gamma, lam):
    return _backward(deltas, mask, gamma, 1.0)


def _forward_in_time(deltas, mask, gamma, lam):
    return _backward(deltas.flip(1), mask.flip(1), gamma, lam).flip(1)


def _no_carry(deltas, mask, gamma, lam):
    return deltas.masked_fill(~mask, 0.0)


def _backward_inputs():
    deltas = torch.tensor([[-0.3, 0.1, 0.3, 0.4], [0.2, 0.4, 5.0, -7.0]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    other = torch.tensor([[0.7, -0.6, 9.0], [0.5, 0.2, -0.1]]), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    return [(deltas, mask, 0.9, 0.8), (deltas, mask, 1.0, 0.95), (*other, 0.7, 1.0)]


gae_backward = Exercise(
    "gae_backward",
    solution=_backward,
    inputs=_backward_inputs,
    mistakes={
        "padding leaks into the response: reset what you carry back to 0 wherever `mask` is false.": _backward_leaking,
        "padding has advantages, and they leak into the response: reset what you carry to 0 wherever `mask` is "
        "false.": _backward_padding_shown,
        "you carry a share 1 − λ of what follows; the share is λ (0 looks one step ahead, 1 to the end).": (
            _backward_one_minus_lam
        ),
        "δ_t counts in full: the factor 1 − λ belongs to the average over n-step returns, not to this recursion.": (
            _backward_weighted_delta
        ),
        "γ is missing: what you carry back shrinks by γλ at each token.": _backward_without_gamma,
        "λ is missing: what you carry back shrinks by γλ at each token.": _backward_without_lam,
        "you walked forwards: A_t needs A_{t+1}, so start at the last token.": _forward_in_time,
        "nothing is carried back: you returned δ_t, which is GAE with λ = 0.": _no_carry,
    },
)


def _ready_for_update(advantages, values, mask):
    returns = (advantages + values[:, :-1]).masked_fill(~mask, 0.0)
    return whiten(advantages, mask), returns


def _returns_from_white(advantages, values, mask):
    white = whiten(advantages, mask)
    return white, (white + values[:, :-1]).masked_fill(~mask, 0.0)


def _padding_in_statistics(advantages, values, mask):
    white = (advantages - advantages.mean()) / advantages.std()
    return white.masked_fill(~mask, 0.0), _ready_for_update(advantages, values, mask)[1]


def _variance_for_deviation(advantages, values, mask):
    white = (advantages - advantages[mask].mean()) / advantages[mask].var()
    return white.masked_fill(~mask, 0.0), _ready_for_update(advantages, values, mask)[1]


def _population(advantages, values, mask):
    white = (advantages - advantages[mask].mean()) / advantages[mask].std(correction=0)
    return white.masked_fill(~mask, 0.0), _ready_for_update(advantages, values, mask)[1]


def _mean_kept(advantages, values, mask):
    return whiten(advantages, mask, shift_mean=False), _ready_for_update(advantages, values, mask)[1]


def _padding_shifted(advantages, values, mask):
    white = (advantages - advantages[mask].mean()) / advantages[mask].std()
    return white, _ready_for_update(advantages, values, mask)[1]


def _returns_late(advantages, values, mask):
    return whiten(advantages, mask), (advantages + values[:, 1:]).masked_fill(~mask, 0.0)


def _not_white(advantages, values, mask):
    return advantages, _ready_for_update(advantages, values, mask)[1]


def _update_inputs():
    advantages = torch.tensor([[0.5, 0.8, 0.7, 0.4], [-0.6, -0.3, 0.0, 0.0]])
    values = torch.tensor([[0.4, 0.2, 0.3, 0.6, 0.7], [0.1, -0.2, 0.9, -0.8, 0.5]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    other = torch.tensor([[0.1, 8.0, 9.0], [-2.0, 0.3, 1.5]]), torch.tensor([[1, 0, 0], [1, 1, 1]]).bool()
    return [(advantages, values, mask), (other[0], values[:, 1:], other[1])]


ready_for_update = Exercise(
    "ready_for_update",
    solution=_ready_for_update,
    inputs=_update_inputs,
    mistakes={
        "your returns come from the whitened advantages: the critic would learn numbers that have lost the reward's "
        "scale. Add the values first, whiten afterwards.": _returns_from_white,
        "padding counts in your mean and variance: take them where `mask` is true.": _padding_in_statistics,
        "you divided by the variance: whitening divides by its square root.": _variance_for_deviation,
        "your standard deviation divides by n: the mean is estimated too, so divide the squares by n − 1 (torch's "
        "default).": _population,
        "the mean is still there: subtract it, and do not add it back.": _mean_kept,
        "the padding is no longer 0: subtracting the mean moved it, so fill it with 0 afterwards.": _padding_shifted,
        "the returns use the value after the token: A_t was measured from values[:, t].": _returns_late,
        "the advantages are not whitened.": _not_white,
    },
)
