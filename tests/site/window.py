"""A window of the browser, kept for one page after another."""

from playwright.sync_api import Browser

from chromium import DRAWN, SETTLED


class Window:
    """A window of the browser that shows one page after another, with what went wrong on the present one's way.

    It is kept because a new one costs more than most pages do. Nothing of a page outlives it, the cache included.
    """

    def __init__(self, browser: Browser, base: str, theme: str = "light", width: int = 1280):
        self.base, size = base, {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
        self.page = self.context.new_page()
        self.begin()
        self.page.on("request", self._on_request)
        self.page.on("requestfailed", lambda r: self.errors.append(f"request failed: {r.url}"))
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        self.protocol = self.context.new_cdp_session(self.page)
        self.protocol.on("Network.loadingFinished", self._on_finished)
        self.protocol.send("Network.enable")
        self.protocol.send("Network.setCacheDisabled", {"cacheDisabled": True})

    def begin(self) -> None:
        self.errors, self.elsewhere, self.bytes = [], [], 0

    def _on_request(self, request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:", "about:")):
            self.elsewhere.append(request.url)

    def _on_finished(self, event) -> None:
        self.bytes += event["encodedDataLength"]

    def open(self, path: str) -> "Window":
        """Opens a page of the site and waits until its figures, widgets and formulas are there."""
        if self.page.url != "about:blank":
            self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            self.page.goto("about:blank")
        self.begin()
        self.page.goto(self.base + path, wait_until="load")
        self.page.wait_for_url(lambda url: not url.endswith("/html/index.html") and url != self.base + "index.html")
        self.page.wait_for_function(DRAWN, timeout=30_000)
        self.page.evaluate(SETTLED)
        return self


def assert_sound(seen: Window, name: str) -> None:
    assert not seen.elsewhere, f"{name} asked another machine for {seen.elsewhere}"
    assert not seen.errors, f"{name} reported {seen.errors}"
