"""The built site, served gzipped from this machine, and a browser that can reach nothing else."""

import gzip
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import chromium
from built import HTML, site_pages


def pytest_generate_tests(metafunc):
    """`book_page` is every page of the book, `chapter_page` every chapter, `site_page` what the theme adds as well."""
    pages = site_pages()
    chapters = [page for page in pages if page.startswith("chapters/")]
    kinds = {"site_page": [*pages, "index.html", "search.html"], "book_page": pages, "chapter_page": chapters}
    for name, values in kinds.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values)


COMPRESSED = {".html", ".js", ".css", ".json", ".svg", ".ipynb", ".txt"}


class Gzipped(SimpleHTTPRequestHandler):
    """Serves files as a real host would: text compressed, the rest as it is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if path.suffix not in COMPRESSED or not path.is_file():
            return super().do_GET()
        body = gzip.compress(path.read_bytes(), 6)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep the test output free of one line per request."""


@pytest.fixture(scope="session")
def bases() -> dict[str, str]:
    """Where the site is reached: by http from this machine, and as files."""
    assert (HTML / "index.html").exists(), f"no site in {HTML}: run `make book` first"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Gzipped, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"http": f"http://127.0.0.1:{server.server_port}/", "file": HTML.as_uri() + "/"}
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Browser:
    path = chromium.installed()
    assert path, "no Chromium: run `make browser`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=chromium.FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page as loaded, with what went wrong on the way."""

    page: Page
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    bytes: int = 0


IDLE = """() => {
  const figures = [...document.querySelectorAll('figure.plotly-figure')];
  const views = [...document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]')];
  const drawn = (view) => view.parentElement.querySelector('.jupyter-widgets, .widget-subarea *') !== null;
  const mathDone = !document.querySelector('.math') || document.querySelector('mjx-container');
  return figures.every((figure) => figure.dataset.drawn) && views.every(drawn) && mathDone;
}"""


@pytest.fixture
def visit(browser, bases):
    """Opens a page of the site in a fresh context and waits until its figures, widgets and formulas are there."""
    contexts = []

    def open_page(path: str, over: str = "http", theme: str = "light", width: int = 1280) -> Visit:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
        contexts.append(context)
        visit = Visit(context.new_page())

        def on_request(request):
            if not request.url.startswith((bases[over], "data:", "blob:")):
                visit.elsewhere.append(request.url)

        visit.page.on("request", on_request)
        visit.page.on("requestfailed", lambda r: visit.errors.append(f"request failed: {r.url}"))
        visit.page.on("console", lambda m: m.type == "error" and visit.errors.append(f"console: {m.text}"))
        visit.page.on("pageerror", lambda error: visit.errors.append(f"exception: {error}"))
        protocol = context.new_cdp_session(visit.page)
        protocol.send("Network.enable")

        def on_finished(event):
            visit.bytes += event["encodedDataLength"]

        protocol.on("Network.loadingFinished", on_finished)
        visit.page.goto(bases[over] + path, wait_until="load")
        visit.page.wait_for_url(lambda url: not url.endswith("/html/index.html") and url != bases[over] + "index.html")
        visit.page.wait_for_function(IDLE, timeout=30_000)
        visit.page.wait_for_timeout(300)
        return visit

    yield open_page
    for context in contexts:
        context.close()
