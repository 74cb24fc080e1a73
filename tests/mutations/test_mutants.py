"""The mutation run: which changes it makes, that its results are argued, and a few mutants at every commit."""

import importlib
import json
import subprocess
import sys

import pytest

import toc


@pytest.fixture(scope="module")
def program():
    sys.path.insert(0, str(toc.ROOT / "benchmarks"))
    yield importlib.import_module("mutants")
    sys.path.remove(str(toc.ROOT / "benchmarks"))


@pytest.fixture
def changes(program, monkeypatch, tmp_path):
    """The changes that are made to a piece of code, by function."""

    def made(source: str) -> dict[str, list[str]]:
        (tmp_path / "piece.py").write_text(source)
        monkeypatch.setattr(program, "LIBRARY", tmp_path)
        program.mutants_of.cache_clear()
        found = {}
        for mutant in program.mutants_of("piece"):
            found.setdefault(mutant.function, []).append(mutant.diff)
        return found

    return made


@pytest.mark.parametrize(
    ("source", "function", "change"),
    [
        ("def f(buffer):\n    return Buffer(buffer, spacing=2)", "f", "+ return Buffer(buffer, )"),
        ("@torch.no_grad()\ndef f(x):\n    return x + y", "f", "+ return x - y"),
        ("class A:\n    @property\n    def size(self):\n        return self.n < 2", "A.size", "+ return self.n <= 2"),
        ("@dataclass\nclass A:\n    limit: float = 0.5", "", "+ limit: float = 1.5"),
        ("EPSILON = 2", "", "+ EPSILON = 3"),
        ("def f(rows, hold=3):\n    return rows[hold]", "f", "+ def f(rows, hold=4):"),
        ("def f():\n    raise SystemExit(3)", "f", "+ raise SystemExit(4)"),
        ("def f(row):\n    return row['loss/policy']", "f", "+ return row['XXloss/policyXX']"),
    ],
)
def test_what_a_run_does_is_mutated(changes, source, function, change):
    made = changes(source)
    assert any(change in diff for diff in made.get(function, [])), f"no mutant says {change!r}: {made}"


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """What it does."""',
        'def f():\n    raise ValueError("set `n` to " + str(n + 1))',
        'def f():\n    warnings.warn(f"{n + 1} are left out", stacklevel=2)',
        "def f():\n    print(n + 1, flush=True)",
        'def __repr__(self):\n    return f"{self.n + 1}"',
        "def f(x: Literal['a', 'b'], y: list[3]): ...",
        "@cache(maxsize=3)\ndef f(): ...",
        'def f():\n    return "a sentence"',
    ],
)
def test_what_is_for_people_is_not(changes, source):
    assert not changes(source), "a mutant of words would live for ever, or be killed by a test of words"


def test_a_mutant_keeps_its_name_where_other_code_changes(changes, program):
    def keys(source):
        changes(source)
        return {mutant.diff: mutant.key for mutant in program.mutants_of("piece")}

    before = keys("def f(x):\n    return x + y\n")
    after = keys("import math\n\n\ndef g(x):\n    return x * y\n\n\ndef f(x):\n    return x + y\n")
    assert before.items() <= after.items(), "results would be lost, and samples change, with every edit of a file"


def test_few_mutants_live(program):
    """Four, the same until their code changes, of modules that their own tests hold in seconds."""
    done = subprocess.run([sys.executable, program.__file__, "few"], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_each_equivalent_is_argued_and_survived(program):
    survivors = {(row["module"], row["in"], row["change"]) for row in program.known_survivors()}
    for entry in program.equivalents():
        mutant = entry["module"], entry["in"], entry["change"]
        assert len(entry["why"].split()) > 3, f"equivalents.yaml does not say why nothing changes: {mutant}"
        assert mutant in survivors, f"it did not survive the last `make mutants`: {mutant}"


def test_the_stored_counts_are_those_of_the_stored_survivors(program):
    if not (program.FOLDER / "summary.json").exists():
        pytest.skip("no run of all mutants is stored")
    summary = json.loads((program.FOLDER / "summary.json").read_text("utf8"))
    argued = {(entry["module"], entry["in"], entry["change"]) for entry in program.equivalents()}
    for row in summary["modules"]:
        alive = [each for each in program.known_survivors() if each["module"] == row["module"]]
        same = sum((each["module"], each["in"], each["change"]) in argued for each in alive)
        assert (row["survived"], row["equivalent"]) == (len(alive), same), "run: python benchmarks/mutants.py tables"
        full = row["module"] in program.IN_FULL
        assert row["tried"] == (row["mutants"] if full else min(row["mutants"], program.SAMPLE)), "a run was cut short"
