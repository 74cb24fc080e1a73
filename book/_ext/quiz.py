"""Five questions at a chapter's end: read from `book/quizzes`, shown as radio buttons that need no kernel.

Each option says why it is right or wrong. All of it is in the page: without JavaScript the reasons unfold, with it
`quiz.js` shows the one that belongs to the reader's choice.
"""

import hashlib
import html
import re
from pathlib import Path
from typing import NamedTuple

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "quizzes"


class Option(NamedTuple):
    text: str
    because: str
    right: bool


class Question(NamedTuple):
    text: str
    options: list[Option]


def path_of(chapter: str) -> Path:
    return FOLDER / f"{chapter}.yml"


def load(chapter: str) -> list[Question]:
    """The questions of a chapter; an option that is neither `right` nor `wrong`, or both, is an error."""
    return [_question(entry) for entry in yaml.safe_load(path_of(chapter).read_text("utf8"))]


def _question(entry: dict) -> Question:
    options = []
    for option in entry["options"]:
        kind = "right" if "right" in option else "wrong"
        if option.keys() != {kind, "because"}:
            raise ValueError(f"an option has `right` or `wrong`, and `because`: {option}")
        options.append(Option(option[kind], option["because"], kind == "right"))
    return Question(entry["question"], options)


def mark(*texts: str) -> str:
    """A name that follows from the texts, so that an answer to a question that was rewritten is not taken for one."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]


def words(text: str) -> str:
    """Plain text as HTML: backticks mark code, asterisks what is stressed, `_` the index of a symbol."""
    text = html.escape(text, quote=False).replace(" = ", "\u00a0=\u00a0")
    for pattern, tag in ((r"`([^`]+)`", "code"), (r"\*([^*]+)\*", "em"), (r"(?<=\b[πs])_(\w+)", "sub")):
        text = re.sub(pattern, rf"<{tag}>\1</{tag}>", text)
    return text


def markup(chapter: str, questions: list[Question]) -> str:
    """The questions as a part of the page. What needs JavaScript is hidden until `quiz.js` shows it."""
    asked = "".join(_fieldset(number, question) for number, question in enumerate(questions, 1))
    return (
        f'<div class="quiz" data-chapter="{chapter}">'
        "<p>One answer to each is right. Decide before you look; every answer, right or wrong, has its reason.</p>"
        f'{asked}<div class="quiz-end" hidden><p class="quiz-count"></p>'
        '<button type="button">Start again</button><p class="quiz-kept"></p></div></div>'
    )


def _fieldset(number: int, question: Question) -> str:
    choices = reasons = ""
    for option in question.options:
        value, verdict = mark(question.text, option.text), "right" if option.right else "wrong"
        choices += (
            f'<label><input type="radio" name="question-{number}" value="{value}" autocomplete="off">'
            f"<span>{words(option.text)}</span></label>"
        )
        reasons += (
            f'<li data-of="{value}" data-verdict="{verdict}"><strong>{verdict.title()}:</strong> '
            f"<q>{words(option.text)}</q> <span>{words(option.because)}</span></li>"
        )
    return (
        f"<fieldset><legend>{number}. {words(question.text)}</legend>{choices}"
        f'<p class="quiz-reason"></p><details><summary>The answer to {number}, and why</summary><ul>{reasons}</ul>'
        "</details></fieldset>"
    )
