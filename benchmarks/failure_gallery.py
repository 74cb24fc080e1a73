"""Run PPO with one fault at a time, and healthy runs to lay beside them: the pictures of the troubleshooting page.

    python benchmarks/failure_gallery.py                 every run that is not stored yet
    python benchmarks/failure_gallery.py kl_sign no_kl   these two, again

All runs are of the world `reviews`, from the same seeds. A fault is a bad setting, or a bug planted in the code. What
it should look like stands in `ppo_lib.lab.gallery`; `tests/unit/test_failure_gallery.py` holds the stored runs to it.
"""

import argparse
import contextlib
import copy
import csv
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from record import RESULTS, ROOT, provenance, write_csv, write_json

sys.path.insert(0, str(ROOT))

from ppo_lib import estimators, losses, rollout, worlds
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.worlds import reviews
from tests.mutations.planting import planted

SEEDS = (0, 1)
UPDATES = 24
EVAL_EVERY = 12
METRICS = (
    "objective/scores", "objective/scores_std", "objective/kl", "objective/rlhf_reward", "objective/non_score_reward",
    "policy/entropy_avg", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/grad_norm",
    "loss/policy_avg", "loss/value_avg", "val/grad_norm", "val/clipfrac_avg", "val/explained_variance",
    "val/ratio", "val/ratio_var", "val/num_eos_tokens", "response/length",
)  # fmt: skip
EVAL_METRICS = ("eval/score", "eval/kl", "eval/length", "eval/ended")


def hundredfold(prompts: list[str], responses: list[str]) -> list[float]:
    """The gold reward in other units."""
    return [100 * score for score in reviews.gold_reward(prompts, responses)]


def moving_reference(trainer: PPOTrainer) -> None:
    """The reference shares the policy's weights, so it moves with them."""
    trainer.reference = copy.copy(trainer.policy)  # a shallow copy: another object, the same tensors


@dataclass(frozen=True)
class Case:
    """How one kind of run differs from PPO as it should be."""

    settings: dict = field(default_factory=dict)
    reward: Callable | None = None  # makes the reward; None takes the gold one
    alter: Callable | None = None  # what is done to the trainer before the run
    bug: tuple | None = None  # (function, its source, what stands there instead)
    updates: int = UPDATES


CASES = {
    "healthy": Case(),
    "healthy_proxy": Case({"kl_coef": 0.2, "eval_every": 6}, reviews.load_reward_model, updates=48),
    "healthy_cool": Case({"temperature": 0.7}),
    # settings
    "learning_rate_high": Case({"learning_rate": 3e-2}),
    "learning_rate_low": Case({"learning_rate": 1e-5}),
    "no_kl": Case({"kl_coef": 0.0, "eval_every": 6}, reviews.load_reward_model, updates=48),
    "kl_coef_high": Case({"kl_coef": 3.0}),
    "no_clip": Case({"num_ppo_epochs": 16, "cliprange": 1e6, "cliprange_value": 1e6}),
    "batch_small": Case({"batch_size": 2, "minibatch_size": 2}, updates=96),
    "temperature_low": Case({"temperature": 0.2}),
    "too_short": Case({"max_new_tokens": 6}),
    "reward_scale": Case(reward=lambda: hundredfold),
    "critic_frozen": Case({"vf_coef": 0.0}),
    "gamma_low": Case({"gamma": 0.5}),
    # bugs
    "kl_sign": Case(bug=(estimators.token_rewards, "-kl_coef *", "kl_coef *")),
    "score_on_padding": Case(
        bug=(estimators.token_rewards, "mask.sum(dim=1) - 1", "mask.sum(dim=1) * 0 + mask.shape[1] - 1")
    ),
    "mean_over_padding": Case(bug=(estimators.masked_mean, "/ mask.sum()", "/ mask.numel()")),
    "mask_with_padding": Case(bug=(rollout.sample, "mask[:, :longest],", "mask[:, :longest] | True,")),
    "logits_off_by_one": Case(
        bug=(rollout.response_logits, "rollout.prompt_ids.shape[1] - 1 : -1", "rollout.prompt_ids.shape[1] :")
    ),
    "old_logprobs_recomputed": Case(
        bug=(
            PPOTrainer.loss,
            "logprobs, entropies, values = self.predictions(minibatch)",
            "logprobs, entropies, values = self.predictions(minibatch)\n    old = logprobs.detach()",
        )
    ),
    "loss_sign": Case(bug=(losses.policy_loss, "return -masked_mean", "return masked_mean")),
    "reference_moves": Case(alter=moving_reference),
    "temperature_forgotten": Case({"temperature": 0.7}, bug=(rollout.response_logits, " / temperature", "")),
}


def run(case: Case, seed: int, updates: int | None = None) -> list[dict[str, float]]:
    """Train with the fault, and return the metrics of each update, with those of the evaluation where there was one."""
    torch.manual_seed(seed)
    world = worlds.load("reviews")
    settings = {"max_skipped_steps": 10**6, "eval_samples": 0, "eval_every": EVAL_EVERY} | case.settings
    updates = updates or case.updates
    trainer = PPOTrainer(
        "reviews",
        case.reward and case.reward(),
        eval_reward=world.reward,
        seed=seed,
        device="cpu",
        total_episodes=updates * settings.get("batch_size", 32),
        **settings,
    )
    if case.alter:
        case.alter(trainer)
    with planted(*case.bug) if case.bug else contextlib.nullcontext():
        trainer.train(world.prompts, world.heldout_prompts)
    rows = []
    for entry in trainer.history:
        row = {"seed": seed, "update": entry["update"], "episode": entry["episode"]}
        rows.append(row | {name: entry.get(name, "") for name in (*METRICS, *EVAL_METRICS)})
    return rows


def rounded(row: dict) -> dict:
    """The row as it is stored: numbers to five significant digits."""
    return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()}


def store(name: str, case: Case, folder: Path, seeds: tuple[int, ...], again: bool) -> None:
    """Do the runs of `case` that are not in `folder` yet, each written out as soon as it is done."""
    table, note = folder / f"{name}.csv", folder / f"{name}.json"
    rows, notes = [], {"case": name, "runs": []}
    if table.exists() and note.exists():
        notes = json.loads(note.read_text(encoding="utf-8"))
        notes["runs"] = [run for run in notes["runs"] if not (again and run["seed"] in seeds)]
        with open(table, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["seed"]) in [run["seed"] for run in notes["runs"]]]
    for seed in seeds:
        if seed in [run["seed"] for run in notes["runs"]]:
            continue
        start = time.perf_counter()
        new = run(case, seed)
        seconds = round(time.perf_counter() - start, 1)
        rows += [rounded(row) for row in new]
        notes["settings"] = case.settings
        notes["bug"] = case.bug and {"in": case.bug[0].__qualname__, "instead_of": case.bug[1], "stands": case.bug[2]}
        notes["altered_by"] = case.alter and case.alter.__name__
        notes["runs"].append({"seed": seed, "seconds": seconds, "updates": len(new), **provenance()})
        write_csv(table, rows)
        write_json(note, notes)
        print(f"{name}, seed {seed}: {seconds} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="run these again; all that are not stored when none is named")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS / "failure_gallery")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; the cases are {', '.join(CASES)}")
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    for name in options.cases or CASES:
        store(name, CASES[name], options.results, tuple(options.seeds), again=bool(options.cases))


if __name__ == "__main__":
    main()
