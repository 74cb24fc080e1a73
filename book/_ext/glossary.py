"""Words of the glossary in the text of a page: the first of each leads to its entry, and shows it on a card.

The glossary is the list of definitions on the notation page. Which of its words are marked, and how an entry reads as
plain text, is decided here; `glossary.js` shows the card.
"""

import html
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

PAGE = "book/notation"
HEADING = "Glossary"
# Everyday words, which are marked too often for what they explain, and what has a chapter's whole attention.
UNMARKED = {
    "return", "score", "update", "resume", "reference", "ratio", "schedule", "policy", "preset", "tracker", "mask",
    "plateau", "patience", "accumulation", "checkpoint", "entropy", "episode", "temperature",
}  # fmt: skip
ENTRY = re.compile(r"^(?P<term>\S[^\n]*)\n: (?P<text>(?:.+\n?)+)", re.MULTILINE)
SYMBOLS = {r"\pi": "π", r"\rho": "ρ", r"\varepsilon": "ε", r"\delta": "δ", r"\pm": "±", r"\|": "‖", r"\,": " "}
WITHIN = (nodes.paragraph, nodes.list_item)
NOT_WITHIN = (
    nodes.reference, addnodes.pending_xref, nodes.literal, nodes.title, nodes.caption, nodes.raw, nodes.term,
    nodes.math, nodes.table,
)  # fmt: skip


def slug(term: str) -> str:
    return "term-" + re.sub(r"\W+", "-", term.lower())


def plain(text: str) -> str:
    """An entry's first sentences as plain text, up to where it points elsewhere."""
    text = " ".join(text.split()).partition(" See {")[0]
    text = re.sub(r"\s*\{cite\}`[^`]*`", "", text)
    text = re.sub(r"\\(?:mathrm|text)\{(\w+)\}", r"\1", text)
    for tex, symbol in SYMBOLS.items():
        text = text.replace(tex, symbol)
    text = re.sub(r"[$`*]", "", text)
    return " ".join(re.sub(r"_\{?(\w+)\}?", r"_\1", text).split())


@cache
def entries(path: Path) -> dict[str, str]:
    """Term → its entry as plain text, of the glossary in the file `path`."""
    glossary = path.read_text("utf8").partition(f"## {HEADING}\n")[2]
    return {found["term"]: plain(found["text"]) for found in ENTRY.finditer(glossary)}


def pattern(terms: list[str]) -> re.Pattern:
    """Finds a term, or more than one of it, at a sentence's beginning too; longer terms first."""
    words = []
    for term in sorted(terms, key=len, reverse=True):
        first = f"[{term[0].upper()}{term[0]}]" if term[0].islower() else re.escape(term[0])
        words.append(first + re.escape(term[1:]).replace(r"\ ", r"\s"))
    return re.compile(rf"(?<![\w-])({'|'.join(words)})(?:s|es)?(?![\w-])")


def mark_terms(doctree: nodes.document, known: dict[str, str], address: Callable[[str], str]) -> None:
    """Make the first of each term in the running text of `doctree` a link to its entry."""
    left = {term for term in known if term not in UNMARKED}
    by_spelling = {re.sub(r"\s", " ", term).lower(): term for term in left}
    finder = pattern(sorted(left))
    for text in list(doctree.findall(nodes.Text)):
        above = []
        node = text.parent
        while node is not None:
            above.append(node)
            node = node.parent
        if any(isinstance(node, NOT_WITHIN) for node in above) or not any(isinstance(node, WITHIN) for node in above):
            continue
        pieces: list[nodes.Node] = []
        rest = str(text)
        place = 0
        for found in finder.finditer(rest):
            term = by_spelling[re.sub(r"\s", " ", found[1]).lower()]
            if term in left:
                left.remove(term)
                pieces += [nodes.Text(rest[place : found.start()]), link(found[0], address(slug(term)), known[term])]
                place = found.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(rest[place:])])


def link(words: str, address: str, card: str) -> nodes.raw:
    markup = f'<a class="term" href="{html.escape(address)}" data-card="{html.escape(card)}">{html.escape(words)}</a>'
    return nodes.raw("", markup, format="html")


def name_entries(doctree: nodes.document) -> None:
    """Give each entry of the glossary the anchor that the links lead to."""
    for section in doctree.findall(nodes.section):
        if section[0].astext() == HEADING:
            for term in section.findall(nodes.term):
                term["ids"].append(slug(term.astext()))
