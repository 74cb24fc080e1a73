"""The book's table of contents: which pages there are, in which order."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TOC = ROOT / "book" / "_toc.yml"
CHAPTERS = ROOT / "chapters"


def read() -> dict:
    """The table of contents as written in `book/_toc.yml`."""
    return yaml.safe_load(TOC.read_text("utf8"))


def _entries(toc: dict) -> list[dict]:
    groups = toc.get("parts", [toc])
    return [entry for group in groups for entry in group.get("chapters", [])]


def pages(toc: dict) -> list[str]:
    """Every page in reading order, as paths from the repository's root without suffix."""
    return [toc["root"], *(entry["file"] for entry in _entries(toc))]


def source(page: str) -> Path | None:
    """The file a page is written in, or None when nobody has written it."""
    found = [ROOT / f"{page}{suffix}" for suffix in (".ipynb", ".md")]
    return next((path for path in found if path.exists()), None)


def chapters(toc: dict) -> list[Path]:
    """The notebooks of the book in reading order."""
    return [path for page in pages(toc) if (path := source(page)) and path.suffix == ".ipynb"]


def keep(toc: dict, wanted: set[str]) -> dict:
    """The same table of contents with only the pages in `wanted`; a part left empty goes too."""
    kept = {**toc}
    if "parts" in toc:
        parts = [{**p, "chapters": [c for c in p["chapters"] if c["file"] in wanted]} for p in toc["parts"]]
        kept["parts"] = [part for part in parts if part["chapters"]]
    else:
        kept["chapters"] = [c for c in toc.get("chapters", []) if c["file"] in wanted]
    return kept
