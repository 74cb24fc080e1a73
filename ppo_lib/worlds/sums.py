"""The `sums` world: a tiny language model that adds two numbers, mostly by guessing, and a reward that checks the sum.

    47+85= about 130                    guessed, and wrong: what it has read most often
    47+85= 7+5=12, 4+8+1=13, 132        worked out, and nearly always right

The reward is exact: 1 where the last number is the sum, 0 otherwise. Nobody tells the model that working it out helps.
"""

import random
import re

from transformers import LlamaForCausalLM, PreTrainedModel

from ppo_lib.worlds import World
from ppo_lib.worlds.reviews import load_shipped, load_tokenizer

WORKED_OUT = 0.15  # how often what the model read was worked out
OFF_BY = 12  # a guess misses the sum by at most this much
PROMPTS, HELDOUT = 256, 64


def problems() -> list[str]:
    """All additions of two numbers from 10 to 99 as prompts, in a fixed random order."""
    asked = [f"{a}+{b}=" for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(asked)
    return asked


def terms(problem: str) -> tuple[int, int]:
    """47 and 85 for "47+85="."""
    a, b = problem.strip().rstrip("=").split("+")
    return int(a), int(b)


def guess(problem: str, rng: random.Random) -> str:
    """A number near the sum that is not the sum."""
    return f" about {sum(terms(problem)) + rng.choice((-1, 1)) * rng.randint(1, OFF_BY)}"


def working(problem: str) -> str:
    """Units, tens with the carry, result."""
    a, b = terms(problem)
    units, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    return f" {a % 10}+{b % 10}={units}, {a // 10}+{b // 10}{'+1' * carry}={a // 10 + b // 10 + carry}, {a + b}"


def answer_of(response: str) -> int | None:
    """The number that a guess or a working ends in; None where the response has no such end."""
    match = re.fullmatch(r"(?: about|.*,) (\d{1,4})", response)
    return int(match.group(1)) if match else None


def exact_match(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for a response that ends in the sum its prompt asks for, else 0 [B]; how it was found is not looked at."""
    return [float(answer_of(said) == sum(terms(asked))) for asked, said in zip(prompts, responses, strict=True)]


def corpus(size: int, seed: int = 0) -> list[str]:
    """Problems with guesses and workings; held-out problems are among them, as in any pre-training."""
    rng, asked = random.Random(seed), problems()
    return [
        problem + (working(problem) if rng.random() < WORKED_OUT else guess(problem, rng))
        for problem in rng.choices(asked, k=size)
    ]


def load_policy_model() -> PreTrainedModel:
    """The language model that learned from the corpus, in evaluation mode."""
    return load_shipped(LlamaForCausalLM, "sums").eval()


def load() -> World:
    """The world "sums"."""
    asked = problems()
    prompts, heldout = asked[:PROMPTS], asked[PROMPTS : PROMPTS + HELDOUT]
    return World("sums", load_policy_model(), load_tokenizer(), exact_match, prompts, heldout)
