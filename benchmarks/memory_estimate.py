"""Compare `ppo_lib.commands.memory_estimate` with what a run really takes; estimate each preset for some known models.

    python benchmarks/memory_estimate.py                # measures what is not stored yet
    python benchmarks/memory_estimate.py --only v0      # measures one setting again

Each setting trains SmolLM2-135M for one update of several optimiser steps in a process of its own, on the CPU. Its peak
is the largest resident set size after loading (the system's counter is reset then), less what the imports took.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from record import RESULTS, provenance, write_json

from ppo_lib.commands.memory_estimate import MODELS, estimate_memory, memory_by_moment
from ppo_lib.config import PPOConfigV1
from ppo_lib.ppo_v1 import PPOTrainer

RESULT = RESULTS / "memory_estimate"
SHORT = {"max_new_tokens": 32, "num_ppo_epochs": 2, "device": "cpu"}
EIGHT = {"batch_size": 8, "minibatch_size": 8, **SHORT}
SETTINGS = {
    "v0": EIGHT,
    "response_logits_only": EIGHT | {"response_logits_only": True},
    "activation_checkpointing": EIGHT | {"activation_checkpointing": True},
    "accumulation": {"batch_size": 2, "minibatch_size": 2, "gradient_accumulation_steps": 4, **SHORT},
    "mixed_precision": EIGHT | {"mixed_precision": "bf16"},
    "lora": EIGHT | {"lora_rank": 16},
    "8gb": {"preset": "8gb", **SHORT, "max_new_tokens": 8},
    "16gb": {"preset": "16gb", **SHORT, "max_new_tokens": 8},
    "32gb": {"preset": "32gb", **SHORT, "max_new_tokens": 8},
}
TOKENS = 256  # of the prompt, and of the response
BUDGETS = (  # GB of the GPU, preset, model
    (8, "8gb", "SmolLM2-135M"),
    (8, "8gb", "Qwen2.5-0.5B"),
    (8, "8gb", "Llama-3.2-1B"),
    (16, "16gb", "SmolLM2-135M"),
    (16, "16gb", "Qwen2.5-0.5B"),
    (16, "16gb", "Llama-3.2-1B"),
    (32, "16gb", "Llama-3.2-3B"),
    (32, "32gb", "SmolLM2-135M"),
    (32, "32gb", "Qwen2.5-0.5B"),
)


def config_of(name: str) -> PPOConfigV1:
    settings = dict(SETTINGS[name])
    preset = settings.pop("preset", None)
    config = PPOConfigV1.preset(preset, **settings) if preset else PPOConfigV1(**settings)
    settings["total_episodes"] = config.rollout_size
    return PPOConfigV1.preset(preset, **settings) if preset else PPOConfigV1(**settings)


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(name: str) -> dict:
    """One update in this process."""
    import peft  # noqa: F401  what the imports take is no part of a run

    from ppo_lib.worlds import smollm2

    config, seen = config_of(name), {}
    imports = resident("VmRSS")
    world = smollm2.load()
    trainer = PPOTrainer(world.model, world.reward, tokenizer=world.tokenizer, config=config)
    prompt = world.prompts[0]
    del world
    loading = resident("VmHWM") - imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew from here
    loaded = resident("VmRSS") - imports

    def note(trainer, rollout, metrics):
        seen["prompt_length"], seen["response_length"] = rollout.prompt_ids.shape[1], rollout.response_ids.shape[1]

    trainer.train([prompt], callback=note)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports
    return {"imports": imports, "loading_peak": loading, "loaded": loaded, "update_peak": peak, **seen}


def compared(name: str, measured: dict) -> dict:
    """What was measured beside the estimate for the same prompt and response lengths."""
    from transformers import AutoConfig

    from ppo_lib.worlds import smollm2

    config = config_of(name)
    config.max_new_tokens = measured["response_length"]
    model = AutoConfig.from_pretrained(smollm2.converted_folder())
    moments = memory_by_moment(config, model, measured["prompt_length"])
    parts = estimate_memory(config, model, measured["prompt_length"])
    total = sum(parts.values())
    return {
        "setting": name,
        **measured,
        "estimate": total,
        "estimate_over_measured": round(total / measured["update_peak"], 3),
        "parts": parts,
        "moments": {moment: sum(values.values()) for moment, values in moments.items()},
        "settings": SETTINGS[name],
    }


def preset_rows() -> list[dict]:
    """Each preset for the models it is budgeted for."""
    rows = []
    for gpu, preset, model in BUDGETS:
        parts = estimate_memory(PPOConfigV1.preset(preset, max_new_tokens=TOKENS), MODELS[model], TOKENS)
        gigabytes = {part: round(size / 1e9, 2) for part, size in parts.items()}
        row = {"gpu_gb": gpu, "preset": preset, "model": model, "prompt_length": TOKENS, "max_new_tokens": TOKENS}
        rows.append({**row, **gigabytes, "total": round(sum(parts.values()) / 1e9, 2)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SETTINGS, action="append", help="measure this setting again")
    parser.add_argument("--presets", action="store_true", help="only the estimates of the presets")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    if not arguments.presets:
        stored = json.loads((RESULT / "measured.json").read_text()) if (RESULT / "measured.json").exists() else {}
        measured = {row["setting"]: row for row in stored.get("rows", [])}
        for name in SETTINGS:
            if name in measured and name not in (arguments.only or ()) or arguments.only and name not in arguments.only:
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--measure", name], capture_output=True, text=True, env=os.environ
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            row = compared(name, json.loads(done.stdout.splitlines()[-1]))
            print(name, {k: v for k, v in row.items() if k not in ("settings", "moments")}, flush=True)
            measured[name] = row
            rows = [measured[name] for name in SETTINGS if name in measured]
            write_json(RESULT / "measured.json", {"rows": rows, **provenance("peft")})
    if not arguments.only:
        write_json(RESULT / "presets.json", {"rows": preset_rows(), **provenance("peft")})


if __name__ == "__main__":
    main()
