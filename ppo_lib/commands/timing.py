"""How long a run will take, from one update of it that is made and thrown away."""

import dataclasses
import time
from pathlib import Path

import psutil
import torch
from huggingface_hub import try_to_load_from_cache

from ppo_lib import worlds
from ppo_lib.commands.inputs import prompts_of, reward_of
from ppo_lib.config import PPOConfigV1, ReplayConfig
from ppo_lib.data import PPODataset
from ppo_lib.models import pick_device
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.ppo_v2 import PPOTrainerWithReplay
from ppo_lib.rewards import RewardFunction
from ppo_lib.running import checkpoint
from ppo_lib.running.evaluation import evaluate
from ppo_lib.worlds import smollm2

LONG = 60.0  # seconds; unless it took so long the first update only warms up, and another is measured


def estimate_time(config: PPOConfigV1, reward: RewardFunction | None, peak: float) -> str:
    """The time of the whole run in words, from one update and one evaluation of its real sizes, or why there is none.

    Nothing is written or downloaded, and the process's random numbers are left alone. `peak` is the memory it needs.
    """
    rng = checkpoint.rng_state()
    try:
        device = pick_device(config.device)
        room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if peak > room:
            return f"not measured: {peak / 1e9:.1f} GB are needed and {room / 1e9:.1f} GB are free on this machine"
        if not is_here(config.model):
            return "not measured: the model's weights are not on this machine, and a dry run downloads none"
        return _measured(config, reward)
    except Exception as error:  # whatever keeps the update from being made here: the plan holds all the same
        return f"not measured: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    finally:
        checkpoint.set_rng_state(rng)


def is_here(model: str) -> bool:
    """Whether the weights of `model` can be loaded without a download or a conversion."""
    if model == "smollm2":
        return smollm2.converted_place().is_dir() or _is_cached(smollm2.HUB_ID)
    return model in worlds.NAMES or Path(model).is_dir() or _is_cached(model)


def _is_cached(hub_id: str) -> bool:
    files = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files)


def _measured(config: PPOConfigV1, reward: RewardFunction | None) -> str:
    rewarded = reward or config.reward_model or config.model in worlds.NAMES
    judge = (reward or reward_of(config, None)) if rewarded else (lambda prompts, responses: [0.0] * len(responses))
    trainer_class = PPOTrainerWithReplay if isinstance(config, ReplayConfig) else PPOTrainer
    trainer = trainer_class(None, judge, config=dataclasses.replace(config, output_dir=None, report_to=[]))
    prompts, heldout = prompts_of(config)
    trainer.prepare(PPODataset(prompts))
    update = _update(trainer)
    if update < LONG:
        update = _update(trainer)
    evaluation = _evaluation(trainer, heldout) if heldout else 0.0
    evaluations = config.num_evaluations if heldout else 0
    total = config.num_updates * update + evaluations * evaluation
    held = f" and {evaluations} evaluations of {spoken(evaluation)}" if heldout else ""
    missing = "" if rewarded else ", and without a reward, which is still to be named: `reward_model` or --reward"
    return (
        f"about {spoken(total)}: {config.num_updates} updates of {spoken(update)}{held}; an estimate from one measured "
        f"update on this machine ({trainer.device.type}), without saving{missing}"
    )


def _update(trainer: PPOTrainer) -> float:
    """Seconds of an update; with replay, of one that replays as many responses as it may."""
    config, start = trainer.config, time.perf_counter()
    rollout = trainer.collect(next(trainer.batches))
    trainer.score(rollout)
    trainer.estimate(rollout)
    rollout.advantages.sum().item()  # waits for the device
    generated = time.perf_counter()
    trainer.update(rollout)
    return generated - start + (time.perf_counter() - generated) * config.update_size / config.rollout_size


def _evaluation(trainer: PPOTrainer, heldout: list[str]) -> float:
    """Seconds of an evaluation, from as many of its prompts as are answered at a time."""
    some, start = heldout[: trainer.forward_batch.size], time.perf_counter()
    evaluate(trainer, some, trainer.reward)
    return (time.perf_counter() - start) * len(heldout) / len(some)


def spoken(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is read best."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
