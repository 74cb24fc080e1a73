"""Each chapter as committed, and as executed by the same cache that `make book` fills."""

import os
from pathlib import Path

import pytest

import cells
import execute
import toc

BUILD = Path(os.environ.get("BOOK_BUILD", toc.ROOT / "_build")).resolve()


def pytest_generate_tests(metafunc):
    if "chapter" in metafunc.fixturenames:
        paths = sorted(toc.CHAPTERS.glob("*.ipynb"))
        metafunc.parametrize("chapter", paths, ids=[path.stem for path in paths], scope="session")


@pytest.fixture(scope="session")
def notebook(chapter):
    """The chapter as committed."""
    return cells.read(chapter)


@pytest.fixture(scope="session")
def executed(chapter):
    """The chapter after it ran; it runs here only when `make book` has not run this very version."""
    return cells.read(execute.execute(chapter, BUILD, os.environ.get("PROFILE", "fast")))
