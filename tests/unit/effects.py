"""What each setting does, shown: one function for each, named after it, of which `test_every_setting.py` makes a test.

It is handed `begin`, which begins tiny runs of one stage (or goes on with one that had other settings, before its first
update), and asserts what the setting does. Each value differs from the base's, and from those of other settings that
could be mistaken for it.
"""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
import wandb

from ppo_lib import ppo, ppo_v1, ppo_v2, worlds
from ppo_lib.commands import cli
from ppo_lib.data import as_dataset
from ppo_lib.losses import entropy_of
from ppo_lib.rollout import logprobs_of, response_logits
from ppo_lib.running import memory
from ppo_lib.running.checkpoint import checkpoints
from tests.unit.test_rewards import classifier
from tests.unit.tiny import PROMPTS, byte_tokenizer, tiny_policy

HELD_OUT = ["The plot", "A friend said it"]
TRAINERS = {"v0": ppo.PPOTrainer, "v1": ppo_v1.PPOTrainer, "v2": ppo_v2.PPOTrainerWithReplay}
BASE = {"v0": dict(batch_size=4, minibatch_size=4, total_episodes=12, max_new_tokens=4, num_ppo_epochs=1, device="cpu",
                   exact_check=False)}  # fmt: skip
BASE["v1"] = BASE["v0"] | dict(eval_every=1, save_every=1, keep_last=9)
BASE["v2"] = BASE["v1"] | dict(replay_sample_size=4, replay_buffer_size=32, max_replay_reuse=99, staleness_threshold=99,
                               replay_recency=None, max_replay_kl=None, min_ess=0.0)  # fmt: skip


def policy(seed=0):
    """A quarter of its tokens end a response."""
    network = tiny_policy(seed=seed, sharpness=2.0, num_hidden_layers=1)
    network.generation_config.eos_token_id = [256, *range(0, 256, 4)]
    return network


def spread(prompts, responses):
    """A reward that tells most responses apart."""
    return [sum(map(ord, response)) % 97 / 40 - 1 for response in responses]


@dataclass
class Begin:
    """Begins runs of `stage` in `folder`; with `before`, goes on with runs that lie there."""

    stage: str
    folder: Path
    before: Path | None = None

    def __call__(self, model=None, **settings) -> ppo.PPOTrainer:
        """A trainer with `settings` over the base's, or over those of the run that it goes on with."""
        settings = self.going_on(settings) if self.before else BASE[self.stage] | settings
        arguments = {name: settings.pop(name) for name in ("eval_reward", "reference") if name in settings}
        model, tokenizer = model or policy(), byte_tokenizer()
        return TRAINERS[self.stage](model, spread, tokenizer=tokenizer, **arguments, **settings)

    def going_on(self, settings: dict) -> dict:
        run = self.before / ("adapters" if settings.get("lora_rank") else "plain")
        return {"output_dir": None, "resume_from_checkpoint": run} | settings

    @property
    def of_v1(self) -> bool:
        """Whether v1's settings are there."""
        return self.stage != "v0"

    def on_the_command_line(self, **settings) -> tuple[ppo.PPOTrainer, list[str], list[str]]:
        """What `train` or `resume` with these settings trains: the trainer, its prompts, and those held out."""
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        if self.before:
            (self.folder / "judge.py").write_text("def zero(prompts, responses):\n    return [0.0] * len(prompts)\n")
            words += [] if "reward_model" in settings else ["--reward", f"{self.folder}/judge.py:zero"]
            words = ["resume", str(self.before / "plain"), *words]
        else:
            words = ["train", "--set", "output_dir=null", *words, *(["--replay"] if self.stage == "v2" else [])]
        said = io.StringIO()
        with mock.patch.object(ppo_v1.PPOTrainer, "train", autospec=True) as train, contextlib.redirect_stderr(said):
            cli.main(words)  # it fails after `train`, which has made no history
        assert train.called, said.getvalue()
        return train.call_args.args


def quick(trainer):
    """The trainer without optimiser steps, where nothing depends on them."""
    trainer.step = lambda minibatch: {}
    return trainer


def rollouts_of(trainer) -> list:
    """The rollout of each update of a run."""
    seen = []
    quick(trainer).train(PROMPTS, callback=lambda trainer, rollout, metrics: seen.append(rollout) and False)
    return seen


def stirred(trainer):
    """The trainer with a policy that is not its reference, and a critic that says something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.policy.get_output_embeddings().parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
        torch.nn.init.normal_(trainer.critic.value_head.weight, generator=generator)
    return trainer


def estimated(trainer, seed=1):
    """A rollout that was collected, scored and estimated."""
    rollout = trainer.collect(PROMPTS, torch.Generator().manual_seed(seed))
    trainer.score(rollout)
    trainer.estimate(rollout)
    return rollout


def credited(trainer):
    """The same; with replay, with as many earlier responses in it."""
    if not hasattr(trainer, "buffer"):
        return estimated(trainer)
    trainer.prepare(as_dataset(PROMPTS))
    trainer.buffer.add(estimated(trainer, seed=0), 1)
    return trainer.mix(estimated(trainer), 2)[0]


def untouched(begin, **settings):
    """Settings under which advantages can be computed in the head: nothing whitened, and no correction in replay."""
    settings |= {"correction": "none"} if begin.stage == "v2" else {}
    return stirred(begin(whiten_advantages=False, **settings))


def steps_of(trainer) -> list[list[list[int]]]:
    """For each update the optimiser steps of a run, as the numbers of responses computed at a time."""
    updates, update, step, loss = [], trainer.update, trainer.step, trainer.loss
    trainer.update = lambda batch: updates.append([]) or update(batch)
    trainer.step = lambda minibatch: updates[-1].append([]) or step(minibatch)
    trainer.loss = lambda micro: updates[-1][-1].append(len(micro)) or loss(micro)
    trainer.train(PROMPTS)
    return updates


def watched(module, seen: list):
    """Note the outputs of a layer."""
    module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    return seen


def moved(trainer) -> dict[str, float]:
    """How far a run moves a weight of policy and critic at most."""
    networks = {"policy": trainer.policy, "critic": trainer.critic}
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}
    trainer.train(PROMPTS)
    return {
        name: max((p - old).abs().max().item() for p, old in zip(network.parameters(), before[name], strict=True))
        for name, network in networks.items()
    }


# the run


def model(begin):
    begin(policy(seed=7)).save(begin.folder / "saved")
    config = TRAINERS[begin.stage].config_class(**BASE[begin.stage] | {"model": str(begin.folder / "saved")})
    trainer = TRAINERS[begin.stage](None, spread, config=config)
    expected = policy(seed=7).state_dict()
    same = all(torch.equal(weight, expected[name]) for name, weight in trainer.policy.state_dict().items())
    assert same, "`model` is ignored: the weights are not those of the folder that it names"


def output_dir(begin):
    begin(output_dir=str(begin.folder / "there")).train(PROMPTS)
    found = {path.name for path in (begin.folder / "there").iterdir()}
    assert {"metrics.jsonl", "config.yaml", "model"} <= found, f"`output_dir` holds only {sorted(found)}"
    places = [Path(), *([begin.before] if begin.before else [])]
    before = [sorted(place.rglob("*")) for place in places]
    begin(output_dir=None).train(PROMPTS)
    assert [sorted(place.rglob("*")) for place in places] == before, "with `output_dir`=None something is written"


def seed(begin):
    trainer, base = begin(seed=5), begin()
    if not begin.before:  # a run goes on with its own random numbers
        drawn = [ppo.collect(PROMPTS).responses for ppo in (trainer, base)]
        by_hand = base.collect(PROMPTS, torch.Generator().manual_seed(5)).responses
        assert drawn[0] == by_hand != drawn[1], "`seed` is not that of the random numbers that responses are drawn with"
    if begin.of_v1:
        quick(trainer).train(PROMPTS, HELD_OUT, callback=lambda *_: True)
        held_out = [row["sampled"] for row in trainer.samples[:2]]
        by_hand = base.respond(HELD_OUT, torch.Generator().manual_seed(5)).responses
        assert held_out == by_hand, "`seed` is not that of the held-out responses"


def device(begin):
    with pytest.raises(ValueError, match="`device`='quantum' cannot be used here"):
        begin(device="quantum")
    if not begin.before:  # the weights of a checkpoint go nowhere on a device that holds no numbers
        trainer = begin(device="meta")
        for name in ("policy", "critic", "reference"):
            places = {str(weight.device) for weight in getattr(trainer, name).parameters()}
            assert places == {"meta"}, f"the {name} is on {places}, and not on the `device` that is set"


def total_episodes(begin):
    done = [row["episode"] for row in quick(begin(total_episodes=23)).train(PROMPTS)]
    assert done == [4, 8, 12, 16, 20], f"`total_episodes`=23 in rollouts of 4 is no run of {done} responses"


def exact_check(begin):
    for wanted in (True, False):
        trainer, asked = begin(exact_check=wanted, total_episodes=4), []
        trainer.inexactness = lambda prompts, asked=asked: asked.append(prompts) or 0.0
        quick(trainer).train(PROMPTS)
        assert bool(asked) == wanted, f"`exact_check`={wanted}: sampler and model are compared {len(asked)} times"


# the rollout


def batch_size(begin):
    [rollout] = rollouts_of(begin(batch_size=3, minibatch_size=2, total_episodes=5))
    assert len(set(rollout.prompts)) == len(rollout) == 3, f"`batch_size`=3, and a rollout has {rollout.prompts}"


def group_size(begin):
    for rollout in rollouts_of(begin(group_size=3, batch_size=2)):
        expected = [*rollout.prompts[:1] * 3, *rollout.prompts[-1:] * 3]
        assert rollout.prompts == expected, f"`group_size`=3, and a rollout of 2 prompts has {rollout.prompts}"
        assert len(set(rollout.prompts)) == 2, f"a rollout of 2 prompts has {rollout.prompts}"


def max_new_tokens(begin):
    trainer = begin(max_new_tokens=2)
    longest = {int(rollout.lengths.max()) for rollout in rollouts_of(trainer)}
    assert longest == {2}, f"`max_new_tokens`=2, and the longest response has {longest} tokens"
    assert max(map(len, trainer.generate(PROMPTS))) <= 2, "`max_new_tokens` does not hold for `generate`"


def temperature(begin):
    cold = begin(temperature=1e-3)
    drawn = cold.collect(PROMPTS)
    assert drawn.responses == cold.generate(PROMPTS, greedy=True), "at `temperature` ~0 not the likeliest are drawn"
    for form in [{}, {"logits_chunk": 3}] if begin.of_v1 else [{}]:
        trainer = stirred(begin(temperature=0.5, **form))
        batch = trainer.collect(PROMPTS)

        @torch.no_grad()
        def by_hand(network, batch=batch):
            return logprobs_of(response_logits(network, batch) / 0.5, batch.response_ids)

        with torch.no_grad():
            in_an_update, entropies, _ = trainer.predictions(batch)
        found = {
            "sampling": (batch.logprobs, by_hand(trainer.policy)),
            "the update": (in_an_update, by_hand(trainer.policy)),
            "the reference": (trainer.reference_logprobs(batch), by_hand(trainer.reference)),
            "the entropy": (entropies, entropy_of(response_logits(trainer.policy, batch).detach() / 0.5)),
        }
        for where, (mine, expected) in found.items():
            same = torch.allclose(mine[batch.mask], expected[batch.mask], atol=1e-3)
            assert same, f"{where} is not at the run's `temperature`"


# the reward of a token


def kl_coef(begin):
    trainer = stirred(begin(kl_coef=0.6))
    batch = credited(trainer)
    scores = torch.zeros_like(batch.rewards)
    scores[torch.arange(len(batch)), batch.lengths - 1] = batch.scores
    price = -0.6 * (batch.logprobs - batch.ref_logprobs).masked_fill(~batch.mask, 0.0)
    assert price.abs().max() > 0.1, "the test needs a policy that is not its reference"
    assert torch.allclose(batch.rewards - scores, price, atol=1e-5), "`kl_coef` is not the price of a nat"
    if begin.of_v1:
        quick(trainer).train(PROMPTS, HELD_OUT, callback=lambda *_: True)
        told = trainer.evaluations[0]
        paid = (told["eval/score"] - told["eval/rlhf_reward"]) / told["eval/kl"]
        assert paid == pytest.approx(0.6, abs=1e-4), f"held-out responses pay {paid} a nat, and `kl_coef` is 0.6"


def gamma(begin):
    batch = credited(untouched(begin, gamma=0.25, lam=0.0))
    ahead = batch.values[:, 1:].masked_fill(~batch.mask.roll(-1, 1), 0.0)
    ahead[:, -1] = 0.0
    expected = (batch.rewards + 0.25 * ahead - batch.values[:, :-1])[batch.mask]
    assert torch.allclose(batch.advantages[batch.mask], expected, atol=1e-5), "`gamma` does not discount the next value"


def lam(begin):
    batch = credited(untouched(begin, gamma=1.0, lam=0.25))
    values = batch.values.masked_fill(~torch.nn.functional.pad(batch.mask, (0, 1)), 0.0)
    errors, running = (batch.rewards + values[:, 1:] - values[:, :-1]).masked_fill(~batch.mask, 0.0), 0.0
    for t in reversed(range(batch.mask.shape[1])):
        running = errors[:, t] + 0.25 * running
        assert torch.allclose(batch.advantages[:, t], running, atol=1e-5), "`lam` does not weigh the later errors"


def whiten_advantages(begin):
    settings = {"correction": "none"} if begin.stage == "v2" else {}
    white, plain = (credited(stirred(begin(whiten_advantages=wanted, **settings))) for wanted in (True, False))
    kept = white.advantages[white.mask]
    assert kept.mean().abs() < 1e-5 and abs(kept.std() - 1) < 1e-4, "with `whiten_advantages` their spread is not 1"
    assert abs(plain.advantages[plain.mask].std() - 1) > 0.1, "advantages are whitened without `whiten_advantages`"


def bootstrap_cut(begin):
    for wanted in (True, False):
        batch = credited(untouched(begin, bootstrap_cut=wanted, lam=0.0, gamma=0.5))
        cut = ~batch.ended
        assert cut.any() and batch.ended.any(), "the test needs responses that end, and some that are cut"
        last, row = batch.lengths - 1, torch.arange(len(batch))
        beyond = (batch.advantages - batch.rewards + batch.values[:, :-1])[row, last]
        expected = 0.5 * batch.values[row, last + 1] * (cut if wanted else 0)
        assert torch.allclose(beyond, expected, atol=1e-5), (
            f"with `bootstrap_cut`={wanted} a cut response is {'not ' * wanted}valued as if it went on"
        )


# the update


def num_ppo_epochs(begin):
    first = steps_of(begin(num_ppo_epochs=3, total_episodes=4))[0]
    assert first == [[4]] * 3, f"`num_ppo_epochs`=3, and an update passes {len(first)} times over its responses"


def minibatch_size(begin):
    first, *_, last = steps_of(begin(minibatch_size=3))
    assert first == [[3], [1]], f"`minibatch_size`=3, and 4 responses are split into {first}"
    mixed = [[3], [3], [2]] if begin.stage == "v2" else first
    assert last == mixed, f"`minibatch_size`=3, and the last update is split into {last}"
    if begin.of_v1:
        [parts] = steps_of(begin(minibatch_size=1, gradient_accumulation_steps=2, batch_size=2, total_episodes=4))
        assert parts == [[1, 1]] * 2, f"`minibatch_size`=1, and responses are computed so many at a time: {parts}"


def learning_rate(begin):
    """The first step of Adam moves a weight by the learning rate, whatever the gradient."""
    trainer = begin(learning_rate=0.125, total_episodes=4)
    for network, distance in moved(trainer).items():
        assert distance == pytest.approx(0.125, rel=0.02), f"the {network} moves by {distance}, `learning_rate`=0.125"
    assert trainer.history[0]["lr"] == 0.125, "`learning_rate` is not what the log says"


def max_grad_norm(begin):
    for limit in (1e-3, 1e9):
        trainer = begin(max_grad_norm=limit)
        metrics = trainer.step(credited(trainer))
        for network, name in ((trainer.policy, "policy"), (trainer.critic, "val")):
            norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item()
            expected = min(limit, metrics[f"{name}/grad_norm"])
            assert norm == pytest.approx(expected, rel=1e-2), f"`max_grad_norm`={limit} leaves {name} a norm of {norm}"


def cliprange(begin):
    trainer = begin(cliprange=0.35)
    batch = credited(trainer)
    now = trainer.predictions(batch)[0].detach()
    for sign in (1, -1):
        batch.advantages, batch.logprobs = torch.full_like(now, sign), now - sign
        loss = trainer.loss(batch)[1]["loss/policy_avg"].item()
        assert loss == pytest.approx(-sign - 0.35, abs=1e-4), f"the ratio is not clipped at 1 ± `cliprange`, but {loss}"


def cliprange_high(begin):
    trainer = begin(cliprange=0.2, cliprange_high=0.6)
    batch = credited(trainer)
    now = trainer.predictions(batch)[0].detach()
    for sign, expected in ((1, -1.6), (-1, 0.8)):
        batch.advantages, batch.logprobs = torch.full_like(now, sign), now - sign
        metrics = trainer.loss(batch)[1]
        loss = metrics["loss/policy_avg"].item()
        assert loss == pytest.approx(expected, abs=1e-4), f"the ratio is clipped at {abs(loss)}, not at 1.6 and 0.8"
        assert metrics["policy/clipfrac_avg"] == 1, "the log does not count as clipped what the loss clips"
    batch.logprobs, batch.advantages = now - 0.4, torch.ones_like(now)
    assert trainer.loss(batch)[1]["policy/clipfrac_avg"] == 0, "the log counts e^0.4 as clipped, and the clip is at 1.6"


def critic_warmup(begin):
    for times in (2, 0):
        trainer = begin(critic_warmup=times, total_episodes=4, num_ppo_epochs=3, learning_rate=1e-2)
        seen, step, policy = [], trainer.step, [p.detach().clone() for p in trainer.policy.parameters()]

        def watch(minibatch, trainer=trainer, seen=seen, step=step, policy=policy):
            seen.append((all(map(torch.equal, policy, trainer.policy.parameters())), minibatch.values.clone()))
            return step(minibatch)

        trainer.step = watch
        trainer.train(PROMPTS)
        resting = sum(rests for rests, _ in seen)
        assert len(seen) == 3 * (times + 1), f"`critic_warmup`={times}, and {len(seen)} steps of 3 a pass are made"
        assert resting == 3 * times + 1, f"`critic_warmup`={times}, and the policy rests in {resting - 1} of 3 a pass"
        first, last = seen[0][1], seen[3 * times][1]
        learned = first.sort(0).values.sub(last.sort(0).values).abs().max() > 1e-3
        assert learned == bool(times), f"`critic_warmup`={times}: the policy's first step sees other values: {learned}"


def regressed(begin, advantage: float, log_ratio: float, **settings) -> float:
    """The policy's term of the loss where every token has this advantage and this logarithm of its ratio."""
    trainer = begin(policy_objective="regression", **settings)
    batch = credited(trainer)
    now = trainer.predictions(batch)[0].detach()
    batch.advantages, batch.logprobs = torch.full_like(now, advantage), now - log_ratio
    return trainer.loss(batch)[1]["loss/policy_avg"].item()


def policy_objective(begin):
    loss = regressed(begin, 1.0, 1.0)
    assert loss == pytest.approx(0.25, abs=1e-4), f"`policy_objective` is ignored: not ¼ (1 − 1/½)², but {loss}"


def regression_scale(begin):
    loss = regressed(begin, 1.0, 1.0, regression_scale=0.25)
    assert loss == pytest.approx(0.125 * 9, abs=1e-4), f"`regression_scale` is ignored: not ⅛ (1 − 1/¼)², but {loss}"


def regression_floor(begin):
    loss = regressed(begin, -1.0, 0.0, regression_floor=0.7)
    assert loss == pytest.approx(0.25 * 0.49, abs=1e-4), f"`regression_floor` is ignored: not ¼ 0.7², but {loss}"


def cliprange_value(begin):
    trainer = stirred(begin(cliprange_value=0.35))
    batch = credited(trainer)
    now = trainer.predictions(batch)[2].detach()
    batch.returns, batch.values = now, batch.values.clone()
    batch.values[:, :-1] = now - 1
    loss = trainer.loss(batch)[1]["loss/value_avg"].item()
    assert loss == pytest.approx(0.5 * 0.65**2, abs=1e-4), f"values may not move by `cliprange_value`: a loss of {loss}"


def vf_coef(begin):
    trainer = stirred(begin(vf_coef=0.3, entropy_coef=0.0))
    loss, metrics = trainer.loss(credited(trainer))
    weight = (loss - metrics["loss/policy_avg"]) / metrics["loss/value_avg"]
    assert weight.item() == pytest.approx(0.3, abs=1e-3), f"the value loss weighs {weight}, and `vf_coef` is 0.3"


def entropy_coef(begin):
    for form in [{}, {"logits_chunk": 3}] if begin.of_v1 else [{}]:
        trainer = stirred(begin(entropy_coef=0.3, vf_coef=0.0, **form))
        batch = credited(trainer)
        loss, metrics = trainer.loss(batch)
        weight = (loss - metrics["loss/policy_avg"]) / metrics["policy/entropy_avg"]
        assert weight.item() == pytest.approx(-0.3, abs=1e-3), f"the entropy weighs {weight}: `entropy_coef` is 0.3"
        assert trainer.predictions(batch)[1].requires_grad, "no gradient rewards the entropy, and `entropy_coef` is 0.3"


# v1: data, for the command line


def file_of(begin, *prompts) -> Path:
    path = begin.folder / "prompts.txt"
    path.write_text("\n".join(prompts))
    return path


def train_prompts(begin):
    _, prompts, heldout = begin.on_the_command_line(train_prompts=file_of(begin, "We saw", "Ok"))
    assert prompts == ["We saw", "Ok"], f"`train_prompts` names other prompts than {prompts}"
    own = None if begin.before else worlds.load("reviews").heldout_prompts
    assert heldout == own, f"`train_prompts` changes the held-out prompts to {heldout}"


def eval_prompts(begin):
    _, prompts, heldout = begin.on_the_command_line(eval_prompts=file_of(begin, "We saw", "Ok"))
    assert heldout == ["We saw", "Ok"], f"`eval_prompts` names other prompts than {heldout}"
    own = PROMPTS if begin.before else worlds.load("reviews").prompts
    assert prompts == own, f"`eval_prompts` changes the prompts that are trained on to {prompts}"


def reward_model(begin):
    classifier().save_pretrained(begin.folder / "judge")
    byte_tokenizer().save_pretrained(begin.folder / "judge")
    trainer, *_ = begin.on_the_command_line(reward_model=begin.folder / "judge")
    name = getattr(getattr(trainer.reward, "model", None), "name_or_path", trainer.reward)
    assert name == str(begin.folder / "judge"), f"`reward_model` is ignored: the reward is {name}"


# v1: the learning rate


def rates(trainer) -> list[float]:
    """The learning rate of each update, as a share of the one that is set."""
    return [row["lr"] / trainer.config.learning_rate for row in quick(trainer).train(PROMPTS)]


def lr_scheduler(begin):
    found = rates(begin(lr_scheduler="linear"))
    assert found == pytest.approx([1, 2 / 3, 1 / 3]), f"`lr_scheduler`='linear', and the learning rate goes {found}"
    assert rates(begin()) == [1, 1, 1], "the learning rate moves without an `lr_scheduler`"


def lr_scheduler_kwargs(begin):
    found = rates(begin(lr_scheduler="StepLR", lr_scheduler_kwargs={"step_size": 2, "gamma": 0.25}))
    assert found == pytest.approx([1, 1, 0.25]), f"`lr_scheduler_kwargs` are ignored: the learning rate goes {found}"


def warmup_updates(begin):
    found = rates(begin(warmup_updates=2))
    assert found == pytest.approx([1 / 3, 2 / 3, 1]), f"`warmup_updates`=2, and the learning rate goes {found}"


# v1: the update


def gradient_accumulation_steps(begin):
    trainer = begin(gradient_accumulation_steps=3, batch_size=2, minibatch_size=2, total_episodes=12)
    first, last = steps_of(trainer)
    assert first == [[2, 2, 2]], f"`gradient_accumulation_steps`=3 minibatches of 2 are no steps of {first}"
    assert sum(map(sum, last)) == (10 if begin.stage == "v2" else 6), f"the last update's steps are of {last}"


def kl_stop(begin):
    def distances(limit):
        trainer, found = begin(kl_stop=limit, num_ppo_epochs=5, learning_rate=3e-3, total_episodes=4), []
        step = trainer.step
        trainer.step = lambda minibatch: found.append(step(minibatch)) or found[-1]
        trainer.train(PROMPTS)
        return [metrics["policy/approxkl_avg"] for metrics in found]

    whole = distances(None)
    assert len(whole) == 5 and whole == sorted(whole), "the test needs steps that go further and further"
    for number in (1, 2, 3):
        limit = (whole[number - 1] + whole[number]) / 2
        found = distances(limit)
        assert len(found) == number + 1, f"`kl_stop`={limit}, and an update goes {found} far, one step after the other"


def max_skipped_steps(begin):
    trainer = begin(max_skipped_steps=2, minibatch_size=1)
    loss = trainer.loss
    trainer.loss = lambda micro: (loss(micro)[0] * torch.nan, loss(micro)[1])
    with pytest.raises(FloatingPointError, match="2 steps in a row had a NaN"):
        trainer.train(PROMPTS)
    assert trainer.skipped_steps == 2, f"`max_skipped_steps`=2, and {trainer.skipped_steps} were left out"


# v1: the price of KL. Prompts in a rollout, responses in one and in an optimiser step differ here.

STEERED = dict(kl_coef=0.3, group_size=2, batch_size=3, minibatch_size=2, total_episodes=24)


def assert_steered(trainer, target: float, horizon: int) -> None:
    history, price = stirred(quick(trainer)).train(PROMPTS), 0.3
    for row in history:
        assert row["objective/kl_coef"] == pytest.approx(price), (
            f"with `kl_target`={target} and `kl_horizon`={horizon} in rollouts of {trainer.config.rollout_size} "
            f"responses β is {row['objective/kl_coef']} in update {row['update']}"
        )
        price *= 1 + min(max(row["objective/kl"] / target - 1, -0.2), 0.2) * trainer.config.rollout_size / horizon
    assert price != pytest.approx(0.3, rel=0.01), "the test needs a KL off its target"


def kl_target(begin):
    kept = stirred(quick(begin(kl_target=None, **STEERED))).train(PROMPTS)
    found = {row["objective/kl_coef"] for row in kept}
    assert found == {0.3}, f"without a `kl_target` β goes from 0.3 to {found}"
    near = kept[0]["objective/kl"] / 1.1
    assert near > 0, "the test needs a KL above 0"
    for target in (near, 50 * near):
        assert_steered(begin(kl_target=target, kl_horizon=60, **STEERED), target, 60)


def kl_horizon(begin):
    settings = STEERED | dict(gradient_accumulation_steps=2)
    assert_steered(begin(kl_target=0.01, kl_horizon=90, **settings), 0.01, 90)


# v1: memory


def mixed_precision(begin):
    trainer = begin(mixed_precision="bf16", total_episodes=8)
    seen = {name: watched(network, []) for name, network in layers_of(trainer).items()}
    trainer.train(PROMPTS)
    for name, outputs in seen.items():
        types = {output.dtype for output in outputs}
        assert types == {torch.bfloat16}, f"`mixed_precision`='bf16', and the {name} computes in {types}"


def layers_of(trainer) -> dict[str, torch.nn.Module]:
    """A layer of each network."""
    trunks = {"policy": trainer.policy.model, "reference": trainer.reference.model, "critic": trainer.critic.trunk}
    return {name: trunk.layers[0].mlp.up_proj for name, trunk in trunks.items()}


def activation_checkpointing(begin):
    for wanted in (True, False):
        trainer = begin(activation_checkpointing=wanted)
        batch = credited(trainer)
        for name, layer in layers_of(trainer).items():
            seen = watched(layer, [])
            trainer.loss(batch)[0].backward()
            expected = 0 if name == "reference" else 1 + wanted
            assert len(seen) == expected, (
                f"`activation_checkpointing`={wanted}, and layers of the {name} are computed {len(seen)} times"
            )


def share_trunk(begin):
    names = [name for name, _ in begin(share_trunk=True).critic.named_parameters()]
    assert names == ["value_head.weight", "value_head.bias"], f"`share_trunk`, and the critic has its own {names[:2]}"
    assert len(list(begin().critic.named_parameters())) > 2, "policy and critic share a trunk without `share_trunk`"


def head_sees(trainer, forward) -> list[torch.Size]:
    """The shapes of the logits that the policy's head computes in `forward`."""
    logits = watched(trainer.policy.get_output_embeddings(), [])
    forward()
    return [part.shape[:-1] for part in logits]


def response_logits_only(begin):
    for wanted in (True, False):
        trainer = begin(response_logits_only=wanted)
        batch = credited(trainer)
        [shape] = head_sees(trainer, lambda trainer=trainer, batch=batch: trainer.predictions(batch))
        expected = batch.mask.shape[1] + 1 if wanted else batch.tokens.shape[1]
        assert shape[1] == expected, f"`response_logits_only`={wanted}, and there are logits of {shape[1]} tokens"


def logits_chunk(begin):
    whole, parts = begin(), begin(logits_chunk=3)
    batch = credited(whole)
    sizes = {shape.numel() for shape in head_sees(parts, lambda: parts.predictions(batch))}
    assert max(sizes) == 3, f"`logits_chunk`=3, and logits of {max(sizes)} tokens exist at a time"
    for mine, expected in zip(parts.predictions(batch), whole.predictions(batch), strict=True):
        assert torch.allclose(mine, expected, atol=1e-4), "`logits_chunk` changes what is computed"


def lora_rank(begin):
    trainer = begin(lora_rank=3)
    for name in ("policy", "critic"):
        trained = {n: p for n, p in getattr(trainer, name).named_parameters() if p.requires_grad and "head" not in n}
        ranks = {min(weight.shape) for weight in trained.values()}
        assert ranks == {3} and all("lora" in n for n in trained), f"`lora_rank`=3, and the {name} trains ranks {ranks}"


def lora_alpha(begin):
    trainer = begin(lora_rank=2, lora_alpha=5.0)
    layer = layers_of(trainer)["policy"]
    with memory.as_if_trained(trainer.policy):
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        merged = memory.merged(trainer.policy).model.layers[0].mlp.up_proj.weight
        change = merged - layer.base_layer.weight
        assert torch.allclose(change, 5.0 / 2 * up @ down, atol=1e-5), (
            "adapters of rank 2 are not scaled by `lora_alpha` / `lora_rank`"
        )


def frozen_dtype(begin):
    trainer = begin(lora_rank=2, frozen_dtype="bfloat16")
    for name in ("policy", "critic"):
        types = {str(p.dtype): p.requires_grad for p in getattr(trainer, name).parameters()}
        assert types == {"torch.bfloat16": False, "torch.float32": True}, f"`frozen_dtype`, and the {name} has {types}"


def optimizer(begin):
    found = type(begin(optimizer="adamw_8bit").optimizer.optimizer).__name__
    assert found == "AdamW8bit", f"`optimizer`='adamw_8bit', and {found} takes the steps"


# v1: evaluation


def judged(*scores):
    """A judge of held-out responses whose evaluations score these, one after another (each asks it twice)."""
    calls = iter([score for score in scores for _ in range(2)])
    return lambda prompts, responses: [next(calls)] * len(responses)


def eval_every(begin):
    trainer = begin(eval_every=2)
    quick(trainer).train(PROMPTS, HELD_OUT)
    found = [row["update"] for row in trainer.evaluations]
    assert found == [0, 2, 3], f"`eval_every`=2, and a run of 3 updates is evaluated at {found}"


def eval_samples(begin):
    for wanted in (0, 1):
        trainer = begin(eval_samples=wanted, total_episodes=4)
        quick(trainer).train(PROMPTS, HELD_OUT)
        kept = [row["update"] for row in trainer.samples]
        assert kept == [0] * wanted + [1] * wanted, f"`eval_samples`={wanted}, and texts are kept of updates {kept}"


def early_stopping_patience(begin):
    for patience, ends in ((1, 2), (2, 3)):
        trainer = begin(early_stopping_patience=patience, total_episodes=16, eval_reward=judged(0, 5, 4, 3, 2))
        quick(trainer).train(PROMPTS, HELD_OUT)
        found = len(trainer.history)
        assert found == ends, f"`early_stopping_patience`={patience}, best in update 1, and the run ends after {found}"


def early_stopping_min_delta(begin):
    for margin, best in ((0.5, 1), (0.25, 3)):
        trainer = begin(early_stopping_min_delta=margin, eval_reward=judged(0, 1, 1.2, 1.4))
        quick(trainer).train(PROMPTS, HELD_OUT)
        found = trainer.best.update
        assert found == best, f"`early_stopping_min_delta`={margin}: of 1, 1.2 and 1.4 the best is number {found}"


# v1: checkpoints and logs


def checkpoints_of(trainer) -> list[int]:
    quick(trainer).train(PROMPTS)
    return [int(path.name.split("-")[1]) for path in checkpoints(trainer.checkpoint_dir)]


def save_every(begin):
    found = checkpoints_of(begin(save_every=2, output_dir=str(begin.folder / "run")))
    assert found == [0, 2, 3], f"`save_every`=2, and a run of 3 updates has checkpoints of {found}"


def keep_last(begin):
    found = checkpoints_of(begin(keep_last=2, output_dir=str(begin.folder / "run")))
    assert found == [2, 3], f"`keep_last`=2, and after 3 updates there are checkpoints of {found}"


def logged(trainer) -> str:
    """What a run says on the terminal."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        quick(trainer).train(PROMPTS)
    return said.getvalue()


def report_to(begin):
    for name in ("console", "tensorboard"):
        folder = begin.folder / name
        table = logged(begin(report_to=[name], output_dir=str(folder), total_episodes=4))
        assert ("clipped" in table) == (name == "console"), f"`report_to`={[name]}, and the terminal shows {table!r}"
        found = (folder / "tensorboard").exists()
        assert found == (name == "tensorboard"), f"`report_to`={[name]}, and a folder of TensorBoard: {found}"
    begun = wandb_begun(begin(report_to=["wandb"], output_dir=str(begin.folder / "wandb"), total_episodes=4))
    assert begun, "`report_to`=['wandb'], and no run is begun there"
    assert logged(begin(report_to=[], total_episodes=4)) == "", "something is reported without `report_to`"


def wandb_begun(trainer) -> dict:
    """What a run tells Weights & Biases of itself."""
    with mock.patch.object(wandb, "init") as init, mock.patch.object(wandb, "config"):
        quick(trainer).train(PROMPTS)
    return init.call_args.kwargs


def project(begin):
    folder = begin.folder / "run"
    settings = dict(project="mine", report_to=["tensorboard", "wandb"], output_dir=str(folder), total_episodes=4)
    told = wandb_begun(begin(**settings))["project"]
    assert told == "mine", f"`project`='mine', and Weights & Biases is told {told!r}"
    found = [path.name for path in (folder / "tensorboard").iterdir()]
    assert found == ["mine"], f"`project`='mine', and TensorBoard's folder is {found}"


def wandb_mode(begin):
    for mode in ("online", "offline"):
        folder = str(begin.folder / mode)
        told = wandb_begun(begin(wandb_mode=mode, report_to=["wandb"], output_dir=folder, total_episodes=4))["mode"]
        assert told == mode, f"`wandb_mode`={mode!r}, and Weights & Biases is told {told!r}"
