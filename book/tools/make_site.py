"""Builds the site: executed chapters and `book/` staged with the repository's own paths, then Jupyter Book.

python book/tools/make_site.py                      the whole book into _build/html
python book/tools/make_site.py --only 03_rollouts   the book's own pages and one chapter, for its author
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import anywidget
import nbformat
import yaml

import execute
import exercises
import toc
from ppo_lib.lab import stored

NODE_MODULES = toc.ROOT / "node_modules"
PROMISED = re.compile(r"about \d+ seconds on two CPU cores")  # in a notebook; its page says what was measured
SITE_LIBRARIES = ("jupyter-book", "myst-nb", "sphinx", "sphinx-book-theme", "sphinxcontrib-bibtex")


def vendor_files() -> dict[str, Path]:
    """Where each script that the site serves comes from, by its path below `_static/vendor`."""
    html_manager = NODE_MODULES / "@jupyter-widgets/html-manager/dist"
    mathjax = NODE_MODULES / "mathjax/es5"
    files = {
        "plotly.min.js": NODE_MODULES / "plotly.js-cartesian-dist-min/plotly-cartesian.min.js",
        "require.js": NODE_MODULES / "requirejs/require.js",
        "embed-amd.js": html_manager / "embed-amd.js",
        "anywidget.js": Path(anywidget.__file__).parent / "nbextension/index.js",
        "mathjax/tex-chtml.js": mathjax / "tex-chtml.js",
    }
    # The widget manager is two bundles in one file; each looks for its icons beside its own name.
    for folder in ("@jupyter-widgets", "@jupyter-widgets/html-manager/dist"):
        files |= {f"{folder}/{font.name}": font for font in html_manager.glob("*.woff2")}
    fonts = mathjax / "output/chtml/fonts/woff-v2"
    files |= {f"mathjax/output/chtml/fonts/woff-v2/{font.name}": font for font in fonts.glob("*.woff")}
    return files


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def time_to_run(chapter: str, promised: str) -> str:
    """What a chapter took in the runs stored in `ppo_lib/lab/stored/sturdy`; what its notebook promises if none is."""
    runs = stored.load("sturdy/runs.jsonl")
    seconds = [run["seconds"] for run in runs if run["chapter"] == chapter and run["variant"] == "native"]
    if not seconds:
        return promised
    return f"about {statistics.median(seconds):.0f} seconds, the median of {len(seconds)} stored runs on two CPU cores"


def dress(executed: Path, page: Path) -> None:
    """Write an executed chapter as its page shows it."""
    notebook = nbformat.read(executed, as_version=4)
    exercises.dress(notebook, page.stem)
    first = notebook.cells[0]
    first.source = PROMISED.sub(lambda found: time_to_run(page.stem, found[0]), first.source)
    page.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, page)


def pages_to_build(contents: dict, only: str | None) -> set[str]:
    """The pages of the table of contents that exist; with `only`, no chapter but that one."""
    wanted = set()
    for page in toc.pages(contents):
        if toc.source(page) is None:
            print(f"not written yet, left out: {page}")
        elif not (only and page.startswith("chapters/") and page != f"chapters/{only}"):
            wanted.add(page)
    if only and f"chapters/{only}" not in wanted:
        sys.exit(f"no chapter chapters/{only} in book/_toc.yml")
    return wanted


def stage(build: Path, contents: dict, profile: str) -> Path:
    """Lay out everything that Sphinx reads in BUILD/src, and return that folder."""
    source = build / "src"
    shutil.rmtree(source, ignore_errors=True)
    for name in ("_config.yml", "CHANGELOG.md"):
        copy(toc.ROOT / name, source / name)
    (source / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False), "utf8")
    skipped = {toc.ROOT / "book/tools"}
    for path in execute.files_below(toc.ROOT / "book"):
        if not skipped & set(path.parents) and path != toc.TOC:
            copy(path, source / path.relative_to(toc.ROOT))
    for name, path in vendor_files().items():
        copy(path, source / "book/_static/vendor" / name)
    chapters = toc.chapters(contents)
    for chapter, executed in zip(chapters, execute.execute_all(chapters, build, profile), strict=True):
        dress(executed, source / chapter.relative_to(toc.ROOT))
    return source


def inputs_digest(source: Path) -> str:
    """A hash of all that the built pages depend on; the code and tests that pages link to are part of it."""
    linked = [p for name in ("ppo_lib", "tests", "benchmarks") for p in execute.files_below(toc.ROOT / name)]
    versions = {name: importlib.metadata.version(name) for name in SITE_LIBRARIES}
    parts = [execute.digest_of(execute.files_below(source), source), execute.digest_of(linked, toc.ROOT), versions]
    return json.dumps(parts)


# Pages that were merged into others: old address → new one. A reader who kept it is led on.
MOVED = {"book/faq": "book/decision_guide", "book/v0_against_v1": "book/versions_compared"}
LED_ON = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="canonical" href="{address}"><link rel="icon" href="data:,">
<script>location.replace("{address}" + location.hash)</script>
<meta http-equiv="refresh" content="1; url={address}"></head>
<body><p>This page is now part of <a href="{address}">{title}</a>.</p></body></html>
"""


def lead_on(html: Path) -> None:
    """Write a page at each old address that leads to the new one."""
    for old, new in MOVED.items():
        if (html / f"{new}.html").exists():
            address = os.path.relpath(html / f"{new}.html", (html / old).parent)
            title = toc.source(new).read_text("utf8").partition("\n")[0].removeprefix("# ")
            (html / f"{old}.html").write_text(LED_ON.format(title=title, address=address), "utf8")


def render(build: Path, source: Path, strict: bool = True) -> None:
    """Run Jupyter Book, `strict` with every warning an error; an earlier site stays until this one is complete."""
    fresh = build / "_build"
    shutil.rmtree(fresh, ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", source, "--path-output", build]
    options = [*(["-W", "--keep-going"] if strict else []), "-n", "--all", "-q"]
    environment = {**os.environ, "PPO_BOOK_ROOT": str(toc.ROOT)}
    # Its standard output ends with the address of a folder that is about to move; warnings come by standard error.
    print("building the site ...", flush=True)
    if subprocess.run([*command, *options], env=environment, stdout=subprocess.DEVNULL).returncode:
        sys.exit("the site was not built: see the warnings above")
    with open(fresh / "html/index.html", "a", encoding="utf8") as redirect:
        redirect.write('<link rel="icon" href="data:," />\n')  # or a slow browser asks for /favicon.ico
    lead_on(fresh / "html")
    shutil.rmtree(build / "html", ignore_errors=True)
    (fresh / "html").rename(build / "html")
    shutil.rmtree(fresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=toc.ROOT / "_build")
    parser.add_argument("--profile", default="fast", choices=["fast", "full"])
    parser.add_argument("--only", metavar="CHAPTER", help="no chapter but this one")
    options = parser.parse_args()
    build = options.build.resolve()
    contents = toc.read()
    contents = toc.keep(contents, pages_to_build(contents, options.only))
    source = stage(build, contents, options.profile)
    digest, stamp, index = inputs_digest(source), build / "site.json", build / "html/index.html"
    if stamp.exists() and index.exists() and stamp.read_text() == digest:
        print("the site is up to date, not built again")
    else:
        stamp.unlink(missing_ok=True)
        render(build, source, strict=not options.only)  # one chapter alone: links to the others lead nowhere
        stamp.write_text(digest)
    print(f"\nOpen the book: {index}\n               {index.as_uri()}")


if __name__ == "__main__":
    main()
