"""Keeps the chapters in order: `strip` removes outputs, `setup` rewrites the setup cell, `diffs` the loop's diffs."""

import argparse

import cells
import toc


def rewrite(path, change) -> None:
    notebook = cells.read(path)
    before = cells.nbformat.writes(notebook)
    change(notebook)
    if cells.nbformat.writes(notebook) != before:
        cells.write(notebook, path)
        print(f"rewrote {path.relative_to(toc.ROOT)}")


def setup(notebook) -> None:
    for cell in cells.tagged(notebook, "setup"):
        cell.source = cells.setup_source()


def show_diff(notebook, diff: str) -> None:
    for cell, old in cells.shown_diffs(notebook):
        cell.source = cell.source.replace(f"```diff\n{old}\n```", f"```diff\n{diff}\n```")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["strip", "setup", "diffs"])
    what = parser.parse_args().what
    paths = sorted(toc.CHAPTERS.glob("*.ipynb"))
    if what == "diffs":
        for before, after in zip(paths, paths[1:], strict=False):
            diff = cells.loop_diff(before, after)
            if diff is not None:
                rewrite(after, lambda notebook, diff=diff: show_diff(notebook, diff))
        return
    for path in paths:
        if what == "setup":
            rewrite(path, setup)
        else:
            cells.write(cells.stripped(cells.read(path)), path)


if __name__ == "__main__":
    main()
