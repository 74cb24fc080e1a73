"""How sample efficiency is measured: thresholds that are held, censored runs, ratios with intervals, areas, collapses.

Each statistic is held to what it is by definition, on curves that start anywhere and samples whose mean, median and
ends differ.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ppo_lib.lab import efficiency


def curve(values, every=100):
    return [{"tokens": every * i, "objective": value} for i, value in enumerate(values)]


def test_a_threshold_counts_once_it_is_held():
    assert efficiency.first_held([0, 1, 0, 1, 1, 1, 0], 1.0) == 3, "a single lucky evaluation counts as having arrived"
    assert efficiency.first_held([0, 1, 1], 1.0) is None, "two evaluations count as three"
    assert efficiency.first_held([0, 1, 1, 1, 1], 1.0) == 1, "what counts is not the first of those that hold it"
    assert efficiency.first_held([1, 1, 1], 1.0) == 0, "a threshold that is reached exactly does not count"
    assert efficiency.first_held([-3, -1, -1, -1], -1.0) == 1, "a threshold below 0 is not held where it should be"
    assert efficiency.first_held([0, 1, 1, 0], 1.0, hold=2) == 1, "`hold` is ignored"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-2, 2), max_size=9), st.integers(-2, 2), st.integers(1, 4))
def test_held_is_what_it_is_by_definition(values, threshold, hold):
    windows = [all(value >= threshold for value in values[i : i + hold]) for i in range(len(values) - hold + 1)]
    expected = windows.index(True) if True in windows else None
    assert efficiency.first_held(values, threshold, hold) == expected, f"not the first {hold} in a row that reach it"


def test_a_run_that_never_arrives_is_censored_at_its_end():
    run = curve([-2, -1, 1, 1, 1, -2])
    assert efficiency.cost_until(run, 0.5) == (200, True), "a run that arrived is not counted where it first held"
    assert efficiency.cost_until(run[:-2], 0.5) == (300, False), "a run that never arrives is dropped or free"
    assert efficiency.cost_until(run, 0.5, hold=4) == (500, False), "`hold` does not reach the search"
    assert efficiency.cost_until(run, -1.5) == (100, True), "a threshold below 0 is not held where it should be"
    for number, row in enumerate(run):
        row["steps"] = 7 * number
    assert efficiency.cost_until(run, 0.5, "steps") == (14, True), "the cost of an arrival is not that of its column"
    assert efficiency.cost_until(run, 2.0, "steps") == (35, False), "a censored cost is not that of its column"


# Six costs each, paired by seed: skewed, so that means, medians, mean ratios and one-sided limits all lie apart.
BASELINE = np.array([300.0, 420, 150, 1900, 260, 530])
OTHER = np.array([200.0, 160, 140, 330, 90, 410])
LEVELS = {"95 %": (2.5, 97.5), "90 %": (5, 95), "99 %": (0.5, 99.5), "one side": (5, 100), "the other side": (0, 95)}


def every_resample(*samples: np.ndarray) -> list[np.ndarray]:
    """All resamples of n values, n to the power of n, each as likely as the next; samples are drawn together."""
    n = len(samples[0])
    chosen = np.array(list(itertools.product(range(n), repeat=n)))
    return [sample[chosen] for sample in samples]


def drawn_apart(statistic: Callable) -> np.ndarray:
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(OTHER), (2, 10_000, len(OTHER)))
    return np.percentile(statistic(BASELINE[chosen[0]], OTHER[chosen[1]]), LEVELS["95 %"])


def bias_corrected(*samples: np.ndarray, of: Callable) -> Sequence[float]:
    with warnings.catch_warnings(action="ignore"):
        return stats.bootstrap(samples, of, paired=True, method="BCa", rng=np.random.default_rng(0)).confidence_interval


def check_interval(interval, right: np.ndarray, wrong: dict[str, np.ndarray]) -> None:
    """The interval is that of 95 % of `right`, and nearer to it than to each of `wrong`, by name."""
    ends = {level: np.percentile(right, between) for level, between in LEVELS.items()}
    ends["95 %, turned around at the estimate"] = 2 * wrong.pop("estimate") - ends["95 %"][::-1]
    assert np.isfinite(interval).all() and interval[0] < interval[1], f"the interval has no two ends: {interval}"
    nearest = min(ends | wrong, key=lambda name: np.abs(np.subtract((ends | wrong)[name], interval)).max())
    assert nearest == "95 %", f"the interval that is called one of 95 % is that of {nearest}"
    width = np.diff(ends["95 %"])[0]
    assert interval == pytest.approx(ends["95 %"], abs=0.02 * width), "the ends are not the 2.5 and 97.5 % quantiles"


def test_a_ratio_has_the_interval_of_95_percent():
    """Of six seeds there are 46,656 resamples, so the quantiles are known without dice."""

    def of_means(a, b, axis=-1):
        return a.mean(axis) / b.mean(axis)

    a, b = every_resample(BASELINE, OTHER)
    ratio, low, high = efficiency.ratio_interval(BASELINE, OTHER)
    of_medians, mean_ratio = np.median(BASELINE) / np.median(OTHER), np.mean(BASELINE / OTHER)
    assert ratio != pytest.approx(of_medians), "the ratio is that of the medians, not of the means"
    assert ratio != pytest.approx(mean_ratio), "the ratio is the mean of the pairs' ratios, not that of the means"
    assert ratio == pytest.approx(3560 / 1330), "the ratio is not mean baseline / mean other"
    middle = LEVELS["95 %"]
    wrong = {
        "the ratio of the medians": np.percentile(np.median(a, axis=1) / np.median(b, axis=1), middle),
        "the mean of the ratios": np.percentile((a / b).mean(axis=1), middle),
        "seeds drawn apart": drawn_apart(of_means),
        "a bias-corrected bootstrap": bias_corrected(BASELINE, OTHER, of=of_means),
    }
    check_interval((low, high), of_means(a, b), wrong | {"estimate": ratio})


def test_a_mean_has_the_interval_of_95_percent():
    values = np.array([-3.0, -2.5, -2, -0.5, 4, 11])
    (resamples,) = every_resample(values)
    mean, low, high = efficiency.mean_interval(values)
    assert mean == pytest.approx(7 / 6), "the mean is not the mean (the median is -1.25)"
    wrong = {
        "the median": np.percentile(np.median(resamples, axis=1), LEVELS["95 %"]),
        "a bias-corrected bootstrap": bias_corrected(values, of=np.mean),
    }
    check_interval((low, high), resamples.mean(axis=1), wrong | {"estimate": mean})


def test_values_that_are_all_equal_have_no_width():
    with warnings.catch_warnings(action="error"):
        for runs in ([0.25] * 3, [0.25]):
            assert efficiency.mean_interval(runs) == (0.25, 0.25, 0.25), "equal values, or a single one, have a width"
    ratio, low, high = efficiency.ratio_interval(2 * OTHER, OTHER)
    assert (ratio, low, high) == pytest.approx((2, 2, 2)), "seeds are drawn apart: equally hard ones no longer meet"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=2, max_size=12))
def test_a_ratio_lies_in_its_interval_and_turns_around(costs):
    baseline, other = zip(*costs, strict=True)
    ratio, low, high = efficiency.ratio_interval(baseline, other)
    assert low <= ratio * (1 + 1e-9) and ratio <= high * (1 + 1e-9)
    assert ratio == pytest.approx(sum(baseline) / sum(other)), "the ratio is not that of the means"
    assert efficiency.ratio_interval(other, baseline)[0] == pytest.approx(1 / ratio)


def test_intervals_do_not_hang_on_the_dice():
    """Of 10,000 resamples an end hardly moves from seed to seed."""
    costs, before = np.random.default_rng(0).gamma(4.0, size=(2, 10)), np.random.get_state()[1].tolist()
    for interval, of in ((efficiency.ratio_interval, costs), (efficiency.mean_interval, costs[:1])):
        what = interval.__name__
        ends = np.array([interval(*of, seed=seed)[1:] for seed in range(16)])
        assert (np.diff(ends, axis=0) != 0).any(), f"{what}: the seed of the resamples is ignored"
        assert interval(*of) == interval(*of, seed=0), f"{what}: the same runs give another interval each time"
        moved = ends.std(axis=0) / np.diff(ends.mean(axis=0))
        assert moved.max() < 0.018, f"{what}: too few resamples, an end moves by {moved.max():.1%} of the width"
    assert np.random.get_state()[1].tolist() == before, "the process's own dice were thrown"


@pytest.mark.parametrize("what", ["ratio", "mean"])
def test_the_interval_holds_the_truth_as_often_as_it_can(what):
    """Of ten runs a percentile interval of 95 % holds it in 90 % of the studies, as Student's t says of its width."""
    rng, held, studies, runs = np.random.default_rng(0), 0, 500, 10
    for study in range(studies):
        costs = rng.normal(size=(2, runs)) * [[20.0], [10.0]] + [[200.0], [100.0]]
        if what == "ratio":
            truth, (_, low, high) = 2.0, efficiency.ratio_interval(*costs, seed=study)
        else:
            truth, (_, low, high) = 100.0, efficiency.mean_interval(costs[1], seed=study)
        held += low <= truth <= high
    expected = 1 - 2 * stats.t.sf(stats.norm.ppf(0.975) * np.sqrt((runs - 1) / runs), runs - 1)
    least, most = stats.binom.interval(0.99, studies, expected)
    assert least <= held <= most, f"{held} of {studies} intervals hold the truth, not {least:.0f} to {most:.0f}"


@settings(max_examples=50, deadline=None)
@given(*[st.lists(st.sampled_from([1.0, 2.0, 3.0, float("inf")]), min_size=1, max_size=5) for _ in range(2)])
def test_probability_of_improvement_counts_pairs(baseline, other):
    """Every run against every other, as many as there are; `inf` is a run that never arrived."""
    pairs = list(itertools.product(baseline, other))
    wins = sum(theirs > ours for theirs, ours in pairs) + sum(theirs == ours for theirs, ours in pairs) / 2
    assert efficiency.probability_of_improvement(baseline, other) == pytest.approx(wins / len(pairs)), (
        "not the share of pairs in which `other` is cheaper, ties counted half"
    )


def test_probability_of_improvement_has_a_direction():
    assert efficiency.probability_of_improvement([10, 20], [1, 2, 3]) == 1.0, "cheaper runs count as worse"
    assert efficiency.probability_of_improvement([1, 2, 3], [10, 20]) == 0.0, "dearer runs count as better"
    assert efficiency.probability_of_improvement([5, 5], [5]) == 0.5, "ties are not counted half"


def test_area_is_the_mean_height_of_the_curve():
    """Evaluations at unequal distances, each a multiple of 1/256 of the width."""
    run = [{"tokens": t, "steps": 2 * t, "objective": v} for t, v in ((0, -1), (16, 3), (128, 3), (256, -5), (512, 90))]
    exact = (16 * 1 + 112 * 3 + 128 * -1) / 256
    assert np.mean([-1, 3, 3, -5]) != pytest.approx(exact, abs=0.1)
    assert efficiency.area(run, until=256) == pytest.approx(exact, abs=1e-12), (
        "not the area under the straight lines between the evaluations, over its width"
    )
    assert efficiency.area(run, until=512, cost="steps") == pytest.approx(exact, abs=1e-12), "`cost` is ignored"
    cut = (16 * 1 + 112 * 3 + 64 * 1) / 192
    assert efficiency.area(run, until=192) == pytest.approx(cut, abs=1e-3), "what comes after the end is counted"


def test_a_collapse_loses_more_than_half_of_the_gain():
    def falls(*gains, **hold):
        return efficiency.collapsed(curve([start + gain for gain in gains]), **hold)

    for start in (0.0, -3.0, 10.0):
        assert falls(0, 2, 2, 2, 0.9, 0.9, 0.9), f"a run from {start} that keeps 45 % of its gain has not collapsed"
        assert not falls(0, 2, 2, 2, 1, 1, 1), f"a run from {start} that keeps half of its gain collapsed"
        assert not falls(0, 2, 2, 2, 2), f"a run from {start} that keeps all it gained collapsed"
        assert not falls(0, 0, 0, -1, -1, -1), f"a run that never rose above {start} cannot fall"
        assert not falls(0, 0, 9, 0, 2, 2, 2), f"one lucky evaluation of a run from {start} is taken for its best"
        assert not falls(0, 2, 2, 2, 2, 2, 0), f"one bad evaluation of a run from {start} is a collapse"
        assert falls(0, 2, 2, 0.9, 0.9, hold=2) and not falls(0, 2, 2, 0.9, 0.9), "`hold` is ignored"
        assert falls(0, 0.2, 0.2, 0.2, 0, 0, 0), f"a run from {start} cannot lose a small gain"
        assert falls(0, 2, 2, 2, 2, 0, 0, 2.4), f"the end of a run from {start} is not the mean of its last three"
