"""Mutants of ppo_lib: its code with one small change at a time. Does a test notice?

    python benchmarks/mutants.py run                    every module that computes or promises; goes on where stopped
    python benchmarks/mutants.py run losses replay      these modules
    python benchmarks/mutants.py run --sample 15        fewer of each; prints the survivors and stores nothing
    python benchmarks/mutants.py run --alive            those again that no test has killed so far
    python benchmarks/mutants.py tables                 the stored tables again, from what was tried (seconds)
    python benchmarks/mutants.py few                    a handful, the same until code changes: what `make test` runs

The changes are mutmut's. What mutmut leaves out because of how it runs them, decorated functions, fields of classes and
names of modules, is tried here: a mutant is a whole file, in a copy of the repository, and each runs in a process of
its own, forked from one that has imported torch and the like. It meets the tests that execute the changed statement,
first the quick ones of the module's own test file, then the others, the fastest first, until one fails or `--seconds`
of them have passed.

Not mutated: annotations, decorators, docstrings, `__repr__`, what is raised, warned of or printed, help texts, and
strings with a space in them: they are for people.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import libcst as cst
import pytest
import yaml
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators
from mutmut.mutation.file_mutation import Mutation, MutationVisitor, deep_replace
from mutmut.mutation.pragma_handling import IgnoredCode
from record import RESULTS, ROOT, provenance, write_json

LIBRARY = ROOT / "ppo_lib"
FOLDER = RESULTS / "mutants"
EQUIVALENTS = ROOT / "tests/mutations/equivalents.yaml"
BUILD = ROOT / "_build/mutants"
TRIED = BUILD / "tried.jsonl"

IN_FULL = (
    "estimators", "losses", "importance", "replay", "lab/efficiency", "running/checkpoint", "running/resume", "config",
    "commands/inputs",
)  # fmt: skip
SAMPLE = 40  # of every other module
LEFT_OUT = (  # drawing, and chapters' questions, each of which has right and wrong answers of its own as tests
    *(f"lab/exercises/ch{number:02}" for number in range(1, 13)),
    "lab/plots", "lab/widgets", "lab/microscope", "lab/explorer", "lab/gallery", "lab/token_tree", "lab/speed_figures",
)  # fmt: skip
TESTS = ("tests/unit", "tests/proofs")  # those of learning take minutes each
# These ask for bytes, for seconds, and for a service that other processes have as well.
TOO_SENSITIVE = "not short_soak and not overhead and not weights_and_biases_reads and not held_out_texts_are_shown"
# Modules that tests of their own hold in seconds, for `make test`.
QUICK = {
    "losses": ["tests/unit/test_losses.py"],
    "estimators": ["tests/unit/test_estimators.py"],
    "importance": ["tests/unit/test_importance.py"],
    "lab/efficiency": ["tests/unit/test_efficiency.py", "-k", "not tables and not program"],
}

SAID_BY = (
    m.Name("print"),
    *(
        m.Attribute(m.Name(module), m.Name(name))
        for module, name in (("warnings", "warn"), ("warnings", "filterwarnings"), ("tqdm", "write"))
    ),
)
HELP = (m.Name(name) for name in ("help", "description", "epilog", "metavar"))
FOR_PEOPLE = m.OneOf(
    m.Call(func=m.OneOf(*SAID_BY)),
    m.Raise(exc=m.DoesNotMatch(m.Call(m.Name("SystemExit")))),
    m.Arg(keyword=m.OneOf(*HELP)),
)


def words(node: cst.BaseString) -> Iterator[cst.BaseString]:
    """mutmut's first change of a string, unless the string is prose."""
    if isinstance(node, cst.SimpleString) and " " not in node.value:
        yield from list(mutators.operator_string(node))[:1]


OPERATORS = [(kind, words if op is mutators.operator_string else op) for kind, op in mutators.mutation_operators]


class Visitor(MutationVisitor):
    """mutmut's, with decorated functions and without what is for people."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef):
            return node.name.value == "__repr__"
        return m.matches(node, FOR_PEOPLE) or super()._skip_node_and_children(node)


@dataclasses.dataclass(frozen=True)
class Mutant:
    module: str
    line: int
    function: str  # dotted; empty for what a module or a class does as it is imported
    number: int  # among equal changes within the function
    statement: range  # lines of the statement that is changed
    change: tuple[str, str]  # the expression or statement, before and after
    mutation: Mutation = dataclasses.field(repr=False, compare=False)
    tree: cst.Module = dataclasses.field(repr=False, compare=False)

    @cached_property
    def key(self) -> str:
        return digest(self.module, self.function, *self.change, str(self.number))

    @cached_property
    def source(self) -> str:
        return deep_replace(self.tree, self.mutation.original_node, self.mutation.mutated_node).code

    @cached_property
    def diff(self) -> str:
        """The lines that go and those that come, unindented."""
        old, new = self.tree.code.splitlines(), self.source.splitlines()
        told = list(difflib.unified_diff(old, new, n=0, lineterm=""))[3:]
        parts = [[f"{sign} {line[1:].strip()}" for line in told if line[0] == sign] for sign in "-+"]
        return "\n".join("\n".join(part if len(part) < 4 else [*part[:3], f"{part[0][0]} …"]) for part in parts if part)

    @property
    def place(self) -> dict:
        return {"module": self.module, "in": self.function, "change": self.diff}


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def path_of(module: str) -> Path:
    return LIBRARY / f"{module}.py"


def modules() -> list[str]:
    names = (str(path.relative_to(LIBRARY).with_suffix("")) for path in sorted(LIBRARY.rglob("*.py")))
    return [name for name in names if name not in LEFT_OUT and mutants_of(name)]


@functools.cache
def mutants_of(module: str) -> list[Mutant]:
    source = path_of(module).read_text("utf8")
    visitor = Visitor(OPERATORS, IgnoredCode(set(), set(), set()))
    wrapper = MetadataWrapper(cst.parse_module(source))
    tree = wrapper.visit(visitor)
    positions, statements = wrapper.resolve(PositionProvider), Statements(source)
    found, seen = [], Counter()
    for mutation in visitor.mutations:
        line = positions[mutation.original_node].start.line
        function, statement = statements.at(line)
        change = tree.code_for_node(mutation.original_node), tree.code_for_node(mutation.mutated_node)
        seen[function, change] += 1
        found.append(Mutant(module, line, function, seen[function, change], statement, change, mutation, tree))
    return found


class Statements:
    """Which function and which statement a line of a module belongs to."""

    def __init__(self, source: str):
        self.found = []  # (first line, last line, function)
        self.visit(ast.parse(source), "", False)

    def visit(self, node: ast.AST, name: str, runs_later: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner, later = name, runs_later
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner, later = f"{name}.{child.name}".strip("."), isinstance(child, ast.FunctionDef)
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                body = getattr(child, "body", None)
                first = child.lineno if hasattr(child, "lineno") else child.pattern.lineno
                # Of a compound statement its head; of a function's head, which runs on import, the whole function.
                whole = not body or isinstance(child, ast.FunctionDef)
                last = child.end_lineno if whole else max(first, body[0].lineno - 1)
                self.found.append((first, last, inner if later else ""))
            self.visit(child, inner, later)

    def at(self, line: int) -> tuple[str, range]:
        inside = [(last - first, first, last, name) for first, last, name in self.found if first <= line <= last]
        _, first, last, name = min(inside)
        return name, range(first, last + 1)


def chosen(module: str, sample: int | None) -> list[Mutant]:
    """Those of a module that are tried: all, or those with the smallest keys, of which few change where code does."""
    everyone = mutants_of(module)
    count = sample or (len(everyone) if module in IN_FULL else SAMPLE)
    return sorted(sorted(everyone, key=lambda mutant: mutant.key)[:count], key=lambda mutant: mutant.line)


# Processes: each job runs in a fork, in a folder that holds a copy of the repository.


@dataclasses.dataclass
class Job:
    subject: object
    work: Callable[[], dict]
    path: str = ""  # of the file that is mutated
    source: str = ""


def copy_of_the_repository(name: str) -> Path:
    folder = BUILD / name
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for path in [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]:
        if str(path.relative_to(folder)) not in wanted:
            path.unlink()
    for name in wanted:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def in_processes(jobs: Iterable[Job], copies: list[str], patience: int = 30_000) -> Iterator[tuple[Job, dict, float]]:
    """Yield each job, its result and its CPU seconds; of a process that dies or falls silent, the test it was in.

    Silence is counted in looks, fifty a second: seconds also pass while this process is stopped.
    """
    jobs, free, running = iter(jobs), [copy_of_the_repository(name) for name in copies], {}
    silent = Counter()
    try:
        while True:
            while free and (job := next(jobs, None)):
                folder = free.pop()
                if job.path:
                    for compiled in (folder / job.path).parent.glob(f"__pycache__/{Path(job.path).stem}.*"):
                        compiled.unlink()  # another mutant's may look as new and as long as this one
                    (folder / job.path).write_text(job.source, "utf8")
                for name in ("result.json", "now"):
                    (folder.parent / f"{folder.name}-{name}").write_text("")
                pid = os.fork()
                if pid == 0:
                    child(job, folder)
                running[pid] = job, folder
            if not running:
                return
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                for quiet, (_, folder) in running.items():
                    silent[quiet, (folder.parent / f"{folder.name}-now").stat().st_mtime_ns] += 1
                for (quiet, _), looks in silent.items():
                    if quiet in running and looks > patience:
                        kill_group(quiet)
                time.sleep(0.02)
                continue
            job, folder = running.pop(pid)
            kill_group(pid)
            if job.path:
                shutil.copy2(ROOT / job.path, folder / job.path)
            free.append(folder)
            told, now = ((folder.parent / f"{folder.name}-{name}").read_text() for name in ("result.json", "now"))
            if not told:
                reason = signal.Signals(status & 127).name if status & 127 else "an exit"
                told = json.dumps({"died_in": now or "its import", "message": f"the process ended by {reason}"})
            told = json.loads(told)
            if "error" in told:
                raise RuntimeError(f"{job.subject} could not be tried: {told['error']}")
            yield job, told, usage.ru_utime + usage.ru_stime
    finally:
        for pid in running:
            kill_group(pid)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def child(job: Job, folder: Path) -> None:
    """Do the job in this new process, which ends with it."""
    try:
        os.setsid()
        aside = folder.parent / folder.name
        temporary = folder.parent / f"{folder.name}-tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        log = os.open(f"{aside}-log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {
            "PYTHONPATH": str(folder),
            "TMPDIR": str(temporary),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(temporary),
        }
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        os.chdir(folder)
        sys.path[:0] = [str(folder)]
        told = job.work()
        Path(f"{aside}-result.json").write_text(json.dumps(told))
    except BaseException:
        Path(f"{aside}-result.json").write_text(json.dumps({"error": traceback.format_exc()}))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class Watch:
    """Plugin of pytest: runs tests in an order, notes which fail, ends the process where one computes for too long."""

    def __init__(self, order: dict[str, float] | None = None):
        self.order, self.now = order, Path(f"{os.getcwd()}-now")
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.skipped: set[str] = set()

    def pytest_collection_modifyitems(self, items):
        if self.order is not None:
            places = {test: place for place, test in enumerate(self.order)}
            items[:] = sorted((item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.now.write_text(item.nodeid)
        signal.setitimer(signal.ITIMER_PROF, 20 + 10 * (self.order or {}).get(item.nodeid, 100))
        before = sum(os.times()[:4])  # of this process and of those that it has waited for
        told = yield
        self.seconds[item.nodeid] = round(sum(os.times()[:4]) - before, 3)
        return told

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.setdefault(report.nodeid, str(report.longrepr)[-4000:])
        elif report.skipped:
            self.skipped.add(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.setdefault(report.nodeid, "could not be imported")


def run_pytest(arguments: list[str], *plugins) -> int:
    signal.setitimer(signal.ITIMER_PROF, 120)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "-k", TOO_SENSITIVE]
    return int(pytest.main([*options, *arguments], plugins=list(plugins)))


# Which tests execute which lines.


class Reach:
    """Plugin of pytest: the lines of ppo_lib that each test executes, its shared fixtures' included."""

    def __init__(self, coverage):
        self.coverage, self.fixtures = coverage, {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        for name in [name for name in sys.modules if name.startswith("ppo_lib")]:  # each test pays for what is cached
            for value in list(vars(sys.modules[name]).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
        definitions = [each[-1] for each in item._fixtureinfo.name2fixturedefs.values()]
        self.fixtures[item.nodeid] = [context_of(each) for each in definitions if each.scope != "function"]
        self.switch(item.nodeid)
        told = yield
        self.switch("")
        return told

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.scope == "function":
            return (yield)
        self.switch(context_of(fixturedef))
        told = yield
        self.switch(request._pyfuncitem.nodeid)
        return told

    def switch(self, context: str) -> None:
        self.coverage.switch_context(context)
        self.coverage.config.context = context  # of the processes that a test starts
        os.environ["COVERAGE_PROCESS_CONFIG"] = self.coverage.config.serialize()

    def lines(self) -> dict[str, dict[str, list[int]]]:
        """By test and module."""
        data, by_context = self.coverage.get_data(), {}
        for file in data.measured_files():
            module = str(Path(file).relative_to(Path.cwd() / "ppo_lib").with_suffix(""))
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    by_context.setdefault(context, {}).setdefault(module, set()).add(line)
        found = {}
        for test, fixtures in self.fixtures.items():
            for context in (test, *fixtures):
                for module, lines in by_context.get(context, {}).items():
                    found.setdefault(test, {}).setdefault(module, set()).update(lines)
        return {test: {name: sorted(lines) for name, lines in by.items()} for test, by in found.items()}


def context_of(definition) -> str:
    return f"fixture {definition.argname} of {definition.baseid}"


def measure(file: str) -> dict:
    import coverage

    folder = Path.cwd()
    for old in folder.parent.glob(f"{folder.name}-coverage*"):
        old.unlink()
    settings = Path(f"{folder}-coverage.rc")
    lines = "[run]", f"data_file = {folder}-coverage", f"source = {folder}/ppo_lib", "parallel = true"
    settings.write_text("\n".join([*lines, "patch =", " subprocess", " fork", " _exit"]))
    cov = coverage.Coverage(config_file=str(settings), messages=False)
    reach, watch = Reach(cov), Watch()
    cov.start()
    run_pytest([file], watch, reach)
    cov.stop()
    cov.save()
    cov.combine()
    passed = [test for test in watch.seconds if test not in watch.failed and test not in watch.skipped]
    lines = reach.lines()
    return {
        "seconds": {test: watch.seconds[test] for test in passed},
        "lines": {test: lines.get(test, {}) for test in passed},
        "failed": watch.failed,
        "imported": sorted(name for name, module in sys.modules.items() if is_installed(module)),
    }


class Tests:
    """Every test that passes: what it executes, and for how long. Measured again where file or library changed."""

    def __init__(self, copies: list[str]):
        files = sorted(str(path.relative_to(ROOT)) for folder in TESTS for path in (ROOT / folder).glob("test_*.py"))
        shared = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
        library = digest(*(path.read_text("utf8") for path in sorted([*LIBRARY.rglob("*.py"), *shared])))
        self.digests = {file: digest((ROOT / file).read_text("utf8")) for file in files}
        stores = {file: BUILD / f"reach/{digest(library, file, self.digests[file])}.json" for file in files}
        missing = [file for file in files if not stores[file].exists()]
        jobs = (Job(file, functools.partial(measure, file)) for file in missing)
        for job, told, seconds in in_processes(jobs, copies):
            if "seconds" not in told:
                raise RuntimeError(f"{job.subject} died in {told['died_in']}")
            write_json(stores[job.subject], told)
            print(f"{job.subject}: {len(told['seconds'])} tests, {seconds:.0f} s", flush=True)
        self.seconds, self.lines, self.imported = {}, {}, set()
        for file in files:
            told = json.loads(stores[file].read_text("utf8"))
            for test, message in told["failed"].items():
                print(f"left out, for it fails without a mutant: {test}\n    {message.splitlines()[-1]}")
            self.seconds |= told["seconds"]
            self.imported |= set(told["imported"])
            for test, lines in told["lines"].items():
                for module, numbers in lines.items():
                    self.lines.setdefault(module, {})[test] = frozenset(numbers)

    def reaching(self, mutant: Mutant) -> list[str]:
        """The tests that execute a mutant's statement, in order; of what runs on import, all that use the module."""
        by_test, lines = self.lines.get(mutant.module, {}), set(mutant.statement)
        tests = [test for test, numbers in by_test.items() if not mutant.function or lines & numbers]
        own = f"/test_{mutant.module.split('/')[-1]}.py::"
        return sorted(tests, key=lambda test: (own not in test or self.seconds[test] > 1, self.seconds[test], test))

    def within(self, mutant: Mutant, seconds: float) -> dict[str, float]:
        """The first of them, with their seconds, until so many have passed."""
        chosen = {}
        for test in self.reaching(mutant):
            if chosen and sum(chosen.values()) + self.seconds[test] > seconds:
                break
            chosen[test] = self.seconds[test]
        return chosen

    def digest_of(self, tests: Iterable[str]) -> str:
        tests = sorted(tests)
        return digest(*tests, *(self.digests[file] for file in sorted({test.split("::")[0] for test in tests})))


@functools.cache
def digest_of_test(test: str) -> str | None:
    """Of a test, its messages aside, and of what its file holds besides tests; None of what is no test's name."""
    file, _, name = test.split("[")[0].partition("::")
    if not (ROOT / file).is_file():
        return None
    tree = ast.parse((ROOT / file).read_text("utf8"))
    tree.body = [node for node in tree.body if getattr(node, "name", name) == name or not is_test(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            node.msg = None
    return digest(ast.unparse(tree))


def is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


def attempt(*portions: tuple[list[str], dict[str, float] | None]) -> dict:
    """Run tests until one fails: which, and what it says. A portion is what pytest is told, and an order of tests."""
    for arguments, order in portions:
        watch = Watch(order)
        run_pytest(["-x", *arguments], watch)
        if watch.failed:
            test, message = next(iter(watch.failed.items()))
            said = [line[2:].strip() for line in message.splitlines() if line.startswith("E ")] or message.splitlines()
            return {"killed_by": test, "message": said[0][:200] if said else ""}
        if not watch.seconds:  # where nothing is changed this is an error: see `check_unchanged`
            return {"killed_by": arguments[0], "message": "its tests cannot be imported"}
    return {"killed_by": None}


def is_installed(module) -> bool:
    """Whether it is of another package, and can be used by a fork of the process that imported it; wandb cannot."""
    file = getattr(module, "__file__", None) or ""
    return "site-packages" in file and "/wandb/" not in file


def warm(names: Iterable[str]) -> None:
    """Import here what the tests will need of other packages, so that no fork has to."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


# The run and its tables.


def still_true(row: dict, mutant: Mutant, tests: Tests, seconds: float) -> bool:
    """A kill counts while module and killing test are as they were; a survival, while all files that it met are."""
    if row["source"] != digest(path_of(mutant.module).read_text("utf8")):
        return False
    if row["killed_by"]:
        return row["killer"] == digest_of_test(row["killed_by"])
    return row["tests"] == tests.digest_of(tests.within(mutant, seconds))


def tried_before() -> dict[str, dict]:
    lines = TRIED.read_text("utf8").splitlines() if TRIED.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def run(names: list[str], sample: int | None, seconds: float, copies: list[str], only_alive: bool = False) -> None:
    tests, before = Tests(copies), tried_before()
    warm(sorted(tests.imported))
    planned = [mutant for module in names for mutant in chosen(module, sample)]
    waiting = [
        each
        for each in planned
        if not (row := before.get(each.key))
        or not (only_alive and row["killed_by"] or still_true(row, each, tests, seconds))
    ]
    orders = {mutant.key: tests.within(mutant, seconds) for mutant in waiting}
    for mutant in waiting:
        if not orders[mutant.key]:
            note(mutant, {"killed_by": None}, 0.0, tests, seconds)
    reached = [mutant for mutant in waiting if orders[mutant.key]]
    print(f"{len(planned)} mutants, {len(waiting)} of them to try", flush=True)
    check_unchanged(
        [Job(each, trial(orders[each.key])) for each in {each.module: each for each in reached}.values()], copies
    )
    jobs = (Job(each, trial(orders[each.key]), f"ppo_lib/{each.module}.py", each.source) for each in reached)
    for number, (job, told, took) in enumerate(in_processes(jobs, copies), 1):
        row = note(job.subject, told, took, tests, seconds)
        told = f"killed by {row['killed_by']}" if row["killed_by"] else "SURVIVED"
        print(f"{number}/{len(reached)} {job.subject.module}:{job.subject.line} {told} ({took:.1f} s)", flush=True)
    if sample is None:
        tables(names)
    rows = tried_before()
    for mutant in planned:
        if not rows[mutant.key]["killed_by"]:
            where = f"{mutant.module}.py:{mutant.line}, {mutant.function or 'on import'}"
            print(f"\n{where}, met {rows[mutant.key]['met']} tests\n{mutant.diff}")


def trial(order: dict[str, float]) -> Callable[[], dict]:
    """The tests of the first one's file alone, then the others, so that few files are read where that is enough."""
    first = next(iter(order)).split("::")[0]
    parts = {}
    for test, seconds in order.items():
        parts.setdefault(test.startswith(f"{first}::"), {})[test] = seconds
    files = ((list(dict.fromkeys(test.split("::")[0] for test in part)), part) for part in parts.values())
    return functools.partial(attempt, *files)


def check_unchanged(controls: list[Job], copies: list[str]) -> None:
    """Nothing is shown by tests that fail without a mutant too, in this order or in these copies."""
    for job, told, _ in in_processes(controls, copies):
        if killed_by := told.get("killed_by") or told.get("died_in"):
            raise RuntimeError(
                f"{killed_by} fails where {job.subject.module} is as it should be: {told.get('message')}"
            )


def note(mutant: Mutant, told: dict, took: float, tests: Tests, seconds: float) -> dict:
    killed_by, order = told.get("killed_by") or told.get("died_in"), tests.within(mutant, seconds)
    row = {
        "key": mutant.key,
        "source": digest(path_of(mutant.module).read_text("utf8")),
        "killed_by": killed_by,
        "killer": killed_by and digest_of_test(killed_by),
        "message": told.get("message", ""),
        "tests": tests.digest_of(order),
        "met": len(order),
        "reached_by": len(tests.reaching(mutant)),
        "seconds": round(took, 2),
    }
    with TRIED.open("a", encoding="utf8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row


def equivalents() -> list[dict]:
    return yaml.safe_load(EQUIVALENTS.read_text("utf8")) or []


def tables(names: list[str]) -> None:
    """Store what came out: a row for each module, and the survivors. What was not tried keeps what is stored."""
    summary, survivors = (FOLDER / f"{name}.json" for name in ("summary", "survivors"))
    stored = json.loads(summary.read_text("utf8"))["modules"] if summary.exists() else []
    rows, told, alive = tried_before(), {row["module"]: row for row in stored}, known_survivors()
    argued = {(entry["module"], entry["in"], entry["change"]) for entry in equivalents()}
    for module in names:
        source = digest(path_of(module).read_text("utf8"))
        tried = [mutant for mutant in chosen(module, None) if rows.get(mutant.key, {}).get("source") == source]
        if not tried:
            continue
        mine = [
            {**mutant.place, "line": mutant.line, "met": rows[mutant.key]["met"]}
            for mutant in tried
            if not rows[mutant.key]["killed_by"]
        ]
        alive = [row for row in alive if row["module"] != module] + mine
        counts = {"mutants": len(mutants_of(module)), "tried": len(tried), "survived": len(mine)}
        told[module] = {"module": module, **counts}
    for module, row in told.items():
        mine = [each for each in alive if each["module"] == module]
        row["equivalent"] = sum((each["module"], each["in"], each["change"]) in argued for each in mine)
        row["killed"] = share_killed(row)
    total = {key: sum(row[key] for row in told.values()) for key in ("mutants", "tried", "survived", "equivalent")}
    total["killed"] = share_killed(total)
    by_name = sorted(told.values(), key=lambda row: row["module"])
    settings = {"in_full": IN_FULL, "sample": SAMPLE, "tests": TESTS, "left_out": LEFT_OUT}
    elsewhere = [mutant.place for module in QUICK for mutant in chosen(module, None) if noticed_elsewhere(mutant, rows)]
    found = {"total": total, "modules": by_name, "noticed_elsewhere": elsewhere}
    write_json(summary, provenance("mutmut") | settings | found)
    write_json(survivors, sorted(alive, key=lambda row: (row["module"], row["line"], row["change"])))
    for row in [*by_name, {"module": "all", **total}]:
        counts = "".join(f"{row[key]:6} {key}" for key in ("tried", "survived", "equivalent"))
        print(f"{row['module']:24}{counts}{row['killed']:8.1%} of the others killed")


def noticed_elsewhere(mutant: Mutant, rows: dict[str, dict]) -> bool:
    """Whether a mutant of a quick module is killed, but not by the tests that `few` runs."""
    killed_by = rows.get(mutant.key, {}).get("killed_by")
    return bool(killed_by) and not killed_by.startswith(QUICK[mutant.module][0])


def share_killed(row: dict) -> float:
    """Of the mutants that change something."""
    others = row["tried"] - row["equivalent"]
    return round((row["tried"] - row["survived"]) / others, 4) if others else 1.0


def known_survivors() -> list[dict]:
    path = FOLDER / "survivors.json"
    return json.loads(path.read_text("utf8")) if path.exists() else []


def few(count: int = 4) -> list[str]:
    """Try a few mutants of modules that their own tests hold in seconds; those that nobody notices, in words."""
    path = FOLDER / "summary.json"
    elsewhere = json.loads(path.read_text("utf8"))["noticed_elsewhere"] if path.exists() else []
    known = [(row["module"], row["in"], row["change"]) for row in known_survivors() + elsewhere]
    everyone = [mutant for module in QUICK for mutant in mutants_of(module)]
    drawn = sorted(everyone, key=lambda mutant: digest("few", mutant.key))[: 4 * count]
    drawn = [mutant for mutant in drawn if tuple(mutant.place.values()) not in known][:count]
    jobs = [
        Job(each, functools.partial(attempt, (QUICK[each.module], None)), f"ppo_lib/{each.module}.py", each.source)
        for each in drawn
    ]
    families = (f"transformers.models.{name}.modeling_{name}" for name in ("llama", "gpt2", "qwen2"))
    warm(["hypothesis", "scipy.stats", "transformers", *families])
    check_unchanged([Job(drawn[0], functools.partial(attempt, (QUICK[drawn[0].module], None)))], ["few"])
    told = []
    for job, came_out, _ in in_processes(jobs, ["few"]):
        mutant = job.subject
        if not (came_out.get("killed_by") or came_out.get("died_in")):
            where = f"ppo_lib/{mutant.module}.py, line {mutant.line}"
            told.append(
                f"{QUICK[mutant.module][0]} passes with this mutant of {where}:\n{mutant.diff}\n"
                f"Add a test, or say in {EQUIVALENTS.relative_to(ROOT)} why nothing changes."
            )
    return told


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "tables", "few"])
    parser.add_argument("modules", nargs="*", help="names such as losses or worlds/sums; every one by default")
    parser.add_argument("--sample", type=int, help="mutants of a module, the same number of each")
    parser.add_argument("--seconds", type=float, default=40, help="of tests that a mutant meets; 40 by default")
    parser.add_argument("--alive", action="store_true", help="only those that no test has killed so far")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_intermixed_args(arguments)
    names = given.modules or modules()
    if given.what == "run":
        run(names, given.sample, given.seconds, [f"copy{number}" for number in range(given.workers)], given.alive)
    elif given.what == "tables":
        tables(names)
    elif survivors := few():
        sys.exit("\n\n".join(survivors))


if __name__ == "__main__":
    main()
