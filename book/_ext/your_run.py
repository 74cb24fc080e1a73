"""A reader's own run beside the stored ones: the rules that name its symptoms, the ranges, the curves to lay beside it.

A rule stands for one line of the table "What you see, where to look" of the troubleshooting page, by its first cell;
what to look at stands there alone. `run-log.js` applies the rules and `your-run.js` draws, both in the reader's
browser. No bound and no stored number is written in a script.
"""

import html
import json
import math
import re
from dataclasses import dataclass

from ppo_lib.config import PPOConfigV1
from ppo_lib.lab import gallery, stored
from ppo_lib.lab.plots import PALETTE

SCORE, KL, APPROX, CLIPPED = gallery.SCORE, gallery.KL, gallery.APPROX, gallery.CLIPPED
ENTROPY, RATIO, RATIO_VAR, VALUE = gallery.ENTROPY, gallery.RATIO, gallery.RATIO_VAR, gallery.VALUE
CRITIC, LENGTH, GOLD = gallery.CRITIC, gallery.LENGTH, gallery.GOLD
STD, EXPLAINED, SKIPPED = "objective/scores_std", "val/explained_variance", "train/skipped_steps"
GAP, OFF, ENDED = "gap", "off", "ended"  # made of what a run logs, in `derive` of run-log.js and in `curves` here
FIRST, MEAN, LAST, HIGHEST, _, JITTER = gallery.PHASES
START, PEAK, TROUGH = "in the first 5 updates", "over its highest 5 updates", "over its lowest 5 updates"
GAIN, FALL = "from the first 5 updates to the last 5", "from its highest to its last"

LABELS = gallery.LABELS | {
    OFF: "mean ratio's distance from 1",
    ENDED: "share that ends",
    SKIPPED: "steps left out",
}
PANELS = (
    SCORE, KL, ENTROPY, APPROX, CLIPPED, RATIO, VALUE, EXPLAINED, CRITIC, "policy/grad_norm", LENGTH, ENDED,
)  # fmt: skip
HEALTHY = ("healthy", "healthy_proxy", "healthy_cool")
FEW, FEW_JUDGED = 10, 3  # updates, and evaluations, that a rule about the course of a run needs
POINTS = 24  # of the healthy band, and at least of a stored curve


@dataclass(frozen=True)
class Condition:
    """`metric`, summed up by `phase` (its size alone with `size`), and divided by `per`, is above or below a bound.

    With `times` the bound is that many times the "low", "median" or "high" of the metric in runs that went well.
    """

    metric: str
    phase: str
    above: float = math.nan
    below: float = math.nan
    times: str = ""
    per: tuple[str, str] | None = None
    size: bool = False

    def content(self, ranges: dict) -> dict:
        """The condition as the script reads it, with its bound as a number and in words."""
        side, bound = ("below", self.below) if math.isnan(self.above) else ("above", self.above)
        words = f"{side} {bound:.3g}"
        if self.times:
            factor, bound = bound, bound * ranges[self.metric][self.times]
            end = {"low": "lowest", "median": "middle", "high": "highest"}[self.times]
            words = f"{side} {bound:.2g}, which is {factor:g} times the {end} of the healthy range"
        per = self.per and {"metric": self.per[0], "phase": self.per[1]}
        unit = f", divided by the {LABELS[self.per[0]]} {self.per[1]}" if self.per else ""
        few = 1 if self.phase == FIRST else FEW_JUDGED if self.metric.startswith("eval/") else FEW
        what = f"{'size of the ' if self.size else ''}{LABELS[self.metric]} {self.phase}{unit}".replace("-", "−")
        return {
            "metric": self.metric, "phase": self.phase, "size": self.size, "per": per, "side": side, "bound": bound,
            "least": few, "what": what, "rule": words.replace("-", "−"),
        }  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A line of the page's table, the conditions that must all hold for it, and what else may look the same."""

    see: str
    when: tuple[Condition, ...]
    but: str = ""


# A gain counts in spreads of the first scores, and a jump in the usual spread, so that units do not matter.
SPREAD, USUAL_SPREAD = (STD, START), (STD, MEAN)
RULES = (
    Rule("KL is far from 0 in the first update", (Condition(KL, FIRST, above=1, size=True),)),
    Rule(
        "KL is a little off 0 in the first update",
        (Condition(KL, FIRST, above=0.01, size=True), Condition(KL, FIRST, below=1, size=True)),
        "In bfloat16, and with the sampler of another program, rounding alone may do this.",
    ),
    Rule(
        "KL stays exactly 0",
        (Condition(KL, HIGHEST, below=1e-4, size=True), Condition(RATIO_VAR, HIGHEST, above=1e-9)),
    ),
    Rule(
        "KL stays near 0, the score does not move",
        (Condition(KL, LAST, below=0.2, times="median"), Condition(SCORE, GAIN, below=0.4, per=SPREAD)),
    ),
    Rule(
        "KL explodes",
        (Condition(KL, PEAK, above=4, times="high"),),
        "KL is a sum over the tokens: with responses of hundreds of tokens it is larger from the start.",
    ),
    Rule("the mean ratio is not near 1", (Condition(OFF, START, above=0.15),)),
    Rule(
        "the ratio is exactly 1, nothing is ever clipped",
        (Condition(RATIO_VAR, HIGHEST, below=1e-9), Condition(CLIPPED, HIGHEST, below=1e-9)),
        "With one optimiser step a rollout it is as it should be.",
    ),
    Rule("reward ≠ score − β KL", (Condition(GAP, MEAN, above=0.02, size=True, per=USUAL_SPREAD),)),
    Rule("the score falls from the start", (Condition(SCORE, GAIN, below=-0.5, per=SPREAD),)),
    Rule(
        "the training score rises, your own judgement falls",
        (Condition(SCORE, GAIN, above=0.5, per=SPREAD), Condition(GOLD, FALL, below=-1, per=SPREAD)),
        "Where the judge has other units than the reward, compare the two curves by eye.",
    ),
    Rule("entropy goes to 0", (Condition(ENTROPY, LAST, below=0.2, per=(ENTROPY, START)),)),
    Rule("few responses end", (Condition(ENDED, TROUGH, below=0.5),)),
    Rule("responses become short", (Condition(LENGTH, LAST, below=0.6, per=(LENGTH, START)),)),
    Rule("the value loss is huge", (Condition(VALUE, MEAN, above=100, times="high"),)),
    Rule("the critic's gradient is 0", (Condition(CRITIC, HIGHEST, below=1e-6),)),
    Rule(
        "explained variance stays at 0 or below",
        (Condition(EXPLAINED, PEAK, below=0.01),),
        "A critic needs time: in the healthy runs it explains little in the first updates too.",
    ),
    Rule("curves jump from update to update", (Condition(SCORE, JITTER, above=0.6, per=USUAL_SPREAD),)),
    Rule("a single update goes very far", (Condition(APPROX, HIGHEST, above=1),)),
    Rule("a third of the tokens or more are clipped", (Condition(CLIPPED, HIGHEST, above=1 / 3),)),
    Rule(
        "optimiser steps are left out",
        (Condition(SKIPPED, HIGHEST, above=0),),
        "“Numbers”, further down this page, says what to do.",
    ),
)


def curves(run: gallery.Rows) -> dict[str, list[float]]:
    """Each panel's numbers of a stored run, `POINTS` of them or a few more."""
    every = max(1, len(run) // POINTS)
    responses = run[0]["episode"] / run[0]["update"]
    rows = [dict(row, **{ENDED: row[gallery.ENDED] / responses}) for row in run[::every]]
    return {metric: [rounded(row[metric]) for row in rows] for metric in PANELS}


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def band(runs: list[dict[str, list[float]]], metric: str) -> list[list[float]]:
    """The lowest and the highest of the runs, at `POINTS` shares of their way."""

    def at(values: list[float], share: float) -> float:
        return values[round(share * (len(values) - 1))]

    shares = [point / (POINTS - 1) for point in range(POINTS)]
    return [[end(at(run[metric], share) for run in runs) for share in shares] for end in (min, max)]


def ranges() -> dict[str, dict[str, float]]:
    """What each metric was in the runs that went well: the middle of it, and the ends of the middle 90 %."""
    found = stored.load("healthy_metrics.json")["metrics"]
    responses = PPOConfigV1().rollout_size
    return found | {ENDED: {name: value / responses for name, value in found[gallery.ENDED].items()}}


def content() -> dict:
    """All that the scripts know: rules, ranges, the band of the healthy runs and the curves of the faulty ones."""
    known = ranges()
    healthy = [curves(run) for name in HEALTHY for run in gallery.runs(name)]
    asked = [name for rule in RULES for c in rule.when for name in (c.metric, *(c.per or ())[:1])]
    parts = ("objective/rlhf_reward", "objective/non_score_reward", gallery.ENDED, RATIO)
    derived = (GAP, OFF, ENDED)
    return {
        "rules": [
            {"see": rule.see, "but": rule.but, "when": [condition.content(known) for condition in rule.when]}
            for rule in RULES
        ],
        "metrics": [name for name in dict.fromkeys((*PANELS, *parts, *asked)) if name not in derived],
        "panels": [
            {
                "metric": metric,
                "label": LABELS[metric],
                "healthy": [rounded(known[metric][end]) for end in ("low", "high")],
                "band": band(healthy, metric),
            }
            for metric in PANELS
        ],
        "faults": [
            {"title": fault.title.replace("`", ""), "runs": [curves(run) for run in gallery.runs(name)]}
            for name, fault in gallery.FAULTS.items()
        ],
        "colours": {"healthy": PALETTE[0], "fault": PALETTE[1], "yours": PALETTE[3]},
    }


def lacking(page: str) -> list[str]:
    """The rules that stand for no line of the page's table."""
    lines = re.findall(r"^\| (.+?) \|", page, re.M)
    return [rule.see for rule in RULES if rule.see not in lines]


def markup(content: dict) -> str:
    data = json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    look = "".join(
        f'<span><i style="--hue: {content["colours"][kind]}" class="{kind}"></i>{html.escape(words)}</span>'
        for kind, words in (
            ("yours", "your run"),
            ("healthy", f"{2 * len(HEALTHY)} healthy stored runs"),
            ("fault", "with the fault"),
        )
    )
    return (
        '<div class="your-run">'
        "<noscript><p>Here a script would draw your file. Without JavaScript nothing is read; the table below "
        "leads to every fault.</p></noscript>"
        '<div class="live" hidden>'
        '<label class="zone"><input type="file"><span><b>Choose your <code>metrics.jsonl</code></b>, '
        "or drop it here</span> <small>It is read in this page and sent nowhere.</small></label>"
        '<p role="status"></p>'
        '<div class="result" hidden>'
        '<h3>What your run looks like</h3><ul class="symptoms"></ul><p class="proof"></p>'
        '<label class="beside">Lay a stored run with a fault beside it: <select></select></label>'
        f'<p class="legend">{look}</p><div class="picture"></div>'
        "<details><summary>The same in numbers</summary><table><thead><tr><th>metric</th><th>first</th>"
        "<th>mean of the last 5</th><th>healthy, middle 90 %</th></tr></thead><tbody></tbody></table></details>"
        f'</div></div><script type="application/json">{data}</script></div>'
    )
