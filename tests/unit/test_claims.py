"""A claim that fails stops a build and not a reader; tolerances follow from precision, size and number of terms."""

from types import SimpleNamespace

import pytest
import torch

from ppo_lib import worlds
from ppo_lib.lab.claims import STRICT, expect, path_length, rounding
from ppo_lib.models import model_inputs


def test_a_claim_that_holds_says_nothing(monkeypatch, capsys):
    monkeypatch.setenv(STRICT, "1")
    expect(True, "The proxy rises.", seen=1)
    assert capsys.readouterr().out == "", "a claim that holds is printed: readers would take it for a failure"


def test_readers_go_on_and_read_what_was_expected_what_came_out_and_what_it_teaches(monkeypatch, capsys):
    monkeypatch.delenv(STRICT, raising=False)
    expect(False, "The proxy rises.", seen=0.0, lesson="A reward model that is sure of nothing moves nobody.")
    text = capsys.readouterr().out
    assert "Expected: The proxy rises." in text, "readers are not told what was expected"
    assert "Your run: 0.0" in text, "readers are not told what came out, where that is 0"
    assert "moves nobody" in text, "readers are not told what a claim that fails teaches"


def test_a_build_fails(monkeypatch):
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(AssertionError, match="The proxy rises"):
        expect(False, "The proxy rises.")


def test_the_programs_that_build_and_test_the_book_are_strict():
    import execute

    assert execute.KERNEL_ENVIRONMENT[STRICT], "chapters are executed without failing on a claim"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("terms", [10, 1000, 100_000])
def test_two_orders_of_one_sum_lie_within_the_rounding_and_a_slip_does_not(dtype, terms):
    generator = torch.Generator().manual_seed(terms)
    numbers = torch.randn(terms, generator=generator).to(dtype)
    one_by_one, other_way = (each.cumsum(0) for each in (numbers, numbers.flip(0)))
    on_the_way = max(one_by_one.abs().max(), other_way.abs().max())
    bound = rounding(on_the_way, terms=terms)
    assert abs(one_by_one[-1] - other_way[-1]) <= bound, (
        "the bound is too tight: a sum in another order fails it by rounding alone"
    )
    assert bound < 0.1 * terms, "a bound that forbids nothing"
    if dtype == torch.float32:
        assert bound < 0.5, "a number left out would go unnoticed"


@pytest.mark.filterwarnings("error")
def test_numbers_may_have_gradients():
    assert rounding(torch.ones(2, requires_grad=True), terms=1) == rounding(1.0, terms=1), (
        "a tensor of ones is rounded to another precision than the number 1"
    )


def test_coarsest_precision_and_largest_number_count():
    single, half = torch.ones(2), torch.full((2,), 3.0, dtype=torch.bfloat16)
    assert rounding(1.0, terms=1) == pytest.approx(8 * 2**-24), (
        "a plain number is not taken for float32, or the unit roundoff is not half of its eps"
    )
    bound = rounding(single, half, terms=4)
    assert bound > 1e-3, "the bound is that of the finest precision: the coarsest decides"
    assert bound != pytest.approx(8 * 4 * 2**-8 * 3), "errors are added up one for one, not like a random walk"
    assert bound == pytest.approx(8 * 2 * 2**-8 * 3), "the bound is not that of the largest number"
    with pytest.raises(ValueError, match="at least one"):
        rounding(terms=3)


def test_a_models_path_bounds_what_a_batch_changes_and_not_what_a_temperature_changes():
    world = worlds.load("reviews")
    tokens = torch.randint(5, 400, (16, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = world.model(**model_inputs(world.model, tokens, torch.ones_like(tokens))).logits
        alone = torch.cat(
            [world.model(**model_inputs(world.model, row[None], torch.ones_like(row)[None])).logits for row in tokens]
        )
    bound = rounding(together, terms=path_length(world.model, 40))
    assert (together - alone).abs().max() <= bound, (
        "the bound is too tight: computing in a batch fails it by rounding alone"
    )
    assert bound < (together - together / 1.01).abs().max(), (
        "the bound is too wide: a temperature of 1.01 goes unnoticed"
    )


@pytest.mark.parametrize(
    ("seen", "lesson", "said"),
    [
        ("", "", "Expected: it rises.\nYour run came out otherwise.\n"),
        (0, "", "Expected: it rises.\nYour run: 0\n"),
        (1.5, "Look again.", "Expected: it rises.\nYour run: 1.5\nLook again.\n"),
    ],
)
def test_what_is_not_known_is_not_said(monkeypatch, capsys, seen, lesson, said):
    monkeypatch.delenv("PPO_BOOK_STRICT", raising=False)
    expect(False, "it rises.", seen=seen, **({"lesson": lesson} if lesson else {}))
    assert capsys.readouterr().out == said, "a reader is told more or less than is known of the run"


def test_long_claims_are_folded_into_a_notebooks_width(monkeypatch, capsys):
    monkeypatch.delenv("PPO_BOOK_STRICT", raising=False)
    expect(False, " ".join(["word"] * 40), seen="x " * 49 + "y" * 9)  # "Your run: " and this are beyond 100 characters
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 99, f"lines of {max(map(len, lines))} characters"  # 10 + 18 words of 5, or the like
    assert [line[:3] for line in lines] == ["Exp", "   ", "   ", "You", "   "], "what goes on is not set in"


def test_the_longest_path_of_a_decoder_by_hand():
    """Of a layer: two norms, a projection in, scores and their weighted sum, a projection out, the MLP."""
    config = SimpleNamespace(hidden_size=10, num_hidden_layers=3, intermediate_size=7)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    assert path_length(model, 4) == 3 * (7 * 10 + 7 + 2 * 4) + 2 * 10, "the path is not that of three layers and a head"
    config.intermediate_size = [7, 9, 8]
    assert path_length(model, 4) == 3 * (7 * 10 + 9 + 2 * 4) + 20, "not the widest of layers that differ counts"
    del config.intermediate_size
    assert path_length(model, 4) == 3 * (7 * 10 + 40 + 2 * 4) + 20, "a width that is not told is not four times that"
