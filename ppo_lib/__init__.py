"""PPO for language models, built in three stages: v0 (`ppo`), v1 (`ppo_v1`) and v2 (`ppo_v2`)."""

__version__ = "0.1.0"
