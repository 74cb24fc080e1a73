"""The decision guide: every path ends in one answer, by keyboard too, and without JavaScript all answers are there."""

import pytest

PAGE = "book/decision_guide.html"
ANSWERS = ["answer-learning", "answer-idea", "answer-plenty", "answer-scarce-large", "answer-scarce-small"]
PATHS = {
    ("learning",): ANSWERS[:1],
    ("idea",): ANSWERS[1:2],
    ("production",): ANSWERS[2:],
    ("production", "hour"): ANSWERS[2:3],
    ("production", "token"): ANSWERS[2:],
    ("production", "token", "telling"): ANSWERS[2:3],
    ("production", "token", "rare"): ANSWERS[3:],
    ("production", "token", "rare", "large"): ANSWERS[3:4],
    ("production", "token", "rare", "small"): ANSWERS[4:],
}


def shown(page) -> list[str]:
    """The answers that can be seen."""
    return [name for name in ANSWERS if page.locator(f"section:has(> #{name}) > h2, section#{name} > h2").is_visible()]


def assert_shown(page, expected: list[str], why: str = "") -> None:
    """These answers can be seen, once a busy browser has drawn them."""
    for _ in range(50):
        if shown(page) == expected:
            return
        page.wait_for_timeout(100)
    assert shown(page) == expected, why


def said(page) -> str:
    return page.locator(".decision-guide [role=status]").inner_text()


@pytest.fixture(scope="module")
def guide(windows):
    return windows("guide", over="file").open(PAGE)


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_choices_leave_the_answers_that_are_possible(guide, path):
    """Each path begins where `Begin again` of the one before has led."""
    page = guide.page
    assert_shown(page, ANSWERS, "before any choice all answers are there")
    assert said(page) == ""
    for choice in path:
        page.locator(f".decision-guide input[value={choice}]").check()
    assert_shown(page, PATHS[path])
    assert said(page).startswith("The answer: " if len(PATHS[path]) == 1 else f"{len(PATHS[path])} answers are left")
    open_questions = page.locator(".decision-guide fieldset:visible").count()
    assert open_questions == min(len(path) + (len(PATHS[path]) > 1), 4), "a question is missing or too many"
    page.get_by_role("button", name="Begin again").click()
    page.wait_for_function("() => document.querySelectorAll('.decision-guide fieldset[hidden]').length === 3")
    assert_shown(page, ANSWERS)
    assert not guide.errors and not guide.elsewhere, [guide.errors, guide.elsewhere]


def test_the_keyboard_is_enough(visit):
    page = visit(PAGE).page
    page.evaluate("document.addEventListener('keydown', () => { window.leaked = true; })")
    page.locator(".decision-guide input[value=learning]").focus()
    page.keyboard.press("Space")
    assert_shown(page, ANSWERS[:1])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator(".decision-guide input[value=production]").is_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert said(page).startswith("The answer: Production, by the hour")
    assert not page.evaluate("window.leaked"), "a key pressed in the guide reached the page and may turn the leaf"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == f"#{ANSWERS[2]}", "the link to the answer comes next"


def test_every_choice_has_a_name_and_every_question_a_legend(visit):
    page = visit(PAGE).page
    page.locator(".decision-guide input[value=production]").check()
    page.locator(".decision-guide input[value=token]").check()
    page.locator(".decision-guide input[value=rare]").check()
    names = page.locator(".decision-guide").aria_snapshot()
    for group in ("What are you after?", "You pay …", "The reward …", "The GPU has …"):
        assert f'group "{group}"' in names
    assert page.get_by_role("radio").count() == 9
    assert page.get_by_role("radio", name="more than 16 GB").is_visible()


def test_a_link_to_a_hidden_answer_shows_it(visit):
    page = visit(PAGE).page
    page.locator(".decision-guide input[value=idea]").check()
    page.evaluate(f"location.hash = '{ANSWERS[0]}'")
    page.wait_for_function("() => !document.querySelector('.decision-guide input:checked')")
    assert shown(page) == ANSWERS


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(visit, theme):
    page = visit(PAGE, theme=theme, width=390).page
    page.locator(".decision-guide input[value=production]").check()
    page.locator(".decision-guide input[value=token]").check()
    page.locator(".decision-guide input[value=rare]").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for label in page.locator(".decision-guide label").all():
        box = label.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 32


def test_without_javascript_every_answer_can_be_read(browser, bases):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(bases["file"] + PAGE)
    assert shown(page) == ANSWERS and not page.locator(".decision-guide").is_visible()
    context.close()
