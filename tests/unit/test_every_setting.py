"""Every setting of every stage does what it says, however it comes to a run."""

import dataclasses
import json
import re
import warnings
from inspect import isfunction, signature
from pathlib import Path

import pytest
import yaml

from ppo_lib import ppo
from ppo_lib.commands import cli
from ppo_lib.config import PRESETS, read_mapping
from ppo_lib.data import as_dataset
from tests.unit import effects, effects_of_replay
from tests.unit.effects import BASE, HELD_OUT, PROMPTS, TRAINERS, Begin
from tests.unit.runs_v1 import assert_same_run

EFFECTS = {
    name: function
    for name, function in (vars(effects) | vars(effects_of_replay)).items()
    if isfunction(function) and [*signature(function).parameters] == ["begin"]
}
# What a run that goes on refuses to change, and in which words.
REFUSED = {
    "model": ({"model": effects.policy(seed=7)}, "pass the model that the run started from"),
    "max_new_tokens": ({"max_new_tokens": 5}, "keep `replay_buffer_size` and `max_new_tokens`"),
    "replay_buffer_size": ({"replay_buffer_size": 33}, "keep `replay_buffer_size` and `max_new_tokens`"),
    "lr_scheduler": (
        {"lr_scheduler": "linear"},
        "was 'constant' .*: only `learning_rate` can",
    ),
    "lr_scheduler_kwargs": (
        {"lr_scheduler_kwargs": {"gamma": 2.0}, "lr_scheduler": "ExponentialLR"},
        "only `learning_rate` can",
    ),
    "warmup_updates": ({"warmup_updates": 1}, "`warmup_updates` was 0 .*: only `learning_rate` can"),
    "share_trunk": ({"share_trunk": True}, "`share_trunk` was False .*: keep it, or begin a run"),
    "optimizer": ({"optimizer": "adamw_8bit"}, "`optimizer` was 'adamw' .*: keep it, or begin a run"),
    "lora_rank": ({"lora_rank": 3}, "`lora_rank` was 2 .*: keep it, or begin a run"),
    "frozen_dtype": (
        {"lora_rank": 2, "frozen_dtype": "bfloat16"},
        "was 'float32' .*: keep it, or begin",
    ),
}
# A value of each setting that is not its default; together they make a run.
OTHER = dict(
    model="sums", output_dir="there", seed=3, device="cpu", total_episodes=240, exact_check=False, batch_size=6,
    group_size=2, max_new_tokens=5, temperature=0.7, kl_coef=0.2, gamma=0.9, lam=0.8, whiten_advantages=False,
    bootstrap_cut=True, num_ppo_epochs=2, minibatch_size=4, learning_rate=2e-6, max_grad_norm=0.4, cliprange=0.3,
    cliprange_value=0.35, vf_coef=0.6, entropy_coef=0.01,
    train_prompts="train.txt", eval_prompts="held.txt", reward_model="judge", lr_scheduler="StepLR",
    lr_scheduler_kwargs={"step_size": 2, "gamma": 1e-1}, warmup_updates=1, gradient_accumulation_steps=4, kl_stop=0.15,
    policy_objective="regression", regression_scale=0.7, regression_floor=0.2, cliprange_high=0.55, critic_warmup=2,
    max_skipped_steps=7, kl_target=2.5, kl_horizon=100, mixed_precision="bf16", activation_checkpointing=True,
    share_trunk=True, response_logits_only=True, logits_chunk=11, lora_rank=8, lora_alpha=9.0, frozen_dtype="bfloat16",
    optimizer="adamw_8bit", eval_every=12, eval_samples=1, early_stopping_patience=13, early_stopping_min_delta=0.02,
    save_every=14, keep_last=15, report_to=["console", "tensorboard"], project="mine", wandb_mode="online",
    use_replay_buffer=False, replay_buffer_size=500, replay_sample_size=17, max_replay_reuse=18, staleness_threshold=19,
    replay_anneal=0.25, replay_recency=None, replay_priority=0.45, replay_priority_correction=0.5, replay_spacing=10,
    replay_keep_best=0.55, correction="coupled", importance_level="sequence", importance_cap=3.5, trace_cap=0.65,
    behaviour_temperature=1.45, behaviour_cooling=0.65, replay_gains_only=True, second_moment_limit=0.75, min_ess=0.85,
    max_replay_kl=0.95,
)  # fmt: skip


def names_of(stage: str) -> list[str]:
    return [field.name for field in dataclasses.fields(TRAINERS[stage].config_class)]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two runs of v2 with a checkpoint each of their beginning: a plain one, and one that trains adapters."""
    folder = tmp_path_factory.mktemp("begun")
    Begin("v2", folder)().save(folder / "weights")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    for name, settings in (("plain", {}), ("adapters", {"lora_rank": 2})):
        settings |= {"output_dir": str(folder / name), "train_prompts": str(folder / "prompts.txt")}
        trainer = TRAINERS["v2"](str(folder / "weights"), effects.spread, **BASE["v2"] | settings)
        trainer.prepare(as_dataset(PROMPTS))
        trainer.save_checkpoint()
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return tmp_path


pytestmark = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage in TRAINERS for name in names_of(stage)])
def test_a_setting_does_what_it_says(stage, name, elsewhere):
    assert name in EFFECTS, (
        f"nothing shows that `{name}` of {stage} does anything: write `def {name}(begin)` in tests/unit/effects.py"
    )
    EFFECTS[name](Begin(stage, elsewhere))


# What says where a run stands, what is kept of it and what is checked, but not what it computes.
FREE = {
    "output_dir", "device", "save_every", "keep_last", "report_to", "project", "wandb_mode", "eval_samples",
    "exact_check",
}  # fmt: skip


@pytest.mark.parametrize("name", names_of("v2"))
@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_a_setting_that_a_run_goes_on_with_does_what_it_says_or_is_refused(name, begun, elsewhere):
    begin = Begin("v2", elsewhere, begun)
    if name in REFUSED:
        settings, words = REFUSED[name]
        with pytest.raises(ValueError, match=words):
            begin(**settings)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        EFFECTS[name](begin)
    told = any(re.search(rf"resumed with other settings .*\b{name}\b", str(one.message)) for one in warned)
    if name not in ("train_prompts", "eval_prompts", "reward_model"):  # there the command line says so
        assert told == (name not in FREE), f"a run goes on with another `{name}`, and a warning names it: {told}"


def test_what_a_run_that_goes_on_may_change_freely_changes_nothing_of_what_it_computes(elsewhere):
    begin, runs = Begin("v2", elsewhere), []
    for settings in ({}, {name: OTHER[name] for name in FREE}):
        runs.append(begin(**settings))
        runs[-1].train(PROMPTS, HELD_OUT)
    assert_same_run(runs[1], runs[0], f"one of {sorted(FREE)} changes what a run computes")


class Reached(Exception):
    """Settings that reached a trainer."""


@pytest.fixture
def reached(monkeypatch, elsewhere):
    """The settings that reach the trainer which a call would make."""

    def stop(trainer, *_):
        raise Reached(trainer.config)

    def by(call, *arguments, **keywords) -> dict:
        with pytest.raises(Reached) as caught:
            call(*arguments, **keywords)
        return dataclasses.asdict(caught.value.args[0])

    for name in ("train", "held"):
        (elsewhere / f"{name}.txt").write_text("\n".join(PROMPTS))
    (elsewhere / "judge.py").write_text("def zero(prompts, responses):\n    return [0.0] * len(prompts)\n")
    monkeypatch.setattr(ppo.PPOTrainer, "_load", stop)
    return by


def written(settings: dict) -> Path:
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    return Path("run.yaml")


def on_the_command_line(*words) -> None:
    cli.main([*map(str, words), "--reward", "judge.py:zero", "--debug"])


def sets(settings: dict) -> list[str]:
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def own_file(trainer, settings: dict) -> ppo.PPOConfig:
    trainer.config_class(**settings).to_yaml("config.yaml")
    return trainer.config_class.from_yaml("config.yaml")


ENTRIES = {
    "keywords": lambda trainer, settings: trainer(**settings),
    "a configuration": lambda trainer, settings: trainer(config=trainer.config_class(**settings)),
    "keywords over a configuration": lambda trainer, settings: trainer(config=trainer.config_class(), **settings),
    "a file": lambda trainer, settings: trainer(config=trainer.config_class.from_yaml(written(settings))),
    "the file that a run writes": lambda trainer, settings: trainer(config=own_file(trainer, settings)),
}
ENTRIES_OF_V1 = {
    "a preset": lambda trainer, settings: trainer(config=trainer.config_class.preset("8gb", **settings)),
    "a file on the command line": lambda trainer, settings: on_the_command_line("train", written(settings)),
    "--set": lambda trainer, settings: on_the_command_line("train", *sets(settings)),
    "--set over a preset": lambda trainer, settings: on_the_command_line("train", "--preset", "8gb", *sets(settings)),
}
CASES = [(stage, entry) for stage in TRAINERS for entry in (ENTRIES if stage == "v0" else ENTRIES | ENTRIES_OF_V1)]


def other_than_the_defaults(stage: str) -> dict:
    config = TRAINERS[stage].config_class()
    for name in names_of(stage):
        assert name in OTHER, f"add a value of `{name}` that is not its default to OTHER"
        assert OTHER[name] != getattr(config, name), f"OTHER has the default of `{name}`"
    return {name: OTHER[name] for name in names_of(stage)}


def assert_arrived(found: dict, expected: dict, entry: str) -> None:
    lost = {name: found.get(name) for name, value in expected.items() if found.get(name) != value}
    assert not lost, f"settings that come by {entry} do not reach the run, which has {lost}"


@pytest.mark.parametrize(("stage", "entry"), CASES)
def test_every_setting_arrives_by_every_entry(stage, entry, reached):
    settings = other_than_the_defaults(stage)
    assert_arrived(reached((ENTRIES | ENTRIES_OF_V1)[entry], TRAINERS[stage], settings), settings, entry)


@pytest.mark.parametrize("entry", ["keywords", "--set"])
@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_every_setting_arrives_in_a_run_that_goes_on(entry, begun, reached):
    settings = other_than_the_defaults("v2")
    ways = {
        "keywords": lambda: TRAINERS["v2"](resume_from_checkpoint=begun / "plain", **settings),
        "--set": lambda: on_the_command_line("resume", begun / "plain", *sets(settings)),
    }
    assert_arrived(reached(ways[entry]), settings, f"{entry} of a run that goes on")
    kept = reached(TRAINERS["v2"], resume_from_checkpoint=begun / "plain")
    assert_arrived(kept, BASE["v2"], "the checkpoint of a run that goes on")


@pytest.mark.parametrize("name", [path.stem for path in PRESETS.glob("*.yaml")])
def test_every_line_of_a_preset_arrives(name, reached):
    preset = read_mapping(PRESETS / f"{name}.yaml")
    of_replay = preset.pop("replay")
    for stage, expected in (("v1", preset), ("v2", preset | of_replay)):
        config = TRAINERS[stage].config_class.preset(name)
        assert_arrived(dataclasses.asdict(config), expected, f"{stage}'s preset {name}")
        words, asked = (["--replay"], {"use_replay_buffer": True}) if stage == "v2" else ([], {})
        found = reached(on_the_command_line, "train", "--preset", name, *words)
        assert_arrived(found, expected | asked, f"--preset {name}")
