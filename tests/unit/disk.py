"""A disk that can be watched, and that fails at the operation that is named."""

import builtins
import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast


class Death(BaseException):
    """The process ends here, and nothing is tidied up."""


FAULTS = {  # what an operation raises when it was done by half, and which of the later ones fail too
    "a full disk": (OSError, "those that need room"),
    "a refused permission": (PermissionError, None),
    "Ctrl-C": (KeyboardInterrupt, None),
    "kill -9": (Death, "all"),
}
NUMBERS = {OSError: errno.ENOSPC, PermissionError: errno.EACCES}
NEED_NO_ROOM = ("rename", "link", "remove", "cut")


class Disk:
    """Within the block, notes in `seen` what any code does in `folder`: verb, path and, of a rename, the new path.

    Args:
        fails: the number, from 0, of the operation at which `fault` (of `FAULTS`) happens; None lets all succeed.
    """

    def __init__(self, folder: Path, fails: int | None = None, fault: str = "kill -9"):
        self.folder, self.fails = os.path.abspath(folder), fails
        self.error, self.later = FAULTS[fault]
        self.seen: list[tuple[str, ...]] = []
        self.happened = False
        self.within = False  # an operation that is itself watched, or the half of one
        self.handles: dict[int, str] = {}

    def does(self, verb: str, path, work, half=lambda: None, *others):
        """`work()`, unless it is the operation that fails."""
        paths = [os.path.relpath(os.path.abspath(os.fsdecode(p)), self.folder) for p in (path, *others)]
        if self.within or paths[0].startswith(".."):
            return work()
        self.seen.append((verb, *paths))
        self.within = True
        try:
            too = self.happened and (self.later == "all" or self.later and verb not in NEED_NO_ROOM)
            if len(self.seen) - 1 == self.fails or too:
                if not (self.happened and self.later == "all"):
                    self.happened = True
                    half()
                number = NUMBERS.get(self.error)
                raise self.error(number, os.strerror(number)) if number else self.error()
            return work()
        finally:
            self.within = False

    def __enter__(self) -> "Disk":
        self.patch = pytest.MonkeyPatch()
        for owner in (builtins, io):
            self.put(owner, "open", self.open)
        self.put(os, "open", self.open_handle)
        self.put(os, "fsync", lambda sound, handle: self.does("flush", self.handles[handle], lambda: sound(handle)))
        self.put(os, "mkdir", self.make)
        for name in ("rename", "replace"):
            self.put(os, name, lambda sound, old, new: self.does("rename", old, lambda: sound(old, new), none, new))
        self.put(os, "link", lambda sound, old, new: self.does("link", new, lambda: sound(old, new)))
        for name in ("remove", "unlink", "rmdir"):
            self.put(os, name, lambda sound, path, **more: self.does("remove", path, lambda: sound(path, **more)))
        self.put(os, "truncate", lambda sound, path, size: self.does("cut", path, lambda: sound(path, size)))
        self.put(shutil, "rmtree", self.remove_folder)
        self.put(safetensors.torch, "serialize_file", self.write_tensors)
        self.put(PreTrainedTokenizerFast, "_save_pretrained", self.save_tokenizer)
        return self

    def __exit__(self, *_) -> None:
        self.patch.undo()

    def put(self, owner, name: str, watched) -> None:
        sound = getattr(owner, name)
        self.patch.setattr(owner, name, lambda *arguments, **keywords: watched(sound, *arguments, **keywords))

    def open(self, sound, path, mode="r", *arguments, **keywords):
        def work():
            return sound(path, mode, *arguments, **keywords)

        if isinstance(path, int) or not set(mode) & set("wax+"):
            return work()
        return self.does("write", path, work, lambda: half_written(path, "ab" if "a" in mode else "wb"))

    def open_handle(self, sound, path, *arguments, **keywords):
        handle = sound(path, *arguments, **keywords)
        self.handles[handle] = path
        return handle

    def make(self, sound, path, *arguments, **keywords):
        def work():
            return sound(path, *arguments, **keywords)

        return work() if os.path.isdir(path) else self.does("make", path, work)

    def remove_folder(self, sound, path, *arguments, **keywords):
        def half():
            files = [found for found in sorted(Path(path).rglob("*")) if found.is_file()]
            for file in files[:1]:
                file.unlink()

        return self.does("remove", path, lambda: sound(path, *arguments, **keywords), half)

    def write_tensors(self, sound, tensors, path, **keywords):
        try:
            self.does("write", path, lambda: sound(tensors, path, **keywords), lambda: half_written(path))
        except OSError as error:  # which safetensors says in its own way
            said = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(said) from error

    def save_tokenizer(self, sound, tokenizer, save_directory, *arguments, **keywords):
        path = os.path.join(save_directory, "tokenizer.json")
        return self.does(
            "write", path, lambda: sound(tokenizer, save_directory, *arguments, **keywords), lambda: half_written(path)
        )


def none() -> None:
    """What a rename leaves that was done by half: nothing."""


def half_written(path, mode: str = "wb") -> None:
    with open(path, mode) as file:
        file.write(b'{"half')
