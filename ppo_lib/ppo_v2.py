"""v2: v1's loop with a replay buffer. Each update trains on fresh responses and on earlier ones, mixed.

The clip is centred on π_k, the policy at the start of the update; a truncated weight min(π_k/μ, C) corrects for μ,
the policy that sampled a response. On fresh responses μ = π_k, all weights are 1, and nothing differs from v1.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppo_lib import ppo_v1
from ppo_lib.config import ReplayConfig
from ppo_lib.data import PPODataset
from ppo_lib.estimators import token_rewards, whiten
from ppo_lib.importance import effective_sample_size, importance_ratios, second_moment_mask, vtrace
from ppo_lib.ppo import Metrics
from ppo_lib.replay import ReplayBuffer, ReplayRollout
from ppo_lib.rollout import LATER, Rollout, concatenate
from ppo_lib.running.checkpoint import CheckpointError

__all__ = ["PPODataset", "PPOTrainerWithReplay", "ReplayConfig"]

REMEMBERED = 8  # updates whose mean score says how hot fresh responses are sampled


def fresh(rollout: Rollout, behaviour_logprobs: Tensor) -> ReplayRollout:
    """A rollout of this update, as one that may stand beside earlier ones: of age 0, drawn by nobody."""
    ages = torch.zeros(len(rollout), dtype=torch.int32, device=behaviour_logprobs.device)
    weight = torch.ones(len(rollout), device=behaviour_logprobs.device)
    return ReplayRollout(**vars(rollout), behaviour_logprobs=behaviour_logprobs, ages=ages, sampling_weights=weight)


class PPOTrainerWithReplay(ppo_v1.PPOTrainer):
    """v1's trainer that also trains on earlier responses, corrected for the policy that sampled them.

    Arguments, errors and calls are v1's. `buffer` is the `ReplayBuffer`; it is saved and resumed with the run.
    """

    config_class = ReplayConfig
    config: ReplayConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config = self.config
        self.buffer = ReplayBuffer(
            config.replay_buffer_size,
            config.max_new_tokens,
            self.tokenizer,
            max_reuse=config.max_replay_reuse,
            staleness_threshold=config.staleness_threshold,
            recency=config.replay_recency,
            priority_exponent=config.replay_priority,
            priority_correction=config.replay_priority_correction,
            keep_best=config.replay_keep_best,
            spacing=config.replay_spacing,
        )
        self.totals = {"generated_tokens": 0, "trained_tokens": 0, "generated_responses": 0, "trained_responses": 0}
        if self.resumed_state:
            if "replay" not in self.resumed_state:
                raise CheckpointError(
                    "the checkpoint is of a run without a buffer: resume it with `ppo_v1.PPOTrainer`, or start a run "
                    "with replay from the run's saved model"
                )
            self.buffer.load_state_dict(self.resumed_state["replay"])
            self.totals = self.resumed_state["totals"]

    def state(self) -> dict:
        return super().state() | {"replay": self.buffer.state_dict(), "totals": self.totals}

    @property
    def behaviour_temperature(self) -> float:
        """Of fresh responses: that setting at first, cooling as the mean score of the last updates rises."""
        config = self.config
        if not config.use_replay_buffer or config.behaviour_temperature is None:
            return config.temperature
        recent = [row["objective/scores"] for row in self.history[-REMEMBERED:]]
        risen = math.fsum(recent) / len(recent) - self.history[0]["objective/scores"] if recent else 0.0
        heat = min(max(1 - risen / config.behaviour_cooling, 0.0), 1.0)
        return config.temperature + heat * (config.behaviour_temperature - config.temperature)

    @torch.no_grad()
    def collect(
        self, prompts: list[str], generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Rollout:
        """v1's, at the behaviour's temperature; where that is another, with the log-probabilities of both policies."""
        temperature = temperature or self.behaviour_temperature
        rollout = super().collect(prompts, generator, temperature)
        if temperature == self.config.temperature:
            return rollout
        behaviour, rollout.logprobs = rollout.logprobs, self._in_parts(partial(self.logprobs, self.policy), rollout)
        return fresh(rollout, behaviour)

    def update(self, rollout: Rollout) -> Metrics:
        """v1's update, of the rollout and what is replayed with it; then the rollout goes into the buffer."""
        if not self.config.use_replay_buffer:
            return super().update(rollout)
        version = len(self.history) + 1
        self.buffer.expire(version)
        statistics = self.buffer.statistics(version)
        batch, seen = self.mix(rollout, version)
        seen["replay/temperature"] = self.behaviour_temperature
        metrics = super().update(batch)
        self.buffer.add(rollout, version)
        return metrics | statistics | seen | self.efficiency(rollout, batch)

    def mix(self, rollout: Rollout, version: int) -> tuple[Rollout, Metrics]:
        """The batch of update `version`: the fresh rollout and replayed rows, with credit assigned to both anew."""
        seen: Metrics = {}
        replayed = self.buffer.sample(self.replay_size(version), version, self.generator)
        if replayed is not None:
            replayed, seen = self.refresh(replayed.to(self.device))
        if replayed is None:
            return rollout, seen | {"replay/sampled": 0}
        mixed = dataclasses.replace(
            rollout if isinstance(rollout, ReplayRollout) else fresh(rollout, rollout.logprobs),
            rewards=LATER, advantages=LATER, returns=LATER, weights=LATER,
        )  # fmt: skip
        batch = concatenate([mixed, replayed], self.tokenizer.pad_token_id)
        self.assign_credit(batch)
        return batch, seen

    def replay_size(self, version: int) -> int:
        """Responses to replay in update `version`: fewer and fewer over the last `replay_anneal` of the run."""
        config = self.config
        left = (self._last_update - version) / config.num_updates
        return round(config.replay_sample_size * min(1.0, left / config.replay_anneal if config.replay_anneal else 1.0))

    @torch.no_grad()
    def refresh(self, replayed: ReplayRollout) -> tuple[ReplayRollout | None, Metrics]:
        """Fill in π_k's log-probabilities and values, and leave out rows that are too far from π_k."""
        config = self.config
        replayed.logprobs = self._in_parts(partial(self.logprobs, self.policy), replayed)
        distance = replayed.behaviour_logprobs - replayed.logprobs
        kl = distance.masked_fill(~replayed.mask, 0.0).sum(dim=1) / replayed.lengths  # [B], nats per token
        near = kl.abs() <= (config.max_replay_kl or math.inf)
        seen = {"replay/kl": kl.mean().item(), "replay/too_far": int((~near).sum())}
        replayed = replayed.select(near.nonzero().flatten())
        if not len(replayed):
            return None, seen
        replayed.values = self.values(replayed)
        mask = replayed.mask
        real = importance_ratios(replayed.logprobs, replayed.behaviour_logprobs, mask, config.importance_level)[mask]
        ess = effective_sample_size(real)
        seen |= {
            "replay/sampled": len(replayed),
            "replay/ess": ess,
            "replay/weight_mean": real.mean().item(),
            "replay/weight_p99": real.quantile(0.99).item(),
            "replay/weight_max": real.max().item(),
            "replay/truncated": (real > config.importance_cap).float().mean().item(),
            "replay/batch_age": replayed.ages.float().mean().item(),
        }
        return (replayed if ess >= config.min_ess else None), seen

    def assign_credit(self, rollout: Rollout) -> None:
        """v1's on fresh rollouts; on mixed ones, V-trace targets and advantages weighted by min(π_k/μ, C)."""
        if not isinstance(rollout, ReplayRollout):
            return super().assign_credit(rollout)
        config, mask = self.config, rollout.mask
        rollout.rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, self.kl_coef)
        by_token = importance_ratios(rollout.logprobs, rollout.behaviour_logprobs, mask)
        ratios = importance_ratios(rollout.logprobs, rollout.behaviour_logprobs, mask, config.importance_level)
        traces = by_token.clamp(max=config.trace_cap) if config.correction == "decoupled" else torch.ones_like(ratios)
        rollout.advantages, rollout.returns = vtrace(
            rollout.rewards, rollout.values, mask, rollout.ended, traces, config.gamma, config.lam, config.bootstrap_cut
        )
        if config.whiten_advantages:
            rollout.advantages = whiten(rollout.advantages, mask)
        if config.replay_gains_only:
            lost = (rollout.ages > 0)[:, None] & (rollout.advantages < 0)
            rollout.advantages = rollout.advantages.masked_fill(lost, 0.0)
        rollout.weights = rollout.sampling_weights[:, None].expand_as(ratios)
        clipped = config.policy_objective == "clip"  # regression asks the same of a token, whoever sampled it
        if config.correction == "decoupled" and clipped:
            rollout.weights = rollout.weights * ratios.clamp(max=config.importance_cap)
        if config.second_moment_limit:
            rollout.weights = rollout.weights * second_moment_mask(by_token, mask, config.second_moment_limit)
        if clipped:
            rollout.advantages = rollout.advantages * rollout.weights
        if config.correction == "coupled":
            rollout.logprobs = rollout.behaviour_logprobs

    def efficiency(self, fresh: Rollout, batch: Rollout) -> Metrics:
        """What was generated and what was trained on so far. Reuse is not efficiency: see chapter 12."""
        totals = self.totals
        totals["generated_tokens"] += int(fresh.mask.sum())
        totals["generated_responses"] += len(fresh)
        totals["trained_tokens"] += int(batch.mask.sum())
        totals["trained_responses"] += len(batch)
        reuse = totals["trained_responses"] / totals["generated_responses"]
        return {f"efficiency/{name}": total for name, total in totals.items()} | {"efficiency/reuse_ratio": reuse}
