"""`python -m ppo_lib …`: what stands above the trainers. Nothing in `ppo_lib/` itself imports it."""
