"""What every benchmark notes beside its numbers: versions, commit, device, command."""

import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "ppo_lib/lab/stored"  # in the package, so that a chapter finds them on Colab too
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def provenance(*more_packages: str) -> dict:
    """Everything needed to repeat a run, apart from its settings and seeds."""
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]).replace(f"{ROOT}/", ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": _git("status", "--porcelain", "--", "ppo_lib", "benchmarks/*.py").splitlines(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in (*PACKAGES, *more_packages)},
        "device": device_name(),
        "kernel": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, content) -> None:
    """Write JSON aside and rename, so that a reader never meets half a file."""
    _write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys as CSV, numbers to 6 significant digits."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    aside.replace(path)


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV file of numbers; whole ones are integers again."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [{key: int(value) if value.is_integer() else value for key, value in row.items()} for row in rows]


class Curves:
    """A CSV file of runs, in which a program that was stopped goes on: the rows of a run are added when it is over.

    Args:
        path: the file; it is made, with its headings, where it is not there.
        key: columns that name a run. columns: the others.
    """

    def __init__(self, path: Path, key: Sequence[str], columns: Sequence[str]):
        self.path, self.key = path, key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(",".join((*key, *columns)) + "\n", encoding="utf-8")

    def lacking(self, keys: Iterable[tuple]) -> list[tuple]:
        """Those of `keys` whose runs are not there yet."""
        with open(self.path, newline="", encoding="utf-8") as file:
            known = {tuple(row[name] for name in self.key) for row in csv.DictReader(file)}
        return [key for key in keys if tuple(map(str, key)) not in known]

    def add(self, key: tuple, rows: Iterable[Sequence]) -> None:
        """Add the rows of the run `key`, the other columns in their order."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([*key, *row] for row in rows)


def read_lines(path: Path) -> list[dict]:
    """The rows of a file with one JSON object a line, the oldest first; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add_line(path: Path, row: dict) -> None:
    """Add a row to such a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def device_name() -> str:
    """The GPU, or the CPU with its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} CPU cores ({names[0] if names else platform.machine()})"
