"""Bugs of replay, planted one at a time in v2: each must be caught by a test whose message names it."""

import pytest

from ppo_lib import importance, ppo, ppo_v1
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.replay import ReplayBuffer
from tests.mutations.test_planted_bugs import Bug, assert_caught_and_named, assert_no_shared_message
from tests.unit import test_importance, test_replay, test_v2

REFRESH, CREDIT = PPOTrainerWithReplay.refresh, PPOTrainerWithReplay.assign_credit
RATIOS = " ratios = importance_ratios(rollout.logprobs, rollout.behaviour_logprobs"
BY_HAND = test_v2.test_credit_of_a_mixed_batch_by_hand
KEPT = "~torch.isin(old, self.best())"

# Each response keeps the estimates that it had when it was first trained on.
FROZEN = """self.assign_credit(batch)
    first = self.__dict__.setdefault("first", {})
    for row, n in enumerate(batch.lengths.tolist()):
        estimates = [batch.advantages[row, :n].clone(), batch.returns[row, :n].clone()]
        key = (batch.prompts[row], *batch.response_ids[row, :n].tolist())
        batch.advantages[row, :n], batch.returns[row, :n] = first.setdefault(key, estimates)"""
FIRST_CRITIC = """import copy
    now, self.critic = self.critic, self.__dict__.setdefault("first_critic", copy.deepcopy(self.critic))
    replayed.values = self.values(replayed)
    self.critic = now"""
GROW = """self.fields = {name: torch.cat([field, field[:1]]) for name, field in self.fields.items()}
    self.prompts.append(None)
    return len(self.prompts) - 1"""
# At π_θ = π_k these weights leave the loss as it is, but not its gradient.
LIVE_WEIGHTS = """weights = (logprobs - getattr(minibatch, "behaviour_logprobs", minibatch.logprobs)).exp()
    advantages = minibatch.advantages * weights / weights.detach()
    return policy_loss(logprobs, minibatch.logprobs, advantages, minibatch.mask, self.cliprange(minibatch))"""
APART = """old = (rollout.ages > 0)[:, None]
        rollout.advantages = whiten(rollout.advantages, mask & old) + whiten(rollout.advantages, mask & ~old)"""
WHITENED_LAST = """whiten(rollout.weights * vtrace(
        rollout.rewards, rollout.values, mask, rollout.ended, traces, config.gamma, config.lam, config.bootstrap_cut
    )[0], mask)"""

HOT = test_v2.test_hot_responses_are_corrected_like_old_ones

BUGS = [
    # ratios and weights
    Bug("ratio upside down, μ/π_k", importance.importance_ratios, "(logprobs - behaviour_logprobs)",
        "(behaviour_logprobs - logprobs)",
        test_importance.test_ratios_by_hand, "upside down, μ/π_k"),
    Bug("padding in the ratio", importance.importance_ratios,
        "(logprobs - behaviour_logprobs).masked_fill(~mask, 0.0)", "(logprobs - behaviour_logprobs)",
        test_importance.test_ratios_by_hand, "padding has a ratio of its own"),
    Bug("sequence weights not summed over the response", importance.importance_ratios,
        "log_ratio.sum(dim=1, keepdim=True)", "log_ratio",
        test_importance.test_ratios_by_hand, "the tokens of a sequence have ratios of their own"),
    Bug("sequence weights averaged over the response", importance.importance_ratios,
        "log_ratio.sum(dim=1, keepdim=True)", "log_ratio.mean(dim=1, keepdim=True).expand_as(log_ratio)",
        test_importance.test_ratios_by_hand, "add up the logarithms"),
    Bug("`importance_level` ignored", CREDIT, "mask, config.importance_level)", "mask)",
        test_v2.test_sequence_weights_are_those_of_the_whole_response, "`importance_level` is ignored"),
    Bug("π_ref under the ratio", CREDIT, RATIOS,
        " ratios = importance_ratios(rollout.logprobs, rollout.ref_logprobs",
        BY_HAND, "the weights are not π_k over μ"),
    Bug("π_θ/μ in the loss", ppo.PPOTrainer.policy_term, "minibatch.logprobs",
        'getattr(minibatch, "behaviour_logprobs", minibatch.logprobs)',
        test_v2.test_loss_and_gradient_of_a_mixed_batch_by_hand, "the ratio in the loss is π_θ/μ"),
    Bug("π_k not recomputed", REFRESH, "self._in_parts(partial(self.logprobs, self.policy), replayed)",
        "replayed.behaviour_logprobs",
        test_v2.test_replayed_rows_are_seen_by_the_current_policy_and_critic, "keep the log-probabilities of μ"),
    Bug("coupled clip where decoupled is asked", CREDIT, 'if config.correction == "coupled":', "if True:",
        BY_HAND, "the clip is coupled to μ"),
    Bug("weights not truncated", CREDIT, "ratios.clamp(max=config.importance_cap)", "ratios",
        BY_HAND, "the weights are not truncated at C"),
    Bug("truncation the wrong way", CREDIT, "ratios.clamp(max=config.importance_cap)",
        "ratios.clamp(min=config.importance_cap)",
        BY_HAND, "the truncation goes the wrong way"),
    Bug("weights with a gradient", ppo.PPOTrainer.policy_term,
        "return policy_loss(logprobs, *estimates, self.cliprange(minibatch))", LIVE_WEIGHTS,
        test_v2.test_loss_and_gradient_of_a_mixed_batch_by_hand, "a gradient flows through the weights"),
    Bug("importance weights in regression", CREDIT, "if clipped:", "if True:",
        test_v2.test_regression_asks_the_same_of_a_token_whoever_sampled_it, "importance weights reach the advantages"),
    Bug("replayed tokens of regression unweighted", ppo_v1.PPOTrainer.policy_term,
        'getattr(minibatch, "weights", 1.0)', "1.0",
        test_v2.test_regression_asks_the_same_of_a_token_whoever_sampled_it, "not weighted, or not centred on π_k"),
    Bug("hot policy at the centre of the clip", PPOTrainerWithReplay.collect,
        "self._in_parts(partial(self.logprobs, self.policy), rollout)", "rollout.logprobs",
        HOT, "the centre of the clip is the hot policy"),
    Bug("hot responses stored as cool ones", ReplayBuffer.add,
        'getattr(rollout, "behaviour_logprobs", rollout.logprobs)', "rollout.logprobs",
        HOT, "the buffer takes π_k for the hot sampler"),
    Bug("heat by the height of the scores", PPOTrainerWithReplay.behaviour_temperature.fget,
        ' - self.history[0]["objective/scores"] if', " if",
        test_v2.test_sampling_cools_as_scores_rise_from_where_they_began, "cools because scores are high"),
    Bug("heat by the last score alone", PPOTrainerWithReplay.behaviour_temperature.fget,
        "math.fsum(recent) / len(recent)", "recent[-1]",
        test_v2.test_sampling_cools_as_scores_rise_from_where_they_began, "not that of the mean over eight updates"),
    Bug("weights not used", CREDIT, "rollout.advantages = rollout.advantages * rollout.weights", "pass",
        BY_HAND, "the weights never reach the advantages"),
    Bug("whitened after weighting", CREDIT, "rollout.advantages * rollout.weights",
        WHITENED_LAST,
        BY_HAND, "whitened after they were weighted"),
    Bug("fresh and replayed whitened apart", CREDIT, "rollout.advantages = whiten(rollout.advantages, mask)", APART,
        BY_HAND, "fresh and replayed rows are whitened apart"),
    # advantages, values, rewards
    Bug("advantages frozen at sampling", PPOTrainerWithReplay.mix, "self.assign_credit(batch)", FROZEN,
        test_v2.test_advantages_move_with_the_critic, "replayed advantages are frozen"),
    Bug("stale values", REFRESH, "replayed.values = self.values(replayed)", FIRST_CRITIC,
        test_v2.test_replayed_rows_are_seen_by_the_current_policy_and_critic, "the values of an earlier critic"),
    Bug("KL baked into the stored reward", ReplayBuffer.add, '"scores": rollout.scores[row]',
        '"scores": rollout.scores[row] if rollout.rewards is None else rollout.rewards[row].sum()',
        test_replay.test_a_response_comes_back_as_it_went_in, "KL is baked into it"),
    Bug("KL of the policy that sampled", CREDIT, "token_rewards(rollout.scores, rollout.logprobs,",
        "token_rewards(rollout.scores, rollout.behaviour_logprobs,",
        BY_HAND, "the KL penalty is not that of the current policy"),
    Bug("whether it ended is lost", ReplayBuffer.add, '"ended": rollout.ended[row]', '"ended": True',
        test_replay.test_a_response_comes_back_as_it_went_in, "ended or was cut off is lost"),
    Bug("V-trace with c_t in place of c_{t+1}", importance.vtrace,
        "reaching_back\n        reaching_back = traces[:, t] * advantages[:, t]",
        "traces[:, t] * reaching_back\n        reaching_back = advantages[:, t]",
        test_importance.test_vtrace_by_hand, "c̄ of the next token is not the trace"),
    Bug("V-trace's target without c̄", importance.vtrace, "(traces * advantages + values", "(advantages + values",
        test_importance.test_vtrace_by_hand, "y is not V + c̄ A"),
    Bug("traces not clipped", CREDIT, "by_token.clamp(max=config.trace_cap) if", "ratios if",
        BY_HAND, "the traces of V-trace are not clipped"),
    # guards
    Bug("padding in the effective sample size", REFRESH, "config.importance_level)[mask]",
        "config.importance_level).flatten()",
        test_v2.test_health_of_the_weights_by_hand, "padding counts in the effective sample size"),
    Bug("effective sample size not a share", importance.effective_sample_size, "len(ratios) * (ratios**2).sum()",
        "(ratios**2).sum()",
        test_importance.test_effective_sample_size_by_hand, "even weights are not worth all samples"),
    Bug("effective sample size of unsquared ratios", importance.effective_sample_size,
        "ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum())", "ratios.sum() / (len(ratios) * ratios.max())",
        test_importance.test_effective_sample_size_by_hand, "(1+1+4)²/(3·18) is not 2/3"),
    Bug("KL of a response, not of a token", REFRESH, " / replayed.lengths", "",
        test_v2.test_health_of_the_weights_by_hand, "not in nats per token"),
    Bug("second moment keeps the furthest", importance.second_moment_mask, "argsort()", "argsort(descending=True)",
        test_importance.test_second_moment_mask_leaves_out_the_furthest, "does not leave out the furthest"),
    Bug("padding in the second moment", importance.second_moment_mask,
        "torch.where(mask, ratios.log() ** 2, torch.inf)", "ratios.log() ** 2",
        test_importance.test_padding_does_not_count_in_the_second_moment, "padding dilutes the second moment"),
    Bug("second-moment mask ignored", CREDIT, "if config.second_moment_limit:", "if False:",
        test_v2.test_the_second_moment_mask_takes_tokens_out, "`second_moment_limit` is ignored"),
    Bug("`min_ess` ignored", REFRESH, "replayed if ess >= config.min_ess else None", "replayed",
        test_v2.test_far_rows_and_poor_weights_are_left_out, "`min_ess` is ignored"),
    Bug("`max_replay_kl` ignored", REFRESH, "(config.max_replay_kl or math.inf)", "math.inf",
        test_v2.test_far_rows_and_poor_weights_are_left_out, "`max_replay_kl` is ignored"),
    # what the buffer holds
    Bug("no expiry", PPOTrainerWithReplay.update, "self.buffer.expire(version)", "pass",
        test_v2.test_limits_hold_over_a_run, "nothing expires in a run"),
    Bug("expires one update too late", ReplayBuffer.expire, "> self.staleness_threshold",
        "> self.staleness_threshold + 1",
        test_replay.test_a_response_expires_when_it_is_older_than_the_threshold, "kept beyond `staleness_threshold`"),
    Bug("expires one update too early", ReplayBuffer.expire, "> self.staleness_threshold",
        ">= self.staleness_threshold",
        test_replay.test_a_response_expires_when_it_is_older_than_the_threshold, "just `staleness_threshold` updates"),
    Bug("reuse not counted", ReplayBuffer.sample, 'self.fields["reuses"][places] += 1', "pass",
        test_replay.test_a_response_retires_after_so_many_uses, "a use is not counted"),
    Bug("one use too many", ReplayBuffer.sample, ">= self.max_reuse", "> self.max_reuse",
        test_replay.test_a_response_retires_after_so_many_uses, "replayed more often than `max_reuse`"),
    Bug("one use too few", ReplayBuffer.sample, ">= self.max_reuse", ">= self.max_reuse - 1",
        test_replay.test_a_response_retires_after_so_many_uses, "retires before its last use"),
    Bug("capacity exceeded", ReplayBuffer._place, "return int(oldest)", GROW,
        test_replay.test_memory_is_reserved_at_the_start, "the buffer outgrows its capacity"),
    Bug("the newest gives way", ReplayBuffer._place, ".argmin()", ".argmax()",
        test_replay.test_the_oldest_gives_way, "not the oldest response that gives way"),
    Bug("evictions not counted", ReplayBuffer._place, 'self.counts["evicted"] += 1', "pass",
        test_replay.test_the_oldest_gives_way, "that gave way are not counted"),
    Bug("what keep_best keeps gives way", ReplayBuffer._place, "self.held[~torch.isin(self.held, self.best())]",
        "self.held",
        test_replay.test_high_scores_are_kept, "the best response gave way"),
    Bug("what keep_best keeps expires", ReplayBuffer.expire, f"old[{KEPT}]", "old",
        test_replay.test_high_scores_are_kept, "the best response expired"),
    Bug("keep_best keeps the lowest scores", ReplayBuffer.best, "topk(kept)", "topk(kept, largest=False)",
        test_replay.test_the_highest_scores_are_the_best, "it is the lowest scores that are kept"),
    Bug("the buffer aliases the rollout", ReplayBuffer.add,
        "self.fields[name][place, :length] = source[row, :length].to(self.fields[name])", "self.fields[name] = source",
        test_replay.test_the_buffer_shares_no_memory, "the buffer shares memory with the rollout"),
    Bug("a batch aliases the buffer", ReplayBuffer._rollout, "tensor[places]", "tensor[: len(places)]",
        test_replay.test_the_buffer_shares_no_memory, "a replayed batch shares memory with the buffer"),
    Bug("age wrong by one", ReplayBuffer._rollout, 'version - field["versions"]', 'version - field["versions"] - 1',
        test_replay.test_a_response_comes_back_as_it_went_in, "not the number of updates since sampling"),
    Bug("dated by the update before", PPOTrainerWithReplay.update, "self.buffer.add(rollout, version)",
        "self.buffer.add(rollout, version - 1)",
        test_v2.test_rollouts_enter_the_buffer_after_they_were_trained_on, "dates a response by another update"),
    Bug("in the buffer before it was trained on", PPOTrainerWithReplay.update,
        "batch, seen = self.mix(rollout, version)",
        "self.buffer.add(rollout, version)\n    batch, seen = self.mix(rollout, version)",
        test_v2.test_rollouts_enter_the_buffer_after_they_were_trained_on, "replayed in its own update"),
    # which responses are drawn
    Bug("stale priorities", ReplayBuffer.probabilities, "(scores - scores.mean())",
        '(scores - self.__dict__.setdefault("mean", scores.mean()))',
        test_replay.test_priorities_follow_the_present_scores, "the priorities are stale"),
    Bug("age ignored", ReplayBuffer.probabilities, "logits = logits - self.ages(version).double() / self.recency",
        "pass",
        test_replay.test_recency_and_priority_by_hand, "draws do not look at the age"),
    Bug("older drawn more often", ReplayBuffer.probabilities, "logits - self.ages", "logits + self.ages",
        test_replay.test_recency_and_priority_by_hand, "older responses are drawn more often"),
    Bug("no ω", ReplayBuffer.sample, "** -self.priority_correction", "** 0",
        test_replay.test_recency_and_priority_by_hand, "not corrected by ω"),
    Bug("ω upside down", ReplayBuffer.sample, "** -self.priority_correction", "** self.priority_correction",
        test_replay.test_recency_and_priority_by_hand, "ω is larger for what is drawn more often"),
    Bug("ω not scaled to 1", ReplayBuffer.sample, "(omega / omega.max())", "omega",
        test_replay.test_recency_and_priority_by_hand, "ω is not scaled to at most 1"),
    Bug("ω not used", CREDIT, "rollout.sampling_weights[:, None].expand_as(ratios)", "torch.ones_like(ratios)",
        test_v2.test_prioritised_draws_are_corrected_in_the_weights, "ω is left out of the weights"),
    Bug("drawn with replacement", ReplayBuffer.sample, "generator=generator)",
        "replacement=True, generator=generator)",
        test_replay.test_no_response_is_drawn_twice_in_a_batch, "drawn twice in one batch"),
    Bug("drawn by the process's generator", ReplayBuffer.sample, ", generator=generator)", ")",
        test_replay.test_draws_depend_on_the_given_generator_alone, "draws use the process's generator"),
    Bug("drawn by a generator of its own", PPOTrainerWithReplay.mix, "self.generator)", "torch.Generator())",
        test_v2.test_draws_move_the_generator_of_the_run, "draws from a generator that no checkpoint holds"),
    Bug("replay fades in", PPOTrainerWithReplay.replay_size, "left = (self._last_update - version)",
        "left = version",
        test_v2.test_replay_fades_at_the_end, "replay fades in at the start"),
    Bug("replay never fades", PPOTrainerWithReplay.replay_size, "if config.replay_anneal else 1.0", "if False else 1.0",
        test_v2.test_replay_fades_at_the_end, "`replay_anneal` is ignored"),
    # what a run counts and keeps
    Bug("replayed responses not counted", PPOTrainerWithReplay.efficiency, '["trained_responses"] += len(batch)',
        '["trained_responses"] += len(fresh)',
        test_v2.test_limits_hold_over_a_run, "not counted as trained on"),
    Bug("replayed responses counted as generated", PPOTrainerWithReplay.efficiency,
        '["generated_responses"] += len(fresh)', '["generated_responses"] += len(batch)',
        test_v2.test_limits_hold_over_a_run, "counted as generated"),
    Bug("buffer not restored", PPOTrainerWithReplay.__init__,
        'self.buffer.load_state_dict(self.resumed_state["replay"])', "pass",
        test_v2.test_the_buffer_is_restored_with_the_run, "the buffer is not restored from the checkpoint"),
    Bug("uses forgotten", ReplayBuffer.load_state_dict, 'field.copy_(state["fields"][name])',
        'field.copy_(state["fields"][name] * (name != "reuses"))',
        test_v2.test_the_buffer_is_restored_with_the_run, "of the buffer, reuses are not restored"),
    Bug("counts lost at a resume", ReplayBuffer.load_state_dict, 'dict(state["counts"])', "self.counts",
        test_v2.test_the_buffer_is_restored_with_the_run, "counts start anew at a resume"),
    Bug("totals lost at a resume", PPOTrainerWithReplay.__init__, 'self.totals = self.resumed_state["totals"]', "pass",
        test_v2.test_the_buffer_is_restored_with_the_run, "totals of generated and trained tokens start anew"),
    # spacing, gains
    Bug("`spacing` not counted from the sampling", ReplayBuffer.ready,
        'self.fields["last_used"][self.held]',
        'self.fields["last_used"][self.held].masked_fill(self.fields["reuses"][self.held] == 0, -99)',
        test_replay.test_a_response_rests_between_two_uses, "since its sampling"),
    Bug("`spacing` counted from the sampling alone", ReplayBuffer.ready, '"last_used"', '"versions"',
        test_replay.test_a_response_rests_between_two_uses, "since its last use"),
    Bug("what rests is drawn", ReplayBuffer.sample, "min(size, ready)", "min(size, len(held))",
        test_replay.test_a_response_rests_between_two_uses, "more are drawn than are ready"),
    Bug("gains alone, of fresh responses too", CREDIT, "(rollout.ages > 0)[:, None] & ", "",
        test_v2.test_old_responses_may_teach_by_gains_alone, "fresh responses lose their losses too"),
    Bug("losses turned round", CREDIT, "rollout.advantages.masked_fill(lost, 0.0)", "rollout.advantages.abs()",
        test_v2.test_old_responses_may_teach_by_gains_alone, "gains of old responses are changed"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug_is_caught_and_named(bug):
    assert_caught_and_named(bug, BUGS)


def test_no_two_bugs_share_a_message():
    assert_no_shared_message(BUGS)
