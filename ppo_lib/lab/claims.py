"""How the book checks what it says, one tool for each kind of statement.

*Mathematics* (equal, sums to one) is a plain `assert`, with a tolerance from `rounding`. *This run* is read from the
run by the sentence beside it. *PPO in general* ("the guards help") is an `expect`: your run may be the exception.
"""

import math
import os
import textwrap

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["STRICT", "expect", "path_length", "rounding"]

STRICT = "PPO_BOOK_STRICT"  # set while the book is built and tested


def expect(holds: bool, claim: str, *, seen: object = "", lesson: str = "") -> None:
    """Say so where a run comes out otherwise than runs do, and go on; where the book is built or tested, fail.

    Args:
        holds: whether the claim held here.
        claim: what was expected, a whole sentence.
        seen: what came out instead.
        lesson: what that teaches the reader whose run it is.

    Raises:
        AssertionError: the claim did not hold, and the environment has PPO_BOOK_STRICT.
    """
    if holds:
        return
    parts = [f"Expected: {claim}", f"Your run: {seen}" if seen != "" else "Your run came out otherwise.", lesson]
    message = "\n".join(textwrap.fill(part, 100, subsequent_indent="   ") for part in parts if part)
    if os.environ.get(STRICT):
        raise AssertionError(message)
    print(message)


def rounding(*numbers: Tensor | float, terms: int, dtype: torch.dtype | None = None) -> float:
    """How far apart two sums of `terms` numbers, or two results of `terms` operations on a path, may lie by rounding.

    8 · √terms · u · max|x|, with u the unit roundoff: each operation is off by at most u, and independent errors add
    up like a random walk, which is beyond 8 standard deviations less than once in 10¹³ times
    (Higham and Mary 2019, theorem 2.4).

    Args:
        numbers: the numbers on the way, any shapes; the largest counts.
        terms: additions and multiplications on the longest path to one result.
        dtype: the precision computed in; by default the coarsest among the tensors, float32 if there is none.

    Raises:
        ValueError: `terms` is below 1, or there are no numbers.
    """
    if terms < 1 or not numbers:
        raise ValueError("`rounding` needs at least one number and one term")
    floating = [number.dtype for number in numbers if isinstance(number, Tensor) and number.is_floating_point()]
    dtype = dtype or max(floating, key=lambda each: torch.finfo(each).eps, default=torch.float32)
    sizes = [float(number.detach().abs().max()) if isinstance(number, Tensor) else abs(number) for number in numbers]
    return 8 * math.sqrt(terms) * (torch.finfo(dtype).eps / 2) * max(sizes)


def path_length(model: PreTrainedModel, length: int) -> int:
    """Operations on the longest path from a token of a text of `length` tokens to a logit of a decoder."""
    config = model.config.get_text_config()
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    inner = max(inner) if isinstance(inner, list) else inner
    # a layer: two norms, queries or values, scores, weighted sum, output, in and out of the inner layer
    return config.num_hidden_layers * (7 * width + inner + 2 * length) + 2 * width
