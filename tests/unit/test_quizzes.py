"""The quizzes keep their word: five questions a chapter, one right answer each, none given away by place or length."""

import re
from collections import Counter

import pytest
import torch

import quiz
import toc
from ppo_lib.estimators import gae, masked_mean
from ppo_lib.importance import effective_sample_size
from ppo_lib.lab.efficiency import cost_until, first_held
from ppo_lib.ppo_v1 import PPOTrainer

CHAPTERS = [path.stem for path in toc.chapters(toc.read())]
QUIZZES = {chapter: quiz.load(chapter) for chapter in CHAPTERS}
QUESTIONS = [question for questions in QUIZZES.values() for question in questions]


def right(question: quiz.Question) -> quiz.Option:
    return next(option for option in question.options if option.right)


def test_every_chapter_has_its_file_and_no_other_is_there():
    assert sorted(path.stem for path in quiz.FOLDER.iterdir()) == CHAPTERS


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_five_questions_with_one_right_answer_and_a_reason_for_each(chapter):
    questions = QUIZZES[chapter]
    assert len(questions) == 5
    for question in questions:
        assert question.text.strip(), f"{chapter}: a question without words"
        assert 3 <= len(question.options) <= 4, f"{chapter}: {question.text} has {len(question.options)} options"
        assert sum(option.right for option in question.options) == 1, (
            f"{chapter}: not one right answer: {question.text}"
        )
        for option in question.options:
            assert isinstance(option.text, str) and option.text.strip(), f"{chapter}: {option.text!r} is no text"
            assert len(option.because.split()) >= 5, f"{chapter}: {option.text!r} is not explained"


def test_nothing_is_said_twice():
    asked = Counter(question.text for question in QUESTIONS)
    reasons = Counter(option.because for question in QUESTIONS for option in question.options)
    marks = Counter(quiz.mark(question.text, option.text) for question in QUESTIONS for option in question.options)
    twice = [text for said in (asked, reasons, marks) for text, count in said.items() if count > 1]
    assert not twice, f"said twice: {twice}"


def test_the_place_does_not_give_the_answer_away():
    places = {chapter: [q.options.index(right(q)) for q in questions] for chapter, questions in QUIZZES.items()}
    for chapter, of_chapter in places.items():
        assert len(set(of_chapter)) >= 3, f"{chapter}: the right answers stand at {of_chapter}"
    count = Counter(place for of_chapter in places.values() for place in of_chapter)
    assert min(count[place] for place in range(4)) >= 10, f"the right answers stand at {count}"
    assert max(count.values()) <= 20, f"the right answers stand at {count}"


def test_the_length_does_not_give_the_answer_away():
    longest = [max(q.options, key=lambda option: len(option.text)).right for q in QUESTIONS]
    assert sum(longest) <= 20, f"the right answer is the longest in {sum(longest)} of {len(QUESTIONS)} questions"
    shortest = [min(q.options, key=lambda option: len(option.text)).right for q in QUESTIONS]
    assert sum(shortest) <= 25, f"the right answer is the shortest in {sum(shortest)} of {len(QUESTIONS)} questions"


@pytest.mark.parametrize("option", [{"right": "a"}, {"because": "b"}, {"right": "a", "wrong": "a", "because": "b"}])
def test_an_option_that_is_not_whole_is_refused(option, tmp_path, monkeypatch):
    monkeypatch.setattr(quiz, "FOLDER", tmp_path)
    (tmp_path / "01.yml").write_text(quiz.yaml.safe_dump([{"question": "Why?", "options": [option]}]))
    with pytest.raises(ValueError, match="`right` or `wrong`, and `because`"):
        quiz.load("01")


def test_words_are_text_before_they_are_markup():
    assert quiz.words('`open("w")` *is* <b> & 3') == '<code>open("w")</code> <em>is</em> &lt;b&gt; &amp; 3'
    assert quiz.words("log π_ref, V(s_t) and `max_reuse`") == (
        "log π<sub>ref</sub>, V(s<sub>t</sub>) and <code>max_reuse</code>"
    )
    assert quiz.words("ε = 2") == "ε\u00a0=\u00a02", "a line may end within an equation"


def mean_of_four_tokens() -> float:
    x = torch.tensor([[-1.0, -2.0, -3.0], [-6.0, 0.0, 0.0]])
    return masked_mean(x, torch.tensor([[True, True, True], [True, False, False]])).item()


def td_error() -> float:
    mask = torch.ones(1, 2, dtype=torch.bool)
    values = torch.tensor([[0.2, 0.3, 0.0]])
    return gae(torch.zeros(1, 2), values, mask, mask[:, 0], lam=0.0)[0][0, 0].item()


def rise_of_beta() -> float:
    trainer = PPOTrainer(kl_coef=1.0, kl_target=6.0, kl_horizon=64, batch_size=32, minibatch_size=32)
    trainer.adapt_kl(18.0)
    return trainer.kl_coef - 1


def mean_cost() -> float:
    runs = [(0, 1, 1, 1, 1), (0, 0, 1, 1, 1), (0, 0, 1, 0, 1)]
    curves = [[{"tokens": 1000 * at, "objective": value} for at, value in enumerate(run)] for run in runs]
    return sum(cost_until(curve, 0.5)[0] for curve in curves) / 3


NUMBERS = {  # of a right answer → what the library, or the arithmetic, says
    ("01_text_as_decisions", "0.5, 0.2 and 0.1", "0.01"): lambda: 0.5 * 0.2 * 0.1,
    ("03_rollouts", "−1, −2 and −3", "−3"): mean_of_four_tokens,
    ("04_advantages", "TD error", "0.1"): td_error,
    ("07_small_memory", "mean gradient 4", "5"): lambda: (3 * 4 + 1 * 8) / 4,
    ("09_when_to_stop", "adaptive controller", "a tenth"): lambda: 10 * rise_of_beta(),
    ("10_reusing_samples", "weights 3 and 1", "0.8"): lambda: effective_sample_size(torch.tensor([3.0, 1.0])),
    ("12_sample_efficiency_lab", "three evaluations", "evaluation 3"): lambda: first_held(
        [0.5, 1.2, 0.8, 1.0, 1.1, 1.3, 0.9], 1.0
    ),
    ("12_sample_efficiency_lab", "and never", "2,333"): mean_cost,
    ("12_sample_efficiency_lab", "60 %", "a tenth longer"): lambda: 10 * ((0.6 + 4 * 0.4) / 2 - 1),
}
WORDS = {"a tenth": 1.0, "a tenth longer": 1.0, "evaluation 3": 3.0}


@pytest.mark.parametrize("chapter, about, answer", NUMBERS)
def test_a_number_is_what_the_library_computes(chapter, about, answer):
    (question,) = [question for question in QUIZZES[chapter] if about in re.sub(r"\s+", " ", question.text)]
    assert answer in right(question).text
    expected = WORDS.get(answer) or float(answer.replace("−", "-").replace(",", ""))
    assert NUMBERS[chapter, about, answer]() == pytest.approx(expected, rel=1e-3)
