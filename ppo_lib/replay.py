"""The replay buffer: responses of earlier policies, what is known of them, and which of them to train on again.

What is stored does not go stale: tokens, the behaviour policy's log-probabilities, the raw score, the reference's
log-probabilities. Advantages and KL penalties do, so they are never stored, but computed again under the current
policy and critic.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ppo_lib.rollout import LATER, Rollout, decode_responses, encode_prompts


@dataclass
class ReplayRollout(Rollout):
    """A rollout of which some rows were sampled by earlier policies.

    `logprobs` are those of π_k, the policy at the start of the update: the centre of the clip.
    """

    behaviour_logprobs: Tensor = LATER  # [B, T], log μ(a_t), of the policy that sampled
    ages: Tensor = LATER  # [B], updates since sampling; 0 on fresh rows
    sampling_weights: Tensor = LATER  # [B], ω, corrects for prioritised sampling; 1 on fresh rows
    weights: Tensor = LATER  # [B, T], what the advantages (with regression, the squared errors) are multiplied by


def most_held(fresh: int, staleness_threshold: int, capacity: int, keep_best: float = 0.0) -> int:
    """The most responses that a buffer ever holds, right after `fresh` of an update were added to it.

    Those of this update and of the `staleness_threshold` updates before it, and those that are kept for their scores.
    """
    return min(capacity, (staleness_threshold + 1) * fresh + kept_for_scores(capacity, keep_best))


def kept_for_scores(capacity: int, keep_best: float) -> int:
    """How many responses are kept for their scores: a share of the places, but never all of them."""
    return min(int(keep_best * capacity), capacity - 1)


class ReplayBuffer:
    """At most `capacity` responses in memory that is reserved at the start.

    Args:
        capacity: responses; the oldest gives way where a new one finds no room.
        max_new_tokens: T, the longest response.
        tokenizer: the policy's, to encode prompts again and to decode responses.
        max_reuse: how often a response is replayed before it is retired.
        staleness_threshold: how many updates old a response may be before it expires.
        recency: τ in updates; a response of age a is drawn with weight exp(−a/τ). None draws evenly.
        priority_exponent: α; a response is drawn with weight |score − mean score|^α as well. 0 draws evenly.
        priority_correction: β of prioritised experience replay: ω = (N P_i)^−β, scaled to at most 1.
        keep_best: share of the capacity for the highest scores, which neither expire nor give way.
        spacing: so many updates after it was sampled or used may a response be used again.

    Source: Schaul et al. 2015 (arXiv 1511.05952) for the priorities and ω; Oh et al. 2018 (arXiv 1806.05635) for
    keeping successes.
    """

    def __init__(
        self,
        capacity: int,
        max_new_tokens: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_reuse: int = 4,
        staleness_threshold: int = 8,
        recency: float | None = None,
        priority_exponent: float = 0.0,
        priority_correction: float = 1.0,
        keep_best: float = 0.0,
        spacing: int = 0,
    ):
        self.capacity, self.tokenizer = capacity, tokenizer
        self.max_reuse, self.staleness_threshold, self.recency = max_reuse, staleness_threshold, recency
        self.priority_exponent, self.priority_correction = priority_exponent, priority_correction
        self.keep_best, self.spacing = keep_best, spacing
        self.prompts: list[str | None] = [None] * capacity
        self.fields = {
            "response_ids": torch.zeros(capacity, max_new_tokens, dtype=torch.int32),
            "behaviour_logprobs": torch.zeros(capacity, max_new_tokens),
            "ref_logprobs": torch.zeros(capacity, max_new_tokens),
            "lengths": torch.zeros(capacity, dtype=torch.int32),  # 0 marks a free place
            "ended": torch.zeros(capacity, dtype=torch.bool),
            "scores": torch.zeros(capacity),
            "versions": torch.zeros(capacity, dtype=torch.int32),  # the update whose policy sampled it
            "reuses": torch.zeros(capacity, dtype=torch.int32),
            "last_used": torch.zeros(capacity, dtype=torch.int32),
        }
        self.counts = {"added": 0, "replayed": 0, "expired": 0, "retired": 0, "evicted": 0}

    def __len__(self) -> int:
        return int((self.fields["lengths"] > 0).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of the reserved memory; the prompts' texts belong to the dataset and are not copied."""
        return sum(field.nbytes for field in self.fields.values())

    @property
    def held(self) -> Tensor:
        """Places that hold a response: [n]."""
        return self.fields["lengths"].nonzero().flatten()

    def add(self, rollout: Rollout, version: int) -> None:
        """Store every response of a fresh, scored `rollout` that the policy of update `version` sampled."""
        for row in range(len(rollout)):
            place = self._place()
            length = int(rollout.lengths[row])
            self.prompts[place] = rollout.prompts[row]
            for name, source in (
                ("response_ids", rollout.response_ids),
                ("behaviour_logprobs", getattr(rollout, "behaviour_logprobs", rollout.logprobs)),
                ("ref_logprobs", rollout.ref_logprobs),
            ):
                self.fields[name][place] = 0
                self.fields[name][place, :length] = source[row, :length].to(self.fields[name])
            values: dict[str, int | Tensor] = {
                "lengths": length, "ended": rollout.ended[row], "scores": rollout.scores[row], "versions": version,
                "reuses": 0, "last_used": version,
            }  # fmt: skip
            for name, value in values.items():
                self.fields[name][place] = value
            self.counts["added"] += 1

    def _place(self) -> int:
        """A free place; where there is none, that of the oldest response that is not kept for its score."""
        free = (self.fields["lengths"] == 0).nonzero().flatten()
        if len(free):
            return int(free[0])
        candidates = self.held[~torch.isin(self.held, self.best())]
        oldest = candidates[self.fields["versions"][candidates].argmin()]
        self.counts["evicted"] += 1
        return int(oldest)

    def best(self) -> Tensor:
        """Places of the highest scores, as many as `keep_best` of the capacity: [m]."""
        kept = min(kept_for_scores(self.capacity, self.keep_best), len(self.held))
        return self.held[self.fields["scores"][self.held].topk(kept).indices]

    def drop(self, places: Tensor, reason: str) -> None:
        """Forget the responses in `places` [n], and count them as `reason`."""
        self.fields["lengths"][places] = 0
        for place in places.tolist():
            self.prompts[place] = None
        self.counts[reason] = self.counts.get(reason, 0) + len(places)

    def expire(self, version: int) -> None:
        """Drop what is more than `staleness_threshold` updates old; what is kept for its score stays."""
        held = self.held
        old = held[version - self.fields["versions"][held] > self.staleness_threshold]
        self.drop(old[~torch.isin(old, self.best())], "expired")

    def ages(self, version: int) -> Tensor:
        """Updates since each held response was sampled: [n]."""
        return version - self.fields["versions"][self.held]

    def ready(self, version: int) -> Tensor:
        """Whether each held response may be used in update `version`: [n]."""
        return version - self.fields["last_used"][self.held] >= self.spacing

    def probabilities(self, version: int) -> Tensor:
        """P_i of drawing each held response first: [n], adds up to 1. From current scores and ages, never stale.

        A response that was used less than `spacing` updates ago has none.
        """
        scores = self.fields["scores"][self.held].double()
        priorities = (scores - scores.mean()).abs() + 1e-3 * (scores.std(unbiased=False) + 1e-6)
        logits = self.priority_exponent * priorities.log()
        if self.recency is not None:
            logits = logits - self.ages(version).double() / self.recency
        rests = ~self.ready(version)
        floor = logits.masked_fill(rests, -math.inf).max() - 500  # P_i is never 0 by itself: ω divides by it
        return torch.softmax(logits.clamp(min=floor).masked_fill(rests, -math.inf), dim=0)

    def sample(self, size: int, version: int, generator: torch.Generator) -> ReplayRollout | None:
        """Draw at most `size` different responses to train on in update `version`; None where none is ready.

        Each counts as used once more; the trainer fills in what depends on the current policy.
        """
        held, ready = self.held, int(self.ready(version).sum())
        if not ready or size < 1:
            return None
        probabilities = self.probabilities(version)
        drawn = torch.multinomial(probabilities, min(size, ready), generator=generator)
        places = held[drawn]
        omega = (ready * probabilities[drawn]) ** -self.priority_correction
        if self.priority_exponent == 0:
            omega = torch.ones_like(omega)
        self.fields["reuses"][places] += 1
        self.fields["last_used"][places] = version
        self.counts["replayed"] += len(places)
        batch = self._rollout(places, version, (omega / omega.max()).float())
        self.drop(places[self.fields["reuses"][places] >= self.max_reuse], "retired")
        return batch

    def _rollout(self, places: Tensor, version: int, omega: Tensor) -> ReplayRollout:
        field = {name: tensor[places] for name, tensor in self.fields.items()}
        width = int(field["lengths"].max())
        mask = torch.arange(width)[None] < field["lengths"][:, None]
        prompts = [self.prompts[place] for place in places.tolist()]
        prompt_ids, prompt_mask = encode_prompts(self.tokenizer, prompts)
        response_ids = field["response_ids"][:, :width].long().masked_fill(~mask, self.tokenizer.pad_token_id)
        return ReplayRollout(
            prompts=prompts,
            responses=decode_responses(
                self.tokenizer,
                [row[kept] for row, kept in zip(prompt_ids, prompt_mask, strict=True)],
                [row[kept] for row, kept in zip(response_ids, mask, strict=True)],
            ),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            mask=mask,
            ended=field["ended"],
            logprobs=field["behaviour_logprobs"][:, :width],
            ref_logprobs=field["ref_logprobs"][:, :width],
            scores=field["scores"],
            behaviour_logprobs=field["behaviour_logprobs"][:, :width],
            ages=version - field["versions"],
            sampling_weights=omega,
        )

    def statistics(self, version: int) -> dict[str, float]:
        """What a run logs about its buffer before update `version` samples from it."""
        held = self.held
        totals = {f"replay/{name}": count for name, count in self.counts.items()}
        if not len(held):
            return {"replay/size": 0, **totals}
        ages, reuses = self.ages(version).float(), self.fields["reuses"][held].float()
        ready = int(self.ready(version).sum())
        probabilities = self.probabilities(version) if ready else torch.ones(1)
        entropy = -(probabilities * probabilities.clamp(min=1e-300).log()).sum().item()
        return {
            "replay/size": len(held),
            "replay/age_mean": ages.mean().item(),
            "replay/age_max": ages.max().item(),
            "replay/reuse_mean": reuses.mean().item(),
            "replay/score_mean": self.fields["scores"][held].mean().item(),
            "replay/sampling_entropy": entropy / math.log(ready) if ready > 1 else 1.0,  # 1 is uniform
            **totals,
        }

    def histograms(self, version: int) -> dict[str, list[int]]:
        """How many held responses have each age and each number of reuses, from 0 on."""
        ages, reuses = self.ages(version), self.fields["reuses"][self.held]
        return {"age": torch.bincount(ages).tolist(), "reuse": torch.bincount(reuses).tolist()}

    def state_dict(self) -> dict:
        """Everything in the buffer, as `checkpoint.save_checkpoint` takes it."""
        return {"prompts": self.prompts, "fields": self.fields, "counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        """Put the buffer where `state_dict` was taken.

        Raises:
            ValueError: it was of another capacity or response length.
        """
        for name, field in self.fields.items():
            if field.shape != state["fields"][name].shape:
                raise ValueError(
                    f"the saved buffer is {tuple(state['fields'][name].shape)}, this one {tuple(field.shape)}: keep "
                    "`replay_buffer_size` and `max_new_tokens`"
                )
            field.copy_(state["fields"][name])
        self.prompts, self.counts = list(state["prompts"]), dict(state["counts"])
