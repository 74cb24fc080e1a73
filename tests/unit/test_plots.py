"""The plots: every figure can be read by everyone, and says what its numbers say."""

import json
import math

import numpy as np
import pytest
import torch

from ppo_lib.lab import plots
from ppo_lib.lab.token_tree import Node, grow_tree, token_tree

TEXTS = {"alt": "What it shows.", "caption": "What to see."}
HISTORY = [
    {"episode": 32 * update, **dict.fromkeys(plots.TRAINING_PANELS, 0.1 * update), "lr": 1e-3} for update in (1, 2, 3)
]
TREE = [
    Node("The film", 1.0, 1.0, None, 0, (1, 2)),
    Node(" was", 0.75, 0.75, 0, 1, (1, 2, 3)),
    Node(" is", 0.25, 0.25, 0, 1, (1, 2, 4)),
    Node(" <good>", 0.5, 0.375, 1, 2, (1, 2, 3, 5)),
]
FIGURES = {
    "figure": plots.figure(**TEXTS),
    "lines": plots.lines([0, 1], {"a": [1.0, 2.0], "b": [2.0, 1.0]}, bands={"a": ([0, 1], [2, 3])}, **TEXTS),
    "bars": plots.bars(["k1", "k2"], {"mean": [1.0, 2.0]}, errors={"mean": [0.1, 0.2]}, **TEXTS),
    "heat": plots.heat([[1.0, -2.0], [0.5, None]], ["reward", "value"], [" the", " film"], **TEXTS),
    "training_figure": plots.training_figure(HISTORY),
    "token_tree": token_tree(TREE, caption="What to see."),
}


@pytest.fixture(params=FIGURES)
def figure(request):
    return FIGURES[request.param]


def test_has_alt_and_caption(figure):
    assert figure.layout.meta["alt"], "the figure has no alt text: who does not see it learns nothing"
    assert figure.layout.meta["caption"], "the figure has no caption: nobody is told what to see in it"


def test_background_is_transparent_and_colours_come_from_the_template(figure):
    layout = figure.layout.template.layout
    assert layout.paper_bgcolor == "rgba(0,0,0,0)", "the figure is a white sheet on a dark page"
    assert layout.plot_bgcolor == "rgba(0,0,0,0)", "the area between the axes is a white sheet on a dark page"
    own = json.loads(figure.to_json())["layout"]
    assert "font" not in own, "a font set on the figure wins over the page's theme"
    assert "paper_bgcolor" not in own, "a colour set on the figure wins over the page's theme"


def test_only_traces_that_the_smallest_bundle_draws(figure):
    assert {trace.type for trace in figure.data} <= {"scatter", "bar"}, (
        "a trace is of a kind that the smallest bundle of Plotly cannot draw: the page stays empty"
    )


def test_is_compact(figure):
    assert len(figure.to_json()) < 6000, "a small figure carries a large template, Plotly's own"


@pytest.mark.parametrize("texts", [{"alt": "", "caption": "c"}, {"alt": "a", "caption": " "}])
def test_texts_are_not_optional(texts):
    with pytest.raises(ValueError, match="alt"):
        plots.figure(**texts)


@pytest.mark.parametrize("colour", plots.PALETTE)
def test_palette_is_visible_in_light_and_dark(colour):
    rgb = tuple(bytes.fromhex(colour[1:]))
    for page in ((255, 255, 255), (18, 18, 18)):
        assert plots.contrast(rgb, page) >= 3, f"{colour} can hardly be seen on {page}"


def test_contrast_of_known_pairs():
    assert plots.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21), (
        "black on white has not the contrast of WCAG"
    )
    assert plots.contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01), (
        "the luminance of a grey is not that of WCAG: sRGB values are not made linear"
    )


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor], ids=["list", "numpy", "torch"])
def test_lines_take_any_sequence(kind):
    edges = (kind([0.0, 1.0]), [2.0, 3.0])
    figure = plots.lines(kind([0.0, 1.0]), {"a": kind([1.0, 2.0])}, bands={"a": edges}, **TEXTS)
    band, line = figure.data
    assert list(line.y) == [1.0, 2.0], "the line has other numbers than it was given, or is drawn below its band"
    assert list(band.x) == [0, 1, 1, 0], "the band does not run there along one edge and back along the other"
    assert list(band.y) == [2, 3, 1, 0], "the edges of the band cross, or one is missing"


def test_lines_differ_by_dash_and_not_only_by_colour():
    figure = plots.lines([0, 1], {name: [0, 1] for name in "abcd"}, **TEXTS)
    assert len({trace.line.dash for trace in figure.data}) == 4, "two lines can be told apart by their colours alone"


def test_wrong_lengths_are_named():
    with pytest.raises(ValueError, match="'a' has 1 values, and there are 2 places"):
        plots.lines([0, 1], {"a": [1.0]}, **TEXTS)
    with pytest.raises(ValueError, match="'mean' has 3 values, and there are 2 places"):
        plots.bars(["x", "y"], {"mean": [1, 2, 3]}, **TEXTS)
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        plots.heat([[1.0]], ["row"], ["a", "b"], **TEXTS)
    with pytest.raises(ValueError, match="'b'"):
        plots.lines([0, 1], {"a": [1.0, 2.0]}, bands={"b": ([0, 0], [1, 1])}, **TEXTS)


def test_bars_with_equal_labels_stay_apart():
    figure = plots.bars([" the", " the"], {"p": [0.1, 0.2]}, **TEXTS)
    assert list(figure.data[0].x) == [0, 1], "bars of equal labels are stacked at one place"
    assert list(figure.layout.xaxis.ticktext) == [" the", " the"], "bars bear their numbers, not their labels"


def test_heat_writes_every_number_legibly_and_leaves_masked_cells_empty():
    trace = plots.heat(torch.tensor([[3.0, -3.0, math.nan]]), ["A"], ["a", "b", "c"], **TEXTS).data[0]
    assert len(trace.text) == 2, "a masked cell is written out, or a number is not"
    assert list(trace.text) == ["3.00", "−3.00"], "a cell has another number, other digits, or a hyphen for its minus"
    assert trace.marker.color[0] != trace.marker.color[1], "values of opposite sign share a colour"
    for paper, ink in zip(trace.marker.color, trace.textfont.color, strict=True):
        rgb = tuple(int(part) for part in paper[4:-1].split(","))
        assert plots.contrast(rgb, tuple(bytes.fromhex(ink[1:]))) >= 4.5, f"{ink} can hardly be read on {paper}"


def test_training_figure_tells_its_story_in_the_alt_text():
    figure = plots.training_figure(HISTORY)
    assert len(figure.data) == len(plots.TRAINING_PANELS), "a metric has no panel, or a constant learning rate has one"
    assert list(figure.data[0].x) == [32, 64, 96], "the x axis counts updates, not responses"
    assert "over 96 responses: score from 0.1 to 0.3" in figure.layout.meta["alt"], (
        "the alt text does not say over how many responses what rose or fell"
    )


def test_training_figure_leaves_out_what_the_history_lacks():
    figure = plots.training_figure([{"objective/scores": 1.0}])
    assert [trace.name for trace in figure.data] == ["score"], "a metric that the history lacks has an empty panel"


def test_training_figure_joins_the_sparse_held_out_score_and_shows_what_changes():
    sparse = [
        {"episode": 0, "eval/score": 0.1},
        {"episode": 8, "objective/scores": 0.5, "lr": 1e-3, "objective/kl_coef": 0.05},
        {"episode": 16, "objective/scores": None, "lr": 5e-4, "objective/kl_coef": 0.05, "eval/score": 0.4},
    ]
    score, held_out, rate = plots.training_figure(sparse).data
    assert list(score.x) == [8, 16], "a score is drawn at an update that has none, or not where it belongs"
    assert list(score.y) == [0.5, None], "a NaN is no gap in the line"
    assert held_out.name == "held-out score", "the held-out score has no panel of its own"
    assert list(held_out.x) == [0, 16], "the evaluation before training is not drawn, or updates without one are"
    assert list(held_out.y) == [0.1, 0.4], "the held-out score is not joined from one evaluation to the next"
    assert rate.name == "learning rate", "the price of KL, which stays as it is, takes the panel of the learning rate"


def test_standalone_page_needs_no_network_and_can_be_read_aloud():
    page = plots.standalone_page(FIGURES["training_figure"], "A <run>")
    assert "<title>A &lt;run&gt;</title>" in page, "the page has no title, or one that is taken for HTML"
    assert 'aria-label="Training metrics over 96' in page, "the page does not read the alt text aloud"
    assert "Plotly.newPlot" in page, "the page draws no figure"
    assert '<script src="http' not in page, "the page loads a script from the network"
    assert "cdn.plot.ly" not in page.split("plotly.js v")[0], "the page loads plotly.js from the network"
    assert len(page) > 1_000_000, "plotly.js is not inside the page"


@pytest.mark.parametrize("history", [[], [{"lr": 1.0}]])
def test_training_figure_of_nothing_says_so(history):
    with pytest.raises(ValueError, match="call `train` first"):
        plots.training_figure(history)


def test_tree_puts_probabilities_on_edges():
    numbers, tokens = FIGURES["token_tree"].data[-2:]
    assert list(numbers.text) != ["0.75", "0.25", "0.38"], "edges bear the probability of the whole path"
    assert list(numbers.text) == ["0.75", "0.25", "0.50"], "edges do not bear the probabilities of their tokens"
    assert list(tokens.text) == ["prompt", "␣was", "␣is", "␣&lt;good>"], (
        "a token's label loses its space, or is taken for HTML"
    )
    assert "' <good>' and has probability 0.375" in FIGURES["token_tree"].layout.meta["alt"], (
        "the alt text does not name the most probable path, the deepest one, with its joint probability"
    )


def test_tree_holds_the_policys_own_probabilities():
    from ppo_lib import worlds

    world = worlds.load("reviews")
    nodes = grow_tree(world.model, world.tokenizer, "The film was", depth=2, branches=2)
    assert [node.depth for node in nodes] == [0, 1, 1, 2, 2, 2, 2], (
        "not every state has two branches, or a child stands before its parent"
    )
    leaf = nodes[3]
    with torch.no_grad():
        logits = world.model(input_ids=torch.tensor([leaf.ids[:-1]])).logits[0, -1]
    assert leaf.probability == pytest.approx(logits.softmax(-1)[leaf.ids[-1]].item(), rel=1e-4), (
        "a token's probability is not the policy's after the tokens above it"
    )
    assert leaf.joint == pytest.approx(nodes[1].probability * leaf.probability), (
        "the probability of a path is not the product along it"
    )


def test_tree_does_not_grow_beyond_eos():
    from ppo_lib import worlds

    world = worlds.load("reviews")
    nodes = grow_tree(world.model, world.tokenizer, "The film was good.", depth=2, branches=3)
    ends = [index for index, node in enumerate(nodes) if node.ids[-1] == world.tokenizer.eos_token_id]
    assert ends, "the test needs a branch that ends in EOS"
    assert not any(node.parent in ends for node in nodes), "the tree grows on behind an EOS, where the episode is over"
