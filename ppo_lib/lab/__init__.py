"""What a reader looks at: figures, widgets, exercises, stored results. Nothing in `ppo_lib/` itself imports it."""
