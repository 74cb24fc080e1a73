"""A `Twin` follows a trainer through its run and computes all of it once more, by hand.

What it takes from the trainer are settings, sampled tokens, weights, and which responses it drew; networks run in
double precision. It speaks at the first number that is not as it should be, in the order in which they follow from one
another.
"""

import copy
import functools
import math

import torch

from tests.unit import by_hand
from tests.unit.by_hand import MEANING, Adam, Buffer, Response, close, gradients, length_of, mean

TICK = 0.25  # seconds between two looks at the clock, which a test stops
TOLD = ("prepare", "respond", "estimate", "mix", "step", "update", "adapt_kl", "evaluate_at", "log")


class Twin:
    """Follows `trainer`; its `train` then raises AssertionError where a number is wrong.

    Args:
        name: of the stage, for messages.
        eos: all token ids that end a response.
        reward, eval_reward: what judges a text.
        rate: update of a run, from 0 → learning rate.
        spoiled: update and step of it, from 0, whose loss is made NaN.
    """

    def __init__(self, trainer, name: str, eos: set[int], reward, eval_reward=None, rate=None, spoiled=None):
        self.name, self.eos, self.reward, self.eval_reward = name, eos, reward, eval_reward or reward
        networks = *copy.deepcopy((trainer.policy, trainer.critic)), copy.deepcopy(trainer.reference)
        self.policy, self.critic, self.reference = (network.double().eval() for network in networks)
        self.settings, self.spoiled = trainer.config, spoiled
        self.rate = rate or (lambda update: self.settings.learning_rate)
        self.adam, self.beta = Adam(), self.settings.kl_coef
        self.replays = getattr(self.settings, "use_replay_buffer", False)
        self.buffer = Buffer(self.settings) if self.replays else None
        self.number, self.in_run = 1, 0  # the update at hand: of the trainer, and of its present run from 0
        self.episodes = self.skipped = 0
        self.history, self.evaluations, self.samples, self.responded, self.prompts_left = [], [], [], [], []
        self.follow(trainer)

    def follow(self, trainer) -> None:
        """Be told what `trainer` does: the one of before, or one that goes on with its run."""
        self.trainer = trainer
        for owner, methods in ((trainer, TOLD), (getattr(trainer, "buffer", None), ("sample",))):
            for method in methods:
                if hasattr(owner, method):
                    setattr(owner, method, functools.partial(getattr(self, method), getattr(owner, method)))

    # sizes

    @property
    def portions(self) -> int:
        return getattr(self.settings, "gradient_accumulation_steps", 1)

    @property
    def rollout_size(self) -> int:
        return self.settings.batch_size * self.settings.group_size * self.portions

    @property
    def step_size(self) -> int:
        return self.settings.minibatch_size * self.portions

    @property
    def updates(self) -> int:
        """Of a run."""
        return self.settings.total_episodes // self.rollout_size

    # comparisons

    def fail(self, what: str):
        raise AssertionError(f"{self.name}, update {self.number}: {what}")

    def check(self, name: str, mine: float, expected: float, where: str = "") -> None:
        if not close(float(mine), float(expected)):
            self.fail(f"{name}{where} is {float(mine):.6g}, by hand {float(expected):.6g}: it is {MEANING[name]}")

    def check_all(self, mine: dict, expected: dict) -> None:
        for name in MEANING:
            if name in expected:
                if name not in mine:
                    self.fail(f"{name} is no longer logged: it is {MEANING[name]}")
                self.check(name, mine[name], expected[name])
        if unknown := mine.keys() - expected.keys():
            self.fail(f"{', '.join(sorted(unknown))} is logged, but nobody computes it by hand: add it to by_hand.py")

    def check_tokens(self, name: str, mine: torch.Tensor, responses: list[Response], field: str | None = None) -> None:
        """Row i of `mine` [B, T] holds the numbers called `field` of `responses[i]`."""
        for i, response in enumerate(responses):
            expected, cut = getattr(response, field or name), not response.ended and self.settings.bootstrap_cut
            for t in range(len(response) + (name == "values" and cut)):
                self.check(name, mine[i, t], expected[t], f" of response {i}, token {t} of {len(response)},")

    def read(self, rollout) -> list[Response]:
        """The responses of a rollout, from nothing but their tokens."""
        responses, tokenizer = [], self.trainer.tokenizer
        for i, (prompt, ids) in enumerate(zip(rollout.prompts, rollout.response_ids.tolist(), strict=True)):
            ends = [t for t, token in enumerate(ids) if token in self.eos]
            tokens = ids[: ends[0] + 1] if ends else ids[: self.settings.max_new_tokens]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            mask = rollout.mask[i].tolist()
            if mask != [True] * len(tokens) + [False] * (len(mask) - len(tokens)):
                self.fail(
                    f"the mask of response {i} is true on {sum(mask)} tokens, but {len(tokens)} were sampled up to the "
                    f"first EOS, any of {sorted(self.eos)}: {ids}"
                )
            if bool(rollout.ended[i]) != bool(ends):
                self.fail(
                    f"`ended` of response {i} is {bool(rollout.ended[i])}, but its last token, {tokens[-1]}, is "
                    f"{'one' if ends else 'none'} of the EOS ids {sorted(self.eos)}"
                )
            if rollout.responses[i] != text:
                self.fail(f"the text of response {i} is {text!r}, but what is judged is {rollout.responses[i]!r}")
            before = tokenizer(prompt)["input_ids"]
            if rollout.prompt_ids[i, rollout.prompt_mask[i]].tolist() != before:
                self.fail(f"the prompt {prompt!r} of response {i} has lost tokens to padding, or has padding in it")
            responses.append(Response(prompt, before, tokens, bool(ends), text, self.number, last_used=self.number))
        return responses

    def judge(self, responses: list[Response], reward) -> None:
        scores = reward([r.prompt for r in responses], [r.text for r in responses])
        for response, score in zip(responses, scores, strict=True):
            response.score = score

    def load(self) -> None:
        """Take over the weights that the trainer has now."""
        for role in ("policy", "critic", "reference"):
            if any(module.training for module in getattr(self.trainer, role).modules()):
                self.fail(f"the {role} is in training mode: with its dropout on, log-probabilities do not compare")
        self.policy.load_state_dict(self.trainer.policy.state_dict())
        self.critic.load_state_dict(self.trainer.critic.state_dict())

    @torch.no_grad()
    def see(self, responses: list[Response]) -> None:
        """Fill in what the networks say of them."""
        for r in responses:
            r.logprobs = by_hand.predictions(self.policy, r, self.settings.temperature)[0].tolist()
            r.ref_logprobs = by_hand.predictions(self.reference, r, self.settings.temperature)[0].tolist()
            r.values = by_hand.values_of(self.critic, r).tolist()

    # what the trainer does: each is told before it is done, and does it by `original`

    def prepare(self, original, dataset) -> None:
        self.prompts = dataset.prompts
        if self.in_run == self.updates:
            self.in_run = 0  # another run
        if self.in_run == 0:
            self.prompts_left = []
        original(dataset)

    @property
    def heat(self) -> float:
        """The temperature at which the next fresh responses are sampled."""
        cool, scores = self.settings.temperature, [row["objective/scores"] for row in self.history]
        hot = getattr(self.settings, "behaviour_temperature", None) or cool
        risen = mean(scores[-8:]) - scores[0] if scores else 0.0
        return cool + (hot - cool) * min(1.0, max(0.0, 1 - risen / getattr(self.settings, "behaviour_cooling", 1.0)))

    def respond(self, original, prompts, generator, greedy=False, tokens=None, temperature=None):
        chance = generator.get_state()
        rollout = original(prompts, generator, greedy, tokens, temperature)
        self.responded = [*self.responded[-1:], (rollout, chance)]
        self.after = generator.get_state()
        return rollout

    def read_drawn(self, rollout, chance: torch.Tensor | None, heat: float | None = None) -> list[Response]:
        """`read`, where each token was drawn by the random numbers of a generator in state `chance`; greedily if None.

        A token is drawn where its number falls in the policy's distribution, at the run's temperature or at `heat`.
        """
        responses = self.read(rollout)
        if chance is not None:
            size, generator = (self.settings.max_new_tokens, len(responses)), torch.Generator().set_state(chance)
            uniforms = torch.rand(size, generator=generator, dtype=torch.float64)
        for i, response in enumerate(responses):
            with torch.no_grad():
                logits = by_hand.logits_of(self.policy, response) / (heat or self.settings.temperature)
            shares = torch.softmax(logits, dim=-1)
            for t, token in enumerate(response.tokens):
                if chance is None and logits[t].max() - logits[t, token] > 1e-4:
                    self.fail(f"token {t} of the greedy response {response.text!r} is not the most probable one")
                if chance is not None:
                    above = uniforms[t, i] - shares[t, :token].sum()
                    if not -1e-5 < above < shares[t, token] + 1e-5:
                        self.fail(
                            f"token {t} of response {i}, sampled for {response.prompt!r}, is not where its random "
                            "number falls in the policy's distribution, of the logits divided by the temperature"
                        )
        return responses

    def estimate(self, original, rollout) -> None:
        original(rollout)
        self.load()
        self.fresh = self.batch = self.read_drawn(*self.responded[-1], self.heat)
        generator = torch.Generator().set_state(self.responded[-1][1])
        torch.rand(max(map(len, self.fresh)), len(self.fresh), dtype=torch.float64, generator=generator)
        if not torch.equal(generator.get_state(), self.after):
            self.fail("the run's generator is not just behind the numbers that the rollout was drawn by")
        self.check_prompts()
        self.judge(self.fresh, self.reward)
        for i, response in enumerate(self.fresh):
            if not close(rollout.scores[i].item(), response.score):
                self.fail(f"the score of response {i} is {rollout.scores[i]:.6g}, its text's is {response.score:.6g}")
        self.see(self.fresh)
        hot, cap = self.heat > self.settings.temperature, None
        for response in self.fresh:
            response.behaviour = response.logprobs
            if hot:
                response.behaviour = by_hand.predictions(self.policy, response, self.heat)[0].tolist()
        self.check("objective/kl_coef", self.trainer.kl_coef, self.beta, " when rewards are assigned")
        if hot:
            self.check_tokens("behaviour_logprobs", rollout.behaviour_logprobs, self.fresh, "behaviour")
            cap = self.settings.trace_cap if self.settings.correction == "decoupled" else None
        by_hand.assign_credit(self.fresh, self.settings, self.beta, cap)
        if hot:
            by_hand.weigh(self.fresh, self.settings, self.number)
        for name in ("logprobs", "ref_logprobs", "values", "rewards", "returns", "advantages"):
            self.check_tokens(name, getattr(rollout, name), self.fresh)
        self.expected = by_hand.rollout_metrics(self.fresh, self.beta) | {"eps": self.rollout_size / TICK}

    def check_prompts(self) -> None:
        if len(self.fresh) != self.rollout_size:
            self.fail(f"{len(self.fresh)} responses: batch, group and accumulation make {self.rollout_size}")
        for first in range(0, self.rollout_size, self.settings.group_size):
            prompt, *others = {r.prompt for r in self.fresh[first : first + self.settings.group_size]}
            if others:
                self.fail(f"a group of responses is to {[prompt, *others]}: a prompt comes `group_size` times in a row")
            self.prompts_left = self.prompts_left or list(self.prompts)
            if prompt not in self.prompts_left:
                self.fail(f"a pass over the data takes {prompt!r} again before {self.prompts_left}: each comes once")
            self.prompts_left.remove(prompt)

    def update(self, original, rollout):
        self.steps, self.rows_left, self.too_far = [], [], False
        if self.replays:
            self.buffer.expire(self.number)
            self.expected |= self.buffer.metrics(self.number)
        metrics = original(rollout)
        whole = self.settings.num_ppo_epochs * math.ceil(len(self.batch) / self.step_size)
        if len(self.steps) != whole and not self.too_far:
            self.fail(f"{len(self.steps)} steps: `num_ppo_epochs` passes over {len(self.batch)} responses are {whole}")
        self.expected |= {name: mean(step[name] for step in self.steps) for name in self.steps[0]}
        if self.replays:
            self.buffer.add(self.fresh)
        return metrics

    def rows_of(self, minibatch) -> list[Response]:
        """Which of the batch's responses these are; each is taken once in a pass."""
        rows, ages = [], getattr(minibatch, "ages", None)
        for i, response in enumerate(self.read(minibatch)):
            self.rows_left = self.rows_left or list(self.batch)
            born = self.number - (0 if ages is None else int(ages[i]))
            same = [r for r in self.rows_left if r.key == response.key and r.update == born]
            if not same:
                self.fail(f"a pass takes a response again before {len(self.rows_left)} others of the batch came once")
            rows.append(same[0])
            self.rows_left.remove(same[0])
        return rows

    def step(self, original, minibatch):
        if self.too_far:
            self.fail("the update goes on after the step whose approximate KL passed `kl_stop`")
        self.load()
        rows, settings, mine = self.rows_of(minibatch), self.settings, (self.trainer.policy, self.trainer.critic)
        if len(rows) != self.step_size and self.rows_left:
            self.fail(f"a step takes {len(rows)} responses: minibatch and accumulation make {self.step_size}")
        expected = by_hand.step_metrics(rows, self.policy, self.critic, settings)
        before = [p.detach().double() for network in mine for p in network.parameters()]
        if spoiled := (self.number, len(self.steps)) == self.spoiled:
            metrics = self.spoil(original, minibatch)
            expected |= {"policy/grad_norm": math.nan, "val/grad_norm": math.nan}
            self.skipped += 1
        else:
            metrics = original(minibatch)
        self.steps.append(expected)
        self.too_far = expected["policy/approxkl_avg"] > (getattr(settings, "kl_stop", None) or math.inf)
        still = "a NaN gradient" if spoiled else "an approximate KL beyond `kl_stop`" if self.too_far else None
        rate = self.rate(self.in_run)
        for name in expected.keys() - {"policy/grad_norm", "val/grad_norm"}:  # which follow from the gradients
            self.check(name, metrics[name], expected[name])
        if not still:
            self.check("lr", self.trainer.optimizer.param_groups[0]["lr"], rate)
            self.check_gradients()
            before = self.adam.moved(before, [slope for network in mine for slope in gradients(network)], rate)
        self.check_all(metrics, expected)
        now = [p.detach().double() for network in mine for p in network.parameters()]
        if not all(torch.allclose(*pair, rtol=1e-6, atol=1e-3 * rate) for pair in zip(now, before, strict=True)):
            rule = f"AdamW at a learning rate of {rate:.3g} without weight decay leads elsewhere"
            self.fail(f"the weights after step {len(self.steps)}: {f'{still} moves nothing' if still else rule}")
        return metrics

    def spoil(self, original, minibatch):
        sound = self.trainer.loss

        def nan(rows):
            loss, metrics = sound(rows)
            return loss * math.nan, metrics

        self.trainer.loss = nan
        try:
            return original(minibatch)
        finally:
            self.trainer.loss = sound

    def check_gradients(self) -> None:
        for name, mine, hand in (
            ("policy", self.trainer.policy, self.policy),
            ("critic", self.trainer.critic, self.critic),
        ):
            norm, got = length_of(gradients(hand)), length_of(gradients(mine))
            gap = length_of(a * norm - b * got for a, b in zip(gradients(mine), gradients(hand), strict=True))
            if gap > 5e-4 * norm * got or bool(norm) != bool(got):
                self.fail(
                    f"the gradient of the {name} has another direction, {gap / (norm * got or 1):.1%} off: the loss is "
                    "policy + vf_coef · value − entropy_coef · entropy, each one mean over all tokens of the step, so "
                    "that a micro-batch weighs as much as it has tokens"
                )
            if not close(got, min(norm, self.settings.max_grad_norm)):
                self.fail(
                    f"the gradient of the {name} was {norm:.6g} long and is {got:.6g} when the step is taken: policy "
                    f"and critic are each cut to `max_grad_norm`, {self.settings.max_grad_norm}"
                )

    def adapt_kl(self, original, kl: float) -> None:
        self.check("objective/kl", kl, self.expected["objective/kl"])
        self.expected["objective/kl_coef"] = self.beta
        self.beta = by_hand.adapted(self.beta, self.expected["objective/kl"], self.settings, self.rollout_size)
        original(kl)
        self.check("objective/kl_coef", self.trainer.kl_coef, self.beta, " of the next update")

    def evaluate_at(self, original, update: int):
        before = self.trainer.generator.get_state()
        metrics = original(update)
        if not torch.equal(before, self.trainer.generator.get_state()):
            self.fail("an evaluation spends random numbers of training")
        self.load()
        (sampled, chance), (greedy, _) = self.responded
        if not torch.equal(chance, torch.Generator().manual_seed(self.settings.seed).get_state()):
            self.fail("held-out prompts are not answered with the random numbers of `seed`, the same each time")
        sampled, greedy = self.read_drawn(sampled, chance), self.read_drawn(greedy, None)
        prompts = self.trainer.eval_dataset.prompts
        for responses in (sampled, greedy):
            if [r.prompt for r in responses] != prompts:
                self.fail("each held-out prompt is answered once, in order")
            self.judge(responses, self.eval_reward)
            self.see(responses)
        expected = by_hand.evaluation_metrics(sampled, greedy, self.beta)
        self.check_all(metrics, expected)
        self.evaluations.append({"update": update, **expected})
        for s, g in list(zip(sampled, greedy, strict=True))[: self.settings.eval_samples]:
            texts = {"prompt": s.prompt, "sampled": s.text, "greedy": g.text}
            self.samples.append({"update": update, **texts, "score": s.score, "score_greedy": g.score})
        self.expected = {**(self.expected if update else {}), **expected}
        return metrics

    def log(self, original, metrics) -> None:
        original(metrics)
        self.episodes += self.rollout_size
        self.expected |= {"lr": self.rate(self.in_run), "update": self.number, "episode": self.episodes}
        if hasattr(self.trainer, "skipped_steps"):
            self.expected["train/skipped_steps"] = self.skipped
            last = self.in_run + 1 == self.updates
            due = self.trainer.eval_dataset and (last or self.number % self.settings.eval_every == 0)
            if bool(due) != ("eval/score" in self.expected):
                self.fail("held-out prompts are answered every `eval_every` updates and after the last of each run")
        self.check_all(metrics, self.expected)
        if dict(self.trainer.history[-1]) != metrics:
            self.fail("`history` is not what is logged")
        self.history.append(self.expected)
        self.number += 1
        self.in_run += 1

    # replay

    def sample(self, original, size: int, version: int, generator):
        """A draw of the buffer's: which are drawn is chance, but not from which, how many, and with which ω."""
        wanted, anneal = self.settings.replay_sample_size, self.settings.replay_anneal
        if anneal:
            left = (self.updates - 1 - self.in_run) / self.updates
            wanted = round(wanted * min(1.0, left / anneal))
        if version != self.number:
            self.fail(f"the buffer is told that this is update {version}, by which ages and spacing are counted")
        if size != wanted:
            self.fail(f"{size} responses are to be replayed: `replay_sample_size`, annealed over the run, is {wanted}")
        self.check_held()
        before, ready, last_used = self.held(), self.buffer.ready(self.number), self.trainer.buffer.fields["last_used"]
        batch = original(size, version, generator)
        now, self.drawn = self.held(), []
        used = [r for r in ready if r.place in before.keys() - now.keys() or last_used[r.place] == version]
        for response, age in [] if batch is None else zip(self.read(batch), batch.ages.tolist(), strict=True):
            same = [r for r in used if r.key == response.key and self.number - r.update == age]
            if not same:
                self.fail(
                    f"the response {response.text!r} of age {age} is replayed, but it was drawn already, is not held, "
                    "rests by `replay_spacing`, or is not marked as used in this update"
                )
            self.drawn.append(same[0])
            used.remove(same[0])
        if len(self.drawn) != min(wanted, len(ready)):
            self.fail(f"{len(self.drawn)} responses are replayed: {wanted} are wanted and {len(ready)} are ready")
        if self.drawn:
            self.check_drawn(batch)
        return batch

    def held(self) -> dict[int, tuple]:
        """What the trainer's buffer holds, by place: prompt and tokens, and whose policy sampled them."""
        buffer, held = self.trainer.buffer, {}
        for place in buffer.held.tolist():
            ids = buffer.fields["response_ids"][place, : buffer.fields["lengths"][place]].tolist()
            held[place] = (buffer.prompts[place], tuple(ids)), int(buffer.fields["versions"][place])
        return held

    def check_held(self) -> None:
        """The trainer's buffer holds what it should, and would draw each response as often as it should."""
        mine, expected = self.held(), {(r.key, r.update) for r in self.buffer.held}
        for key, update in set(mine.values()) - expected:
            why = self.buffer.gone.get((key, update), "none that was sampled")
            self.fail(f"the buffer holds a response of update {update} to {key[0]!r} that is {why}")
        for key, update in expected - set(mine.values()):
            self.fail(
                f"the buffer holds no response of update {update} to {key[0]!r}: it has not expired by "
                "`staleness_threshold`, was not used up, and is not the oldest, or is kept by `replay_keep_best`"
            )
        for name, count in self.buffer.counts.items():
            self.check(f"replay/{name}", self.trainer.buffer.counts[name], count)
        self.buffer.place(mine)
        for r in self.buffer.held:
            if not close(stored := self.trainer.buffer.fields["scores"][r.place].item(), r.score):
                self.fail(f"the buffer has the score {stored:.6g} for a response whose raw score was {r.score:.6g}")
        if not self.buffer.ready(self.number):
            return
        chances = self.buffer.probabilities(self.number)
        for place, chance in zip(mine, self.trainer.buffer.probabilities(self.number).tolist(), strict=True):
            r = self.buffer.places[place]
            if not close(chance, chances.get(r, 0.0)):
                self.fail(
                    f"a response of score {r.score:.3g}, sampled in update {r.update} and last used in {r.last_used}, "
                    f"is drawn with probability {chance:.4g}, by hand {chances.get(r, 0):.4g}: in proportion to "
                    "|score − mean|^`replay_priority` · exp(−age / `replay_recency`), where it does not rest"
                )

    def check_drawn(self, batch) -> None:
        for i, r in enumerate(self.drawn):
            if not close(batch.scores[i].item(), r.score) or bool(batch.ended[i]) != r.ended:
                self.fail(f"replayed response {i} has another score or `ended` than when it was sampled")
        self.check_tokens("behaviour_logprobs", batch.behaviour_logprobs, self.drawn, "behaviour")
        self.check_tokens("ref_logprobs", batch.ref_logprobs, self.drawn)
        self.buffer.use(self.drawn, self.number)
        for i, r in enumerate(self.drawn):
            if not close(batch.sampling_weights[i].item(), r.omega):
                self.fail(
                    f"ω of replayed response {i} is {batch.sampling_weights[i]:.6g}, by hand {r.omega:.6g}: it is "
                    "(n P)^−`replay_priority_correction`, n of those that are ready, over the largest of the draw"
                )

    def mix(self, original, rollout, version: int):
        batch, seen = original(rollout, version)
        near, settings, expected = [], self.settings, {"replay/sampled": 0}
        self.see(self.drawn)
        if self.drawn:
            distances = [-mean(math.log(c) for c in r.ratios) for r in self.drawn]
            limit = settings.max_replay_kl or math.inf
            near = [r for r, kl in zip(self.drawn, distances, strict=True) if abs(kl) <= limit]
            expected |= {"replay/kl": mean(distances), "replay/too_far": len(self.drawn) - len(near)}
        if near:
            expected |= by_hand.weight_metrics(near, settings, self.number)
            near = near if expected["replay/ess"] >= settings.min_ess else []
            expected["replay/sampled"] = len(near)
        self.check_all(seen, expected)
        self.batch = [*self.fresh, *near]
        if [r.key for r in self.batch] != [r.key for r in self.read(batch)]:
            self.fail(f"the batch is not the fresh rollout and the {len(near)} replayed responses that are left")
        if near:
            if batch.ages.tolist() != [self.number - r.update for r in self.batch]:
                self.fail(f"ages are {batch.ages.tolist()}: those of fresh responses are 0, others' the updates since")
            cap = settings.trace_cap if settings.correction == "decoupled" else None
            by_hand.assign_credit(self.batch, settings, self.beta, cap)
            by_hand.weigh(self.batch, settings, self.number)
            for name in ("values", "rewards", "returns", "weights", "advantages", "logprobs"):
                self.check_tokens(name, getattr(batch, name), self.batch)
        self.expected |= expected | self.buffer.efficiency(self.fresh, self.batch)
        self.expected |= {"replay/temperature": self.heat}
        return batch, seen
