"""How fast are sampling and updating, against what, and what limits them?

    python benchmarks/speed.py limits      # the machine's own: memory bandwidth, matrix products
    python benchmarks/speed.py sampling    # against `generate` of transformers
    python benchmarks/speed.py update      # whole PPO updates against TRL 1.12.0's trainer, in its own environment
    python benchmarks/speed.py curve       # scores over 20 updates of SmolLM2, TRL's trainer and v1's with less memory
    python benchmarks/speed.py growth      # with batch, response length, model size and vocabulary
    python benchmarks/speed.py chapters    # the book's chapters at an earlier commit and now

All contestants take turns within one run, in a new order each round; the first round warms up and is not counted.
Numbers are medians and ranges. Speed means nothing on a busy machine: leave it alone while this runs.
"""

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from record import RESULTS, ROOT, provenance, write_json
from speed_worker import model_and_world
from transformers import LlamaConfig, LlamaForCausalLM

from ppo_lib import rollout as rollouts
from ppo_lib import worlds
from ppo_lib.ppo_v1 import PPOTrainer
from ppo_lib.sampling.choice import decoder_for
from ppo_lib.sampling.decoding import Decoder, LlamaDecoder
from ppo_lib.sampling.graphs import GraphDecoder

FOLDER = RESULTS / "speed"
PEERS = ROOT / "tests" / "parity"
TOKENS = 32  # new ones of a response
UPDATE_CASES = {
    "tiny": {"batch": 16, "arms": {"same": {}, "one trunk": {"share_trunk": True}}},
    "smollm2": {
        "batch": 8,
        "arms": {
            "same": {"response_logits_only": True},
            "one trunk": {"share_trunk": True},
            "memory": {"share_trunk": True, "lora_rank": 16, "learning_rate": 3e-4},
        },
    },
}
CURVES = ("trl", "memory")


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "range": [min(values), max(values)], "n": len(values)}


def rounded(content):
    """The same with numbers to 4 significant digits."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return float(f"{content:.4g}") if isinstance(content, float) else content


def store(name: str, content: dict) -> None:
    write_json(FOLDER / f"{name}.json", rounded(content) | provenance())
    print(json.dumps(rounded(content), indent=1), flush=True)


def seconds_of(work: Callable, repeats: int) -> float:
    """Median seconds of `work()`, the first time left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def take_turns(contestants: dict[str, Callable], rounds: int) -> dict[str, list]:
    """What each contestant returned in each round but the first."""
    found, order = {name: [] for name in contestants}, random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(contestants), len(contestants)):
            result = contestants[name]()
            if number:
                found[name].append(result)
    return found


def limits(arguments) -> dict:
    """Bytes per second that a sum over a large tensor reads, and operations per second of a matrix product."""
    large, square = torch.ones(2**27), torch.randn(2048, 2048)
    content = {
        "read_gb_per_second": large.nbytes / seconds_of(large.sum, 7) / 1e9,
        "matmul_gflops": 2 * 2048**3 / seconds_of(lambda: square @ square, 7) / 1e9,
    }
    store("limits", content)
    return content


def sampling_contestants(policy, tokenizer, prompts: list[str], tokens: int) -> dict[str, Callable]:
    """Each samples a response to every prompt and returns the tokens it drew per second.

    All end with texts, for which a GPU must have finished.
    """
    generator = torch.Generator().manual_seed(0)

    def ours(decoder) -> float:
        start, rollouts.decoder_for = time.perf_counter(), lambda policy: decoder
        rollout = rollouts.sample(policy, tokenizer, prompts, tokens, 1.0, generator)
        rate = rollout.mask.sum().item() / (time.perf_counter() - start)
        rollouts.decoder_for = decoder_for
        return rate

    def generate() -> float:
        start = time.perf_counter()
        ids, mask = (x.to(policy.device) for x in rollouts.encode_prompts(tokenizer, prompts))
        texts = policy.generate(
            input_ids=ids, attention_mask=mask.long(), max_new_tokens=tokens, do_sample=True, top_k=0, top_p=1.0,
            temperature=1.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )[:, ids.shape[1] :]  # fmt: skip
        tokenizer.batch_decode(texts, skip_special_tokens=True)  # a rollout holds texts too
        ended = (texts == tokenizer.eos_token_id).cumsum(dim=1) - (texts == tokenizer.eos_token_id).long()
        return (ended == 0).sum().item() / (time.perf_counter() - start)

    kinds = {"plain decoder": Decoder}
    if LlamaDecoder.fits(policy):
        kinds |= {"unrecorded" if GraphDecoder.fits(policy) else "ours": LlamaDecoder}
    if GraphDecoder.fits(policy):
        kinds["ours"] = GraphDecoder
    return {"generate": generate} | {name: functools.partial(ours, kind) for name, kind in kinds.items()}


def against_generate(found: dict[str, list[float]]) -> dict:
    """Tokens per second of each contestant, and over `generate`'s of the same round."""
    return {
        "tokens_per_second": {arm: spread(rates) for arm, rates in found.items()},
        "ratios": {
            arm: spread([a / b for a, b in zip(rates, found["generate"], strict=True)]) for arm, rates in found.items()
        },
    }


def sampling(arguments) -> None:
    """Tokens per second by model and batch, and what share of the memory bandwidth a step of decoding takes."""
    machine, rows = limits(arguments), []
    for name in arguments.models:
        policy, world = model_and_world(name)
        policy.eval()
        parameters = sum(p.numel() for p in policy.parameters())
        for batch in (16, 64):
            prompts = (world.prompts * batch)[:batch]
            found = take_turns(sampling_contestants(policy, world.tokenizer, prompts, TOKENS), arguments.rounds or 7)
            rate = statistics.median(found["ours"])
            read = 4 * parameters * rate / batch / 1e9
            rows.append({
                "model": name, "batch": batch, "new_tokens": TOKENS,
                **against_generate(found),
                "weights_read_gb_per_second": read,
                "share_of_bandwidth": read / machine["read_gb_per_second"],
                "share_of_arithmetic": 2 * parameters * rate / 1e9 / machine["matmul_gflops"],
            })  # fmt: skip
            store("sampling", {"rows": rows})


class Worker:
    """A process with a trainer that does an update when asked."""

    def __init__(self, python: Path, case: dict):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
        }  # fmt: skip
        words = [python, ROOT / "benchmarks" / "speed_worker.py", json.dumps(case)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended before its time: run {self.process.args} to see why")
        return json.loads(line)

    def update(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


@functools.cache
def trl_python() -> Path:
    """The Python of TRL's own environment, which is made when it is not there."""
    sys.path.insert(0, str(PEERS))
    from run import environment

    python = environment("trl", ROOT / "_build" / "peers" / "trl", "torch==2.13.0")
    needed = ["vaderSentiment", "pydantic", "pyyaml", "safetensors"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *needed], check=True)
    return python


def make_worker(model: str, arm: str, scratch: str) -> Worker:
    """The process of a contestant: "trl", or an arm of ours."""
    case = {"model": model, "batch": UPDATE_CASES[model]["batch"], "tokens": TOKENS, "scratch": scratch}
    if arm == "trl":
        return Worker(trl_python(), case | {"side": "trl", "settings": {}})
    return Worker(Path(sys.executable), case | {"side": "ours", "settings": UPDATE_CASES[model]["arms"][arm]})


def curve(arguments) -> None:
    """Scores and KL of 20 updates, every contestant in a process with one thread; rewards need no idle machine."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:

        def run(arm: str) -> list[dict]:
            worker = make_worker("smollm2", arm, scratch)
            rows = [worker.update() for _ in range(arguments.rounds or 20)]
            worker.process.stdin.close()
            return [{"score": row["score"], "kl": row["kl"]} for row in rows]

        arms = dict(zip(CURVES, pool.map(run, CURVES), strict=True))
    store("curve", {"model": "smollm2", "batch": UPDATE_CASES["smollm2"]["batch"], "arms": arms})


def update(arguments) -> None:
    """Seconds and memory of whole updates. TRL collects garbage twice in each, for which its other ratio does not."""
    for name in arguments.models:
        case = UPDATE_CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            workers = {arm: make_worker(name, arm, scratch) for arm in ("trl", *case["arms"])}
            rounds = arguments.rounds or (6 if name == "smollm2" else 30)
            found = take_turns({arm: worker.update for arm, worker in workers.items()}, rounds)
            for worker in workers.values():
                worker.process.stdin.close()
        theirs = [row["seconds"] for row in found["trl"]]
        without = [row["seconds"] - row["gc"] for row in found["trl"]]
        arms = {}
        for arm, rows in found.items():
            own = [row["seconds"] for row in rows]
            parts = {part: statistics.median(row[part] for row in rows) for part in ("sample", "update")}
            arms[arm] = {
                "seconds": spread(own), **parts, "score": statistics.median(own) - sum(parts.values()),
                "peak_mib": rows[-1]["peak_mib"], "tokens": statistics.fmean(row["tokens"] for row in rows),
                "times_faster": spread([a / b for a, b in zip(theirs, own, strict=True)]),
                "times_faster_without_gc": spread([a / b for a, b in zip(without, own, strict=True)]),
                "share_of_memory": rows[-1]["peak_mib"] / found["trl"][-1]["peak_mib"],
                "scores": [row["score"] for row in rows], "kl": [row["kl"] for row in rows],
                "settings": case["arms"].get(arm, {}),
            }  # fmt: skip
        gc = statistics.median(row["gc"] for row in found["trl"])
        store(f"update_{name}", {"model": name, "batch": case["batch"], "rounds": rounds, "trl_gc": gc, "arms": arms})


def llama(vocabulary: int, width: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=1, bos_token_id=None,
    )).eval()  # fmt: skip


def growth(arguments) -> None:
    """One thing larger at a time: sampling against `generate`, and the seconds of an update."""
    base = {"batch": 16, "tokens": 32, "vocabulary": 588, "width": 128, "layers": 4}
    changes = [("base", {})]
    changes += [("batch", {"batch": n}) for n in (4, 64, 256)] + [("tokens", {"tokens": n}) for n in (128, 384)]
    changes += [("model", {"width": 256, "layers": 8}), ("model", {"width": 512, "layers": 12})]
    changes += [("vocabulary", {"vocabulary": n}) for n in (8192, 49152)]
    world, rows = worlds.load("reviews"), []
    for what, change in changes:
        size = base | change
        policy = llama(size["vocabulary"], size["width"], size["layers"])
        prompts = (world.prompts * size["batch"])[: size["batch"]]
        found = take_turns(
            sampling_contestants(policy, world.tokenizer, prompts, size["tokens"]), arguments.rounds or 3
        )
        trainer = PPOTrainer(
            policy, lambda prompts, texts: [float(len(t)) for t in texts], tokenizer=world.tokenizer, device="cpu",
            batch_size=size["batch"], minibatch_size=size["batch"], max_new_tokens=size["tokens"],
            total_episodes=size["batch"] * 9, response_logits_only=True,
        )  # fmt: skip
        seconds = []
        for _ in range((arguments.rounds or 3) + 1):
            start = time.perf_counter()
            trainer.train_step(prompts)
            seconds.append(time.perf_counter() - start)
        rows.append({
            "changed": what, **size, "parameters": sum(p.numel() for p in policy.parameters()),
            "ours": statistics.median(found["ours"]), "generate": statistics.median(found["generate"]),
            "ratio": statistics.median(found["ours"]) / statistics.median(found["generate"]),
            "update_seconds": statistics.median(seconds[1:]),
        })  # fmt: skip
        store("growth", {"rows": rows})


def chapters(arguments) -> None:
    """Seconds of every chapter, profile fast, at `--before` and now; both run at the same time, on a core each."""
    names = sorted(path.stem for path in (ROOT / "chapters").glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        places = {"before": Path(folder) / "before", "now": Path(folder) / "now"}
        for place, commit in zip(places.values(), (arguments.before, "HEAD"), strict=True):
            subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, place], check=True)
            subprocess.run(["git", "checkout", "--quiet", commit], cwd=place, check=True)
        rows = []
        for name in names:
            running = {
                when: subprocess.Popen(
                    [sys.executable, "book/tools/execute.py", name], cwd=place, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(place)},
                )
                for when, place in places.items()
            }  # fmt: skip
            failed = [when for when, process in running.items() if process.wait()]
            if failed:
                raise SystemExit(f"{name} fails {' and '.join(failed)}")
            row = {
                when: json.loads((place / "_build" / "executed" / f"{name}.json").read_text())["seconds"]
                for when, place in places.items()
            }
            rows.append({"chapter": name, **row, "share": row["now"] / row["before"]})
    total = {when: sum(row[when] for row in rows) for when in places}
    store("chapters", {"rows": rows, "total": total, "before_commit": arguments.before})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {
        "limits": limits,
        "sampling": sampling,
        "update": update,
        "curve": curve,
        "growth": growth,
        "chapters": chapters,
    }
    parser.add_argument("command", choices=commands)
    parser.add_argument("--models", nargs="+", default=list(UPDATE_CASES), choices=UPDATE_CASES)
    parser.add_argument("--rounds", type=int, help="that count; by default what the command needs")
    parser.add_argument("--before", default="77f550540afb", help="commit that `chapters` compares with")
    arguments = parser.parse_args(argv)
    commands[arguments.command](arguments)


if __name__ == "__main__":
    main()
