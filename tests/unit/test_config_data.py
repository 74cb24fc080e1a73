"""Settings and prompts: what is accepted, and what every bad one is told."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
from datasets import Dataset
from torch import Generator

from ppo_lib.commands.cli import one_line
from ppo_lib.config import (
    REPLAY_SETTINGS,
    PPOConfig,
    PPOConfigV1,
    ReplayConfig,
    described_settings,
    preset_settings,
    write_whole,
)
from ppo_lib.data import PPODataset, PromptBatches, as_dataset
from toc import ROOT

# Each kind: its nearest legal values, and of the illegal ones the nearest, with what is said of them.
JUST_BELOW_0, JUST_ABOVE_1 = math.nextafter(0, -1), math.nextafter(1, 2)
NO_NUMBER = {math.nan: "a finite number", math.inf: "a finite number", True: "a number, not true or false",
             "many": "a valid number"}  # fmt: skip
NO_COUNT = {1.5: "a valid integer", True: "a number, not true or false", "many": "a valid integer"}
KINDS = {
    "1, 2, …": ([1], {0: "greater than 0", -1: "greater than 0"} | NO_COUNT),
    "0, 1, …": ([0], {-1: "greater than or equal to 0"} | NO_COUNT),
    "above 0": ([math.nextafter(0, 1), 1e300], {0: "greater than 0", JUST_BELOW_0: "greater than 0"} | NO_NUMBER),
    "0 and above": ([0, 1e300], {JUST_BELOW_0: "greater than or equal to 0"} | NO_NUMBER),
    "0 to 1": ([0, 1], NO_NUMBER | {JUST_BELOW_0: "greater than or equal", JUST_ABOVE_1: "less than or equal to 1"}),
    "a switch": ([True, False], {"perhaps": "a valid boolean", 2: "a valid boolean"}),
    "a text": (["x"], {1.0: "a valid string", False: "a valid string"}),
    "texts by name": ([{}, {"gamma": 0.5}], {"gamma": "a valid dictionary"}),
    "trackers": ([[], ["console"]], {"console": "a valid list"}),
    "no, bf16, fp16": (["no", "bf16", "fp16", False], dict.fromkeys(["fp8", True], "'no', 'bf16' or 'fp16'")),
    "float32, bfloat16": (["float32", "bfloat16"], {"float16": "'float32' or 'bfloat16'"}),
    "adamw, adamw_8bit": (["adamw", "adamw_8bit"], {"sgd": "'adamw' or 'adamw_8bit'"}),
    "offline, online": (["offline", "online"], {"disabled": "'offline' or 'online'"}),
    "clip, regression": (["clip", "regression"], {"grpo": "'clip' or 'regression'"}),
    "decoupled, coupled, none": (["decoupled", "coupled", "none"], {"off": "'decoupled', 'coupled' or 'none'"}),
    "token, sequence": (["token", "sequence"], {"response": "'token' or 'sequence'"}),
}
SETTINGS = {
    "1, 2, …": "total_episodes batch_size group_size max_new_tokens num_ppo_epochs minibatch_size max_skipped_steps "
    "gradient_accumulation_steps kl_horizon logits_chunk? lora_rank? eval_every early_stopping_patience? save_every "
    "keep_last replay_buffer_size max_replay_reuse staleness_threshold",
    "0, 1, …": "seed warmup_updates critic_warmup eval_samples replay_sample_size replay_spacing",
    "above 0": "temperature learning_rate max_grad_norm cliprange cliprange_value kl_stop? kl_target? lora_alpha "
    "replay_recency? importance_cap trace_cap second_moment_limit? max_replay_kl? regression_scale "
    "cliprange_high? behaviour_temperature? behaviour_cooling",
    "0 and above": "kl_coef vf_coef entropy_coef early_stopping_min_delta replay_priority regression_floor",
    "0 to 1": "gamma lam replay_anneal replay_priority_correction replay_keep_best min_ess",
    "a switch": "exact_check whiten_advantages bootstrap_cut activation_checkpointing share_trunk response_logits_only "
    "use_replay_buffer replay_gains_only",
    "a text": "model output_dir? device train_prompts? eval_prompts? reward_model? lr_scheduler project",
    "texts by name": "lr_scheduler_kwargs",
    "trackers": "report_to",
    "no, bf16, fp16": "mixed_precision",
    "float32, bfloat16": "frozen_dtype",
    "adamw, adamw_8bit": "optimizer",
    "offline, online": "wandb_mode",
    "clip, regression": "policy_objective",
    "decoupled, coupled, none": "correction",
    "token, sequence": "importance_level",
}  # a question mark: or null
KIND_OF = {name: kind for kind, names in SETTINGS.items() for name in names.split()}
# With these no single value contradicts another setting.
ROOMY = dict(batch_size=1, minibatch_size=1, total_episodes=1, lora_rank=1, use_replay_buffer=False)


def taken(stage: type, settings: dict, words: str):
    """The settings of a stage from legal ones."""
    try:
        return stage(**settings)
    except pydantic.ValidationError as error:
        raise AssertionError(f"{words}, and is refused: {one_line(error)}") from None


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ReplayConfig)])
def test_a_setting_takes_what_is_just_legal_and_refuses_what_is_just_not(name):
    kind = KIND_OF.get(name) or KIND_OF.get(f"{name}?")
    assert kind, f"say in SETTINGS which values `{name}` may have"
    legal, illegal = KINDS[kind]
    optional = f"{name}?" in KIND_OF
    for value in [*legal, *([None] if optional else [])]:
        config = taken(ReplayConfig, ROOMY | {name: value}, f"`{name}`={value!r} is one of its values ({kind})")
        expected = "no" if value is False and kind != "a switch" else value
        assert getattr(config, name) == expected, f"`{name}`={value!r} is taken for {getattr(config, name)!r}"
    for value, words in [*illegal.items(), *([] if optional else [(None, "")])]:
        with pytest.raises(pydantic.ValidationError) as caught:
            ReplayConfig(**ROOMY | {name: value})
            pytest.fail(f"`{name}`={value!r} is accepted, and its values are: {kind}")
        said = one_line(caught.value)
        assert said.startswith(f"`{name}`: Input should be {words}"), f"of `{name}`={value!r} it is said: {said}"


# The last of the settings that are legal together, and what is said of one step more.
RULES = [
    (PPOConfig, {"minibatch_size": 32}, {"minibatch_size": 33},
     "`minibatch_size`=33 is larger than the rollout .* 32 responses: lower"),
    (PPOConfig, {"group_size": 2, "minibatch_size": 64}, {"minibatch_size": 65},
     r"larger than the rollout of batch_size \* group_size = 64 responses: lower"),
    (PPOConfig, {"total_episodes": 32}, {"total_episodes": 31},
     "`total_episodes`=31 is less than one rollout of 32 responses: raise"),
    (PPOConfig, {"group_size": 3, "total_episodes": 96}, {"total_episodes": 95}, "one rollout of 96 responses: raise"),
    (PPOConfigV1, {"gradient_accumulation_steps": 3, "batch_size": 4, "minibatch_size": 4}, {"minibatch_size": 5},
     "`minibatch_size`=5 is larger than the rollout .* 4 responses: lower"),
    (PPOConfigV1, {"gradient_accumulation_steps": 3, "total_episodes": 96}, {"total_episodes": 95},
     "one rollout of 96 responses: raise"),
    (PPOConfigV1, {"frozen_dtype": "bfloat16", "lora_rank": 1}, {"lora_rank": None},
     "`frozen_dtype`='bfloat16' needs frozen weights: set `lora_rank`"),
    (PPOConfigV1, {"report_to": ["wandb"], "output_dir": "x"}, {"output_dir": None},
     "`report_to` names wandb, which writes to `output_dir`: set it"),
    (PPOConfigV1, {"report_to": ["console"]}, {"report_to": ["tensorboard"]},
     "`report_to` names tensorboard, which writes to `output_dir`: set it"),
    (ReplayConfig, {"minibatch_size": 32}, {"minibatch_size": 33},
     "`minibatch_size`=33 is larger than an update of 16 fresh and 16 replayed responses: lower"),
    (ReplayConfig, {"gradient_accumulation_steps": 2, "batch_size": 4, "replay_sample_size": 2, "minibatch_size": 5},
     {"minibatch_size": 6}, "8 fresh and 2 replayed responses, divided by gradient_accumulation_steps = 2: lower"),
    (ReplayConfig, {"use_replay_buffer": False, "minibatch_size": 16}, {"minibatch_size": 17},
     "`minibatch_size`=17 is larger than the rollout .* 16 responses: lower"),
    (ReplayConfig, {"replay_sample_size": 6, "minibatch_size": 16, "replay_buffer_size": 16},
     {"replay_buffer_size": 15}, "`replay_buffer_size`=15 has no room for one rollout of 16 responses: raise"),
    (ReplayConfig, {"replay_sample_size": 1000}, {"replay_sample_size": 1001},
     "`replay_sample_size`=1001 is more than the buffer can hold: .* `replay_buffer_size`=1000"),
    (ReplayConfig, {"replay_keep_best": 0.001}, {"replay_keep_best": 0.0009},
     "`replay_keep_best`=0.0009 of `replay_buffer_size`=1000 is less than one response: raise"),
    (ReplayConfig, {"replay_keep_best": math.nextafter(1, 0)}, {"replay_keep_best": 1.0},
     "`replay_keep_best`=1 keeps everything, so nothing would expire by `staleness_threshold`: lower"),
    (ReplayConfig, {"replay_spacing": 16}, {"replay_spacing": 17},
     "`replay_spacing`=17 a response expires before it may be replayed: lower it, or raise `staleness_threshold`=16"),
    (ReplayConfig, {"importance_cap": 1.0}, {"importance_cap": math.nextafter(1, 0)},
     "`importance_cap`=.* would take weight from fresh responses too, whose ratio is 1: raise it to 1"),
    (ReplayConfig, {"behaviour_temperature": math.nextafter(1, 2)}, {"behaviour_temperature": 1.0},
     "`behaviour_temperature`=1.0 is not above `temperature`=1.0: raise it"),
    (ReplayConfig, {"behaviour_temperature": 1.4, "correction": "decoupled"}, {"correction": "none"},
     "`correction`='none' takes the hot policy of `behaviour_temperature` for the cool one: set 'decoupled'"),
    (ReplayConfig, {"behaviour_temperature": None, "correction": "coupled"}, {"behaviour_temperature": 1.4},
     "`correction`='coupled' takes the hot policy of `behaviour_temperature` for the cool one: set 'decoupled'"),
    (ReplayConfig, {"importance_cap": 0.5, "correction": "coupled"}, {"correction": "decoupled"},
     "`importance_cap`=0.5 would take weight"),
    (ReplayConfig, {"use_replay_buffer": False, "replay_buffer_size": 1, "replay_keep_best": 1.0, "minibatch_size": 8},
     {"use_replay_buffer": True}, "`replay_buffer_size`=1 has no room"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "legal", "beyond", "words"), RULES, ids=[next(iter(rule[2])) for rule in RULES])
def test_settings_that_are_just_legal_together_and_one_step_more(stage, legal, beyond, words):
    config = taken(stage, legal, f"{legal} is just legal")
    assert vars(config).items() >= legal.items(), f"{legal} are not taken as they are"
    with pytest.raises(pydantic.ValidationError) as caught:
        stage(**legal | beyond)
        pytest.fail(f"{beyond} beside {legal} is accepted")
    assert re.search(words, one_line(caught.value)), f"of {beyond} beside {legal} it is said: {one_line(caught.value)}"


@pytest.mark.parametrize(
    ("settings", "name", "hint"),
    [
        (PPOConfig, "learnin_rate", "did you mean `learning_rate`"),
        (PPOConfig, "ppo_epochs", "did you mean `num_ppo_epochs`"),
        (PPOConfig, "value_coefficient", "did you mean `vf_coef`"),
        (PPOConfig, "zzz", "known settings: model, output_dir"),
        (PPOConfig, "lora_rank", "it is one of `PPOConfigV1`"),
        (PPOConfig, "replay_buffer_size", "it is one of `ReplayConfig`"),
        (PPOConfigV1, "gradient_accumulation", "did you mean `gradient_accumulation_steps`"),
        (PPOConfigV1, "replay_buffer_size", "it is one of `ReplayConfig`"),
        (PPOConfigV1, "replay_bufer_size", "did you mean `replay_buffer_size`"),
        (ReplayConfig, "replay_bufer_size", "did you mean `replay_buffer_size`"),
    ],
)
def test_an_unknown_setting_is_told_what_it_may_mean(settings, name, hint, tmp_path):
    (tmp_path / "run.yaml").write_text(f"{name}: 1\n")
    for entry in (lambda: settings(**{name: 1}), lambda: settings.from_yaml(tmp_path / "run.yaml")):
        with pytest.raises(ValueError, match=f"unknown setting `{name}`: {hint}"):
            entry()


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "there are no prompts"),
        ("one text", TypeError, "one string"),
        (["fine", 3], TypeError, "prompt 1 is a int, not text"),
        (["fine", "  "], ValueError, "prompt 1 is empty"),
        (Dataset.from_dict({"text": ["a"]}), ValueError, r"columns \['text'\], not `prompt`"),
    ],
)
def test_bad_prompts_are_named(prompts, error, message):
    with pytest.raises(error, match=message):
        PPODataset(prompts)


def test_hugging_face_dataset_and_list_are_accepted():
    table = Dataset.from_dict({"prompt": ["a", "b"], "text": ["c", "d"]})
    assert as_dataset(table).prompts == ["a", "b"], "the column `prompt` of a datasets.Dataset is not taken"
    assert as_dataset(["a", "b"]).prompts == ["a", "b"], "a list of prompts is changed"
    assert PPODataset(table, column="text").prompts == ["c", "d"], "`column` is ignored"


def test_a_dataset_smaller_than_a_batch_is_cycled_evenly():
    batches = PromptBatches(PPODataset(["a", "b", "c"]), 7, Generator().manual_seed(0))
    drawn = [prompt for _ in range(3) for prompt in next(batches)]
    assert len(drawn) == 21, "a batch is smaller than batch_size"
    assert all(drawn.count(prompt) == 7 for prompt in "abc"), "some prompts are drawn more often than others"
    assert all(sorted(drawn[i : i + 3]) == ["a", "b", "c"] for i in range(0, 21, 3)), (
        "a pass drops some prompts and repeats others"
    )


# files of settings

FAR_FROM_UTF_8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as old terminals and Windows are


def test_files_are_utf_8_wherever_they_are_written_and_read(tmp_path):
    program = (
        "import locale, sys; from ppo_lib.config import PPOConfigV1, write_whole\n"
        "assert locale.getpreferredencoding(False) != 'UTF-8', 'this shows nothing'\n"
        "PPOConfigV1(project='Größe').to_yaml('run.yaml')\n"
        "assert PPOConfigV1.from_yaml('run.yaml').project == 'Größe', 'read otherwise than written'\n"
        "write_whole('text', 'ß')\n"
    )
    (tmp_path / "program.py").write_text(program, "utf8")
    environment = os.environ | FAR_FROM_UTF_8 | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert (tmp_path / "text").read_bytes() == "ß".encode(), "a text is written in the terminal's encoding"


def test_a_written_config_is_read_as_it_was_in_the_order_of_the_class(tmp_path):
    settings = ReplayConfig(project="1e-6", output_dir="no", report_to=["console"], learning_rate=1e-6)
    settings.to_yaml(tmp_path / "run.yaml")
    assert ReplayConfig.from_yaml(tmp_path / "run.yaml") == settings, "a text that looks like a number is read as one"
    written = [line.partition(":")[0] for line in (tmp_path / "run.yaml").read_text().splitlines() if line[0] != "-"]
    assert written == [field.name for field in dataclasses.fields(settings)], "the settings lost their order"


def test_a_text_that_cannot_be_written_says_why(tmp_path, monkeypatch):
    def full(path, *text, **how):
        raise OSError(28, "No space left on device")

    (tmp_path / "run.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "run.yaml", "seed: 2\n")
    assert (tmp_path / "run.yaml").read_text() == "seed: 1\n", "what the file held is lost"


def test_the_sizes_of_the_buffer_are_taken_where_they_are_asked_for(tmp_path, monkeypatch):
    assert not preset_settings("16gb").keys() & REPLAY_SETTINGS, "a run without replay is given a buffer"
    assert preset_settings("16gb", with_replay=True).keys() & REPLAY_SETTINGS, "a run with replay is given no buffer"
    (tmp_path / "7gb.yaml").write_text("batch_size: 2\n")
    monkeypatch.setattr("ppo_lib.config.PRESETS", tmp_path)
    assert preset_settings("7gb", with_replay=True) == {"batch_size": 2}, "a preset needs no part for replay"


def test_defaults_are_told_as_yaml_spells_them():
    rows = {row["name"]: row for row in described_settings()}
    spelt = {name: rows[name]["default"] for name in ("model", "output_dir", "bootstrap_cut", "learning_rate")}
    assert spelt == {
        "model": "reviews",
        "output_dir": "null",
        "bootstrap_cut": "false",
        "learning_rate": "0.001 (v2: 0.0005)",
    }
    assert rows["output_dir"]["text"].endswith("null writes nothing"), "a description says None, which YAML has not"
    assert rows["batch_size"]["default"] == "32 (v2: 16)", "another default of a later stage is not told"
