"""What a chapter shows is what the module does: each definition in a cell equals ppo_lib's, or its cell says why not.

Tags that excuse a difference: `earlier-stage` (ppo_lib has a later form of it), `toy` (ppo_lib has no such name),
`exercise` and `exercise-solution` (the reader's own).
"""

import ast
from functools import cache

import pytest

import cells
import toc

Definition = ast.FunctionDef | ast.ClassDef
READERS_OWN = {"exercise", "exercise-solution"}


def bare(definition: Definition) -> str:
    """A definition as text, without its docstrings: what it does rather than how it is described."""
    copy = ast.parse(ast.unparse(definition)).body[0]
    for node in ast.walk(copy):
        if isinstance(node, Definition | ast.AsyncFunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(copy)


def definitions(source: str) -> list[Definition]:
    return [node for node in ast.parse(source).body if isinstance(node, Definition)]


@cache
def library() -> dict[str, set[str]]:
    """What ppo_lib defines, its exercises apart: each top-level name, and each method's, with every form it has."""
    found: dict[str, set[str]] = {}
    library = toc.ROOT / "ppo_lib"
    for path in sorted(set(library.rglob("*.py")) - set(library.glob("lab/exercises/*.py"))):  # which hold checks alone
        for node in definitions(path.read_text("utf8")):
            methods = [part for part in ast.walk(node) if isinstance(part, ast.FunctionDef) and part is not node]
            for each in [node, *(methods if isinstance(node, ast.ClassDef) else [])]:
                found.setdefault(each.name, set()).add(bare(each))
    return found


def drift(source: str, tags: set[str]) -> list[str]:
    """What a cell defines otherwise than ppo_lib does, in words."""
    problems = []
    for node in definitions(source):
        forms = library().get(node.name)
        if READERS_OWN & tags:
            continue
        if "toy" in tags:
            if forms:
                problems.append(f"`{node.name}` is tagged `toy`, but ppo_lib has that name")
        elif forms is None:
            problems.append(f"`{node.name}` is not in ppo_lib: tag its cell `toy`, or put it there")
        elif "earlier-stage" not in tags and bare(node) not in forms:
            problems.append(f"`{node.name}` differs from ppo_lib's: make them equal, or tag its cell `earlier-stage`")
    return problems


def test_no_drift(chapter, notebook):
    problems = [problem for cell in cells.code(notebook) for problem in drift(cell.source, cells.tags(cell))]
    assert not problems, f"{chapter.stem}: " + "; ".join(problems)


@pytest.fixture
def one_function_library(monkeypatch):
    forms = {"double": {bare(ast.parse("def double(x):\n    'Twice x.'\n    return 2 * x").body[0])}}
    monkeypatch.setitem(drift.__globals__, "library", lambda: forms)


SAME = "def double(x):\n    # another comment and docstring\n    '''x, twice'''\n    return 2 * x"
OTHER = "def double(x):\n    return x + x"


@pytest.mark.parametrize(
    ("source", "tags", "is_drift"),
    [
        (SAME, set(), False),
        (OTHER, set(), True),
        (OTHER, {"earlier-stage"}, False),
        (OTHER, {"exercise-solution"}, False),
        (SAME, {"toy"}, True),
        ("def triple(x): ...", {"toy"}, False),
        ("def triple(x): ...", set(), True),
        ("def triple(x): ...", {"earlier-stage"}, True),
    ],
)
def test_drift_is_noticed(one_function_library, source, tags, is_drift):
    assert bool(drift(source, tags)) == is_drift
