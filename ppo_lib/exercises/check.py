"""The `Exercise`: compares a reader's answer with a reference and names the mistake when it knows it."""

import copy
import inspect
import numbers
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

STUB_MESSAGE = "the stub is still there."


@dataclass(frozen=True)
class Outcome:
    """What one call did: it returned `value`, or it raised `error`."""

    value: Any = None
    error: Exception | None = None

    @property
    def is_stub(self) -> bool:
        """True for a call that returned None or `...`, or raised NotImplementedError."""
        return isinstance(self.error, NotImplementedError) or (
            self.error is None and (self.value is None or self.value is Ellipsis)
        )


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise: a reference, the inputs to compare on, and the mistakes worth naming.

    name       the function's name, as the messages call it.
    solution   the reference implementation; for an exercise whose answer is a number, the number.
    inputs     a list of argument tuples, or a function that returns one. Every call gets its own deep copy and
               the same random state. Leave it out when the answer is a value.
    mistakes   message -> wrong implementation (or wrong value). An answer that agrees with a wrong implementation
               on every input gets its message.
    atol       largest difference between numbers that still counts as equal, absolute and relative.
    """

    name: str
    solution: Any
    inputs: Sequence[tuple] | Callable[[], Iterable[tuple]] = ((),)
    mistakes: Mapping[str, Any] = field(default_factory=dict)
    atol: float = 1e-5

    def check(self, answer: Any) -> bool:
        """Print the verdict on `answer` (a function, or a value) and return whether it passed. Never raises."""
        message = self.problem(answer)
        if message is None:
            count = len(self.argument_lists())
            print(f"Passed: {self.name} agrees with the solution on {count} input{'s' if count > 1 else ''}.")
            return True
        print(f"Not yet: {message}")
        return False

    def problem(self, answer: Any) -> str | None:
        """What is wrong with `answer`, or None when nothing is."""
        answers = self.outcomes(answer)
        if any(outcome.is_stub for outcome in answers):
            returned_none = any(outcome.error is None and outcome.value is None for outcome in answers)
            return STUB_MESSAGE + (" (It returned None: is a `return` missing?)" if returned_none else "")
        expected = self.outcomes(self.solution)
        if self.agree(answers, expected):
            return None
        for message, wrong in self.mistakes.items():
            if self.agree(answers, self.outcomes(wrong)):
                return message
        return self.first_difference(answers, expected)

    def reveal(self) -> None:
        """Print the reference implementation."""
        print(textwrap.dedent(inspect.getsource(self.solution)) if callable(self.solution) else self.solution)

    def argument_lists(self) -> list[tuple]:
        """The argument tuples, made anew when `inputs` is a function."""
        return list(self.inputs() if callable(self.inputs) else self.inputs)

    def outcomes(self, answer: Any) -> list[Outcome]:
        """What `answer` does on each input. A value that is not callable is its own outcome."""
        return [self._call(answer, copy.deepcopy(arguments)) for arguments in self.argument_lists()]

    def _call(self, answer: Any, arguments: tuple) -> Outcome:
        if not callable(answer):
            return Outcome(value=answer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                return Outcome(value=answer(*arguments))
            except Exception as error:  # noqa: BLE001 (whatever the reader's code raises is the verdict)
                return Outcome(error=error)

    def agree(self, left: Sequence[Outcome], right: Sequence[Outcome]) -> bool:
        """Whether two lists of outcomes are the same: equal values, or errors of the same type."""
        return all(self._difference(a, b) is None for a, b in zip(left, right, strict=True))

    def _difference(self, got: Outcome, expected: Outcome) -> str | None:
        if got.error is not None or expected.error is not None:
            if type(got.error) is type(expected.error):
                return None
            if got.error is not None:
                return f"it raised {type(got.error).__name__}: {got.error}"
            return f"it should raise {type(expected.error).__name__}, and it returned {show(got.value)}."
        return difference(got.value, expected.value, self.atol)

    def first_difference(self, answers: Sequence[Outcome], expected: Sequence[Outcome]) -> str:
        """One sentence on the first input where the two differ."""
        for arguments, got, wanted in zip(self.argument_lists(), answers, expected, strict=True):
            text = self._difference(got, wanted)
            if text is not None:
                call = f"({', '.join(map(show, arguments))})" if arguments else ""
                return f"for {self.name}{call}, {text}"
        raise ValueError("first_difference was called with outcomes that agree")


def difference(got: Any, expected: Any, atol: float = 1e-5, where: str = "") -> str | None:
    """How `got` differs from `expected` (tensors, numbers, text, and nested lists, tuples, dicts), or None."""
    at = f" at {where}" if where else ""
    if isinstance(expected, (torch.Tensor, numbers.Number)) or hasattr(expected, "__array__"):
        return _numeric_difference(got, expected, atol, at)
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or set(got) != set(expected):
            return f"expected a dict with the keys {sorted(map(str, expected))}{at}, got {show(got)}."
        pairs = [(f"{where}[{key!r}]", got[key], expected[key]) for key in expected]
    elif isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple, torch.Tensor)) or len(got) != len(expected):
            return f"expected {show(expected)}{at}, got {show(got)}."
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(got, expected, strict=True))]
    else:
        try:
            same = bool(got == expected)
        except Exception:  # noqa: BLE001 (a type that refuses to be compared is not equal)
            same = False
        return None if same else f"expected {show(expected)}{at}, got {show(got)}."
    return next((text for place, a, b in pairs if (text := difference(a, b, atol, place))), None)


def _numeric_difference(got: Any, expected: Any, atol: float, at: str) -> str | None:
    wanted = torch.as_tensor(expected).detach().cpu().double()
    try:
        given = torch.as_tensor(got).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):  # text, a ragged list, another type: not numbers
        return f"expected {_kind(wanted)}{at}, got {show(got)}."
    if given.shape != wanted.shape:
        return f"expected shape {list(wanted.shape)}{at}, got shape {list(given.shape)}."
    if torch.allclose(given, wanted, rtol=atol, atol=atol, equal_nan=True):
        return None
    if given.isnan().any() and not wanted.isnan().any():
        return f"expected {show(expected)}{at}, got NaN in {show(got)}."
    return f"expected {show(expected)}{at}, got {show(got)}."


def _kind(wanted: torch.Tensor) -> str:
    return "a number" if wanted.ndim == 0 else f"a tensor of shape {list(wanted.shape)}"


def show(value: Any, limit: int = 24) -> str:
    """A short text for a value: numbers with four significant digits, large tensors by their shape."""
    if hasattr(value, "__array__") and not isinstance(value, torch.Tensor):
        value = torch.as_tensor(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.numel() > limit:
            return f"tensor of shape {list(value.shape)}"
        return show(value.tolist(), limit)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(show(item, limit) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {show(item, limit)}" for key, item in value.items()) + "}"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
