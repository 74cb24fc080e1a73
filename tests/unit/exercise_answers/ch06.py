"""Answers to chapter 6: where it should come to rest, the KL on the dashboard, when it got there."""

import math

import numpy as np
import torch


def by_hand(ref_logprobs, rewards, beta):
    exponents = [p + r / beta for p, r in zip(ref_logprobs.tolist(), rewards.tolist(), strict=True)]
    weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
    return [weight / sum(weights) for weight in weights]


def in_place(ref_logprobs, rewards, beta):
    ref_logprobs += rewards / beta
    ref_logprobs -= ref_logprobs.logsumexp(0)
    return ref_logprobs.exp_()


def kl_by_response(logprobs, ref_logprobs, mask):
    total = 0.0
    for new, old, kept in zip(logprobs, ref_logprobs, mask, strict=True):
        total += (new - old)[kept].sum().item()
    return total / len(mask)


def kept(logprobs, ref_logprobs, mask):
    return (logprobs - ref_logprobs).masked_fill(~mask, 0.0)


def counting(scores, threshold, batch_size, hold=3):
    row = 0
    for rollout, score in enumerate(scores, 1):
        row = row + 1 if score >= threshold else 0
        if row == hold:
            return (rollout - hold + 1) * batch_size
    return None


def recursive(scores, threshold, batch_size, hold=3):
    if len(scores) < hold:
        return
    if min(scores[:hold]) >= threshold:
        return batch_size
    later = recursive(scores[1:], threshold, batch_size, hold)
    return None if later is None else later + batch_size


def with_numpy(scores, threshold, batch_size, hold=3):
    reached = np.convolve(np.array(scores) >= threshold, np.ones(hold, int), "valid") if len(scores) >= hold else []
    starts = np.flatnonzero(np.array(reached) == hold)
    return np.int64((starts[0] + 1) * batch_size) if len(starts) else None


class AsText:
    def __call__(self, scores, threshold, batch_size, hold=3):
        start = "".join("1" if score >= threshold else "0" for score in scores).find("1" * hold)
        if start >= 0:
            return (start + 1) * batch_size


def windows(reached, answer, ends=0):
    """The first window for which `reached(window, threshold)` holds, as `answer(start, hold, batch_size)`."""

    def function(scores, threshold, batch_size, hold=3):
        for start in range(len(scores) - hold + 1 - ends):
            if reached(scores[start : start + hold], threshold):
                return answer(start, hold, batch_size)
        return None

    return function


def all_reach(window, threshold):
    return all(score >= threshold for score in window)


def first_end(start, hold, batch_size):
    return (start + 1) * batch_size


def when_missing(value):
    def function(scores, threshold, batch_size, hold=3):
        found = counting(scores, threshold, batch_size, hold)
        return value(len(scores), batch_size) if found is None else found

    return function


def last_time(scores, threshold, batch_size, hold=3):
    starts = [s for s in range(len(scores) - hold + 1) if all_reach(scores[s : s + hold], threshold)]
    return (starts[-1] + 1) * batch_size if starts else None


def not_in_a_row(scores, threshold, batch_size, hold=3):
    reached = [index for index, score in enumerate(scores) if score >= threshold]
    return (reached[0] + 1) * batch_size if len(reached) >= hold else None


def short_windows(scores, threshold, batch_size, hold=3):
    for start in range(len(scores)):
        if all_reach(scores[start : start + hold], threshold):
            return (start + 1) * batch_size
    return None


RIGHT = {
    "best_policy": {
        "list": by_hand,
        "in place": in_place,
        "probabilities": lambda ref, rewards, beta: (
            (w := ref.double().exp() * (rewards.double() / beta).exp()) / w.sum()
        ),
        "numpy": lambda ref, rewards, beta: np.array(by_hand(ref, rewards, beta)),
        "log_softmax": lambda ref, rewards, beta: torch.log_softmax(ref + rewards / beta, 0).exp(),
    },
    "objective_kl": {
        "float": kl_by_response,
        "multiplied by the mask": lambda new, old, mask: ((new - old) * mask).sum(1).mean(),
        "flat": lambda new, old, mask: (new - old)[mask].sum() / len(mask),
        "where": lambda new, old, mask: torch.where(mask, new - old, 0.0).sum(-1).mean(),
        "numpy": lambda new, old, mask: (new - old).numpy().sum(axis=1, where=mask.numpy()).mean(),
    },
    "responses_to_reach": {
        "counter": counting,
        "recursion": recursive,
        "numpy": with_numpy,
        "class": AsText(),
        "float": lambda *arguments: None if (found := counting(*arguments)) is None else float(found),
    },
}
WRONG = {
    "best_policy": {
        "times beta": lambda ref, rewards, beta: torch.softmax(ref + rewards * beta, 0),
        "beta ignored": lambda ref, rewards, beta: torch.softmax(ref + rewards, 0),
        "reference ignored": lambda ref, rewards, beta: torch.softmax(rewards / beta, 0),
        "rewards ignored": lambda ref, rewards, beta: torch.softmax(ref, 0),
        "not divided": lambda ref, rewards, beta: torch.exp(ref + rewards / beta),
        "logs": lambda ref, rewards, beta: torch.log_softmax(ref + rewards / beta, 0),
        "costs": lambda ref, rewards, beta: torch.softmax(ref - rewards / beta, 0),
        "log of the logs": lambda ref, rewards, beta: torch.softmax(ref.exp() + rewards / beta, 0),
        "sum divided by beta": lambda ref, rewards, beta: torch.softmax((ref + rewards) / beta, 0),
        "greedy": lambda ref, rewards, beta: torch.nn.functional.one_hot((ref + rewards / beta).argmax(), len(ref)),
        "product of softmaxes": lambda ref, rewards, beta: ref.exp() * torch.softmax(rewards / beta, 0),
        "shifted by the mean reward": lambda ref, rewards, beta: torch.exp(ref + (rewards - rewards.mean()) / beta),
        "divided by the sum of weights alone": lambda ref, rewards, beta: (
            torch.exp(ref + rewards / beta) / torch.exp(rewards / beta).sum()
        ),
    },
    "objective_kl": {
        "mean over tokens": lambda new, old, mask: (new - old)[mask].mean(),
        "padding counts": lambda new, old, mask: (new - old).sum(1).mean(),
        "sign": lambda new, old, mask: kept(old, new, mask).sum(1).mean(),
        "absolute": lambda new, old, mask: kept(new, old, mask).abs().sum(1).mean(),
        "sum over responses": lambda new, old, mask: kept(new, old, mask).sum(),
        "mean over T": lambda new, old, mask: kept(new, old, mask).mean(),
        "one for each response": lambda new, old, mask: kept(new, old, mask).sum(1),
        "k3": lambda new, old, mask: (kept(old, new, mask).exp() - 1 - kept(old, new, mask)).sum(1).mean(),
        "weighted": lambda new, old, mask: (new.exp() * kept(new, old, mask)).masked_fill(~mask, 0.0).sum(1).mean(),
        "mean of the responses' means": lambda new, old, mask: (kept(new, old, mask).sum(1) / mask.sum(1)).mean(),
        "summed over the batch": lambda new, old, mask: kept(new, old, mask).sum(0).mean(),
        "never negative": lambda new, old, mask: kept(new, old, mask).sum(1).mean().clamp(min=0),
        "median": lambda new, old, mask: kept(new, old, mask).sum(1).median(),
    },
    "responses_to_reach": {
        "must exceed": windows(lambda window, threshold: min(window) > threshold, first_end),
        "end of the window": windows(all_reach, lambda start, hold, batch_size: (start + hold) * batch_size),
        "counted from 0": windows(all_reach, lambda start, hold, batch_size: start * batch_size),
        "rollouts": windows(all_reach, lambda start, hold, batch_size: start + 1),
        "position": windows(all_reach, lambda start, hold, batch_size: start),
        "last window missed": windows(all_reach, first_end, ends=1),
        "mean of the window": windows(lambda window, threshold: sum(window) / len(window) >= threshold, first_end),
        "one is enough": lambda scores, threshold, batch_size, hold=3: counting(scores, threshold, batch_size, 1),
        "always three": lambda scores, threshold, batch_size, hold=3: counting(scores, threshold, batch_size, 3),
        "0 for never": when_missing(lambda rollouts, batch_size: 0),
        "-1 for never": when_missing(lambda rollouts, batch_size: -1),
        "all for never": when_missing(lambda rollouts, batch_size: rollouts * batch_size),
        "text for never": when_missing(lambda rollouts, batch_size: "never"),
        "the last time": last_time,
        "not in a row": not_in_a_row,
        "windows cut short": short_windows,
        "hold is one more": lambda scores, threshold, batch_size, hold=3: counting(
            scores, threshold, batch_size, hold + 1
        ),
    },
}
