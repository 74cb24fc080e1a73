"""The questions at a chapter's end: by mouse and keyboard, kept in this browser alone, readable without JavaScript."""

import html
import json
import re

import pytest

import quiz
from built import set_theme
from test_accessibility import AXE, RUN
from window import assert_sound

CHAPTER = "03_rollouts"
PAGE = f"chapters/{CHAPTER}.html"
QUESTIONS = quiz.load(CHAPTER)
KEY = f"ppo-book/quiz/{CHAPTER}"
KEPT = "Your answers are kept in this browser alone."


def plain(text: str) -> str:
    """What a reader sees of a text."""
    return html.unescape(re.sub("<[^>]+>", "", quiz.words(text)))


def place_of(number: int, right: bool) -> int:
    """Where the right option of a question stands, or its first wrong one."""
    return next(place for place, option in enumerate(QUESTIONS[number].options) if option.right == right)


def radio(page, number: int, place: int):
    return page.locator(".quiz fieldset").nth(number).get_by_role("radio").nth(place)


def reason(page, number: int) -> str:
    return page.locator(".quiz .quiz-reason").nth(number).inner_text()


def count(page) -> str:
    return page.locator(".quiz-count").inner_text()


def answer_all(page, right: int) -> None:
    """The first `right` questions rightly, the others wrongly."""
    for number in range(len(QUESTIONS)):
        radio(page, number, place_of(number, right=number < right)).check()


@pytest.fixture
def window(visit):
    """A chapter whose questions nobody has answered."""
    seen = visit(PAGE)
    yield seen
    seen.page.evaluate("localStorage.clear()")
    assert_sound(seen, PAGE)


@pytest.fixture
def page(window):
    return window.page


def test_every_chapter_asks_its_own_questions_before_its_takeaways(windows, chapter_page):
    page = windows("quizzes", over="file").open(chapter_page).page
    name = chapter_page.removeprefix("chapters/").removesuffix(".html")
    assert page.locator(".quiz").get_attribute("data-chapter") == name
    headings = page.locator("article h2").evaluate_all("all => all.map((h) => h.firstChild.textContent)")
    assert headings[headings.index("Takeaways") - 1] == "Five questions"
    assert page.locator("a[href='#five-questions']").count() >= 1, "the contents of the page leave the questions out"
    asked = page.locator(".quiz legend").all_inner_texts()
    assert asked == [f"{n}. {plain(q.text)}" for n, q in enumerate(quiz.load(name), 1)]


def test_a_choice_is_explained_at_once_and_counted(page):
    assert count(page) == "" and page.get_by_text("The answer to 1, and why").is_hidden()
    wrong, right = place_of(0, right=False), place_of(0, right=True)
    radio(page, 0, wrong).check()
    assert reason(page, 0).startswith("Not right. ")
    assert count(page) == "0 of 5 right"
    radio(page, 0, right).check()
    assert reason(page, 0) == f"Right. {plain(QUESTIONS[0].options[right].because)}", (
        "another reason than that of the choice"
    )
    assert count(page) == "1 of 5 right"
    signs = page.locator(".quiz label[data-verdict]")
    assert signs.count() == 1, "a choice that was taken back keeps its sign"
    sign = "label => getComputedStyle(label, '::after').content[1]"
    assert signs.first.evaluate(sign) == "✓"
    answer_all(page, right=3)
    assert count(page) == "3 of 5 right"


def test_a_click_on_the_words_chooses(page):
    page.locator(".quiz fieldset").nth(1).locator("label span").nth(place_of(1, right=True)).click()
    assert reason(page, 1).startswith("Right. ")


def test_the_keyboard_moves_without_choosing_and_the_space_bar_chooses(page):
    page.evaluate("document.addEventListener('keydown', () => { window.leaked = true; })")
    first = radio(page, 0, 0)
    first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator(".quiz input:checked").count() == 0 and reason(page, 0) == "", "a key on the way gave an answer"
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.matches('.quiz label:nth-of-type(2) input:focus-visible')")
    ring = "getComputedStyle(document.activeElement.parentElement).outlineStyle"
    assert page.evaluate(ring) == "solid", "nothing shows where the keyboard is"
    page.keyboard.press("Space")
    assert radio(page, 0, 1).is_checked()
    assert reason(page, 0).startswith("Right. " if place_of(0, right=True) == 1 else "Not right. ")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "question-2", "one press of Tab is one question"
    assert not page.evaluate("window.leaked"), "a key pressed in the quiz reached the page and may turn the leaf"


def test_questions_choices_and_the_count_have_names_and_are_spoken(page):
    group = page.get_by_role("group", name=f"1. {plain(QUESTIONS[0].text)}")
    assert group.get_by_role("radio").count() == len(QUESTIONS[0].options)
    radio(page, 0, 0).check()
    assert group.get_by_role("status").inner_text() == reason(page, 0)
    assert page.locator(".quiz-count[role=status]").count() == 1


def test_a_reload_keeps_the_answers_and_start_again_forgets_them(page):
    answer_all(page, right=4)
    before = [reason(page, number) for number in range(5)]
    page.reload()
    assert [reason(page, number) for number in range(5)] == before and count(page) == "4 of 5 right"
    assert page.locator(".quiz input:checked").count() == 5 and page.get_by_text(KEPT).is_visible()
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('quiz'))") == [KEY]
    page.get_by_role("button", name="Start again").click()
    assert page.locator(".quiz input:checked").count() == 0 and count(page) == "" and reason(page, 0) == ""
    assert page.evaluate("document.activeElement.name") == "question-1"
    assert page.evaluate(f"localStorage.getItem('{KEY}')") is None
    page.reload()
    assert page.locator(".quiz input:checked").count() == 0


@pytest.mark.parametrize("stored", ["{", "null", "[]", '{"answers": 3}', '{"answers": ["of another edition"]}'])
def test_what_is_stored_of_another_kind_is_no_answer(window, stored):
    page = window.page
    page.evaluate("([key, stored]) => localStorage.setItem(key, stored)", [KEY, stored])
    page.reload()
    assert page.locator(".quiz input:checked").count() == 0 and count(page) == ""
    radio(page, 0, place_of(0, right=True)).check()
    assert count(page) == "1 of 5 right"


def test_the_front_page_tells_which_chapters_are_done(window):
    page = window.page
    radio(page, 0, 0).check()
    index = window.base + "book/index.html"
    page.goto(index)
    assert page.locator(".quiz-done").count() == 0, "a chapter that was begun is shown as done"
    page.goto(window.base + PAGE)
    answer_all(page, right=4)
    page.goto(index)
    done = page.locator(".quiz-done")
    assert done.all_inner_texts() == ["4/5 right"]
    assert CHAPTER in done.locator("xpath=preceding-sibling::a[1]").get_attribute("href")


@pytest.mark.parametrize("closed", ["get", "setItem"])
def test_a_browser_that_keeps_nothing_still_asks(browser, bases, closed):
    """Where storage is switched off, to read the word `localStorage` is an error; where it is full, to write is one."""
    context = browser.new_context()
    throw = "() => { throw new DOMException('closed', 'SecurityError'); }"
    context.add_init_script(
        f"Object.defineProperty(window, 'localStorage', {{ get: {throw} }})"
        if closed == "get"
        else f"Storage.prototype.setItem = {throw}"
    )
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: "quiz.js" in (error.stack or "") and errors.append(error))
    page.goto(bases["http"] + PAGE)
    answer_all(page, right=2)
    assert count(page) == "2 of 5 right" and reason(page, 0).startswith("Right. ")
    assert page.get_by_text("This browser keeps nothing").is_visible()
    page.get_by_role("button", name="Start again").click()
    assert count(page) == ""
    page.goto(bases["http"] + "book/index.html")
    assert not errors
    context.close()


def test_without_javascript_questions_and_answers_can_be_read(browser, bases):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(bases["file"] + PAGE)
    assert page.locator(".quiz legend:visible").count() == 5
    assert page.get_by_role("button", name="Start again").count() == 0
    for number, question in enumerate(QUESTIONS):
        answers = page.locator(".quiz details").nth(number)
        assert not answers.locator("li").first.is_visible(), "the answer is given before anybody asks for it"
        answers.locator("summary").click()
        told = answers.locator("li").all_inner_texts()
        assert len(told) == len(question.options)
        for option, text in zip(question.options, told, strict=True):
            assert text.startswith("Right: " if option.right else "Wrong: ")
            assert plain(option.because) in text
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_axe_finds_nothing(visit, theme):
    seen = visit(PAGE, theme=theme, width=390)
    page = seen.page
    answer_all(page, right=2)
    set_theme(page, theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in page.locator(".quiz label, .quiz .quiz-reason").all():
        box = part.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24
    page.add_script_tag(path=str(AXE))
    run = RUN.replace("article.bd-article, .bd-search-container", ".quiz")
    violations = page.evaluate(run, [[], None])
    assert not violations, "; ".join(violations)
    assert_sound(seen, PAGE)


def test_what_is_stored_is_small_and_holds_no_text(page):
    answer_all(page, right=5)
    stored = json.loads(page.evaluate(f"localStorage.getItem('{KEY}')"))
    marks = [quiz.mark(q.text, next(o.text for o in q.options if o.right)) for q in QUESTIONS]
    assert stored == {"answers": marks, "right": 5, "of": 5}
