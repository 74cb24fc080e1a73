"""PPO for language models, built in three stages: v0 (`ppo`), v1 (`ppo_v1`) and v2 (`ppo_v2`)."""

import logging

# Where bitsandbytes is installed, peft imports it, and on a CPU it complains of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.2.0.dev0"  # the one place where it stands
