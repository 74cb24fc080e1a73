"""The policy one token at a time: next-token logits of a batch of texts, from what is cached of them.

`Decoder` serves every model with a key-value cache. `LlamaDecoder` does the same sums for the Llama family with a
third of the operations and no copy of the cache; on a small model, operations are what a step costs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2

from ppo_lib.models import model_inputs, takes

# The classes whose arithmetic `LlamaStep` and `LlamaLayer` write out: of the trunk, then of its parts.
PARTS: dict[type[PreTrainedModel], tuple[type[nn.Module], ...]] = {
    LlamaForCausalLM: (
        llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm,
        llama.LlamaRotaryEmbedding,
    ),
    Qwen2ForCausalLM: (
        qwen2.Qwen2Model, qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm,
        qwen2.Qwen2RotaryEmbedding,
    ),
}  # fmt: skip
Layer = llama.LlamaDecoderLayer | qwen2.Qwen2DecoderLayer
Norm = llama.LlamaRMSNorm | qwen2.Qwen2RMSNorm
ATTENTION = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}  # transformers' own

# Where a CPU multiplies W xᵀ faster than x Wᵀ, measured: by 1.4 at 16 rows and 576 columns.
FASTER_AS_COLUMNS, WIDE = range(12, 49), 512


class Decoder:
    """B texts that grow by a token at a time. Prompts that occur more than once are computed once.

    Args:
        prompt_ids, prompt_mask: [B, P], padded on the left.
        room: how many tokens will be appended to each text at most.
    """

    SHARE_THAT_STAYS = 0.75  # finished texts leave the batch together, once fewer than this share go on

    logits: Tensor  # [B, V], of the token after each text

    def __init__(self, policy: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor, room: int):
        self.policy, self.attention_mask = policy, prompt_mask.long()
        different, row_of = torch.unique(torch.cat([prompt_ids, self.attention_mask], 1), dim=0, return_inverse=True)
        ids, mask = different.chunk(2, dim=1)
        if len(different) == len(prompt_ids):
            ids, mask, row_of = prompt_ids, self.attention_mask, None
        last_only = {"logits_to_keep": 1} if takes(policy, "logits_to_keep") else {}
        output = policy(**model_inputs(policy, ids, mask), use_cache=True, **last_only)
        self.logits, self.cache = output.logits[:, -1], output.past_key_values
        if row_of is not None:
            self.logits = self.logits[row_of]
            self.cache.reorder_cache(row_of)

    def append(self, tokens: Tensor) -> None:
        """Put `tokens` [B] behind the texts, and set `logits`."""
        self.attention_mask = torch.cat([self.attention_mask, torch.ones_like(tokens)[:, None]], dim=1)
        inputs = model_inputs(self.policy, tokens[:, None], self.attention_mask)
        output = self.policy(**inputs, past_key_values=self.cache, use_cache=True)
        self.logits = output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with the texts `rows` [b] alone."""
        self.attention_mask, self.logits = self.attention_mask[rows], self.logits[rows]
        self.cache.reorder_cache(rows)


class LlamaDecoder(Decoder):
    """`Decoder` for Llama and Qwen2, with the arithmetic of their attention and MLP layers written out."""

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Whether every layer of `policy` is one of these families' own, unhooked, and its arithmetic is what is below.

        So attention is to the whole text, and positions never change.
        """
        config = policy.config
        if type(policy) not in PARTS or type(policy.model) is not PARTS[type(policy)][0]:
            return False
        layers: Any = policy.model.layers
        kinds = PARTS[type(policy)][1:]
        parts = [policy.model.norm, policy.model.rotary_emb]
        for layer in layers:
            parts += [layer, layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm]
        if {type(part) for part in parts} != set(kinds) or len(layers) != config.num_hidden_layers:
            return False
        return (
            not _has_any_global_hook()
            and all(kind.forward.__module__ == kind.__module__ for kind in (type(policy), *PARTS[type(policy)]))
            and all(is_untouched(module) for module in policy.modules())
            and config._attn_implementation in ATTENTION
            and all(layer.self_attn.scaling == layer.self_attn.head_dim**-0.5 for layer in layers)
            and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
            and config.rope_parameters["rope_type"] not in ("dynamic", "longrope")
        )

    def __init__(self, policy: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor, room: int):
        super().__init__(policy, prompt_ids, prompt_mask, room)
        self.step = self.make_step(room)
        self.step.fill(self.cache.layers, prompt_mask)
        self.cache = None

    def make_step(self, room: int) -> "LlamaStep":
        keys, (rows, length) = self.cache.layers[0].keys, self.attention_mask.shape
        layers = [LlamaLayer(layer) for layer in self.policy.model.layers]
        return LlamaStep(self.policy, layers, rows, length + room, keys.dtype)

    def append(self, tokens: Tensor) -> None:
        self.logits = self.step(tokens)

    def keep(self, rows: Tensor) -> None:
        self.logits = self.logits[rows]
        self.step.keep(rows)


class LlamaStep:
    """Appends a token to each of B texts of at most L tokens, in memory that is reserved at the start.

    Keys and values lie in one tensor each. All heads of queries and keys are rotated in one go, and the queries that
    share a key stand where a longer text would have its queries.

    Args:
        layers: what stands for the model's layers, each a `LlamaLayer` or the like.
        rows, places: B and L.
        dtype: of keys and values.
    """

    def __init__(self, policy: PreTrainedModel, layers: list, rows: int, places: int, dtype: torch.dtype):
        config, device, self.layers = policy.config, policy.device, layers
        self.embed, self.norm, self.head = policy.model.embed_tokens, policy.model.norm, policy.lm_head
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (len(layers), rows, config.num_key_value_heads, places, self.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        cos, sin = policy.model.rotary_emb(torch.zeros(1, device=device), torch.arange(places, device=device)[None])
        first_half = torch.arange(self.head_dim, device=device) < self.head_dim // 2
        self.cos, self.sin = cos[0], torch.where(first_half, -sin[0], sin[0])  # [L, d], signs as after `roll`
        self.hidden = self.keys.new_zeros(rows, config.num_key_value_heads, 1, places)  # added to scores: −∞ on padding
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)  # of the next token
        self.length = 0

    def fill(self, cache: list, prompt_mask: Tensor) -> None:
        """Begin with prompts [B, P] whose keys and values `cache` has, layer by layer."""
        self.length = prompt_mask.shape[1]
        for layer, keys, values in zip(cache, self.keys, self.values, strict=True):
            keys[:, :, : self.length], values[:, :, : self.length] = layer.keys, layer.values
        self.positions.copy_(prompt_mask.sum(dim=1))
        self.hidden[..., : self.length] = 0.0
        self.hidden[..., : self.length].masked_fill_(~prompt_mask[:, None, None], -torch.inf)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after `tokens` [B]."""
        now, self.length = self.length, self.length + 1
        logits = self.forward(tokens, now, slice(self.length))
        self.positions += 1
        return logits

    def forward(self, tokens: Tensor, now: int | Tensor, seen: slice) -> Tensor:
        """The same, where `tokens` go to the place `now` and the places `seen` are attended to."""
        cos, sin = self.cos[self.positions][:, None], self.sin[self.positions][:, None]  # [B, 1, d]
        hidden = self.hidden[..., seen]  # [B, groups, 1, L]
        x = self.embed(tokens)  # [B, D]
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            x = layer.step(x, cos, sin, keys, values, hidden, now, seen)
        return self.head(self.norm(x))

    def keep(self, rows: Tensor) -> None:
        """Go on with the texts `rows` [b] alone."""
        self.positions, self.hidden = self.positions[rows], self.hidden[rows]
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]


class LlamaLayer:
    """The parts of a transformers layer as plain functions of rows [b, n], which cost less to call than modules."""

    def __init__(self, layer: Layer):
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm, self.post_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.q, self.k = _projection(attention.q_proj), _projection(attention.k_proj)
        self.v, self.o = _projection(attention.v_proj), _projection(attention.o_proj)
        self.gate, self.up, self.down = _projection(mlp.gate_proj), _projection(mlp.up_proj), _projection(mlp.down_proj)
        self.act = mlp.act_fn
        weight = layer.input_layernorm.weight
        half = torch.is_autocast_enabled(weight.device.type) or weight.dtype != torch.float32
        self.attend = attend_by_kernel if half else _attend

    def step(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, now: int | Tensor,
        seen: slice,
    ) -> Tensor:  # fmt: skip
        """What the layer makes of `x` [B, D], whose keys and values go to the place `now`."""
        (rows, groups, _, dim), (heads, value) = keys.shape, self.heads_and_value(x)
        heads = heads.view(rows, -1, dim)
        heads = torch.addcmul(heads * cos, heads.roll(dim // 2, dims=-1), sin)
        self.put(keys, now, heads[:, -groups:])
        self.put(values, now, value.view(rows, groups, dim))
        asked = heads[:, :-groups].reshape(rows, groups, -1, dim)  # [B, groups, heads, d]
        attended = self.attend(asked, keys[:, :, seen], values[:, :, seen], hidden)
        x = x + self.o(attended.reshape(rows, -1).to(value.dtype))
        return x + self.mlp(x)

    @staticmethod
    def put(where: Tensor, now: int | Tensor, what: Tensor) -> None:
        where[:, :, now] = what

    def heads_and_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side, and values."""
        normed = self.input_norm(x)
        return torch.cat([self.q(normed), self.k(normed)], dim=1), self.v(normed)

    def mlp(self, x: Tensor) -> Tensor:
        normed = self.post_norm(x)
        return self.down(self.act(self.gate(normed)) * self.up(normed))


def _attend(asked: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """Attention of `asked` [B, G, H, d] to keys and values [B, G, L, d], as two products: [B G, H, d]."""
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    scores = torch.baddbmm(hidden.flatten(0, 1), asked.flatten(0, 1), keys.mT, alpha=asked.shape[-1] ** -0.5)
    return torch.bmm(torch.softmax(scores, dim=-1), values)


def attend_by_kernel(asked: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """The same by the kernel that training uses, which keeps scores in 32 bits where the rest is shorter."""
    return scaled_dot_product_attention(asked.to(keys.dtype), keys, values.to(keys.dtype), attn_mask=hidden)


def _norm(layer: Norm) -> Callable[[Tensor], Tensor]:
    weight, epsilon = layer.weight, layer.variance_epsilon
    return lambda x: rms_norm(x, weight.shape, weight, epsilon)


def is_untouched(module: nn.Module) -> bool:
    """Whether nothing runs in the forward pass of `module` but its class's own: no hook, no other `forward`."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    forward: Any = vars(module).get("forward")
    if getattr(forward, "func", None) is recomputed:  # which changes when activations are computed, not what they are
        forward = forward.args[0]
    return forward is None or getattr(forward, "__func__", None) is type(module).forward


def recomputed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    """`forward`, whose activations are computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def is_product(layer: Any) -> bool:
    """Whether a layer is a matrix product, with or without adapters that can be added to its weight without loss."""
    if type(layer) is nn.Linear:
        return True
    plain = hasattr(layer, "lora_A") and type(layer.base_layer) is nn.Linear and layer.weight.dtype == torch.float32
    return plain and not any(layer.use_dora.values()) and not any(layer.lora_bias.values())


def effective_weight(layer: Any) -> Tensor:
    """What a layer that `is_product` multiplies by, its adapters added."""
    if type(layer) is nn.Linear:
        return layer.weight
    active = [] if layer.disable_adapters or layer.merged else layer.active_adapters
    return sum((layer.get_delta_weight(name) for name in active if name in layer.lora_A), layer.base_layer.weight)


def _projection(layer: Any) -> Callable[[Tensor], Tensor]:
    """`layer` itself where it is no plain matrix product; few rows are multiplied as columns where that is faster."""
    if not is_product(layer) or torch.is_autocast_enabled(layer.weight.device.type):
        return layer
    weight, bias = effective_weight(layer), layer.bias
    if weight.device.type != "cpu" or weight.shape[1] < WIDE:
        return lambda x: linear(x, weight, bias)

    def project(x: Tensor) -> Tensor:
        if len(x) not in FASTER_AS_COLUMNS:
            return linear(x, weight, bias)
        product = (weight @ x.t()).t()
        return product if bias is None else product + bias

    return project
