"""Exercises of chapter 8: a save that survives any death, the checkpoint to go on from, a log cut back to it."""

import json

from ppo_lib.lab.exercises.check import Exercise, Outcome


class Death(BaseException):
    """The disk's machine dies; no `except Exception` of an answer can stop it."""


class Disk:
    """A disk that dies before its operation number `lives`, and then forgets what was not flushed.

    Files are named texts. A death without a flush leaves the first half of what was written. Renaming and removing
    reach this disk at once; a real one wants its folder flushed too.
    """

    def __init__(self, files: dict[str, str], lives: int | None = None):
        self.files, self.lives, self.operations = dict(files), lives, 0
        self.unflushed: set[str] = set()

    def write(self, name: str, text: str) -> None:
        """Make the file `name`, emptying one that is there, and write `text` to it: two operations."""
        self._live()
        self.files[name] = ""
        self.unflushed.discard(name)
        self._live()
        self.files[name] = text
        self.unflushed.add(name)

    def flush(self, name: str) -> None:
        """Wait until the disk has all that was written to `name`."""
        self._live()
        self._present(name)
        self.unflushed.discard(name)

    def rename(self, old: str, new: str) -> None:
        """Give the file `old` the name `new`, replacing a file of that name in one step."""
        self._live()
        self._present(old)
        self.files[new] = self.files.pop(old)
        if old in self.unflushed:
            self.unflushed = self.unflushed - {old} | {new}
        else:
            self.unflushed.discard(new)

    def remove(self, name: str) -> None:
        """Remove the file `name`."""
        self._live()
        self._present(name)
        del self.files[name]
        self.unflushed.discard(name)

    def after_death(self, name: str) -> str:
        """What is found under `name` when the machine is back."""
        if name not in self.files:
            return "nothing"
        text = self.files[name]
        return f"half of {text!r}" if name in self.unflushed else text or "an empty file"

    def _live(self) -> None:
        if self.operations == self.lives:
            raise Death
        self.operations += 1

    def _present(self, name: str) -> None:
        if name not in self.files:
            raise FileNotFoundError(name)


class OnADyingDisk(Exercise):
    """Calls the answer once for each moment at which the disk can die, and once on a disk that lives."""

    def _call(self, answer, arguments):
        if not callable(answer):
            return Outcome(value=answer)
        return super()._call(lambda *others: self._found(answer, *others), arguments)

    @staticmethod
    def _found(answer, name: str, old: str, new: str):
        lasting = Disk({name: old})
        returned = answer(lasting, name, new)
        if not lasting.operations and (returned is None or returned is Ellipsis):
            return returned  # the stub
        found = set()
        for lives in range(lasting.operations + 1):
            disk = Disk({name: old}, lives)
            try:
                answer(disk, name, new)
            except Death:
                pass
            found.add(disk.after_death(name))
        return {"after a death": sorted(found), "in the end": lasting.files.get(name, "nothing")}


def _save(disk, name, text):
    aside = name + ".aside"
    disk.write(aside, text)
    disk.flush(aside)
    disk.rename(aside, name)


def _in_place(disk, name, text):
    disk.write(name, text)
    disk.flush(name)


def _never_flushed(disk, name, text):
    disk.write(name + ".aside", text)
    disk.rename(name + ".aside", name)


def _flushed_late(disk, name, text):
    disk.write(name + ".aside", text)
    disk.rename(name + ".aside", name)
    disk.flush(name)


def _removed_first(disk, name, text):
    disk.write(name + ".aside", text)
    disk.flush(name + ".aside")
    disk.remove(name)
    disk.rename(name + ".aside", name)


def _never_renamed(disk, name, text):
    disk.write(name + ".aside", text)
    disk.flush(name + ".aside")


save = OnADyingDisk(
    "save",
    solution=_save,
    inputs=[("run", "old", "new"), ("log.jsonl", "one\n", "one\ntwo\n")],
    mistakes={
        "you wrote over the old file: a death in the middle leaves neither old nor new.": _in_place,
        "you renamed what the disk may not have yet: flush the file before you rename it.": _never_flushed,
        "you flushed after renaming: a death in between leaves half a file under the good name.": _flushed_late,
        "you removed the old file first: for a moment there is none. `rename` replaces it in one step.": _removed_first,
        "the new text never gets the name that a reader looks for: rename it.": _never_renamed,
    },
)


def _newest_whole(found):
    return max((item["update"] for item in found if item["written"] == item["read"]), default=0)


def _newest(found):
    return max((item["update"] for item in found), default=0)


def _last_listed(found):
    whole = [item["update"] for item in found if item["written"] == item["read"]]
    return whole[-1] if whole else 0


def _newest_readable(found):
    return max((item["update"] for item in found if item["read"] is not None), default=0)


def _oldest_whole(found):
    return min((item["update"] for item in found if item["written"] == item["read"]), default=0)


def _newest_by_name(found):
    whole = [item["update"] for item in found if item["written"] == item["read"]]
    return max(whole, key=str) if whole else 0


newest_whole = Exercise(
    "newest_whole",
    solution=_newest_whole,
    inputs=[
        (
            [
                {"update": 10, "written": "9f00", "read": "9f00"},
                {"update": 9, "written": "77aa", "read": "77aa"},
                {"update": 5, "written": "ab12", "read": "ab12"},
                {"update": 7, "written": "5b5b", "read": "5b5b"},
                {"update": 20, "written": "c3d4", "read": "c3d5"},
                {"update": 30, "written": "e5f6", "read": None},
            ],
        ),
        (
            [
                {"update": 8, "written": "0a0a", "read": "0a0a"},
                {"update": 100, "written": "1b1b", "read": "1b1b"},
                {"update": 20, "written": "2c2c", "read": "2c2c"},
            ],
        ),
        ([{"update": 10, "written": "ab12", "read": "ab13"}],),
        ([],),
    ],
    mistakes={
        "you took the newest without looking at its checksum.": _newest,
        "a file that can be read may still be another than was written: compare the checksums.": _newest_readable,
        "the list need not be in order: take the largest update.": _last_listed,
        "that is the oldest whole one: all updates since then would be done again.": _oldest_whole,
        "you compared the updates as text: '9' is not more than '10'.": _newest_by_name,
    },
)


def _cut_back(lines, update):
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["update"] <= update:
            rows.append(row)
    return rows


def _parsed(lines):
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _unguarded(lines, update):
    return [row for row in map(json.loads, lines) if row["update"] <= update]


_LOG = [json.dumps({"update": update, "score": update / 10}) for update in range(6)]
cut_back = Exercise(
    "cut_back",
    solution=_cut_back,
    inputs=[
        (_LOG, 3),
        (_LOG[1:], 3),
        ([*_LOG, '{"update": 6, "sco'], 3),
        (_LOG[:3], 2),
        (['{"update": 5, "score": null, "stopped": true}', '{"update": 10, "score": 0.5}', '{"up'], 10),
        (['{"update": 0, "score'], 0),
    ],
    mistakes={
        "a killed run can leave half a line, and json.loads raises on it: stop there.": _unguarded,
        "nothing is cut: the resumed run will log these updates once more.": lambda lines, update: _parsed(lines),
        "the checkpoint's own update is done: keep its row.": lambda lines, update: [
            row for row in _parsed(lines) if row["update"] < update
        ],
        "you counted lines: this log may begin with update 0. Look at each row's `update`.": lambda lines, update: (
            _parsed(lines)[:update]
        ),
        "these are the rows to throw away: keep the others.": lambda lines, update: [
            row for row in _parsed(lines) if row["update"] > update
        ],
    },
)
