"""The plan of a run: what it will train, how long, what it will write, and the memory it needs; nothing is started."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from ppo_lib import worlds
from ppo_lib.commands.inputs import prompts_of
from ppo_lib.commands.memory_estimate import MODELS, PARTS, ShapesOnly, memory_by_moment
from ppo_lib.commands.places import check_output_dir
from ppo_lib.config import PPOConfigV1, ReplayConfig
from ppo_lib.replay import ReplayBuffer, kept_for_scores, most_held
from ppo_lib.rollout import prompt_lengths

ASSUMED_PROMPT = 64  # tokens, where no tokenizer is at hand
TITLES = {
    "weights": "weights of policy and critic", "reference": "reference", "gradients": "gradients",
    "optimizer": "optimiser", "activations": "activations", "logits": "logits", "kv_cache": "key-value cache",
}  # fmt: skip


def plan(config: PPOConfigV1) -> tuple[str, int]:
    """The plan as text, and the memory at its peak. Reads the model's configuration, not its weights; writes nothing.

    Raises:
        ValueError: the model or the prompts cannot be found.
    """
    model_config, prompts, heldout, longest = inputs_of(config)
    shapes = ShapesOnly(config, model_config)
    moments = memory_by_moment(config, model_config, longest or ASSUMED_PROMPT)
    evaluates = bool(heldout) or prompts is None  # then they are the world's own
    rows = {
        "output": output(config.output_dir),
        "model": config.model,
        "  policy": parameters(shapes.policy),
        "  critic": parameters(shapes.critic),
        "  reference": "the policy with its adapters off"
        if shapes.reference is shapes.policy
        else parameters(shapes.reference),
        "prompts": f"{count(prompts)} to train on, {count(heldout) if evaluates else 'none'} held out; the longest "
        + (f"has {longest} tokens" if longest else f"is taken to have {ASSUMED_PROMPT} tokens"),
        **schedule(config, evaluates),
        **replay(config),
        **disk(config, shapes, evaluates),
    }
    lines = [f"{name:14}{value}" for name, value in rows.items()]
    return "\n".join([*lines, "", *memory_table(moments)]), max(sum(parts.values()) for parts in moments.values())


def output(folder: str | None) -> str:
    """Where the run writes to, and whether it can."""
    if not folder:
        return "nothing is written: set `output_dir`"
    try:
        check_output_dir(folder)
    except ValueError as error:
        return f"{folder}; it would not begin: {error}"
    return folder


def inputs_of(config: PPOConfigV1) -> tuple[PretrainedConfig, list[str] | None, list[str] | None, int | None]:
    """The model's configuration, its prompts for training and held out, and the tokens of the longest of them all."""
    if config.model == "smollm2":  # loading that world may download and convert it
        return MODELS["SmolLM2-135M"], None, None, None
    if config.model in worlds.NAMES:
        world = worlds.load(config.model)
        model_config, tokenizer = world.model.config, world.tokenizer
    else:
        try:
            model_config = AutoConfig.from_pretrained(config.model)
            tokenizer = AutoTokenizer.from_pretrained(config.model)
        except (OSError, ValueError) as error:
            raise ValueError(f"`model`={config.model!r} cannot be found: {str(error).splitlines()[0]}") from error
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts, heldout = prompts_of(config)
    longest = max(prompt_lengths(tokenizer, [*prompts, *(heldout or ())]))
    return model_config, prompts, heldout, longest


def schedule(config: PPOConfigV1, evaluates: bool) -> dict[str, str]:
    """Updates, responses, optimiser steps, evaluations."""
    steps = config.num_ppo_epochs * math.ceil(config.update_size / config.step_size)
    in_memory = f"{config.minibatch_size} in memory with gradients"
    responses = config.num_updates * config.rollout_size
    return {
        "updates": f"{config.num_updates} of {config.rollout_size} responses, {responses} in all, of "
        f"{config.max_new_tokens} tokens at most",
        "steps": f"{config.num_updates * steps}: in each update {config.num_ppo_epochs} passes, "
        f"{steps // config.num_ppo_epochs} of {config.step_size} responses each, {in_memory}",
        "evaluations": f"{config.num_evaluations}, sampled and greedy" if evaluates else "none",
    }


def replay(config: PPOConfigV1) -> dict[str, str]:
    """What is replayed in an update, how often a response is trained on, and the buffer's memory."""
    if not isinstance(config, ReplayConfig) or not config.use_replay_buffer:
        return {}
    fresh, replayed, size = config.rollout_size, config.replay_sample_size, config.replay_buffer_size
    times = {"replay_sample_size": replayed / fresh}
    times |= {"max_replay_reuse": config.max_replay_reuse, "staleness_threshold": config.staleness_threshold}
    tightest = min(times, key=lambda name: times[name])
    kept = kept_for_scores(size, config.replay_keep_best)
    most = most_held(fresh, config.staleness_threshold, size, config.replay_keep_best)
    best = f", {kept} of them for their scores alone, however old" if kept else ""
    room = f"room for {size} responses, {gb(buffer_bytes(config))} of main memory"
    return {
        "replay": f"{replayed} earlier responses beside {fresh} fresh ones in each update, once so many are held",
        "  reuse": f"a response is replayed {times[tightest]:.3g} times on average (`{tightest}`), so that "
        f"{1 + times[tightest]:.3g} are trained on for each one generated",
        "  buffer": f"{room}; it holds {most} at most{best}",
    }


def buffer_bytes(config: ReplayConfig) -> int:
    """What the replay buffer will take."""
    with torch.device("meta"):
        no_tokenizer: Any = None  # none is needed for its size
        return ReplayBuffer(config.replay_buffer_size, config.max_new_tokens, no_tokenizer).nbytes


def disk(config: PPOConfigV1, shapes: ShapesOnly, evaluates: bool) -> dict[str, str]:
    """Checkpoints, and the room that they and the models need at most."""
    if not config.output_dir:
        return {}
    one = shapes.gradient_bytes + shapes.fixed["optimizer"]
    one += buffer_bytes(config) if isinstance(config, ReplayConfig) else 0
    kept = config.keep_last + evaluates
    written = (shapes.policy, shapes.critic.trunk, shapes.critic.value_head)  # a shared trunk is saved twice
    models = sum(4 * sum(p.numel() for p in unadapted(net)) for net in written)
    room = one * (kept + 1) + models * (2 + evaluates)  # each is written aside before it takes its place
    best = ", and one at each new best" if evaluates else ""
    saved = 1 + math.ceil(config.num_updates / config.save_every)
    return {
        "checkpoints": f"{saved}{best}; {kept} are kept, {gb(one)} each",
        "disk": f"{gb(room)} at most for checkpoints and models, while one is written",
    }


def memory_table(moments: dict[str, dict[str, int]]) -> list[str]:
    """A line for each part and a column for each moment; the column that needs most is named."""
    totals = {moment: sum(parts.values()) for moment, parts in moments.items()}
    head = f"{'memory':30}" + "".join(f"{moment:>16}" for moment in moments)
    lines = [f"  {TITLES[part]:28}" + "".join(f"{gb(moments[m][part]):>16}" for m in moments) for part in PARTS]
    total = f"  {'together':28}" + "".join(f"{gb(size):>16}" for size in totals.values())
    worst = max(totals, key=lambda moment: totals[moment])
    peak = f"peak: {gb(totals[worst])} ({worst}), without a reward model and the GPU's driver"
    return [head, *lines, total, "", peak]


def parameters(network: nn.Module) -> str:
    """How many weights of which type `network` has, and how many of them are trained."""
    found = list(network.parameters())
    trained = sum(p.numel() for p in found if p.requires_grad)
    types = " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in found}))
    return f"{sum(p.numel() for p in found):,} weights, {types}; {trained:,} are trained"


def unadapted(network: nn.Module) -> Iterable[nn.Parameter]:
    """The weights of `network` that stay when its adapters are merged."""
    return (parameter for name, parameter in network.named_parameters() if "lora_" not in name)


def count(prompts: list[str] | None) -> str:
    return "the world's" if prompts is None else str(len(prompts))


def gb(size: float) -> str:
    """Bytes as GB, or MB where there are few."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
