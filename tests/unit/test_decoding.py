"""The decoders: every step's logits are those of a whole forward pass, whatever was shared, left out or kept."""

import functools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ppo_lib import rollout as rollouts
from ppo_lib.models import model_inputs
from ppo_lib.rollout import encode_prompts, logprobs_of, response_logits, sample
from ppo_lib.running.memory import add_adapters
from ppo_lib.sampling import decoding, graphs
from ppo_lib.sampling.choice import decoder_for
from ppo_lib.sampling.decoding import Decoder, LlamaDecoder
from ppo_lib.sampling.graphs import GraphDecoder, _of_models, forget
from tests.unit.tiny import FAMILIES, PROMPTS, byte_tokenizer, likely_eos, tiny_policy

STEPS = 5
REPEATED = [PROMPTS[1], *PROMPTS, PROMPTS[1]]


def whole(policy, ids, mask):
    """Logits [B, V] after texts, computed without a cache."""
    return policy(**model_inputs(policy, ids, mask.long()), use_cache=False).logits[:, -1]


@torch.no_grad()
def largest_gap(policy, decoder_class, prompts, leaving_at=None) -> float:
    """How far a decoder's logits are from those of whole passes, over some steps of arbitrary tokens."""
    ids, mask = encode_prompts(byte_tokenizer(), prompts)
    generator, gap = torch.Generator().manual_seed(1), 0.0
    decoder = decoder_class(policy, ids, mask, STEPS)
    for step in range(STEPS + 1):
        gap = max(gap, (decoder.logits - whole(policy, ids, mask)).abs().max().item())
        if step == leaving_at:
            rows = torch.tensor([3, 0])
            decoder.keep(rows)
            ids, mask = ids[rows], mask[rows]
        if step < STEPS:
            tokens = torch.randint(256, (len(ids),), generator=generator)
            decoder.append(tokens)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones(len(ids), 1, dtype=torch.bool)], dim=1)
    return gap


CASES = [(family, Decoder) for family in FAMILIES]
CASES += [(family, decoder) for family in ("llama", "qwen2") for decoder in (LlamaDecoder, GraphDecoder)]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(graphs, "SMALLEST", 2)


@pytest.mark.parametrize(["family", "decoder"], CASES)
def test_each_step_equals_a_whole_pass(family, decoder):
    policy = tiny_policy(family)
    assert largest_gap(policy, decoder, PROMPTS) < 1e-3, f"{decoder.__name__} computes other logits than the {family}"
    assert largest_gap(policy, decoder, PROMPTS[:1] * 2) < 1e-3, "without padding the logits are others"


@pytest.mark.parametrize(["family", "decoder"], CASES)
def test_equal_prompts_may_be_shared_and_texts_may_leave(family, decoder):
    policy = tiny_policy(family)
    assert largest_gap(policy, decoder, REPEATED) < 1e-3, "a response goes on from another row's prompt"
    assert largest_gap(policy, decoder, REPEATED, leaving_at=2) < 1e-3, (
        f"{decoder.__name__}: a text that stays goes on from another's cache"
    )


@pytest.mark.parametrize("settings", [
    {"num_key_value_heads": 2}, {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    {"head_dim": 16}, {"hidden_act": "gelu"},
    {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
], ids=["shared keys", "biases", "wide heads", "another activation", "scaled positions"])  # fmt: skip
def test_llamas_of_other_shapes(settings):
    policy = tiny_policy("llama", **settings)
    assert decoder_for(policy) is LlamaDecoder, f"a llama with {settings} is decoded the slow way"
    for decoder in (LlamaDecoder, GraphDecoder):
        assert largest_gap(policy, decoder, REPEATED, leaving_at=1) < 1e-3, f"{decoder.__name__}: not with {settings}"


@pytest.mark.parametrize("settings", [{}, {"attention_bias": True, "mlp_bias": True}], ids=["plain", "biases"])
def test_few_rows_may_be_multiplied_as_columns(settings, monkeypatch):
    policy = tiny_policy("llama", **settings)
    monkeypatch.setattr(decoding, "WIDE", 1)
    monkeypatch.setattr(decoding, "FASTER_AS_COLUMNS", range(1, 49))
    assert largest_gap(policy, LlamaDecoder, REPEATED, leaving_at=1) < 1e-3, "columns are multiplied to something else"


@torch.no_grad()
def test_recorded_steps_read_the_weights_anew_and_leave_nothing_out(monkeypatch):
    policy, tokenizer = likely_eos(tiny_policy("llama")), byte_tokenizer()
    monkeypatch.setattr(rollouts, "decoder_for", lambda policy: GraphDecoder)
    for change in ("none", "the second text", "weights", "adapters"):
        if change == "weights":
            for parameter in policy.parameters():
                parameter.mul_(1.1)
        if change == "adapters":
            add_adapters(policy, 4, 8.0, seed=0)
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
        prompts = PROMPTS[3:] * 16 if change == "the second text" else PROMPTS * 4  # a shorter one, in the same memory
        rollout = sample(policy, tokenizer, prompts, 8, generator=torch.Generator().manual_seed(0))
        full = logprobs_of(response_logits(policy, rollout), rollout.response_ids)
        gap = (full - rollout.logprobs)[rollout.mask].abs().max()
        assert gap < 1e-3, f"sampled from another policy than the one at hand (changed: {change})"
    assert len(_of_models[policy]) == 1, "weights were copied to a new place"
    forget()
    assert not _of_models, "recorded steps keep their memory"


def test_models_that_attend_or_count_otherwise_take_the_plain_decoder():
    changing = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    policies = [tiny_policy("gpt2"), tiny_policy("llama", rope_parameters=changing), tiny_policy("qwen2", **window)]

    class Scaled(LlamaForCausalLM):
        """A model of one's own."""

    policies.append(Scaled(LlamaConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, vocab_size=9)))
    for policy in policies:
        assert decoder_for(policy) is Decoder, f"{type(policy).__name__} is decoded by sums that are not its own"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_step_is_recorded_where_there_is_a_gpu_and_weights_can_be_copied(family, monkeypatch):
    """The GPU is a pretence: only what is chosen for it is looked at."""
    policy = tiny_policy(family)
    assert decoder_for(policy) is LlamaDecoder, "on a CPU not the family's own decoder is taken"
    monkeypatch.setattr(type(policy), "device", torch.device("cuda"))
    assert decoder_for(policy) is GraphDecoder, "on a GPU no step is recorded"
    add_adapters(policy, 2, 8.0, seed=0)
    assert decoder_for(policy) is GraphDecoder, "adapters keep a step from being recorded"
    policy.model.layers[1].mlp.down_proj.base_layer.__class__ = type("Quantised", (torch.nn.Linear,), {})
    assert decoder_for(policy) is LlamaDecoder, "a step is recorded of a layer that is more than its weights"
    other = tiny_policy(family)
    other.lm_head.__class__ = type("Quantised", (torch.nn.Linear,), {})
    assert decoder_for(other) is LlamaDecoder, "a step is recorded of a head that is more than its weights"


@pytest.mark.parametrize(("length", "room", "places"), [(3, 61, 64), (3, 62, 128), (64, 64, 128), (65, 64, 192)])
def test_a_recorded_step_has_room_for_the_longest_text(length, room, places, monkeypatch):
    shapes = []
    monkeypatch.setattr(graphs, "RecordedStep", lambda policy, recorded, rows, places: shapes.append((rows, places)))
    decoder = GraphDecoder.__new__(GraphDecoder)
    decoder.policy, decoder.attention_mask = tiny_policy(), torch.ones(5, length)
    decoder.make_step(room)
    assert shapes == [(5, places)], f"texts of {length + room} tokens have other than {places} places"
    forget()


def test_the_latest_recorded_steps_are_kept(monkeypatch):
    made = []
    monkeypatch.setattr(graphs, "RecordedStep", lambda policy, recorded, *shape: made.append(shape) or shape)
    recorded = graphs.Recorded(tiny_policy(), torch.float32)
    for rows in (*range(1, 9), 1, 9):  # the first one is used once more before there is one too many
        recorded.step(None, rows, 64)
    assert graphs.KEPT == 8, "the test needs eight steps to be kept"
    kept = [rows for rows, _ in recorded.steps]
    assert 1 in kept, "the step that was made first gives way though it was used since: not the longest unused"
    assert kept == [3, 4, 5, 6, 7, 8, 1, 9], "it is not the step that was longest unused that gives way"
    assert made == [(rows, 64) for rows in range(1, 10)], "a step that is kept is recorded again"


@pytest.mark.parametrize(("left", "size"), [(9, 16), (8, 8), (5, 8), (4, 4), (2, 2), (1, 2)])
def test_finished_texts_leave_a_recorded_step_by_halves(left, size, monkeypatch):
    """At least two stay: below, leaving saves nothing."""
    taken = []

    class Step:
        def __init__(self, rows, places=64):
            self.tokens, self.hidden = torch.zeros(rows), torch.zeros(rows, places)

        def take(self, other, rows):
            taken.append(rows.tolist())

    decoder = GraphDecoder.__new__(GraphDecoder)
    decoder.policy, decoder.logits, decoder.step = None, torch.zeros(16, 3), Step(16)
    decoder.recorded = type("Recorded", (), {"step": lambda self, policy, rows, places: Step(rows, places)})()
    decoder.keep(torch.arange(left))
    [rows] = taken
    assert len(decoder.step.tokens) == size, f"{left} of 16 texts are left in a step for {len(decoder.step.tokens)}"
    assert len(rows) == size, f"a step for {size} is given the caches of {len(rows)} rows"
    assert rows == [*range(left), *[0] * (size - left)], "the places that are left over are no copy of a text"


def test_equal_prompts_go_through_the_model_once(monkeypatch):
    policy, seen = tiny_policy(), []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def watched(self, **inputs):
        seen.append(tuple(inputs["input_ids"].shape))
        return forward(self, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    ids, mask = encode_prompts(byte_tokenizer(), PROMPTS[:2] * 8)
    Decoder(policy, ids, mask, 1)
    assert seen == [(2, ids.shape[1])], f"16 rows with 2 different prompts were computed as {seen}"


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_finish_and_leave_change_nothing(family, monkeypatch):
    policy, tokenizer, runs = likely_eos(tiny_policy(family)), byte_tokenizer(), []
    for share in (0.0, 0.75, 1.0):
        monkeypatch.setattr(Decoder, "SHARE_THAT_STAYS", share)
        runs.append(sample(policy, tokenizer, PROMPTS * 8, 12, generator=torch.Generator().manual_seed(4)))
    lengths = runs[0].lengths
    assert lengths.min() < lengths.median() < lengths.max(), "the test needs responses of different lengths"
    for run in runs[1:]:
        assert run.responses == runs[0].responses, "a response depends on when the others finish"
        assert torch.equal(run.ended, runs[0].ended), "`ended` is lost for texts that left the batch"
        assert torch.allclose(run.logprobs, runs[0].logprobs, atol=1e-4), "log-probs depend on when the others finish"


@pytest.mark.parametrize("boost", [4.0, 9.0], ids=["some end early", "all end early"])
def test_asking_seldom_whether_texts_have_ended_changes_nothing(boost, monkeypatch):
    policy, tokenizer, runs = likely_eos(tiny_policy(), boost), byte_tokenizer(), []
    for every in (1, 4, 5, 50):
        monkeypatch.setattr(rollouts, "ASK_EVERY", {"cpu": every})
        generator = torch.Generator().manual_seed(4)
        runs.append((sample(policy, tokenizer, PROMPTS * 4, 12, generator=generator), generator.get_state()))
    (first, state), *others = runs
    for other, other_state in others:
        assert other.responses == first.responses, "what is sampled after all have ended changes the responses"
        assert other.mask.shape == first.mask.shape, "the columns sampled after all have ended are not cut off"
        assert torch.equal(other.mask, first.mask), "tokens sampled after all have ended count as sampled"
        assert torch.equal(other.ended, first.ended), "`ended` depends on when it is asked"
        assert torch.allclose(other.logprobs, first.logprobs, atol=1e-4), "log-probs depend on when it is asked"
        assert torch.equal(other_state, state), "the next rollout would draw other numbers than on a CPU"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_of_a_rollout_follow_the_policy(family):
    """First and second tokens of 6,000 responses, against their exact distribution."""
    policy, tokenizer = tiny_policy(family, vocab_size=258, sharpness=2.0), byte_tokenizer()
    rollout = sample(policy, tokenizer, PROMPTS[:1] * 6000, 2, 0.9, torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = torch.softmax(response_logits(policy, rollout, 0.9).double(), dim=-1)
    for t in (0, 1):
        real = rollout.mask[:, t]
        expected = exact[real, t].sum(dim=0)
        counts = torch.bincount(rollout.response_ids[real, t], minlength=258).double()
        common = expected >= 5
        terms = (counts[common] - expected[common]) ** 2 / expected[common]
        rest = (counts[~common].sum() - expected[~common].sum()) ** 2 / expected[~common].sum().clamp(min=1)
        freedom = int(common.sum())
        # the mean of χ² is its degrees of freedom, the variance twice that: 5 deviations are no accident
        assert terms.sum() + rest < freedom + 5 * (2 * freedom) ** 0.5, f"token {t} does not follow the distribution"


def test_adapters_and_half_precision_are_sampled_from():
    policy, tokenizer = tiny_policy(), byte_tokenizer()
    add_adapters(policy, 4, 8.0, seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    for dtype, near in ((None, 1e-3), (torch.bfloat16, 0.7)):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None), torch.no_grad():
            rollout = sample(policy, tokenizer, PROMPTS, 8, generator=torch.Generator().manual_seed(0))
            full = logprobs_of(response_logits(policy, rollout), rollout.response_ids)
        gap = (full - rollout.logprobs)[rollout.mask].abs().max().item()
        assert gap < near, f"adapters are left out when sampling ({dtype}): log-probs differ by {gap:.2g}"
