"""The estimate of a run's memory, against sums made by hand, stored measurements and the presets' promises."""

import json
import re

import pytest
from transformers import LlamaConfig

from ppo_lib.commands.memory_estimate import MODELS, estimate_memory, memory_by_moment
from ppo_lib.config import PRESETS, PPOConfigV1
from ppo_lib.lab.stored import __file__ as stored
from ppo_lib.ppo_v1 import PPOTrainer

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY = LlamaConfig(vocab_size=1000, num_hidden_layers=2, tie_word_embeddings=True, **SIZES)
SHORT = {"batch_size": 4, "minibatch_size": 4, "max_new_tokens": 10}
PROMISES = {preset: int(preset.removesuffix("gb")) for preset in ("8gb", "16gb", "32gb")}


def weights(layers: int) -> int:
    """Of `TINY` with so many layers."""
    attention, mlp, norms = 64 * (64 + 32 + 32 + 64), 3 * 64 * 128, 2 * 64
    return 1000 * 64 + layers * (attention + mlp + norms) + 64


def test_weights_gradients_and_optimiser_are_counted_exactly():
    parts = memory_by_moment(PPOConfigV1(**SHORT), TINY, 6)["optimizer step"]
    both = 2 * weights(2) + 65  # and the critic's value head
    assert parts["weights"] == parts["gradients"] == 4 * both
    assert parts["optimizer"] == 8 * both and parts["reference"] == 4 * weights(2)


def test_the_cache_and_the_logits_are_those_of_the_longest_text():
    words = 20_000  # so many that the peak is where there are most logits
    talkative = LlamaConfig(vocab_size=words, num_hidden_layers=2, tie_word_embeddings=True, **SIZES)
    few, all_of_them = (
        memory_by_moment(PPOConfigV1(**SHORT, response_logits_only=only), talkative, 200)["forward"]["logits"]
        for only in (True, False)
    )
    assert 4 * 10 * words * 4 <= few <= 8 * 4 * 11 * words * 4, "logits of responses alone"
    assert few < 0.5 * all_of_them
    long = memory_by_moment(PPOConfigV1(**SHORT | {"max_new_tokens": 500}), TINY, 3)["sampling"]
    assert long["kv_cache"] >= 4 * (2 * 4 * 2 * 502 * 16 * 2)  # bytes, keys and values, responses, heads, width, layers


def test_adapters_leave_no_reference_and_little_to_train():
    parts = estimate_memory(PPOConfigV1(**SHORT, lora_rank=4), TINY, 6)
    full = estimate_memory(PPOConfigV1(**SHORT), TINY, 6)
    assert parts["reference"] == 0 and parts["optimizer"] < 0.3 * full["optimizer"]


def test_recomputed_activations_need_less():
    plain, recomputed = (
        memory_by_moment(PPOConfigV1(**SHORT, activation_checkpointing=on), TINY, 60)["forward"]["activations"]
        for on in (False, True)
    )
    assert recomputed < 0.5 * plain


def test_a_few_layers_tell_what_many_take(monkeypatch):
    deep = LlamaConfig(vocab_size=1000, num_hidden_layers=9, tie_word_embeddings=True, **SIZES)
    few = estimate_memory(PPOConfigV1(**SHORT), deep, 60)
    monkeypatch.setattr("ppo_lib.commands.memory_estimate.FEW", 9)
    assert sum(few.values()) == pytest.approx(sum(estimate_memory(PPOConfigV1(**SHORT), deep, 60).values()), rel=0.05)


def test_stored_measurements_agree_within_a_quarter():
    with open(stored.replace("__init__.py", "memory_estimate/measured.json")) as file:
        rows = json.load(file)["rows"]
    assert {"v0", "response_logits_only"} <= {row["setting"] for row in rows}
    for row in rows:
        assert 0.75 <= row["estimate"] / row["update_peak"] <= 1.25, row["setting"]


@pytest.mark.parametrize("preset", PROMISES)
def test_a_preset_keeps_its_promise(preset):
    """The estimate written in its file is the function's, and leaves 0.5 GB of the GPU for driver and libraries."""
    text = (PRESETS / f"{preset}.yaml").read_text()
    promise = re.search(r"# (\S+) with prompts and responses of (\d+) tokens: ([\d.]+) GB", text)
    model, tokens, written = promise.groups()
    config = PPOConfigV1.preset(preset, max_new_tokens=int(tokens))
    total = sum(estimate_memory(config, MODELS[model], int(tokens)).values()) / 1e9
    assert total == pytest.approx(float(written), abs=0.06)
    assert total + 0.5 <= PROMISES[preset]


@pytest.mark.parametrize("preset", PROMISES)
def test_a_preset_trains(preset, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    config = PPOConfigV1.preset(preset, num_ppo_epochs=1)
    config = PPOConfigV1.preset(preset, num_ppo_epochs=1, max_new_tokens=8, total_episodes=2 * config.rollout_size)
    trainer = PPOTrainer(config=config)
    before = [p.detach().clone() for p in trainer.policy.parameters() if p.requires_grad]
    assert len(trainer.train(["The film was", "I think"])) == 2
    after = [p for p in trainer.policy.parameters() if p.requires_grad]
    assert any((a != b).any() for a, b in zip(after, before, strict=True))


def test_presets_have_the_sizes_that_were_asked_for():
    sizes = {p: PPOConfigV1.preset(p) for p in PROMISES}
    assert {
        p: (c.batch_size, c.gradient_accumulation_steps, c.group_size) for p, c in sizes.items()
    } == {"8gb": (1, 8, 1), "16gb": (4, 1, 2), "32gb": (8, 1, 4)}  # fmt: skip
