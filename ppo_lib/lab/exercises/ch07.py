"""Exercises of chapter 7: one mean from micro-batches, the warm-up, a low-rank adapter."""

import torch

from ppo_lib.lab.exercises.check import Exercise


def _step_loss(losses, tokens):
    return (losses * tokens / tokens.sum()).sum()


step_loss = Exercise(
    "step_loss",
    solution=_step_loss,
    inputs=[
        (torch.tensor([4.0, 8.0]), torch.tensor([3, 1])),
        (torch.tensor([0.5, -1.0, 2.0]), torch.tensor([10, 4, 2])),
    ],
    mistakes={
        "that is the mean of the means: a token of a short micro-batch weighs too much.": lambda losses, tokens: (
            losses.mean()
        ),
        "you added the means up: weigh each by its share of the tokens, and the shares add up to 1.": (
            lambda losses, tokens: losses.sum()
        ),
        "you added up the losses of all tokens: divide by the tokens of the whole step.": lambda losses, tokens: (
            losses * tokens
        ).sum(),
        "you divided by the number of micro-batches as well: the shares are all that is needed.": (
            lambda losses, tokens: _step_loss(losses, tokens) / len(losses)
        ),
        "you divided each mean by its tokens once more: multiply, for a mean over n tokens stands for n of them.": (
            lambda losses, tokens: (losses / tokens).sum()
        ),
    },
)


def _learning_rate(update, updates, warmup, highest):
    if update < warmup:
        return highest * (update + 1) / (warmup + 1)
    return highest * (updates - update) / (updates - warmup)


def _starts_at_zero(update, updates, warmup, highest):
    return highest * update / warmup if update < warmup else _learning_rate(update, updates, warmup, highest)


def _full_within_warmup(update, updates, warmup, highest):
    return highest * (update + 1) / warmup if update < warmup else _learning_rate(update, updates, warmup, highest)


def _falls_from_the_start(update, updates, warmup, highest):
    if update < warmup:
        return _learning_rate(update, updates, warmup, highest)
    return highest * (updates - update) / updates


def _both_at_once(update, updates, warmup, highest):
    return highest * min(1.0, (update + 1) / (warmup + 1)) * (updates - update) / updates


learning_rate = Exercise(
    "learning_rate",
    solution=_learning_rate,
    inputs=[(update, 10, 4, 0.1) for update in (0, 1, 3, 4, 5, 9)] + [(update, 6, 0, 0.02) for update in (0, 3)],
    mistakes={
        "update 0 has a learning rate of 0, so its rollout is wasted: start at 1 / (warmup + 1).": _starts_at_zero,
        "the last update of the warm-up has the full rate already: divide by warmup + 1.": _full_within_warmup,
        "the fall is counted from update 0: it begins when the warm-up is over.": _falls_from_the_start,
        "the fall runs during the warm-up too: first one, then the other.": _both_at_once,
    },
)


def _lora_forward(x, weight, down, up, alpha):
    return x @ weight.T + alpha / down.shape[0] * (x @ down.T) @ up.T


def _lora_inputs():
    generator = torch.Generator().manual_seed(0)
    for batch, d_in, d_out, rank, alpha in ((3, 4, 5, 2, 8.0), (2, 3, 3, 1, 4.0), (2, 2, 3, 4, 5.0)):
        shapes = ((batch, d_in), (d_out, d_in), (rank, d_in), (d_out, rank))
        yield (*(torch.randn(*shape, generator=generator) for shape in shapes), alpha)


lora_forward = Exercise(
    "lora_forward",
    solution=_lora_forward,
    inputs=lambda: list(_lora_inputs()),
    mistakes={
        "the adapter is not scaled: multiply it by α / r.": lambda x, weight, down, up, alpha: (
            x @ weight.T + (x @ down.T) @ up.T
        ),
        "you scaled by α alone: divide by the rank, the number of rows of A.": lambda x, weight, down, up, alpha: (
            x @ weight.T + alpha * (x @ down.T) @ up.T
        ),
        "the frozen weight is missing: the adapter is added to it.": lambda x, weight, down, up, alpha: (
            alpha / down.shape[0] * (x @ down.T) @ up.T
        ),
        "you divided by the width of x: r is the number of rows of A.": lambda x, weight, down, up, alpha: (
            x @ weight.T + alpha / down.shape[1] * (x @ down.T) @ up.T
        ),
        "you scaled the frozen weight too: α / r belongs to the adapter.": lambda x, weight, down, up, alpha: (
            alpha / down.shape[0] * (x @ weight.T + (x @ down.T) @ up.T)
        ),
    },
)
