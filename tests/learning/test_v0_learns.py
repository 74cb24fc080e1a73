"""v0 learns on the embedded worlds, with its default settings, in seconds."""

import pytest
import torch

from ppo_lib import worlds
from ppo_lib.ppo import PPODataset, PPOTrainer
from ppo_lib.worlds import reviews


def test_the_three_line_call_learns():
    """The call of the README, with no other argument, lifts the gold reward from about 0 to above 1."""
    prompts = ["The film was", "I thought the acting", "Honestly, the plot"]
    history = PPOTrainer().train(PPODataset(prompts))
    assert history[0]["objective/scores"] < 0.4
    assert history[-1]["objective/scores"] > 1.0, "v0 does not learn on `reviews`"


@pytest.mark.parametrize("seed", range(5))
def test_gold_reward_passes_one_within_a_thousand_responses(seed):
    world = worlds.load("reviews")
    history = PPOTrainer(seed=seed, total_episodes=800).train(PPODataset(world.prompts))
    last_three = sum(m["objective/scores"] for m in history[-3:]) / 3
    assert last_three > 1.0, f"mean gold reward {last_three:.2f} after {history[-1]['episode']} responses"
    assert history[-1]["objective/kl"] < 40, "the reward was bought with an absurd distance to the reference"


def test_without_a_reward_signal_nothing_is_learned():
    """The control: a constant reward leaves the gold reward where it was."""
    world = worlds.load("reviews")
    ppo = PPOTrainer(reward=lambda prompts, responses: [1.0] * len(prompts), total_episodes=320)
    ppo.train(PPODataset(world.prompts))
    gold = torch.as_tensor(world.reward(world.heldout_prompts, ppo.generate(world.heldout_prompts))).mean().item()
    assert gold < 0.6, f"gold rose to {gold:.2f} although nothing rewarded it"


def test_pressing_on_the_proxy_lowers_gold():
    """Over-optimisation can be seen: without a KL penalty the learned reward model says good while gold says bad."""
    world, gold = worlds.load("reviews"), []
    ppo = PPOTrainer(reward=reviews.load_reward_model(), kl_coef=0.0, total_episodes=1280)
    history = ppo.train(
        PPODataset(world.prompts),
        callback=lambda ppo, rollout, metrics: gold.append(sum(world.reward(rollout.prompts, rollout.responses)) / 32),
    )
    assert history[-1]["objective/scores"] > 1.5, "the proxy should be satisfied"
    assert gold[-1] < max(gold) - 0.5, f"gold should fall from its peak of {max(gold):.2f}, but ends at {gold[-1]:.2f}"
