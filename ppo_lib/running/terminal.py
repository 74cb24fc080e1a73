"""How things look on a terminal: numbers without noise, texts on one line, no bars of other libraries."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as of_transformers

NOISE = 5e-6  # what 32-bit sums leave of a difference that is 0: the KL before the first update, say


def number(value: float, form: str = ".4g", noise: float = NOISE) -> str:
    """`value` in the format `form`; noise around 0 is 0, nothing is −0, and a whole number keeps all of its digits."""
    if isinstance(value, int):
        return str(value)
    return format(0.0 if abs(value) < noise else value, f"z{form}")


def in_one_line(text: str, width: int, end: bool = False) -> str:
    """`text` in quotes with its line ends escaped, cut to `width` letters; with `end`, its beginning is cut off."""
    if len(text) > width:
        text = f"…{text[1 - width :]}" if end else f"{text[: width - 1]}…"
    return repr(text)


@contextmanager
def no_foreign_bars() -> Iterator[None]:
    """Keeps transformers' bars of loading and saving out of the trainer's own; those of downloads stay.

    Its public switch would turn off downloads' too, and forget what the user had set for them.
    """
    before = of_transformers._tqdm_active
    of_transformers._tqdm_active = False
    try:
        yield
    finally:
        of_transformers._tqdm_active = before
