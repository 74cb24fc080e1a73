"""A resumed run is the run that was never interrupted: weights, metrics and logs, bit for bit."""

import json
import math
import random
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ppo_lib import ppo_v2
from ppo_lib.config import PPOConfigV1
from ppo_lib.data import PPODataset
from ppo_lib.models import Critic
from ppo_lib.rewards import RewardError, RewardModel
from ppo_lib.running import checkpoint, resume
from ppo_lib.running.checkpoint import CheckpointError
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, TINY, assert_same_run, make, numbers, vowels, weights
from tests.unit.test_rewards import classifier
from tests.unit.tiny import byte_tokenizer, likely_eos, smallest_policy, tiny_policy

THREE_UPDATES = dict(total_episodes=12, save_every=1, keep_last=9, learning_rate=1e-2)
FOUR_UPDATES = THREE_UPDATES | dict(total_episodes=16)


def moody(prompts, responses):
    """A reward that draws from every generator of the process."""
    mood = random.random() + np.random.rand() + np.random.randn() + torch.rand(()).item() + random.gauss(0, 1)
    return [score + mood for score in vowels(prompts, responses)]


def stirred():
    """Other random numbers than any run has had: a resumed process starts with its own."""
    random.seed(), np.random.seed(), torch.seed()


def same(run, expected, mistake):
    """The run, what it knows and what it wrote down are those expected."""
    assert_same_run(run, expected, mistake)
    assert run.evaluations == expected.evaluations, f"{mistake}: other evaluations"
    assert run.samples == expected.samples, f"{mistake}: other sample texts"
    assert (run.best, run.kl_coef) == (expected.best, expected.kl_coef), f"{mistake}: another best or another β"
    assert (run.skipped_steps, run.skipped_in_a_row) == (expected.skipped_steps, expected.skipped_in_a_row), (
        f"{mistake}: skipped steps are counted from anew"
    )
    mine, other = ([json.loads(x) for x in log(ppo).read_text().splitlines()] for ppo in (run, expected))
    assert numbers(mine) == numbers(other), f"{mistake}: metrics.jsonl is another"


def log(ppo):
    return ppo.jsonl.path


def resumed_at(folder, update, **arguments):
    """The run in `folder`, resumed in a folder beside it from its checkpoint of `update`."""
    stirred()
    source = folder / "checkpoints" / checkpoint.name_of(update)
    return make(resume_from_checkpoint=source, output_dir=f"{folder}-from-{update}", **arguments)


def check_resume(tmp_path, points=(1,), held_out=None, reward=vowels, mistake="resumed", **settings):
    stirred()
    whole = make(tiny_policy(), reward, output_dir=str(tmp_path / "whole"), **THREE_UPDATES | settings)
    whole.train(PROMPTS, held_out)
    for update in points:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again = resumed_at(tmp_path / "whole", update, policy=tiny_policy(), reward=reward)
        assert len(again.history) == update, f"resumed from update {update} at update {len(again.history)}"
        again.train(PROMPTS, held_out)
        same(again, whole, f"{mistake} (resumed after update {update})")
    return whole


FEATURES = {
    "nothing": dict(),
    "cosine": dict(lr_scheduler="cosine", warmup_updates=1, mistake="the schedule is not restored"),
    "plateau": dict(
        lr_scheduler="plateau", lr_scheduler_kwargs={"factor": 0.5, "patience": 0}, warmup_updates=1, eval_every=1,
        held_out=HELD_OUT, mistake="the plateau's patience or warm-up is not restored",
    ),
    "adaptive KL": dict(kl_target=0.5, kl_horizon=8, mistake="the adapted β is not restored"),
    "LoRA": dict(lora_rank=2, frozen_dtype="bfloat16", mistake="the adapters are not restored"),
    "bf16": dict(mixed_precision="bf16", activation_checkpointing=True, mistake="mixed precision resumes otherwise"),
    "accumulation": dict(
        batch_size=2, minibatch_size=1, gradient_accumulation_steps=2, mistake="accumulation resumes otherwise"
    ),
    "random rewards": dict(
        reward=moody, held_out=HELD_OUT, eval_every=1, mistake="the random numbers of the process are not restored"
    ),
    "early stopping": dict(
        eval_every=1, early_stopping_patience=9, held_out=HELD_OUT, mistake="the best score or patience is not restored"
    ),
    "kl_stop": dict(kl_stop=1e-3, group_size=2, total_episodes=24, mistake="an update that KL ended resumes otherwise"),
}  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES)
def test_a_resumed_run_is_the_uninterrupted_one(feature, tmp_path):
    check_resume(tmp_path, **FEATURES[feature])


def test_all_features_together(tmp_path):
    whole = check_resume(
        tmp_path, points=(0, 2), reward=moody, held_out=HELD_OUT, eval_every=1, early_stopping_patience=9,
        batch_size=1, group_size=2, minibatch_size=1, gradient_accumulation_steps=2, lora_rank=2,
        mixed_precision="bf16", activation_checkpointing=True, response_logits_only=True, entropy_coef=0.01,
        kl_target=0.5, kl_horizon=8, warmup_updates=1, lr_scheduler="plateau",
        lr_scheduler_kwargs={"factor": 0.5, "patience": 0}, mistake="with all features on",
    )  # fmt: skip
    assert len({m["lr"] for m in whole.history}) > 1, "the test needs a learning rate that moves"


@pytest.mark.filterwarnings("ignore:the held-out prompts are not")
def test_each_part_of_the_state_is_restored(tmp_path):
    """A cheap look at each part, to say which one is missing where a resumed run is another."""

    def stop(ppo, rollout, metrics):
        ppo.skipped_steps, ppo.skipped_in_a_row = 5, 2
        return True

    def next_numbers(ppo):
        of_numpy, of_torch = np.random.rand(), torch.rand(())
        return {"training": torch.rand((), generator=ppo.generator), "Python": random.random(), "numpy": of_numpy,
                "torch": of_torch}  # fmt: skip

    ppo = make(
        tiny_policy(), output_dir=str(tmp_path), eval_every=1, kl_target=0.5, kl_horizon=8, lr_scheduler="linear",
        early_stopping_patience=9,
    )  # fmt: skip
    ppo.train([*PROMPTS, "A fifth"], HELD_OUT, stop)
    waiting, expected = list(ppo.batches.waiting), next_numbers(ppo)
    again = make(tiny_policy(), output_dir=str(tmp_path), resume_from_checkpoint=True)
    stirred()
    again.prepare(PPODataset([*PROMPTS, "A fifth"]))
    assert again.history == ppo.history, "the history is not restored"
    mine = weights(again)
    assert all(torch.equal(weight, mine[name]) for name, weight in weights(ppo).items()), "the weights are not restored"
    moments, saved = again.optimizer.state_dict()["state"], ppo.optimizer.state_dict()["state"]
    assert moments.keys() == saved.keys(), "Adam's moments are not restored"
    assert all(torch.equal(moments[i]["exp_avg"], saved[i]["exp_avg"]) for i in saved), "a moment of Adam is another"
    assert again.schedule.state_dict() == ppo.schedule.state_dict(), "the schedule is not restored"
    assert again.kl_coef == ppo.kl_coef != ppo.config.kl_coef, "the adapted β is not restored"
    assert again.best == ppo.best, "best score and patience are not restored"
    counters = again.skipped_steps, again.skipped_in_a_row
    assert counters != (2, 5), "skipped steps in a row and all skipped steps are taken for each other at a resume"
    assert counters == (5, 2), "the counters of skipped steps are not restored"
    assert len(waiting) == 1 and again.batches.waiting == waiting, "prompts of the interrupted pass are not restored"
    numbers = next_numbers(again)
    for name, number in expected.items():
        assert numbers[name] == number, f"the random numbers of {name} are not restored"


def test_the_order_of_the_prompts_is_restored(tmp_path):
    """Five prompts in batches of four: a pass is always in the middle when the run dies."""
    seen = {}

    def run(prompts, responses):
        seen.setdefault("now", []).append(list(prompts))
        return vowels(prompts, responses)

    prompts = [*PROMPTS, "A fifth"]
    whole = make(tiny_policy(), run, output_dir=str(tmp_path / "whole"), **FOUR_UPDATES)
    whole.train(prompts)
    expected = seen.pop("now")[2:]
    again = resumed_at(tmp_path / "whole", 2, policy=tiny_policy(), reward=run)
    again.train(prompts)
    assert seen["now"] == expected, "prompts of the pass that was interrupted are repeated or dropped"
    same(again, whole, "the order of the prompts is not restored")


# every piece of the state, in a run to which everything has happened

LIVED = dict(
    batch_size=2, minibatch_size=4, total_episodes=6, max_new_tokens=3, num_ppo_epochs=2, learning_rate=1e-2,
    eval_every=1, eval_samples=1, early_stopping_patience=50, lr_scheduler="linear", warmup_updates=1, kl_target=0.5,
    kl_horizon=8, max_skipped_steps=3, replay_sample_size=2, replay_buffer_size=6, max_replay_reuse=1,
    replay_keep_best=0.2, device="cpu",
)  # fmt: skip
FIVE_PROMPTS = [*PROMPTS, "A fifth"]  # in batches of two: a pass is always in the middle
NAN_STEPS = {(2, 1), (5, 2), (6, 1)}  # updates, and steps in them


def eventful(**settings):
    """A run with replay. Memory runs out above two responses, and some steps have a NaN gradient."""
    settings = settings if "resume_from_checkpoint" in settings else LIVED | settings
    stage = SimpleNamespace(PPOTrainer=ppo_v2.PPOTrainerWithReplay)
    never_better = {"eval_reward": lambda prompts, responses: [0.5] * len(responses)}
    ppo = make(likely_eos(smallest_policy()), moody, stage, **never_better, **settings)
    loss, step, now = ppo.loss, ppo.step, [0, 0]

    def counted(minibatch):
        update = len(ppo.history) + 1
        now[:] = update, now[1] + 1 if now[0] == update else 1
        return step(minibatch)

    def spoiled(minibatch):
        if len(minibatch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        value, metrics = loss(minibatch)
        return value * (math.nan if tuple(now) in NAN_STEPS else 1.0), metrics

    ppo.step, ppo.loss = counted, spoiled
    return ppo


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """An eventful run, stopped in the second `train` of its trainer, and the state in its checkpoint."""
    ppo = eventful(output_dir=str(tmp_path_factory.mktemp("lived")))
    with pytest.warns(UserWarning, match="out of memory: training now takes 2"):
        ppo.train(FIVE_PROMPTS, HELD_OUT)
    ppo.train(FIVE_PROMPTS, HELD_OUT, callback=lambda *_: len(ppo.history) == 5)
    state, path, _ = checkpoint.load_newest(ppo.checkpoint_dir)
    assert path.name == checkpoint.name_of(5), "the test needs a checkpoint of where it stopped"
    return ppo, state


PIECES = [  # of a checkpoint
    "weights/policy", "weights/critic", "frozen", "optimizer/state/step", "optimizer/state/exp_avg",
    "optimizer/state/exp_avg_sq", "optimizer/param_groups/lr", "schedule", "kl_coef", "generator", "rng/python",
    "rng/numpy/state/pos", "rng/torch", "prompts", "heldout", "tokenizer", "waiting", "history/values", "evaluations",
    "samples", "best/score", "best/update", "best/evaluations_since", "skipped/0", "skipped/1", "sizes/0", "sizes/1",
    "run_id", "run_began", "rewards/reward", "rewards/held-out judge", "replay/prompts", "replay/fields/response_ids",
    "replay/fields/behaviour_logprobs", "replay/fields/ref_logprobs", "replay/fields/lengths", "replay/fields/ended",
    "replay/fields/scores", "replay/fields/versions", "replay/fields/reuses", "replay/fields/last_used",
    "replay/counts", "totals",
]  # fmt: skip
CHANGES = {  # into others that are possible too; a number becomes one more, a text is turned round
    "generator": lambda _: torch.Generator().manual_seed(9).get_state(),
    "rng/torch": lambda _: torch.Generator().manual_seed(9).get_state(),
    "rng/python": lambda _: random.Random(9).getstate(),
    "waiting": lambda waiting: [(number + 1) % len(FIVE_PROMPTS) for number in waiting],
    "replay/fields/lengths": lambda lengths: lengths.clamp(max=1),
}
ELSEWHERE = {  # pieces of which other tests say that they matter
    "config", "optimizer/param_groups", "scaler", "rng/cuda", "rng/numpy", "history/layouts", "history/which",
}  # fmt: skip


def piece_of(path: str) -> str | None:
    within = path.replace(".", "/") + "/"
    return next((name for name in [*PIECES, *ELSEWHERE] if within.startswith(f"{name}/")), None)


def items_of(value, path: str):
    """Key, item and path of each item; what lies in a list is one piece, unless it is a piece by itself."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        deeper = f"{path}/{key}".lstrip("/")
        yield key, item, path if isinstance(key, int) and deeper not in PIECES else deeper


def changed(value, name: str, path: str = ""):
    """`value` with all that belongs to the piece `name` changed."""
    if name in CHANGES and path == name:
        return CHANGES[name](value)
    if isinstance(value, dict):
        return {key: changed(item, name, deeper) for key, item, deeper in items_of(value, path)}
    if isinstance(value, (list, tuple)):
        return type(value)(changed(item, name, deeper) for _, item, deeper in items_of(value, path))
    if piece_of(path) != name or value is None:
        return value
    if isinstance(value, torch.Tensor):
        return ~value if value.dtype == torch.bool else value + 1
    return value[::-1] + "x" if isinstance(value, str) else not value if isinstance(value, bool) else value + 1


def paths(value, path: str = ""):
    """The paths of all that is in a state."""
    if isinstance(value, (dict, list, tuple)):
        for _, item, deeper in items_of(value, path):
            yield from paths(item, deeper)
    else:
        yield path


def end_of(state, folder):
    """How the run that is resumed from `state` ends: its state then and what was warned of, or why it has none."""
    checkpoint.save_checkpoint(folder / "checkpoints", 5, state)
    stirred()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            again = eventful(resume_from_checkpoint=folder)
            again.train(FIVE_PROMPTS, HELD_OUT)
        except (CheckpointError, FloatingPointError) as error:
            return str(error)
    end = again.state() | {"history": numbers(again.history), "said": [str(warning.message) for warning in said]}
    del end["config"]["output_dir"]
    return end


@pytest.fixture(scope="module")
def unchanged(lived, tmp_path_factory):
    first, second = (end_of(lived[1], tmp_path_factory.mktemp("unchanged")) for _ in range(2))
    other = [name for name in first if not alike_but_for_nan(first[name], second[name])]
    assert not other, f"resumed twice from one checkpoint, a run ends with other {other}: nothing restores it"
    return first


@pytest.mark.parametrize("piece", PIECES)
def test_a_resumed_run_depends_on_every_piece_of_its_checkpoint(piece, lived, unchanged, tmp_path):
    end = end_of(changed(lived[1], piece), tmp_path)
    alike = not isinstance(end, str) and alike_but_for_nan(end, unchanged)
    assert not alike, f"with another `{piece}` in its checkpoint a resumed run is the same: nothing restores it"


def alike_but_for_nan(mine, other) -> bool:
    """Whether two nested states are equal; a NaN equals a NaN."""
    if isinstance(mine, torch.Tensor):
        return torch.equal(mine.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))
    if isinstance(mine, dict):
        return mine.keys() == other.keys() and all(alike_but_for_nan(mine[key], other[key]) for key in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(other) and all(map(alike_but_for_nan, mine, other))
    return mine == other or (mine != mine and other != other)


# Of a trainer: what its checkpoints hold, and what a resumed one is given or finds out anew.
HELD = {
    "policy", "critic", "reference", "optimizer", "schedule", "kl_coef", "generator", "history", "evaluations",
    "samples", "best", "skipped_steps", "skipped_in_a_row", "micro_batch", "forward_batch", "run_id", "run_began",
    "batches", "buffer", "totals", "config",
}  # fmt: skip
FOUND_ANEW = {
    "device", "tokenizer", "reward", "eval_reward", "eval_dataset", "accelerator", "jsonl", "decoder", "progress",
    "owns_output_dir", "resumed_state", "_callback", "_longest", "_last_update", "_too_far", "_run_dir",
    "_policy_rests",
}  # fmt: skip


def test_a_checkpoint_holds_everything_that_changes(lived):
    """Nothing that the trainer carries from update to update is missing from its checkpoints."""
    ppo, state = lived
    new = vars(ppo).keys() - HELD - FOUND_ANEW - {"loss", "step"}
    assert not new, f"a trainer has something new: {new}. Put it into `resume.state_of`, or say that it is found anew"
    untried = {path for path in paths(state) if piece_of(path) is None}
    assert not untried, f"a checkpoint has something new: {untried}. Name it in PIECES, so that it is tried"
    assert set(state["weights"]) == {*(f"policy.{n}" for n, _ in ppo.policy.named_parameters()),
                                     *(f"critic.{n}" for n, _ in ppo.critic.named_parameters())}  # fmt: skip
    happened = ppo.skipped_steps, ppo.skipped_in_a_row, ppo.micro_batch.size, ppo.run_began, len(ppo.batches.waiting)
    assert happened == (2, 1, 2, 6, 1), f"the test needs a run to which something has happened: {happened}"


def test_a_checkpoint_that_lacks_a_piece_is_refused(lived, tmp_path):
    _, state = lived
    for name in state.keys() - {"heldout", "tokenizer", "run_began"}:  # which checkpoints of earlier versions lack
        checkpoint.save_checkpoint(tmp_path / name / "checkpoints", 5, {k: v for k, v in state.items() if k != name})
        try:
            eventful(resume_from_checkpoint=tmp_path / name)
            said = "nothing"
        except (CheckpointError, KeyError) as error:
            said = str(error)
        assert name in said or "without a buffer" in said, f"of a checkpoint without its `{name}`, {said} is said"


# deaths


def dies_at(call, reward=vowels):
    """A reward that fails at its `call`-th call, from 1, and never again."""
    calls = [0]

    def failing(prompts, responses):
        calls[0] += 1
        if calls[0] == call:
            raise KeyError("the reward's server is down")
        return reward(prompts, responses)

    return failing


@pytest.mark.filterwarnings("ignore:the run's ")
def test_a_run_that_died_and_was_resumed_twice_is_the_whole_one(tmp_path):
    """It dies in update 2, is resumed from update 1, dies in update 4 and is resumed from update 3."""
    settings = FOUR_UPDATES | dict(warmup_updates=1, lr_scheduler="linear")
    whole = make(tiny_policy(), output_dir=str(tmp_path / "whole"), **settings)
    whole.train(PROMPTS)
    run = make(tiny_policy(), dies_at(2), output_dir=str(tmp_path / "run"), **settings)
    with pytest.raises(RewardError) as caught:
        run.train(PROMPTS)
    notes = "".join(caught.value.__notes__)
    assert "with `resume_from_checkpoint` the run goes on from" in notes and "update-00000001" in notes, (
        "a run that dies does not say where it can go on from"
    )
    stirred()
    run = make(tiny_policy(), dies_at(3), output_dir=str(tmp_path / "run"), resume_from_checkpoint=True)
    with pytest.raises(RewardError):
        run.train(PROMPTS)
    stirred()
    run = make(tiny_policy(), output_dir=str(tmp_path / "run"), resume_from_checkpoint=True)
    run.train(PROMPTS)
    same(run, whole, "resumed twice")


@pytest.mark.filterwarnings("ignore:the run's ")
def test_updates_after_the_last_checkpoint_are_cut_from_the_log_and_done_again(tmp_path):
    settings = FOUR_UPDATES | dict(save_every=2)
    whole = make(tiny_policy(), output_dir=str(tmp_path / "whole"), **settings)
    whole.train(PROMPTS)
    run = make(tiny_policy(), dies_at(4), output_dir=str(tmp_path / "run"), **settings)
    with pytest.raises(RewardError):
        run.train(PROMPTS)
    assert len(log(run).read_text().splitlines()) == 3, "the test needs a log that is ahead of its checkpoint"
    with open(log(run), "a") as file:
        file.write('{"update": 4, "obj')  # the line that was being written
    run = make(tiny_policy(), output_dir=str(tmp_path / "run"), resume_from_checkpoint=True)
    run.train(PROMPTS)
    same(run, whole, "updates after the last checkpoint are logged twice, or half")


def test_broken_checkpoints_are_passed_over_and_replaced(tmp_path):
    settings = FOUR_UPDATES | dict(keep_last=2)
    whole = make(tiny_policy(), output_dir=str(tmp_path / "whole"), **settings)
    whole.train(PROMPTS)
    run = make(tiny_policy(), output_dir=str(tmp_path / "run"), **FOUR_UPDATES)
    run.train(PROMPTS)
    folder = tmp_path / "run" / "checkpoints"
    for update in (2, 3, 4):
        (folder / checkpoint.name_of(update) / checkpoint.TENSORS).write_bytes(b"broken")
    with pytest.warns(UserWarning) as warned:
        run = make(tiny_policy(), output_dir=str(tmp_path / "run"), resume_from_checkpoint=True, keep_last=2)
    said = [str(warning.message) for warning in warned if "passed over" in str(warning.message)]
    assert len(said) == 3 and all("tensors.safetensors" in text for text in said), "broken checkpoints are not named"
    assert len(run.history) == 1, "not resumed from the newest whole checkpoint"
    run.train(PROMPTS, callback=lambda ppo, rollout, metrics: metrics["update"] == 2)
    found, path, _ = checkpoint.load_newest(folder)
    assert found and path.name == "update-00000002", "broken later checkpoints pushed out the one just saved"
    run = make(tiny_policy(), output_dir=str(tmp_path / "run"), resume_from_checkpoint=True)
    run.train(PROMPTS)
    same(run, whole, "resumed past broken checkpoints")


def test_only_broken_checkpoints_are_an_error(tmp_path):
    make(output_dir=str(tmp_path), **FOUR_UPDATES).train(PROMPTS, callback=lambda *_: True)
    for path in checkpoint.checkpoints(tmp_path / "checkpoints"):
        (path / checkpoint.MANIFEST).unlink()
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(CheckpointError, match="no whole checkpoint in"):
        make(output_dir=str(tmp_path), resume_from_checkpoint=True)


# where there is nothing to do, or nothing to go on from


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    whole = make(tiny_policy(), output_dir=str(tmp_path), **FOUR_UPDATES)
    whole.train(PROMPTS)
    before = {path: path.read_bytes() for path in [log(whole), *(tmp_path / "checkpoints").rglob("*.safetensors")]}
    again = make(tiny_policy(), output_dir=str(tmp_path), resume_from_checkpoint=True)
    assert again.train(PROMPTS) == [], "a finished run does more updates when it is resumed"
    same(again, whole, "resuming a finished run")
    after = {path: path.read_bytes() for path in [log(again), *(tmp_path / "checkpoints").rglob("*.safetensors")]}
    assert after == before, "resuming a finished run rewrites its files"


def test_a_finished_run_can_be_made_longer(tmp_path):
    longer = FOUR_UPDATES | dict(total_episodes=24)
    whole = make(tiny_policy(), output_dir=str(tmp_path / "whole"), **longer)
    whole.train(PROMPTS)
    make(tiny_policy(), output_dir=str(tmp_path / "run"), **FOUR_UPDATES).train(PROMPTS)
    with pytest.warns(UserWarning, match=r"other settings than the run had \(total_episodes\)"):
        again = make(tiny_policy(), output_dir=str(tmp_path / "run"), resume_from_checkpoint=True, total_episodes=24)
    assert len(again.train(PROMPTS)) == 2, "`total_episodes` does not lengthen a finished run"
    same(again, whole, "a run made longer, at a constant learning rate,")


def falling(prompts, responses):
    falling.score -= 1
    return [falling.score] * len(responses)


@pytest.mark.filterwarnings("ignore:the run's ")
def test_an_early_stopped_run_stays_stopped(tmp_path):
    falling.score = 0
    settings = FOUR_UPDATES | dict(eval_every=1, early_stopping_patience=2)
    run = make(output_dir=str(tmp_path), eval_reward=falling, **settings)
    run.train(PROMPTS, HELD_OUT)
    assert len(run.history) == 3, "the test needs a run that stops early"
    again = make(output_dir=str(tmp_path), resume_from_checkpoint=True)
    assert again.best == run.best, "the best score or patience is not restored"
    assert again.train(PROMPTS, HELD_OUT) == [], "a run that was stopped early goes on when it is resumed"


def test_patience_goes_on_counting(tmp_path):
    """One evaluation without a new best before the checkpoint, one after it: two are the patience."""
    falling.score = 0
    settings = FOUR_UPDATES | dict(total_episodes=40, eval_every=1, early_stopping_patience=2)
    run = make(output_dir=str(tmp_path), eval_reward=falling, **settings)
    run.train(PROMPTS, HELD_OUT, callback=lambda ppo, rollout, metrics: metrics["update"] == 2)
    again = make(output_dir=str(tmp_path), eval_reward=falling, resume_from_checkpoint=True)
    again.train(PROMPTS, HELD_OUT)
    assert len(again.history) == 3, "patience starts anew when a run is resumed"


def test_nothing_to_go_on_from(tmp_path):
    fresh = make(output_dir=str(tmp_path / "new"), resume_from_checkpoint=True, **TINY)
    assert len(fresh.train(PROMPTS)) == 3, "resume_from_checkpoint=True does not start afresh in an empty folder"
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in .*nowhere"):
        make(resume_from_checkpoint=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`resume_from_checkpoint`=True looks in `output_dir`: set it"):
        make(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="holds an earlier run"):
        make(output_dir=str(tmp_path / "new")).train(PROMPTS)


def test_the_three_ways_to_name_a_checkpoint(tmp_path):
    make(tiny_policy(), output_dir=str(tmp_path), **FOUR_UPDATES).train(PROMPTS)
    one = tmp_path / "checkpoints" / checkpoint.name_of(2)
    for wanted, update in ((True, 4), (tmp_path, 4), (str(tmp_path), 4), (one, 2), (str(one), 2)):
        ppo = make(tiny_policy(), output_dir=str(tmp_path), resume_from_checkpoint=wanted)
        assert len(ppo.history) == update, f"{wanted} is resumed from update {len(ppo.history)}, not {update}"


# what does not belong together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two updates; another with adapters."""
    folder = tmp_path_factory.mktemp("runs")
    for name, extra in (("plain", {}), ("lora", dict(lora_rank=2))):
        settings = FOUR_UPDATES | extra | dict(total_episodes=8)
        make(tiny_policy(), output_dir=str(folder / name), **settings).train(PROMPTS)
    return folder


@pytest.mark.parametrize("prompts", [PROMPTS[::-1], PROMPTS[:-1], [*PROMPTS, "more"]])
@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_other_prompts_are_refused(folder, prompts):
    ppo = make(tiny_policy(), resume_from_checkpoint=folder / "plain", output_dir=None, total_episodes=16)
    with pytest.raises(CheckpointError, match="the prompts are not those of .*: pass the same, in the same order"):
        ppo.train(prompts)


@pytest.mark.parametrize("policy", [lambda: tiny_policy("gpt2"), lambda: tiny_policy(attention_bias=True)])
def test_another_model_is_refused(folder, policy):
    with pytest.raises(CheckpointError, match="the checkpoint is not of the model .*: pass its own `model`"):
        make(policy(), resume_from_checkpoint=folder / "plain", output_dir=None)


def with_one_number_changed(name):
    policy = tiny_policy()
    with torch.no_grad():
        policy.get_parameter(name).view(-1)[-1] += 1e-3
    return policy


@pytest.mark.parametrize("run", ["plain", "lora"])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_another_reference_is_refused(folder, run, name):
    with pytest.raises(CheckpointError, match="the reference is not the one .*: pass the model that the run started"):
        make(with_one_number_changed(name), resume_from_checkpoint=folder / run, output_dir=None)


def test_another_frozen_trunk_of_the_critic_is_refused(folder):
    """With adapters the critic's own trunk is frozen too, and in no checkpoint."""

    def critic(change):
        other = Critic.from_policy(tiny_policy())
        with torch.no_grad():
            next(other.parameters()).view(-1)[-1] += change
        return other

    where = folder / "critic"
    make(tiny_policy(), critic=critic(0), output_dir=str(where), **FOUR_UPDATES, lora_rank=2).train(PROMPTS)
    make(tiny_policy(), critic=critic(0), resume_from_checkpoint=where)
    with pytest.raises(CheckpointError, match="the reference is not the one of the run"):
        make(tiny_policy(), critic=critic(1e-3), resume_from_checkpoint=where)


def test_another_tokenizer_is_refused(folder):
    """Two letters stand for each other."""
    vocabulary = {symbol: number for symbol, number in byte_tokenizer().get_vocab().items() if number < 256}
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    turned = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary | {"<eos>": 256, "<pad>": 257}, merges=[])),
        eos_token="<eos>", pad_token="<pad>",
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="the tokenizer is not the one of the run"):
        make(tiny_policy(), resume_from_checkpoint=folder / "plain", output_dir=None, tokenizer=turned)


@pytest.mark.parametrize("others", [HELD_OUT[::-1], HELD_OUT[:1], [*HELD_OUT, "more"], None], ids=str)
def test_other_held_out_prompts_are_told(others, evaluated, tmp_path):
    again = make(resume_from_checkpoint=evaluated, output_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="the held-out prompts are not those that the run had"):
        again.train(PROMPTS, others)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run of one update with held-out prompts."""
    folder = tmp_path_factory.mktemp("evaluated")
    make(output_dir=str(folder), total_episodes=4).train(PROMPTS, HELD_OUT)
    return folder


def test_nothing_is_told_of_a_run_that_is_resumed_with_what_it_had(evaluated, folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make(resume_from_checkpoint=evaluated, output_dir=str(tmp_path / "evaluated")).train(PROMPTS, HELD_OUT)
        for run in ("plain", "lora"):
            make(tiny_policy(), resume_from_checkpoint=folder / run, output_dir=str(tmp_path / run)).train(PROMPTS)


def test_other_settings_are_used_with_a_warning_and_free_ones_without(folder):
    with pytest.warns(UserWarning, match=r"resumed with other settings than the run had \(learning_rate\)"):
        ppo = make(tiny_policy(), resume_from_checkpoint=folder / "plain", learning_rate=0.5, output_dir=None)
    assert ppo.config.learning_rate == 0.5, "a setting that is given is not used"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ppo = make(tiny_policy(), resume_from_checkpoint=folder / "plain", output_dir=None, save_every=3, keep_last=7)
    assert (ppo.config.save_every, ppo.config.learning_rate) == (3, 1e-2), "settings are not those of the checkpoint"


def test_settings_passed_as_a_config_are_used_with_a_warning(folder):
    had = checkpoint.load_checkpoint(folder / "plain/checkpoints" / checkpoint.name_of(2))["config"]
    config = PPOConfigV1(**had | {"learning_rate": 0.5, "output_dir": None})
    with pytest.warns(UserWarning, match=r"resumed with other settings than the run had \(learning_rate\)"):
        ppo = make(tiny_policy(), resume_from_checkpoint=folder / "plain", config=config)
    assert ppo.config.learning_rate == 0.5, "a config that is given at a resume is not used"


def test_a_checkpoint_from_before_a_setting_existed_goes_on(folder, tmp_path):
    """What older versions did not store is what they did: no adapters, this tokenizer, counted from the start."""
    state = checkpoint.load_checkpoint(folder / "plain/checkpoints" / checkpoint.name_of(2))
    for name in ("lora_rank", "frozen_dtype", "share_trunk", "exact_check"):
        del state["config"][name]
    for name in ("tokenizer", "run_began"):
        del state[name]
    state["scaler"] = {"scale": 2.0}  # that of a GPU in fp16, which is not at hand
    checkpoint.save_checkpoint(tmp_path / "checkpoints", 2, state)
    ppo = make(tiny_policy(), resume_from_checkpoint=tmp_path)
    assert (ppo.run_began, len(ppo.history)) == (0, 2), "an older run does not go on where it stood"
    assert ppo.config.frozen_dtype == "float32"


def test_a_checkpoint_that_was_copied_out_belongs_to_no_run(folder, tmp_path):
    name = checkpoint.name_of(2)
    shutil.copytree(folder / "plain/checkpoints" / name, tmp_path / name)
    state, run = resume.find_state(tmp_path / name, None)
    assert run is None, f"the run would go on in {run}, which is no run's folder"
    assert state["history"], "the copy is not read"


def test_a_folder_without_a_checkpoint_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in .*checkpoints"):
        resume.newest_state(tmp_path)


def test_a_moved_run_goes_on_where_it_is_now(tmp_path):
    make(output_dir=str(tmp_path / "here"), save_every=1).train(PROMPTS)
    (tmp_path / "here").rename(tmp_path / "there")
    for name in ("there", "there/checkpoints/update-00000002"):
        resumed = make(resume_from_checkpoint=tmp_path / name)
        assert resumed.config.output_dir == str(tmp_path / "there"), "a moved run writes to its old folder"


@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_the_logs_of_another_run_are_not_overwritten(tmp_path):
    for name in ("one", "other"):
        make(output_dir=str(tmp_path / name), save_every=1).train(PROMPTS)
    log = (tmp_path / "other/metrics.jsonl").read_text()
    resumed = make(resume_from_checkpoint=tmp_path / "one", output_dir=str(tmp_path / "other"), total_episodes=16)
    with pytest.raises(ValueError, match="holds another run"):
        resumed.train(PROMPTS)
    assert (tmp_path / "other/metrics.jsonl").read_text() == log, "resuming one run overwrote the log of another"


@pytest.mark.filterwarnings("ignore:resumed with other settings")
def test_held_out_prompts_that_come_late_are_no_update_0(tmp_path):
    make(output_dir=str(tmp_path), save_every=1).train(PROMPTS)
    resumed = make(resume_from_checkpoint=tmp_path, total_episodes=16, eval_every=1)
    resumed.train(PROMPTS, HELD_OUT)
    assert [row["update"] for row in resumed.evaluations] == [4], "a trained policy's evaluation is called update 0"


def test_a_lower_learning_rate_and_another_price_of_kl_take_effect(tmp_path):
    for number, schedule in enumerate(({}, {"lr_scheduler": "cosine", "warmup_updates": 1})):
        folder = tmp_path / str(number)
        make(output_dir=str(folder), save_every=1, **schedule).train(PROMPTS)
        checkpoint_2 = folder / "checkpoints/update-00000002"
        as_before = make(resume_from_checkpoint=folder).history[-1]["lr"]
        with pytest.warns(UserWarning, match="other settings"):
            changed = make(resume_from_checkpoint=checkpoint_2, learning_rate=1e-4, kl_coef=0.7, minibatch_size=1)
        changed.train(PROMPTS)
        lower = changed.history[-1]["lr"]
        assert lower == pytest.approx(as_before / 10), "a learning rate given at a resume has no effect"
        assert changed.kl_coef == 0.7 and changed.micro_batch.size == 1, "a setting given at a resume has no effect"
    with pytest.raises(ValueError, match="cannot change in mid-run"), pytest.warns(UserWarning):
        make(resume_from_checkpoint=tmp_path / "0", lr_scheduler="linear")


def test_a_refused_resume_changes_nothing_and_can_be_tried_again(tmp_path):
    make(output_dir=str(tmp_path), save_every=1, keep_last=9).train(PROMPTS)
    log = (tmp_path / "metrics.jsonl").read_text()
    resumed = make(resume_from_checkpoint=tmp_path / "checkpoints/update-00000002")
    with pytest.raises(CheckpointError, match="prompts"):
        resumed.train(PROMPTS[::-1])
    assert (tmp_path / "metrics.jsonl").read_text() == log, "a refused resume has cut the log"
    assert len(resumed.train(PROMPTS)) == 1, "after a refused resume the trainer forgets where it goes on"


def test_a_state_of_another_version_is_named(tmp_path):
    trainer = make(output_dir=str(tmp_path))
    trainer.train(PROMPTS)
    state = trainer.state()
    del state["sizes"]
    checkpoint.save_checkpoint(tmp_path / "checkpoints", 9, state)
    with pytest.raises(CheckpointError, match="lacks sizes: it is of another version"):
        make(resume_from_checkpoint=tmp_path)


def test_another_reward_is_told(tmp_path):
    make(output_dir=str(tmp_path)).train(PROMPTS)

    def consonants(prompts, responses):
        return [len(response) for response in responses]

    with (
        pytest.warns(UserWarning, match="the run's held-out judge was vowels, and now it is .*consonants"),
        pytest.warns(UserWarning, match="the run's reward was vowels, and now it is .*consonants"),
    ):
        make(reward=consonants, resume_from_checkpoint=tmp_path)


class Length:
    def __call__(self, prompts, responses):
        return [len(response) for response in responses]


@pytest.mark.parametrize("path", ["judges/first", ""])
def test_a_reward_is_called_by_its_name_or_by_its_class(path):
    judge = RewardModel(classifier(), byte_tokenizer())
    judge.model.name_or_path = path
    trainer = make(reward=judge, eval_reward=Length())
    called = f"the reward model {path or type(judge.model).__name__}"
    assert resume.reward_names(trainer) == {"reward": called, "held-out judge": "Length"}
