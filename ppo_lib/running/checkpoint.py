"""Checkpoints: the whole state of a run, written so that a death at any moment leaves a whole one behind.

A checkpoint is a folder of three files: `tensors.safetensors`, `state.json` (everything else) and `manifest.json` (the
SHA-256 of the other two). Nothing in it is ever unpickled, so loading one cannot run code. The folder is written aside,
flushed to the disk and renamed: one that bears its name is whole unless the disk itself failed, and the checksums tell.
"""

import errno
import hashlib
import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
LOGGER = logging.getLogger(__name__)
PREFIX, ASIDE = "update-", ".writing-"


class CheckpointError(ValueError):
    """A checkpoint is missing, broken or of another run; the message says what to do."""


def save_checkpoint(folder: str | Path, update: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `update` in `folder`, replacing one of the same update.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

    Returns:
        The checkpoint's own folder, `folder/update-00000012` say.

    Raises:
        OSError: the disk is full, say. What was there before is untouched, and the half-written folder is removed.
        TypeError: `state` holds something else.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(f"{ASIDE}{PREFIX}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    name = name_of(update)
    aside, target = folder / (ASIDE + name), folder / name
    tensors: dict[str, Tensor] = {}
    plain = _pack(state, "", tensors)
    try:
        aside.mkdir()
        save_file(tensors, aside / TENSORS)
        (aside / STATE).write_text(json.dumps(plain), encoding="utf-8")
        manifest = {"update": update, "sha256": {file: _sha256(aside / file) for file in (TENSORS, STATE)}}
        (aside / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        for file in (TENSORS, STATE, MANIFEST):
            _flush(aside / file)
        _flush(aside)
        if target.exists():  # the same update, saved before a run was resumed from an earlier one
            _remove(target)
        aside.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, SafetensorError):  # how safetensors reports a full disk
            raise OSError(str(error)) from error
        raise
    return target


def name_of(update: int) -> str:
    """The name of the checkpoint after `update` updates."""
    return f"{PREFIX}{update:08d}"


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote to its `folder`, with tensors on the CPU.

    Raises:
        CheckpointError: the folder is no checkpoint, or a file in it is missing or not the one that was written.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file, and a checkpoint is a folder. Pickled files (.pt, .pth, .bin, .pkl) are not loaded: "
            "unpickling can run any code"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        checksums = {file: manifest["sha256"][file] for file in (TENSORS, STATE)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint: its {MANIFEST} cannot be read ({error})") from error
    for file, checksum in checksums.items():
        if _sha256(folder / file) != checksum:
            raise CheckpointError(f"{folder} is broken: {file} is missing or was changed; use an earlier checkpoint")
    try:
        plain = json.loads((folder / STATE).read_text(encoding="utf-8"))
        state = _unpack(plain, load_file(folder / TENSORS))
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__}, not a state")
        return state
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds something else than a checkpoint ({error!r})") from error


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, whole or not; a copy under a name of the user's own is none."""
    return sorted(path for path in Path(folder).glob(PREFIX + "[0-9]" * 8) if path.is_dir())


def load_newest(folder: str | Path) -> tuple[dict[str, Any] | None, Path | None, list[str]]:
    """The state of the newest whole checkpoint in `folder`, its path, and why each newer one was passed over.

    State and path are None where there is no whole one.
    """
    passed_over: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path), path, passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    return None, None, passed_over


def prune(folder: str | Path, newest: int, keep_last: int, keep: set[str]) -> None:
    """Remove all checkpoints in `folder` but the last `keep_last` and those whose names are in `keep`.

    The last one is that of the update `newest`. Later ones are broken, or of a run that was resumed from before
    them and went another way: they are removed too.
    """
    for path in checkpoints(folder):
        if path.name > name_of(newest):
            _remove(path)
    for path in checkpoints(folder)[:-keep_last]:
        if path.name not in keep:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint; as long as it bears its name, it is whole."""
    nameless = path.with_name(f"{ASIDE}{path.name}.old")
    path.rename(nameless)
    shutil.rmtree(nameless)


def rng_state() -> dict[str, Any]:
    """The state of every random number generator of the process: Python's, numpy's, torch's on CPU and GPUs."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every generator where `rng_state` found it; GPUs only where there are as many as then."""
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def fingerprint(*parts: Tensor | str) -> str:
    """SHA-256 of tensors and texts, to tell whether two runs have the same."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        digest.update(b"\0")
    return digest.hexdigest()


def table(rows: list[dict[str, float]]) -> dict[str, Any] | list[dict]:
    """`rows` of numbers as one tensor: as nested JSON a long run's metrics would take twenty times the memory to write.

    Rows with something else in them are left as they are.
    """
    if not all(isinstance(value, (int, float)) for row in rows for value in row.values()):
        return rows
    layouts: dict[tuple, int] = {}  # names and their order, and which values are whole numbers
    kinds = (tuple((name, isinstance(value, int)) for name, value in row.items()) for row in rows)
    which = [layouts.setdefault(kind, len(layouts)) for kind in kinds]
    values = np.fromiter((value for row in rows for value in row.values()), np.float64, count=sum(map(len, rows)))
    return {"layouts": list(layouts), "which": which, "values": torch.from_numpy(values)}


def rows_of(table: dict[str, Any] | list[dict]) -> list[dict[str, float]]:
    """The rows that `table` was given."""
    if isinstance(table, list):
        return table
    values = iter(table["values"].tolist())
    layouts = (table["layouts"][index] for index in table["which"])
    return [{name: int(next(values)) if whole else next(values) for name, whole in layout} for layout in layouts]


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors go to `tensors` and leave their names behind."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold the {type(value).__name__} at {path}")


def _unpack(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_unpack(item, tensors) for item in plain]
    if isinstance(plain, dict):
        [(kind, content)] = plain.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(_unpack(item, tensors) for item in content)
        return {key: _unpack(item, tensors) for key, item in content}
    return plain


def _sha256(path: Path) -> str | None:
    """None where the file is missing or the disk does not give it back."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _flush(path: Path) -> None:
    """Wait until the disk has what was written to a file, or a folder's names.

    Windows and some mounts cannot flush a folder: the files in it are whole all the same, so it is said and no more.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not path.is_dir() or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        LOGGER.info("the folder %s cannot be flushed (%s): a power cut may take its newest checkpoint", path, error)
