"""Answers to chapter 8: a save that survives, which checkpoint to go on from, cutting the log back."""

import ast
import json

import numpy as np
import torch


def steps(*operations):
    """An answer that makes these calls. `a` stands for a second name, `n` for the file's."""

    def save(disk, name, text):
        names = {"a": name + ".tmp", "n": name}
        for operation, *who in operations:
            if operation == "write":
                disk.write(names[who[0]], text)
            else:
                getattr(disk, operation)(*(names[one] for one in who))

    return save


def cleared_first(disk, name, text):
    new = f".new-{name}"
    disk.write(new, text)
    disk.flush(new)
    disk.rename(old=new, new=name)
    disk.flush(name)
    return True


class Saver:
    suffix = "~"

    def __call__(self, disk, name, text):
        disk.write(name=name + self.suffix, text=text)
        disk.flush(name=name + self.suffix)
        disk.rename(name + self.suffix, name)
        return name


def fixed_text(disk, name, text):
    steps(("write", "a"), ("flush", "a"), ("rename", "a", "n"))(disk, name, "new")


def upper(disk, name, text):
    steps(("write", "a"), ("flush", "a"), ("rename", "a", "n"))(disk, name, text.upper() + "!")


def forgetful(disk, name, text):
    disk.write(name + ".tmp", text)
    disk.flush(name + ".tmp")


def newest_loop(found):
    newest = 0
    for item in found:
        if item["read"] is not None and item["read"] == item["written"] and item["update"] > newest:
            newest = item["update"]
    return newest


def newest_sorted(found):
    for item in sorted(found, key=lambda item: item["update"], reverse=True):
        if item["written"] == item["read"]:
            return item["update"]
    return 0


def newest_popped(found):
    found.sort(key=lambda item: -item["update"])
    while found:
        item = found.pop(0)
        if item["written"] == item["read"]:
            return item["update"]
    return 0


def whole(found):
    return [item for item in found if item["written"] == item["read"]]


def kept_rows(lines, update):
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if row["update"] <= update]


def rows_if(keep):
    """An answer that keeps the rows for which `keep(row, update)` is true."""
    return lambda lines, update: [row for row in kept_rows(lines, float("inf")) if keep(row, update)]


def recursive_rows(lines, update):
    if not lines:
        return []
    try:
        row = json.loads(lines[0])
    except json.JSONDecodeError:
        return []
    return ([row] if row["update"] <= update else []) + recursive_rows(lines[1:], update)


def popped(lines, update):
    rows = []
    while lines:
        try:
            row = json.loads(lines.pop(0))
        except json.JSONDecodeError:
            break
        rows += [row] * (row["update"] <= update)
    return rows


def half_line_raises(lines, update):
    return [row for row in map(json.loads, lines) if row["update"] <= update]


def last_line_dropped(lines, update):
    return [row for row in map(json.loads, lines[:-1]) if row["update"] <= update]


def half_line_kept(lines, update):
    out = []
    for line in lines:
        try:
            row = json.loads(line)
            if row["update"] <= update:
                out.append(row)
        except json.JSONDecodeError:
            out.append(line)
    return out


def half_line_empties(lines, update):
    try:
        return half_line_raises(lines, update)
    except json.JSONDecodeError:
        return []


def as_python(lines, update):
    rows = []
    for line in lines:
        try:
            rows.append(ast.literal_eval(line))
        except (SyntaxError, ValueError):
            pass
    return [row for row in rows if row["update"] <= update]


RIGHT = {
    "save": {
        "other name, flushed again": cleared_first,
        "class, keywords": Saver(),
        "both flushed": steps(("write", "a"), ("flush", "a"), ("rename", "a", "n"), ("flush", "n")),
        "written twice": steps(("write", "a"), ("write", "a"), ("flush", "a"), ("flush", "a"), ("rename", "a", "n")),
    },
    "newest_whole": {
        "loop": newest_loop,
        "sorted": newest_sorted,
        "emptied": newest_popped,
        "numpy": lambda found: np.max([0] + [item["update"] for item in whole(found)]),
        "tensor": lambda found: torch.tensor([0, *(item["update"] for item in whole(found))]).max(),
        "float": lambda found: float(newest_loop(found)),
    },
    "cut_back": {
        "continue": kept_rows,
        "recursion": recursive_rows,
        "emptied": popped,
        "tuple": lambda lines, update: tuple(kept_rows(lines, update)),
    },
}
WRONG = {
    "save": {
        "in place": steps(("write", "n"), ("flush", "n")),
        "not flushed": steps(("write", "a"), ("rename", "a", "n")),
        "flushed after the rename": steps(("write", "a"), ("rename", "a", "n"), ("flush", "n")),
        "old one removed first": steps(("write", "a"), ("flush", "a"), ("remove", "n"), ("rename", "a", "n")),
        "wrong file flushed": steps(("write", "a"), ("flush", "n"), ("rename", "a", "n")),
        "not renamed": forgetful,
        "nothing": lambda disk, name, text: text,
        "both written": steps(("write", "a"), ("flush", "a"), ("write", "n"), ("flush", "n"), ("remove", "a")),
        "old one set aside": steps(("rename", "n", "a"), ("write", "n"), ("flush", "n"), ("remove", "a")),
        "renamed the wrong way": steps(("write", "a"), ("flush", "a"), ("rename", "n", "a")),
        "renamed, then removed": steps(("write", "a"), ("flush", "a"), ("rename", "a", "n"), ("remove", "n")),
        "another text": upper,
        "always the same text": fixed_text,
        "flushed before it is written": steps(("flush", "a"), ("write", "a"), ("rename", "a", "n")),
        "written again after the flush": steps(("write", "a"), ("flush", "a"), ("write", "a"), ("rename", "a", "n")),
    },
    "newest_whole": {
        "broken ones count": lambda found: max((item["update"] for item in found), default=0),
        "readable is enough": lambda found: max((i["update"] for i in found if i["read"] is not None), default=0),
        "oldest": lambda found: min((item["update"] for item in whole(found)), default=0),
        "first of the list": lambda found: next((item["update"] for item in whole(found)), 0),
        "last of the list": lambda found: next((item["update"] for item in reversed(whole(found))), 0),
        "None for none": lambda found: max((item["update"] for item in whole(found)), default=None),
        "-1 for none": lambda found: max((item["update"] for item in whole(found)), default=-1),
        "raises for none": lambda found: max(item["update"] for item in whole(found)),
        "the newest or nothing": lambda found: (
            (last := max(found, key=lambda item: item["update"]))["update"] * (last["written"] == last["read"])
            if found
            else 0
        ),
        "the dictionary": lambda found: max(whole(found), key=lambda item: item["update"], default=0),
        "how many": lambda found: len(whole(found)),
        "position": lambda found: found.index(whole(found)[-1]) if whole(found) else 0,
        "the next update": lambda found: max((item["update"] + 1 for item in whole(found)), default=0),
        "compared as text": lambda found: max((i["update"] for i in whole(found)), key=str, default=0),
        "broken ones only": lambda found: max((i["update"] for i in found if i["written"] != i["read"]), default=0),
    },
    "cut_back": {
        "half a line raises": half_line_raises,
        "last line always dropped": last_line_dropped,
        "half a line kept": half_line_kept,
        "half a line empties all": half_line_empties,
        "before the update": rows_if(lambda row, update: row["update"] < update),
        "after the update": rows_if(lambda row, update: row["update"] > update),
        "so many lines": lambda lines, update: kept_rows(lines[:update], float("inf")),
        "one line more": lambda lines, update: kept_rows(lines[: update + 1], float("inf")),
        "all rows": rows_if(lambda row, update: True),
        "only that row": rows_if(lambda row, update: row["update"] == update),
        "update 0 dropped": rows_if(lambda row, update: 0 < row["update"] <= update),
        "lines, not rows": lambda lines, update: [json.dumps(row) for row in kept_rows(lines, update)],
        "newest first": lambda lines, update: kept_rows(lines, update)[::-1],
        "only the numbers of the updates": lambda lines, update: [row["update"] for row in kept_rows(lines, update)],
        "how many": lambda lines, update: len(kept_rows(lines, update)),
        "by position": lambda lines, update: kept_rows(lines, float("inf"))[: update or None],
        "read as Python": as_python,
    },
}
