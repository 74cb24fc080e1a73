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
NAMED = "(input) => Boolean(input.labels?.length || input.ariaLabel || input.getAttribute('aria-labelledby'))"


def sliders(page) -> list:
    """Every slider of a loaded page."""
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


def test_every_slider_changes_its_figure(phone, site_page):
    page = phone.page
    page.evaluate("document.addEventListener('keydown', () => { window.keySeen = true; })")
    for number, slider in enumerate(sliders(page), 1):
        name = slider.get_attribute("id") or slider.get_attribute("aria-label") or ""
        assert page.evaluate(NAMED, slider), f"{site_page}: slider {number} ({name}) has no label"
        assert changes_its_figure(page, slider), f"{site_page}: slider {number} ({name}) changes nothing"
        slider.press("ArrowRight")
        # An arrow key that reaches the page turns the leaf there, and moves the selected cell in a notebook.
        assert not page.evaluate("window.keySeen"), f"{site_page}: slider {number} ({name}) lets its keys through"
    assert not phone.errors, f"{site_page}: moving its sliders caused {phone.errors}"


def test_some_chapter_has_a_slider(windows):
    from built import site_pages

    chapters = [page for page in site_pages() if page.startswith("chapters/")]
    assert any(sliders(windows("visit").open(page).page) for page in chapters), "no chapter has a slider on its page"


def test_a_dead_slider_is_noticed(browser):
    page = browser.new_page()
    page.set_content("<figure><label for=a>A</label><input id=a type=range><output>50</output><p>same</p></figure>")
    assert not changes_its_figure(page, sliders(page)[0])
    page.set_content(
        "<figure><label for=b>B</label><input id=b type=range oninput='p.textContent = value'><p id=p>50</p></figure>"
    )
    assert changes_its_figure(page, sliders(page)[0])
    page.close()
