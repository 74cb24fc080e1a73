"""One side of `speed.py update`: makes a trainer, then one PPO update for each line it reads, and times it.

Runs in an environment of its own choice (TRL's or the project's), so it imports only what its side needs.

    python benchmarks/speed_worker.py '{"side": "trl", "model": "tiny", "batch": 16, "tokens": 32, "settings": {}}'
"""

import gc
import json
import resource
import sys
import time

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ppo_lib import worlds

EPOCHS, LEARNING_RATE = 4, {"tiny": 1e-4, "smollm2": 1e-5}
ENDLESS = 10**6


def model_and_world(name: str):
    """The policy, and the world that gives tokenizer, prompts and reward."""
    if name == "smollm2":
        world = worlds.load("smollm2")
        return world.model, world
    world = worlds.load("reviews")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(world.tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=world.tokenizer.eos_token_id, pad_token_id=world.tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config), world


class Turns:
    """Waits for a line before each update, and answers with what the update took."""

    def __init__(self):
        self.parts: dict[str, float] = {}

    def timed(self, part: str, function):
        """`function`, whose seconds are added to `part`."""

        def wrapped(*arguments, **keywords):
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - start

        return wrapped

    def wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self.parts, self.start = {}, time.perf_counter()

    def done(self, **more) -> None:
        seconds = time.perf_counter() - self.start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, **self.parts, "peak_mib": peak, **more}), flush=True)


def ours(case: dict, turns: Turns) -> None:
    from ppo_lib.ppo_v1 import PPOTrainer

    model, world = model_and_world(case["model"])
    batch = case["batch"]
    trainer = PPOTrainer(
        model, world.reward, tokenizer=world.tokenizer, batch_size=batch, minibatch_size=batch,
        num_ppo_epochs=EPOCHS, total_episodes=batch * ENDLESS, max_new_tokens=case["tokens"], device="cpu",
        **{"learning_rate": LEARNING_RATE[case["model"]]} | case["settings"],
    )  # fmt: skip
    trainer.collect = turns.timed("sample", trainer.collect)
    trainer.update = turns.timed("update", trainer.update)

    def next_turn(trainer, rollout, metrics) -> None:
        turns.done(tokens=int(rollout.mask.sum()), score=metrics["objective/scores"], kl=metrics["objective/kl"])
        turns.wait()

    print("{}", flush=True)
    turns.wait()
    trainer.train(world.prompts, callback=next_turn)


def trl(case: dict, turns: Turns) -> None:
    import datasets
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    model, world = model_and_world(case["model"])
    reference, _ = model_and_world(case["model"])
    model.config.num_labels = 1
    value_model = AutoModelForSequenceClassification.from_config(model.config)
    value_model.model.load_state_dict(model.model.state_dict())
    torch.nn.init.zeros_(value_model.score.weight)
    tokenizer, batch, seen = world.tokenizer, case["batch"], {}
    tokenizer.padding_side = "left"
    prompts = [{"input_ids": tokenizer(p, add_special_tokens=False)["input_ids"]} for p in world.prompts]
    get_reward = ppo_trainer.get_reward

    class Reward(torch.nn.Module):
        """Stands where TRL wants a network: the same function of the texts that the other side has."""

    def reward_or_value(network, tokens, pad_token_id, context_length):
        if not isinstance(network, Reward):
            return get_reward(network, tokens, pad_token_id, context_length)
        texts = tokenizer.batch_decode(tokens[:, context_length:], skip_special_tokens=True)
        seen["tokens"] = int((tokens[:, context_length:] != pad_token_id).sum())
        return None, torch.tensor(world.reward([""] * len(texts), texts), dtype=torch.float32), None

    ppo_trainer.get_reward = reward_or_value
    ppo_trainer.batch_generation = turns.timed("sample", ppo_trainer.batch_generation)
    gc.collect = turns.timed("gc", gc.collect)

    class NextTurn(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **others):
            seen.update(score=logs["objective/scores"], kl=logs["objective/kl"])

        def on_step_end(self, args, state, control, **others):
            turns.parts["update"] = time.perf_counter() - seen.pop("training")
            turns.done(**seen)
            turns.wait()

    config = PPOConfig(
        output_dir=case["scratch"], per_device_train_batch_size=batch, num_mini_batches=1, num_ppo_epochs=EPOCHS,
        local_rollout_forward_batch_size=batch, response_length=case["tokens"], total_episodes=batch * ENDLESS,
        temperature=1.0, kl_coef=0.05, vf_coef=0.5, cliprange=0.2, cliprange_value=0.2, gamma=1.0, lam=0.95,
        stop_token="eos", learning_rate=LEARNING_RATE[case["model"]], lr_scheduler_type="constant",
        num_sample_generations=0, logging_steps=1, save_strategy="no", report_to=[], gradient_checkpointing=False,
        bf16=False, use_cpu=True, disable_tqdm=True, weight_decay=0.0,
    )  # fmt: skip
    trainer = PPOTrainer(
        config, tokenizer, model, reference, Reward(), datasets.Dataset.from_list(prompts), value_model,
        callbacks=[NextTurn()],
    )  # fmt: skip
    accumulate = trainer.accelerator.accumulate

    def first_of_update(*models):
        seen.setdefault("training", time.perf_counter())
        return accumulate(*models)

    trainer.accelerator.accumulate = first_of_update
    printed, sys.stdout = sys.stdout, sys.stderr  # TRL prints to it
    turns.done = silenced(turns.done, printed)
    print("{}", file=printed, flush=True)
    turns.wait()
    trainer.train()


def silenced(done, printed):
    """`done`, which alone may print to standard output."""

    def wrapped(**more):
        sys.stdout = printed
        done(**more)
        sys.stdout = sys.stderr

    return wrapped


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    {"ours": ours, "trl": trl}[wanted["side"]](wanted, Turns())
