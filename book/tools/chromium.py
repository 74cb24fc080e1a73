"""Finds Chromium for the browser tests and the book on paper; run as a program, it installs one where there is none."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# A browser that can reach nothing but this machine, and asks for nothing by itself.
FLAGS = [
    "--no-sandbox",
    "--headless=new",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# A page is drawn when its figures, widgets and formulas are there.
DRAWN = """() => {
  const figures = [...document.querySelectorAll('figure.plotly-figure')];
  const views = [...document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]')];
  const drawn = (view) => view.parentElement.querySelector('.jupyter-widgets, .widget-subarea *') !== null;
  const mathDone = !document.querySelector('.math') || document.querySelector('mjx-container');
  return figures.every((figure) => figure.dataset.drawn) && views.every(drawn) && mathDone;
}"""
# What those have put off, to the next picture or to a quiet moment, is done as well.
SETTLED = """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
  () => requestIdleCallback(done, { timeout: 2000 })
)))"""


def installed() -> str | None:
    """The system's Chromium (or what the variable CHROMIUM names), else the one Playwright keeps, else None."""
    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if named:
        return named
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def install() -> None:
    if shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


if __name__ == "__main__":
    if not installed():
        print("no Chromium found: installing it for the browser tests", flush=True)
        install()
    if not installed():
        sys.exit("Chromium could not be installed: install it yourself, or name it in the variable CHROMIUM")
