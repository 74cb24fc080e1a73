"""Logs: every tracker is told the same numbers, and none of them can stop a run."""

import errno
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from ppo_lib.config import PPOConfigV1
from ppo_lib.running import trackers
from ppo_lib.running.trackers import COLUMNS, Console, JSONLines, SampleLines, log_samples, run_facts
from tests.unit.disk import Disk
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, make, numbers


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def event_files(folder) -> EventAccumulator:
    """What TensorBoard itself reads from a run's folder."""
    [run] = [path for path in (folder / "tensorboard").iterdir() if path.is_dir()]
    reader = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    return reader.Reload()


def from_tensorboard(folder) -> dict[int, dict]:
    reader, found = event_files(folder), {}
    for name in reader.Tags()["scalars"]:
        for event in reader.Scalars(name):
            assert name not in found.setdefault(event.step, {}), f"TensorBoard has two values of {name} at {event.step}"
            found[event.step][name] = event.value
    return found


def wandb_records(file):
    """The protobuf messages of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    data, position, message = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B", f"{file} is no file of Weights & Biases"
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # what is left of a block is too small for a header
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole message, or its last part
            yield message
            message = b""


def from_wandb(folder) -> dict[int, dict]:
    """What an offline run of Weights & Biases would upload."""
    [file] = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    found = {}
    for message in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.setdefault(int(items.pop("_step")), {}).update(items)
    return found


def assert_told(found, rows, tracker, rel):
    """`found` by step holds the numbers of `rows`."""
    assert sorted(found) == [row["update"] for row in rows], f"{tracker} has other updates than metrics.jsonl"
    for row in rows:
        for name, value in row.items():
            assert found[row["update"]].get(name) == pytest.approx(value, rel=rel), f"{tracker} has another {name}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One evaluated run with every tracker on."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("WANDB_SILENT", "true")
        ppo = make(output_dir=str(folder), eval_every=2, report_to=["console", "tensorboard", "wandb"])
        ppo.train(PROMPTS, HELD_OUT)
    return ppo


def rows_of(run):
    return lines(Path(run.config.output_dir) / "metrics.jsonl")


def test_json_lines_hold_the_history_and_the_evaluation_before_it(run):
    first, *rest = rows_of(run)
    assert rest == run.history, "metrics.jsonl is not the history"
    assert first == {"update": 0, "episode": 0, **run.evaluations[0]}, "the evaluation before training is not logged"


def test_tensorboard_reads_the_same_numbers(run):
    assert_told(from_tensorboard(Path(run.config.output_dir)), rows_of(run), "TensorBoard", rel=1e-6)


def test_weights_and_biases_reads_the_same_numbers(run):
    assert_told(from_wandb(Path(run.config.output_dir)), rows_of(run), "Weights & Biases", rel=1e-12)


def test_held_out_texts_are_shown(run):
    folder = Path(run.config.output_dir)
    texts = event_files(folder).Tensors("samples/text_summary")
    assert [event.step for event in texts] == [0, 2, 3], "TensorBoard does not show the texts of each evaluation"
    assert HELD_OUT[0] in texts[-1].tensor_proto.string_val[0].decode(), "TensorBoard's table lacks the prompts"
    assert from_wandb(folder)[3]["samples/nrows"] == len(HELD_OUT), "Weights & Biases does not get the table of texts"


def test_settings_and_circumstances_are_saved_beside_the_logs(run):
    folder = Path(run.config.output_dir)
    assert PPOConfigV1.from_yaml(folder / "config.yaml") == run.config, "config.yaml would not repeat the run"
    [session] = yaml.safe_load((folder / "sessions.yaml").read_text())
    assert session["update"] == 0, "sessions.yaml has a new run begin at a later update"
    assert session["versions"]["torch"] == torch.__version__, "sessions.yaml lacks versions"
    assert session["command"].split()[0] == Path(sys.executable).name, "sessions.yaml lacks the command"
    assert session["device"] == "cpu", "sessions.yaml lacks the device"
    assert session["started"].endswith("UTC"), "sessions.yaml lacks the time, or has it in a zone that nobody knows"


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_facts(torch.device("cpu"))["git_commit"] is None, "a commit is made up where there is no repository"
    monkeypatch.setenv("PATH", "")
    assert run_facts(torch.device("cpu"))["git_changes"] == [], "a machine without git cannot log"


def test_the_commit_is_that_of_the_repository_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def git(*words):
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "a.txt").write_text("ä")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first")
    (tmp_path / "a.txt").write_text("b")
    facts = run_facts(torch.device("cpu"))
    assert facts["git_commit"] == git("rev-parse", "HEAD"), "not the commit that the run was started from"
    assert facts["git_changes"] == ["M a.txt"], f"of one changed file it is said: {facts['git_changes']}"


def test_texts_go_to_weights_and_biases_as_a_table_of_their_update():
    told, rows = [], [{"update": 4, "prompt": "a", "sampled": "b", "score": 1.0}]
    tracker = SimpleNamespace(name="wandb", log_table=lambda *given, **named: told.append((given, named)))
    log_samples([tracker], rows, 4)
    assert told == [(("samples", list(rows[0]), [[4, "a", "b", 1.0]]), {"step": 4})], f"it is told otherwise: {told}"


def test_the_terminal_shows_the_end_of_a_prompt_and_the_beginning_of_a_response(capsys):
    shown = SampleLines()
    prompt, response = "begin " + "p" * 40 + " end", "start " + "r" * 80 + " stop"
    log_samples([shown], [{"update": 7, "prompt": prompt, "sampled": response, "score": 0.5}], 7)
    shown.log({})
    said = capsys.readouterr().out
    assert " end' → 'start r" in said, f"not the part of the texts where one meets the other: {said}"
    assert "begin" not in said and "stop" not in said, f"long texts are not cut: {said}"
    shown.log({})
    assert capsys.readouterr().out == "", "texts are shown twice"


def test_a_resumed_run_goes_on_with_its_logs(tmp_path):
    """It is resumed from before the end of its logs: what came after is not there twice."""
    settings = dict(total_episodes=16, save_every=2, report_to=["tensorboard"], keep_last=9)
    ppo = make(output_dir=str(tmp_path), **settings)
    ppo.train(PROMPTS, callback=lambda ppo, rollout, metrics: metrics["update"] == 3)
    again = make(output_dir=str(tmp_path), resume_from_checkpoint=tmp_path / "checkpoints" / "update-00000002")
    again.train(PROMPTS)
    rows = rows_of(again)
    assert [row["update"] for row in rows] == [1, 2, 3, 4], "updates are logged twice, or not at all"
    assert numbers(rows) == numbers(again.history), "the log of a resumed run is not its history"
    assert_told(from_tensorboard(tmp_path), rows, "TensorBoard", rel=1e-6)
    sessions = yaml.safe_load((tmp_path / "sessions.yaml").read_text())
    assert [session["update"] for session in sessions] == [0, 2], "sessions.yaml does not list each session"


# trackers that fail


class Failing(GeneralTracker):
    """A tracker that fails in all that it is asked to do."""

    name, requires_logging_directory, tracker = "failing", False, None

    def __init__(self, error: BaseException):
        super().__init__()
        self.error, self.asked = error, []

    def log(self, values, step=None, **_):
        self.asked.append(step)
        raise self.error

    def finish(self):
        self.asked.append("finish")
        raise self.error


class Listening(Failing):
    """One that does not fail."""

    name = "listening"

    def log(self, values, step=None, **_):
        self.asked.append(step)

    def finish(self):
        self.asked.append("finish")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("no network is up")])
def test_a_tracker_that_fails_ends_no_run_and_keeps_nothing_from_the_others(error, tmp_path):
    ppo, failing, listening = make(output_dir=str(tmp_path), eval_every=1), Failing(error), Listening(error)
    ppo.accelerator.log_with[:] = [failing, *ppo.accelerator.log_with, listening]
    with pytest.warns(UserWarning, match=r"the tracker failing of `report_to` failed \(.*[Nn]o .*the run goes on"):
        ppo.train(PROMPTS, HELD_OUT)
    assert len(ppo.history) == 3, "a tracker that fails ends the run"
    for tracker in (failing, listening):
        assert tracker.asked == [0, 1, 2, 3, "finish"], f"after one failed, the {tracker.name} tracker is not told all"
    assert [row["update"] for row in rows_of(ppo)] == [0, 1, 2, 3], "after a tracker failed, metrics.jsonl has less"


def test_texts_that_a_tracker_does_not_take_end_no_run():
    board, shown = Tables(), SampleLines()
    board.add_text = lambda *_: 1 / 0
    with pytest.warns(UserWarning, match="the tracker tensorboard of `report_to` failed"):
        log_samples([board, shown], [{"prompt": "a", "sampled": "b"}], 1)
    assert shown.rows, "after a tracker failed, the next one is shown nothing"


class FailingConsole(Failing, Console):
    """The terminal's end of a pipe is closed."""


@pytest.mark.parametrize("tracker", [FailingConsole(BrokenPipeError()), Failing(KeyboardInterrupt())])
def test_a_reader_that_leaves_and_ctrl_c_are_no_failures_of_a_tracker(tracker):
    ppo = make()
    ppo.accelerator.log_with.append(tracker)
    with pytest.raises(type(tracker.error)):
        ppo.train(PROMPTS)
    assert len(ppo.history) == 1, "nobody reads any more, or somebody pressed Ctrl-C, and the run goes on"


# JSON lines


def test_nan_and_infinity_become_null(tmp_path):
    log = JSONLines(tmp_path / "log")
    log.log({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1, "e": "é"})
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "NaN" not in text, "NaN is written, which no JSON reader has to take"
    assert "Infinity" not in text, "infinity is written, which no JSON reader has to take"
    assert json.loads(text) == {"a": None, "b": None, "c": None, "d": 0.1, "e": "é"}, "a number is changed"


def test_lines_that_the_disk_does_not_take_wait_for_it(tmp_path):
    log = JSONLines(tmp_path / "log")
    log.log({"update": 1})
    with Disk(tmp_path, 0, "a full disk"):
        for update in (2, 3):
            with pytest.warns(UserWarning, match="cannot be written .*No space left.*: its lines wait in memory"):
                log.log({"update": update})
        assert (tmp_path / "log").read_text() == '{"update": 1}\n', "half a line is left in the log"
    log.log({"update": 4})
    assert [row["update"] for row in lines(tmp_path / "log")] == [1, 2, 3, 4], "lines that had to wait are lost"


def test_lines_that_are_refused_as_the_file_is_closed_wait_too(tmp_path, monkeypatch):
    """A short text lies in the file's buffer until then, and `write` has said nothing."""

    class Full(io.StringIO):
        def __exit__(self, *error):
            raise OSError(errno.ENOSPC, "No space left on device")

    log = JSONLines(tmp_path / "log")
    with monkeypatch.context() as patch:
        patch.setattr(trackers, "open", lambda *arguments, **names: Full(), raising=False)
        with pytest.warns(UserWarning, match="its lines wait in memory"):
            log.log({"update": 1})
    log.log({"update": 2})
    assert [row["update"] for row in lines(tmp_path / "log")] == [1, 2], "a line refused at the close is forgotten"


@pytest.mark.parametrize("fault", ["a full disk", "a refused permission"])
def test_a_log_that_cannot_be_rewritten_is_not_emptied(fault, tmp_path):
    (tmp_path / "log").write_text('{"update": 8}\n{"update": 9}\n')
    log = JSONLines(tmp_path / "log")
    with Disk(tmp_path, 0, fault), pytest.warns(UserWarning, match="its lines wait in memory"):
        log.rewrite([{"update": 1}, {"update": 2}])
    log.log({"update": 3})
    assert [row["update"] for row in lines(tmp_path / "log")] == [1, 2, 3], f"{fault} empties the log on resuming"


def test_a_log_of_which_the_disk_took_nothing_is_no_run(tmp_path):
    """An empty file would keep the same command from starting anew."""
    with Disk(tmp_path, 0, "a full disk"), pytest.warns(UserWarning, match="wait in memory"):
        JSONLines(tmp_path / "log").log({"update": 1})
    assert not list(tmp_path.iterdir()), "a full disk leaves an empty log, which is taken for another run's"


def test_rewriting_replaces_what_was_there(tmp_path):
    (tmp_path / "log").write_text('{"update": 9}\n{"upd')
    (tmp_path / ".log.part").write_text("left by a death")
    JSONLines(tmp_path / "log").rewrite([{"update": 1}])
    assert lines(tmp_path / "log") == [{"update": 1}], "an old log is not replaced as a whole"
    assert [path.name for path in tmp_path.iterdir()] == ["log"], "rewriting leaves a file behind"


# the console and the tables of texts


def test_the_console_shows_a_table(capsys):
    console, row = Console(), {"update": 7, "episode": 28, "objective/scores": 1.23456, "lr": 1e-3}
    for _ in range(console.header_every + 1):
        console.log(row)
    printed = capsys.readouterr().out.splitlines()
    header = [title for title in printed[0].split("  ") if title.strip()]
    assert len(printed) == console.header_every + 3, "the header is not repeated every so many rows"
    assert printed[0] == printed[-2], "what is repeated is another header than the first"
    assert len(header) == len(COLUMNS), "the header does not name each column once"
    assert printed[1].split() == ["7", "28", "1.235", "0.001"], "a row does not show its numbers"
    assert len(printed[0]) == len(printed[1]), "the columns do not stand under their titles"


class Tables:
    """A stand-in for TensorBoard's tracker and its writer."""

    name = "tensorboard"

    def __init__(self):
        self.tracker, self.shown = self, []

    def add_text(self, name, text, update):
        self.shown.append(text)


def test_a_text_cannot_break_the_table():
    board = Tables()
    log_samples([board], [{"prompt": "a|b", "sampled": "line\nline"}], 1)
    assert board.shown[0].splitlines()[-1] == "| a\\|b | line line |", "a bar or a line break breaks the table"
