"""Slips of one or two lines, written from the code alone: does a test notice, and does its message name the mistake?

    python benchmarks/slips.py            try those in tests/mutations/slips.yaml whose code or tests changed
    python benchmarks/slips.py --seconds 300

Each meets the tests that execute the changed lines, as a mutant does (`mutants.py`), until one fails. Its message is
then scored by hand in `slips.yaml`: `named` says the mistake in the words of the field and blames the right place,
`near` points to it, `bare` shows numbers or blames code that is right.
"""

import argparse
import dataclasses
import json
from collections import Counter

import yaml
from mutants import (
    BUILD,
    FOLDER,
    Job,
    Mutant,
    Statements,
    Tests,
    check_unchanged,
    digest,
    in_processes,
    path_of,
    trial,
    warm,
)
from record import ROOT, provenance, write_json

SLIPS = ROOT / "tests/mutations/slips.yaml"
TRIED = BUILD / "slips.json"


@dataclasses.dataclass(frozen=True)
class Slip(Mutant):
    """A mutant that a person wrote."""

    text: str

    @property
    def source(self) -> str:
        return self.text


def planted(entry: dict) -> Slip:
    """The slip that replaces `old`, which stands in the module once, by `new`."""
    source, old, new = path_of(entry["module"]).read_text("utf8"), entry["old"].rstrip("\n"), entry["new"].rstrip("\n")
    if source.count(old) != 1:
        raise ValueError(f"in {entry['module']} this stands {source.count(old)} times, not once: {old!r}")
    first = source[: source.index(old)].count("\n") + 1
    function, statement = Statements(source).at(first)
    lines = range(min(first, statement.start), max(first + old.count("\n") + 1, statement.stop))
    text = source.replace(old, new)
    return Slip(entry["module"], first, function, 1, lines, (old, new), None, None, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of tests that a slip meets")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    entries = yaml.safe_load(SLIPS.read_text("utf8"))
    copies = [f"slip{number}" for number in range(given.workers)]
    tests = Tests(copies)
    before = json.loads(TRIED.read_text("utf8")) if TRIED.exists() else {}
    slips = {entry["slip"]: planted(entry) for entry in entries}
    orders = {name: tests.within(slip, given.seconds) for name, slip in slips.items()}
    keys = {name: digest(slip.text, tests.digest_of(orders[name])) for name, slip in slips.items()}
    waiting = [name for name in slips if before.get(name, {}).get("key") != keys[name]]
    warm(sorted(tests.imported))
    reached = [name for name in waiting if orders[name]]
    of_modules = {slips[name].module: name for name in reached}.values()
    check_unchanged([Job(slips[name], trial(orders[name])) for name in of_modules], copies)
    jobs = [Job(name, trial(orders[name]), f"ppo_lib/{slips[name].module}.py", slips[name].text) for name in reached]
    told = {name: {} for name in waiting} | {job.subject: came_out for job, came_out, _ in in_processes(jobs, copies)}
    for name, came_out in told.items():
        killed_by = came_out.get("killed_by") or came_out.get("died_in")
        row = {"killed_by": killed_by, "message": came_out.get("message", ""), "met": len(orders[name])}
        before[name] = {"key": keys[name], **row}
    write_json(TRIED, {name: before[name] for name in slips})
    store(entries, before)


def store(entries: list[dict], tried: dict[str, dict]) -> None:
    """Store which slips were noticed, by which test and message, and how a reader of it scored that."""
    rows = []
    for entry in entries:
        came_out = {name: value for name, value in tried[entry["slip"]].items() if name != "key"}
        score = entry.get("score", "not scored") if came_out["killed_by"] else "not noticed"
        rows.append({"slip": entry["slip"], "module": entry["module"], **came_out, "score": score})
        print(f"{score:12} {entry['module']}: {entry['slip']}\n    {came_out['killed_by']}\n    {came_out['message']}")
    counts = Counter(row["score"] for row in rows)
    print(dict(counts))
    write_json(FOLDER / "messages.json", provenance() | {"counts": dict(counts), "slips": rows})


if __name__ == "__main__":
    main()
