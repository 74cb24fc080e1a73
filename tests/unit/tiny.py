"""Tiny networks and hand-made rollouts that the unit tests share."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from ppo_lib.rollout import Rollout

PROMPTS = ["The film was", "I think", "Honestly, the acting here is", "Ok"]
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 64}
FAMILIES = {
    "llama": lambda **others: LlamaConfig(**SMALL | {"intermediate_size": 64} | others),
    "gpt2": lambda **others: GPT2Config(**SMALL | others),
    "qwen2": lambda **others: Qwen2Config(**SMALL | {"intermediate_size": 64, "num_key_value_heads": 2} | others),
}


def byte_tokenizer(pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, an EOS, and a padding token (the EOS itself, as in many chat models, if asked)."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<eos>": 256, "<pad>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad = "<eos>" if pad_is_eos else "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token=pad)


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """`byte_tokenizer` with a BOS before each text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    template = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def tiny_policy(family: str = "llama", seed: int = 0, vocab_size: int = 258, sharpness: float = 4.0, **settings):
    """A random policy whose distributions are far from uniform, so that mistakes show."""
    torch.manual_seed(seed)
    ids = {"eos_token_id": 256, "bos_token_id": None, "pad_token_id": None}
    config = FAMILIES[family](vocab_size=vocab_size, **ids, **settings)
    policy = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(sharpness)
    return policy


def smallest_policy(seed: int = 0):
    """A random policy that costs next to nothing to make, to train and to save."""
    torch.manual_seed(seed)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 4, "intermediate_size": 4}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=258, eos_token_id=256, bos_token_id=None, **shape))


def likely_eos(policy, boost: float = 4.0, eos: tuple[int, ...] = (256,)):
    """The same policy with EOS more probable, so that responses end at different lengths."""
    rows = policy.get_output_embeddings()
    bias = torch.zeros(rows.out_features)
    bias[list(eos)] = boost
    rows.bias = torch.nn.Parameter(bias)
    return policy


def hand_rollout(lengths=(3, 1, 4), ended=(True, True, False), prompt_length=2, width=4, seed=0) -> Rollout:
    """Random numbers in the shape of a rollout, with garbage outside the mask."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return Rollout(
        prompts=[f"prompt {row}" for row in range(rows)],
        responses=[f"response {row}" for row in range(rows)],
        prompt_ids=torch.randint(256, (rows, prompt_length), generator=generator),
        prompt_mask=torch.ones(rows, prompt_length, dtype=torch.bool),
        response_ids=torch.randint(256, (rows, width), generator=generator),
        mask=mask,
        ended=torch.tensor(ended),
        logprobs=-noise(rows, width).abs(),
        ref_logprobs=-noise(rows, width).abs(),
        values=noise(rows, width + 1),
        scores=noise(rows),
    )
