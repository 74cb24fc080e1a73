"""A reader's run beside the stored ones: what the page is given says what is stored, and every rule has its line."""

import json
import math
import re

import pytest

import toc
import your_run
from ppo_lib.lab import gallery, stored

PAGE = (toc.ROOT / "book/troubleshooting.md").read_text("utf8")
SCRIPTS = {name: (toc.ROOT / f"book/_static/{name}.js").read_text("utf8") for name in ("run-log", "your-run")}
RANGES = stored.load("healthy_metrics.json")["metrics"]


@pytest.fixture(scope="module")
def content() -> dict:
    return your_run.content()


def conditions():
    return [condition for rule in your_run.RULES for condition in rule.when]


def test_every_rule_stands_for_one_line_of_the_page_s_table():
    table = PAGE.split("## What you see, where to look")[1].split("## Bad settings")[0]
    lines = re.findall(r"^\| (.+?) \|", table, re.M)
    seen = [rule.see for rule in your_run.RULES]
    assert all(lines.count(see) == 1 for see in seen), f"no line, or two: {[s for s in seen if lines.count(s) != 1]}"
    assert len(set(seen)) == len(seen), "two rules stand for one line"
    left = set(lines[1:]) - set(seen)
    assert not left, f"the page says of {left} what to look at, and no rule names it in a log"


def test_a_rule_without_a_line_is_noticed():
    first = your_run.RULES[0].see
    assert your_run.lacking(PAGE) == [], "a rule that has its line is said to lack it"
    assert your_run.lacking(PAGE.replace(f"| {first} |", "| something else |")) == [first], "a lost line goes unnoticed"


def test_a_condition_has_one_bound_and_a_phase_that_the_script_knows():
    known = set(re.findall(r'^    "([^"]+)": ', SCRIPTS["run-log"], re.M))
    asked = {c.phase for c in conditions()} | {c.per[1] for c in conditions() if c.per}
    assert all(math.isnan(c.above) != math.isnan(c.below) for c in conditions()), "a condition has no bound, or two"
    assert asked == known, f"run-log.js lacks {asked - known}, or knows for nothing {known - asked}"
    shared = known & set(gallery.PHASES)
    assert len(shared) >= 5, "the phases of the gallery have other names here"


def test_bounds_come_from_the_stored_range(content):
    huge = next(rule for rule in content["rules"] if rule["see"] == "the value loss is huge")["when"][0]
    assert huge["bound"] == 100 * RANGES["loss/value_avg"]["high"], "not 100 times the stored range's upper end"
    assert "100 times the highest of the healthy range" in huge["rule"], "the words do not say where the bound is from"
    low = your_run.Condition("objective/kl", gallery.MEAN, below=2, times="low")
    made = low.content({"objective/kl": {"low": 3.0, "high": 9.0}})
    assert (made["bound"], made["side"]) == (6.0, "below"), "the bound is not a multiple of the range's end"


def test_a_condition_in_words():
    made = your_run.Condition("val/ratio", gallery.FIRST, below=-0.5, per=("gap", gallery.MEAN), size=True).content({})
    assert made["what"] == (
        "size of the mean ratio in the first update, divided by the reward − (score − β KL) on average"
    ), "the words do not say what is compared"
    assert (made["rule"], made["least"]) == ("below −0.5", 1), "other words, or the first update needs many"
    assert your_run.Condition("eval/score", gallery.MEAN, above=0).content({})["least"] == your_run.FEW_JUDGED


def test_panels_show_the_stored_range_and_every_fault(content):
    for panel in content["panels"]:
        low, high = panel["band"]
        assert len(low) == len(high) == your_run.POINTS, f"{panel['metric']}: the band has lost points"
        assert all(a <= b for a, b in zip(low, high, strict=True)), f"{panel['metric']}: the band is upside down"
        wanted = RANGES.get(panel["metric"]) or {end: RANGES["val/num_eos_tokens"][end] / 32 for end in ("low", "high")}
        expected = [float(f"{wanted[end]:.3g}") for end in ("low", "high")]
        assert panel["healthy"] == expected, f"{panel['metric']}: not the stored range"
    titles = [fault.title.replace("`", "") for fault in gallery.FAULTS.values()]
    assert [fault["title"] for fault in content["faults"]] == titles, "a fault cannot be chosen, or has another title"
    for name, fault in zip(gallery.FAULTS, content["faults"], strict=True):
        for run, curves in zip(gallery.runs(name), fault["runs"], strict=True):
            kl, every = curves["objective/kl"], max(1, len(run) // your_run.POINTS)
            assert kl == [float(f"{row['objective/kl']:.3g}") for row in run[::every]], f"{name}: another curve"


def test_a_band_is_the_lowest_and_the_highest_at_each_share(monkeypatch):
    monkeypatch.setattr(your_run, "POINTS", 3)
    runs = [{"m": [0.0, 5.0, 2.0]}, {"m": [1.0, 1.0, 3.0, 3.0, 9.0]}]
    assert your_run.band(runs, "m") == [[0.0, 3.0, 2.0], [1.0, 5.0, 9.0]], (
        "runs of two lengths are not laid over one another"
    )


def test_the_share_that_ends_is_of_the_responses_of_an_update():
    row = {name: 1.0 for name in your_run.PANELS} | {"val/num_eos_tokens": 6.0}
    run = [row | {"update": float(k), "episode": 8.0 * k} for k in range(1, 4)]
    assert your_run.curves(run)["ended"] == [0.75] * 3, "not 6 of 8 responses"


def test_the_script_knows_every_metric_that_a_rule_asks_for(content):
    asked = {name for c in conditions() for name in (c.metric, *(c.per or ())[:1])} - {"gap", "off", "ended"}
    assert asked <= set(content["metrics"]), f"the log's {asked - set(content['metrics'])} is not read"
    assert {panel["metric"] for panel in content["panels"]} - {"ended"} <= set(content["metrics"])


def test_the_page_s_data_is_json_that_a_browser_reads(content):
    text = re.search(r'<script type="application/json">(.*)</script>', your_run.markup(content))[1]
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "</" not in text, "a text could end the script"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_holds_a_stored_number_or_asks_for_anything(name):
    """Bounds and ranges stand in your_run.py and in what is stored; a reader's file goes nowhere."""
    numbers = set(re.findall(r"(?<![\w#.])\d+\.\d{2,}", SCRIPTS[name]))
    assert not numbers, f"{name}.js holds {numbers}"
    asking = re.findall(
        r"fetch|XMLHttpRequest|sendBeacon|WebSocket|localStorage|sessionStorage|indexedDB", SCRIPTS[name]
    )
    assert not asking, f"{name}.js has {asking}"
