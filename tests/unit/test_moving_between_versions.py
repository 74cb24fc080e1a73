"""What the decision guide says of moving between v0, v1 and v2: models in every direction, settings forwards only."""

import itertools

import pytest
import torch

from ppo_lib import ppo, ppo_v1, ppo_v2
from ppo_lib.config import PPOConfig, PPOConfigV1, ReplayConfig
from tests.unit.test_trainer import vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer, tiny_policy

STAGES = {"v0": ppo.PPOTrainer, "v1": ppo_v1.PPOTrainer, "v2": ppo_v2.PPOTrainerWithReplay}
CONFIGS = {"v0": PPOConfig, "v1": PPOConfigV1, "v2": ReplayConfig}
SMALL = {"batch_size": 2, "minibatch_size": 2, "total_episodes": 6, "max_new_tokens": 4, "num_ppo_epochs": 1,
         "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model that each stage has trained and saved: stage → trainer and folder."""
    found = {}
    for stage, trainer_class in STAGES.items():
        policy = tiny_policy(sharpness=2.0)
        trainer = trainer_class(policy, vowels, tokenizer=byte_tokenizer(), **SMALL)
        trainer.train(PROMPTS)
        folder = tmp_path_factory.mktemp(stage)
        trainer.save(folder)
        found[stage] = trainer, folder
    return found


@pytest.mark.parametrize(("before", "after"), [*itertools.permutations(STAGES, 2)])
def test_what_one_stage_saves_every_other_loads_and_trains_on(saved, before, after):
    old, folder = saved[before]
    new = STAGES[after](str(folder), vowels, **SMALL)
    for name in ("policy", "critic"):
        pairs = zip(getattr(old, name).parameters(), getattr(new, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), f"{after} loads another {name} than {before} saved"
    assert len(new.train(PROMPTS)) == 3, f"{after} does not make all of its updates on the model that {before} saved"


def test_the_first_model_can_stay_the_reference(saved):
    _, folder = saved["v1"]
    first = tiny_policy(sharpness=2.0)
    trainer = STAGES["v2"](str(folder), vowels, reference=first, **SMALL)
    assert trainer.reference is first, "the reference that is given is replaced by a copy of the loaded model"
    assert trainer.train(PROMPTS)[0]["objective/kl"] != 0, "KL is measured against the loaded model, not the first one"


@pytest.mark.parametrize(("before", "after"), [*itertools.combinations(CONFIGS, 2)])
def test_settings_move_forwards_only(tmp_path, before, after):
    CONFIGS[before](learning_rate=3e-4, seed=7).to_yaml(tmp_path / "early.yaml")
    read = CONFIGS[after].from_yaml(tmp_path / "early.yaml")
    assert (read.learning_rate, read.seed) == (3e-4, 7), f"{after} loses settings that {before} wrote"
    CONFIGS[after]().to_yaml(tmp_path / "late.yaml")
    with pytest.raises(ValueError, match="unknown setting"):
        CONFIGS[before].from_yaml(tmp_path / "late.yaml")


def test_settings_of_v0_bring_v0s_rollouts(tmp_path):
    PPOConfig().to_yaml(tmp_path / "v0.yaml")
    assert ReplayConfig().batch_size == 16, "the test needs v2 to have another default of `batch_size` than v0"
    assert ReplayConfig.from_yaml(tmp_path / "v0.yaml").batch_size == 32, (
        "`batch_size` of v0 is lost where v2 reads v0's settings: a default is not written"
    )


def test_a_run_with_replay_goes_on_without_it(tmp_path):
    def trainer(**settings):
        policy = tiny_policy(sharpness=2.0)
        folder = str(tmp_path / "run")
        return STAGES["v2"](policy, vowels, tokenizer=byte_tokenizer(), output_dir=folder, **SMALL, **settings)

    trainer(save_every=1).train(PROMPTS, callback=lambda trainer, rollout, metrics: metrics["update"] == 2)
    with pytest.warns(UserWarning, match="use_replay_buffer"):
        resumed = trainer(resume_from_checkpoint=True, use_replay_buffer=False)
    (last,) = resumed.train(PROMPTS)
    assert "replay/sampled" not in last, "a run that goes on with `use_replay_buffer=False` still replays"
    assert last["update"] == 3, "a run that goes on without replay counts its updates anew"
