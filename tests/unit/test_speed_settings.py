"""One trunk for policy and critic, logits in chunks, minibatches without padding: the same numbers for less work."""

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from ppo_lib import ppo
from ppo_lib import rollout as rollouts
from ppo_lib.models import Critic
from ppo_lib.ppo_v1 import PPOTrainer
from tests.unit.runs_v1 import PROMPTS, assert_same_run, estimated, make, vowels, weights
from tests.unit.tiny import FAMILIES, byte_tokenizer, hand_rollout, tiny_policy


def gradients(trainer) -> dict[str, torch.Tensor]:
    named = [*trainer.policy.named_parameters(), *trainer.critic.named_parameters()]
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def with_a_head(trainer):
    """A value head that is not zero, so that values and their gradients are something."""
    torch.nn.init.normal_(trainer.critic.value_head.weight, generator=torch.Generator().manual_seed(0))
    return trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_one_trunk_gives_the_numbers_of_two_passes(family):
    trainer = with_a_head(make(tiny_policy(family), share_trunk=True, entropy_coef=0.1))
    rollout = estimated(trainer)
    shared, apart = trainer.predictions(rollout), ppo.PPOTrainer.predictions(trainer, rollout)
    for name, one, other in zip(("log-probs", "entropies", "values"), shared, apart, strict=True):
        gap = (one - other)[rollout.mask].abs().max().item()
        assert gap < 1e-3, f"{name} from the shared pass differ by {gap:.2g} from those of two passes"
    estimates = rollout.values[:, :-1]
    assert torch.allclose(shared[2][rollout.mask], estimates[rollout.mask], atol=1e-3), "values are not those estimated"


def test_a_shared_trunk_is_one_network_and_learns_from_both_losses():
    trainer = make(share_trunk=True, vf_coef=0.0)
    assert [name for name, _ in trainer.critic.named_parameters()] == ["value_head.weight", "value_head.bias"]
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}), "a weight is in the optimiser twice"
    grown = {}
    for vf_coef in (0.0, 0.5):
        trainer = with_a_head(make(share_trunk=True, vf_coef=vf_coef, max_grad_norm=1e9))
        trainer.accumulate(estimated(trainer), 4)
        grown[vf_coef] = gradients(trainer)["model.layers.0.mlp.up_proj.weight"].clone()
    assert not torch.allclose(grown[0.0], grown[0.5], rtol=1e-3), "the value loss does not reach the trunk"


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"activation_checkpointing": True}], ids=str)
def test_a_shared_trunk_is_saved_for_every_stage_and_resumed(tmp_path, settings):
    trainer = make(share_trunk=True, output_dir=str(tmp_path), save_every=1, **settings)
    trainer.train(PROMPTS)
    again = ppo.PPOTrainer(str(tmp_path / "model"), vowels, batch_size=4, minibatch_size=4, device="cpu")
    rollout = estimated(trainer)
    with torch.no_grad():
        saved, own = again.values(rollout), trainer.values(rollout)
    assert torch.allclose(saved, own, atol=1e-3), "v0 does not load the critic that a shared trunk saved"
    shared = PPOTrainer(str(tmp_path / "model"), vowels, share_trunk=True, batch_size=4, minibatch_size=4, device="cpu")
    assert torch.equal(shared.critic.value_head.weight, again.critic.value_head.weight), "the saved head is lost"
    resumed = make(resume_from_checkpoint=sorted((tmp_path / "checkpoints").iterdir())[0], output_dir=None)
    resumed.train(PROMPTS)
    assert_same_run(resumed, trainer, "a shared trunk resumes otherwise", names=["objective/scores", "loss/value_avg"])


def test_a_critic_of_another_trunk_starts_anew():
    policy = tiny_policy()
    other = Critic(copy.deepcopy(tiny_policy(seed=1).base_model))
    torch.nn.init.ones_(other.value_head.weight)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = PPOTrainer(policy, vowels, tokenizer=byte_tokenizer(), critic=other, share_trunk=True, batch_size=4,
                             minibatch_size=4, total_episodes=4, device="cpu")  # fmt: skip
    assert not trainer.critic.value_head.weight.any(), "a head that read another trunk's states was taken over"
    assert any("V(s) begins at 0" in str(one.message) for one in said), "a critic is left out and nothing is said"


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_chunks_change_neither_gradient_nor_metrics(family, chunk, entropy_coef):
    found = []
    for settings in ({}, {"logits_chunk": chunk}):
        trainer = with_a_head(make(tiny_policy(family), entropy_coef=entropy_coef, max_grad_norm=1e9, **settings))
        rollout = estimated(trainer)
        found.append((trainer.accumulate(rollout, 4), gradients(trainer), rollout.ref_logprobs))
    (metrics, whole, reference), (in_chunks, parts, ref_in_chunks) = found
    assert torch.allclose(reference, ref_in_chunks, atol=1e-4), "chunks change the reference's log-probabilities"
    largest = max(g.abs().max() for g in whole.values())
    for name, gradient in whole.items():
        assert (parts[name] - gradient).abs().max() < 1e-4 * largest, f"chunks change the gradient of {name}"
    for name, value in metrics.items():
        assert in_chunks[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4), f"chunks change {name}"


def test_a_chunk_is_all_that_exists_at_a_time(monkeypatch):
    trainer, widths = make(logits_chunk=3), []
    entropy_of = rollouts.entropy_of
    monkeypatch.setattr(rollouts, "entropy_of", lambda logits: widths.append(len(logits)) or entropy_of(logits))
    trainer.accumulate(estimated(trainer), 4)
    assert widths and max(widths) == 3, f"logits of {max(widths)} tokens stood in memory where 3 were asked for"


def test_models_that_do_more_to_their_logits_are_refused():
    config = Gemma2Config(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.1, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    for settings in ({"share_trunk": True}, {"logits_chunk": 8}):
        said = ""
        try:
            make(AutoModelForCausalLM.from_config(config), **settings)
        except ValueError as error:
            said = str(error)
        assert said.startswith("Gemma2ForCausalLM does more to its logits"), f"softcapped logits are lost: {settings}"
        assert "set share_trunk=False and logits_chunk=None" in said, "the message does not say what to change"


def test_a_trimmed_rollout_computes_the_same():
    rollout = hand_rollout(lengths=(2, 1, 4), width=4)
    rollout.prompt_mask = torch.tensor([[False, True], [False, True], [True, True]])
    short = rollout.select(torch.tensor([0, 1]))
    trimmed = short.trimmed()
    assert trimmed.prompt_ids.shape == (2, 1) and trimmed.mask.shape == (2, 2), "columns without a token stay"
    assert trimmed.values.shape == (2, 3), "values lose the one after the last token"
    for name in ("response_ids", "logprobs", "ref_logprobs"):
        whole, cut = getattr(short, name), getattr(trimmed, name)
        assert torch.equal(whole[short.mask], cut[trimmed.mask]), f"{name} of real tokens change"
    assert torch.equal(trimmed.prompt_ids, short.prompt_ids[:, 1:]), "prompts are cut at the wrong end"
    assert rollout.trimmed().tokens.shape == rollout.tokens.shape, "a column with a token is lost"


def test_micro_batches_hold_responses_of_like_length(monkeypatch):
    trainer, seen, loss = make(), [], PPOTrainer.loss

    def watched(self, micro):
        seen.append(micro.lengths.tolist())
        return loss(self, micro)

    monkeypatch.setattr(PPOTrainer, "loss", watched)
    rollout = hand_rollout([6, 1, 5, 2], [True] * 4, width=6)
    rollout.advantages = rollout.returns = torch.ones(4, 6)
    trainer.accumulate(rollout, 2)
    assert seen == [[1, 2], [5, 6]], f"short and long responses share a micro-batch: {seen}"


def test_entropy_that_is_only_watched_has_no_graph():
    trainer = make()
    _, entropies, _ = trainer.predictions(estimated(trainer))
    assert not entropies.requires_grad, "the backward pass goes through an entropy that weighs nothing"
    before = weights(trainer)
    trainer.train(PROMPTS)
    assert any(not torch.equal(before[name], weight) for name, weight in weights(trainer).items())
