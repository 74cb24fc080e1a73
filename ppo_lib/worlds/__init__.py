"""Small worlds that travel with the package: a language model, a tokenizer, prompts and a reward.

>>> from ppo_lib import worlds
>>> world = worlds.load("reviews")
>>> world.reward(["The film was"], [" truly wonderful."])
[1.3...]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_lib.running.threads import settle_threads

__all__ = ["NAMES", "World", "load"]


@dataclass(frozen=True)
class World:
    """Everything that a PPO run needs.

    `model` is a causal language model in evaluation mode; each `load`
    returns a fresh copy, so training one changes no other.
    `tokenizer` pads on the left; in the embedded worlds its EOS token is not its padding token, in `smollm2` it is.
    `reward` takes prompts and responses (two lists of B strings) and returns B numbers.
    `prompts` are for training and `heldout_prompts` for evaluation; no prompt is in both.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward: Callable[[list[str], list[str]], Sequence[float]]
    prompts: list[str]
    heldout_prompts: list[str]


# Modules are imported on demand: each world pays only for what it needs.
_LOADERS = {
    "reviews": ("ppo_lib.worlds.reviews", "load"),
    "reviews-sparse": ("ppo_lib.worlds.reviews", "load_sparse"),
    "sums": ("ppo_lib.worlds.sums", "load"),
    "smollm2": ("ppo_lib.worlds.smollm2", "load"),
}
NAMES = tuple(_LOADERS)


def load(name: str = "reviews") -> World:
    """Load a world by name: "reviews", "reviews-sparse", "sums" or "smollm2".

    Raises ValueError for any other name.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown world {name!r}; the worlds are {', '.join(NAMES)}")
    module, function = _LOADERS[name]
    world = getattr(import_module(module), function)()
    settle_threads(world.model)
    return world
