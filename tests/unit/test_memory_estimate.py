"""The estimate of a run's memory, against sums made by hand, stored measurements and the presets' promises."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from ppo_lib.commands import memory_estimate, plan, timing
from ppo_lib.commands.memory_estimate import MODELS, ShapesOnly, estimate_memory, memory_by_moment
from ppo_lib.config import PRESETS, PPOConfigV1, ReplayConfig
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
    assert parts["weights"] == 4 * both, "weights are counted twice, in other bytes than 4, or without the value head"
    assert parts["gradients"] == 4 * both, "a trained weight has no gradient of 4 bytes, or a frozen one has"
    assert parts["optimizer"] == 8 * both, "adamw is counted with something else than two moments of 4 bytes a weight"
    assert parts["reference"] == 4 * weights(2), "the reference is not counted as another whole policy"


def test_the_cache_and_the_logits_are_those_of_the_longest_text():
    words = 20_000  # so many that the peak is where there are most logits
    talkative = LlamaConfig(vocab_size=words, num_hidden_layers=2, tie_word_embeddings=True, **SIZES)
    few, all_of_them = (
        memory_by_moment(PPOConfigV1(**SHORT, response_logits_only=only), talkative, 200)["forward"]["logits"]
        for only in (True, False)
    )
    assert 4 * 10 * words * 4 <= few <= 8 * 4 * 11 * words * 4, "logits of responses alone"
    assert few < 0.5 * all_of_them, (
        "`response_logits_only` changes little: logits of the prompts are counted all the same"
    )
    long = memory_by_moment(PPOConfigV1(**SHORT | {"max_new_tokens": 500}), TINY, 3)["sampling"]
    assert long["kv_cache"] >= 4 * (  # bytes
        2 * 4 * 2 * 502 * 16 * 2  # keys and values, responses, heads, width, layers
    ), "the key-value cache is counted for fewer tokens than the longest text has"


@pytest.mark.parametrize(("fit", "together"), [(1, 4), (7, 7), (12, 12), (99, 12)])
def test_as_many_responses_are_counted_as_are_computed_at_a_time(fit, together, monkeypatch):
    """At least those of `batch_size` prompts, at most those of a rollout: here 4 and 12."""
    seen = []
    monkeypatch.setattr(memory_estimate, "forward_size", lambda config, model, length: seen.append(length) or fit)
    monkeypatch.setattr(ShapesOnly, "trace", lambda self, prompt, together: seen.append(together) or {})
    memory_by_moment(PPOConfigV1(**SHORT, gradient_accumulation_steps=3), TINY, 6)
    assert seen == [16, together], f"{seen[1]} responses of {seen[0]} tokens are taken to be computed at a time"


def test_a_step_takes_the_room_of_one_of_its_micro_batches():
    """However many there are, only `minibatch_size` responses have gradients at a time."""
    two, eight = (
        memory_by_moment(PPOConfigV1(**SHORT | {"total_episodes": 320}, gradient_accumulation_steps=steps), TINY, 60)
        for steps in (2, 8)
    )
    for moment in ("forward", "backward"):
        assert two[moment] == eight[moment], f"{moment}: a whole step is taken to be in memory at once"


def test_adapters_leave_no_reference_and_little_to_train():
    parts = estimate_memory(PPOConfigV1(**SHORT, lora_rank=4), TINY, 6)
    full = estimate_memory(PPOConfigV1(**SHORT), TINY, 6)
    assert parts["reference"] == 0, "a run with adapters is counted a reference of its own"
    assert parts["optimizer"] < 0.3 * full["optimizer"], "the optimiser's moments are counted for frozen weights too"


def test_recomputed_activations_need_less():
    plain, recomputed = (
        memory_by_moment(PPOConfigV1(**SHORT, activation_checkpointing=on), TINY, 60)["forward"]["activations"]
        for on in (False, True)
    )
    assert recomputed < 0.5 * plain, "`activation_checkpointing` changes little in the activations that are counted"


def test_a_few_layers_tell_what_many_take(monkeypatch):
    deep = LlamaConfig(vocab_size=1000, num_hidden_layers=9, tie_word_embeddings=True, **SIZES)
    few = estimate_memory(PPOConfigV1(**SHORT), deep, 60)
    monkeypatch.setattr("ppo_lib.commands.memory_estimate.FEW", 9)
    assert sum(few.values()) == pytest.approx(
        sum(estimate_memory(PPOConfigV1(**SHORT), deep, 60).values()), rel=0.05
    ), "what two layers take is carried over to nine with a wrong number of layers"


def test_stored_measurements_agree_within_a_quarter():
    with open(stored.replace("__init__.py", "memory_estimate/measured.json")) as file:
        rows = json.load(file)["rows"]
    assert {"v0", "response_logits_only"} <= {row["setting"] for row in rows}, (
        "the stored measurements lack a setting that the estimate is held against"
    )
    for row in rows:
        assert 0.75 <= row["estimate"] / row["update_peak"] <= 1.25, (
            f"the estimate of {row['setting']} is more than a quarter off what was measured"
        )


@pytest.mark.parametrize("preset", PROMISES)
def test_a_preset_keeps_its_promise(preset):
    """The estimate written in its file is the function's, and leaves 0.5 GB of the GPU for driver and libraries."""
    text = (PRESETS / f"{preset}.yaml").read_text()
    promise = re.search(r"# (\S+) with prompts and responses of (\d+) tokens: ([\d.]+) GB", text)
    model, tokens, written = promise.groups()
    config = PPOConfigV1.preset(preset, max_new_tokens=int(tokens))
    total = sum(estimate_memory(config, MODELS[model], int(tokens)).values()) / 1e9
    assert total == pytest.approx(float(written), abs=0.06), "the memory written in the preset's file is out of date"
    assert total + 0.5 <= PROMISES[preset], "the preset needs more than its GPU has beside driver and libraries"


@pytest.mark.parametrize("preset", PROMISES)
def test_a_preset_trains(preset, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    config = PPOConfigV1.preset(preset, num_ppo_epochs=1)
    config = PPOConfigV1.preset(preset, num_ppo_epochs=1, max_new_tokens=8, total_episodes=2 * config.rollout_size)
    trainer = PPOTrainer(config=config)
    before = [p.detach().clone() for p in trainer.policy.parameters() if p.requires_grad]
    assert len(trainer.train(["The film was", "I think"])) == 2, "a run with the preset does not make its two updates"
    after = [p for p in trainer.policy.parameters() if p.requires_grad]
    assert any((a != b).any() for a, b in zip(after, before, strict=True)), "a run with the preset changes no weight"


def test_presets_have_the_sizes_that_were_asked_for():
    sizes = {p: PPOConfigV1.preset(p) for p in PROMISES}
    assert {
        p: (c.batch_size, c.gradient_accumulation_steps, c.group_size) for p, c in sizes.items()
    } == {"8gb": (1, 8, 1), "16gb": (4, 1, 2), "32gb": (8, 1, 4)}, (
        "a preset has another rollout or another micro-batch than was asked for"
    )  # fmt: skip


# room on the disk, and time


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MB"), (99_949_999, "99.9 MB"), (10**8, "0.10 GB"), (2**30, "1.07 GB")]
)
def test_bytes_are_told_in_thousands(size, text):
    assert plan.gb(size) == text, "bytes are told in powers of two, in another unit or with other digits"


def of_weights(count: int, adapters: int = 0) -> nn.Module:
    network = nn.Module()
    network.weight = nn.Parameter(torch.empty(count, device="meta"))
    if adapters:
        network.lora_A = nn.Parameter(torch.empty(adapters, device="meta"))
    return network


@pytest.mark.parametrize(
    ("settings", "evaluates", "checkpoints", "room"),
    [
        ({}, False, "1 + 4; 2 are kept, 0.30 GB each", 0.3 * 3 + 0.8 * 2),
        ({}, True, "1 + 4, and one at each new best; 3 are kept, 0.30 GB each", 0.3 * 4 + 0.8 * 3),
        ({"save_every": 4}, False, "1 + 3; 2 are kept, 0.30 GB each", 0.3 * 3 + 0.8 * 2),
        ({"save_every": 99, "keep_last": 5}, True, "1 + 1, and one at each new best; 6 are kept, 0.30 GB each",
         0.3 * 7 + 0.8 * 3),
    ],
)  # fmt: skip
def test_the_room_on_the_disk_is_that_while_one_more_is_written(settings, evaluates, checkpoints, room):
    """Ten updates. A checkpoint is what is trained with two moments; models are saved whole, without adapters."""
    critic = SimpleNamespace(trunk=of_weights(90_000_000, 5), value_head=of_weights(10_000_000))
    shapes = SimpleNamespace(
        gradient_bytes=100_000_000, fixed={"optimizer": 200_000_000}, policy=of_weights(100_000_000, 7), critic=critic
    )
    config = PPOConfigV1(output_dir="run", total_episodes=320, **{"save_every": 3} | settings)
    rows = plan.disk(config, shapes, evaluates)
    first, more = re.match(r"1 \+ (\d+)(.*)", checkpoints).groups()
    assert rows["checkpoints"] == f"{1 + int(first)}{more}", "checkpoints are counted otherwise than they are written"
    assert rows["disk"].startswith(f"{room:.2f} GB at most"), "the room is not that of all kept ones and one aside"
    replay = ReplayConfig(output_dir="run", total_episodes=320, save_every=3)
    one = 300_000_000 + plan.buffer_bytes(replay)
    told = plan.disk(replay, shapes, evaluates)["checkpoints"]
    assert f"{plan.gb(one)} each" in told, "the buffer is left out of the checkpoints"
    assert plan.disk(PPOConfigV1(), shapes, evaluates) == {}, "without an `output_dir` something is written"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("missing", "said"), [(0, "measured"), (1, "not measured: 2.5 GB are needed and 2.5 GB are free")]
)
def test_time_is_measured_where_the_peak_fits_to_the_byte(device, missing, said, monkeypatch):
    free = 2_500_000_000
    here = {"cpu": free, "cuda": 10**15} if device == "cpu" else {"cpu": 10**15, "cuda": free}
    monkeypatch.setattr(timing, "pick_device", lambda name: torch.device(device))
    monkeypatch.setattr(timing.psutil, "virtual_memory", lambda: SimpleNamespace(available=here["cpu"], total=10**15))
    monkeypatch.setattr(timing.torch.cuda, "mem_get_info", lambda device: (here["cuda"], 10**15))
    monkeypatch.setattr(timing, "_measured", lambda config, reward: "measured")
    assert timing.estimate_time(PPOConfigV1(), None, free + missing).startswith(said), (
        "the peak is held against the other device's free memory, or the limit is off by one byte"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.94, "9.9 s"), (10.4, "10 s"), (89.9, "90 s"), (90, "1.5 min"), (5399, "90.0 min"), (5400, "1.5 h")],
)
def test_a_time_is_told_in_the_unit_that_reads_best(seconds, text):
    assert timing.spoken(seconds) == text, "a time is told in another unit, or with other digits"


@pytest.mark.parametrize(
    ("config", "factor"),
    [(PPOConfigV1(batch_size=8, minibatch_size=8), 1), (ReplayConfig(batch_size=8, replay_sample_size=24), 4),
     (ReplayConfig(batch_size=8, minibatch_size=8, replay_sample_size=24, use_replay_buffer=False), 1)],
)  # fmt: skip
def test_the_time_of_an_update_is_that_of_one_that_replays_all_it_may(config, factor, monkeypatch):
    """Ten seconds to sample, score and estimate; two to train on the fresh responses alone."""
    clock = iter([100.0, 110.0, 112.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    nothing, rollout = (lambda *_: None), SimpleNamespace(advantages=torch.zeros(1))
    trainer = SimpleNamespace(
        config=config, batches=iter([["a"]]), collect=lambda prompts: rollout, score=nothing, estimate=nothing,
        update=nothing,
    )  # fmt: skip
    assert timing._update(trainer) == 10 + 2 * factor, "the time of training does not grow with what is replayed"


def test_the_time_of_an_evaluation_is_that_of_all_its_prompts(monkeypatch):
    clock, seen = iter([100.0, 103.0]), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(timing, "evaluate", lambda trainer, prompts, reward: seen.extend(prompts))
    trainer = SimpleNamespace(forward_batch=SimpleNamespace(size=4), reward=None)
    took = timing._evaluation(trainer, list("abcdefghij"))
    assert seen == list("abcd"), "an evaluation is timed on more or fewer prompts than are answered at a time"
    assert took == 3.0 * 10 / 4, "the time of a part of the prompts is not scaled to all of them"
