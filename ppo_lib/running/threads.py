"""How many threads a CPU computes with: one for a small model, whose second thread would mostly wait for the first."""

import logging
import os

import torch
from torch import nn

SMALL = 250_000  # parameters; below, a second thread gains little alone and costs much on a busy machine
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # variables by which somebody has chosen already
LOGGER = logging.getLogger(__name__)
_by_default = torch.get_num_threads()
_lowered = False


def settle_threads(*models: nn.Module | None) -> int:
    """Choose torch's threads for `models`, the largest of them deciding, and return their number.

    One below `SMALL` parameters, else what torch chose for this machine (measured by `benchmarks/threads.py`). It
    stays as it is where somebody has chosen, by a variable in `CHOSEN` or by `torch.set_num_threads` with another
    number than torch's own, and where a model lies on a GPU. A change is told in the log.
    """
    global _lowered
    parameters = [[p for p in model.parameters()] for model in models if model is not None]
    largest = max((sum(p.numel() for p in each) for each in parameters), default=0)
    now = torch.get_num_threads()
    if any(name in os.environ for name in CHOSEN) or any(p.device.type != "cpu" for each in parameters for p in each):
        return now
    if largest < SMALL and now == _by_default > 1:
        wanted, _lowered = 1, True
    elif largest >= SMALL and _lowered and now == 1:
        wanted, _lowered = _by_default, False
    else:
        return now
    torch.set_num_threads(wanted)
    LOGGER.info("%d of %d CPU threads for %d parameters (OMP_NUM_THREADS chooses)", wanted, _by_default, largest)
    return wanted
