"""The explorer of chapter 12: stored runs over four settings of the replay buffer, and the reader's own among them."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import traitlets

from ppo_lib import worlds
from ppo_lib.lab.efficiency import cost_until, ratio_interval
from ppo_lib.lab.plots import PALETTE
from ppo_lib.lab.widgets import Described, module, send_plotly
from ppo_lib.ppo_v2 import PPOTrainerWithReplay

__all__ = ["ReplayExplorer", "trained_curve"]

LABELS = {
    "replay_buffer_size": "replay buffer size",
    "replay_sample_size": "replay sample size",
    "max_replay_reuse": "max reuse",
    "staleness_threshold": "staleness threshold",
}
SHARES = (50, 75, 90)  # thresholds: percent of what on-policy PPO gains over its runs
EVERY = 32  # generated responses between evaluations
LAST = 3  # evaluations at a run's end whose mean is its final value
HEALTH = {"reuse": "efficiency/reuse_ratio", "ess": "replay/ess", "distance": "replay/kl", "age": "replay/batch_age",
          "held": "replay/size"}  # fmt: skip
NO_REPLAY = {"reuse": 1.0, "ess": 1.0, "distance": 0.0, "age": 0.0, "held": 0}

Curve = list[dict[str, float]]


def trained_curve(
    settings: Mapping[str, Any], episodes: int = 320, seed: int = 0, heard: Callable[[Curve], None] | None = None
) -> Curve:
    """Train on `reviews` with replay; one row for each evaluation on its held-out prompts, the first before any update.

    Args:
        settings: of `ReplayConfig`; `batch_size` must divide 32, the responses between evaluations.
        episodes: responses to generate.
        heard: called with the curve so far after each evaluation.

    Raises:
        ValueError: the settings contradict each other.
    """
    world = worlds.load("reviews")
    curve: Curve = []
    settings = {"batch_size": 8, "device": "cpu", "response_logits_only": True, **settings}
    trainer = PPOTrainerWithReplay(
        "reviews", world.reward, total_episodes=episodes, seed=seed, eval_every=EVERY // settings["batch_size"],
        eval_samples=0, **settings,
    )  # fmt: skip

    def note(judged: Mapping, update: int, metrics: Mapping) -> None:
        curve.append({
            "responses": update * settings["batch_size"],
            "tokens": metrics.get("efficiency/generated_tokens", 0),
            "objective": judged["eval/score"] - trainer.config.kl_coef * judged["eval/kl"],
            **{name: judged[f"eval/{name}"] for name in ("score", "kl", "entropy")},
            **{name: metrics.get(metric, NO_REPLAY[name]) for name, metric in HEALTH.items()},
        })  # fmt: skip

    def callback(trainer: Any, rollout: Any, metrics: Mapping) -> None:
        if "eval/score" in metrics:
            if not curve:
                note(trainer.evaluations[0], 0, {})
            note(metrics, metrics["update"], metrics)
            if heard:
                heard(curve)

    with _no_progress_bar():
        trainer.train(world.prompts, world.heldout_prompts, callback)
    return curve


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """A widget's run has no cell to draw a bar in."""
    before = os.environ.get("TQDM_DISABLE", "0")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ["TQDM_DISABLE"] = before


class ReplayExplorer(Described):
    """Four sliders over stored runs: learning curves, efficiency beside reuse, the buffer's health; and `train`.

        ReplayExplorer(stored.load("replay_explorer/curves.csv"), stored.load("replay_explorer/runs.json"), caption="…")

    In a live notebook a button trains the chosen setting and draws its curve over the stored ones.

    Args:
        rows: evaluations of all runs, in order; those of on-policy PPO have 0 for each of the four settings.
        about: `sliders` (setting → its values), `fixed` (settings that all runs share), `episodes` (of a run).
        start: setting → the value shown first, by default the middle one.
        caption: what to see.

    Raises:
        ValueError: a point of the grid, or on-policy PPO, has fewer than two runs.
    """

    _esm = module("plotting.js", "explorer.js")
    grid = traitlets.Dict().tag(sync=True)
    positions = traitlets.List(traitlets.Int()).tag(sync=True)
    share = traitlets.Int(SHARES.index(75)).tag(sync=True)
    runs = traitlets.List(traitlets.Dict()).tag(sync=True)  # the reader's own
    training = traitlets.Dict().tag(sync=True)  # how far the present one is; empty where none is
    failure = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        rows: Sequence[dict[str, float]],
        about: Mapping[str, Any],
        *,
        caption: str,
        start: Mapping[str, float] | None = None,
    ):
        self.sliders, self.fixed, self.episodes = about["sliders"], about["fixed"], about["episodes"]
        curves: dict[tuple, dict[float, Curve]] = {}
        for row in rows:
            key = tuple(row[name] for name in self.sliders)
            curves.setdefault(key, {}).setdefault(row["seed"], []).append(row)
        places = list(itertools.product(*self.sliders.values()))
        on_policy = tuple(0 for _ in self.sliders)
        for place in (on_policy, *places):
            if len(curves.get(place, ())) < 2:
                raise ValueError(f"the setting {dict(zip(self.sliders, place, strict=True))} has fewer than two runs")
        baseline = curves[on_policy]
        first = np.mean([curve[0]["objective"] for curve in baseline.values()])
        gain = np.mean([_final(curve) for curve in baseline.values()]) - first
        self.levels = [float(first + share / 100 * gain) for share in SHARES]
        chosen = {name: values[len(values) // 2] for name, values in self.sliders.items()} | dict(start or {})
        super().__init__(
            grid={
                "controls": [
                    {"label": LABELS[name], "texts": [str(value) for value in values]}
                    for name, values in self.sliders.items()
                ],
                "shares": SHARES,
                "levels": _short(self.levels),
                "baseline": self._point(baseline, baseline, dict.fromkeys(self.sliders, 1)),
                "points": [
                    self._point(curves[place], baseline, dict(zip(self.sliders, place, strict=True)))
                    for place in places
                ],
                "episodes": self.episodes,
                "palette": PALETTE,
            },
            positions=[values.index(chosen[name]) for name, values in self.sliders.items()],
            caption=caption,
        )
        self.on_msg(send_plotly)
        self.on_msg(self._receive)

    @property
    def setting(self) -> dict[str, int]:
        """What the four sliders stand on, under the names of `ReplayConfig`."""
        return {name: values[at] for (name, values), at in zip(self.sliders.items(), self.positions, strict=True)}

    def describe(self) -> str:
        """The sliders and their ends, for readers without a browser."""
        return ", ".join(f"{c['label']} from {c['texts'][0]} to {c['texts'][-1]}" for c in self.grid["controls"])

    def train(self, episodes: int | None = None) -> Curve:
        """Train the chosen setting, each time with the next seed, and draw its curve over the stored ones.

        Raises:
            Exception: whatever the run raises.
        """
        positions, setting, begin = list(self.positions), self.setting, time.perf_counter()
        seed = sum(run["positions"] == positions for run in self.runs)

        def heard(curve: Curve) -> None:
            seconds = round(time.perf_counter() - begin, 1)
            self.training = {"responses": curve[-1]["responses"], "seconds": seconds}

        self.failure, self.training = "", {"responses": 0, "seconds": 0.0}
        try:
            together = self.fixed["batch_size"] + setting["replay_sample_size"]
            settings = self.fixed | setting | {"minibatch_size": together}
            curve = trained_curve(settings, episodes or self.episodes, seed, heard)
            own = {"positions": positions, "seed": seed, "seconds": round(time.perf_counter() - begin, 1)}
            self.runs = [*self.runs, own | self._shown(curve, setting)]
        finally:
            self.training = {}
        return curve

    def _receive(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "hello":
            self.send({"type": "here"})  # so the page knows that Python runs behind it
        elif kind == "train":
            try:
                self.train()
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"
                raise

    def _shown(self, curve: Curve, setting: Mapping[str, float]) -> dict:
        """A run as the widget draws it; age and fill as shares of what the setting allows."""
        found = [cost_until(curve, level) for level in self.levels]
        return {
            "tokens": _short([row["tokens"] for row in curve]),
            "objective": _short([row["objective"] for row in curve]),
            **_health(curve, setting),
            "until": [{"tokens": round(tokens), "held": held} for tokens, held in found],
        }

    def _point(self, runs: dict[float, Curve], baseline: dict[float, Curve], setting: Mapping[str, float]) -> dict:
        """Mean, lowest and highest of a setting's runs, and what they cost beside on-policy PPO on the same seeds."""
        seeds = sorted(runs.keys() & baseline.keys())
        objective = np.array([[row["objective"] for row in runs[seed]] for seed in seeds])  # [seeds, evaluations]
        evaluations = zip(*(runs[seed] for seed in seeds), strict=True)
        together = [{name: np.mean([row[name] for row in rows]) for name in rows[0]} for rows in evaluations]
        until = []
        for level in self.levels:
            costs, held = zip(*(cost_until(runs[seed], level) for seed in seeds), strict=True)
            horizon = min(some[seed][-1]["tokens"] for some in (runs, baseline) for seed in seeds)
            ours, theirs = ([_cut_off(some[seed], level, horizon) for seed in seeds] for some in (runs, baseline))
            until.append({
                "tokens": round(float(np.mean(costs))), "never": sum(not each for each in held), "runs": len(seeds),
                "ratio": _short(ratio_interval(theirs, ours)) if runs is not baseline else [1, 1, 1],
            })  # fmt: skip
        return {
            "tokens": _short([row["tokens"] for row in together]),
            "objective": _short(objective.mean(axis=0)),
            "low": _short(objective.min(axis=0)),
            "high": _short(objective.max(axis=0)),
            "final": round(float(np.mean([_final(runs[seed]) for seed in seeds])), 3),
            "reuse": round(float(together[-1]["reuse"]), 2),
            **_health(together, setting),
            "until": until,
        }


def _cut_off(curve: Curve, level: float, horizon: float) -> float:
    """Tokens until a run holds `level`, followed no further than `horizon`: what is compared must be cut off alike."""
    tokens, held = cost_until(curve, level)
    return min(tokens, horizon) if held else horizon


def _final(curve: Curve) -> float:
    return float(np.mean([row["objective"] for row in curve[-LAST:]]))


def _health(curve: Curve, setting: Mapping[str, float]) -> dict[str, list[float]]:
    """From the first update on: effective sample size, and age and fill as shares of what the setting allows."""
    size, oldest = setting["replay_buffer_size"], setting["staleness_threshold"]
    return {
        "ess": _short([row["ess"] for row in curve[1:]]),
        "age": _short([row["age"] / oldest for row in curve[1:]]),
        "fill": _short([row["held"] / size for row in curve[1:]]),
    }


def _short(numbers: Iterable[float]) -> list[float]:
    """Four significant digits are enough to draw."""
    return [float(f"{number:.4g}") for number in numbers]
