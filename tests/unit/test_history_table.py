"""A run's metrics travel in a checkpoint as one tensor, and come back as they were."""

import math
import sys

from ppo_lib.running import checkpoint, trackers
from ppo_lib.running.trackers import slim


def test_rows_come_back_with_their_names_order_types_and_bits(tmp_path):
    rows = [
        {"update": 1, "score": 0.1, "kl": -0.0},
        {"update": 2, "score": 1 / 3, "kl": math.inf, "eval/score": 5e-324},
        {"kl": 2.0, "score": 4.0, "update": 3},
    ]
    checkpoint.save_checkpoint(tmp_path, 3, {"history": checkpoint.table(rows)})
    back = checkpoint.rows_of(checkpoint.load_newest(tmp_path)[0]["history"])
    assert back[0]["score"] == 0.1, "past metrics come back rounded: they are not kept in double precision"
    assert math.copysign(1, back[0]["kl"]) == -1, "the sign of a metric of −0 is lost"
    assert back == rows, "past metrics come back with other names or numbers"
    assert [list(row) for row in back] == [list(row) for row in rows], "the order of the names was lost"
    assert [[type(v) for v in row.values()] for row in back] == [[type(v) for v in row.values()] for row in rows], (
        "a count comes back as a float, or a number as a count"
    )


def test_nan_survives_and_no_rows_are_no_rows():
    assert math.isnan(checkpoint.rows_of(checkpoint.table([{"loss": math.nan}]))[0]["loss"])
    assert checkpoint.rows_of(checkpoint.table([])) == []


def test_rows_with_texts_are_left_alone():
    rows = [{"update": 1, "note": "from a callback"}]
    assert checkpoint.rows_of(checkpoint.table(rows)) == rows


def test_a_row_of_the_history_takes_less_memory_and_stays_a_dict(monkeypatch):
    monkeypatch.setattr(trackers, "_Row", type("_Row", (), {}))  # other tests have filled the table of names
    rows = [{f"objective/{name}": float(name) for name in range(26)} for _ in range(3)]
    slimmed = [slim(row) for row in rows]
    assert slimmed == rows and [list(row) for row in slimmed] == [list(row) for row in rows]
    assert all(type(row) is dict for row in slimmed)
    if sys.implementation.name == "cpython" and sys.version_info < (3, 13):
        assert sys.getsizeof(slimmed[-1]) < sys.getsizeof(rows[-1]) / 2
    wide = {f"eval/{name}": 0.5 for name in range(40)}
    assert slim(wide) == wide
