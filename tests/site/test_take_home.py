"""The book to take home, of two pages here: a valid EPUB, and a PDF whose links stay within. `make epub` takes all."""

import re
import zipfile

import pytest
from bs4 import BeautifulSoup

import take_home
from built import HTML

TITLES = ["5. How far may one update go?", "Notation and glossary"]
PAGES = ["chapters/05_clipped_objective", "book/notation"]
built = pytest.mark.skipif(not (HTML / f"{PAGES[0]}.html").exists(), reason="a build without these pages")


@pytest.fixture(scope="module")
def page(browser):
    page = take_home.paper(browser)
    yield page
    page.close()


@pytest.fixture(scope="module")
def epub(page, tmp_path_factory):
    target = tmp_path_factory.mktemp("epub") / "book.epub"
    take_home.epub(page, HTML, target, PAGES)
    return target


@built
def test_the_epub_is_valid(epub):
    take_home.check(epub)


@built
def test_the_epub_has_formulas_figures_and_no_script(epub):
    with zipfile.ZipFile(epub) as book:
        texts = {name: book.read(name).decode("utf8") for name in book.namelist() if re.search(r"text/ch\d+", name)}
        pictures = [name for name in book.namelist() if name.endswith(".png")]
    parsed = [BeautifulSoup(texts[name], "html.parser") for name in sorted(texts)]
    assert [page.h1.get_text() for page in parsed] == TITLES, "the pages are not all there in their order"
    assert sum(len(page.find_all("math")) for page in parsed) > 50, "formulas are missing"
    images = [image for page in parsed for image in page.find_all("img")]
    assert len(images) == len(pictures) >= 7, f"{len(images)} images on the pages, {len(pictures)} in the file"
    assert all(len(image["alt"]) > 30 for image in images), "a figure without words"
    assert not any(page.find(["script", "button", "input", "form"]) for page in parsed), "something waits to be run"
    words = " ".join(page.get_text(" ", strip=True) for page in parsed)
    assert "Solution" in words and "Hint" in words and "def policy_loss(" in words


@built
def test_links_within_the_epub_lead_somewhere(epub):
    with zipfile.ZipFile(epub) as book:
        pages = {name.rpartition("/")[2]: BeautifulSoup(book.read(name), "html.parser")
                 for name in book.namelist() if name.endswith(".xhtml")}  # fmt: skip
    links = [(name, link["href"]) for name, page in pages.items() for link in page.find_all("a", href=True)]
    within = [(name, href) for name, href in links if not href.startswith("http")]
    for name, href in within:
        file, _, anchor = href.partition("#")
        target = pages[file.rpartition("/")[2] or name]
        assert not anchor or target.find(id=anchor), f"{name}: {href} leads nowhere"
    assert sum(name.startswith("ch001") and "ch002" in href for name, href in within) > 3, (
        "no chapter leads to the other"
    )


@built
def test_the_pdf_has_an_outline_and_its_links_stay_within(page, tmp_path):
    import pypdf

    take_home.pdf(page, HTML, tmp_path / "book.pdf", PAGES)
    book = pypdf.PdfReader(tmp_path / "book.pdf")
    titles = [entry.title for entry in book.outline]
    assert titles == TITLES
    assert 20 < len(book.pages) < 80
    notes = [note.get_object() for page in book.pages for note in page.get("/Annots", ())]
    addresses = [str(note["/A"]["/URI"]) for note in notes if "/URI" in note.get("/A", {})]
    assert not [a for a in addresses if a.startswith("file:")], "a link leads to a file of this machine"
    inner = [note for note in notes if note.get("/Dest") is not None]
    assert len(inner) >= 10, "links between the pages were lost"
    words = book.pages[0].extract_text()
    assert "How far may one update go" in words and "Contents" not in words


@built
def test_the_cheat_sheet_is_one_page(page, tmp_path):
    import pypdf

    take_home.pdf(page, HTML, tmp_path / "sheet.pdf", [take_home.CHEAT_SHEET], take_home.ONE_PAGE)
    (sheet,) = pypdf.PdfReader(tmp_path / "sheet.pdf").pages
    words = sheet.extract_text()
    for name in ("policy_loss", "kl_coef", "policy/clipfrac_avg", "replay/ess"):
        assert name in words, f"{name} is not on the sheet"
