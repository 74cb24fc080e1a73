"""The built site, served gzipped from this machine, and a browser that can reach nothing else."""

import gzip
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

import chromium
from built import HTML, site_pages
from window import Window, assert_sound


def pytest_generate_tests(metafunc):
    """`book_page` is every page of the book, `chapter_page` every chapter, `site_page` what the theme adds as well.

    Their scope makes the tests of a page follow one another, so that they share what `desktop` and `phone` open.
    """
    pages = site_pages()
    chapters = [page for page in pages if page.startswith("chapters/")]
    kinds = {"site_page": [*pages, "index.html", "search.html"], "book_page": pages, "chapter_page": chapters}
    for name, values in kinds.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The live notebook comes first: its tests build on one another, and no process takes another's first tests."""
    items.sort(key=lambda item: item.path.stem != "test_live_widgets")


COMPRESSED = {".html", ".js", ".css", ".json", ".svg", ".ipynb", ".txt"}


@cache
def gzipped(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 6)


class Gzipped(SimpleHTTPRequestHandler):
    """Serves files as a real host would: text compressed, the rest as it is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if path.suffix not in COMPRESSED or not path.is_file():
            return super().do_GET()
        body = gzipped(path)
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


@pytest.fixture(scope="session")
def windows(browser, bases):
    """Windows by the name of who uses them; they are opened as they are first asked for."""
    opened = {}

    def window(user: str, over: str = "http", **look) -> Window:
        key = (user, over, *look.items())
        if key not in opened:
            opened[key] = Window(browser, bases[over], **look)
        return opened[key]

    yield window
    for window in opened.values():
        window.context.close()


@pytest.fixture(scope="session")
def desktop(windows, site_page):
    """A page in a wide window, over http, light at first. Nothing that its tests do may cause an error."""
    seen = windows("desktop").open(site_page)
    yield seen
    assert_sound(seen, site_page)


@pytest.fixture(scope="session")
def phone(windows, site_page):
    """A page on a dark phone, opened as a file. Nothing that its tests do may cause an error."""
    seen = windows("phone", over="file", theme="dark", width=390).open(site_page)
    yield seen
    assert_sound(seen, site_page)


@pytest.fixture
def visit(windows):
    """Opens a page of the site for one test alone."""
    return lambda path, **look: windows("visit", **look).open(path)
