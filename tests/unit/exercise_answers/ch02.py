"""Answers to chapter 2: accuracy, a league table, a price on length."""

import numpy as np
import torch


def counted(chosen, rejected):
    right = 0.0
    for one, other in zip(chosen, rejected, strict=True):
        if one > other:
            right += 1
        elif one == other:
            right += 0.5
    return right / len(chosen)


def by_pairs(scores):
    table = torch.empty(len(scores), len(scores))
    for i, one in enumerate(scores):
        for j, other in enumerate(scores):
            table[i, j] = 1 / (1 + torch.exp(other - one))
    return table


def as_tensor(prompts, responses, reward, cost, free):
    words = torch.tensor([len(response.split()) for response in responses])
    return torch.as_tensor(reward(prompts, responses)) - cost * (words - free).clamp(min=0)


def one_word_at_a_time(prompts, responses, reward, cost, free):
    scores = [float(score) for score in reward(prompts, responses)]
    for index, response in enumerate(responses):
        for _ in response.split()[free:]:
            scores[index] -= cost
    return scores


def penalised(words):
    """A reward that pays for `words(prompt, response, free)`."""

    def answer(prompts, responses, reward, cost, free):
        scores = reward(prompts, responses)
        return [
            float(score) - cost * words(prompt, response, free)
            for score, prompt, response in zip(scores, prompts, responses, strict=True)
        ]

    return answer


def beyond(text, free):
    return max(0, len(text.split()) - free)


def without_ties(chosen, rejected):
    untied = chosen != rejected
    return (chosen > rejected)[untied].float().mean()


RIGHT = {
    "preference_accuracy": {
        "loop": counted,
        "sign": lambda chosen, rejected: ((chosen - rejected).sign().mean() + 1) / 2,
        "heaviside": lambda chosen, rejected: torch.heaviside(chosen - rejected, torch.tensor(0.5)).mean().item(),
        "numpy": lambda chosen, rejected: np.where(chosen == rejected, 0.5, chosen > rejected).mean(),
    },
    "win_probabilities": {
        "loops": by_pairs,
        "numpy": lambda scores: 0.5 + 0.5 * np.tanh(np.subtract.outer(scores.numpy(), scores.numpy()) / 2),
        "logsigmoid": lambda scores: torch.nn.functional.logsigmoid(scores.unsqueeze(1) - scores.unsqueeze(0)).exp(),
        "list of rows": lambda scores: [torch.sigmoid(score - scores) for score in scores],
        "lists": lambda scores: torch.sigmoid(scores[:, None] - scores).tolist(),
    },
    "length_penalised": {
        "tensor": as_tensor,
        "word by word": one_word_at_a_time,
        "numpy": lambda *arguments: np.array(one_word_at_a_time(*arguments)),
        "tuple": lambda *arguments: tuple(one_word_at_a_time(*arguments)),
    },
}
WRONG = {
    "preference_accuracy": {
        "ties are right": lambda chosen, rejected: (chosen >= rejected).float().mean(),
        "ties are wrong": lambda chosen, rejected: (chosen > rejected).float().mean(),
        "ties left out": without_ties,
        "rejected above": lambda chosen, rejected: ((rejected - chosen).sign().mean() + 1) / 2,
        "count": lambda chosen, rejected: ((chosen - rejected).sign() + 1).sum() / 2,
        "mean probability": lambda chosen, rejected: torch.sigmoid(chosen - rejected).mean(),
        "one for each pair": lambda chosen, rejected: ((chosen - rejected).sign() + 1) / 2,
        "means compared": lambda chosen, rejected: float(chosen.mean() > rejected.mean()),
        "sign not shifted": lambda chosen, rejected: (chosen - rejected).sign().mean(),
        "score above 0": lambda chosen, rejected: (chosen > 0).float().mean(),
        "percent": lambda chosen, rejected: ((chosen - rejected).sign().mean() + 1) * 50,
        "half for everything else": lambda chosen, rejected: ((chosen > rejected).float() * 0.5 + 0.5).mean(),
    },
    "win_probabilities": {
        "transposed": lambda scores: torch.sigmoid(scores[None, :] - scores[:, None]),
        "diagonal 0": lambda scores: torch.sigmoid(scores[:, None] - scores).fill_diagonal_(0),
        "diagonal 1": lambda scores: torch.sigmoid(scores[:, None] - scores).fill_diagonal_(1),
        "differences": lambda scores: scores[:, None] - scores,
        "softmax": lambda scores: torch.softmax(scores[:, None] - scores, dim=1),
        "winner takes all": lambda scores: (torch.sign(scores[:, None] - scores) + 1) / 2,
        "vector": lambda scores: torch.sigmoid(scores),
        "logs": lambda scores: torch.nn.functional.logsigmoid(scores[:, None] - scores),
        "ratio of scores": lambda scores: scores[:, None] / (scores[:, None] + scores),
        "sum": lambda scores: torch.sigmoid(scores[:, None] + scores),
        "flattened": lambda scores: torch.sigmoid(scores[:, None] - scores).flatten(),
        "base 2": lambda scores: 1 / (1 + 2 ** (scores - scores[:, None])),
    },
    "length_penalised": {
        "characters": penalised(lambda prompt, response, free: max(0, len(response) - free)),
        "short ones gain": penalised(lambda prompt, response, free: len(response.split()) - free),
        "prompt counts": penalised(lambda prompt, response, free: beyond(prompt + " " + response, free)),
        "single spaces": penalised(lambda prompt, response, free: max(0, len(response.split(" ")) - free)),
        "one off": penalised(lambda prompt, response, free: max(0, len(response.split()) - free + 1)),
        "flat price": penalised(lambda prompt, response, free: beyond(response, free) > 0),
        "all words": penalised(lambda prompt, response, free: len(response.split()) * (beyond(response, free) > 0)),
        "nothing free": penalised(lambda prompt, response, free: len(response.split())),
        "nothing paid": penalised(lambda prompt, response, free: 0),
        "added": penalised(lambda prompt, response, free: -beyond(response, free)),
        "prompt and response swapped": lambda prompts, responses, reward, cost, free: as_tensor(
            prompts, responses, lambda one, other: reward(other, one), cost, free
        ),
        "price only": lambda prompts, responses, reward, cost, free: [
            -cost * beyond(response, free) for response in responses
        ],
        "one number": lambda *arguments: sum(one_word_at_a_time(*arguments)),
    },
}
