"""The replay buffer: limits that are never exceeded, sampling that follows its distribution, exact saving."""

import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ppo_lib.replay import ReplayBuffer, kept_for_scores, most_held
from ppo_lib.running.checkpoint import load_checkpoint, save_checkpoint
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


def scored(*scores):
    """A rollout of as many responses, with these scores."""
    rollout = fresh(len(scores), seed=int(sum(scores)))
    rollout.scores = torch.tensor(scores, dtype=torch.float)
    return rollout


def test_a_response_comes_back_as_it_went_in():
    rollout, replay = hand_rollout(), buffer()
    rollout.rewards, rollout.advantages = torch.randn(2, 3, 4, generator=generator())  # must leave no trace
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
        assert batch.scores[row] == rollout.scores[original], "the stored score is not the raw one: KL is baked into it"
        assert batch.ended[row] == rollout.ended[original], "whether a response ended or was cut off is lost"
    assert torch.equal(batch.logprobs, batch.behaviour_logprobs), "until π_k has spoken the clip is not centred on μ"
    assert batch.ages.tolist() == [1, 1, 1], "the age is not the number of updates since sampling"
    assert batch.advantages is None and batch.rewards is None and batch.values is None, "stale estimates were stored"


def test_memory_is_reserved_at_the_start():
    replay = buffer(capacity=100)
    before = replay.nbytes
    for version in range(60):
        replay.add(fresh(seed=version), version)
        assert len(replay) <= 100 and replay.nbytes == before, "the buffer outgrows its capacity"
    assert before == sum(field.nbytes for field in replay.fields.values()) and len(replay) == 100


def test_the_buffer_shares_no_memory():
    """What training does to a rollout or to a replayed batch must not reach the buffer."""
    replay, rollout = buffer(capacity=1), fresh(1)
    stored = rollout.logprobs[rollout.mask].clone()
    replay.add(rollout, 1)
    rollout.logprobs += 1
    for mistake in ("the buffer shares memory with the rollout", "a replayed batch shares memory with the buffer"):
        batch = replay.sample(1, 1, generator())
        assert torch.equal(batch.behaviour_logprobs[batch.mask], stored), mistake
        batch.behaviour_logprobs += 1


def test_the_oldest_gives_way():
    replay = buffer(capacity=4, staleness_threshold=100)
    for version in range(4):
        replay.add(fresh(2, seed=version), version)
    assert sorted(replay.fields["versions"].tolist()) == [2, 2, 3, 3], "it is not the oldest response that gives way"
    assert replay.counts["evicted"] == 4, "responses that gave way are not counted"


def test_a_response_expires_when_it_is_older_than_the_threshold():
    replay = buffer(staleness_threshold=3)
    replay.add(fresh(2), 1)
    replay.expire(4)
    assert len(replay) == 2, "a response of just `staleness_threshold` updates has expired"
    replay.expire(5)
    assert len(replay) == 0, "a response is kept beyond `staleness_threshold`"
    assert replay.counts["expired"] == 2, "responses that expired are not counted"


@pytest.mark.parametrize("keep_best", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "staleness", "capacity"), [(4, 3, 99), (4, 3, 16), (4, 3, 15), (1, 1, 2), (8, 9, 80)])
@pytest.mark.parametrize("drawn", [0, 6])
def test_the_most_that_is_ever_held(rows, staleness, capacity, keep_best, drawn):
    """Never more than the formula says, and as many where nothing is used up and the best are the oldest."""
    limits = {"staleness_threshold": staleness, "keep_best": keep_best, "max_reuse": 2 if drawn else 10**9}
    replay, held = buffer(capacity, **limits), []
    for version in range(1, 4 * capacity // rows + 2 * staleness):
        replay.expire(version)
        replay.sample(drawn, version, generator(version))
        replay.add(scored(*[-version] * rows), version)  # scores fall: what is kept for its score is old
        held.append(len(replay))
    most = most_held(rows, staleness, capacity, keep_best)
    assert max(held) <= most, "the buffer holds more than the pages, the plan of a run and chapter 11 say"
    assert drawn or max(held) == most, "so many are never held"
    assert len(replay.best()) <= kept_for_scores(capacity, keep_best)


def test_high_scores_are_kept():
    replay = buffer(capacity=4, keep_best=0.25, staleness_threshold=2)
    replay.add(scored(100, 0), 0)
    for version in (1, 2):
        replay.add(scored(0, 0), version)
    assert 100.0 in replay.fields["scores"][replay.held].tolist(), "the best response gave way"
    replay.expire(9)
    assert replay.fields["scores"][replay.held].tolist() == [100.0], "the best response expired"


def test_the_highest_scores_are_the_best():
    replay = buffer(capacity=4, keep_best=0.5)
    replay.add(scored(3, 1, 2), 1)
    kept = replay.fields["scores"][replay.best()].tolist()
    assert 1.0 not in kept, "it is the lowest scores that are kept"
    assert sorted(kept) == [2.0, 3.0]


def test_a_response_retires_after_so_many_uses():
    replay = buffer(max_reuse=2)
    replay.add(fresh(1), 1)
    replay.sample(1, 2, generator())
    assert len(replay) == 1, "a response retires before its last use"
    assert replay.fields["reuses"][replay.held].tolist() == [1], "a use is not counted"
    replay.sample(1, 3, generator())
    assert len(replay) == 0, "a response is replayed more often than `max_reuse`"
    assert replay.counts["retired"] == 1 and replay.counts["replayed"] == 2


def test_a_response_rests_between_two_uses():
    replay, drawn = buffer(spacing=2, max_reuse=9), {}
    replay.add(fresh(1), 1)
    for version in (2, 3, 4, 5):
        replay.statistics(version)
        drawn[version] = replay.sample(3, version, generator())
    assert drawn[2] is None, "a response is replayed before `spacing` updates have passed since its sampling"
    assert drawn[3] is not None and drawn[5] is not None, "a response that has rested is not replayed"
    assert drawn[4] is None, "a response is replayed before `spacing` updates have passed since its last use"
    replay.add(fresh(4, seed=1), 6)
    replay.add(fresh(2, seed=2), 7)
    probabilities = replay.probabilities(8)
    assert probabilities.count_nonzero() == 5 and probabilities.sum().item() == pytest.approx(1)
    assert len(replay.sample(7, 8, generator())) == 5, "more are drawn than are ready"


def test_what_happens_to_responses_is_counted():
    replay = buffer(capacity=4, max_reuse=2, staleness_threshold=2)
    counts = ("added", "replayed", "expired", "retired", "evicted")
    assert replay.statistics(1) == {"replay/size": 0} | {f"replay/{name}": 0 for name in counts}, (
        "an empty buffer reports responses, or leaves out a count"
    )
    for version in (1, 2):  # in each three come, one is drawn twice and retires, and the others grow too old
        replay.add(fresh(3, seed=version), 10 * version)
        for _ in range(2):
            replay.sample(3, 10 * version, generator())
        assert replay.counts["retired"] == 3 * version, "what was used up is not counted as retired, each time anew"
        replay.add(fresh(6, seed=version), 10 * version)
        assert replay.counts["evicted"] == 2 * version, "what gave way is not counted as evicted"
        replay.expire(10 * version + 3)
        assert replay.counts["expired"] == 4 * version, "what grew too old is not counted as expired, each time anew"
    assert replay.counts["added"] == 18, "responses that were added are counted wrongly"
    assert replay.counts["replayed"] == 12, "responses that were replayed are counted wrongly"


def test_statistics_by_hand():
    """Three responses of updates 1, 2 and 4, seen in update 5 with τ = 2; one of them was used in update 5."""
    replay = buffer(recency=2.0, spacing=1)
    for version, score in ((1, 0.5), (2, 1.0), (4, 3.0)):
        rollout = fresh(1, seed=version)
        rollout.scores = torch.tensor([score])
        replay.add(rollout, version)
    weights = torch.tensor([4.0, 3.0, 1.0]).div(-2).exp()
    shares = weights / weights.sum()
    told = replay.statistics(5)
    by_hand = {"size": 3, "age_mean": 8 / 3, "age_max": 4, "reuse_mean": 0, "score_mean": 1.5}
    by_hand["sampling_entropy"] = (-(shares * shares.log()).sum() / math.log(3)).item()
    for name, value in by_hand.items():
        assert told[f"replay/{name}"] == pytest.approx(value), f"replay/{name} is not what it is by hand"
    replay.sample(2, 5, generator())
    assert replay.statistics(5)["replay/reuse_mean"] == pytest.approx(2 / 3), "uses are not averaged over all held"
    two = buffer(recency=2.0)
    two.add(fresh(1), 1), two.add(fresh(1), 3)
    assert two.statistics(5)["replay/sampling_entropy"] < 0.9, "with two that are ready the draw is called even"
    assert replay.statistics(5)["replay/sampling_entropy"] == 1.0, "with one that is ready the draw is no draw"
    replay.sample(1, 5, generator())
    assert replay.statistics(5)["replay/sampling_entropy"] == 1.0, "with none ready there are no probabilities"
    assert replay.histograms(5) == {"age": [0, 1, 0, 1, 1], "reuse": [0, 3]}, "ages or uses are counted wrongly"


def test_priorities_do_not_depend_on_the_scale_of_scores():
    found = []
    for scale in (1.0, 1e-3):
        replay = buffer(priority_exponent=1.0)
        replay.add(scored(0, 0, 6), 1)
        replay.fields["scores"] *= scale
        found.append(replay.probabilities(2))
    assert torch.allclose(*found, rtol=1e-2), "what keeps a priority above 0 outweighs small scores"


def test_a_buffer_left_to_itself_draws_evenly_and_lets_go_after_four_uses_or_eight_updates():
    replay = buffer()
    replay.add(scored(0, 0, 6), 1)
    assert replay.probabilities(2).tolist() == pytest.approx([1 / 3] * 3), "without settings draws are not even"
    for uses in range(4):
        assert len(replay) == 3, f"without settings responses retire after {uses} uses"
        replay.sample(3, 2, generator())
    assert len(replay) == 0, "without settings responses do not retire after four uses"
    replay.add(fresh(1), 1)
    for update, held in ((9, 1), (10, 0)):
        replay.expire(update)
        assert len(replay) == held, "without settings responses do not expire after eight updates"


def test_counts_and_tokens_are_kept_as_whole_numbers():
    """As floats ids above 2²⁴ would be rounded."""
    for name in ("response_ids", "lengths", "versions", "reuses", "last_used"):
        assert not buffer().fields[name].dtype.is_floating_point, f"{name} is kept as a rounded number"


def test_some_place_is_always_left_to_the_young():
    assert [kept_for_scores(10, share) for share in (0, 0.25, 0.9, 1)] == [0, 2, 9, 9], (
        "not so many are kept for their scores as the share says, or all"
    )


def test_no_response_is_drawn_twice_in_a_batch():
    replay = buffer(max_reuse=100)
    replay.add(fresh(8), 1)
    for seed in range(5):
        batch = replay.sample(6, 2, generator(seed))
        assert len(set(batch.prompts)) == 6, "a response is drawn twice in one batch: draw without replacement"


def test_draws_depend_on_the_given_generator_alone():
    drawn = []
    for seed in (1, 2, 3):
        replay = buffer()
        replay.add(fresh(8), 1)
        torch.manual_seed(seed)
        drawn.append(replay.sample(3, 2, generator(7)).prompts)
    assert drawn[0] == drawn[1] == drawn[2], "draws use the process's generator, which no run saves"


def test_recency_and_priority_by_hand():
    replay = buffer(recency=2.0, staleness_threshold=100)
    for version in (1, 3):
        replay.add(fresh(1, seed=version), version)
    weights, found = torch.tensor([-3 / 2, -1 / 2]).double().softmax(0), replay.probabilities(4)
    assert not torch.allclose(found[0], found[1]), "draws do not look at the age"
    assert found[1] > found[0], "older responses are drawn more often than younger ones"
    assert torch.allclose(found, weights), "the weights are not exp(−age/τ)"
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
    omega, rare = batch.sampling_weights.double(), drawn.index(1)
    assert omega.min() < omega.max(), "draws with priorities are not corrected by ω"
    assert omega[rare] == omega.max(), "ω is larger for what is drawn more often"
    assert omega.max() == 1, "ω is not scaled to at most 1"
    assert torch.allclose(omega, (weights / weights.max())[drawn], atol=1e-6), "ω is not (N P)^−β"


def test_priorities_follow_the_present_scores():
    replay = buffer(priority_exponent=1.0)
    replay.add(scored(0, 0, 6), 1)
    assert replay.probabilities(2)[2] == pytest.approx(4 / 8, abs=0.01)  # the mean is 2
    replay.add(scored(6, 6, 6, 6), 2)
    expected = 12 / 7 / (2 * 30 / 7 + 5 * 12 / 7)  # now it is 30/7
    assert replay.probabilities(3)[2] == pytest.approx(expected, abs=0.01), (
        "the priorities are stale: they are those of an earlier buffer"
    )


@pytest.mark.parametrize(
    ("settings", "size"), [({}, 1), ({"recency": 2.0}, 3), ({"priority_exponent": 0.6, "recency": 4.0}, 1)]
)
def test_sampling_follows_its_distribution(settings, size):
    """The first draw of a batch, whatever its size."""
    replay = buffer(capacity=12, max_reuse=10**9, staleness_threshold=10**9, **settings)
    for version in range(4):
        replay.add(fresh(3, seed=version), version)
    expected, drawn = replay.probabilities(5), torch.zeros(12)
    stream, order = generator(1), {}
    for place in replay.held.tolist():
        order[replay.fields["behaviour_logprobs"][place, 0].item()] = place
    for _ in range(4000):
        batch = replay.sample(size, 5, stream)
        drawn[order[batch.behaviour_logprobs[0, 0].item()]] += 1
    assert torch.equal(replay.probabilities(5), expected), (
        "a response's chances change with its use: recency counts from when it was sampled, priority from its score"
    )
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
        mine, theirs = other.statistics(version), replay.statistics(version)
        differing = [name for name in theirs if mine[name] != theirs[name]]
        assert not differing, f"the loaded buffer counts {', '.join(differing)} from anew, or restores them wrongly"


def test_weights_stay_finite_however_old_a_kept_response_is():
    replay = buffer(recency=1.0, priority_exponent=0.5, staleness_threshold=10**6)
    for version in (1, 3000):
        replay.add(fresh(2, seed=version), version)
    batch = replay.sample(4, 3001, generator())
    assert batch.sampling_weights.isfinite().all(), "a response that is drawn with probability 0 weighs ∞ or NaN"


def test_a_buffer_of_another_size_is_refused():
    with pytest.raises(ValueError, match="replay_buffer_size"):
        buffer(4).load_state_dict(buffer(8).state_dict())


SETUPS = [
    {"max_reuse": 3, "staleness_threshold": 2},
    {"max_reuse": 2, "staleness_threshold": 4, "recency": 3.0},
    {"max_reuse": 2, "staleness_threshold": 0, "priority_exponent": 0.7, "recency": 1.0},
    {"max_reuse": 1, "staleness_threshold": 3, "priority_exponent": 0.7, "keep_best": 0.3},
]
NAMES = ["add", "add", "draw", "draw", "expire", "next update", "save and load"]
OPERATIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 6)), min_size=5, max_size=16)


class Accounts:
    """A buffer beside a plain list of what happened to each response, which its score names."""

    def __init__(self, capacity, **settings):
        self.make = lambda: buffer(capacity, **settings)
        self.replay, self.stream, self.version = self.make(), generator(), 1
        self.nbytes, self.born, self.uses = self.replay.nbytes, [], Counter()
        self.twin = None

    def add(self, rows):
        rollout = scored(*range(len(self.born), len(self.born) + rows))
        self.born += [self.version] * rows
        for one in self.both:
            one.add(rollout, self.version)

    def draw(self, size):
        held = set(self.names)
        self.expire(size)
        room = len(self.replay)
        batch = self.replay.sample(size, self.version, self.stream)
        if self.twin:
            again = self.twin.sample(size, self.version, self.twin_stream)
            assert (again is None) == (batch is None) and (batch is None or same(batch, again)), (
                "a buffer that was saved and loaded draws other responses"
            )
        drawn = [] if batch is None else batch.scores.int().tolist()
        assert len(drawn) == min(size, room) == len(set(drawn)) and held.issuperset(drawn)
        self.uses.update(drawn)
        assert all(self.uses[name] <= self.replay.max_reuse for name in drawn), "replayed more often than `max_reuse`"
        ages = [self.version - self.born[name] for name in drawn]
        assert batch is None or batch.ages.tolist() == ages
        old = sum(age > self.replay.staleness_threshold for age in ages)
        assert old <= int(self.replay.keep_best * self.replay.capacity), "a stale response was replayed"

    def expire(self, _):
        for one in self.both:
            one.expire(self.version)

    def next_update(self, updates):
        self.version += updates

    def save_and_load(self, _):
        self.twin, self.twin_stream = self.make(), generator()
        self.twin.load_state_dict(copy.deepcopy(self.replay.state_dict()))
        self.twin_stream.set_state(self.stream.get_state())

    @property
    def both(self):
        return [self.replay, self.twin] if self.twin else [self.replay]

    @property
    def names(self):
        return self.replay.fields["scores"][self.replay.held].int().tolist()

    def check(self):
        replay, counts, held = self.replay, self.replay.counts, len(self.replay)
        assert held <= replay.capacity and replay.nbytes == self.nbytes, "the buffer outgrows its capacity"
        assert len(set(self.names)) == held, "a response is held twice"
        assert replay.fields["reuses"][replay.held].tolist() == [self.uses[name] for name in self.names]
        assert all(self.uses[name] < replay.max_reuse for name in self.names), "a response outlives its last use"
        gone = counts["expired"] + counts["retired"] + counts["evicted"]
        assert counts["added"] == len(self.born) == held + gone, "a response came or went uncounted"
        assert counts["replayed"] == self.uses.total(), "a use is not counted in the totals"
        assert sum(text is not None for text in replay.prompts) == held, "a prompt is kept without its response"
        assert [sum(bars) for bars in replay.histograms(self.version).values()] == [held, held]
        if held:
            score = replay.statistics(self.version)["replay/score_mean"]
            assert score == pytest.approx(sum(self.names) / held), "the mean score is not that of the held responses"
            probabilities = replay.probabilities(self.version)
            assert probabilities.sum().item() == pytest.approx(1.0) and (probabilities > 0).all()
        if self.twin:
            assert self.twin.statistics(self.version) == replay.statistics(self.version)


def same(one, other):
    """Whether two replayed batches are equal to the last bit."""
    a, b = vars(one), vars(other)
    return all(torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a)


@pytest.mark.parametrize("setup", range(len(SETUPS)))
def test_no_sequence_of_operations_breaks_a_limit(setup):
    """250 sequences for each of four settings."""
    counted = Counter()

    @settings(max_examples=250, deadline=None, derandomize=True, database=None)
    @given(capacity=st.integers(1, 12), operations=OPERATIONS)
    def hold(capacity, operations):
        accounts = Accounts(capacity, **SETUPS[setup])
        accounts.add(2)
        for name, amount in operations:
            getattr(accounts, name.replace(" ", "_"))(amount)
            accounts.check()
        counted["sequences"] += 1
        counted.update({name: number > 0 for name, number in accounts.replay.counts.items()})
        counted["loaded"] += accounts.twin is not None

    hold()
    assert counted["sequences"] >= 250
    rare = [name for name, number in counted.items() if number < 10]
    assert not rare, f"too few of the sequences came to this: {rare} of {dict(counted)}"
