"""The replay trainer: v1 without a buffer, PPO on fresh data, and what it does with responses of earlier policies."""

import copy
import dataclasses
import re

import pytest
import torch

import toc
from ppo_lib import ppo_v1
from ppo_lib.config import PPOConfigV1, ReplayConfig
from ppo_lib.estimators import token_rewards, whiten
from ppo_lib.importance import effective_sample_size, importance_ratios, second_moment_mask, vtrace
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.rollout import concatenate, logprobs_of
from ppo_lib.running.checkpoint import CheckpointError
from tests.unit.test_trainer import vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer, likely_eos, tiny_policy

RUN = {
    "batch_size": 4, "minibatch_size": 4, "total_episodes": 24, "max_new_tokens": 6, "num_ppo_epochs": 2,
    "device": "cpu", "learning_rate": 1e-3, "replay_sample_size": 6, "replay_buffer_size": 16, "max_replay_kl": None,
    "min_ess": 0.0,
}  # fmt: skip
TIMES = ("eps",)


def trainer(**settings):
    policy = likely_eos(tiny_policy(sharpness=2.0))
    return PPOTrainerWithReplay(policy, vowels, tokenizer=byte_tokenizer(), **{**RUN, **settings})


def weights(ppo):
    return [*ppo.policy.parameters(), *ppo.critic.parameters()]


def comparable(history, but=()):
    return [{k: v for k, v in row.items() if k not in TIMES and k not in but} for row in history]


def after(updates, **settings):
    """A trainer some updates into a run, its next rollout with credit assigned, and the update's number."""
    ppo = trainer(**settings)
    ppo.train(PROMPTS, callback=lambda trainer, rollout, metrics: len(trainer.history) == updates)
    rollout = ppo.collect(PROMPTS)
    ppo.score(rollout)
    ppo.estimate(rollout)
    return ppo, rollout, updates + 1


def test_without_a_buffer_v2_is_v1_bit_for_bit():
    names = {k: v for k, v in RUN.items() if hasattr(PPOConfigV1(), k)}
    v1 = ppo_v1.PPOTrainer(likely_eos(tiny_policy(sharpness=2.0)), vowels, tokenizer=byte_tokenizer(), **names)
    v2, empty = trainer(use_replay_buffer=False), trainer(replay_sample_size=0)
    v1.train(PROMPTS), v2.train(PROMPTS), empty.train(PROMPTS)
    assert comparable(v1.history) == comparable(v2.history), "with replay off v2's metrics are not v1's"
    assert all(map(torch.equal, weights(v1), weights(v2))), "with replay off v2's weights are not v1's"
    assert all(map(torch.equal, weights(v1), weights(empty))), "with nothing replayed v2's weights are not v1's"
    assert empty.history[-1]["efficiency/reuse_ratio"] == 1, "with nothing replayed responses are said to be reused"


def test_on_fresh_data_the_replay_loss_is_ppos():
    """A rollout of the current policy, sent through the buffer's way, must give v1's loss, gradient and targets."""
    ppo, rollout, version = after(1, kl_coef=0.3, lam=0.8)
    ppo.buffer.drop(ppo.buffer.held, "cleared")
    ppo.buffer.add(rollout, version)
    replayed, seen = ppo.refresh(ppo.buffer.sample(len(rollout), version, ppo.generator))
    ppo.assign_credit(replayed)
    order = [rollout.prompts.index(prompt) for prompt in replayed.prompts]
    fresh = rollout.select(torch.tensor(order))
    mask = fresh.mask[:, : replayed.mask.shape[1]]
    assert seen["replay/weight_max"] == pytest.approx(1, abs=1e-3), "on fresh data π_k/μ is not 1: μ is another policy"
    assert seen["replay/ess"] == pytest.approx(1, abs=1e-4), "even weights are not worth as many samples as there are"
    for name in ("logprobs", "ref_logprobs", "rewards", "advantages", "returns"):
        mine, expected = getattr(replayed, name), getattr(fresh, name)[:, : mask.shape[1]]
        assert torch.allclose(mine[mask], expected[mask], atol=1e-3), f"on fresh data {name} are not PPO's"
    gradients = []
    for batch in (fresh, replayed):
        loss, _ = ppo.loss(batch)
        gradients.append((loss.item(), torch.autograd.grad(loss, list(ppo.policy.parameters()))))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-4), "on fresh data the replay loss is not PPO's"
    for a, b in zip(gradients[0][1], gradients[1][1], strict=True):
        assert torch.allclose(a, b, atol=1e-3), "on fresh data the replay gradient is not PPO's"


def test_replayed_rows_are_seen_by_the_current_policy_and_critic():
    ppo, rollout, version = after(3, learning_rate=5e-3)
    replayed, _ = ppo.refresh(ppo.buffer.sample(6, version, ppo.generator))
    mask = replayed.mask
    with torch.no_grad():
        now, values = ppo.logprobs(ppo.policy, replayed), ppo.values(replayed)
    assert not torch.allclose(replayed.behaviour_logprobs[mask], now[mask], atol=1e-2), "the policy must have moved"
    assert torch.allclose(replayed.logprobs[mask], now[mask], atol=1e-3), (
        "replayed rows keep the log-probabilities of μ: those of π_k were not computed"
    )
    assert torch.allclose(replayed.values, values, atol=1e-4), "replayed rows have the values of an earlier critic"


def test_health_of_the_weights_by_hand():
    ppo, rollout, version = after(3, learning_rate=5e-3)
    replayed, seen = ppo.refresh(ppo.buffer.sample(6, version, ppo.generator))
    mask, distance = replayed.mask, (replayed.behaviour_logprobs - replayed.logprobs).masked_fill(~replayed.mask, 0.0)
    real = (-distance[mask]).exp()
    assert not mask.all(), "the test needs responses of different lengths"
    assert seen["replay/ess"] == pytest.approx(effective_sample_size(real), abs=1e-4), (
        "padding counts in the effective sample size"
    )
    kl = (distance.sum(1) / mask.sum(1)).mean().item()
    assert seen["replay/kl"] != pytest.approx(-kl, abs=1e-5), "replay/kl has the wrong sign: it is log μ − log π_k"
    assert seen["replay/kl"] == pytest.approx(kl, abs=1e-5), "replay/kl is not in nats per token"
    assert seen["replay/weight_max"] != pytest.approx(1 / real.min().item(), abs=1e-3), (
        "the weights are μ/π_k, upside down"
    )
    assert seen["replay/weight_max"] == pytest.approx(real.max().item(), abs=1e-3), (
        "replay/weight_max is not the largest weight before truncation"
    )
    assert seen["replay/truncated"] == pytest.approx((real > 2).float().mean().item()), (
        "replay/truncated is not the share of real tokens beyond `importance_cap`"
    )


def test_credit_of_a_mixed_batch_by_hand():
    ppo, rollout, version = after(3, gamma=0.9, lam=0.7, importance_cap=1.1, trace_cap=0.9, learning_rate=5e-3)
    batch, seen = ppo.mix(rollout, version)
    assert seen["replay/sampled"] > 0, "the test needs replayed responses"
    assert seen["replay/weight_max"] > 1.1, "the test needs weights beyond the cap"
    fresh, old, mask = batch.ages == 0, batch.ages > 0, batch.mask
    with torch.no_grad():
        now = ppo.logprobs(ppo.policy, batch)
    assert not torch.equal(batch.logprobs, batch.behaviour_logprobs), "the clip is coupled to μ, decoupled was asked"
    assert torch.allclose(batch.logprobs[mask], now[mask], atol=1e-3), "the clip is not centred on the current policy"
    ratios = importance_ratios(batch.logprobs, batch.behaviour_logprobs, mask)
    assert (ratios[fresh] == 1).all(), "fresh rows have ratios other than 1"
    rewards = token_rewards(batch.scores, batch.logprobs, batch.ref_logprobs, mask, ppo.kl_coef)
    assert torch.allclose(batch.rewards[old], rewards[old]), "the KL penalty is not that of the current policy"
    used, replayed = batch.weights, mask & old[:, None]
    assert (used[replayed] < 1.1).any(), "the truncation goes the wrong way: small weights are lifted to C"
    assert (used <= 1.1 + 1e-6).all(), "the weights are not truncated at C"
    assert torch.allclose(used, ratios.clamp(max=1.1), atol=1e-5), "the weights are not π_k over μ"
    advantages, targets = vtrace(rewards, batch.values, mask, batch.ended, ratios.clamp(max=0.9), 0.9, 0.7)
    _, unclipped = vtrace(rewards, batch.values, mask, batch.ended, ratios, 0.9, 0.7)
    assert not torch.allclose(batch.returns, unclipped, atol=1e-5), "the traces of V-trace are not clipped at c̄"
    assert torch.allclose(batch.returns, targets, atol=1e-5), "the value targets are not V-trace's"
    white = whiten(advantages, mask)
    apart = whiten(advantages, mask & fresh[:, None]) + whiten(advantages, replayed)
    assert not torch.allclose(batch.advantages, apart * used, atol=1e-4), "fresh and replayed rows are whitened apart"
    assert not torch.allclose(batch.advantages, whiten(advantages * used, mask), atol=1e-4), (
        "the advantages are whitened after they were weighted"
    )
    assert not torch.allclose(batch.advantages, white, atol=1e-4), "the weights never reach the advantages"
    assert torch.allclose(batch.advantages, white * used, atol=1e-4), (
        "the advantages are not whitened over the joint batch and weighted by the truncated ratio"
    )


def test_old_responses_may_teach_by_gains_alone():
    ppo, rollout, version = after(3, whiten_advantages=True)
    batch, _ = ppo.mix(rollout, version)
    both, old = batch.advantages.clone(), batch.ages > 0
    assert (both[old] < 0).any(), "the test needs losses of old responses"
    assert (both[~old] < 0).any(), "the test needs losses of fresh responses"
    ppo.config = dataclasses.replace(ppo.config, replay_gains_only=True)
    ppo.assign_credit(batch)
    assert (batch.advantages[old] >= 0).all(), "losses of old responses still teach"
    assert torch.equal(batch.advantages[old], both[old].clamp(min=0)), "gains of old responses are changed"
    assert torch.equal(batch.advantages[~old], both[~old]), "fresh responses lose their losses too"


def test_sequence_weights_are_those_of_the_whole_response():
    ppo, rollout, version = after(3, learning_rate=5e-3, importance_level="sequence")
    batch, _ = ppo.mix(rollout, version)
    inside = [row[kept] for row, kept in zip(batch.weights, batch.mask, strict=True)]
    assert all((row == row[0]).all() for row in inside), "`importance_level` is ignored: tokens of a response differ"
    traces = importance_ratios(batch.logprobs, batch.behaviour_logprobs, batch.mask).clamp(max=1.0)
    _, targets = vtrace(batch.rewards, batch.values, batch.mask, batch.ended, traces, ppo.config.gamma, ppo.config.lam)
    assert torch.allclose(batch.returns, targets, atol=1e-5), (
        "`importance_level` sequence reaches V-trace: its traces must stay each token's ratio, not the whole response's"
    )


def test_prioritised_draws_are_corrected_in_the_weights():
    ppo, rollout, version = after(3, learning_rate=5e-3, replay_priority=0.7)
    batch, _ = ppo.mix(rollout, version)
    ratios = importance_ratios(batch.logprobs, batch.behaviour_logprobs, batch.mask).clamp(max=2.0)
    assert (batch.sampling_weights[batch.ages == 0] == 1).all(), (
        "fresh responses, which nobody drew, are corrected by ω"
    )
    assert batch.sampling_weights.min() < 1, "every ω is 1: prioritised draws are not corrected"
    assert torch.allclose(batch.weights, batch.sampling_weights[:, None] * ratios), "ω is left out of the weights"


@pytest.mark.parametrize("correction", ["decoupled", "coupled"])
def test_the_second_moment_mask_takes_tokens_out(correction):
    """With either clip: the paper's own objective is coupled."""
    ppo, rollout, version = after(3, learning_rate=5e-3, second_moment_limit=1e-3, correction=correction)
    batch, _ = ppo.mix(rollout, version)
    inside = batch.weights[batch.mask]
    assert (inside == 0).any(), "`second_moment_limit` is ignored"
    fresh = (batch.ages == 0)[:, None].expand_as(batch.mask)[batch.mask]
    assert (inside[fresh] > 0).all(), "the second-moment mask takes out fresh tokens, whose ratio is 1"


def test_loss_and_gradient_of_a_mixed_batch_by_hand():
    """At π_θ = π_k every r is 1, whatever μ was; the weights are numbers, and have no gradient."""
    ppo, rollout, version = after(3, learning_rate=5e-3, vf_coef=0.0)
    batch, _ = ppo.mix(rollout, version)
    logprobs = logprobs_of(ppo.logits(ppo.policy, batch), batch.response_ids)
    by_hand = -((logprobs - batch.logprobs).exp() * batch.advantages)[batch.mask].mean()
    loss, metrics = ppo.loss(batch)
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-4), "the ratio in the loss is π_θ/μ, not π_θ/π_k"
    assert metrics["val/ratio"].item() == pytest.approx(1, abs=1e-3), "val/ratio does not begin at 1: it is π_θ/μ"
    parameters = list(ppo.policy.parameters())
    mine, expected = (torch.autograd.grad(one, parameters) for one in (loss, by_hand))
    for a, b in zip(mine, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-3), "a gradient flows through the weights"


@pytest.mark.parametrize(("correction", "centre"), [("coupled", "behaviour_logprobs"), ("none", None)])
def test_the_uncorrected_variants(correction, centre):
    ppo, rollout, version = after(2, correction=correction, learning_rate=2e-2)
    batch, _ = ppo.mix(rollout, version)
    old = batch.ages > 0
    assert (batch.weights[old] == 1).all(), f"{correction} weighs replayed tokens"
    if centre:
        assert torch.equal(batch.logprobs, batch.behaviour_logprobs), "the coupled clip is not centred on μ"
    else:
        assert not torch.allclose(batch.logprobs[old], batch.behaviour_logprobs[old]), "π_k was not recomputed"


def test_regression_asks_the_same_of_a_token_whoever_sampled_it():
    settings = dict(learning_rate=5e-3, second_moment_limit=1e-4, replay_priority=0.5)
    ppo, rollout, version = after(3, policy_objective="regression", **settings)
    batch, _ = ppo.mix(rollout, version)
    old, config, mask = batch.ages > 0, ppo.config, batch.mask
    ratios = importance_ratios(batch.logprobs, batch.behaviour_logprobs, mask)
    credit, _ = vtrace(
        batch.rewards, batch.values, mask, batch.ended, ratios.clamp(max=config.trace_cap), config.gamma, config.lam
    )
    assert torch.equal(batch.advantages, whiten(credit, mask)), "importance weights reach the advantages of regression"
    kept = second_moment_mask(ratios, mask, config.second_moment_limit)
    assert not kept[old][mask[old]].all() and batch.sampling_weights.min() < 1, "the test needs both kinds of weights"
    expected = batch.sampling_weights[:, None] * kept
    assert torch.equal(batch.weights, expected), "regression does not weigh tokens by ω and by what is left out"
    now = ppo.predictions(batch)[0].detach()
    target = (batch.advantages / config.regression_scale).clamp(-config.regression_floor, 5)
    by_hand = 0.5 * config.regression_scale * (batch.weights * (now - batch.logprobs - target) ** 2)[mask].mean()
    loss = ppo.loss(batch)[1]["loss/policy_avg"].item()
    assert loss == pytest.approx(by_hand.item(), rel=1e-4), (
        "the loss of a mixed batch is not weighted, or not centred on π_k"
    )


def test_advantages_move_with_the_critic():
    ppo, rollout, version = after(2)
    state = ppo.generator.get_state(), ppo.buffer.state_dict()
    saved = copy.deepcopy(state[1])
    first, _ = ppo.mix(rollout, version)
    torch.nn.init.normal_(ppo.critic.value_head.weight)
    ppo.generator.set_state(state[0]), ppo.buffer.load_state_dict(saved)
    ppo.estimate(rollout)
    second, _ = ppo.mix(rollout, version)
    old = first.ages > 0
    assert not torch.allclose(first.advantages[old], second.advantages[old]), (
        "replayed advantages are frozen: they are those of an earlier critic"
    )
    assert not torch.allclose(first.returns[old], second.returns[old]), "replayed targets are frozen"


def test_rollouts_enter_the_buffer_after_they_were_trained_on():
    ppo = trainer()
    ages = []
    original = ppo.mix
    ppo.mix = lambda rollout, version: ages.append(original(rollout, version)[0]) or (ages[-1], {})
    ppo.train(PROMPTS)
    for batch in ages[1:]:
        assert batch.ages[:4].tolist() == [0] * 4, "the fresh rollout is not trained on"
        assert (batch.ages[4:] > 0).all(), "a response is replayed in its own update"
    assert ages[1].ages[4:].tolist() == [1] * 4, "the buffer dates a response by another update than its own"


def test_draws_move_the_generator_of_the_run():
    ppo, rollout, version = after(2)
    before = ppo.generator.get_state()
    ppo.mix(rollout, version)
    assert not torch.equal(before, ppo.generator.get_state()), "replay draws from a generator that no checkpoint holds"


def test_limits_hold_over_a_run():
    ppo = trainer(total_episodes=32, max_replay_reuse=2, staleness_threshold=3)
    rows = []
    ppo.train(PROMPTS, callback=lambda trainer, rollout, metrics: rows.append(metrics) and False)
    assert max(row.get("replay/age_max", 0) for row in rows) <= 3, "nothing expires in a run"
    assert max(row.get("replay/reuse_mean", 0) for row in rows) < 2, "responses that are used up stay in the buffer"
    last = rows[-1]
    assert last["efficiency/trained_responses"] == 32 + sum(row["replay/sampled"] for row in rows), (
        "replayed responses are not counted as trained on"
    )
    assert last["efficiency/generated_responses"] == 32, "replayed responses are counted as generated"
    assert last["efficiency/reuse_ratio"] == last["efficiency/trained_responses"] / 32, (
        "the reuse ratio is not responses trained on over responses generated"
    )


def test_scores_are_those_of_fresh_responses_only():
    ppo = trainer()
    seen = []
    history = ppo.train(PROMPTS, callback=lambda trainer, rollout, metrics: seen.append(rollout) and False)
    for rollout, metrics in zip(seen, history, strict=True):
        assert len(rollout) == 4, "the rollout that a callback is given has replayed responses in it"
        assert metrics["objective/scores"] == pytest.approx(rollout.scores.mean().item()), (
            "replayed responses count in the scores that are logged"
        )


def test_replay_fades_at_the_end():
    ppo = trainer(replay_anneal=0.5, total_episodes=40)
    ppo._last_update = 10
    sizes = [ppo.replay_size(version) for version in (1, 5, 6, 8, 10)]
    assert sizes[0] != sizes[-1], "`replay_anneal` is ignored"
    assert sizes[0] > sizes[-1], "replay fades in at the start, not out at the end"
    assert sizes == [6, 6, 5, 2, 0], "the last update is not on policy"
    ppo._last_update = 20  # a second call of `train`
    assert ppo.replay_size(11) == 6, "a second `train` replays nothing"


def test_far_rows_and_poor_weights_are_left_out():
    ppo, rollout, version = after(2, max_replay_kl=1e-6)
    batch, seen = ppo.mix(rollout, version)
    assert seen["replay/too_far"] > 0, "`max_replay_kl` is ignored, or replay/too_far does not count what it leaves out"
    assert batch is rollout, "responses beyond `max_replay_kl` are trained on"
    ppo, rollout, version = after(2, min_ess=1.0)
    batch, seen = ppo.mix(rollout, version)
    assert seen["replay/ess"] < 1, "the test needs uneven weights"
    assert batch is rollout, "`min_ess` is ignored: poor weights are trained on"


@pytest.mark.parametrize("extra", [{}, {"replay_priority": 0.7, "replay_keep_best": 0.2}, {"lora_rank": 4}])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, extra):
    settings = {**extra, "output_dir": str(tmp_path / "run"), "save_every": 1, "keep_last": 9}
    whole = trainer(**settings)
    whole.train(PROMPTS)
    resumed = trainer(**{**settings, "output_dir": str(tmp_path / "again")},
                      resume_from_checkpoint=tmp_path / "run/checkpoints/update-00000003")  # fmt: skip
    resumed.train(PROMPTS)
    assert comparable(whole.history) == comparable(resumed.history), "the resumed run's metrics differ"
    assert all(map(torch.equal, weights(whole), weights(resumed))), "the resumed run's weights differ"
    for name, field in whole.buffer.fields.items():
        held = whole.buffer.held
        assert torch.equal(field[held], resumed.buffer.fields[name][held]), f"the resumed buffer's {name} differ"


def test_the_buffer_is_restored_with_the_run(tmp_path):
    settings = {"output_dir": str(tmp_path), "total_episodes": 12, "max_replay_reuse": 2}
    ppo = trainer(**settings)
    ppo.train(PROMPTS)
    again = trainer(**settings, resume_from_checkpoint=True)
    assert len(ppo.buffer) > 0, "the test needs a buffer that holds something"
    assert len(again.buffer) > 0, "the buffer is not restored from the checkpoint"
    assert len(again.buffer) == len(ppo.buffer), "the resumed buffer holds another number of responses"
    held = ppo.buffer.held
    for name, field in ppo.buffer.fields.items():
        assert torch.equal(field[held], again.buffer.fields[name][held]), f"of the buffer, {name} are not restored"
    assert again.buffer.counts == ppo.buffer.counts, "the buffer's counts start anew at a resume"
    assert again.buffer.prompts == ppo.buffer.prompts, "the buffer's prompts are not restored"
    assert again.totals == ppo.totals, "the totals of generated and trained tokens start anew at a resume"
    again.buffer.fields["scores"] += 1
    assert not torch.equal(again.resumed_state["replay"]["fields"]["scores"], again.buffer.fields["scores"]), (
        "the buffer shares its memory with the state it was resumed from"
    )


def test_a_joined_rollout_keeps_every_row():
    ppo, rollout, version = after(2)
    short = rollout.select(torch.tensor([0]))
    joined = concatenate([short, rollout], ppo.tokenizer.pad_token_id)
    assert joined.prompts == short.prompts + rollout.prompts, "joining rollouts drops or reorders responses"
    assert torch.equal(joined.values[1:], rollout.values), "padding of the shorter rollout moves another's values"


def test_presets_bring_the_buffer_that_the_usage_guide_shows():
    guide = (toc.ROOT / "book/usage_guide.md").read_text("utf8")
    header, _, *rows = re.search(r"^\| with replay \| 8gb .*?\n\n", guide, re.S | re.M).group().strip().splitlines()
    names = [cell.strip() for cell in header.strip("| ").split("|")[1:]]
    for row in rows:
        setting, *cells = [cell.strip() for cell in row.strip("| ").split("|")]
        setting = re.search(r"`(\w+)`", setting).group(1)
        for name, cell in zip(names, cells, strict=True):
            config = ReplayConfig.preset(name)
            value = getattr(config, setting)
            shown = {"yes": True, "no": False}.get(cell, cell)
            if cell == "–":
                assert not config.use_replay_buffer, f"the guide has no {setting} for {name}, whose replay is on"
            else:
                assert str(value) == str(shown), f"the guide says {setting} = {cell} for {name}: it is {value}"
    sizes = {name: ReplayConfig.preset(name) for name in names}
    assert [(c.replay_buffer_size, c.replay_sample_size) for c in sizes.values()][1:] == [(1000, 32), (2000, 64)], (
        "a preset's buffer, or what it replays, has another size: the part `replay` of its file is not read"
    )
    assert not sizes["8gb"].use_replay_buffer, "replay is on in 8 GB, where it was to stay off"
    assert sizes["32gb"].max_replay_reuse == 8, "the 32gb preset replays a response another number of times"


@pytest.mark.parametrize("preset", ["16gb", "32gb"])
def test_a_preset_trains_with_replay(preset):
    config = ReplayConfig.preset(preset, num_ppo_epochs=1, max_new_tokens=8)
    rollout = config.rollout_size
    ppo = PPOTrainerWithReplay(config=ReplayConfig.preset(
        preset, num_ppo_epochs=1, max_new_tokens=8, total_episodes=2 * rollout))  # fmt: skip
    history = ppo.train(["The film was", "I think"])
    assert len(history) == 2, "a preset's run has not the two updates it was given"
    assert history[-1]["replay/sampled"] == min(rollout, config.replay_sample_size), (
        "the preset does not replay what its buffer holds"
    )


def test_checkpoints_of_another_stage_are_refused_and_named(tmp_path):
    settings = {"total_episodes": 4, "output_dir": str(tmp_path / "v2")}
    trainer(**settings).train(PROMPTS)
    with pytest.raises(CheckpointError, match="of a run with replay: resume it with `ppo_v2"):
        ppo_v1.PPOTrainer(resume_from_checkpoint=tmp_path / "v2")
    settings["output_dir"] = str(tmp_path / "v1")
    names = {k: v for k, v in (RUN | settings).items() if hasattr(PPOConfigV1(), k)}
    policy = likely_eos(tiny_policy(sharpness=2.0))
    ppo_v1.PPOTrainer(policy, vowels, tokenizer=byte_tokenizer(), **names).train(PROMPTS)
    with pytest.raises(CheckpointError, match="of a run without a buffer: resume it with `ppo_v1"):
        trainer(**settings, resume_from_checkpoint=True)


def test_a_size_that_fits_in_memory_is_kept_on_resume(tmp_path):
    ppo = trainer(output_dir=str(tmp_path / "run"), minibatch_size=8, total_episodes=8)
    assert ppo.forward_batch.size == 8, "responses without gradients are not computed `minibatch_size` at a time"
    ppo.forward_batch.size = 1  # memory ran out
    ppo.train(PROMPTS)
    resumed = trainer(output_dir=str(tmp_path / "run"), minibatch_size=8, resume_from_checkpoint=True, total_episodes=8)
    assert resumed.forward_batch.size == 1, "a resumed run tries again what did not fit in memory"


def test_hot_responses_are_corrected_like_old_ones():
    ppo, _, version = after(2, behaviour_temperature=1.5, behaviour_cooling=1.0, importance_cap=1.2)
    ppo.history = [row | {"objective/scores": float(number)} for number, row in enumerate(ppo.history)]
    rollout = ppo.collect(PROMPTS)
    ppo.score(rollout)
    ppo.estimate(rollout)
    mask, heat = rollout.mask, 1.25
    with torch.no_grad():
        logits = ppo.logits(ppo.policy, rollout)
    hot, cool = (logprobs_of(logits / t, rollout.response_ids)[mask] for t in (heat, 1.0))
    assert torch.allclose(rollout.logprobs[mask], cool, atol=1e-3), "the centre of the clip is the hot policy"
    assert torch.allclose(rollout.behaviour_logprobs[mask], hot, atol=1e-3), "not the hot policy is noted as sampler"
    weights = (cool - hot).exp().clamp(max=1.2)
    assert torch.allclose(rollout.weights[mask], weights, atol=1e-3), "hot fresh responses are not weighed by π_k/μ"
    ppo.update(rollout)
    held = ppo.buffer.fields["versions"] == version
    width = mask.shape[1]
    stored = ppo.buffer.fields["behaviour_logprobs"][held, :width]
    order = [ppo.buffer.prompts[place] for place in held.nonzero().flatten().tolist()]
    assert order == rollout.prompts, "the test reads the buffer's rows in the order of the rollout"
    assert torch.allclose(stored[mask], rollout.behaviour_logprobs[mask]), "the buffer takes π_k for the hot sampler"


def test_sampling_cools_as_scores_rise_from_where_they_began():
    ppo = trainer(behaviour_temperature=1.5, behaviour_cooling=0.5)
    assert ppo.behaviour_temperature == 1.5, "the first responses are not sampled at `behaviour_temperature`"
    ppo.history = [{"objective/scores": 3.0}] * 9
    assert ppo.behaviour_temperature == 1.5, "sampling cools because scores are high, and not because they rose"
    ppo.history = ppo.history + [{"objective/scores": 5.0}]
    assert ppo.behaviour_temperature == pytest.approx(1.25), "the rise is not that of the mean over eight updates"
    ppo.history = ppo.history + [{"objective/scores": 5.0}] * 4
    assert ppo.behaviour_temperature == 1.0, "sampling does not end at `temperature`"
    ppo.history = ppo.history + [{"objective/scores": -9.0}] * 8
    assert ppo.behaviour_temperature == 1.5, "sampling is hotter than `behaviour_temperature`"
