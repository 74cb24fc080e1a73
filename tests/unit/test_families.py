"""Model families: each samples, trains, saves, is read again and resumes exactly; what cannot is refused."""

import warnings

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from ppo_lib import models
from ppo_lib.lab.claims import path_length, rounding
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.rollout import encode_prompts, logprobs_of, response_logits, sample
from ppo_lib.running import checkpoint, memory
from tests.unit.runs_v1 import assert_same_run, vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer

SMALL = dict(
    vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, eos_token_id=256, bos_token_id=None, pad_token_id=257,
)  # fmt: skip
NARROW = dict(head_dim=8)
LATENT = dict(  # keys and values from a common, narrower vector
    q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, qk_head_dim=16, v_head_dim=8,
    head_dim=8, num_key_value_heads=4, first_k_dense_replace=1, n_group=1, topk_group=1,
)  # fmt: skip
EXPERTS = dict(
    num_local_experts=4, num_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    shared_expert_intermediate_size=16, head_dim=8,
)  # fmt: skip
LINEAR = dict(  # a layer that keeps a state in place of keys and values, and one of attention
    layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=4,
    linear_key_head_dim=8, linear_value_head_dim=8, head_dim=8,
)  # fmt: skip
BY_LAYER = dict(
    vocab_size_per_layer_input=258, hidden_size_per_layer_input=8, num_kv_shared_layers=0, head_dim=8,
    global_head_dim=8, layer_types=["sliding_attention", "full_attention"],
)  # fmt: skip
OLDER = dict(n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
DENSE = {
    "apertus": {}, "arcee": {}, "biogpt": {}, "bitnet": {}, "bloom": {}, "codegen": OLDER, "cohere": {}, "cohere2": {},
    "diffllama": {}, "ernie4_5": NARROW, "exaone4": {}, "falcon": {}, "gemma": NARROW, "gemma2": NARROW,
    "gemma3_text": NARROW, "gemma4_text": BY_LAYER, "glm": NARROW, "glm4": NARROW, "gpt2": {}, "gpt_bigcode": {},
    "gpt_neo": dict(num_layers=2, attention_types=[[["global", "local"], 1]]), "gpt_neox": {}, "gptj": OLDER,
    "granite": {}, "helium": NARROW, "hunyuan_v1_dense": NARROW, "lfm2": dict(layer_types=["conv", "full_attention"]),
    "llama": {}, "minicpm3": LATENT, "ministral": NARROW, "mistral": {},
    "modernbert-decoder": dict(bos_token_id=1, cls_token_id=1, sep_token_id=1),
    "mpt": dict(d_model=32, n_layers=2, n_heads=4), "nanochat": {}, "nemotron": {}, "olmo": {}, "olmo2": {},
    "olmo3": {}, "olmo_hybrid": {}, "opt": dict(ffn_dim=64, word_embed_proj_dim=32), "persimmon": {}, "phi": {},
    "phi3": {}, "qwen2": {}, "qwen3": NARROW, "qwen3_5_text": LINEAR, "seed_oss": NARROW, "smollm3": {},
    "stablelm": {}, "starcoder2": {}, "vaultgemma": NARROW,
    "xglm": dict(d_model=32, num_layers=2, attention_heads=4, ffn_dim=64, pad_token_id=1),
}  # fmt: skip
MIXTURES = {
    "afmoe": {}, "aria_text": dict(moe_num_experts=4, moe_topk=2), "deepseek_v2": LATENT, "deepseek_v3": LATENT,
    "ernie4_5_moe": dict(moe_num_experts=4, moe_k=2), "flex_olmo": {}, "glm4_moe": LATENT, "gpt_oss": {},
    "granitemoe": {}, "granitemoeshared": {}, "hunyuan_v1_moe": dict(moe_topk=2), "jamba": dict(
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8,
        mamba_dt_rank=4, use_mamba_kernels=False,
    ), "jetmoe": dict(kv_channels=8),
    "llama4_text": dict(intermediate_size_mlp=64), "minimax_m2": {}, "mixtral": {}, "olmoe": {}, "phimoe": {},
    "qwen2_moe": {}, "qwen3_moe": {}, "solar_open": LATENT,
}  # fmt: skip
FAMILIES = {kind: SMALL | own for kind, own in DENSE.items()} | {
    kind: SMALL | EXPERTS | own for kind, own in MIXTURES.items()
}
RUN = dict(batch_size=4, minibatch_size=4, max_new_tokens=6, total_episodes=8, num_ppo_epochs=1, learning_rate=1e-3)


def made(kind: str, sharpness: float = 3.0, **settings):
    """A random model of a family whose distributions are far from uniform, so that mistakes show."""
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[kind] | settings)).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(sharpness)
    return policy


def allowed(policy, logits) -> float:
    """Nats by which the roundings of two ways to a log-probability may differ."""
    return rounding(logits, terms=path_length(policy, 40))


@torch.no_grad()
def check_sampling(trainer) -> None:
    """Greedy tokens are those of `generate`, noted log-probabilities those of one pass; texts end and leave."""
    policy, tokenizer, tokens = trainer.policy, trainer.tokenizer, RUN["max_new_tokens"]
    settings, usual = policy.generation_config, policy.generation_config.eos_token_id
    prompts = [*PROMPTS, PROMPTS[0]]  # equal prompts share what is computed of them
    ids, mask = (side.to(torch.long) for side in encode_prompts(tokenizer, prompts))
    second = sample(policy, tokenizer, prompts, 2, greedy=True).response_ids[:2, 1]
    settings.eos_token_id = [256, *second.tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = policy.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=257
        )[:, ids.shape[1] :]
    greedy = sample(policy, tokenizer, prompts, tokens, greedy=True)
    assert greedy.lengths.min() < tokens, "no text left before the others"
    mine = greedy.response_ids.masked_fill(~greedy.mask, 257)
    assert mine.tolist() == theirs.tolist(), "greedy sampling writes other tokens than `generate`"
    rollout = trainer.collect(prompts, torch.Generator().manual_seed(0))
    settings.eos_token_id = usual
    logits = response_logits(policy, rollout)
    off = ((logprobs_of(logits, rollout.response_ids) - rollout.logprobs).abs() * rollout.mask).max().item()
    assert off <= allowed(policy, logits), f"noted log-probabilities are {off} off those of one pass"


@torch.no_grad()
def check_one_trunk(trainer) -> None:
    """`share_trunk` and `logits_chunk` take the head's word for the logits: refused, or the same numbers."""
    policy = trainer.policy
    try:
        memory.check_head(policy)
    except ValueError:
        return
    rollout = trainer.collect(PROMPTS, torch.Generator().manual_seed(0))
    mine = policy.get_output_embeddings()(memory.response_states(policy, rollout))[:, :-1].float()
    logits = response_logits(policy, rollout)
    off = ((mine - logits).abs() * rollout.mask[..., None]).max().item()
    assert off <= allowed(policy, logits), f"`share_trunk` computes logits that are {off} off the model's"


def check_training(history) -> None:
    for metrics in history:
        broken = [name for name, value in metrics.items() if value != value or abs(value) == float("inf")]
        assert not broken, f"not finite: {broken}"
    first = history[0]
    assert abs(first["objective/kl"]) < 1e-3, f"the KL of update 1 is {first['objective/kl']}, not 0"
    assert abs(first["val/ratio"] - 1) < 1e-4, f"the ratio of update 1 is {first['val/ratio']}, not 1"


def check_saved(trainer, folder) -> None:
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(again) is type(trainer.policy), f"read again it is a {type(again).__name__}"
    mine, theirs = models.few_logits(trainer.policy), models.few_logits(again)
    if trainer.config.lora_rank:
        off, limit = (mine - theirs).abs().max().item(), allowed(again, mine)
        assert off <= limit, f"merged and read again, logits are {off} off those of the adapted model"
    else:
        assert torch.equal(mine, theirs), f"read again, the model has other logits, by {(mine - theirs).abs().max()}"
    assert again.generation_config.eos_token_id == [256], "the saved model does not know its EOS"


def trainer(kind: str, **settings) -> PPOTrainer:
    return PPOTrainer(made(kind), vowels, tokenizer=byte_tokenizer(), **settings)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_samples_trains_saves_and_resumes_exactly(kind, tmp_path):
    ppo = trainer(kind, output_dir=str(tmp_path / "run"), save_every=1, **RUN)
    check_sampling(ppo)
    check_one_trunk(ppo)
    check_training(ppo.train(PROMPTS))
    check_saved(ppo, ppo.model_dir)
    after_one = ppo.checkpoint_dir / checkpoint.name_of(1)
    settings = dict(output_dir=str(tmp_path / "resumed"), exact_check=False, save_every=9)
    resumed = trainer(kind, resume_from_checkpoint=after_one, **settings)
    resumed.train(PROMPTS)
    assert_same_run(resumed, ppo, "resumed after update 1, update 2 is another one")


def test_adapters_that_a_family_reads_past_are_refused_before_the_first_update():
    ppo, said = trainer("jamba", lora_rank=2, **RUN), "nothing"
    try:
        ppo.train(PROMPTS)  # one of its layers multiplies by a weight itself, without the adapter beside it
    except ValueError as error:
        said = str(error)
    assert "does something else once its adapters are merged" in said, f"adapters are lost in the saved model: {said}"
    assert "set lora_rank=None" in said and not ppo.history, "it is said too late, or not what to change"


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "jamba"])
def test_a_family_learns_by_adapters_and_is_saved_without(kind, tmp_path):
    ppo = trainer(kind, lora_rank=2, **RUN | dict(total_episodes=4, learning_rate=1e-2))
    check_training(ppo.train(PROMPTS))
    ppo.save(tmp_path)
    check_saved(ppo, tmp_path)


def of_class(name: str, **settings):
    """A random model of a class that no `AutoModelForCausalLM` need know, made from its own configuration."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**{**SMALL, **settings})).eval()


BART = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4,
    decoder_attention_heads=4, pad_token_id=1, decoder_start_token_id=0,
)  # fmt: skip
REFUSED = {
    # read a prompt before they write
    "T5ForConditionalGeneration": (dict(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4), "encoder with a deco"),
    "BartForConditionalGeneration": (BART, "encoder with a decoder"),
    # look ahead
    "BertLMHeadModel": ({}, "depend on tokens that come later"),
    "RobertaForCausalLM": (dict(pad_token_id=1), "depend on tokens that come later"),
    "XLMRobertaForCausalLM": (dict(pad_token_id=1), "depend on tokens that come later"),
    "CamembertForCausalLM": (dict(pad_token_id=1), "depend on tokens that come later"),
    "ElectraForCausalLM": ({}, "depend on tokens that come later"),
    "RemBertForCausalLM": ({}, "depend on tokens that come later"),
    "RoFormerForCausalLM": ({}, "depend on tokens that come later"),
    "BertGenerationDecoder": ({}, "depend on tokens that come later"),
    "BigBirdForCausalLM": ({}, "depend on tokens that come later"),
    "XLMWithLMHeadModel": (dict(emb_dim=32, n_layers=1, n_heads=4), "depend on tokens that come later"),
    "DogeForCausalLM": ({}, "depend on tokens that come later"),
    # have no head for tokens
    "GPT2Model": ({}, "no head"),
    "LlamaModel": ({}, "no head"),
    "BertModel": ({}, "no head"),
    "GPT2ForSequenceClassification": ({}, "a classifier can be the `reward`"),
    "BertForSequenceClassification": ({}, "a classifier can be the `reward`"),
    # keep no keys and values
    "OpenAIGPTLMHeadModel": ({}, "keeps no key-value cache"),
    "MambaForCausalLM": ({}, "keeps no key-value cache"),
    "FalconMambaForCausalLM": ({}, "keeps no key-value cache"),
    "RwkvForCausalLM": ({}, "keeps no key-value cache"),
    "RecurrentGemmaForCausalLM": (
        dict(lru_width=32, attention_window_size=8, num_hidden_layers=3), "keeps no key-value cache",
    ),
    "xLSTMForCausalLM": ({}, "cannot read a text of four tokens"),
    # keep them in a way of their own
    "MiniMaxForCausalLM": (EXPERTS, "cannot go on from its cache"),
    "CpmAntForCausalLM": ({}, ""),  # for one reason or another
    # whose trunk is no model by itself
    "BartForCausalLM": (BART, "no trunk"),
    "TrOCRForCausalLM": ({}, "no trunk"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_decoder_is_refused_when_the_trainer_is_made(name):
    settings, reason = REFUSED[name]
    said = "nothing"
    try:
        PPOTrainer(of_class(name, **settings), vowels, tokenizer=byte_tokenizer(), **RUN)
    except ValueError as error:
        said = str(error)
    assert name in said and reason in said, f"{name} is not refused for what it is: {said}"
    assert "pass a decoder, as AutoModelForCausalLM loads them" in said, "the message does not say what to pass instead"
