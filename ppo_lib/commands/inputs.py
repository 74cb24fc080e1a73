"""What a run is given on the command line: settings, prompts, a reward, a checkpoint to go on from."""

import argparse
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pydantic
import yaml
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ppo_lib import worlds
from ppo_lib.commands.places import did_you_mean, is_checkpoint, run_of, settings_file, siblings
from ppo_lib.config import REPLAY_SETTINGS, PPOConfigV1, preset_settings, read_mapping, read_yaml
from ppo_lib.models import load_policy
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.rewards import RewardFunction, RewardModel
from ppo_lib.running import checkpoint, resume
from ppo_lib.running.terminal import no_foreign_bars

OF_REWARD = "__ppo_lib_reward__"  # marks a module that was imported from a reward's file


def settings_from(preset: str | None, file: Path | None, changes: list[str], replay: bool = False) -> dict:
    """One mapping of settings: the preset's, over them the file's, over them the `name=value` of `changes`.

    Replay is asked for by `replay`, or by any of its settings in the file or in `changes`; then the preset's sizes of
    the buffer are taken too.

    Raises:
        ValueError: there is no such preset, the file is no YAML mapping, or a change has no `=`.
    """
    changed = pairs(changes)
    own = (read_mapping(settings_file(file)) if file else {}) | changed
    if replay:
        own["use_replay_buffer"] = True
    asked = trainer_class(own) is PPOTrainerWithReplay
    settings = preset_settings(preset, with_replay=asked) if preset else {}
    return settings | ({"use_replay_buffer": True} if asked else {}) | own


def trainer_class(settings: dict) -> type[PPOTrainer]:
    """v2's trainer where a setting of replay is among `settings`, else v1's."""
    return PPOTrainerWithReplay if settings.keys() & REPLAY_SETTINGS else PPOTrainer


def config_of(settings: dict) -> PPOConfigV1:
    """The settings, checked, in the class of their stage: a `ReplayConfig` where one of replay's is among them.

    Raises:
        ValueError: a setting is unknown or wrong, or contradicts another.
    """
    return pydantic.TypeAdapter(trainer_class(settings).config_class).validate_python(settings)


def pairs(changes: list[str]) -> dict:
    """`["seed=1", …]` as a mapping, each value read as YAML."""
    settings = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: write name=value, with no space around the =")
        try:
            settings[name.strip()] = _value(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {change}: the value is not YAML: {error}") from error
    return settings


def _value(text: str) -> Any:
    """`text` read as YAML; a text without quotes as it stands, for here a `#` begins no comment."""
    read, plain = read_yaml(text), text.strip()
    quoted = plain.startswith(("'", '"', "!", "|", ">"))
    return plain if (isinstance(read, str) and not quoted) or (read is None and plain.startswith("#")) else read


def reward_function(place: str, option: str = "--reward") -> RewardFunction:
    """The function that `path/to/file.py:name` names; running the file is what the user asked for.

    The file is imported as Python would from its folder: it finds its neighbours, and other processes find it.
    """
    file, colon, name = place.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not colon or not path.is_file():
        raise ValueError(f"{option} {place}: write path/to/file.py:function, the path of a file that exists")
    if path.stem in sys.modules and not hasattr(sys.modules[path.stem], OF_REWARD):
        raise ValueError(f"{option} {place}: Python has a module {path.stem!r} already: give the file another name")
    sys.path[:] = [str(path.parent), *(folder for folder in sys.path if folder != str(path.parent))]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{option} {place}: the name of a Python file ends in .py")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    setattr(module, OF_REWARD, True)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        error.add_note(f"{option} {place}: running {file} failed")
        raise
    function = getattr(module, name, None)
    if not callable(function):
        near = did_you_mean(name, [known for known, value in vars(module).items() if callable(value)])
        raise ValueError(f"{option} {place}: {file} defines no function {name!r}{near}")
    return function


def reward_of(config: PPOConfigV1, place: str | None) -> RewardFunction | None:
    """The reward that is trained on: the function at `place`, else `reward_model`, else None for the world's own."""
    if place:
        return reward_function(place)
    if config.reward_model:
        try:
            with no_foreign_bars():
                model = AutoModelForSequenceClassification.from_pretrained(config.reward_model)
            return RewardModel(model, AutoTokenizer.from_pretrained(config.reward_model))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"`reward_model`={config.reward_model!r} cannot be loaded: it is no folder with a saved sequence "
                f"classifier and its tokenizer, and no reachable Hugging Face id ({str(error).splitlines()[0]})"
            ) from error
    if config.model not in worlds.NAMES:
        fix = "set `reward_model`, or name a function with --reward path/to/file.py:function"
        raise ValueError(_no_world(config.model, f"brings no reward: {fix}"))
    return None


def _no_world(model: str, consequence: str) -> str:
    here = Path(model).is_dir()
    missing = "" if here else "no folder here (is it spelt right?), "
    near = "" if here else did_you_mean(model, [*worlds.NAMES, *siblings(Path(model))], ";")
    return f"`model`={model!r} is {missing}no embedded world and {consequence}{near}"


def prompts_of(config: PPOConfigV1) -> tuple[list[str], list[str] | None]:
    """Prompts to train on and held-out ones, from the files that `config` names or from its world."""
    world = worlds.load(config.model) if config.model in worlds.NAMES else None
    if config.train_prompts:
        train = _prompts_named(config, "train_prompts")
    elif world:
        train = world.prompts
    else:
        raise ValueError(_no_world(config.model, "brings no prompts: set `train_prompts`"))
    if config.eval_prompts:
        return train, _prompts_named(config, "eval_prompts")
    return train, world.heldout_prompts if world else None


def _prompts_named(config: PPOConfigV1, setting: str) -> list[str]:
    path = getattr(config, setting)
    try:
        return prompts_in(path)
    except OSError as error:
        near = "" if Path(path).exists() else did_you_mean(path, siblings(Path(path)))
        raise ValueError(f"`{setting}`={path!r} cannot be read ({error.strerror}){near}") from error


def prompts_in(path: str) -> list[str]:
    """The prompts in a UTF-8 file: the field "prompt" of JSON lines (.jsonl, .ndjson), else each line with text in it.

    Lines end where editors end them: a line separator of Unicode within a text is part of it.

    Raises:
        ValueError: the file is not UTF-8, or a line is not as it should be; the message names file and line.
    """
    data = Path(path).expanduser().read_bytes()
    try:
        text = data.decode("utf-8-sig")  # Windows may put a mark before the first line
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}): save the file as UTF-8") from error
    numbered = enumerate(re.split(r"\r\n|\n|\r", text), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if Path(path).suffix.lower() not in (".jsonl", ".ndjson"):
        return [line for _, line in lines]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in lines]


def _prompt_of(line: str, where: str) -> str:
    """The field "prompt" of a line of JSON; ValueError says `where` there is none."""
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: a JSON object with a field "prompt" is needed') from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'{where}: the field "prompt" holds {prompt!r}, not a text: drop the line or fill it')
    return prompt


def newest_checkpoint(folder: Path) -> tuple[Path, dict]:
    """The newest whole checkpoint of the run in `folder`, and the settings in it; says which ones it passed over.

    Where `folder` itself is a checkpoint, that one.
    """
    if is_checkpoint(folder):
        return folder, checkpoint.load_checkpoint(folder)["config"]
    state, newest = resume.newest_state(folder)
    assert state is not None and newest is not None  # one was required
    return newest, state["config"]


def continued(folder: Path, changes: dict, reward: str | None, **others: Any) -> tuple:
    """The trainer of the newest whole checkpoint of the run in `folder`, or of the checkpoint `folder`, with `changes`
    to its settings; its prompts for training and held out; and which checkpoint it is.

    Raises:
        ValueError: there is none; the run was trained on a reward function and none is named; or a change asks a run of
            v1 to replay.
    """
    newest, settings = newest_checkpoint(folder)
    needed = reward_named_before(run_of(newest))
    if needed and not reward:
        raise ValueError(f"the run was trained on a reward function: name it again, --reward {shlex.quote(needed)}")
    trainer = trainer_class(settings)
    if late := sorted(changes.keys() & REPLAY_SETTINGS - settings.keys()):
        raise ValueError(
            f"`{late[0]}` is a setting of replay, and the run has none: start another with --replay, from its weights "
            "with --set model=RUN/model"
        )
    config = config_of(settings | changes)
    judge = reward_of(config, reward)
    others |= {"output_dir": config.output_dir, "resume_from_checkpoint": newest}
    return trainer(None, judge, config=config, **others), *prompts_of(config), newest


def saved(model: str, changes: dict, reward: str | None) -> tuple:
    """A trainer of saved weights, with the settings, prompts and reference of the run whose folder they are in."""
    of_run = Path(model).parent / "config.yaml"
    settings = read_mapping(of_run) if Path(model).is_dir() and of_run.exists() else {"model": model}
    plain: dict[str, Any] = {"output_dir": None, "report_to": [], "lora_rank": None, "frozen_dtype": "float32"}
    config = config_of(settings | plain | changes)
    judge, trainer = reward_of(config, reward), trainer_class(settings | changes)
    if config.model == model:
        return trainer(None, judge, config=config), *prompts_of(config)
    if config.model in worlds.NAMES:
        world = worlds.load(config.model)
        reference, judge = world.model, judge or world.reward
    else:
        reference = load_policy(config.model)[0]
    return trainer(model, judge, reference=reference.requires_grad_(False), config=config), *prompts_of(config)


def reward_named_before(folder: Path) -> str | None:
    """The --reward with which the run in `folder` was last started, if any: its checkpoints do not hold it."""
    sessions = folder / "sessions.yaml"
    commands = [session["command"] for session in yaml.safe_load(sessions.read_text())] if sessions.exists() else []
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--reward")
    return known.parse_known_args(shlex.split(commands[-1]))[0].reward if commands else None
