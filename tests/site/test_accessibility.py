"""axe-core finds no violation in what this book adds to its theme, in light and in dark."""

import toc
from built import set_theme

AXE = toc.ROOT / "node_modules/axe-core/axe.min.js"
# Parts of an article that the theme or a library draws, each with the reason that a violation there is not ours.
EXCLUDED = {"th:has(mjx-container)": "axe takes a header for empty when it is a formula, for it does not read MathML"}
# What can differ between the themes; the rest is checked once.
COLOUR_RULES = ["color-contrast", "link-in-text-block"]
RUN = """async ([excluded, rules]) => {
  const exclude = excluded.map((selector) => [selector]);
  const where = { include: ['article.bd-article, .bd-search-container'], exclude };
  const options = { resultTypes: ['violations'], preload: false, ...(rules && { runOnly: rules }) };
  const result = await axe.run(where, options);
  const places = (v) => v.nodes.map((node) => node.target.join(' ')).join(', ');
  return result.violations.map((v) => `${v.id}: ${v.help} at ${places(v)}`);
}"""


# Code on a page is thousands of coloured words. Their colours follow from their classes and those of all around them,
# so axe looks at one word of each kind; the others stay as plain text.
ONE_WORD_OF_EACH_KIND = """() => {
  const seen = new Set();
  const kind = (part) => part.matches('article') ? '' : `${part.className}|${kind(part.parentElement)}`;
  for (const word of document.querySelectorAll('article.bd-article .highlight pre span:not([style])'))
    if (seen.has(kind(word))) word.replaceWith(...word.childNodes);
    else seen.add(kind(word));
}"""


def test_no_violation_in_light_or_dark(desktop, site_page):
    page = desktop.page
    page.add_script_tag(path=str(AXE))
    page.evaluate(ONE_WORD_OF_EACH_KIND)
    for theme, rules in (("light", None), ("dark", COLOUR_RULES)):
        set_theme(page, theme)
        violations = page.evaluate(RUN, [list(EXCLUDED), rules])
        assert not violations, f"{site_page} ({theme}): " + "; ".join(violations)


def test_a_violation_is_noticed(browser):
    page = browser.new_page()
    pale = "<p style='color:#eee;background:#fff'>pale</p>"
    page.set_content(f"<article class='bd-article'><img src='data:,'>{pale}</article>")
    page.add_script_tag(path=str(AXE))
    for rule, rules in (("image-alt", None), ("color-contrast", COLOUR_RULES)):
        violations = page.evaluate(RUN, [[], rules])
        assert any(violation.startswith(rule) for violation in violations), f"{rule} goes unnoticed: {violations}"
    words = "<span class=dark>word</span> <span class=pale>word</span> " * 3
    code = f"<style>.pale {{ color: #eee }}</style><div class=highlight><pre>{words}</pre></div>"
    page.set_content(f"<article class='bd-article'>{code}</article>")
    page.add_script_tag(path=str(AXE))
    page.evaluate(ONE_WORD_OF_EACH_KIND)
    (violation,) = page.evaluate(RUN, [[], COLOUR_RULES])
    assert violation.startswith("color-contrast") and violation.endswith("at .pale"), violation
    page.close()
