"""No page shows its source: every role, directive, table, formula and reference has become what it stands for."""

import re

import pytest
from bs4 import BeautifulSoup

from built import HTML

# What shows itself as it was typed, in text that is neither code nor a formula.
RAW = {
    "role": r"\{[a-z][\w:+.-]*\}`|(?<![\w`]):[a-z][\w:+.-]*:`",
    "directive": r"`{3,}|:{3,}|\{[a-z][\w-]*\}\s*$|^\s*\.\. [\w-]+::",
    "backtick": r"`",
    "formula": r"\$\$|\$[^\s$](?:[^$\n]*[^\s$])?\$|\\\(|\\\[|\\begin\{",
    "table": r"^\s*\|.*\|",
    "rule of a table": r"\|?\s*:?-{3,}:?\s*\|",
    "emphasis": r"\*\*[^\s*](?:[^*]*[^\s*])?\*\*",
    "link": r"\]\(\S|\]\[\S|<(?:https?:|project:)",
    "reference": r"\?\?|\[\?\]",
    "substitution": r"\{\{|\}\}",
    "heading": r"^\s*#{1,6} \S",
}
LITERAL = "code, pre, script, style, noscript, template, textarea, .math, mjx-container, svg"
BLOCKS = "p li td th dt dd h1 h2 h3 h4 h5 figcaption caption summary blockquote".split()
SAID = ["alt", "title", "aria-label"]


def raw_markup(html: str) -> list[str]:
    """What of a page's text, and of the attributes that are read aloud, still is source: kind and place."""
    page = BeautifulSoup(html, "html.parser")
    for literal in page.select(LITERAL):
        literal.replace_with("␣")
    for block in page.find_all(BLOCKS):
        block.append("\n")
    lines = page.get_text().split("\n")
    lines += [element[name] for name in SAID for element in page.find_all(attrs={name: True})]
    found = []
    for kind, pattern in RAW.items():
        for line in lines:
            if seen := re.search(pattern, line.rstrip()):
                start = max(0, seen.start() - 30)
                found.append(f"{kind}: {line[start : seen.end() + 50].strip()!r}")
    return found


def test_no_page_shows_its_source(site_page):
    found = raw_markup((HTML / site_page).read_text("utf8"))
    assert not found, f"{site_page}: {found}"


@pytest.mark.parametrize(
    ("kind", "html"),
    [
        ("role", "<td><p>It is {stored}`a/b.json#c.d</p></td>"),
        ("role", "<p>see {doc}`faq`</p>"),
        ("role", "<p>see {py:class}`x.y`</p>"),
        ("role", "<p>see :ref:`x`</p>"),
        ("role", "<figure><img alt='as {cite}`a2020b` says'></figure>"),
        ("directive", "<p>:::{note}</p>"),
        ("directive", "<p>```{figure} a.png</p>"),
        ("directive", "<p>.. note::</p>"),
        ("backtick", "<li>the setting `lam</li>"),
        ("formula", "<p>where $x_t$ is</p>"),
        ("formula", "<p>$$x$$</p>"),
        ("table", "<p>| a | b |\n|---|---|\n| 1 | 2 |</p>"),
        ("rule of a table", "<p>|---|---|</p>"),
        ("emphasis", "<p>this is **bold**</p>"),
        ("link", "<p>see [here](there.html)</p>"),
        ("reference", "<p>in figure ??</p>"),
        ("substitution", "<p>it is {{ number }}</p>"),
        ("heading", "<p>## Takeaways</p>"),
    ],
)
def test_source_on_a_page_is_noticed(kind, html):
    assert any(found.startswith(kind) for found in raw_markup(f"<html><body>{html}</body></html>"))


def test_what_only_looks_like_source_is_not():
    plain = "<p>a set {1, 2}, P(a | s), 3 * 4 * 5 of <code>{doc}`faq`</code>, 5:30, $5 or $6 a day; really?</p>"
    shown = "<pre>| a | b |\n## no heading ** `</pre><span class='math'>$x$ \\(y\\)</span>"
    assert not raw_markup(plain + shown)
