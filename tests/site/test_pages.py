"""Every page, over http and as a file, with the network off: it asks nothing of another machine and nothing breaks."""

import gzip

from built import HTML, set_theme, site_pages
from window import assert_sound

PLAIN = 1.5e6
WITH_FIGURES = 3e6


def test_the_site_has_every_page_of_the_table_of_contents():
    import toc

    built = {page.removesuffix(".html") for page in site_pages()}
    assert built == set(toc.pages(toc.read())), "a page of book/_toc.yml is not written, or the site is older than it"


def test_page_loads_over_http_from_this_machine_alone(desktop, site_page):
    assert_sound(desktop, site_page)
    text = (HTML / site_page).read_bytes()
    own = len(gzip.compress(text, 6))
    most = WITH_FIGURES if site_page.startswith("chapters/") or b"plotly-figure" in text else PLAIN
    assert 0 < desktop.bytes <= most, (
        f"{site_page} weighs {desktop.bytes / 1e6:.2f} MB over the wire, {own / 1e6:.2f} MB of it its own text, "
        "figures and widget data: round the numbers that go into figures, or keep fewer"
    )
    assert width_of(desktop) <= 1280, f"{site_page} scrolls sideways on a screen of 1280 pixels"


def test_page_opens_as_a_file_on_a_dark_phone(phone, site_page):
    assert_sound(phone, site_page)
    assert width_of(phone) <= 390, f"{site_page} is {width_of(phone)} pixels wide on a phone of 390"


def width_of(seen) -> int:
    return seen.page.evaluate("document.documentElement.scrollWidth")


def test_figures_follow_the_theme(desktop, site_page):
    """Ticks, titles and legends take the page's colour; what a figure colours itself stays as it is."""
    set_theme(desktop.page, "dark")
    parts = ("g.xtick text", "g.ytick text", ".gtitle", ".legendtext")
    selector = ", ".join(f"figure.plotly-figure svg {part}" for part in parts)
    read = "s => [...document.querySelectorAll(s)].map((text) => getComputedStyle(text).fill)"
    fills = desktop.page.evaluate(read, selector)
    assert set(fills) <= {"rgb(230, 230, 230)"}, f"{site_page}: text in the light theme's colour: {set(fills)}"
