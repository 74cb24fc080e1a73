"""The program behind the stored SmolLM2 run, on a tiny model: it resumes exactly and says what it did."""

import csv
import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppo_lib import worlds

COMMAND = ["--updates=3", "--batch-size=4", "--minibatch-size=2", "--max-new-tokens=5", "--checkpoint-every=1"]


@pytest.fixture
def program(program_of, monkeypatch):
    """The program, with a tiny world in the place of SmolLM2."""
    module = program_of("smollm2_vader")

    def tiny_world():
        prompts = [f"<|im_start|>user\nRemark {number}.<|im_end|>\n" for number in range(9)]
        return dataclasses.replace(worlds.load("reviews"), prompts=prompts[:6], heldout_prompts=prompts[6:])

    monkeypatch.setattr(module.smollm2, "load", tiny_world)
    return module


def run(program, folder):
    program.main([*COMMAND, f"--results={folder / 'results'}", f"--work={folder / 'work'}"])


def weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "work" / "seed0-model")
    return torch.cat([weight.flatten() for weight in model.state_dict().values()])


def test_a_resumed_run_equals_an_uninterrupted_one(program, monkeypatch, tmp_path):
    run(program, tmp_path / "whole")
    train_step = program.PPOTrainer.train_step

    def dies_in_the_third(trainer, prompts):
        if len(trainer.history) == 2:
            raise KeyboardInterrupt
        return train_step(trainer, prompts)

    monkeypatch.setattr(program.PPOTrainer, "train_step", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(program, tmp_path / "halves")
    stored = json.loads((tmp_path / "halves/results/seed0/run.json").read_text())
    assert (stored["updates_done"], stored["heldout_after"]) == (2, None), "a run cut short must not look finished"

    monkeypatch.setattr(program.PPOTrainer, "train_step", train_step)
    run(program, tmp_path / "halves")
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "halves")), "the resumed run took another path"


def test_what_is_stored(program, tmp_path):
    run(program, tmp_path)
    folder = tmp_path / "results/seed0"
    stored = json.loads((folder / "run.json").read_text())
    assert (stored["updates_done"], stored["updates_planned"], stored["commit"]) == (3, 3, "abc")
    before, after = stored["heldout_before"], stored["heldout_after"]
    assert before["responses"] == after["responses"] == 3 * program.SAMPLES
    assert abs(before["kl_per_response"]) < 1e-5, "before training the policy is the reference"
    assert after["kl_per_response"] != before["kl_per_response"], "training changed nothing"
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["update"] for row in rows] == ["1", "2", "3"]
    samples = json.loads((folder / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == ["Remark 6.", "Remark 7.", "Remark 8."]
    assert all(set(sample["before"]) == set(sample["after"]) == {"response", "score"} for sample in samples)
