"""Runs chapters with papermill, each once: a chapter runs again only when what it depends on has changed.

What it depends on is its source, the files of `ppo_lib`, its parameters and the versions of the libraries that
its outputs come from. All of them go into one content hash, so touching a file changes nothing.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import nbformat

import cells
import toc

UNREAD = ("sturdy", "mutants", "default_settings")  # folders of stored results that no chapter reads
SHOWN_LIBRARIES = ("torch", "transformers", "numpy", "plotly", "anywidget", "ipywidgets")
# Figures as data rather than as a page of script; no progress bars left in the pages; weights from the installed
# package rather than from whatever the hub serves today; a claim that does not hold is an error.
KERNEL_ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "PPO_BOOK_STRICT": "1",
}


def digest_of(paths: list[Path], base: Path) -> str:
    """A hash of the names and contents of files, the same on every machine."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(base).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Every file in a folder that a person or a program put there, Python's own leftovers excepted."""
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc"]


def library_digest() -> str:
    """A hash of `ppo_lib`, but for stored results that no chapter reads."""
    unread = {toc.ROOT / "ppo_lib/lab/stored" / name for name in UNREAD}
    return digest_of([path for path in files_below(toc.ROOT / "ppo_lib") if not unread & set(path.parents)], toc.ROOT)


def versions() -> dict[str, str]:
    shown = {name: importlib.metadata.version(name) for name in SHOWN_LIBRARIES}
    return {"python": platform.python_version(), **shown}


def key_of(chapter: Path, parameters: dict) -> str:
    """The hash of all that a chapter's outputs depend on."""
    source = nbformat.writes(cells.stripped(cells.read(chapter)))
    settings = json.dumps([parameters, versions(), KERNEL_ENVIRONMENT], sort_keys=True)
    parts = [source, library_digest(), settings]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def parameters_of(profile: str) -> dict:
    """What papermill injects; the chapters' own defaults are the profile `fast`, so then nothing is."""
    return {} if profile == "fast" else {"PROFILE": profile}


def run(chapter: Path, target: Path, parameters: dict) -> float:
    """Execute one chapter in an empty folder and write the result to `target`; returns the seconds it took."""
    import papermill

    os.environ.update(KERNEL_ENVIRONMENT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # beside another chapter, threads would wait for each other
    scratch = target.parent / "running" / target.name  # where a chapter that fails can be looked at
    scratch.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        notebook = papermill.execute_notebook(
            str(chapter), str(scratch), parameters, kernel_name="python3", cwd=empty,
            progress_bar=False, request_save_on_cell_execute=False,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    notebook.metadata.pop("papermill", None)  # it holds this machine's paths
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cells.tags(cell):
            cell.metadata.tags.append("remove-cell")
    cells.write(notebook, scratch)
    scratch.replace(target)
    return seconds


def execute(chapter: Path, build: Path, profile: str = "fast") -> Path:
    """The executed copy of a chapter, from the cache when nothing it depends on has changed."""
    folder = build / "executed"
    folder.mkdir(parents=True, exist_ok=True)
    target, record = folder / chapter.name, folder / f"{chapter.stem}.json"
    parameters = parameters_of(profile)
    key = key_of(chapter, parameters)
    if target.exists() and record.exists() and json.loads(record.read_text())["key"] == key:
        print(f"{chapter.stem}: unchanged, not run", flush=True)
        return target
    print(f"{chapter.stem}: running ...", flush=True)
    record.unlink(missing_ok=True)
    seconds = run(chapter, target, parameters)
    details = {"key": key, "profile": profile, "seconds": round(seconds, 1), "versions": versions()}
    record.write_text(json.dumps(details, indent=1) + "\n")
    print(f"{chapter.stem}: ran in {seconds:.1f} s", flush=True)
    return target


def execute_all(chapters: list[Path], build: Path, profile: str = "fast") -> list[Path]:
    """`execute` of each; two at a time where there are cores, for a chapter computes on one of them."""
    workers = min(2, os.cpu_count() or 1, len(chapters))
    if workers < 2:
        return [execute(chapter, build, profile) for chapter in chapters]
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(execute, chapters, itertools.repeat(build), itertools.repeat(profile)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute chapters into BUILD/executed.")
    parser.add_argument("chapters", nargs="*", help="names such as 03_rollouts; all chapters when none is named")
    parser.add_argument("--build", type=Path, default=toc.ROOT / "_build")
    parser.add_argument("--profile", default="fast", choices=["fast", "full"])
    options = parser.parse_args()
    named = [toc.CHAPTERS / f"{name}.ipynb" for name in options.chapters]
    missing = [str(path) for path in named if not path.exists()]
    if missing:
        sys.exit(f"no such chapter: {', '.join(missing)}")
    execute_all(named or toc.chapters(toc.read()), options.build, options.profile)


if __name__ == "__main__":
    main()
