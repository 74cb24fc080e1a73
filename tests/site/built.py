"""The site as it was built: where it lies, its pages, and its two themes."""

import os
from pathlib import Path

import yaml
from playwright.sync_api import Page

import toc

BUILD = Path(os.environ.get("BOOK_BUILD", toc.ROOT / "_build")).resolve()
HTML = BUILD / "html"


def site_pages() -> list[str]:
    """Every page of the built site, as the table of contents that it was built with names them."""
    staged = BUILD / "src/_toc.yml"
    if not staged.exists():
        return []
    return [f"{page}.html" for page in toc.pages(yaml.safe_load(staged.read_text("utf8")))]


def set_theme(page: Page, theme: str) -> None:
    """Switch a page to the light or the dark theme, as its button does, and wait until the figures have followed."""
    if page.evaluate("document.documentElement.dataset.theme") == theme:
        return
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    drawn = "theme => [...document.querySelectorAll('figure.plotly-figure')].every((f) => f.dataset.drawn === theme)"
    page.wait_for_function(drawn, arg=theme, timeout=10_000)
