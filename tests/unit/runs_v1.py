"""Tiny runs of v1 and how to compare them, shared by the tests of v1."""

import torch

from ppo_lib import ppo, ppo_v1
from tests.unit.test_trainer import estimated, vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer, likely_eos, tiny_policy

__all__ = [
    "HELD_OUT", "PROMPTS", "TINY", "assert_same_run", "estimated", "make", "make_v0", "numbers", "vowels", "weights",
]  # fmt: skip

HELD_OUT = ["The plot", "A friend said it"]
TINY = dict(batch_size=4, minibatch_size=2, total_episodes=12, max_new_tokens=4, num_ppo_epochs=2, device="cpu")


def make(policy=None, reward=vowels, stage=ppo_v1, tokenizer=None, **settings):
    """A trainer of `stage` on a tiny random policy, three updates long."""
    policy = policy or likely_eos(tiny_policy())
    defaults = {} if settings.get("resume_from_checkpoint") else TINY  # a resumed run has its checkpoint's
    return stage.PPOTrainer(policy, reward, tokenizer=tokenizer or byte_tokenizer(), **{**defaults, **settings})


def make_v0(policy=None, reward=vowels, **settings):
    """The same of v0."""
    return make(policy, reward, ppo, **settings)


def weights(trainer) -> dict[str, torch.Tensor]:
    """Copies of all weights of policy and critic, by name."""
    named = [*trainer.policy.named_parameters(), *trainer.critic.named_parameters(prefix="critic")]
    return {name: parameter.detach().clone() for name, parameter in named}


def numbers(history, names=None) -> list[dict]:
    """Metrics without the measured speed; only those called `names`, where given."""
    return [{k: v for k, v in row.items() if k != "eps" and (names is None or k in names)} for row in history]


def assert_same_run(mine, other, mistake: str, names=None) -> None:
    """Weights, and metrics (those in `names`), of two trainers are the same bit for bit."""
    for row, expected in zip(numbers(mine.history, names), numbers(other.history, names), strict=True):
        differing = [name for name in expected if repr(row.get(name)) != repr(expected[name])]
        assert not differing, f"{mistake}: update {expected['update']} has other {', '.join(differing)}"
    theirs = weights(other)
    moved = [name for name, weight in weights(mine).items() if not torch.equal(weight, theirs[name])]
    assert not moved, f"{mistake}: other weights in {', '.join(moved[:3])}"
