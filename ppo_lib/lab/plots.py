"""Small figures: pure functions from numbers to a Plotly figure.

Every figure carries `layout.meta = {"alt": …, "caption": …}`, has a transparent background and colours that can be
told apart by colour-blind readers and seen on light and dark pages. Only scatter and bar traces are used, so that
the smallest Plotly bundle can draw them.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

__all__ = ["PALETTE", "bars", "figure", "heat", "lines", "standalone_page", "style", "training_figure"]

PALETTE = ("#2b7bba", "#d55e00", "#009e73", "#b8629a", "#a6761d", "#7b7b7b")  # after Okabe and Ito (2008)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
INK = "#737373"
RULE = "rgba(128,128,128,0.28)"
NEGATIVE, MIDDLE, POSITIVE = (33, 102, 172), (247, 247, 247), (200, 80, 0)

TRAINING_PANELS = {
    "objective/scores": "score",
    "objective/kl": "KL to the reference",
    "policy/entropy_avg": "entropy per token",
    "policy/clipfrac_avg": "clipped fraction",
    "loss/value_avg": "value loss",
    "val/ratio": "mean ratio",
}
# What v1 adds. The held-out score is there in some updates only; the others get a panel where they change.
HELD_OUT = "eval/score"
V1_PANELS = {HELD_OUT: "held-out score", "lr": "learning rate", "objective/kl_coef": "price of KL, β"}


def style(fig: go.Figure, *, alt: str, caption: str, height: int | None = None) -> go.Figure:
    """Give `fig` the house style, its alt text and its caption; returns `fig`.

    Raises:
        ValueError: `alt` or `caption` is empty: a figure without them cannot be read by everyone.
    """
    if not alt.strip() or not caption.strip():
        raise ValueError("a figure needs an `alt` text (what it shows) and a `caption` (what to see in it)")
    axis = {"gridcolor": RULE, "zerolinecolor": RULE, "linecolor": RULE, "automargin": True, "title": {"standoff": 8}}
    # In the template, for the book's pages put their own in its place, one for light pages and one for dark ones.
    template = go.layout.Template(
        layout={
            "colorway": PALETTE,
            "xaxis": axis,
            "yaxis": axis,
            "font": {"color": INK, "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 56, "r": 16, "t": 48, "b": 48},
        }
    )
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    fig.update_layout(template=template, legend=legend, meta={"alt": alt, "caption": caption})
    if height:
        fig.update_layout(height=height)
    return fig


def figure(*, alt: str, caption: str, x: str = "", y: str = "", height: int = 320) -> go.Figure:
    """An empty figure in the house style with the axis titles `x` and `y`."""
    fig = style(go.Figure(), alt=alt, caption=caption, height=height)
    return fig.update_layout(xaxis={"title": {"text": x}}, yaxis={"title": {"text": y}})


def lines(
    xs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    alt: str,
    caption: str,
    x: str = "",
    y: str = "",
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    markers: bool = False,
    height: int = 320,
) -> go.Figure:
    """One line for each name in `series` over the same `xs`, told apart by colour and dash.

    `bands` maps a name in `series` to a lower and an upper edge, drawn as a shaded band around its line.

    Raises:
        ValueError: a line or an edge has another length than `xs`, or a band belongs to no line.
    """
    xs, bands = as_list(xs), dict(bands or {})
    if unknown := set(bands) - set(series):
        raise ValueError(f"`bands` has {sorted(unknown)}, which `series` has not")
    fig = figure(alt=alt, caption=caption, x=x, y=y, height=height)
    for index, (name, ys) in enumerate(series.items()):
        colour = PALETTE[index % len(PALETTE)]
        if name in bands:
            low, high = (_same_length(edge, xs, f"the band of {name!r}") for edge in bands[name])
            fig.add_scatter(
                x=xs + xs[::-1], y=high + low[::-1], fill="toself", fillcolor=_alpha(colour, 0.22), mode="lines",
                line={"width": 0}, hoverinfo="skip", showlegend=False,
            )  # fmt: skip
        fig.add_scatter(
            x=xs,
            y=_same_length(ys, xs, repr(name)),
            name=name,
            mode="lines+markers" if markers else "lines",
            line={"color": colour, "dash": DASHES[index % len(DASHES)], "width": 2.2},
        )
    return fig.update_layout(showlegend=len(series) > 1)


def bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    alt: str,
    caption: str,
    x: str = "",
    y: str = "",
    errors: Mapping[str, Sequence[float]] | None = None,
    height: int = 320,
) -> go.Figure:
    """Grouped bars: one group for each label, one bar in it for each name in `series`, `errors` as whiskers.

    Raises:
        ValueError: a name has another number of values than there are labels.
    """
    labels, patterns = as_list(labels), ("", "/", ".", "x", "-", "|")
    places = list(range(len(labels)))  # numbers, so that two equal labels stay two groups
    fig = figure(alt=alt, caption=caption, x=x, y=y, height=height)
    for index, (name, values) in enumerate(series.items()):
        whiskers = (errors or {}).get(name)
        fig.add_bar(
            x=places,
            y=_same_length(values, labels, repr(name)),
            name=name,
            marker={
                "color": PALETTE[index % len(PALETTE)],
                "pattern": {"shape": patterns[index % len(patterns)], "size": 5, "solidity": 0.25},
            },
            error_y=None if whiskers is None else {"array": as_list(whiskers), "color": INK},
        )
    fig.update_xaxes(tickvals=places, ticktext=[str(label) for label in labels], ticklabeloverflow="allow")
    return fig.update_layout(showlegend=len(series) > 1, barmode="group", bargap=0.25)


def heat(
    table: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    alt: str,
    caption: str,
    x: str = "",
    y: str = "",
    centre: float = 0.0,
    digits: int = 2,
    height: int | None = None,
) -> go.Figure:
    """A table [rows, columns] of numbers, each cell written out and shaded by its distance from `centre`.

    Blue is below `centre`, orange above. A None or NaN cell (a masked token) stays empty.

    Raises:
        ValueError: `table` is not [len(rows), len(columns)].
    """
    table = [as_list(row) for row in as_list(table)]
    if len(table) != len(rows) or any(len(row) != len(columns) for row in table):
        raise ValueError(f"`table` must be [{len(rows)}, {len(columns)}], as many as `rows` and `columns`")
    cells = [
        (row, column, value)
        for row, values in enumerate(table)
        for column, value in enumerate(values)
        if value is not None and not math.isnan(value)
    ]
    extent = max((abs(value - centre) for *_, value in cells), default=0) or 1.0
    colours = [_diverging((value - centre) / extent) for *_, value in cells]
    fig = figure(alt=alt, caption=caption, x=x, y=y, height=height or 110 + 34 * len(rows))
    fig.add_bar(
        x=[column for _, column, _ in cells],
        y=[0.94] * len(cells),
        base=[row - 0.47 for row, *_ in cells],
        width=0.96,
        marker={"color": [f"rgb{colour}" for colour in colours], "line": {"width": 0}},
        text=[f"{value:.{digits}f}".replace("-", "−") for *_, value in cells],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": [_ink_on(colour) for colour in colours]},
        hovertemplate="%{customdata}<extra></extra>",
        customdata=[f"{rows[row]}, {columns[column]}: {value:.5g}" for row, column, value in cells],
    )
    fig.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=[str(c) for c in columns], showgrid=False, zeroline=False,
        range=[-0.5, len(columns) - 0.5],
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[str(r) for r in rows], showgrid=False, zeroline=False,
        range=[len(rows) - 0.5, -0.5],
    )  # fmt: skip
    return fig.update_layout(showlegend=False, uniformtext={"minsize": 8, "mode": "show"})


def training_figure(history: Sequence[Mapping[str, float]]) -> go.Figure:
    """The trainer's metrics, one panel each, over the responses generated so far.

    `history` is `PPOTrainer.history`: one mapping per update, under TRL's names. Metrics it lacks get no panel; a
    metric that some updates lack (the held-out score) is joined from one that has it to the next.

    Raises:
        ValueError: `history` is empty, or has none of the known metrics.
    """
    points = {name: _points(history, name) for name in (*TRAINING_PANELS, *V1_PANELS)}
    panels = {name: title for name, title in TRAINING_PANELS.items() if points[name][1]}
    for name, title in V1_PANELS.items():
        if name == HELD_OUT and points[name][1] or len(set(points[name][1])) > 1:
            panels[name] = title
    if not panels:
        raise ValueError("there is nothing to plot yet: `history` is empty or has no known metric; call `train` first")
    row_count = math.ceil(len(panels) / 2)
    fig = make_subplots(
        rows=row_count, cols=2, subplot_titles=list(panels.values()), horizontal_spacing=0.13,
        vertical_spacing=0.24 / row_count,
    )  # fmt: skip
    for index, (name, title) in enumerate(panels.items()):
        xs, ys = points[name]
        fig.add_scatter(
            x=xs,
            y=ys,
            name=title,
            mode="lines+markers" if len(xs) < 40 else "lines",
            marker={"size": 4},
            line={"color": PALETTE[index % len(PALETTE)], "width": 2},
            row=index // 2 + 1,
            col=index % 2 + 1,
        )
    changes = "; ".join(
        f"{title} from {_short(points[name][1][0])} to {_short(points[name][1][-1])}" for name, title in panels.items()
    )
    style(
        fig,
        alt=f"Training metrics over {max(points[name][0][-1] for name in panels)} responses: {changes}.",
        caption="The run's metrics against the number of responses generated. Read score and KL together: "
        "a score that rises while KL runs away is bought with text the reference would not write.",
        height=60 + 190 * row_count,
    )
    fig.update_xaxes(title={"text": "responses generated", "font": {"size": 12}}, row=row_count)
    return fig.update_layout(showlegend=False)


def standalone_page(fig: go.Figure, title: str) -> str:
    """An HTML page of `fig` that holds Plotly itself and so needs no network."""
    drawing = fig.to_html(full_html=False, include_plotlyjs=True, config={"responsive": True, "displaylogo": False})
    alt, caption = (html.escape(fig.layout.meta[part]) for part in ("alt", "caption"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><style>:root{color-scheme:light dark}'
        f"</style></head><body><h1>{html.escape(title)}</h1>"
        f'<figure><div role="img" aria-label="{alt}">{drawing}</div><figcaption>{caption}</figcaption></figure>'
        "</body></html>\n"
    )


def _points(history: Sequence[Mapping[str, float]], name: str) -> tuple[list, list]:
    """Where `history` has `name`: responses generated so far, and values."""
    found = [(entry.get("episode", number), entry[name]) for number, entry in enumerate(history, 1) if name in entry]
    return [x for x, _ in found], [y for _, y in found]


def as_list(values: Any) -> list:
    """A plain list from a list, a tuple, a range, a numpy array or a tensor."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _same_length(values: Any, xs: Sequence, what: str) -> list:
    values = as_list(values)
    if len(values) != len(xs):
        raise ValueError(f"{what} has {len(values)} values, and there are {len(xs)} places for them")
    return values


def _short(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.3g}"


def _alpha(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _diverging(position: float) -> tuple[int, int, int]:
    end = POSITIVE if position > 0 else NEGATIVE
    share = min(abs(position), 1)
    red, green, blue = (round(middle + share * (tip - middle)) for middle, tip in zip(MIDDLE, end, strict=True))
    return red, green, blue


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2), between 0 (black) and 1 (white)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Contrast ratio of two sRGB colours (WCAG 2.2), between 1 and 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _ink_on(colour: tuple[int, int, int]) -> str:
    inks = {"#000000": (0, 0, 0), "#ffffff": (255, 255, 255)}
    return max(inks, key=lambda ink: contrast(colour, inks[ink]))
