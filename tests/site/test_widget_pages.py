"""The widgets on a page without a kernel: drawn, moved, read out, coloured for light and dark, fit for a phone."""

import contextlib
import itertools
import json
import re
import shutil
from pathlib import Path

import anywidget
import pytest
import torch
from ipywidgets.embed import dependency_state, embed_data
from playwright.sync_api import TimeoutError, expect

import toc
from ppo_lib.lab import plots
from ppo_lib.lab.explorer import ReplayExplorer
from ppo_lib.lab.widgets import ClipPlayground, FigureSlider, TokenMicroscope
from window import Window

NODE_MODULES = toc.ROOT / "node_modules"
SCRIPTS = {
    "plotly.js": NODE_MODULES / "plotly.js-cartesian-dist-min/plotly-cartesian.min.js",
    "require.js": NODE_MODULES / "requirejs/require.js",
    "embed-amd.js": NODE_MODULES / "@jupyter-widgets/html-manager/dist/embed-amd.js",
    "anywidget.js": Path(anywidget.__file__).parent / "nbextension/index.js",
}
PAGE = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Widgets</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>html[data-theme=dark] body {{ background: #121212; color: #eee }}</style>
{plotly}<script src="require.js"></script>
<script>
window.__jupyter_widgets_assets_path__ = "./";
requirejs.config({{ paths: {{ anywidget: "./anywidget" }} }});
</script>
<script src="embed-amd.js" data-jupyter-widgets-cdn=""></script></head>
<body><main><h1>Widgets</h1>{views}</main>
<script type="application/vnd.jupyter.widget-state+json">{state}</script></body></html>"""
VIEW = '<div class="widget-subarea"><script type="application/vnd.jupyter.widget-view+json">{}</script></div>'


def for_script(value):
    return json.dumps(value).replace("</", "<\\/")


def write_page(folder, widgets, plotly=True):
    for name, source in SCRIPTS.items():
        shutil.copyfile(source, folder / name)
    data = embed_data(widgets, drop_defaults=False, state=dependency_state(widgets, drop_defaults=False))
    page = PAGE.format(
        plotly='<script src="plotly.js"></script>' if plotly else "",
        views="".join(VIEW.format(for_script(view)) for view in data["view_specs"]),
        state=for_script(data["manager_state"]),
    )
    (folder / "widgets.html").write_text(page, encoding="utf-8")
    return folder.as_uri() + "/"


def draw(gamma, lam):
    heights = [gamma, lam, gamma + 10 * lam]
    return plots.bars(["γ", "λ", "both"], {"height": heights}, alt=f"γ {gamma}, λ {lam}", caption="Bars to move.")


def row(prompt, tokens, step, ended=True):
    count = range(len(tokens))
    values = {
        "advantage": [(-1.0) ** n * (step + n // 2) for n in count],
        "ratio": [0.5 + 0.5 * n for n in count],
        "clipped": [n == 1 for n in count],
    }
    return {"prompt": prompt, "tokens": tokens, "ended": ended, "score": 1.25, "values": values}


FRAMES = [
    {"step": 1, "responses": [row("Film", [" was", " good", "<eos>"], 1), row("I saw", [" a", "", "é\n"], 1, False)]},
    {"step": 9, "responses": [row("It was", [" a", " treat", "."], 9)]},
]


# Text and background of each token as the browser paints them, as sRGB bytes.
PAINTED = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const bytes = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  return [...document.querySelectorAll('.ppo-token')].map((token) => {
    const style = getComputedStyle(token);
    return [bytes(style.color), bytes(style.backgroundColor)];
  });
}"""


def assert_accessible(page, theme) -> None:
    """axe-core finds no violation on the page as it stands."""
    if not page.evaluate("() => 'axe' in window"):
        page.add_script_tag(path=str(NODE_MODULES / "axe-core/axe.min.js"))
    result = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")
    found = [f"{v['id']}: {[node['html'][:120] for node in v['nodes']]}" for v in result["violations"]]
    assert not found, f"{theme}: {found}"


def opener(browser, address):
    """Opens the page at `address` in a window of the asked width, the same window for each width."""
    windows = {}

    def open_page(width=900, clock=False):
        if width not in windows:
            windows[width] = Window(browser, address, width=width)
            if clock:
                windows[width].page.clock.install()
        seen = windows[width].open("widgets.html")
        seen.page.errors, seen.page.elsewhere = seen.errors, seen.elsewhere
        return seen.page

    yield open_page
    for window in windows.values():
        window.context.close()


@pytest.fixture(scope="module")
def two_widgets():
    slider = FigureSlider(draw, {"gamma": [1, 2], "lam": [3, 4, 5]}, label={"gamma": "γ", "lam": "λ"})
    return [slider, TokenMicroscope(FRAMES, "advantage", caption="Orange tokens are made more likely.")]


@pytest.fixture(scope="module")
def windows_of_two(browser, tmp_path_factory, two_widgets):
    yield from opener(browser, write_page(tmp_path_factory.mktemp("two"), two_widgets))


@pytest.fixture(scope="module")
def windows_without_plotly(browser, tmp_path_factory, two_widgets):
    yield from opener(browser, write_page(tmp_path_factory.mktemp("bare"), two_widgets, plotly=False))


@pytest.fixture
def widget_page(windows_of_two):
    """Opens a page with a slider grid and a microscope; `errors` and `elsewhere` collect what went wrong on it."""

    def open_page(**look):
        page = windows_of_two(**look)
        page.wait_for_selector(".ppo-token")
        page.wait_for_selector(".ppo-plot .main-svg")
        return page

    return open_page


def heights(page, expected):
    """What the plot shows, once it shows what is expected."""
    drawn = "y => JSON.stringify(document.querySelector('.ppo-plot').data[0].y) === y"
    with contextlib.suppress(TimeoutError):
        page.wait_for_function(drawn, arg=json.dumps(expected, separators=(",", ":")), timeout=5_000)
    return page.evaluate("() => document.querySelector('.ppo-plot').data[0].y")


def tokens(page):
    return page.locator(".ppo-token .ppo-text").all_inner_texts()


def test_each_slider_moves_the_plot_by_keyboard(widget_page):
    page = widget_page()
    page.evaluate("document.addEventListener('keydown', () => { window.leaked = true; })")
    assert heights(page, [1, 3, 31]) == [1, 3, 31]
    page.get_by_role("slider", name="λ").press("ArrowRight")
    assert heights(page, [1, 4, 41]) == [1, 4, 41]
    page.get_by_role("slider", name="γ").press("End")
    assert heights(page, [2, 4, 42]) == [2, 4, 42]
    assert page.get_by_role("slider", name="λ").get_attribute("aria-valuetext") == "4"
    assert page.locator(".ppo-plot").get_attribute("aria-label") == "γ 2, λ 4", "the alt text must follow the sliders"
    assert not page.evaluate("window.leaked"), "a key pressed on a slider reached the page"
    assert not page.errors and not page.elsewhere, [page.errors, page.elsewhere]


def test_microscope_shows_the_response_of_step_and_select(widget_page):
    page = widget_page()
    assert tokens(page) == [" was", " good", "<eos>"]
    page.get_by_label("response").select_option(label="2 of 2")
    assert tokens(page) == [" a", "·", "é⏎"], "a partial character and a line break need a visible sign"
    assert "(cut off)" in page.locator(".ppo-tokens").inner_text()
    page.get_by_label("update").press("End")
    assert tokens(page) == [" a", " treat", "."], "a step with fewer responses shows its last"
    assert page.locator(".ppo-prompt").first.inner_text() == "It was"
    assert not page.errors and not page.elsewhere, [page.errors, page.elsewhere]


def test_every_value_of_a_token_can_be_read(widget_page):
    page = widget_page()
    first = page.locator(".ppo-token").first
    first.focus()
    assert page.locator(".ppo-place").inner_text() == "Token 1 of 3: “ was”"
    first.press("ArrowRight")
    assert page.locator(".ppo-place").inner_text() == "Token 2 of 3: “ good”"
    words = page.locator(".ppo-readout").inner_text().split("\n")
    assert words == ["advantage", "−1", "ratio", "1", "clipped", "clipped"]
    page.locator(".ppo-token").last.hover()
    assert page.locator(".ppo-place").inner_text().startswith("Token 3 of 3")
    assert page.get_by_role("button", name="good −1").count() == 1, "a screen reader hears the value with the token"
    tab_stops = page.locator(".ppo-token[tabindex='0']").count()
    assert tab_stops == 1, f"{tab_stops} tokens are tab stops: arrow keys move inside the group, Tab leaves it"


def test_numbers_can_be_shown_under_the_tokens(widget_page):
    page = widget_page()
    number = page.locator(".ppo-token .ppo-number").first
    assert number.bounding_box()["width"] <= 1
    page.get_by_label("numbers under the tokens").check()
    assert number.bounding_box()["width"] > 5 and number.inner_text().strip() == "1"


def test_colour_legend_and_summary_follow_the_quantity(widget_page):
    page = widget_page()
    before = page.evaluate(PAINTED)
    assert before[0] != before[1], "advantages of opposite sign share a colour"
    assert page.locator(".ppo-summary").inner_text() == "score 1.25 · mean of advantage 0.667"
    page.get_by_label("colour").select_option(label="clipped")
    assert page.evaluate(PAINTED) != before
    assert page.locator(".ppo-legend").inner_text().split() == ["clipped:", "not", "clipped", "clipped"]
    assert page.locator(".ppo-token.ppo-flag").count() == 1


def test_no_accessibility_violation_in_light_or_dark(widget_page):
    page = widget_page()
    page.get_by_label("numbers under the tokens").check()
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        ink = "rgb(242, 242, 242)" if theme == "dark" else "rgb(26, 26, 26)"
        page.wait_for_function(
            "(ink) => getComputedStyle(document.querySelector('.ppo-plot .xtick text')).fill === ink", arg=ink
        )
        assert_accessible(page, theme)


def test_token_colours_leave_the_text_readable(widget_page):
    page = widget_page()
    page.get_by_label("update").press("End")  # the step with the strongest colours
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        pairs = page.evaluate(PAINTED)
        assert len(pairs) == 3
        for ink, paper in pairs:
            assert plots.contrast(ink, paper) >= 4.5, f"{theme}: text {ink} on {paper}"


def test_fits_a_phone(widget_page):
    page = widget_page(width=390)
    page.get_by_label("numbers under the tokens").check()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    for control in page.locator(".ppo-widget input, .ppo-widget select").all():
        box = control.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, "a control reaches beyond the screen"


def test_without_plotly_and_kernel_the_text_says_what_is_missing(windows_without_plotly):
    page = windows_without_plotly(clock=True)
    page.wait_for_selector(".ppo-token")
    page.clock.fast_forward(21_000)
    page.wait_for_selector(".ppo-plot p")
    assert "γ 1, λ 3" in page.locator(".ppo-plot p").inner_text(), "the alt text stands in for the plot"
    assert not page.errors, page.errors


SLIDERS = {
    "replay_buffer_size": [16, 256],
    "replay_sample_size": [8, 56],
    "max_replay_reuse": [2, 8],
    "staleness_threshold": [2, 16],
}


def stored_runs():
    """Each setting's runs cost a little less than those of the setting before; on-policy PPO's cost most."""
    for number, place in enumerate([(0, 0, 0, 0), *itertools.product(*SLIDERS.values())]):
        for seed, n in itertools.product((1, 2), range(6)):
            yield dict(zip(SLIDERS, place, strict=True)) | {
                "seed": seed, "tokens": n * (400 - 10 * number), "objective": min(0.25 * n, 1.0) + 0.01 * seed,
                "reuse": 1 + number / 4, "ess": 0.9 - number / 40, "age": 1 + number / 20, "held": 16,
            }  # fmt: skip


@pytest.fixture(scope="module")
def windows_of_explorer(browser, tmp_path_factory):
    about = {"sliders": SLIDERS, "fixed": {"batch_size": 8}, "episodes": 160}
    explorer = ReplayExplorer(list(stored_runs()), about, caption="Reuse is not efficiency.")
    yield from opener(browser, write_page(tmp_path_factory.mktemp("explorer"), [explorer]))


@pytest.fixture
def explorer_page(windows_of_explorer):
    """Opens a page with the explorer alone, and no Python behind it."""

    def open_page(**look):
        page = windows_of_explorer(**look)
        page.wait_for_function("() => document.querySelectorAll('.ppo-plot .main-svg').length >= 3")
        return page

    return open_page


def shows(page, **readouts):
    """Each readout, by its name with underscores, comes to say what is expected of it: the page draws when it can."""
    for name, text in readouts.items():
        place = page.locator(".ppo-readout > div", has_text=name.replace("_", " ")).locator("dd")
        expect(place).to_have_text(re.compile(f"^{re.escape(text)}"))


def test_explorer_shows_the_setting_that_its_sliders_stand_on(explorer_page):
    page = explorer_page()
    assert page.get_by_role("slider").count() == 4
    for slider in page.get_by_role("slider").all():
        slider.press("Home")
    shows(page, tokens_to_the_threshold="1,170", reuse="1.25")
    labels = [plot.get_attribute("aria-label") for plot in page.locator(".ppo-plot").all()]
    page.get_by_role("slider", name="staleness threshold").press("ArrowRight")
    shows(page, tokens_to_the_threshold="1,140", reuse="1.5", times_fewer="1.05 (")  # 1,200 tokens of PPO / 1,140
    moved = [plot.get_attribute("aria-label") for plot in page.locator(".ppo-plot").all()]
    assert all(one != other for one, other in zip(labels, moved, strict=True)), "an alt text stands still"
    page.get_by_label("threshold", exact=True).select_option(label="50 % of PPO’s gain (0.473)")
    shows(page, tokens_to_the_threshold="760")
    assert not page.errors, page.errors


def test_explorer_goes_to_the_settings_that_teach_most(explorer_page):
    page = explorer_page()
    for name, reuse in {"most gain": "5", "least gain": "1.25", "lowest end": "1.25"}.items():
        page.get_by_role("button", name=name).click()
        shows(page, reuse=reuse)
    assert not page.errors, page.errors


def test_explorer_says_why_its_button_is_off(explorer_page):
    page = explorer_page()
    button = page.get_by_role("button", name="train this")
    assert button.is_disabled()
    reason = page.locator(f"#{button.get_attribute('aria-describedby')}")
    assert "needs Python" in reason.inner_text()


def test_explorer_has_no_accessibility_violation_and_fits_a_phone(explorer_page):
    page = explorer_page(width=390)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        ink = "rgb(242, 242, 242)" if theme == "dark" else "rgb(26, 26, 26)"
        page.wait_for_function(
            "(ink) => getComputedStyle(document.querySelector('.ppo-plot .xtick text')).fill === ink", arg=ink
        )
        assert_accessible(page, theme)


@pytest.fixture(scope="module")
def windows_of_clip(browser, tmp_path_factory):
    yield from opener(browser, write_page(tmp_path_factory.mktemp("clip"), [ClipPlayground(caption="Drag the dots.")]))


@pytest.fixture
def clip_page(windows_of_clip):
    """Opens a page with the clipped surrogate to play with, and no Python behind it."""

    def open_page(**look):
        page = windows_of_clip(**look)
        page.wait_for_selector(".ppo-clip-grip-ratio")
        return page

    return open_page


def clip_readouts(page):
    """Value and gradient, as the widget says them."""
    numbers = page.locator(".ppo-readout dd").all_inner_texts()
    return [float(text.replace("−", "-")) for text in numbers[2:]]


def move(page, name, value):
    """A slider of the widget to the text `value`."""
    page.get_by_role("slider", name=name, exact=True).evaluate(
        """(input, wanted) => {
          for (let at = 0; at <= Number(input.max); at++) {
            input.value = at;
            input.dispatchEvent(new Event('input', { bubbles: true }));
            if (input.getAttribute('aria-valuetext') === wanted) return;
          }
          throw new Error('no ' + wanted);
        }""",
        f"{value:g}".replace("-", "−"),
    )


def test_clip_playground_computes_what_autograd_does(clip_page):
    page = clip_page()
    for epsilon, a, r in itertools.product((0.2, 0.5), (1.0, -0.7, 0.0), (0.4, 0.8, 1.0, 1.2, 1.3, 1.7)):
        for name, value in {"ε": epsilon, "advantage A": a, "ratio": r}.items():
            move(page, name, value)
        ratio = torch.tensor(r, requires_grad=True, dtype=torch.float64)
        smaller = torch.minimum(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)
        smaller.backward()
        shown = clip_readouts(page)
        assert shown == pytest.approx([smaller.item(), ratio.grad.item()], abs=6e-3), f"ε {epsilon}, A {a}, ratio {r}"
    assert not page.errors, page.errors


def test_clip_playground_says_what_becomes_of_the_token(clip_page):
    page = clip_page()
    words = {(1, 1.3): "far enough", (1, 0.7): "come back", (-1, 0.7): "far enough", (-1, 1.3): "come back",
             (1, 1.1): "does nothing"}  # fmt: skip
    for (a, r), said in words.items():
        move(page, "advantage A", a)
        move(page, "ratio", r)
        assert said in page.locator(".ppo-place").inner_text(), f"A {a}, ratio {r}"
        assert said in page.locator(".ppo-clip").get_attribute("aria-label"), f"A {a}, ratio {r}: the alt text"


@pytest.mark.parametrize("width", [900, 390])
def test_clip_playground_is_dragged(clip_page, width):
    page = clip_page(width=width)
    before = clip_readouts(page)
    for grip, (dx, dy), name in (("ratio", (-60, 0), "ratio"), ("advantage", (0, 80), "advantage A")):
        said = page.get_by_role("slider", name=name, exact=True).get_attribute("aria-valuetext")
        box = page.locator(f".ppo-clip-grip-{grip}").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + dx, y + dy, steps=4)
        page.mouse.up()
        now = page.get_by_role("slider", name=name, exact=True).get_attribute("aria-valuetext")
        assert float(now.replace("−", "-")) < float(said.replace("−", "-")), f"dragging the dot left {name} at {now}"
        page.mouse.move(x, y)  # the button is up: nothing follows
        later = page.get_by_role("slider", name=name, exact=True).get_attribute("aria-valuetext")
        assert later == now, "the dot follows a pointer that let go"
    assert clip_readouts(page) != before
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    for theme in ("light", "dark"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        assert_accessible(page, theme)
