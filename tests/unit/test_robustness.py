"""What users pass and what goes wrong: paths, dtypes, tokenizers of other kinds, damaged folders, failing saves."""

import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ppo_lib.config import PPOConfig
from ppo_lib.data import PPODataset
from ppo_lib.losses import clip_fraction, value_clip_fraction
from ppo_lib.models import save_models
from ppo_lib.ppo import PPOTrainer
from ppo_lib.rewards import RewardModel
from ppo_lib.rollout import sample
from tests.unit.test_rewards import classifier
from tests.unit.test_trainer import SMALL_RUN, trainer, vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer, tiny_policy


@pytest.fixture
def saved(tmp_path):
    """A folder with a policy that is recognisably not the embedded one."""
    ppo = trainer(tiny_policy("gpt2"))
    ppo.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_path_is_a_folder(saved):
    ppo = PPOTrainer(saved, vowels, **SMALL_RUN)
    assert type(ppo.policy).__name__ == "GPT2LMHeadModel", "a Path was ignored and the embedded world trained instead"
    assert ppo.config.model == str(saved), "the config names another model than the folder that was passed as a Path"


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), 7])
def test_a_model_of_another_kind_is_refused(model):
    with pytest.raises(TypeError, match="`model` is a .*: pass a transformers model"):
        PPOTrainer(model, vowels)


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="`config` is a dict, no PPOConfig"):
        PPOTrainer(config={"batch_size": 8})


def test_the_config_names_the_model_that_was_passed():
    assert trainer(tiny_policy("gpt2")).config.model == "GPT2LMHeadModel", (
        "config.yaml would name the embedded world where a model object was passed"
    )


def test_half_precision_weights_are_loaded_as_float32(saved):
    AutoModelForCausalLM.from_pretrained(saved).half().save_pretrained(saved)
    assert PPOTrainer(saved, vowels, **SMALL_RUN).policy.dtype == torch.float32, (
        "weights saved in half precision are trained in it, and lose small updates"
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda policy: policy.half(), "float16, which lose small updates: pass model.float()"),
        (lambda policy: policy.bfloat16(), "bfloat16"),
        (lambda policy: policy.requires_grad_(False), "all weights of the policy are frozen"),
    ],
)
def test_a_policy_that_cannot_learn_is_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        trainer(spoil(tiny_policy()))


def test_sampling_settings_in_the_generation_config_do_not_stop_the_save(tmp_path):
    policy = tiny_policy()
    policy.generation_config.temperature = 0.5
    ppo = trainer(policy, output_dir=str(tmp_path))
    ppo.train(PPODataset(PROMPTS))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config.temperature == 0.5, (
        "the user's sampling settings are lost from the saved generation config"
    )


def test_a_save_that_fails_leaves_the_last_one_and_does_not_hide_the_error(tmp_path, monkeypatch):
    ppo = trainer(tiny_policy(), output_dir=str(tmp_path))
    ppo.train(PPODataset(PROMPTS))
    kept = {name: weight.clone() for name, weight in ppo.policy.state_dict().items()}

    def no_space(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr(ppo.critic, "save_pretrained", no_space)
    monkeypatch.setattr(ppo, "reward", lambda prompts, responses: 1 / 0)
    with pytest.raises(ValueError, match="the reward raised ZeroDivisionError") as caught:
        ppo.train(PPODataset(PROMPTS))
    notes = "".join(caught.value.__notes__)
    assert "saving the models in `output_dir` failed: OSError('no space left on device')" in notes, (
        "a save that failed after an error is not told in a note of that error"
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(kept[name], loaded[name]) for name in kept), "a failed save damaged the model saved before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl", "model"], (
        "a failed save leaves what it had half written in `output_dir`"
    )


def test_saving_into_a_folder_keeps_what_else_is_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    ppo = trainer(tiny_policy())
    save_models(tmp_path, ppo.policy, ppo.tokenizer, ppo.critic)
    assert (tmp_path / "notes.txt").exists(), "saving into a folder deletes what else the user has in it"
    assert (tmp_path / "notes.txt").read_text() == "mine", "saving into a folder overwrites a file of the user's"
    assert (tmp_path / "critic" / "value_head.safetensors").exists(), "the critic's value head is not saved"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "cannot be loaded: .* no folder with a whole saved model"),
        ("critic/model.safetensors", "the critic in .* is damaged .*: remove it to start a new one"),
        ("critic/value_head.safetensors", "the critic in .* is damaged"),
    ],
)
def test_a_damaged_folder_is_named(saved, file, message):
    (saved / file).write_bytes((saved / file).read_bytes()[:20])
    with pytest.raises(ValueError, match=message):
        PPOTrainer(saved, vowels, **SMALL_RUN)


def test_a_folder_without_tokenizer_takes_the_one_given(saved):
    for path in saved.glob("tokenizer*"):
        path.unlink()
    assert PPOTrainer(saved, vowels, tokenizer=byte_tokenizer(), **SMALL_RUN).tokenizer.eos_token_id == 256, (
        "the tokenizer that was passed is not the one that is used"
    )


def word_tokenizer(**template) -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind, which drops the space before the first word it decodes."""
    vocabulary = {"<eos>": 0, "<unk>": 1, "▁The": 2, "▁film": 3, "▁was": 4, "▁great": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(special_tokens=[("<eos>", 0)], **template)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def test_the_space_between_prompt_and_response_survives():
    tokenizer, policy = word_tokenizer(), tiny_policy(vocab_size=258)
    policy.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(258).index_fill(0, torch.tensor([5]), 1e4))
    tokenizer.pad_token = tokenizer.eos_token
    rollout = sample(policy, tokenizer, ["The film was"], 2)
    assert rollout.responses == [" great great"], "the reward would read glued words"


def test_a_tokenizer_that_ends_prompts_is_refused():
    with pytest.raises(ValueError, match="puts an EOS behind every prompt.*: set add_eos_token=False"):
        trainer(tokenizer=word_tokenizer(single="$A <eos>"))


@pytest.mark.parametrize("configured", [None, 0, 1, 256, 257])
def test_a_reward_model_pads_as_its_tokenizer_does(configured):
    model = classifier()
    model.config.pad_token_id = configured
    reward = RewardModel(model, byte_tokenizer())
    together = reward(["a", "a much longer prompt"], ["b", " and its response"])
    alone = reward(["a"], ["b"])
    assert together[0].item() == pytest.approx(alone[0].item(), abs=1e-5), "padding of a neighbour changes a score"


def test_a_bare_classifier_is_a_reward():
    assert isinstance(trainer(reward=classifier()).reward, RewardModel), (
        "a bare classifier would be called with texts: wrap it in a RewardModel"
    )


@pytest.mark.parametrize("reward", [lambda text: [1.0], "smile", 3])
def test_a_reward_that_cannot_be_called_is_refused(reward):
    with pytest.raises(ValueError, match="`reward` (must take two lists|is .*: pass a function)"):
        trainer(reward=reward)


def test_prompts_must_fit_the_reward_model_too():
    model = classifier()
    model.config.max_position_embeddings = 20
    with pytest.raises(ValueError, match="it exceeds the reward model's context of 20"):
        trainer(reward=RewardModel(model, byte_tokenizer())).train(["fine", "x" * 30])


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        (None, ValueError, "there are no prompts"),
        ({"prompt": ["a"]}, TypeError, r"a mapping of \['prompt'\]: pass one split, or one list"),
        (DatasetDict({"train": Dataset.from_dict({"prompt": ["a"]})}), TypeError, r"a mapping of \['train'\]"),
    ],
)
def test_bad_prompt_containers_are_named(prompts, error, message):
    with pytest.raises(error, match=message):
        PPODataset(prompts)


@pytest.mark.parametrize("text", ["on: 1", "1: 2", "null: 3"])
def test_yaml_keys_that_are_no_names(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match="unknown setting"):
        PPOConfig.from_yaml(tmp_path / "run.yaml")


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not YAML"), ("0", "holds a int"), ("[]", "holds a list")])
def test_files_that_hold_no_settings(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        PPOConfig.from_yaml(tmp_path / "run.yaml")


def test_training_twice_goes_on_and_returns_its_own_metrics():
    ppo = trainer()
    first, second = ppo.train(PPODataset(PROMPTS)), ppo.train(PPODataset(PROMPTS))
    assert [m["update"] for m in first] == [1, 2], "a run has other updates than it returns"
    assert [m["update"] for m in second] != [1, 2], "a second `train` counts its updates from 1 again"
    assert [m["update"] for m in second] == [3, 4], (
        "`train` returns the metrics of earlier runs too, or not all of its own"
    )
    assert ppo.history == first + second, "`history` does not keep the metrics of both runs"


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step():
    ppo = trainer(tiny_policy())
    ppo.reward = lambda prompts, responses: [3e38] * len(prompts)
    before = [parameter.clone() for parameter in ppo.policy.parameters()]
    with pytest.raises(FloatingPointError, match="the loss is .* in update 1: lower `learning_rate`"):
        ppo.train(PPODataset(PROMPTS))
    assert all(torch.equal(old, new) for old, new in zip(before, ppo.policy.parameters(), strict=True)), (
        "the step of a loss that is not finite is taken before the run stops"
    )


def test_clip_fractions_count_lost_gradients_only():
    one = torch.ones(1, 1, dtype=torch.bool)

    def at(x):
        return torch.tensor([[float(x)]])

    assert clip_fraction(at(-1.0), at(0.0), at(0.0), one, 0.2) == 0, "a token without advantage has no gradient to lose"
    assert value_clip_fraction(at(1.0), at(0.0), at(2.0), one, 0.2) == 1, (
        "a value whose gradient the clip removes is not counted"
    )
    assert value_clip_fraction(at(-1.0), at(0.0), at(2.0), one, 0.2) == 0, "moved far, but the clip does not bite"
