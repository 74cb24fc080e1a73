"""v0 learns on the embedded worlds, with its default settings, in seconds."""

import pytest
import torch

from ppo_lib import worlds
from ppo_lib.ppo import PPODataset, PPOTrainer
from ppo_lib.worlds import reviews


def test_the_three_line_call_learns(threshold):
    """The call of the README, with no other argument, lifts the gold reward from about 0 to above 1."""
    prompts = ["The film was", "I thought the acting", "Honestly, the plot"]
    history = PPOTrainer().train(PPODataset(prompts))
    threshold.below(history[0]["objective/scores"], 0.4, "the base model's score")
    threshold.above(history[-1]["objective/scores"], 1.0, "v0's score on `reviews` after its default run")


@pytest.mark.parametrize("seed", range(3))
def test_gold_reward_passes_one_within_a_thousand_responses(seed, threshold):
    world = worlds.load("reviews")
    history = PPOTrainer(seed=seed, total_episodes=800).train(PPODataset(world.prompts))
    last_three = sum(m["objective/scores"] for m in history[-3:]) / 3
    threshold.above(last_three, 1.0, "v0's gold reward after 800 responses")
    threshold.below(history[-1]["objective/kl"], 40, "the KL that v0's reward was bought with")


def test_without_a_reward_signal_nothing_is_learned(threshold):
    """The control: a constant reward leaves the gold reward where it was."""
    world = worlds.load("reviews")
    ppo = PPOTrainer(reward=lambda prompts, responses: [1.0] * len(prompts), total_episodes=320)
    ppo.train(PPODataset(world.prompts))
    gold = torch.as_tensor(world.reward(world.heldout_prompts, ppo.generate(world.heldout_prompts))).mean().item()
    threshold.below(gold, 0.6, "gold reward that nothing rewarded")


def test_pressing_on_the_proxy_lowers_gold(threshold):
    """Over-optimisation can be seen: without a KL penalty the learned reward model says good while gold says bad."""
    world, gold = worlds.load("reviews"), []
    ppo = PPOTrainer(reward=reviews.load_reward_model(), kl_coef=0.0, total_episodes=1280)
    history = ppo.train(
        PPODataset(world.prompts),
        callback=lambda ppo, rollout, metrics: gold.append(sum(world.reward(rollout.prompts, rollout.responses)) / 32),
    )
    threshold.above(history[-1]["objective/scores"], 1.5, "the proxy's score when only it counts")
    threshold.above(max(gold) - gold[-1], 0.5, "gold's fall from its peak when only the proxy counts")
