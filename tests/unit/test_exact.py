"""What is trained is what is sampled, saved and judged, whatever was done to the model; else it is refused."""

import re
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.modules import module as torch_module
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama import modeling_llama as llama

from ppo_lib import models, ppo, rollout
from ppo_lib.data import as_dataset
from ppo_lib.models import Critic, few_logits
from ppo_lib.rewards import RewardModel
from ppo_lib.running import memory
from ppo_lib.sampling.choice import decoder_for
from ppo_lib.sampling.decoding import Decoder, LlamaDecoder
from tests.unit.runs_v1 import PROMPTS, assert_same_run, make, make_v0, weights
from tests.unit.test_families import made
from tests.unit.tiny import byte_tokenizer, tiny_policy

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 20,
}  # fmt: skip


@torch.no_grad()
def mismatch(policy) -> float:
    """Nats by which noted log-probabilities are off those of one pass, at most."""
    written = rollout.sample(policy, byte_tokenizer(), PROMPTS, 8, generator=torch.Generator().manual_seed(0))
    logits = rollout.response_logits(policy, written)
    off = rollout.logprobs_of(logits, written.response_ids) - written.logprobs
    return (off.abs() * written.mask).max().item()


def assert_exact(policy, what: str) -> None:
    off, largest = mismatch(policy), few_logits(policy).abs().max().item()
    rounding = 1e-5 * (10 + largest)  # a hundred roundings in 32 bits, which grow with the logits
    assert off < rounding, f"{what} acts in training and not in sampling: {off:.2g} nats"


def louder(output):
    """What a hook makes of a module's output."""
    if isinstance(output, tuple):
        return (1.5 * output[0], *output[1:])
    if isinstance(output, torch.Tensor):
        return 1.5 * output
    name = "logits" if "logits" in output else "last_hidden_state"
    output[name] = 1.5 * output[name]
    return output


def louder_norms(module, inputs, output):
    return louder(output) if isinstance(module, llama.LlamaRMSNorm) else None


# hooks, other layers, other arithmetic


MODULES = [name for name, _ in tiny_policy().named_modules() if "layers.1" not in name]


@pytest.mark.parametrize("name", MODULES, ids=[name or "policy" for name in MODULES])
def test_a_hook_on_any_module_acts_in_sampling(name):
    policy = tiny_policy()
    module = policy.get_submodule(name)
    if type(module).forward is not nn.Module.forward and type(module) is not nn.ModuleList:
        before = few_logits(policy)
        handle = module.register_forward_hook(lambda module, inputs, output: louder(output))
        assert not torch.equal(few_logits(policy), before), "the test needs a hook that does something"
        assert_exact(policy, f"a hook on {name or 'the policy'}")
        handle.remove()
        assert decoder_for(policy) is LlamaDecoder, "a hook that was removed still costs the fast sampler"
    if name.endswith(("proj", "mlp", "norm")):
        module.register_forward_pre_hook(lambda module, inputs: (1.5 * inputs[0], *inputs[1:]))
        assert_exact(policy, f"a hook before {name}")


def test_a_hook_on_all_modules_acts_in_sampling():
    for register in (torch_module.register_module_forward_hook, torch_module.register_module_forward_pre_hook):
        before = register is torch_module.register_module_forward_pre_hook
        loud = (lambda m, i: (louder(i[0]),) if isinstance(m, llama.LlamaMLP) else None) if before else louder_norms
        handle = register(loud)
        try:
            assert_exact(tiny_policy(), "a hook on all modules")
        finally:
            handle.remove()


class LoudLinear(nn.Linear):
    def forward(self, x):
        return 1.5 * super().forward(x)


class LoudEmbedding(nn.Embedding):
    def forward(self, tokens):
        return 1.5 * super().forward(tokens)


class Loud(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return louder(self.inner(*args, **kwargs))


def linear_subclass(policy):
    for layer in policy.model.layers:
        layer.mlp.up_proj.__class__ = LoudLinear


def other_mlp(policy):
    mlp = policy.model.layers[0].mlp
    kind = type(mlp)
    mlp.__class__ = type("Loud", (kind,), {"forward": lambda self, x: 1.5 * kind.forward(self, x)})


def other_norm(policy):
    policy.model.layers[0].input_layernorm = Loud(policy.model.layers[0].input_layernorm)


def other_last_norm(policy):
    policy.model.norm = nn.LayerNorm(32)


def other_activation(policy):
    policy.model.layers[0].mlp.act_fn = nn.Tanh()


def other_projection(policy):
    policy.model.layers[0].self_attn.q_proj = nn.Sequential(policy.model.layers[0].self_attn.q_proj, nn.Tanh())


def other_embedding(policy):
    policy.model.embed_tokens.__class__ = LoudEmbedding


def wrapped_rotary(policy):
    policy.model.rotary_emb = Loud(policy.model.rotary_emb)


def wrapped_head(policy):
    policy.lm_head = Loud(policy.lm_head)


def patched_forward(policy):
    mlp = policy.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: 1.5 * forward(x)


def patched_norm(policy):
    norm = policy.model.layers[1].post_attention_layernorm
    norm.forward = lambda x: x


def other_scaling(policy):
    policy.model.layers[0].self_attn.scaling = 0.1


def own_attention(policy):
    def quiet(*args, **settings):
        return sdpa_attention_forward(*args, **settings | {"scaling": 0.05})

    AttentionInterface.register("quiet", quiet)
    policy.config._attn_implementation = "quiet"


def fewer_layers(policy):
    policy.model.layers = policy.model.layers[:1]


def fewer_layers_than_there_are(policy):
    policy.config.num_hidden_layers = 1


def parametrized(policy):
    nn.utils.parametrize.register_parametrization(policy.model.layers[0].mlp.up_proj, "weight", nn.Tanh())


def parametrized_norm(policy):
    nn.utils.parametrize.register_parametrization(policy.model.layers[0].input_layernorm, "weight", nn.Tanh())


def weight_norm(policy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(policy.model.layers[0].mlp.up_proj)
    policy.model.layers[0].mlp.up_proj.weight_g.data *= 2  # its weight is computed anew by a hook


def adapted(**settings):
    def change(policy):
        policy.add_adapter(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **settings))

    change.__name__ = "adapters " + " ".join(settings)
    return change


CHANGES = [
    linear_subclass, other_mlp, other_norm, other_last_norm, other_activation, other_projection, other_embedding,
    wrapped_rotary, wrapped_head, patched_forward, patched_norm, other_scaling, own_attention, fewer_layers,
    fewer_layers_than_there_are, parametrized, parametrized_norm, weight_norm, adapted(), adapted(use_rslora=True),
    adapted(use_dora=True), adapted(lora_alpha=64),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_another_layer_acts_in_sampling(family, change):
    policy = tiny_policy(family)
    before = few_logits(policy)
    change(policy)
    assert not torch.equal(few_logits(policy.eval()), before), "the test needs a change that does something"
    assert_exact(policy, change.__name__)


def test_a_patched_class_acts_in_sampling(monkeypatch):
    forward = llama.LlamaMLP.forward
    monkeypatch.setattr(llama.LlamaMLP, "forward", lambda self, x: 1.5 * forward(self, x))
    assert_exact(tiny_policy(), "a patched class")


def test_patched_arithmetic_is_noticed_before_the_first_update(monkeypatch):
    rotate = llama.apply_rotary_pos_emb
    monkeypatch.setattr(llama, "apply_rotary_pos_emb", lambda q, k, *rest: rotate(2 * q, k, *rest))
    trainer = make(learning_rate=1e-9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train(PROMPTS)
    told = [str(warning.message) for warning in caught if "the fast sampler is" in str(warning.message)]
    assert told and trainer.decoder is Decoder, "sums that are not the model's own are sampled from, unsaid"
    assert abs(trainer.history[0]["val/ratio"] - 1) < 1e-4, "after the warning the ratio is still not 1"


def test_hooks_may_come_between_two_updates():
    trainer = make(learning_rate=1e-9)

    def hook_on(trainer, rollout, metrics):
        trainer.policy.model.layers[0].register_forward_hook(lambda module, inputs, output: louder(output))

    trainer.train(PROMPTS, callback=hook_on)
    ratios = [metrics["val/ratio"] for metrics in trainer.history]
    assert max(abs(ratio - 1) for ratio in ratios) < 1e-4, f"a hook from between two updates is not sampled: {ratios}"


@pytest.mark.filterwarnings("ignore:the fast sampler is")
def test_what_depends_on_the_number_of_calls_is_refused():
    policy, calls = tiny_policy(), []

    def tired(module, inputs, output):
        calls.append(1)
        return output * len(calls)

    policy.model.norm.register_forward_hook(tired)
    said = ""
    try:
        make(policy).train(PROMPTS)
    except ValueError as error:
        said = str(error)
    assert "other probabilities while it writes" in said, f"no ratio would begin at 1, and nothing is said: {said}"
    assert "exact_check=False" in said and "hook" in said, "the message does not say what to do"
    make(policy, exact_check=False, total_episodes=4).train(PROMPTS)


@pytest.mark.parametrize("change", [fewer_layers, parametrized, weight_norm], ids=lambda change: change.__name__)
def test_weights_that_would_not_be_read_again_are_refused(change):
    policy = tiny_policy()
    change(policy)
    said = ""
    try:
        make(policy)
    except ValueError as error:
        said = str(error)
    assert "would not be read again: model.layers." in said, "a saved model comes back with random weights in it"


# the check itself


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["all weights", "adapters"])
def test_the_check_changes_no_number(settings):
    with_it = make(**settings)
    with_it.train(PROMPTS)
    without = make(exact_check=False, **settings)
    without.train(PROMPTS)
    assert_same_run(with_it, without, "the check before the first update changes the run")


@pytest.mark.parametrize(
    ("off", "decoder", "outcome"),
    [
        ([1.0], None, None),
        ([1.01, 1.0], Decoder, "the fast sampler is .* nats a token off this model's own logits, and is not used"),
        ([1.01, 1.01], Decoder, "gives a token other probabilities while it writes"),
    ],
)
def test_what_the_fast_sampler_may_be_off_and_what_is_done_about_more(off, decoder, outcome):
    """`off`: of the fast one and then of the plain one, as a multiple of what is allowed."""
    ppo = make()
    allowed = models.allowed_inexactness(ppo.policy)
    assert allowed == 1e-3, "in 32-bit floats a thousandth of a nat is allowed"
    tried = []
    ppo.inexactness = lambda prompts: tried.append(ppo.decoder) or allowed * off[len(tried) - 1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            ppo.rehearse(as_dataset(PROMPTS))
            refused = ""
        except ValueError as error:
            refused = str(error)
    told = " ".join([refused, *(str(warning.message) for warning in said)]).strip()
    assert re.search(outcome, told) if outcome else not told, f"at {off} times what is allowed it says {told!r}"
    assert bool(refused) == (off[-1] > 1), "a plain sampler that is off is taken, or one that is right is refused"
    assert ppo.decoder is decoder and tried == [None, Decoder][: len(off)], "the plain one is not tried after the fast"


@pytest.mark.parametrize(("dtype", "nats"), [(torch.float16, 16 * 2**-10), (torch.bfloat16, 16 * 2**-7)])
def test_half_precision_is_allowed_its_rounding(dtype, nats):
    assert models.allowed_inexactness(tiny_policy().to(dtype)) == nats
    with torch.autocast("cpu", dtype):
        assert models.allowed_inexactness(tiny_policy()) == nats, "mixed precision is not allowed its rounding"


def test_the_check_can_be_switched_off(monkeypatch):
    asked = []
    monkeypatch.setattr(ppo.PPOTrainer, "inexactness", lambda self, prompts: asked.append(prompts) or 0.0)
    make(exact_check=False).train(PROMPTS)
    assert not asked, "exact_check=False checks all the same"
    make().train(PROMPTS)
    assert len(asked) == 1 and len(asked[0]) > len(set(asked[0])), "the check tries no prompt twice: no cache is shared"


def test_as_if_trained_leaves_nothing_behind():
    trainer = make(lora_rank=2)
    before, plain = weights(trainer), few_logits(trainer.policy)
    with memory.as_if_trained(trainer.policy):
        moved = (few_logits(trainer.policy) - plain).abs().max()
        assert moved > 0.01, "adapters as if trained do nothing: no mistake of theirs would show"
    left = [name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])]
    assert not left, f"noise is left in {left[:2]}"


def test_a_merge_that_loses_something_is_refused_before_the_first_update(monkeypatch):
    trainer = make(lora_rank=2)
    monkeypatch.setattr(memory, "merged", lambda model: models.merged(model).apply(halve))
    said = ""
    try:
        trainer.train(PROMPTS)
    except ValueError as error:
        said = str(error)
    assert "does something else once its adapters are merged" in said and not trainer.history, (
        f"adapters that cannot be saved are found out after the run: {said}"
    )


def halve(module):
    if isinstance(module, nn.Linear):
        module.weight.data *= 0.5


# one head for all: caps and scales


CAPPED = {
    "gemma2": dict(final_logit_softcapping=30.0), "gemma3_text": dict(final_logit_softcapping=30.0),
    "cohere": dict(logit_scale=0.25), "cohere2": dict(logit_scale=0.25), "granite": dict(logits_scaling=8.0),
    "granitemoe": dict(logits_scaling=8.0), "minicpm3": dict(dim_model_base=8), "nanochat": {}, "vaultgemma": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", CAPPED)
def test_caps_and_scales_of_logits_are_refused_where_the_head_alone_is_asked(kind):
    policy = made(kind, sharpness=1.0, **CAPPED[kind])  # small weights, whose logits no cap would show
    for settings in ({"share_trunk": True}, {"logits_chunk": 8}):
        said = "nothing"
        try:
            make(policy, **settings)
        except ValueError as error:
            said = str(error)
        assert "does more to its logits than its head" in said, f"what {kind} does behind its head is lost: {said}"
    make(policy)


# rotations that depend on the length


LENGTHS = {
    "short": ["Ok", "Hi"], "crossing": ["Ok", "The film was one that I"], "long": ["The film was one that I saw"],
}  # fmt: skip


@pytest.mark.parametrize("prompts", list(LENGTHS.values()), ids=list(LENGTHS))
@pytest.mark.parametrize("kind", ["phi3", "llama"])
def test_longrope_keeps_one_set_of_factors(kind, prompts, tmp_path):
    own = dict(original_max_position_embeddings=20) if kind == "phi3" else {}
    policy = made(kind, rope_parameters=LONGROPE, **own)
    run = dict(max_new_tokens=12, minibatch_size=1, num_ppo_epochs=1, learning_rate=1e-9, exact_check=False)
    prompts = (prompts * 4)[:4]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make(policy, **run)
        trainer.train(prompts)
    told = any("longrope turns to its long factors" in str(warning.message) for warning in caught)
    assert told == (max(map(len, prompts)) + 12 > 20), "long factors are taken unsaid, or short ones for long texts"
    for metrics in trainer.history:
        assert abs(metrics["objective/kl"]) < 1e-3, f"the KL to itself is {metrics['objective/kl']}"
        assert metrics["policy/approxkl_avg"] < 1e-8, "rotations differ between sampling and a minibatch"
    trainer.save(tmp_path)
    again = make(AutoModelForCausalLM.from_pretrained(tmp_path), max_new_tokens=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert again.generate(prompts, greedy=True) == trainer.generate(prompts, greedy=True), "read again, it differs"


ROPES = {
    "dynamic": dict(factor=2.0), "linear": dict(factor=2.0),
    "yarn": dict(factor=2.0, original_max_position_embeddings=32),
    "llama3": dict(factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_other_rotations_are_sampled_as_trained(kind):
    policy = tiny_policy(rope_parameters={"rope_type": kind, "rope_theta": 1e4, **ROPES[kind]})
    assert_exact(policy, f"rope of type {kind}")
    trainer = make(policy, learning_rate=1e-9, max_new_tokens=36)
    trainer.train(PROMPTS)
    assert max(row["policy/approxkl_avg"] for row in trainer.history) < 1e-8, f"{kind}: the ratio does not begin at 1"


# a policy that brings adapters


FOLDERS = {
    "LoRA": dict(target_modules="all-linear"),
    "rsLoRA": dict(target_modules="all-linear", use_rslora=True),
    "DoRA": dict(target_modules="all-linear", use_dora=True),
    "on embeddings": dict(target_modules=["embed_tokens", "q_proj"]),
    "on the head": dict(target_modules=["lm_head", "q_proj"]),
    "whole head": dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "whole norms": dict(target_modules=["q_proj"], modules_to_save=["norm"]),
    "some tokens": dict(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
    "tied embeddings": dict(target_modules=["embed_tokens", "q_proj"]),
    "tied head": dict(target_modules=["lm_head", "q_proj"]),
    "biases": dict(target_modules=["q_proj"], lora_bias=True),
}
UNMERGEABLE = ("tied embeddings", "tied head", "biases")


@pytest.mark.parametrize("kind", FOLDERS)
def test_adapters_of_the_policy_are_kept_or_refused(kind, tmp_path):
    warnings.simplefilter("ignore")  # peft's, of ties and biases
    base = tiny_policy(tie_word_embeddings=kind.startswith("tied"))
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, **FOLDERS[kind])).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapters")
    byte_tokenizer().save_pretrained(tmp_path / "adapters")
    expected = few_logits(adapted.get_base_model())
    for policy in (str(tmp_path / "adapters"), adapted.get_base_model()):
        how = "by name" if isinstance(policy, str) else "as an object"
        said, trainer = "", None
        try:
            trainer = make(policy, lr_scheduler="constant", learning_rate=1e-2)
        except ValueError as error:
            said = str(error)
        if kind in UNMERGEABLE:
            assert "cannot be merged into its weights: pass a model without adapters" in said, f"{how}: {said}"
            continue
        assert not said, f"{kind} {how}: {said}"
        off = (few_logits(trainer.policy) - expected).abs().max().item()
        assert off < 1e-3, f"{kind} {how}: the policy begins {off:.2g} off the adapted model"
        trainer.train(PROMPTS)
        trainer.save(tmp_path / "out")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert torch.equal(few_logits(again), few_logits(trainer.policy)), f"{kind} {how}: what was learned is lost"


# models that read texts


def small_classifier(context: int):
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=context, num_labels=1)
    )


@torch.no_grad()
def test_a_reward_model_reads_up_to_its_real_context_and_keeps_the_end():
    torch.manual_seed(0)
    size = dict(vocab_size=258, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = RobertaConfig(max_position_embeddings=20, pad_token_id=1, num_labels=1, **size)
    for model, room in ((RobertaForSequenceClassification(config).eval(), 18), (small_classifier(20).eval(), 20)):
        assert models.context_length(model) == room, f"{type(model).__name__} has a context of {room}"
        judge = RewardModel(model, byte_tokenizer())
        fitting = judge([""], ["x" * room])
        assert fitting.isfinite().all(), "a text that just fits is not read"
        said, end = "", "".join(chr(97 + place % 26) for place in range(room))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cut = judge(["some front that is too long, "], [end])
        said = " ".join(str(warning.message) for warning in caught)
        assert f"whose context is {room}: such texts lose their front" in said, "a text is cut, and nothing is said"
        assert torch.equal(cut, judge([""], [end])), "a text that is too long loses its end, which is judged"
        assert judge.tokenizer.truncation_side == "right", "the tokenizer goes on cutting off fronts"


def test_shorter_tokens_of_a_reward_model_do_not_end_a_run():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        judge = RewardModel(small_classifier(40), byte_tokenizer())
        trainer = make(reward=judge, total_episodes=4)
        judge.tokenizer = Longer(judge.tokenizer)
        trainer.train(["a text of eighteen"] * 4)
    assert any("lose their front" in str(warning.message) for warning in caught) and trainer.history, (
        "a reward model with shorter tokens ends the run"
    )


class Longer:
    """A tokenizer that needs many more tokens for a whole text than for a prompt."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, texts, **settings):
        longer = texts if isinstance(texts, str) else [text + 40 * "." for text in texts]  # check_room asks one by one
        return self.inner(longer, **settings)


def refusal(**settings) -> str:
    """What the trainer says of prompts that do not fit, nothing where it trains."""
    try:
        make(max_new_tokens=8, **settings).train(["a" * 36])
    except ValueError as error:
        return str(error)
    return "nothing"


def test_every_context_is_kept():
    roles = {
        "critic": dict(critic=Critic.from_policy(made("llama", max_position_embeddings=40))),
        "reference": dict(reference=made("llama", max_position_embeddings=40)),
        "policy": dict(policy=made("llama", max_position_embeddings=40)),
        "reward model": dict(reward=RewardModel(small_classifier(40), byte_tokenizer())),
        "held-out judge": dict(eval_reward=RewardModel(small_classifier(40), byte_tokenizer())),
    }
    for role, settings in roles.items():
        said = refusal(**settings)
        assert f"exceeds the {role}'s context of 40" in said, f"the {role}'s context is not kept: {said}"


def test_one_long_prompt_costs_only_itself(monkeypatch):
    largest, encode = [0], rollout.encode_prompts

    def watched(tokenizer, prompts):
        ids, mask = encode(tokenizer, prompts)
        largest.append(ids.numel())
        return ids, mask

    monkeypatch.setattr(rollout, "encode_prompts", watched)
    prompts = [f"{number:08}" for number in range(2000)] + ["word " * 6000 + "x"]
    said = ""
    try:
        make_v0().train(prompts)
    except ValueError as error:
        said = str(error)
    assert max(largest) <= 30_001, f"{max(largest)} tokens are laid out for one prompt of 30,001 among 2,000"
    assert said.startswith("prompt 2000 has 30001 tokens"), f"the long prompt is not named: {said}"
