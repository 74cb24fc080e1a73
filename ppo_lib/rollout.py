"""The rollout: the one batch that flows prompts → sample → score → estimate → update, and its sampler."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_lib.losses import entropy_of
from ppo_lib.models import Critic, model_inputs
from ppo_lib.sampling.choice import decoder_for
from ppo_lib.sampling.decoding import Decoder

ASK_EVERY = {"cuda": 8}  # tokens after which a device is asked whether all texts have ended: a GPU must wait for it
LATER: Any = None  # what a field holds until a later step of the update fills it


@dataclass
class Rollout:
    """B sampled responses of at most T tokens to prompts of at most P tokens, and all that is known of them.

    Prompts are padded on the left, responses on the right. Fields below `responses` are filled on the way.
    """

    # trajectory
    prompts: list[str]  # B texts
    responses: list[str]  # B texts, special tokens removed
    prompt_ids: Tensor  # [B, P]
    prompt_mask: Tensor  # [B, P] bool, true on real prompt tokens
    response_ids: Tensor  # [B, T], the actions a_t
    mask: Tensor  # [B, T] bool, true on sampled tokens, EOS included
    ended: Tensor  # [B] bool, true where EOS was sampled, false where the response was cut off
    # policies
    logprobs: Tensor  # [B, T], log π_old(a_t), of the distribution that was sampled from
    ref_logprobs: Tensor = LATER  # [B, T], log π_ref(a_t)
    # outcome
    scores: Tensor = LATER  # [B], the reward's word on each whole response
    rewards: Tensor = LATER  # [B, T], score and KL penalty, token by token
    # values
    values: Tensor = LATER  # [B, T+1], V(s_t) before each token and after the last
    advantages: Tensor = LATER  # [B, T], A_t
    returns: Tensor = LATER  # [B, T], A_t + V(s_t), from advantages before whitening

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def tokens(self) -> Tensor:
        """Prompt and response side by side: [B, P+T]."""
        return torch.cat([self.prompt_ids, self.response_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """[B, P+T] long, 1 on real tokens."""
        return torch.cat([self.prompt_mask, self.mask], dim=1).long()

    @property
    def lengths(self) -> Tensor:
        """Sampled tokens of each response: [B]."""
        return self.mask.sum(dim=1)

    def _map(self, on_tensor: Callable[[str, Tensor], Tensor], on_list: Callable[[list], list]) -> Self:
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = on_tensor(field.name, value)
            fields[field.name] = on_list(value) if isinstance(value, list) else value
        return type(self)(**fields)

    def to(self, device: torch.device | str) -> Self:
        """The same rollout with its tensors on `device`."""
        return self._map(lambda _, tensor: tensor.to(device), list)

    def select(self, index: Tensor) -> Self:
        """The rows `index` [b] of every field."""
        rows = index.tolist()
        return self._map(lambda _, tensor: tensor[index.to(tensor.device)], lambda texts: [texts[row] for row in rows])

    def trimmed(self) -> Self:
        """The same rollout without the columns in which no row has a token: nothing is computed for them."""
        before = self.prompt_mask.shape[1] - int(self.prompt_mask.sum(dim=1).max())
        after = self.mask.shape[1] - int(self.lengths.max())

        def on_tensor(name: str, tensor: Tensor) -> Tensor:
            if name.startswith("prompt_"):
                return tensor[:, before:]
            return tensor[:, : tensor.shape[1] - after] if tensor.ndim == 2 else tensor

        return self._map(on_tensor, list)


def concatenate(rollouts: list[Rollout], pad_token_id: int) -> Rollout:
    """The rows of all `rollouts` in one, padded to the longest prompt (on the left) and response (on the right).

    The rollouts are of one class and have the same fields filled.
    """

    def joined(name: str) -> Any:
        rows = [getattr(rollout, name) for rollout in rollouts]
        if rows[0] is None:
            return None
        if isinstance(rows[0], list):
            return [text for texts in rows for text in texts]
        if rows[0].ndim == 1:
            return torch.cat(rows)
        longest = max(row.shape[1] for row in rows)
        missing = [longest - row.shape[1] for row in rows]
        sides = [(n, 0) if name.startswith("prompt") else (0, n) for n in missing]
        fill = pad_token_id if name.endswith("_ids") else 0
        return torch.cat([pad(row, side, value=fill) for row, side in zip(rows, sides, strict=True)])

    if len(rollouts) == 1:
        return rollouts[0]
    return type(rollouts[0])(**{field.name: joined(field.name) for field in dataclasses.fields(rollouts[0])})


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids [B, P], padded on the left, and their mask [B, P] bool.

    A prompt that already begins with the BOS text (a rendered chat template) is not given a second BOS.
    """
    bos = tokenizer.bos_token
    rows = [tokenizer(p, add_special_tokens=not (bos and p.startswith(bos)))["input_ids"] for p in prompts]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = True
    return ids, mask


def prompt_lengths(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[int]:
    """Tokens of each prompt as `encode_prompts` makes them, one after the other: a long one costs only itself."""
    lengths = {prompt: int(encode_prompts(tokenizer, [prompt])[1].sum()) for prompt in set(prompts)}
    return [lengths[prompt] for prompt in prompts]


def eos_token_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends a response: the tokenizer's EOS and those of the model's generation config."""
    configured = getattr(policy.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *configured} - {None})


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """One token from each row of `logprobs` [B, V], by inverting its cumulative distribution at `uniform` [B, 1]: [B].

    `uniform` is in double precision, and so is the distribution: rare tokens keep their share.
    """
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return token.squeeze(-1).clamp(max=logprobs.shape[-1] - 1)


def draw_uniforms(generator: torch.Generator | None, tokens: int, count: int) -> Tensor:
    """Random numbers [T, B, 1] for `tokens` of `count` responses; the generator is left as if none had been drawn."""
    generator = torch.default_generator if generator is None else generator
    state = generator.get_state()
    uniforms = torch.rand(tokens, count, 1, generator=generator, dtype=torch.float64)
    generator.set_state(state)
    return uniforms


def spend_uniforms(generator: torch.Generator | None, tokens: int, count: int) -> None:
    """Move the generator behind the numbers that responses of `tokens` at most have used."""
    torch.rand(tokens, count, 1, generator=generator, dtype=torch.float64)


def decode_responses(tokenizer: PreTrainedTokenizerBase, prompts: list[Tensor], responses: list[Tensor]) -> list[str]:
    """Texts of the responses, decoded behind their prompts: alone, some tokenizers drop a leading space."""
    heads = tokenizer.batch_decode([prompt.tolist() for prompt in prompts], skip_special_tokens=True)
    joined = [torch.cat(pair).tolist() for pair in zip(prompts, responses, strict=True)]
    wholes = tokenizer.batch_decode(joined, skip_special_tokens=True)
    return [whole[len(head) :] for head, whole in zip(heads, wholes, strict=True)]


@torch.no_grad()
def sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    greedy: bool = False,
    uniforms: Tensor | None = None,
    decoder: type[Decoder] | None = None,
) -> Rollout:
    """Let the policy respond to `prompts`, and note the log-probability of every token it takes.

    Args:
        max_new_tokens: T at most; a response that has not sampled EOS by then is cut off.
        temperature: divides the logits; `logprobs` are those of the distribution after this division.
        generator: a CPU generator; the same one gives the same responses on every device.
        greedy: take the most probable token instead of sampling.
        uniforms: [T, B, 1], what to draw with in place of the generator's numbers.
        decoder: what writes the texts; by default the fastest that fits the policy.
    """
    prompt_ids, prompt_mask = (x.to(policy.device) for x in encode_prompts(tokenizer, prompts))
    device, count = policy.device, len(prompts)
    eos = torch.tensor(eos_token_ids(policy, tokenizer), device=device)
    response_ids = torch.full((count, max_new_tokens), tokenizer.pad_token_id, device=device)
    mask = torch.zeros(count, max_new_tokens, dtype=torch.bool, device=device)
    logprobs = torch.zeros(count, max_new_tokens, device=device)
    writer = (decoder or decoder_for(policy))(policy, prompt_ids, prompt_mask, max_new_tokens)
    rows = torch.arange(count, device=device)  # the texts that the writer still has
    running = torch.ones(count, dtype=torch.bool, device=device)  # which of them go on
    ended = torch.ones(count, dtype=torch.bool, device=device)
    every = ASK_EVERY.get(device.type, 1)
    numbers = (draw_uniforms(generator, max_new_tokens, count) if uniforms is None else uniforms).to(device)
    for t in range(max_new_tokens):
        step_logprobs = torch.log_softmax(writer.logits.float() / temperature, dim=-1)  # [b, V]
        token = step_logprobs.argmax(dim=-1) if greedy else draw(step_logprobs, numbers[t, rows])  # [b]
        token = torch.where(running, token, tokenizer.pad_token_id)
        response_ids[rows, t], mask[rows, t] = token, running
        logprobs[rows, t] = step_logprobs.gather(1, token[:, None]).squeeze(1).masked_fill(~running, 0.0)
        running = running & (token[:, None] != eos).all(dim=1)
        if t + 1 == max_new_tokens:
            break
        if t % every == 0:
            going = int(running.sum())
            if going == 0:
                break
            if going <= writer.SHARE_THAT_STAYS * len(rows):
                writer.keep(running.nonzero().flatten())
                rows, token, running = rows[running], token[running], running[running]
        writer.append(token)
    ended[rows] = ~running
    longest = int(mask.sum(dim=1).max())
    if uniforms is None:
        spend_uniforms(generator, longest, count)
    response_ids, mask, logprobs = response_ids[:, :longest], mask[:, :longest], logprobs[:, :longest]
    prompt_rows = [row[kept] for row, kept in zip(prompt_ids, prompt_mask, strict=True)]
    response_rows = [row[kept] for row, kept in zip(response_ids, mask, strict=True)]
    return Rollout(
        prompts=list(prompts),
        responses=decode_responses(tokenizer, prompt_rows, response_rows),
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        mask=mask,
        ended=ended,
        logprobs=logprobs,
    )


def response_logits(policy: PreTrainedModel, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Logits of the distributions the response tokens were drawn from: [B, T, V], divided by `temperature`."""
    inputs = model_inputs(policy, rollout.tokens, rollout.attention_mask)
    logits = policy(**inputs, use_cache=False).logits
    return logits[:, rollout.prompt_ids.shape[1] - 1 : -1].float() / temperature


def logprobs_of(logits: Tensor, actions: Tensor) -> Tensor:
    """log π(a_t) of `actions` [B, T] under `logits` [B, T, V]: [B, T]."""
    return torch.log_softmax(logits, dim=-1).gather(-1, actions[..., None]).squeeze(-1)


def predictions_of(logits: Tensor, actions: Tensor, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
    """log π(a_t) of `actions` [B, T] under `logits` [B, T, V], and the entropy of π: [B, T] each.

    Without `entropy_gradient` entropies are only watched, and keep nothing for a backward pass.
    """
    logprobs = logprobs_of(logits, actions)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        return logprobs, entropy_of(logits)


def response_values(critic: Critic, rollout: Rollout) -> Tensor:
    """V(s_t) before each response token and after the last: [B, T+1]."""
    values = critic(rollout.tokens, rollout.attention_mask)
    return values[:, rollout.prompt_ids.shape[1] - 1 :]
