"""`python -m ppo_lib`: see ppo_lib/commands/cli.py."""

from ppo_lib.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
