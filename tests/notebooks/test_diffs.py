"""The diff in "What changed" is the real one, and short enough to read."""

import cells
import toc

MOST_LINES = 60


def test_diff_is_the_real_one(chapter, notebook):
    paths = sorted(toc.CHAPTERS.glob("*.ipynb"))
    place = paths.index(chapter)
    assert len(cells.tagged(notebook, "loop")) == 1, f"{chapter.stem} has no cell tagged `loop`, or several"
    if place == 0:
        return
    before = paths[place - 1]
    shown = [text for _, text in cells.shown_diffs(notebook)]
    wanted = cells.loop_diff(before, chapter)
    assert shown == [wanted], f"{chapter.stem} does not show what changed since {before.stem}: run `make diffs`"
    assert 0 < len(wanted.splitlines()) <= MOST_LINES, f"{chapter.stem}: a diff of {len(wanted.splitlines())} lines"
