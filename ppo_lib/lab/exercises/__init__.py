"""Self-checking exercises. Each chapter has a module here: `ch01.py` holds the exercises of chapter 1."""

import importlib
import pkgutil

from ppo_lib.lab.exercises.check import Exercise

__all__ = ["Exercise", "find_exercises"]


def find_exercises() -> dict[str, Exercise]:
    """Every `Exercise` of every module in this package, keyed `module.variable`, for example `ch03.masked_mean`."""
    found = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for name, value in vars(module).items():
            if isinstance(value, Exercise):
                found[f"{module_info.name}.{name}"] = value
    return found
