"""The front page: the stored run plays, pauses and steps, by keyboard too, without motion where none is wanted."""

import pytest
from bs4 import BeautifulSoup

from built import HTML
from ppo_lib.lab import stored
from window import Window, assert_sound

PAGE = "book/index.html"
PACE = 450  # milliseconds an update, as in front-page.js
MEANS = stored.load("front_page/updates.csv")
ROWS = stored.load("front_page/responses.csv")
SHOWN = stored.load("front_page/run.json")["shown"]
LAST = len(MEANS) - 1
CHARACTERS = ("policy", "reward", "critic", "reference")


def number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def expected(update: int, prompt: str) -> dict:
    row = next(row for row in ROWS if (row["update"], row["prompt"]) == (update, prompt))
    return {
        "text": prompt + row["response"],
        "scores": [number(row["score"])] * 2,
        "guess": number(row["guess"]),
        "mean": number(MEANS[update]["score"]),
        "kl": [number(MEANS[update]["kl"], 1)] * 2,
        "at": str(update),
    }


def seen(page) -> dict:
    """What the scene shows now."""

    def show(name: str) -> list[str]:
        return page.locator(f".scene [data-show={name}]").all_text_contents()

    return {
        "text": page.locator(".scene .now .text > span:first-child").text_content(),
        "scores": [page.locator(".scene .now .score b").text_content(), *show("score")],
        "guess": show("guess")[0],
        "mean": show("mean")[0],
        "kl": show("kl"),
        "at": page.locator(".scene input").input_value(),
    }


@pytest.fixture(scope="module")
def window(browser, bases):
    """The page with motion, and with a clock that stands still until a test moves it on."""
    window = Window(browser, bases["file"])
    window.page.emulate_media(reduced_motion="no-preference")
    window.open(PAGE).page.clock.install(time=0)
    window.page.clock.pause_at(3_600_000)
    yield window
    assert_sound(window, PAGE)
    window.context.close()


@pytest.fixture
def page(window):
    """The scene as it is when the page has loaded: at the end of the run, with the first prompt."""
    page = window.page
    page.locator(".scene select").select_option(SHOWN[0])
    page.locator(".scene input").fill(str(LAST))
    assert seen(page) == expected(LAST, SHOWN[0]), "the scene does not show the stored end"
    return page


def test_train_plays_the_stored_run_and_can_be_paused(page):
    play = page.locator(".scene .play")
    assert play.text_content() == "Train"
    play.click()
    assert play.text_content() == "Pause" and seen(page) == expected(0, SHOWN[0])
    for update in range(1, 13):
        page.clock.run_for(PACE)
        assert seen(page) == expected(update, SHOWN[0]), f"update {update} is not what was stored"
    play.click()
    assert play.text_content() == "Go on"
    page.clock.run_for(5 * PACE)
    assert seen(page) == expected(12, SHOWN[0]), "paused, it went on"
    assert page.locator(".scene .said").text_content().startswith("Update 12 of 30: ")
    page.get_by_role("button", name="Step").click()
    assert seen(page) == expected(13, SHOWN[0])
    play.click()
    page.clock.run_for(20 * PACE)
    assert seen(page) == expected(LAST, SHOWN[0]) and play.text_content() == "Train"
    assert page.locator(".scene .said").text_content().startswith(f"Update {LAST} of {LAST}: ")
    page.get_by_role("button", name="Step").click()
    assert seen(page) == expected(0, SHOWN[0]), "behind the end it begins again"


def test_the_picture_moves_with_the_run(page):
    """The reward's mouth, the tie to the reference and the dot on the curve."""
    look = "() => ['mood', 'slack', 'at', 'height'].map((n) => Number(figure.style.getPropertyValue('--' + n)))"
    read = f"() => {{ const figure = document.querySelector('.scene'); return ({look})(); }}"
    mood, slack, at, height = page.evaluate(read)
    page.locator(".scene input").fill("0")
    sad, loose, begin, low = page.evaluate(read)
    assert sad < 0 < mood, "the reward's mouth does not follow the score"
    assert loose > 0.99 > slack > 0, "the tie does not follow the KL"
    assert (begin, at) == (0, 1) and low < height, "the dot does not follow the curve"
    assert page.locator(".scene .now .new").count() > 0, "no word is marked as new"


def test_another_prompt_shows_its_own_run(page):
    page.get_by_label("Prompt").select_option(SHOWN[2])
    assert seen(page) == expected(LAST, SHOWN[2])
    first = expected(0, SHOWN[2])
    assert page.locator(".scene .before .text > span:first-child").text_content() == first["text"]
    assert page.locator(".scene .before .score b").text_content() == first["scores"][0]


def test_the_keyboard_is_enough(page):
    page.evaluate("window.leaked = 0; document.addEventListener('keydown', () => { window.leaked += 1; })")
    page.locator(".scene select").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.clock.run_for(3 * PACE)
    page.keyboard.press("Space")
    assert seen(page) == expected(3, SHOWN[0])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert seen(page) == expected(4, SHOWN[0])
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert seen(page) == expected(2, SHOWN[0])
    assert page.locator(".scene input").get_attribute("aria-valuetext") == "2 of 30"
    assert page.evaluate("window.leaked") == 0, "a key pressed in the scene reached the page and may turn the leaf"
    names = page.locator(".scene").aria_snapshot()
    for part in ('group "The loop of PPO"', 'combobox "Prompt"', 'button "Go on"', 'button "Step"', 'slider "Update"'):
        assert part in names
    assert 'img "Curve of the mean score over 30 updates: from −0.07 to 1.56"' in names


# Every state of the scene, by the height that it gives the page and by what sticks out.
STATES = """() => {
  const scene = document.querySelector('.scene');
  const [range, list] = ['input', 'select'].map((name) => scene.querySelector(name));
  const heights = new Set(), wide = new Set();
  for (const prompt of [...list.options].map((option) => option.value)) {
    list.value = prompt;
    list.dispatchEvent(new Event('change'));
    for (let update = 0; update <= range.max; update += 1) {
      range.value = update;
      range.dispatchEvent(new Event('input'));
      const parts = [...scene.querySelectorAll('.paper, .learn, .who, .answer')];
      heights.add(parts.map((part) => Math.round(part.getBoundingClientRect().height)).join());
      for (const part of parts)
        if (part.scrollWidth > part.clientWidth + 1) wide.add(`${part.className} at ${update}`);
    }
  }
  return { heights: [...heights], wide: [...wide], page: document.documentElement.scrollWidth };
}"""


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_nothing_jumps_and_nothing_sticks_out(visit, width, theme):
    opened = visit(PAGE, width=width, theme=theme)
    found = opened.page.evaluate(STATES)
    assert len(found["heights"]) == 1, f"the page moves while the run plays: {found['heights']}"
    assert not found["wide"] and found["page"] <= width
    sizes = "() => [...document.querySelectorAll('.scene *')].map((e) => parseFloat(getComputedStyle(e).fontSize))"
    assert min(opened.page.evaluate(sizes)) >= 11
    for button in opened.page.locator(".scene :is(button, select, input)").all():
        assert button.bounding_box()["height"] >= 24
    assert_sound(opened, PAGE)


def test_without_motion_train_goes_in_steps(visit):
    page = visit(PAGE).page
    assert page.locator(".scene .calm").is_visible()
    play = page.locator(".scene .play")
    for update in (0, 5, 10):
        play.click()
        assert seen(page) == expected(update, SHOWN[0]), "Train does not go in steps"
    page.wait_for_timeout(2 * PACE)
    assert seen(page) == expected(10, SHOWN[0]) and play.text_content() == "Go on", "it moves by itself"
    moving = "document.querySelector('.scene .step').click(), document.getAnimations().length"
    assert page.evaluate(moving) == 0, "something moves for a reader who asked for no motion"


def test_without_javascript_the_scene_says_the_same(browser, bases):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(bases["file"] + PAGE)
    shown = seen(page)
    assert shown == expected(LAST, SHOWN[0])
    assert page.locator(".scene .before .text > span:first-child").is_visible()
    for name in CHARACTERS:
        assert page.locator(f".scene .{name} p").first.is_visible()
    assert not page.locator(".scene .play").is_visible(), "a button that does nothing"
    context.close()


def test_the_scene_comes_first_and_versions_and_installation_last():
    article = BeautifulSoup((HTML / PAGE).read_text("utf8"), "html.parser").select_one("article")
    text = article.get_text()
    parts = ("Before training", "The chapters", "10. Why", "make book", "ppo_lib.ppo_v1")
    order = [text.index(words) for words in parts]
    assert order == sorted(order)
    for name, chapter in zip(CHARACTERS, ("01_text", "02_rew", "04_adv", "03_roll"), strict=True):
        assert article.select_one(f".{name} a")["href"].startswith(f"../chapters/{chapter}")
