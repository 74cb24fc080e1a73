"""Does the book hold on every machine? Every chapter, strictly, on other kernels, seeds, threads, weights and versions.

    python benchmarks/sturdy.py chapters                       every chapter under every variant; goes on where stopped
    python benchmarks/sturdy.py chapters 09_when_to_stop --variants avx2 seed-1
    python benchmarks/sturdy.py readme                         the README's commands, under three kernels
    python benchmarks/sturdy.py tables                         the page's tables from the stored runs (seconds)

A chapter that was run counts until the chapter itself, the library, the versions or the processor change.
"""

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import torch
from record import RESULTS, ROOT, add_line, device_name, provenance, read_lines, write_json
from safetensors import safe_open
from safetensors.torch import save_file

sys.path[:0] = [str(ROOT / "book/tools"), str(ROOT / "tests/notebooks")]

import colab  # noqa: E402
import execute  # noqa: E402
import toc  # noqa: E402

FOLDER = RESULTS / "sturdy"
RUNS, SUMMARY, TESTS = FOLDER / "runs.jsonl", FOLDER / "summary.json", FOLDER / "tests.json"
BUILD = ROOT / "_build/sturdy"

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
SSE41 = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
NATIVE = torch.backends.cpu.get_cpu_capability()  # before a variant chooses another
KERNELS = {"sse41": SSE41, "avx2": AVX2, "native": {}}


@dataclass(frozen=True)
class Variant:
    """Another machine, or another reader's choice: what differs from a plain run."""

    words: str
    environment: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int | str] = field(default_factory=dict)
    noise: int | None = None  # seed of the noise by which the embedded weights are multiplied
    colab: bool = False  # Colab's Python and versions
    alone: bool = False  # nothing else runs beside it

    def __str__(self) -> str:
        return json.dumps([self.environment, self.parameters, self.noise, self.colab], sort_keys=True)


VARIANTS = {
    "native": Variant("the processor's own kernels, SEED = 0, one thread a chapter"),
    "avx2": Variant("kernels of a processor without AVX-512", AVX2),
    "sse41": Variant("kernels without AVX at all", SSE41),
    "seed-1": Variant("SEED = 1", parameters={"SEED": 1}),
    "seed-2": Variant("SEED = 2", parameters={"SEED": 2}),
    "seed-3": Variant("SEED = 3", parameters={"SEED": 3}),
    "threads-2": Variant("two threads", {"OMP_NUM_THREADS": "2"}, alone=True),
    "weights-1": Variant("embedded weights × (1 + 10⁻⁶ · noise), noise 1", noise=1),
    "weights-2": Variant("embedded weights × (1 + 10⁻⁶ · noise), noise 2", noise=2),
    "avx2-seed-1": Variant("without AVX-512 and SEED = 1", AVX2, {"SEED": 1}),
    "sse41-seed-2": Variant("without AVX and SEED = 2", SSE41, {"SEED": 2}),
    "colab": Variant("Colab's Python 3.13 and package versions, from the setup cell on", colab=True, alone=True),
}
FULL = {"full": Variant('PROFILE = "full"', parameters={"PROFILE": "full"})}
EVERY = VARIANTS | FULL


def rotating(commit: str) -> str:
    """The variant that a commit is tested under, another from commit to commit; none that wants the machine alone."""
    names = [name for name, variant in VARIANTS.items() if name != "native" and not variant.alone]
    return names[int(commit[:8], 16) % len(names)]


def noisy_package(seed: int, size: float = 1e-6) -> Path:
    """A folder with a copy of `ppo_lib` whose embedded weights w are w · (1 + size · noise)."""
    digest = hashlib.sha256(f"{execute.library_digest()} {size}".encode()).hexdigest()[:12]
    folder = BUILD / f"weights-{seed}-{digest}"
    if not folder.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=BUILD))
        shutil.copytree(ROOT / "ppo_lib", aside / "ppo_lib", ignore=shutil.ignore_patterns("__pycache__"))
        generator = torch.Generator().manual_seed(seed)
        for path in sorted((aside / "ppo_lib/worlds").rglob("*.safetensors")):
            with safe_open(path, "pt") as file:
                names = sorted(file.keys())
                noisy = {name: perturbed(file.get_tensor(name), size, generator) for name in names}
                metadata = file.metadata()
            save_file(noisy, path, metadata)
        try:
            aside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    return folder


def perturbed(weight: torch.Tensor, size: float, generator: torch.Generator) -> torch.Tensor:
    if not weight.is_floating_point():
        return weight
    return weight * (1 + size * torch.randn(weight.shape, generator=generator))


def run_chapter(chapter: Path, variant: Variant, target: Path) -> float:
    """Execute a chapter under a variant, in this process's environment from now on; raises when a check fails.

    Returns the seconds it took.
    """
    if variant.colab:
        start = time.perf_counter()
        python = colab.environment(ROOT / "_build", os.environ.get("TORCH", "torch"))
        with tempfile.TemporaryDirectory() as folder:
            colab.run_chapter(chapter, python, colab.checkout_copy(Path(folder)))
        return time.perf_counter() - start
    os.environ.update(variant.environment)
    if variant.noise is not None:
        os.environ["PYTHONPATH"] = str(noisy_package(variant.noise))
    target.parent.mkdir(parents=True, exist_ok=True)
    return execute.run(chapter, target, variant.parameters)


def attempt(chapter: Path, name: str) -> dict:
    """The row of one chapter under one variant, whichever way it ends."""
    variant = EVERY[name]
    key = key_of(chapter, variant)
    start = time.perf_counter()
    try:
        seconds, failure = run_chapter(chapter, variant, BUILD / "executed" / name / chapter.name), None
    except Exception as error:
        seconds, failure = time.perf_counter() - start, plain(str(error))[-1500:]
    facts = provenance()
    kept = {what: facts[what] for what in ("date", "commit", "device")}
    return {
        "chapter": chapter.stem, "variant": name, "passed": failure is None, "seconds": round(seconds, 1), **kept,
        "kernel": NATIVE, "key": key, "failure": failure,
    }  # fmt: skip


def plain(text: str) -> str:
    """A traceback without colours and folders of this machine."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(str(ROOT), ".")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+", "TEMPORARY", text).strip()


def key_of(chapter: Path, variant: Variant) -> str:
    """A hash of all that a row depends on."""
    parts = [execute.key_of(chapter, variant.parameters), str(variant), device_name()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def read_rows() -> list[dict]:
    """Every stored row, the oldest first."""
    return read_lines(RUNS)


def run_all(chapters: list[Path], names: list[str], again: bool) -> None:
    """Run what has no row yet, two at a time, and store each row as it comes."""
    known = {row["key"] for row in read_rows() if row["passed"] or not again}
    todo = [(c, n) for n in names for c in chapters if key_of(c, EVERY[n]) not in known]
    print(f"{len(todo)} of {len(names) * len(chapters)} to run", flush=True)
    alone = [job for job in todo if EVERY[job[1]].alone]
    spawn = multiprocessing.get_context("spawn")
    for jobs, workers in (([job for job in todo if job not in alone], 2), (alone, 1)):
        # A process for each: what one sets in its environment must not reach the next.
        with concurrent.futures.ProcessPoolExecutor(workers, spawn, max_tasks_per_child=1) as pool:
            for done in concurrent.futures.as_completed([pool.submit(attempt, *job) for job in jobs]):
                row = done.result()
                add_line(RUNS, row)
                said = "passed" if row["passed"] else f"FAILED\n{row['failure']}"
                print(f"{row['chapter']} {row['variant']}: {said} in {row['seconds']} s", flush=True)


def tables() -> None:
    """The page's tables: the newest row of each chapter under each variant."""
    newest = {(row["variant"], row["chapter"]): row for row in read_rows()}
    chapters = sorted(path.stem for path in toc.CHAPTERS.glob("*.ipynb"))
    grid, total = {}, {"passed": 0, "run": 0}
    for name, variant in VARIANTS.items():
        rows = {chapter: newest.get((name, chapter)) for chapter in chapters}
        marks = {f"ch{c[:2]}": "·" if row is None else "✓" if row["passed"] else "✗" for c, row in rows.items()}
        found = [row for row in rows.values() if row]
        passed = sum(row["passed"] for row in found)
        grid[name] = {"words": variant.words, **marks, "passed": passed, "run": len(found)}
        grid[name]["minutes"] = sum(row["seconds"] for row in found) / 60
        total = {"passed": total["passed"] + passed, "run": total["run"] + len(found)}
    total["share"] = 100 * total["passed"] / max(total["run"], 1)
    times = {
        chapter: {
            "fast": newest.get(("native", chapter), {}).get("seconds"),
            "full": newest.get(("full", chapter), {}).get("seconds"),
        }
        for chapter in chapters
    }
    machines = sorted({(row["device"], row["kernel"]) for row in newest.values()})
    commits = sorted({row["commit"][:10] for row in newest.values()})
    machines = [{"device": device, "kernel": kernel} for device, kernel in machines]
    content = {"total": total, "variants": grid, "times": times, "machines": machines, "commits": commits}
    write_json(SUMMARY, content | {"provenance": provenance()})
    print(f"{total['passed']} of {total['run']} runs passed")


def run_readme(kernels: list[str]) -> None:
    """In a fresh clone under each kernel: make book, make book again, make test. Their environment is shared."""
    clone, shared = BUILD / "readme", BUILD / "readme-environment"
    for name in kernels:
        shutil.rmtree(clone, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["make", "environment", f"VENV={shared}"], cwd=clone, check=True)
        told = {"commit": provenance()["commit"], "commands_failed": 0}
        for column, command in (("book", "book"), ("book_again", "book"), ("test", "test")):
            began = time.monotonic()
            words, variables = ["make", command, f"VENV={shared}"], {**os.environ, **KERNELS[name]}
            told["commands_failed"] += subprocess.run(words, cwd=clone, env=variables).returncode != 0
            told[f"{column}_seconds"] = time.monotonic() - began
            print(name, told, flush=True)
        store_tests(name, ElementTree.parse(clone / "_build/tests.xml").getroot().find("testsuite"), told)


def store_tests(kernel: str, suite: ElementTree.Element, commands: dict) -> None:
    """Add what a kernel's tests reported to the stored file, and the worst of each threshold over all kernels."""
    counts = {what: int(suite.get(what)) for what in ("tests", "failures", "errors", "skipped")}
    cases = list(suite.iter("testcase"))
    notes = [(case.get("name"), each) for case in cases for each in case.iter("property")]
    kernels = json.loads(TESTS.read_text("utf8"))["kernels"] if TESTS.exists() else {}
    kernels[kernel] = {
        **commands,
        "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"],
        **counts,
        "seconds": float(suite.get("time")),
        "failed": [case.get("name") for case in cases if case.find("failure") is not None],
        "thresholds": [
            {"test": test, **json.loads(note.get("value"))} for test, note in notes if note.get("name") == "margin"
        ],
    }  # fmt: skip
    worst: dict[str, dict] = {}
    for threshold in (each for row in kernels.values() for each in row["thresholds"]):
        row = worst.setdefault(f"{threshold['test']}: {threshold['what']}", {**threshold, "worst": threshold["value"]})
        row["worst"] = (min if threshold["above"] else max)(row["worst"], threshold["value"])
    write_json(TESTS, {"kernels": kernels, "margins": list(worst.values()), "provenance": provenance()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["chapters", "full", "readme", "tables", "rotating"])
    parser.add_argument("chapters", nargs="*", help="names such as 03_rollouts; all when none is named")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(EVERY))
    parser.add_argument("--again", action="store_true", help="also what has failed before")
    options = parser.parse_args()
    chapters = [toc.CHAPTERS / f"{name}.ipynb" for name in options.chapters] or toc.chapters(toc.read())
    if options.what == "rotating":
        print(rotating(provenance()["commit"]))
    elif options.what == "readme":
        run_readme([name for name in KERNELS if name in options.variants])
    elif options.what in ("chapters", "full"):
        run_all(chapters, list(FULL) if options.what == "full" else options.variants, options.again)
    if options.what != "rotating":
        tables()


if __name__ == "__main__":
    main()
