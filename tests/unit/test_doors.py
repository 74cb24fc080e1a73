"""What comes in from people: the same checks at every door, files as the web and Windows write them, homes of shells.

Each test stands for reports of other trainers, and for their kind.
"""

import errno
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ppo_lib import worlds
from ppo_lib.commands.cli import main
from ppo_lib.commands.inputs import pairs, prompts_in, reward_function
from ppo_lib.config import read_mapping
from ppo_lib.data import PPODataset, columns_of
from ppo_lib.models import WRITTEN_ASIDE
from ppo_lib.ppo import PPOConfig, PPOTrainer
from ppo_lib.ppo_v1 import PPOConfigV1
from ppo_lib.ppo_v1 import PPOTrainer as PPOTrainerV1
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.rewards import score_responses
from ppo_lib.running import checkpoint
from ppo_lib.running.evaluation import evaluate
from tests.unit.tiny import byte_tokenizer, tiny_policy
from toc import ROOT

SMALL = dict(total_episodes=16, batch_size=4, minibatch_size=4, max_new_tokens=4, num_ppo_epochs=1, device="cpu")
PROMPTS = ["The film was", "I think", "We saw", "My brother"]


@pytest.fixture(scope="module")
def trainer():
    return PPOTrainerV1(**SMALL)


# user code cannot hurt


@pytest.mark.parametrize("stage", [PPOTrainer, PPOTrainerV1, PPOTrainerWithReplay])
def test_a_reward_that_edits_its_lists_changes_nothing_else(stage):
    reward, seen = worlds.load("reviews").reward, []

    def edits(prompts, responses):
        scores = reward(prompts, responses)
        prompts[:] = [prompt.upper() for prompt in prompts]
        responses.clear()
        return scores

    ppo = stage(reward=edits, **SMALL)
    ppo.train(PROMPTS, callback=lambda trainer, rollout, metrics: seen.append(rollout))
    for rollout in seen:
        assert set(rollout.prompts) <= set(PROMPTS), "a reward edits the rollout's prompts: hand it copies"
        assert len(rollout.responses) == len(rollout), "a reward edits the rollout's responses: hand it copies"


def test_a_reward_that_fails_after_it_edited_is_named_with_the_prompt_it_was_given():
    def edits_and_fails(prompts, responses):
        prompts[:] = ["edited"] * len(prompts)
        raise KeyError("no such word")

    with pytest.raises(ValueError, match="'I think'"):
        score_responses(edits_and_fails, ["I think"], [" so."])


@pytest.mark.parametrize("stage", [PPOTrainer, PPOTrainerV1, PPOTrainerWithReplay])
@pytest.mark.parametrize("stop", [True, np.bool_(True), torch.tensor(True), 1], ids=["bool", "numpy", "tensor", "int"])
def test_a_callback_ends_the_run_by_the_truth_of_what_it_returns(stage, stop):
    updates = stage(**SMALL).train(PROMPTS, callback=lambda trainer, rollout, metrics: stop)
    assert len(updates) == 1, f"a callback that returns {stop!r} does not end the run"


@pytest.mark.parametrize("go_on", [None, False, np.bool_(False), torch.tensor(False), 0], ids=repr)
def test_a_callback_that_returns_nothing_true_lets_the_run_go_on(go_on):
    assert len(PPOTrainer(**SMALL).train(PROMPTS, callback=lambda *_: go_on)) == 4, (
        f"a callback that returns {go_on!r} ends the run"
    )


# prompts


TABLES = {
    "pandas": pd.DataFrame({"label": 1, "prompt": PROMPTS}),
    "pyarrow": pa.table({"label": [1] * 4, "prompt": PROMPTS}),
    "numpy records": np.array([(1, prompt) for prompt in PROMPTS], dtype=[("label", int), ("prompt", "U20")]),
}


@pytest.mark.parametrize("table", [*TABLES.values()], ids=TABLES)
def test_a_table_gives_its_column(table):
    assert [str(prompt) for prompt in PPODataset(table).prompts] == PROMPTS, (
        "prompts are not those of the table's column"
    )
    with pytest.raises(ValueError, match=r"columns \['label', 'prompt'\], not `text`"):
        PPODataset(table, column="text")


def test_what_is_no_table_has_no_columns():
    assert columns_of(PROMPTS) is None, "a list of texts is taken for a table"
    assert columns_of(np.array(PROMPTS)) is None, "an array without fields is taken for a table"
    assert columns_of("text") is None, "a string is taken for a table"
    assert PPODataset(pd.Series(PROMPTS)).prompts == PROMPTS, "prompts of a single column of pandas are changed"


BAD_PROMPTS = {
    "one string": ("The film was", TypeError, "one string"),
    "none": ([], ValueError, "no prompts"),
    "an empty one": (["I think", " "], ValueError, "prompt 1 is empty"),
    "no text": (["I think", None], TypeError, "prompt 1 is a NoneType"),
    "a table without the column": (pd.DataFrame({"text": PROMPTS}), ValueError, "not `prompt`"),
    "too long": (["I think", "The film was good. " * 300], ValueError, r"prompt 1 has \d+ tokens.*`max_new_tokens`"),
}
DOORS = {
    "train": lambda trainer, prompts: trainer.train(prompts),
    "generate": lambda trainer, prompts: trainer.generate(prompts),
    "evaluate": lambda trainer, prompts: evaluate(trainer, prompts, trainer.reward),
}


@pytest.mark.parametrize("prompts, error, words", [*BAD_PROMPTS.values()], ids=BAD_PROMPTS)
@pytest.mark.parametrize("door", [*DOORS.values()], ids=DOORS)
def test_every_door_refuses_the_same_prompts_in_the_same_words(door, prompts, error, words, trainer):
    with pytest.raises(error, match=words):
        door(trainer, prompts)


def test_collect_takes_no_string_for_a_list_of_letters(trainer):
    with pytest.raises(TypeError, match="one string"):
        trainer.collect("The film was")


# files


FILES = {
    "byte order mark": ("a.txt", "\ufeffThe film was\nI think\n", ["The film was", "I think"]),
    "mark before JSON": ("a.jsonl", '\ufeff{"prompt": "x"}\n', ["x"]),
    "line separator in a text": ("a.jsonl", '{"prompt": "one\u2028two"}\n', ["one\u2028two"]),
    "next line in a text": ("a.txt", "one\x85two\n", ["one\x85two"]),
    "form feed in a text": ("a.txt", "one\x0ctwo\x1cthree\n", ["one\x0ctwo\x1cthree"]),
    "lines of Windows": ("a.txt", "one\r\n\r\ntwo\r\n", ["one", "two"]),
    "lines of an old Mac": ("a.txt", "one\rtwo", ["one", "two"]),
    ".ndjson": ("a.ndjson", '{"prompt": "x"}\n', ["x"]),
    ".JSONL": ("a.JSONL", '{"prompt": "x"}\n', ["x"]),
}


@pytest.mark.parametrize("case", FILES)
def test_files_as_the_web_and_windows_write_them(case, tmp_path):
    name, text, prompts = FILES[case]
    (tmp_path / name).write_bytes(text.encode())
    try:
        found = prompts_in(str(tmp_path / name))
    except ValueError as error:
        pytest.fail(f"a file is refused that is as it should be, with {case}: {error}")
    assert found == prompts, f"prompts are torn, joined or changed where the file has {case}"


BAD_FILES = {
    "null": ("a.jsonl", b'{"prompt": "x"}\n\n{"prompt": null}\n', "line 3.*holds None"),
    "a number": ("a.jsonl", b'{"prompt": 7}\n', "line 1.*holds 7"),
    "no text in it": ("a.ndjson", b'{"prompt": " "}\n', "line 1.*holds ' '"),
    "no field": ("a.JSONL", b'{"text": "x"}\n', 'line 1.*field "prompt"'),
    "Latin-1": ("a.txt", b"tea\ncaf\xe9\n", "a.txt, line 2: not UTF-8"),
    "UTF-16": ("a.txt", "I think\n".encode("utf-16"), "a.txt, line 1: not UTF-8"),
}


@pytest.mark.parametrize("name, data, words", [*BAD_FILES.values()], ids=BAD_FILES)
def test_a_line_that_cannot_be_used_is_named(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words):
        prompts_in(str(tmp_path / name))


# paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tilde_is_home_in_every_setting_that_names_a_place(home):
    names = ("model", "output_dir", "train_prompts", "eval_prompts", "reward_model")
    config = PPOConfigV1(**{name: f"~/{name}" for name in names})
    assert [getattr(config, name) for name in names] == [str(home / name) for name in names], (
        "a tilde in a setting that names a place is a folder called ~: its type is not `Place`"
    )
    assert PPOConfigV1(model="reviews").model == "reviews", "the name of a world is made a path"
    assert PPOConfig().output_dir is None, "a setting that names no place is made one"


def test_a_tilde_is_home_for_runs_resumed_runs_saved_models_and_files(home):
    PPOTrainerV1(output_dir="~/runs/x", save_every=1, **SMALL).train(PROMPTS, callback=lambda *_: True)
    assert not (home / "~").exists(), "a folder called ~ is made"
    assert (home / "runs/x/metrics.jsonl").exists(), "a run into ~/runs is not written below the home"
    resumed = PPOTrainerV1(resume_from_checkpoint="~/runs/x")
    assert len(resumed.history) == 1, "what is resumed from ~/runs is not the run that lies there"
    resumed.save("~/saved")
    assert PPOTrainer("~/saved", reward=worlds.load("reviews").reward, **SMALL).config.model == str(home / "saved"), (
        "a model that is saved in ~ and loaded from there is of another folder"
    )
    (home / "prompts.txt").write_text("The film was\n")
    (home / "reward.py").write_text("def reward(prompts, responses):\n    return [1.0] * len(prompts)\n")
    assert prompts_in("~/prompts.txt") == ["The film was"], "prompts in ~ are those of another file"
    assert reward_function("~/reward.py:reward")(["a"], ["b"]) == [1.0], "a reward in ~ is that of another file"


# the disk


def test_saving_removes_only_what_a_save_left_behind(tmp_path, trainer):
    neighbours = [".model-backup", ".model-2-3fk29x", f".model-2{WRITTEN_ASIDE}x", ".model"]
    left_behind = f".model{WRITTEN_ASIDE}3fk29x"
    for name in (*neighbours, left_behind):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text("precious")
    trainer.save(tmp_path / "model")
    for name in neighbours:
        assert (tmp_path / name / "weights.safetensors").exists(), f"saving `model` removed {name}, which is another's"
    assert not (tmp_path / left_behind).exists(), "what a killed save left behind stays for ever"


def test_a_name_with_brackets_is_no_pattern(tmp_path, trainer):
    (tmp_path / f".ab{WRITTEN_ASIDE}x").mkdir()
    trainer.save(tmp_path / "a[b]")
    assert (tmp_path / f".ab{WRITTEN_ASIDE}x").exists(), (
        "brackets in a name are a pattern, by which saving removes another's"
    )
    assert (tmp_path / "a[b]/config.json").exists(), "a model is not saved in a folder with brackets in its name"


def test_a_folder_that_cannot_be_flushed_gets_its_checkpoints(tmp_path, monkeypatch, caplog):
    """Windows refuses to open a folder."""
    sound = os.open

    def windows(path, *arguments, **keywords):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return sound(path, *arguments, **keywords)

    monkeypatch.setattr(checkpoint.os, "open", windows)
    with caplog.at_level("INFO", logger="ppo_lib.running.checkpoint"):
        folder = checkpoint.save_checkpoint(tmp_path, 3, {"a": torch.ones(2)})
    said = f"the folder {tmp_path} cannot be flushed ([Errno 13] Permission denied: '{tmp_path}'): a power cut may"
    assert said in caplog.text, "that a folder cannot be flushed is not said, or not which and why"
    assert checkpoint.load_checkpoint(folder)["a"].tolist() == [1.0, 1.0], (
        "where a folder cannot be flushed, its checkpoint holds other numbers"
    )


def test_a_disk_that_fails_while_a_folder_is_flushed_is_an_error(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint._flush(tmp_path)


# what a saved model and a resumed run know


def test_a_saved_model_ends_where_the_trainer_ended(tmp_path):
    policy, tokenizer = tiny_policy("llama"), byte_tokenizer()
    policy.config.eos_token_id = policy.generation_config.eos_token_id = None  # a base model
    PPOTrainer(policy, lambda p, r: [0.0] * len(r), tokenizer=tokenizer, **SMALL).save(tmp_path / "saved")
    ends = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends]), "generate() would run on"


def test_a_reference_that_was_given_with_gradients_is_told_from_another(tmp_path):
    world, given = worlds.load("reviews"), tmp_path / "run"
    other = worlds.load("reviews").model
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.01)
    PPOTrainerV1(reference=worlds.load("reviews").model, output_dir=str(given), save_every=1, **SMALL).train(
        world.prompts, callback=lambda *_: True
    )
    with pytest.raises(ValueError, match="the reference is not the one"):
        PPOTrainerV1(reference=other, resume_from_checkpoint=str(given), **SMALL)
    PPOTrainerV1(reference=worlds.load("reviews").model, resume_from_checkpoint=str(given), **SMALL)


def test_a_tokenizer_without_the_letter_a_is_one():
    vocabulary = {letter: number for number, letter in enumerate("0123456789+=")} | {"<eos>": 12}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])), eos_token="<eos>"
    )
    policy = tiny_policy("llama", vocab_size=13)
    policy.generation_config.eos_token_id = 12
    ppo = PPOTrainer(policy, lambda p, r: [float(len(x)) for x in r], tokenizer=tokenizer, **SMALL)
    assert len(ppo.train(["1+2=", "3+4="])) == 4, "a tokenizer without the letter a ends the run early"


# settings


@pytest.mark.parametrize("text, value", [
    ("1e-6", 1e-6), ("1.e3", 1000.0), ("-.5E+2", -50.0), ("+2e0", 2.0), ("1e", "1e"), ("e5", "e5"), ("1e5a", "1e5a"),
    ("0.5", 0.5), ("12", 12), ("'1e-6'", "1e-6"),
])  # fmt: skip
def test_numbers_are_numbers_however_deep_they_stand(text, value, tmp_path):
    (tmp_path / "c.yaml").write_text(f"top: {text}\nkwargs: {{min_lr: {text}, all: [{text}]}}\n")
    expected = {"top": value, "kwargs": {"min_lr": value, "all": [value]}}
    assert read_mapping(tmp_path / "c.yaml") == expected, (
        f"{text} in a file of settings is read as something else, at its top or deeper"
    )
    assert pairs([f"kwargs={{min_lr: {text}}}"]) == {"kwargs": {"min_lr": value}}, (
        f"{text} within a mapping behind --set is read as something else"
    )


@pytest.mark.parametrize("name, kwargs, words", [
    ("plateau", {"min_lr": "low", "patience": 0}, "plateau.*min_lr.*fails after update"),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 2}, "OneCycleLR.*fails after update 3 of 4"),
    ("cosine_with_min_lr", {"min_lr": "low"}, "cosine_with_min_lr"),
])  # fmt: skip
def test_a_schedule_that_would_fail_in_the_middle_fails_before_the_run(name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        PPOTrainerV1(lr_scheduler=name, lr_scheduler_kwargs=kwargs, **SMALL)


def test_v0s_second_argument_is_not_taken_for_prompts():
    with pytest.raises(TypeError, match="callback="):
        PPOTrainerV1(**SMALL).train(PROMPTS, lambda trainer, rollout, metrics: True)


@pytest.mark.parametrize("value", ["some/reward-model", "./my-rm"])
def test_a_reward_model_that_is_not_there_is_named_with_its_setting(value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--set", f"reward_model={value}", "--set", "output_dir=o"]) == 2, (
        "a reward model that is not there does not end with exit code 2"
    )
    assert f"`reward_model`='{value}' cannot be loaded" in capsys.readouterr().err, (
        "the error does not name `reward_model` and what it was set to"
    )


def test_a_misspelt_run_is_told_that_it_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "runs/frist"]) == 2, "eval of a folder that is not there does not end with exit code 2"
    assert "`model`='runs/frist' is no folder here" in capsys.readouterr().err, (
        "a misspelt run is taken for a model's id, and nobody says that there is no such folder"
    )


# a reward in a file


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """A folder of files for rewards; what they import is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "words_of_praise.py").write_text("GOOD = 1.0\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_reward_file_finds_its_neighbours(rewards):
    (rewards / "by_word.py").write_text(
        "from words_of_praise import GOOD\ndef reward(prompts, responses): return [GOOD] * len(responses)\n"
    )
    assert reward_function(f"{rewards}/by_word.py:reward")(["a"], ["b"]) == [1.0], (
        "a reward file imports another module than its neighbour of that name"
    )


def test_a_reward_file_may_use_other_processes(rewards):
    (rewards / "by_pool.py").write_text(
        "import multiprocessing\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "def length(text): return float(len(text))\n"
        "def reward(prompts, responses):\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:\n"
        "        return list(pool.map(length, responses))\n"
    )
    assert score_responses(reward_function(f"{rewards}/by_pool.py:reward"), ["a"], ["bcd"]).tolist() == [3.0], (
        "a reward that computes in another process gives other scores"
    )


def test_a_changed_reward_file_is_read_again_and_one_that_hides_a_module_is_refused(rewards):
    file = rewards / "by_hand.py"
    for value in (1.0, 2.0):
        file.write_text(f"def reward(prompts, responses): return [{value}]  # {value}\n")
        importlib.invalidate_caches()
        assert reward_function(f"{file}:reward")([""], [""]) == [value], "a changed reward file is not read again"
    (rewards / "elsewhere").mkdir()
    other = rewards / "elsewhere/by_hand.py"
    other.write_text("def reward(prompts, responses): return [3.0]\n")
    first, second = reward_function(f"{file}:reward"), reward_function(f"{other}:reward")
    assert (first([""], [""]), second([""], [""])) == ([2.0], [3.0]), "two files of one name are taken for one"
    (rewards / "json.py").write_text("def reward(prompts, responses): return [0.0]\n")
    with pytest.raises(ValueError, match="another name"):
        reward_function(f"{rewards}/json.py:reward")


def test_a_reward_file_with_an_error_leaves_nothing_behind(rewards):
    (rewards / "broken_reward.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        reward_function(f"{rewards}/broken_reward.py:reward")
    assert "broken_reward" not in sys.modules, "a reward file that failed stays in sys.modules, half read"


# the door of each module


def test_what_a_module_offers_is_there():
    names = sorted(path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "ppo_lib").rglob("*.py"))
    for parts in names:
        if parts[-1] == "__main__":
            continue
        name = ".".join(parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        if hasattr(module, "__all__"):
            missing = [word for word in list(module.__all__) if not hasattr(module, word)]
            assert not missing, f"`from {name} import *` fails: it has no {missing}"


def test_the_version_is_the_installed_ones_and_bitsandbytes_is_quiet():
    import logging
    from importlib.metadata import version

    import ppo_lib

    assert ppo_lib.__version__ == version("ppo_lib"), "another version is installed than the library says"
    assert logging.getLogger("bitsandbytes").level == logging.ERROR, "bitsandbytes complains to whoever imports ppo_lib"
    assert logging.getLogger().level != logging.ERROR, "the warnings of all libraries are silenced"
