"""Answers to chapter 7: one loss from pieces, warm up and fall, a low-rank detour."""

import math

import numpy as np
import torch


def token_by_token(losses, tokens):
    each = [loss for loss, count in zip(losses.tolist(), tokens.tolist(), strict=True) for _ in range(int(count))]
    return sum(each) / len(each)


def rate_with(climb, fall):
    def rate(update, updates, warmup, highest):
        return highest * (climb(update, warmup) if update < warmup else fall(update, updates, warmup))

    return rate


def climb(update, warmup):
    return (update + 1) / (warmup + 1)


def line(update, updates, warmup):
    return 1 - (update - warmup) / (updates - warmup)


def interpolated(update, updates, warmup, highest):
    return np.interp(update, [-1, warmup, updates], [0.0, highest, 0.0])


def step_by_step(update, updates, warmup, highest):
    rate = 0.0
    for i in range(update + 1):
        rate += highest / (warmup + 1) if i <= warmup else -highest / (updates - warmup)
    return rate


def row_by_row(x, weight, down, up, alpha):
    change = up @ down * alpha / len(down)
    return [(weight @ row + change @ row).tolist() for row in x]


def lora(x, weight, down, up, scale):
    return x @ weight.T + scale * (x @ down.T @ up.T)


def lora_in_place(x, weight, down, up, alpha):
    weight += alpha / down.shape[0] * up @ down
    return torch.nn.functional.linear(x, weight)


RIGHT = {
    "step_loss": {
        "float": token_by_token,
        "dot": lambda losses, tokens: losses @ tokens.to(losses.dtype) / tokens.sum(),
        "numpy": lambda losses, tokens: np.average(losses.numpy(), weights=tokens.numpy()),
        "sum over sum": lambda losses, tokens: sum(a * n for a, n in zip(losses, tokens, strict=True)) / sum(tokens),
    },
    "learning_rate": {
        "numpy": interpolated,
        "sum of steps": step_by_step,
        "line": rate_with(climb, line),
        "smaller of two": lambda update, updates, warmup, highest: (
            min(highest * climb(update, warmup), highest * (updates - update) / (updates - warmup))
            if update < warmup
            else highest * (updates - update) / (updates - warmup)
        ),
        "tensor": lambda *arguments: torch.tensor(interpolated(*arguments)),
    },
    "lora_forward": {
        "list": row_by_row,
        "whole matrix": lambda x, weight, down, up, alpha: x @ (weight + alpha / down.shape[0] * up @ down).T,
        "linear": lambda x, weight, down, up, alpha: (
            torch.nn.functional.linear(x, weight)
            + torch.nn.functional.linear(torch.nn.functional.linear(x, down), up) * alpha / up.shape[1]
        ),
        "in place": lora_in_place,
        "einsum": lambda x, weight, down, up, alpha: (
            torch.einsum("ni,oi->no", x, weight) + torch.einsum("ni,ri,or->no", x, down, up) * (alpha / len(down))
        ),
    },
}
WRONG = {
    "step_loss": {
        "mean": lambda losses, tokens: losses.mean(),
        "sum": lambda losses, tokens: losses.sum(),
        "not divided": lambda losses, tokens: (losses * tokens).sum(),
        "divided by the pieces": lambda losses, tokens: (losses * tokens).mean(),
        "not summed": lambda losses, tokens: losses * tokens / tokens.sum(),
        "turned over": lambda losses, tokens: (losses / tokens).sum() / (1 / tokens).sum(),
        "tokens as logits": lambda losses, tokens: (losses * tokens.float().softmax(0)).sum(),
        "last piece left out": lambda losses, tokens: (losses * tokens)[:-1].sum() / tokens[:-1].sum(),
        "divided by tokens once more": lambda losses, tokens: losses.sum() / tokens.sum(),
        "largest piece": lambda losses, tokens: losses[tokens.argmax()],
        "median": lambda losses, tokens: losses.median(),
        "share of the largest": lambda losses, tokens: (losses * tokens / tokens.max()).mean(),
        "squares": lambda losses, tokens: (losses * tokens**2).sum() / (tokens**2).sum(),
    },
    "learning_rate": {
        "starts at 0": rate_with(lambda update, warmup: update / warmup, line),
        "reaches the top one early": rate_with(lambda update, warmup: (update + 1) / warmup, line),
        "one more in the denominator": rate_with(lambda update, warmup: (update + 1) / (warmup + 2), line),
        "no warm-up": rate_with(lambda update, warmup: 1.0, line),
        "no fall": rate_with(climb, lambda update, updates, warmup: 1.0),
        "falls from the start": rate_with(climb, lambda update, updates, warmup: 1 - update / updates),
        "0 at the last update": rate_with(
            climb, lambda update, updates, warmup: 1 - (update - warmup) / max(1, updates - 1 - warmup)
        ),
        "falls at once": rate_with(
            climb, lambda update, updates, warmup: 1 - (update + 1 - warmup) / (updates + 1 - warmup)
        ),
        "cosine": rate_with(
            climb,
            lambda update, updates, warmup: (1 + math.cos(math.pi * (update - warmup) / (updates - warmup))) / 2,
        ),
        "highest ignored": lambda update, updates, warmup, highest: rate_with(climb, line)(
            update, updates, warmup, 1.0
        ),
        "warm-up multiplied by the line": lambda update, updates, warmup, highest: (
            highest * min(1.0, climb(update, warmup)) * (updates - update) / updates
        ),
        "divided by updates": rate_with(climb, lambda update, updates, warmup: (updates - update) / updates),
        "whole numbers": lambda *arguments: round(rate_with(climb, line)(*arguments)),
        "warm-up counts on": rate_with(climb, lambda update, updates, warmup: line(update - 1, updates, warmup)),
    },
    "lora_forward": {
        "not scaled": lambda x, weight, down, up, alpha: lora(x, weight, down, up, 1.0),
        "not divided by the rank": lambda x, weight, down, up, alpha: lora(x, weight, down, up, alpha),
        "rank is the output": lambda x, weight, down, up, alpha: lora(x, weight, down, up, alpha / up.shape[0]),
        "rank is the input": lambda x, weight, down, up, alpha: lora(x, weight, down, up, alpha / down.shape[1]),
        "whole shares": lambda x, weight, down, up, alpha: lora(x, weight, down, up, alpha // len(down)),
        "root of the rank": lambda x, weight, down, up, alpha: lora(x, weight, down, up, alpha / len(down) ** 0.5),
        "turned over": lambda x, weight, down, up, alpha: lora(x, weight, down, up, len(down) / alpha),
        "without the weight": lambda x, weight, down, up, alpha: lora(x, 0 * weight, down, up, alpha / len(down)),
        "without the adapter": lambda x, weight, down, up, alpha: x @ weight.T,
        "subtracted": lambda x, weight, down, up, alpha: lora(x, weight, down, up, -alpha / len(down)),
        "all scaled": lambda x, weight, down, up, alpha: alpha / len(down) * lora(x, weight, down, up, 1.0),
        "weight not turned": lambda x, weight, down, up, alpha: (
            x @ weight + alpha / len(down) * (x @ down.T @ up.T)
            if weight.shape[0] == weight.shape[1]
            else lora(x, weight, down, up, alpha / len(down))
        ),
        "columns": lambda x, weight, down, up, alpha: lora(x, weight, down, up, alpha / len(down)).T,
        "on the weight's output": lambda x, weight, down, up, alpha: (
            (x @ weight.T) @ (torch.eye(len(weight)) + alpha / len(down) * up @ up.T)
        ),
        "16 for α": lambda x, weight, down, up, alpha: lora(x, weight, down, up, 16 / len(down)),
    },
}
