"""The widgets in a live JupyterLab: drawn with the kernel's own copy of Plotly, moved by keyboard, heard by Python."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

CELLS = [
    """
from ppo_lib.lab import plots
from ppo_lib.lab.widgets import FigureSlider, TokenMicroscope

def draw(lam):
    xs = list(range(10))
    return plots.lines(xs, {"weight": [lam**x for x in xs]}, alt=f"weights at {lam}", caption="Weights.")

slider = FigureSlider(draw, [0.0, 0.5, 0.9, 1.0], label="λ")
slider
""",
    """
def row(shift):
    values = {"logprob": [-0.1 - shift, -2.0], "advantage": [1.0 + shift, -1.0]}
    return {"prompt": "The film was", "tokens": [" good", "."], "ended": True, "score": 1.0, "values": values}

frames = [{"step": step, "responses": [row(step)]} for step in (0, 5)]
microscope = TokenMicroscope(frames, "advantage", caption="Advantages.")
microscope
""",
    """
import itertools
from ppo_lib.lab.explorer import ReplayExplorer

sliders = {
    "replay_buffer_size": [16, 32], "replay_sample_size": [8, 16],
    "max_replay_reuse": [2, 4], "staleness_threshold": [2, 4],
}
keys = [*sliders, "seed", "tokens", "objective", "reuse", "ess", "age", "held"]
places = [(0, 0, 0, 0), *itertools.product(*sliders.values())]
rows = [
    dict(zip(keys, (*place, seed, 200 * n, 0.1 * n, 2.0, 0.5, 1.0, 8)))
    for seed in (1, 2) for place in places for n in range(5)
]
about = {"sliders": sliders, "fixed": {"batch_size": 8, "learning_rate": 1e-3}, "episodes": 64}
explorer = ReplayExplorer(rows, about, caption="Replay.")
explorer
""",
]
KERNEL_READY = """() => {
  const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
  const kernel = session?.isReady && session.session?.kernel;
  return kernel && kernel.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
ASKS_PYTHON = "print('PYTHON', slider.value, microscope.step, len(explorer.runs))"


def notebook(cells):
    empty = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**empty, "id": f"c{number}", "source": source} for number, source in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab of our own, in an empty folder with one notebook."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "live.ipynb").write_text(notebook([*CELLS, ASKS_PYTHON]), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.root_dir": folder,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": True,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    environment = {**os.environ, **own, "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    with open(folder / "lab.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for(address + "api", server, folder / "lab.log")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_for(address, server, log, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start: {log.read_text(encoding='utf-8')[-2000:]}")


@pytest.fixture(scope="module")
def page(browser, lab):
    context = browser.new_context(viewport={"width": 1280, "height": 1400}, color_scheme="light")
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.goto(lab + "lab/tree/live.ipynb", wait_until="load")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
    page.wait_for_function(KERNEL_READY, timeout=90_000)
    command(page, "notebook:run-all-cells")
    page.wait_for_selector(".ppo-plot .main-svg", timeout=120_000)
    page.wait_for_selector(".ppo-token", timeout=60_000)
    page.wait_for_selector(".ppo-button", timeout=60_000)
    yield page
    context.close()


def command(page, name, **options):
    """Starts a command of JupyterLab, and does not wait for its end."""
    page.evaluate("([name, options]) => void window.jupyterapp.commands.execute(name, options)", [name, options])


def selected_cell(page):
    find = "() => [...document.querySelectorAll('.jp-Cell')].findIndex((cell) => cell.matches('.jp-mod-active'))"
    return page.evaluate(find)


def test_button_trains_in_the_kernel_and_draws_the_run(page):
    curves = page.locator(".ppo-panels .ppo-plot").first.locator(".scatterlayer path.js-line")
    button = page.get_by_role("button", name="train this")
    page.wait_for_function("() => !document.querySelector('.ppo-button').disabled", timeout=30_000)
    page.wait_for_function("() => document.querySelectorAll('.ppo-panels .main-svg').length >= 3", timeout=30_000)
    page.get_by_label("replay sample size").press("Home")
    stored = curves.count()
    button.click()
    page.wait_for_function("() => document.querySelector('.ppo-status').innerText.startsWith('Training')")
    assert button.is_disabled(), "a second run could be started while one is under way"
    done = "() => document.querySelector('.ppo-status').innerText.startsWith('The last run of yours')"
    page.wait_for_function(done, timeout=120_000)
    page.wait_for_function(
        "(stored) => document.querySelector('.ppo-panels .ppo-plot').querySelectorAll('path.js-line').length > stored",
        arg=stored,
    )
    assert button.is_enabled()
    label = page.locator(".ppo-panels .ppo-plot").first.get_attribute("aria-label")
    assert "Your run, seed 0" in label


def test_slider_redraws_by_keyboard_and_python_hears_it(page):
    slider = page.get_by_label("λ")
    line = page.locator(".ppo-plot .scatterlayer path.js-line").first
    slider.focus()
    before, cell = line.get_attribute("d"), selected_cell(page)
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowDown"):
        slider.press(key)
    assert slider.get_attribute("aria-valuetext") == "0.9"
    redrawn = "(before) => document.querySelector('.ppo-plot path.js-line').getAttribute('d') !== before"
    page.wait_for_function(redrawn, arg=before)
    assert selected_cell(page) == cell, "an arrow key on the slider moved the notebook's selection"
    page.get_by_label("update").press("End")
    page.locator(".jp-Cell .cm-content").last.click()
    command(page, "notebook:run-cell")
    page.wait_for_function("() => document.body.innerText.includes('PYTHON 0.9 1 1')", timeout=20_000)


def test_microscope_recolours(page):
    colour = "() => getComputedStyle(document.querySelector('.ppo-token')).backgroundColor"
    before = page.evaluate(colour)
    page.get_by_label("colour").select_option(label="log-probability")
    assert page.evaluate(colour) != before, "choosing another quantity changed no colour"


def test_dark_theme_reaches_the_widgets(page):
    ink = "() => getComputedStyle(document.querySelector('.ppo-widget')).backgroundColor"
    light = page.evaluate(ink)
    command(page, "apputils:change-theme", theme="JupyterLab Dark")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    page.wait_for_function(f"(light) => ({ink})() !== light", arg=light)
    fill = "() => getComputedStyle(document.querySelector('.ppo-plot .xtick text')).fill"
    page.wait_for_function(f"() => ({fill})() === 'rgb(242, 242, 242)'", timeout=5_000)


def test_no_error_in_the_console(page):
    assert not page.problems, f"the live notebook's console has errors: {page.problems}"
