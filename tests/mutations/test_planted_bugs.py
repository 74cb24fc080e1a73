"""Classic PPO bugs, planted one at a time: each must be caught by a test whose message names it.

The catching test runs here with the bug inside and must fail with the message; without the bug it passes in
its own file. A bug that no test notices, or that a test notices without naming it, fails here.
"""

import inspect
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from ppo_lib import data, estimators, losses, models, rewards, rollout
from ppo_lib.ppo import PPOTrainer
from tests.mutations.planting import planted
from tests.unit import (
    test_config_data,
    test_estimators,
    test_losses,
    test_rewards,
    test_rollout,
    test_trainer,
    test_wiring,
)


class Bug(NamedTuple):
    name: str
    function: object
    old: str
    new: str
    caught_by: object
    message: str


BUGS = [
    Bug("KL penalty with the wrong sign", estimators.token_rewards, "-kl_coef *", "kl_coef *",
        test_estimators.test_token_rewards_charge_the_kl, "KL penalty has the wrong sign"),
    Bug("KL penalty charged on padding", estimators.token_rewards, ".masked_fill(~mask, 0.0)", "",
        test_estimators.test_token_rewards_charge_the_kl, "KL penalty is charged on padding"),
    Bug("score on the last column, padding or not", estimators.token_rewards, "mask.sum(dim=1) - 1",
        "mask.sum(dim=1) * 0 + mask.shape[1] - 1",
        test_estimators.test_score_lands_on_the_last_sampled_token, "score lands on padding"),
    Bug("score one token before EOS", estimators.token_rewards, "mask.sum(dim=1) - 1",
        "(mask.sum(dim=1) - 2).clamp(min=0)",
        test_estimators.test_score_lands_on_the_last_sampled_token, "score lands before the last sampled token"),
    Bug("k1 the wrong way round", estimators.kl_k1, "logprobs - ref_logprobs", "ref_logprobs - logprobs",
        test_estimators.test_kl_estimators_in_expectation, "k1 has the wrong sign"),
    Bug("k3 with mixed directions", estimators.kl_k3, "log_ratio = ref_logprobs - logprobs",
        "log_ratio = logprobs - ref_logprobs",
        test_estimators.test_kl_estimators_in_expectation, "k3 mixes the direction"),
    Bug("mean over padding", estimators.masked_mean, "/ mask.sum()", "/ mask.numel()",
        test_estimators.test_masked_statistics_ignore_what_is_masked, "mean runs over padding"),
    Bug("mean of means in the loss", estimators.masked_mean, "x.masked_fill(~mask, 0.0).sum() / mask.sum()",
        "(x.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)).mean()",
        test_losses.test_loss_is_one_mean_over_all_tokens, "mean of means"),
    Bug("shift_mean inverted", estimators.whiten, "if shift_mean", "if not shift_mean",
        test_estimators.test_whiten_can_keep_the_mean, "shift_mean is inverted"),
    Bug("λ forgotten in GAE", estimators.gae, "gamma * lam * running", "gamma * running",
        test_estimators.test_lambda_zero_is_one_step_ahead, "λ is forgotten"),
    Bug("value after EOS counted", estimators.gae, ".masked_fill(~goes_on, 0.0)", "",
        test_estimators.test_nothing_is_valued_after_the_end, "value after EOS is counted"),
    Bug("GAE run forwards", estimators.gae, "reversed(range(mask.shape[1]))",
        "range(mask.shape[1])",
        test_estimators.test_lambda_one_is_the_monte_carlo_return, "GAE runs forwards"),
    Bug("γ forgotten in δ", estimators.gae, "gamma * next_values", "next_values",
        test_estimators.test_gamma_zero_sees_no_next_state, "γ is forgotten"),
    Bug("a cut response never bootstrapped", estimators.gae, "goes_on |= mask & ~ended[:, None]", "pass",
        test_estimators.test_nothing_is_valued_after_the_end, "after a cut response must count"),
    Bug("returns from whitened advantages", PPOTrainer.assign_credit,
        "rollout.advantages = whiten(rollout.advantages, rollout.mask)",
        "rollout.advantages = whiten(rollout.advantages, rollout.mask)\n"
        "        rollout.returns = rollout.advantages + rollout.values[:, :-1]",
        test_trainer.test_returns_come_from_advantages_before_whitening, "returns are built from whitened"),
    Bug("policy loss with the wrong sign", losses.policy_loss, "return -masked_mean", "return masked_mean",
        test_losses.test_clipped_surrogate_by_hand, "policy loss has the wrong sign"),
    Bug("maximum for minimum", losses.policy_loss, "torch.minimum", "torch.maximum",
        test_losses.test_clipped_surrogate_by_hand, "clip is not pessimistic"),
    Bug("clip lost", losses.policy_loss, "ratio.clamp(1 - cliprange, 1 + cliprange)", "ratio",
        test_losses.test_clipped_surrogate_by_hand, "policy's clip is lost"),
    Bug("ratio upside down", losses.policy_loss, "logprobs - old_logprobs", "old_logprobs - logprobs",
        test_losses.test_clipped_surrogate_by_hand, "ratio is upside down"),
    Bug("clipped surrogate without the minimum", losses.policy_loss,
        "torch.minimum(ratio * advantages, clipped * advantages)", "clipped * advantages",
        test_losses.test_gradient_dies_exactly_where_the_clip_bites, "removes the gradient on the wrong side"),
    Bug("clip fraction on the wrong side", losses.clip_fraction, "(advantages > 0) & (ratio > 1 + cliprange)",
        "(advantages < 0) & (ratio > 1 + cliprange)",
        test_losses.test_gradient_dies_exactly_where_the_clip_bites, "clip fraction does not count"),
    Bug("value clip takes the smaller error", losses.value_loss, "torch.maximum", "torch.minimum",
        test_losses.test_value_clip_is_pessimistic, "value clip takes the smaller error"),
    Bug("value clip lost", losses.value_loss, ".clamp(-cliprange_value, cliprange_value)", "",
        test_losses.test_value_clip_is_pessimistic, "value clip is lost"),
    Bug("entropy with the wrong sign", losses.entropy_of, "return -(", "return (",
        test_losses.test_entropy_of_known_distributions, "entropy has the wrong sign"),
    Bug("entropy bonus added to the loss", PPOTrainer.loss, "- config.entropy_coef", "+ config.entropy_coef",
        test_wiring.test_the_entropy_bonus_lowers_the_loss, "entropy bonus has the wrong sign"),
    Bug("logits off by one token", rollout.response_logits, "rollout.prompt_ids.shape[1] - 1 : -1",
        "rollout.prompt_ids.shape[1] :",
        test_rollout.test_logprobs_equal_a_full_forward_pass, "off by one token"),
    Bug("temperature forgotten in the update", rollout.response_logits, "/ temperature", "/ 1.0",
        test_rollout.test_logprobs_equal_a_full_forward_pass, "pass forgets the temperature"),
    Bug("positions that count the left padding", models.model_inputs, "attention_mask.cumsum(dim=1)",
        "(attention_mask * 0 + 1).cumsum(dim=1)",
        test_rollout.test_left_padding_does_not_change_a_response, "positions count the left padding"),
    Bug("left padding attended to", models.model_inputs, '"attention_mask": attention_mask}',
        '"attention_mask": attention_mask * 0 + 1}',
        test_rollout.test_left_padding_does_not_change_a_response, "left padding is attended to"),
    Bug("mask from token != pad", rollout.sample, "= token, running\n",
        "= token, token != tokenizer.pad_token_id\n",
        test_rollout.test_mask_holds_the_eos_and_nothing_after_it, "the mask loses the EOS"),
    Bug("sampling goes on after EOS", rollout.sample, "& (token[:, None] != eos).all(dim=1)",
        "& True",
        test_rollout.test_mask_holds_the_eos_and_nothing_after_it, "does not end a response"),
    Bug("value after the token", rollout.response_values, "prompt_ids.shape[1] - 1 :",
        "prompt_ids.shape[1] :",
        test_rollout.test_values_belong_to_the_state_before_each_token, "values do not start before token 0"),
    Bug("draws from the wrong uniform number", rollout.draw, "uniform * cumulative[:, -1:]",
        "uniform**2 * cumulative[:, -1:]",
        test_rollout.test_sampled_frequencies_follow_the_distribution, "do not follow the distribution"),
    Bug("draws with the global generator", rollout.draw_uniforms, "count, 1, generator=generator",
        "count, 1, generator=None",
        test_trainer.test_same_seed_same_run_bit_for_bit, "same seed gave other responses"),
    Bug("critic shares the policy's trunk", models.Critic.from_policy.__func__, "copy.deepcopy(trunk_of(policy))",
        "trunk_of(policy)",
        test_rollout.test_a_new_critic_says_zero_and_shares_no_weights, "critic trains the policy's own weights"),
    Bug("rest of a pass dropped", data.PromptBatches.__next__, "self.waiting[self.batch_size :]", "[]",
        test_config_data.test_a_dataset_smaller_than_a_batch_is_cycled_evenly, "a pass drops some prompts"),
    Bug("BOS twice", rollout.encode_prompts, "not (bos and p.startswith(bos))", "True",
        test_rollout.test_bos_is_not_doubled_on_a_rendered_chat, "rendered chat gets a second BOS"),
    Bug("BOS never", rollout.encode_prompts, "not (bos and p.startswith(bos))", "False",
        test_rollout.test_bos_is_not_doubled_on_a_rendered_chat, "plain prompt loses its BOS"),
    Bug("the reference is the policy", models.frozen_copy,
        "copy.deepcopy(policy).requires_grad_(False).eval()", "policy",
        test_trainer.test_the_reference_never_moves, "the reference moved"),
    Bug("dropout left on", PPOTrainer.__init__, "network.to(self.device).eval()", "network.to(self.device).train()",
        test_trainer.test_dropout_is_off, "dropout is on"),
    Bug("gradients never clipped", PPOTrainer.step, "limit = self.config.max_grad_norm", 'limit = float("inf")',
        test_trainer.test_gradients_are_clipped_each_network_by_itself, "is not clipped"),
    Bug("a price of the nat that divides nothing", losses.regression_loss, "advantages / scale", "advantages * scale",
        test_losses.test_what_regression_aims_at, "the target of log r is not A/η"),
    Bug("losses pushed down without end", losses.regression_loss, ".clamp(-floor, 5.0)", ".clamp(max=5.0)",
        test_losses.test_what_regression_aims_at, "pushed down by more than τ"),
    Bug("regression away from its target", losses.regression_loss, "old_logprobs - target", "old_logprobs + target",
        test_losses.test_the_first_step_of_regression_is_that_of_the_policy_gradient,
        "at r = 1 the gradient of regression"),
    Bug("regression over padding", losses.regression_loss, ".masked_fill(~mask, 0.0)", "",
        test_losses.test_padding_and_order_change_neither_loss_nor_gradient, "padding receives a gradient"),
    Bug("π_old recomputed at each step", PPOTrainer.policy_term, "minibatch.logprobs", "logprobs.detach()",
        test_trainer.test_the_old_policy_stays_put_during_the_epochs, "π_old must be the policy that sampled"),
    Bug("temperature forgotten in the loss", PPOTrainer.predictions,
        "self.logits(self.policy, minibatch)", "response_logits(self.policy, minibatch)",
        test_trainer.test_the_first_pass_has_ratio_one, "update forgets the temperature"),
    Bug("critic trained on advantages", PPOTrainer.loss,
        "value_loss(values, old_values, minibatch.returns", "value_loss(values, old_values, minibatch.advantages",
        test_wiring.test_the_loss_takes_the_right_tensors, "the critic learns the advantages"),
    Bug("value after the token in the loss", PPOTrainer.predictions, "self.values(minibatch)[:, :-1]",
        "self.values(minibatch)[:, 1:]",
        test_wiring.test_the_loss_takes_the_right_tensors, "values after each token"),
    Bug("policy trained on returns", PPOTrainer.policy_term,
        "minibatch.advantages", "minibatch.returns",
        test_wiring.test_the_loss_takes_the_right_tensors, "takes the returns for the advantages"),
    Bug("constant ε in the loss", PPOTrainer.policy_term,
        "self.cliprange(minibatch)", "0.2",
        test_wiring.test_the_loss_is_that_of_the_settings, "`cliprange` is ignored"),
    Bug("constant value clip in the loss", PPOTrainer.loss,
        "value_loss(values, old_values, minibatch.returns, mask, config.cliprange_value)",
        "value_loss(values, old_values, minibatch.returns, mask, 0.2)",
        test_wiring.test_the_loss_is_that_of_the_settings, "`cliprange_value` is ignored"),
    Bug("weight of the value loss forgotten", PPOTrainer.loss, "config.vf_coef * value", "value",
        test_wiring.test_the_loss_is_that_of_the_settings, "not weighted by `vf_coef`"),
    Bug("reference at another temperature", PPOTrainer.logprobs,
        "self.logits(model, rollout)", "response_logits(model, rollout)",
        test_wiring.test_estimates_are_those_of_the_settings, "reference's log-probs are not at the run's temperature"),
    Bug("KL for free", PPOTrainer.assign_credit, "rollout.mask, self.kl_coef", "rollout.mask, 0.0",
        test_wiring.test_estimates_are_those_of_the_settings, "`kl_coef` is not the price"),
    Bug("γ and λ swapped", PPOTrainer.assign_credit, "config.gamma, config.lam", "config.lam, config.gamma",
        test_wiring.test_estimates_are_those_of_the_settings, "γ and λ are swapped"),
    Bug("bootstrap_cut ignored", PPOTrainer.assign_credit, "config.bootstrap_cut", "False",
        test_wiring.test_estimates_are_those_of_the_settings, "`bootstrap_cut` is ignored"),
    Bug("one minibatch an epoch", PPOTrainer.minibatches, "order.split(self.config.step_size)",
        "order.split(self.config.step_size)[:1]",
        test_wiring.test_an_epoch_takes_every_row_once, "stops after its first minibatch"),
    Bug("last minibatch dropped", PPOTrainer.minibatches, "order.split(self.config.step_size)",
        "order.split(self.config.step_size)[:-1]",
        test_wiring.test_an_epoch_takes_every_row_once, "drops the rest of 8 rows"),
    Bug("one epoch", PPOTrainer.minibatches, "range(self.config.num_ppo_epochs)", "range(1)",
        test_wiring.test_there_are_num_ppo_epochs_passes, "`num_ppo_epochs` is ignored"),
    Bug("rows never shuffled", PPOTrainer.minibatches, "torch.randperm(len(rollout), generator=self.generator)",
        "torch.arange(len(rollout))",
        test_wiring.test_there_are_num_ppo_epochs_passes, "rows in the same order"),
    Bug("gradients never zeroed", PPOTrainer.step, "self.optimizer.zero_grad(set_to_none=True)", "pass",
        test_wiring.test_each_step_has_a_gradient_of_its_own, "gradients of earlier steps pile up"),
    Bug("critic not in the optimiser", PPOTrainer.make_optimizer,
        "[*self.policy.parameters(), *self.critic.parameters()]", "self.policy.parameters()",
        test_wiring.test_policy_and_critic_both_learn, "critic never learns"),
    Bug("policy not in the optimiser", PPOTrainer.make_optimizer,
        "[*self.policy.parameters(), *self.critic.parameters()]", "self.critic.parameters()",
        test_wiring.test_policy_and_critic_both_learn, "policy never learns"),
    Bug("learning rate left at AdamW's", PPOTrainer.make_optimizer, "lr=self.config.learning_rate, ", "",
        test_wiring.test_policy_and_critic_both_learn, "`learning_rate` is ignored"),
    Bug("loss over padding", PPOTrainer.loss, "mask, old = self.config, minibatch.mask, minibatch.logprobs",
        "mask, old = self.config, torch.ones_like(minibatch.mask), minibatch.logprobs",
        test_trainer.test_metrics_ignore_padding, "padding leaks into the loss"),
    Bug("metric of the loss over padding", PPOTrainer.loss, "masked_mean(0.5 * (logprobs - old) ** 2, mask)",
        "(0.5 * (logprobs - old) ** 2).mean()",
        test_trainer.test_metrics_ignore_padding, "padding leaks into policy/approxkl_avg"),
    Bug("metric of the rollout over padding", PPOTrainer.rollout_metrics, "x.masked_fill(~mask, 0.0)", "x",
        test_trainer.test_metrics_ignore_padding, "padding leaks into objective/kl"),
    Bug("Bradley–Terry the wrong way round", rewards.bradley_terry_loss, "chosen - rejected)", "rejected - chosen)",
        test_rewards.test_bradley_terry_by_hand, "not −log σ"),
]  # fmt: skip


def cases(test):
    """The argument sets of a parametrised test; one empty set for a plain one."""
    sets = [{}]
    for mark in [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]:
        names = [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
        rows = [row if len(names) > 1 else (row,) for row in mark.args[1]]
        sets = [known | dict(zip(names, row, strict=True)) for known in sets for row in rows]
    return sets


def first_failure(test) -> str | None:
    """The message of the first case of `test` that fails, or None."""
    for arguments in cases(test):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            fixtures = {"tmp_path": Path(folder), "monkeypatch": monkeypatch}
            wanted = {name: fixtures[name] for name in inspect.signature(test).parameters if name in fixtures}
            try:
                test(**arguments, **wanted)
            except AssertionError as error:
                return str(error)
    return None


def assert_caught_and_named(bug: Bug, bugs: list[Bug]) -> None:
    """The test that should catch `bug` fails, and its message names this one of `bugs` alone."""
    with planted(bug.function, bug.old, bug.new):
        message = first_failure(bug.caught_by)
    assert message is not None, f"nobody noticed: {bug.name}"
    named = [other.name for other in bugs if other.message in message]
    assert named == [bug.name], f"{bug.name} was noticed, but the message names {named or 'no bug'}: {message}"


def assert_no_shared_message(bugs: list[Bug]) -> None:
    messages = [bug.message for bug in bugs]
    shared = sorted({message for message in messages if messages.count(message) > 1})
    assert not shared, f"these messages name more than one bug, so they name none: {shared}"


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug_is_caught_and_named(bug):
    assert_caught_and_named(bug, BUGS)


def test_no_two_bugs_share_a_message():
    assert_no_shared_message(BUGS)
