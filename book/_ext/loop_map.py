"""The loop as one picture, "you are here": a box for each chapter, drawn from one list.

Each box leads to its chapter, to the code that the chapter builds, and to its equation on the notation page. The
picture is drawn twice, for a wide page and for a phone; the style sheet shows the one that fits.
"""

import html
import re
from collections.abc import Callable
from typing import NamedTuple


class Box(NamedTuple):
    """A box of the loop. `equation` is the anchor of its line on the notation page."""

    chapter: str
    name: str
    says: str
    code: str
    equation: str

    @property
    def number(self) -> str:
        return str(int(self.chapter[:2]))


BOXES = [
    Box("01_text_as_decisions", "Sample", "the policy writes a text, token by token",
        "ppo_lib/rollout.py#sample", "eq-sample"),
    Box("02_rewards", "Score", "the reward gives each text one number",
        "ppo_lib/rewards.py#bradley_terry_loss", "eq-score"),
    Box("03_rollouts", "Compare", "a frozen reference says how far the policy has drifted, and drifting costs",
        "ppo_lib/estimators.py#token_rewards", "eq-compare"),
    Box("04_advantages", "Credit", "the critic shares one score out over the tokens",
        "ppo_lib/estimators.py#gae", "eq-credit"),
    Box("05_clipped_objective", "Update", "the policy takes a step, and the clip bounds it",
        "ppo_lib/losses.py#policy_loss", "eq-update"),
    Box("06_the_loop", "Repeat", "all of it again, with the policy that came out",
        "ppo_lib/ppo.py#PPOTrainer.train_step", "eq-repeat"),
    Box("07_small_memory", "Fit", "the same step in smaller pieces, where memory is short",
        "ppo_lib/running/small_memory.py#SmallMemoryTrainer.accumulate", "eq-fit"),
    Box("08_never_lose_a_run", "Save", "everything that the next update reads, on disk",
        "ppo_lib/running/checkpoint.py#save_checkpoint", "eq-save"),
    Box("09_when_to_stop", "Evaluate", "prompts that it never trained on say whether it still gets better",
        "ppo_lib/running/evaluation.py#evaluate", "eq-evaluate"),
    Box("10_reusing_samples", "Reweigh", "what an older policy wrote is weighed until it tells the truth again",
        "ppo_lib/importance.py#vtrace", "eq-reweigh"),
    Box("11_the_buffer", "Buffer", "earlier texts are kept, and drawn once more",
        "ppo_lib/replay.py#ReplayBuffer", "eq-buffer"),
    Box("12_sample_efficiency_lab", "Measure", "how many generated tokens a result has cost",
        "ppo_lib/lab/efficiency.py#cost_until", "eq-measure"),
]  # fmt: skip

WIDTH, HEIGHT = 102, 54


class Layout(NamedTuple):
    """Where boxes stand, by number, and the lines between them as paths."""

    name: str
    size: tuple[int, int]
    places: dict[str, tuple[int, int]]
    loop: str
    side: str


def _columns(numbers: str, left: int, pitch: int, top: int) -> dict[str, tuple[int, int]]:
    return {number: (left + pitch * at, top) for at, number in enumerate(numbers.split())}


# Six columns: the loop in one row, closed by a line above it, and below each box what leans on it.
WIDE = Layout(
    "wide",
    (684, 164),
    _columns("1 2 3 4 5 6", 1, 116, 24) | _columns("12 9 11 10 7 8", 1, 116, 106),
    "M103 51h12 M219 51h12 M335 51h12 M451 51h12 M567 51h12 M632 24v-8q0-8-8-8h-564q-8 0-8 8v5",
    "M52 78v25 M168 78v25 M284 78v25 M336 133h11 M400 106v-25 M516 106v-25 M632 78v25",
)
# Three columns: the loop as a ring of two rows, what leans on it above and below.
NARROW = Layout(
    "narrow",
    (344, 300),
    _columns("12 9 11", 1, 115, 2) | _columns("1 2 3", 1, 115, 82) | _columns("6 5 4", 1, 115, 162)
    | _columns("8 7 10", 1, 115, 242),
    "M103 109h11 M218 109h11 M282 136v22 M231 189h-11 M116 189h-11 M52 162v-22",
    "M52 82v-22 M167 82v-22 M282 82v-22 M333 29q9 0 9 9v222q0 9 -5 9 M52 216v22 M167 242v-22 M282 242v-22",
)  # fmt: skip


def figure(current: str, link: Callable[[Box, str], str | None]) -> str:
    """The picture with the box of the chapter `current` lit.

    Args:
        link: the address of a box's "chapter", "code" or "equation"; None where it has no page in this build.
    """
    here = next(box for box in BOXES if box.chapter == current)
    pictures = "".join(_svg(layout, here, link) for layout in (WIDE, NARROW))
    words = f"<strong>{here.number} {here.name}</strong>: {html.escape(here.says)}."
    label = f"The loop, a link for each chapter. You are here: {here.number} {here.name}, {here.says}."
    return (
        f'<nav class="loop-map" aria-label="{html.escape(label)}">'
        '<a class="loop-skip" href="#loop-map-end">Skip the map of the loop</a>'
        f'{pictures}<p id="loop-map-end">You are here: {words}</p></nav>'
    )


def _svg(layout: Layout, here: Box, link: Callable[[Box, str], str | None]) -> str:
    width, height = layout.size
    arrow = f"loop-arrow-{layout.name}"
    boxes = "".join(_box(box, *layout.places[box.number], box is here, link) for box in BOXES)
    return (
        f'<svg class="{layout.name}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<defs><marker id="{arrow}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="9" markerHeight="9" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
        f"{_lines('loop', layout.loop, arrow)}{_lines('side', layout.side, arrow)}{boxes}</svg>"
    )


def _lines(kind: str, paths: str, arrow: str) -> str:
    drawn = re.findall("M[^M]+", paths)
    return "".join(f'<path class="{kind}" d="{path.strip()}" marker-end="url(#{arrow})"/>' for path in drawn)


def _box(box: Box, x: int, y: int, current: bool, link: Callable[[Box, str], str | None]) -> str:
    """A box: its name, which leads to the chapter, above the links to code and equation."""
    name = f"{box.number} {box.name}"
    middle = x + WIDTH / 2
    parts = [
        ("chapter", x, y, WIDTH, 28, f'<text class="name" x="{middle:g}" y="{y + 20}">{name}</text>'),
        ("code", x, y + 28, 40, 25, f'<text x="{x + 23}" y="{y + 43}">code</text>'),
        ("equation", x + 42, y + 28, 60, 25, f'<text x="{x + 68}" y="{y + 43}">equation</text>'),
    ]
    said = {
        "chapter": f"Chapter {name}: {box.says}",
        "code": f"Code of {box.name}: {box.code.partition('#')[2]}",
        "equation": f"Equation of {box.name}",
    }
    body = f'<rect class="frame" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
    for kind, left, top, wide, high, text in parts:
        address = link(box, kind)
        area = f'<rect class="area" x="{left}" y="{top}" width="{wide}" height="{high}" rx="6"/>'
        if address:
            here = ' aria-current="page"' if current and kind == "chapter" else ""
            words = html.escape(said[kind] + (", you are here" if here else ""))
            body += f'<a class="{kind}" href="{html.escape(address)}" aria-label="{words}"{here}>{area}{text}</a>'
        else:
            body += text
    return f'<g class="box{" current" if current else ""}">{body}</g>'
