"""The chapters as on another machine: one variant of `benchmarks/sturdy.py`, strictly.

`make test-variant` runs every chapter, under the variant that the commit chooses or VARIANT names. Within `make test`
it is one chapter on another kernel, with another seed and other weights: enough to see that the machinery works.
"""

import json
import os
import sys

import nbformat
import pytest

import cells
import toc

sys.path.insert(0, str(toc.ROOT / "benchmarks"))

import sturdy  # noqa: E402

NAME = os.environ.get("VARIANT")
SAMPLE = sturdy.Variant("all at once", sturdy.SSE41, {"SEED": 5}, noise=5)
CHAPTERS = sorted(toc.CHAPTERS.glob("*.ipynb")) if NAME else [toc.CHAPTERS / "01_text_as_decisions.ipynb"]


@pytest.fixture(autouse=True)
def same_environment_afterwards():
    """A variant sets variables for good; here each test begins with those of this process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_holds(chapter, tmp_path):
    variant = sturdy.VARIANTS[NAME] if NAME else SAMPLE
    sturdy.run_chapter(chapter, variant, tmp_path / chapter.name)
    ran = [cell for cell in cells.code(cells.read(tmp_path / chapter.name)) if cell.source.strip()]
    assert all(cell.execution_count for cell in ran), f"{chapter.stem} did not run to its end"


def notebook(tmp_path, *sources):
    path = tmp_path / "99_tried.ipynb"
    parameters = nbformat.v4.new_code_cell("SEED = 0")
    parameters.metadata["tags"] = ["parameters"]
    written = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, sources)])
    cells.write(cells.stripped(written), path)
    return path


def test_a_variant_reaches_the_kernel(tmp_path):
    """Kernels, seed, weights and strictness are those of the variant, or the grid shows one machine twelve times."""
    says = (
        "import json, os, torch\n"
        "from ppo_lib import worlds\n"
        "weights = torch.cat([p.flatten() for p in worlds.load('reviews').model.parameters()])\n"
        "print(json.dumps([torch.backends.cpu.get_cpu_capability(), SEED, bool(os.environ.get('PPO_BOOK_STRICT')), "
        "weights.double().sum().item()]))"
    )
    found = {}
    for name, variant in (("plain", sturdy.Variant("")), ("other", SAMPLE)):
        sturdy.run_chapter(notebook(tmp_path, says), variant, tmp_path / "out" / f"{name}.ipynb")
        found[name] = json.loads(cells.code(cells.read(tmp_path / "out" / f"{name}.ipynb"))[-1].outputs[-1].text)
        for variable in sturdy.SSE41:
            os.environ.pop(variable, None)
    (kernel, seed, strict, weights), (kernel_there, seed_there, strict_there, weights_there) = found.values()
    assert (kernel, kernel_there) == (sturdy.NATIVE, "DEFAULT"), "the kernels are not the variant's"
    assert (seed, seed_there) == (0, 5), "the seed is not the variant's"
    assert strict and strict_there, "a claim that does not hold passes"
    assert 0 < abs(weights - weights_there) < 1e-2 * abs(weights) + 1, "the weights are not slightly others"


@pytest.mark.parametrize(
    "source",
    ["assert SEED == 0, 'SEED'", "from ppo_lib.lab.claims import expect\nexpect(SEED == 0, 'The SEED is 0.')"],
    ids=["assert", "expect"],
)
def test_a_claim_of_one_machine_fails(tmp_path, source):
    chapter = notebook(tmp_path, source)
    sturdy.run_chapter(chapter, sturdy.Variant(""), tmp_path / "out" / "plain.ipynb")
    with pytest.raises(Exception, match="SEED"):
        sturdy.run_chapter(chapter, sturdy.VARIANTS["seed-1"], tmp_path / "out" / "seed.ipynb")


def test_an_attempt_tells_how_it_ended_and_whether_it_counts(tmp_path):
    chapter = notebook(tmp_path, "assert SEED == 0, 'only here'")
    sound, failed = (sturdy.attempt(chapter, name) for name in ("native", "seed-1"))
    assert sound["passed"] and sound["failure"] is None
    assert not failed["passed"] and "only here" in failed["failure"] and str(toc.ROOT) not in failed["failure"]
    assert sound["key"] == sturdy.key_of(chapter, sturdy.VARIANTS["native"]) != failed["key"]
    notebook(tmp_path, "assert SEED == 0, 'changed'")
    assert sturdy.key_of(chapter, sturdy.VARIANTS["native"]) != sound["key"], "a changed chapter is not run again"


def test_commits_rotate_through_every_variant_that_runs_beside_others():
    chosen = {sturdy.rotating(f"{commit:08x}") for commit in range(100)}
    assert chosen == {name for name, variant in sturdy.VARIANTS.items() if name != "native" and not variant.alone}
