"""From what is written on the command line to trainers, rewards and prompts: each branch in a second or so."""

import re
import sys

import pytest
import torch
import yaml

from ppo_lib import worlds
from ppo_lib.commands import inputs
from ppo_lib.config import PPOConfigV1
from ppo_lib.models import load_policy
from tests.unit.runs_v1 import make


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a model, as `--set model=base` may name it; and a run that began from it."""
    folder = tmp_path_factory.mktemp("base")
    trainer = make()
    trainer.save(folder / "base")
    with torch.no_grad():
        next(trainer.policy.parameters()).add_(1.0)
    trainer.save(folder / "run/model")
    settings = {"model": str(folder / "base"), "train_prompts": str(folder / "prompts.txt"), "max_new_tokens": 3}
    (folder / "run/config.yaml").write_text(yaml.safe_dump(settings | {"seed": 5, "device": "cpu"}))
    (folder / "prompts.txt").write_text("one\ntwo\n")
    (folder / "score.py").write_text("def length(prompts, responses):\n    return [len(r) for r in responses]\n")
    return folder


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'#7'", "#7"),
        ('"a # b"', "a # b"),
        ("a # b", "a # b"),
        ("#7", "#7"),
        ("!!str 7", "7"),
        ("|\n  two\n  lines", "two\nlines"),
        (">\n  one\n  line", "one line"),
        ("7", 7),
        ("null", None),
        ("[a, b]", ["a", "b"]),
    ],
)
def test_a_value_is_yaml_and_a_bare_text_is_what_stands_there(written, value):
    assert inputs.pairs([f"name={written}"]) == {"name": value}, f"--set name={written} is read as something else"


def test_the_folder_of_a_reward_is_searched_first_and_once(base, monkeypatch):
    monkeypatch.setattr(sys, "path", ["elsewhere", str(base), *sys.path])
    for _ in range(2):
        inputs.reward_function(f"{base}/score.py:length")
    assert (sys.path[0], sys.path.count(str(base)), "elsewhere" in sys.path) == (str(base), 1, True), (
        "a reward does not find its neighbours before others of their name, or its folder is listed again and again"
    )


@pytest.mark.parametrize(
    ("model", "call", "said"),
    [
        (
            "base",
            lambda config: inputs.reward_of(config, None),
            "`model`='base' is no embedded world and brings no reward: set `reward_model`, or name a function with "
            "--reward path/to/file.py:function",
        ),
        ("base", inputs.prompts_of, "`model`='base' is no embedded world and brings no prompts: set `train_prompts`"),
        (
            "bass",
            inputs.prompts_of,
            "`model`='bass' is no folder here (is it spelt right?), no embedded world and brings no prompts: set "
            "`train_prompts`; did you mean base?",
        ),
    ],
)
def test_a_model_that_is_no_world_needs_a_reward_and_prompts(work, model, call, said):
    (work / "base").mkdir()
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        call(PPOConfigV1(model=model))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("promts.txt", "(No such file or directory): did you mean prompts.txt?"), ("prompts.d", "(Is a directory)")],
)
def test_prompts_that_cannot_be_read_name_what_is_near_where_nothing_is_there(work, name, reason):
    (work / "prompts.txt").write_text("one\n")
    (work / "prompts.d").mkdir()
    said = f"`eval_prompts`={name!r} cannot be read {reason}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        inputs.prompts_of(PPOConfigV1(eval_prompts=name))


def test_saved_weights_alone_take_the_rewards_and_settings_that_are_named(base):
    """No run's config.yaml lies beside them: they are model and reference at once."""
    changes = {"train_prompts": str(base / "prompts.txt"), "max_new_tokens": 7}
    trainer, train, heldout = inputs.saved(str(base / "base"), changes, f"{base}/score.py:length")
    assert trainer.reward.__name__ == "length", "the reward that is named is not the one that judges"
    assert (trainer.config.model, trainer.config.max_new_tokens) == (str(base / "base"), 7), "settings are lost"
    assert train == ["one", "two"], "the prompts are not those of the `train_prompts` that are named"
    assert heldout is None, "weights of no world and no run are given held-out prompts"
    assert next(trainer.policy.parameters()).equal(next(trainer.reference.parameters())), (
        "weights that no run saved are held against another model than themselves"
    )


def test_saved_weights_of_a_run_are_held_against_what_the_run_began_from(base):
    trainer, train, _ = inputs.saved(str(base / "run/model"), {"max_new_tokens": 9}, f"{base}/score.py:length")
    config = trainer.config
    assert (config.seed, config.max_new_tokens) == (5, 9), "settings are not the run's with the changes over them"
    assert trainer.reward.__name__ == "length", "the reward that is named is not the one that judges"
    assert train == ["one", "two"], "the prompts are not those of the run's `train_prompts`"
    before = next(load_policy(str(base / "base"))[0].parameters())
    assert next(trainer.reference.parameters()).equal(before), "the reference is not the model that the run began from"
    assert next(trainer.policy.parameters()).equal(before + 1), "the policy is not the saved one"
    assert not any(p.requires_grad for p in trainer.reference.parameters()), "the reference would be trained"


def test_a_world_is_not_taken_for_a_run_because_a_config_lies_here(work):
    (work / "config.yaml").write_text("model: sums\nmax_new_tokens: 3\n")
    trainer, train, _ = inputs.saved("reviews", {}, None)
    assert (trainer.config.model, train) == ("reviews", worlds.load("reviews").prompts), "a file here is read for a run"


@pytest.mark.parametrize(
    ("sessions", "reward"),
    [
        (None, None),
        ("[]", None),
        ("- command: train run.yaml -h\n", None),
        ("- command: train --reward a.py:f\n- command: resume runs/1 --reward 'b c.py:g' --samples 2\n", "b c.py:g"),
    ],
)
def test_the_reward_of_the_last_session_is_remembered(tmp_path, sessions, reward):
    if sessions is not None:
        (tmp_path / "sessions.yaml").write_text(sessions)
    assert inputs.reward_named_before(tmp_path) == reward, (
        "the reward is not that of the run's last command, or a run without one is said to have had it"
    )
