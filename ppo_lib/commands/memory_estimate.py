"""How much memory a run will need, by part, before it starts.

One optimiser step is played through with tensors that have shapes and no numbers (PyTorch's fake tensors), by the
trainer's own code, and what would be alive at each moment is added up. So the copies that are really made are counted,
for any architecture, and a model of any size takes seconds and no memory.
"""

import copy
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Cache, LlamaConfig, PretrainedConfig, Qwen2Config

from ppo_lib.config import PPOConfigV1
from ppo_lib.models import model_inputs, vocabulary_size
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.rollout import Rollout, draw
from ppo_lib.running.memory import FittingSize, forward_size

__all__ = ["MODELS", "PARTS", "estimate_memory", "memory_by_moment"]

PARTS = ("weights", "reference", "gradients", "optimizer", "activations", "logits", "kv_cache")
# Sizes of some known models, from their published config.json.
MODELS = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "Qwen2.5-0.5B": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "Llama-3.2-1B": LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    ),
    "Llama-3.2-3B": LlamaConfig(
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
}  # fmt: skip
FEW = 2  # layers that are traced
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2}  # per trained weight: two moments of 32 or 8 bits


def estimate_memory(config: PPOConfigV1, model_config: PretrainedConfig, prompt_length: int) -> dict[str, int]:
    """Bytes by part (`PARTS`) at the moment of a run that needs most; their sum is the peak.

    Args:
        config: the run's settings. Sizes count: `minibatch_size`, `batch_size`, `group_size`, `max_new_tokens`.
        model_config: of the policy, from `AutoConfig` or by hand; no weights are needed.
        prompt_length: P, tokens of the longest prompt.

    All responses are taken to have `max_new_tokens` tokens. Left out: held-out prompts, where more of them than a
    rollout has are answered at a time (a gigabyte at most, `memory.FORWARD_BYTES`); a reward model; what the device's
    driver and libraries take (about 0.5 GB on a GPU); on a GPU and without `activation_checkpointing`, what `graphs`
    keeps from rollout to rollout (a copy of the policy's weights and of its cache); what the allocator loses to
    fragmentation; and the time of loading, when the weights are in 32-bit floats in the machine's main memory. Measured
    on a CPU, runs took up to 15 % more than this.
    """
    moments = memory_by_moment(config, model_config, prompt_length)
    return max(moments.values(), key=lambda parts: sum(parts.values()))


def memory_by_moment(
    config: PPOConfigV1, model_config: PretrainedConfig, prompt_length: int
) -> dict[str, dict[str, int]]:
    """Bytes by part while sampling, while scoring, with gradients, and in the optimiser's step.

    Layers are alike, so a model of few layers and one of two more tell what a layer takes.
    """
    whole = ShapesOnly(config, model_config)
    layers = model_config.get_text_config().num_hidden_layers
    size = FittingSize.of(config)
    size.aim(forward_size(config, model_config, prompt_length + config.max_new_tokens))
    together = min(size.size, config.rollout_size)
    if layers <= FEW + 2:
        traced = whole.trace(prompt_length, together)
    else:
        shallow = (ShapesOnly(config, with_layers(model_config, n)) for n in (FEW, FEW + 2))
        few, more = (shapes.trace(prompt_length, together) for shapes in shallow)
        traced = {
            moment: {p: few[moment][p] + (more[moment][p] - few[moment][p]) * (layers - FEW) // 2 for p in PARTS}
            for moment in few
        }
    traced["optimizer step"] = {"gradients": whole.gradient_bytes}
    return {name: {part: (parts | whole.fixed).get(part, 0) for part in PARTS} for name, parts in traced.items()}


def with_layers(model_config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same architecture with so many layers."""
    shallow = copy.deepcopy(model_config)
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shallow


class ShapesOnly(PPOTrainer):
    """A trainer whose networks have shapes and no numbers."""

    def __init__(self, config: PPOConfigV1, model_config: PretrainedConfig):
        self.config, self.device = config, torch.device("cpu")
        with torch.device("meta"):
            self.policy = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
            self.critic = self.make_critic(None)
            self.reference = self.make_reference(None)
        for network in (self.policy, self.critic, self.reference):
            network.eval()
        self.forward_batch = FittingSize("shapes", config.rollout_size)
        self.vocabulary = vocabulary_size(self.policy)
        own = {id(p): p for network in (self.policy, self.critic) for p in network.parameters()}
        trained = [p for p in own.values() if p.requires_grad]
        self.gradient_bytes = sum(map(nbytes, trained))
        self.fixed = {
            "weights": sum(map(nbytes, own.values())),
            "reference": sum(nbytes(p) for p in self.reference.parameters() if id(p) not in own),
            "optimizer": STATE_BYTES[config.optimizer] * sum(p.numel() for p in trained),
        }

    def trace(self, prompt_length: int, together: int) -> dict[str, dict[str, int]]:
        """Bytes by part, without weights and optimiser, at the worst moment of sampling, scoring and training.

        `together` is how many responses are computed at a time without gradients.
        """
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.pretend_cpu()
            moments = {
                "sampling": self.sampling(together, prompt_length),
                "scoring": self.scoring(together, prompt_length),
                **self.training(self.config.minibatch_size, prompt_length),
            }
        return {name: {part: parts.get(part, 0) for part in PARTS} for name, parts in moments.items()}

    def pretend_cpu(self) -> None:
        """Inside a FakeTensorMode: put all weights on a CPU, for mixed precision is not to be had on no device."""
        fakes: dict[int, Any] = {}  # tied weights stay tied
        for network in (self.policy, self.critic, self.reference):
            for module in network.modules():
                for store in (module._parameters, module._buffers):
                    for name, old in store.items():
                        if old is not None and old.is_meta:
                            if id(old) not in fakes:
                                fakes[id(old)] = torch.empty_like(old, device="cpu").requires_grad_(old.requires_grad)
                            store[name] = fakes[id(old)]

    def sampling(self, size: int, prompt_length: int) -> dict[str, int]:
        """The larger of the first forward pass, over the prompts, and the last, of one token."""
        length = prompt_length + self.config.max_new_tokens
        first = self._forward_with_cache(size, prompt_length, None)
        with torch.no_grad(), self.autocast():
            ids = torch.zeros(size, length - 1, dtype=torch.long)
            cache = self.policy(**model_inputs(self.policy, ids, torch.ones_like(ids)), use_cache=True).past_key_values
        last = self._forward_with_cache(size, length, cache)
        return max(first, last, key=lambda parts: sum(parts.values()))

    def _forward_with_cache(self, size: int, length: int, cache: Cache | None) -> dict[str, int]:
        ids = torch.zeros(size, 1 if cache else length, dtype=torch.long)
        inputs = model_inputs(self.policy, ids, torch.ones(size, length, dtype=torch.long))
        watch = LiveMemory(self.vocabulary)
        for tensor in entries(cache):
            watch.see(tensor, "activations")
        with watch, torch.no_grad(), self.autocast():
            output = self.policy(**inputs, past_key_values=cache, use_cache=True)
            logprobs = torch.log_softmax(output.logits[:, -1].float() / self.config.temperature, dim=-1)
            draw(logprobs, torch.zeros(size, 1, dtype=torch.float64))
        kept = sum(map(nbytes, entries(output.past_key_values)))
        others = Counter(watch.peak)["activations"]
        return watch.peak | {"activations": max(others - kept, 0), "kv_cache": min(kept, others)}

    def scoring(self, size: int, prompt_length: int) -> dict[str, int]:
        with LiveMemory(self.vocabulary) as watch, torch.no_grad():
            rollout = self.rollout(size, prompt_length)
            rollout.ref_logprobs = self.reference_logprobs(rollout)
            rollout.values = self.values(rollout)
        return watch.peak

    def training(self, size: int, prompt_length: int) -> dict[str, dict[str, int]]:
        """Forward and backward; twice where gradients of an earlier micro-batch are there already."""
        rollout = self.rollout(size, prompt_length)
        with LiveMemory(self.vocabulary) as watch:
            for parameter in (*self.policy.parameters(), *self.critic.parameters()):
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda p: watch.see(p.grad, "gradients"))
            for _ in range(min(self.config.gradient_accumulation_steps, 2)):
                watch.peak = {}
                loss, _ = self.loss(rollout)
                forward, watch.peak = watch.peak, {}
                loss.backward()
        return {"forward": forward, "backward": watch.peak}

    def rollout(self, size: int, prompt_length: int) -> Rollout:
        """`size` prompts of `prompt_length` tokens, each with a response of `max_new_tokens`."""
        shape = (size, self.config.max_new_tokens)
        floats = {name: torch.zeros(shape) for name in ("logprobs", "ref_logprobs", "rewards", "advantages", "returns")}
        return Rollout(
            prompts=[""] * size,
            responses=[""] * size,
            prompt_ids=torch.zeros(size, prompt_length, dtype=torch.long),
            prompt_mask=torch.ones(size, prompt_length, dtype=torch.bool),
            response_ids=torch.zeros(shape, dtype=torch.long),
            mask=torch.ones(shape, dtype=torch.bool),
            ended=torch.ones(size, dtype=torch.bool),
            values=torch.zeros(size, shape[1] + 1),
            **floats,
        )


class LiveMemory(TorchDispatchMode):
    """Adds up what is alive of the tensors made within the block, and keeps the parts of the worst moment in `peak`."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.known: dict[int, list] = {}  # storage → its part and size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self.see(leaf, "logits" if leaf.shape[-1:] == (self.vocabulary,) else "activations", again=False)
        if self.live.total() > sum(self.peak.values()):
            self.peak = dict(self.live)
        return result

    def see(self, tensor: Tensor, part: str, again: bool = True) -> None:
        """Count `tensor` as `part`; one that is counted already changes its part, if `again`."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self.known:
            self.known[key] = [part, storage.nbytes()]
            self.live[part] += storage.nbytes()
            weakref.finalize(storage, self._gone, key)
        elif again:
            old, size = self.known[key]
            self.live[old] -= size
            self.live[part] += size
            self.known[key][0] = part

    def _gone(self, key: int) -> None:
        part, size = self.known.pop(key)
        self.live[part] -= size


def entries(cache: Cache | None) -> list[Tensor]:
    """Keys and values of a key-value cache."""
    layers: list[Any] = cache.layers if cache else []
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers."""
    return tensor.numel() * tensor.element_size()
