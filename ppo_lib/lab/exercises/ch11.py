"""Exercises of chapter 11: who leaves a buffer, who is drawn from it, how often a response is replayed."""

import torch

from ppo_lib.lab.exercises.check import Exercise


def _stays(ages, uses, staleness_threshold, max_reuse):
    return (ages <= staleness_threshold) & (uses < max_reuse)


_AGES, _USES = torch.tensor([1, 1, 2, 3, 3, 4, 5]), torch.tensor([0, 2, 1, 2, 3, 0, 3])
stays = Exercise(
    "stays",
    solution=_stays,
    inputs=[(_AGES, _USES, 3, 3), (_AGES, _USES, 1, 2), (_AGES, _USES, 4, 1), (_USES[1:], _AGES[1:], 2, 4)],
    mistakes={
        "one update too early: a response leaves when it is *more* than `staleness_threshold` updates old.": (
            lambda ages, uses, staleness_threshold, max_reuse: (ages < staleness_threshold) & (uses < max_reuse)
        ),
        "one use too many: with `max_reuse` uses a response has had its last.": (
            lambda ages, uses, staleness_threshold, max_reuse: (ages <= staleness_threshold) & (uses <= max_reuse)
        ),
        "either limit is enough to leave, so who stays is within both: & instead of |.": (
            lambda ages, uses, staleness_threshold, max_reuse: (ages <= staleness_threshold) | (uses < max_reuse)
        ),
        "those are the ones that leave: true is for who stays.": (
            lambda ages, uses, staleness_threshold, max_reuse: ~_stays(ages, uses, staleness_threshold, max_reuse)
        ),
        "the two limits are swapped: `staleness_threshold` is for ages, `max_reuse` for uses.": (
            lambda ages, uses, staleness_threshold, max_reuse: (ages < max_reuse) & (uses <= staleness_threshold)
        ),
        "you forgot the uses: a response that was replayed `max_reuse` times is retired.": (
            lambda ages, uses, staleness_threshold, max_reuse: ages <= staleness_threshold
        ),
        "you forgot the ages: a response that is too old expires, however seldom it was used.": (
            lambda ages, uses, staleness_threshold, max_reuse: uses < max_reuse
        ),
    },
)


def _draw_probabilities(scores, ages, alpha, tau):
    weights = (scores - scores.mean()).abs() ** alpha * torch.exp(-ages / tau)
    return weights / weights.sum()


def _raw_score(scores, ages, alpha, tau):
    weights = scores.abs() ** alpha * torch.exp(-ages / tau)
    return weights / weights.sum()


def _only_the_best(scores, ages, alpha, tau):
    weights = (scores - scores.mean()).clamp(min=0) ** alpha * torch.exp(-ages / tau)
    return weights / weights.sum()


def _old_first(scores, ages, alpha, tau):
    weights = (scores - scores.mean()).abs() ** alpha * torch.exp(ages / tau)
    return weights / weights.sum()


def _times_tau(scores, ages, alpha, tau):
    weights = (scores - scores.mean()).abs() ** alpha * torch.exp(-ages * tau)
    return weights / weights.sum()


def _times_alpha(scores, ages, alpha, tau):
    weights = alpha * (scores - scores.mean()).abs() * torch.exp(-ages / tau)
    return weights / weights.sum()


def _added(scores, ages, alpha, tau):
    weights = (scores - scores.mean()).abs() ** alpha + torch.exp(-ages / tau)
    return weights / weights.sum()


draw_probabilities = Exercise(
    "draw_probabilities",
    solution=_draw_probabilities,
    inputs=[
        (torch.tensor([0.0, 1.0, 4.0, 3.0]), torch.tensor([1.0, 1.0, 2.0, 3.0]), 1.0, 1.4427),
        (torch.tensor([0.7, -1.0, 2.2]), torch.tensor([5.0, 1.0, 3.0]), 0.6, 4.0),
        (torch.tensor([0.7, -1.0, 2.2]), torch.tensor([2.0, 2.0, 1.0]), 2.0, 0.5),
    ],
    mistakes={
        "they do not add up to 1: divide by their sum.": (
            lambda scores, ages, alpha, tau: (scores - scores.mean()).abs() ** alpha * torch.exp(-ages / tau)
        ),
        "your old responses are drawn more often: the exponent is −age/τ.": _old_first,
        "you multiply the age by τ: a larger τ must make age matter less, so divide.": _times_tau,
        "take the distance of a score from the mean score, not the score itself.": _raw_score,
        "scores below the mean teach as well: take the absolute distance.": _only_the_best,
        "α is an exponent: as a factor it cancels when you normalise.": _times_alpha,
        "you add the two factors: multiply, so that a response must be both interesting and recent.": _added,
    },
)


def _steady_state(fresh, sample, max_reuse):
    uses = min(sample / fresh, max_reuse)
    return uses, uses * fresh


steady_state = Exercise(
    "steady_state",
    solution=_steady_state,
    inputs=[(8, 24, 4), (8, 16, 6), (8, 56, 8), (8, 56, 4), (16, 40, 2), (8, 20, 4), (16, 4, 3)],
    mistakes={
        "you divided the wrong way round: uses are draws per fresh response, sample / fresh.": (
            lambda fresh, sample, max_reuse: (min(fresh / sample, max_reuse), min(fresh / sample, max_reuse) * fresh)
        ),
        "no response is replayed more than `max_reuse` times, so sample / fresh is only an upper bound.": (
            lambda fresh, sample, max_reuse: (sample / fresh, sample)
        ),
        "the uses are right. But where `max_reuse` is reached, the buffer cannot fill the sample any more.": (
            lambda fresh, sample, max_reuse: (min(sample / fresh, max_reuse), sample)
        ),
        "you counted the first, fresh training as well: a reuse is a replay.": (
            lambda fresh, sample, max_reuse: (
                min((sample + fresh) / fresh, max_reuse),
                min((sample + fresh) / fresh, max_reuse) * fresh,
            )
        ),
        "`max_reuse` is a limit, not what happens: with few draws a response is replayed less often.": (
            lambda fresh, sample, max_reuse: (max_reuse, max_reuse * fresh)
        ),
    },
)
