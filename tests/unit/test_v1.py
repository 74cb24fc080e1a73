"""v1's loop: v0 where everything is off, and what evaluation, β, `kl_stop` and the guards do to it."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from ppo_lib import worlds
from ppo_lib.ppo import PPOTrainer as TrainerV0
from ppo_lib.ppo_v1 import PPOConfigV1, PPOTrainer
from ppo_lib.running import checkpoint
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, assert_same_run, estimated, make, make_v0, vowels, weights
from tests.unit.test_rewards import classifier
from tests.unit.tiny import likely_eos, tiny_policy


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(batch_size=2, group_size=3, minibatch_size=4, total_episodes=18),
        dict(minibatch_size=3, temperature=0.7, entropy_coef=0.1, bootstrap_cut=True, gamma=0.9),
        dict(minibatch_size=4, whiten_advantages=False, kl_coef=0.3, max_grad_norm=0.1, seed=3),
    ],
    ids=["defaults", "groups", "odd minibatches", "other weights"],
)
def test_with_everything_off_v1_is_v0(settings):
    first, second = make_v0(**settings), make(**settings)
    first.train(PROMPTS)
    second.train(PROMPTS)
    assert_same_run(second, first, "v1 with everything off is not v0", names=first.history[0].keys())


def test_v1_is_v0_in_other_families_and_with_a_reward_model():
    first, second = make_v0(tiny_policy("gpt2"), classifier()), make(tiny_policy("gpt2"), classifier())
    first.train(PROMPTS)
    second.train(PROMPTS)
    assert_same_run(second, first, "v1 with everything off is not v0", names=first.history[0].keys())


def test_v1_is_v0_on_the_embedded_world():
    prompts, runs = worlds.load("reviews").prompts, []
    for trainer_class in (TrainerV0, PPOTrainer):
        runs.append(trainer_class(total_episodes=64, num_ppo_epochs=2, minibatch_size=16, device="cpu"))
        runs[-1].train(prompts)
    assert_same_run(runs[1], runs[0], "v1 with everything off is not v0", names=runs[0].history[0].keys())


def moody(prompts, responses):
    """A reward that draws from every generator of the process."""
    mood = random.random() + np.random.rand() + torch.rand(()).item()
    return [score + mood for score in vowels(prompts, responses)]


@pytest.mark.parametrize("reward", [vowels, moody])
def test_evaluation_leaves_training_unchanged(reward):
    runs = []
    for held_out in (None, HELD_OUT * 3):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        runs.append(make(reward=reward, eval_every=1))
        runs[-1].train(PROMPTS, held_out)
    plain, evaluated = runs
    assert len(evaluated.evaluations) == 4, "held-out prompts are not answered before, during and after the run"
    whose = "training's" if reward is vowels else "the process's"
    assert_same_run(evaluated, plain, f"evaluation draws from {whose} random numbers", plain.history[0].keys())


def test_evaluations_are_where_they_are_due_and_repeat_themselves():
    ppo = make(total_episodes=20, eval_every=2, eval_samples=1)
    ppo.train(PROMPTS, HELD_OUT)
    due = [0, 2, 4, 5]
    assert [row["update"] for row in ppo.evaluations] == due, "not evaluated before, every eval_every updates and last"
    assert [m["update"] for m in ppo.history if "eval/score" in m] == due[1:], "evaluations miss from the history"
    assert [row["update"] for row in ppo.samples] == due, "`eval_samples` texts are not kept at each evaluation"
    assert ppo.evaluate_at(6) == ppo.evaluate_at(7), "the same policy is evaluated with other random numbers each time"


# β


def test_adaptive_kl_by_hand():
    sizes = dict(batch_size=2, group_size=3, gradient_accumulation_steps=4, total_episodes=24)
    ppo = make(kl_coef=0.1, kl_target=2.0, kl_horizon=240, **sizes)
    for kl, move in ((2.0, 0.0), (2.2, 0.1), (20.0, 0.2), (-5.0, -0.2)):
        before = ppo.kl_coef
        ppo.adapt_kl(kl)
        moved = (ppo.kl_coef / before - 1) * 240  # horizon
        assert math.copysign(moved, move) == pytest.approx(moved), f"β moves the wrong way at a KL of {kl}"
        assert moved == pytest.approx(move * 24), (
            f"at a KL of {kl} β moves by {moved:.2f} / kl_horizon: it is the error, ±0.2 at most, times the 24 "
            "responses of a rollout"
        )


def test_held_out_rewards_are_charged_the_adapted_beta():
    ppo = make(kl_coef=0.1, kl_target=1.0, kl_horizon=4, learning_rate=1e-2)
    ppo.train(PROMPTS, HELD_OUT)
    told = ppo.evaluate_at(3)
    assert ppo.kl_coef != 0.1, "β never adapts: `kl_target` is ignored"
    assert told["eval/kl"] > 0, "the test needs a policy that has left its reference"
    by_hand = told["eval/score"] - ppo.kl_coef * told["eval/kl"]
    assert told["eval/rlhf_reward"] == pytest.approx(by_hand), "held-out rewards are charged with the first β"


def test_the_adapted_beta_is_the_price_of_the_next_update():
    ppo = make(kl_coef=0.1, kl_target=1.0, kl_horizon=4, learning_rate=1e-2)
    charged = [-m["objective/non_score_reward"] / m["objective/kl"] for m in ppo.train(PROMPTS)[1:]]
    logged = [m["objective/kl_coef"] for m in ppo.history]
    assert logged[0] == 0.1, "the first update is charged another β than `kl_coef`"
    assert logged[1] != pytest.approx(0.1), "β is not adapted after the first update"
    assert logged[1] < 0.1, "β rises though the KL is below its target"
    assert logged[1] == pytest.approx(0.08), "in one update β moves by more or less than 20 % at most"
    assert charged == pytest.approx(logged[1:], rel=1e-4), "the β that is logged is not the one that was charged"


# kl_stop


def test_kl_stop_ends_the_update_where_it_is_passed():
    """A large learning rate goes too far at once: the second step sees it, moves nothing and is the last."""
    ppo = make(kl_stop=1e-4, learning_rate=1e-2, num_ppo_epochs=4)
    rollout, steps, moved = estimated(ppo), [], []

    def spied(minibatch):
        before = weights(ppo)
        steps.append(PPOTrainer.step(ppo, minibatch))
        moved.append(any(not torch.equal(old, weights(ppo)[name]) for name, old in before.items()))
        return steps[-1]

    ppo.step = spied
    ppo.update(rollout)
    kls = [step["policy/approxkl_avg"] for step in steps]
    assert len(steps) < 16, "`kl_stop` is ignored: the update goes on to its last minibatch"
    assert kls[-1] > 1e-4, f"the update ends before KL has passed `kl_stop`: {kls}"
    assert all(kl <= 1e-4 for kl in kls[:-1]), f"the update goes on after KL has passed `kl_stop`: {kls}"
    assert moved[:-1] == [True] * (len(steps) - 1), "a step before `kl_stop` was left out"
    assert not moved[-1], "the step that found the policy too far still moves the weights"


def test_kl_stop_is_per_update():
    ppo = make(kl_stop=1e-4, learning_rate=1e-2)
    ppo.train(PROMPTS)
    before = weights(ppo)
    ppo.update(estimated(ppo))
    assert any(not torch.equal(old, weights(ppo)[name]) for name, old in before.items()), (
        "one update that was stopped by `kl_stop` stops all later ones"
    )


# steps without a finite gradient


def spoil(ppo, bad_steps):
    """From now on the loss of the optimiser steps numbered in `bad_steps`, from 0, is NaN."""
    sound, step, count = ppo.loss, ppo.step, [-1]

    def loss(minibatch):
        value, metrics = sound(minibatch)
        return value * (math.nan if count[0] in bad_steps else 1.0), metrics

    def counted(minibatch):
        count[0] += 1
        return step(minibatch)

    ppo.loss, ppo.step = loss, counted
    return ppo


def test_a_step_with_a_nan_gradient_moves_nothing_and_is_counted():
    ppo = spoil(make(), {0})
    rollout, before = estimated(ppo), weights(ppo)
    ppo.step(rollout)
    after = weights(ppo)
    assert all(torch.equal(after[name], old) for name, old in before.items()), "a step with a NaN gradient is taken"
    assert ppo.skipped_steps == 1, "a skipped step is not counted"
    assert ppo.skipped_in_a_row == 1, "a skipped step does not count towards `max_skipped_steps`"
    ppo.step(rollout)
    assert all(weight.isfinite().all() for weight in weights(ppo).values()), "a skipped step's NaN gradient lingers"
    assert ppo.skipped_in_a_row == 0, "a good step does not end the row of skipped ones"
    assert ppo.skipped_steps == 1, "a good step is counted as skipped, or the count starts anew after it"


def test_a_run_survives_single_bad_steps():
    ppo = spoil(make(max_skipped_steps=2), {1, 3, 5, 8})
    ppo.train(PROMPTS)
    assert ppo.skipped_steps == 4, "skipped steps are not counted over the whole run"
    assert [m["train/skipped_steps"] for m in ppo.history] == [2, 3, 4], "the log does not count skipped steps"


def test_bad_steps_in_a_row_end_the_run_and_name_the_checkpoint(tmp_path):
    ppo = spoil(make(max_skipped_steps=3, save_every=1, output_dir=str(tmp_path)), range(5, 100))
    with pytest.raises(FloatingPointError) as caught:
        ppo.train(PROMPTS)
    said = f"{caught.value}\n" + "\n".join(caught.value.__notes__)
    assert "3 steps in a row had a NaN or infinite gradient, in update 2" in said, f"the reason is not said: {said}"
    assert str(tmp_path / "checkpoints" / "update-00000001") in said, f"the last good checkpoint is not named: {said}"


@pytest.mark.parametrize("stage", [make_v0, make])
def test_the_generator_moves_as_far_as_the_longest_response(stage):
    """The next rollout's numbers follow from what was written, not from how long it might have become."""
    mine, by_hand = (torch.Generator().manual_seed(3) for _ in range(2))
    longest = int(stage(likely_eos(tiny_policy(), boost=8.0)).respond(PROMPTS, mine, tokens=30).lengths.max())
    torch.rand(longest, len(PROMPTS), 1, generator=by_hand, dtype=torch.float64)
    assert longest < 30, "the test needs responses that all end before the limit"
    assert torch.equal(mine.get_state(), by_hand.get_state()), "the generator is moved too far"


# early stopping and the best model


def scored(scores, greedy=None):
    """A reward for `eval_reward` whose evaluations have these scores, one after another; each is asked for twice.

    The last is repeated: a run that a fault makes longer must fail on what the test says, not on this reward.
    """
    calls = iter([score for pair in zip(scores, greedy or scores, strict=True) for score in pair])

    def reward(prompts, responses):
        return [next(calls, scores[-1])] * len(responses)

    return reward


def test_early_stopping_waits_for_its_patience():
    ppo = make(total_episodes=40, eval_every=1, early_stopping_patience=2, eval_reward=scored([0, 1, 3, 2, 4, 4, 3, 9]))
    ppo.train(PROMPTS, HELD_OUT)
    assert len(ppo.history) > 5, "a new best does not start patience anew"
    assert len(ppo.history) == 6, "the run does not end after `early_stopping_patience` evaluations without a new best"
    assert ppo.best.score == 4, "the best is not the highest score"
    assert ppo.best.update == 4, "the best is not the first of the highest scores: one that is equal replaces it"


def test_small_gains_do_not_count_as_better():
    ppo = make(
        total_episodes=40, eval_every=1, early_stopping_patience=2, early_stopping_min_delta=0.5,
        eval_reward=scored([0, 4, 4.4, 4.6, 4.7, 5]),
    )  # fmt: skip
    ppo.train(PROMPTS, HELD_OUT)
    assert ppo.best.update <= 3, "`early_stopping_min_delta` is ignored"
    assert ppo.best.update == 3, "a score that beats the best by 0.6 is not better by 0.5"
    assert len(ppo.history) == 5, "a gain below `early_stopping_min_delta` starts patience anew"


def test_the_best_model_is_kept(tmp_path):
    """The best of sampled responses, and the first of them: greedy ones are best at update 1, and 5 comes again."""
    seen, reward = {}, scored([9, 1, 5, 5, 2], [0, 7, 3, 4, 1])
    ppo = make(tiny_policy(), total_episodes=16, eval_every=1, save_every=1, keep_last=1, eval_reward=reward,
               output_dir=str(tmp_path))  # fmt: skip
    ppo.train(PROMPTS, HELD_OUT, callback=lambda ppo, rollout, m: seen.update({m["update"]: weights(ppo)}) and None)
    kept = [path.name for path in checkpoint.checkpoints(ppo.checkpoint_dir)]
    assert kept == ["update-00000002", "update-00000004"], f"not the best checkpoint and the last are kept: {kept}"
    best = weights(make(str(tmp_path / "best")))
    assert all(torch.equal(best[name], weight) for name, weight in seen[2].items()), "best/ is not the best model"
    last = weights(make(str(tmp_path / "model")))
    assert all(torch.equal(last[name], weight) for name, weight in seen[4].items()), "model/ is not the last model"


@pytest.mark.parametrize("eval_every", [1, 2, 3, 4])
def test_as_many_evaluations_are_planned_as_are_made(eval_every):
    """Three updates: a whole number of `eval_every`, or one more evaluation after the last."""
    ppo = make(eval_every=eval_every)
    ppo.train(PROMPTS, HELD_OUT)
    assert ppo.config.num_evaluations == len(ppo.evaluations), "the plan counts other evaluations than a run makes"


def test_held_out_prompts_without_room_are_refused_before_anything_is_done(tmp_path):
    ppo = make(output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="prompt 1 has 61 tokens; with `max_new_tokens`=4 .* context of 64"):
        ppo.train(PROMPTS, ["fine", "x" * 61])
    assert not (tmp_path / "run").exists(), "the run begins, and fails at its first evaluation"


@pytest.mark.parametrize("settings", [dict(early_stopping_patience=2), dict(lr_scheduler="plateau")])
def test_what_needs_held_out_prompts_says_so(settings):
    with pytest.raises(ValueError, match=r"needs held-out prompts: train\(train_dataset, eval_dataset\)"):
        make(**settings).train(PROMPTS)


def test_a_callback_ends_the_run_and_a_checkpoint_remembers_it(tmp_path):
    ppo = make(output_dir=str(tmp_path))
    ppo.train(PROMPTS, callback=lambda ppo, rollout, metrics: metrics["update"] == 2)
    assert len(ppo.history) == 2, "a callback that returns True does not end the run"
    assert (tmp_path / "checkpoints" / "update-00000002").is_dir(), "no checkpoint where a callback ended the run"


# settings


def test_presets_are_read_and_overridden():
    config = PPOConfigV1.preset("8gb", seed=7)
    assert config.seed == 7, "a setting that is passed does not win over the preset"
    assert config.batch_size == 1, "8gb takes more than one prompt at a time"
    assert config.gradient_accumulation_steps == 8, "8gb does not make an update of eight responses"
    assert config.num_updates * config.rollout_size == config.total_episodes, "the preset's run is not whole updates"
    with pytest.raises(ValueError, match="no preset '9gb': the presets are 8gb, 16gb, 32gb"):
        PPOConfigV1.preset("9gb")


@pytest.mark.parametrize("name", ["8gb", "16gb", "32gb"])
def test_every_preset_trains(name):
    config = PPOConfigV1.preset(name)
    preset = dataclasses.asdict(config)
    del preset["model"]
    ppo = make(**preset | dict(max_new_tokens=4, num_ppo_epochs=1, total_episodes=config.rollout_size, device="cpu"))
    before = weights(ppo)
    ppo.train(PROMPTS)
    assert any(not torch.equal(before[name], now) for name, now in weights(ppo).items()), "the preset trains nothing"
