"""The `reviews` and `reviews-sparse` worlds: a tiny language model that writes movie reviews, and what they are worth.

The *gold* reward knows the truth: it reads the words and cannot be fooled by repetition. The *proxy* is a small reward
model that learned from noisy preferences between ordinary samples, so it can be fooled: press hard on the proxy and the
gold reward falls (Gao, Schulman and Hilton 2022, "Scaling Laws for Reward Model Overoptimization", arXiv:2210.10760).
"""

import math
import random
import re
from importlib.resources import as_file, files
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ppo_lib.rewards import RewardModel
from ppo_lib.rollout import sample
from ppo_lib.running.terminal import no_foreign_bars
from ppo_lib.worlds import World, grammar

MAX_NEW_TOKENS = 24  # nearly every review of the base model ends within this many tokens
SATURATION = 2.5  # praise cannot count for more than this
NEGATED = -0.7  # "not dull" is praise, but weaker praise than "dull" is blame
REPEAT_COST = 0.5
UNKNOWN_COST = 0.25
UNFINISHED_COST = 0.5
FLOOR = -3.0
PREFERENCE_SHARPNESS = 2.0  # how reliably a judge prefers the better review

_LEXICON = grammar.lexicon()
_MAY_REPEAT = frozenset(("the", "but", "and", "i", "a", "was", "felt", "seemed", "is", "of"))


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def gold_score(response: str) -> float:
    """What a review is really worth: valence − repetition − unknown words − unfinished text, never below −3.

    Valence is `S·tanh(sum / S)` with S = 2.5, where the sum runs over the words' valences; an intensifier just before a
    word scales it and a negation up to two words before turns it around. A word counts once: saying it again costs 0.5,
    and so does doubling a small word ("the the"). A word that no review contains costs 0.25. A text without a full stop
    or an exclamation mark at its end costs 0.5.
    """
    words = words_of(response)
    total, cost, seen = 0.0, 0.0, set()
    for i, word in enumerate(words):
        if word not in _LEXICON:
            cost += UNKNOWN_COST
        if (word in seen and word not in _MAY_REPEAT) or (i > 0 and words[i - 1] == word):
            cost += REPEAT_COST
        elif word in grammar.VALENCE:
            value = grammar.VALENCE[word]
            if i > 0:
                value *= grammar.INTENSITY.get(words[i - 1], 1.0)
            if any(negation in words[max(0, i - 2) : i] for negation in grammar.NEGATIONS):
                value *= NEGATED
            total += value
        seen.add(word)
    if not response.rstrip().endswith((".", "!")):
        cost += UNFINISHED_COST
    return max(FLOOR, SATURATION * math.tanh(total / SATURATION) - cost)


def gold_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """`gold_score` of each response [B]; only the response counts, the prompt earns nothing."""
    return [gold_score(response) for _, response in zip(prompts, responses, strict=True)]


def sparse_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for a response that says "ten out of ten", else 0 [B]. The base model says so in 0.47 % of its samples."""
    return [float(grammar.RARE_FORM in response.lower()) for _, response in zip(prompts, responses, strict=True)]


def load_shipped(model_class: type[PreTrainedModel | PreTrainedTokenizerBase], folder: str) -> Any:
    """`model_class.from_pretrained` on a shipped folder, without its progress bar."""
    with no_foreign_bars(), as_file(files(__package__) / "data" / folder) as path:
        return model_class.from_pretrained(path)


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer: any text round-trips, `<eos>` is not `<pad>`, padding goes on the left."""
    return load_shipped(PreTrainedTokenizerFast, "policy")


def load_policy_model() -> PreTrainedModel:
    """The language model that learned from the corpus: a Llama of 88,368 parameters, in evaluation mode."""
    return load_shipped(LlamaForCausalLM, "policy").eval()


def load_proxy_model() -> PreTrainedModel:
    """The learned proxy as a bare sequence classifier with one label, in evaluation mode."""
    return load_shipped(LlamaForSequenceClassification, "reward_model").eval()


def load_reward_model() -> RewardModel:
    """The learned proxy as a reward, called with prompts and responses."""
    return RewardModel(load_proxy_model(), load_tokenizer())


def llama_config(tokenizer: PreTrainedTokenizerBase, hidden: int, layers: int, **extra: Any) -> LlamaConfig:
    """A small Llama over this tokenizer: `hidden` wide, `layers` deep, 4 heads."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **extra,
    )


def new_reward_model(seed: int = 0, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """An untrained model of the proxy's shape (21,696 parameters), the same one for the same seed."""
    tokenizer = load_tokenizer() if tokenizer is None else tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(llama_config(tokenizer, hidden=24, layers=1, num_labels=1))


def prompts() -> tuple[list[str], list[str]]:
    """64 openings for training and 64 others held out."""
    openings = grammar.openings(128)
    return openings[:64], openings[64:]


def load() -> World:
    """The world "reviews": its reward is the gold reward."""
    return World("reviews", load_policy_model(), load_tokenizer(), gold_reward, *prompts())


def load_sparse() -> World:
    """The world "reviews-sparse": same model, and a reward that is nearly always 0."""
    return World("reviews-sparse", load_policy_model(), load_tokenizer(), sparse_reward, *prompts())


def sample_reviews(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, openings: list[str], seed: int, batch_size: int = 512
) -> list[str]:
    """One sampled response per opening, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    responses = []
    for start in range(0, len(openings), batch_size):
        batch = openings[start : start + batch_size]
        responses += sample(model, tokenizer, batch, MAX_NEW_TOKENS, generator=generator).responses
    return responses


def preference_pairs(
    n: int = 2000,
    seed: int = 0,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    openings: list[str] | None = None,
) -> list[tuple[str, str, str]]:
    """`n` labelled comparisons (prompt, chosen, rejected) between two samples of the base model.

    The judge is noisy, as people are: it prefers a to b with probability σ(2·(gold(a) − gold(b))), the Bradley–Terry
    model (Bradley and Terry 1952). `openings` defaults to the training prompts.
    """
    model = load_policy_model() if model is None else model
    tokenizer = load_tokenizer() if tokenizer is None else tokenizer
    openings = prompts()[0] if openings is None else openings
    rng = random.Random(seed)
    asked = rng.choices(openings, k=n)
    first = sample_reviews(model, tokenizer, asked, seed=2 * seed)
    second = sample_reviews(model, tokenizer, asked, seed=2 * seed + 1)
    pairs = []
    for prompt, a, b in zip(asked, first, second, strict=True):
        gap = gold_score(a) - gold_score(b)
        a_wins = rng.random() < 1 / (1 + math.exp(-PREFERENCE_SHARPNESS * gap))
        pairs.append((prompt, a, b) if a_wins else (prompt, b, a))
    return pairs
