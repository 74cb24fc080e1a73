"""The house keeps its word: its lists of packages agree, its files name no machine, the package holds its data."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import PurePath

import plotly
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import cells
import ppo_lib
import publish
import toc

ROOT = toc.ROOT
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(lines) -> dict[str, str]:
    pinned = (line.strip().split("==") for line in lines if re.fullmatch(r"[\w.-]+==\S+", line.strip()))
    return {canonicalize_name(name): version for name, version in pinned}


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml asks for, extras included, by name."""
    wanted = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, wanted)}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text("utf8").splitlines())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text("utf8"))["dependencies"]
CONDA_PIP = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    for name, requirement in requirements().items():
        assert name in CONSTRAINTS, f"{name} is in pyproject.toml but has no pin in constraints.txt"
        pin = CONSTRAINTS[name]
        assert requirement.specifier.contains(pin), f"constraints.txt pins {name} {pin}, against {requirement}"


def test_environment_yml_agrees_with_pyproject_and_constraints():
    assert pins(CONDA_PIP) == {name: CONSTRAINTS[name] for name in requirements()}
    assert "-c constraints.txt" in CONDA_PIP
    assert f"-e .[{','.join(EXTRAS)}]" in CONDA_PIP, f"environment.yml does not install the extras {list(EXTRAS)}"
    assert f"python{PROJECT['requires-python']}" in CONDA


def test_make_installs_every_extra():
    assert f"'.[{','.join(EXTRAS)}]'" in (ROOT / "Makefile").read_text("utf8")


def test_colab_already_has_what_the_library_needs():
    colab = pins((ROOT / "tests/notebooks/colab-pip-freeze.txt").read_text("utf8").splitlines())
    for requirement in map(Requirement, PROJECT["dependencies"]):
        version = colab.get(canonicalize_name(requirement.name), "")
        assert version and requirement.specifier.contains(version), f"Colab has {version or 'no'} {requirement}"


def test_torch_is_left_open_for_the_users_own_build():
    assert not requirements()["torch"].specifier


def test_constraints_name_no_host_and_no_file():
    text = (ROOT / "constraints.txt").read_text("utf8")
    assert not re.search(r"://|--hash|--(extra-)?index-url| @ ", text)
    assert all(Version(version) for version in CONSTRAINTS.values())


def test_npm_packages_are_pinned_and_the_lock_names_no_host():
    package = json.loads((ROOT / "package.json").read_text("utf8"))
    lock = (ROOT / "package-lock.json").read_text("utf8")
    wanted = {**package["dependencies"], **package["devDependencies"]}
    for name, version in wanted.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"package.json leaves the version of {name} open"
        assert json.loads(lock)["packages"][f"node_modules/{name}"]["version"] == version
    assert "resolved" not in lock, "run npm with --omit-lockfile-registry-resolved"


def test_the_sites_plotly_is_the_one_that_the_python_package_speaks():
    with open(f"{plotly.__path__[0]}/package_data/plotly.min.js", encoding="utf8") as script:
        spoken = re.search(r"plotly\.js v(\S+)", script.read(500)).group(1)
    package = json.loads((ROOT / "package.json").read_text("utf8"))
    assert package["dependencies"]["plotly.js-cartesian-dist-min"] == spoken


def test_package_data_holds_every_file_of_the_library():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["ppo_lib"]
    packed = {path for pattern in patterns for path in (ROOT / "ppo_lib").glob(pattern)}
    data = [ROOT / name for name in tracked() if name.startswith("ppo_lib/") and not name.endswith(".py")]
    left_out = [str(path.relative_to(ROOT)) for path in data if path not in packed]
    assert not left_out, f"an installed ppo_lib would lack {left_out}: name them in pyproject.toml"


def test_every_folder_of_the_library_with_code_is_a_package():
    folders = {(ROOT / name).parent for name in tracked() if name.startswith("ppo_lib/") and name.endswith(".py")}
    assert folders and all((folder / "__init__.py").exists() for folder in folders)


def imports(name: str) -> set[str]:
    """The top-level modules that a tracked Python file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse((ROOT / name).read_text("utf8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    whole = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {module.partition(".")[0] for module in plain | whole}


def needs(distribution: str) -> set[str]:
    """What an installed distribution always brings along; nothing where it is not installed."""
    try:
        wanted = map(Requirement, metadata.requires(distribution) or [])
    except metadata.PackageNotFoundError:
        return set()
    return {canonicalize_name(need.name) for need in wanted if not need.marker or need.marker.evaluate({"extra": ""})}


@pytest.mark.parametrize(
    ("folder", "extras"), [("ppo_lib", ["book", "long-runs", "eight-bit", "smollm2"]), ("tests", list(EXTRAS))]
)
def test_every_import_is_declared(folder, extras):
    """In pyproject.toml itself, or as a requirement of a package named there (traitlets of ipywidgets, say)."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    declared |= {need for name in declared for need in needs(name)}
    own = {PurePath(name).stem for name in tracked() if name.endswith(".py")} | {"ppo_lib", "tests"}
    origin = metadata.packages_distributions()
    for name in tracked():
        # The parity tests run in environments of their own, see tests/parity/run.py.
        if name.startswith(f"{folder}/") and name.endswith(".py") and not name.startswith("tests/parity/"):
            for module in sorted(imports(name) - own - sys.stdlib_module_names):
                sources = {canonicalize_name(source) for source in origin.get(module, [module])}
                assert sources & declared, f"{name} imports {module}, which pyproject.toml does not declare"


@pytest.mark.parametrize("extra", EXTRAS)
def test_no_extra_can_be_read_as_a_version(extra):
    """pip 24 compares markers such as `extra == "v1"` as versions, and fails on every other extra's name."""
    with pytest.raises(InvalidVersion):
        Version(extra)


def test_readme_installs_from_the_one_repository():
    assert f"git+{cells.repository()}" in (ROOT / "README.md").read_text("utf8")


def test_the_unpublished_address_can_be_nobodys():
    """GitHub's names hold letters, digits and hyphens, so nobody can sit where an unpublished book would look."""
    assert not re.fullmatch(r"[A-Za-z0-9-]+", cells.UNPUBLISHED)


@pytest.fixture
def copy_of_the_house(tmp_path, monkeypatch):
    """What `make publish` rewrites, elsewhere."""
    for name in ("_config.yml", "README.md", "book/usage_guide.md", "chapters/01_text_as_decisions.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.setattr(toc, "ROOT", tmp_path)
    monkeypatch.setattr(toc, "CHAPTERS", tmp_path / "chapters")
    return tmp_path


def test_publish_sets_the_address_everywhere(copy_of_the_house):
    before, url = cells.repository(), "https://github.com/someone/their-book"
    assert "_config.yml" in publish.publish(f"{url}.git")
    assert cells.repository() == url
    for path in copy_of_the_house.rglob("*.*"):
        assert before not in path.read_text("utf8"), f"{path.name} keeps the old address"
    setup = cells.tagged(cells.read(next((copy_of_the_house / "chapters").glob("*.ipynb"))), "setup")[0]
    assert f"git+{url}" in setup.source


@pytest.mark.parametrize(
    "url", ["", "github.com/a/b", "https://github.com/a", "https://example.org/a/b", "https://github.com/-a/b"]
)
def test_publish_refuses_what_is_no_repository(copy_of_the_house, url):
    with pytest.raises(ValueError, match="pass https://github.com/NAME/REPOSITORY"):
        publish.publish(url)


# Written in pieces, so that this file does not name them itself.
FOLDERS_OF_ONE_MACHINE = re.compile("|".join([f"(^|[^a-z.])/{name}/" for name in ("work", "root", "home")]), re.M)


@pytest.mark.parametrize("suffix", [".py", ".md", ".ipynb", ".json", ".yml", ".toml", ".txt", ".js", "Makefile", "run"])
def test_no_file_names_a_folder_of_the_machine_it_was_written_on(suffix):
    for name in tracked():
        if name.endswith(suffix):
            found = FOLDERS_OF_ONE_MACHINE.search((ROOT / name).read_text("utf8"))
            assert not found, f"{name} names {found.group().strip()}"


def test_the_package_and_the_changelog_name_one_version():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf8"), re.M)[1]
    assert Version(ppo_lib.__version__).base_version == newest, "ppo_lib/__init__.py and CHANGELOG.md name two versions"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_every_file_and_command_that_the_house_names_is_there(page):
    """`NN` and `NAME` stand for any chapter's and any world's."""
    text = (ROOT / page).read_text("utf8")
    top = {name.split("/")[0] for name in tracked() if "/" in name}
    for name in re.findall(r"`((?:\w|[./-])+)`", text):
        if name.split("/")[0] in top and "/" in name:
            pattern = name.rstrip("/").replace("NN_name", "*").replace("NN", "*")
            assert list(ROOT.glob(pattern)), f"{page} names {name}, which is not there"
    commands = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf8"), re.M))
    for command in re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.M):
        assert command in commands, f"{page} names `make {command}`, which the Makefile has not"


SAYS_HOW = re.compile(
    r"\b(higher|lower|highest|lowest|more|most|less|least|fewer|larger|smaller|further|nearer|rises?|falls?|climbs?|"
    r"grows?|steep\w*|turns?|stays?|follows?|never|always|nothing|calm|wild|above|below|beyond|halves?|drifts?)\b", re.I
)  # fmt: skip
SAYS_LESS = {"04_advantages": ["at which words the true value"]}  # it asks, and the numbers in it are computed


def captions_of(source: str) -> list[str]:
    """What a cell writes below its figures, without the numbers that it fills in."""
    named = [k.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) for k in node.keywords
             if k.arg == "caption"]  # fmt: skip
    texts = [[n.value for n in ast.walk(value) if isinstance(n, ast.Constant)] for value in named]
    return [" ".join(part for part in text if isinstance(part, str)) for text in texts]


@pytest.mark.parametrize("chapter", sorted((ROOT / "chapters").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_caption_that_says_how_it_came_out_has_a_check_beside_it(chapter):
    """In its own cell, the one before or the two after: an `assert`, or an `expect` where runs differ."""
    sources = [cell.source for cell in cells.code(cells.read(chapter))]
    for place, source in enumerate(sources):
        beside = "\n".join(sources[max(0, place - 1) : place + 3])
        for caption in captions_of(source):
            excused = any(words in caption for words in SAYS_LESS.get(chapter.stem, []))
            checked = re.search(r"^\s*(assert |expect\()", beside, re.M)
            assert checked or excused or not SAYS_HOW.search(caption), f"nothing checks {caption!r}"


def test_captions_are_found():
    assert captions_of('lines(x, caption=f"It rises to {y:.2f}, " "then falls.")') == ["It rises to  , then falls. .2f"]
