"""Ways to need less memory: adapters, recomputed activations, smaller micro-batches; and an estimate beforehand."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ppo_lib import graphs
from ppo_lib.losses import entropy_of
from ppo_lib.models import Critic, model_inputs, takes
from ppo_lib.rollout import Rollout, logprobs_of


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
        if getattr(layer.forward, "func", None) is not _recomputed:
            layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def add_adapters(model: PreTrainedModel, rank: int, alpha: float, seed: int) -> None:
    """Freeze `model` and put trainable low-rank adapters beside its linear layers (LoRA, Hu et al. 2021).

    The adapters start at zero, so the model's outputs do not change.

    Raises:
        ImportError: the package peft is not installed.
        ValueError: the model has adapters already.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`lora_rank` needs the package peft: pip install peft") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("the model already has adapters, of an earlier trainer say: load it again, or merge them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear"))
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


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` in 32-bit floats with its adapters added into its weights: a plain model again, on the CPU."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    device = model.device
    plain = copy.deepcopy(model.to("cpu")).float()  # a GPU that needs adapters has no room for a copy
    model.to(device)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    plain._hf_peft_config_loaded = False  # or save_pretrained would look for adapters to save
    return plain.requires_grad_(True)


def merged_critic(critic: Critic) -> Critic:
    """A copy of `critic` whose trunk is `merged`."""
    plain = Critic(merged(critic.trunk))
    plain.value_head.load_state_dict(critic.value_head.state_dict())
    return plain


def freeze_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of `model` that are not trained in `dtype`."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def response_states(policy: PreTrainedModel, rollout: Rollout) -> Tensor:
    """What the head of `policy` makes logits of, before each response token and after the last: [B, T+1, D]."""
    trunk = policy.base_model
    states = trunk(**model_inputs(trunk, rollout.tokens, rollout.attention_mask), use_cache=False).last_hidden_state
    return states[:, rollout.prompt_ids.shape[1] - 1 :]


@torch.no_grad()
def check_head(policy: PreTrainedModel) -> None:
    """Raise ValueError where the logits of `policy` are not simply what its head makes of its last states."""
    token = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
    of_head = policy.get_output_embeddings()(policy.base_model(token).last_hidden_state)
    if not torch.allclose(policy(token).logits, of_head, rtol=1e-3, atol=1e-3):
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
        logits = head(part).float() / temperature
        logprobs = logprobs_of(logits, taken)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            return logprobs, entropy_of(logits)

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


class FittingSize:
    """A number of responses that is halved, with a warning, whenever they do not fit in memory.

    Args:
        name: what the responses are needed for, as the warning says it.
        size: where to start.
    """

    def __init__(self, name: str, size: int):
        self.name, self.size = name, size

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
