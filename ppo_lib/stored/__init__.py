"""Results of the programs in `benchmarks/`, stored with seeds, versions and commit.

They lie in the package, so that a chapter finds them anywhere, in an empty folder on Colab too.
"""

import csv
import json
from importlib.resources import files

__all__ = ["load"]


def load(name: str):
    """A stored result: the content of a `.json` file, or a `.csv` file as a list of rows with numbers for values.

    A place that is empty in a table is NaN.

    Raises:
        FileNotFoundError: nothing is stored under that name.
    """
    text = files(__name__).joinpath(name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    rows = csv.DictReader(text.splitlines())
    return [{column: float(value or "nan") for column, value in row.items()} for row in rows]
