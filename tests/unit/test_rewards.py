"""The reward protocol: functions and learned models, and what happens when they go wrong."""

import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from ppo_lib.rewards import RewardError, RewardModel, bradley_terry_loss, score_responses
from tests.unit.tiny import bos_tokenizer, byte_tokenizer, tiny_policy


def classifier(vocab_size=258, num_labels=1):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=num_labels,
        pad_token_id=None,
    )
    return LlamaForSequenceClassification(config)


def test_bradley_terry_by_hand():
    loss = bradley_terry_loss(torch.tensor([1.5, 0.5]), torch.tensor([0.5, 2.5]))
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6), "not −log σ(chosen − rejected)"


def test_scores_come_back_in_order_as_floats():
    scores = score_responses(lambda prompts, responses: [len(r) for r in responses], ["p", "p"], ["ab", "abcd"])
    assert scores.tolist() == [2.0, 4.0], "scores are not those of the responses, in order"
    assert scores.dtype == torch.float32, "scores are not 32-bit floats"


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda p, r: [1.0], r"shape \(1,\) for 2 responses: return one number per response"),
        (lambda p, r: [[1.0], [2.0]], r"shape \(2, 1\) for 2 responses"),
        (lambda p, r: [1.0, math.nan], "gave nan for prompt 'second'"),
        (lambda p, r: [math.inf, 1.0], "gave inf for prompt 'first'"),
        (lambda p, r: ["good", "bad"], "returned .*: return one number per response"),
        (lambda p, r: None, "returned .*: return one number per response"),
        (lambda p, r: [1 / len(x) for x in r], r"raised ZeroDivisionError.* for prompt 'second' and response ''"),
    ],
)
def test_bad_rewards_name_the_prompt(reward, message):
    with pytest.raises(RewardError, match=message):
        score_responses(reward, ["first", "second"], ["text", ""])


def test_a_reward_model_reads_prompt_and_response_with_one_bos_and_no_padding():
    model, tokenizer = classifier(vocab_size=259), bos_tokenizer()
    reward, bos = RewardModel(model, tokenizer), tokenizer.bos_token_id
    prompts, responses = ["a", "a much longer prompt", "c", "<bos>a rendered chat"], ["b", " and its response", "", "d"]
    for prompt, response, score in zip(prompts, responses, reward(prompts, responses).tolist(), strict=True):
        text = tokenizer(prompt.removeprefix("<bos>") + response, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            states = model.model(torch.tensor([[bos, *text]])).last_hidden_state
        by_hand = (states[0, -1] @ model.score.weight[0]).item()
        assert score == pytest.approx(by_hand, abs=1e-5), (
            f"the score of {prompt!r} and {response!r} is not that of the last token of both behind one BOS, but "
            "of padding or of one of the texts alone, or it depends on the neighbours"
        )


def test_a_judge_that_reads_both_ways_sees_no_padding_either():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_labels=1,
        max_position_embeddings=24,
    )  # fmt: skip
    reward, texts = RewardModel(BertForSequenceClassification(config), byte_tokenizer()), ["b", " and a longer one"]
    together = reward(["a", "ab"], texts).tolist()
    alone = [reward([prompt], [text]).item() for prompt, text in zip(["a", "ab"], texts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5), "a score depends on the padding of a text"
    with pytest.warns(UserWarning, match="a text has 32 tokens of the reward model, whose context is 24"):
        cut = reward(["x" * 8], ["y" * 24]).item()
    assert cut == pytest.approx(reward([""], ["y" * 24]).item(), abs=1e-5), "a text that is too long loses its end"


def test_a_tokenizer_without_padding_pads_with_its_eos():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    reward = RewardModel(classifier(), tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == reward.model.config.pad_token_id, "padding is another"


def test_reward_model_needs_one_output():
    with pytest.raises(ValueError, match="has 2 outputs: load it with num_labels=1"):
        RewardModel(classifier(num_labels=2), byte_tokenizer())


def test_reward_model_without_a_tokenizer_says_what_it_lacks():
    with pytest.raises(ValueError, match=r"has no tokenizer yet: pass its own, RewardModel\(model, tokenizer\)"):
        RewardModel(classifier())(["a"], ["b"])


def test_shared_vocabulary_is_checked():
    with pytest.raises(ValueError, match="the reward model has a vocabulary of 300 tokens, the policy one of 258"):
        RewardModel(classifier(vocab_size=300)).bind(tiny_policy(), byte_tokenizer())
    RewardModel(classifier(vocab_size=300), byte_tokenizer()).bind(tiny_policy(), byte_tokenizer())
