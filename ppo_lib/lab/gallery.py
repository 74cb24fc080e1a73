"""The failure gallery: stored runs with one fault each, beside healthy runs from the same seeds.

    from ppo_lib.lab import gallery
    gallery.figure("kl_sign")

The runs were made by `benchmarks/failure_gallery.py`. What a fault looks like is said here by a `Sign`: a number that
is on one side of a bound in every run with the fault, and on the other side in every healthy one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ppo_lib.lab.plots import PALETTE, style
from ppo_lib.lab.stored import load

if TYPE_CHECKING:
    from ppo_lib.lab.widgets import FigureSlider

__all__ = ["FAULTS", "Fault", "Sign", "chooser", "figure", "runs"]

Rows = Sequence[Mapping[str, float]]  # the updates of one run

LABELS = {
    "objective/scores": "score",
    "objective/scores_std": "spread of the scores",
    "objective/kl": "KL to the reference",
    "objective/rlhf_reward": "reward",
    "objective/non_score_reward": "KL penalty",
    "policy/entropy_avg": "entropy per token",
    "policy/approxkl_avg": "KL to the old policy",
    "policy/clipfrac_avg": "clipped share",
    "policy/grad_norm": "policy's gradient",
    "loss/value_avg": "value loss",
    "val/grad_norm": "critic's gradient",
    "val/clipfrac_avg": "clipped values, share",
    "val/explained_variance": "explained variance",
    "val/ratio": "mean ratio",
    "val/ratio_var": "variance of the ratio",
    "val/num_eos_tokens": "responses with an EOS",
    "response/length": "tokens per response",
    "eval/score": "gold score, held out",
    "gap": "reward − (score − β KL)",
}  # the names of the panels


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _jitter(values: Sequence[float]) -> float:
    """Mean size of the step from one update to the next."""
    return _mean([abs(after - before) for before, after in zip(values, values[1:], strict=False)])


PHASES: dict[str, Callable[[Sequence[float]], float]] = {
    "in the first update": lambda values: values[0],
    "on average": _mean,
    "in the last 5 updates": lambda values: _mean(values[-5:]),
    "at its highest": max,
    "at its lowest": min,
    "from update to update": _jitter,
}


@dataclass(frozen=True)
class Sign:
    """`metric`, summed up over a run by `phase` (a key of `PHASES`), is above or below a bound."""

    metric: str
    phase: str
    above: float = math.nan
    below: float = math.nan

    def value(self, run: Rows) -> float:
        """The number that is compared with the bound."""
        return PHASES[self.phase]([row[self.metric] for row in run if not math.isnan(row[self.metric])])

    def holds(self, run: Rows) -> bool:
        """Whether the run shows this sign."""
        value = self.value(run)
        return value > self.above or value < self.below

    def text(self) -> str:
        """The sign in words."""
        side = f"below {self.below:.3g}" if math.isnan(self.above) else f"above {self.above:.3g}"
        return f"{LABELS[self.metric]} {self.phase} {side}".replace("-", "−")


@dataclass(frozen=True)
class Fault:
    """What is wrong, the signs of it, and the panels of its figure, log-scaled where `log` says so."""

    title: str
    see: str
    signs: tuple[Sign, ...]
    panels: tuple[str, ...]
    beside: str = "healthy"
    log: tuple[str, ...] = ()


SCORE, KL, APPROX, CLIPPED = "objective/scores", "objective/kl", "policy/approxkl_avg", "policy/clipfrac_avg"
ENTROPY, RATIO, RATIO_VAR, VALUE = "policy/entropy_avg", "val/ratio", "val/ratio_var", "loss/value_avg"
CRITIC, ENDED, LENGTH, GOLD = "val/grad_norm", "val/num_eos_tokens", "response/length", "eval/score"
FIRST, MEAN, LAST, HIGHEST, LOWEST, JITTER = PHASES

FAULTS: dict[str, Fault] = {
    "learning_rate_high": Fault(
        "The learning rate is too high",
        "The first update goes hundreds of times too far, and in the end there is nothing left to change.",
        (Sign(APPROX, FIRST, above=1), Sign(ENTROPY, LAST, below=0.1), Sign(SCORE, LAST, below=0)),
        (SCORE, APPROX, ENTROPY, CLIPPED),
        log=(APPROX,),
    ),
    "learning_rate_low": Fault(
        "The learning rate is too low",
        "Nothing moves: the policy of the last update is almost the first one.",
        (Sign(KL, HIGHEST, below=1), Sign(APPROX, HIGHEST, below=1e-3), Sign(SCORE, LAST, below=0.5)),
        (SCORE, KL, CLIPPED, APPROX),
    ),
    "no_kl": Fault(
        "Nothing holds the policy",
        "What is trained on rises above the healthy runs; what counts falls far below them.",
        (Sign(SCORE, LAST, above=1.7), Sign(GOLD, LAST, below=0.5), Sign(KL, LAST, above=30)),
        (SCORE, GOLD, KL, ENDED),
        beside="healthy_proxy",
    ),
    "kl_coef_high": Fault(
        "β is too large",
        "The policy is pulled back as soon as it moves.",
        (Sign(KL, LAST, below=1), Sign(SCORE, LAST, below=0.6)),
        (SCORE, KL, "objective/non_score_reward", APPROX),
    ),
    "no_clip": Fault(
        "Many passes over a rollout, and no clip",
        "The first update already goes further than a healthy one ever does, and later ones go far further.",
        (Sign(APPROX, MEAN, above=1), Sign(KL, HIGHEST, above=30), Sign(SCORE, LAST, below=1.2)),
        (SCORE, KL, APPROX, RATIO_VAR),
        log=(APPROX, RATIO_VAR),
    ),
    "batch_small": Fault(
        "The batch is too small",
        "The scores jump; entropy drops early. One of the two runs ends with the same poor text again and again.",
        (Sign(SCORE, JITTER, above=0.25), Sign(SCORE, LAST, below=1.1), Sign(ENTROPY, LOWEST, below=0.5)),
        (SCORE, ENTROPY, KL, "policy/grad_norm"),
    ),
    "temperature_low": Fault(
        "The temperature is too low",
        "Responses are short from the start, entropy falls early, and single updates go far.",
        (Sign(ENTROPY, MEAN, below=0.9), Sign(APPROX, HIGHEST, above=1), Sign(LENGTH, FIRST, below=8)),
        (SCORE, ENTROPY, APPROX, LENGTH),
        log=(APPROX,),
    ),
    "too_short": Fault(
        "`max_new_tokens` is too small",
        "At first few responses have an EOS. One of the two runs learns to end early; the score stays behind in both.",
        (Sign(ENDED, FIRST, below=16), Sign(LENGTH, HIGHEST, below=6.5), Sign(SCORE, LAST, below=1.2)),
        (SCORE, ENDED, LENGTH, KL),
    ),
    "reward_scale": Fault(
        "The reward is in large units",
        "The critic's loss and gradient, on log scales, are out of all proportion.",
        (Sign(VALUE, MEAN, above=100), Sign(CRITIC, MEAN, above=10)),
        (SCORE, VALUE, CRITIC, "objective/non_score_reward"),
        log=(VALUE, CRITIC),
    ),
    "critic_frozen": Fault(
        "The critic does not learn",
        "The critic gets no gradient at all, and the value loss follows the rewards instead of falling.",
        (Sign(CRITIC, HIGHEST, below=1e-6), Sign(VALUE, LAST, above=0.2)),
        (SCORE, VALUE, CRITIC, "val/explained_variance"),
    ),
    "gamma_low": Fault(
        "γ is too small for the length",
        "Returns shrink, and with them the value loss; responses become short, and the score stays behind.",
        (Sign(VALUE, FIRST, below=0.15), Sign(LENGTH, LAST, below=8), Sign(SCORE, LAST, below=1.1)),
        (SCORE, VALUE, LENGTH, KL),
    ),
    "kl_sign": Fault(
        "The KL penalty has the wrong sign",
        "The policy is paid for KL: the reward is above the score by what should be its price.",
        (Sign("gap", LAST, above=0.1), Sign(KL, LAST, above=15)),
        (SCORE, KL, "gap", ENTROPY),
    ),
    "score_on_padding": Fault(
        "The score lands on padding",
        "Reward and score − β KL part, and value loss is far below the healthy one.",
        (Sign("gap", LOWEST, below=-0.1), Sign(SCORE, LAST, below=1)),
        (SCORE, "gap", VALUE, LENGTH),
    ),
    "mean_over_padding": Fault(
        "Means run over padding",
        "The mean ratio is the share of places that are no padding.",
        (Sign(RATIO, FIRST, below=0.8), Sign(RATIO, MEAN, below=0.9)),
        (SCORE, RATIO, ENTROPY, RATIO_VAR),
    ),
    "mask_with_padding": Fault(
        "The mask holds padding",
        "Before it has learned anything the policy seems to be far from the reference.",
        (Sign(KL, FIRST, above=10), Sign(RATIO, FIRST, below=0.8), Sign(ENDED, LAST, below=16)),
        (SCORE, KL, RATIO, ENDED),
    ),
    "logits_off_by_one": Fault(
        "Logits are one place off",
        "The first update, before anything is learned, already has a KL and a ratio that cannot be.",
        (Sign(KL, FIRST, above=10), Sign(APPROX, FIRST, above=1), Sign(SCORE, LAST, below=0)),
        (SCORE, KL, RATIO, APPROX),
        log=(APPROX,),
    ),
    "temperature_forgotten": Fault(
        "The temperature is missing in the update",
        "KL is not 0 in the first update, and over the run more is clipped.",
        (Sign(KL, FIRST, above=0.01), Sign(CLIPPED, MEAN, above=0.07)),
        (SCORE, KL, CLIPPED, LENGTH),
        beside="healthy_cool",
    ),
    "old_logprobs_recomputed": Fault(
        "Old log-probabilities are recomputed",
        "Three metrics are flat lines.",
        (Sign(RATIO_VAR, HIGHEST, below=1e-9), Sign(APPROX, HIGHEST, below=1e-9), Sign(CLIPPED, HIGHEST, below=1e-9)),
        (SCORE, RATIO_VAR, APPROX, CLIPPED),
    ),
    "reference_moves": Fault(
        "The reference moves with the policy",
        "KL is 0 for good, while the policy learns.",
        (Sign(KL, HIGHEST, below=1e-4), Sign("objective/non_score_reward", LOWEST, above=-1e-4)),
        (SCORE, KL, "objective/non_score_reward", ENTROPY),
    ),
    "loss_sign": Fault(
        "The loss has the wrong sign",
        "The score falls to the worst there is, and KL shows that it is learned.",
        (Sign(SCORE, LAST, below=-1), Sign(KL, LAST, above=50)),
        (SCORE, KL, LENGTH, RATIO_VAR),
        log=(RATIO_VAR,),
    ),
}


def runs(name: str) -> list[Rows]:
    """The stored runs of a fault, or of a healthy kind, one for each seed."""
    rows = load(f"failure_gallery/{name}.csv")
    for row in rows:
        row["gap"] = row["objective/rlhf_reward"] - row["objective/scores"] - row["objective/non_score_reward"]
    seeds = sorted({row["seed"] for row in rows})
    return [[row for row in rows if row["seed"] == seed] for seed in seeds]


def _panels(name: str, panels: Sequence[str], log: Sequence[str], height: int) -> go.Figure:
    """Small multiples: a panel per metric, the healthy runs and those with the fault in each."""
    titles = [LABELS[metric] for metric in panels]
    row_count = math.ceil(len(panels) / 2)
    fig = make_subplots(
        rows=row_count, cols=2, subplot_titles=titles, horizontal_spacing=0.14, vertical_spacing=0.26 / row_count
    )
    kinds = (("healthy", FAULTS[name].beside, PALETTE[0], "solid"), ("with the fault", name, PALETTE[1], "dot"))
    for index, metric in enumerate(panels):
        place = {"row": index // 2 + 1, "col": index % 2 + 1}
        for label, kind, colour, dash in kinds:
            for number, run in enumerate(runs(kind)):
                points = [(row["episode"], row[metric]) for row in run if not math.isnan(row[metric])]
                fig.add_scatter(
                    x=[x for x, _ in points], y=[y for _, y in points], name=label, legendgroup=label, mode="lines",
                    line={"color": colour, "dash": dash, "width": 2}, showlegend=index == number == 0,
                    hovertemplate=f"{label}, seed {number}: %{{y:.3g}}<extra></extra>", **place,
                )  # fmt: skip
        if metric in log:
            fig.update_yaxes(type="log", exponentformat="power", nticks=5, **place)
    fig.update_xaxes(title={"text": "responses generated", "font": {"size": 12}}, row=row_count)
    fig.update_annotations(font={"size": 13})  # the panels' titles, so that they fit on a phone
    return fig.update_layout(height=height)


def _dressed(fig: go.Figure, alt: str, caption: str) -> go.Figure:
    """The house style, with room for the legend above the panels' titles."""
    style(fig, alt=alt, caption=caption)
    return fig.update_layout(legend={"y": 1 + 28 / (fig.layout.height - 120)}, margin={"t": 76, "b": 44})


def figure(name: str) -> go.Figure:
    """The metrics that give the fault `name` away, of runs with it and of healthy ones.

    Raises:
        ValueError: there is no such fault.
    """
    if name not in FAULTS:
        raise ValueError(f"no fault {name!r} in the gallery; there are {', '.join(FAULTS)}")
    fault = FAULTS[name]
    fig = _panels(name, fault.panels, fault.log, height=90 + 170 * math.ceil(len(fault.panels) / 2))
    title = fault.title.replace("`", "")  # an alternative text is read aloud, without markup
    return _dressed(fig, alt=f"{title}. {_numbers(fault, name)}", caption=f"{fault.see} {_bounds(fault)}")


def _numbers(fault: Fault, name: str) -> str:
    """The signs with the range that each kind of run has, for somebody who does not see the figure."""
    parts = []
    for sign in fault.signs:
        ranges = []
        for kind in (name, fault.beside):
            values = sorted(sign.value(run) for run in runs(kind))
            ranges.append(f"{values[0]:.3g} to {values[-1]:.3g}".replace("-", "−"))
        parts.append(f"{LABELS[sign.metric]} {sign.phase}: {ranges[0]} with the fault, {ranges[1]} without")
    return "; ".join(parts) + "."


def _bounds(fault: Fault) -> str:
    texts = [sign.text() for sign in fault.signs]
    return f"In both runs with the fault and in no healthy one: {'; '.join(texts)}."


CHOOSER_PANELS = (
    "objective/scores", "objective/kl", "policy/entropy_avg", "policy/clipfrac_avg", "loss/value_avg", "val/ratio",
)  # fmt: skip


def chooser() -> "FigureSlider":
    """A slider over the faults: the same six metrics for each."""
    from ppo_lib.lab.widgets import FigureSlider

    names = {fault.title.replace("`", ""): name for name, fault in FAULTS.items()}

    def draw(title: str) -> go.Figure:
        fig = _panels(names[title], CHOOSER_PANELS, (), height=560)
        alt = f"{title}: score, KL, entropy, clipped share, value loss and ratio beside a healthy run's."
        return _dressed(fig, alt, CHOOSER_CAPTION)

    return FigureSlider(draw, list(names), label="fault", same_axes=False)


CHOOSER_CAPTION = (
    "Each step of the slider is another fault. Which of the six panels leaves the healthy lines first, and which way? "
    "Say why before you read its section."
)
