"""Learning-rate schedules by name: transformers', torch's, and a plateau on the held-out score, all with warm-up."""

import difflib
import warnings
from collections import Counter

import torch
from torch import nn
from torch.optim import AdamW, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR
from transformers import SchedulerType, get_scheduler

PLATEAU = {"plateau", "reduce_lr_on_plateau", "ReduceLROnPlateau"}


class Schedule:
    """The learning rate of each update.

    Update i of the `warmup` first ones has (i + 1) / (warmup + 1) of the learning rate: none is wasted at 0. A plateau
    lowers it when the held-out score stops rising.

    Raises:
        ValueError: there is no schedule of that name, or it does not take these `kwargs`.
    """

    def __init__(self, name: str, optimizer: Optimizer, updates: int, warmup: int = 0, kwargs: dict | None = None):
        self.on_plateau = name in PLATEAU
        self.warmup_left = warmup if self.on_plateau else 0  # SequentialLR cannot hold a plateau
        rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup) if warmup else None
        if warmup >= updates:
            raise ValueError(f"`warmup_updates`={warmup} leaves none of the run's {updates} updates: lower it")
        try:
            after = self._after_warmup(name, optimizer, updates - warmup, kwargs or {})
        except (TypeError, ValueError) as error:
            raise ValueError(f"`lr_scheduler`={name!r} with `lr_scheduler_kwargs`={kwargs}: {error}") from error
        if rising is None:
            self.parts = [after]
        elif self.on_plateau:
            self.parts = [after, rising]
        else:
            self.parts = [SequentialLR(optimizer, [rising, after], milestones=[warmup])]

    @classmethod
    def rehearse(cls, name: str, rate: float, updates: int, warmup: int = 0, kwargs: dict | None = None) -> None:
        """Go through all updates of a run at no cost, so that what could fail in the middle fails before it.

        Raises:
            ValueError: the schedule does not come to the run's end.
        """
        nothing = AdamW([nn.Parameter(torch.zeros(1))], lr=rate)
        schedule = cls(name, nothing, updates, warmup, kwargs)
        for update in range(updates):
            nothing.step()
            try:
                schedule.step(-float(update))  # a held-out score that only falls
            except Exception as error:
                raise ValueError(
                    f"`lr_scheduler`={name!r} with `lr_scheduler_kwargs`={kwargs} fails after update {update + 1} of "
                    f"{updates}: {error}"
                ) from error

    @staticmethod
    def _after_warmup(name: str, optimizer: Optimizer, updates: int, kwargs: dict) -> LRScheduler:
        if name in PLATEAU:
            return ReduceLROnPlateau(optimizer, mode="max", **kwargs)
        if name.startswith("constant") and kwargs:
            raise ValueError("a constant takes no keywords")  # transformers would drop them
        known = [kind.value for kind in SchedulerType if kind.value != "greedy"]  # which needs the loss at each step
        if name in known:
            return get_scheduler(name, optimizer, 0, updates, kwargs)
        scheduler = getattr(lr_scheduler, name, None)
        if not (isinstance(scheduler, type) and issubclass(scheduler, LRScheduler)):
            known += ["plateau", *(kind.__name__ for kind in LRScheduler.__subclasses__())]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise ValueError(f"no such schedule; did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
        return scheduler(optimizer, **kwargs)

    def step(self, heldout_score: float | None = None) -> None:
        """Move to the next update; a plateau looks at `heldout_score` where there is one."""
        schedule = self.parts[0]
        if self.warmup_left:
            self.warmup_left -= 1
            self.parts[-1].step()
        elif not isinstance(schedule, ReduceLROnPlateau):
            schedule.step()
        elif heldout_score is not None:
            schedule.step(heldout_score)

    def skip(self, updates: int) -> None:
        """Stand where `updates` updates lead, none of which is done here."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # before the optimiser's
            for _ in range(updates):
                self.step()

    def scale(self, factor: float) -> None:
        """Multiply the learning rate of this and all later updates by `factor`."""
        for part in self.parts:
            for scheduler in getattr(part, "_schedulers", [part]):
                for name in ("base_lrs", "max_lrs"):
                    if hasattr(scheduler, name):
                        setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
        for group in self.parts[0].optimizer.param_groups:
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):  # a one-cycle schedule keeps its heights here
                if name in group:
                    group[name] *= factor

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to go on; numbers and strings only."""
        return {"warmup_left": self.warmup_left, "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        self.warmup_left = state["warmup_left"]
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
            for scheduler in getattr(part, "_schedulers", [part]):
                if isinstance(scheduler, lr_scheduler.MultiStepLR):
                    scheduler.milestones = Counter(scheduler.milestones)  # which a checkpoint keeps as a plain dict
