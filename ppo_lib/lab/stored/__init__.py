"""Results of the programs in `benchmarks/`, stored with seeds, versions and commit.

They lie in the package, so that a chapter finds them anywhere, in an empty folder on Colab too.
"""

import csv
import json
from importlib.resources import files
from typing import Any

__all__ = ["load"]


def load(name: str) -> Any:
    """A stored result: the content of a `.json` file, or a `.csv` or `.jsonl` file as a list of rows.

    In a table numbers are floats, an empty place is NaN, and other words stay words.

    Raises:
        FileNotFoundError: nothing is stored under that name.
    """
    text = files(__name__).joinpath(name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return [{column: _value(cell) for column, cell in row.items()} for row in csv.DictReader(text.splitlines())]


def _value(cell: str) -> float | str:
    try:
        return float(cell or "nan")
    except ValueError:
        return cell
