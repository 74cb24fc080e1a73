"""Figures of the page "How fast is it", from the runs that `benchmarks/speed.py` stored."""

from statistics import fmean

import plotly.graph_objects as go

from ppo_lib.lab.plots import bars, lines
from ppo_lib.lab.stored import load

MODELS = {"tiny": "0.9 M", "smollm2": "SmolLM2"}
ARMS = {
    "trl": "TRL 1.12", "same": "v1, two networks", "one trunk": "v1, one trunk", "memory": "v1, one trunk, adapters",
}  # fmt: skip


def sampling() -> go.Figure:
    """How many times as many tokens per second as `generate` each decoder samples."""
    rows = load("speed/sampling.json")["rows"]
    labels = [f"{MODELS[row['model']]}, {row['batch']} at a time" for row in rows]
    ratios = {
        name: [row["ratios"][arm]["median"] for row in rows]
        for name, arm in (("Decoder", "plain decoder"), ("LlamaDecoder", "ours"))
    }
    said = "; ".join(f"{label} {ratio:.1f}" for label, ratio in zip(labels, ratios["LlamaDecoder"], strict=True))
    return bars(
        labels,
        ratios,
        y="tokens per second, generate = 1",
        alt=f"Tokens per second of the library's sampler over generate's. LlamaDecoder: {said}.",
        caption="Medians over rounds. The plain decoder gains by drawing and by leaving out finished texts, "
        "LlamaDecoder by fewer operations as well.",
    )


def update(model: str) -> go.Figure:
    """Seconds of a whole PPO update by part, for each contestant."""
    stored = load(f"speed/update_{model}.json")
    arms, garbage = stored["arms"], [stored["trl_gc"] if name == "trl" else 0.0 for name in stored["arms"]]
    parts = {
        "sampling": [arm["sample"] for arm in arms.values()],
        "scoring": [arm["score"] - gc for arm, gc in zip(arms.values(), garbage, strict=True)],
        "four epochs": [arm["update"] for arm in arms.values()],
        "garbage collection": garbage,
    }
    said = "; ".join(f"{ARMS[name]} {arm['seconds']['median']:.3g} s" for name, arm in arms.items())
    figure = bars(
        [ARMS[name] for name in arms],
        parts,
        y="seconds of an update",
        alt=f"Median seconds of one PPO update of {MODELS[model]}. {said}.",
        caption="Without TRL's garbage collection, most of an update is its four epochs, forward and backward.",
    )
    return figure.update_layout(barmode="stack")


def curve() -> go.Figure:
    """Mean scores of the updates of SmolLM2, TRL's trainer and v1 with less memory."""
    arms = load("speed/curve.json")["arms"]
    scores = {ARMS[name]: [row["score"] for row in rows] for name, rows in arms.items()}
    said = "; ".join(f"{name} from {fmean(s[:5]):.2f} to {fmean(s[-5:]):.2f}" for name, s in scores.items())
    return lines(
        list(range(1, 1 + max(map(len, scores.values())))), scores, x="update", y="mean score (VADER)",
        alt=f"Mean scores of the updates, the first five and the last five: {said}.",
        caption="One seed, eight responses an update: a single point means little.",
    )  # fmt: skip
