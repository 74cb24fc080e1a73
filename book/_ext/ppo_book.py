"""The book's one Sphinx extension.

- Plotly figures are drawn in the reader's browser from data in the page, by a script that the site serves itself.
- `` {src}`ppo_lib/losses.py#policy_loss` `` links to a file of the repository, at the line where a name is defined;
  a file or name that does not exist is a warning, and so fails the build.
- `` {stored}`smollm2_vader/seed0/run.json#heldout_after.mean_score|.2f` `` writes a number of a stored result, so that
  prose cannot differ from it; a number that is not there fails the build in the same way. In a table write `\\|`.
- The directive `{stored-table} sample_efficiency/summary.json#tasks` makes a table of a stored result, a line for each
  column: ``heading | `{arms.ppo.until.90.tokens:,d}` tokens``.
- The directive `{figure-from} ppo_lib.lab.gallery.figure no_kl` shows in a Markdown page the Plotly figure, or the
  widget, that a function of the library returns; words behind its name are its arguments.
- The directive `{house}` draws the rooms of the library as boxes with their files, each a link to its source.
- The directive `{front-page}` draws the loop as a scene that plays a stored run (`scene.py`).
- The directive `{your-run}` draws a log of the reader's beside stored runs and names its symptoms (`your_run.py`).
- Every chapter shows below its title where it stands in the loop (`loop_map.py`).
- Every chapter asks five questions before its takeaways (`quiz.py`).
- Docstrings are prose with `` `code` `` in it: the API pages show them so.
"""

import ast
import html
import importlib
import json
import os
import re
import string
from dataclasses import is_dataclass
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from ipywidgets import DOMWidget
from ipywidgets.embed import embed_data
from myst_nb.core.render import MimeData, MimeRenderPlugin, NbElementRenderer, load_mime_renders
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

import glossary
import loop_map
import quiz
import scene
import your_run
from ppo_lib.config import descriptions
from ppo_lib.lab import stored

LOGGER = logging.getLogger(__name__)
PLOTLY_MIME = "application/vnd.plotly.v1+json"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


def figure_html(figure: dict, warn) -> str:
    """A Plotly figure as HTML: data for `plotly-figures.js`, its text alternative and its caption.

    Both texts come from `layout.meta`, e.g. `fig.update_layout(meta={"alt": "...", "caption": "..."})`. The colours of
    Plotly's own template are dropped, for the script has one for light pages and one for dark ones.
    """
    layout = {key: value for key, value in figure.get("layout", {}).items() if key not in ("template", "meta")}
    meta = figure.get("layout", {}).get("meta") or {}
    alt, caption = meta.get("alt", ""), meta.get("caption", "")
    if not alt or not caption:
        warn("a Plotly figure needs layout.meta with an 'alt' and a 'caption'")
    caption_html = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(caption))
    spec = {"data": figure.get("data", []), "layout": layout, "frames": figure.get("frames", [])}
    spec_json = json.dumps(spec, separators=(",", ":")).replace("</", "<\\/")
    return (
        '<figure class="plotly-figure">'
        f'<div class="plotly-plot" role="group" aria-label="{html.escape(alt, quote=True)}"></div>'
        f'<script type="application/json">{spec_json}</script>'
        f"<figcaption>{caption_html}</figcaption></figure>"
    )


class PlotlyRenderer(MimeRenderPlugin):
    """Turns a cell's Plotly output into a figure of the page."""

    mime_priority_overrides = [("html", PLOTLY_MIME, 0)]

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> list[nodes.Element] | None:
        if data.mime_type in (PLOTLY_MIME, WIDGET_MIME):  # a FigureSlider draws with Plotly too
            # Before require.js (priority 500), which would swallow the script as an anonymous module.
            renderer.add_js_file("plotly", "vendor/plotly.min.js", {"priority": 300})
        if data.mime_type != PLOTLY_MIME:
            return None
        renderer.add_js_file("plotly_figures", "plotly-figures.js", {"priority": 301})
        source = Path(renderer.renderer.document["source"]).name
        content = data.content if isinstance(data.content, dict) else json.loads(data.content)

        def warn(problem: str) -> None:
            LOGGER.warning("%s, cell %s: %s", source, data.cell_index, problem, type="ppo_book", subtype="plotly")

        return [nodes.raw("", figure_html(content, warn), format="html")]


def json_script(kind: str, content: dict) -> str:
    """A script element that holds JSON and runs nothing."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    return f'<script type="application/vnd.jupyter.widget-{kind}+json">{text}</script>'


# Lists, and the front page: no word of the glossary is marked there.
NO_TERMS = {"book/api", "book/bibliography", "book/changelog", "book/index", "book/cheat_sheet"}
FILES = "ppo_files"  # the scripts and style sheets that a page needs, among the page's metadata


def need(env: BuildEnvironment, *files: str) -> None:
    """Have the page that is being read load these scripts and style sheets, each once, in this order."""
    known = env.metadata[env.docname].setdefault(FILES, [])
    known.extend(file for file in files if file not in known)


class FigureFrom(SphinxDirective):
    """The figure or widget that a function returns, in a page that is no notebook. One widget a page."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        path, *arguments = self.arguments[0].split()
        module, _, name = path.rpartition(".")
        shown = getattr(importlib.import_module(module), name)(*arguments)
        is_widget = isinstance(shown, DOMWidget)
        if is_widget and "widgets.js" in self.env.metadata[self.env.docname].get(FILES, []):
            return [self.state.document.reporter.error(f"{path}: a second widget on one page", line=self.lineno)]
        need(self.env, "vendor/plotly.min.js", "widgets.js" if is_widget else "plotly-figures.js")
        return [nodes.raw("", self.widget_html(shown) if is_widget else self.plot_html(shown), format="html")]

    def plot_html(self, figure) -> str:
        def warn(problem: str) -> None:
            LOGGER.warning(problem, location=self.get_location(), type="ppo_book", subtype="plotly")

        return figure_html(json.loads(figure.to_json()), warn)

    @staticmethod
    def widget_html(widget: DOMWidget) -> str:
        data = embed_data(views=[widget], drop_defaults=False)
        (view,) = data["view_specs"]
        return f"<div>{json_script('state', data['manager_state'])}{json_script('view', view)}</div>"


def add_files(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Load in a page the scripts and style sheets that its figures ask for, and in no other page."""
    for priority, file in enumerate((context.get("meta") or {}).get(FILES, []), 300):
        add = app.add_css_file if file.endswith(".css") else app.add_js_file
        add(file, priority=priority)


class FrontPage(SphinxDirective):
    """The loop as a scene of four characters that plays the stored run `front_page`."""

    def run(self) -> list[nodes.Node]:
        need(self.env, "front-page.css", "front-page.js", "quiz.js")
        return [nodes.raw("", scene.figure(scene.content()), format="html")]


class YourRun(SphinxDirective):
    """A place for the reader's own log, beside the stored runs."""

    def run(self) -> list[nodes.Node]:
        page = Path(self.env.doc2path(self.env.docname)).read_text("utf8")
        if lacking := your_run.lacking(page):
            return [self.state.document.reporter.warning(f"no line of the page says {lacking}", line=self.lineno)]
        need(self.env, "vendor/plotly.min.js", "plotly-figures.js", "run-log.js", "your-run.js", "your-run.css")
        return [nodes.raw("", your_run.markup(your_run.content()), format="html")]


def show_where(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """In a chapter, below its title and what it promises: where it stands in the loop."""
    folder, _, chapter = page.rpartition("/")
    if folder != "chapters":
        return
    if chapter not in {box.chapter for box in loop_map.BOXES}:
        return LOGGER.warning("%s has no box in book/_ext/loop_map.py", page, type="ppo_book", subtype="loop_map")

    def link(box: loop_map.Box, kind: str) -> str | None:
        if kind == "code":
            path, _, name = box.code.partition("#")
            line = SourceRole.line_of(name, root() / path)
            if line is None:
                LOGGER.warning("loop_map: no %s", box.code, type="ppo_book", subtype="loop_map")
            return f"{address_of(path, app.config)}#L{line}"
        target = "book/notation" if kind == "equation" else f"chapters/{box.chapter}"
        anchor = f"#{box.equation}" if kind == "equation" else ""
        if target not in app.env.found_docs:
            return None
        address = app.builder.get_relative_uri(page, target)  # of a page to itself it is empty
        return (address or app.builder.get_target_uri(page).rpartition("/")[2]) + anchor

    first = next(doctree.findall(nodes.section))
    at = 2 if isinstance(first[1], nodes.block_quote) else 1
    first.insert(at, nodes.raw("", loop_map.figure(chapter, link), format="html"))


def ask(app: Sphinx, doctree: nodes.document) -> None:
    """In a chapter, before its takeaways, which answer them: a section with its questions."""
    page = app.env.docname
    folder, _, chapter = page.rpartition("/")
    if folder != "chapters":
        return
    sections = {section[0].astext(): section for section in doctree.findall(nodes.section)}
    takeaways = sections.get("Takeaways")
    if takeaways is None or not quiz.path_of(chapter).exists():
        return LOGGER.warning("%s has no takeaways or no questions", page, type="ppo_book", subtype="quiz")
    section = nodes.section("", nodes.title("", "Five questions"), ids=["five-questions"])
    section += nodes.raw("", quiz.markup(chapter, quiz.load(chapter)), format="html")
    takeaways.parent.insert(takeaways.parent.index(takeaways), section)
    app.env.note_dependency(str(quiz.path_of(chapter)))
    need(app.env, "quiz.js")


def explain_terms(app: Sphinx, doctree: nodes.document) -> None:
    """In the text of chapters and pages: the first use of each word of the glossary leads to its entry."""
    page, path = app.env.docname, root() / f"{glossary.PAGE}.md"
    if page == glossary.PAGE:
        return glossary.name_entries(doctree)
    if page in NO_TERMS or glossary.PAGE not in app.env.found_docs:
        return None
    entry_page = app.builder.get_relative_uri(page, glossary.PAGE)
    glossary.mark_terms(doctree, glossary.entries(path), lambda anchor: f"{entry_page}#{anchor}")
    app.env.note_dependency(str(path))
    need(app.env, "glossary.js")
    return None


def address_of(path: str, config) -> str:
    """Where the repository shows a file or a folder of it."""
    options = config.html_theme_options
    kind = "tree" if (root() / path).is_dir() else "blob"
    return f"{options['repository_url']}/{kind}/{options['repository_branch']}/{path}"


def root() -> Path:
    return Path(os.environ["PPO_BOOK_ROOT"])


class SourceRole(SphinxRole):
    """A link to a file of the repository, or to the line of a definition in it."""

    def run(self):
        path, _, name = self.text.partition("#")
        file = root() / path
        line = self.line_of(name, file) if name else 0
        if not file.exists() or line is None:
            message = self.inliner.reporter.warning(f"{self.text}: no such file or definition", line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        address = address_of(path, self.config) + (f"#L{line}" if line else "")
        text = name or path
        return [nodes.reference("", "", nodes.literal(text, text), refuri=address, classes=["source-link"])], []

    @staticmethod
    def line_of(name: str, file: Path) -> int | None:
        """The line where a function, class or method (`Class.method`) is defined, or a name is assigned."""
        if not file.is_file():
            return None
        pattern = re.compile(rf"\s*(def|class)\s+{re.escape(name.split('.')[-1])}\b|{re.escape(name)}\s*[:=]")
        lines = file.read_text("utf8").splitlines()
        return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), None)


class StoredRole(SphinxRole):
    """A number of a stored result, formatted."""

    def run(self):
        try:
            return [nodes.Text(stored_number(self.text))], []
        except (OSError, LookupError, TypeError, ValueError) as error:
            message = self.inliner.reporter.warning(f"stored {self.text}: {error!r}", line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]


def stored_number(text: str) -> str:
    """The number that `file#key.key|format` names in `ppo_lib/lab/stored/`; `file#key / 1e9|format` divides it first.

    A key into a list is a position, as is the first one into a CSV file: `metrics.csv#-1.objective/scores|.2f`.
    """
    what, _, form = text.partition("|")
    file, _, keys = what.partition("#")
    return format(value_at(stored.load(file), keys), form.strip())


def value_at(content, keys: str):
    """What `key.key` leads to in dictionaries and lists; `key.key / 1e9` divides it."""
    keys, _, divisor = keys.partition(" / ")
    for key in keys.split(".") if keys else ():
        content = content[int(key)] if isinstance(content, list) else content[key]
    return content / float(divisor) if divisor else content


class FromRow(string.Formatter):
    """Fills `{key.key / 1e6:.1f}` from a row of a stored result.

    Nothing measured (None or NaN) becomes a dash, settings (a dictionary) become a list of code.
    """

    def get_field(self, name, args, row):
        return value_at(row, name), name

    def format_field(self, value, form):
        if isinstance(value, dict):
            return ", ".join(f"`{name}={setting}`" for name, setting in value.items())
        return "–" if value is None or value != value else super().format_field(value, form)


class StoredTable(SphinxDirective):
    """A table of a stored result, `file#key.key`, whose rows are a list or the values of a dictionary.

    Each line of the content is a column: its heading, a bar, and what stands in it, in which `{key.key:format}` is a
    number of the row, `{key}` its key in the dictionary, and `{label}` what the option `rows` calls it:

        :rows: dense = `reviews`; sparse = `reviews-sparse`
        :where: way = buffer
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = {"rows": directives.unchanged_required, "where": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        try:
            lines = self.lines()
        except (OSError, LookupError, TypeError, ValueError) as error:
            message = f"stored-table {self.arguments[0]}: {error!r}"
            return [self.state.document.reporter.warning(message, line=self.lineno)]
        table = nodes.Element()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, table)
        return table.children

    def lines(self) -> list[str]:
        """The table as Markdown; columns of numbers are aligned to the right."""
        file, _, keys = self.arguments[0].partition("#")
        found = value_at(stored.load(file), keys)
        rows = found if isinstance(found, list) else [{"key": key, "label": key, **row} for key, row in found.items()]
        if "where" in self.options:
            key, wanted = map(str.strip, self.options["where"].split("="))
            rows = [row for row in rows if str(row[key]) == wanted]
        if "rows" in self.options:
            by_key = {row["key"]: row for row in rows}
            pairs = (pair.rpartition(" = ") for pair in self.options["rows"].split(";"))
            names = [(key.strip() or label.strip(), label.strip()) for key, _, label in pairs]
            rows = [by_key[key] | {"label": label} for key, label in names]
        if not rows:
            raise LookupError("no rows")
        columns = [map(str.strip, line.split("|", 1)) for line in self.content if line.strip()]
        headings, cells = zip(*columns, strict=True)
        rule = ["---:" if any(form for _, _, form, _ in string.Formatter().parse(cell)) else "---" for cell in cells]
        filled = [[FromRow().vformat(cell, (), row) for cell in cells] for row in rows]
        filled = [[re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", cell) for cell in line] for line in filled]  # one piece
        return ["| " + " | ".join(line) + " |" for line in (headings, rule, *filled)]


class House(SphinxDirective):
    """The rooms of `ppo_lib`, a line each: folder, a bar, what it is for, a bar, the names of its files in their order.

    A room or file that is not there, or that is left out, is a warning.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        rooms = [[part.strip() for part in line.split("|")] for line in self.content if line.strip()]
        if problems := differences(root(), {folder: files.split() for folder, _, files in rooms}):
            return [self.state.document.reporter.warning("; ".join(problems), line=self.lineno)]
        boxes = "".join(self.box(*room) for room in rooms)
        return [nodes.raw("", f'<div class="house">{boxes}</div>', format="html")]

    def box(self, folder: str, words: str, files: str) -> str:
        links = "".join(self.link(f"{folder}{name}.py", name) for name in files.split())
        title = f'<a href="{address_of(folder, self.config)}"><code>{folder}</code></a>'
        return f"<section><p>{title} {html.escape(words)}</p><ol>{links}</ol></section>"

    def link(self, path: str, name: str) -> str:
        first = (ast.get_docstring(ast.parse((root() / path).read_text("utf8"))) or "").partition("\n")[0]
        words = html.escape(first.replace("`", ""))
        return f'<li><a href="{address_of(path, self.config)}" title="{words}">{name}</a></li>'


def differences(root: Path, rooms: dict[str, list[str]]) -> list[str]:
    """What a plan of the library (folder → files) names that is not there, and what it leaves out, in words."""
    library = root / "ppo_lib"
    folders = [path.parent for path in library.glob("*/__init__.py")]
    there = {"ppo_lib/": library} | {f"ppo_lib/{folder.name}/": folder for folder in folders}
    problems = [f"{folder} is not in the plan" for folder in there.keys() - rooms.keys()]
    for folder, files in rooms.items():
        found = {path.stem for path in there.get(folder, root / "none").glob("*.py")} - {"__init__", "__main__"}
        problems += [f"{folder}{name}.py is not there" for name in sorted(set(files) - found)]
        problems += [f"{folder}{name}.py is not in the plan" for name in sorted(found - set(files))]
    return problems


def fields_as_list(dataclass: type) -> list[str]:
    """A dataclass's fields with the comments behind them, as a list; a field without a comment is explained above."""
    return ["", *(f"- `{name}`: {comment}" for name, comment in descriptions(dataclass).items()), ""]


def docstring_to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Make a docstring safe to read as reStructuredText, in place: `code` is code, a star or a bar is itself.

    Sections such as "Args:" become lists. Attributes have none: their "words: more words" is plain text.
    """
    if what == "class" and is_dataclass(obj):
        lines += fields_as_list(obj)
    for number, line in enumerate(lines):
        pieces = re.split(r"(``[^`]+``|:\w+:`[^`]+`|`[^`]+`)", line)
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                pieces[index] = re.sub(r"([*|])", r"\\\1", re.sub(r"(\w)_(?=\W|$)", r"\1\\_", piece))
            elif not piece.startswith((":", "``")):
                pieces[index] = f"`{piece}`"
        lines[number] = "".join(pieces)
    if what not in ("attribute", "property", "data"):
        lines[:] = GoogleDocstring(lines, what=what, name=name, obj=obj).lines()


def setup(app: Sphinx) -> dict:
    renderers = load_mime_renders()  # a cached list: the way in for a renderer that is not an installed package
    if PlotlyRenderer not in renderers:
        renderers.append(PlotlyRenderer)
    app.add_role("src", SourceRole())
    app.add_directive("figure-from", FigureFrom)
    app.add_directive("stored-table", StoredTable)
    app.add_directive("house", House)
    app.add_directive("front-page", FrontPage)
    app.add_directive("your-run", YourRun)
    app.connect("html-page-context", add_files)
    app.connect("doctree-read", ask, priority=400)  # before Sphinx collects the headings of the page
    app.connect("doctree-resolved", show_where)
    app.connect("doctree-read", explain_terms)
    app.add_role("stored", StoredRole())
    app.connect("autodoc-process-docstring", docstring_to_rst)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
