"""What a long run stands on: checkpoints and resuming, schedules, memory, evaluation, logs. Knows no command line."""
