"""Where a run's metrics go, all through Accelerate's tracker interface; and what a run notes about itself."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.tracking import GeneralTracker
from tqdm.auto import tqdm

from ppo_lib.config import write_whole
from ppo_lib.running.terminal import NOISE, in_one_line, number

PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "numpy")
COLUMNS = {  # of the console's table
    "update": "update",
    "episode": "episode",
    "objective/scores": "score",
    "eval/score": "held out",
    "objective/kl": "KL",
    "policy/entropy_avg": "entropy",
    "policy/clipfrac_avg": "clipped",
    "lr": "lr",
    "eps": "resp./s",
}


class JSONLines(GeneralTracker):
    """One JSON object a line. Lines that the disk does not take wait in memory and are written with the next ones."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        self.waiting: list[str] = []

    @property
    def tracker(self) -> Path:
        return self.path

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        """Append `values`; NaN and infinity, which JSON lacks, become null."""
        self.waiting.append(self._line(values))
        whole = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(self.waiting))
            self.waiting.clear()
        except BaseException as error:
            self._cut_back(whole)
            if not isinstance(error, OSError):
                raise
            self._warn(error)

    def _cut_back(self, whole: int) -> None:
        """Leave no half line, and no empty file, which would look like another run's."""
        with contextlib.suppress(OSError):  # a disk that takes nothing any more has no half line either
            if whole:
                os.truncate(self.path, whole)
            else:
                self.path.unlink(missing_ok=True)

    def rewrite(self, rows: list[dict]) -> None:
        """Replace the file by `rows`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.waiting = [self._line(row) for row in rows]
        try:
            write_whole(self.path, "".join(self.waiting))
            self.waiting.clear()
        except OSError as error:
            self._cut_back(0)
            self._warn(error)

    @staticmethod
    def _line(values: dict) -> str:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return json.dumps(finite, ensure_ascii=False) + "\n"

    def _warn(self, error: OSError) -> None:
        warnings.warn(f"{self.path} cannot be written ({error}): its lines wait in memory", stacklevel=3)


class Console(GeneralTracker):
    """A table on the terminal that grows by one row an update, above the progress bar."""

    name = "console"
    requires_logging_directory = False
    header_every = 20

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    @property
    def tracker(self) -> None:
        return None

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        """Print one row, and the titles above every `header_every` of them."""
        if self.rows % self.header_every == 0:
            tqdm.write(" ".join(f"{title:>9}" for title in COLUMNS.values()), file=sys.stdout)
        self.rows += 1
        noise = {"lr": 0.0}  # a small learning rate is one
        told = {name: values.get(name) for name in COLUMNS}
        cells = ["" if v is None else number(v, noise=noise.get(name, NOISE)) for name, v in told.items()]
        tqdm.write(" ".join(f"{cell:>9}" for cell in cells), file=sys.stdout)


class SampleLines(GeneralTracker):
    """Held-out responses on the terminal, one line each, under the row of their update."""

    name = "sample lines"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict] = []

    @property
    def tracker(self) -> None:
        return None

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        """Print the responses that came since the last row."""
        for row in self.rows:
            prompt, response = in_one_line(row["prompt"], 32, end=True), in_one_line(row["sampled"], 56)
            score = number(row["score"], ".2f")
            tqdm.write(f"{row['update']:>9}  held out {score:>6}: {prompt} → {response}", file=sys.stdout)
        self.rows = []


class _Row:
    """Lends its `vars` to `slim`."""


def slim(metrics: dict[str, float]) -> dict[str, float]:
    """The same dict in a third of the memory: dicts of attributes share one table of names (PEP 412), up to 30."""
    if len(metrics) > 30:
        return metrics
    row = _Row()
    for name, value in metrics.items():
        setattr(row, name, value)
    return vars(row)


@contextlib.contextmanager
def surviving(tracker: GeneralTracker) -> Iterator[None]:
    """Within the block a tracker may fail, on a full disk say: that is told, and the run goes on.

    Not so those of this file: that nobody reads the terminal any more ends a run, and a mistake of ours is one.
    """
    try:
        yield
    except Exception as error:
        if isinstance(tracker, (JSONLines, Console, SampleLines)):
            raise
        warnings.warn(f"the tracker {tracker.name} of `report_to` failed ({error}): the run goes on", stacklevel=3)


def log_samples(trackers: list[GeneralTracker], rows: list[dict], update: int) -> None:
    """Show responses as text, one row each, on the trackers that can."""
    columns = list(rows[0])
    for tracker in trackers:
        with surviving(tracker):
            if tracker.name == "wandb":
                tracker.log_table("samples", columns, [list(row.values()) for row in rows], step=update)
            elif isinstance(tracker, SampleLines):
                tracker.rows = rows
            elif tracker.name == "tensorboard":
                lines = [columns, ["---"] * len(columns), *(row.values() for row in rows)]
                cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
                tracker.tracker.add_text("samples", "\n".join(f"| {' | '.join(line)} |" for line in cells), update)


def run_facts(device: torch.device) -> dict:
    """What is needed to repeat a run beside its settings: command, versions, git commit, device, time."""
    installed = {name: _version(name) for name in ("ppo-lib", *PACKAGES)}
    return {
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": (_git("status", "--porcelain") or "").splitlines(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in installed.items() if version},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }


def append_yaml(path: Path, item: dict) -> None:
    """Add `item` to the list in the YAML file `path`."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_whole(path, before + yaml.safe_dump([item], sort_keys=False, allow_unicode=True))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
