"""What the book asks of a chapter's cells: tags, the setup cell, and the diff against the chapter before."""

import difflib
import json
from pathlib import Path

import nbformat
import yaml

import toc

UNPUBLISHED = "YOUR_NAME"  # stands in the repository's address until `make publish`; no account can have this name
SETUP = """\
# Does nothing where ppo_lib is installed. On Colab it adds ppo_lib and VADER (a word list), and changes no package.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("ppo_lib") is None:
    source = os.environ.get("PPO_BOOK_SOURCE", "git+{url}")
    if "/{unpublished}/" in source:
        raise RuntimeError(
            "This copy of the book is not published yet, so ppo_lib has no address to come from. In a clone, "
            "`pip install .` installs it; the README says how to publish your own."
        )
    packages = [source, "vaderSentiment"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)"""


def repository() -> str:
    """The repository's address, from the one place that states it."""
    return yaml.safe_load((toc.ROOT / "_config.yml").read_text("utf8"))["repository"]["url"]


def setup_source() -> str:
    """The source of the first code cell of every chapter."""
    return SETUP.format(url=repository(), unpublished=UNPUBLISHED)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in tags(cell)]


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without anything that running it leaves behind."""
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    path.write_text(nbformat.writes(notebook) + "\n", "utf8")


def loop_of(notebook: nbformat.NotebookNode) -> str | None:
    """What the chapter has built so far: the cell tagged `loop`; None when a chapter has none."""
    cells = tagged(notebook, "loop")
    return cells[0].source if cells else None


def loop_diff(before: Path, after: Path) -> str | None:
    """The unified diff between two chapters' `loop` cells, or None when either has none."""
    old, new = loop_of(read(before)), loop_of(read(after))
    if old is None or new is None:
        return None
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), before.stem, after.stem, lineterm="")
    return "\n".join(lines)


def shown_diffs(notebook: nbformat.NotebookNode) -> list[tuple[nbformat.NotebookNode, str]]:
    """Each Markdown cell with a ```diff block, and the block's text."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and "```diff\n" in cell.source:
            found.append((cell, cell.source.split("```diff\n", 1)[1].split("\n```", 1)[0]))
    return found
