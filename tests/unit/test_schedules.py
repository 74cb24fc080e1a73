"""The learning rate of every update, against its formula by hand; and what a wrong schedule is told."""

import math

import pytest
import torch
from torch.optim import SGD

from ppo_lib.running import checkpoint
from ppo_lib.running.schedules import Schedule
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, make

BASE, UPDATES, WARMUP = 0.8, 12, 3


def optimizer():
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)


def rates(name, warmup=0, scores=None, updates=UPDATES, **kwargs):
    """The learning rate of each update."""
    sgd = optimizer()
    schedule, found = Schedule(name, sgd, updates, warmup, kwargs), []
    for update in range(updates):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step(scores[update] if scores else None)
    return found


def half_cosine(x):
    return 0.5 * (1 + math.cos(math.pi * x))


# Name, keywords, and the share of the learning rate at update i of the n that follow the warm-up.
FORMULAS = [
    ("constant", {}, lambda i, n: 1.0),
    ("linear", {}, lambda i, n: 1 - i / n),
    ("cosine", {}, lambda i, n: half_cosine(i / n)),
    ("cosine", {"num_cycles": 1.5}, lambda i, n: 0.5 * (1 + math.cos(3 * math.pi * i / n))),
    ("cosine_with_restarts", {"num_cycles": 3}, lambda i, n: half_cosine(3 * i / n % 1)),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}, lambda i, n: 0.1 + 0.9 * half_cosine(i / n)),
    ("polynomial", {"power": 2, "lr_end": 0.08}, lambda i, n: 0.1 + 0.9 * (1 - i / n) ** 2),
    ("inverse_sqrt", {"timescale": 4}, lambda i, n: (4 / (i + 4)) ** 0.5),
    ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "linear"}, lambda i, n: min(1.0, (n - i) / 4)),
    ("StepLR", {"step_size": 4, "gamma": 0.5}, lambda i, n: 0.5 ** (i // 4)),
    ("MultiStepLR", {"milestones": [2, 5], "gamma": 0.1}, lambda i, n: 0.1 ** ((i >= 2) + (i >= 5))),
    ("ExponentialLR", {"gamma": 0.9}, lambda i, n: 0.9**i),
    ("CosineAnnealingLR", {"T_max": 6, "eta_min": 0.0}, lambda i, n: half_cosine(i / 6)),
    ("PolynomialLR", {"total_iters": 6, "power": 1.0}, lambda i, n: max(1 - i / 6, 0.0)),
]
IDS = [" ".join([name, *kwargs]) for name, kwargs, _ in FORMULAS]


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize(("name", "kwargs", "formula"), FORMULAS, ids=IDS)
def test_each_schedule_follows_its_formula(name, kwargs, formula, warmup):
    rising = [(i + 1) / (warmup + 1) for i in range(warmup)]
    expected = rising + [formula(i, UPDATES - warmup) for i in range(UPDATES - warmup)]
    found = [rate / BASE for rate in rates(name, warmup, **kwargs)]
    assert found[:warmup] == pytest.approx(rising), f"{name}: the warm-up does not rise by equal steps from above 0"
    stretched = rising + [formula(i, UPDATES) for i in range(UPDATES - warmup)]
    assert not warmup or expected == pytest.approx(stretched, abs=1e-6) or found != pytest.approx(stretched), (
        f"{name}: the warm-up is not taken from the length of the schedule, which is cut off before its end"
    )
    assert found == pytest.approx(expected, abs=1e-6), f"{name}: learning rates are not those of its formula"


def test_no_update_is_wasted_at_a_learning_rate_of_zero():
    for warmup in (0, WARMUP):
        found = rates("cosine", warmup)
        assert min(found) > 0, "an update has a learning rate of 0 and learns nothing"
        assert max(found) == pytest.approx(BASE), "the full learning rate is never reached"


@pytest.mark.parametrize("name", ["plateau", "ReduceLROnPlateau", "reduce_lr_on_plateau"])
def test_a_plateau_lowers_the_rate_when_the_score_stops_rising(name):
    scores = [1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4]
    found = rates(name, scores=scores, factor=0.5, patience=1)
    expected = [0.8] * 5 + [0.4] * 4 + [0.2] * 2 + [0.1]
    assert found == pytest.approx(expected), "a plateau does not follow the held-out score: it must rise to be better"


def test_a_plateau_ignores_updates_without_evaluation_and_starts_after_the_warmup():
    scores = [9, 9, 9, 1, None, None, 1, None, None, 1, None, None]
    found = rates("plateau", WARMUP, scores=scores, factor=0.5, patience=0)
    expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]
    assert found == pytest.approx(expected), "a plateau counts updates without evaluation, or the warm-up"


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cosin", {}, "`lr_scheduler`='cosin' .*no such schedule; did you mean 'cosine'"),
        ("platau", {}, "did you mean 'plateau'"),
        ("StepLr", {"step_size": 1}, "did you mean 'StepLR'"),
        ("qqqq", {}, "known: linear, cosine"),
        ("greedy", {}, "known: linear, cosine"),
        ("Optimizer", {}, "no such schedule"),
        ("cosine", {"num_cycle": 2}, "'num_cycle': 2.*unexpected keyword argument 'num_cycle'"),
        ("constant", {"gamma": 2}, "'gamma': 2.*a constant takes no keywords"),
        ("constant_with_warmup", {"gamma": 2}, "'gamma': 2.*a constant takes no keywords"),
        ("plateau", {"patient": 2}, "unexpected keyword argument 'patient'"),
        ("StepLR", {}, "missing 1 required positional argument: 'step_size'"),
    ],
)
def test_a_wrong_schedule_is_told_what_is_wrong(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        Schedule(name, optimizer(), UPDATES, 0, kwargs)


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="`warmup_updates`=3 leaves none of the run's 3 updates: lower it"):
        make(warmup_updates=3)


RESUMED = [
    *((name, kwargs) for name, kwargs, _ in FORMULAS),
    ("plateau", {"factor": 0.5, "patience": 0}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 20, "cycle_momentum": False}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4}),
]


@pytest.mark.parametrize("stop", [1, WARMUP, 7])
@pytest.mark.parametrize(("name", "kwargs"), RESUMED, ids=[*IDS, "plateau", "one cycle", "warm restarts"])
def test_a_schedule_goes_on_where_it_was_saved(name, kwargs, stop, tmp_path):
    """In the warm-up, at its end and after it."""

    def run(sgd, schedule, first):
        found = []
        for update in range(first, UPDATES):
            found.append(sgd.param_groups[0]["lr"])
            if update == stop and first == 0:
                checkpoint.save_checkpoint(tmp_path, 0, {"parts": [schedule.state_dict(), sgd.state_dict()]})
            sgd.step()
            schedule.step(1.0)
        return found

    sgd = optimizer()
    whole = run(sgd, Schedule(name, sgd, UPDATES, WARMUP, kwargs), 0)
    sgd = optimizer()
    schedule = Schedule(name, sgd, UPDATES, WARMUP, kwargs)
    saved_schedule, saved_optimizer = checkpoint.load_newest(tmp_path)[0]["parts"]
    sgd.load_state_dict(saved_optimizer)
    schedule.load_state_dict(saved_schedule)
    assert run(sgd, schedule, stop) == whole[stop:], f"{name} goes on with other learning rates than the saved one had"


CYCLIC = ("CyclicLR", {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3, "cycle_momentum": False})


@pytest.mark.parametrize("moment", [1, WARMUP, 7])
@pytest.mark.parametrize(
    ("name", "kwargs"), [*RESUMED, CYCLIC], ids=[*IDS, "plateau", "one cycle", "warm restarts", "cyclic"]
)
def test_a_scaled_schedule_is_lower_at_all_later_updates(name, kwargs, moment):
    """As where a run is resumed with another learning rate: in the warm-up, at its end and after it."""
    sgd, whole = optimizer(), rates(name, WARMUP, scores=[1.0] * UPDATES, **kwargs)
    schedule, found = Schedule(name, sgd, UPDATES, WARMUP, kwargs), []
    for update in range(UPDATES):
        if update == moment:
            schedule.scale(0.25)
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step(1.0)
    expected = whole[:moment] + [0.25 * rate for rate in whole[moment:]]
    assert found == pytest.approx(expected), f"another `learning_rate` does not reach all later updates of {name}"


def test_the_schedule_moves_once_an_update():
    ppo = make(lr_scheduler="linear", learning_rate=0.3)
    ppo.train(PROMPTS)
    found = [m["lr"] for m in ppo.history]
    assert found == pytest.approx([0.3, 0.2, 0.1]), "the schedule moves with minibatches or epochs, not with updates"


def test_a_plateau_follows_the_held_out_score():
    ppo = make(
        total_episodes=20, eval_every=1, lr_scheduler="plateau", lr_scheduler_kwargs={"factor": 0.5, "patience": 0},
        eval_reward=lambda prompts, responses: [1.0] * len(responses), learning_rate=0.8,
    )  # fmt: skip
    ppo.train(PROMPTS, HELD_OUT)
    assert [m["lr"] for m in ppo.history] == pytest.approx([0.8, 0.8, 0.4, 0.2, 0.1]), (
        "the plateau does not look at the held-out score of each evaluation"
    )
