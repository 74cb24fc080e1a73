"""The estimate of a run's memory, against sums made by hand, stored measurements and the presets' promises."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ppo_lib.commands import memory_estimate, plan, timing
from ppo_lib.commands.memory_estimate import MODELS, ShapesOnly, estimate_memory, memory_by_moment
from ppo_lib.config import PRESETS, PPOConfigV1, ReplayConfig
from ppo_lib.lab.stored import __file__ as stored
from ppo_lib.ppo_v1 import PPOTrainer
from tests.unit.tiny import byte_tokenizer, tiny_policy

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


# what a plan is made from


def test_a_model_is_here_where_nothing_is_downloaded_for_it(tmp_path, monkeypatch):
    asked = {"somebody/whole": "model.safetensors", "somebody/in-parts": "model.safetensors.index.json"}

    def cached(name, file):
        return "/somewhere" if asked.get(name) == file else None

    monkeypatch.setattr(timing, "try_to_load_from_cache", cached)
    monkeypatch.setattr(timing.smollm2, "converted_place", lambda: tmp_path / "converted")
    found = {name: timing.is_here(name) for name in ("reviews", str(tmp_path), *asked, "somebody/else", "smollm2")}
    assert found == {
        "reviews": True, str(tmp_path): True, "somebody/whole": True, "somebody/in-parts": True,
        "somebody/else": False, "smollm2": False,
    }, f"what is on this machine is taken to be: {found}"  # fmt: skip
    asked[timing.smollm2.HUB_ID] = "model.safetensors"
    assert timing.is_here("smollm2"), "SmolLM2's weights are in the hub's cache, and said to be elsewhere"
    del asked[timing.smollm2.HUB_ID]
    (tmp_path / "converted").mkdir()
    assert timing.is_here("smollm2"), "SmolLM2 was converted before, and is said to be elsewhere"


def length(prompts, responses):
    return [float(len(response)) for response in responses]


@pytest.mark.parametrize(
    ("config", "reward", "heldout", "said"),
    [
        (PPOConfigV1(report_to=["tensorboard"], output_dir="out", total_episodes=320), None, ["a"],
         "about 41 s: 10 updates of 2 s and 3 evaluations of 7 s; an estimate"),
        (ReplayConfig(total_episodes=320), length, None, "about 40 s: 20 updates of 2 s; an estimate"),
        (PPOConfigV1(model="somebody/else", total_episodes=320), None, None,
         "about 20 s: 10 updates of 2 s; an estimate from one measured update on this machine (cpu), without saving, "
         "and without a reward, which is still to be named"),
        (PPOConfigV1(model="somebody/else", total_episodes=320, reward_model="judge"), None, None, "without saving"),
        (PPOConfigV1(model="somebody/else", total_episodes=320), length, None, "without saving"),
    ],
)  # fmt: skip
def test_what_is_timed_is_the_run_that_was_asked_for(config, reward, heldout, said, monkeypatch):
    made, named = [], []

    def stand_in(stage):
        def make(model, judge, config):
            made.append((stage, model, judge, config))
            return SimpleNamespace(prepare=lambda data: made.append(data.prompts), device=torch.device("cpu"))

        return make

    monkeypatch.setattr(timing, "PPOTrainer", stand_in("v1"))
    monkeypatch.setattr(timing, "PPOTrainerWithReplay", stand_in("v2"))
    monkeypatch.setattr(timing, "reward_of", lambda config, words: named.append(words) or "named in the settings")
    monkeypatch.setattr(timing, "prompts_of", lambda config: (["a", "b"], heldout))
    monkeypatch.setattr(timing, "_update", lambda trainer: 2.0)
    monkeypatch.setattr(timing, "_evaluation", lambda trainer, prompts: 7.0)
    told = timing._measured(config, reward)
    (stage, model, judge, used), prompts = made
    assert told.startswith(said) if said.startswith("about") else told.endswith(said), f"it is told otherwise: {told}"
    assert stage == ("v2" if isinstance(config, ReplayConfig) else "v1"), "another stage is timed"
    assert (model, prompts) == (None, ["a", "b"]), "not the settings' model or prompts are timed"
    assert used.output_dir is None and not used.report_to, "what is timed writes or logs"
    if reward:
        assert judge is length and not named, "another reward is timed than the one that was given"
    elif config.reward_model or config.model == "reviews":
        assert judge == "named in the settings" and named == [None], "not the reward of the settings is timed"
    else:
        assert judge(["p", "q"], ["r", "s"]) == [0.0, 0.0], "without a reward responses are not scored 0"


def test_an_update_that_took_long_is_not_made_twice(monkeypatch):
    times = iter([60.0])
    stand_in = SimpleNamespace(prepare=lambda data: None, device=torch.device("cpu"))
    monkeypatch.setattr(timing, "PPOTrainer", lambda *_, config: stand_in)
    monkeypatch.setattr(timing, "prompts_of", lambda config: (["a"], None))
    monkeypatch.setattr(timing, "_update", lambda trainer: next(times))
    assert "1 updates of 60 s" in timing._measured(PPOConfigV1(total_episodes=32), length), (
        "a long update is made again"
    )
    times = iter([59.0, 40.0])
    assert "1 updates of 40 s" in timing._measured(PPOConfigV1(total_episodes=32), length), "a warm-up is the estimate"


def test_a_plan_counts_the_longest_prompt_of_all(tmp_path, monkeypatch):
    model = tiny_policy()
    model.save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("ab\nabcd\n")
    (tmp_path / "held.txt").write_text("abcdefghi\nx\n")
    sizes = dict(model=str(tmp_path), train_prompts=str(tmp_path / "prompts.txt"), max_new_tokens=4)
    tokens = len(tokenizer("abcd")["input_ids"]), len(tokenizer("abcdefghi")["input_ids"])
    config, prompts, heldout, longest = plan.inputs_of(PPOConfigV1(**sizes))
    assert (config.hidden_size, prompts, heldout) == (model.config.hidden_size, ["ab", "abcd"], None)
    assert longest == tokens[0], f"the longest prompt has {tokens[0]} tokens, and the plan says {longest}"
    both = PPOConfigV1(**sizes, eval_prompts=str(tmp_path / "held.txt"))
    assert plan.inputs_of(both)[3] == tokens[1], "the longest of all prompts may be a held-out one"
    nothing = dict.fromkeys(plan.PARTS, 0)
    monkeypatch.setattr(plan, "memory_by_moment", lambda config, model, prompt: {"now": nothing | {"weights": prompt}})
    text, peak = plan.plan(both)
    assert f"2 to train on, 2 held out; the longest has {tokens[1]} tokens" in text, "the plan tells of other prompts"
    assert peak == tokens[1], "memory is reckoned for prompts of another length"
    monkeypatch.setattr(plan.worlds, "load", lambda name: pytest.fail("a plan converts or downloads a model"))
    text, peak = plan.plan(PPOConfigV1(model="smollm2"))
    assert peak == plan.ASSUMED_PROMPT == 64, "memory is reckoned for other prompts than the plan says"
    assert "the world's to train on, the world's held out; the longest is taken to have 64 tokens" in text, (
        "the plan of a world that is not loaded says what it cannot know"
    )
    assert re.search(r"^  policy +134,515,008 weights, float32; 134,515,008 are trained$", text, re.M), (
        "the policy is counted otherwise than SmolLM2-135M's published size, or its type is told otherwise"
    )


def test_the_memory_of_a_plan_is_a_table():
    rows = {part: 10**9 * (number + 1) for number, part in enumerate(plan.PARTS)}
    table = plan.memory_table({"sampling": rows, "forward": rows | {"logits": 0}})
    head, *lines = table
    assert head.split() == ["memory", "sampling", "forward"], f"the head of the table is {head!r}"
    titles = ["weights of policy and critic", "reference", "gradients", "optimiser", "activations", "logits",
              "key-value cache", "together"]  # fmt: skip
    for number, (title, line) in enumerate(zip(titles, lines, strict=False)):
        both = [f"{number + 1}.00 GB"] * 2 if title != "logits" else ["6.00 GB", "0.0 MB"]
        expected = both if title != "together" else ["28.00 GB", "22.00 GB"]
        assert line.startswith(f"  {title} ") and re.findall(r"[\d.]+ [GM]B", line) == expected, (
            f"the table says {line!r}"
        )
        assert len(line) == len(head), "the columns do not stand below their heads"
    assert table[-1].startswith("peak: 28.00 GB (sampling), without a reward model"), "another moment is the peak"


def test_sizes_of_known_models_are_those_that_were_published():
    """Weights as the models' cards give them, and the bytes that a token takes in the key-value cache."""
    known = {
        "SmolLM2-135M": (134_515_008, 2 * 30 * 3 * 64), "Qwen2.5-0.5B": (494_032_768, 2 * 24 * 2 * 64),
        "Llama-3.2-1B": (1_235_814_400, 2 * 16 * 8 * 64), "Llama-3.2-3B": (3_212_749_824, 2 * 28 * 8 * 128),
    }  # fmt: skip
    assert known.keys() == memory_estimate.MODELS.keys(), "a model is known without its published size"
    for name, (weights, cache) in known.items():
        model = memory_estimate.MODELS[name]
        with torch.device("meta"):
            counted = AutoModelForCausalLM.from_config(model).num_parameters()
        assert counted == weights, f"{name} has {counted:,} weights, and {weights:,} are published"
        size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
        held = 2 * model.num_hidden_layers * model.num_key_value_heads * size
        assert held == cache, f"{name} keeps {held} numbers a token, and {cache} follow from its published sizes"
