"""Turn the GGUF file of SmolLM2-135M-Instruct into a folder of config, weights and tokenizer for `transformers`.

`transformers` can read GGUF files itself, but for this one it loses three things: the rule that cuts numbers into
single digits, the end-of-sequence token and the padding token. The file holds everything, so we read it directly.

Source: the GGUF format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

_SPECIAL = 3  # GGUF token type "control"
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf_file: Path, folder: Path) -> None:
    """Write config, float32 weights and tokenizer read from `gguf_file` into the existing `folder`.

    Raises:
        ImportError: the package `gguf` is absent.
        ValueError: the file holds another kind of model.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError("reading the weights of SmolLM2 needs the package gguf: `pip install gguf`") from error
    reader = GGUFReader(gguf_file)
    architecture, pre = (reader.fields[name].contents() for name in ("general.architecture", "tokenizer.ggml.pre"))
    if (architecture, pre) != ("llama", "smollm"):
        raise ValueError(f"{gguf_file.name} holds a {architecture} model with tokenizer {pre!r}: it is not SmolLM2")
    config = read_config(reader)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)
    save_file(read_weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    read_tokenizer(reader).save_pretrained(folder)


def read_config(reader: Any) -> LlamaConfig:
    """The shape of the model, from a `gguf.GGUFReader`."""

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
        dtype="float32",  # bf16 is slower than float32 on a CPU without AMX
    )


def read_weights(reader: Any, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Float32 weights under the names `transformers` gives them, from a `gguf.GGUFReader`."""
    from gguf import dequantize

    heads: dict[str, Any] = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        part = tensor.name.split(".")[-2]
        if part in heads:
            array = _halves_apart(array, heads[part])
        weights[_transformers_name(tensor.name)] = torch.from_numpy(np.array(array))
    return weights


def _transformers_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection: GGUF interleaves the pairs that rotary embeddings turn together,
    `transformers` keeps them half a head apart."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_tokenizer(reader: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of SmolLM2, from a `gguf.GGUFReader`: byte-level BPE in which every digit is a token of its own."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()

    def named(field: str) -> str:
        return tokens[reader.fields[f"tokenizer.ggml.{field}_token_id"].contents()]

    return build_tokenizer(
        {token: number for number, token in enumerate(tokens)},
        [tuple(merge.split(" ")) for merge in merges],
        [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL],
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        unk_token=named("unknown"),
        model_max_length=reader.fields["llama.context_length"].contents(),
        chat_template=reader.fields["tokenizer.chat_template"].contents(),
    )


def build_tokenizer(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: list[str], **settings: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with SmolLM2's pre-tokenizer; `settings` go to `PreTrainedTokenizerFast`.

    The pre-tokenizer isolates every digit, then cuts as GPT-2 does. A GGUF file only names it ("smollm").
    """
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", clean_up_tokenization_spaces=False, **settings
    )
