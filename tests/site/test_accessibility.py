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


def test_no_violation_in_light_or_dark(desktop, site_page):
    page = desktop.page
    page.add_script_tag(path=str(AXE))
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
    page.close()
