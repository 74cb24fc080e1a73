"""`speed.py` for a GPU: SmolLM2's sampling against `generate`, a step of decoding against the memory, whole updates.

    python benchmarks/speed_gpu.py              # everything, about three minutes on an H100
    python benchmarks/speed_gpu.py --random     # with random weights of SmolLM2's shape, to try the program

Contestants take turns as in `speed.py`. A step is timed apart from the rest by the GPU's own clock; it must read every
weight and the keys and values of all texts, so the bytes over the memory's bandwidth are the least time it can take.
"""

import argparse
import contextlib
import gc
import itertools
import statistics
import time

import torch
from record import RESULTS, provenance, write_json
from speed import TOKENS, against_generate, rounded, sampling_contestants, take_turns
from transformers import LlamaConfig, LlamaForCausalLM

from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.rollout import encode_prompts
from ppo_lib.sampling import decoding, graphs
from ppo_lib.sampling.decoding import LlamaLayer
from ppo_lib.sampling.graphs import CopiedLayer, GraphDecoder

FILE = RESULTS / "speed" / "gpu.json"
PARTS = ("attention", "sampling", "compiled", "sizes", "updates")
BATCHES = (64, 512)
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
ATTENTIONS = {"two products": decoding._attend, "one kernel": decoding.attend_by_kernel}
UPDATES = {
    "same": {"response_logits_only": True},
    "one trunk": {"share_trunk": True},
    "one trunk, TF32": {"share_trunk": True},
    "one trunk, bf16": {"share_trunk": True, "mixed_precision": "bf16"},
    "memory": {
        "share_trunk": True, "mixed_precision": "bf16", "lora_rank": 16, "learning_rate": 3e-4,
        "frozen_dtype": "bfloat16", "logits_chunk": 1024,
    },
}  # fmt: skip


def autocast(precision: str) -> contextlib.AbstractContextManager:
    dtype = PRECISIONS[precision]
    return torch.autocast("cuda", dtype) if dtype else contextlib.nullcontext()


def gpu_seconds(work, repeats: int) -> float:
    """Median seconds of `work()` by the GPU's clock."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def limits() -> dict:
    large = torch.ones(2**29, device="cuda")
    found = {"read_gb_per_second": large.nbytes / gpu_seconds(large.sum, 20) / 1e9}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        square = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        found[f"matmul_tflops_{name}"] = 2 * 8192**3 / gpu_seconds(lambda square=square: square @ square, 10) / 1e12
    return found


@torch.no_grad()
def step_of(policy, tokenizer, prompts: list[str], read_gb: float) -> dict:
    """Milliseconds of one recorded step in the middle of a response, and its share of the memory's bandwidth."""
    ids, mask = (x.to("cuda") for x in encode_prompts(tokenizer, prompts))
    start = time.perf_counter()
    decoder = GraphDecoder(policy, ids, mask, TOKENS)
    torch.cuda.synchronize()
    first, step = time.perf_counter() - start, decoder.step

    def work() -> None:
        step.now.fill_(ids.shape[1] + TOKENS // 2)
        step.positions.fill_(ids.shape[1] + TOKENS // 2)
        step.graph.replay()

    seconds = gpu_seconds(work, 30)
    weights = [decoder.recorded.head, *(b for layer in step.layers for b in layer.buffers())]
    read = sum(weight.nbytes for weight in weights) + step.keys.nbytes + step.values.nbytes
    return {
        "milliseconds": 1e3 * seconds, "read_mb": read / 1e6, "share_of_bandwidth": read / seconds / 1e9 / read_gb,
        "prefill_and_recording_seconds": first,
    }  # fmt: skip


def sampling(policy, world, machine: dict, rounds: int) -> list[dict]:
    rows = []
    for batch in BATCHES:
        prompts = (world.prompts * batch)[:batch]
        for precision in PRECISIONS:
            with autocast(precision):
                found = take_turns(sampling_contestants(policy, world.tokenizer, prompts, TOKENS), rounds)
                step = step_of(policy, world.tokenizer, prompts, machine["read_gb_per_second"])
            rows.append({
                "batch": batch, "precision": precision, "new_tokens": TOKENS, "step": step,
                **against_generate(found),
            })  # fmt: skip
            print(rounded(rows[-1]), flush=True)
    return rows


def compiled(policy, world, machine: dict) -> list[dict]:
    """The step once more, its layers compiled before it is recorded."""
    rows, plain = [], CopiedLayer.step
    CopiedLayer.step = torch.compile(LlamaLayer.step, dynamic=False)
    try:
        for batch in BATCHES:
            prompts = (world.prompts * batch)[:batch]
            graphs.forget()
            with autocast("bfloat16"):
                row = step_of(policy, world.tokenizer, prompts, machine["read_gb_per_second"])
            rows.append({"batch": batch, "precision": "bfloat16", "step": row})
            print(rounded(rows[-1]), flush=True)
    finally:
        CopiedLayer.step = plain
        graphs.forget()
    return rows


def updates(policy, make_world, rounds: int) -> list[dict]:
    """Seconds of whole updates of 64 responses in minibatches of 64, 4 epochs; and the most memory they took."""
    rows = []
    policy.to("cpu")
    for arm, settings in UPDATES.items():
        world, parts = make_world(), {}
        graphs.forget()
        gc.collect()  # the last trainer and its timed methods hold each other
        torch.cuda.empty_cache()
        torch.set_float32_matmul_precision("high" if "TF32" in arm else "highest")
        trainer = PPOTrainer(
            world.model, world.reward, tokenizer=world.tokenizer, device="cuda", batch_size=64, minibatch_size=64,
            num_ppo_epochs=4, max_new_tokens=TOKENS, total_episodes=64 * 99, **{"learning_rate": 1e-5} | settings,
        )  # fmt: skip
        for name in ("collect", "score", "estimate", "update"):
            setattr(trainer, name, timed(getattr(trainer, name), parts.setdefault(name, [])))
        torch.cuda.reset_peak_memory_stats()
        for number in range(rounds + 2):
            trainer.train_step((world.prompts * 9)[64 * number : 64 * (number + 1)])
        medians = {name: statistics.median(times[2:]) for name, times in parts.items()}
        rows.append({
            "arm": arm, "settings": settings, "batch": 64, "epochs": 4, "rounds": rounds, "parts": medians,
            "seconds": sum(medians.values()), "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        })  # fmt: skip
        print(rounded(rows[-1]), flush=True)
        del trainer, world
    torch.set_float32_matmul_precision("highest")
    return rows


def timed(function, times: list[float]):
    def wrapped(*arguments, **keywords):
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = function(*arguments, **keywords)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        return result

    return wrapped


SHAPES = {  # of the SmolLM2 family: width, width of the MLP, layers, heads, heads of keys
    "135M": (576, 1536, 30, 9, 3), "360M": (960, 2560, 32, 15, 5), "1.7B": (2048, 8192, 24, 32, 32),
}  # fmt: skip


def random_world(shape: str = "135M") -> worlds.World:
    """A world with a model of that shape, random weights, and the tokenizer of `reviews`."""
    reviews, (width, inner, layers, heads, groups) = worlds.load("reviews"), SHAPES[shape]
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=49152, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=8192,
            tie_word_embeddings=True, eos_token_id=0, pad_token_id=1, bos_token_id=None,
        )).eval()  # fmt: skip
    return worlds.World("random", model, reviews.tokenizer, reviews.reward, reviews.prompts, reviews.heldout_prompts)


def model_sizes(machine: dict) -> list[dict]:
    """A step of larger models, whose weights take longer to read: random ones, in bfloat16, 64 texts."""
    rows = []
    for shape in SHAPES:
        graphs.forget()
        world = random_world(shape)
        with autocast("bfloat16"):
            step = step_of(world.model, world.tokenizer, (world.prompts * 64)[:64], machine["read_gb_per_second"])
        parameters = sum(p.numel() for p in world.model.parameters())
        rows.append({"model": shape, "parameters": parameters, "step": step})
        print(rounded(rows[-1]), flush=True)
        del world
    return rows


def attentions(policy, world, machine: dict) -> list[dict]:
    """A step with attention as two batched products, and by the kernel that training uses; 32 bits."""
    rows, chosen, precision = [], CopiedLayer.attend, "float32"
    for batch, (name, attend) in itertools.product(BATCHES, ATTENTIONS.items()):
        graphs.forget()
        CopiedLayer.attend = staticmethod(attend)
        with autocast(precision):
            prompts = (world.prompts * batch)[:batch]
            step = step_of(policy, world.tokenizer, prompts, machine["read_gb_per_second"])
        rows.append({"batch": batch, "precision": precision, "attention": name, "step": step})
        print(rounded(rows[-1]), flush=True)
    CopiedLayer.attend = staticmethod(chosen)
    graphs.forget()
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", action="store_true", help="random weights, and nothing is stored")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    make_world = random_world if arguments.random else lambda: worlds.load("smollm2")
    machine = limits()
    print(rounded(machine), flush=True)
    world = make_world()
    policy = world.model.to("cuda").eval()
    found = {"machine": machine}
    for part, work in {
        "attention": lambda: attentions(policy, world, machine),
        "sampling": lambda: sampling(policy, world, machine, arguments.rounds),
        "compiled": lambda: compiled(policy, world, machine),
        "sizes": lambda: model_sizes(machine),
        "updates": lambda: updates(policy, make_world, arguments.rounds),
    }.items():
        if part in arguments.only:
            found[part] = work()
            if not arguments.random:
                write_json(FILE, rounded(found) | provenance())


if __name__ == "__main__":
    main()
