"""What only a GPU can show: recorded steps, mixed precision with scaled gradients, runs that stay on the device."""

import pytest
import torch

from ppo_lib import ppo_v1, ppo_v2
from ppo_lib.models import model_inputs
from ppo_lib.rollout import encode_prompts, logprobs_of, response_logits, sample
from ppo_lib.running.memory import add_adapters, freeze_in
from ppo_lib.sampling.choice import decoder_for
from ppo_lib.sampling.decoding import LlamaDecoder
from ppo_lib.sampling.graphs import GraphDecoder
from ppo_lib.worlds import load
from tests.unit.tiny import PROMPTS, byte_tokenizer, likely_eos, tiny_policy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def on_gpu(**settings):
    return tiny_policy("llama", **settings).to("cuda")


@torch.no_grad()
def test_recorded_steps_equal_whole_passes():
    policy = on_gpu(num_key_value_heads=2)
    ids, mask = (x.to("cuda") for x in encode_prompts(byte_tokenizer(), PROMPTS * 4))
    assert decoder_for(policy) is GraphDecoder, "on a GPU no step is recorded"
    decoder = GraphDecoder(policy, ids, mask, 20)
    for step in range(20):
        whole = policy(**model_inputs(policy, ids, mask.long()), use_cache=False).logits[:, -1]
        assert (decoder.logits - whole).abs().max() < 1e-3, f"step {step} computes other logits"
        if step in (3, 6):
            rows = torch.tensor([3, 0, 1] if step == 3 else [2, 0], device="cuda")
            decoder.keep(rows)
            ids, mask = ids[rows], mask[rows]
        tokens = torch.randint(256, (len(ids),), device="cuda")
        decoder.append(tokens)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens, dtype=torch.bool)[:, None]], dim=1)


def test_a_gpu_samples_what_a_cpu_samples():
    tokenizer = byte_tokenizer()
    policy = likely_eos(tiny_policy("llama"))
    for _ in range(2):  # the second time the steps are replayed, with other weights
        runs = {}
        for device in ("cpu", "cuda"):
            policy.to(device)
            runs[device] = sample(policy, tokenizer, PROMPTS * 8, 12, generator=torch.Generator().manual_seed(4))
        here, there = runs["cpu"], runs["cuda"].to("cpu")
        same = [a == b for a, b in zip(here.responses, there.responses, strict=True)]
        assert sum(same) >= 0.9 * len(same), "the GPU samples other responses"
        with torch.no_grad():
            full = logprobs_of(response_logits(policy, runs["cuda"]), runs["cuda"].response_ids)
            gap = (full - runs["cuda"].logprobs)[runs["cuda"].mask].abs().max()
            for parameter in policy.parameters():
                parameter.mul_(1.3)
        assert gap < 1e-3, "log-probs are not those of the policy"


def test_recorded_steps_follow_the_policys_distribution():
    policy, tokenizer = on_gpu(vocab_size=258, sharpness=2.0), byte_tokenizer()
    found = sample(policy, tokenizer, PROMPTS[:1] * 6000, 2, 0.9, torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = torch.softmax(response_logits(policy, found, 0.9).double(), dim=-1)
    for t in (0, 1):
        expected = exact[found.mask[:, t], t].sum(dim=0)
        counts = torch.bincount(found.response_ids[found.mask[:, t], t], minlength=258).double()
        common = expected >= 5
        chi2 = ((counts - expected) ** 2 / expected)[common].sum()
        freedom = int(common.sum())
        assert chi2 < freedom + 5 * (2 * freedom) ** 0.5, f"token {t} does not follow the distribution"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapters", [False, True])
def test_half_precision_and_adapters(dtype, adapters):
    world = load("reviews")
    policy = world.model.to("cuda")
    if adapters:
        add_adapters(policy, 4, 8.0, seed=0)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    with torch.no_grad(), torch.autocast("cuda", dtype):
        assert decoder_for(policy) is GraphDecoder
        found = sample(policy, world.tokenizer, world.prompts[:32], 24, generator=torch.Generator().manual_seed(0))
        full = logprobs_of(response_logits(policy, found), found.response_ids)
    gap = (full - found.logprobs)[found.mask].abs()
    assert gap.mean() < 0.02, f"log-probs differ by {gap.mean():.3g} in the mean"


def test_adapters_on_weights_in_half_precision_are_not_merged():
    policy = load("reviews").model.to("cuda")
    add_adapters(policy, 4, 8.0, seed=0)
    freeze_in(policy, torch.bfloat16)
    assert decoder_for(policy) is LlamaDecoder, "adapters are rounded to half precision"


@pytest.mark.parametrize("settings", [
    {}, {"mixed_precision": "bf16"}, {"mixed_precision": "fp16"}, {"share_trunk": True, "logits_chunk": 128},
    {"lora_rank": 8, "learning_rate": 5e-3, "mixed_precision": "bf16", "frozen_dtype": "bfloat16",
     "activation_checkpointing": True},
], ids=["plain", "bf16", "fp16", "one trunk", "adapters"])  # fmt: skip
@pytest.mark.parametrize("trainer_class", [ppo_v1.PPOTrainer, ppo_v2.PPOTrainerWithReplay])
def test_training_on_the_gpu_learns(trainer_class, settings):
    world = load("reviews")
    trainer = trainer_class("reviews", device="cuda", **({"total_episodes": 640, "learning_rate": 1e-3} | settings))
    trainer.train(world.prompts)
    scores = [row["objective/scores"] for row in trainer.history]
    tenth = len(scores) // 5
    assert sum(scores[-tenth:]) / tenth > sum(scores[:tenth]) / tenth + 0.15, f"no better with {settings}"


def test_a_run_on_the_gpu_resumes_where_it_was(tmp_path):
    world, settings = load("reviews"), {"device": "cuda", "total_episodes": 160, "save_every": 2}
    whole = ppo_v1.PPOTrainer("reviews", output_dir=str(tmp_path / "whole"), **settings)
    whole.train(world.prompts)
    broken = ppo_v1.PPOTrainer("reviews", output_dir=str(tmp_path / "broken"), **settings)
    broken.train(world.prompts, callback=lambda trainer, rollout, metrics: len(trainer.history) == 3)
    resumed = ppo_v1.PPOTrainer("reviews", resume_from_checkpoint=tmp_path / "broken", device="cuda")
    resumed.train(world.prompts)
    for name in ("objective/scores", "objective/kl"):
        before, after = ([row[name] for row in t.history] for t in (whole, resumed))
        assert after == pytest.approx(before, abs=1e-4), f"{name} goes on otherwise after a resume"
