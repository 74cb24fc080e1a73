"""Exercises on a page that runs nothing: solutions are called so, and what nobody tried says nothing."""

import pytest
from bs4 import BeautifulSoup

import toc
from built import HTML


@pytest.mark.parametrize("chapter", [path.stem for path in toc.chapters(toc.read())])
def test_an_exercise_is_a_stub_a_silent_check_and_a_solution(chapter):
    page = BeautifulSoup((HTML / f"chapters/{chapter}.html").read_text("utf8"), "html.parser")
    stubs = page.select("div.cell.tag_exercise")
    assert len(stubs) == len(page.select("div.cell.tag_exercise-solution")) == 3
    for stub in stubs:
        check, solution, passed = stub.find_next_siblings("div", class_="cell")[:3]
        assert not check.select(".cell_output"), "the page says what is wrong with an exercise that nobody tried"
        assert "Solution" in solution.find("summary").get_text(), "a solution is called something else"
        assert "Passed" in passed.select_one(".cell_output").get_text()
