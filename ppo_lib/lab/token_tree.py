"""The tree of texts a policy may write: each branch a next token, each edge its probability."""

from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_lib.lab.plots import PALETTE, figure

__all__ = ["Node", "grow_tree", "token_tree"]


@dataclass(frozen=True)
class Node:
    """A token on the tree. The root stands for the whole prompt."""

    text: str  # the token, or the prompt at the root
    probability: float  # π(token | prompt and the tokens above it); 1 at the root
    joint: float  # product of the probabilities from the root down to here
    parent: int | None  # index of the node above in the list, None at the root
    depth: int  # tokens since the prompt
    ids: tuple[int, ...]  # prompt and tokens down to here


@torch.no_grad()
def grow_tree(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    depth: int = 3,
    branches: int = 2,
    temperature: float = 1.0,
) -> list[Node]:
    """The `branches` most probable next tokens at every state, `depth` tokens deep, parents before children.

    A branch that reaches the EOS token ends there.
    """
    nodes = [Node(prompt, 1.0, 1.0, None, 0, tuple(tokenizer(prompt)["input_ids"]))]
    level = [0]
    for _ in range(depth):
        states = torch.tensor([nodes[index].ids for index in level], device=policy.device)  # [states, length]
        logits = policy(input_ids=states).logits[:, -1].float() / temperature  # [states, V]
        probabilities, tokens = logits.softmax(dim=-1).topk(branches, dim=-1)  # [states, branches]
        grown = []
        for parent, row_probabilities, row_tokens in zip(level, probabilities.tolist(), tokens.tolist(), strict=True):
            above, texts = nodes[parent], tokenizer.batch_decode([[token] for token in row_tokens])
            for probability, token, text in zip(row_probabilities, row_tokens, texts, strict=True):
                joint = above.joint * probability
                nodes.append(Node(text, probability, joint, parent, above.depth + 1, (*above.ids, token)))
                if token != tokenizer.eos_token_id:
                    grown.append(len(nodes) - 1)
        level = grown
        if not level:
            break
    return nodes


def token_tree(nodes: list[Node], *, caption: str, alt: str | None = None, height: int | None = None) -> go.Figure:
    """Draw what `grow_tree` returned: tokens as labels, probabilities on the edges, wide edges the probable ones."""
    heights = _heights(nodes)
    inner = {node.parent for node in nodes}
    best = max(nodes[1:], key=lambda node: (node.depth, node.joint))
    fig = figure(
        alt=alt
        or f"Tree of next tokens after {nodes[0].text!r}, {best.depth} deep. Its most probable path ends in "
        f"{best.text!r} and has probability {best.joint:.3g}.",
        caption=caption,
        height=height or 60 + 34 * (len(nodes) - len(inner - {None})),
    )
    edges = [
        (nodes[node.parent].depth, heights[node.parent], heights[index], node)
        for index, node in enumerate(nodes)
        if node.parent is not None
    ]
    for start, low, high, node in edges:
        cuts = [0, 0.34, None, 0.66, 1]  # a gap in the middle, for the number
        fig.add_scatter(
            x=[None if cut is None else start + cut for cut in cuts],
            y=[None if cut is None else low + cut * (high - low) for cut in cuts],
            mode="lines",
            line={"color": PALETTE[0], "width": 1 + 7 * node.probability},
            hoverinfo="skip",
        )
    fig.add_scatter(
        x=[start + 0.5 for start, *_ in edges],
        y=[(low + high) / 2 for _, low, high, _ in edges],
        mode="text",
        text=[f"{node.probability:.2f}" for *_, node in edges],
        textfont={"size": 11},
        hoverinfo="skip",
    )
    fig.add_scatter(
        x=[node.depth for node in nodes],
        y=heights,
        mode="markers+text",
        marker={"size": 8, "color": PALETTE[1]},
        text=[_label(node) for node in nodes],
        textposition=["top center" if index in inner else "middle right" for index in range(len(nodes))],
        customdata=[[node.probability, node.joint] for node in nodes],
        hovertemplate="%{text}: p = %{customdata[0]:.3f}, path %{customdata[1]:.4f}<extra></extra>",
    )
    deepest = max(node.depth for node in nodes)
    places = list(range(1, deepest + 1))
    fig.update_xaxes(range=[-0.35, deepest + 0.75], showgrid=False, zeroline=False)
    fig.update_xaxes(tickvals=places, ticktext=[f"token {place}" for place in places])
    fig.update_yaxes(visible=False)
    return fig.update_layout(showlegend=False, margin={"l": 10, "r": 10, "t": 10, "b": 30})


def _heights(nodes: list[Node]) -> list[float]:
    """Leaves one unit apart, the first branch on top, each parent midway between its first and last child."""
    children = [[i for i, node in enumerate(nodes) if node.parent == index] for index in range(len(nodes))]
    heights, next_leaf = [0.0] * len(nodes), 0.0

    def place(index: int) -> float:
        nonlocal next_leaf
        if children[index]:
            below = [place(child) for child in children[index]]
            heights[index] = (below[0] + below[-1]) / 2
        else:
            heights[index], next_leaf = next_leaf, next_leaf - 1
        return heights[index]

    place(0)
    return heights


def _label(node: Node) -> str:
    if node.parent is None:
        return "prompt"
    return node.text.replace(" ", "␣").replace("\n", "⏎").replace("<", "&lt;")
