"""A word of the glossary shows its entry, by pointer and by keyboard, and leads to it."""

from urllib.parse import unquote

import pytest

from window import assert_sound

PAGE = "chapters/09_when_to_stop.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_card_shows_and_hides(windows, width):
    seen = windows(f"cards-{width}", width=width).open(PAGE)
    page = seen.page
    terms, card = page.locator("a.term"), page.locator("#term-card")
    assert terms.count() >= 3, "a chapter without words of the glossary"
    assert card.is_hidden()
    for term in terms.all():
        term.scroll_into_view_if_needed()
        term.focus()
        assert card.is_visible() and card.inner_text() == term.get_attribute("data-card")
        assert term.get_attribute("aria-describedby") == "term-card", "a screen reader does not hear the card"
        box = card.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, "the card reaches beyond the page"
        page.keyboard.press("Escape")
        assert card.is_hidden(), "Escape leaves the card"
    terms.first.hover()
    assert card.is_visible()
    page.mouse.move(0, 0)
    page.wait_for_function("() => document.querySelector('#term-card').hidden")
    assert_sound(seen, PAGE)


def test_the_word_leads_to_its_entry(windows):
    seen = windows("cards-1280", width=1280).open(PAGE)
    address = seen.page.locator("a.term").first.evaluate("(term) => term.href")
    seen.page.goto(address)
    anchor = unquote(address.partition("#")[2])
    assert seen.page.locator(f"dt[id='{anchor}']").is_visible(), f"no entry {anchor}"
