"""The rooms of the library: which may import which, what loading one loads, and the plan of them in the book."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest

import toc

LIBRARY = toc.ROOT / "ppo_lib"
GROUND = ""  # ppo_lib/ itself: what PPO is
MAY_IMPORT = {
    GROUND: {GROUND, "sampling", "running", "worlds"},
    "sampling": {GROUND, "sampling"},
    "running": {GROUND, "sampling", "running"},
    "worlds": {GROUND, "running", "worlds"},
    "commands": {GROUND, "sampling", "running", "worlds", "commands", "lab"},
    "lab": {GROUND, "sampling", "running", "worlds", "lab"},
}
# Two doors on the ground floor that open when somebody knocks: `PPOTrainer.plot()` and `python -m ppo_lib`.
DOORS = {("ppo.py", "ppo_lib.lab.plots"), ("__main__.py", "ppo_lib.commands.cli")}
DRAWING = ("plotly", "anywidget", "ipywidgets", "IPython")
FILES = sorted(path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.py"))


def room_of(module: str) -> str:
    """The room of `ppo_lib.room.file`, or the ground floor."""
    name = module.split(".")[1] if module.count(".") else GROUND
    return name if name in MAY_IMPORT else GROUND


def imports(source: str, package: str) -> set[str]:
    """The modules of `ppo_lib` that a file imports anywhere in it, as `ppo_lib.file` or `ppo_lib.room.file`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{module}.{alias.name}" for alias in node.names} if module.count(".") < 2 else {module}
    return {module for module in found if module.partition(".")[0] == "ppo_lib"}


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_what_it_stands_on(file):
    package = ".".join(["ppo_lib", *file.split("/")[:-1]])
    room = room_of(f"{package}.x") if "/" in file else GROUND
    for module in imports((LIBRARY / file).read_text("utf8"), package):
        allowed = room_of(module) in MAY_IMPORT[room] or any(
            file == door and module.startswith(opened) for door, opened in DOORS
        )
        assert allowed, f"ppo_lib/{file} imports {module}: {room or 'the ground floor'} does not stand on that room"


@pytest.mark.parametrize(
    "source",
    [
        "import ppo_lib.lab.plots",
        "from ppo_lib import lab",
        "from ..lab import plots",
        "def f():\n    from ppo_lib.lab.plots import bars",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert {room_of(module) for module in imports(source, "ppo_lib.running")} == {"lab"}, (
        "an import of the lab is taken for one of another room, or not seen"
    )


def loaded_by(*modules: str) -> set[str]:
    """The packages that a new Python has loaded once it has imported `modules`."""
    program = "import sys\n" + "".join(f"import {module}\n" for module in modules) + "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=toc.ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()} | set(done.stdout.split())


def test_the_loop_loads_nothing_that_draws_and_no_adapters():
    loaded = loaded_by("ppo_lib.ppo")
    assert not loaded & {*DRAWING, "peft", "ppo_lib.lab", "ppo_lib.commands"}, (
        "`import ppo_lib.ppo` loads what it does not need"
    )


def test_only_the_lab_loads_what_draws():
    others = [file for file in FILES if not file.startswith("lab/") and file != "__main__.py"]
    modules = ["ppo_lib." + file.removesuffix(".py").replace("/", ".") for file in others]
    assert not loaded_by(*[module.removesuffix(".__init__") for module in modules]) & set(DRAWING), (
        "a file outside the lab loads what draws, and everybody waits for it"
    )


@pytest.fixture(scope="module")
def ppo_book():
    spec = importlib.util.spec_from_file_location("ppo_book", toc.ROOT / "book/_ext/ppo_book.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plan_in_the_book_is_the_house(ppo_book):
    plan = re.search(r"```\{house\}\n(.*?)```", (toc.ROOT / "book/overview.md").read_text("utf8"), re.S)[1]
    rooms = [line.split("|") for line in plan.splitlines()]
    assert ppo_book.differences(toc.ROOT, {folder.strip(): files.split() for folder, _, files in rooms}) == [], (
        "the plan in book/overview.md leaves out a file of the library, or names one that is gone"
    )


def test_a_plan_that_is_not_the_house_is_noticed(ppo_book, tmp_path):
    for file in ("a.py", "__init__.py", "lab/__init__.py", "lab/b.py", "attic/__init__.py"):
        (tmp_path / "ppo_lib" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ppo_lib" / file).touch()
    found = ppo_book.differences(tmp_path, {"ppo_lib/": ["a"], "ppo_lib/lab/": ["c"]})
    assert found == [
        "ppo_lib/attic/ is not in the plan", "ppo_lib/lab/c.py is not there", "ppo_lib/lab/b.py is not in the plan"
    ], "a room or a file that the plan leaves out, or one that is not there, is not noticed"  # fmt: skip
