"""What a run computes, by hand: response by response, without padding or batches, in loops over plain numbers.

Nothing here is from `ppo_lib`; settings are read from whatever has them as attributes.
"""

import math
from dataclasses import dataclass, field

import torch

# What each number is. The order is that in which one follows from another: the first that differs is to blame.
MEANING = {
    # of a token
    "behaviour_logprobs": "log μ(a_t), of the policy that sampled",
    "logprobs": "log π_old(a_t), the centre of the clip: of the logits divided by the temperature",
    "ref_logprobs": "log π_ref(a_t), of the reference as the run began with it, its logits divided by the temperature",
    "values": "V(s_t), of the state before token t",
    "rewards": "−β (log π − log π_ref) at each token, and the score at the last one that was sampled",
    "returns": "V(s_t) + A_t before it is whitened; of a batch with replayed responses V(s_t) + c̄_t A_t, by V-trace",
    "weights": "what an advantage is multiplied by: ω, min(π_k/μ, C), and 0 where the second moment is too large",
    "advantages": "A_t by γ, λ and `bootstrap_cut`; whitened, where set, over all tokens of the batch; times a weight",
    # of a rollout, before its update
    "objective/kl": "log π − log π_ref, added up over a response, mean over responses",
    "objective/entropy": "−log π of the sampled tokens, added up over a response, mean over responses",
    "objective/non_score_reward": "−β times the KL per response, at the β that was charged",
    "objective/rlhf_reward": "all rewards of a response, score and KL penalty, mean over responses",
    "objective/scores": "mean score of the fresh responses",
    "objective/scores_std": "root of the mean square of (score − mean score), fresh responses alone",
    "val/num_eos_tokens": "responses that any of the EOS tokens ended",
    "val/explained_variance": "1 − Var(return − V) / Var(return) over tokens of the fresh rollout",
    "response/length": "sampled tokens per response, EOS included",
    "eps": "responses sampled, per second of the whole update",
    # of an optimiser step; of an update, the mean over its steps
    "loss/policy_avg": "−mean over tokens of min(r A, clip(r, 1−ε, 1+ε) A)",
    "loss/value_avg": "½ mean over tokens of the larger of (V − R)² and (V clipped − R)²",
    "policy/entropy_avg": "entropy of the distributions that were sampled from, mean over tokens",
    "policy/approxkl_avg": "½ (log π_θ − log π_old)², mean over tokens: never negative, and what `kl_stop` goes by",
    "policy/clipfrac_avg": "share of tokens with r > 1+ε and A > 0, or r < 1−ε and A < 0",
    "val/clipfrac_avg": "share of tokens whose value moved further than its clip, and whose clipped error is larger",
    "val/ratio": "π_θ / π_old, mean over tokens",
    "val/ratio_var": "unbiased variance of π_θ / π_old over all tokens of a step",
    "policy/grad_norm": "length of the policy's gradient before it is clipped",
    "val/grad_norm": "length of the critic's gradient before it is clipped",
    # of a run
    "lr": "learning rate of this update: schedule and warm-up move once an update, from the run's beginning",
    "update": "updates of this trainer so far, those of earlier runs included",
    "episode": "responses sampled so far, replayed ones not counted",
    "objective/kl_coef": "β of this update; the next is β (1 + clip(KL/target − 1, ±0.2) · rollout size / horizon)",
    "train/skipped_steps": "steps so far whose gradient was not finite",
    # of held-out responses
    "eval/score": "mean score that the held-out judge gives to the sampled responses",
    "eval/score_greedy": "mean score that the held-out judge gives to the greedy responses",
    "eval/kl": "log π − log π_ref, added up over a sampled response, mean over responses",
    "eval/rlhf_reward": "mean score − β KL of the sampled responses, at the present β",
    "eval/entropy": "−log π, added up over a sampled response, mean over responses",
    "eval/length": "tokens per sampled response, EOS included",
    "eval/length_greedy": "tokens per greedy response, EOS included",
    "eval/ended": "share of the sampled responses that any of the EOS tokens ended",
    # of the buffer, before the update draws from it
    "replay/size": "responses held, after those that are too old have expired",
    "replay/age_mean": "updates since a response was sampled, mean over those held",
    "replay/age_max": "updates since the oldest response held was sampled",
    "replay/reuse_mean": "times that a response was replayed, mean over those held",
    "replay/score_mean": "raw score, mean over the responses held",
    "replay/sampling_entropy": "−Σ P log P / log n of the n responses that are ready: 1 where all are as likely",
    "replay/added": "responses put into the buffer so far",
    "replay/replayed": "responses drawn so far",
    "replay/expired": "responses dropped so far for their age",
    "replay/retired": "responses dropped so far after `max_replay_reuse` uses",
    "replay/evicted": "responses that gave way so far to newer ones",
    # of what was drawn
    "replay/kl": "log μ − log π_k per token of a response, mean over the responses drawn",
    "replay/too_far": "responses drawn whose log μ − log π_k per token is beyond ±`max_replay_kl`",
    "replay/sampled": "responses replayed: those drawn that are not too far, none where their ess is below `min_ess`",
    "replay/ess": "(Σ c)² / (n Σ c²) of the n ratios c = π_k/μ at the tokens of those",
    "replay/weight_mean": "mean of c, before it is truncated",
    "replay/weight_p99": "the number that 99 % of the c are below",
    "replay/weight_max": "largest c, before it is truncated",
    "replay/truncated": "share of the c above `importance_cap`",
    "replay/temperature": "temperature at which the fresh responses were sampled",
    "replay/batch_age": "updates since a response was sampled, mean over those replayed",
    "efficiency/generated_tokens": "tokens sampled so far",
    "efficiency/generated_responses": "responses sampled so far",
    "efficiency/trained_tokens": "tokens of all updates' batches so far, replayed ones too, each once an update",
    "efficiency/trained_responses": "responses of all updates' batches so far, replayed ones too, each once an update",
    "efficiency/reuse_ratio": "trained responses / generated responses",
}


def close(mine: float, expected: float) -> bool:
    """Equal but for the rounding of 32-bit numbers, of which five times as much was never seen."""
    if math.isnan(expected):
        return math.isnan(mine)
    return abs(mine - expected) <= 1e-5 + 2e-4 * abs(expected)


def mean(numbers) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def variance(numbers) -> float:
    """The unbiased one; 0 of a single number."""
    middle = mean(numbers)
    return sum((x - middle) ** 2 for x in numbers) / max(len(numbers) - 1, 1)


@dataclass(eq=False)
class Response:
    """A response, and what is known of each of its tokens."""

    prompt: str
    before: list[int]  # tokens of the prompt
    tokens: list[int]  # those sampled, the EOS included
    ended: bool
    text: str
    update: int  # whose policy sampled it
    score: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    behaviour: list[float] = field(default_factory=list)
    ref_logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)  # one more than tokens
    rewards: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    omega: float = 1.0
    reuses: int = 0
    last_used: int = 0
    place: int | None = None  # in the buffer

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def key(self):
        return self.prompt, tuple(self.tokens)

    @property
    def kl(self) -> float:
        return sum(a - b for a, b in zip(self.logprobs, self.ref_logprobs, strict=True))

    @property
    def ratios(self) -> list[float]:
        """π_k/μ of each token."""
        return [math.exp(a - b) for a, b in zip(self.logprobs, self.behaviour, strict=True)]


def of_tokens(responses: list[Response], name: str) -> list[float]:
    """The numbers called `name` of all tokens, one response after the other."""
    return [x for response in responses for x in getattr(response, name)[: len(response)]]


# what the networks say of one response, with gradients


def logits_of(policy, response: Response):
    """Those that each token was drawn by, at a temperature of 1: [T, V]."""
    ids = torch.tensor([response.before + response.tokens])
    return policy(input_ids=ids, use_cache=False).logits[0, len(response.before) - 1 : -1]


def predictions(policy, response: Response, temperature: float):
    """log π(a_t) and the entropy at each token."""
    every = torch.log_softmax(logits_of(policy, response) / temperature, dim=-1)
    return every[range(len(response)), response.tokens], -(every.exp() * every).sum(dim=-1)


def values_of(critic, response: Response):
    """V before each token and after the last."""
    ids = torch.tensor([response.before + response.tokens])
    states = critic.trunk(input_ids=ids, use_cache=False).last_hidden_state[0, len(response.before) - 1 :]
    return states @ critic.value_head.weight[0] + critic.value_head.bias[0]


# credit


def assign_credit(responses: list[Response], settings, beta: float, trace_cap: float | None = None) -> None:
    """Fill rewards, advantages and returns by the definition of GAE; with a cap of the traces, by that of V-trace."""
    for r in responses:
        r.rewards = [-beta * (a - b) for a, b in zip(r.logprobs, r.ref_logprobs, strict=True)]
        r.rewards[-1] += r.score
        traces = [min(c, trace_cap) for c in r.ratios] if trace_cap else [1.0] * len(r)
        after = [*r.values[1 : len(r)], r.values[len(r)] if settings.bootstrap_cut and not r.ended else 0.0]
        deltas = [r.rewards[t] + settings.gamma * after[t] - r.values[t] for t in range(len(r))]
        r.advantages = [
            sum(math.prod(traces[t + 1 : k + 1]) * (settings.gamma * settings.lam) ** (k - t) * deltas[k]
                for k in range(t, len(r)))
            for t in range(len(r))
        ]  # fmt: skip
        r.returns = [traces[t] * r.advantages[t] + r.values[t] for t in range(len(r))]
    if settings.whiten_advantages:
        everything = of_tokens(responses, "advantages")
        middle, scale = mean(everything), math.sqrt(variance(everything) + 1e-8)
        for r in responses:
            r.advantages = [(a - middle) / scale for a in r.advantages]


def weigh(responses: list[Response], settings, update: int) -> None:
    """What replay makes of the advantages, and of the clip's centre, in the mixed batch of `update`."""
    furthest = math.inf
    if settings.second_moment_limit:
        squares = sorted(math.log(c) ** 2 for r in responses for c in r.ratios)
        furthest = max(s for n, s in enumerate(squares) if mean(squares[: n + 1]) <= settings.second_moment_limit)
    for r in responses:
        by_token = r.ratios
        ratios = [math.prod(by_token)] * len(r) if settings.importance_level == "sequence" else by_token
        r.weights = [r.omega * (math.log(c) ** 2 <= furthest) for c in by_token]
        if settings.correction == "decoupled":
            r.weights = [w * min(c, settings.importance_cap) for w, c in zip(r.weights, ratios, strict=True)]
        if settings.replay_gains_only and r.update < update:
            r.advantages = [max(a, 0.0) for a in r.advantages]
        r.advantages = [a * w for a, w in zip(r.advantages, r.weights, strict=True)]
        if settings.correction == "coupled":
            r.logprobs = r.behaviour


# metrics of a rollout, a step, an evaluation


def rollout_metrics(rows: list[Response], beta: float) -> dict[str, float]:
    kl, scores, returns = mean(r.kl for r in rows), [r.score for r in rows], of_tokens(rows, "returns")
    missed = [a - v for a, v in zip(returns, of_tokens(rows, "values"), strict=True)]
    return {
        "objective/kl": kl,
        "objective/entropy": mean(-sum(r.logprobs) for r in rows),
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": mean(sum(r.rewards) for r in rows),
        "objective/scores": mean(scores),
        "objective/scores_std": math.sqrt(mean((s - mean(scores)) ** 2 for s in scores)),
        "val/num_eos_tokens": sum(r.ended for r in rows),
        "val/explained_variance": 1 - variance(missed) / variance(returns),
        "response/length": mean(map(len, rows)),
    }


def step_metrics(rows: list[Response], policy, critic, settings) -> dict[str, float]:
    """Those of a step over `rows`; the gradients of its loss are left in the networks, not clipped."""
    count = sum(map(len, rows))
    low, high, reach = 1 - settings.cliprange, 1 + settings.cliprange, settings.cliprange_value
    gains, errors, entropy, squares, ratios, stopped, stopped_values = ([] for _ in range(7))
    policy.zero_grad()
    critic.zero_grad()
    for r in rows:
        (taken, entropies), values = predictions(policy, r, settings.temperature), values_of(critic, r)
        pull, pull_value = [], []  # derivatives of the loss by log π(a_t) and by V(s_t)
        for t in range(len(r)):
            log_ratio, advantage = taken[t].item() - r.logprobs[t], r.advantages[t]
            ratio = math.exp(log_ratio)
            gains.append(min(ratio * advantage, min(max(ratio, low), high) * advantage))
            stopped.append((ratio > high and advantage > 0) or (ratio < low and advantage < 0))
            pull.append(0.0 if stopped[-1] else -ratio * advantage / count)
            moved, error = values[t].item() - r.values[t], values[t].item() - r.returns[t]
            clipped = r.values[t] + min(max(moved, -reach), reach) - r.returns[t]
            errors.append(max(error**2, clipped**2))
            stopped_values.append(abs(moved) > reach and clipped**2 > error**2)
            pull_value.append(0.0 if stopped_values[-1] else error / count)
            squares.append(0.5 * log_ratio**2)
            ratios.append(ratio)
        entropy += entropies.tolist()
        loss = taken @ taken.new_tensor(pull) - settings.entropy_coef * entropies.sum() / count
        (loss + settings.vf_coef * (values[: len(r)] @ values.new_tensor(pull_value))).backward()
    return {
        "loss/policy_avg": -mean(gains),
        "loss/value_avg": 0.5 * mean(errors),
        "policy/entropy_avg": mean(entropy),
        "policy/approxkl_avg": mean(squares),
        "policy/clipfrac_avg": mean(stopped),
        "val/clipfrac_avg": mean(stopped_values),
        "val/ratio": mean(ratios),
        "val/ratio_var": variance(ratios),
        "policy/grad_norm": length_of(gradients(policy)),
        "val/grad_norm": length_of(gradients(critic)),
    }


def evaluation_metrics(sampled: list[Response], greedy: list[Response], beta: float) -> dict[str, float]:
    kl, score = mean(r.kl for r in sampled), mean(r.score for r in sampled)
    return {
        "eval/score": score,
        "eval/score_greedy": mean(r.score for r in greedy),
        "eval/kl": kl,
        "eval/rlhf_reward": score - beta * kl,
        "eval/entropy": mean(-sum(r.logprobs) for r in sampled),
        "eval/length": mean(map(len, sampled)),
        "eval/length_greedy": mean(map(len, greedy)),
        "eval/ended": mean(r.ended for r in sampled),
    }


def adapted(beta: float, kl: float, settings, rollout_size: int) -> float:
    """β of the next update (Ziegler et al. 2019, section 2.2)."""
    if not settings.kl_target:
        return beta
    return beta * (1 + min(max(kl / settings.kl_target - 1, -0.2), 0.2) * rollout_size / settings.kl_horizon)


# an optimiser's step


def gradients(network) -> list[torch.Tensor]:
    return [torch.zeros_like(p).double() if p.grad is None else p.grad.double() for p in network.parameters()]


def length_of(tensors) -> float:
    return math.sqrt(sum((x**2).sum().item() for x in tensors))


class Adam:
    """AdamW without weight decay, by its formula (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self):
        self.steps, self.first, self.second = 0, {}, {}

    def moved(self, weights: list, gradients: list, rate: float) -> list:
        """What `weights` are after a step along `gradients`."""
        self.steps += 1
        after = []
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            self.first[i] = 0.9 * self.first.get(i, 0.0) + 0.1 * gradient
            self.second[i] = 0.999 * self.second.get(i, 0.0) + 0.001 * gradient**2
            first, second = self.first[i] / (1 - 0.9**self.steps), self.second[i] / (1 - 0.999**self.steps)
            after.append(weight - rate * first / (second.sqrt() + 1e-8))
        return after


# replay


class Buffer:
    """The responses that a replay buffer should hold, and what is to be said of them."""

    def __init__(self, settings):
        self.settings = settings
        self.places: list[Response | None] = [None] * settings.replay_buffer_size
        self.gone: dict[tuple, str] = {}  # why a response is not held any more
        self.counts = {"added": 0, "replayed": 0, "expired": 0, "retired": 0, "evicted": 0}
        self.totals = {"generated_tokens": 0, "generated_responses": 0, "trained_tokens": 0, "trained_responses": 0}

    @property
    def held(self) -> list[Response]:
        return [r for r in self.places if r is not None]

    def best(self) -> list[Response]:
        kept = min(int(self.settings.replay_keep_best * len(self.places)), len(self.places) - 1)
        return sorted(self.held, key=lambda r: -r.score)[:kept]

    def drop(self, response: Response, reason: str) -> None:
        self.places[response.place] = None
        self.counts[reason] += 1
        self.gone[response.key, response.update] = reason

    def expire(self, update: int) -> None:
        best = self.best()
        for response in self.held:
            if update - response.update > self.settings.staleness_threshold and response not in best:
                self.drop(response, "expired")

    def ready(self, update: int) -> list[Response]:
        return [r for r in self.held if update - r.last_used >= self.settings.replay_spacing]

    def probabilities(self, update: int) -> dict[Response, float]:
        """P of each response that is ready."""
        scores, weights = [r.score for r in self.held], {}
        spread = math.sqrt(mean((s - mean(scores)) ** 2 for s in scores)) if scores else 0.0
        for r in self.ready(update):
            far = abs(r.score - mean(scores)) + 1e-3 * (spread + 1e-6)
            faded = (update - r.update) / (self.settings.replay_recency or math.inf)
            weights[r] = far**self.settings.replay_priority * math.exp(-faded)
        return {r: weight / sum(weights.values()) for r, weight in weights.items()}

    def use(self, drawn: list[Response], update: int) -> None:
        """Count `drawn` as replayed in `update`, with their ω."""
        chances, beta = self.probabilities(update), self.settings.replay_priority_correction
        for r in drawn:
            r.omega = (len(chances) * chances[r]) ** -beta if self.settings.replay_priority else 1.0
            r.reuses += 1
        largest = max(r.omega for r in drawn)
        for r in drawn:
            r.omega /= largest
            r.last_used = update
            self.counts["replayed"] += 1
            if r.reuses >= self.settings.max_replay_reuse:
                self.drop(r, "retired")

    def add(self, responses: list[Response]) -> None:
        for response in responses:
            if None not in self.places:
                best = self.best()
                self.drop(min((r for r in self.held if r not in best), key=lambda r: r.update), "evicted")
            response.place, response.last_used = self.places.index(None), response.update
            self.places[response.place] = response
            self.counts["added"] += 1

    def place(self, held: dict[int, tuple]) -> None:
        """Put the responses where a buffer has them: by place, what tells one from another."""
        left, self.places = self.held, [None] * len(self.places)
        for place, which in held.items():
            response = next(r for r in left if (r.key, r.update) == which)
            left.remove(response)
            response.place, self.places[place] = place, response

    def metrics(self, update: int) -> dict[str, float]:
        counts, held = {f"replay/{name}": count for name, count in self.counts.items()}, self.held
        if not held:
            return {"replay/size": 0, **counts}
        chances, ages = self.probabilities(update).values(), [update - r.update for r in held]
        entropy = -sum(p * math.log(p) for p in chances)
        return {
            "replay/size": len(held),
            "replay/age_mean": mean(ages),
            "replay/age_max": max(ages),
            "replay/reuse_mean": mean(r.reuses for r in held),
            "replay/score_mean": mean(r.score for r in held),
            "replay/sampling_entropy": entropy / math.log(len(chances)) if len(chances) > 1 else 1.0,
            **counts,
        }

    def efficiency(self, fresh: list[Response], batch: list[Response]) -> dict[str, float]:
        totals = self.totals
        totals["generated_tokens"] += sum(map(len, fresh))
        totals["generated_responses"] += len(fresh)
        totals["trained_tokens"] += sum(map(len, batch))
        totals["trained_responses"] += len(batch)
        reuse = totals["trained_responses"] / totals["generated_responses"]
        return {f"efficiency/{name}": total for name, total in totals.items()} | {"efficiency/reuse_ratio": reuse}


def weight_metrics(rows: list[Response], settings, update: int) -> dict[str, float]:
    whole = settings.importance_level == "sequence"
    ratios = sorted(c for r in rows for c in ([math.prod(r.ratios)] * len(r) if whole else r.ratios))
    place = 0.99 * (len(ratios) - 1)
    below, above = ratios[math.floor(place)], ratios[math.ceil(place)]
    return {
        "replay/ess": sum(ratios) ** 2 / (len(ratios) * sum(c**2 for c in ratios)),
        "replay/weight_mean": mean(ratios),
        "replay/weight_p99": below + (place - math.floor(place)) * (above - below),
        "replay/weight_max": ratios[-1],
        "replay/truncated": mean(c > settings.importance_cap for c in ratios),
        "replay/batch_age": mean(update - r.update for r in rows),
    }
