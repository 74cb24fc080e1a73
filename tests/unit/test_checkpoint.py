"""Checkpoints as files: whole or not there, checked, pruned, and never a way to run code."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ppo_lib.config import PPOConfigV1
from ppo_lib.models import load_policy
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.running import checkpoint
from ppo_lib.running.checkpoint import CheckpointError, load_checkpoint, load_newest, save_checkpoint
from tests.unit.runs_v1 import make
from tests.unit.tiny import byte_tokenizer, tiny_policy


def state(number):
    return {"number": number, "tensor": torch.full((3, 2), float(number))}


def test_what_is_saved_is_what_is_loaded(tmp_path):
    shared = torch.arange(6.0)
    saved = {
        "plain": [1, 2.5, "ü\n", True, None, float("inf"), float("-inf"), 2**70, 0.1 + 0.2],
        "tuples": (1, (2, [3, ()]), torch.tensor([4])),
        "keys": {1: "int", "1": "text", "a/b": {"deep": {}}, "tensor": 3, "dict": {"tuple": 1}},
        "tensors": [shared, shared[2:4], shared.view(2, 3).T, torch.tensor(3), torch.empty(0, 4)],
        "types": [torch.ones(2, dtype=t) for t in (torch.bfloat16, torch.float16, torch.uint8, torch.int64)],
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, 3, saved))

    def same(mine, other, path=""):
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == other.dtype, f"the tensor at {path} comes back in another precision: {other.dtype}"
            assert mine.shape == other.shape, f"the tensor at {path} is a view, saved with all of what it looks at"
            assert torch.equal(mine, other), (
                f"the tensor at {path} has other numbers: its strides are lost, or its place"
            )
            return
        assert type(mine) is type(other), f"the {type(mine).__name__} at {path} became a {type(other).__name__}"
        if isinstance(mine, dict):
            assert list(mine) == list(other), f"the keys at {path} are others"
            mine, other = list(mine.values()), list(other.values())
        if isinstance(mine, (list, tuple)):
            for index, (one, two) in enumerate(zip(mine, other, strict=True)):
                same(one, two, f"{path}/{index}")
        else:
            assert mine == other, f"the value at {path} is another"

    same(saved, loaded)


def test_nan_survives(tmp_path):
    [value] = load_checkpoint(save_checkpoint(tmp_path, 0, {"x": [float("nan")]}))["x"]
    assert value != value, "a NaN in the metrics is lost"


def test_what_cannot_be_saved_is_named(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    with pytest.raises(TypeError, match="a checkpoint cannot hold the set at /a/1"):
        save_checkpoint(tmp_path, 2, {"a": [0, {1, 2}]})
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000001"], "a refused state leaves files behind"


# a death at any moment


class Death(BaseException):
    """The process ends here, and nothing is tidied up."""


def half_written(path, data):
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])


OPERATIONS = {  # what touches the disk, and what it leaves where the process dies in the middle of it
    (Path, "mkdir"): lambda path, *_, **__: None,
    (checkpoint, "save_file"): lambda tensors, path: half_written(path, b"x" * 100),
    (Path, "write_text"): lambda path, text, **_: half_written(path, text.encode()),
    (os, "fsync"): lambda handle: None,
    (shutil, "rmtree"): lambda path, *_, **__: os.remove(Path(path) / checkpoint.STATE),
    (Path, "rename"): lambda path, target: None,
}


def failing_at(number, error, monkeypatch):
    """From now on the operation on the disk with this number, from 0, is done by half and raises `error`."""
    count = [0]

    def failing(sound, half):
        def operation(*arguments, **keywords):
            count[0] += 1
            if count[0] - 1 == number:
                half(*arguments, **keywords)
                raise error
            return sound(*arguments, **keywords)

        return operation

    for (owner, name), half in OPERATIONS.items():
        monkeypatch.setattr(owner, name, failing(getattr(owner, name), half))
    return count


def operations_of_a_save(folder):
    with pytest.MonkeyPatch.context() as monkeypatch:
        count = failing_at(-1, Death(), monkeypatch)
        save_checkpoint(folder, 2, state(2))
    return count[0]


@pytest.mark.parametrize("again", [False, True])
def test_a_death_at_any_moment_of_saving_leaves_a_whole_checkpoint(again, tmp_path):
    """`again`: the checkpoint of this update is there already, from before the run was resumed from an earlier one."""
    folder = tmp_path / "counted"
    save_checkpoint(folder, 1, state(1))
    if again:
        save_checkpoint(folder, 2, state(-2))
    total = operations_of_a_save(folder)
    assert total >= 9, "the test does not see what saving does to the disk"
    outcomes = []
    for number in range(total):
        folder = tmp_path / str(number)
        save_checkpoint(folder, 1, state(1))
        if again:
            save_checkpoint(folder, 2, state(-2))
        with pytest.MonkeyPatch.context() as monkeypatch:
            failing_at(number, Death(), monkeypatch)
            with pytest.raises(Death):
                save_checkpoint(folder, 2, state(2))
        found, path, _ = load_newest(folder)
        assert found, f"a death at operation {number} of saving leaves no checkpoint"
        outcomes.append(found["number"])
        assert torch.equal(found["tensor"], state(found["number"])["tensor"]), "a half-written checkpoint is loaded"
        save_checkpoint(folder, 3, state(3))
        left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("update-"))
        assert not left, f"a death at operation {number} leaves {left} behind for ever"
        assert load_newest(folder)[0]["number"] == 3, f"after a death at operation {number} no checkpoint can be saved"
    assert outcomes[0] != 2, "the test does not begin before the checkpoint is there"
    assert outcomes[-1] == 2, "the test does not reach the moment after the checkpoint is there"


def test_nothing_bears_its_name_before_it_is_on_the_disk(tmp_path, monkeypatch):
    order = []
    for owner, name in OPERATIONS:
        sound = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, n=name, s=sound, **k: order.append(n) or s(*a, **k))
    save_checkpoint(tmp_path, 1, state(1))
    rename = order.index("rename")
    assert order[:rename].count("fsync") == 4, "a checkpoint is renamed before its files and their names are flushed"
    assert order[rename + 1 :] == ["fsync"], "the new name itself is not flushed to the disk"


@pytest.mark.parametrize("number", range(9))
def test_a_full_disk_is_an_error_that_changes_nothing(number, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))
    error = OSError(errno.ENOSPC, "No space left on device")
    failing_at(number, error, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, state(2))
    monkeypatch.undo()
    assert load_newest(tmp_path)[0]["number"] in (1, 2), "a full disk cost the checkpoint before"
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(checkpoint.ASIDE)]
    assert not left, "what was half written stays on the full disk"


def test_safetensors_own_error_is_one_of_the_disk(tmp_path, monkeypatch):
    def full(tensors, path):
        raise checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(tmp_path, 1, state(1))


def test_a_run_goes_on_where_a_checkpoint_cannot_be_saved(tmp_path, monkeypatch):
    ppo = make(output_dir=str(tmp_path), save_every=1)
    sound, saved = checkpoint.save_file, []

    def full_once(tensors, path):
        saved.append(path)
        if len(saved) == 3:  # that of update 2
            raise OSError(errno.ENOSPC, "No space left on device")
        sound(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_once)
    with pytest.warns(UserWarning, match=r"saving a checkpoint after update 2 failed \(.*No space left.*00000001"):
        ppo.train(["a", "b"])
    assert len(ppo.history) == 3, "a checkpoint that cannot be saved ends the run"
    assert load_newest(tmp_path / "checkpoints")[1].name == "update-00000003", "later checkpoints are not saved"


NO_ROOM = [
    OSError(errno.ENOSPC, "No space left on device"),
    checkpoint.SafetensorError("I/O error: No space left on device (os error 28)"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),  # merging adapters takes a copy
]


@pytest.mark.parametrize("error", NO_ROOM, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("name", "what"), [("save", "the best model"), ("state", "a checkpoint")])
def test_whatever_cannot_be_kept_is_told_and_the_run_goes_on(name, what, error, tmp_path):
    """Of update 2, which is the best so far."""
    ppo = make(output_dir=str(tmp_path), eval_every=1, save_every=1)
    ppo.eval_reward = lambda prompts, responses: [float(len(ppo.history))] * len(responses)
    sound = getattr(ppo, name)

    def fails(*arguments):
        if len(ppo.history) == 2:
            raise error
        return sound(*arguments)

    setattr(ppo, name, fails)
    said = rf"saving {what} after update 2 failed \(.*(No space|out of memory).*update-00000001 .*room in `output_dir`"
    with pytest.warns(UserWarning, match=said):
        ppo.train(["a", "b"], ["c"])
    assert len(ppo.history) == 3, f"{what} that cannot be saved ends the run"
    assert load_newest(tmp_path / "checkpoints")[1].name == "update-00000003", "later checkpoints are not saved"


@pytest.mark.parametrize("name", ["save", "state"])
def test_a_mistake_while_saving_is_no_lack_of_room(name, tmp_path):
    ppo = make(output_dir=str(tmp_path), eval_every=1, save_every=1)
    setattr(ppo, name, lambda *_: {}["no such key"])
    with pytest.raises(KeyError):
        ppo.train(["a", "b"], ["c"])


# damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(damage, file, tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    newer = save_checkpoint(tmp_path, 2, state(2))
    if (damage, file) == ("longer", checkpoint.MANIFEST):
        (newer / file).write_text("{}")
    else:
        DAMAGES[damage](newer / file)
    found, path, passed_over = load_newest(tmp_path)
    assert found, f"with a damaged {file} in the newer checkpoint, the whole one before it is not found"
    assert found["number"] == 1, f"a checkpoint with a damaged {file} is loaded: verify its checksums"
    assert path.name == "update-00000001", "the path is that of the broken checkpoint"
    assert len(passed_over) == 1, "it is not said which checkpoint was passed over, or a whole one is said to be"
    assert str(newer) in passed_over[0], f"the broken checkpoint is not named: {passed_over[0]}"
    named = file == checkpoint.MANIFEST or file in passed_over[0]  # a manifest may accuse a file that is sound
    assert named, f"the broken file is not named: {passed_over[0]}"
    with pytest.raises(CheckpointError, match="broken|no whole checkpoint"):
        load_checkpoint(newer)


def test_a_disk_that_does_not_give_a_file_back_is_damage_too(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))
    newer = save_checkpoint(tmp_path, 2, state(2))
    sound = open

    def unreadable(path, *arguments, **keywords):
        if Path(path) == newer / checkpoint.TENSORS:
            raise OSError(errno.EIO, "Input/output error")
        return sound(path, *arguments, **keywords)

    monkeypatch.setattr(checkpoint, "open", unreadable, raising=False)
    assert load_newest(tmp_path)[0]["number"] == 1, "a checkpoint that cannot be read stops the search for a whole one"


def test_where_there_is_none():
    assert load_newest("nowhere") == (None, None, []), "a checkpoint is found in a folder that does not exist"
    with pytest.raises(CheckpointError, match="nowhere is no whole checkpoint"):
        load_checkpoint("nowhere")


# pruning


def names(folder):
    return [int(path.name.removeprefix("update-")) for path in checkpoint.checkpoints(folder)]


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    for update in (1, 2, 3, 10, 20):
        save_checkpoint(tmp_path, update, state(update))
    checkpoint.prune(tmp_path, 20, 2, keep={checkpoint.name_of(2)})
    assert 2 in names(tmp_path), "pruning deletes the best checkpoint"
    assert names(tmp_path) == [2, 10, 20], "pruning does not keep exactly the last `keep_last` and the best"


def test_checkpoints_after_the_newest_one_are_no_reason_to_delete_it(tmp_path):
    """A run that passed over two broken checkpoints, or was resumed from an earlier one, saves before them."""
    for update in (10, 20, 30):
        save_checkpoint(tmp_path, update, state(update))
    for update in (20, 30):
        flip(tmp_path / checkpoint.name_of(update) / checkpoint.STATE)
    save_checkpoint(tmp_path, 11, state(11))
    checkpoint.prune(tmp_path, 11, 2, keep=set())
    assert names(tmp_path) == [10, 11], "broken or abandoned later checkpoints push out those of the run itself"


def test_checkpoints_sort_by_their_numbers(tmp_path):
    for update in (9, 100, 10_000):
        save_checkpoint(tmp_path, update, state(update))
    (tmp_path / "update-notes.txt").write_text("mine")
    assert names(tmp_path) == [9, 100, 10_000], "checkpoints are not taken in the order of their updates"


# files from elsewhere


class Payload:
    """Unpickling it would create the file `marker`."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "code-was-run"
    pickle.loads(pickle.dumps(Payload(path))).close()
    assert path.exists(), "the test needs a pickle that runs code"
    path.unlink()
    yield path
    assert not path.exists(), "loading a file from elsewhere ran the code in it"


def crafted(path, marker, by_torch=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    if by_torch:
        torch.save({"weight": Payload(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(marker)))
    return path


def test_a_fingerprint_tells_where_one_part_ends():
    assert checkpoint.fingerprint("ab", "c") != checkpoint.fingerprint("a", "bc"), "prompts run into each other"
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    parts = (one, two), (one[:1], torch.cat([one[1:], two]))
    first, second = (checkpoint.fingerprint(*part) for part in parts)
    assert first != second, "tensors run into each other"
    assert first == checkpoint.fingerprint(*parts[0]), "the same tensors have another fingerprint the next time"
    assert first != checkpoint.fingerprint(*parts[0][::-1]), "the order of the parts does not count"


@pytest.mark.parametrize("by_torch", [False, True])
def test_a_pickle_in_place_of_a_checkpoint_is_refused(by_torch, marker, tmp_path):
    file = crafted(tmp_path / "checkpoint.pt", marker, by_torch)
    with pytest.raises(CheckpointError, match="Pickled files .* are not loaded: unpickling can run any code"):
        make(resume_from_checkpoint=file)


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.STATE])
def test_a_pickle_with_a_matching_checksum_is_refused(file, marker, tmp_path):
    """Checksums tell damage, not malice: whoever crafts a file can write its checksum too."""
    save_checkpoint(tmp_path / "checkpoints", 1, state(1))
    newer = save_checkpoint(tmp_path / "checkpoints", 2, state(2))
    crafted(newer / file, marker)
    manifest = json.loads((newer / checkpoint.MANIFEST).read_text())
    manifest["sha256"][file] = checkpoint._sha256(newer / file)
    (newer / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    found, _, passed_over = load_newest(tmp_path / "checkpoints")
    assert found["number"] == 1, "a pickle was not refused"
    assert "holds something else than a checkpoint" in passed_over[0], f"the reason is not said: {passed_over[0]}"


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_in_a_model_folder_is_refused(by_torch, marker, tmp_path):
    folder = tmp_path / "model"
    tiny_policy().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    crafted(folder / "pytorch_model.bin", marker, by_torch)
    with pytest.raises(ValueError, match="its weights are pickled, with code .*; take a model whose weights are safe"):
        load_policy(str(folder))


def test_code_in_a_model_folder_is_not_run(marker, tmp_path):
    folder = tmp_path / "model"
    tiny_policy().save_pretrained(folder)
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_policy(str(folder))


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:builtins.open ['{marker}', 'w']",
        "seed: !!python/object/apply:builtins.open ['{marker}', 'w']",
        "lr_scheduler_kwargs: {{a: !!python/object/new:builtins.open ['{marker}', 'w']}}",
        "seed: !!python/name:builtins.open",
    ],
)
def test_code_in_a_config_is_refused(text, marker, tmp_path):
    (tmp_path / "run.yaml").write_text(text.format(marker=marker))
    with pytest.raises(ValueError, match="is not YAML: could not determine a constructor"):
        PPOConfigV1.from_yaml(tmp_path / "run.yaml")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "update-00000001").mkdir()
    with pytest.raises(CheckpointError, match="is no whole checkpoint: its manifest.json cannot be read"):
        PPOTrainer(resume_from_checkpoint=tmp_path / "update-00000001")
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in .*checkpoints"):
        PPOTrainer(resume_from_checkpoint=tmp_path)


@pytest.mark.parametrize(("now", "restored"), [(2, [["one", "two"]]), (1, [])])
def test_random_numbers_of_gpus_come_back_where_there_are_as_many(now, restored, monkeypatch):
    """No GPU is needed: only what torch is told."""
    put = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["one", "two"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: now)
    checkpoint.set_rng_state(checkpoint.rng_state())
    assert put == restored, "the generators of the GPUs are not restored, or are where there are fewer than then"


def test_a_checkpoint_of_today_is_read_by_the_library_of_tomorrow(tmp_path):
    """The format, written down by hand: whoever changes it loses every run that stopped before."""
    folder = tmp_path / "update-00000012"
    folder.mkdir()
    save_file({"/weights/w": torch.arange(3.0), "/pair/1": torch.tensor(7)}, folder / "tensors.safetensors")
    (folder / "state.json").write_text(
        '{"dict": [["number", 12], ["weights", {"dict": [["w", {"tensor": "/weights/w"}]]}], '
        '["pair", {"tuple": ["\\u00fc", {"tensor": "/pair/1"}]}], ["list", [1, null]]]}',
        encoding="utf-8",
    )
    files = ("tensors.safetensors", "state.json")
    sums = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}
    (folder / "manifest.json").write_text(json.dumps({"update": 12, "sha256": sums}))
    try:
        state, path, _ = load_newest(tmp_path)
    except KeyError as error:
        pytest.fail(f"checkpoints that were written before can no longer be read: {error!r}")
    assert path == folder, "checkpoints that were written before are no longer found, or called broken"
    assert state["weights"]["w"].tolist() == [0.0, 1.0, 2.0], "tensors in a dict of an earlier checkpoint are lost"
    assert (state["number"], state["list"], state["pair"]) == (12, [1, None], ("ü", 7)), (
        "what an earlier checkpoint held comes back otherwise"
    )
    written = save_checkpoint(tmp_path / "again", 12, state)
    for file, content in (("state.json", lambda told: told), ("manifest.json", lambda told: [*json.loads(told)])):
        mine, expected = (content((place / file).read_text(encoding="utf-8")) for place in (written, folder))
        assert mine == expected, f"{file} is written in another format, which an earlier version cannot read"


def test_where_a_checkpoint_goes_is_made_and_cleared(tmp_path, monkeypatch):
    """Folders above it; and what a death left behind, which may be held by somebody."""
    place = tmp_path / "a/b/checkpoints"
    save_checkpoint(place, 1, state(1))
    left_over = place / ".writing-update-00000007"
    left_over.mkdir()
    save_checkpoint(place, 2, state(2))
    assert not left_over.exists(), "a half-written checkpoint of a run that died stays for ever"
    (place / ".writing-update-00000008").mkdir()

    def held(path, **how):
        raise PermissionError(f"{path} is in use")

    monkeypatch.setattr(os, "rmdir", held)
    assert save_checkpoint(place, 3, state(3)).is_dir(), "half of an old checkpoint that somebody holds ends the run"
