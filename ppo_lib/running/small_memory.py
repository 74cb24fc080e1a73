"""v0's trainer in less memory: adapters, one trunk, mixed precision, logits in chunks, batches in parts."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch import Tensor
from transformers import PreTrainedModel

from ppo_lib import ppo
from ppo_lib import rollout as rollouts
from ppo_lib.config import PPOConfigV1
from ppo_lib.data import PPODataset
from ppo_lib.models import Critic, HeadOnTrunk, save_models
from ppo_lib.rewards import RewardFunction
from ppo_lib.rollout import Rollout, concatenate
from ppo_lib.running import memory
from ppo_lib.running.memory import FittingSize
from ppo_lib.sampling import graphs


class SmallMemoryTrainer(ppo.PPOTrainer):
    """v0's networks, forward passes and gradients, in the memory that the settings leave them. v1 trains on it.

    Args, raises: as v0's trainer.
    """

    config_class = PPOConfigV1
    config: PPOConfigV1
    optimizer: AcceleratedOptimizer

    def __init__(
        self, model: PreTrainedModel | str | os.PathLike | None = None, reward: RewardFunction | None = None,
        **others: Any,
    ):  # fmt: skip
        super().__init__(model, reward, **others)
        config = self.config
        if config.share_trunk or config.logits_chunk:
            for network in (self.policy, self.reference):
                memory.check_head(network)
        self.accelerator = self._make_accelerator()
        self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        self.micro_batch = FittingSize("training", config.minibatch_size)
        self.forward_batch = FittingSize.of(config)
        self._longest = 0  # tokens of a prompt and its response, of those seen so far

    # networks and optimiser

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

    def _make_accelerator(self) -> Accelerator:
        config = self.config
        if config.mixed_precision == "fp16" and self.device.type != "cuda":
            raise ValueError("`mixed_precision`='fp16' needs a GPU: use \"bf16\" on a CPU")
        logging_dir = config.output_dir and str(Path(config.output_dir) / "tensorboard")
        AcceleratorState._reset_state(reset_partial_state=True)  # as transformers does: it is shared by the process
        return Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision=config.mixed_precision,
            log_with=self.make_trackers() or None,
            project_config=ProjectConfiguration(config.output_dir, logging_dir),
            # Accumulation is ours; without this an environment variable would divide every loss.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )

    def make_trackers(self) -> list[GeneralTracker | str]:
        """What metrics are sent to; nothing here."""
        return []

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of every forward pass: mixed precision where it is set."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.mixed_precision)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

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

    def save(self, folder: str | Path) -> None:
        """As in v0; adapters are merged into the weights, so that the models are plain ones again."""
        if self.config.lora_rank:
            policy, critic = memory.merged(self.policy), memory.merged_critic(self.critic)
            save_models(folder, policy, self.tokenizer, critic)
        else:
            super().save(folder)

    # forward passes

    def respond(
        self,
        prompts: list[str],
        generator: torch.Generator,
        greedy: bool = False,
        tokens: int | None = None,
        temperature: float | None = None,
    ) -> Rollout:
        tokens, temperature = tokens or self.config.max_new_tokens, temperature or self.config.temperature
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

    # gradients

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
