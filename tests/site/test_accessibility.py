"""axe-core finds no violation in what this book adds to its theme, in light and in dark."""

import pytest
import toc

AXE = toc.ROOT / "node_modules/axe-core/axe.min.js"
RUN = """async () => {
  const result = await axe.run({ include: ['article.bd-article'], exclude: EXCLUDED }, { resultTypes: ['violations'] });
  return result.violations.map((v) => v.id + ': ' + v.help + ' — ' + v.nodes.map((n) => n.target.join(' ')).join(', '));
}"""
# Parts of the article that the theme or a library draws, each with the reason that a violation there is not ours.
EXCLUDED: dict[str, str] = {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_violation(visit, site_page, theme):
    page = visit(site_page, theme=theme).page
    page.add_script_tag(path=str(AXE))
    selectors = str([[selector] for selector in EXCLUDED])
    violations = page.evaluate(RUN.replace("EXCLUDED", selectors))
    assert not violations, f"{site_page} ({theme}): " + "; ".join(violations)


def test_a_violation_is_noticed(browser):
    page = browser.new_page()
    page.set_content("<article class='bd-article'><img src='data:,'></article>")
    page.add_script_tag(path=str(AXE))
    violations = page.evaluate(RUN.replace("EXCLUDED", "[]"))
    assert any(violation.startswith("image-alt") for violation in violations)
    page.close()
