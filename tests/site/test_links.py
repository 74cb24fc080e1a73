"""Links inside the site lead somewhere: the file is there, and so is the anchor."""

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import cells
import make_site
import toc
from built import BUILD, HTML


class Tags(HTMLParser):
    """What the tags of a page link to, in any element and in `<a>` alone, and the anchors that they set."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.clicked, self.anchors = [], set(), {"", "top"}
        self.feed(path.read_text("utf8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src"):
                self.links.append(value)
            if name == "href" and tag == "a":
                self.clicked.add(value)
            if name == "id":
                self.anchors.add(value)


tags = cache(Tags)


def problem(page: Path, link: str) -> str | None:
    """What is wrong with a link of a page, or None; links to other machines are not looked at."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return f"{link}: no such file"
    if target.suffix == ".html" and unquote(parts.fragment) not in tags(target).anchors:
        return f"{link}: no such anchor"
    return None


def test_internal_links_lead_somewhere(site_page):
    page = HTML / site_page
    broken = [trouble for link in tags(page).links if (trouble := problem(page, link))]
    assert not broken, f"{site_page}: {broken}"


def test_a_broken_link_is_noticed(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"></p>')
    page = tmp_path / "a.html"
    assert problem(page, "b.html") and problem(page, "#there")
    assert not problem(page, "#here") and not problem(page, "a.html#here")


def test_chapter_opens_in_colab(chapter_page):
    repository = yaml.safe_load((toc.ROOT / "_config.yml").read_text("utf8"))["repository"]
    path = repository["url"].removeprefix("https://github.com/")
    notebook = chapter_page.replace(".html", ".ipynb")
    wanted = f"https://colab.research.google.com/github/{path}/blob/{repository['branch']}/{notebook}"
    assert wanted in tags(HTML / chapter_page).clicked, f"{chapter_page} has no button that opens {notebook} in Colab"


def test_executed_chapters_name_no_folder_of_the_machine_that_built_them(chapter_page):
    name = Path(chapter_page).stem
    text = (BUILD / "executed" / f"{name}.ipynb").read_text("utf8")
    assert str(toc.ROOT) not in text, f"an output of {name} shows {toc.ROOT}"
    assert cells.repository(), "no repository in _config.yml"


@pytest.mark.parametrize("old", make_site.MOVED)
def test_an_old_address_leads_on(windows, old):
    if not (HTML / f"{make_site.MOVED[old]}.html").exists():
        pytest.skip("a build without the page that it leads to")
    page = windows("moved", over="file").page
    page.goto((HTML / f"{old}.html").as_uri())
    page.wait_for_url(f"**/{make_site.MOVED[old]}.html")
    assert page.locator("article h1").is_visible()
