"""Every chapter is committed without outputs, begins with the same cells as the others, and runs from top to bottom."""

import ast
import re

import pytest

import cells
import execute
import toc


def test_every_chapter_is_in_the_table_of_contents():
    written = {f"chapters/{path.stem}" for path in toc.CHAPTERS.glob("*.ipynb")}
    listed = {page for page in toc.pages(toc.read()) if page.startswith("chapters/")}
    assert written == listed, "chapters/ and book/_toc.yml name different chapters"


def test_committed_stripped(chapter, notebook):
    assert notebook == cells.stripped(notebook), f"{chapter.stem} holds outputs or editor's metadata: run `make strip`"


def test_title_has_the_chapters_number(chapter, notebook):
    number = int(chapter.stem[:2])
    title = notebook.cells[0].source.splitlines()[0]
    assert re.match(rf"# {number}\. .*\?$", title), f"{chapter.stem} is titled {title!r}, not '# {number}. A question?'"
    for words in ("Time to read", "time to run", "You need"):
        assert words in notebook.cells[0].source, f"the first cell of {chapter.stem} does not say {words!r}"


def test_setup_cell_is_the_same_everywhere(chapter, notebook):
    first = cells.code(notebook)[0]
    assert "setup" in cells.tags(first), f"the first code cell of {chapter.stem} is not tagged `setup`"
    assert first.source == cells.setup_source(), f"{chapter.stem} has a setup cell of its own: run `make setup`"
    assert cells.repository() in first.source


def run_setup(monkeypatch, url, source=None):
    """The commands that the setup cell of a book at `url` runs where `ppo_lib` is missing."""
    monkeypatch.setattr(cells, "repository", lambda: url)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("PPO_BOOK_SOURCE", raising=False)
    if source:
        monkeypatch.setenv("PPO_BOOK_SOURCE", source)
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    exec(cells.setup_source(), {})
    return commands


def test_an_unpublished_book_installs_nothing_from_an_address_that_nobody_owns(monkeypatch):
    url = f"https://github.com/{cells.UNPUBLISHED}/ppo-book"
    with pytest.raises(RuntimeError, match="not published yet"):
        run_setup(monkeypatch, url)
    (command,) = run_setup(monkeypatch, url, source="a/checkout")
    assert command[-2:] == ["a/checkout", "vaderSentiment"], "the source that the environment names is not used"


def test_a_published_book_installs_from_its_own_address_and_changes_no_package(monkeypatch):
    (command,) = run_setup(monkeypatch, "https://github.com/someone/their-book")
    assert "git+https://github.com/someone/their-book" in command and "--no-deps" in command


def test_parameters_follow_the_setup_cell(chapter, notebook):
    second = cells.code(notebook)[1]
    assert "parameters" in cells.tags(second), f"the second code cell of {chapter.stem} is not tagged `parameters`"
    assigned = {t.id: ast.literal_eval(s.value) for s in ast.parse(second.source).body for t in s.targets}
    assert set(assigned) == {"PROFILE", "SEED"}, f"the parameters of {chapter.stem} are {sorted(assigned)}"
    assert assigned["PROFILE"] == "fast", f"{chapter.stem} does not start in the profile that two cores can run"


def test_every_cell_ran_once_in_order_without_error(chapter, executed):
    ran = [cell for cell in cells.code(executed) if cell.source.strip()]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1)), f"{chapter.stem} ran out of order"
    errors = [output.evalue for cell in ran for output in cell.outputs if output.output_type == "error"]
    assert not errors, f"{chapter.stem} raised {errors}"


def test_nothing_is_printed_to_stderr(chapter, executed):
    outputs = [output for cell in cells.code(executed) for output in cell.outputs]
    noise = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not noise, f"{chapter.stem} shows its reader warnings: {noise}"


def test_every_figure_has_words(chapter, executed):
    outputs = [output for cell in cells.code(executed) for output in cell.outputs]
    figures = [output.data[mime] for output in outputs for mime in output.get("data", {}) if "plotly" in mime]
    for number, figure in enumerate(figures, 1):
        meta = figure.get("layout", {}).get("meta", {})
        assert meta.get("alt") and meta.get("caption"), f"{chapter.stem}: figure {number} has no alt text or no caption"


def test_every_widget_works_without_a_kernel(chapter, executed):
    """Only an anywidget brings its own script; a slider of ipywidgets or a progress bar is dead on the page."""
    states = executed.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    outputs = [output for cell in cells.code(executed) for output in cell.outputs]
    views = [output.data[mime] for output in outputs for mime in output.get("data", {}) if "widget-view" in mime]
    names = [states[view["model_id"]]["model_name"] for view in views]
    dead = [name for name in names if name != "AnyModel"]
    assert not dead, f"{chapter.stem} shows {dead}, which need a kernel"


def test_a_change_of_source_or_parameters_changes_the_key_and_a_touch_does_not(chapter, tmp_path):
    copy = tmp_path / chapter.name
    notebook = cells.read(chapter)
    cells.write(notebook, copy)
    key = execute.key_of(chapter, {})
    assert execute.key_of(copy, {}) == key
    assert execute.key_of(copy, {"PROFILE": "full"}) != key
    cells.code(notebook)[2].source += "\nx = 1"
    cells.write(notebook, copy)
    assert execute.key_of(copy, {}) != key


def test_what_is_left_out_of_the_key_is_read_by_no_chapter(chapter, notebook):
    for name in execute.UNREAD:
        used = [cell.source for cell in notebook.cells if cell.cell_type == "code" and f"{name}/" in cell.source]
        assert not used, f"{chapter} reads stored results of {name}, but is not executed again where they change"
