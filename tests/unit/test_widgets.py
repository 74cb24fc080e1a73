"""The widgets' Python side: everything is computed when they are made, and their state is small and exact."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from tiny import byte_tokenizer, hand_rollout

from ppo_lib.lab import plots
from ppo_lib.lab.microscope import Recorder, frame, token_texts, view_of
from ppo_lib.lab.widgets import MOST_FRAMES, ClipPlayground, FigureSlider, TokenMicroscope, _share

TEXTS = {"alt": "What it shows.", "caption": "What to see."}


def draw(lam):
    return plots.lines([0, 1, 2], {"w": [lam**n for n in range(3)]}, alt=f"weights at {lam}", caption="Weights.")


def merge(shared, own):
    """What figure_slider.js does to put a frame together."""
    if own is None:
        return shared
    if isinstance(shared, list) and isinstance(own, dict):
        return [merge(item, own.get(str(at))) for at, item in enumerate(shared)]
    if not isinstance(shared, dict) or not isinstance(own, dict):
        return own
    return {key: merge(shared[key], own.get(key)) if key in shared else own[key] for key in [*shared, *own]}


def frames_of(slider):
    """The slider's figures, as the browser has them after the state travelled as JSON."""
    state = json.loads(json.dumps({"shared": slider.shared, "frames": slider.frames}))
    return [merge(state["shared"], own) for own in state["frames"]]


def test_draw_is_called_for_every_value_at_once():
    seen = []

    def noted(lam):
        seen.append(lam)
        return draw(lam)

    FigureSlider(noted, [0.0, 0.5, 1.0])
    assert seen == [0.0, 0.5, 1.0], "`draw` is not called for each value, once and in order, when the slider is made"


def test_an_exception_at_any_value_is_raised():
    with pytest.raises(ZeroDivisionError):
        FigureSlider(lambda x: plots.lines([0], {"a": [1 / (x - 2)]}, **TEXTS), [0, 1, 2])


def test_frames_hold_the_figures_numbers():
    slider = FigureSlider(draw, [0.5, 0.9, 1 / 3])
    heights = [frame["data"][0]["y"] for frame in frames_of(slider)]
    assert heights == [[1, 0.5, 0.25], [1, 0.9, 0.81], [1, 0.33333, 0.11111]], (
        "the browser gets other heights than the figure's, or more than five digits of them"
    )
    assert all(frame["data"][0]["x"] == [0, 1, 2] for frame in frames_of(slider)), (
        "a frame loses the places that all frames share"
    )


def test_what_all_frames_share_is_stored_once():
    slider = FigureSlider(draw, [0.1 * n for n in range(20)])
    assert not any("layout" in own for own in slider.frames), (
        "a layout that is the same everywhere is stored in each frame"
    )
    assert "layout" in slider.shared, "the layout that all frames have is lost"
    assert len(json.dumps(slider.frames)) < 20 * 60, "a frame must hold only what differs"


def test_frames_may_differ_in_anything():
    def any_shape(n):
        figure = plots.figure(**TEXTS)
        for _ in range(n):
            figure.add_scatter(x=[n], y=[n], text=None if n == 2 else ["one"])
        return figure.update_layout(title={"text": f"n = {n}"})

    first, second = frames_of(FigureSlider(any_shape, [1, 2]))
    assert (len(first["data"]), len(second["data"])) == (1, 2), "a frame has the number of traces of another frame"
    assert first["data"][0]["text"] == ["one"], "what only one frame has is lost"
    assert "text" not in second["data"][0], "a frame gets what only another one has"
    assert second["layout"]["title"]["text"] == "n = 2", "a frame has the title of another one"


@pytest.mark.parametrize(
    "items",
    [
        [{"a": 1}, {"a": 2}],
        [{"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1, "c": 3}]}],
        [{"a": [1, 2]}, {"a": [1, 3]}],
        [{"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, {}],
        [{"a": [{"b": 1}]}, {"a": [{"b": 1}, {"b": 2}]}],
        [{"a": None}, {"a": {"b": 1}}],
    ],
    ids=str,
)
def test_sharing_loses_nothing(items):
    shared, own = _share(items)
    shared, own = json.loads(json.dumps([shared, own]))
    assert [merge(shared, mine) for mine in own] == items, (
        "what all share and what is each one's own do not make the whole"
    )


def test_arrays_become_plain_numbers():
    slider = FigureSlider(
        lambda n: plots.style(go.Figure(go.Scatter(x=np.arange(3), y=np.array([0.0, np.nan, n]))), **TEXTS), [1, 2]
    )
    assert frames_of(slider)[1]["data"][0]["y"] == [0, None, 2], "numpy arrays must not travel as Plotly's base64"


def test_axes_stand_still_while_the_slider_moves():
    ranges = {tuple(frame["layout"]["yaxis"]["range"]) for frame in frames_of(FigureSlider(draw, [0.0, 2.0]))}
    ((low, high),) = ranges
    assert low <= 0, "the axis of all frames cuts off the lowest point of one"
    assert high >= 4, "the axis of all frames cuts off the highest point of one"
    loose = frames_of(FigureSlider(draw, [0.0, 2.0], same_axes=False))
    assert "range" not in loose[0]["layout"]["yaxis"], "`same_axes=False` is ignored"


def test_axes_that_the_figure_sets_are_left_alone():
    slider = FigureSlider(lambda lam: draw(lam).update_yaxes(range=[0, 9]), [0.0, 2.0])
    assert frames_of(slider)[0]["layout"]["yaxis"]["range"] == [0, 9], "a range that the figure sets is replaced"


def test_bars_keep_their_foot_on_zero():
    slider = FigureSlider(lambda n: plots.bars(["a"], {"x": [n]}, **TEXTS), [5, 6])
    low, high = frames_of(slider)[0]["layout"]["yaxis"]["range"]
    assert low <= 0, "bars are cut off above zero, so that their heights do not compare"
    assert high >= 6, "the highest bar is cut off"


def test_two_sliders_make_a_grid():
    calls = []

    def grid(gamma, lam):
        calls.append((gamma, lam))
        return plots.lines([0], {"a": [gamma + 10 * lam]}, **TEXTS)

    slider = FigureSlider(grid, {"gamma": [0, 1], "lam": [0, 1, 2]}, label={"gamma": "γ"}, start={"lam": 2})
    assert calls == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], "the last slider moves fastest, as in the browser"
    assert [control["label"] for control in slider.controls] == ["γ", "lam"], (
        "a label goes to another slider, or one without a label has not the argument's name"
    )
    assert slider.value == {"gamma": 0, "lam": 2}, (
        "a slider does not begin at `start`, or at its first value without one"
    )
    slider.positions = [1, 0]
    assert slider.value == {"gamma": 1, "lam": 0}, "`value` is not where the reader moved the sliders"


def test_label_defaults_to_the_argument_and_start_to_the_first_value():
    slider = FigureSlider(draw, [0.5, 0.25])
    assert slider.controls == [{"label": "lam", "texts": ["0.5", "0.25"]}], (
        "a slider without a label has not the name of `draw`'s argument, or its values are written otherwise"
    )
    assert slider.value == 0.5, "a slider without `start` does not begin at the first value that is given"
    assert FigureSlider(draw, [0.5, 0.25], label="λ", start=0.25).value == 0.25, "`start` is ignored"


def test_alt_texts_follow_the_value_and_caption_comes_from_the_figure():
    slider = FigureSlider(draw, [0.5, 1.0])
    assert slider.alts == ["weights at 0.5", "weights at 1.0"], "a frame has the alt text of another figure"
    assert slider.caption == "Weights.", "the caption that the figures bring is ignored"
    slider = FigureSlider(draw, [0.5, 1.0], alt=lambda lam: f"λ is {lam}", caption="Own.")
    assert slider.alts == ["λ is 0.5", "λ is 1.0"], "`alt` is ignored, or not called for each value"
    assert slider.caption == "Own.", "`caption` is ignored where the figures bring one"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: FigureSlider(draw, [1.0]), ValueError, "2 to"),
        (lambda: FigureSlider(draw, range(MOST_FRAMES + 1)), ValueError, f"make {MOST_FRAMES + 1}"),
        (lambda: FigureSlider(lambda x: x, [1, 2]), TypeError, "returned int"),
        (lambda: FigureSlider(lambda x: draw(1.0), [1, 2], alt="same"), ValueError, "change nothing"),
        (lambda: FigureSlider(lambda x: go.Figure(go.Scatter(y=[x])), [1, 2]), ValueError, "caption"),
        (lambda: FigureSlider(draw, [1.0, 2.0], start=3.0), ValueError, "not among the values"),
        (lambda: ClipPlayground(ratio=2.1, caption="."), ValueError, "ratio of 0 to 2"),
        (lambda: ClipPlayground(advantage=-1.6, caption="."), ValueError, "advantage of −1.5"),
        (lambda: ClipPlayground(cliprange=1.0, caption="."), ValueError, "ε between 0 and 1"),
    ],
)
def test_misuse_is_explained(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_request_for_plotly_is_answered_with_its_code(monkeypatch):
    slider, sent = FigureSlider(draw, [0.0, 1.0]), []
    monkeypatch.setattr(slider, "send", lambda content, buffers=None: sent.append(content))
    slider._handle_custom_msg({"type": "something else"}, [])
    assert sent == [], "Plotly is sent to a page that did not ask for it"
    slider._handle_custom_msg({"type": "plotly"}, [])
    assert sent[0]["type"] == "plotly", "the page cannot tell that the answer is Plotly"
    assert "newPlot" in sent[0]["code"], "the page is sent something else than Plotly's code"


@pytest.mark.parametrize(
    ("widget", "words"),
    [
        (FigureSlider(draw, [0.0, 1.0], label="λ"), "FigureSlider: λ from 0 to 1. Weights."),
        (
            TokenMicroscope(frame(hand_rollout(), byte_tokenizer()), caption="Look."),
            "TokenMicroscope: 1 step(s), 3 responses, coloured by log-probability",
        ),
        (ClipPlayground(caption="Drag."), "ClipPlayground: the clipped surrogate at ratio 1.3, advantage 1 and ε 0.2."),
    ],
    ids=["slider", "microscope", "clip"],
)
def test_text_where_no_widget_can_be_shown(widget, words):
    bundle = widget._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "\n" not in bundle["text/plain"], "where no widget can be shown, there is more than one line"
    assert bundle["text/plain"].startswith(words), (
        "where no widget can be shown, the line does not say what it would be"
    )
    assert "application/vnd.jupyter.widget-view+json" in bundle, "a notebook gets the text alone and no widget"


@pytest.mark.parametrize("text", ["plain", "naïve café 🎬!", " two  spaces\nand a line"])
def test_token_texts_join_to_the_text(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids), "there are more or fewer texts than tokens"
    assert "".join(texts) == text, "the tokens' texts do not join to what they were decoded from"


def test_a_part_of_a_character_is_empty_and_the_last_part_shows_it():
    tokenizer = byte_tokenizer()
    assert token_texts(tokenizer, tokenizer("aé!")["input_ids"]) == ["a", "", "é", "!"], (
        "a character of two tokens stands with the first of them, or twice, or as two halves"
    )


def test_half_a_character_at_the_end_is_not_lost():
    tokenizer = byte_tokenizer()
    half = tokenizer("aé")["input_ids"][:2]
    assert token_texts(tokenizer, half) == ["a", "\ufffd"], "half a character at the end of a response is not shown"
    assert token_texts(tokenizer, [half[1], *tokenizer("b")["input_ids"]]) == ["\ufffd", "b"], (
        "half a character is lost, or takes the next token's text"
    )
    assert token_texts(tokenizer, []) == [], "a response without tokens has a text"


def filled_rollout(rows=3, width=4):
    rollout = hand_rollout(lengths=[width] * rows, ended=[True] * rows, width=width)
    rollout.ref_logprobs = rollout.logprobs - 0.25
    rollout.scores = torch.arange(rows).float()
    rollout.values = torch.randn(rows, width + 1)
    rollout.rewards, rollout.advantages, rollout.returns = torch.randn(3, rows, width)
    return rollout


def test_frame_takes_what_the_rollout_has_and_nothing_outside_the_mask():
    rollout = hand_rollout(lengths=(3, 1, 4), ended=(True, True, False), width=4)
    shot = frame(rollout, byte_tokenizer(), step=7)
    assert shot["step"] == 7, "the frame has the number of another step"
    assert [len(row["tokens"]) for row in shot["responses"]] == [3, 1, 4], "padding is not part of a response"
    assert [row["ended"] for row in shot["responses"]] == [True, True, False], (
        "a response that was cut is shown as ended"
    )
    for row, lengths in zip(shot["responses"], (3, 1, 4), strict=True):
        assert {len(numbers) for numbers in row["values"].values()} == {lengths}, (
            "a quantity has numbers of padding, or lacks some of the response's tokens"
        )


def test_frame_aligns_values_with_tokens_and_kl_with_its_sign():
    rollout = filled_rollout()
    values = frame(rollout, byte_tokenizer())["responses"][1]["values"]
    assert list(values) == ["logprob", "kl", "reward", "value", "advantage", "return"], (
        "a quantity that the rollout has is left out, or stands in another order"
    )
    assert values["kl"] == pytest.approx([0.25] * 4), "KL (k1) is log π − log π_ref"
    assert values["value"] == pytest.approx(rollout.values[1, :4].tolist()), "V(s_t) stands before token t"


def test_frame_takes_extra_quantities_and_refuses_wrong_shapes():
    rollout = filled_rollout()
    extra = {"surprise": rollout.logprobs * 2, "clipped": rollout.mask}
    values = frame(rollout, byte_tokenizer(), **extra)["responses"][0]["values"]
    assert values["surprise"] == pytest.approx((2 * rollout.logprobs[0]).tolist()), "a quantity of one's own is changed"
    assert values["clipped"] == [True] * 4, "a flag of one's own is changed"
    with pytest.raises(ValueError, match=r"`values` is \[3, 5\]"):
        frame(rollout, byte_tokenizer(), values=rollout.values)


def test_frame_spreads_its_rows_over_the_batch():
    shot = frame(filled_rollout(rows=10), byte_tokenizer(), responses=4)
    assert [row["score"] for row in shot["responses"]] == [0, 3, 6, 9], (
        "the rows are the first ones of the batch, or more than were asked for"
    )


def test_colours_are_scaled_once_over_all_steps():
    row = {"prompt": "p", "tokens": ["a"], "ended": True, "score": None}
    frames = [{"step": n, "responses": [{**row, "values": {"kl": [n]}}]} for n in (-1.0, 4.0)]
    (kl,) = view_of(frames)["quantities"]
    assert (kl["low"], kl["high"]) == (-1, 4), "the range of a colour scale is that of one step, not of all"
    assert kl["centre"] == 0, "the colours of KL are not centred on 0, so its sign cannot be seen"
    assert 3.5 < kl["extent"] <= 4, "the colours reach as far as one step's numbers, not as those of all"


def test_ratio_is_centred_on_one_and_flags_are_words():
    rollout = filled_rollout()
    shot = frame(rollout, byte_tokenizer(), ratio=torch.full((3, 4), 0.5), clipped=rollout.mask, seen=rollout.mask)
    quantities = {quantity["id"]: quantity for quantity in view_of([shot])["quantities"]}
    assert quantities["ratio"]["centre"] == 1, "the colours of the ratio are not centred on 1"
    assert quantities["ratio"]["log"], "the ratio has no logarithmic scale, so that a half is nearer to 1 than 2 is"
    assert quantities["ratio"]["extent"] == 2, "the reach of a logarithmic scale is not that of 0.5 and 2 alike"
    assert quantities["clipped"]["flag"] == ["not clipped", "clipped"], (
        "a flag that has words of its own is not told in them"
    )
    assert quantities["seen"]["flag"] == ["no", "yes"], "a flag without words of its own is shown as a number"


def test_numbers_that_json_cannot_hold_become_gaps():
    rollout = filled_rollout()
    rollout.logprobs[0, 0], rollout.logprobs[0, 1] = float("nan"), float("-inf")
    view = view_of([frame(rollout, byte_tokenizer())])
    assert view["steps"][0]["responses"][0]["values"][0][:2] == [None, None], "NaN or infinity is shown as a number"
    json.dumps(view, allow_nan=False)


def test_microscope_opens_on_the_quantity_asked_for():
    shot = frame(filled_rollout(), byte_tokenizer())
    microscope = TokenMicroscope([shot], "advantage", caption="c")
    assert microscope.view["quantities"][microscope.quantity]["id"] == "advantage", (
        "the microscope opens on another quantity than was asked for"
    )
    with pytest.raises(ValueError, match="no frame has the quantity 'ratio'.*there are logprob, kl"):
        TokenMicroscope([shot], "ratio", caption="c")
    with pytest.raises(ValueError, match="empty"):
        TokenMicroscope([], caption="c")


def test_state_of_a_long_run_is_small():
    rollout = filled_rollout(rows=8, width=24)
    rollout.returns = None
    microscope = TokenMicroscope([frame(rollout, byte_tokenizer(), n) for n in range(10)], caption="c")
    assert len(microscope.view["quantities"]) == 5, "the test needs five quantities, for its size to mean something"
    size = len(json.dumps(microscope.get_state(["view", "_esm", "_css"])))
    assert size < 200_000, f"8 responses × 24 tokens × 10 steps × 5 quantities take {size} bytes"


class FakeTrainer:
    """What a recorder reads of a trainer; its policy is the one that sampled, so every ratio is 1."""

    class config:
        num_updates, temperature, cliprange = 6, 1.0, 0.2

    def __init__(self):
        from tiny import tiny_policy

        self.policy, self.tokenizer = tiny_policy(), byte_tokenizer()


def test_recorder_keeps_every_nth_rollout_and_the_last():
    from ppo_lib.rollout import sample

    trainer, recorder = FakeTrainer(), Recorder(every=3, responses=2)
    rollout = sample(trainer.policy, trainer.tokenizer, ["ab", "c"], 5, generator=torch.Generator().manual_seed(0))
    rollout.advantages = torch.ones_like(rollout.logprobs)
    for update in range(1, 7):
        recorder(trainer, rollout, {"update": update})
    assert [shot["step"] for shot in recorder.frames] == [1, 4, 6], (
        "the recorder keeps other updates than the first, each third one after it, and the last"
    )
    values = recorder.frames[0]["responses"][0]["values"]
    assert values["ratio"] == pytest.approx([1.0] * len(values["ratio"]), abs=1e-4), "nothing was updated"
    assert not any(values["clipped"]), "a token whose ratio is 1 counts as clipped"


def test_recorder_clips_on_the_side_of_the_advantage():
    from ppo_lib.rollout import sample

    trainer, recorder = FakeTrainer(), Recorder()
    rollout = sample(trainer.policy, trainer.tokenizer, ["ab"], 4, generator=torch.Generator().manual_seed(0))
    rollout.logprobs = rollout.logprobs - 1.0  # every ratio is e ≈ 2.7, above 1.2
    for sign, clipped in ((1.0, True), (-1.0, False)):
        rollout.advantages = sign * torch.ones_like(rollout.logprobs)
        recorder(trainer, rollout, {"update": 1})
        values = recorder.frames[-1]["responses"][0]["values"]
        assert set(values["clipped"]) == {clipped}, f"ratio 2.7 with advantage {sign}: clipped must be {clipped}"
