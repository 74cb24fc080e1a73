"""Moving any slider changes what it is there to change, on the static page, with no kernel behind it."""

# The slider's figure: the nearest element that holds more than the control itself. What the control says of its own
# value (the input, its label, an <output>) does not count as a change.
SNAPSHOT = """(input) => {
  const owner = input.closest('.jupyter-widgets') || input.closest('figure') || input.closest('.cell_output');
  const copy = owner.cloneNode(true);
  copy.querySelectorAll('input, output, label, .value').forEach((part) => part.remove());
  const pictures = [...owner.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL());
  return copy.innerHTML + pictures.join();
}"""
MOVE = """([input, value]) => {
  input.value = value;
  for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, { bubbles: true }));
}"""
NAMED = """(input) => Boolean(input.labels?.length || input.getAttribute('aria-label') || input.getAttribute('aria-labelledby'))"""


def sliders(page) -> list:
    return page.query_selector_all("input[type=range]")


def changes_its_figure(page, slider) -> bool:
    """Move a slider to each end; True when its figure differs from before at either of them."""
    before = page.evaluate(SNAPSHOT, slider)
    low, high = slider.get_attribute("min") or "0", slider.get_attribute("max") or "100"
    for end in (high, low):
        page.evaluate(MOVE, [slider, end])
        for _ in range(20):
            if page.evaluate(SNAPSHOT, slider) != before:
                return True
            page.wait_for_timeout(100)
    return False


def test_every_slider_changes_its_figure(visit, site_page):
    seen = visit(site_page, over="file")
    for number, slider in enumerate(sliders(seen.page), 1):
        name = slider.get_attribute("id") or slider.get_attribute("aria-label") or ""
        assert seen.page.evaluate(NAMED, slider), f"{site_page}: slider {number} ({name}) has no label"
        assert changes_its_figure(seen.page, slider), f"{site_page}: slider {number} ({name}) changes nothing"
    assert not seen.errors, f"{site_page}: moving its sliders caused {seen.errors}"


def test_some_chapter_has_a_slider(visit):
    from conftest import site_pages

    chapters = [page for page in site_pages() if page.startswith("chapters/")]
    assert any(sliders(visit(page).page) for page in chapters), "no chapter has a slider on its page"


def test_a_dead_slider_is_noticed(browser):
    page = browser.new_page()
    page.set_content("<figure><label for=a>A</label><input id=a type=range><output>50</output><p>same</p></figure>")
    assert not changes_its_figure(page, sliders(page)[0])
    page.set_content(
        "<figure><label for=b>B</label><input id=b type=range oninput='p.textContent = value'><p id=p>50</p></figure>"
    )
    assert changes_its_figure(page, sliders(page)[0])
    page.close()


def test_a_widget_keeps_its_keys_to_itself(visit, chapter_page):
    """Arrow keys on a slider must not reach the page, where they would turn the leaf or move a notebook's selection."""
    page = visit(chapter_page).page
    page.evaluate("document.addEventListener('keydown', () => { window.keysSeen = (window.keysSeen || 0) + 1; })")
    for slider in sliders(page):
        slider.focus()
        page.keyboard.press("ArrowRight")
    assert not page.evaluate("window.keysSeen"), f"{chapter_page}: a slider lets arrow keys through to the page"
