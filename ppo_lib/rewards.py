"""Rewards: any function of texts, or a learned model, behind one small protocol.

A score is of a whole response; the KL penalty joins it token by token in `estimators.token_rewards`.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_lib.models import check_same_vocabulary, context_length

#: What a trainer calls: B prompts and B responses as texts → B scores.
RewardFunction = Callable[[list[str], list[str]], Sequence[float] | Tensor]


class RewardError(ValueError):
    """A reward returned something unusable, or raised; the message says for which prompt."""


class RewardModel:
    """A sequence-classification model with one output, as a reward: the score of prompt + response.

    Args:
        model: any `AutoModelForSequenceClassification` with `num_labels=1`.
        tokenizer: the model's own; `None` means that it shares the policy's (the trainer then checks that
            the vocabularies agree). Its padding token is noted in the model's config.

    Raises:
        ValueError: the model has more than one output.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None):
        if model.config.num_labels != 1:
            raise ValueError(
                f"the reward model has {model.config.num_labels} outputs: load it with num_labels=1, "
                "or write a function (prompts, responses) -> scores that picks one"
            )
        self.model = model.requires_grad_(False).eval()
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if tokenizer is not None:
            self._adopt(tokenizer)

    def _adopt(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.model.config.pad_token_id = tokenizer.pad_token_id  # by it the model finds the last real token

    def bind(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the policy's tokenizer where the model came with none.

        Raises:
            ValueError: the vocabularies differ.
        """
        if self.tokenizer is None:
            check_same_vocabulary(policy, self.model, "reward model")
            self._adopt(tokenizer)
        self.model.to(policy.device)

    @torch.no_grad()
    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        """Scores [B].

        Raises:
            ValueError: the model came with no tokenizer, and no trainer has lent it the policy's.
        """
        if self.tokenizer is None:
            raise ValueError("the reward model has no tokenizer yet: pass its own, RewardModel(model, tokenizer)")
        return sequence_scores(self.model, self.tokenizer, [p + r for p, r in zip(prompts, responses, strict=True)])


def as_reward(reward: Any) -> RewardFunction:
    """A reward as the trainer calls it; a bare sequence-classification model is wrapped in a `RewardModel`.

    Raises:
        ValueError: `reward` cannot be called with prompts and responses.
    """
    if isinstance(reward, PreTrainedModel):
        return RewardModel(reward)
    if not callable(reward):
        raise ValueError(
            f"`reward` is {reward!r}: pass a function (prompts, responses) -> scores or a RewardModel "
            "(only the embedded worlds bring one of their own)"
        )
    try:
        inspect.signature(reward).bind([], [])
    except TypeError as error:
        raise ValueError(f"`reward` must take two lists, (prompts, responses): {error}") from error
    except ValueError:
        pass  # some callables have no signature to look at
    return reward


def sequence_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """The one output of a sequence-classification model for each text: [B], with gradient."""
    texts = [text.removeprefix(tokenizer.bos_token or "") for text in texts]  # the tokenizer adds its own
    rows, room = tokenizer(texts)["input_ids"], context_length(model)
    if (longest := max(map(len, rows))) > room:
        warnings.warn(
            f"a text has {longest} tokens of the reward model, whose context is {room}: such texts lose their front; "
            "shorten prompts or lower `max_new_tokens`",
            stacklevel=2,
        )
        side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
        rows = tokenizer(texts, truncation=True, max_length=room)["input_ids"]
        tokenizer.truncation_side = side
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(model.device)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1).float()


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−mean log σ(chosen − rejected): how surprised the scores [N] are by the preferences.

    Source: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), equation 1.
    """
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def score_responses(reward: RewardFunction, prompts: list[str], responses: list[str]) -> Tensor:
    """Call `reward` and check what comes back: scores [B], float.

    Raises:
        RewardError: the reward raised, returned another number of scores than there are responses, or a
            score that is not a finite number. The message names the prompt.
    """
    try:
        scores = reward(list(prompts), list(responses))  # its own lists: a reward may edit what it is given
    except Exception as error:
        raise RewardError(f"the reward raised {error!r}{_culprit(reward, prompts, responses)}") from error
    try:
        scores = torch.as_tensor(scores, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"the reward returned {scores!r}: return one number per response, in order") from error
    if scores.shape != (len(prompts),):
        raise RewardError(
            f"the reward returned scores of shape {tuple(scores.shape)} for {len(prompts)} responses: "
            "return one number per response, in order"
        )
    for index in (~scores.isfinite()).nonzero().flatten().tolist():
        raise RewardError(
            f"the reward gave {scores[index].item()} for prompt {prompts[index]!r} and response {responses[index]!r}: "
            "return a finite number"
        )
    return scores


def _culprit(reward: RewardFunction, prompts: list[str], responses: list[str]) -> str:
    """Try the responses one at a time to tell which of them the reward fails on."""
    for prompt, response in zip(prompts, responses, strict=True):
        try:
            reward([prompt], [response])
        except Exception:
            return f" for prompt {prompt!r} and response {response!r}"
    return f" for a batch of {len(prompts)}, though for none of its responses alone"
