"""On a laptop nothing of code or output is cut, and the contents of the page are a button away."""

import pytest

from window import assert_sound

CUT = """() => {
  document.querySelectorAll('article details').forEach((each) => { each.open = true; });
  return [...document.querySelectorAll('article pre')]
    .filter((box) => box.scrollWidth > box.clientWidth + 1)
    .map((box) => box.textContent.split('\\n').reduce((one, other) => (other.length > one.length ? other : one)));
}"""


@pytest.fixture(scope="module")
def laptop(windows):
    return windows("laptop", width=1300)


def test_no_code_is_cut_on_a_laptop(laptop, chapter_page):
    seen = laptop.open(chapter_page)
    cut = seen.page.evaluate(CUT)
    assert not cut, f"{chapter_page}: {len(cut)} blocks are wider than the page, the longest lines: {cut[:3]}"
    assert seen.page.evaluate("() => document.documentElement.scrollWidth") <= 1300
    assert_sound(seen, chapter_page)


def test_the_contents_are_behind_a_button(laptop):
    page = laptop.open("chapters/05_clipped_objective.html").page
    entry = page.get_by_role("link", name="The loss of the critic", exact=True)
    assert not entry.is_visible()
    page.locator("button.secondary-toggle").click()
    entry.click()
    assert page.url.endswith("#the-loss-of-the-critic")


def test_on_a_wide_screen_they_stand_beside_the_page(windows):
    page = windows("wide", width=1600).open("chapters/05_clipped_objective.html").page
    assert page.get_by_role("link", name="The loss of the critic", exact=True).is_visible()
    assert not page.locator("button.secondary-toggle").is_visible()
