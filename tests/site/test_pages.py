"""Every page, over http and as a file, with the network off: it asks nothing of another machine and nothing breaks."""

import gzip

import pytest
from conftest import HTML, site_pages

FIRST_PAGE = 1.5e6
CHAPTER = 3e6


def test_the_site_has_every_page_of_the_table_of_contents():
    import toc

    built = {page.removesuffix(".html") for page in site_pages()}
    assert built == set(toc.pages(toc.read())), "a page of book/_toc.yml is not written, or the site is older than it"


@pytest.mark.parametrize("over", ["http", "file"])
def test_page_loads_from_this_machine_alone(visit, site_page, over):
    seen = visit(site_page, over=over)
    assert not seen.elsewhere, f"{site_page} asked another machine for {seen.elsewhere}"
    assert not seen.errors, f"{site_page} reported {seen.errors}"


def test_first_page_is_light(visit):
    weight = visit("index.html").bytes
    assert 0 < weight <= FIRST_PAGE, f"the first page weighs {weight / 1e6:.2f} MB over the wire"


def test_chapter_is_light(visit, chapter_page):
    weight = visit(chapter_page).bytes
    page = len(gzip.compress((HTML / chapter_page).read_bytes(), 6))
    assert 0 < weight <= CHAPTER, (
        f"{chapter_page} weighs {weight / 1e6:.2f} MB over the wire, {page / 1e6:.2f} MB of it its own text, figures and "
        "widget data: round the numbers that go into figures, or keep fewer"
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_page_never_scrolls_sideways(visit, site_page, width):
    seen = visit(site_page, width=width)
    wide = seen.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{site_page} is {wide} px wide on a screen of {width}"


def test_figures_follow_the_theme(visit, chapter_page):
    page = visit(chapter_page, theme="light").page
    if not page.locator("figure.plotly-figure").count():
        return
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    redrawn = "[...document.querySelectorAll('figure.plotly-figure')].every((f) => f.dataset.drawn === 'dark')"
    page.wait_for_function(redrawn, timeout=10_000)
    colour = "getComputedStyle(document.querySelector('figure.plotly-figure svg .xtick text')).fill"
    assert page.evaluate(colour) == "rgb(230, 230, 230)", f"{chapter_page}: axis labels keep the light theme's colour"
