"""Going on from a checkpoint: which one, with which settings, and the whole state of a trainer, out and in."""

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ppo_lib.config import PPOConfigV1
from ppo_lib.rewards import RewardModel
from ppo_lib.running import checkpoint
from ppo_lib.running.checkpoint import CheckpointError
from ppo_lib.running.evaluation import Best

if TYPE_CHECKING:
    from ppo_lib.ppo_v1 import PPOTrainer

# Settings that change nothing of what a run computes, so that a resumed run may change them.
FREE = {
    "output_dir", "device", "save_every", "keep_last", "report_to", "project", "wandb_mode", "eval_samples",
    "exact_check",
}  # fmt: skip

# Settings that cannot change in mid-run, and what to do instead.
FIXED = dict.fromkeys(("lr_scheduler", "lr_scheduler_kwargs", "warmup_updates"), "only `learning_rate` can")
FIXED |= dict.fromkeys(
    ("optimizer", "lora_rank", "frozen_dtype", "share_trunk"), "keep it, or begin a run from the run's saved model"
)

# What `state_of` holds.
STATE = {
    "config", "weights", "frozen", "optimizer", "schedule", "scaler", "kl_coef", "generator", "rng", "prompts",
    "waiting", "history", "evaluations", "samples", "best", "skipped", "sizes", "run_id", "rewards",
}  # fmt: skip


def find_state(wanted: Literal[True] | str | Path, output_dir: str | None) -> tuple[dict[str, Any] | None, Path | None]:
    """The state to go on from and the output folder of its run, which may have been moved since; None to start afresh.

    Says which broken checkpoints it passed over.

    Args:
        wanted: True for the newest whole checkpoint in `output_dir`; else a checkpoint or an output folder.

    Raises:
        CheckpointError: there is no whole checkpoint (with True: there are only broken ones).
        ValueError: True without an `output_dir`.
    """
    place = output_dir if wanted is True else wanted
    if not place:
        raise ValueError("`resume_from_checkpoint`=True looks in `output_dir`: set it, or name a checkpoint")
    folder = Path(place).expanduser()
    if (folder / checkpoint.MANIFEST).exists() or folder.is_file() or folder.name.startswith(checkpoint.PREFIX):
        named = folder.resolve().parent
        return checkpoint.load_checkpoint(folder), named.parent if named.name == "checkpoints" else None
    state, _ = newest_state(folder, required=wanted is not True)
    return state, folder.resolve()


def newest_state(folder: Path, required: bool = True) -> tuple[dict[str, Any] | None, Path | None]:
    """The state in the newest whole checkpoint of the run in `folder`, and its path; None of both where there is none.

    Raises:
        CheckpointError: all are broken; or there are none, and one is `required`.
    """
    state, path, passed_over = checkpoint.load_newest(folder / "checkpoints")
    for reason in passed_over:
        warnings.warn(f"passed over: {reason}", stacklevel=4)
    if state is None and (required or passed_over):
        raise CheckpointError(f"there is no whole checkpoint in {folder / 'checkpoints'}")
    return state, path


def settings(
    config_class: type[PPOConfigV1], state: dict[str, Any], config: PPOConfigV1 | None, others: dict[str, Any]
) -> PPOConfigV1:
    """`config`, or the checkpoint's where it is None; warns where it or `others` would change the run.

    Raises:
        CheckpointError: the checkpoint is of a later stage.
    """
    if state["config"].keys() - {field.name for field in dataclasses.fields(config_class)}:
        raise CheckpointError(
            "the checkpoint is of a run with replay: resume it with `ppo_v2.PPOTrainerWithReplay`, or start a run of "
            "this stage from the run's saved model"
        )
    given = dataclasses.asdict(config) if config else {}
    given |= {name: value for name, value in others.items() if name in state["config"]}
    changed = [name for name, value in given.items() if value != state["config"].get(name) and name not in FREE]
    if changed:
        warnings.warn(
            f"resumed with other settings than the run had ({', '.join(changed)}): it will not go on as it would have",
            stacklevel=3,
        )
    return config or config_class(**state["config"])


def state_of(trainer: "PPOTrainer") -> dict[str, Any]:
    """All that the rest of the trainer's run depends on, as `checkpoint.save_checkpoint` takes it."""
    scaler = trainer.accelerator.scaler
    return {
        "config": dataclasses.asdict(trainer.config),
        "weights": trained_weights(trainer),
        "frozen": frozen_fingerprint(trainer),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "kl_coef": trainer.kl_coef,
        "generator": trainer.generator.get_state(),
        "rng": checkpoint.rng_state(),
        "prompts": checkpoint.fingerprint(*trainer.batches.dataset.prompts),
        "heldout": trainer.eval_dataset and checkpoint.fingerprint(*trainer.eval_dataset.prompts),
        "tokenizer": vocabulary_fingerprint(trainer),
        "waiting": trainer.batches.waiting,
        "history": checkpoint.table(trainer.history),
        "evaluations": trainer.evaluations,
        "samples": trainer.samples,
        "best": dataclasses.asdict(trainer.best),
        "skipped": [trainer.skipped_steps, trainer.skipped_in_a_row],
        "sizes": [trainer.micro_batch.size, trainer.forward_batch.size],
        "run_id": trainer.run_id,
        "run_began": trainer.run_began,
        "rewards": reward_names(trainer),
    }


def restore(trainer: "PPOTrainer", state: dict[str, Any]) -> None:
    """Put `trainer` where `state` was taken; its next `train` goes on from there.

    Where its settings differ from those in `state`, the learning rate, β and the micro-batch are the trainer's own.
    Progress is counted in responses: with rollouts of another size, the schedule stands where as many responses lead.

    Raises:
        CheckpointError: the state is of another model, its reference was another, or ppo_lib was.
        ValueError: a setting is another that cannot change in mid-run.
    """
    if missing := STATE - state.keys():
        raise CheckpointError(f"the checkpoint lacks {', '.join(sorted(missing))}: it is of another version of ppo_lib")
    before, now = state["config"], dataclasses.asdict(trainer.config)
    for name, fix in FIXED.items():
        if now[name] != before.get(name, now[name]):
            raise ValueError(f"`{name}` was {before[name]!r} and cannot change in mid-run: {fix}")
    weights, saved_weights = trained_weights(trainer), state["weights"]
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in saved_weights.items()}:
        raise CheckpointError(f"the checkpoint is not of the model {trainer.config.model!r}: pass its own `model`")
    for role, name in reward_names(trainer).items():
        if name != state["rewards"][role]:
            warnings.warn(f"the run's {role} was {state['rewards'][role]}, and now it is {name}", stacklevel=4)
    if state.get("tokenizer", vocabulary_fingerprint(trainer)) != vocabulary_fingerprint(trainer):
        raise CheckpointError("the tokenizer is not the one of the run that is resumed: token ids mean other words now")
    if state["frozen"] != frozen_fingerprint(trainer):
        raise CheckpointError(
            "the reference is not the one of the run that is resumed: pass the model that the run started from"
        )
    with torch.no_grad():
        for name, saved in saved_weights.items():
            weights[name].copy_(saved)
    trainer.history = checkpoint.rows_of(state["history"])
    trainer.run_began = state.get("run_began", 0)
    trainer.optimizer.load_state_dict(state["optimizer"])
    same_size = type(trainer.config)(**before).rollout_size == trainer.config.rollout_size
    if same_size or trainer.schedule.on_plateau:
        trainer.schedule.load_state_dict(state["schedule"])
        if now["learning_rate"] != before["learning_rate"]:
            trainer.schedule.scale(now["learning_rate"] / before["learning_rate"])
    else:
        trainer.schedule = trainer.make_schedule(trainer.config.num_updates - trainer.updates_left)
    if trainer.accelerator.scaler and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.kl_coef = state["kl_coef"] if now["kl_coef"] == before["kl_coef"] else now["kl_coef"]
    trainer.run_id = state["run_id"]
    trainer.generator.set_state(state["generator"])
    trainer.evaluations, trainer.samples = state["evaluations"], state["samples"]
    trainer.best = Best(**state["best"])
    trainer.skipped_steps, trainer.skipped_in_a_row = state["skipped"]
    if all(now[name] == before[name] for name in ("minibatch_size", "batch_size", "group_size")):
        for fitting, size in zip((trainer.micro_batch, trainer.forward_batch), state["sizes"], strict=True):
            fitting.put(size)
    trainer.resumed_state = state


def check_prompts(state: dict[str, Any], prompts: list[str], heldout: list[str] | None = None) -> None:
    """Raise CheckpointError unless `prompts` are those of the run that `state` is of; warn of other held-out ones."""
    if state["prompts"] != checkpoint.fingerprint(*prompts):
        raise CheckpointError("the prompts are not those of the run that is resumed: pass the same, in the same order")
    before = state.get("heldout")
    if before and before != (heldout and checkpoint.fingerprint(*heldout)):
        warnings.warn(
            "the held-out prompts are not those that the run had: its best score and its patience are of the others",
            stacklevel=5,
        )


def restore_data(trainer: "PPOTrainer", state: dict[str, Any]) -> None:
    """Put the order of the prompts and the random numbers of the process where `state` was taken."""
    trainer.batches.waiting = list(state["waiting"])
    checkpoint.set_rng_state(state["rng"])


def reward_names(trainer: "PPOTrainer") -> dict[str, str]:
    """What the reward and the held-out judge are called; a checkpoint holds no functions, so it cannot hold them."""

    def name(reward: Any) -> str:
        if isinstance(reward, RewardModel):
            return f"the reward model {reward.model.name_or_path or type(reward.model).__name__}"
        return getattr(reward, "__qualname__", type(reward).__qualname__)

    return {"reward": name(trainer.reward), "held-out judge": name(trainer.eval_reward)}


def trained_weights(trainer: "PPOTrainer") -> dict[str, Tensor]:
    """The weights of policy and critic that are trained, by name."""
    networks = {"policy": trainer.policy, "critic": trainer.critic}
    return {
        f"{role}.{name}": parameter
        for role, network in networks.items()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def vocabulary_fingerprint(trainer: "PPOTrainer") -> str:
    """Tells two tokenizers apart by which text is which token."""
    tokens = sorted(trainer.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return checkpoint.fingerprint(*(f"{number} {text}" for text, number in tokens))


def frozen_fingerprint(trainer: "PPOTrainer") -> str:
    """Tells two references, or two frozen trunks, apart."""
    own = trainer.reference is trainer.policy  # with its adapters off: what it does not train
    reference = [p for p in trainer.reference.parameters() if not (own and p.requires_grad)]
    return checkpoint.fingerprint(*reference, *(p for p in trainer.critic.parameters() if not p.requires_grad))
