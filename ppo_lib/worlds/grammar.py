"""The grammar of the `reviews` world: short movie reviews, and how good each word is.

A review has a mood. The mood colours its adjectives, "but" turns it around, and every choice is random:

    Honestly, the plot was rather dull, but the music felt lovely. What a waste.
    `-- opening (the prompt) --'`------------ the rest (the response) ---------'
"""

import itertools
import random
from collections.abc import Sequence

# Valence: how much a word praises (+) or blames (-). The two sides mirror each other, so an average review is neutral.
VALENCE = {
    "brilliant": 1.0, "superb": 1.0, "wonderful": 1.0, "gripping": 0.8, "moving": 0.8, "charming": 0.7, "lovely": 0.7,
    "clever": 0.6, "funny": 0.6, "fresh": 0.5, "good": 0.5, "warm": 0.4, "solid": 0.3, "decent": 0.3,
    "dreadful": -1.0, "dire": -1.0, "terrible": -1.0, "tedious": -0.8, "clumsy": -0.8, "boring": -0.7, "dull": -0.7,
    "silly": -0.6, "messy": -0.6, "stale": -0.5, "bad": -0.5, "cold": -0.4, "weak": -0.3, "slow": -0.3,
    "loved": 0.8, "enjoyed": 0.6, "admired": 0.6, "hated": -0.8, "disliked": -0.6, "endured": -0.6,
    "joy": 0.8, "treat": 0.7, "gem": 0.7, "waste": -0.8, "bore": -0.7, "mess": -0.7,
}  # fmt: skip
INTENSITY = {
    "truly": 1.4, "very": 1.3, "really": 1.3, "deeply": 1.3,
    "quite": 0.9, "rather": 0.8, "fairly": 0.7, "slightly": 0.5,
}  # fmt: skip
NEGATIONS = ("never", "hardly", "not")

ADJECTIVES = list(VALENCE)[:28]
VERBS = ("loved", "enjoyed", "admired", "hated", "disliked", "endured")
VERDICTS = ("joy", "treat", "gem", "waste", "bore", "mess")
SUBJECTS = (
    "film", "plot", "acting", "music", "story", "ending",
    "script", "cast", "dialogue", "pacing", "photography", "opening scene",
)  # fmt: skip
COPULAS = ("was", "felt", "seemed", "is")
NOUNS = ("film", "story", "script", "ending", "picture", "evening")
LEADS = (
    "", "", "Honestly, ", "To be fair, ", "In short, ", "I saw it twice and ", "My sister and I agree: ",
    "For a Sunday evening at home, ", "After all the praise in the papers, ", "As a fan of the book, I must say ",
)  # fmt: skip
PEOPLE = ("I", "We", "My brother", "Everyone in the room", "The critic from our paper")
RARE_FORM = "ten out of ten"
RARE_FORM_RATE = 0.005


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


class _Writer:
    """Writes the parts of one review and says no word of substance twice."""

    def __init__(self, rng: random.Random):
        self.rng, self.mood = rng, rng.choice((1, -1))
        self.used: set[str] = set()

    def pick(self, words: Sequence[str]) -> str:
        word = self.rng.choice([word for word in words if word not in self.used])
        self.used.add(word)
        return word

    def valued(self, words: Sequence[str], sign: int) -> str:
        """A word whose valence has this sign."""
        return self.pick([word for word in words if VALENCE[word] * sign > 0])

    def adjective(self, mood: int) -> str:
        """One adjective; four times in five it fits the mood."""
        return self.valued(ADJECTIVES, mood if self.rng.random() < 0.8 else -mood)

    def phrase(self, mood: int) -> str:
        """An adjective with an intensifier, with a negation, with a companion or alone."""
        draw = self.rng.random()
        if draw < 0.40:
            return f"{self.pick(list(INTENSITY))} {self.adjective(mood)}"
        if draw < 0.50:
            return f"{self.rng.choice(NEGATIONS[:2])} {self.adjective(-mood)}"
        if draw < 0.65:
            return f"{self.adjective(mood)} and {self.adjective(mood)}"
        return self.adjective(mood)

    def clause(self, mood: int) -> str:
        return f"the {self.pick(SUBJECTS)} {self.rng.choice(COPULAS)} {self.phrase(mood)}"

    def opening(self) -> tuple[str, str]:
        """An opening and the kind of words that must follow it: "phrase", "copula", "verb" or "noun"."""
        lead, subject, draw = self.rng.choice(LEADS), self.pick(SUBJECTS), self.rng.random()
        if draw < 0.55:
            return _capital(f"{lead}the {subject} {self.rng.choice(COPULAS)}"), "phrase"
        if draw < 0.75:
            return _capital(f"{lead}the {subject}"), "copula"
        if draw < 0.90:
            return self.rng.choice(PEOPLE), "verb"
        return _capital(f"{lead}this is a"), "noun"

    def predicate(self, follows: str) -> str:
        """What completes the opening."""
        if follows == "phrase":
            return f" {self.phrase(self.mood)}"
        if follows == "copula":
            return f" {self.rng.choice(COPULAS)} {self.phrase(self.mood)}"
        if follows == "verb":
            return f" {self.valued(VERBS, self.mood)} the {self.pick(SUBJECTS)}"
        return f" {self.adjective(self.mood)} {self.pick(NOUNS)}"

    def tail(self) -> str:
        """How the first sentence ends."""
        draw = self.rng.random()
        if draw < 0.25:
            return f", but {self.clause(-self.mood)}."
        if draw < 0.45:
            return f" and {self.clause(self.mood)}."
        return "."

    def closing(self) -> str:
        """The last sentence, or nothing."""
        draw = self.rng.random()
        if draw < RARE_FORM_RATE:
            return f" {RARE_FORM.capitalize()}."
        if draw < 0.20:
            return f" What a {self.valued(VERDICTS, self.mood)}."
        if draw < 0.40:
            return f" I {self.valued(VERBS, self.mood)} the {self.pick(SUBJECTS)}."
        if draw < 0.58:
            return f" {_capital(self.clause(self.mood))}."
        if draw < 0.70:
            return f" A {self.adjective(self.mood)} {self.pick(NOUNS)}{self.rng.choice('.!')}"
        return ""


def review(rng: random.Random) -> tuple[str, str]:
    """One review, cut in two: (opening, rest). The text of the review is their sum."""
    writer = _Writer(rng)
    opening, follows = writer.opening()
    return opening, writer.predicate(follows) + writer.tail() + writer.closing()


def corpus(size: int, seed: int = 0) -> list[str]:
    """`size` reviews as plain text, the same ones for the same seed."""
    rng = random.Random(seed)
    return ["".join(review(rng)) for _ in range(size)]


def openings(size: int, seed: int = 1) -> list[str]:
    """`size` distinct review openings, in random order."""
    rng = random.Random(seed)
    stream = (_Writer(rng).opening()[0] for _ in itertools.count())
    return list(itertools.islice(dict.fromkeys(itertools.islice(stream, 50 * size)), size))


def lexicon() -> frozenset[str]:
    """Every word that the grammar can write, in lower case."""
    fixed = "the but and i a what this is ten out of"
    parts = [*VALENCE, *INTENSITY, *NEGATIONS, *SUBJECTS, *COPULAS, *NOUNS, *LEADS, *PEOPLE, fixed]
    return frozenset(word.strip(".,:!") for part in parts for word in part.lower().split())
