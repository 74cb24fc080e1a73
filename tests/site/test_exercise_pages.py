"""Exercises on a page that runs nothing: how hard and how long each is, where to try it, and a solution called so."""

import pytest
from bs4 import BeautifulSoup

import cells
import exercises
import toc
from built import HTML, set_theme

CHAPTERS = [path.stem for path in toc.chapters(toc.read())]
EFFORTS = exercises.efforts()


def built(chapter: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / f"chapters/{chapter}.html").read_text("utf8"), "html.parser")


def words(element) -> str:
    return " ".join(element.get_text().split())


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_exercise_is_a_stub_a_silent_check_and_a_solution(chapter):
    page = built(chapter)
    stubs = page.select("div.cell.tag_exercise")
    assert len(stubs) == len(page.select("div.cell.tag_exercise-check")) == 3, "a check stands outside its solution"
    for stub in stubs:
        check, solution = stub.find_next_siblings("div", class_="cell")[:2]
        assert not stub.select(".cell_output"), "a stub has an output"
        assert not check.select(".cell_output"), "the page says what is wrong with an exercise that nobody tried"
        assert words(solution.find("summary")) == "Solution Hide solution", "a solution is called something else"
        folded = solution.find("details")
        assert ".check(" in folded.select_one(".cell_input").get_text()
        assert "Passed" in folded.select_one(".cell_output").get_text()
        solution.extract()
    assert "Passed" not in page.get_text(), "an exercise that nobody tried has passed in plain sight"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_exercise_says_how_hard_and_how_long_it_is_and_opens_on_colab(chapter):
    page, notebook = built(chapter), cells.read(toc.CHAPTERS / f"{chapter}.ipynb")
    (button,) = page.select("a.dropdown-item[href^='https://colab.']")
    sections = page.select("#exercises > section")
    for number, (section, found) in enumerate(zip(sections, exercises.exercises(notebook), strict=True), 1):
        task, _, check, *_ = found
        heading, effort = section.find("h3"), section.find("h3").find_next_sibling()
        name = exercises.NAME.search(check.source)[1]
        level, minutes = EFFORTS[name]
        said = words(effort)
        assert f"{level} · about {minutes} min" in said, f"{name} says {said!r} below its heading"
        assert said.count("●") == exercises.LEVELS.index(level) + 1 and said.count("●") + said.count("○") == 3
        link = effort.find("a")
        assert words(link) == f"Open on Colab, exercise {number}"
        address, _, opened = link["href"].partition("#scrollTo=")
        assert address == button["href"], "the link leads elsewhere than the chapter's own Colab button"
        (target,) = (cell for cell in notebook.cells if cell.id == opened)
        assert target == task and words(heading).startswith(f"Exercise {number}:"), f"{name} opens at {opened}"
    assert "This page runs nothing" in page.select_one("#exercises").get_text()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_other_hidden_code_says_what_it_is(chapter):
    labels = {words(summary) for summary in built(chapter).select("div.cell details.hide > summary")}
    assert labels <= {"Solution Hide solution", "Show code Hide code"}, labels


def test_a_solution_opens_by_keyboard_and_the_line_fits_a_phone(visit):
    seen = visit("chapters/03_rollouts.html", width=390, theme="dark")
    page = seen.page
    for theme in ("dark", "light"):
        set_theme(page, theme)
        for line in page.locator(".exercise-effort").all():
            box = line.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390, box
            assert box["height"] < 40, f"{line.inner_text()!r} takes more than one line"
    page.locator(".exercise-effort a").first.focus()
    page.keyboard.press("Tab")  # the hint
    page.keyboard.press("Enter")
    assert page.locator("#exercises details").first.get_attribute("open") is not None, "Tab leads past the hint"
    solution = page.locator(".tag_exercise-solution").first
    solution.locator("summary").focus()
    page.keyboard.press("Enter")
    assert solution.get_by_text("Passed").is_visible()
    name = solution.locator("summary").evaluate("summary => summary.ariaLabel ?? summary.innerText")
    assert name.strip() == "Hide solution", f"a screen reader calls an open solution {name!r}"
