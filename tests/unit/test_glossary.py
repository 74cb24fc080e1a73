"""Words of the glossary in the text of a page: which are marked, where, and what their card says."""

import re

import pytest
from docutils import nodes
from docutils.core import publish_doctree

import glossary
import toc

ENTRIES = glossary.entries(toc.ROOT / "book/notation.md")


def marked(text: str, known=None) -> list[str]:
    """The words of a page that become links, in their order."""
    doctree = publish_doctree(text)
    glossary.mark_terms(doctree, known or ENTRIES, lambda anchor: f"notation.html#{anchor}")
    return re.findall(r">([^<]+)</a>", "".join(raw.astext() for raw in doctree.findall(nodes.raw)))


def test_every_entry_is_read_and_its_card_is_plain_text():
    page = (toc.ROOT / "book/notation.md").read_text("utf8").partition("## Glossary\n")[2]
    assert len(ENTRIES) == page.count("\n: ") > 50, "an entry of the glossary is not read"
    odd = {
        term: card for term, card in ENTRIES.items() if re.search(r"[$\\`{}]|\*", card) or not card.endswith((".", ":"))
    }
    assert not odd, f"markup is left on these cards, or the text is cut: {odd}"
    assert ENTRIES["KL divergence"].startswith("Distance-like measure") and "KL(π ‖ π_ref)" in ENTRIES["KL divergence"]


def test_what_is_never_marked_is_in_the_glossary():
    assert glossary.UNMARKED <= ENTRIES.keys(), f"no entry: {glossary.UNMARKED - ENTRIES.keys()}"


def test_the_first_of_each_word_is_marked_however_it_is_written():
    assert marked("The critic, two critics. Critics err.") == ["critic"]
    assert marked("Advantages come first, an advantage later.") == ["Advantages"]
    assert marked("Two nats, and GAE.") == ["nats", "GAE"]
    assert marked("It is held-out prompts\nthat count.") == ["held-out prompts"], "a line break within a word"


@pytest.mark.parametrize("text", ["natural", "off-policy-like", "gae", "a critical point", "micro-batched"])
def test_a_word_within_another_is_left(text):
    assert not marked(f"Here is {text}."), text


def test_code_titles_links_and_tables_are_left():
    assert not marked(
        "The critic\n==========\n\n``critic``, `critic <https://example.org>`_\n\n====== =\ncritic a\n====== =\n"
    )


def test_longer_words_come_first():
    assert marked("An importance ratio and a clip fraction.") == ["importance ratio", "clip fraction"]


def test_what_stands_between_two_words_is_kept():
    doctree = publish_doctree("Before a critic and after a rollout, the end.")
    glossary.mark_terms(doctree, ENTRIES, lambda anchor: f"notation.html#{anchor}")
    (paragraph,) = doctree.findall(nodes.paragraph)
    seen = "".join(re.sub("<[^>]+>", "", part.astext()) for part in paragraph.children)
    assert seen == "Before a critic and after a rollout, the end.", f"the sentence became {seen!r}"
