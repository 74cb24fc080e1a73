"""Held-out evaluation, and when to stop because of it."""

import math
from dataclasses import dataclass

import torch

from ppo_lib.data import as_dataset
from ppo_lib.estimators import kl_k1
from ppo_lib.ppo import Metrics, PPOTrainer
from ppo_lib.rewards import RewardFunction, score_responses


def evaluate(
    trainer: PPOTrainer, prompts: list[str], reward: RewardFunction, seed: int = 0
) -> tuple[Metrics, list[dict]]:
    """Let the policy answer `prompts` once by sampling and once greedily, and judge the responses by `reward`.

    The same `seed` draws the same random numbers whatever came before, and training's own are left alone.

    Returns:
        The metrics, and one row per prompt with the responses as texts and their scores. The metrics are `eval/score`
        and `eval/length` of the sampled and, with `_greedy`, of the greedy responses; and of the sampled ones `eval/kl`
        and `eval/entropy` (nats per response), `eval/rlhf_reward` (score − β KL) and `eval/ended` (share with an EOS).

    Raises:
        TypeError, ValueError: `prompts` are not what `train` takes.
    """
    dataset = as_dataset(prompts)
    trainer.check_room(dataset)
    prompts = dataset.prompts
    generator = torch.Generator().manual_seed(seed)
    sampled, greedy = trainer.respond(prompts, generator), trainer.respond(prompts, generator, greedy=True)
    for rollout in (sampled, greedy):
        rollout.scores = score_responses(reward, rollout.prompts, rollout.responses)
    with torch.no_grad():
        by_token = kl_k1(sampled.logprobs, trainer.reference_logprobs(sampled)).masked_fill(~sampled.mask, 0.0)
    score, kl = sampled.scores.mean().item(), by_token.sum(dim=1).mean().item()
    metrics = {
        "eval/score": score,
        "eval/score_greedy": greedy.scores.mean().item(),
        "eval/kl": kl,
        "eval/rlhf_reward": score - trainer.kl_coef * kl,
        "eval/entropy": -sampled.logprobs.masked_fill(~sampled.mask, 0.0).sum(dim=1).mean().item(),
        "eval/length": sampled.lengths.float().mean().item(),
        "eval/length_greedy": greedy.lengths.float().mean().item(),
        "eval/ended": sampled.ended.float().mean().item(),
    }
    rows = [
        {"prompt": prompt, "sampled": text, "score": score, "greedy": greedy_text, "score_greedy": greedy_score}
        for prompt, text, score, greedy_text, greedy_score in zip(
            prompts, sampled.responses, sampled.scores.tolist(), greedy.responses, greedy.scores.tolist(), strict=True
        )
    ]
    return metrics, rows


@dataclass
class Best:
    """The best held-out score so far, and for how many evaluations nothing has beaten it."""

    score: float = -math.inf
    update: int | None = None
    evaluations_since: int = 0

    def beaten_by(self, score: float, update: int, min_delta: float = 0.0) -> bool:
        """Whether `score` beats the best by more than `min_delta`; it then becomes the best."""
        if score > self.score + min_delta:
            self.score, self.update, self.evaluations_since = score, update, 0
            return True
        self.evaluations_since += 1
        return False
