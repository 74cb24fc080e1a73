"""Every exercise of the book: its solution passes, each of its mistakes is named, its stub fails."""

import pytest
import torch

from ppo_lib.exercises import Exercise, find_exercises
from ppo_lib.exercises.check import STUB_MESSAGE, difference, show

EXERCISES = find_exercises()


@pytest.fixture(params=EXERCISES)
def exercise(request):
    return EXERCISES[request.param]


def test_the_exercises_are_found():
    assert EXERCISES, "no exercise is found, so the tests below check nothing"


def test_solution_passes(exercise, capsys):
    assert exercise.check(exercise.solution) is True, f"{exercise.name}: the solution fails: {capsys.readouterr().out}"
    assert capsys.readouterr().out.startswith("Passed")


def test_each_mistake_gets_its_own_message(exercise):
    for message, wrong in exercise.mistakes.items():
        found = exercise.problem(wrong)
        assert found == message, f"{exercise.name}: the mistake {message!r} is reported as {found!r}"


def test_a_mistake_is_worth_naming(exercise):
    assert exercise.mistakes, f"{exercise.name} names no mistake: its check could only say 'different'"


STUBS = {"of dots": lambda *arguments: ..., "of None": lambda *arguments: None, "dots": ..., "nothing": None}


@pytest.mark.parametrize("stub", STUBS.values(), ids=STUBS)
def test_stub_fails(exercise, stub):
    assert exercise.check(stub) is False, f"{exercise.name}: a stub passes"
    assert exercise.problem(stub).startswith(STUB_MESSAGE)


def mean_of_kept(values, mask):
    return (values * mask).sum() / mask.sum()


def mean_of_all(values, mask):
    return values.mean()


EXAMPLE = Exercise(
    "mean_of_kept",
    solution=mean_of_kept,
    inputs=[(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))],
    mistakes={
        "padding counts in your mean: divide by mask.sum().": mean_of_all,
        "you summed, and did not divide.": lambda values, mask: (values * mask).sum(),
    },
)


def test_check_prints_and_returns_the_verdict(capsys):
    assert EXAMPLE.check(mean_of_kept) is True
    assert capsys.readouterr().out == "Passed: mean_of_kept agrees with the solution on 1 input.\n"
    assert EXAMPLE.check(mean_of_all) is False
    assert capsys.readouterr().out == "Not yet: padding counts in your mean: divide by mask.sum().\n"


def test_unknown_mistake_shows_the_input_and_both_values():
    message = EXAMPLE.problem(lambda values, mask: values.max())
    assert message == "for mean_of_kept([1, 2, 9], [True, True, False]), expected 1.5, got 9."


def test_wrong_shape_is_said():
    message = EXAMPLE.problem(lambda values, mask: values * mask)
    assert "expected shape [], got shape [3]" in message


def test_an_exception_is_reported_not_raised():
    message = EXAMPLE.problem(lambda values: values)
    assert "it raised TypeError" in message


def test_stub_that_raises_not_implemented():
    def stub(values, mask):
        raise NotImplementedError

    assert EXAMPLE.problem(stub) == STUB_MESSAGE


def test_forgotten_return_is_hinted_at():
    assert "`return`" in EXAMPLE.problem(lambda values, mask: None)


def test_answer_that_changes_its_input_does_not_spoil_the_reference():
    def in_place(values, mask):
        values.mul_(mask)
        return values.sum() / mask.sum()

    assert EXAMPLE.check(in_place) is True, "inputs must be copied for each call"
    assert EXAMPLE.check(mean_of_kept) is True, "an earlier answer changed the stored inputs"


def test_nan_is_named():
    assert "NaN" in EXAMPLE.problem(lambda values, mask: values.sum() * float("nan"))


def test_exercise_about_a_number():
    exercise = Exercise("ratio", solution=2.0, mistakes={"that is the log of the ratio.": 0.6931})
    assert exercise.check(2) is True
    assert exercise.problem(0.6931) == "that is the log of the ratio."
    assert exercise.problem(...).startswith(STUB_MESSAGE)


def test_random_answers_see_the_same_random_state():
    exercise = Exercise("draw", solution=lambda n: torch.rand(n), inputs=lambda: [(3,), (4,)])
    before = torch.random.get_rng_state()
    assert exercise.check(lambda count: torch.rand(count)) is True, "each call must start from the same random state"
    assert torch.equal(before, torch.random.get_rng_state()), "checking must leave the reader's random state alone"


def test_expected_error_must_be_raised():
    def strict(count):
        raise ValueError("count")

    exercise = Exercise("strict", solution=strict, inputs=[(0,)])
    assert exercise.check(strict) is True
    assert "should raise ValueError" in exercise.problem(lambda count: count)


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1, 1.0, True),
        (torch.tensor(1.0), 1.0, True),
        ([1.0, 2.0], torch.tensor([1.0, 2.0]), True),
        (torch.tensor([True]), torch.tensor([1]), True),
        (torch.tensor([1.0], requires_grad=True), torch.tensor([1.0]), True),
        ((1.0, "a"), (1.0, "a"), True),
        ((1.0, "a"), (1.0, "b"), False),
        ({"x": 1.0}, {"x": 1.0}, True),
        ({"x": 1.0}, {"y": 1.0}, False),
        ("a", 1.0, False),
        (torch.zeros(2), torch.zeros(2, 1), False),
        ([1.0], [1.0, 2.0], False),
        (1.001, 1.0, False),
    ],
)
def test_difference(got, expected, same):
    assert (difference(got, expected) is None) is same, difference(got, expected)


def test_show_is_short():
    assert show(torch.zeros(40, 40)) == "tensor of shape [40, 40]"
    assert show([0.123456, "a"]) == "[0.1235, 'a']"


def test_reveal_prints_the_source(capsys):
    EXAMPLE.reveal()
    assert "def mean_of_kept" in capsys.readouterr().out
