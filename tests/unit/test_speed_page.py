"""What the page "How fast is it" says of its stored numbers, and that its figures can be drawn."""

import pytest

import toc
from ppo_lib import speed_figures, stored

PAGE = (toc.ROOT / "book/speed.md").read_text("utf8")


def rows(name: str) -> list[dict]:
    return stored.load(f"speed/{name}.json")["rows"]


def arms(model: str) -> dict:
    return stored.load(f"speed/update_{model}.json")["arms"]


def test_the_sampler_is_faster_than_generate_everywhere():
    found = {(row["model"], row["batch"]): row["ratios"]["ours"]["median"] for row in rows("sampling")}
    assert set(found) == {(model, batch) for model in ("tiny", "smollm2") for batch in (16, 64)}
    assert min(found.values()) > 1.2, f"the page's table says faster: {found}"
    for row in rows("sampling"):
        rates = row["tokens_per_second"]
        assert rates["ours"]["median"] > rates["plain decoder"]["median"] > rates["generate"]["median"]
        assert row["share_of_bandwidth"] < 0.5 and row["share_of_arithmetic"] < 0.5, "a limit is near: say so"


def test_an_update_is_faster_and_smaller_than_trls():
    for model in ("tiny", "smollm2"):
        for name, arm in arms(model).items():
            if name != "trl":
                assert arm["times_faster"]["median"] > 1, f"{name} on {model} is slower than TRL: say so"
                assert arm["update"] > arm["sample"], "the epochs are no longer most of an update: say so"


def test_growth_changes_one_thing_at_a_time():
    base, *others = rows("growth")
    names = {"batch": ("batch",), "tokens": ("tokens",), "vocabulary": ("vocabulary",), "model": ("width", "layers")}
    for row in others:
        changed = [n for n in ("batch", "tokens", "vocabulary", "width", "layers") if row[n] != base[n]]
        assert changed == list(names[row["changed"]]), f"{changed} changed where the table says {row['changed']}"


def test_what_is_said_of_the_gpu():
    found = stored.load("speed/gpu.json")
    for row in found["sampling"]:
        assert row["ratios"]["ours"]["median"] > row["ratios"]["unrecorded"]["median"] > 1
        assert row["step"]["share_of_bandwidth"] < 0.2, "no longer far from the limit: say so"
    plain = {(r["batch"], r["precision"]): r["step"]["milliseconds"] for r in found["sampling"]}
    by_batch = {row["batch"]: row["step"]["milliseconds"] for row in found["compiled"]}
    assert by_batch[64] < 0.6 * plain[64, "bfloat16"], "compiling no longer halves a step"
    saved = (plain[64, "bfloat16"] - by_batch[64]) * found["sampling"][0]["new_tokens"] / 1e3
    updates = {row["arm"]: row for row in found["updates"]}
    assert 0.03 < saved / updates["one trunk, bf16"]["seconds"] < 0.05, "what compiling would save of an update"
    shares = [row["step"]["share_of_bandwidth"] for row in found["sizes"]]
    assert shares == sorted(shares)
    times = {name: row["parts"]["update"] for name, row in updates.items()}
    assert max(times[f"one trunk, {name}"] for name in ("TF32", "bf16")) > 0.9 * times["one trunk"] > 0
    assert times["memory"] > times["one trunk"]


def test_chapters_together():
    content = stored.load("speed/chapters.json")
    assert len(content["rows"]) == len(list((toc.ROOT / "chapters").glob("*.ipynb")))
    assert content["total"]["now"] < content["total"]["before"], "the book got slower"


def test_less_memory_learns_no_less():
    arms = stored.load("speed/curve.json")["arms"]
    late = {name: [sum(row[what] for row in rows[-5:]) / 5 for what in ("score", "kl")] for name, rows in arms.items()}
    assert all(len(rows) == 20 for rows in arms.values())
    assert late["memory"][0] > late["trl"][0] and 6 < late["memory"][1] / late["trl"][1] < 8, late


FIGURES = [("curve", ()), ("sampling", ()), ("update", ("tiny",)), ("update", ("smollm2",))]


@pytest.mark.parametrize("name, arguments", FIGURES)
def test_figures_have_their_texts(name, arguments):
    figure = getattr(speed_figures, name)(*arguments)
    assert figure.data and figure.layout.meta["alt"] and figure.layout.meta["caption"]


def test_every_arm_of_an_update_is_in_its_table():
    for model in ("tiny", "smollm2"):
        table = PAGE.split(f"speed/update_{model}.json#arms")[1].split("```")[0]
        assert all(f"{name} = " in table for name in arms(model)), f"an arm is missing from the table of {model}"
