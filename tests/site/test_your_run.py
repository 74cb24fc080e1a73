"""A reader's log on the troubleshooting page: stored faults are named, healthy runs are not, and nothing is sent."""

import json
import math
import re

import pytest
from playwright.sync_api import TimeoutError

from built import set_theme
from ppo_lib.lab import gallery, stored
from test_accessibility import AXE, RUN
from window import assert_sound

PAGE = "book/troubleshooting.html"
HEALTHY = ("healthy", "healthy_proxy", "healthy_cool")
RUNS = [(name, seed) for name in (*HEALTHY, *gallery.FAULTS) for seed in (0, 1)]
CURVES = ("objective/scores", "objective/kl", "val/ratio")  # enough to be a log


def logged(rows) -> list[dict]:
    """Stored rows as a run writes them: without what is not there, and without what the gallery adds."""
    own = [{name: value for name, value in row.items() if name not in ("seed", "run", "gap")} for row in rows]
    return [{k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))} for row in own]


def text_of(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def log_of(name: str, seed: int = 0) -> str:
    return text_of(logged(gallery.runs(name)[seed]))


def choose(page, text, name: str = "metrics.jsonl") -> str:
    """Give the page a file, and return what it says once it has read it."""
    content = text if isinstance(text, bytes) else text.encode()
    page.set_input_files(".your-run input", {"name": name, "mimeType": "", "buffer": content})
    return said(page)


def said(page) -> str:
    page.wait_for_function(
        "() => { const t = document.querySelector('.your-run [role=status]').textContent;"
        " return t && !t.startsWith('Reading'); }"
    )
    return page.locator(".your-run [role=status]").inner_text()


def symptoms(page) -> list[str]:
    return page.locator(".your-run .symptoms b").all_text_contents()


def drawn(page) -> list[dict]:
    """The traces of the figure."""
    page.wait_for_selector(".your-run figure[data-drawn]")
    return page.evaluate(
        "() => document.querySelector('.your-run .plotly-plot').data"
        ".map(({ xaxis, y, text, line }) => ({ xaxis, y: [...y], name: text[0], colour: line.color }))"
    )


@pytest.fixture(scope="module")
def window(windows):
    """One page for the tests that leave it fit for the next one."""
    window = windows("your run", over="file").open(PAGE)
    yield window
    assert_sound(window, PAGE)


@pytest.fixture
def page(window):
    """The page, with no stored run laid beside."""
    if window.page.locator(".your-run .result").is_visible():
        window.page.select_option(".your-run select", "")
    return window.page


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_every_stored_fault_is_named_and_a_healthy_run_is_not(page, name, seed):
    status = choose(page, log_of(name, seed), f"{name}-{seed}.jsonl")
    assert status.startswith(f"{name}-{seed}.jsonl: {len(gallery.runs(name)[seed])} updates.")
    found = symptoms(page)
    if name in HEALTHY:
        assert not found and "No symptom found." in status, f"a healthy run is said to have {found}"
        return
    assert f"{len(found)} symptom" in status, "the status counts other symptoms than are listed"
    titles = page.locator(".your-run optgroup").first.locator("option").all_text_contents()
    title = gallery.FAULTS[name].title.replace("`", "")
    assert title in titles[:5], f"{found} lead to {titles}, and not first of all to {title!r}"


def rate() -> tuple[dict, dict]:
    """The runs of chapter 9 from 24 seeds, which set no bound: KL held, and not held."""
    rows = stored.load("when_to_stop/curves.csv")
    kinds = {}
    for kind in ("leashed", "free"):
        own = [row | {"eval/score": row["gold"]} for row in rows if row["run"] == kind]
        seeds = sorted({row["seed"] for row in own})
        kinds[kind] = [text_of(logged([row for row in own if row["seed"] == seed])) for seed in seeds]
    return kinds


def test_the_rate_on_runs_that_set_no_bound_is_the_one_that_the_page_states(page):
    judged = page.evaluate(
        """(logs) => {
          const { rules, metrics } = JSON.parse(document.querySelector('.your-run > script').textContent);
          return logs.map((log) => runLog.judge(runLog.read(log, metrics), rules).found.map(({ rule }) => rule.see));
        }""",
        [*rate()["leashed"], *rate()["free"]],
    )
    healthy, faulty = judged[:24], judged[24:]
    named = [found for found in healthy if found]
    words = page.locator("#your-run-beside-ours").inner_text()
    assert len(named) == 1 and len(named[0]) == 1, f"of 24 runs whose KL was held, symptoms are named in {named}"
    assert "one symptom in one of the 24 that were well" in words
    fault = "the training score rises, your own judgement falls"
    assert all(fault in found for found in faulty), "a run whose KL nothing held is not named"
    assert "the fault of all 24 whose KL nothing held" in words
    assert f"each of the {2 * len(gallery.FAULTS)} faulty runs" in words


def test_what_the_page_says_of_a_real_model_is_so(page):
    for seed in (0, 1):
        choose(page, text_of(logged(stored.load(f"smollm2_vader/seed{seed}/metrics.csv"))))
        assert symptoms(page) == ["KL is a little off 0 in the first update", "few responses end"]
    assert "In two runs of SmolLM2" in page.locator("#your-run-beside-ours").inner_text()


def test_a_symptom_has_its_numbers_and_leads_to_the_sections_of_its_line(page):
    choose(page, log_of("kl_sign"))
    item = page.locator(".your-run .symptoms li", has_text="reward ≠ score − β KL")
    assert re.search(r"is 7\.32 \(the rule: above 0\.02\)", item.inner_text()), item.inner_text()
    links = item.get_by_role("link")
    assert links.all_text_contents() == ["KL sign", "score on padding"]
    links.first.click()
    assert page.evaluate("location.hash") == "#the-kl-penalty-has-the-wrong-sign"
    words = page.locator(".your-run .proof").inner_text()
    assert "may have another cause" in words and "tiny model" in words, "it promises more than it knows"
    choose(page, log_of("healthy"))
    assert "no proof of health" in page.locator(".your-run .proof").inner_text()


def test_the_picture_is_the_reader_s_run_the_healthy_band_and_the_fault_that_was_chosen(page):
    rows = logged(gallery.runs("loss_sign")[0])
    choose(page, text_of(rows), "mine.jsonl")
    content = json.loads(page.locator(".your-run > script").text_content())
    kl = next(panel for panel in content["panels"] if panel["metric"] == "objective/kl")
    curves = [trace for trace in drawn(page) if trace["xaxis"] == "x2"]
    assert [trace["y"] for trace in curves] == [*kl["band"], [row["objective/kl"] for row in rows]]
    assert curves[-1]["name"].startswith("yours, update 1: ")
    page.get_by_label("Lay a stored run with a fault beside it").select_option(
        label="The KL penalty has the wrong sign"
    )
    page.wait_for_function("() => document.querySelector('.your-run .plotly-plot').data.length % 5 === 0")
    fault = next(fault for fault in content["faults"] if fault["title"] == "The KL penalty has the wrong sign")
    curves = [trace for trace in drawn(page) if trace["xaxis"] == "x2"]
    assert [trace["y"] for trace in curves[2:4]] == [run["objective/kl"] for run in fault["runs"]]
    assert "mine.jsonl" in page.locator(".your-run .plotly-plot").get_attribute("aria-label")
    page.locator(".your-run summary").click()
    first, end = rows[0]["objective/scores"], sum(row["objective/scores"] for row in rows[-5:]) / 5
    cells = page.locator(".your-run tbody tr").first.locator("th, td").all_text_contents()
    shown = [float(cell.replace("−", "-")) for cell in cells[1:3]]
    assert cells[0] == "score" and shown == pytest.approx([first, end], rel=0.01), cells
    page.locator(".your-run summary").click()


BAD = {
    "empty": ("", "It is empty"),
    "blank lines": ("\n \n", "It is empty"),
    "no JSON": ("update,score\n1,0.5\n", "no log of JSON lines"),
    "one object over many lines": (
        json.dumps({"log_history": [{"objective/kl": 1}]}, indent=1),
        "no log of JSON lines",
    ),
    "a list": (json.dumps([{"objective/kl": 1}]) + "\n", "no log of JSON lines"),
    "numbers": ("1\n2\n", "no log of JSON lines"),
    "another program": ('{"loss": 2.5, "step": 1}\n', "No line has a metric that this page knows"),
    "before the first update": ('{"update": 0, "eval/score": 0.2}\n', "no update yet"),
    "no number": ('{"samples": "text"}\n', "Its first line has samples."),
    "no text": (bytes(range(256)) * 4, "no log of JSON lines"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_log_is_told_and_costs_no_drawing(page, case):
    choose(page, log_of("kl_sign"), "before.jsonl")
    before = drawn(page)
    text, words = BAD[case]
    status = choose(page, text, "bad.jsonl")
    assert status.startswith("bad.jsonl: ") and words in status, status
    assert status.endswith("The picture below still is of before.jsonl.")
    assert drawn(page) == before and "KL explodes" in symptoms(page), "the earlier drawing is lost"


def test_a_huge_file_is_not_read(page, tmp_path):
    choose(page, log_of("healthy"), "before.jsonl")
    path = tmp_path / "huge.jsonl"
    with open(path, "wb") as file:
        file.truncate(51_000_001)
    page.set_input_files(".your-run input", path)
    status = said(page)
    assert "huge.jsonl has 52 MB, and this page reads up to 50." in status and "awk" in status, status
    assert "still is of before.jsonl" in status and drawn(page)


def test_a_folder_or_a_file_that_is_gone_is_told(page):
    page.evaluate("() => { File.prototype.text = () => Promise.reject(new DOMException('gone')); }")
    status = choose(page, log_of("healthy"))
    page.evaluate("() => { delete File.prototype.text; }")
    assert "choose a file, not a folder" in status, status


def rows(count: int = 12, **more) -> list[dict]:
    return [
        {
            "update": k,
            "episode": 8 * k,
            "objective/scores": 0.1 * k,
            "objective/kl": 0.3 * (k - 1),
            "val/ratio": 1,
            **more,
        }
        for k in range(1, count + 1)
    ]


NAN = (
    text_of(rows())
    .replace('"objective/kl": 3.3', '"objective/kl": NaN')
    .replace('"val/ratio": 1}', '"val/ratio": -Infinity}', 1)
)
HELD_OUT = {"update": 0, "episode": 0, "eval/score": 0.2, "eval/kl": 0.0, "eval/length": 9.0}
READ = {
    "cut off": (text_of(rows()) + '{"update": 13, "objec', ["12 updates", "The last line is cut off"]),
    "without its last newline": (text_of(rows()).rstrip("\n"), ["12 updates. No symptom found."]),
    "NaN and Infinity": (NAN, ["12 updates", "2 numbers are NaN"]),
    "null, as v1 writes them": (text_of([*rows(11), *rows(12, **{"objective/kl": None})[-1:]]), ["1 number is NaN"]),
    "a line of something else": (
        text_of(rows()) + "Killed\n" + text_of(rows(13)[-1:]),
        ["13 updates", "1 line is not JSON"],
    ),
    "Windows": ("\ufeff" + text_of(rows()).replace("\n", "\r\n"), ["12 updates. No symptom found."]),
    "two runs": (log_of("kl_sign") + text_of(rows()), ["12 updates", "It holds 2 runs"]),
    "held-out lines": (text_of([HELD_OUT, *rows()]), ["12 updates. No symptom found."]),
    "replay": (text_of(rows(**{"replay/ess": 0.9, "efficiency/tokens": 100})), ["12 updates. No symptom found."]),
    "one update": (text_of(rows(1)), ["1 update. No symptom found."]),
}


@pytest.mark.parametrize("case", READ)
def test_an_odd_log_is_read_and_what_is_odd_is_said(page, case):
    text, words = READ[case]
    status = choose(page, text)
    assert all(word in status for word in words), status
    assert len(drawn(page)) == 3 * len(CURVES), "a panel of a metric that the log lacks, or one too few"


def test_a_log_of_trl_is_judged_too(page):
    """The same names, and neither updates nor a length."""
    own = [
        {k: v for k, v in row.items() if k not in ("update", "response/length")}
        for row in logged(gallery.runs("too_short")[1])
    ]
    status = choose(page, text_of([row | {"epoch": 0.1} for row in own]))
    assert "24 updates" in status and "few responses end" in symptoms(page)
    unjudged = page.locator(".your-run .proof").inner_text()
    assert "Not judged" in unjudged and "“responses become short”" in unjudged
    assert drawn(page)[2]["name"].startswith("yours, update 1: ")


def test_a_log_that_begins_later_is_not_asked_for_its_first_update(page):
    later = [row for row in logged(gallery.runs("mask_with_padding")[0]) if row["update"] > 3]
    choose(page, text_of(later))
    assert "KL is far from 0 in the first update" not in symptoms(page)
    assert "“KL is far from 0 in the first update”" in page.locator(".your-run .proof").inner_text()


def test_a_log_without_a_curve_is_judged_and_not_drawn(page):
    status = choose(page, text_of([{"update": k, "train/skipped_steps": 1} for k in range(1, 13)]))
    assert "1 symptom is named below" in status and not page.locator(".your-run .picture").is_visible()


def test_skipped_steps_are_named(page):
    choose(page, text_of([row | {"train/skipped_steps": 2.0} for row in rows()]))
    assert symptoms(page) == ["optimiser steps are left out"]


def test_a_long_log_is_thinned_for_the_picture_alone(page):
    many = [{"update": k, "objective/kl": 100.0 if k == 1001 else 1.0} for k in range(1, 3001)]
    assert choose(page, text_of(many)).startswith("metrics.jsonl: 3000 updates.")
    assert 500 < len(drawn(page)[-1]["y"]) <= 602


def test_nothing_is_asked_for_and_nothing_is_kept(windows):
    page = windows("your run alone").open(PAGE).page
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    choose(page, log_of("kl_sign"))
    page.select_option(".your-run select", "0")
    assert drawn(page) and not asked, f"a file was chosen, and the page asked for {asked}"
    kept = page.evaluate("() => JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie")
    assert "kl" not in kept and "metrics" not in kept, kept


def chooser_after(page, key: str):
    """The browser's dialog. It opens for a press that was just made, which on a busy machine may be long ago."""
    for _ in range(3):
        try:
            with page.expect_file_chooser(timeout=10_000) as opened:
                page.keyboard.press(key)
            return opened.value
        except TimeoutError:
            continue
    raise AssertionError(f"{key} opens no dialog")


def test_the_keyboard_is_enough(visit):
    page = visit(PAGE).page
    page.evaluate("document.addEventListener('keydown', () => { window.leaked = true; })")
    field = page.get_by_label("Choose your metrics.jsonl, or drop it here")
    field.focus()
    outline = "getComputedStyle(document.querySelector('.your-run .zone')).outlineStyle"
    assert page.evaluate(outline) == "solid", "who comes by keyboard does not see where"
    text = log_of("too_short").encode()
    chooser_after(page, "Enter").set_files({"name": "metrics.jsonl", "mimeType": "", "buffer": text})
    assert "is named below" in said(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "max_new_tokens", "the symptom's link comes next"
    page.locator(".your-run select").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".your-run select").input_value() != ""
    assert not page.evaluate("window.leaked"), "a key pressed here reached the page and may turn the leaf"


DROP = """([text, target]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], 'dropped.jsonl'));
  const place = document.querySelector(target);
  const event = (kind) => new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  const over = !place.dispatchEvent(event('dragover'));
  const lit = document.querySelector('.your-run .zone.over') !== null;
  return [over, lit, !place.dispatchEvent(event('drop')), document.querySelector('.your-run .zone.over') !== null];
}"""


@pytest.mark.parametrize("target", [".your-run .zone", "h1"])
def test_a_file_may_be_dropped_on_the_zone_or_beside_it(page, target):
    taken = page.evaluate(DROP, [log_of("kl_sign"), target])
    assert taken == [True, True, True, False], "the browser would open the file in the page's place"
    page.wait_for_function("() => document.querySelector('.your-run [role=status]').textContent.startsWith('dropped')")
    assert "KL explodes" in symptoms(page)


def test_a_text_that_is_dragged_over_the_page_is_left_alone(page):
    drag = "new DragEvent('dragover', { dataTransfer: new DataTransfer(), cancelable: true, bubbles: true })"
    assert page.evaluate(f"document.body.dispatchEvent({drag})"), "dragging anything but a file is stopped"


def test_the_same_file_can_be_chosen_again(page):
    """A run that goes on: its log is longer than a minute ago."""
    assert "12 updates" in choose(page, text_of(rows()))
    page.set_input_files(".your-run input", [])
    assert "13 updates" in choose(page, text_of(rows(13)))


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_it_fits_and_can_be_read(visit, theme, width):
    page = visit(PAGE, theme=theme, width=width).page
    choose(page, log_of("learning_rate_high", 1))
    page.select_option(".your-run select", index=1)
    page.locator(".your-run summary").click()
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.add_script_tag(path=str(AXE))
    violations = page.evaluate(RUN.replace("article.bd-article, .bd-search-container", ".your-run"), [[], None])
    assert not violations, "; ".join(violations)
    other = {"light": "dark", "dark": "light"}[theme]
    set_theme(page, other)
    assert page.locator(".your-run figure").get_attribute("data-drawn") == other


def test_without_javascript_the_page_says_so_and_reads_as_before(browser, bases):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(bases["file"] + PAGE)
    assert page.locator(".your-run noscript p").is_visible()
    assert not page.locator(".your-run .zone").is_visible()
    assert page.get_by_role("link", name="learning rate too low").first.is_visible()
    context.close()
