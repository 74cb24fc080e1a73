"""The study behind the headline as a program: what a run costs, which settings are tried and frozen, what is stored.

Training is replaced by stand-ins whose results are known, but for one tiny run of each family.
"""

import csv
import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from ppo_lib import worlds
from ppo_lib.config import REPLAY_SETTINGS, PPOConfigV1, ReplayConfig
from tests.unit.test_trainer import SMALL_RUN, vowels
from tests.unit.tiny import byte_tokenizer, hand_rollout, likely_eos, tiny_policy


@pytest.fixture
def program(program_of, monkeypatch, tmp_path):
    """The program, which writes into a folder of the test."""
    module = program_of("sample_efficiency")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


class Clock:
    """A clock that others move."""

    def __init__(self):
        self.now = 100.0

    def process_time(self) -> float:
        return self.now

    perf_counter = process_time


class Timed:
    """Stands for a trainer: sampling takes 2 s, an epoch 5 s, judging 1 s; an update has two steps."""

    tokens = 10  # of a rollout

    def __init__(self, clock, *arguments, **settings):
        self.clock, self.arguments, self.settings = clock, arguments, settings
        self.config, self.evaluations = SimpleNamespace(kl_coef=0.5), []

    def respond(self, prompts) -> SimpleNamespace:
        self.clock.now += 2
        return SimpleNamespace(mask=torch.arange(2 * self.tokens) < self.tokens)

    def step(self, minibatch) -> dict:
        self.clock.now += 2.5
        return {}

    def rehearse(self, dataset) -> None:
        self.respond([])

    def evaluate_at(self, update) -> dict:
        self.respond([])
        self.clock.now += 1
        judged = {"eval/score": 3.0 + update, "eval/kl": 4.0 * update, "eval/entropy": 20.0 - update}
        self.evaluations.append({"update": update, **judged})
        return judged

    def train_step(self, prompts) -> tuple[dict, SimpleNamespace]:
        rollout = self.respond(prompts)
        self.step(rollout)
        self.step(rollout)
        metrics = {"update": len(prompts), "replay/ess": 0.5, "efficiency/reuse_ratio": 1.25 * len(prompts)}
        if len(prompts) % 2 == 0:
            metrics |= self.evaluate_at(len(prompts))
        return metrics, rollout

    def train(self, prompts, heldout, callback) -> None:
        """Four updates, the second and fourth of them evaluated; `prompts` and `heldout` are noted."""
        self.data = prompts, heldout
        self.rehearse(prompts)
        self.evaluate_at(0)
        for update in range(1, 5):
            metrics, rollout = self.train_step([""] * update)
            callback(self, rollout, metrics)


def test_a_run_costs_what_it_did_for_training(program, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(program, "time", clock)
    trainer = type("Metered", (program.Meter, Timed), {})(clock)
    trainer.rehearse([])
    assert trainer.cost["tokens"] == 0, "the few tokens of the rehearsal are counted as generated"
    assert trainer.cost["generating"] == 0, "the time of the rehearsal is counted"
    trainer.evaluate_at(0)
    assert trainer.cost["tokens"] == 0, "what held-out evaluations sample is counted as generated"
    for update in (1, 2):
        trainer.train_step([""] * update)
    assert trainer.cost["tokens"] == 20, "tokens are not those of the rollouts of two updates"
    assert trainer.cost["steps"] == 4, "not every optimiser step is counted, or one twice"
    assert trainer.cost["generating"] == 4, "generating is not the time of sampling for training"
    assert trainer.cost["cpu"] == 2 * 7 + 3, "`cpu` is not the time of the updates and of the evaluation within one"
    assert trainer.health == {"reuse": 2.5, "ess": 0.5, "distance": 0.0, "age": 0.0, "held": 0}, (
        "health is not that of the last update, or a metric that it lacks is not that of a run without replay"
    )


def scripted(program, monkeypatch, proxy=False, **settings):
    """The rows of `train` with the stand-in above, and the stand-in itself."""
    clock, made = Clock(), []

    class Family(Timed):
        def __init__(self, *arguments, **settings):
            super().__init__(clock, *arguments, **settings)
            made.append(self)

    world = SimpleNamespace(reward="gold", prompts=["a", "b"], heldout_prompts=["c"])
    monkeypatch.setattr(program, "time", clock)
    monkeypatch.setattr(program, "worlds", SimpleNamespace(load={"somewhere": world}.__getitem__))
    monkeypatch.setattr(program, "reviews", SimpleNamespace(load_reward_model=lambda: "learned"))
    monkeypatch.setitem(program.FAMILIES, "ppo", Family)
    task = program.Task("somewhere", 64, 32, (1e-3,), proxy=proxy)
    return program.train(task, "ppo", {"batch_size": 4, "group_size": 2} | settings, 17), *made


def test_a_row_is_what_was_spent_and_reached_at_an_evaluation(program, monkeypatch):
    rows, trainer = scripted(program, monkeypatch)
    assert trainer.data == (["a", "b"], ["c"]), "not trained on the world's prompts and judged on its held-out ones"
    assert [row["responses"] for row in rows] == [0, 16, 32], "responses are not updates × prompts × group"
    assert [row["tokens"] for row in rows] == [0, 20, 40], "tokens are not those that training has generated so far"
    assert [row["steps"] for row in rows] == [0, 4, 8], "steps are not the optimiser's so far"
    assert rows[0]["cpu"] == 0, "the first row is not before any update: its evaluation or the rehearsal has a cost"
    assert [row["cpu"] for row in rows] == [0, 17, 34], "CPU time is not that of all updates and evaluations so far"
    assert [row["generating"] for row in rows] == [0, 4, 8], "generating is counted for evaluations, or not added up"
    assert [row["objective"] for row in rows] == [3, 5 - 4, 7 - 8], "the objective is not score − β KL, held out"
    for place, name in enumerate(("score", "kl", "entropy")):
        found = [row[name] for row in rows]
        expected = [judged[place] for judged in ((3, 0, 20), (5, 8, 18), (7, 16, 16))]
        assert found == expected, f"{name} is not that of the row's own evaluation, held out"
    assert rows[0].items() >= program.NO_REPLAY.items(), "before any update there is a health of replay"
    assert [row["reuse"] for row in rows] == [1, 2.5, 5], (
        "the reuse ratio is not that of the last update before the row"
    )
    assert [row["ess"] for row in rows] == [1, 0.5, 0.5], "the effective sample size is not that of the last update"
    assert set(rows[0]) == set(rows[1]) == set(program.COLUMNS), "a row lacks a column"


def test_what_a_run_is_made_with(program, monkeypatch):
    _, trainer = scripted(program, monkeypatch)
    assert trainer.arguments == ("somewhere", "gold"), "the reward is not the world's own"
    expected = {
        "eval_reward": "gold", "eval_every": 4, "eval_samples": 0, "total_episodes": 64, "seed": 17, "device": "cpu",
        "response_logits_only": True, "batch_size": 4, "group_size": 2,
    }  # fmt: skip
    assert trainer.settings == expected, "evaluations are not every 32 responses, or a setting is another"
    _, trainer = scripted(program, monkeypatch, proxy=True, total_episodes=24, device="cuda")
    assert trainer.arguments[1] == "learned", "a task with a learned reward is trained on the true one"
    assert trainer.settings["eval_reward"] == "gold", "a run is judged by the learned reward"
    assert trainer.settings["total_episodes"] == 24, "the length that was asked for is overruled by the task's"
    assert trainer.settings["device"] == "cuda", "the device that was asked for is overruled by the CPU"


def test_groups_replace_the_critic_in_grpo(program):
    """Advantages by hand: the score within its group, less what the rest of the response will pay for its KL."""
    trainer = program.GRPOTrainer(
        likely_eos(tiny_policy()), vowels, tokenizer=byte_tokenizer(),
        **SMALL_RUN | {"batch_size": 2, "group_size": 3, "kl_coef": 0.3, "whiten_advantages": False},
    )  # fmt: skip
    lengths = (3, 1, 4, 2, 4, 1)
    rollout = hand_rollout(lengths, ended=(True,) * 6)
    rollout.scores = torch.tensor([1.0, 4.0, 1.0, -2.0, 0.0, 2.0])
    trainer.assign_credit(rollout)
    relative = [gain / (3**0.5 + 1e-4) for gain in (-1, 2, -1)] + [gain / (2 + 1e-4) for gain in (-2, 0, 2)]
    for row, length in enumerate(lengths):
        kl = rollout.logprobs[row] - rollout.ref_logprobs[row]
        expected = [relative[row] - 0.3 * kl[t:length].sum().item() for t in range(length)]
        assert rollout.advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-5), (
            "not (score − its group's mean) / its group's deviation − β × the KL still to come"
        )
        assert not rollout.advantages[row, length:].any(), "padding has an advantage"


REPLAY = {"batch_size": 8, "replay_sample_size": 8, "minibatch_size": 16}
TINY_RUNS = {
    "ppo": ({"batch_size": 8, "minibatch_size": 4, "num_ppo_epochs": 2}, 4),
    "grpo": ({"batch_size": 4, "group_size": 2, "minibatch_size": 8, "num_ppo_epochs": 3}, 3),
    "naive": (REPLAY | {"correction": "none", "num_ppo_epochs": 1}, 1),
    "replay": (REPLAY | {"num_ppo_epochs": 1}, 1),
}


@pytest.fixture
def small_world(program, monkeypatch):
    """`reviews` with four held-out prompts, an evaluation every 8 responses."""
    whole = worlds.load("reviews")
    small = dataclasses.replace(whole, heldout_prompts=whole.heldout_prompts[:4])
    monkeypatch.setattr(program, "worlds", SimpleNamespace(load=lambda name: small))
    monkeypatch.setattr(program, "EVERY", 8)
    return program.Task("reviews", 16, 16, (1e-3,))


@pytest.mark.parametrize("family", TINY_RUNS)
def test_each_family_trains_and_counts(program, small_world, monkeypatch, family):
    settings, steps = TINY_RUNS[family]
    lengths, train_step = [], program.FAMILIES[family].train_step

    def noting(trainer, prompts):
        metrics, rollout = train_step(trainer, prompts)
        lengths.append(int(rollout.mask.sum()))
        return metrics, rollout

    monkeypatch.setattr(program.FAMILIES[family], "train_step", noting)
    first, middle, last = program.train(small_world, family, settings, seed=7)
    assert [row["responses"] for row in (first, middle, last)] == [0, 8, 16], "not an evaluation every 8 responses"
    assert middle["tokens"] == lengths[0], (
        "tokens are not those of the first rollout: replayed or held-out ones count too"
    )
    assert last["tokens"] == sum(lengths), "the tokens of rollouts are not added up"
    assert middle["steps"] == steps, "not every optimiser step of the first update is counted"
    assert last["steps"] == 2 * steps, "optimiser steps are not added up, or the update that replays has others"
    assert last["generating"] > 0, "the time of generating is not taken"
    assert last["generating"] < last["cpu"], "generating takes longer than the run that it is part of"
    assert first["objective"] != last["objective"], "nothing was learned"
    assert (last["reuse"] > 1) == (family in ("naive", "replay")), "replay does not replay, or another family does"


# which settings are tried


def test_tuning_seeds_are_not_counted_seeds(program):
    assert not set(program.TUNING_SEEDS) & set(program.SEEDS), "the settings were chosen on seeds that count"
    assert len(program.SEEDS) >= 10, "too few seeds count for an interval"
    assert program.ABLATION_SEEDS == program.SEEDS[:5], "ablations have no run of the full method on their seeds"
    task, further = program.TASKS["dense"], len(program.TUNING_SEEDS) - 1
    runs = {
        family: len(program.candidates(family, task)) + program.VARIED[family] + program.WIDE[family]
        + further * program.FINALISTS[family] + (len(program.NEARBY) if family == "replay" else 0)
        for family in program.FAMILIES
    }  # fmt: skip
    assert runs["ppo"] == max(runs.values()), f"on-policy PPO is tuned less than another family: {runs}"
    for family in ("ppo", "replay"):
        assert len({json.dumps(s) for s in program.wide(family, task)}) == program.WIDE[family], (
            f"{family} tries other than {program.WIDE[family]} different points of the wider grid"
        )


def test_every_setting_that_is_tried_is_one_that_its_family_takes(program):
    for name, task in program.TASKS.items():
        for family in program.FAMILIES:
            configs = PPOConfigV1 if family in ("ppo", "grpo") else ReplayConfig
            tried = program.candidates(family, task) + (program.wide(family, task) if program.WIDE[family] else [])
            for settings in tried:
                rollout = configs(**settings).rollout_size
                assert program.EVERY % rollout == 0, f"{name}, {family}: no evaluation every {program.EVERY} responses"
                assert settings["learning_rate"] in {
                    rate * factor for rate in task.learning_rates for factor in (0.5, 1, 2)
                }, f"{name}, {family}: a learning rate that is not the task's"
                wanted = {"naive": "none", "replay": "decoupled"}.get(family, "decoupled")
                assert settings.get("correction", wanted) == wanted, f"{family} has another correction"


@pytest.fixture
def stages(program, monkeypatch):
    """A family's tries by their names, in place of grids; what it tried by (name, seed) → mean."""
    first = [{"name": name} for name in "abcd"]
    monkeypatch.setattr(program, "candidates", lambda family, task: first)
    monkeypatch.setattr(program, "wide", lambda family, task: [{"name": f"wide {family}"}])
    monkeypatch.setattr(program, "VARIED", {"ppo": 2, "naive": 1, "replay": 2, "grpo": 0})
    monkeypatch.setattr(program, "FINALISTS", {"ppo": 3, "naive": 1, "replay": 2, "grpo": 1})
    monkeypatch.setattr(program, "NEARBY", ({"clip": 1}, {"clip": 2}))
    monkeypatch.setattr(program, "IMPROVED", 3)
    means = {
        ("a", 1): 0.1, ("b", 1): 0.5, ("c", 1): 0.3, ("d", 1): 0.4, ("a", 2): 9.0, ("wide", 1): 0.9, ("near", 1): 0.8,
    }  # fmt: skip
    tried = [{"settings": {"name": name}, "seed": seed, "mean": mean} for (name, seed), mean in means.items()]
    tried.append({"settings": {"name": "b", "lam": 1.0}, "seed": 1, "mean": 0.6})
    tried.append({"settings": {"name": "gains", "replay_gains_only": True}, "seed": 1, "mean": 0.95})

    def names(stage, family):
        found = program.tries_of(stage, family, program.TASKS["dense"], tried)
        return [tuple(settings.values()) for settings in found]

    return names


def test_the_grid_comes_first_and_then_its_best_with_another_lambda(stages):
    assert stages("first", "ppo") == [("a",), ("b",), ("c",), ("d",)], "not the grid's points"
    assert stages("varied", "ppo") == [("b", 1.0), ("d", 1.0)], (
        "not the best two of the grid on the first tuning seed (a shines on the second), with λ = 1"
    )
    assert stages("varied", "grpo") == [], "GRPO has no λ to vary"


def test_replay_alone_tries_what_is_near_its_best(stages):
    assert stages("nearby", "replay") == [("b", 1.0, 1), ("b", 1.0, 2)], "not one change at a time to the grid's best"
    assert stages("nearby", "ppo") == stages("nearby", "naive") == [], "another family than replay tries more"


def test_ppo_and_replay_try_a_wider_grid(stages):
    for family in ("ppo", "replay"):
        assert stages("wide", family) == [(f"wide {family}",)], f"{family} does not try the wider grid that is its own"
    assert stages("wide", "naive") == stages("wide", "grpo") == [], "the wider grid is PPO's and replay's alone"


def test_the_last_ideas_change_the_best_that_have_none_of_them(stages):
    found = [settings[:1] for settings in stages("last ideas", "replay")]
    assert found == [("wide",)] * 3 + [("near",)] * 3 + [("b",)] * 3, "not three ideas for each of the best three"
    assert stages("last ideas", "replay")[:3] == [("wide", True), ("wide", True, 3), ("wide", 3)], (
        "the last ideas are not gains alone, spacing alone, and both together"
    )
    assert stages("last ideas", "ppo") == [], "another family than replay tries the last ideas"


def test_finalists_are_the_best_on_the_first_tuning_seed(stages):
    assert stages("finalists", "ppo") == [("gains", True), ("wide",), ("near",)], "not the best three by their means"
    assert stages("finalists", "grpo") == [("gains", True)], "not as many finalists as the family has"


def test_frozen_is_the_best_over_all_tuning_seeds(program):
    """`early` is the best on the first seed, `rare` was run on that one alone, `steady` is the best over all three."""
    means = {
        "early": (0.9, 0.1, 0.1), "steady": (0.6, 0.65, 0.7), "middling": (0.7, 0.5, 0.3), "lucky": (0.0, 0.0, 1.2),
        "rare": (1.0,), "twice": (0.9, 0.9),
    }  # fmt: skip
    tried = [
        {"task": task, "family": family, "settings": {"name": f"{family} {name}"}, "seed": seed, "mean": mean + better}
        for task, family, better in (("dense", "replay", 0.2), ("dense", "ppo", 0.0), ("sums", "ppo", 0.0))
        for name, of_seeds in means.items()
        if (task, name) != ("sums", "steady")
        for seed, mean in enumerate(of_seeds, 1)
    ]
    program.freeze(tried)
    frozen = json.loads((program.FOLDER / "frozen.json").read_text())
    chosen = {task: {arm: s["name"] for arm, s in arms.items()} for task, arms in frozen["settings"].items()}
    assert chosen["dense"]["ppo"] != "ppo early", "frozen is the best on the first tuning seed, not over all"
    assert chosen["dense"]["ppo"] not in ("ppo rare", "ppo twice"), "settings were frozen that not all seeds have tried"
    assert chosen["dense"]["ppo"] != "ppo lucky", "frozen is the best on a single seed"
    assert chosen["dense"]["runner-up"] == "ppo middling", "the runner-up is not PPO's second best"
    assert chosen["dense"] == {"replay": "replay steady", "ppo": "ppo steady", "runner-up": "ppo middling"}, (
        "not the best mean over all tuning seeds of each family"
    )
    assert chosen["sums"] == {"ppo": "ppo middling", "runner-up": "ppo lucky"}, "the settings are another task's"
    assert frozen["tuning_runs"] == {"dense": {"replay": 15, "ppo": 15}, "sums": {"ppo": 12}}, "not the runs of each"
    assert program.frozen() == frozen["settings"], "runs are made with other settings than were frozen"
    assert frozen["commit"] == "abc", "frozen.json does not say which code the settings were chosen with"


def test_nothing_runs_before_it_was_tuned(program):
    with pytest.raises(SystemExit, match="frozen.json is not there: run .*tune"):
        program.frozen()


GOODNESS = {"a": (0.9, 0.0), "b": (0.8, 0.8), "c": (0.7, 0.75), "d": (0.1, 1.0)}  # of a try, on each tuning seed


def test_tuning_tries_each_setting_once_and_finalists_on_every_seed(program, monkeypatch):
    """`a` is the best on the first seed and `d` on the second, but `b` over both; objectives rise by 0.2."""
    monkeypatch.setattr(program, "TASKS", {
        "dense": program.Task("w", 64, 32, ()), "proxy": program.Task("w", 64, 32, (), tuned_on="dense")
    })  # fmt: skip
    monkeypatch.setattr(program, "candidates", lambda family, task: [{"name": name} for name in GOODNESS])
    monkeypatch.setattr(program, "TUNING_SEEDS", (1, 2))
    for counts, each in (("VARIED", 0), ("WIDE", 0), ("FINALISTS", 3)):
        monkeypatch.setattr(program, counts, dict.fromkeys(program.FAMILIES, each))
    for extra in ("NEARBY", "LAST_IDEAS"):
        monkeypatch.setattr(program, extra, ({"replay_gains_only": True},) * 2 if extra == "LAST_IDEAS" else ())
    monkeypatch.setattr(program, "IMPROVED", 0)
    ran = []

    def in_parallel(jobs, workers):
        for key, task, episodes, family, settings, seed in jobs:
            ran.append((task, family, settings["name"], seed, episodes))
            good = GOODNESS[settings["name"]][seed - 1]
            yield key, [{"objective": good - 0.2}, {"objective": good + 0.00006}, {"objective": good + 0.2}]

    monkeypatch.setattr(program, "in_parallel", in_parallel)
    program.main(["tune"])
    assert {job[0] for job in ran} == {"dense"}, "a task that takes another's settings is tuned"
    assert {job[-1] for job in ran} == {32}, "a try is not as long as a run of the tuning"
    expected = [("dense", f, n, 1, 32) for f in program.FAMILIES for n in "abcd"]
    expected += [("dense", f, n, 2, 32) for f in program.FAMILIES for n in "abc"]
    assert Counter(ran) == Counter(expected), "not every setting once on the first seed, the best three on the second"
    rows = [json.loads(line) for line in (program.FOLDER / "tuning.jsonl").read_text().splitlines()]
    row = next(row for row in rows if (row["family"], row["settings"]["name"], row["seed"]) == ("grpo", "c", 2))
    assert row == {
        "task": "dense", "family": "grpo", "seed": 2, "mean": 0.75, "objective": [0.55, 0.75, 0.95],
        "settings": {"name": "c"},
    }, "a row is not the run's mean objective over all its evaluations"  # fmt: skip
    frozen = program.frozen()["dense"]
    assert {name: settings["name"] for name, settings in frozen.items()} == dict.fromkeys(program.FAMILIES, "b") | {
        "runner-up": "c"
    }, "frozen is not the best over all tuning seeds"
    ran.clear()
    program.main(["tune"])
    assert not ran, "what was tried is tried again"


# arms and ablations


FROZEN = {
    "dense": {
        "ppo": {"batch_size": 16, "num_ppo_epochs": 4},
        "runner-up": {"batch_size": 8},
        "grpo": {"batch_size": 4, "group_size": 8},
        "naive": {"batch_size": 8, "replay_sample_size": 24, "correction": "none"},
        "replay": {"batch_size": 8, "replay_sample_size": 24, "minibatch_size": 32, "num_ppo_epochs": 2, "lam": 0.9,
                   "max_replay_reuse": 2},
    },
    "sums": {"ppo": {"batch_size": 32}},
}  # fmt: skip


@pytest.fixture
def arms(program, monkeypatch):
    """The arms of a study whose settings are frozen as above."""
    (program.FOLDER / "frozen.json").write_text(json.dumps({"settings": FROZEN}))
    monkeypatch.setattr(program, "TASKS", {
        "dense": program.Task("w", 640, 480, ()), "sums": program.Task("w", 800, 400, ()),
        "proxy": program.Task("w", 600, 300, (), tuned_on="dense"),
    })  # fmt: skip
    monkeypatch.setattr(program, "ABLATIONS", {
        "no replay": {"replay_sample_size": 0}, "half": lambda s: {"replay_sample_size": s["replay_sample_size"] // 2},
        "reuse at most 2": {"max_replay_reuse": 2}, "larger": {"replay_sample_size": 56},
    })  # fmt: skip
    return program


def test_an_arm_has_its_family_and_frozen_settings(arms):
    dense = FROZEN["dense"]
    for name in ("ppo", "grpo", "naive", "replay"):
        assert arms.arm("dense", name) == (name, dense[name]), f"{name} runs with other settings than were frozen"
    assert arms.arm("dense", "runner-up") == ("ppo", dense["runner-up"]), "the runner-up is not PPO's second best"
    assert arms.arm("proxy", "ppo") == ("ppo", dense["ppo"]), "a task does not take the settings it is said to take"
    family, settings = arms.arm("dense", "same")
    assert family == "ppo", "`same` is trained by another family than PPO"
    assert not settings.keys() & REPLAY_SETTINGS, "`same` replays: it keeps settings of the buffer"
    assert settings == {"batch_size": 8, "minibatch_size": 8, "num_ppo_epochs": 1, "lam": 0.9}, (
        "`same` is not replay's settings without replay, its rollout as one minibatch, and one epoch"
    )


def test_an_ablation_changes_one_thing_of_the_full_method(arms):
    replay = FROZEN["dense"]["replay"]
    for name, size, minibatch in (("no replay", 0, 8), ("half", 12, 20), ("larger", 56, 32)):
        family, settings = arms.arm("dense", name)
        assert family == "replay", f"{name}: an ablation is trained by another family than the full method"
        assert settings == replay | {"replay_sample_size": size, "minibatch_size": minibatch}, (
            f"{name}: not the frozen settings with one change, in minibatches no larger than there are responses"
        )


def test_which_arms_a_task_has(arms):
    assert arms.has_arm("dense", "runner-up"), "the runner-up is left out though it was frozen"
    assert arms.has_arm("proxy", "runner-up"), "a task that takes another's settings does not take its runner-up"
    assert arms.has_arm("sums", "ppo"), "PPO is left out where it has no runner-up"
    assert not arms.has_arm("sums", "runner-up"), "a tuning with a single finalist has no runner-up"
    assert arms.has_arm("dense", "naive"), "naive replay is left out on the task it is for"
    assert not arms.has_arm("sums", "naive"), "naive replay runs on another task"


def test_every_frozen_arm_and_ablation_can_be_made(monkeypatch, program):
    """From the settings that the book's runs had."""
    monkeypatch.setattr(program, "FOLDER", program.RESULTS / "sample_efficiency")
    assert set(program.ARMS) == {*program.FAMILIES, "same", "runner-up"}, "a family has no arm, or an arm is not known"
    for task in program.TASKS:
        names = [name for name in program.ARMS if program.has_arm(task, name)]
        for name in names + (list(program.ABLATIONS) if task in program.ABLATED else []):
            family, settings = program.arm(task, name)
            config = (ReplayConfig if family in ("naive", "replay") else PPOConfigV1)(**settings)
            assert program.EVERY % config.rollout_size == 0, f"{task}, {name}: evaluations are not every 32 responses"


def stand_in(key, *job):
    """A curve that depends on arm and seed, with numbers that need rounding."""
    task, name, seed = key
    return [
        {"responses": 32 * i, "tokens": 300 * i + seed, "steps": 4 * i, "objective": len(name) + i / 3, "score": 1 / 3,
         "kl": 123456.789, "entropy": 2.0, "cpu": 0.1 + i, "generating": 0.05, "reuse": 1.0, "ess": 0.000123456789,
         "distance": 0.0, "age": 1.5, "held": 7}
        for i in range(3)
    ]  # fmt: skip


@pytest.fixture
def ran(arms, monkeypatch):
    """The jobs that were run, in order, by stand-ins."""
    jobs = []

    def in_parallel(new, workers):
        for job in new:
            jobs.append(job)
            yield job[0], stand_in(*job)

    monkeypatch.setattr(arms, "in_parallel", in_parallel)
    monkeypatch.setattr(arms, "SEEDS", (7, 8))
    monkeypatch.setattr(arms, "ABLATION_SEEDS", (8,))
    return jobs


def test_every_arm_runs_on_every_fresh_seed_once(arms, ran):
    arms.main(["run", "--tasks", "dense", "proxy"])
    keys = [job[0] for job in ran]
    both = [(t, n) for t in ("dense", "proxy") for n in arms.ARMS if (t, n) != ("proxy", "naive")]
    expected = [(*arm, seed) for arm in both for seed in (7, 8)]
    assert Counter(keys) == Counter(expected), "not every arm of every task on every seed"
    for key, task, episodes, family, settings, seed in ran:
        assert task == key[0], "a run is stored under another task"
        assert seed == key[2], "a run is stored under another seed"
        assert episodes == {"dense": 640, "proxy": 600}[task], "a final run has not the length of its task"
        assert (family, settings) == arms.arm(task, key[1]), "an arm ran with another's settings"
    with open(arms.FOLDER / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["task", "arm", "seed", *arms.COLUMNS], "curves.csv has other columns, or in another order"
    assert len(rows) == 3 * len(keys), "not every evaluation of every run is stored once"
    first = next(row for row in rows if (row["task"], row["arm"], row["seed"]) == ("proxy", "ppo", "8"))
    values = ("0", "8", "0", "3", "0.33333", "1.2346e+05", "2", "0.1", "0.05", "1", "0.00012346", "0", "1.5", "7")
    assert tuple(first[name] for name in arms.COLUMNS) == values, "a column holds another's number, or not five digits"
    assert json.loads((arms.FOLDER / "runs.json").read_text()) == {"settings": FROZEN, "commit": "abc"}, (
        "runs.json does not say which settings and code the runs had"
    )


def test_what_is_stored_is_not_run_again(arms, ran):
    arms.main(["run", "--tasks", "dense"])
    path = arms.FOLDER / "curves.csv"
    stored = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in stored if not line.startswith("dense,replay,8")))
    ran.clear()
    arms.main(["run", "--tasks", "dense"])
    assert [job[0] for job in ran] == [("dense", "replay", 8)], "not the missing run alone"
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(stored), "a stored run is lost or doubled"


def test_ablations_are_as_long_as_the_tuning_and_those_that_change_nothing_are_left_out(arms, ran, monkeypatch):
    arms.main(["ablate"])
    assert [job[0] for job in ran] == [("dense", name, 8) for name in ("no replay", "half", "larger")], (
        "not the ablations that change something, on their seeds, on the tasks that have them"
    )
    assert {job[2] for job in ran} == {480}, "an ablation has not the length of a run of the tuning"
    ran.clear()
    arms.main(["ablate", "--tasks", "sums"])
    assert not ran, "a task without ablations is ablated"


def test_a_stored_run_is_compared_with_itself(arms, ran, monkeypatch, capsys):
    arms.main(["run", "--tasks", "dense"])
    asked = []

    def train(task, family, settings, seed):
        asked.append((family, settings, seed))
        return [row | {"cpu": 99.0, "generating": 98.0} for row in stand_in(("dense", "replay", seed))]

    monkeypatch.setattr(arms, "train", train)
    arms.main(["repeat", "dense", "replay", "7"])
    assert asked == [("replay", FROZEN["dense"]["replay"] | {"total_episodes": 64}, 7)], "another run is repeated"
    compared = ", ".join(name for name in arms.COLUMNS if name not in ("cpu", "generating"))
    said = f"3 evaluations, equal to the stored ones in {compared}"
    assert said in capsys.readouterr().out, "a column is not compared"
    path = arms.FOLDER / "curves.csv"
    path.write_text(path.read_text().replace("dense,replay,7,32,307,", "dense,replay,7,32,306,"))
    with pytest.raises(SystemExit):
        arms.main(["repeat", "dense", "replay", "7"])
    assert "differs from the stored run in tokens:" in capsys.readouterr().out, "a difference is not named"
    with pytest.raises(SystemExit, match="no stored run dense replay 9"):
        arms.main(["repeat", "dense", "replay", "9"])
    with pytest.raises(SystemExit):
        arms.main(["repeat", "dense", "replay"])


def test_a_run_goes_through_a_worker_and_comes_out_again_the_same(program, small_world, monkeypatch, capsys):
    """The whole way of one tiny run, really trained: it is stored, and the same command makes it again."""
    monkeypatch.setattr(program, "TASKS", {"dense": small_world})
    monkeypatch.setattr(program, "SEEDS", (7,))
    monkeypatch.setattr(program, "ARMS", ("replay",))
    monkeypatch.setattr(program, "in_parallel", lambda jobs, workers: map(program.work, jobs))
    program.freeze([
        {"task": "dense", "family": "replay", "settings": TINY_RUNS["replay"][0], "seed": seed, "mean": 0.0}
        for seed in program.TUNING_SEEDS
    ])  # fmt: skip
    program.main(["run"])
    program.main(["repeat", "dense", "replay", "7"])
    assert "3 evaluations, equal to the stored ones" in capsys.readouterr().out, (
        "a run in a worker is another than the same run made again: what it is made with gets lost on the way"
    )


def test_jobs_go_to_workers_of_one_thread(program, monkeypatch, capsys):
    pools = []

    class Pool:
        def __init__(self, workers, maxtasksperchild):
            pools.append((workers, maxtasksperchild))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def imap_unordered(self, work, jobs):
            return map(work, reversed(jobs))

    spawn = {"spawn": SimpleNamespace(Pool=Pool)}
    monkeypatch.setattr(program, "multiprocessing", SimpleNamespace(get_context=spawn.__getitem__))
    monkeypatch.setattr(program, "os", SimpleNamespace(environ={"kept": "yes"}))
    monkeypatch.setattr(program, "work", lambda job: (job, [{"objective": 0.0}, {"objective": 0.25}]))
    found = list(program.in_parallel(["one", "two"], 3))
    assert [key for key, _ in found] == ["two", "one"], "a job is lost, or waits for one that was started before it"
    assert pools == [(3, 16)], "there are other than three workers, or they are never replaced and grow"
    assert program.os.environ == {"kept": "yes", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}, "not one thread a worker"
    assert capsys.readouterr().out == "1/2 two: last objective 0.250\n2/2 one: last objective 0.250\n", (
        "what is told of a job is not how many are done, its key and where it ended"
    )


def test_an_evaluation_takes_the_least_of_nine_times(program, monkeypatch):
    """Seconds of the first, which warms up and is the shortest here, and of the nine others."""
    seconds, clock = [1.0, 9, 8, 7.65432149, 8, 9, 9, 9, 9, 9], Clock()

    class Trainer:
        def __init__(self, name, reward, **settings):
            self.name, self.left = name, list(seconds)
            assert settings == {"device": "cpu", "eval_samples": 0, "response_logits_only": True}, "evaluated otherwise"

        def evaluate_at(self, update):
            assert self.eval_dataset.prompts == [f"held out of {self.name}"], "not the held-out prompts are evaluated"
            clock.now += self.left.pop(0) * (2 if self.name == "there" else 1)

    def load(name):
        return SimpleNamespace(reward=None, prompts=["p"], heldout_prompts=[f"held out of {name}"])

    monkeypatch.setattr(program, "time", clock)
    monkeypatch.setattr(program, "worlds", SimpleNamespace(load=load))
    monkeypatch.setattr(program, "ppo_v1", SimpleNamespace(PPOTrainer=Trainer))
    monkeypatch.setattr(program, "TASKS", {"a": program.Task("here", 1, 1, ()), "b": program.Task("there", 1, 1, ())})
    program.main(["evaluations"])
    stored = json.loads((program.FOLDER / "evaluations.json").read_text())["cpu_seconds"]
    assert stored == {"a": 7.6543, "b": 15.3086}, "not the least of nine after the first, to four digits"
