"""The second study as a program: which settings are tried, which stay, and what a run is judged by."""

import itertools
import json
import statistics

import pytest
import torch

from ppo_lib import worlds
from ppo_lib.config import PPOConfigV1, ReplayConfig
from ppo_lib.ppo_v1 import PPOTrainer

CONFIGS = {"ppo": PPOConfigV1, "replay": ReplayConfig}


@pytest.fixture
def study(program_of, monkeypatch, tmp_path):
    """The program, which writes into a folder of the test."""
    module = program_of("replay_study")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def test_both_families_try_as_many_settings_and_all_of_them_make_a_run(study):
    for name, family in itertools.product(("dense", "sparse", "sums"), study.FAMILIES):
        found = study.candidates(name, family)
        assert found == study.candidates(name, family), f"{name}, {family}: other settings when asked again"
        assert len({json.dumps(one) for one in found}) == study.ROUNDS[0][0] == 40, f"{name}, {family}: some come twice"
        for settings in found:
            config = CONFIGS[family](**settings)
            assert config.rollout_size <= 32, f"{name}, {family}: a rollout is longer than two evaluations"
        tried = {key for settings in found for key in settings}
        levers = {"kl_stop", "lr_scheduler", "cliprange_high", "critic_warmup", "lam", "policy_objective"}
        assert levers <= tried, f"{name}, {family}: {levers - tried} is in no setting that is tried"
        assert ("temperature" in tried) == (family == "ppo"), f"{name}, {family}: has another's temperature"
        assert ("behaviour_temperature" in tried) == (family == "replay"), f"{name}, {family}: has another's heat"


def halved(study, monkeypatch, worth):
    """A tuning of one task in which settings number i end with `worth(family, i, seed)`; the jobs of each round."""
    rounds, numbers = [], {}
    for family in study.FAMILIES:
        for number, settings in enumerate(study.candidates("sums", family)):
            numbers[family, json.dumps(settings)] = number

    def in_parallel(jobs, workers, work):
        rounds.append([(key[1], numbers[key[1], key[2]], key[3]) for key, *_ in jobs])
        for key, *_ in jobs:
            value = worth(key[1], numbers[key[1], key[2]], key[3])
            yield key, [{"objective": value + change, "tokens": 9, "cpu": 1.0} for change in (-0.25, 0.25)]

    monkeypatch.setattr(study, "in_parallel", in_parallel)
    monkeypatch.setattr("sys.argv", ["replay_study.py"])
    study.main(["tune", "--tasks", "sums", "proxy"])
    return rounds, json.loads((study.FOLDER / "frozen.json").read_text())["chosen"], numbers


def test_the_best_stay_and_are_tried_on_more_seeds(study, monkeypatch):
    def worth(family, number, seed):
        if family == "ppo":
            return number + (100.0 if number == 3 and seed == 1 else 0.0)  # one lucky first seed
        return -number + (50.0 if number == 2 and seed > 3 else 0.0)

    rounds, chosen, numbers = halved(study, monkeypatch, worth)
    for family, first, last in (
        ("ppo", {3, *range(29, 40)}, {3, 37, 38, 39}),
        ("replay", set(range(12)), set(range(4))),
    ):
        jobs = [sorted((n, seed) for who, n, seed in one if who == family) for one in rounds]
        assert jobs[0] == [(n, 1) for n in range(40)], f"{family}: not all 40 settings run on the first seed alone"
        assert jobs[1] == [(n, s) for n in sorted(first) for s in (2, 3)], f"{family}: not the best 12 on seeds 2 and 3"
        assert jobs[2] == [(n, s) for n in sorted(last) for s in range(4, 9)], f"{family}: not the best 4 on 4 to 8"
    best = {family: numbers[family, json.dumps(chosen["sums"][family]["settings"])] for family in study.FAMILIES}
    assert best == {"ppo": 39, "replay": 2}, f"not the best mean over eight seeds is frozen, but {best}"
    assert {one["runs"] for one in chosen["sums"].values()} == {84}, "the families have other numbers of runs"
    assert chosen["sums"]["ppo"]["mean"] == 39 and set(chosen) == {"sums"}, "a task is tuned that takes another's"


def test_a_tuning_that_was_stopped_runs_what_is_missing(study, monkeypatch):
    halved(study, monkeypatch, lambda family, number, seed: float(number))
    rounds, *_ = halved(study, monkeypatch, lambda family, number, seed: float(number))
    assert rounds == [[], [], []], "runs that are stored are made again"


def test_the_mean_of_a_run_is_over_its_evaluations(study):
    rows = [{"settings": {"a": a}, "seed": seed, "mean": a * seed} for a in (1, 2) for seed in (1, 2, 3)][:-1]
    assert study.means_of(rows, 3) == {'{"a": 1}': 2}, "settings that lack a seed are compared on fewer"
    assert study.means_of(rows, 2) == {'{"a": 1}': 1.5, '{"a": 2}': 3}, "the mean is not that of the first seeds"


def test_report_seeds_chose_nothing_and_arms_share_no_luck(study, monkeypatch):
    used, every = {}, set(study.SEEDS).union(*study.MORE_SEEDS.values())
    assert not every & set(range(1, study.ROUNDS[-1][1] + 1)), "seeds that chose the settings report on them"
    assert len(study.SEEDS) >= 20 and len(study.MORE_SEEDS["sparse"]) >= 30, "fewer report seeds than were promised"
    frozen = {"chosen": {"dense": {family: {"settings": {"batch_size": 8}} for family in study.FAMILIES}}}
    frozen["defaults"] = {family: {"batch_size": 9, "lam": 0.9} for family in study.FAMILIES}
    (study.FOLDER / "frozen.json").write_text(json.dumps(frozen))

    def noted(task, family, settings, seed, every, meter):
        used[len(used)] = seed, family, settings, every
        return []

    monkeypatch.setattr(study.sample_efficiency, "train", noted)
    for name, arm, seed in itertools.product(("dense", "proxy"), study.ARMS, (200, 201)):
        study.work(((name, arm, seed), name, *study.settings_of(name, arm), seed, "report"))
    assert len({seed for seed, *_ in used.values()}) == len(used) == 16, "two runs have the same random numbers"
    families = [family for _, family, *_ in used.values()]
    assert families[:8] == ["ppo"] * 2 + ["replay"] * 2 + ["ppo"] * 2 + ["replay"] * 2, "an arm is of another family"
    assert {settings["total_episodes"] for *_, settings, _ in used.values()} == {640}, "a report run is not whole"
    assert {every for *_, every in used.values()} == {8}, "a report run is not evaluated each 8 responses"
    frozen = {(settings["batch_size"], settings["lam"]) for *_, settings, _ in used.values()}
    assert frozen == {(8, 0.9)}, "what was chosen goes over the defaults of that day"


def test_the_defaults_of_the_day_are_frozen_with_what_was_chosen(study):
    for family, config in CONFIGS.items():
        kept = study.others(family)
        run = CONFIGS[family](**kept, total_episodes=64)
        assert {name for name in vars(run) if name not in kept} == {
            name for name in study.OF_THE_RUN if hasattr(run, name)
        }, f"{family}: a setting is neither frozen nor one of the run"
        assert kept["learning_rate"] == config().learning_rate


def test_a_hot_run_is_judged_at_temperature_one_and_pays_nothing_for_it(study):
    world = worlds.load("reviews")
    settings = dict(batch_size=8, minibatch_size=8, total_episodes=16, temperature=1.4, device="cpu", eval_samples=0)
    trainer = type("Judged", (study.Judge, PPOTrainer), {})("reviews", world.reward, eval_every=1, seed=5, **settings)
    lengths, judged = [], []
    respond = trainer.respond

    def listening(prompts, *arguments, **keywords):
        rollout = respond(prompts, *arguments, **keywords)
        (judged if len(prompts) == 64 else lengths).append(rollout)
        return rollout

    trainer.respond = listening
    trainer.train(world.prompts, world.heldout_prompts)
    assert len(judged) == 3, "a run is not judged before it and after each update"
    with torch.no_grad():
        first = judged[0]
        at_one = trainer.reference(first.tokens, attention_mask=first.attention_mask).logits[
            :, first.prompt_ids.shape[1] - 1 : -1
        ]
        own = torch.log_softmax(at_one, -1).gather(-1, first.response_ids[..., None])[..., 0]
    assert torch.allclose(own[first.mask], first.logprobs[first.mask], atol=1e-3), "held-out responses are sampled hot"
    assert trainer.evaluations[0]["eval/kl"] == pytest.approx(0, abs=1e-4), "the reference is judged hot"
    scores = world.reward(judged[-1].prompts, judged[-1].responses)
    assert trainer.evaluations[-1]["eval/score"] == pytest.approx(statistics.fmean(scores), abs=1e-5), "another's score"
    assert trainer.config.temperature == 1.4, "a run goes on at the temperature of its evaluation"
    whole = sum(int(rollout.mask.sum()) for rollout in lengths[-2:])
    assert trainer.cost["tokens"] == whole, "what evaluations sample is counted as generated"


def curve_that_arrives(at: int, level: float = 1.0, long: int = 400, step: int = 8, tokens: int = 10) -> list[dict]:
    """From −1 to `level` at `at` responses, at one go; `tokens` a response, a second each, half of it generating."""
    return [
        {"responses": n, "tokens": n * tokens, "objective": level if n >= at else -1.0, "cpu": float(n),
         "generating": n / 2, "steps": n, "reuse": 1.0}
        for n in range(0, long + 1, step)
    ]  # fmt: skip


def test_what_an_arm_gains_by_hand(study):
    """PPO arrives at 160, 240 and 320 of 400 responses: not by a start at 0, and in one run only after replay's end."""
    late = (160, 200, 240, 800)
    ppo = {seed: curve_that_arrives(at, long=400 if at < 400 else 480) for seed, at in enumerate(late)}
    early = {seed: curve_that_arrives(at, level=1.5) for seed, at in enumerate((80, 120, 160, 120))}
    arms = {"ppo": ppo, "replay": early, "twin": dict(ppo), "reshuffle": dict(early)}
    table = study.table_of(arms)
    end = (3 * 1.0 - 1.0) / 4  # three runs end at 1, one at −1
    assert table["start"] == -1 and table["thresholds"]["90"] == pytest.approx(-1 + 0.9 * (end + 1)), (
        "a threshold is not a share of the gain from PPO's start to its end"
    )
    row = table["arms"]["replay"]
    assert (row["tokens"], row["never"], row["runs"]) == (1200, 0, 4), (
        "tokens are not those until the objective is held"
    )
    assert table["arms"]["ppo"]["never"] == 1, "a run that never gets there is not counted"
    expected = (1600 + 2000 + 2400 + 4000) / 4 / 1200  # the last is cut off where the shortest run ends
    assert row["cheaper"]["90"][0] == pytest.approx(expected, abs=1e-3), "not the ratio of restricted means"
    assert row["cheaper"]["90"][1] < expected < row["cheaper"]["90"][2], "an interval leaves out its own ratio"
    assert row["end_less"][0] == pytest.approx(1.5 - end, abs=1e-3), "not the difference of the ends"
    assert table["arms"]["twin"]["cheaper"]["90"][0] == 1, "the same runs are not as cheap as themselves"
    assert table["arms"]["reshuffle"]["cheaper"]["90"][0] == 1, "a reshuffle is not compared with replay"
    assert table["generating_share"] == 0.5, "the share of generation is not that of PPO's time"
    spent = [[160, 200, 240, 480], [80, 120, 160, 120]]
    assert row["faster"]["60"][0] == pytest.approx(sum(spent[0]) / sum(spent[1]), abs=1e-3), (
        "where both spend half of their time generating, making that dearer changes no ratio"
    )


def test_intervals_hold_what_they_say(study):
    """Two samples of 20 from the same distribution: a ratio of 1 lies in about 95 of 100 intervals."""
    rng = study.np.random.default_rng(1)
    inside = 0
    for _ in range(60):
        _, low, high = study.cheaper(*rng.gamma(4.0, 1.0, size=(2, 20)))
        inside += low <= 1 <= high
    assert inside >= 51, f"a 95 % interval holds the truth in {inside} of 60 cases"  # binomial: below 51 once in 2,000


def test_the_end_of_a_run_is_its_last_160_responses(study):
    curve = [{"responses": n, "objective": float(n)} for n in range(0, 641, 32)]
    assert study.end_of(curve) == statistics.fmean([512, 544, 576, 608, 640]), "not the last 160 responses"


def test_the_price_of_a_token_by_hand(study):
    """Of 100 tokens generated in 2 s and 300 trained on in 12 s: 0.02 s and 0.04 s each."""
    curve = [
        {"tokens": 0, "reuse": 1.0, "cpu": 0.0, "generating": 0.0},
        {"tokens": 50, "reuse": 2.0, "cpu": 7.0, "generating": 1.0},
        {"tokens": 100, "reuse": 3.0, "cpu": 14.0, "generating": 2.0},
    ]
    assert study.price_of_a_token(curve) == pytest.approx(0.02 / 0.04)


@pytest.mark.parametrize(
    ("tokens", "time", "end", "twin", "words"),
    [
        ([1.2, 0.99, 1.5], [2.0, 1.5, 3.0], [0, -1, 1], 1.0, "v1: no gain is shown"),
        ([1.2, 1.01, 1.5], [1.2, 0.9, 1.5], [0, -1, 1], 1.0,
         "v2 where you pay by the token, v1 where you pay by the hour"),
        ([1.2, 1.01, 1.5], [1.2, 1.1, 1.5], [0, -1, 1], 1.0, "v2"),
        ([1.2, 1.01, 1.5], [1.2, 1.1, 1.5], [-0.2, -0.3, -0.1], 1.0, "v2; v2 ends lower"),
        ([1.2, 1.01, 1.5], [1.2, 1.1, 1.5], [0, -1, 1], 1.11,
         "v2 (luck: the control twin is off by more than a tenth)"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_lower_ends(study, tokens, time, end, twin, words):
    arms = {name: {"cheaper": {"90": [ratio, 0.5, 2.0]}} for name, ratio in (("twin", twin), ("reshuffle", 0.9))}
    arms["replay"] = {"cheaper": {"90": tokens}, "faster": {"60": time}, "end_less": end}
    assert study.verdict(arms) == words
