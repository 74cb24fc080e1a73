"""Gives the book its address: `make publish URL=https://github.com/you/your-copy`, in a clone that you push there.

Chapters on Colab install `ppo_lib` from that address, and the site's links lead to it. Until it is set, the setup cell
of every chapter stops rather than install code from a place that nobody vouches for.
"""

import argparse
import re
import sys

import cells
import chapters
import toc

ADDRESS = re.compile(r"https://github\.com/(?!-)[A-Za-z0-9-]{1,39}/[A-Za-z0-9._-]+")


def publish(url: str) -> list[str]:
    """Write `url` wherever the repository's address stands; returns the names of the files that changed.

    Raises:
        ValueError: `url` is no address of a repository on GitHub, from where Colab opens notebooks.
    """
    url = url.rstrip("/").removesuffix(".git")
    if not ADDRESS.fullmatch(url):
        raise ValueError(f"URL={url!r} is no repository: pass https://github.com/NAME/REPOSITORY")
    before, changed = cells.repository(), []
    for path in (toc.ROOT / "_config.yml", *sorted(toc.ROOT.glob("*.md")), *sorted((toc.ROOT / "book").glob("*.md"))):
        text = path.read_text("utf8")
        if before in text:
            path.write_text(text.replace(before, url), "utf8")
            changed.append(path.relative_to(toc.ROOT).as_posix())
    for path in sorted(toc.CHAPTERS.glob("*.ipynb")):
        chapters.rewrite(path, chapters.setup)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    try:
        changed = publish(parser.parse_args().url)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print("rewrote", ", ".join(changed) or "nothing: that is the address already")
    print("Now commit, push, and `make book`.")


if __name__ == "__main__":
    main()
