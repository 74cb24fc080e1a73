"""What a page shows of a chapter's exercises. It runs nothing, so it leads to a notebook that does.

How hard each exercise is, and the minutes it takes, stand in `book/exercises.yml`: the build adds them to the page, so
that changing a guess executes no chapter again.
"""

import re
from collections.abc import Iterator

import nbformat
import yaml

import cells
import toc

LEVELS = ("easy", "medium", "hard")
STEPS = {"exercise", "exercise-check", "exercise-solution"}
HEADING = re.compile(r"^### Exercise \d+: .*$", re.MULTILINE)
NAME = re.compile(r"^(ch\d+\.\w+)\.check\(", re.MULTILINE)
BEFORE = """\
This page runs nothing: to fill in a stub and have it checked, open the chapter's notebook. *Open on Colab* leads to the
exercise in it; choose *Runtime → Run before* there first, because the exercise uses what the cells above it define.
"""


def efforts() -> dict[str, tuple[str, int]]:
    """How hard each exercise is, and its minutes, by its name in `ppo_lib.lab.exercises` (`ch01.entropy_of`)."""
    chapters = yaml.safe_load((toc.ROOT / "book/exercises.yml").read_text("utf8"))
    return {f"{chapter}.{name}": tuple(effort) for chapter, row in chapters.items() for name, effort in row.items()}


def on_colab(chapter: str) -> str:
    """Where Colab opens a chapter: the address of the theme's Colab button."""
    config = yaml.safe_load((toc.ROOT / "_config.yml").read_text("utf8"))
    repository, colab = config["repository"], config["launch_buttons"]["colab_url"]
    path = repository["url"].removeprefix("https://github.com/")
    return f"{colab}/github/{path}/blob/{repository['branch']}/chapters/{chapter}.ipynb"


def line(level: str, minutes: int, address: str, number: int) -> str:
    """What stands below an exercise's heading; each link is told from the others by a screen reader too."""
    marks = "●" * (LEVELS.index(level) + 1)
    words = f'Open on Colab<span class="visually-hidden">, exercise {number}</span>'
    link = f'<a href="{address}" target="_blank" rel="noopener">{words}</a>'  # in a new tab, as the theme's button
    effort = f'<span aria-hidden="true">{marks:○<{len(LEVELS)}}</span> {level} · about {minutes} min'
    return f'<p class="exercise-effort">{effort} · {link}</p>'


def exercises(notebook: nbformat.NotebookNode) -> Iterator[list[nbformat.NotebookNode]]:
    """The cells of each exercise: heading, stub, check, solution, check."""
    found: list[nbformat.NotebookNode] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and HEADING.search(cell.source):
            found = [cell]
        elif STEPS & cells.tags(cell):
            found.append(cell)
            if len(found) == 5:
                yield found


def dress(notebook: nbformat.NotebookNode, chapter: str) -> None:
    """Make of an executed chapter what its page shows.

    An exercise that nobody tried says nothing, and the check that its solution passes is folded away with it: in plain
    sight it would read as if the stub had passed.
    """
    known, colab = efforts(), on_colab(chapter)
    for number, (heading, _, check, solution, again) in enumerate(list(exercises(notebook)), 1):
        below = line(*known[NAME.search(check.source)[1]], f"{colab}#scrollTo={heading.id}", number)
        title = HEADING.search(heading.source)[0]
        before = BEFORE + "\n" if number == 1 else ""
        heading.source = heading.source.replace(title, f"{before}{title}\n\n{below}", 1)
        check.outputs = []
        solution.source += f"\n\n{again.source}"
        solution.outputs += again.outputs
        solution.metadata["mystnb"] = {"code_prompt_show": "Solution", "code_prompt_hide": "Hide solution"}
        notebook.cells.remove(again)
