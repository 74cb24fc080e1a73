"""The fast paths only round apart: with and without them, the same seed learns alike on `reviews`."""

import statistics

import pytest

from ppo_lib import rollout as rollouts
from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.sampling.decoding import Decoder

SEEDS = (0, 1, 2)


@pytest.fixture
def slow(monkeypatch):
    """Every model's decoder, whose batch stays whole, and minibatches with all their padding."""
    monkeypatch.setattr(rollouts, "decoder_for", lambda policy: Decoder)
    monkeypatch.setattr(Decoder, "SHARE_THAT_STAYS", 0.0)
    monkeypatch.setattr(rollouts.Rollout, "trimmed", lambda rollout: rollout)


def curves(**settings) -> list[list[float]]:
    """Mean scores of 20 rollouts for each seed."""
    prompts = worlds.load("reviews").prompts
    runs = [PPOTrainer(seed=seed, total_episodes=640, device="cpu", **settings).train(prompts) for seed in SEEDS]
    return [[update["objective/scores"] for update in run] for run in runs]


@pytest.fixture(scope="module")
def fast_curves():
    return curves()


def assert_alike(fast: list[list[float]], other: list[list[float]], what: str) -> None:
    """The same first rollout; then means that differ by less than seeds do."""
    for one, two in zip(fast, other, strict=True):
        assert one[0] == pytest.approx(two[0], abs=1e-6), f"{what} samples other responses from the first rollout on"
    ends = [[statistics.fmean(run[-5:]) for run in runs] for runs in (fast, other)]
    means = [[statistics.fmean(run) for run in runs] for runs in (fast, other)]
    for name, (ours, theirs) in (("end", ends), ("area", means)):
        noise = max(statistics.stdev(ours), statistics.stdev(theirs), 0.05)
        gap = abs(statistics.fmean(ours) - statistics.fmean(theirs))
        assert gap < 3 * noise, f"{what} learns otherwise: the {name} of the curves differs by {gap:.2f}"


def test_the_fast_paths_learn_as_the_plain_ones(fast_curves, slow, threshold):
    plain = curves()
    assert_alike(fast_curves, plain, "without its fast paths the trainer")
    threshold.above(min(statistics.fmean(run[-5:]) for run in plain), 1.0, "the score without fast paths")


def test_logits_in_chunks_learn_as_whole_ones(fast_curves, threshold):
    chunked = curves(logits_chunk=64)
    assert_alike(fast_curves, chunked, "`logits_chunk`")
    threshold.above(min(statistics.fmean(run[-5:]) for run in chunked), 1.0, "the score with `logits_chunk`")


def test_one_trunk_learns(threshold):
    ends = [statistics.fmean(run[-5:]) for run in curves(share_trunk=True)]
    threshold.above(min(ends), 1.0, "the score with `share_trunk`")
