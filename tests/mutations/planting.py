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
    tree = ast.parse(source.replace(old, new))
    tree.body[0].decorator_list = []
    namespace = dict(function.__globals__)
    exec(compile(tree, f"<planted in {function.__name__}>", "exec"), namespace)
    sound, function.__code__ = function.__code__, namespace[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = sound
