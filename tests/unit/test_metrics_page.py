"""The page "Every metric on one page" names what a run logs, no more and no less."""

import re

import toc
from ppo_lib.lab import stored
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, make

PAGE = (toc.ROOT / "book/metrics.md").read_text("utf8")


def test_the_page_names_what_a_run_of_v1_logs():
    first_cells = re.findall(r"^\| (`.+?`) \|", PAGE, re.M)
    named = {name for cell in first_cells for name in re.findall(r"`([\w/]+)`", cell)}
    trainer = make()
    trainer.train(PROMPTS, HELD_OUT)
    logged = set().union(*trainer.history)
    assert named == logged, f"not on the page: {logged - named}; not in the log: {named - logged}"


def test_the_page_shows_each_metric_its_own_numbers():
    for line in PAGE.splitlines():
        names = re.findall(r"`([\w]+/\w+)`", line.split("|")[1]) if line.startswith("| `") else []
        shown = re.findall(r"metrics\.([\w/]+)\.(median|low|high)", line)
        wanted = [(name, which) for name in names for which in ("median", "low", "high")]
        assert not shown or shown == wanted, f"another metric's numbers stand beside {names}"


def test_the_stored_runs_went_well():
    metrics = stored.load("healthy_metrics.json")["metrics"]
    assert metrics["eval/score"]["high"] > 1 and metrics["train/skipped_steps"]["high"] == 0
    assert metrics["objective/scores"]["low"] < metrics["objective/scores"]["median"] < metrics["eval/score"]["high"]
