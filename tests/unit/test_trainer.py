"""The v0 trainer: its one update in detail, its errors, interruption, saving and determinism."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ppo_lib.config import PPOConfig
from ppo_lib.data import PPODataset
from ppo_lib.models import Critic
from ppo_lib.ppo import PPOTrainer
from ppo_lib.rewards import RewardError, RewardModel
from ppo_lib.rollout import sample
from tests.unit.test_rewards import classifier
from tests.unit.tiny import FAMILIES, PROMPTS, byte_tokenizer, likely_eos, tiny_policy

SMALL_RUN = dict(batch_size=8, minibatch_size=4, total_episodes=16, max_new_tokens=6, num_ppo_epochs=2, device="cpu")


def vowels(prompts, responses):
    return [sum(letter in "aeiou" for letter in response) for response in responses]


def trainer(policy=None, reward=vowels, tokenizer=None, **settings):
    return PPOTrainer(
        policy or likely_eos(tiny_policy()),
        reward,
        tokenizer=tokenizer or byte_tokenizer(),
        **{**SMALL_RUN, **settings},
    )


def estimated(ppo, seed=0):
    """A rollout that has passed collect, score and estimate."""
    rollout = ppo.collect(PROMPTS * 2, torch.Generator().manual_seed(seed))
    ppo.score(rollout)
    ppo.estimate(rollout)
    return rollout


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_and_prompts_of_any_length_train(family, tmp_path):
    ppo = trainer(tiny_policy(family), output_dir=str(tmp_path))
    before = {name: p.clone() for name, p in ppo.policy.named_parameters()}
    history = ppo.train(PPODataset(PROMPTS))
    assert [m["episode"] for m in history] == [8, 16], "episodes are not counted in responses"
    assert any(not torch.equal(before[name], p) for name, p in ppo.policy.named_parameters()), "no weight moved"
    assert all(torch.tensor(list(m.values())).isfinite().all() for m in history), "a metric is NaN or infinite"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == history, "metrics.jsonl is not the history"
    assert PPOConfig.from_yaml(tmp_path / "config.yaml") == ppo.config, "config.yaml would not repeat the run"
    assert len(ppo.plot().data) > 0, "the plot of a run is empty"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_pass_has_ratio_one(temperature):
    ppo = trainer(temperature=temperature)
    with torch.no_grad():
        loss, metrics = ppo.loss(estimated(ppo))
    mistake = "logits and tokens are not aligned" if temperature == 1.0 else "the update forgets the temperature"
    assert metrics["val/ratio"].item() == pytest.approx(1.0, abs=1e-4), f"{mistake}: the first ratio is not 1"
    assert metrics["policy/clipfrac_avg"] == 0, "tokens are clipped before any update"


def test_the_old_policy_stays_put_during_the_epochs():
    ppo = trainer(learning_rate=1e-2)
    rollout = estimated(ppo)
    ppo.step(rollout)
    _, metrics = ppo.loss(rollout)
    at_one = -rollout.advantages[rollout.mask].mean()  # the policy's loss where every ratio is 1
    moved = (metrics["val/ratio"] - 1).abs() > 1e-3 or metrics["val/ratio_var"] > 1e-4
    assert moved and (metrics["loss/policy_avg"] - at_one).abs() > 1e-3, (
        "the ratio is still 1 after a large step: π_old must be the policy that sampled, not the present one"
    )


def test_dropout_is_off():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=258, n_layer=2, n_head=4, n_embd=32, n_positions=64, resid_pdrop=0.5)
    ppo = trainer(GPT2LMHeadModel(config).train())
    _, metrics = ppo.loss(estimated(ppo))
    assert metrics["val/ratio"].item() == pytest.approx(1.0, abs=1e-4), "dropout is on: old and new log-probs differ"


def test_returns_come_from_advantages_before_whitening():
    plain, white = trainer(whiten_advantages=False), trainer(whiten_advantages=True)
    first, second = estimated(plain), estimated(white)
    assert torch.allclose(first.returns, second.returns), "returns are built from whitened advantages"
    targets = (first.advantages + first.values[:, :-1])[first.mask]
    assert torch.allclose(first.returns[first.mask], targets, atol=1e-5), "returns are not advantages + values"
    kept = second.advantages[second.mask]
    assert kept.mean().abs() < 1e-5 and (kept.std() - 1).abs() < 1e-4, "advantages are not whitened over the mask"


def test_gradients_are_clipped_each_network_by_itself():
    ppo = trainer(max_grad_norm=1e-3)
    metrics = ppo.step(estimated(ppo))
    for network, name in ((ppo.policy, "policy"), (ppo.critic, "val")):
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item()
        assert metrics[f"{name}/grad_norm"] > 1e-3, "the test needs gradients above the limit"
        assert norm <= 1.01e-3, f"the gradient of the {name} network is not clipped"


def test_the_reference_never_moves():
    ppo = trainer(learning_rate=1e-2)
    before = [p.clone() for p in ppo.reference.parameters()]
    kls = [m["objective/kl"] for m in ppo.train(PPODataset(PROMPTS))]
    same = [torch.equal(old, new) for old, new in zip(before, ppo.reference.parameters(), strict=True)]
    assert all(same), "the reference moved"
    assert abs(kls[0]) < 1e-4 and abs(kls[1]) > 1e-3, "the KL must start at 0 and then leave it"


def test_metrics_ignore_padding():
    """Garbage in every padded place leaves the loss, its gradient and the metrics as they are."""
    ppo = trainer()
    torch.nn.init.normal_(ppo.critic.value_head.weight, generator=torch.Generator().manual_seed(0))
    rollout = estimated(ppo)
    assert not rollout.mask.all(), "the test needs padding"
    spoiled = rollout.select(torch.arange(len(rollout)))
    # a different number in each, or differences of two of them would stay 0
    for number, name in enumerate(("logprobs", "ref_logprobs", "rewards", "advantages", "returns")):
        getattr(spoiled, name)[~rollout.mask] = 1e3 + 100 * number
    spoiled.values[:, :-1][~rollout.mask] = -1e3
    spoiled.response_ids[~rollout.mask] = 65

    def measured(rows):
        loss, metrics = ppo.loss(rows)
        weights = [*ppo.policy.parameters(), *ppo.critic.parameters()]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        metrics = {name: value.item() for name, value in metrics.items()} | ppo.rollout_metrics(rows)
        return loss.item(), torch.cat([g.flatten() for g in gradients if g is not None]), metrics

    loss, gradient, metrics = measured(rollout)
    spoiled_loss, spoiled_gradient, spoiled_metrics = measured(spoiled)
    assert spoiled_loss == pytest.approx(loss, abs=1e-6), (
        "padding leaks into the loss: something is not masked, or is read one place off"
    )
    assert torch.allclose(spoiled_gradient, gradient, atol=1e-6), "padding leaks into the gradient"
    for name, value in metrics.items():
        assert spoiled_metrics[name] == pytest.approx(value, abs=1e-5), f"padding leaks into {name}"


def test_same_seed_same_run_bit_for_bit():
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        ppo = trainer(seed=seed)
        torch.manual_seed(number)  # the global generator must not matter
        history = [{k: v for k, v in m.items() if k != "eps"} for m in ppo.train(PPODataset(PROMPTS))]
        runs.append((history, torch.cat([p.flatten() for p in ppo.policy.parameters()])))
    same = "the same seed gave {}: something draws from the process's generator, not from the trainer's own"
    sampled = ["objective/scores", "objective/kl", "objective/entropy", "response/length"]
    first, again = ([[row[name] for name in sampled] for row in history[:1]] for history, _ in runs[:2])
    assert first == again, same.format("other responses (the sampler)")
    assert runs[0][0] == runs[1][0], same.format("other updates of the same responses (the shuffling of minibatches)")
    assert torch.equal(runs[0][1], runs[1][1]), "the same seed gave other weights"
    assert not torch.equal(runs[0][1], runs[2][1]), "another seed gave the same run: the seed is not used"


@pytest.mark.parametrize(("family", "tied"), [*((family, False) for family in FAMILIES), ("llama", True)])
def test_saved_models_load_everywhere(family, tied, tmp_path):
    ppo = trainer(tiny_policy(family, tie_word_embeddings=tied))
    ppo.policy.generation_config.eos_token_id = [256, 255]
    ppo.train(PPODataset(PROMPTS))
    ppo.save(tmp_path)
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert policy.generation_config.eos_token_id == [256, 255], "eos_token_id is lost from the saved model"
    assert tokenizer.eos_token_id == 256, "the saved tokenizer has another EOS"
    for mine, loaded in ((ppo.policy, policy), (ppo.critic, Critic.from_pretrained(tmp_path / "critic"))):
        for (name, weight), other in zip(mine.named_parameters(), loaded.parameters(), strict=True):
            assert torch.equal(weight, other), f"{name} is not saved as it was"
    output, words = policy.get_output_embeddings().weight, policy.get_input_embeddings().weight
    assert (output is words) == tied, "the loaded model shares other weights than the saved one"
    # For any qwen2 model AutoTokenizer makes a Qwen2Tokenizer, which adds a token of its own to these 258.
    own = ppo.tokenizer if family == "qwen2" else None
    again = PPOTrainer(str(tmp_path), vowels, tokenizer=own, **SMALL_RUN)
    assert again.generate(PROMPTS, greedy=True) == ppo.generate(PROMPTS, greedy=True), "the loaded policy is another"
    assert torch.equal(again.critic.value_head.weight, ppo.critic.value_head.weight), "the saved critic is not taken up"


def test_generate_answers_greedily_or_by_its_seed_alone():
    ppo = trainer(temperature=0.7)
    before = ppo.generator.get_state()

    def sampled(**how):
        return sample(ppo.policy, ppo.tokenizer, PROMPTS, 6, 0.7, **how).responses

    for seed in (0, 3):
        expected = sampled(generator=torch.Generator().manual_seed(seed))
        assert ppo.generate(PROMPTS, seed=seed) == expected, f"these are not the responses of seed {seed}"
    assert ppo.generate(PROMPTS, greedy=True) == sampled(greedy=True) != expected, "`greedy` is ignored"
    assert torch.equal(ppo.generator.get_state(), before), "`generate` spends random numbers of training"


def test_a_reward_model_is_a_reward():
    ppo = trainer(reward=RewardModel(classifier()))
    assert len(ppo.train(PPODataset(PROMPTS))) == 2, "a run of 16 episodes in rollouts of 8 has 2 updates"


def test_callback_sees_every_update():
    seen = []
    trainer().train(PPODataset(PROMPTS), callback=lambda ppo, rollout, m: seen.append((m["update"], len(rollout))))
    assert seen == [(1, 8), (2, 8)], "the callback is not called once after each update"


class TestBadInput:
    """Each is refused before anything is generated, by a message that names the cause and the fix."""

    @pytest.fixture(autouse=True)
    def no_generation(self, monkeypatch):
        monkeypatch.setattr("ppo_lib.ppo.sample", lambda *args, **kwargs: pytest.fail("responses were generated"))

    def test_prompt_without_room(self):
        with pytest.raises(ValueError, match="prompt 1 has 60 tokens; with `max_new_tokens`=6 .* context of 64"):
            trainer().train(["fine", "x" * 60])

    def test_tokenizer_without_eos(self):
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = None
        with pytest.raises(ValueError, match="no EOS token.*set `tokenizer.eos_token`"):
            trainer(tokenizer=tokenizer)

    def test_tokenizer_larger_than_the_policy(self):
        with pytest.raises(ValueError, match="tokenizer knows 258 tokens but the policy has 200"):
            trainer(tiny_policy(vocab_size=200))

    def test_reference_of_another_vocabulary(self):
        with pytest.raises(ValueError, match="the reference has a vocabulary of 300 tokens, the policy one of 258"):
            PPOTrainer(tiny_policy(), vowels, tokenizer=byte_tokenizer(), reference=tiny_policy(vocab_size=300))

    def test_reward_model_of_another_vocabulary(self):
        with pytest.raises(ValueError, match="the reward model has a vocabulary of 300"):
            trainer(reward=RewardModel(classifier(vocab_size=300)))

    def test_reference_that_is_the_policy(self):
        policy = tiny_policy()
        with pytest.raises(ValueError, match="`reference` is the policy itself"):
            PPOTrainer(policy, vowels, tokenizer=byte_tokenizer(), reference=policy)

    def test_no_reward(self):
        with pytest.raises(ValueError, match="`reward` is None: pass a function"):
            PPOTrainer(tiny_policy(), tokenizer=byte_tokenizer())

    def test_no_tokenizer(self):
        with pytest.raises(ValueError, match="pass its tokenizer too"):
            PPOTrainer(tiny_policy(), vowels)

    def test_no_such_model(self):
        with pytest.raises(ValueError, match="`model`='./nowhere' cannot be loaded"):
            PPOTrainer("./nowhere", vowels)

    def test_no_such_device(self):
        with pytest.raises(ValueError, match="`device`='quantum' cannot be used here"):
            trainer(device="quantum")

    def test_output_dir_of_another_run(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        with pytest.raises(ValueError, match="`output_dir`=.* holds an earlier run: choose another folder"):
            trainer(output_dir=str(tmp_path)).train(PPODataset(PROMPTS))
        assert (tmp_path / "metrics.jsonl").read_text() == "{}\n", "the earlier run's log was changed"

    def test_unknown_setting(self):
        with pytest.raises(ValueError, match="did you mean `learning_rate`"):
            trainer(learnin_rate=1e-3)


def raises(scores):
    raise KeyError("no such word")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (raises, "no such word.*for prompt"),
        (lambda scores: scores[1:], r"shape \(7,\) for 8 responses"),
        (lambda scores: [*scores[:-1], math.nan], "gave nan for prompt"),
    ],
    ids=["raises", "wrong count", "NaN"],
)
def test_a_failing_reward_keeps_what_was_learned(failure, message, tmp_path):
    calls = []

    def fails_later(prompts, responses):
        calls.append(len(prompts))
        scores = vowels(prompts, responses)
        return failure(scores) if sum(calls) > 8 else scores

    ppo = trainer(tiny_policy(), reward=fails_later, output_dir=str(tmp_path))
    before = [p.clone() for p in ppo.policy.parameters()]
    with pytest.raises(RewardError, match=message) as caught:
        ppo.train(PPODataset(PROMPTS))
    assert "1 whole updates are logged; the models are in" in "".join(caught.value.__notes__)
    logged = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(logged) == len(ppo.history) == 1, "the update before the failure is not logged, or the failed one is"
    saved = list(AutoModelForCausalLM.from_pretrained(tmp_path / "model").parameters())
    assert not all(map(torch.equal, saved, before)), "what the first update learned is lost"
    assert all(map(torch.equal, saved, ppo.policy.parameters())), "the saved policy is not the one that was trained"


# A shell starts a background job with Ctrl-C ignored, and its children inherit that; this one must hear it.
INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.unit.test_trainer import *
ppo = trainer(output_dir={folder!r}, total_episodes=80_000)
ppo.train(PPODataset(PROMPTS))
"""


def test_ctrl_c_leaves_a_usable_model_and_logs(tmp_path):
    log = tmp_path / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(folder=str(tmp_path))],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    deadline = time.time() + 120
    while time.time() < deadline and not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in stderr, "Ctrl-C is swallowed"
    assert b"whole updates are logged; the models are in" in stderr, "an interrupted run does not say what it saved"
    history = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(history) >= 2, "logged updates are lost on Ctrl-C"
    resumed = PPOTrainer(str(tmp_path / "model"), vowels, **SMALL_RUN)
    assert all(parameter.isfinite().all() for parameter in resumed.policy.parameters()), "the saved model is broken"
    assert len(resumed.train(PPODataset(PROMPTS))) == 2, "the saved model does not train on"
