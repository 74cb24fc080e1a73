"""What each setting of replay does, shown: as in `effects.py`."""

import math
from itertools import count, pairwise

import pytest
import torch

from ppo_lib.data import as_dataset
from ppo_lib.importance import importance_ratios
from ppo_lib.rollout import logprobs_of, response_logits
from tests.unit.effects import estimated, quick, stirred
from tests.unit.tiny import PROMPTS


def replays(trainer) -> dict[int, list[tuple[int, str]]]:
    """For each update of a run the responses replayed in it: the update that sampled one, and its prompt.

    In these runs each prompt comes once an update.
    """
    found, mix = {}, trainer.mix

    def spied(rollout, version):
        batch, seen = mix(rollout, version)
        rows = zip(batch.ages.tolist(), batch.prompts, strict=True) if hasattr(batch, "ages") else ()
        found[version] = [(version - age, prompt) for age, prompt in rows if age]
        return batch, seen

    trainer.mix = spied
    quick(trainer).train(PROMPTS)
    return found


def uses(trainer) -> dict[tuple[int, str], list[int]]:
    """For each response that is replayed, the updates that use it, the one that sampled it included."""
    found = {}
    for update, rows in replays(trainer).items():
        for row in rows:
            found.setdefault(row, [row[0]]).append(update)
    return found


def numbers(trainer) -> list[int]:
    return [len(rows) for rows in replays(trainer).values()]


def filled(trainer, rollouts=3):
    """The trainer with so many rollouts in its buffer, whose scores all differ, and a policy that has moved since."""
    trainer.prepare(as_dataset(PROMPTS))
    for version in range(1, rollouts + 1):
        rollout = estimated(trainer, seed=version)
        rollout.scores = (torch.arange(4.0) + 4 * version) ** 2
        trainer.buffer.add(rollout, version)
    return stirred(trainer)


def mixed(trainer):
    """A batch of four fresh responses and, unless they are left out, of four that an earlier policy sampled."""
    return filled(trainer, 1).mix(estimated(trainer, seed=2), 2)[0]


def ratios_of(batch, level="token"):
    return importance_ratios(batch.logprobs, batch.behaviour_logprobs, batch.mask, level)


def use_replay_buffer(begin):
    for wanted in (True, False):
        trainer = quick(begin(use_replay_buffer=wanted))
        trainer.train(PROMPTS)
        assert len(trainer.buffer) == 12 * wanted, f"`use_replay_buffer`={wanted}, and {len(trainer.buffer)} are held"
        logged = "replay/sampled" in trainer.history[-1]
        assert logged == wanted, f"`use_replay_buffer`={wanted}, and replay is in the log: {logged}"


def replay_buffer_size(begin):
    trainer = quick(begin(replay_buffer_size=5))
    trainer.train(PROMPTS)
    held = sorted(trainer.buffer.fields["versions"][trainer.buffer.held].tolist())
    assert held == [2, 3, 3, 3, 3], f"`replay_buffer_size`=5, and responses of the updates {held} are held"


def replay_sample_size(begin):
    found = numbers(begin(replay_sample_size=3))
    assert found == [0, 3, 3], f"`replay_sample_size`=3, and the updates replay {found}"


def max_replay_reuse(begin):
    used = uses(begin(max_replay_reuse=2, replay_sample_size=8, total_episodes=24))
    most = max(len(updates) - 1 for updates in used.values())
    assert most == 2, f"`max_replay_reuse`=2, and a response is replayed {most} times"


def staleness_threshold(begin):
    used = uses(begin(staleness_threshold=2, replay_sample_size=16, total_episodes=24))
    oldest = max(updates[-1] - updates[0] for updates in used.values())
    assert oldest == 2, f"`staleness_threshold`=2, and responses of up to {oldest} updates ago are replayed"


def replay_anneal(begin):
    found = numbers(begin(replay_anneal=0.5, total_episodes=24))
    assert found == [0, 4, 4, 3, 1, 0], f"`replay_anneal`=0.5 of 6 updates, and they replay {found}"


def heats(trainer, scores) -> list[float]:
    """The temperature in the log of each update, where `scores` are the mean scores of one after the other."""
    scores = iter(scores)
    trainer.reward = lambda prompts, responses: [next(scores)] * len(prompts)
    return [row["replay/temperature"] for row in quick(trainer).train(PROMPTS)]


def behaviour_temperature(begin):
    trainer = begin(behaviour_temperature=2.0, temperature=0.5, total_episodes=8)
    rollout = trainer.collect(PROMPTS)
    hot = trainer.respond(list(rollout.prompts), trainer.generator, temperature=2.0)
    own = [trainer.logprobs(trainer.policy, rollout), 0.25 * response_logits(trainer.policy, rollout)]
    same = torch.allclose(rollout.logprobs, own[0], atol=1e-4)
    assert same, "with `behaviour_temperature` the log-probabilities of an update are not at the run's `temperature`"
    by_hand = logprobs_of(response_logits(trainer.policy, rollout, 2.0), rollout.response_ids)[rollout.mask]
    noted = torch.allclose(rollout.behaviour_logprobs[rollout.mask], by_hand, atol=1e-4)
    assert noted, "fresh responses are not sampled at `behaviour_temperature`, or not noted so"
    assert hot.responses != rollout.responses, "the test needs random numbers that go on"
    weights = estimated(trainer).weights
    assert (weights.max() == 2.0) and (weights != 1).any(), "hot fresh responses are not weighed by π_k/μ"
    assert heats(trainer, [1, 1]) == [2.0, 2.0], "while scores stay low sampling is not at `behaviour_temperature`"
    held = trainer.buffer.fields["behaviour_logprobs"][trainer.buffer.held][:4]
    assert held.shape == (4, 4) and not hasattr(begin().collect(PROMPTS), "behaviour_logprobs"), "cool ones are hot"


def behaviour_cooling(begin):
    trainer = begin(behaviour_temperature=2.0, behaviour_cooling=0.5, total_episodes=20)
    found = heats(trainer, [-1, -1, -0.4, 2, 2])
    assert found == pytest.approx([2.0, 2.0, 2.0, 1.6, 1.0]), (
        f"from −1 mean scores rise by 0, 0.2, 0.9 and more, `behaviour_cooling`=0.5, and temperatures are {found}"
    )


def replay_recency(begin):
    newest = {update - row[0] for update, rows in replays(begin(replay_recency=0.01)).items() for row in rows}
    assert newest == {1}, f"`replay_recency`=0.01, and responses of {newest} updates ago are drawn"
    for tau, share in ((2.0, math.exp(0.5)), (None, 1.0)):
        buffer = filled(begin(replay_recency=tau)).buffer
        chances = buffer.probabilities(4)
        younger, older = chances[buffer.ages(4) == 2].mean(), chances[buffer.ages(4) == 3].mean()
        assert (younger / older).item() == pytest.approx(share), f"`replay_recency`={tau}: one update is worth too much"


def replay_priority(begin):
    for alpha in (0.0, 2.0):
        buffer = filled(begin(replay_priority=alpha)).buffer
        scores = buffer.fields["scores"][buffer.held].double()
        weights = ((scores - scores.mean()).abs() + 1e-3 * scores.std(unbiased=False)) ** alpha
        assert torch.allclose(buffer.probabilities(4), weights / weights.sum(), atol=1e-4), (
            f"`replay_priority`={alpha} is not the exponent of how far a score is off the mean"
        )


def replay_priority_correction(begin):
    trainer = filled(begin(replay_priority=2.0, replay_priority_correction=0.5))
    buffer = trainer.buffer
    chances = dict(zip(buffer.fields["scores"][buffer.held].tolist(), buffer.probabilities(4).tolist(), strict=True))
    batch = buffer.sample(4, 4, trainer.generator)
    given = [w**2 * chances[s] for w, s in zip(batch.sampling_weights.tolist(), batch.scores.tolist(), strict=True)]
    assert given == pytest.approx([given[0]] * 4, rel=1e-3), "ω is not P to the power of −`replay_priority_correction`"


def replay_keep_best(begin):
    """The first responses are the best ones here."""
    for share, kept in ((0.1, [22.0, 23.0, 24.0]), (0.0, [])):
        trainer, falling = quick(begin(replay_keep_best=share, staleness_threshold=1, total_episodes=24)), count(24, -1)
        trainer.reward = lambda prompts, responses, falling=falling: [next(falling) for _ in responses]
        trainer.train(PROMPTS)
        old = [score for score in trainer.buffer.fields["scores"][trainer.buffer.held].tolist() if score > 8]
        assert sorted(old) == kept, f"`replay_keep_best`={share} of 32, and of the old scores {old} are held"


def replay_spacing(begin):
    for spacing in (3, 0):
        used = uses(begin(replay_spacing=spacing, replay_sample_size=16, total_episodes=28)).values()
        rest = min(later - earlier for updates in used for earlier, later in pairwise(updates))
        assert rest == max(spacing, 1), f"`replay_spacing`={spacing}, and a response is used again after {rest} updates"


def correction(begin):
    batch = mixed(begin(correction="decoupled"))
    assert torch.equal(batch.weights, ratios_of(batch).clamp(max=2.0)), "decoupled `correction` does not weigh by π_k/μ"
    assert not torch.equal(batch.weights, torch.ones_like(batch.weights)), "the test needs a policy that has moved"
    for name in ("coupled", "none"):
        batch = mixed(begin(correction=name))
        old, mask = batch.ages > 0, batch.mask
        assert (batch.weights == 1).all(), f"`correction`={name!r} weighs replayed tokens"
        at_behaviour = torch.equal(batch.logprobs[mask], batch.behaviour_logprobs[mask])
        assert old.sum() == 4 and at_behaviour == (name == "coupled"), f"`correction`={name!r} clips at another policy"


def importance_level(begin):
    for level in ("sequence", "token"):
        batch = mixed(begin(importance_level=level))
        expected = ratios_of(batch, level).clamp(max=2.0)
        assert torch.equal(batch.weights, expected), f"`importance_level`={level!r} is not what weights are of"
        alike = all((row[kept] == row[0]).all() for row, kept in zip(batch.weights, batch.mask, strict=True))
        assert alike == (level == "sequence"), f"`importance_level`={level!r}: tokens of a response weigh otherwise"


def importance_cap(begin):
    batch = mixed(begin(importance_cap=1.25))
    assert batch.weights.max() == 1.25, f"`importance_cap`=1.25, and a token weighs {batch.weights.max()}"


def trace_cap(begin):
    """With no trace at all, nothing is learned of a state's value from what came after it."""
    for cap in (1e-9, 1.0):
        batch = mixed(begin(trace_cap=cap))
        kept = torch.allclose(batch.returns[batch.mask], batch.values[:, :-1][batch.mask], atol=1e-5)
        assert kept == (cap < 1), f"`trace_cap`={cap} is not the most that an advantage reaches back"


def replay_gains_only(begin):
    for wanted in (True, False):
        batch = mixed(begin(replay_gains_only=wanted))
        losses = {name: (batch.advantages[rows] < 0).any() for name, rows in
                  (("old", batch.ages > 0), ("fresh", batch.ages == 0))}  # fmt: skip
        assert losses == {"old": not wanted, "fresh": True}, f"`replay_gains_only`={wanted}, and losses teach: {losses}"


def second_moment_limit(begin):
    for limit in (1e-3, None):
        batch = mixed(begin(second_moment_limit=limit))
        kept = (batch.weights > 0) & batch.mask
        moment = (ratios_of(batch).log() ** 2)[kept].mean().item()
        assert (moment <= 1e-3) == bool(limit), f"`second_moment_limit`={limit}: the mean of (log ratio)² is {moment}"
        assert kept[batch.ages == 0].equal(batch.mask[batch.ages == 0]), "`second_moment_limit` drops fresh tokens"


def min_ess(begin):
    for least, replayed in ((0.999, False), (1e-3, True)):
        found = hasattr(mixed(begin(min_ess=least)), "ages")
        assert found == replayed, f"`min_ess`={least}: replay is {'not ' * replayed}left out"


def max_replay_kl(begin):
    batch = mixed(begin())
    old = batch.ages > 0
    log_ratio = (batch.logprobs - batch.behaviour_logprobs).masked_fill(~batch.mask, 0.0)[old]
    far = (log_ratio.sum(dim=1) / batch.lengths[old]).abs().sort().values
    limit = (far[1] + far[2]).item() / 2
    kept = mixed(begin(max_replay_kl=limit))
    assert len(kept) == 4 + 2, f"`max_replay_kl` between the second and the third of four keeps {len(kept) - 4} of them"
