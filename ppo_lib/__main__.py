"""`python -m ppo_lib`: see ppo_lib/cli.py."""

from ppo_lib.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
