"""The replay buffer: limits that are never exceeded, sampling that follows its distribution, exact saving."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scipy import stats

from ppo_lib.checkpoint import load_checkpoint, save_checkpoint
from ppo_lib.replay import ReplayBuffer
from tests.unit.tiny import byte_tokenizer, hand_rollout

TOKENIZER = byte_tokenizer()


def fresh(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 5, (rows,), generator=generator).tolist()
    return hand_rollout(lengths=lengths, ended=[True] * rows, seed=seed)


def buffer(capacity=8, **settings):
    return ReplayBuffer(capacity, 4, TOKENIZER, **settings)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_response_comes_back_as_it_went_in():
    rollout, replay = fresh(), buffer()
    replay.add(rollout, version=1)
    batch = replay.sample(3, 2, generator())
    for row, prompt in enumerate(batch.prompts):
        original = rollout.prompts.index(prompt)
        kept = rollout.mask[original]
        assert torch.equal(batch.response_ids[row][batch.mask[row]], rollout.response_ids[original][kept])
        assert torch.equal(batch.behaviour_logprobs[row][batch.mask[row]], rollout.logprobs[original][kept]), (
            "the behaviour policy's log-probabilities are not those of sampling"
        )
        assert torch.equal(batch.ref_logprobs[row][batch.mask[row]], rollout.ref_logprobs[original][kept])
        assert batch.scores[row] == rollout.scores[original] and batch.ended[row] == rollout.ended[original]
    assert batch.ages.tolist() == [1, 1, 1], "the age is not the number of updates since sampling"
    assert batch.advantages is None and batch.rewards is None and batch.values is None, "stale estimates were stored"


def test_memory_is_reserved_at_the_start():
    replay = buffer(capacity=100)
    before = replay.nbytes
    for version in range(60):
        replay.add(fresh(seed=version), version)
    assert replay.nbytes == before == sum(field.nbytes for field in replay.fields.values()) and len(replay) == 100


def test_the_oldest_gives_way():
    replay = buffer(capacity=4, staleness_threshold=100)
    for version in range(4):
        replay.add(fresh(2, seed=version), version)
    assert sorted(replay.fields["versions"].tolist()) == [2, 2, 3, 3], "it is not the oldest response that gives way"
    assert replay.counts["evicted"] == 4


def test_high_scores_are_kept():
    replay = buffer(capacity=4, keep_best=0.25, staleness_threshold=1)
    first = fresh(2)
    first.scores = torch.tensor([100.0, 0.0])
    replay.add(first, 0)
    for version in range(1, 6):
        later = fresh(2, seed=version)
        later.scores = torch.zeros(2)
        replay.expire(version)
        replay.add(later, version)
    assert 100.0 in replay.fields["scores"][replay.held].tolist(), "the best response expired or gave way"


def test_recency_and_priority_by_hand():
    replay = buffer(recency=2.0, staleness_threshold=100)
    for version in (1, 3):
        replay.add(fresh(1, seed=version), version)
    weights = torch.tensor([-3 / 2, -1 / 2]).double().softmax(0)
    assert torch.allclose(replay.probabilities(4), weights), "the weights are not exp(−age/τ)"
    replay = buffer(priority_exponent=1.0)
    rollout = fresh(3)
    rollout.scores = torch.tensor([0.0, 3.0, 6.0])
    replay.add(rollout, 1)
    probabilities = replay.probabilities(2)
    assert probabilities[1] < 0.01 and probabilities[0] == pytest.approx(probabilities[2].item()), (
        "priorities are not the distance of the score from the mean"
    )
    batch = replay.sample(3, 2, generator())
    weights = (3 * probabilities) ** -1.0
    drawn = [rollout.prompts.index(prompt) for prompt in batch.prompts]
    expected = (weights / weights.max())[drawn]
    assert torch.allclose(batch.sampling_weights.double(), expected, atol=1e-6), "ω is not (N P)^−β"


def test_priorities_follow_the_present_scores():
    replay = buffer(priority_exponent=1.0)
    rollout = fresh(3)
    rollout.scores = torch.tensor([0.0, 0.0, 6.0])
    replay.add(rollout, 1)
    before = replay.probabilities(2)[2].item()
    more = fresh(4, seed=5)
    more.scores = torch.full((4,), 6.0)
    replay.add(more, 2)
    assert replay.probabilities(3)[2] < 0.5 * before, "the priorities are stale: they are those of an earlier buffer"


@pytest.mark.parametrize("settings", [{}, {"recency": 2.0}, {"priority_exponent": 0.6, "recency": 4.0}])
def test_sampling_follows_its_distribution(settings):
    replay = buffer(capacity=12, max_reuse=10**9, staleness_threshold=10**9, **settings)
    for version in range(4):
        replay.add(fresh(3, seed=version), version)
    expected, drawn = replay.probabilities(5), torch.zeros(12)
    stream, order = generator(1), {}
    for place in replay.held.tolist():
        order[replay.fields["behaviour_logprobs"][place, 0].item()] = place
    for _ in range(4000):
        batch = replay.sample(1, 5, stream)
        drawn[order[batch.behaviour_logprobs[0, 0].item()]] += 1
    p = stats.chisquare(drawn[replay.held].double().numpy(), (4000 * expected).numpy()).pvalue
    assert p > 1e-4, f"draws do not follow the probabilities (p = {p:.1e})"


def test_saved_in_mid_run_it_goes_on_bit_for_bit(tmp_path):
    replay, stream = buffer(recency=2.0, priority_exponent=0.5), generator(3)
    for version in range(4):
        replay.add(fresh(seed=version), version)
        replay.sample(2, version + 1, stream)
    save_checkpoint(tmp_path, 4, {"replay": replay.state_dict(), "stream": stream.get_state()})
    saved = load_checkpoint(tmp_path / "update-00000004")
    other, other_stream = buffer(recency=2.0, priority_exponent=0.5), generator()
    other.load_state_dict(saved["replay"])
    other_stream.set_state(saved["stream"])
    for version in range(4, 9):
        for one in (replay, other):
            one.expire(version)
            one.add(fresh(seed=version), version)
        a, b = replay.sample(3, version, stream), other.sample(3, version, other_stream)
        assert torch.equal(a.response_ids, b.response_ids) and torch.equal(a.ages, b.ages), "the loaded one drifts off"
        assert replay.statistics(version) == other.statistics(version)


def test_weights_stay_finite_however_old_a_kept_response_is():
    replay = buffer(recency=1.0, priority_exponent=0.5, staleness_threshold=10**6)
    for version in (1, 3000):
        replay.add(fresh(2, seed=version), version)
    batch = replay.sample(4, 3001, generator())
    assert batch.sampling_weights.isfinite().all(), "a response that is drawn with probability 0 weighs ∞ or NaN"


def test_a_buffer_of_another_size_is_refused():
    with pytest.raises(ValueError, match="replay_buffer_size"):
        buffer(4).load_state_dict(buffer(8).state_dict())


class Operations(RuleBasedStateMachine):
    """Any sequence of operations keeps the limits."""

    @initialize(
        capacity=st.integers(1, 12),
        max_reuse=st.integers(1, 4),
        staleness=st.integers(0, 5),
        keep_best=st.sampled_from([0.0, 0.3]),
        alpha=st.sampled_from([0.0, 0.7]),
    )
    def start(self, capacity, max_reuse, staleness, keep_best, alpha):
        self.replay = buffer(
            capacity,
            max_reuse=max_reuse,
            staleness_threshold=staleness,
            keep_best=keep_best,
            priority_exponent=alpha,
            recency=3.0,
        )
        self.version, self.stream, self.kept = 1, generator(), keep_best > 0
        self.nbytes = self.replay.nbytes

    @rule(rows=st.integers(1, 5))
    def add(self, rows):
        self.replay.add(fresh(rows, seed=self.version), self.version)

    @rule(size=st.integers(0, 20))
    def draw(self, size):
        self.replay.expire(self.version)
        held = len(self.replay)
        batch = self.replay.sample(size, self.version, self.stream)
        assert (0 if batch is None else len(batch)) == min(size, held)
        if batch is not None and not self.kept:
            assert (batch.ages <= self.replay.staleness_threshold).all(), "a stale response was replayed"

    @rule()
    def next_update(self):
        self.version += 1

    @rule()
    def save_and_load(self):
        state = copy.deepcopy(self.replay.state_dict())
        self.replay.drop(self.replay.held, "forgotten")
        self.replay.load_state_dict(state)

    @invariant()
    def limits_hold(self):
        if not hasattr(self, "replay"):
            return
        replay = self.replay
        assert len(replay) <= replay.capacity and replay.nbytes == self.nbytes, "the buffer outgrows its capacity"
        assert (replay.fields["reuses"][replay.held] < replay.max_reuse).all(), "a response outlives its reuse limit"
        counts = replay.counts
        gone = counts["expired"] + counts["retired"] + counts["evicted"] + counts.get("forgotten", 0)
        assert counts["added"] == len(replay) + gone, "a response came or went uncounted"
        if len(replay):
            assert replay.probabilities(self.version).sum().item() == pytest.approx(1.0)


TestOperations = Operations.TestCase
TestOperations.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)


@settings(max_examples=20, deadline=None)
@given(reuse=st.integers(1, 6))
def test_no_response_is_replayed_more_often_than_allowed(reuse):
    replay, seen = buffer(4, max_reuse=reuse), {}
    replay.add(fresh(4), 1)
    for _ in range(40):
        batch = replay.sample(2, 1, generator(len(seen)))
        for key in [] if batch is None else batch.behaviour_logprobs[:, 0].tolist():
            seen[key] = seen.get(key, 0) + 1
    assert set(seen.values()) == {reuse}, "a response was replayed more or less often than `max_reuse`"
