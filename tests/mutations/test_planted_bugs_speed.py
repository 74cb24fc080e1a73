"""Bugs of the fast paths, planted one at a time: a faster sampler or update that is also another one must be named."""

import pytest

from ppo_lib import decoding, memory, models, rollout
from ppo_lib.decoding import Decoder, LlamaDecoder, LlamaStep
from ppo_lib.graphs import CopiedLayer, GraphDecoder, Recorded, RecordedStep
from ppo_lib.ppo_v1 import PPOTrainer
from tests.mutations.test_planted_bugs import Bug, assert_caught_and_named, assert_no_shared_message
from tests.unit import test_decoding, test_speed_settings

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
    Bug("random numbers of the texts that left", rollout.sample, "uniforms[t, rows]", "uniforms[t, : len(rows)]",
        LEAVING, "a response depends on when the others finish"),
    Bug("a text that left counts as cut off", rollout.sample, "ended = torch.ones(", "ended = torch.zeros(",
        LEAVING, "`ended` is lost for texts that left"),
    Bug("another family's sums", LlamaDecoder.fits, '!= set(kinds)', "is None",
        test_decoding.test_models_that_attend_or_count_otherwise_take_the_plain_decoder,
        "is decoded by sums that are not its own"),
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
    Bug("the trunk trained twice", models.HeadOnTrunk.__init__, 'self._modules.pop("trunk")', 'self._modules["trunk"]',
        test_speed_settings.test_a_shared_trunk_is_one_network_and_learns_from_both_losses, "value_head.weight"),
    Bug("a head for another trunk", models.HeadOnTrunk.__init__, "if all(torch.equal", "if any(True or torch.equal",
        test_speed_settings.test_a_critic_of_another_trunk_starts_anew, "read another trunk's states was taken over"),
    Bug("temperature forgotten in chunks", memory.token_predictions, "/ temperature", "/ 1.1",
        CHUNKS, "chunks change the reference's log-probabilities"),
    Bug("no gradient for the entropy", memory.token_predictions, "entropy_gradient and torch.is_grad_enabled()",
        "False",
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
]


# A planted bug may bring a warning of its own.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug_is_caught_and_named(bug):
    assert_caught_and_named(bug, [bug, *(other for other in BUGS if other.message != bug.message)])


def test_only_two_ways_to_wrong_logits_share_a_message():
    assert_no_shared_message(BUGS[1:])
    assert decoding.decoder_for is rollout.decoder_for, "the sampler takes another decoder than the library's"
