"""Answers to chapter 4: TD errors, the backward pass, ready for the update."""

import torch


def shifted(mask):
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def td(rewards, values, mask, gamma, goes_on=None):
    goes_on = shifted(mask) if goes_on is None else goes_on
    after = torch.where(goes_on, values[:, 1:], 0.0)
    return torch.where(mask, rewards + gamma * after - values[:, :-1], 0.0)


def td_by_token(rewards, values, mask, gamma):
    out = [[0.0] * rewards.shape[1] for _ in rewards]
    for b, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            after = values[b, t + 1].item() if t + 1 < length else 0.0
            out[b][t] = rewards[b, t].item() + gamma * after - values[b, t].item()
    return out


def td_in_place(rewards, values, mask, gamma):
    values[:, :-1][~mask] = 0
    values[:, -1] = 0
    rewards[~mask] = 0
    rewards += gamma * values[:, 1:] - values[:, :-1]
    return rewards


def gae(deltas, mask, gamma, lam):
    advantages, carried = [], 0.0
    for t in range(deltas.shape[1] - 1, -1, -1):
        carried = torch.where(mask[:, t], deltas[:, t] + gamma * lam * carried, 0.0)
        advantages.insert(0, carried)
    return torch.stack(advantages, dim=1)


def gae_as_a_product(deltas, mask, gamma, lam):
    steps = torch.arange(deltas.shape[1])
    apart = steps[:, None] - steps  # [T, T]: how far row s lies after column t
    weights = torch.where(apart >= 0, float(gamma * lam) ** apart.clamp(min=0), 0.0)
    return (deltas.masked_fill(~mask, 0.0) @ weights).masked_fill(~mask, 0.0)


def gae_recursive(deltas, mask, gamma, lam):
    def from_token(row, kept, t):
        if t == len(row) or not kept[t]:
            return [0.0] * (len(row) - t)
        rest = from_token(row, kept, t + 1)
        return [row[t] + gamma * lam * (rest[0] if rest else 0.0), *rest]

    return torch.tensor([from_token(r, m, 0) for r, m in zip(deltas.tolist(), mask.tolist(), strict=True)])


def gae_in_place(deltas, mask, gamma, lam):
    deltas[~mask] = 0
    for t in range(deltas.shape[1] - 2, -1, -1):
        deltas[:, t] += gamma * lam * deltas[:, t + 1]
    return deltas


def gae_forward(deltas, mask, gamma, lam):
    advantages, carried = torch.zeros_like(deltas), 0.0
    for t in range(deltas.shape[1]):
        carried = torch.where(mask[:, t], deltas[:, t] + gamma * lam * carried, 0.0)
        advantages[:, t] = carried
    return advantages


def gae_leaky(deltas, mask, gamma, lam):
    return gae(deltas, torch.ones_like(mask), gamma, lam).masked_fill(~mask, 0.0)


def update_with(white, returns=lambda advantages, values, mask: advantages + values[:, :-1]):
    """An answer from a way to whiten the flat tensor of real advantages, and the returns."""

    def answer(advantages, values, mask):
        filled = torch.zeros_like(advantages)
        filled[mask] = white(advantages[mask])
        return filled, returns(advantages, values, mask).masked_fill(~mask, 0.0)

    return answer


def standardised(x):
    return (x - x.mean()) / x.std()


def sums_of_squares(advantages, values, mask):
    count = mask.sum()
    zeroed = advantages.masked_fill(~mask, 0.0)
    mean = zeroed.sum() / count
    centred = (advantages - mean).masked_fill(~mask, 0.0)
    deviation = (centred.square().sum() / (count - 1)).sqrt()
    return [centred / (deviation + 1e-8), zeroed + values[:, :-1].masked_fill(~mask, 0.0)]


def padding_in_the_statistics(advantages, values, mask):
    white = (advantages - advantages.mean()) / advantages.std()
    return white.masked_fill(~mask, 0), (advantages + values[:, :-1]).masked_fill(~mask, 0)


def zeros_in_the_statistics(advantages, values, mask):
    zeroed = advantages.masked_fill(~mask, 0)
    white = (zeroed - zeroed.mean()) / zeroed.std()
    return white.masked_fill(~mask, 0), (advantages + values[:, :-1]).masked_fill(~mask, 0)


def padding_not_zeroed(advantages, values, mask):
    kept = advantages[mask]
    return (advantages - kept.mean()) / kept.std(), advantages + values[:, :-1]


def row_by_row(advantages, values, mask):
    white, returns = update_with(standardised)(advantages, values, mask)
    for row, kept in enumerate(mask):
        white[row, kept] = standardised(advantages[row, kept])
    return white, returns


RIGHT_UPDATE = update_with(standardised)

RIGHT = {
    "td_errors": {
        "where": td,
        "list": td_by_token,
        "in place": td_in_place,
        "numpy": lambda *arguments: td(*arguments).numpy(),
    },
    "gae_backward": {
        "list of columns": gae,
        "matrix": gae_as_a_product,
        "recursion": gae_recursive,
        "in place": gae_in_place,
    },
    "ready_for_update": {
        "flat": RIGHT_UPDATE,
        "sums, epsilon, a list": sums_of_squares,
        "variance plus epsilon": update_with(lambda x: (x - x.mean()) * torch.rsqrt(x.var() + 1e-8)),
        "numpy": lambda *arguments: tuple(tensor.numpy() for tensor in RIGHT_UPDATE(*arguments)),
        "stacked": lambda *arguments: torch.stack(RIGHT_UPDATE(*arguments)),
    },
}
WRONG = {
    "td_errors": {
        "value after the end counts": lambda rewards, values, mask, gamma: td(
            rewards, values, mask, gamma, torch.ones_like(mask)
        ),
        "only the last column is an end": lambda rewards, values, mask, gamma: td(
            rewards, values, mask, gamma, shifted(torch.ones_like(mask))
        ),
        "mask not shifted": lambda rewards, values, mask, gamma: td(rewards, values, mask, gamma, mask),
        "mask shifted the other way": lambda rewards, values, mask, gamma: td(
            rewards, values, mask, gamma, torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], dim=1)
        ),
        "never a next value": lambda rewards, values, mask, gamma: td(rewards, values, mask, 0.0),
        "gamma ignored": lambda rewards, values, mask, gamma: td(rewards, values, mask, 1.0),
        "sign": lambda *arguments: -td(*arguments),
        "no reward": lambda rewards, values, mask, gamma: td(torch.zeros_like(rewards), values, mask, gamma),
        "no value before": lambda rewards, values, mask, gamma: (
            rewards + gamma * values[:, 1:].masked_fill(~shifted(mask), 0.0)
        ).masked_fill(~mask, 0.0),
        "padding kept": lambda rewards, values, mask, gamma: (
            rewards + gamma * values[:, 1:].masked_fill(~shifted(mask), 0.0) - values[:, :-1]
        ),
        "values swapped": lambda rewards, values, mask, gamma: td(rewards, values.flip(1), mask, gamma),
        "gamma on the reward": lambda rewards, values, mask, gamma: td(gamma * rewards, values, mask, 1.0),
        "one column short": lambda *arguments: td(*arguments)[:, :-1],
    },
    "gae_backward": {
        "garbage leaks": gae_leaky,
        "garbage shows": lambda deltas, mask, gamma, lam: torch.where(mask, gae(deltas, mask, gamma, lam), deltas),
        "lambda ignored": lambda deltas, mask, gamma, lam: gae(deltas, mask, gamma, 1.0),
        "gamma ignored": lambda deltas, mask, gamma, lam: gae(deltas, mask, 1.0, lam),
        "forwards": gae_forward,
        "nothing carried": lambda deltas, mask, gamma, lam: deltas.masked_fill(~mask, 0.0),
        "sum of the factors": lambda deltas, mask, gamma, lam: gae(deltas, mask, (gamma + lam) / 2, 1.0),
        "one token carried": lambda deltas, mask, gamma, lam: (
            deltas.masked_fill(~mask, 0.0) + gamma * lam * torch.where(shifted(mask), deltas.roll(-1, 1), 0.0)
        ).masked_fill(~mask, 0.0),
        "delta discounted too": lambda deltas, mask, gamma, lam: gae(deltas, mask, gamma, lam) * gamma * lam,
        "sign": lambda *arguments: -gae(*arguments),
        "reversed": lambda *arguments: gae(*arguments).flip(1),
        "average": lambda deltas, mask, gamma, lam: gae(deltas, mask, gamma, lam) * (1 - gamma * lam),
    },
    "ready_for_update": {
        "returns from the whitened": lambda advantages, values, mask: RIGHT_UPDATE(
            RIGHT_UPDATE(advantages, values, mask)[0], values, mask
        ),
        "padding in the statistics": padding_in_the_statistics,
        "zeros in the statistics": zeros_in_the_statistics,
        "padding not zeroed": padding_not_zeroed,
        "mean kept": update_with(lambda x: x / x.std()),
        "not divided": update_with(lambda x: x - x.mean()),
        "divided by the variance": update_with(lambda x: (x - x.mean()) / x.var()),
        "deviation of the population": update_with(lambda x: (x - x.mean()) / x.std(correction=0)),
        "row by row": row_by_row,
        "swapped": lambda *arguments: RIGHT_UPDATE(*arguments)[::-1],
        "value after the token": update_with(standardised, lambda a, values, mask: a + values[:, 1:]),
        "returns are the advantages": update_with(standardised, lambda a, values, mask: a),
        "returns whitened too": lambda advantages, values, mask: (
            RIGHT_UPDATE(advantages, values, mask)[0],
            RIGHT_UPDATE(advantages + values[:, :-1], values, mask)[0],
        ),
        "value subtracted": update_with(standardised, lambda a, values, mask: a - values[:, :-1]),
        "advantages only": lambda *arguments: RIGHT_UPDATE(*arguments)[0],
        "between 0 and 1": update_with(lambda x: (x - x.min()) / (x.max() - x.min())),
    },
}
