"""Whatever a run writes, and whatever happens meanwhile: what was good stays good, and the run goes on to the same end.

A tiny run is watched once. Then each thing that it did to the disk, by whatever path of the code, is done by half and
fails, in each of four ways.
"""

import json
import os
import random
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError

from ppo_lib import ppo, ppo_v1
from ppo_lib.running import checkpoint
from ppo_lib.running.checkpoint import load_checkpoint, load_newest
from tests.unit.disk import FAULTS, Death, Disk
from tests.unit.runs_v1 import vowels, weights
from tests.unit.tiny import byte_tokenizer, smallest_policy

RUN = Path("run")  # in a working folder of its own
SETTINGS = dict(
    output_dir="run", batch_size=2, minibatch_size=2, total_episodes=4, max_new_tokens=2, num_ppo_epochs=1,
    eval_every=1, save_every=1, keep_last=1, learning_rate=1e-2, exact_check=False, device="cpu",
)  # fmt: skip
PROMPTS, HELD_OUT = ["a", "bc", "d"], ["e"]  # three prompts in batches of two: a pass is cut in the middle
FOREIGN = ["notes.txt", "best/README.md", "model/critic/notes", "checkpoints/update-00000001 copy/tensors.safetensors",
           "checkpoints/.writing-notes/page", ".best.mine/weights", "checkpoints/update-1"]  # fmt: skip
MINE = b"not the run's"


@pytest.fixture(autouse=True)
def the_same_bytes_each_time(monkeypatch):
    """No clock, no number by chance and no name of a machine is left, so that equal runs write equal files."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(ppo, "time", SimpleNamespace(perf_counter=iter(range(10**9)).__next__))
    monkeypatch.setattr(ppo_v1, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="id")))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls a plug here
    monkeypatch.setattr(ppo_v1, "run_facts", lambda device: {"command": "python", "device": str(device)})


def trainer(**others):
    """Each of its evaluations is a new best."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    begins = not (others.get("resume_from_checkpoint") and checkpoint.checkpoints(RUN / "checkpoints"))
    settings = {**SETTINGS, **others} if begins else {"output_dir": "run", **others}
    made = ppo_v1.PPOTrainer(
        smallest_policy(), vowels, tokenizer=byte_tokenizer(), **settings,
        eval_reward=lambda prompts, responses: [float(len(made.history))] * len(responses),
    )  # fmt: skip
    return made


def begin(**settings):
    ppo = trainer(**settings)
    ppo.train(PROMPTS, HELD_OUT)
    return ppo


def stop_after_one(**settings):
    trainer(**settings).train(PROMPTS, HELD_OUT, callback=lambda *_: True)


def go_on(**settings):
    return begin(**settings | dict(resume_from_checkpoint=True))


SCENARIOS = {  # what is there before the run that is watched, its settings, and which of its operations are new
    "begun": (lambda: None, {}, lambda path: True),
    "resumed": (stop_after_one, dict(resume_from_checkpoint=True), lambda path: "metrics" in path or ".yaml" in path),
    "with adapters": (lambda: None, dict(lora_rank=1), lambda path: path.startswith(".ppo_lib")),
}


def contents(folder) -> dict[str, bytes]:
    """Every file, but those of others and the list of sessions."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "sessions.yaml")
    files = (path for path in files if path.read_bytes() != MINE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def below(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {path.removeprefix(f"{name}/"): data for path, data in files.items() if path.startswith(f"{name}/")}


def put_foreign_files() -> None:
    for name in FOREIGN:
        (RUN / name).parent.mkdir(parents=True, exist_ok=True)
        (RUN / name).write_bytes(MINE)


class Watched:
    """A scenario, seen once without a fault."""

    def __init__(self, name: str, folder: Path):
        self.before, self.settings, self.is_new = SCENARIOS[name]
        self.saves = {"best": [], "model": []}  # what each save made of the folder, from what was there before
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            self.before()
            put_foreign_files()
            self.start = contents(RUN)
            for name in self.saves:
                self.saves[name].append(below(name, self.start))
            with Disk(RUN) as disk:
                ppo = trainer(**self.settings)
                ppo.save = lambda place: type(ppo).save(ppo, place) or self.saves[place.name].append(contents(place))
                ppo.train(PROMPTS, HELD_OUT)
            self.seen, self.end, self.weights = disk.seen, contents(RUN), weights(ppo)
        first = (n for n, operation in enumerate(self.seen) if operation[1].startswith(("checkpoints/", "metrics")))
        self.begins = next(first)

    def whole_before(self, number: int) -> int:
        """The update of the newest checkpoint that was whole before this operation; −1 where there was none."""
        named = [name for name in self.start if name.endswith(checkpoint.MANIFEST)]
        named += [operation[2] for operation in self.seen[:number] if operation[0] == "rename"]
        return max((int(n.split("update-")[1][:8]) for n in named if n.startswith("checkpoints/update-")), default=-1)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Each scenario by name, watched when it is first asked for."""
    seen = {}

    def get(name):
        if name not in seen:
            seen[name] = Watched(name, tmp_path_factory.mktemp("watched"))
        return seen[name]

    return get


def kind(operation: tuple[str, ...]) -> tuple[str, str]:
    """The operation without numbers; the files of a model that is written aside are alike."""
    verb, path = operation[:2]
    aside = re.match(r"\.(\w*)\.?ppo_lib-writing-", path)
    return verb, f"{aside[1] or 'a trial'}, written aside" if aside else re.sub(r"\d+", "#", path)


AT = {  # what a fault is tried at, and at which of the operations of a kind
    "a full disk": ({"write", "make", "flush"}, lambda numbers: numbers[(len(numbers) - 1) // 2]),
    "a refused permission": ({"rename", "link", "remove"}, lambda numbers: numbers[0]),
    "Ctrl-C": ({"write", "rename", "link", "remove"}, lambda numbers: numbers[len(numbers) // 2]),
    "kill -9": ({"write", "rename", "link", "remove"}, lambda numbers: numbers[-1]),
}


def chosen(seen: Watched, fault: str) -> list[int]:
    """One operation of each kind."""
    verbs, pick = AT[fault]
    found: dict[tuple, list[int]] = {}
    for number, operation in enumerate(seen.seen):
        if operation[0] in verbs and seen.is_new(operation[1]):
            found.setdefault(kind(operation), []).append(number)
    return [pick(numbers) for numbers in found.values()]


def hit(seen: Watched, number: int, fault: str):
    """The run of `seen`, hit by `fault` at operation `number`: its trainer, what it raised, and what it said."""
    seen.before()
    put_foreign_files()
    raised, ppo = None, None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with Disk(RUN, number, fault) as disk:
            try:
                ppo = trainer(**seen.settings)
                ppo.train(PROMPTS, HELD_OUT)
            except (OSError, SafetensorError, ValueError, KeyboardInterrupt, Death) as error:
                raised = error
    assert disk.happened, "the test hits nothing"
    notes = [str(raised), *getattr(raised, "__notes__", ())] if raised else []
    return ppo, raised, "\n".join([*notes, *(str(warning.message) for warning in said)])


def check_what_is_left(seen: Watched, number: int, fault: str, where: str) -> None:
    """Every checkpoint is whole, the newest is as new as it was, logs have whole lines, foreign files are there."""
    for path in checkpoint.checkpoints(RUN / "checkpoints"):
        load_checkpoint(path)
    _, newest, _ = load_newest(RUN / "checkpoints")
    before = seen.whole_before(number)
    found = int(newest.name.removeprefix(checkpoint.PREFIX)) if newest else -1
    assert found >= before, f"{where}, the last good checkpoint is lost"
    check_log(where, may_be_cut=fault == "kill -9")
    for name in ("config.yaml", "sessions.yaml"):
        assert not (RUN / name).exists() or parsed(RUN / name), f"{where}, {name} is damaged"
    for name, saves in seen.saves.items():
        found = below(name, contents(RUN))
        if fault == "kill -9":  # it may come between the moves of two files
            whole = all(any(data == save.get(path) for save in saves) for path, data in found.items())
            assert whole, f"{where}, a file in {name}/ is half written"
        else:
            assert found in saves, f"{where}, {name}/ is neither what was saved before nor what was being saved"
    lost = [name for name in FOREIGN if not (RUN / name).exists()]
    assert not lost, f"{where}, what was not the run's is removed: {lost}"


def parsed(path: Path) -> dict | list | None:
    """What a YAML file holds; None where it is damaged."""
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        return None


def check_log(where: str, may_be_cut: bool = False) -> int:
    """metrics.jsonl has one whole line for each update from 0 on; how many."""
    log = RUN / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    if may_be_cut and lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        updates = [json.loads(line)["update"] for line in lines]
    except ValueError:
        updates = None
    said = f"{where}, metrics.jsonl has half lines, or some twice or not at all: {[line[-30:] for line in lines]}"
    assert updates == [*range(len(lines))], said
    return len(lines)


def check_what_was_said(seen: Watched, number: int, ppo, said: str, where: str) -> None:
    """A disk that fails ends no run that has begun; what failed is told, and where to look."""
    if number >= seen.begins:
        assert len(ppo.history) == 2, f"{where}, the run ends, and need not: {said}"
        moved = [name for name, weight in weights(ppo).items() if not torch.equal(weight, seen.weights[name])]
        assert not moved, f"{where}, the run goes on to other weights: {moved}"
    if seen.seen[number][0] == "link":  # a disk without links takes copies
        return
    places = ("`output_dir`", "metrics.jsonl cannot be written", "the models are in")
    assert any(place in said for place in places), f"{where}, it is not said where to look: {said}"


def check_a_second_train(ppo, where: str) -> None:
    """The same trainer goes on with its run, or where that was over begins another."""
    ppo.train(PROMPTS, HELD_OUT)
    updates = [*range(len(ppo.history) + 1)]
    assert [row["update"] for row in ppo.history] == updates[1:], f"{where}, a second `train` counts updates otherwise"
    assert check_log(where) == len(updates), f"{where}, a second `train` does not log each update"
    told = [row["update"] for row in ppo.evaluations]
    assert told == updates, f"{where}, a second `train` does not evaluate each update once: {told}"
    state, path, _ = load_newest(RUN / "checkpoints")
    assert path.name == checkpoint.name_of(updates[-1]), f"{where}, a second `train` does not save its end"
    same = below("best", contents(RUN)) == below("model", contents(RUN))
    assert same and ppo.best.update == updates[-1], f"{where}, best/ is not the model of the best score"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_file_is_written_that_the_watcher_does_not_see(scenario, watched):
    seen, known = watched(scenario), set(watched(scenario).start)
    for verb, path, *to in seen.seen:
        if verb == "write":
            known.add(path)
        elif verb == "rename":
            known = {str(Path(*to, Path(name).relative_to(path))) if Path(name).is_relative_to(path) else name
                     for name in known}  # fmt: skip
    unseen = sorted(seen.end.keys() - known)
    assert not unseen, f"nobody has tried what happens when these cannot be written; teach `Disk` to see them: {unseen}"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_fails_what_was_good_is_left_and_the_run_goes_on(scenario, fault, watched, tmp_path, monkeypatch):
    seen = watched(scenario)
    for number in chosen(seen, fault):
        where = f"after {fault} at `{' '.join(seen.seen[number])}` (operation {number}) in a run {scenario}"
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        ppo, raised, said = hit(seen, number, fault)
        check_what_is_left(seen, number, fault, where)
        if issubclass(FAULTS[fault][0], Exception):
            check_what_was_said(seen, number, ppo, said, where)
        else:
            assert isinstance(raised, FAULTS[fault][0]), f"{where}, it is not heard"
        if fault == "Ctrl-C":
            check_a_second_train(ppo, where)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            go_on(**seen.settings)
        check_log(where)
        assert isinstance(parsed(RUN / "sessions.yaml"), list), f"{where}, sessions.yaml is no list of sessions"
        end = contents(RUN)
        differ = sorted(name for name in seen.end if end.get(name) != seen.end[name])
        assert not differ, f"{where}, the resumed run leaves other files than a whole one: {differ}"
        left = [name for name in end.keys() - seen.end.keys() if not name.startswith("checkpoints/")]
        assert not left, f"{where}, files are left behind for ever: {left}"
