"""The `Exercise`: compares a reader's answer with a reference and names the mistake when it knows it."""

import copy
import inspect
import math
import numbers
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

STUB_MESSAGE = "the stub is still there."


@dataclass(frozen=True)
class Outcome:
    """What one call did: it returned `value`, or it raised `error`."""

    value: Any = None
    error: Exception | SystemExit | None = None

    @property
    def is_empty(self) -> bool:
        """True for a call that returned None or `...`, or raised NotImplementedError."""
        return isinstance(self.error, NotImplementedError) or (
            self.error is None and (self.value is None or self.value is Ellipsis)
        )


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise: a reference, the inputs to compare on, and the mistakes worth naming.

    Values count, not their form: an array, a list or a tensor of another type with the same numbers is as good. An
    answer that gives nothing on any input is a stub; one that gives None on some inputs only is compared.

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
        answers, expected = self.outcomes(answer), self.outcomes(self.solution)
        if all(outcome.is_empty for outcome in answers) and not all(outcome.is_empty for outcome in expected):
            returned_none = any(outcome.error is None and outcome.value is None for outcome in answers)
            return STUB_MESSAGE + (" (It returned None: is a `return` missing?)" if returned_none else "")
        if callable(self.solution) and not callable(answer):
            return f"{self.name} should be a function, and it is {show(answer)}."
        if self.agree(answers, expected):
            return None
        for message, wrong in self.mistakes.items():
            if self.agree(answers, self.each_outcome(wrong)):
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
        return list(self.each_outcome(answer))

    def each_outcome(self, answer: Any) -> Iterator[Outcome]:
        """The outcomes one by one, so that whoever has seen enough calls `answer` no more."""
        for arguments in self.argument_lists():
            yield self._call(answer, copy.deepcopy(arguments))

    def _call(self, answer: Any, arguments: tuple) -> Outcome:
        if not callable(answer):
            return Outcome(value=answer)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # of the CPU alone: `torch.manual_seed` would touch a GPU too
            try:
                return Outcome(value=answer(*arguments))
            except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever the reader's code raises is the verdict)
                return Outcome(error=error)

    def agree(self, left: Iterable[Outcome], right: Iterable[Outcome]) -> bool:
        """Whether two rows of outcomes are the same: equal values, or errors of the same type."""
        return all(self._difference(a, b) is None for a, b in zip(left, right, strict=True))

    def _difference(self, got: Outcome, expected: Outcome) -> str | None:
        if got.error is not None or expected.error is not None:
            if type(got.error) is type(expected.error):
                return None
            if got.error is not None:
                return f"it raised {type(got.error).__name__}: {shorten(str(got.error))}"
            return f"it should raise {type(expected.error).__name__}, and it returned {show(got.value)}."
        if got.value is None and expected.value is not None:
            return f"expected {_brief(expected.value)}, got None. (Is a `return` missing in one branch?)"
        return difference(got.value, expected.value, self.atol)

    def first_difference(self, answers: Sequence[Outcome], expected: Sequence[Outcome]) -> str:
        """One sentence on the first input where the two differ, and on the first entry that does."""
        for arguments, got, wanted in zip(self.argument_lists(), answers, expected, strict=True):
            text = self._difference(got, wanted)
            if text is not None:
                return f"for {self.name}{show_arguments(arguments)}, {text}"
        raise ValueError("first_difference was called with outcomes that agree")


def difference(got: Any, expected: Any, atol: float = 1e-5, where: str = "") -> str | None:
    """How `got` differs from `expected` (numbers, tensors, text, and nested lists, tuples, dicts), or None.

    Of two collections, the first entry that differs is shown.
    """
    at = f" at {where}" if where else ""
    if got is None and expected is not None:
        return f"expected {_brief(expected)}{at}, got None."
    wanted = as_numbers(expected)
    if wanted is not None and not isinstance(expected, (list, tuple)):
        return _numeric_difference(got, wanted, atol, where)
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or set(got) != set(expected):
            return f"expected a dict with the keys {sorted(map(str, expected))}{at}, got {show(got)}."
        pairs = [(f"{where}[{key!r}]", got[key], expected[key]) for key in expected]
    elif isinstance(expected, (list, tuple)):
        got = list(got) if getattr(got, "ndim", 0) else got
        if not isinstance(got, (list, tuple)):
            return f"expected {_brief(expected)}{at}, got {show(got)}."
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(got, expected, strict=False))]
        if len(got) != len(expected):
            text = _first(pairs, atol) or _leftover(got, expected, where)
            return f"expected {_count(expected)}{at}, got {_count(got)}. The first difference: {text}"
    else:
        try:
            same = bool(got == expected)
        except Exception:  # noqa: BLE001 (a type that refuses to be compared is not equal)
            same = False
        return None if same else f"expected {show(expected)}{at}, got {show(got)}."
    return _first(pairs, atol)


def _first(pairs: Iterable[tuple[str, Any, Any]], atol: float) -> str | None:
    return next((text for place, got, expected in pairs if (text := difference(got, expected, atol, place))), None)


def _leftover(got: Sequence, expected: Sequence, where: str) -> str:
    index = min(len(got), len(expected))
    if len(got) > index:
        return f"nothing expected at {where}[{index}], got {show(got[index])}."
    return f"expected {show(expected[index])} at {where}[{index}], got nothing."


def _numeric_difference(got: Any, wanted: torch.Tensor, atol: float, where: str) -> str | None:
    given = as_numbers(got)
    at = f" at {where}" if where else ""
    if given is None:
        return f"expected {_kind(wanted)}{at}, got {show(got)}."
    if given.shape != wanted.shape:
        return f"expected shape {list(wanted.shape)}{at}, got shape {list(given.shape)}."
    wrong = ~torch.isclose(given.double(), wanted.double(), rtol=atol, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    first = wrong.nonzero()[0].tolist()
    at = f" at {where}{first}" if first else at
    return f"expected {_apart(wanted[tuple(first)].item(), given[tuple(first)].item(), at)}."


def as_numbers(value: Any) -> torch.Tensor | None:
    """The tensor of a number, an array, a tensor or nested lists of them; None for anything else, such as text."""
    found: torch.Tensor | None = None
    try:
        if isinstance(value, (list, tuple)):
            parts = [part for part in map(as_numbers, value) if part is not None]
            return None if len(parts) < len(value) else torch.stack(parts) if parts else torch.empty(0)
        if isinstance(value, torch.Tensor):
            found = value.detach().cpu().to_dense()
        elif hasattr(value, "__array__"):
            array = np.asarray(value)
            found = torch.as_tensor(array.copy()) if array.dtype.kind in "biuf" else None
        elif isinstance(value, int):
            found = torch.tensor(value)
        elif isinstance(value, numbers.Number):
            number = float(value)  # type: ignore[arg-type]  # of a complex one there is none, which is caught below
            found = torch.tensor(number, dtype=torch.float64)
    except Exception:  # noqa: BLE001 (a ragged list, an integer too large, a complex number: not numbers we compare)
        return None
    return None if found is None or found.is_complex() else found


def _kind(wanted: torch.Tensor) -> str:
    return "a number" if wanted.ndim == 0 else f"a tensor of shape {list(wanted.shape)}"


def _brief(value: Any) -> str:
    text = show(value)
    return text if len(text) <= 60 or not isinstance(value, (list, tuple)) else f"a list of {_count(value)}"


def _count(items: Sequence) -> str:
    return f"{len(items)} entr{'y' if len(items) == 1 else 'ies'}"


def _apart(wanted: float, given: float, at: str) -> str:
    """Both numbers, with as many digits as it takes to tell them apart."""
    for digits in (4, 8, 17):
        texts = [show(number, digits=digits) for number in (wanted, given)]
        if texts[0] != texts[1]:
            break
    return f"{texts[0]}{at}, got {texts[1]}"


def show_arguments(arguments: tuple) -> str:
    """The arguments of a call in parentheses; where that is long, only shapes of tensors and starts of lists."""
    if not arguments:
        return ""
    long = ", ".join(show(item) for item in arguments)
    return f"({long})" if len(long) <= 120 else f"({', '.join(shorten(show(item, 4), 80) for item in arguments)})"


def show(value: Any, limit: int = 24, digits: int = 4) -> str:
    """A short text for a value: numbers with four significant digits, large tensors by their shape."""
    try:
        return shorten(_show(value, limit, digits))
    except Exception:  # noqa: BLE001 (a value that cannot even be shown)
        return f"a value of type {type(value).__name__}"


def shorten(text: str, length: int = 200) -> str:
    """The text, its end left out where it is longer than `length`."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _show(value: Any, limit: int, digits: int) -> str:
    if isinstance(value, torch.Tensor) or hasattr(value, "__array__"):
        value = np.asarray(value) if not isinstance(value, torch.Tensor) else value.detach().cpu()
        if math.prod(value.shape) > limit:
            return f"tensor of shape {list(value.shape)}"
        return _show(value.tolist(), limit, digits)
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value + 0.0:.{digits}g}"
    if isinstance(value, (list, tuple)):
        texts = [show(item, limit, digits) for item in value[:limit]]
        inside = ", ".join(texts) + (f", ... ({len(value)} entries)" if len(value) > limit else "")
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {show(item, limit, digits)}" for key, item in value.items()) + "}"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value)
