"""Settings and prompts: what is accepted, and what every bad one is told."""

import pytest
from datasets import Dataset
from torch import Generator

from ppo_lib.config import PPOConfig
from ppo_lib.data import PPODataset, PromptBatches, as_dataset


def test_yaml_round_trip(tmp_path):
    config = PPOConfig(learning_rate=3e-4, batch_size=8, minibatch_size=4, whiten_advantages=False)
    config.to_yaml(tmp_path / "run.yaml")
    assert PPOConfig.from_yaml(tmp_path / "run.yaml") == config, "a setting is lost on the way through YAML"


def test_yaml_reads_exponents_without_a_dot(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 3e-4\n")
    assert PPOConfig.from_yaml(tmp_path / "run.yaml").learning_rate == 3e-4, "YAML reads 3e-4 as text: make it a float"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate: 0.1", "unknown setting `learnin_rate`: did you mean `learning_rate`"),
        ("kl_coeff: 0.1", "did you mean `kl_coef`"),
        ("zzz: 1", "known settings: model, output_dir"),
        ("kl_coef: -0.1", "kl_coef\n.*greater than or equal to 0"),
        ("batch_size: many", "batch_size\n.*valid integer"),
        ("temperature: 0", "temperature\n.*greater than 0"),
        ("lam: 1.5", "lam\n.*less than or equal to 1"),
        ("learning_rate: .nan", "learning_rate\n.*finite"),
        ("minibatch_size: 64", "`minibatch_size`=64 is larger than the rollout .* 32 responses: lower"),
        ("total_episodes: 31", "`total_episodes`=31 is less than one rollout of 32"),
        ("- a\n- b", "holds a list"),
    ],
)
def test_impossible_settings_are_named(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        PPOConfig.from_yaml(tmp_path / "run.yaml")


def test_keywords_are_checked_like_yaml():
    with pytest.raises(ValueError, match="did you mean `num_ppo_epochs`"):
        PPOConfig(ppo_epochs=2)


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
