"""The replay guide keeps its word: every setting of v2 with its default, every statistic that a run logs."""

import ast
import dataclasses
import re

import pytest

import toc
from ppo_lib.config import REPLAY_SETTINGS, ReplayConfig
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from tests.unit.test_trainer import vowels
from tests.unit.tiny import PROMPTS, byte_tokenizer, likely_eos, tiny_policy

TEXT = (toc.ROOT / "book/replay_guide.md").read_text("utf8")
SETTING = re.compile(r"^`(\w+)` = `([^`]*)`\n: ", re.M)
STATISTICS = re.compile(r"^((?:`(?:replay|efficiency)/\w+`(?:, )?)+)\n: ", re.M)


def trained(**settings) -> PPOTrainerWithReplay:
    sizes = {"batch_size": 4, "minibatch_size": 4, "max_new_tokens": 6, "num_ppo_epochs": 1, "replay_sample_size": 6}
    sizes |= {"total_episodes": 24, "device": "cpu"} | settings
    trainer = PPOTrainerWithReplay(likely_eos(tiny_policy(sharpness=2.0)), vowels, tokenizer=byte_tokenizer(), **sizes)
    trainer.train(PROMPTS)
    return trainer


def test_every_setting_of_replay_is_on_the_page_with_its_default():
    defaults = {name: value for name, value in dataclasses.asdict(ReplayConfig()).items() if name in REPLAY_SETTINGS}
    shown = [(name, ast.literal_eval(default)) for name, default in SETTING.findall(TEXT)]
    names = [name for name, _ in shown]
    assert len(set(names)) == len(names), "a setting of replay is on the page twice"
    assert set(names) == defaults.keys(), f"on the page or in the config alone: {set(names) ^ defaults.keys()}"
    assert dict(shown) == defaults, "a default on the page is not that of the config"


def test_every_statistic_that_a_run_logs_is_on_the_page():
    history = trained().history
    logged = {name for row in history for name in row if name.startswith(("replay/", "efficiency/"))}
    shown = [name for line in STATISTICS.findall(TEXT) for name in re.findall(r"`([^`]+)`", line)]
    assert logged <= set(shown), f"a run logs what the page does not explain: {logged - set(shown)}"
    assert set(shown) <= logged, f"the page explains what no run logs: {set(shown) - logged}"
    assert len(shown) == len(logged), "a statistic is on the page twice"


def test_statistics_that_the_page_speaks_of_exist():
    row = trained().history[-1]
    names = set(re.findall(r"`((?:replay|efficiency|policy|objective|train)/\w+)`", TEXT))
    assert names <= row.keys(), f"the page speaks of statistics that no run logs: {names - row.keys()}"


def test_what_came_in_is_held_or_has_left():
    trainer = trained(replay_buffer_size=10, max_replay_reuse=2, staleness_threshold=3)
    last = trainer.history[-1]
    gone = sum(last[f"replay/{way}"] for way in ("expired", "retired", "evicted"))
    assert last["replay/added"] == last["replay/size"] + gone, (
        "responses leave the buffer uncounted, or are counted twice: the numbers are not all taken before the draw"
    )


def test_reuse_tends_to_one_and_the_ratio_of_replayed_to_fresh():
    """1 + S/F, less the updates in which the buffer was still filling."""
    trainer = trained(replay_sample_size=12, total_episodes=240, max_replay_kl=None, min_ess=0.0)
    ratio = trainer.history[-1]["efficiency/reuse_ratio"]
    assert ratio < 1 + 12 / 4, "more is replayed than was asked for, already while the buffer was filling"
    assert ratio > 1 + 12 / 4 - 0.2, "less is replayed than was asked for: responses retire or expire too soon"


def test_a_draw_that_is_left_out_counts_as_a_use():
    trainer = trained(min_ess=1.0)
    left_out = [row for row in trainer.history if "replay/ess" in row and row["replay/sampled"] == 0]
    assert left_out, "`min_ess` is ignored: every draw is trained on"
    assert trainer.buffer.counts["replayed"] > 0, "a draw that is left out does not count as a use of its responses"
    assert trainer.totals["trained_responses"] == trainer.totals["generated_responses"], (
        "a draw that is left out counts as trained on"
    )


def test_memory_is_what_the_page_says():
    trainer = trained(replay_buffer_size=100)
    assert "12 bytes a token of `max_new_tokens` and 21 a response" in TEXT, "the page says nothing of 12 and 21 bytes"
    assert trainer.buffer.nbytes == 100 * (12 * 6 + 21), "the buffer takes other memory than the page says"


@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_sizes_of_the_buffer_are_fixed_and_other_settings_are_not(tmp_path):
    run = {"output_dir": str(tmp_path / "run"), "save_every": 1}
    trained(**run)
    with pytest.raises(ValueError, match="replay_buffer_size"):
        trained(**run, resume_from_checkpoint=True, replay_buffer_size=50)
    with pytest.warns(UserWarning, match="staleness_threshold"):
        resumed = trained(**run, resume_from_checkpoint=True, staleness_threshold=2)
    assert resumed.buffer.staleness_threshold == 2, (
        "a resumed buffer keeps its old threshold: the new setting is ignored"
    )


def test_the_comparison_counts_the_settings():
    assert len(REPLAY_SETTINGS) == 21, (
        "v2 adds other than twenty-one settings: the comparison of versions is out of date"
    )
    assert "Twenty-one settings more" in (toc.ROOT / "book/versions_compared.md").read_text("utf8"), (
        "the comparison of versions does not say that v2 adds twenty-one settings"
    )
