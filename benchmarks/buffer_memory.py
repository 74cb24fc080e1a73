"""What a replay buffer takes: `ReplayBuffer.nbytes`, the memory that the process grows by, and whole tensors instead.

    python benchmarks/buffer_memory.py

Each response length runs in processes of its own, one for each way to store. `buffer` is ppo_lib's;
`whole` keeps each response as TRL's replay buffer for GRPO does (`trl/experimental/grpo_with_replay_buffer`): prompt
and response with their masks as 64-bit integers, and two log-probabilities a token. Every response is as long as can
be, every prompt has 64 tokens. Growth is that of memory which is no file's (RssAnon), from before the first response
to after the last.
"""

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch
from record import RESULTS, provenance, write_json

from ppo_lib import worlds
from ppo_lib.replay import ReplayBuffer
from ppo_lib.rollout import Rollout

RESULT = RESULTS / "buffer_memory"
LENGTHS = (24, 128, 512, 1024)  # max_new_tokens
RESPONSES = 8000
PROMPT = 64  # tokens
ROWS = 8  # responses in a rollout
PROMPTS = [f"Prompt {number}" for number in range(64)]  # the dataset's, not copied by either way


def anonymous() -> int:
    """Bytes of this process's memory that belong to no file."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def rollout(length: int, number: int) -> Rollout:
    """Fresh responses with every tensor filled that is stored."""
    generator = torch.Generator().manual_seed(number)
    shape = (ROWS, length)
    return Rollout(
        prompts=[PROMPTS[(number * ROWS + row) % len(PROMPTS)] for row in range(ROWS)],
        responses=[""] * ROWS,
        prompt_ids=torch.randint(1, 500, (ROWS, PROMPT), generator=generator),
        prompt_mask=torch.ones(ROWS, PROMPT, dtype=torch.bool),
        response_ids=torch.randint(1, 500, shape, generator=generator),
        mask=torch.ones(shape, dtype=torch.bool),
        ended=torch.ones(ROWS, dtype=torch.bool),
        logprobs=-torch.rand(shape, generator=generator),
        ref_logprobs=-torch.rand(shape, generator=generator),
        scores=torch.rand(ROWS, generator=generator),
    )


def whole(batch: Rollout) -> list[dict]:
    """Each response of `batch` as a dictionary of tensors that belong to it alone."""
    fields = {
        "prompt_ids": batch.prompt_ids,
        "prompt_mask": batch.prompt_mask.long(),
        "completion_ids": batch.response_ids,
        "completion_mask": batch.mask.long(),
        "old_per_token_logps": batch.logprobs,
        "ref_per_token_logps": batch.ref_logprobs,
    }
    return [
        {name: tensor[row].clone() for name, tensor in fields.items()} | {"advantages": batch.scores[row].item()}
        for row in range(len(batch))
    ]


def measure(way: str, length: int) -> dict:
    """Store `RESPONSES` responses of `length` tokens in this process."""
    torch.set_num_threads(1)
    tokenizer = worlds.load("reviews").tokenizer
    warm_up = ReplayBuffer(ROWS, length, tokenizer)
    for number in range(8):  # so that the allocator's own needs are not counted
        warm_up.add(rollout(length, number), 1)
        whole(rollout(length, number))
    before, kept = anonymous(), []
    if way == "buffer":
        buffer = ReplayBuffer(RESPONSES, length, tokenizer)
        reserved = buffer.nbytes
    for number in range(RESPONSES // ROWS):
        if way == "buffer":
            buffer.add(rollout(length, number), number)
        else:
            kept.extend(whole(rollout(length, number)))
    grown = anonymous() - before
    if way == "buffer":
        assert len(buffer) == RESPONSES and buffer.nbytes == reserved, "the buffer grew"
        computed = reserved
    else:
        assert len(kept) == RESPONSES
        tensors = [value for value in kept[0].values() if isinstance(value, torch.Tensor)]
        computed = RESPONSES * sum(tensor.nbytes for tensor in tensors)
    return {
        "way": way,
        "max_new_tokens": length,
        "computed_bytes_per_1000": computed * 1000 // RESPONSES,
        "measured_bytes_per_1000": grown * 1000 // RESPONSES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, length = arguments.measure
        print(json.dumps(measure(way, int(length))))
        return
    rows = []
    for length in LENGTHS:
        for way in ("buffer", "whole"):
            command = [sys.executable, __file__, "--measure", way, str(length)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    settings = {"responses": RESPONSES, "prompt_tokens": PROMPT, "rows_per_rollout": ROWS}
    write_json(RESULT / "measured.json", {"rows": rows, "settings": settings, **provenance()})


if __name__ == "__main__":
    main()
