"""Train SmolLM2-135M-Instruct towards cheerful replies, and store what happened.

    python benchmarks/smollm2_vader.py --seed 0

The reward is VADER's compound sentiment of the reply. The number of updates is fixed beforehand; the 64 held-out
prompts choose nothing. A run that was killed continues from its last checkpoint when the same command is given again.
"""

import argparse
import copy
import dataclasses
import os
import shutil
import time
from pathlib import Path

import torch
from record import RESULTS, ROOT, provenance, write_csv, write_json

from ppo_lib.data import PPODataset, PromptBatches
from ppo_lib.models import Critic
from ppo_lib.ppo import PPOTrainer
from ppo_lib.rollout import Rollout, logprobs_of, response_logits
from ppo_lib.worlds import smollm2

SETTINGS = {
    "batch_size": 16,
    "minibatch_size": 16,
    "num_ppo_epochs": 2,
    "max_new_tokens": 16,
    "temperature": 0.7,
    "learning_rate": 3e-5,
    "kl_coef": 0.05,
}
CRITIC_LAYERS = 10  # of the policy's 30: a third of the work of a critic as deep as the policy
SAMPLES = 2  # responses to each held-out prompt before and after training
WATCH_EVERY = 10  # updates between smaller held-out evaluations, one response to each prompt


def shallow_critic(policy, layers: int) -> Critic:
    """A critic on a copy of the policy's first `layers` layers."""
    config = copy.deepcopy(policy.base_model.config)
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    trunk = type(policy.base_model)(config)
    kept = trunk.state_dict().keys()
    trunk.load_state_dict({name: weight for name, weight in policy.base_model.state_dict().items() if name in kept})
    return Critic(trunk)


def evaluate(trainer: PPOTrainer, prompts: list[str], samples: int) -> tuple[dict, Rollout]:
    """Scores and KL to the reference on held-out prompts; the same random numbers before and after training."""
    rollouts = []
    for seed in range(samples):
        rollout = trainer.collect(prompts, torch.Generator().manual_seed(1000 + seed))
        trainer.score(rollout)
        with torch.no_grad():
            logits = response_logits(trainer.reference, rollout, trainer.config.temperature)
        rollout.ref_logprobs = logprobs_of(logits, rollout.response_ids).masked_fill(~rollout.mask, 0.0)
        rollouts.append(rollout)
    scores = torch.stack([rollout.scores for rollout in rollouts])  # [samples, prompts]
    kl = torch.stack([(rollout.logprobs - rollout.ref_logprobs).sum(dim=1) for rollout in rollouts])
    result = {
        "update": len(trainer.history),
        "responses": scores.numel(),
        "mean_score": scores.mean().item(),
        "standard_error": (scores.mean(dim=0).std() / len(prompts) ** 0.5).item(),
        "kl_per_response": kl.mean().item(),
        "tokens_per_response": torch.stack([rollout.lengths for rollout in rollouts]).float().mean().item(),
        "ended": torch.stack([rollout.ended for rollout in rollouts]).float().mean().item(),
    }
    return result, rollouts[0]


def texts_of(rollout: Rollout) -> list[dict]:
    return [
        {"response": response, "score": round(score, 4)}
        for response, score in zip(rollout.responses, rollout.scores.tolist(), strict=True)
    ]


def save_checkpoint(folder: Path, trainer: PPOTrainer, progress: dict) -> None:
    """Everything that the rest of the run depends on, written aside and renamed."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    state = {
        "policy": trainer.policy.state_dict(),
        "critic": trainer.critic.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "generator": trainer.generator.get_state(),
        "history": trainer.history,
        "progress": progress,
    }
    torch.save(state, aside / "state.pt")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, trainer: PPOTrainer) -> dict | None:
    """Put the trainer where the checkpoint left it; the rest of the run's state, or None where there is none."""
    for place in (folder, folder.with_name(folder.name + ".old")):
        if place.is_dir():
            state = torch.load(place / "state.pt", weights_only=True)
            trainer.policy.load_state_dict(state["policy"])
            trainer.critic.load_state_dict(state["critic"])
            trainer.optimizer.load_state_dict(state["optimizer"])
            trainer.generator.set_state(state["generator"])
            trainer.history = state["history"]
            return state["progress"]
    return None


def store(folder: Path, trainer: PPOTrainer, world, settings: dict, progress: dict) -> None:
    """Write the results so far; a run cut short is told from a whole one by `updates_done`."""
    first, last = progress["heldout"][0], progress["heldout"][-1]
    run = {
        "updates_done": len(trainer.history),
        "updates_planned": trainer.config.num_updates,
        "seconds": round(progress["seconds"], 1),
        "heldout_before": first,
        "heldout_after": last if last["responses"] == first["responses"] and last is not first else None,
        "heldout_watched": progress["heldout"][1:],
        "settings": settings,
        "seed": trainer.config.seed,
        "config": dataclasses.asdict(trainer.config) | {"model": world.name},
        "critic_layers": trainer.critic.trunk.config.num_hidden_layers,
        "system_message": smollm2.SYSTEM,
        "train_prompts": len(world.prompts),
        "heldout_prompts": len(world.heldout_prompts),
        **progress["provenance"],
    }
    write_json(folder / "run.json", run)
    if trainer.history:
        write_csv(folder / "metrics.csv", trainer.history)
    prompts = [prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0] for prompt in world.heldout_prompts]
    pairs = zip(prompts, progress["before"], progress.get("after", [None] * len(prompts)), strict=True)
    write_json(folder / "samples.json", [{"prompt": p, "before": b, "after": a} for p, b, a in pairs])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--threads", type=int, help="CPU threads of torch; all cores by default")
    parser.add_argument(
        "--matmul-precision",
        choices=("highest", "medium"),
        default="highest",
        help="medium multiplies in bfloat16 where the CPU can (AMX); weights and optimiser stay in float32",
    )
    parser.add_argument("--checkpoint-every", type=int, default=5, help="updates between checkpoints (2.4 GB on disk)")
    parser.add_argument("--results", type=Path, default=RESULTS / "smollm2_vader")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "smollm2_vader", help="where checkpoints go")
    for name, value in SETTINGS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision(arguments.matmul_precision)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    name = f"seed{arguments.seed}"
    results, checkpoint = arguments.results / name, arguments.work / name

    world = smollm2.load()
    trainer = PPOTrainer(
        world.model,
        world.reward,
        tokenizer=world.tokenizer,
        critic=shallow_critic(world.model, CRITIC_LAYERS),
        seed=arguments.seed,
        total_episodes=arguments.updates * arguments.batch_size,
        **settings,
    )
    batches = PromptBatches(
        PPODataset(world.prompts), trainer.config.batch_size, torch.Generator().manual_seed(arguments.seed)
    )
    start = time.perf_counter()
    progress = load_checkpoint(checkpoint, trainer)
    if progress is None:
        result, rollout = evaluate(trainer, world.heldout_prompts, SAMPLES)
        progress = {"heldout": [result], "before": texts_of(rollout), "seconds": 0.0}
        progress["provenance"] = {
            "matmul_precision": arguments.matmul_precision,
            **provenance("vaderSentiment", "gguf"),
        }
        print(f"held out before: {result}", flush=True)
    before_this = progress["seconds"]
    for _ in trainer.history:
        next(batches)
    while len(trainer.history) < arguments.updates:
        metrics, _ = trainer.train_step(next(batches))
        trainer.log(metrics)
        update = len(trainer.history)
        progress["seconds"] = before_this + time.perf_counter() - start
        kept = ("objective/scores", "objective/kl", "objective/entropy", "policy/approxkl_avg", "policy/clipfrac_avg")
        print(update, *(f"{name} {metrics[name]:.3f}" for name in kept), f"{progress['seconds']:.0f} s", flush=True)
        if update % WATCH_EVERY == 0 and update < arguments.updates:
            result, _ = evaluate(trainer, world.heldout_prompts, samples=1)
            progress["heldout"].append(result)
            print(f"held out: {result}", flush=True)
        store(results, trainer, world, settings, progress)
        if update % arguments.checkpoint_every == 0 and update < arguments.updates:
            save_checkpoint(checkpoint, trainer, progress)
    result, rollout = evaluate(trainer, world.heldout_prompts, SAMPLES)
    progress["heldout"].append(result)
    progress["after"] = texts_of(rollout)
    progress["seconds"] = before_this + time.perf_counter() - start
    store(results, trainer, world, settings, progress)
    print(f"held out after: {result}", flush=True)
    trainer.save(checkpoint.with_name(name + "-model"))
    shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
