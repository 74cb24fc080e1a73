"""v0: the basic PPO loop. Prompts → sample → score → estimate → update, again and again."""

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_lib import worlds
from ppo_lib.config import PPOConfig
from ppo_lib.data import PPODataset, PromptBatches, Prompts, as_dataset
from ppo_lib.estimators import gae, kl_k1, masked_mean, masked_var, token_rewards, whiten
from ppo_lib.losses import clip_fraction, policy_loss, value_clip_fraction, value_loss
from ppo_lib.models import (
    Critic,
    allowed_inexactness,
    check_same_vocabulary,
    context_length,
    frozen_copy,
    load_critic,
    load_policy,
    pick_device,
    prepare_policy,
    prepare_tokenizer,
    save_models,
    settle_positions,
)
from ppo_lib.rewards import RewardFunction, RewardModel, as_reward, score_responses
from ppo_lib.rollout import (
    Rollout,
    eos_token_ids,
    logprobs_of,
    predictions_of,
    prompt_lengths,
    response_logits,
    response_values,
    sample,
)
from ppo_lib.running.terminal import number
from ppo_lib.running.threads import settle_threads
from ppo_lib.sampling.decoding import Decoder

__all__ = ["PPOConfig", "PPODataset", "PPOTrainer"]

Metrics = dict[str, float]


def as_numbers(metrics: dict[str, Tensor]) -> Metrics:
    """Python numbers from tensors of one, in one go: each transfer by itself would make a GPU wait."""
    device = next(iter(metrics.values())).device
    together = torch.stack([value.to(device, torch.float32) for value in metrics.values()])
    return dict(zip(metrics, together.tolist(), strict=True))


class PPOTrainer:
    """Proximal policy optimisation of a language model (Schulman et al. 2017; Ouyang et al. 2022).

    Args:
        model: the policy: an `AutoModelForCausalLM` (trained in place), an embedded world ("reviews",
            "reviews-sparse", "smollm2"), a folder or a Hugging Face id. `None` takes `config.model`.
        reward: a function `(prompts, responses) -> scores`, a `RewardModel`, or a sequence-classification
            model that shares the policy's tokenizer. `None` takes the world's.
        tokenizer: the policy's; needed only where `model` is a model object. One without a padding token
            gets its EOS as padding.
        reference: the frozen π_ref of the KL penalty; by default a copy of the policy as it is now.
        critic: by default the one saved beside the policy, or a new one from a copy of its trunk.
        config: settings; by default the class's own.
        **settings: single settings, over those of `config`: `PPOTrainer(learning_rate=1e-4)`.

    Raises:
        TypeError: `model` or `config` is of another kind.
        ValueError: a setting, tokenizer, vocabulary or reward does not fit; the message says what to change.
    """

    config_class = PPOConfig
    config: PPOConfig
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward: RewardFunction
    critic: Critic
    reference: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike | None = None,
        reward: RewardFunction | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        reference: PreTrainedModel | None = None,
        critic: Critic | None = None,
        config: PPOConfig | None = None,
        **settings: Any,
    ):
        if isinstance(model, PreTrainedModel):
            settings["model"] = model.name_or_path or type(model).__name__
        elif isinstance(model, (str, os.PathLike)):
            settings["model"] = os.fspath(model)
        elif model is not None:
            raise TypeError(
                f"`model` is a {type(model).__name__}: pass a transformers model (the one inside, where it is compiled "
                "or wrapped), a folder, a Hugging Face id or the name of an embedded world"
            )
        if config is not None and not isinstance(config, self.config_class):
            raise TypeError(f"`config` is a {type(config).__name__}, no {self.config_class.__name__} (see from_yaml)")
        self.config = dataclasses.replace(config or self.config_class(), **settings)
        self.device = pick_device(self.config.device)
        self._load(model, reward, tokenizer, critic)
        prepare_tokenizer(self.tokenizer, self.policy)
        self.policy.generation_config.eos_token_id = eos_token_ids(self.policy, self.tokenizer)  # saved with it
        if reference is self.policy:
            raise ValueError("`reference` is the policy itself and would move with it: pass another model, or none")
        self.reference = self.make_reference(reference)
        check_same_vocabulary(self.policy, self.reference, "reference")
        check_same_vocabulary(self.policy, self.critic.trunk, "critic")
        networks: list[nn.Module] = [self.policy, self.critic, self.reference]
        for network in networks:
            network.to(self.device).eval()  # dropout stays off: old and new log-probabilities must compare
        if isinstance(self.reward, RewardModel):
            self.reward.bind(self.policy, self.tokenizer)
        settle_threads(self.policy, getattr(self.reward, "model", None))
        self.optimizer = self.make_optimizer()
        self.kl_coef = self.config.kl_coef
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.history: list[Metrics] = []
        self.decoder: type[Decoder] | None = None  # the fastest that fits, unless `rehearse` found it wrong
        self.progress: tqdm | None = None
        self.owns_output_dir = False  # whether what lies there is this trainer's
        self.run_began = 0  # responses that earlier, whole runs of this trainer sampled

    def _load(self, model: Any, reward: Any, tokenizer: PreTrainedTokenizerBase | None, critic: Critic | None) -> None:
        policy, name = model, self.config.model
        if isinstance(model, PreTrainedModel):
            if tokenizer is None:
                raise ValueError("`model` is an object: pass its tokenizer too, PPOTrainer(model, reward, tokenizer=…)")
        elif name in worlds.NAMES:
            world = worlds.load(name)
            policy, tokenizer, reward = world.model, tokenizer or world.tokenizer, reward or world.reward
        else:
            policy, tokenizer = load_policy(name, tokenizer)
            critic = critic or load_critic(name)
        prepare_policy(policy)
        self.policy, self.tokenizer, self.reward = policy, tokenizer, as_reward(reward)
        self.critic = self.make_critic(critic)

    def make_critic(self, critic: Critic | None) -> Critic:
        """The critic that was given or saved beside the policy; else one from a copy of the policy's trunk."""
        return critic or Critic.from_policy(self.policy)

    def make_reference(self, reference: PreTrainedModel | None) -> PreTrainedModel:
        """The frozen π_ref: the model that was given, or a copy of the policy as it is now."""
        return reference or frozen_copy(self.policy)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """One AdamW over policy and critic."""
        parameters = [*self.policy.parameters(), *self.critic.parameters()]
        return torch.optim.AdamW(parameters, lr=self.config.learning_rate, weight_decay=0.0, fused=True)

    def train(
        self,
        dataset: PPODataset | Prompts,
        callback: Callable[["PPOTrainer", Rollout, Metrics], bool | None] | None = None,
    ) -> list[Metrics]:
        """Run updates until `config.total_episodes` responses were sampled, and return the metrics of each.

        Interrupted by Ctrl-C or an error, it still saves models and logs in `output_dir`, then re-raises. Called once
        more, it goes on with a run that was interrupted, or begins another where the last one came to its end;
        `history` keeps the metrics of all.

        Args:
            dataset: a `PPODataset`, a `datasets.Dataset` with a column `prompt`, or a list of strings.
            callback: called as `callback(trainer, rollout, metrics)` after each update; the run ends where what it
                returns is true.

        Raises:
            ValueError: a prompt leaves no room for a response, or `output_dir` holds an earlier run.
            RewardError: the reward failed; the message names the prompt.
            FloatingPointError: the loss is NaN or infinite; the step is not taken.
        """
        if self.is_over:
            self.begin_again()
        self.prepare(as_dataset(dataset))
        earlier = len(self.history)
        hidden = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")  # tqdm's notebook bar does not heed it
        self.progress = tqdm(total=self.updates_left, desc="PPO", unit="update", disable=hidden)
        try:
            self.begin()
            for _ in range(self.updates_left):
                metrics, rollout = self.train_step(next(self.batches))
                self.log(metrics)
                score, kl = number(metrics["objective/scores"], ".3f"), number(metrics["objective/kl"], ".2f")
                self.progress.set_postfix_str(f"score {score}, KL {kl}", refresh=False)
                self.progress.update()
                if callback and callback(self, rollout, metrics):
                    break
            if self.config.output_dir:
                self.tell("saving")
                self.save(self.model_dir)
        except BaseException as error:
            if self.config.output_dir:
                self._save_after(error)
            raise
        finally:
            self.progress.set_description("PPO")
            self.progress.close()
            self.progress = None
        return self.history[earlier:]

    def tell(self, phase: str) -> None:
        """Say in the progress bar what is being done, where it has stood still for two seconds or not moved yet."""
        bar = self.progress
        if bar is not None and not bar.disable and (bar.n == 0 or time.time() - bar.last_print_t > 2):
            bar.set_description(f"PPO, {phase}")

    @property
    def episodes_done(self) -> int:
        """Responses sampled in all updates so far."""
        return int(self.history[-1]["episode"]) if self.history else 0

    @property
    def updates_left(self) -> int:
        """Whole rollouts until the run has sampled `config.total_episodes` responses, whatever earlier ones' size."""
        left = self.config.total_episodes - (self.episodes_done - self.run_began)
        return max(left, 0) // self.config.rollout_size

    @property
    def is_over(self) -> bool:
        """Whether a run of this trainer has come to its end, so that the next `train` begins another."""
        return bool(self.history) and self.updates_left == 0

    def begin_again(self) -> None:
        """Start another run from the models as they are."""
        self.run_began = self.episodes_done

    def prepare(self, dataset: PPODataset) -> None:
        """Check the prompts, open `output_dir`, and start the stream of prompt batches."""
        self.check_room(dataset)
        if self.config.output_dir:
            try:
                self.open_output_dir()
            except OSError as error:
                error.add_note(f"`output_dir`={self.config.output_dir!r} cannot be written: make room, or take another")
                raise
        self.rehearse(dataset)
        before = getattr(self, "batches", None)
        self.batches = PromptBatches(dataset, self.config.rollout_size // self.config.group_size, self.generator)
        interrupted = self.episodes_done > self.run_began
        if before and interrupted and before.dataset.prompts == dataset.prompts:
            self.batches.waiting = before.waiting

    def begin(self) -> None:
        """What is done before the first update, where the run is already one that is saved when it ends."""

    def rehearse(self, dataset: PPODataset) -> None:
        """Let the policy write a few tokens, and compare their log-probabilities with those that an update computes.

        A fast decoder that differs is replaced by the plain one.

        Raises:
            ValueError: the plain one differs too, so that the ratio would not begin at 1 nor the KL at 0.
        """
        if not self.config.exact_check:
            return
        prompts = list(dict.fromkeys(dataset.prompts[:64]))[:3]
        prompts.append(prompts[0])  # equal prompts share a cache, whose rows are then put in order
        off = self.inexactness(prompts)
        if off > allowed_inexactness(self.policy) and self.decoder is None:
            self.decoder = Decoder
            fast, off = off, self.inexactness(prompts)
            told = f"the fast sampler is {fast:.2g} nats a token off this model's own logits, and is not used"
            warnings.warn(told, stacklevel=4)
        if off > allowed_inexactness(self.policy):
            raise ValueError(
                f"{type(self.policy).__name__} gives a token other probabilities while it writes than in one pass over "
                f"the whole text ({off:.2g} nats a token). Take off what keeps or counts what it sees (a hook), or "
                "train all the same with exact_check=False"
            )

    @torch.no_grad()
    def inexactness(self, prompts: list[str], tokens: int = 8) -> float:
        """Mean distance in nats between a sampled token's log-probability as noted and as an update computes it."""
        tokens = min(tokens, self.config.max_new_tokens)
        rollout = self.respond(prompts, torch.Generator().manual_seed(0), tokens=tokens)
        distance = (self.predictions(rollout)[0] - rollout.logprobs).abs()
        return masked_mean(distance, rollout.mask).item()

    def _save_after(self, error: BaseException) -> None:
        """Save what was learned before `error`, and say so on it; a save that fails must not hide it."""
        try:
            self.save(self.model_dir)
            error.add_note(f"{len(self.history)} whole updates are logged; the models are in {self.model_dir}")
        except Exception as failure:
            failed = f"saving the models in `output_dir` failed: {failure!r}"
            error.add_note(f"{len(self.history)} whole updates are logged; {failed}")

    def train_step(self, prompts: list[str]) -> tuple[Metrics, Rollout]:
        """One update: sample a rollout, score it, estimate advantages, optimise."""
        start = time.perf_counter()
        self.tell("sampling")
        rollout = self.collect(prompts)
        self.tell("scoring")
        self.score(rollout)
        self.estimate(rollout)
        self.tell("updating")
        metrics = self.rollout_metrics(rollout) | self.update(rollout)
        metrics["eps"] = len(rollout) / (time.perf_counter() - start)
        return metrics, rollout

    def collect(
        self, prompts: list[str], generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Rollout:
        """Sample `group_size` responses to each prompt from the policy, at the run's temperature or at this one."""
        repeated = [prompt for prompt in as_dataset(prompts).prompts for _ in range(self.config.group_size)]
        return self.respond(repeated, generator or self.generator, temperature=temperature)

    def respond(
        self,
        prompts: list[str],
        generator: torch.Generator,
        greedy: bool = False,
        tokens: int | None = None,
        temperature: float | None = None,
    ) -> Rollout:
        """One response of the policy to each prompt: by default of `max_new_tokens`, at the run's temperature."""
        tokens, temperature = tokens or self.config.max_new_tokens, temperature or self.config.temperature
        models = self.policy, self.tokenizer
        return sample(*models, prompts, tokens, temperature, generator, greedy, decoder=self.decoder)

    def score(self, rollout: Rollout) -> None:
        """Fill `scores` with the reward of each response."""
        rollout.scores = score_responses(self.reward, rollout.prompts, rollout.responses).to(self.device)

    @torch.no_grad()
    def estimate(self, rollout: Rollout) -> None:
        """Fill `ref_logprobs`, `values`, `rewards`, `advantages` and `returns`."""
        rollout.ref_logprobs = self.reference_logprobs(rollout)
        rollout.values = self.values(rollout)
        self.assign_credit(rollout)

    def assign_credit(self, rollout: Rollout) -> None:
        """From scores, log-probabilities and values: fill `rewards`, `advantages` and `returns`."""
        config = self.config
        rollout.rewards = token_rewards(
            rollout.scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, self.kl_coef
        )
        rollout.advantages, rollout.returns = gae(
            rollout.rewards, rollout.values, rollout.mask, rollout.ended, config.gamma, config.lam, config.bootstrap_cut
        )
        if config.whiten_advantages:
            rollout.advantages = whiten(rollout.advantages, rollout.mask)

    def logits(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """Logits of `model` at the response tokens, at the run's temperature: [B, T, V]."""
        return response_logits(model, rollout, self.config.temperature)

    def logprobs(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """log π(a_t) under `model`: [B, T], zero outside the mask."""
        logprobs = logprobs_of(self.logits(model, rollout), rollout.response_ids)
        return logprobs.masked_fill(~rollout.mask, 0.0)

    def reference_logprobs(self, rollout: Rollout) -> Tensor:
        """log π_ref(a_t): [B, T]."""
        return self.logprobs(self.reference, rollout)

    def values(self, rollout: Rollout) -> Tensor:
        """V(s_t) before each response token and after the last: [B, T+1]."""
        return response_values(self.critic, rollout)

    def update(self, rollout: Rollout) -> Metrics:
        """One optimiser step for each minibatch; the mean of their metrics."""
        steps = [self.step(minibatch) for minibatch in self.minibatches(rollout)]
        return {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}

    def minibatches(self, rollout: Rollout) -> Iterator[Rollout]:
        """`num_ppo_epochs` passes over the rollout, each shuffled anew and cut into minibatches."""
        for _ in range(self.config.num_ppo_epochs):
            order = torch.randperm(len(rollout), generator=self.generator)
            for index in order.split(self.config.step_size):
                yield rollout.select(index).trimmed()

    def step(self, minibatch: Rollout) -> Metrics:
        """One optimiser step; the gradients of policy and critic are clipped separately."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = self.loss(minibatch)
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} in update {len(self.history) + 1}: lower `learning_rate` or the scores"
            )
        loss.backward()
        limit = self.config.max_grad_norm
        metrics["policy/grad_norm"] = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        metrics["val/grad_norm"] = torch.nn.utils.clip_grad_norm_(self.critic.parameters(), limit)
        self.optimizer.step()
        return as_numbers(metrics)

    def predictions(self, minibatch: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """log π_θ(a_t), the entropy of π_θ and V_θ(s_t) at each response token, with gradients: [B, T] each."""
        logits = self.logits(self.policy, minibatch)
        of_policy = predictions_of(logits, minibatch.response_ids, self.config.entropy_coef > 0)
        return *of_policy, self.values(minibatch)[:, :-1]

    def loss(self, minibatch: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The PPO loss of a minibatch, and its metrics: policy + vf_coef · value − entropy_coef · entropy."""
        config, mask, old = self.config, minibatch.mask, minibatch.logprobs
        logprobs, entropies, values = self.predictions(minibatch)
        old_values = minibatch.values[:, :-1]
        policy = self.policy_term(logprobs, minibatch)
        value = value_loss(values, old_values, minibatch.returns, mask, config.cliprange_value)
        entropy = masked_mean(entropies, mask)
        loss = policy + config.vf_coef * value - config.entropy_coef * entropy
        with torch.no_grad():
            ratio = (logprobs - old).exp()
            metrics = {
                "loss/policy_avg": policy.detach(),
                "loss/value_avg": value.detach(),
                "policy/entropy_avg": entropy.detach(),
                "policy/approxkl_avg": masked_mean(0.5 * (logprobs - old) ** 2, mask),
                "policy/clipfrac_avg": clip_fraction(
                    logprobs, old, minibatch.advantages, mask, self.cliprange(minibatch)
                ),
                "val/clipfrac_avg": value_clip_fraction(
                    values, old_values, minibatch.returns, mask, config.cliprange_value
                ),
                "val/ratio": masked_mean(ratio, mask),
                "val/ratio_var": masked_var(ratio, mask),
            }
        return loss, metrics

    def policy_term(self, logprobs: Tensor, minibatch: Rollout) -> Tensor:
        """The part of the loss that improves the policy: the clipped surrogate. `logprobs` [B, T] are log π_θ."""
        estimates = minibatch.logprobs, minibatch.advantages, minibatch.mask
        return policy_loss(logprobs, *estimates, self.cliprange(minibatch))

    def cliprange(self, minibatch: Rollout) -> Any:
        """ε of the clip: a number, or one for each token, [B, T]."""
        return self.config.cliprange

    def rollout_metrics(self, rollout: Rollout) -> Metrics:
        """Metrics of the rollout itself, before any update, under TRL's names."""
        mask = rollout.mask

        def per_response(x: Tensor) -> Tensor:
            return x.masked_fill(~mask, 0.0).sum(dim=1).mean()

        kl = per_response(kl_k1(rollout.logprobs, rollout.ref_logprobs))
        unexplained = masked_var(rollout.returns - rollout.values[:, :-1], mask)
        metrics = {
            "objective/kl": kl,
            "objective/entropy": -per_response(rollout.logprobs),
            "objective/non_score_reward": -self.kl_coef * kl,
            "objective/rlhf_reward": per_response(rollout.rewards),
            "objective/scores": rollout.scores.mean(),
            "objective/scores_std": rollout.scores.std(unbiased=False),
            "val/num_eos_tokens": rollout.ended.sum(),
            "val/explained_variance": 1 - unexplained / masked_var(rollout.returns, mask).clamp(min=1e-8),
            "response/length": rollout.lengths.float().mean(),
        }
        return as_numbers(metrics)

    def log(self, metrics: Metrics) -> None:
        """Number the update, keep its metrics in `history`, and write them out."""
        metrics["lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["update"] = len(self.history) + 1
        metrics["episode"] = self.episodes_done + self.config.rollout_size
        self.history.append(metrics)
        self.record(metrics)

    def record(self, metrics: Metrics) -> None:
        """Append metrics to `metrics.jsonl`, where there is an `output_dir`."""
        if self.config.output_dir:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")

    def open_output_dir(self) -> None:
        """Make `output_dir` and write the settings into it; raise ValueError where it holds another run's logs."""
        folder = self.folder
        if not self.owns_output_dir and (folder / "metrics.jsonl").exists():
            raise ValueError(f"`output_dir`={str(folder)!r} holds an earlier run: choose another folder or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        self.owns_output_dir = True
        self.config.to_yaml(folder / "config.yaml")

    def check_room(self, dataset: PPODataset) -> int:
        """The tokens of the longest prompt and a response of `max_new_tokens`, which fit in every model's context.

        Raises:
            ValueError: in one they do not.
        """
        longest, more = 0, self.config.max_new_tokens
        for tokenizer, rooms in self.rooms():
            role, room = min(rooms.items(), key=lambda pair: pair[1])
            lengths = prompt_lengths(tokenizer, dataset.prompts)
            for index, length in enumerate(lengths):
                if length == 0:
                    raise ValueError(f"prompt {index} ({dataset[index]!r}) has no tokens to go on from: drop it")
                if length + more > room:
                    raise ValueError(
                        f"prompt {index} has {length} tokens; with `max_new_tokens`={more} it exceeds the {role}'s "
                        f"context of {room}: shorten or drop the prompt, or lower `max_new_tokens`"
                    )
            longest = longest or max(lengths) + more  # the first are the policy's tokens
        switched = [settle_positions(network, longest) for network in (self.policy, self.reference, self.critic)]
        if any(switched):
            warnings.warn(
                f"a prompt and its response may have {longest} tokens, where this model's longrope turns to its long "
                "factors: they are taken for all texts, short ones too, so that probabilities compare",
                stacklevel=4,
            )
        return longest

    def rooms(self) -> Iterator[tuple[PreTrainedTokenizerBase, dict[str, float]]]:
        """Tokenizers, the policy's first, and the contexts of the models that read their tokens."""
        networks = {"policy": self.policy, "reference": self.reference, "critic": self.critic.trunk}
        yield self.tokenizer, {role: context_length(network) for role, network in networks.items()}
        for role, judge in self.reward_models():
            assert judge.tokenizer is not None  # it was bound to the policy's where it came with none
            yield judge.tokenizer, {role: context_length(judge.model)}

    def reward_models(self) -> Iterator[tuple[str, RewardModel]]:
        """The rewards that are models, by their roles."""
        if isinstance(self.reward, RewardModel):
            yield "reward model", self.reward

    def generate(self, prompts: list[str], greedy: bool = False, seed: int = 0) -> list[str]:
        """The policy's responses to `prompts`; the same `seed` gives the same ones, whatever came before.

        Raises:
            TypeError, ValueError: `prompts` are not what `train` takes: one string, none, an empty or too long one.
        """
        dataset = as_dataset(prompts)
        self.check_room(dataset)
        return self.respond(dataset.prompts, torch.Generator().manual_seed(seed), greedy).responses

    @property
    def folder(self) -> Path:
        """The `output_dir` of a run that has one."""
        assert self.config.output_dir is not None
        return Path(self.config.output_dir)

    @property
    def model_dir(self) -> Path:
        """Where a run with an `output_dir` saves its models."""
        return self.folder / "model"

    def save(self, folder: str | Path) -> None:
        """Write policy, tokenizer and critic; `PPOTrainer(model=folder, reward=…)` and every stage load them."""
        save_models(folder, self.policy, self.tokenizer, self.critic)

    def plot(self) -> Any:
        """The training metrics so far as a Plotly figure."""
        from ppo_lib.lab.plots import training_figure

        return training_figure(self.history)
