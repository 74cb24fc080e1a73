"""What the page "How fast is it" says of its stored numbers, and that its figures can be drawn."""

import pytest

import toc
from ppo_lib.lab import speed_figures, stored

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


def test_what_is_said_of_updates_in_words():
    faster = {model: arms(model)["same"] for model in ("tiny", "smollm2")}
    whole, alone = (faster["tiny"][name]["median"] for name in ("times_faster", "times_faster_without_gc"))
    assert whole / alone > alone, "on the small model the collection is no longer most of the difference: say so"
    assert round(alone, 1) == 1.2 and 1.05 < faster["smollm2"]["times_faster_without_gc"]["median"] < 1.15
    assert all(arm["times_faster_without_gc"]["range"][0] < 1 for arm in faster.values()), "rounds without any gain"
    adapters = arms("smollm2")["memory"]["settings"]
    assert (adapters["lora_rank"], adapters["learning_rate"]) == (16, 3e-4), "the page names them"


def test_what_is_said_of_the_limits_in_words():
    for row in rows("sampling"):
        nearest = max(row["share_of_bandwidth"], row["share_of_arithmetic"])
        assert row["model"] == "tiny" or 0.2 < nearest < 0.3, "SmolLM2 is no longer at about a quarter: say so"
    base, *others = rows("growth")
    by_vocabulary = [row["ratio"] for row in (base, *others) if row is base or row["changed"] == "vocabulary"]
    assert by_vocabulary == sorted(by_vocabulary), "with the vocabulary the lead grows"
    larger = [row["ratio"] for row in others if row["changed"] == "model"]
    assert len(larger) == 2 and max(larger) < base["ratio"], "for the two larger models the lead is smaller"


def test_every_cpu_number_of_the_page_is_from_the_processor_it_names():
    names = ("limits", "sampling", "growth", "update_tiny", "update_smollm2", "curve", "chapters")
    assert len({stored.load(f"speed/{name}.json")["device"] for name in names}) == 1


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
    compiled = {row["batch"]: row["step"]["prefill_and_recording_seconds"] for row in found["compiled"]}
    assert 2.5 < min(compiled.values()) < max(compiled.values()) < 7.5, "three to seven seconds a shape"
    assert 150 < compiled[64] / saved < 250, "two hundred updates to pay for one shape"
    recording = [row["step"]["prefill_and_recording_seconds"] for row in found["sampling"] + found["sizes"]]
    assert max(recording) < 0.5, "recording a shape takes well under a second"
    small = next(row for row in found["sizes"] if row["model"] == "135M")
    reading = 2 * small["parameters"] / found["machine"]["read_gb_per_second"] / 1e6
    assert 0.05 < reading < 0.12, "milliseconds to read SmolLM2's weights in bfloat16"
    by_python = [row["batch"] / row["tokens_per_second"]["unrecorded"]["median"] for row in found["sampling"]]
    assert 0.01 < min(by_python) < max(by_python) < 0.1, "seconds of a step whose kernels Python starts"
    shares = [row["step"]["share_of_bandwidth"] for row in found["sizes"]]
    assert shares == sorted(shares)
    times = {name: row["parts"]["update"] for name, row in updates.items()}
    assert max(times[f"one trunk, {name}"] for name in ("TF32", "bf16")) > 0.9 * times["one trunk"] > 0
    assert times["memory"] > times["one trunk"] and times["one trunk, bf16"] > times["one trunk"]
    assert 0.05 < 1 - times["one trunk, TF32"] / times["one trunk"] < 0.07, "TF32 gains 6 %"
    assert [row["rounds"] for row in found["updates"]] == [5, 2, 2, 2, 2], "medians of five updates, or two"


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


def drawn(monkeypatch, content: dict, name: str, *arguments):
    """A figure of these stored numbers, and its traces by name."""
    monkeypatch.setattr(speed_figures, "load", content.__getitem__)
    figure = getattr(speed_figures, name)(*arguments)
    return figure, {trace.name: trace for trace in figure.data}


def test_the_figure_of_sampling_shows_medians_over_generate(monkeypatch):
    rows = [
        {"model": model, "batch": batch, "ratios": {
            "generate": {"median": 1.0}, "plain decoder": {"median": 1.5 + place}, "ours": {"median": 3.25 + place}}}
        for place, (model, batch) in enumerate((("tiny", 16), ("smollm2", 64)))
    ]  # fmt: skip
    figure, traces = drawn(monkeypatch, {"speed/sampling.json": {"rows": rows}}, "sampling")
    assert list(traces["Decoder"].y) == [1.5, 2.5] and list(traces["LlamaDecoder"].y) == [3.25, 4.25], "not the ratios"
    assert list(figure.layout.xaxis.ticktext) == ["0.9 M, 16 at a time", "SmolLM2, 64 at a time"]
    assert "LlamaDecoder: 0.9 M, 16 at a time 3.2; SmolLM2, 64 at a time 4.2." in figure.layout.meta["alt"]


def test_the_parts_of_an_update_add_up_to_its_seconds(monkeypatch):
    parts = {"sample": 1.0, "score": 0.5, "update": 4.0}
    arms = {
        "trl": parts | {"score": 2.5, "seconds": {"median": 7.5}},
        "same": parts | {"seconds": {"median": 5.5}}, "one trunk": parts | {"seconds": {"median": 5.5}},
    }  # fmt: skip
    stored_arms = {"speed/update_tiny.json": {"arms": arms, "trl_gc": 1.75}}
    figure, traces = drawn(monkeypatch, stored_arms, "update", "tiny")
    assert list(traces["garbage collection"].y) == [1.75, 0, 0], "garbage is collected by another arm than TRL"
    assert list(traces["scoring"].y) == [0.75, 0.5, 0.5], "the collection is counted twice, or in another part"
    heights = [sum(parts) for parts in zip(*(trace.y for trace in traces.values()), strict=True)]
    assert heights == [7.5, 5.5, 5.5], "the parts do not add up to the seconds"
    assert "0.9 M. TRL 1.12 7.5 s; v1, two networks 5.5 s; v1, one trunk 5.5 s." in figure.layout.meta["alt"]


def test_the_figure_of_scores_says_how_they_begin_and_end(monkeypatch):
    scores = {"trl": [0, 0, 0, 0, 5, 9, 1, 1, 1, 1, 6], "memory": [1, 1, 1, 1, 1, 50, 3, 3, 3, 3, 3]}
    arms = {name: [{"score": score} for score in of_arm] for name, of_arm in scores.items()}
    figure, traces = drawn(monkeypatch, {"speed/curve.json": {"arms": arms}}, "curve")
    assert list(traces["TRL 1.12"].y) == scores["trl"] and list(traces["TRL 1.12"].x) == list(range(1, 12))
    said = "TRL 1.12 from 1.00 to 2.00; v1, one trunk, adapters from 1.00 to 3.00"
    assert said in figure.layout.meta["alt"], "not the means of the first and the last five updates"


def test_every_arm_of_an_update_is_in_its_table():
    for model in ("tiny", "smollm2"):
        table = PAGE.split(f"speed/update_{model}.json#arms")[1].split("```")[0]
        assert all(f"{name} = " in table for name in arms(model)), f"an arm is missing from the table of {model}"
