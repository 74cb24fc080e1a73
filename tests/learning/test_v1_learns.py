"""v1 learns on the embedded world with the settings of a long run, in seconds."""

import torch

from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOTrainer

PRODUCTION = dict(
    batch_size=16, minibatch_size=16, gradient_accumulation_steps=2, total_episodes=800, device="cpu",
    lr_scheduler="cosine", warmup_updates=2, learning_rate=2e-3, kl_target=10.0, kl_horizon=2_000, eval_every=5,
)  # fmt: skip


def test_v1_learns_with_production_settings(threshold):
    """Held-out gold reward passes 1 while β steers the KL."""
    world = worlds.load("reviews")
    ppo = PPOTrainer(**PRODUCTION)
    history = ppo.train(world.prompts, world.heldout_prompts[:16])
    first, last = ppo.evaluations[0]["eval/score"], ppo.evaluations[-1]["eval/score"]
    threshold.below(first, 0.5, "the untrained policy's held-out score")
    threshold.above(last, 1.0, "v1's held-out score after 800 responses")
    assert ppo.best.score >= last, "the best held-out score is below the last one"
    threshold.below(history[-1]["objective/kl"], 40, "the KL that v1's reward was bought with")
    assert ppo.skipped_steps == 0, "steps of a healthy run were skipped"


def test_adapters_learn(threshold):
    world = worlds.load("reviews")
    ppo = PPOTrainer(lora_rank=8, total_episodes=640, learning_rate=2e-3, device="cpu")
    frozen = {name: p.clone() for name, p in ppo.policy.named_parameters() if not p.requires_grad}
    history = ppo.train(world.prompts)
    first, last = (sum(m["objective/scores"] for m in part) / 3 for part in (history[:3], history[-3:]))
    threshold.above(last, 0.3, "gold reward that adapters reach")
    threshold.above(last - first, 0.3, "gold reward that adapters gain")
    now = dict(ppo.policy.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items()), "frozen weights moved"
