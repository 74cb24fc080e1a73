"""Bugs of the fast paths, planted one at a time: a faster sampler or update that is also another one must be named."""

import pytest

from ppo_lib import models, ppo, rewards, rollout
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.running import memory
from ppo_lib.sampling import choice, decoding
from ppo_lib.sampling.decoding import Decoder, LlamaDecoder, LlamaStep
from ppo_lib.sampling.graphs import CopiedLayer, GraphDecoder, Recorded, RecordedStep
from tests.mutations.test_planted_bugs import Bug, assert_caught_and_named, assert_no_shared_message
from tests.unit import test_decoding, test_exact, test_speed_settings

STEP = test_decoding.test_each_step_equals_a_whole_pass
SHARED = test_decoding.test_equal_prompts_may_be_shared_and_texts_may_leave
LEAVING = test_decoding.test_texts_that_finish_and_leave_change_nothing
CHUNKS = test_speed_settings.test_chunks_change_neither_gradient_nor_metrics
RECORDED = test_decoding.test_recorded_steps_read_the_weights_anew_and_leave_nothing_out
TRIMMED = test_speed_settings.test_a_trimmed_rollout_computes_the_same

BUGS = [
    # decoding
    Bug("halves turned the wrong way", LlamaStep.__init__, "-sin[0], sin[0]", "sin[0], -sin[0]",
        STEP, "LlamaDecoder computes other logits than the"),
    Bug("a padding place attended to", LlamaStep.fill, "masked_fill_(~prompt_mask[:, None, None], -torch.inf)",
        "masked_fill_(~prompt_mask[:, None, None], 0.0)",
        STEP, "LlamaDecoder computes other logits than the"),
    Bug("equal prompts mixed up", Decoder.__init__, "self.logits = self.logits[row_of]",
        "self.logits = self.logits[row_of.flip(0)]",
        SHARED, "goes on from another row's prompt"),
    Bug("equal prompts computed again", Decoder.__init__, "len(different) == len(prompt_ids)", "True",
        test_decoding.test_equal_prompts_go_through_the_model_once, "rows with 2 different prompts were computed as"),
    Bug("positions of the texts that left", LlamaStep.keep, "self.positions[rows]", "self.positions[: len(rows)]",
        SHARED, "LlamaDecoder: a text that stays goes on from another's cache"),
    Bug("random numbers of the texts that left", rollout.sample, "numbers[t, rows]", "numbers[t, : len(rows)]",
        LEAVING, "a response depends on when the others finish"),
    Bug("a text that left counts as cut off", rollout.sample, "ended = torch.ones(", "ended = torch.zeros(",
        LEAVING, "`ended` is lost for texts that left"),
    Bug("another family's sums", LlamaDecoder.fits, '!= set(kinds)', "is None",
        test_exact.test_another_layer_acts_in_sampling, "other_mlp acts in training"),
    # what was done to the model
    Bug("hooks looked for nowhere", decoding.is_untouched, "return False", "return True",
        test_exact.test_a_hook_on_any_module_acts_in_sampling, "a hook on the policy acts in training"),
    Bug("forward functions of instances passed over", decoding.is_untouched, "return forward is None", "return True",
        test_exact.test_another_layer_acts_in_sampling, "patched_forward acts in training"),
    Bug("hooks on all modules passed over", LlamaDecoder.fits, "not _has_any_global_hook()", "True",
        test_exact.test_a_hook_on_all_modules_acts_in_sampling, "a hook on all modules acts in training"),
    Bug("patched classes passed over", LlamaDecoder.fits, "kind.forward.__module__ == kind.__module__", "True",
        test_exact.test_a_patched_class_acts_in_sampling, "a patched class acts in training"),
    Bug("scores scaled by habit", LlamaDecoder.fits, "layer.self_attn.scaling == layer.self_attn.head_dim**-0.5",
        "True",
        test_exact.test_another_layer_acts_in_sampling, "other_scaling acts in training"),
    Bug("attention of one's own taken on", LlamaDecoder.fits, "config._attn_implementation in ATTENTION", "True",
        test_exact.test_another_layer_acts_in_sampling, "own_attention acts in training"),
    Bug("the sampler compared with nothing", ppo.PPOTrainer.rehearse, "prompts.append(prompts[0])", "return",
        test_exact.test_patched_arithmetic_is_noticed_before_the_first_update, "are sampled from, unsaid"),
    Bug("weights that are not there not missed", models.check_names, "if other:", "if False:",
        test_exact.test_weights_that_would_not_be_read_again_are_refused, "comes back with random weights in it"),
    Bug("states behind the trunk not looked at", memory.check_head, "*((state, states) for state in seen)", "",
        test_exact.test_caps_and_scales_of_logits_are_refused_where_the_head_alone_is_asked,
        "what minicpm3 does behind its head is lost"),
    Bug("rotations as they come", models.settle_positions, "if longest > switch:", "if False:",
        test_exact.test_longrope_keeps_one_set_of_factors, "long factors are taken unsaid"),
    Bug("rotations that switch all the same", models.settle_positions,
        'module.rope_type = "longrope, long factors"', "pass",
        test_exact.test_longrope_keeps_one_set_of_factors, "rotations differ between sampling and a minibatch"),
    Bug("whole layers of adapters left out", models.merge_adapters,
        "isinstance(module, AuxiliaryTrainingWrapper)", "False",
        test_exact.test_adapters_of_the_policy_are_kept_or_refused, "whole head by name: "),
    Bug("an adapters' folder read in part", models.read_policy, "find_adapter_config_file(name) is None", "True",
        test_exact.test_adapters_of_the_policy_are_kept_or_refused, "DoRA by name: the policy begins"),
    Bug("noise left in the adapters", memory.as_if_trained, "parameter.copy_(was)", "pass",
        test_exact.test_as_if_trained_leaves_nothing_behind, "noise is left in "),
    Bug("adapters tried as they begin", memory.as_if_trained, "0.1 * torch.randn", "0.0 * torch.randn",
        test_exact.test_as_if_trained_leaves_nothing_behind, "adapters as if trained do nothing"),
    Bug("saving not compared", memory.rehearse_saving, "unmerged > (", "False and (",
        test_exact.test_a_merge_that_loses_something_is_refused_before_the_first_update,
        "are found out after the run"),
    Bug("the end of a text judged away", rewards.sequence_scores, '"left"', '"right"',
        test_exact.test_a_reward_model_reads_up_to_its_real_context_and_keeps_the_end,
        "loses its end, which is judged"),
    Bug("padding's positions counted as context", models.context_length, "- module.padding_idx - 1", "",
        test_exact.test_a_reward_model_reads_up_to_its_real_context_and_keeps_the_end, "has a context of 18"),
    Bug("all prompts laid out at once", rollout.prompt_lengths,
        "{prompt: int(encode_prompts(tokenizer, [prompt])[1].sum()) for prompt in set(prompts)}",
        "dict(zip(prompts, encode_prompts(tokenizer, prompts)[1].sum(1).tolist()))",
        test_exact.test_one_long_prompt_costs_only_itself, "tokens are laid out for one prompt"),
    # recorded steps
    Bug("weights copied once and for all", GraphDecoder.make_step, "self.recorded.read(self.policy)",
        "vars(self.recorded).get('once') or (self.recorded.read(self.policy), vars(self.recorded).update(once=1))",
        RECORDED, "(changed: weights)"),
    Bug("adapters left out of the copy", CopiedLayer.read, "effective_weight(source)", "source.weight",
        RECORDED, "(changed: adapters)"),
    Bug("the head's bias left out", Recorded.read, "self.head_bias is not None", "self.head_bias.zero_() is None",
        RECORDED, "(changed: none)"),
    Bug("places of the last text left open", RecordedStep.fill, "self.hidden.fill_(-torch.inf)", "pass",
        RECORDED, "the second text"),
    Bug("who stays takes another's cache along", RecordedStep.take, "other.keys[:, rows]",
        "other.keys[:, : len(rows)]",
        SHARED, "GraphDecoder: a text that stays goes on from another's cache"),
    # one trunk, chunks, padding
    Bug("values of the next state", PPOTrainer.predictions, "values[:, :-1]", "values[:, 1:]",
        test_speed_settings.test_one_trunk_gives_the_numbers_of_two_passes, "values from the shared pass differ"),
    Bug("log-probs of the next token", PPOTrainer._of_head, "states[:, :-1]", "states[:, 1:]",
        test_speed_settings.test_one_trunk_gives_the_numbers_of_two_passes, "log-probs from the shared pass differ"),
    Bug("the trunk trained twice", models.HeadOnTrunk.__init__, 'del self._modules["trunk"]', "pass",
        test_speed_settings.test_a_shared_trunk_is_one_network_and_learns_from_both_losses, "value_head.weight"),
    Bug("a head for another trunk", models.HeadOnTrunk.__init__, "if all(torch.equal", "if any(True or torch.equal",
        test_speed_settings.test_a_critic_of_another_trunk_starts_anew, "read another trunk's states was taken over"),
    Bug("temperature forgotten in chunks", memory.token_predictions, "/ temperature", "/ 1.1",
        CHUNKS, "chunks change the reference's log-probabilities"),
    Bug("no gradient for the entropy", memory.token_predictions, "temperature, taken, entropy_gradient)",
        "temperature, taken, False)",
        CHUNKS, "chunks change the gradient of"),
    Bug("chunks that are whole", memory.token_predictions, "if chunk is None:", "if True:",
        test_speed_settings.test_a_chunk_is_all_that_exists_at_a_time, "tokens stood in memory where 3 were asked for"),
    Bug("softcapped logits taken for the head's", memory.check_head, "logits = 100 *", "logits = 0 *",
        test_speed_settings.test_models_that_do_more_to_their_logits_are_refused, "softcapped logits are lost"),
    Bug("prompts trimmed at the wrong end", rollout.Rollout.trimmed, "tensor[:, before:]",
        "tensor[:, : tensor.shape[1] - before]",
        TRIMMED, "prompts are cut at the wrong end"),
    Bug("the last value trimmed away", rollout.Rollout.trimmed, "tensor[:, : tensor.shape[1] - after]",
        "tensor[:, : self.mask.shape[1] - after]",
        TRIMMED, "values lose the one after the last token"),
    Bug("short and long together", PPOTrainer.accumulate, "minibatch.lengths.argsort()",
        "torch.arange(len(minibatch))",
        test_speed_settings.test_micro_batches_hold_responses_of_like_length, "share a micro-batch"),
]  # fmt: skip


# A planted bug may bring a warning of its own.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug_is_caught_and_named(bug):
    assert_caught_and_named(bug, [bug, *(other for other in BUGS if other.message != bug.message)])


def test_only_two_ways_to_wrong_logits_share_a_message():
    assert_no_shared_message(BUGS[1:])
    assert choice.decoder_for is rollout.decoder_for, "the sampler takes another decoder than the library's"
