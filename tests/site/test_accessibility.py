"""axe-core finds no violation in what this book adds to its theme, in light and in dark."""

import toc
from built import set_theme

AXE = toc.ROOT / "node_modules/axe-core/axe.min.js"
# Parts of an article that the theme or a library draws, each with the reason that a violation there is not ours.
EXCLUDED: dict[str, str] = {}
RUN = """async (excluded) => {
  const where = { include: ['article.bd-article'], exclude: excluded.map((selector) => [selector]) };
  const result = await axe.run(where, { resultTypes: ['violations'] });
  const places = (v) => v.nodes.map((node) => node.target.join(' ')).join(', ');
  return result.violations.map((v) => `${v.id}: ${v.help} at ${places(v)}`);
}"""


def test_no_violation_in_light_or_dark(visit, book_page):
    page = visit(book_page).page
    page.add_script_tag(path=str(AXE))
    for theme in ("light", "dark"):
        set_theme(page, theme)
        violations = page.evaluate(RUN, list(EXCLUDED))
        assert not violations, f"{book_page} ({theme}): " + "; ".join(violations)


def test_a_violation_is_noticed(browser):
    page = browser.new_page()
    page.set_content("<article class='bd-article'><img src='data:,'></article>")
    page.add_script_tag(path=str(AXE))
    violations = page.evaluate(RUN, [])
    assert any(violation.startswith("image-alt") for violation in violations)
    page.close()
