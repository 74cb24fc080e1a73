"""A run that was interrupted, ended or resumed goes on where it stood, in responses, however memory splits it."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from ppo_lib import ppo, ppo_v1, ppo_v2, worlds
from ppo_lib.commands.cli import main
from ppo_lib.running import small_memory
from ppo_lib.running.checkpoint import checkpoints
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, TINY, assert_same_run, make, vowels, weights
from tests.unit.tiny import likely_eos, smallest_policy, tiny_policy

STAGES = {"v0": ppo, "v1": ppo_v1, "v2": SimpleNamespace(PPOTrainer=ppo_v2.PPOTrainerWithReplay)}
FIVE = dict(batch_size=4, minibatch_size=4, total_episodes=20, num_ppo_epochs=1)
OF_STAGE = {"v0": {}, "v1": dict(lr_scheduler="linear"), "v2": dict(lr_scheduler="linear", replay_sample_size=4)}


def trainer(stage="v1", **settings):
    return make(stage=STAGES[stage], **FIVE | OF_STAGE[stage] | settings)


def interrupts(update):
    def callback(ppo, rollout, metrics):
        if metrics["update"] == update:
            raise KeyboardInterrupt

    return callback


def fails(update):
    def reward(prompts, responses):
        reward.calls += 1
        if reward.calls == update + 1:
            raise KeyError("the reward's server is down")
        return vowels(prompts, responses)

    reward.calls = 0
    return reward


# a second `train` of one trainer


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("end", ["Ctrl-C", "callback", "error"])
def test_a_run_that_was_interrupted_goes_on(stage, end, tmp_path):
    rate = [1e-2 * (5 - n) / 5 if stage != "v0" else 1e-2 for n in range(5)]
    ppo = trainer(stage, learning_rate=1e-2, output_dir=str(tmp_path))
    if end == "error":
        ppo.reward = fails(2)
    try:
        ppo.train(PROMPTS, callback={"Ctrl-C": interrupts(2), "callback": lambda *a: a[2]["update"] == 2}.get(end))
    except (KeyboardInterrupt, ValueError):
        pass
    assert len(ppo.history) == 2, "the test needs a run that stops after two updates"
    rest = ppo.train(PROMPTS)
    assert [row["update"] for row in rest] == [3, 4, 5], "the whole run is done once more after an interrupt"
    assert [row["episode"] for row in ppo.history] == [4, 8, 12, 16, 20], "responses are counted wrongly"
    assert [row["lr"] for row in ppo.history] == pytest.approx(rate), "the schedule does not go on after an interrupt"


def test_what_is_interrupted_between_updates_goes_on_as_if_nothing_had_been():
    whole, stopped = trainer(), trainer()
    whole.train(PROMPTS)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(PROMPTS, callback=interrupts(2))
    stopped.train(PROMPTS)
    assert_same_run(stopped, whole, "an interrupt between two updates changes the run")


def test_an_interrupt_before_the_first_update_blocks_nothing(tmp_path):
    ppo = trainer(output_dir=str(tmp_path), reward=fails(0), eval_reward=vowels, eval_every=1)
    with pytest.raises(ValueError):
        ppo.train(PROMPTS, HELD_OUT)
    assert len(ppo.train(PROMPTS, HELD_OUT)) == 5, "the trainer's own folder is taken for another run's"
    assert [row["update"] for row in ppo.evaluations] == [0, 1, 2, 3, 4, 5], "update 0 is evaluated twice"


TIMED = {
    "v0": {},
    "v1": dict(eval_every=2, save_every=3, keep_last=99, kl_target=0.5, kl_horizon=16),
    "v2": dict(eval_every=2, save_every=3, keep_last=99, replay_anneal=0.4, max_replay_kl=None, min_ess=0.0),
}


@pytest.mark.parametrize("stage", STAGES)
def test_each_run_of_a_trainer_has_the_times_of_its_first(stage, tmp_path):
    """Three runs of five updates; the third is stopped in the middle and gone on with. Held-out scores only fall."""
    settings = TIMED[stage] and dict(eval_reward=lambda prompts, responses: [-float(len(ppo.history))] * len(responses))
    ppo = trainer(stage, learning_rate=1e-2, output_dir=str(tmp_path), **TIMED[stage], **settings)
    data, before = [PROMPTS, HELD_OUT] if TIMED[stage] else [PROMPTS], weights(ppo)
    stops = {11: lambda *a: a[2]["update"] == 12}
    for first, last in ((1, 5), (6, 10), (11, 12), (13, 15)):
        done = [row["update"] for row in ppo.train(*data, callback=stops.get(first))]
        assert done == [*range(first, last + 1)], f"instead of updates {first} to {last}, {done} are made"
        assert any(not torch.equal(before[name], weight) for name, weight in weights(ppo).items()), "it moves nothing"
        before = weights(ppo)
    rates = [row["lr"] for row in ppo.history]
    assert rates == rates[:5] * 3, "another run has no schedule of its own"
    assert [row["episode"] for row in ppo.history] == [4 * n for n in range(1, 16)], "responses are counted from anew"
    if stage == "v0":
        return
    due = [0, 2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert [row["update"] for row in ppo.evaluations] == due, "another run is not evaluated as often, or not at its end"
    saved = {int(path.name.removeprefix("update-")) for path in checkpoints(ppo.checkpoint_dir)}
    assert saved == {0, 2, 3, 5, 6, 9, 10, 12, 15}, "another run does not save as often, or not at its end"
    assert (ppo.best.update, ppo.best.score) == (2, -1.0), "another run takes a worse score than the best for better"
    if stage == "v1":
        for row, after in zip(ppo.history, ppo.history[1:], strict=False):
            factor = 1 + min(max(row["objective/kl"] / 0.5 - 1, -0.2), 0.2) * 4 / 16
            price = row["objective/kl_coef"] * factor
            assert after["objective/kl_coef"] == pytest.approx(price), f"β starts anew in update {after['update']}"
    else:
        replayed = [row["replay/sampled"] for row in ppo.history]
        assert replayed == [0, 4, 4, 2, 0, *[4, 4, 4, 2, 0] * 2], "another run replays or fades at other times"
        assert int(ppo.buffer.fields["versions"].max()) == 15, "another run dates its responses anew"
        told = [row["efficiency/generated_responses"] for row in ppo.history]
        assert told == [4 * n for n in range(1, 16)], "another run counts what was generated anew"


# Ctrl-C within an update


@pytest.mark.parametrize("stage", ["v1", "v2"])
@pytest.mark.parametrize("name", ["collect", "score", "estimate", "update", "evaluate_at", "callback"])
def test_an_interrupt_within_an_update_makes_nothing_twice(name, stage, tmp_path):
    """In the third of five updates, which brings the best held-out score."""
    ppo = trainer(stage, policy=smallest_policy(), output_dir=str(tmp_path), eval_every=1, learning_rate=1e-2)
    ppo.eval_reward = lambda prompts, responses: [float(len(ppo.history) == 2)] * len(responses)
    stop, seen = [True], {}

    def interrupted(sound):
        def work(*arguments):
            result = sound(*arguments)
            if stop and len(ppo.history) == (3 if name == "callback" else 2):
                stop.clear()
                raise KeyboardInterrupt
            return result

        return work

    def callback(ppo, rollout, metrics):
        seen[metrics["update"]] = weights(ppo)

    if name != "callback":
        setattr(ppo, name, interrupted(getattr(ppo, name)))
    callback = interrupted(callback) if name == "callback" else callback
    with pytest.raises(KeyboardInterrupt):
        ppo.train(PROMPTS, HELD_OUT, callback)
    ppo.train(PROMPTS, HELD_OUT, callback)
    where = f"after Ctrl-C at the end of `{name}`"
    assert [row["update"] for row in ppo.history] == [1, 2, 3, 4, 5], f"{where}, updates are counted otherwise"
    rates = [row["lr"] for row in ppo.history]
    assert rates == pytest.approx([1e-2 * n / 5 for n in (5, 4, 3, 2, 1)]), f"{where}, the schedule does not go on"
    for told in (ppo.evaluations, ppo.samples[:: len(HELD_OUT)]):
        assert [row["update"] for row in told] == [0, 1, 2, 3, 4, 5], f"{where}, an update is evaluated twice"
    logged = [json.loads(line)["update"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == [0, 1, 2, 3, 4, 5], f"{where}, an update is logged twice or not at all"
    kept = weights(make(str(tmp_path / "best")))
    same = all(torch.equal(weight, kept[name]) for name, weight in seen[3].items())
    assert ppo.best.update == 3 and same, f"{where}, best/ is not the model of the best score"


def test_after_patience_is_out_another_run_has_its_own():
    scores = iter(range(0, -99, -1))
    ppo = trainer(eval_reward=lambda p, r: [next(scores)] * len(r), eval_every=1, early_stopping_patience=2)
    assert len(ppo.train(PROMPTS, HELD_OUT)) == 3, "the test needs a run that stops early"
    assert len(ppo.train(PROMPTS, HELD_OUT)) == 2, "after early stopping a second `train` does nothing"


def test_a_second_run_is_resumed_as_it_would_have_gone_on(tmp_path):
    whole = trainer(output_dir=str(tmp_path / "whole"), save_every=1, keep_last=99)
    whole.train(PROMPTS)
    whole.train(PROMPTS)
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    again = make(resume_from_checkpoint=tmp_path / "copy/checkpoints/update-00000007")
    again.train(PROMPTS)
    assert_same_run(again, whole, "a second run of one trainer is resumed as another")


# resumed with rollouts of another size


@pytest.mark.parametrize(
    "changes",
    [dict(batch_size=8), dict(batch_size=2, minibatch_size=2), dict(group_size=2), dict(gradient_accumulation_steps=4),
     dict(batch_size=6, minibatch_size=6), dict(batch_size=8, total_episodes=56)],
    ids=str,
)  # fmt: skip
def test_a_run_resumed_with_rollouts_of_another_size_ends_at_its_responses(changes, tmp_path):
    schedule = dict(lr_scheduler="cosine", warmup_updates=1)
    run = trainer(output_dir=str(tmp_path), total_episodes=40, save_every=1, **schedule)
    run.train(PROMPTS, callback=lambda *a: a[2]["update"] == 4)
    with pytest.warns(UserWarning, match="other settings"):
        again = make(resume_from_checkpoint=tmp_path, **changes)
    size, total = again.config.rollout_size, again.config.total_episodes
    done = [row["episode"] for row in again.train(PROMPTS)]
    assert done == list(range(16 + size, total + 1, size)), "the run does not end where its responses do"
    alone = make(**FIVE | dict(total_episodes=total) | schedule | changes)
    alone.train(PROMPTS)
    wanted = [row["lr"] for row in alone.history][-len(done) :]
    rates = [row["lr"] for row in again.history[4:]]
    assert rates == pytest.approx(wanted), "the schedule does not stand where as many responses lead"


@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_the_command_line_resumes_with_another_size(tmp_path, capsys):
    common = ["--set", "max_new_tokens=4", "--set", "num_ppo_epochs=1", "--set", f"output_dir={tmp_path}/run"]
    sizes = ["--set", "total_episodes=24", "--set", "batch_size=4", "--set", "minibatch_size=4"]
    assert main(["train", *common, *sizes]) == 0, "a short run on the command line fails"
    longer = ["--set", "batch_size=8", "--set", "total_episodes=40"]
    assert main(["resume", f"{tmp_path}/run", *longer]) == 0, "a run cannot be resumed with another `batch_size`"
    assert "8 updates" in capsys.readouterr().out, "16 responses more in rollouts of 8 are two updates"


# what is computed at a time


def split_run(stage, at_a_time, **settings):
    ppo = make(likely_eos(tiny_policy(sharpness=2.0)), stage=STAGES[stage], **TINY | settings)
    ppo.forward_batch.size = at_a_time
    ppo.train(PROMPTS, HELD_OUT)
    return ppo


@pytest.mark.parametrize("stage", ["v1", "v2"])
def test_results_do_not_depend_on_how_many_responses_are_computed_at_a_time(stage):
    settings = dict(gradient_accumulation_steps=2, total_episodes=24, eval_every=1, learning_rate=1e-7)
    runs = [split_run(stage, at_a_time, **settings) for at_a_time in (1, 3, 99)]
    for other in runs[1:]:
        texts = [row["sampled"] for row in other.samples], [row["sampled"] for row in runs[0].samples]
        assert texts[0] == texts[1], "held-out responses depend on how many are computed at a time"
        for mine, theirs in zip(other.history, runs[0].history, strict=True):
            for name in ("objective/scores", "objective/kl", "response/length", "policy/approxkl_avg", "val/ratio"):
                told = f"{name} depends on how many responses are computed at a time"
                assert mine[name] == pytest.approx(theirs[name], abs=1e-3), told


def test_the_generator_stands_where_v0_leaves_it():
    ppo, plain = make(), make(stage=STAGES["v0"])
    ppo.forward_batch.size = 1
    for each in (ppo, plain):
        each.collect(PROMPTS * 2)
    assert torch.equal(ppo.generator.get_state(), plain.generator.get_state()), "later random numbers are others"


def test_without_gradients_as_many_are_computed_as_fit():
    policy = tiny_policy()
    ppo = make(policy, batch_size=1, minibatch_size=1, gradient_accumulation_steps=8, total_episodes=8)
    sizes, sample = [], small_memory.rollouts.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_memory.rollouts, "sample", lambda *a, **k: sizes.append(len(a[2])) or sample(*a, **k))
        ppo.train(PROMPTS, HELD_OUT)
    assert max(sizes) == 8, "a small batch_size makes sampling go one response at a time"
    assert 2 in sizes and 1 not in sizes, "held-out prompts are answered one at a time"


# the bar says what is done


def test_the_bar_names_what_takes_its_time(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "0")
    ppo, told = trainer(), []
    with monkeypatch.context() as patch:
        patch.setattr("tqdm.std.tqdm.set_description", lambda bar, text, **k: told.append(text))
        ppo.train(PROMPTS, HELD_OUT)
    first = ["PPO, evaluating 2 prompts", "PPO, sampling", "PPO, scoring", "PPO, updating"]
    assert [text for text in told if text != "PPO"][:4] == first, f"the bar does not say what is done: {told[:6]}"
    assert ppo.progress is None, "a bar is left behind"


def test_worlds_train_in_rollouts_that_do_not_divide_their_prompts():
    world = worlds.load("reviews")
    assert len(world.prompts) < 70, "the test needs a rollout that spans two passes over the prompts"
    run = ppo.PPOTrainer(total_episodes=70, batch_size=7, minibatch_size=7, max_new_tokens=2, device="cpu")
    assert [row["episode"] for row in run.train(world.prompts)] == list(range(7, 71, 7)), (
        "rollouts of a size that does not divide the prompts have lost or additional responses"
    )
