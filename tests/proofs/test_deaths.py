"""A checkpoint is written so that a death at any file operation leaves a whole one: every operation is tried.

Beside it, small samples of the long proofs: runs killed and resumed, a full disk, memory that does not grow.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toc
from ppo_lib import worlds
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.running import checkpoint

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")


def save_some(folder: Path, updates: range) -> None:
    for update in updates:
        state = {"update": update, "weights": torch.full((50,), float(update))}
        checkpoint.save_checkpoint(folder, update, state)
        checkpoint.prune(folder, update, keep_last=2, keep=set())


def dies_at(operation: int, folder: Path) -> bool:
    """Save updates 3 to 5 in a child that is killed at its n-th operation on files in `folder`; whether it was."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in OPERATIONS and str(folder) in str(arguments[0]):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(hook)
        save_some(folder, range(3, 6))
    finally:
        os._exit(0)


def test_a_death_at_any_file_operation_leaves_the_last_good_checkpoint(tmp_path):
    operation, died, newest = 0, True, set()
    while died:
        operation += 1
        folder = tmp_path / str(operation)
        save_some(folder, range(1, 3))
        died = dies_at(operation, folder)
        left = {path.name for path in checkpoint.checkpoints(folder)}
        state, path, passed_over = checkpoint.load_newest(folder)
        assert state is not None, f"killed at operation {operation}, no checkpoint is left"
        assert state["update"] >= 2, (
            f"killed at operation {operation}, the last good checkpoint is lost, pruned too soon or changed in place: "
            f"{passed_over}"
        )
        assert path.name == max(left), (
            f"killed at operation {operation}, a broken checkpoint bears its name: {passed_over}"
        )
        assert torch.equal(state["weights"], torch.full((50,), float(state["update"]))), (
            f"killed at operation {operation}, tensors of one update are loaded with the state of another"
        )
        newest.add(state["update"])
        save_some(folder, range(state["update"] + 1, 7))  # the run goes on, and sweeps up
        assert sorted(path.name for path in folder.iterdir()) == ["update-00000005", "update-00000006"], (
            f"killed at operation {operation}, what was half written or pruned stays on the disk for ever"
        )
    assert operation > 40, "the test does not see what saving does to the disk"
    assert newest == {2, 3, 4, 5}, "the test does not reach from before the first of the checkpoints to after the last"


def program(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, str(toc.ROOT / "benchmarks" / name), *arguments],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_killed_runs_resume_and_end_as_if_nothing_had_happened(tmp_path):
    places = [f"--results={tmp_path / 'results'}", f"--work={tmp_path / 'work'}"]
    program("kill_and_resume.py", "--runs=2", "--updates=3", *places)
    found = json.loads((tmp_path / "results/summary.json").read_text())
    same = {name: value for name, value in found.items() if name.endswith("identical")}
    assert found["kills"] >= 2, "the test needs runs that are killed"
    assert found["last_good_ones_lost"] == 0, "a kill cost the last good checkpoint"
    assert found["broken_checkpoints_loaded"] == 0, "a run went on from another than the newest whole checkpoint"
    assert found["runs_resumed_to_the_end"] == 2, "a killed run does not come to its end when it is resumed"
    assert set(same.values()) == {2}, f"a resumed run went another way: {same}"


def run_with_replay(folder: Path, dies_in: int | None = None) -> None:
    """Train, or go on, in a child; it is killed in update `dies_in`, where one is given."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        if dies_in:
            assert os.WIFSIGNALED(status), f"the run was to be killed in update {dies_in}, and ended before"
        else:
            assert os.waitstatus_to_exitcode(status) == 0, "a run with replay fails, or fails to go on after a kill"
        return
    try:
        torch.set_num_threads(1)
        trainer = PPOTrainerWithReplay(
            resume_from_checkpoint=True, output_dir=str(folder), total_episodes=48, batch_size=8, replay_sample_size=24,
            num_ppo_epochs=1, max_replay_reuse=2, save_every=2, device="cpu",
        )  # fmt: skip
        update = trainer.buffer.add  # the last thing that an update does

        def add(rollout, version):
            update(rollout, version)
            if version == dies_in:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.buffer.add = add
        trainer.train(worlds.load("reviews").prompts[:8])
        os._exit(0)
    finally:
        os._exit(1)


def test_a_killed_run_with_replay_goes_on_with_the_same_buffer(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    run_with_replay(tmp_path / "whole")
    for dies_in in (4, 5, None):
        run_with_replay(tmp_path / "killed", dies_in)
    whole, killed = (checkpoint.load_newest(tmp_path / name / "checkpoints")[0] for name in ("whole", "killed"))
    for state in (whole, killed):
        state["history"] = checkpoint.rows_of(state["history"])
    for name in ("weights", "history", "replay", "totals", "generator"):
        assert same(killed[name], whole[name]), f"after two kills a run with replay ends with other {name}"


def same(a, b) -> bool:
    """Equality to the last bit of nested states, but for measured speeds."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "eps")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of resources are POSIX's")
def test_a_full_disk_is_said_and_survived(tmp_path):
    program("disk_full.py", "--limit=file-size", f"--results={tmp_path}")
    found = json.loads((tmp_path / "summary.json").read_text())["file-size"]
    assert found["failed_saves"] == 2, f"a save that the disk does not take is not told, or is no such: {found['said']}"
    assert any("the run goes on" in text for text in found["said"]), f"nobody says that it goes on: {found['said']}"
    assert found["whole_while_full"], "the full disk damaged the checkpoint from before it was full"
    assert found["resumed_from"] == 3, "a resume passes over the last good checkpoint, or takes a half-written one"
    assert not found["half_written_left"], "what was half written stays on the full disk"
    assert all(found["resumed_copy_identical"].values()), "the checkpoint from before the full disk resumed elsewhere"
    end = found["run_itself_identical"]
    assert end["weights"], "the full disk changed what the run learned"
    assert end["metrics"], "lines that the full disk did not take are lost from metrics.jsonl"
    assert end["state"], "the full disk changed the state that the run would go on from"


def test_a_short_soak_leaks_no_files_and_logs_every_update(tmp_path):
    places = [f"--results={tmp_path / 'results'}", f"--work={tmp_path / 'work'}"]
    program("soak.py", "--updates=260", "--warm=50", *places)
    found = json.loads((tmp_path / "results/summary.json").read_text())
    assert found["growth"]["descriptor_growth"] == 0, "files are opened and never closed"
    assert found["growth"]["memory_growth"] < 0.02, "the run keeps something of every update in memory"
    assert found["log"]["whole"], "updates are missing from metrics.jsonl, or are in it twice"
    assert found["log"]["evaluations"] == found["log"]["evaluations_expected"], "evaluations miss from metrics.jsonl"
    assert found["log"] == {"rows": 261, "whole": True, "evaluations": 7, "evaluations_expected": 7}, (
        "metrics.jsonl has not a row before training and one an update, with every 50th evaluated"
    )
    assert found["tensorboard_updates"] == 260, "TensorBoard lacks updates"


def test_the_overhead_is_measured_on_equal_work(tmp_path):
    program("v1_overhead.py", "--pairs=2", f"--results={tmp_path}")
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["same_scores"], "v0 and v1 did different work: their times do not compare"
    assert found["cpu_ratio"]["median"] < 1.5, "v1 with everything off is half as slow again as v0"
    assert found["cpu_ratio"]["median"] > 0.5, (
        "v1 is said to take less than half of v0's time: one of them is not timed"
    )
