"""You are here: each chapter shows the loop with its own box lit, readable on a phone and in the dark."""

import posixpath
import re

from bs4 import BeautifulSoup

import loop_map
import toc
from built import HTML, set_theme

# How large the words of the picture that is shown are on the screen, whether it fits, and which boxes are lit.
PICTURES = """() => [...document.querySelectorAll('nav.loop-map svg')].filter((s) => s.checkVisibility()).map((svg) => {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  const texts = [...svg.querySelectorAll('text')];
  const inside = (text) => {
    const [word, frame] = [text, text.closest('.box').querySelector('.frame')].map((e) => e.getBoundingClientRect());
    return word.left >= frame.left && word.right <= frame.right;
  };
  const areas = [...svg.querySelectorAll('.area')].map((area) => area.getBoundingClientRect());
  return {
    size: Math.min(...texts.map((text) => scale * parseFloat(getComputedStyle(text).fontSize))),
    outside: texts.filter((text) => !inside(text)).map((text) => text.textContent),
    right: svg.getBoundingClientRect().right,
    lit: svg.querySelectorAll('[aria-current]').length,
    reach: Math.min(...areas.flatMap((area) => [area.width, area.height])),
  };
})"""
COLOURS = """() => [...document.querySelectorAll('nav.loop-map .box text')].map((text) => [
  getComputedStyle(text).fill, getComputedStyle(text.closest('.box').querySelector('.frame')).fill,
])"""


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colours: list[str]) -> float:
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def maps_of(page) -> int:
    return int(page.startswith("chapters/"))


def test_the_picture_can_be_read(desktop, site_page):
    """In both themes; axe does not look at the colours of a drawing. Only chapters have one."""
    found = desktop.page.evaluate(PICTURES)
    assert len(found) == maps_of(site_page), f"{site_page} shows {len(found)} maps of the loop"
    for picture in found:
        assert picture["lit"] == 1 and picture["size"] >= 11 and not picture["outside"], picture
        assert picture["reach"] >= 24, "a link is too small to hit"
    for theme in ("light", "dark"):
        set_theme(desktop.page, theme)
        for colours in desktop.page.evaluate(COLOURS):
            assert contrast(colours) >= 4.5, f"{site_page} ({theme}): words of {colours[0]} on {colours[1]}"


def test_the_picture_fits_a_phone(phone, site_page):
    found = phone.page.evaluate(PICTURES)
    assert len(found) == maps_of(site_page)
    for picture in found:
        assert picture["lit"] == 1 and picture["size"] >= 11 and not picture["outside"], picture
        assert picture["right"] <= 390 and picture["reach"] >= 24, picture


def test_the_lit_box_is_this_chapter_and_each_leads_to_its_three_places(chapter_page):
    """Where the addresses lead within the site is looked at by test_links.py."""
    article = BeautifulSoup((HTML / chapter_page).read_text("utf8"), "html.parser").select_one("article")
    (picture,) = article.select("nav.loop-map")
    here = next(box for box in loop_map.BOXES if box.chapter in chapter_page)
    assert f"You are here: {here.number} {here.name}," in picture["aria-label"]
    assert article.find("h1").find_next("nav") is picture and article.find("h2").find_previous("nav") is picture
    for svg in picture.select("svg"):
        (lit,) = svg.select(".box.current a[aria-current=page]")
        assert posixpath.normpath(posixpath.join("chapters", lit["href"])) == chapter_page, "it does not lead to itself"
        links = [[link["href"] for link in box.select("a")] for box in svg.select(".box")]
        assert [name for name, *_ in links] == [f"{box.chapter}.html" for box in loop_map.BOXES]
        for box, (_, code, equation) in zip(loop_map.BOXES, links, strict=True):
            path, line = re.search(r"/blob/[^/]+/(.+)#L(\d+)$", code).groups()
            shown = (toc.ROOT / path).read_text("utf8").splitlines()[int(line) - 1]
            assert re.search(rf"(def|class) {box.code.rpartition('#')[2].split('.')[-1]}\b", shown), (code, shown)
            assert equation == f"../book/notation.html#{box.equation}"


def test_the_map_can_be_skipped(visit):
    page = visit("chapters/04_advantages.html").page
    page.locator(".loop-skip").focus()
    assert page.locator(".loop-skip").bounding_box()["height"] > 10, "the link stays hidden while it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#loop-map-end"
    page.keyboard.press("Tab")
    inside = "document.activeElement.closest('nav.loop-map') !== null"
    assert not page.evaluate(inside), "behind the skip comes a link of the map"
