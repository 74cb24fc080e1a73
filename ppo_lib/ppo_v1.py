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
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from ppo_lib import ppo
from ppo_lib import rollout as rollouts
from ppo_lib.config import PPOConfigV1
from ppo_lib.data import PPODataset, Prompts, as_dataset
from ppo_lib.models import Critic, HeadOnTrunk, save_models
from ppo_lib.ppo import Metrics, as_numbers
from ppo_lib.rewards import RewardFunction, RewardModel, as_reward
from ppo_lib.rollout import Rollout, concatenate
from ppo_lib.running import checkpoint, memory, resume
from ppo_lib.running.evaluation import Best, evaluate
from ppo_lib.running.memory import FittingSize
from ppo_lib.running.schedules import Schedule
from ppo_lib.running.trackers import Console, JSONLines, append_yaml, log_samples, run_facts, slim, surviving
from ppo_lib.sampling import graphs

__all__ = ["PPOConfigV1", "PPODataset", "PPOTrainer"]


class PPOTrainer(ppo.PPOTrainer):
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

    config_class = PPOConfigV1
    config: PPOConfigV1
    optimizer: AcceleratedOptimizer

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
        if config.share_trunk or config.logits_chunk:
            for model in (self.policy, self.reference):
                memory.check_head(model)
        self.accelerator = self._make_accelerator()
        self.eval_reward = as_reward(eval_reward) if eval_reward else self.reward
        if isinstance(self.eval_reward, RewardModel):
            self.eval_reward.bind(self.policy, self.tokenizer)
        self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        course = config.num_updates, config.warmup_updates, config.lr_scheduler_kwargs
        Schedule.rehearse(config.lr_scheduler, config.learning_rate, *course)
        self.schedule = self.make_schedule()
        self.micro_batch = FittingSize("training", config.minibatch_size)
        self.forward_batch = FittingSize.of(config)
        self._longest = 0  # tokens of a prompt and its response, of those seen so far
        self.evaluations: list[Metrics] = []  # held-out metrics by update, the first at update 0
        self.samples: list[dict] = []  # held-out responses as texts, with update and scores
        self.best = Best()
        self.skipped_steps = self.skipped_in_a_row = 0
        self.eval_dataset: PPODataset | None = None
        self.run_id = uuid.uuid4().hex
        self.resumed_state: dict | None = None  # what the next `train` goes on from
        if state is not None:
            resume.restore(self, state)

    # models and optimiser

    def make_critic(self, critic: Critic | None) -> Critic:
        """v0's; with `share_trunk`, a value head on the policy's own trunk."""
        return HeadOnTrunk(self.policy, critic) if self.config.share_trunk else super().make_critic(critic)

    def make_reference(self, reference: PreTrainedModel | None) -> PreTrainedModel:
        """v0's; with adapters, the policy itself with its adapters off."""
        config = self.config
        if config.lora_rank:
            for trunk in self._trunks():
                memory.add_adapters(trunk, config.lora_rank, config.lora_alpha, config.seed)
            memory.freeze_in(self.policy, getattr(torch, config.frozen_dtype))
            memory.freeze_in(self.critic, getattr(torch, config.frozen_dtype))
            reference = reference or self.policy
        reference = super().make_reference(reference)
        if config.activation_checkpointing:
            for trunk in self._trunks():
                memory.checkpoint_activations(trunk)
        return reference

    def _trunks(self) -> list[PreTrainedModel]:
        return [self.policy] if self.config.share_trunk else [self.policy, self.critic.trunk]

    def make_optimizer(self) -> torch.optim.Optimizer:
        if self.config.optimizer == "adamw":
            return super().make_optimizer()
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise ImportError("`optimizer`='adamw_8bit' needs a package: pip install bitsandbytes") from error
        parameters = [p for p in (*self.policy.parameters(), *self.critic.parameters()) if p.requires_grad]
        return AdamW8bit(parameters, lr=self.config.learning_rate, weight_decay=0.0)

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

    def _make_accelerator(self) -> Accelerator:
        config = self.config
        trackers: list[GeneralTracker | str] = []
        if config.mixed_precision == "fp16" and self.device.type != "cuda":
            raise ValueError("`mixed_precision`='fp16' needs a GPU: use \"bf16\" on a CPU")
        if config.output_dir:
            trackers.append(JSONLines(Path(config.output_dir) / "metrics.jsonl"))
        trackers += [Console() if name == "console" else name for name in config.report_to]
        for name in set(config.report_to) - {"console"} - {str(kind) for kind in get_available_trackers()}:
            raise ImportError(f"`report_to` names {name}, which is not installed: pip install {name}")
        logging_dir = config.output_dir and str(Path(config.output_dir) / "tensorboard")
        AcceleratorState._reset_state(reset_partial_state=True)  # as transformers does: it is shared by the process
        accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision=config.mixed_precision,
            log_with=trackers or None,
            project_config=ProjectConfiguration(config.output_dir, logging_dir),
            # Accumulation is ours; without this an environment variable would divide every loss.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        self.jsonl = next((tracker for tracker in trackers if isinstance(tracker, JSONLines)), None)
        return accelerator

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of every forward pass: mixed precision where it is set."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.mixed_precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

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

    def rehearse(self, dataset: PPODataset) -> None:
        """As in v0, in the run's own precision, and with adapters that do something; then adapters are saved, on trial.

        Raises:
            ValueError: as in v0; or adapters could not be saved merged.
        """
        lora = self.config.lora_rank
        with self.autocast(), memory.as_if_trained(self.policy) if lora else contextlib.nullcontext():
            super().rehearse(dataset)
        for trunk in self._trunks() if lora else ():
            memory.rehearse_saving(trunk, self.config.output_dir)

    def check_room(self, dataset: PPODataset) -> int:
        """As in v0; how many responses are computed at a time without gradients follows from the longest."""
        self._longest = max(self._longest, super().check_room(dataset))
        self.forward_batch.aim(memory.forward_size(self.config, self.policy.config, self._longest))
        return self._longest

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

    # forward passes

    def respond(
        self, prompts: list[str], generator: torch.Generator, greedy: bool = False, tokens: int | None = None
    ) -> Rollout:
        tokens, temperature = tokens or self.config.max_new_tokens, self.config.temperature
        uniforms = rollouts.draw_uniforms(generator, tokens, len(prompts))  # whatever the parts, the same ones

        def work(size: int) -> Rollout:
            parts: list[Rollout] = []
            for rows in (slice(first, first + size) for first in range(0, len(prompts), size)):
                if parts:
                    self.tell(f"{rows.start} of {len(prompts)} responses sampled")
                part = rollouts.sample(
                    self.policy, self.tokenizer, prompts[rows], tokens, temperature, None, greedy,
                    uniforms[:, rows], self.decoder,
                )  # fmt: skip
                parts.append(part)
            return concatenate(parts, self.tokenizer.pad_token_id)

        with self.autocast():
            rollout = self.forward_batch.fit(work)
        rollouts.spend_uniforms(generator, rollout.mask.shape[1], len(prompts))
        if self.config.activation_checkpointing:
            graphs.forget()  # memory is short, and training needs it
        return rollout

    def logits(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        response_logits = memory.response_logits_only if self.config.response_logits_only else rollouts.response_logits
        with self.autocast():
            return response_logits(model, rollout, self.config.temperature)

    def logprobs(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        if not self.config.logits_chunk:
            return super().logprobs(model, rollout)
        with self.autocast():
            states = memory.response_states(model, rollout)
            return self._of_head(model, states, rollout)[0].masked_fill(~rollout.mask, 0.0)

    def predictions(self, minibatch: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """v0's; with `share_trunk` or `logits_chunk`, from the states that the policy's head sees."""
        config = self.config
        if not config.share_trunk and not config.logits_chunk:
            return super().predictions(minibatch)
        with self.autocast():
            states = memory.response_states(self.policy, minibatch)
            values = self.critic.values(states) if config.share_trunk else self.values(minibatch)
            return *self._of_head(self.policy, states, minibatch), values[:, :-1]

    def _of_head(self, model: PreTrainedModel, states: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """log π(a_t) and entropy, [B, T] each, from `memory.response_states`."""
        config = self.config
        return memory.token_predictions(
            model.get_output_embeddings(), states[:, :-1], rollout.response_ids, config.temperature,
            config.logits_chunk, config.entropy_coef > 0,
        )  # fmt: skip

    def values(self, rollout: Rollout) -> Tensor:
        with self.autocast():
            return self._in_parts(super().values, rollout)

    def reference_logprobs(self, rollout: Rollout) -> Tensor:
        with memory.adapters_off(self.policy) if self.reference is self.policy else contextlib.nullcontext():
            return self._in_parts(super().reference_logprobs, rollout)

    def _in_parts(self, forward: Callable[[Rollout], Tensor], rollout: Rollout) -> Tensor:
        """`forward(rollout)`; without gradients in parts that fit in memory."""
        if torch.is_grad_enabled():
            return forward(rollout)

        def work(size: int) -> Tensor:
            if len(rollout) <= size:
                return forward(rollout)
            return torch.cat([forward(rollout.select(rows)) for rows in torch.arange(len(rollout)).split(size)])

        return self.forward_batch.fit(work)

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
        if self._too_far:
            self.optimizer.zero_grad(set_to_none=True)  # a step without gradients moves nothing
        if finite or self.accelerator.scaler is not None:  # a scaler leaves steps out itself, and lowers its scale
            self.optimizer.step()
        self.count_skipped(finite)
        return metrics

    def accumulate(self, minibatch: Rollout, size: int) -> dict[str, Tensor]:
        """Add up the gradients of micro-batches of `size` responses, each weighted by its share of the tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        parts, counts = [], []
        by_length = minibatch.lengths.argsort()  # so that little of a micro-batch is padding
        for rows in by_length.split(size):
            micro = minibatch if len(rows) == len(minibatch) else minibatch.select(rows).trimmed()
            loss, metrics = self.loss(micro)
            self.accelerator.backward(loss * (micro.mask.sum() / minibatch.mask.sum()))
            parts.append(metrics)
            counts.append(micro.mask.sum())
        return joined_metrics(parts, torch.stack(counts))

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

    def save(self, folder: str | Path) -> None:
        """As in v0; adapters are merged into the weights, so that the models are plain ones again."""
        if self.config.lora_rank:
            policy, critic = memory.merged(self.policy), memory.merged_critic(self.critic)
            save_models(folder, policy, self.tokenizer, critic)
        else:
            super().save(folder)

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


def joined_metrics(parts: list[dict[str, Tensor]], counts: Tensor) -> dict[str, Tensor]:
    """The metrics of a minibatch from those of its micro-batches, which have `counts` [n] tokens each."""
    if len(parts) == 1:
        return parts[0]
    shares = counts / counts.sum()
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    metrics = {name: (values * shares).sum() for name, values in stacked.items()}
    # A variance is no mean: add up squares within the parts and between them.
    squares = (stacked["val/ratio_var"] * (counts - 1)).sum()
    squares += (counts * (stacked["val/ratio"] - metrics["val/ratio"]) ** 2).sum()
    metrics["val/ratio_var"] = squares / (counts.sum() - 1).clamp(min=1)
    return metrics
