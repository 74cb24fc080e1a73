"""v1: the loop of v0 with what a long run needs. It adds to v0's methods and copies none."""

import contextlib
import dataclasses
import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker, get_available_trackers
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from ppo_lib import ppo
from ppo_lib.config import PPOConfigV1
from ppo_lib.data import PPODataset, Prompts, as_dataset
from ppo_lib.losses import regression_loss
from ppo_lib.ppo import Metrics, as_numbers
from ppo_lib.rewards import RewardFunction, RewardModel, as_reward
from ppo_lib.rollout import Rollout
from ppo_lib.running import checkpoint, resume
from ppo_lib.running.evaluation import Best, evaluate
from ppo_lib.running.schedules import Schedule
from ppo_lib.running.small_memory import SmallMemoryTrainer
from ppo_lib.running.trackers import Console, JSONLines, append_yaml, log_samples, run_facts, slim, surviving

__all__ = ["PPOConfigV1", "PPODataset", "PPOTrainer"]


class PPOTrainer(SmallMemoryTrainer):
    """v0's trainer with schedules, accumulation, memory options, evaluation, early stopping, logs and checkpoints.

    Args:
        resume_from_checkpoint: None starts afresh; True goes on from the newest whole checkpoint in
            `output_dir`, or starts afresh where there is none; a path names a checkpoint or an `output_dir`.
            Settings are then the checkpoint's, unless given here, and the run goes on in its own folder, unless
            `output_dir` is given.
        eval_reward: judges the held-out responses; by default the reward that is trained on. One that is not
            trained on sees over-optimisation.
        model, reward, tokenizer, reference, critic, config, **settings: as in v0.

    Raises:
        CheckpointError: there is no whole checkpoint at the given path, or it is of another model or reference.
        ValueError, TypeError: as in v0.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike | None = None,
        reward: RewardFunction | None = None,
        *,
        resume_from_checkpoint: bool | str | Path | None = None,
        eval_reward: RewardFunction | None = None,
        config: PPOConfigV1 | None = None,
        **others: Any,
    ):
        state = None
        if resume_from_checkpoint:
            output_dir = others.get("output_dir") or (config.output_dir if config else None)
            state, self._run_dir = resume.find_state(resume_from_checkpoint, output_dir)
        if state is not None:
            if not output_dir and "output_dir" not in others and self._run_dir and state["config"]["output_dir"]:
                others["output_dir"] = str(self._run_dir)
            config = resume.settings(self.config_class, state, config, others)
        super().__init__(model, reward, config=config, **others)
        config = self.config
        self.eval_reward = as_reward(eval_reward) if eval_reward else self.reward
        if isinstance(self.eval_reward, RewardModel):
            self.eval_reward.bind(self.policy, self.tokenizer)
        course = config.num_updates, config.warmup_updates, config.lr_scheduler_kwargs
        Schedule.rehearse(config.lr_scheduler, config.learning_rate, *course)
        self.schedule = self.make_schedule()
        self.evaluations: list[Metrics] = []  # held-out metrics by update, the first at update 0
        self.samples: list[dict] = []  # held-out responses as texts, with update and scores
        self.best = Best()
        self.skipped_steps = self.skipped_in_a_row = 0
        self.eval_dataset: PPODataset | None = None
        self.run_id = uuid.uuid4().hex
        self._policy_rests = False
        self.resumed_state: dict | None = None  # what the next `train` goes on from
        if state is not None:
            resume.restore(self, state)

    def make_trackers(self) -> list[GeneralTracker | str]:
        """A tracker of metrics.jsonl where there is an `output_dir`, and those that `report_to` names."""
        config = self.config
        for name in set(config.report_to) - {"console"} - {str(kind) for kind in get_available_trackers()}:
            raise ImportError(f"`report_to` names {name}, which is not installed: pip install {name}")
        self.jsonl = JSONLines(Path(config.output_dir) / "metrics.jsonl") if config.output_dir else None
        own = [self.jsonl] if self.jsonl else []
        return [*own, *(Console() if name == "console" else name for name in config.report_to)]

    def make_schedule(self, updates_done: int = 0) -> Schedule:
        """The run's schedule from its beginning, moved on by `updates_done`."""
        config, optimizer = self.config, self.optimizer.optimizer
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate
            group.pop("initial_lr", None)
        course = config.num_updates, config.warmup_updates, config.lr_scheduler_kwargs
        schedule = Schedule(config.lr_scheduler, optimizer, *course)
        schedule.skip(updates_done)
        return schedule

    # the run

    def train(  # type: ignore[override]  # held-out prompts stand beside those to train on
        self,
        train_dataset: PPODataset | Prompts,
        eval_dataset: PPODataset | Prompts | None = None,
        callback: Callable[["PPOTrainer", Rollout, Metrics], bool | None] | None = None,
    ) -> list[Metrics]:
        """As v0's, with held-out evaluations; a resumed run goes on from its checkpoint.

        Args:
            train_dataset: as in v0.
            eval_dataset: held-out prompts, answered before the first update, every `eval_every` ones and after
                the last, with the same random numbers each time. Training does not notice.
            callback: as in v0.

        Raises:
            ValueError: as in v0; or a setting needs held-out prompts and there are none.
            FloatingPointError: `max_skipped_steps` steps in a row had no finite gradient.
        """
        if callable(eval_dataset):
            raise TypeError("`eval_dataset` is a function: in v1 it is held-out prompts; pass train(data, callback=…)")
        needing = {"early_stopping_patience": self.config.early_stopping_patience, "plateau": self.schedule.on_plateau}
        for name, wanted in needing.items():
            if wanted and eval_dataset is None:
                raise ValueError(f"`{name}` needs held-out prompts: train(train_dataset, eval_dataset)")
        self.eval_dataset = None if eval_dataset is None else as_dataset(eval_dataset)
        self._callback = callback
        try:
            return super().train(train_dataset, self.after_update)
        finally:
            for tracker in self.accelerator.trackers:
                with surviving(tracker):
                    tracker.finish()
            self.accelerator.trackers = []

    def _save_after(self, error: BaseException) -> None:
        super()._save_after(error)
        error.add_note(
            f"with `resume_from_checkpoint` the run goes on from {self._last_good()}, the newest one: after a blow-up, "
            "look at the log first, and take an earlier one where that was already ruined"
        )

    @property
    def updates_left(self) -> int:
        """As in v0; none once patience is out."""
        return 0 if self.out_of_patience else super().updates_left

    @property
    def is_over(self) -> bool:
        """As in v0; a whole run that is resumed stays whole."""
        return super().is_over and not self.resumed_state

    def begin_again(self) -> None:
        """As in v0, with the schedule and the patience of a new run."""
        super().begin_again()
        self.schedule = self.make_schedule()
        self.best.evaluations_since = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether `early_stopping_patience` evaluations in a row brought no new best."""
        return self.best.evaluations_since >= (self.config.early_stopping_patience or math.inf)

    def prepare(self, dataset: PPODataset) -> None:
        if self.resumed_state:
            heldout = self.eval_dataset.prompts if self.eval_dataset else None
            resume.check_prompts(self.resumed_state, dataset.prompts, heldout)
        if self.eval_dataset:
            self.check_room(self.eval_dataset)
        super().prepare(dataset)
        self._start_trackers()
        if self.resumed_state:
            resume.restore_data(self, self.resumed_state)
        self.resumed_state = None
        self._last_update = len(self.history) + self.updates_left

    def begin(self) -> None:
        """Write the first checkpoint and evaluate the policy as it is."""
        if self.config.output_dir and not checkpoint.checkpoints(self.checkpoint_dir):
            self.save_checkpoint()  # so that a run can be resumed whenever it dies
        if self.eval_dataset and not self.history and not self.evaluations:
            self.record({"episode": 0, "update": 0, **self.evaluate_at(0)})

    def reward_models(self) -> Iterator[tuple[str, RewardModel]]:
        yield from super().reward_models()
        if isinstance(self.eval_reward, RewardModel) and self.eval_reward is not self.reward:
            yield "held-out judge", self.eval_reward

    def train_step(self, prompts: list[str]) -> tuple[Metrics, Rollout]:
        """v0's update, then β and, when it is due, the evaluation."""
        metrics, rollout = super().train_step(prompts)
        metrics["objective/kl_coef"] = self.kl_coef
        metrics["train/skipped_steps"] = self.skipped_steps
        self.adapt_kl(metrics["objective/kl"])
        update = len(self.history) + 1
        if self.eval_dataset and (update % self.config.eval_every == 0 or update == self._last_update):
            metrics |= self.evaluate_at(update)
        return metrics, rollout

    def after_update(self, trainer: ppo.PPOTrainer, rollout: Rollout, metrics: Metrics) -> bool:
        """Step the schedule, keep the best, write a checkpoint; whether the run should stop."""
        config, update, score = self.config, len(self.history), metrics.get("eval/score")
        self.schedule.step(score)
        better = score is not None and self.best.beaten_by(score, update, config.early_stopping_min_delta)
        if better and config.output_dir:
            self._keep_running(lambda: self.save(self.best_dir), "the best model")
        stop = bool(self._callback and self._callback(self, rollout, metrics)) or self.out_of_patience
        due = better or stop or update % config.save_every == 0 or update == self._last_update
        if due and config.output_dir:
            self.save_checkpoint()
        return stop

    def evaluate_at(self, update: int) -> Metrics:
        """Evaluate on the held-out prompts, and keep metrics and some responses as those of `update`."""
        assert self.eval_dataset is not None
        self.tell(f"evaluating {len(self.eval_dataset)} prompts")
        rng = checkpoint.rng_state()  # a reward may draw from the process's generators
        metrics, rows = evaluate(self, self.eval_dataset.prompts, self.eval_reward, self.config.seed)
        checkpoint.set_rng_state(rng)
        rows = [{"update": update, **row} for row in rows[: self.config.eval_samples]]
        for told, new in ((self.evaluations, [{"update": update, **metrics}]), (self.samples, rows)):
            told[:] = [row for row in told if row["update"] != update] + new  # an update that was interrupted is redone
        if rows:
            log_samples(self.accelerator.trackers, rows, update)
        return metrics

    def adapt_kl(self, kl: float) -> None:
        """Steer β towards `kl_target` nats per response (Ziegler et al. 2019, section 2.2)."""
        config = self.config
        if config.kl_target and math.isfinite(kl):
            error = min(max(kl / config.kl_target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + error * config.rollout_size / config.kl_horizon

    def update(self, rollout: Rollout) -> Metrics:
        """v0's; before the run's first one the critic alone learns from the rollout, `critic_warmup` times."""
        for _ in range(0 if self.history else self.config.critic_warmup):
            with self.policy_at_rest():
                super().update(rollout)
            with torch.no_grad():
                rollout.values = self.values(rollout)
            self.assign_credit(rollout)
        return super().update(rollout)

    @contextlib.contextmanager
    def policy_at_rest(self) -> Iterator[None]:
        """Within the block optimiser steps move the critic alone."""
        self._policy_rests = True
        try:
            yield
        finally:
            self._policy_rests = False

    # optimiser steps

    def minibatches(self, rollout: Rollout) -> Iterator[Rollout]:
        """v0's, until a step has gone further than `kl_stop`."""
        self._too_far = False
        for minibatch in super().minibatches(rollout):
            yield minibatch
            if self._too_far:
                return

    def step(self, minibatch: Rollout) -> Metrics:
        """One optimiser step from micro-batches; left out where the policy is too far or a gradient is not finite."""
        config = self.config
        metrics = self.micro_batch.fit(lambda size: self.accumulate(minibatch, size))
        if self.accelerator.scaler:  # its own unscale_gradients asks a state that all trainers of the process share
            self.accelerator.scaler.unscale_(self.optimizer.optimizer)
        for name, network in (("policy/grad_norm", self.policy), ("val/grad_norm", self.critic)):
            metrics[name] = torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        metrics = as_numbers(metrics)
        self._too_far = metrics["policy/approxkl_avg"] > (config.kl_stop or math.inf)
        finite = math.isfinite(metrics["policy/grad_norm"]) and math.isfinite(metrics["val/grad_norm"])
        if self._policy_rests:
            self.policy.zero_grad(set_to_none=True)
        if self._too_far:
            self.optimizer.zero_grad(set_to_none=True)  # a step without gradients moves nothing
        if finite or self.accelerator.scaler is not None:  # a scaler leaves steps out itself, and lowers its scale
            self.optimizer.step()
        self.count_skipped(finite)
        return metrics

    def policy_term(self, logprobs: Tensor, minibatch: Rollout) -> Tensor:
        """v0's, or the one that `policy_objective` names."""
        config = self.config
        if config.policy_objective == "clip":
            return super().policy_term(logprobs, minibatch)
        estimates = minibatch.logprobs, minibatch.advantages, minibatch.mask
        weights = getattr(minibatch, "weights", 1.0)  # of a batch with replayed responses
        return regression_loss(logprobs, *estimates, config.regression_scale, config.regression_floor, weights)

    def cliprange(self, minibatch: Rollout) -> Any:
        """v0's; upwards, where tokens gain by a higher ratio, it is `cliprange_high`, if that is set."""
        low, high = self.config.cliprange, self.config.cliprange_high
        return low if high is None else torch.where(minibatch.advantages > 0, high, low)

    def count_skipped(self, finite: bool) -> None:
        """Count a step that was left out for a gradient that is not finite; too many in a row end the run."""
        scaler = self.accelerator.scaler
        if finite:
            self.skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        if scaler is None or scaler.get_scale() <= 1:  # else the scale was too high, and is being lowered
            self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            raise FloatingPointError(
                f"{self.skipped_in_a_row} steps in a row had a NaN or infinite gradient, in update "
                f"{len(self.history) + 1}: lower `learning_rate` or the scores, and go on from {self._last_good()}"
            )

    # logs and checkpoints

    @property
    def best_dir(self) -> Path:
        """Where the models of the best held-out score are kept."""
        return self.folder / "best"

    @property
    def checkpoint_dir(self) -> Path:
        return self.folder / "checkpoints"

    def open_output_dir(self) -> None:
        """As in v0; a resumed run cuts its logs back to the checkpoint and goes on with them."""
        folder = self.folder
        if self.resumed_state:
            assert self.jsonl is not None  # a run with an `output_dir` has one
            if self.jsonl.path.exists() and folder.resolve() != self._run_dir:
                raise ValueError(f"`output_dir`={str(folder)!r} holds another run than the resumed one: choose another")
            folder.mkdir(parents=True, exist_ok=True)
            self.config.to_yaml(folder / "config.yaml")
            first = [{"episode": 0, **row} for row in self.evaluations if row["update"] == 0]
            self.jsonl.rewrite(first + self.history)
            self.owns_output_dir = True
        else:
            super().open_output_dir()
        facts = {"update": len(self.history), **run_facts(self.device)}
        append_yaml(folder / "sessions.yaml", facts)

    def _start_trackers(self) -> None:
        config = self.config
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in dataclasses.asdict(config).items()}
        wandb = {"dir": config.output_dir, "mode": config.wandb_mode, "id": self.run_id, "resume": "allow"}
        tensorboard = {"purge_step": len(self.history) + 1}  # hide what a killed run wrote after its checkpoint
        self.accelerator.init_trackers(config.project, plain, {"wandb": wandb, "tensorboard": tensorboard})

    def log(self, metrics: Metrics) -> None:
        super().log(metrics)
        self.history[-1] = slim(metrics)  # else a run of thousands of updates grows by megabytes

    def record(self, metrics: Metrics) -> None:
        """Send metrics to every tracker."""
        for tracker in self.accelerator.trackers:
            with surviving(tracker):
                tracker.log(metrics, step=metrics["update"])

    def state(self) -> dict:
        """All that the rest of the run depends on, for a checkpoint."""
        return resume.state_of(self)

    def save_checkpoint(self) -> None:
        """Write the whole state to `checkpoint_dir`; where the disk does not take it, say so and go on."""

        def work() -> None:
            self.tell("saving a checkpoint")
            checkpoint.save_checkpoint(self.checkpoint_dir, len(self.history), self.state())
            best = set() if self.best.update is None else {checkpoint.name_of(self.best.update)}
            checkpoint.prune(self.checkpoint_dir, len(self.history), self.config.keep_last, keep=best)

        self._keep_running(work, "a checkpoint")

    def _keep_running(self, save: Callable[[], None], what: str) -> None:
        try:
            save()
        except (OSError, SafetensorError, torch.OutOfMemoryError) as error:  # safetensors' own: the disk is full
            warnings.warn(
                f"saving {what} after update {len(self.history)} failed ({error}): the run goes on, and would go on "
                f"from {self._last_good()} if it died now; make room in `output_dir`",
                stacklevel=2,
            )

    def _last_good(self) -> str:
        if not self.config.output_dir:
            return "the start: set `output_dir` to keep checkpoints"
        saved = checkpoint.checkpoints(self.checkpoint_dir)
        return str(saved[-1]) if saved else "the start"
