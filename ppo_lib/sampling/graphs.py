"""Decoding on a GPU: a step recorded as one CUDA graph, for starting a thousand small kernels is what a token costs.

A graph is recorded once for each shape and replayed ever after. It reads and writes memory that must stay where it is,
so the weights are copied to a place of their own before each rollout, adapters added to them.
"""

import functools
import weakref

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from ppo_lib.sampling.decoding import (
    Layer,
    LlamaDecoder,
    LlamaLayer,
    LlamaStep,
    Norm,
    attend_by_kernel,
    effective_weight,
    is_product,
)

PLACES = 64  # room for a text comes in multiples of this, so that shapes repeat from rollout to rollout
SMALLEST = 16  # texts of a recorded step; below, leaving saves nothing
KEPT = 8  # recorded steps that a model keeps, the latest ones


class GraphDecoder(LlamaDecoder):
    """`LlamaDecoder` with a recorded step. Finished texts leave by halves of the batch: shapes must repeat.

    Decoders of one model share its recorded steps: use one after the other.
    """

    SHARE_THAT_STAYS = 0.5
    step: "RecordedStep"

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Whether `policy` is a Llama or Qwen2 on a GPU whose weights can be copied without loss."""
        ends = (type(policy.model.embed_tokens), type(policy.lm_head))
        if policy.device.type != "cuda" or ends != (nn.Embedding, nn.Linear):
            return False
        return all(is_product(layer) for name, layer in policy.model.named_modules() if name.endswith("_proj"))

    def make_step(self, room: int) -> "RecordedStep":
        rows, length = self.attention_mask.shape
        device = self.policy.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.policy.model.layers[0].mlp.down_proj.weight.dtype
        tied = self.policy.lm_head.weight is self.policy.model.embed_tokens.weight
        kinds, kind = _of_models.setdefault(self.policy, {}), (self.policy.device, dtype, tied)
        if kind not in kinds:
            kinds[kind] = Recorded(self.policy, dtype)
        self.recorded = kinds[kind]
        self.recorded.read(self.policy)
        return self.recorded.step(self.policy, rows, -(-(length + room) // PLACES) * PLACES)

    def append(self, tokens: Tensor) -> None:
        self.logits = self.step(tokens)[: len(tokens)]

    def keep(self, rows: Tensor) -> None:
        self.logits = self.logits[rows]
        whole, size = self.step, len(self.step.tokens)
        while size // 2 >= max(len(rows), SMALLEST):
            size //= 2
        self.step = self.recorded.step(self.policy, size, whole.hidden.shape[-1])
        self.step.take(whole, torch.cat([rows, rows[:1].expand(size - len(rows))]))  # what is too much is a copy


class Recorded:
    """The weights of a model as `dtype`, and the steps that were recorded with them."""

    def __init__(self, policy: PreTrainedModel, dtype: torch.dtype):
        self.dtype = dtype
        self.steps: dict[tuple[int, int], RecordedStep] = {}
        self.layers = [CopiedLayer(layer, dtype) for layer in policy.model.layers]
        self.norm, self.embedding = _norm(policy.model.norm), torch.empty_like(policy.model.embed_tokens.weight)
        tied = policy.lm_head.weight is policy.model.embed_tokens.weight and dtype == self.embedding.dtype
        self.head = self.embedding if tied else torch.empty_like(policy.lm_head.weight, dtype=dtype)
        bias = policy.lm_head.bias
        self.head_bias = None if bias is None else torch.empty_like(bias, dtype=dtype)

    @torch.no_grad()
    def read(self, policy: PreTrainedModel) -> None:
        """Copy the weights as they are now."""
        self.embedding.copy_(policy.model.embed_tokens.weight)
        self.norm.weight.copy_(policy.model.norm.weight)
        if self.head is not self.embedding:
            self.head.copy_(policy.lm_head.weight)
        if self.head_bias is not None:
            self.head_bias.copy_(policy.lm_head.bias)
        for copied, layer in zip(self.layers, policy.model.layers, strict=True):
            copied.read(layer)

    def step(self, policy: PreTrainedModel, rows: int, places: int) -> "RecordedStep":
        """The step for so many texts of at most so many tokens."""
        found = self.steps.pop((rows, places), None) or RecordedStep(policy, self, rows, places)
        self.steps[rows, places] = found  # the last one used stands last
        for shape in list(self.steps)[:-KEPT]:
            del self.steps[shape]
        return found


def forget() -> bool:
    """Give back the memory of all recorded steps, and say whether there were any; they can be recorded again."""
    some = bool(_of_models)
    _of_models.clear()
    return some


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where steps are recorded; each stream has a workspace of its own, so there is one."""
    return torch.cuda.Stream(device)


_of_models: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple, Recorded]] = weakref.WeakKeyDictionary()


class RecordedStep(LlamaStep):
    """`LlamaStep` that always attends to all L places, so that each call runs the same kernels on the same memory."""

    def __init__(self, policy: PreTrainedModel, weights: Recorded, rows: int, places: int):
        super().__init__(policy, weights.layers, rows, places, weights.dtype)
        table, self.norm, head, bias = weights.embedding, weights.norm, weights.head, weights.head_bias
        self.embed = lambda tokens: embedding(tokens, table)
        self.head = lambda x: linear(x.to(head.dtype), head, bias)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=policy.device)
        self.now = torch.zeros(1, dtype=torch.long, device=policy.device)  # the place of the next token
        self.hidden.fill_(-torch.inf)
        self.graph: torch.cuda.CUDAGraph | None = None
        if policy.device.type == "cuda":
            with torch.cuda.device(policy.device), torch.no_grad():
                self.record(_stream(policy.device))

    def record(self, aside: torch.cuda.Stream) -> None:
        aside.wait_stream(torch.cuda.current_stream())
        with torch.autocast("cuda", enabled=False):
            with torch.cuda.stream(aside):
                for _ in range(2):  # what is set up at a first call must not be recorded
                    self.work()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                self.work()
        self.graph = graph

    def work(self) -> None:
        self.hidden.index_fill_(3, self.now, 0.0)
        self.logits = self.forward(self.tokens, self.now, slice(None))
        self.positions += 1
        self.now += 1

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after `tokens` [b ≤ B]; the next call overwrites them."""
        self.tokens[: len(tokens)] = tokens
        if self.graph:
            self.graph.replay()
        else:
            self.work()
        return self.logits

    def fill(self, cache: list, prompt_mask: Tensor) -> None:
        self.hidden.fill_(-torch.inf)
        self.keys.zero_()  # a NaN of an earlier text would show through −∞
        self.values.zero_()
        super().fill(cache, prompt_mask)
        self.now.fill_(prompt_mask.shape[1])

    def take(self, other: "RecordedStep", rows: Tensor) -> None:
        """Go on with the texts `rows` [B] of another step."""
        self.keys.copy_(other.keys[:, rows])
        self.values.copy_(other.values[:, rows])
        for name in ("hidden", "positions", "tokens"):
            getattr(self, name).copy_(getattr(other, name)[rows])
        self.now.copy_(other.now)


class CopiedLayer(nn.Module):
    """A `decoding.LlamaLayer` with weights of its own, those of queries, keys and values side by side in one."""

    step, attend = LlamaLayer.step, staticmethod(attend_by_kernel)
    # the weights [rows, columns], and their biases where the model has any
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None
    out_bias: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None

    def __init__(self, layer: Layer, dtype: torch.dtype):
        super().__init__()
        self.input_norm, self.post_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        for name, sources in _sources(layer).items():
            like, rows = sources[0], sum(source.out_features for source in sources)
            self.register_buffer(name, torch.empty(rows, like.in_features, dtype=dtype, device=like.weight.device))
            bias = None if like.bias is None else torch.empty(rows, dtype=dtype, device=like.weight.device)
            self.register_buffer(f"{name}_bias", bias)
        q, k, _ = _sources(layer)["qkv"]
        self.sizes, self.act = [q.out_features + k.out_features, k.out_features], layer.mlp.act_fn

    def read(self, layer: Layer) -> None:
        """Copy the weights as they are now."""
        self.input_norm.weight.copy_(layer.input_layernorm.weight)
        self.post_norm.weight.copy_(layer.post_attention_layernorm.weight)
        for name, sources in _sources(layer).items():
            sizes = [source.out_features for source in sources]
            for target, source in zip(getattr(self, name).split(sizes), sources, strict=True):
                target.copy_(effective_weight(source))
            if (bias := getattr(self, f"{name}_bias")) is not None:
                bias.copy_(torch.cat([source.bias for source in sources]))

    @staticmethod
    def put(where: Tensor, now: Tensor, what: Tensor) -> None:
        where.index_copy_(2, now, what[:, :, None].to(where.dtype))

    def heads_and_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.input_norm(x).to(self.qkv.dtype)
        return linear(normed, self.qkv, self.qkv_bias).split(self.sizes, dim=1)

    def o(self, attended: Tensor) -> Tensor:
        return linear(attended, self.out, self.out_bias)

    def mlp(self, x: Tensor) -> Tensor:
        normed = self.post_norm(x).to(self.gate_up.dtype)
        gate, up = linear(normed, self.gate_up, self.gate_up_bias).chunk(2, dim=1)
        return linear(self.act(gate) * up, self.down, self.down_bias)


def _norm(layer: Norm) -> nn.RMSNorm:
    """transformers' norm as torch's, which is one kernel."""
    weight = layer.weight
    return nn.RMSNorm(weight.shape, layer.variance_epsilon, device=weight.device, dtype=weight.dtype)


def _sources(layer: Layer) -> dict[str, list[nn.Linear]]:
    """Which projections of a transformers layer lie in each weight of its copy, one below the other."""
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "out": [attention.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }
