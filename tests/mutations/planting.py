"""Plant one bug in a live function: its source is edited, compiled again, and put back afterwards."""

import ast
import inspect
import textwrap
from contextlib import contextmanager


@contextmanager
def planted(function, old: str, new: str):
    """Within the block `function`, wherever it was imported, runs with `old` replaced by `new` in its source."""
    function = inspect.unwrap(function)  # beneath decorators such as torch.no_grad
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"the bug does not fit any more: {old!r} stands {source.count(old)} times in it"
    body = ast.parse(source.replace(old, new)).body
    body[0].decorator_list = []
    # What the function closes over, `__class__` of `super()` above all, becomes the parameter of a factory.
    around = function.__code__.co_freevars
    factory = ast.parse(f"def factory({', '.join(around)}):\n    return {function.__name__}")
    factory.body[0].body[:0] = body
    namespace = dict(function.__globals__)
    exec(compile(factory, f"<planted in {function.__name__}>", "exec"), namespace)
    spoiled = namespace["factory"](*[None] * len(around))
    sound, function.__code__ = function.__code__, spoiled.__code__
    try:
        yield
    finally:
        function.__code__ = sound
