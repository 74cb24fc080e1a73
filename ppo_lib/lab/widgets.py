"""Widgets for three readers: a page without a kernel, a live notebook, and papermill.

All that a widget shows is computed when it is made and travels in its state. So it works where no Python runs, and
an error in a figure's function stops the cell, instead of waiting for a reader to move a slider.
"""

import base64
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs

from ppo_lib.lab.microscope import QUANTITIES, Recorder, frame, view_of
from ppo_lib.lab.plots import PALETTE

__all__ = ["ClipPlayground", "FigureSlider", "Recorder", "TokenMicroscope", "frame"]

STATIC = Path(__file__).parent / "static"
CSS = (STATIC / "widgets.css").read_text(encoding="utf-8")
MOST_FRAMES = 400


def module(*files: str) -> str:
    """The source of a widget's module: `files` of the folder `static`, after what all widgets share."""
    return "\n".join((STATIC / file).read_text(encoding="utf-8") for file in ("controls.js", *files))


class Described(anywidget.AnyWidget):
    """A widget with a caption, and one line of text where no widget can be shown."""

    _css = CSS
    caption = traitlets.Unicode().tag(sync=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.describe()}. {self.caption}".strip()


def send_plotly(widget: Described, content: Any, _buffers: Any) -> None:
    """Answer a page that has no Plotly with the kernel's own copy."""
    if isinstance(content, dict) and content.get("type") == "plotly":
        widget.send({"type": "plotly", "code": get_plotlyjs()})


class FigureSlider(Described):
    """A slider, or several, over figures: `draw` is called for every value at once.

        FigureSlider(draw, [0.0, 0.5, 0.9, 0.95, 1.0], label="λ")
        FigureSlider(draw, {"gamma": [0.9, 1.0], "lam": [0.0, 0.95, 1.0]}, label={"gamma": "γ", "lam": "λ"})

    Args:
        draw: value -> `plotly.graph_objects.Figure`; with a mapping, called by keyword with one value of each.
        values: the slider's values, or a mapping from argument name to values, one slider each.
        label: the slider's label (by default the name of `draw`'s argument); with a mapping, a mapping.
        start: the value shown first (by default the first); with a mapping, a mapping.
        caption, alt: by default those in the figures' `layout.meta`. `alt` may be a function called as `draw` is.
        same_axes: give every figure the axis ranges that hold all of them, where the figures set none themselves.

    Raises:
        TypeError: `draw` returned something else than a Figure.
        ValueError: fewer than two values, too many figures, figures that never differ, no caption or alt text, or a
            start that is none of the values.
        Exception: whatever `draw` raises, at any value.
    """

    _esm = module("plotting.js", "figure_slider.js")
    shared = traitlets.Dict().tag(sync=True)
    frames = traitlets.List(traitlets.Dict()).tag(sync=True)
    controls = traitlets.List(traitlets.Dict()).tag(sync=True)
    positions = traitlets.List(traitlets.Int()).tag(sync=True)
    alts = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(
        self,
        draw: Callable[..., go.Figure],
        values: Sequence[Any] | Mapping[str, Sequence[Any]],
        *,
        label: str | Mapping[str, str] | None = None,
        start: Any = None,
        caption: str | None = None,
        alt: str | Callable[..., str] | None = None,
        same_axes: bool = True,
    ):
        by_name = isinstance(values, Mapping)
        name = "" if by_name else next(iter(inspect.signature(draw).parameters))
        choices = values if isinstance(values, Mapping) else {name: values}
        self._values = {key: list(each) for key, each in choices.items()}
        labels = label if isinstance(label, Mapping) else {} if label is None else {name: label}
        starts = start if isinstance(start, Mapping) else {} if start is None else {name: start}
        count = math.prod(map(len, self._values.values()))
        if count < 2 or count > MOST_FRAMES:
            raise ValueError(f"a slider needs 2 to {MOST_FRAMES} figures, and these values make {count}")
        points = [dict(zip(self._values, point, strict=True)) for point in itertools.product(*self._values.values())]
        calls = [((), point) if by_name else ((point[name],), {}) for point in points]
        figures = [draw(*args, **kwargs) for args, kwargs in calls]
        for figure, point in zip(figures, points, strict=True):
            if not isinstance(figure, go.Figure):
                raise TypeError(f"`draw` must return a plotly Figure; at {point} it returned {type(figure).__name__}")
        metas = [figure.layout.meta if isinstance(figure.layout.meta, dict) else {} for figure in figures]
        if callable(alt):
            alts = [alt(*args, **kwargs) for args, kwargs in calls]
        else:
            alts = [alt or meta.get("alt", "") for meta in metas]
        caption = caption or metas[0].get("caption", "")
        if not caption or not all(alts):
            raise ValueError("give the slider a `caption` and an `alt`, or put both in each figure's `layout.meta`")
        plain = [_plain(figure.to_dict()) for figure in figures]
        for figure in plain:
            figure["layout"] = {key: v for key, v in figure["layout"].items() if key not in ("meta", "width")}
            figure["layout"]["template"] = {"layout": {"colorway": list(PALETTE)}}  # the rest follows the page's theme
        if same_axes:
            _share_axes(plain)
        shared, frames = _share(plain)
        if all(own is _NOTHING for own in frames):
            raise ValueError("`draw` makes the same figure for every value: the slider would change nothing")
        super().__init__(
            shared=shared if isinstance(shared, dict) else {},
            frames=[{} if own is _NOTHING else own for own in frames],
            controls=[
                {"label": labels.get(key, key), "texts": [_text(value) for value in choices]}
                for key, choices in self._values.items()
            ],
            positions=[_position(key, choices, starts) for key, choices in self._values.items()],
            alts=alts[:1] if len(set(alts)) == 1 else alts,
            caption=caption,
        )
        self.on_msg(send_plotly)

    @property
    def value(self) -> Any:
        """What the sliders stand on: the value, or with several sliders a dict of values."""
        chosen = {key: choices[at] for (key, choices), at in zip(self._values.items(), self.positions, strict=True)}
        return chosen if len(chosen) > 1 else next(iter(chosen.values()))

    def describe(self) -> str:
        """The sliders and their ends, for readers without a browser."""
        return ", ".join(f"{c['label']} from {c['texts'][0]} to {c['texts'][-1]}" for c in self.controls)


class ClipPlayground(Described):
    """The clipped surrogate of one token: drag its ratio and its advantage, watch value and gradient.

        ClipPlayground(ratio=1.3, advantage=1.0, cliprange=0.2, caption="…")

    Args:
        ratio: π/π_old, 0 to 2. advantage: −1.5 to 1.5. cliprange: ε, above 0 and below 1.
        caption: what to see.

    Raises:
        ValueError: a number is outside its range.
    """

    _esm = module("clip.js")
    ratio = traitlets.Float().tag(sync=True)
    advantage = traitlets.Float().tag(sync=True)
    cliprange = traitlets.Float().tag(sync=True)

    def __init__(self, ratio: float = 1.3, advantage: float = 1.0, cliprange: float = 0.2, *, caption: str):
        if not (0 <= ratio <= 2 and abs(advantage) <= 1.5 and 0 < cliprange < 1):
            raise ValueError(
                f"a ratio of 0 to 2, an advantage of −1.5 to 1.5 and an ε between 0 and 1 are drawn, and these are "
                f"{ratio}, {advantage} and {cliprange}"
            )
        super().__init__(ratio=ratio, advantage=advantage, cliprange=cliprange, caption=caption)

    def describe(self) -> str:
        """Where it begins, for readers without a browser."""
        return f"the clipped surrogate at ratio {self.ratio:g}, advantage {self.advantage:g} and ε {self.cliprange:g}"


class TokenMicroscope(Described):
    """Real responses, token by token, coloured by one quantity at a time, with a slider over training steps.

        TokenMicroscope(frame(rollout, tokenizer), "advantage", caption="…")      # one rollout
        TokenMicroscope(recorder.frames, "kl", caption="…")                       # a run, see `Recorder`

    Args:
        frames: what `frame` returned, or a list of them, one for each training step.
        quantity: the one shown first, by name; by default the first the frames have.
        caption: what to see.
        step_label: what the slider's numbers count.

    Raises:
        ValueError: there are no frames, a frame has no responses, or no frame has `quantity`.
    """

    _esm = module("microscope.js")
    view = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    response = traitlets.Int(0).tag(sync=True)
    quantity = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        frames: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        quantity: str | None = None,
        *,
        caption: str,
        step_label: str = "update",
    ):
        frames = [frames] if isinstance(frames, Mapping) else list(frames)
        if not frames or not all(shot["responses"] for shot in frames):
            raise ValueError("the microscope has no response to show: `frames` is empty, or one of them is")
        view = view_of(frames) | {"step_label": step_label}
        names = [known["id"] for known in view["quantities"]]
        if quantity is not None and quantity not in names:
            hint = " (it is filled by a later step)" if quantity in QUANTITIES else ""
            raise ValueError(f"no frame has the quantity {quantity!r}{hint}; there are {', '.join(names)}")
        super().__init__(view=view, quantity=names.index(quantity) if quantity else 0, caption=caption)

    def describe(self) -> str:
        """What there is to look at, for readers without a browser."""
        steps, labels = self.view["steps"], [quantity["label"] for quantity in self.view["quantities"]]
        return f"{len(steps)} step(s), {len(steps[0]['responses'])} responses, coloured by {', '.join(labels)}"


_NOTHING = object()


def _share(items: list[Any]) -> tuple[Any, list[Any]]:
    """Split similar JSON values into what all have in common and what each adds, `_NOTHING` where it adds nothing."""
    if all(item == items[0] for item in items):
        return items[0], [_NOTHING] * len(items)
    if all(isinstance(item, dict) for item in items):
        keys = list(dict.fromkeys(key for item in items for key in item))
    elif all(_is_list_of_dicts(item) and len(item) == len(items[0]) for item in items):
        shared, own = _share([dict(enumerate(item)) for item in items])
        return [shared.get(index, {}) for index in range(len(items[0]))], own
    else:
        return _NOTHING, items
    shared, own = {}, [{} for _ in items]
    for key in keys:
        common, rest = _share([item.get(key, _NOTHING) for item in items])
        if common is not _NOTHING:
            shared[key] = common
        for mine, value in zip(own, rest, strict=True):
            if value is not _NOTHING:
                mine[str(key)] = value
    return shared, own


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _plain(value: Any) -> Any:
    """JSON from a Plotly figure: arrays become lists, floats keep five significant digits, NaN becomes None."""
    if isinstance(value, dict):
        if "bdata" in value and "dtype" in value:  # Plotly 6 and later store arrays as base64
            array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
            shape = [int(length) for length in str(value.get("shape", len(array))).split(",")]
            return _plain(array.reshape(shape))
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _share_axes(figures: list[dict]) -> None:
    """Set on each axis the range that holds the scatter and bar traces of all figures, where none sets its own."""
    for letter in "xy":
        axes = {trace.get(f"{letter}axis", letter) for figure in figures for trace in figure["data"]}
        for axis in axes:
            key = f"{letter}axis{axis[1:]}"
            layouts = [figure["layout"].setdefault(key, {}) for figure in figures]
            if any({"range", "type", "autorange"} & set(layout) for layout in layouts):
                continue
            extent = _extent(figures, letter, axis)
            if extent is not None:
                for layout in layouts:
                    layout["range"] = extent


def _extent(figures: list[dict], letter: str, axis: str) -> list[float] | None:
    numbers: list[float] = []
    for figure in figures:
        for trace in figure["data"]:
            if trace.get(f"{letter}axis", letter) != axis:
                continue
            places = trace.get(letter)
            known = [place for place in places or [] if place is not None]
            if trace.get("type") not in ("scatter", "bar") or not known or not all(map(_is_number, known)):
                return None
            numbers += known
            if trace["type"] == "bar":
                upright = trace.get("orientation", "v") == "v"
                if figure["layout"].get("barmode") in ("stack", "relative") or "base" in trace or "width" in trace:
                    return None
                numbers += [0.0] if (letter == "y") == upright else [min(known) - 0.5, max(known) + 0.5]
    low, high = min(numbers), max(numbers)
    pad = 0.05 * (high - low) or 0.5
    return [float(f"{edge:.5g}") for edge in (low - pad, high + pad)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return f"{value:.5g}".replace("-", "−") if isinstance(value, float) else str(value)


def _position(key: str, choices: list, starts: Mapping[str, Any]) -> int:
    if key not in starts:
        return 0
    if starts[key] not in choices:
        raise ValueError(f"`start` {starts[key]!r} is not among the values {choices}")
    return choices.index(starts[key])
