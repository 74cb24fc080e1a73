"""What the token microscope shows: rollouts turned into small frames of tokens and numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppo_lib.rollout import Rollout, logprobs_of, response_logits

__all__ = ["Recorder", "frame", "token_texts"]

# name -> label, note, and where needed: centre of the colours (0), log scale, texts of a flag, what the line sums up
QUANTITIES: dict[str, dict[str, Any]] = {
    "logprob": {
        "label": "log-probability",
        "note": "0: the policy was certain. Far below 0: a surprising token.",
        "total": "sum",
    },
    "kl": {
        "label": "KL (k1)",
        "note": "log π − log π_ref: above 0 the policy likes the token more than the reference does. The sum over the "
        "response estimates the sequence's KL.",
        "total": "sum",
    },
    "reward": {
        "label": "reward",
        "note": "The KL penalty on every token, and the score on the last one.",
        "total": "sum",
    },
    "value": {
        "label": "value",
        "note": "V(s): what the critic expects from here on, before this token.",
        "total": "mean",
    },
    "advantage": {
        "label": "advantage",
        "note": "Above 0: better than the critic expected, so the token is made more likely.",
        "total": "mean",
    },
    "return": {"label": "return", "note": "The critic's target: advantage + value.", "total": "mean"},
    "entropy": {"label": "entropy", "note": "0: one token was possible. High: many were.", "total": "mean"},
    "ratio": {
        "label": "ratio",
        "note": "π after the update / π that sampled. Above 1: the token became more likely. Log colour scale.",
        "total": "mean",
        "centre": 1.0,
        "log": True,
    },
    "clipped": {
        "label": "clipped",
        "note": "Clipped: the ratio left the clip range on the side its advantage pushes to, so the gradient is 0.",
        "total": "mean",
        "flag": ["not clipped", "clipped"],
    },
}


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """One text for each token of `ids`, special tokens included; joined, they are the decoded text.

    A byte-level token that is only part of a character has the empty text; the character stands with the token that
    completes it.
    """
    ids = [int(token) for token in ids]
    whole = _decode(tokenizer, ids)
    ends = [_common_prefix(_decode(tokenizer, ids[:count]), whole) for count in range(1, len(ids))] + [len(whole)]
    texts, start = [], 0
    for end in ends[: len(ids)]:
        texts.append(whole[start : max(start, end)])
        start = max(start, end)
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.batch_decode([ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)[0]


def _common_prefix(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def frame(
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    step: int | str = 0,
    responses: int = 8,
    **extra: Tensor,
) -> dict[str, Any]:
    """What the microscope shows of `rollout` at one training step.

    Every per-token field the rollout has is taken: log-probability, KL, value, reward, advantage, return.

    Args:
        step: the number on the microscope's slider.
        responses: rows taken at most, evenly spaced over the batch.
        **extra: other quantities by name, each [B, T]; a bool tensor becomes a flag.

    Raises:
        ValueError: a quantity of `extra` is not [B, T].
    """
    quantities = {"logprob": rollout.logprobs}
    if rollout.ref_logprobs is not None:
        quantities["kl"] = rollout.logprobs - rollout.ref_logprobs
    for name in ("reward", "value", "advantage", "return"):
        tensor = getattr(rollout, f"{name}s")
        if tensor is not None:
            quantities[name] = tensor[:, : rollout.mask.shape[1]]  # V has one more: the value after the last token
    for name, tensor in extra.items():
        if tensor.shape != rollout.mask.shape:
            raise ValueError(f"`{name}` is {list(tensor.shape)}; the response tokens are {list(rollout.mask.shape)}")
    quantities |= extra
    spacing = -(-len(rollout) // responses)
    return {
        "step": step,
        "responses": [_response(rollout, tokenizer, row, quantities) for row in range(0, len(rollout), spacing)],
    }


def _response(rollout: Rollout, tokenizer: PreTrainedTokenizerBase, row: int, quantities: Mapping[str, Tensor]) -> dict:
    kept = rollout.mask[row].bool()
    return {
        "prompt": rollout.prompts[row],
        "tokens": token_texts(tokenizer, rollout.response_ids[row][kept].tolist()),
        "ended": bool(rollout.ended[row]),
        "score": None if rollout.scores is None else float(rollout.scores[row]),
        "values": {name: tensor[row][kept].tolist() for name, tensor in quantities.items()},
    }


class Recorder:
    """A callback for `PPOTrainer.train` that keeps every `every`-th rollout, and the last, as frames.

    It adds what only the moment after an update knows: `ratio`, π after the update over π that sampled, and `clipped`.

        recorder = Recorder(every=5)
        trainer.train(dataset, callback=recorder)
        TokenMicroscope(recorder.frames, "advantage")
    """

    def __init__(self, every: int = 1, responses: int = 8):
        self.every, self.responses = every, responses
        self.frames: list[dict[str, Any]] = []

    @torch.no_grad()
    def __call__(self, trainer: Any, rollout: Rollout, metrics: Mapping[str, float]) -> None:
        """Record `rollout` when its turn has come."""
        update, config = int(metrics["update"]), trainer.config
        if (update - 1) % self.every and update != config.num_updates:
            return
        logits = response_logits(trainer.policy, rollout, config.temperature)
        ratio = (logprobs_of(logits, rollout.response_ids) - rollout.logprobs).masked_fill(~rollout.mask, 0.0).exp()
        up, down = rollout.advantages > 0, rollout.advantages < 0
        clipped = (up & (ratio > 1 + config.cliprange)) | (down & (ratio < 1 - config.cliprange))
        self.frames.append(frame(rollout, trainer.tokenizer, update, self.responses, ratio=ratio, clipped=clipped))


def view_of(frames: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state the browser needs: prompts stored once, quantities with their colour scale, rounded numbers."""
    rows = [row for shot in frames for row in shot["responses"]]
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    steps = [
        {
            "step": shot["step"],
            "responses": [
                {
                    "prompt": prompts.index(row["prompt"]),
                    "tokens": row["tokens"],
                    "ended": row["ended"],
                    "score": _rounded(row["score"]),
                    "values": [[_rounded(number) for number in row["values"].get(name, [])] for name in names],
                }
                for row in shot["responses"]
            ],
        }
        for shot in frames
    ]
    columns = {name: [number for row in rows for number in row["values"].get(name, [])] for name in names}
    return {
        "prompts": [prompt if len(prompt) <= 300 else "… " + prompt[-300:] for prompt in prompts],
        "quantities": [_scale(name, column) for name, column in columns.items()],
        "steps": steps,
    }


def _scale(name: str, column: list[float]) -> dict[str, Any]:
    """The quantity's texts, and the range of its colours: the 98th percentile of the distance from its centre."""
    plain = {"label": name.replace("_", " "), "note": "", "total": "mean"}
    quantity: dict[str, Any] = {"id": name, "centre": 0.0, "log": False, "flag": None} | QUANTITIES.get(name, plain)
    if column and all(isinstance(value, bool) for value in column) and not quantity["flag"]:
        quantity["flag"] = ["no", "yes"]
    values = torch.tensor(column, dtype=torch.float64)
    values = values[values.isfinite()]
    centre = quantity["centre"]
    distance = (values.clamp(min=1e-9) / centre).log().abs() if quantity["log"] else (values - centre).abs()
    reach = float(torch.quantile(distance, 0.98)) if len(distance) else 0.0
    reach = reach or float(distance.max() if len(distance) else 0.0) or 1.0
    if quantity["flag"]:
        reach = 1.0
    quantity["extent"] = float(f"{torch.tensor(reach).exp().item() if quantity['log'] else reach:.3g}")
    quantity["low"] = float(values.min()) if len(values) else centre
    quantity["high"] = float(values.max()) if len(values) else centre
    return quantity


def _rounded(number: float | bool | None) -> float | int | None:
    """Four significant digits; None for what is not a finite number."""
    if number is None or number != number or abs(number) == float("inf"):
        return None
    return int(number) if float(number).is_integer() else float(f"{number:.4g}")
