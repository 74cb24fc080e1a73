"""Figures of the page "How fast is it", from the runs that `benchmarks/speed.py` stored."""

import plotly.graph_objects as go

from ppo_lib.plots import bars
from ppo_lib.stored import load

MODELS = {"tiny": "0.9 M", "smollm2": "SmolLM2"}
ARMS = {
    "trl": "TRL 1.12", "same": "v1, two networks", "one trunk": "v1, one trunk", "memory": "v1, one trunk, adapters",
    "memory bf16": "the same in bf16",
}  # fmt: skip


def sampling() -> go.Figure:
    """How many times as many tokens per second as `generate` each decoder samples."""
    rows = load("speed/sampling.json")["rows"]
    labels = [f"{MODELS[row['model']]}, {row['batch']} at a time" for row in rows]
    ratios = {}
    for name, arm in (("every model's decoder", "plain decoder"), ("LlamaDecoder", "ours")):
        rates = [row["tokens_per_second"] for row in rows]
        ratios[name] = [rate[arm]["median"] / rate["generate"]["median"] for rate in rates]
    said = "; ".join(f"{label} {ratio:.1f}" for label, ratio in zip(labels, ratios["LlamaDecoder"], strict=True))
    return bars(
        labels, ratios, y="tokens per second, generate = 1",
        alt=f"Tokens per second of the library's sampler over generate's. LlamaDecoder: {said}.",
        caption="Where a model is small, a step costs its operations, and fewer of them is nearly all of the gain.",
    )


def update(model: str) -> go.Figure:
    """Seconds of a whole PPO update by part, for each contestant."""
    arms = load(f"speed/update_{model}.json")["arms"]
    parts = {name: [arm[part] for arm in arms.values()] for name, part in
             (("sampling", "sample"), ("scoring", "score"), ("four epochs", "update"))}  # fmt: skip
    said = "; ".join(f"{ARMS[name]} {arm['seconds']['median']:.3g} s" for name, arm in arms.items())
    figure = bars(
        [ARMS[name] for name in arms], parts, y="seconds of an update",
        alt=f"Median seconds of one PPO update of {MODELS[model]}. {said}.",
        caption="Most of an update is its four epochs, forward and backward.",
    )
    return figure.update_layout(barmode="stack")
