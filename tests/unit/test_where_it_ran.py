"""What the page "Where this book was run" says of its stored grid."""

import re

import cells
import make_site
import toc
from ppo_lib.lab import stored
from ppo_lib.running import threads

PAGE = (toc.ROOT / "book/where_it_ran.md").read_text("utf8")
CHAPTERS = {f"ch{path.stem[:2]}" for path in toc.CHAPTERS.glob("*.ipynb")}
WANTED = {"native", "avx2", "sse41", "seed-1", "seed-2", "seed-3", "threads-2", "weights-1", "colab"}


def test_every_chapter_was_run_under_every_variant_and_held():
    summary = stored.load("sturdy/summary.json")
    assert len(summary["variants"]) >= 12 and set(summary["variants"]) >= WANTED
    for name, row in summary["variants"].items():
        assert {mark for chapter, mark in row.items() if chapter in CHAPTERS} == {"✓"}, f"{name}: run `make sturdy`"
        assert set(row) >= CHAPTERS, f"{name} lacks a chapter"
    assert summary["total"]["passed"] == summary["total"]["run"] == len(CHAPTERS) * len(summary["variants"])


def test_the_time_that_a_notebook_promises_is_about_what_was_measured():
    for path in toc.CHAPTERS.glob("*.ipynb"):
        promise = make_site.PROMISED.search(cells.read(path).cells[0].source)[0]
        texts = (promise, make_site.time_to_run(path.stem, promise))
        promised, measured = (int(re.search(r"\d+", text)[0]) for text in texts)
        assert measured / 2 < promised < measured * 2, f"{path.stem} promises {promised} seconds and took {measured}"


def test_a_chapter_without_stored_runs_keeps_its_promise():
    assert make_site.time_to_run("99_not_run", "about 20 seconds") == "about 20 seconds"


def test_the_page_shows_every_chapter():
    for chapter in CHAPTERS:
        assert f"{{{chapter}}}" in PAGE, f"the grid has no column for {chapter}"


def test_what_failed_under_another_kernel_is_named_on_the_page():
    kernels = stored.load("sturdy/tests.json")["kernels"]
    assert "sse41" in kernels
    for name, row in kernels.items():
        assert row["commands_failed"] == 0, f"{name}: a command of the README failed"
        assert row["passed"] > 1500 and row["errors"] == 0 and row["failures"] == len(row["failed"])
        unnamed = [test for test in row["failed"] if test.split("[")[0] not in PAGE]
        assert not unnamed, f"{name}: the page says nothing of {unnamed}"


def test_thresholds_of_learning_have_room():
    """The worst of the kernels is at least a tenth of the threshold away from it."""
    for row in stored.load("sturdy/tests.json")["margins"]:
        room = (row["worst"] - row["threshold"]) * (1 if row["above"] else -1)
        assert room > 0.1 * row["threshold"], f"{row['what']} passes {row['threshold']} with {row['worst']:.2f} only"


def test_one_thread_is_chosen_where_a_second_gains_little():
    sizes = stored.load("threads.json")["sizes"]
    below, above = sizes[0], sizes[1]
    assert below["parameters"] < threads.SMALL < above["parameters"] and f"{threads.SMALL:,}" in (
        toc.ROOT / "book/speed.md"
    ).read_text("utf8")
    assert below["alone"]["gain"] < 1.3 < above["alone"]["gain"], "the threshold is at another size"
    assert all(row["beside"]["gain"] < 0.4 for row in sizes), "beside another run, two threads are no longer far slower"
