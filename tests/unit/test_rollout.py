"""The sampler and its log-probabilities: equal to `generate`, to a full forward pass, to the distribution asked for."""

import pytest
import torch

from ppo_lib.models import Critic, model_inputs
from ppo_lib.rollout import (
    draw,
    encode_prompts,
    logprobs_of,
    response_logits,
    response_values,
    sample,
)
from tests.unit.tiny import FAMILIES, PROMPTS, bos_tokenizer, byte_tokenizer, likely_eos, tiny_policy


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family):
    policy, tokenizer = tiny_policy(family), byte_tokenizer()
    mine = sample(policy, tokenizer, PROMPTS, 12, greedy=True)
    theirs = policy.generate(
        input_ids=mine.prompt_ids,
        attention_mask=mine.prompt_mask.long(),
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=tokenizer.pad_token_id,
    )[:, mine.prompt_ids.shape[1] :]
    assert torch.equal(mine.response_ids[mine.mask], theirs[mine.mask]), "greedy sampling differs from generate()"


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_a_full_forward_pass(family, temperature):
    policy, tokenizer = likely_eos(tiny_policy(family)), byte_tokenizer()
    rollout = sample(policy, tokenizer, PROMPTS * 2, 10, temperature, torch.Generator().manual_seed(3))
    assert rollout.lengths.min() < rollout.lengths.max(), "the test needs responses of different lengths"
    with torch.no_grad():
        full = logprobs_of(response_logits(policy, rollout, temperature), rollout.response_ids)
    gap = (full - rollout.logprobs)[rollout.mask].abs().max().item()
    mistake = "the logits are off by one token" if temperature == 1.0 else "a pass forgets the temperature"
    assert gap < 1e-4, f"{mistake}: log-probs differ by {gap:.3g} from those sampled from"


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_does_not_change_a_response(family):
    """A short prompt sampled alone and beside longer ones takes the same greedy tokens, with the same log-probs."""
    policy, tokenizer = tiny_policy(family), byte_tokenizer()
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    for row, kept in zip(model_inputs(policy, ids, mask.long())["position_ids"], mask, strict=True):
        assert row[kept].tolist() == list(range(kept.sum())), "positions count the left padding"
    together = sample(policy, tokenizer, PROMPTS, 8, greedy=True)
    for row, prompt in enumerate(PROMPTS):
        alone = sample(policy, tokenizer, [prompt], 8, greedy=True)
        length = int(alone.lengths[0])
        same_tokens = torch.equal(alone.response_ids[0, :length], together.response_ids[row, :length])
        same_logprobs = torch.allclose(alone.logprobs[0, :length], together.logprobs[row, :length], atol=1e-4)
        assert same_tokens, "left padding is attended to: the neighbours change the response"
        assert same_logprobs, "left padding is attended to a little: the neighbours change the log-probs"


def uniform(rows):
    return torch.rand(rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_sampled_frequencies_follow_the_distribution():
    logprobs = torch.log_softmax(torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5], dtype=torch.float64), 0)
    drawn = draw(logprobs.repeat(20_000, 1), uniform(20_000))
    counts, expected = torch.bincount(drawn, minlength=5), 20_000 * logprobs.exp()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # 18.47 is exceeded once in a thousand by chance, with 4 degrees of freedom
    assert chi_square < 18.47, f"χ² = {chi_square:.1f}: the tokens drawn do not follow the distribution"


def test_impossible_tokens_are_never_drawn():
    logprobs = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(1000, 1)
    assert (draw(logprobs, uniform(1000)) == 1).all(), "a token of probability 0 was drawn"


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # a decoder of our own, and transformers' forward
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_mask_holds_the_eos_and_nothing_after_it(pad_is_eos, family):
    """The tokenizer's EOS, and two that only the model's configuration names."""
    eos = (256, 0, 97)
    policy, tokenizer = likely_eos(tiny_policy(family), 3.0, eos), byte_tokenizer(pad_is_eos)
    policy.generation_config.eos_token_id = list(eos[1:])
    rollout = sample(policy, tokenizer, PROMPTS * 8, 10, generator=torch.Generator().manual_seed(0))
    places = [[t for t, token in enumerate(row) if token in eos] for row in rollout.response_ids.tolist()]
    ends_at = [ends[0] + 1 if ends else rollout.mask.shape[1] for ends in places]
    assert min(ends_at) < max(ends_at), "the test needs responses of different lengths"
    for token in eos:
        ended_by = (rollout.response_ids == token) & rollout.mask
        assert ended_by.any(), f"the test needs responses with the EOS {token}"
        assert rollout.ended[ended_by.any(dim=1)].all(), f"the EOS {token} does not end a response: any of {eos} does"
    for row, length in enumerate(ends_at):
        assert rollout.mask[row, :length].all(), "the mask loses the EOS: build it from what was sampled, not from PAD"
        assert not rollout.mask[row, length:].any(), "the response goes on after EOS"
        finished = rollout.response_ids[row, length - 1].item() in eos
        assert rollout.ended[row] == finished, "`ended` is wrong, or sampling goes on after EOS"


def test_same_generator_same_responses():
    policy, tokenizer = tiny_policy(), byte_tokenizer()
    first, second, other = (
        sample(policy, tokenizer, PROMPTS, 8, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert first.responses == second.responses, "the same generator gave other responses: it is not the only chance"
    assert torch.equal(first.logprobs, second.logprobs), "the same responses got other log-probs"
    assert first.responses != other.responses, "another seed gave the same responses: the generator is not used"


def test_values_belong_to_the_state_before_each_token():
    policy, tokenizer = tiny_policy(), byte_tokenizer()
    critic = Critic.from_policy(policy)
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(0))
    rollout = sample(policy, tokenizer, PROMPTS, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = response_values(critic, rollout)
        assert values.shape == (4, rollout.mask.shape[1] + 1), "values do not start before token 0: T+1 columns"
        prompt_only = critic(rollout.prompt_ids, rollout.prompt_mask.long())[:, -1]
    assert torch.allclose(values[:, 0], prompt_only, atol=1e-5), "V(s_0) must see the prompt alone"


def test_a_new_critic_says_zero_and_shares_no_weights():
    policy = tiny_policy()
    critic = Critic.from_policy(policy)
    values = critic(torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long))
    assert (values == 0).all(), "a new value head must start at 0"
    owned = {parameter.data_ptr() for parameter in policy.parameters()}
    shared = owned & {parameter.data_ptr() for parameter in critic.parameters()}
    assert not shared, "the critic trains the policy's own weights"


def test_bos_is_not_doubled_on_a_rendered_chat():
    tokenizer = bos_tokenizer()
    bos = tokenizer.bos_token_id
    text = tokenizer("hi", add_special_tokens=False)["input_ids"]
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    for prompt, mistake in (("hi", "a plain prompt loses its BOS"), (rendered, "a rendered chat gets a second BOS")):
        ids, mask = encode_prompts(tokenizer, [prompt])
        assert ids[mask].tolist() == [bos, *text], mistake


def test_select_and_to_keep_every_field():
    policy, tokenizer = tiny_policy(), byte_tokenizer()
    rollout = sample(policy, tokenizer, PROMPTS, 4, generator=torch.Generator().manual_seed(0))
    rollout.scores = torch.arange(4.0)
    part = rollout.select(torch.tensor([2, 0])).to("cpu")
    assert len(part) == 2, "a selection has other than its own number of rows"
    assert part.prompts == [PROMPTS[2], PROMPTS[0]], "texts are not selected with the tensors"
    assert part.scores.tolist() == [2.0, 0.0], "scores are not those of the selected rows"
    assert torch.equal(part.tokens, rollout.tokens[[2, 0]]), "tokens are not those of the selected rows"
    assert part.values is None, "an empty field was filled"
