"""Ways to need less memory change how a run computes, and not what, as far as each one promises."""

import contextlib
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ppo_lib.config import PPOConfigV1, ReplayConfig
from ppo_lib.data import as_dataset
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.rollout import response_logits
from ppo_lib.running import memory, resume
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, TINY, assert_same_run, estimated, make, make_v0, vowels, weights
from tests.unit.tiny import FAMILIES, byte_tokenizer, tiny_policy


def train_a_little(ppo, prompts=PROMPTS):
    ppo.train(prompts)
    return ppo


# adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_nothing_and_are_all_that_learns(family):
    plain, ppo = make(tiny_policy(family)), make(tiny_policy(family), lora_rank=2)
    rollout = plain.collect(PROMPTS)
    with torch.no_grad():
        expected = response_logits(plain.policy, rollout)
        assert torch.equal(response_logits(ppo.policy, rollout), expected), "new adapters already change the policy"
    before = weights(ppo)
    train_a_little(ppo)
    moved = {name for name, weight in weights(ppo).items() if not torch.equal(before[name], weight)}
    outside = [name for name in moved if "lora" not in name and "value_head" not in name]
    assert not outside, f"weights that adapters should leave frozen moved: {outside[:3]}"
    for role in ("policy", "critic"):
        adapters = [n for n in moved if "lora" in n and n.startswith("critic") == (role == "critic")]
        assert adapters, f"the adapters of the {role} never learn"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_reference_is_the_policy_without_its_adapters(family):
    ppo = make(tiny_policy(family), lora_rank=2, learning_rate=1e-2, total_episodes=8)
    base = make(tiny_policy(family))
    with torch.enable_grad():
        train_a_little(ppo)
    rollout = ppo.collect(PROMPTS)
    with_adapters = ppo.logits(ppo.policy, rollout)
    assert not torch.equal(with_adapters, ppo.logits(base.policy, rollout)), "the test needs adapters that do something"
    mine, expected = ppo.reference_logprobs(rollout), base.reference_logprobs(rollout)
    assert torch.allclose(mine, expected, atol=1e-5), "adapters stay on for the reference: the KL penalty is void"
    assert torch.equal(ppo.logits(ppo.policy, rollout), with_adapters), "adapters stay off after the reference's turn"
    assert ppo.history[-1]["objective/kl"] != 0, "the KL to a reference without adapters cannot be 0"


def test_adapters_come_back_after_an_error():
    ppo = make(lora_rank=2)
    with pytest.raises(ZeroDivisionError), memory.adapters_off(ppo.policy):
        1 / 0  # noqa: B018
    layers = [module for module in ppo.policy.modules() if isinstance(module, BaseTunerLayer)]
    assert layers and not any(layer.disable_adapters for layer in layers), "an error leaves the adapters off"


def test_merging_adds_what_the_adapters_do():
    policy = tiny_policy()
    memory.add_adapters(policy, 2, 8.0, seed=0)
    tokens = torch.arange(6)[None]
    with memory.as_if_trained(policy), torch.no_grad():
        adapted, plain = policy(tokens).logits, memory.merged(policy)(tokens).logits
    assert (adapted - plain).abs().max() < 1e-3, "what the adapters learned is lost when they are merged"
    with torch.no_grad(), memory.adapters_off(policy):
        off = policy(tokens).logits
    assert (adapted - off).abs().max() > 0.1, "the test needs adapters that do something"
    assert torch.equal(policy(tokens).logits, off), "noise stays in the adapters after a trial"


def test_adapters_that_cannot_be_saved_are_refused_before_the_first_update(monkeypatch, tmp_path):
    def fails(self, *arguments, **keywords):
        raise RecursionError("layer around layer around layer")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fails)
    ppo = make(tiny_policy(), lora_rank=2, output_dir=str(tmp_path / "run"))
    with pytest.raises(Exception) as caught:
        ppo.train(PROMPTS)
    assert "could not be saved merged" in str(caught.value), "a run finds out only when it ends that it cannot be saved"
    assert not ppo.history, "updates were made before it was tried to save"
    assert not list(tmp_path.rglob("*.safetensors")), "what was written on trial is left behind"


def test_a_reference_of_ones_own_is_used_beside_adapters():
    other = tiny_policy(seed=1)
    ppo = PPOTrainer(tiny_policy(), vowels, tokenizer=byte_tokenizer(), reference=other, lora_rank=2, **TINY)
    assert ppo.reference is other, "a reference that is passed is ignored when there are adapters"
    assert train_a_little(ppo).history[0]["objective/kl"] > 0.1, "the KL is not that to the reference that was passed"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, dict(lora_rank=2), dict(lora_rank=2, frozen_dtype="bfloat16")])
def test_weights_saved_by_v1_load_in_v0_and_train_on(family, settings, tmp_path):
    ppo = make(tiny_policy(family), learning_rate=1e-2, total_episodes=4, **settings)
    ppo.reward = lambda prompts, responses: [float(row % 2) for row in range(len(responses))]  # never all alike
    train_a_little(ppo).save(tmp_path)
    plain = make_v0(str(tmp_path), total_episodes=4)
    assert type(plain.policy) is type(tiny_policy(family)), "the saved model is no plain one"
    assert not any("lora" in name for name in weights(plain)), "adapters are saved beside the weights, not merged"
    rollout = estimated(ppo)
    with torch.no_grad():
        mine, loaded = ppo.logits(ppo.policy, rollout), plain.logits(plain.policy, rollout)
        far = 1e-4
        if "frozen_dtype" in settings:  # the frozen weights compute in it too: so compare with what was learned
            with memory.adapters_off(ppo.policy):
                far = 0.3 * (mine - ppo.logits(ppo.policy, rollout)).abs().mean()
        assert (mine - loaded).abs().mean() < far, "what the adapters learned is lost from the saved weights"
        values = ppo.values(rollout), plain.values(rollout)
        assert torch.allclose(*values, atol=0.2 if "frozen_dtype" in settings else 1e-3), "the saved critic is another"
    plain.train(PROMPTS)
    assert plain.policy.dtype == torch.float32, "the saved weights are not 32-bit floats"


def test_merging_leaves_the_trained_policy_alone(tmp_path):
    ppo = train_a_little(make(lora_rank=2))
    before = weights(ppo)
    ppo.save(tmp_path)
    after = weights(ppo)
    assert before.keys() == after.keys(), "saving takes the adapters off the policy that is trained"
    assert all(torch.equal(weight, after[name]) for name, weight in before.items()), "saving changes the policy"


def test_weights_saved_by_v0_load_in_v1(tmp_path):
    plain = make_v0(tiny_policy())
    plain.train(PROMPTS)
    plain.save(tmp_path)
    for settings in ({}, dict(lora_rank=2)):
        ppo = make(str(tmp_path), **settings)
        assert ppo.generate(HELD_OUT) == plain.generate(HELD_OUT), "v1 answers otherwise with the weights of v0"


def test_frozen_weights_take_half_the_memory_and_trained_ones_stay_whole():
    ppo = make(lora_rank=2, frozen_dtype="bfloat16")
    for name, parameter in [*ppo.policy.named_parameters(), *ppo.critic.named_parameters()]:
        expected = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == expected, f"{name} is kept in {parameter.dtype}"
    assert all(math.isfinite(x) for row in train_a_little(ppo).history for x in row.values()), "a metric is not finite"


@pytest.mark.parametrize(
    ("dtype", "unmerged", "unsaved", "kept"),
    [("float32", 0.0099, 0.49, True), ("float32", 0.0101, 0.0, False), ("float32", 0.0, 0.51, False),
     ("bfloat16", 0.49, 0.49, True), ("bfloat16", 0.51, 0.0, False)],
)  # fmt: skip
def test_how_much_of_what_adapters_do_may_be_lost(dtype, unmerged, unsaved, kept, monkeypatch):
    """As shares of what they do: a hundredth, where nothing is rounded; half of it, where something is."""
    policy = tiny_policy()
    memory.add_adapters(policy, 2, 8.0, seed=0)
    memory.freeze_in(policy, getattr(torch, dtype))
    seen = iter(torch.tensor([[5.0], [7.0], [7.0 + 2 * unmerged], [7.0 - 2 * unsaved]]))  # without, with, and the two
    monkeypatch.setattr(memory, "few_logits", lambda model: next(seen))
    monkeypatch.setattr(memory, "written_and_read", lambda model, folder: model)
    with contextlib.nullcontext() if kept else pytest.raises(ValueError, match="does something else once its adapters"):
        memory.rehearse_saving(policy, None)


# activations and logits


def measured(ppo, rollout):
    """Loss and gradient of one minibatch."""
    loss, _ = ppo.loss(rollout)
    parameters = [p for p in (*ppo.policy.parameters(), *ppo.critic.parameters()) if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.item(), torch.cat([gradient.flatten() for gradient in found if gradient is not None])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("extra", [{}, dict(lora_rank=2), dict(mixed_precision="bf16")])
def test_recomputed_activations_give_the_same_gradient(family, extra):
    plain = make(tiny_policy(family), **extra)
    saving = make(tiny_policy(family), activation_checkpointing=True, **extra)
    rollout = estimated(plain)
    (loss, gradient), (same_loss, same_gradient) = measured(plain, rollout), measured(saving, rollout)
    assert same_loss == pytest.approx(loss, rel=1e-6), "recomputing activations changes the loss"
    assert torch.allclose(same_gradient, gradient, rtol=1e-4, atol=1e-6), "recomputing activations changes the gradient"


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_computed_twice_and_kept_once(family):
    """Each layer's MLP runs again in the backward pass, and fewer bytes wait for it."""

    def calls_and_bytes(**settings):
        ppo = make(tiny_policy(family), **settings)
        rollout, calls, kept = estimated(ppo), [], []
        for module in ppo.policy.modules():
            if type(module).__name__.endswith("MLP"):
                module.register_forward_pre_hook(lambda *_: calls.append(1))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            loss, _ = ppo.loss(rollout)
        loss.backward()
        return len(calls), sum(kept)

    (calls, kept), (calls_again, kept_less) = calls_and_bytes(), calls_and_bytes(activation_checkpointing=True)
    assert calls_again == 2 * calls, "activation_checkpointing does not recompute the layers"
    assert kept_less < 0.8 * kept, f"activation_checkpointing keeps {kept_less} bytes of {kept}"


def test_a_model_without_layers_to_recompute_is_refused():
    with pytest.raises(ValueError, match="has no layers to recompute: set activation_checkpointing=False"):
        memory.checkpoint_activations(nn.Linear(2, 2))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_response_logits_only_gives_the_same_numbers(family):
    ppo = make(tiny_policy(family), temperature=0.7)
    rollout = ppo.collect(PROMPTS)
    computed = []
    ppo.policy.get_output_embeddings().register_forward_hook(lambda module, x, logits: computed.append(logits.shape[1]))
    expected = response_logits(ppo.policy, rollout, 0.7)
    logits = memory.response_logits_only(ppo.policy, rollout, 0.7)
    assert logits.shape == expected.shape, "response_logits_only drops or adds a token"
    assert torch.allclose(logits, expected, atol=1e-4), "response_logits_only computes other logits"
    assert computed == [rollout.tokens.shape[1], rollout.response_ids.shape[1] + 1], "logits of the prompt are computed"


def test_response_logits_only_trains_as_without():
    runs = [make(response_logits_only=wanted) for wanted in (False, True)]
    for ppo in runs:
        train_a_little(ppo)
    expected = weights(runs[1])
    for name, weight in weights(runs[0]).items():
        assert torch.allclose(weight, expected[name], atol=1e-4), f"response_logits_only trains {name} otherwise"


class AllLogits(nn.Module):
    def forward(self, input_ids, attention_mask):
        return input_ids


def test_a_model_that_cannot_leave_logits_out_is_refused():
    with pytest.raises(ValueError, match="AllLogits computes all logits or none: set response_logits_only=False"):
        memory.response_logits_only(AllLogits(), estimated(make()))


# mixed precision


def test_bf16_is_close_and_keeps_whole_weights():
    plain, mixed = make(tiny_policy(sharpness=1.0)), make(tiny_policy(sharpness=1.0), mixed_precision="bf16")
    rollout = estimated(plain)
    with torch.no_grad():
        exact, rounded = plain.logits(plain.policy, rollout), mixed.logits(mixed.policy, rollout)
    assert rounded.dtype == torch.float32, "log-probabilities are taken from bfloat16 logits"
    error = (exact - rounded).abs().max().item()
    assert 0 < error < 0.05, f"bf16 logits differ by {error}: not computed in bf16, or not close"
    train_a_little(mixed)
    assert {p.dtype for p in mixed.policy.parameters()} == {torch.float32}, "bf16 changes the type of the weights"
    assert mixed.history[0]["val/ratio"] == pytest.approx(1.0, abs=0.1), "sampling and update differ in precision"


def test_bf16_sampling_and_update_agree():
    ppo = make(mixed_precision="bf16")
    with torch.no_grad():
        _, metrics = ppo.loss(estimated(ppo))
    assert metrics["val/ratio"].item() == pytest.approx(1.0, abs=0.05), "sampling is not in mixed precision"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="`mixed_precision`='fp16' needs a GPU: use \"bf16\" on a CPU"):
        make(mixed_precision="fp16")


class ScaledTrainer(PPOTrainer):
    """Scales its loss on the CPU as v1 does for fp16 on a GPU."""

    init_scale = 2.0**10

    def _make_accelerator(self):
        accelerator = super()._make_accelerator()
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=self.init_scale)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        return accelerator


def make_scaled(init_scale, **settings):
    stage = SimpleNamespace(PPOTrainer=type("Scaled", (ScaledTrainer,), {"init_scale": init_scale}))
    return make(stage=stage, **settings)


@pytest.mark.filterwarnings("ignore:Seems like .optimizer.step")
def test_a_scaled_loss_takes_the_same_steps():
    scaled = make_scaled(2.0**10)
    plain = make()  # made later, so that its accelerator is the one that the process shares
    train_a_little(plain)
    train_a_little(scaled)
    for mine, expected in zip(scaled.history, plain.history, strict=True):
        assert mine["policy/grad_norm"] == pytest.approx(expected["policy/grad_norm"], rel=1e-3), (
            "gradients are clipped before they are unscaled"
        )
    for name, weight in weights(plain).items():
        assert torch.allclose(weight, weights(scaled)[name], atol=1e-4), "a scaled loss trains otherwise"


def overflowing(ppo):
    sound = ppo.loss

    def loss(minibatch):
        value, metrics = sound(minibatch)
        return value * math.inf, metrics

    ppo.loss = loss
    return ppo


def test_an_overflow_lowers_the_scale_and_skips_the_step():
    ppo = make_scaled(4.0, max_skipped_steps=3)
    rollout, before = estimated(ppo), weights(ppo)
    overflowing(ppo)
    ppo.step(rollout)
    ppo.step(rollout)
    assert ppo.accelerator.scaler.get_scale() == 1.0, "an overflow does not lower the scale"
    assert all(torch.equal(w, before[name]) for name, w in weights(ppo).items()), "an overflowed step is taken"
    assert ppo.skipped_steps == 2, "overflowed steps are not counted"
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        for _ in range(4):
            ppo.step(rollout)


def test_kl_stop_with_a_scaler_moves_nothing():
    ppo = make_scaled(8.0, kl_stop=1e-4, learning_rate=1e-2)
    rollout = estimated(ppo)
    ppo.update(rollout)
    before = weights(ppo)
    ppo.step(rollout)
    assert ppo._too_far and all(torch.equal(w, before[n]) for n, w in weights(ppo).items()), (
        "with a scaler, the step that found the policy too far still moves the weights"
    )


def test_the_scaler_is_saved_and_restored():
    ppo, fresh = make_scaled(64.0), make_scaled(8.0)
    overflowing(ppo).step(estimated(ppo))
    ppo.prepare(as_dataset(PROMPTS))
    resume.restore(fresh, resume.state_of(ppo))
    assert fresh.accelerator.scaler.get_scale() == 32.0, "the scale of the loss is not restored"
    assert fresh.accelerator.scaler.state_dict() == ppo.accelerator.scaler.state_dict(), "the scaler is not restored"


# how many responses at a time


@pytest.mark.parametrize(("recorded", "tried"), [(False, [13, 6, 3, 1]), (True, [13, 13, 6, 3, 1])])
def test_what_does_not_fit_is_tried_without_recorded_steps_and_then_in_halves(recorded, tried, monkeypatch):
    sizes, kept = [], [recorded]
    monkeypatch.setattr(memory, "release_memory", lambda: None)
    monkeypatch.setattr(memory.graphs, "forget", lambda: bool(kept) and kept.pop())

    def work(size):
        sizes.append(size)
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return "done"

    fitting = memory.FittingSize("training", 13)
    with pytest.warns(UserWarning) as said:
        assert fitting.fit(work) == "done", "what was computed is lost"
    assert sizes == tried, "not first without recorded steps, then each time with half as many, down to one"
    told = [str(warning.message) for warning in said]
    assert told == [f"out of memory: training now takes {size} responses at a time" for size in (6, 3, 1)], (
        "a smaller size is not told, told twice, or with another number than is tried next"
    )
    assert fitting.size == 1, "the size that fits is forgotten"


@pytest.mark.parametrize("recorded", [0, 1, 9])
def test_one_response_that_does_not_fit_is_given_up_after_one_more_try(recorded, monkeypatch):
    sizes, kept = [], [True] * recorded  # steps may be recorded anew in each try
    monkeypatch.setattr(memory, "release_memory", lambda: None)
    monkeypatch.setattr(memory.graphs, "forget", lambda: bool(kept) and kept.pop())

    def work(size):
        sizes.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        memory.FittingSize("training", 1).fit(work)
    assert sizes == [1] * (1 + (recorded > 0)), "one response that does not fit is tried for ever, or not again"
    assert "even one response at a time does not fit: set `activation_checkpointing`" in "".join(
        caught.value.__notes__
    ), "the error does not say which settings make one response fit"


def test_a_pass_without_gradients_begins_with_what_the_settings_ask_for():
    for config, size in (
        (PPOConfigV1(batch_size=3, group_size=2, minibatch_size=4), 6),
        (PPOConfigV1(batch_size=2, minibatch_size=2, gradient_accumulation_steps=4), 2),
        (ReplayConfig(batch_size=2, minibatch_size=5), 5),
    ):
        assert memory.FittingSize.of(config).size == size, "not those of `batch_size` prompts, or of a minibatch"


def test_a_size_moves_until_it_was_halved_or_restored():
    fitting = memory.FittingSize("sampling", 4)
    for aim, size in ((64, 64), (32, 32), (2, 4), (64, 64)):
        fitting.aim(aim)
        assert fitting.size == size, "it does not follow the longest text, or starts below what the settings ask for"
    fitting.size = 1  # memory ran out
    fitting.aim(64)
    assert fitting.size == 1, "what did not fit is tried again"
    for size in (3, 4, 9):
        restored = memory.FittingSize("sampling", 4)
        restored.put(size)
        restored.aim(64)
        assert restored.size == size, f"{size} responses, which an earlier session found to fit, become more again"


TEXT_BYTES = 4 * 10 * (2 * 3 * 8 + 2 * 24 + 6 * 8)  # of ten tokens: cache of 3 layers, their inner and outer states
LOGIT_BYTES = 4 * 3 * 50  # of one token: as they come, in 32 bits, and normalised


@pytest.mark.parametrize(
    ("chunk", "room", "texts"),
    [(None, 7 * (TEXT_BYTES + 10 * LOGIT_BYTES), 7), (None, 7 * (TEXT_BYTES + 10 * LOGIT_BYTES) - 1, 6), (None, 9, 1),
     (16, 7 * TEXT_BYTES + 16 * LOGIT_BYTES, 7), (16, 7 * TEXT_BYTES + 16 * LOGIT_BYTES - 1, 6), (16, 9, 1)],
)  # fmt: skip
def test_without_gradients_as_many_texts_are_computed_as_a_gigabyte_holds(chunk, room, texts, monkeypatch):
    assert memory.FORWARD_BYTES == 2**30, "the room for a pass without gradients is no gigabyte"
    monkeypatch.setattr(memory, "FORWARD_BYTES", room)
    shape = dict(hidden_size=8, intermediate_size=24, num_hidden_layers=3, num_attention_heads=1, vocab_size=50)
    found = memory.forward_size(PPOConfigV1(logits_chunk=chunk), LlamaConfig(**shape), 10)
    assert found == texts, f"{found} texts of ten tokens are taken for what fits into {room} bytes"


def test_the_widest_layer_counts_and_four_times_the_width_where_none_is_named(monkeypatch):
    monkeypatch.setattr(memory, "FORWARD_BYTES", 2**24)
    shape = dict(hidden_size=8, num_hidden_layers=3, vocab_size=50)
    sizes = {}
    for inner in (24, 32, None, [16, 32, 8]):
        config = SimpleNamespace(**shape, intermediate_size=inner)
        config.get_text_config = lambda config=config: config
        sizes[str(inner)] = memory.forward_size(PPOConfigV1(), config, 10)
    alike = sizes["None"] == sizes["32"] == sizes["[16, 32, 8]"] < sizes["24"]
    assert alike, f"inner layers are counted wrongly: {sizes}"


# 8-bit optimiser


def test_the_8_bit_optimiser_trains_and_resumes(tmp_path):
    settings = dict(optimizer="adamw_8bit", save_every=1)
    whole = train_a_little(make(output_dir=str(tmp_path / "whole"), **settings))
    assert type(whole.optimizer.optimizer).__name__ == "AdamW8bit", "`optimizer` is ignored"
    assert any(not torch.equal(w, weights(make())[n]) for n, w in weights(whole).items()), "the 8-bit optimiser is idle"
    half = make(output_dir=str(tmp_path / "half"), **settings)
    half.train(PROMPTS, callback=lambda ppo, rollout, metrics: metrics["update"] == 1)
    again = train_a_little(make(output_dir=str(tmp_path / "half"), resume_from_checkpoint=True))
    assert_same_run(again, whole, "the 8-bit optimiser's state is not restored")


def test_the_8_bit_optimiser_leaves_frozen_weights_out():
    ppo = make(optimizer="adamw_8bit", lora_rank=2)
    held = {id(p) for group in ppo.optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in (*ppo.policy.parameters(), *ppo.critic.parameters()) if p.requires_grad}
    assert held == trained, "the optimiser does not hold exactly the weights that are trained"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match="`optimizer`='adamw_8bit' needs a package: pip install bitsandbytes"):
        make(optimizer="adamw_8bit")


def test_merged_models_are_what_transformers_loads(tmp_path):
    ppo = train_a_little(make(tiny_policy(), lora_rank=2))
    ppo.save(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert "adapter_config.json" not in files, "adapters were saved in place of the model"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == tiny_policy().num_parameters(), (
        "a model with merged adapters is saved with more or fewer weights than it had without"
    )
