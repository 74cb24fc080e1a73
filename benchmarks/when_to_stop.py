"""The over-trained run of chapter 9 from many seeds, and the same run on a leash: what the chapter says of such runs.

    nice python benchmarks/when_to_stop.py               every seed that is not stored yet
    nice python benchmarks/when_to_stop.py --seeds 3 7   these two, where they are not stored yet

A free run trains on the reward model of `reviews` without a KL penalty and is never stopped; a leashed one has its KL
steered towards a target. The gold reward, which neither sees, judges the held-out texts. Where early stopping would
have ended the free run is read from its curve. In the end six policies answer the held-out prompts with other dice.
"""

import argparse
import copy
import csv
import json
import sys
import time
from pathlib import Path

import torch
from record import RESULTS, ROOT, provenance, write_csv, write_json

sys.path.insert(0, str(ROOT))

from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.rewards import score_responses
from ppo_lib.rollout import sample
from ppo_lib.running.evaluation import Best
from ppo_lib.worlds import reviews

SEEDS = tuple(range(24))
UPDATES, PATIENCE, COPIES = 40, 4, 8
EVERY = {"eval_every": 2, "eval_samples": 64}
SETTINGS = {
    "free": {"kl_coef": 0.0, "total_episodes": 32 * UPDATES, **EVERY},
    "leashed": {"kl_coef": 0.05, "kl_target": 8.0, "kl_horizon": 64, "total_episodes": 32 * UPDATES, **EVERY},
}
METRICS = (
    "objective/scores", "objective/scores_std", "objective/kl", "objective/kl_coef", "policy/entropy_avg",
    "policy/approxkl_avg", "policy/clipfrac_avg", "loss/value_avg", "val/explained_variance", "response/length",
)  # fmt: skip


def train(name: str, seed: int) -> tuple[list[dict], dict]:
    """One run: its curve, a row an update, and the weights at each evaluation, by update."""
    torch.manual_seed(seed)
    world, weights = worlds.load("reviews"), {}
    trainer = PPOTrainer(reward=reviews.load_reward_model(), seed=seed, device="cpu", **SETTINGS[name])

    def keep(trainer: PPOTrainer, *_) -> None:
        if len(trainer.history) % EVERY["eval_every"] == 0:
            weights[len(trainer.history)] = copy.deepcopy(trainer.policy.state_dict())

    history = trainer.train(world.prompts, world.heldout_prompts, callback=keep)
    curve = []
    for entry in history:
        row = {"seed": seed, "run": name, "update": entry["update"], **{metric: entry[metric] for metric in METRICS}}
        texts = [sample for sample in trainer.samples if sample["update"] == entry["update"]]
        judged = {"proxy": entry.get("eval/score", ""), "gold": "", "gold_greedy": ""}
        for column, kind in (("gold", "sampled"), ("gold_greedy", "greedy")) if texts else ():
            prompts, answers = [text["prompt"] for text in texts], [text[kind] for text in texts]
            judged[column] = score_responses(world.reward, prompts, answers).mean().item()
        curve.append(row | judged)
    return curve, weights


def stop_of(curve: list[dict]) -> tuple[int, int]:
    """After which update patience with the gold reward ends the run (the last, if it does not), and which it keeps."""
    best = Best()
    for row in curve:
        if row["gold"] == "":
            continue
        best.beaten_by(row["gold"], row["update"])
        if best.evaluations_since >= PATIENCE:
            return row["update"], best.update
    return curve[-1]["update"], best.update


def judged_again(seed: int, policies: dict[str, tuple[int, dict]]) -> list[dict]:
    """The gold score of each policy, (update, weights), with new dice, and its difference from the kept one's."""
    world, rows, kept = worlds.load("reviews"), [], None
    for name, (update, weights) in policies.items():
        world.model.load_state_dict(weights)
        dice = torch.Generator().manual_seed(1_000_000 + seed)
        answers = sample(world.model, world.tokenizer, world.heldout_prompts * COPIES, 24, generator=dice)
        scores = score_responses(world.reward, answers.prompts, answers.responses)
        kept = scores if kept is None else kept
        error = ((scores - kept).std() / len(scores) ** 0.5).item()
        rows.append({"seed": seed, "policy": name, "update": update, "gold": scores.mean().item(),
                     "minus_kept": (scores - kept).mean().item(), "error": error})  # fmt: skip
    return rows


def both_runs(seed: int) -> tuple[list[dict], list[dict]]:
    """The curves of both runs from one seed, and the second look at their policies."""
    free, weights = train("free", seed)
    leashed, leashed_weights = train("leashed", seed)
    stopped, kept = stop_of(free)
    policies = {"kept": (kept, weights[kept]), "stopped": (stopped, weights[stopped])}
    policies |= {f"free_{update}": (update, weights[update]) for update in (28, UPDATES)}
    policies |= {f"leashed_{update}": (update, leashed_weights[update]) for update in (28, UPDATES)}
    return free + leashed, judged_again(seed, policies)


def rows_of(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rounded(row: dict) -> dict:
    """The row as it is stored: numbers to four significant digits."""
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS / "when_to_stop")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    paths = options.results / "curves.csv", options.results / "again.csv"
    tables, note = [rows_of(path) for path in paths], options.results / "runs.json"
    notes = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {"sessions": []}
    known = [run["seed"] for session in notes["sessions"] for run in session["runs"]]
    notes |= {"updates": UPDATES, "patience": PATIENCE, "copies": COPIES, "settings": SETTINGS}
    session = {"runs": [], "kernels": torch.backends.cpu.get_cpu_capability(), **provenance()}
    for seed in options.seeds:
        if seed in known:
            continue
        start = time.perf_counter()
        tables = [[*rows, *map(rounded, new)] for rows, new in zip(tables, both_runs(seed), strict=True)]
        session["runs"].append({"seed": seed, "seconds": round(time.perf_counter() - start, 1)})
        for path, rows in zip(paths, tables, strict=True):
            write_csv(path, rows)
        write_json(note, notes | {"sessions": [*notes["sessions"], session]})
        print(f"seed {seed}: {session['runs'][-1]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
