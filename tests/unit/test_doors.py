"""What comes in from people: the same checks at every door, files as the web and Windows write them, paths as shells do.

Each test stands for reports of other trainers, and for their kind.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from ppo_lib import worlds
from ppo_lib.data import PPODataset, columns_of
from ppo_lib.evaluation import evaluate
from ppo_lib.inputs import prompts_in, reward_function
from ppo_lib.models import WRITTEN_ASIDE
from ppo_lib.ppo import PPOConfig, PPOTrainer
from ppo_lib.ppo_v1 import PPOConfigV1
from ppo_lib.ppo_v1 import PPOTrainer as PPOTrainerV1
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.rewards import score_responses

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
    assert len(PPOTrainer(**SMALL).train(PROMPTS, callback=lambda *_: go_on)) == 4


# prompts


TABLES = {
    "pandas": pd.DataFrame({"label": 1, "prompt": PROMPTS}),
    "pyarrow": pa.table({"label": [1] * 4, "prompt": PROMPTS}),
    "numpy records": np.array([(1, prompt) for prompt in PROMPTS], dtype=[("label", int), ("prompt", "U20")]),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_gives_its_column(table):
    assert [str(prompt) for prompt in PPODataset(table).prompts] == PROMPTS
    with pytest.raises(ValueError, match=r"columns \['label', 'prompt'\], not `text`"):
        PPODataset(table, column="text")


def test_what_is_no_table_has_no_columns():
    assert columns_of(PROMPTS) is None and columns_of(np.array(PROMPTS)) is None and columns_of("text") is None
    assert PPODataset(pd.Series(PROMPTS)).prompts == PROMPTS


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


@pytest.mark.parametrize("prompts, error, words", BAD_PROMPTS.values(), ids=BAD_PROMPTS)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
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


@pytest.mark.parametrize("name, text, prompts", FILES.values(), ids=FILES)
def test_files_as_the_web_and_windows_write_them(name, text, prompts, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    assert prompts_in(str(tmp_path / name)) == prompts


BAD_FILES = {
    "null": ("a.jsonl", b'{"prompt": "x"}\n\n{"prompt": null}\n', "line 3.*holds None"),
    "a number": ("a.jsonl", b'{"prompt": 7}\n', "line 1.*holds 7"),
    "no text in it": ("a.ndjson", b'{"prompt": " "}\n', "line 1.*holds ' '"),
    "no field": ("a.JSONL", b'{"text": "x"}\n', 'line 1.*field "prompt"'),
    "Latin-1": ("a.txt", b"tea\ncaf\xe9\n", "a.txt, line 2: not UTF-8"),
    "UTF-16": ("a.txt", "I think\n".encode("utf-16"), "a.txt, line 1: not UTF-8"),
}


@pytest.mark.parametrize("name, data, words", BAD_FILES.values(), ids=BAD_FILES)
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
    assert [getattr(config, name) for name in names] == [str(home / name) for name in names]
    assert PPOConfigV1(model="reviews").model == "reviews" and PPOConfig().output_dir is None


def test_a_tilde_is_home_for_runs_resumed_runs_saved_models_and_files(home):
    PPOTrainerV1(output_dir="~/runs/x", save_every=1, **SMALL).train(PROMPTS, callback=lambda *_: True)
    assert (home / "runs/x/metrics.jsonl").exists() and not (home / "~").exists()
    resumed = PPOTrainerV1(resume_from_checkpoint="~/runs/x")
    assert len(resumed.history) == 1
    resumed.save("~/saved")
    assert PPOTrainer("~/saved", reward=worlds.load("reviews").reward, **SMALL).config.model == str(home / "saved")
    (home / "prompts.txt").write_text("The film was\n")
    (home / "reward.py").write_text("def reward(prompts, responses):\n    return [1.0] * len(prompts)\n")
    assert prompts_in("~/prompts.txt") == ["The film was"]
    assert reward_function("~/reward.py:reward")(["a"], ["b"]) == [1.0]


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
    assert (tmp_path / f".ab{WRITTEN_ASIDE}x").exists() and (tmp_path / "a[b]/config.json").exists()
