"""Ways to need less memory: adapters, recomputed activations, smaller micro-batches; and an estimate beforehand."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ppo_lib.config import PPOConfigV1
from ppo_lib.models import (
    Critic,
    few_logits,
    has_adapters,
    merged,
    model_inputs,
    takes,
    trunk_of,
    written_and_read,
)
from ppo_lib.rollout import Rollout, predictions_of
from ppo_lib.sampling import graphs
from ppo_lib.sampling.decoding import recomputed

FORWARD_BYTES = 2**30  # what a pass without gradients may take: more texts at a time gain little


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only each layer's input, and compute its activations again in the backward pass (Chen et al. 2016).

    transformers' own switch works in training mode only, and there dropout would be on.

    Raises:
        ValueError: the model has no layers that transformers knows how to recompute.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers to recompute: set activation_checkpointing=False")
    for layer in layers:
        if getattr(layer.forward, "func", None) is not recomputed:
            layer.forward = functools.partial(recomputed, layer.forward)


@torch.no_grad()
def is_product_of_rows(layer: nn.Linear) -> bool:
    """Whether `layer` gives x Wᵀ + b, and no more: a router may be a linear layer that answers with its choice."""
    plain = type(layer).forward is nn.Linear.forward
    if plain or layer.weight.is_meta:
        return plain
    rows = torch.ones(2, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    try:
        output = layer(rows)
    except Exception:
        return False
    return isinstance(output, Tensor) and torch.allclose(output, nn.functional.linear(rows, layer.weight, layer.bias))


def add_adapters(model: PreTrainedModel, rank: int, alpha: float, seed: int) -> None:
    """Freeze `model` and put trainable low-rank adapters beside its linear layers (LoRA, Hu et al. 2021).

    The adapters start at zero, so the model's outputs do not change.

    Raises:
        ImportError: the package peft is not installed.
        ValueError: the model has adapters already, or peft cannot give it any.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`lora_rank` needs the package peft: pip install peft") from error
    if has_adapters(model):
        raise ValueError("the model already has adapters, of an earlier trainer say: load it again, or merge them")
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    own = [name for name, layer in layers if not is_product_of_rows(layer)]
    try:
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft says int, and divides all the same
            lora_dropout=0.0,
            target_modules="all-linear",
            exclude_modules=own or None,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # and set to True: GPT-2's layers
            torch.manual_seed(seed)
            model.add_adapter(config)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"`lora_rank`: peft puts no adapters into {type(model).__name__} ({error}): set lora_rank=None"
        ) from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, `model` is what it was before it had adapters."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def merged_critic(critic: Critic) -> Critic:
    """A copy of `critic` whose trunk is `merged`."""
    plain = Critic(merged(critic.trunk))
    plain.value_head.load_state_dict(critic.value_head.state_dict())
    return plain


@contextmanager
def as_if_trained(model: PreTrainedModel, seed: int = 0) -> Iterator[None]:
    """Within the block, the adapters of `model` hold noise: at their start they are zero, and no mistake would show."""
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    before, generator = [parameter.detach().clone() for parameter in adapters], torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, was in zip(adapters, before, strict=True):
                parameter.copy_(was)


@torch.no_grad()
def rehearse_saving(model: PreTrainedModel, folder: str | Path | None) -> None:
    """Merge adapters as if trained, write the plain model below `folder`, read it again: it does what `model` does.

    What could fail when a run ends fails before it begins.

    Raises:
        ValueError: it cannot be merged, written or read, or the plain model does something else.
    """
    try:
        with adapters_off(model):
            without = few_logits(model)
        with as_if_trained(model):
            trained = few_logits(model)
            plain = merged(model)
            off = [few_logits(network) - trained for network in (plain, written_and_read(plain, folder))]
        effect, (unmerged, unsaved) = (trained - without).norm(), (each.norm() for each in off)
    except Exception as error:
        name, of_the_disk = type(model).__name__, isinstance(error, (OSError, SafetensorError))
        room = ": is there room in `output_dir`?" if of_the_disk else ""
        raise ValueError(f"`lora_rank`: the adapters of {name} could not be saved merged: {error!r}{room}") from error
    rounded = any(torch.finfo(parameter.dtype).bits < 32 for parameter in model.parameters())
    # Rounding of half-precision weights is part of what is missed; a merge that does nothing misses all.
    if unmerged > (0.5 if rounded else 0.01) * effect or unsaved > 0.5 * effect:
        raise ValueError(
            f"`lora_rank`: {type(model).__name__} does something else once its adapters are merged, so what is learned "
            "could not be saved: set lora_rank=None"
        )


def freeze_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of `model` that are not trained in `dtype`."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def response_states(policy: PreTrainedModel, rollout: Rollout) -> Tensor:
    """What the head of `policy` makes logits of, before each response token and after the last: [B, T+1, D]."""
    trunk = trunk_of(policy)
    states = trunk(**model_inputs(trunk, rollout.tokens, rollout.attention_mask), use_cache=False).last_hidden_state
    return states[:, rollout.prompt_ids.shape[1] - 1 :]


@torch.no_grad()
def check_head(policy: PreTrainedModel) -> None:
    """Raise ValueError where the logits of `policy` are not simply what its head makes of its last states.

    Large states and logits are put in their place, so that no soft cap, scale or shift is hidden by small ones.
    """
    head, trunk, seen = policy.get_output_embeddings(), trunk_of(policy), []
    generator = torch.Generator().manual_seed(0)

    def put_states(module: nn.Module, inputs: tuple, output: Any) -> Any:
        output.last_hidden_state = states.to(output.last_hidden_state)
        return output

    def put_logits(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        seen.append(inputs[0])
        return logits.to(output)

    tokens = torch.zeros(1, 2, dtype=torch.long, device=policy.device)
    states = 100 * torch.randn(trunk(tokens, use_cache=False).last_hidden_state.shape, generator=generator)
    logits = 100 * torch.randn(1, 2, head.out_features, generator=generator)
    hooks = [trunk.register_forward_hook(put_states), head.register_forward_hook(put_logits)]
    try:
        output = policy(tokens, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    as_put = [(output, logits), *((state, states) for state in seen)]
    if not all(got.shape == put.shape and torch.equal(got, put.to(got)) for got, put in as_put):
        raise ValueError(
            f"{type(policy).__name__} does more to its logits than its head: "
            "set share_trunk=False and logits_chunk=None"
        )


def token_predictions(
    head: nn.Module, states: Tensor, actions: Tensor, temperature: float, chunk: int | None, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """log π(a_t) of `actions` [B, T] and the entropy of π, after `states` [B, T, D]: [B, T] each.

    With a `chunk`, the logits of so many tokens are in memory at a time; the backward pass computes them again.
    """

    def work(part: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        return predictions_of(head(part).float() / temperature, taken, entropy_gradient)

    if chunk is None:
        return work(states, actions)
    pairs = zip(states.flatten(0, 1).split(chunk), actions.flatten().split(chunk), strict=True)
    parts = [checkpoint(work, part, taken, use_reentrant=False, preserve_rng_state=False) for part, taken in pairs]
    logprobs, entropies = (torch.cat(column).view_as(actions) for column in zip(*parts, strict=True))
    return logprobs, entropies


def response_logits_only(policy: PreTrainedModel, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """The numbers of `rollout.response_logits` [B, T, V] without logits for prompt tokens, which nobody needs.

    Raises:
        ValueError: the model cannot leave logits out.
    """
    if not takes(policy, "logits_to_keep"):
        raise ValueError(f"{type(policy).__name__} computes all logits or none: set response_logits_only=False")
    inputs = model_inputs(policy, rollout.tokens, rollout.attention_mask)
    kept = rollout.response_ids.shape[1] + 1
    return policy(**inputs, use_cache=False, logits_to_keep=kept).logits[:, :-1].float() / temperature


def forward_size(config: PPOConfigV1, model_config: PretrainedConfig, length: int) -> int:
    """How many texts of `length` tokens take no more than `FORWARD_BYTES` in a pass without gradients.

    An upper bound of what each takes: keys and values of all layers, what one layer has alive, and the logits of all
    its tokens (of `logits_chunk`, where that is set) in three forms: as they come, in 32 bits, and normalised.
    """
    text = model_config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * width
    inner = max(inner) if isinstance(inner, list) else inner  # Gemma 3n has one for each layer
    whole = 3 * text.vocab_size
    each = 4 * length * (2 * layers * width + 2 * inner + 6 * width + (0 if config.logits_chunk else whole))
    return max(1, (FORWARD_BYTES - 4 * (config.logits_chunk or 0) * whole) // each)


class FittingSize:
    """A number of responses that is halved, with a warning, whenever they do not fit in memory.

    Args:
        name: what the responses are needed for, as the warning says it.
        size: where to start.
    """

    def __init__(self, name: str, size: int):
        self.name, self.size, self.at_least = name, size, size
        self.aimed: int | None = size

    @classmethod
    def of(cls, config: PPOConfigV1) -> "FittingSize":
        """Responses of a pass without gradients: at least those of `batch_size` prompts, and those of a minibatch."""
        return cls("sampling and scoring", max(config.batch_size * config.group_size, config.minibatch_size))

    def aim(self, size: int) -> None:
        """Start from `size`, or where that is smaller from the first one; what was halved or restored stays."""
        if self.size == self.aimed:
            self.size = self.aimed = max(size, self.at_least)

    def put(self, size: int) -> None:
        """Go on with a `size` that an earlier session found to fit."""
        self.size, self.aimed = size, None

    def fit(self, work: Callable[[int], Any]) -> Any:
        """`work(size)`; where memory runs out again, first without what `graphs` keeps, then with half the size.

        Raises:
            RuntimeError: memory runs out with one response at a time; the message says what to change.
        """
        tried_without = False
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                again, tried_without = not tried_without and graphs.forget(), True
                if self.size == 1 and not again:
                    error.add_note(
                        "even one response at a time does not fit: set `activation_checkpointing`, `lora_rank`, "
                        "`response_logits_only` or `mixed_precision`, or lower `max_new_tokens`"
                    )
                    raise
            release_memory()
            if again:
                continue
            self.size //= 2
            warnings.warn(f"out of memory: {self.name} now takes {self.size} responses at a time", stacklevel=2)
