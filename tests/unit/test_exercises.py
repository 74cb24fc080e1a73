"""Every exercise of the book: right answers pass, wrong ones fail, each of its mistakes is named, its stub fails."""

import importlib
import warnings
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

import exercises
from ppo_lib.lab.exercises import Exercise, find_exercises
from ppo_lib.lab.exercises.check import STUB_MESSAGE, difference, show

EXERCISES = find_exercises()
FUNCTIONS = {name: exercise for name, exercise in EXERCISES.items() if callable(exercise.solution)}


def answers(kind):
    """(exercise, what is particular about the answer, the answer) of every chapter, as parameters of a test."""
    for chapter in sorted({name.partition(".")[0] for name in EXERCISES}):
        module = importlib.import_module(f"exercise_answers.{chapter}")
        for exercise, given in getattr(module, kind).items():
            for what, answer in given.items():
                yield pytest.param(f"{chapter}.{exercise}", answer, id=f"{chapter}.{exercise}: {what}")


RIGHT, WRONG = list(answers("RIGHT")), list(answers("WRONG"))


@pytest.fixture(params=EXERCISES)
def exercise(request):
    return EXERCISES[request.param]


def test_the_exercises_are_found():
    assert EXERCISES, "no exercise is found, so the tests below check nothing"


def test_every_exercise_says_how_hard_and_how_long_it_is():
    efforts = exercises.efforts()
    assert set(efforts) == set(EXERCISES), "book/exercises.yml and ppo_lib.lab.exercises name different exercises"
    minutes = {level: [m for found, m in efforts.values() if found == level] for level in exercises.LEVELS}
    assert sum(map(len, minutes.values())) == len(efforts), f"a level is none of {exercises.LEVELS}"
    for easier, harder in pairwise(exercises.LEVELS):
        assert max(minutes[easier]) <= min(minutes[harder]), f"an exercise that is {harder} takes less than an easy one"


def test_solution_passes(exercise, capsys):
    assert exercise.check(exercise.solution) is True, f"{exercise.name}: the solution fails: {capsys.readouterr().out}"
    assert capsys.readouterr().out.startswith("Passed"), (
        f"{exercise.name}: a reader whose answer is right is not told so"
    )


def test_each_mistake_gets_its_own_message(exercise):
    for message, wrong in exercise.mistakes.items():
        found = exercise.problem(wrong)
        assert found == message, f"{exercise.name}: the mistake {message!r} is reported as {found!r}"


def test_a_mistake_is_worth_naming(exercise):
    assert exercise.mistakes, f"{exercise.name} names no mistake: its check could only say 'different'"


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answer_passes(name, answer):
    found = EXERCISES[name].problem(answer)
    assert found is None, f"a right answer is refused: {found}"


@pytest.mark.filterwarnings("ignore:std\\(\\)")  # a wrong answer whitens a row of one token by itself
@pytest.mark.parametrize(("name", "answer"), WRONG)
def test_wrong_answer_fails(name, answer):
    found = EXERCISES[name].problem(answer)
    assert found is not None, "a wrong answer passes: an input is missing that shows the difference"
    assert not found.startswith(STUB_MESSAGE), "a wrong answer is taken for a stub"


@pytest.mark.parametrize(("kind", "at_least"), [(RIGHT, 2), (WRONG, 5)], ids=["right", "wrong"])
def test_every_exercise_has_answers_of_both_kinds(kind, at_least):
    counts = {name: sum(name == answer.values[0] for answer in kind) for name in EXERCISES}
    assert sum(counts.values()) == len(kind), "there are answers to an exercise that does not exist"
    few = {name: count for name, count in counts.items() if count < at_least}
    assert not few, f"fewer than {at_least} answers: {few}"


def mapped(value, change):
    """`value` with `change` applied to each tensor in it."""
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, change) for item in value)
    return change(value) if isinstance(value, torch.Tensor) else value


FORMS = {
    "numpy": lambda tensor: tensor.numpy(),
    "lists": lambda tensor: tensor.tolist(),
    "64 bits": lambda tensor: tensor.double(),
    "with a gradient": lambda tensor: tensor.double().requires_grad_(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", [*FORMS.values()], ids=FORMS)
def test_the_form_of_the_numbers_does_not_matter(name, form):
    found = FUNCTIONS[name].problem(lambda *arguments: mapped(FUNCTIONS[name].solution(*arguments), form))
    assert found is None, f"{name}: the solution's numbers are refused in another form: {found}"


# `save` returns nothing; what it does to a disk is compared, and it has wrong answers of its own for this.
@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"ch08.save"}))
def test_an_answer_that_ignores_its_arguments_fails(name):
    exercise = FUNCTIONS[name]
    for number, outcome in enumerate(exercise.outcomes(exercise.solution)):
        found = exercise.problem(lambda *arguments, value=outcome.value: value)
        assert found is not None, f"{name}: the result of input {number} passes for all inputs"
    for place in range(max(map(len, exercise.argument_lists()))):
        given = next(arguments[place] for arguments in exercise.argument_lists() if len(arguments) > place)
        found = exercise.problem(lambda *a, at=place, given=given: exercise.solution(*a[:at], given, *a[at + 1 :]))
        assert found is not None, f"{name}: argument {place} is the same in all inputs, so it can be ignored"


STUBS = {"of dots": lambda *arguments: ..., "of None": lambda *arguments: None, "dots": ..., "nothing": None}


@pytest.mark.parametrize("stub", [*STUBS.values()], ids=STUBS)
def test_stub_fails(exercise, stub):
    assert exercise.check(stub) is False, f"{exercise.name}: a stub passes"
    assert exercise.problem(stub).startswith(STUB_MESSAGE), f"{exercise.name}: a stub is judged as an answer"


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
    assert EXAMPLE.check(mean_of_kept) is True, "the solution itself does not pass"
    assert capsys.readouterr().out == "Passed: mean_of_kept agrees with the solution on 1 input.\n", (
        "a right answer is not told, or with another count of inputs"
    )
    assert EXAMPLE.check(mean_of_all) is False, "a known mistake passes"
    assert capsys.readouterr().out == "Not yet: padding counts in your mean: divide by mask.sum().\n", (
        "a known mistake is not called by its name"
    )


def test_none_on_some_inputs_is_a_difference_and_no_stub():
    exercise = Exercise("first", solution=lambda items: items[0] if items else None, inputs=[([],), ([3, 4],), ([5],)])
    assert exercise.problem(lambda items: next(iter(items), None)) is None, "None is right where the solution gives it"
    for half in (lambda items: items[0] if len(items) > 1 else None, lambda items: items[1] if items[1:] else None):
        message = exercise.problem(half)
        assert not message.startswith(STUB_MESSAGE), (
            f"an answer that gives None on some inputs is taken for a stub: {message}"
        )
        assert "got None" in message or "got 4" in message, f"the message does not show what the answer gave: {message}"
    assert exercise.problem(lambda items: items[0] if items[1:] else None) == (
        "for first([5]), expected 5, got None. (Is a `return` missing in one branch?)"
    ), "None on one input is told for another input, or without the hint at a missing `return`"
    assert exercise.problem(lambda items: None).startswith(STUB_MESSAGE), (
        "None on all inputs is no stub where the solution gives None on one of them"
    )


def test_an_error_on_some_inputs_is_no_stub():
    def half_done(values, mask):
        if len(values) > 3:
            raise NotImplementedError
        return mean_of_kept(values, mask)

    inputs = [*EXAMPLE.inputs, (torch.ones(4), torch.ones(4).bool())]
    exercise = Exercise("mean_of_kept", mean_of_kept, inputs)
    assert "it raised NotImplementedError" in exercise.problem(half_done), (
        "an answer that raises NotImplementedError on one input only is taken for a stub"
    )


def test_a_value_for_a_function_is_said():
    assert EXAMPLE.problem(1.5) == "mean_of_kept should be a function, and it is 1.5.", (
        "who gives a number in place of a function is not told that a function is needed"
    )


def endless(*arguments):
    return endless(*arguments)


class Unshowable:
    def __repr__(self):
        raise RuntimeError

    __eq__ = __len__ = __repr__
    __hash__ = None


ODD_ANSWERS = {
    "text": lambda *arguments: "0.5",
    "array of text": lambda *arguments: np.array(["0.5"]),
    "ragged": lambda *arguments: [[1.0], [1.0, 2.0]],
    "complex": lambda *arguments: 1.5 + 1j,
    "huge": lambda *arguments: 10**400,
    "generator": lambda *arguments: (number for number in range(3)),
    "set": lambda *arguments: {1.5},
    "scalar tensor": lambda *arguments: torch.tensor(0.25),
    "tensor without data": lambda *arguments: torch.empty(3, device="meta"),
    "not shown": lambda *arguments: Unshowable(),
    "class": Unshowable,
    "module": torch,
    "exit": lambda *arguments: exit(),
    "endless": endless,
    "changes its input": lambda *arguments: [argument.zero_() for argument in arguments if hasattr(argument, "zero_")],
    "no arguments": lambda: 1.5,
}


@pytest.mark.parametrize("answer", [*ODD_ANSWERS.values()], ids=ODD_ANSWERS)
def test_odd_answers_fail_with_a_message(answer):
    for name, exercise in EXERCISES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            message = exercise.problem(answer)
        assert message, f"{name}: it passes"
        assert len(message) < 900, f"{name}: too long to read: {message}"


def test_unknown_mistake_shows_the_input_and_both_values():
    message = EXAMPLE.problem(lambda values, mask: values.max())
    assert message == "for mean_of_kept([1, 2, 9], [True, True, False]), expected 1.5, got 9.", (
        "an unknown mistake is told without its input, or with expected and got the other way round"
    )


def test_unknown_mistake_shows_the_first_entry_that_differs():
    table = torch.arange(200.0).reshape(10, 20)
    exercise = Exercise("double", solution=lambda x: 2 * x, inputs=[(table,)])
    message = exercise.problem(lambda x: torch.where(x > 46, 0, 2 * x))
    assert message == "for double(tensor of shape [10, 20]), expected 94 at [2, 7], got 0.", (
        "of a large tensor the place or the values of the first difference are wrong, or all of its numbers are shown"
    )
    exercise = Exercise("rows", solution=lambda: [{"update": 0, "mean": table}, {"update": 1, "mean": table}])
    message = exercise.problem(lambda: [{"update": 0, "mean": table}, {"update": 1, "mean": table.clamp(max=30)}])
    assert message == "for rows, expected 31 at [1]['mean'][1, 11], got 30.", (
        "the place of a difference within lists, dicts and tensors is told wrongly"
    )


def test_numbers_are_shown_with_the_digits_that_tell_them_apart():
    assert difference(1206.04, 1206.0) == "expected 1206, got 1206.04.", (
        "two numbers that differ are shown with the same digits, or as equal"
    )


def test_what_is_missing_or_too_much_is_shown():
    assert difference([1, 2], [1, 2, 3]) == (
        "expected 3 entries, got 2 entries. The first difference: expected 3 at [2], got nothing."
    ), "entries that are missing are counted wrongly, or the first of them is not shown"
    assert difference([1, 2, 3], [1]) == (
        "expected 1 entry, got 3 entries. The first difference: nothing expected at [1], got 2."
    ), "entries that are too many are counted wrongly, or the first of them is not shown"


def test_wrong_shape_is_said():
    message = EXAMPLE.problem(lambda values, mask: values * mask)
    assert "expected shape [], got shape [3]" in message, "a wrong shape is told as a wrong number"


def test_an_exception_is_reported_not_raised():
    message = EXAMPLE.problem(lambda values: values)
    assert "it raised TypeError" in message, "the message does not name the error that the answer raised"


def test_stub_that_raises_not_implemented():
    def stub(values, mask):
        raise NotImplementedError

    assert EXAMPLE.problem(stub) == STUB_MESSAGE, (
        "a stub that raises NotImplementedError is judged as an answer, or hinted at a missing `return`"
    )


def test_forgotten_return_is_hinted_at():
    assert "`return`" in EXAMPLE.problem(lambda values, mask: None), "who forgot `return` gets no hint at it"


def test_answer_that_changes_its_input_does_not_spoil_the_reference():
    def in_place(values, mask):
        values.mul_(mask)
        return values.sum() / mask.sum()

    assert EXAMPLE.check(in_place) is True, "inputs must be copied for each call"
    assert EXAMPLE.check(mean_of_kept) is True, "an earlier answer changed the stored inputs"


def test_nan_is_named():
    assert "NaN" in EXAMPLE.problem(lambda values, mask: values.sum() * float("nan")), "a NaN is not called by its name"


def test_exercise_about_a_number():
    exercise = Exercise("ratio", solution=2.0, mistakes={"that is the log of the ratio.": 0.6931})
    assert exercise.check(2) is True, "the right number is refused as an integer"
    assert exercise.problem(0.6931) == "that is the log of the ratio.", "a wrong number that is known is not named"
    assert exercise.problem(...).startswith(STUB_MESSAGE), "dots in place of a number are judged as an answer"


def test_random_answers_see_the_same_random_state():
    exercise = Exercise("draw", solution=lambda n: torch.rand(n), inputs=lambda: [(3,), (4,)])
    before = torch.random.get_rng_state()
    assert exercise.check(lambda count: torch.rand(count)) is True, "each call must start from the same random state"
    assert torch.equal(before, torch.random.get_rng_state()), "checking must leave the reader's random state alone"


def test_expected_error_must_be_raised():
    def strict(count):
        raise ValueError("count")

    exercise = Exercise("strict", solution=strict, inputs=[(0,)])
    assert exercise.check(strict) is True, "an answer that raises the expected error is refused"
    assert "should raise ValueError" in exercise.problem(lambda count: count), (
        "an answer that does not raise the expected error is not told so"
    )


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1, 1.0, True),
        (torch.tensor(1.0), 1.0, True),
        ([1.0, 2.0], torch.tensor([1.0, 2.0]), True),
        (torch.tensor([True]), torch.tensor([1]), True),
        (torch.tensor([1.0], requires_grad=True), torch.tensor([1.0]), True),
        (np.array([1.0, 2.0])[::-1], torch.tensor([2.0, 1.0]), True),
        ([np.float64(1), torch.tensor(2)], torch.tensor([1.0, 2.0]), True),
        ([[True, 1.5], [2, 3]], torch.tensor([[1, 1.5], [2.0, 3.0]]), True),
        (np.array([1.0, 2.0]), (1, 2), True),
        (torch.tensor(1.0), (1.0, 2.0), False),
        (1, True, True),
        (Decimal("1.5"), 1.5, True),
        (Fraction(1, 3), 1.5, False),
        (1 + 1e-5j, 1.0, False),
        ("1.5", 1.5, False),
        (0, None, False),
        (None, 0, False),
        (True, 2, False),
        (1 + 1j, 1.0, False),
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
    assert (difference(got, expected) is None) is same, (
        f"values that are equal are told apart, or different ones are not: {difference(got, expected)}"
    )


def test_show_is_short():
    assert show(torch.zeros(40, 40)) == "tensor of shape [40, 40]", "a large tensor is shown number by number"
    assert show([0.123456, "a"]) == "[0.1235, 'a']", "a number is shown with all digits, or a text without its quotes"
    assert show(list(range(40))).endswith("23, ... (40 entries)]"), "a long list is shown whole, or without its length"
    assert len(show("word " * 1000)) <= 200, "a long text is shown whole"


def test_reveal_prints_the_source(capsys):
    EXAMPLE.reveal()
    assert "def mean_of_kept" in capsys.readouterr().out, "a reader who gives up is not shown the solution's source"
