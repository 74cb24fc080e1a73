"""Shared by the tests of the programs in `benchmarks/`."""

import importlib

import pytest

import toc


@pytest.fixture
def program_of(monkeypatch):
    """Imports a program by its name; what it writes has no provenance of this machine."""
    monkeypatch.syspath_prepend(str(toc.ROOT / "benchmarks"))

    def load(name):
        module = importlib.import_module(name)
        if hasattr(module, "provenance"):
            monkeypatch.setattr(module, "provenance", lambda *packages: {"commit": "abc"})
        return module

    return load
