"""Classic PPO bugs, planted one at a time: each must be caught by a test whose message names it.

The catching test runs here with the bug inside and must fail with the message; without the bug it passes in
its own file. A bug that no test notices, or that a test notices without naming it, fails here.
"""

from typing import NamedTuple

import pytest

from ppo_lib import estimators, losses, models, rewards, rollout
from ppo_lib.ppo import PPOTrainer
from tests.mutations.planting import planted
from tests.unit import test_estimators, test_losses, test_rewards, test_rollout, test_trainer


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
        test_estimators.test_score_lands_on_the_last_sampled_token, "not on the last sampled token"),
    Bug("score one token before EOS", estimators.token_rewards, "mask.sum(dim=1) - 1",
        "(mask.sum(dim=1) - 2).clamp(min=0)",
        test_estimators.test_score_lands_on_the_last_sampled_token, "not on the last sampled token"),
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
        test_estimators.test_gae_equals_its_definition, "is λ there"),
    Bug("value after EOS counted", estimators.gae, ".masked_fill(~goes_on, 0.0)", "",
        test_estimators.test_gae_equals_its_definition, "is the value after the last token 0"),
    Bug("GAE run forwards", estimators.gae, "reversed(range(mask.shape[1]))",
        "range(mask.shape[1])",
        test_estimators.test_gae_equals_its_definition, "does the sum run backwards"),
    Bug("returns from whitened advantages", PPOTrainer.estimate,
        "rollout.advantages = whiten(rollout.advantages, rollout.mask)",
        "rollout.advantages = whiten(rollout.advantages, rollout.mask)\n"
        "        rollout.returns = rollout.advantages + rollout.values[:, :-1]",
        test_trainer.test_returns_come_from_advantages_before_whitening, "returns are built from whitened"),
    Bug("policy loss with the wrong sign", losses.policy_loss, "return -masked_mean", "return masked_mean",
        test_losses.test_clipped_surrogate_by_hand, "the sign"),
    Bug("maximum for minimum", losses.policy_loss, "torch.minimum", "torch.maximum",
        test_losses.test_clipped_surrogate_by_hand, "the min"),
    Bug("clip lost", losses.policy_loss, "ratio.clamp(1 - cliprange, 1 + cliprange)", "ratio",
        test_losses.test_clipped_surrogate_by_hand, "the clip"),
    Bug("ratio upside down", losses.policy_loss, "logprobs - old_logprobs", "old_logprobs - logprobs",
        test_losses.test_clipped_surrogate_by_hand, "the ratio's direction"),
    Bug("value clip takes the smaller error", losses.value_loss, "torch.maximum", "torch.minimum",
        test_losses.test_value_clip_is_pessimistic, "value clip"),
    Bug("entropy with the wrong sign", losses.entropy_of, "return -(", "return (",
        test_losses.test_entropy_of_known_distributions, "wrong sign"),
    Bug("entropy bonus added to the loss", PPOTrainer.loss, "- config.entropy_coef", "+ config.entropy_coef",
        test_trainer.test_the_entropy_bonus_lowers_the_loss, "entropy bonus has the wrong sign"),
    Bug("logits off by one token", rollout.response_logits, "rollout.prompt_ids.shape[1] - 1 : -1",
        "rollout.prompt_ids.shape[1] :",
        test_rollout.test_logprobs_equal_a_full_forward_pass, "off by one token"),
    Bug("temperature forgotten in the update", rollout.response_logits, "/ temperature", "/ 1.0",
        test_rollout.test_logprobs_equal_a_full_forward_pass, "temperature forgotten"),
    Bug("positions that count the left padding", models.model_inputs, "attention_mask.cumsum(dim=1)",
        "(attention_mask * 0 + 1).cumsum(dim=1)",
        test_rollout.test_left_padding_does_not_change_a_response, "left padding shifts positions"),
    Bug("left padding attended to", models.model_inputs, '"attention_mask": attention_mask}',
        '"attention_mask": attention_mask * 0 + 1}',
        test_rollout.test_left_padding_does_not_change_a_response, "or is attended to"),
    Bug("mask from token != pad", rollout.sample, "masks.append(running)",
        "masks.append(token != tokenizer.pad_token_id)",
        test_rollout.test_mask_holds_the_eos_and_nothing_after_it, "the mask loses the EOS"),
    Bug("sampling goes on after EOS", rollout.sample, "running = running & ~torch.isin(token, eos)",
        "running = running & True",
        test_rollout.test_mask_holds_the_eos_and_nothing_after_it, "goes on after EOS"),
    Bug("value after the token", rollout.response_values, "prompt_ids.shape[1] - 1 :",
        "prompt_ids.shape[1] :",
        test_rollout.test_values_belong_to_the_state_before_each_token, "before token 0"),
    Bug("the reference is the policy", models.frozen_copy,
        "copy.deepcopy(policy).requires_grad_(False).eval()", "policy",
        test_trainer.test_the_reference_never_moves, "the reference moved"),
    Bug("dropout left on", PPOTrainer.__init__, "network.to(self.device).eval()", "network.to(self.device).train()",
        test_trainer.test_dropout_is_off, "dropout is on"),
    Bug("gradients never clipped", PPOTrainer.step, "limit = self.config.max_grad_norm", 'limit = float("inf")',
        test_trainer.test_gradients_are_clipped_each_network_by_itself, "is not clipped"),
    Bug("π_old recomputed at each step", PPOTrainer.loss, "logprobs = logprobs_of(logits, minibatch.response_ids)",
        "logprobs = logprobs_of(logits, minibatch.response_ids)\n    old = logprobs.detach()",
        test_trainer.test_the_old_policy_stays_put_during_the_epochs, "π_old must be the policy that sampled"),
    Bug("Bradley–Terry the wrong way round", rewards.bradley_terry_loss, "chosen - rejected)", "rejected - chosen)",
        test_rewards.test_bradley_terry_by_hand, "not −log σ"),
]


def cases(test):
    """The argument sets of a parametrised test; one empty set for a plain one."""
    sets = [{}]
    for mark in getattr(test, "pytestmark", []):
        names = [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
        rows = [row if len(names) > 1 else (row,) for row in mark.args[1]]
        sets = [known | dict(zip(names, row, strict=True)) for known in sets for row in rows]
    return sets


def first_failure(test) -> str | None:
    """The message of the first case of `test` that fails, or None."""
    for arguments in cases(test):
        try:
            test(**arguments)
        except AssertionError as error:
            return str(error)
    return None


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug_is_caught_and_named(bug):
    with planted(bug.function, bug.old, bug.new):
        message = first_failure(bug.caught_by)
    assert message is not None, f"nobody noticed: {bug.name}"
    assert bug.message in message, f"{bug.name} was noticed, but the message does not name it: {message}"
