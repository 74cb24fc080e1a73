"""Exercises of chapter 2, rewards."""

import torch

from ppo_lib.lab.exercises.check import Exercise


def _preference_accuracy(chosen, rejected):
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean()


preference_accuracy = Exercise(
    "preference_accuracy",
    solution=_preference_accuracy,
    inputs=[
        (torch.tensor([2.0, 0.5, -1.0, 3.0]), torch.tensor([1.0, 0.0, -2.0, 4.0])),
        (torch.tensor([-2.0, -0.5, 0.0]), torch.tensor([-3.0, -0.5, 1.0])),
        (torch.zeros(4), torch.zeros(4)),
    ],
    mistakes={
        "a tie counts as right: a model that scores everything the same would look perfect.": lambda chosen, rejected: (
            (chosen >= rejected).float().mean()
        ),
        "a tie counts as wrong: it is half right.": lambda chosen, rejected: (chosen > rejected).float().mean(),
        "you counted the pairs that are ranked the wrong way round.": lambda chosen, rejected: _preference_accuracy(
            rejected, chosen
        ),
        "compare with the rejected text, not with 0: a score has no zero of its own.": lambda chosen, rejected: (
            _preference_accuracy(chosen, torch.zeros_like(chosen))
        ),
        "that is the mean probability of the chosen text: count right and wrong.": lambda chosen, rejected: (
            torch.sigmoid(chosen - rejected).mean()
        ),
        "that is the number of right pairs: divide by how many there are.": lambda chosen, rejected: (
            _preference_accuracy(chosen, rejected) * len(chosen)
        ),
        "you compared the means: compare pair by pair, then take the mean.": lambda chosen, rejected: (
            _preference_accuracy(chosen.mean(), rejected.mean())
        ),
    },
)


def _win_probabilities(scores):
    return torch.sigmoid(scores[:, None] - scores[None, :])


win_probabilities = Exercise(
    "win_probabilities",
    solution=_win_probabilities,
    inputs=[(torch.tensor([0.0, 1.0]),), (torch.tensor([2.0, -1.0, 0.5]),), (torch.tensor([100.0, 99.0, -50.0]),)],
    mistakes={
        "rows and columns are swapped: entry (i, j) is the chance that i beats j.": lambda scores: (
            _win_probabilities(scores).T
        ),
        "those are the differences: put them through the sigmoid.": lambda scores: scores[:, None] - scores[None, :],
        "that is exp of the difference, the odds: the probability is odds / (1 + odds).": lambda scores: torch.exp(
            scores[:, None] - scores[None, :]
        ),
        "a softmax makes all K texts compete at once: here only two meet.": lambda scores: torch.softmax(scores, dim=0)[
            :, None
        ].expand(-1, len(scores)),
        "you divided scores, which may be negative: divide their exponentials, or use the sigmoid.": lambda scores: (
            scores[:, None] / (scores[:, None] + scores[None, :])
        ),
        "a text meets itself with probability ½, and your diagonal is 0.": lambda scores: _win_probabilities(
            scores
        ).fill_diagonal_(0.0),
        "the exponential of a large score overflows: the sigmoid of the difference does not.": lambda scores: (
            scores.exp()[:, None] / (scores.exp()[:, None] + scores.exp()[None, :])
        ),
    },
)


def _word_reward(prompts, responses):
    """A reward for the exercise: prompt and response both matter, so that swapping them shows."""
    return [float(len(response)) + 100 * len(prompt) for prompt, response in zip(prompts, responses, strict=True)]


def _constant_reward(prompts, responses):
    return [0.5] * len(responses)


def _length_penalised(prompts, responses, reward, cost, free):
    scores = reward(prompts, responses)
    return [float(s) - cost * max(0, len(r.split()) - free) for s, r in zip(scores, responses, strict=True)]


def _penalise(count):
    """The solution with another idea of what is counted: `count(prompt, response, free)`."""

    def wrong(prompts, responses, reward, cost, free):
        scores = reward(prompts, responses)
        return [s - cost * count(p, r, free) for s, p, r in zip(scores, prompts, responses, strict=True)]

    return wrong


length_penalised = Exercise(
    "length_penalised",
    solution=_length_penalised,
    inputs=[
        (["The film was"], [" good."], _word_reward, 0.5, 3),
        (["The film was", "We"], [" good and the music was warm.", " hated it."], _word_reward, 0.5, 3),
        (["My brother", "It is"], ["", " dull. What a bore."], _word_reward, 0.25, 0),
        (["So", "It"], [" bad,  so bad.", " is fun."], _constant_reward, 2.0, 1),
    ],
    mistakes={
        "you pay for words below the limit too, in reverse: use max(0, …).": _penalise(
            lambda prompt, response, free: len(response.split()) - free
        ),
        "the first `free` words cost nothing, and you charged for all.": _penalise(
            lambda prompt, response, free: len(response.split())
        ),
        "you counted characters: words are what response.split() returns.": _penalise(
            lambda prompt, response, free: max(0, len(response) - free)
        ),
        "the prompt costs nothing: the policy did not write it.": _penalise(
            lambda prompt, response, free: max(0, len((prompt + response).split()) - free)
        ),
        "the sign is the wrong way round: you pay the policy for long responses.": _penalise(
            lambda prompt, response, free: -max(0, len(response.split()) - free)
        ),
        "you split at single spaces: the space before a response makes one empty word too many.": _penalise(
            lambda prompt, response, free: max(0, len(response.split(" ")) - free)
        ),
        "you called reward(responses, prompts): the prompts come first.": (
            lambda prompts, responses, reward, cost, free: _length_penalised(
                prompts, responses, lambda p, r: reward(r, p), cost, free
            )
        ),
        "you returned the penalty alone: subtract it from the scores of `reward`.": (
            lambda prompts, responses, reward, cost, free: _length_penalised(
                prompts, responses, lambda p, r: [0.0] * len(r), cost, free
            )
        ),
    },
)
