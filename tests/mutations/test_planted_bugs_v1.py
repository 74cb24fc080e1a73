"""Bugs of long runs, planted one at a time in v1: each must be caught by a test whose message names it."""

import pytest

from ppo_lib import models
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.running import checkpoint, evaluation, memory, resume, small_memory
from ppo_lib.running.schedules import Schedule
from ppo_lib.running.trackers import JSONLines
from tests.mutations.test_planted_bugs import Bug, assert_caught_and_named, assert_no_shared_message
from tests.unit import (
    test_accumulation,
    test_checkpoint,
    test_memory,
    test_resume,
    test_schedules,
    test_trackers,
    test_v1,
)

RESTORED = test_resume.test_each_part_of_the_state_is_restored

BUGS = [
    # accumulation and memory
    Bug("mean of means in accumulation", PPOTrainer.accumulate, "(micro.mask.sum() / minibatch.mask.sum())",
        "(len(micro) / len(minibatch))",
        test_accumulation.test_micro_batches_weigh_as_much_as_they_have_tokens, "accumulation takes a mean of means"),
    Bug("metrics of micro-batches averaged evenly", small_memory.joined_metrics, "shares = counts / counts.sum()",
        "shares = torch.ones_like(counts) / len(counts)",
        test_accumulation.test_micro_batches_weigh_as_much_as_they_have_tokens, "not weighted by their tokens"),
    Bug("variance as a mean of variances", small_memory.joined_metrics,
        'squares += (counts * (stacked["val/ratio"] - metrics["val/ratio"]) ** 2).sum()', "squares += 0",
        test_accumulation.test_a_micro_batch_of_one_token_has_no_variance_of_its_own, "leaves out the spread"),
    Bug("gradients never zeroed between steps", PPOTrainer.accumulate, "self.optimizer.zero_grad(set_to_none=True)",
        "pass",
        test_accumulation.test_each_step_starts_from_no_gradient, "gradients of earlier steps pile up"),
    Bug("random numbers lost when memory runs out", PPOTrainer.respond, "uniforms[:, rows]",
        "torch.rand(tokens, len(prompts[rows]), 1, generator=generator, dtype=torch.float64)",
        test_accumulation.test_sampling_that_does_not_fit_starts_again_from_the_same_random_numbers,
        "drawn before memory ran out are lost"),
    Bug("adapters on for the reference", PPOTrainer.reference_logprobs,
        "memory.adapters_off(self.policy) if self.reference is self.policy else contextlib.nullcontext()",
        "contextlib.nullcontext()",
        test_memory.test_the_reference_is_the_policy_without_its_adapters, "adapters stay on for the reference"),
    Bug("adapters off for good", memory.adapters_off, "model.enable_adapters()", "pass",
        test_memory.test_adapters_come_back_after_an_error, "an error leaves the adapters off"),
    Bug("adapters not merged when saved", models.merge_adapters, "module.merge()", "pass",
        test_memory.test_merging_adds_what_the_adapters_do, "what the adapters learned is lost"),
    Bug("saving not tried before the run", PPOTrainer.rehearse, "memory.rehearse_saving(trunk, self.config.output_dir)",
        "pass",
        test_memory.test_adapters_that_cannot_be_saved_are_refused_before_the_first_update, "only when it ends"),
    Bug("response logits one short", memory.response_logits_only, "rollout.response_ids.shape[1] + 1",
        "rollout.response_ids.shape[1]",
        test_memory.test_response_logits_only_gives_the_same_numbers, "drops or adds a token"),
    Bug("response logits without temperature", memory.response_logits_only, "/ temperature", "/ 1.0",
        test_memory.test_response_logits_only_gives_the_same_numbers, "response_logits_only computes other logits"),
    # the schedule
    Bug("schedule moved by every minibatch", PPOTrainer.step, "self.count_skipped(finite)",
        "self.count_skipped(finite)\n    self.schedule.step()",
        test_schedules.test_the_schedule_moves_once_an_update, "the schedule moves with minibatches"),
    Bug("schedule never moved", PPOTrainer.after_update, "self.schedule.step(score)", "pass",
        test_schedules.test_a_plateau_follows_the_held_out_score, "does not look at the held-out score"),
    Bug("warm-up from zero", Schedule.__init__, "start_factor=1 / (warmup + 1)", "start_factor=1e-9",
        test_schedules.test_each_schedule_follows_its_formula, "does not rise by equal steps from above 0"),
    Bug("plateau of a loss", Schedule._after_warmup, 'mode="max"', 'mode="min"',
        test_schedules.test_a_plateau_lowers_the_rate_when_the_score_stops_rising, "it must rise to be better"),
    Bug("warm-up starts anew", Schedule.load_state_dict, 'self.warmup_left = state["warmup_left"]', "pass",
        test_schedules.test_a_schedule_goes_on_where_it_was_saved, "goes on with other learning rates"),
    # guards, β, evaluation
    Bug("NaN step taken", PPOTrainer.step, "if finite or self.accelerator.scaler is not None:", "if True:",
        test_v1.test_a_step_with_a_nan_gradient_moves_nothing_and_is_counted, "a step with a NaN gradient is taken"),
    Bug("row of skipped steps never ends", PPOTrainer.count_skipped, "self.skipped_in_a_row = 0", "pass",
        test_v1.test_a_step_with_a_nan_gradient_moves_nothing_and_is_counted, "does not end the row of skipped"),
    Bug("kl_stop ignored", PPOTrainer.minibatches, "if self._too_far:", "if False:",
        test_v1.test_kl_stop_ends_the_update_where_it_is_passed, "`kl_stop` is ignored"),
    Bug("kl_stop steps once more", PPOTrainer.step, "self.optimizer.zero_grad(set_to_none=True)", "pass",
        test_v1.test_kl_stop_ends_the_update_where_it_is_passed, "too far still moves the weights"),
    Bug("β the wrong way round", PPOTrainer.adapt_kl, "kl / config.kl_target - 1", "1 - kl / config.kl_target",
        test_v1.test_adaptive_kl_by_hand, "β moves the wrong way"),
    Bug("patience never reset", evaluation.Best.beaten_by,
        "self.score, self.update, self.evaluations_since = score, update, 0", "self.score, self.update = score, update",
        test_v1.test_early_stopping_waits_for_its_patience, "a new best does not start patience anew"),
    Bug("any gain counts", evaluation.Best.beaten_by, "self.score + min_delta", "self.score",
        test_v1.test_small_gains_do_not_count_as_better, "`early_stopping_min_delta` is ignored"),
    Bug("evaluation draws from training's generator", evaluation.evaluate, "torch.Generator().manual_seed(seed)",
        "trainer.generator",
        test_v1.test_evaluation_leaves_training_unchanged, "evaluation draws from training's"),
    Bug("evaluation draws from the process's generators", PPOTrainer.evaluate_at, "checkpoint.set_rng_state(rng)",
        "pass",
        test_v1.test_evaluation_leaves_training_unchanged, "evaluation draws from the process's"),
    # what a resumed run needs
    Bug("history not restored", resume.restore, 'trainer.history = checkpoint.rows_of(state["history"])', "pass",
        RESTORED, "the history is not restored"),
    Bug("weights not restored", resume.restore, "weights[name].copy_(saved)", "pass",
        RESTORED, "the weights are not restored"),
    Bug("optimiser not restored", resume.restore, 'trainer.optimizer.load_state_dict(state["optimizer"])', "pass",
        RESTORED, "Adam's moments are not restored"),
    Bug("first moment of Adam forgotten", resume.restore, 'trainer.optimizer.load_state_dict(state["optimizer"])',
        'trainer.optimizer.load_state_dict(state["optimizer"])\n'
        '    [moments["exp_avg"].zero_() for moments in trainer.optimizer.state.values()]',
        RESTORED, "a moment of Adam is another"),
    Bug("schedule not restored", resume.restore, 'trainer.schedule.load_state_dict(state["schedule"])', "pass",
        RESTORED, "the schedule is not restored"),
    Bug("adapted β not saved", resume.state_of, '"kl_coef": trainer.kl_coef', '"kl_coef": trainer.config.kl_coef',
        RESTORED, "the adapted β is not restored"),
    Bug("best score not restored", resume.restore, 'trainer.best = Best(**state["best"])', "pass",
        RESTORED, "best score and patience are not restored"),
    Bug("skipped steps not restored", resume.restore,
        'trainer.skipped_steps, trainer.skipped_in_a_row = state["skipped"]', "pass",
        RESTORED, "counters of skipped steps are not restored"),
    Bug("order of the prompts not restored", resume.restore_data, 'trainer.batches.waiting = list(state["waiting"])',
        "pass",
        RESTORED, "prompts of the interrupted pass are not restored"),
    Bug("generator not restored", resume.restore, 'trainer.generator.set_state(state["generator"])', "pass",
        RESTORED, "the random numbers of training are not restored"),
    Bug("Python's random numbers not restored", checkpoint.set_rng_state, 'random.setstate(state["python"])', "pass",
        RESTORED, "the random numbers of Python are not restored"),
    Bug("numpy's random numbers not restored", checkpoint.set_rng_state,
        'np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})', "pass",
        RESTORED, "the random numbers of numpy are not restored"),
    Bug("torch's random numbers not restored", checkpoint.set_rng_state, 'torch.set_rng_state(state["torch"])', "pass",
        RESTORED, "the random numbers of torch are not restored"),
    # files
    Bug("checksums not verified", checkpoint.load_checkpoint, "if _sha256(folder / file) != checksum:", "if False:",
        test_checkpoint.test_a_damaged_checkpoint_is_passed_over_and_named, "verify its checksums"),
    Bug("renamed before it is flushed", checkpoint.save_checkpoint, "_flush(aside / file)", "pass",
        test_checkpoint.test_nothing_bears_its_name_before_it_is_on_the_disk, "renamed before its files"),
    Bug("the best one pruned", checkpoint.prune, "if path.name not in keep:", "if True:",
        test_checkpoint.test_the_last_ones_and_the_best_are_kept, "pruning deletes the best checkpoint"),
    Bug("broken checkpoints counted as the last", checkpoint.prune, "if path.name > name_of(newest):", "if False:",
        test_checkpoint.test_checkpoints_after_the_newest_one_are_no_reason_to_delete_it, "push out those of the run"),
    Bug("NaN in JSON", JSONLines._line, "None if isinstance(v, float) and not math.isfinite(v) else v", "v",
        test_trackers.test_nan_and_infinity_become_null, "NaN is written"),
    Bug("half a line left", JSONLines._cut_back, "os.truncate(self.path, whole)", "pass",
        test_trackers.test_lines_that_the_disk_does_not_take_wait_for_it, "half a line is left"),
    Bug("waiting lines lost", JSONLines.log, "self.waiting.append(", "self.waiting[:] = (",
        test_trackers.test_lines_that_the_disk_does_not_take_wait_for_it, "lines that had to wait are lost"),
]  # fmt: skip


# A planted bug may bring a warning of its own.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug_is_caught_and_named(bug):
    assert_caught_and_named(bug, BUGS)


def test_no_two_bugs_share_a_message():
    assert_no_shared_message(BUGS)
