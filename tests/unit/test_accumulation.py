"""Micro-batches: however a minibatch is cut, the gradient and the metrics are those of the whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.lab.claims import path_length, rounding
from ppo_lib.running import memory
from tests.unit.runs_v1 import HELD_OUT, PROMPTS, assert_same_run, estimated, make, weights
from tests.unit.tiny import hand_rollout

MEMORY_RAN_OUT = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8 bytes. Error code 12 (Cannot allocate memory)",
]


def minibatch(lengths, seed=0):
    """Random rows of these response lengths, off the present policy, so that every term of the loss has a gradient."""
    rollout = hand_rollout(lengths, [True] * len(lengths), width=max(lengths), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    rollout.advantages, rollout.returns = (torch.randn(rollout.mask.shape, generator=generator) for _ in range(2))
    return rollout


def gradients(ppo):
    parameters = [*ppo.policy.parameters(), *ppo.critic.parameters()]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def assert_same_gradient(ppo, whole, mistake):
    """As `whole`, but for the rounding of the way there and back through the model."""
    error = (gradients(ppo) - whole).abs().max()
    bound = rounding(whole, terms=2 * path_length(ppo.policy, length=20))
    assert error <= bound, f"{mistake}: the gradient is off by {error / whole.abs().max():.1e}"


_shared = []


def shared_trainer():
    """One trainer for all examples: `accumulate` moves no weight."""
    if not _shared:
        ppo = make(entropy_coef=0.3, max_grad_norm=1e9)
        torch.nn.init.normal_(ppo.critic.value_head.weight, generator=torch.Generator().manual_seed(0))
        _shared.append(ppo)
    return _shared[0]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(1, 6), st.integers(0, 99))
def test_the_split_changes_neither_gradient_nor_metrics(lengths, size, seed):
    ppo, rows = shared_trainer(), minibatch(lengths, seed)
    whole_metrics = ppo.accumulate(rows, len(rows))
    whole = gradients(ppo)
    split_metrics = ppo.accumulate(rows, size)
    assert_same_gradient(ppo, whole, "the gradient depends on the micro-batches")
    for name, value in whole_metrics.items():
        how = (
            "squares within the parts (n − 1 each) and between them" if name.endswith("_var") else "tokens of the parts"
        )
        assert split_metrics[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), (
            f"{name} depends on the micro-batches: it is not joined by the {how}"
        )


def test_micro_batches_weigh_as_much_as_they_have_tokens():
    ppo, rows = shared_trainer(), minibatch([1, 6])
    whole_metrics = ppo.accumulate(rows, 2)
    whole = gradients(ppo)
    split_metrics = ppo.accumulate(rows, 1)
    assert_same_gradient(ppo, whole, "accumulation takes a mean of means")
    mine, expected = (metrics["loss/value_avg"].item() for metrics in (split_metrics, whole_metrics))
    assert mine == pytest.approx(expected, rel=1e-4), "metrics of micro-batches are not weighted by their tokens"


def test_a_micro_batch_of_one_token_has_no_variance_of_its_own():
    ppo, rows = shared_trainer(), minibatch([1, 1, 1])
    split = ppo.accumulate(rows, 1)["val/ratio_var"].item()
    whole = ppo.accumulate(rows, 3)["val/ratio_var"].item()
    assert split > 0 and split == pytest.approx(whole, rel=1e-4), "val/ratio_var leaves out the spread between parts"


def test_each_step_starts_from_no_gradient():
    ppo, rows = shared_trainer(), minibatch([3, 5])
    ppo.accumulate(rows, 1)
    once = gradients(ppo)
    ppo.accumulate(rows, 1)
    assert torch.equal(gradients(ppo), once), "gradients of earlier steps pile up: zero them before each step"


def test_at_most_a_micro_batch_has_gradients_at_a_time():
    ppo, rows = make(batch_size=2, minibatch_size=1, gradient_accumulation_steps=4, total_episodes=8), []
    sound = ppo.loss
    ppo.loss = lambda minibatch: rows.append(len(minibatch)) or sound(minibatch)
    ppo.step(estimated(ppo))
    assert set(rows) == {1}, f"more than `minibatch_size` responses are in memory with gradients: {rows}"


# memory that runs out


def run_out_above(limit, name, monkeypatch, ppo, text, grad):
    """`ppo.name` cannot take more than `limit` responses at a time, with gradients or without."""
    sound, sizes = getattr(ppo, name), []

    def fails(*arguments):
        *_, rows = [argument for argument in arguments if hasattr(argument, "__len__")]
        if torch.is_grad_enabled() == grad:
            sizes.append(len(rows))
            if len(rows) > limit:
                raise RuntimeError(text)
        return sound(*arguments)

    monkeypatch.setattr(ppo, name, fails)
    return sizes


@pytest.mark.parametrize("text", MEMORY_RAN_OUT)
def test_a_micro_batch_that_does_not_fit_is_halved(text, monkeypatch):
    plain, ppo = make(), make()
    plain.micro_batch.size = ppo.micro_batch.size = 8
    rollout = estimated(plain)
    expected = plain.step(rollout)
    run_out_above(2, "logits", monkeypatch, ppo, text, grad=True)
    with pytest.warns(UserWarning) as warned:
        metrics = ppo.step(estimated(ppo))
    said = [str(warning.message) for warning in warned if "out of memory" in str(warning.message)]
    assert said == [f"out of memory: training now takes {size} responses at a time" for size in (4, 2)], (
        "a micro-batch that does not fit is not halved with a warning"
    )
    assert ppo.micro_batch.size == 2, "the size that fits is forgotten"
    moved = weights(ppo)
    for name, weight in weights(plain).items():
        assert torch.allclose(moved[name], weight, atol=1e-5), "after memory ran out the step is another one"
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), f"after memory ran out {name} is another"


def test_sampling_that_does_not_fit_starts_again_from_the_same_random_numbers(monkeypatch):
    plain, ppo = make(batch_size=8, total_episodes=24), make(batch_size=8, total_episodes=24)
    plain.forward_batch.size = 2
    expected = plain.collect(PROMPTS * 2).responses
    fit = memory.FittingSize.fit

    def fails_above_two(self, work):
        """Memory runs out at the end of a piece of work, when its random numbers are already drawn."""

        def limited(size):
            result = work(size)
            if size > 2:
                raise RuntimeError(MEMORY_RAN_OUT[0])
            return result

        return fit(self, limited)

    monkeypatch.setattr(memory.FittingSize, "fit", fails_above_two)
    said = "out of memory: sampling and scoring now takes {} responses"
    with pytest.warns(UserWarning, match=said.format(4)), pytest.warns(UserWarning, match=said.format(2)):
        responses = ppo.collect(PROMPTS * 2).responses
    assert responses == expected, "random numbers drawn before memory ran out are lost: restore the generator"
    assert torch.equal(plain.generator.get_state(), ppo.generator.get_state()), "training's generator is elsewhere"


def test_parts_of_a_rollout_are_the_rollout():
    """Sampling and scoring in parts keep the order of the rows, and what each token's probability is."""
    ppo = make(batch_size=8, total_episodes=24)
    ppo.forward_batch.size = 3
    rollout = estimated(ppo)
    assert rollout.prompts == PROMPTS * 2, "parts are put together in another order"
    parts = rollout.ref_logprobs, rollout.values
    ppo.forward_batch.size = 8
    with torch.no_grad():
        whole = ppo.reference_logprobs(rollout), ppo.values(rollout)
    for mine, expected in zip(parts, whole, strict=True):
        assert torch.allclose(mine, expected, atol=1e-4), "in parts, values or reference log-probs are others"
    with torch.no_grad():
        _, metrics = ppo.loss(rollout)
    assert metrics["val/ratio"].item() == pytest.approx(1.0, abs=1e-4), "in parts, the log-probs are not π_old's"
    longest = ppo.respond(HELD_OUT * 4, torch.Generator().manual_seed(0), greedy=True).responses
    assert longest == longest[:2] * 4, "the same prompt is answered differently in another part"


def test_one_response_that_does_not_fit_ends_the_run_with_advice(monkeypatch):
    ppo = make()
    run_out_above(0, "logits", monkeypatch, ppo, MEMORY_RAN_OUT[0], grad=True)
    with pytest.warns(UserWarning, match="training now takes 1"), pytest.raises(RuntimeError) as caught:
        ppo.train(PROMPTS)
    said = "".join(caught.value.__notes__)
    assert "even one response at a time does not fit: set `activation_checkpointing`" in said, "no advice is given"


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    sizes = []

    def work(size):
        sizes.append(size)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        memory.FittingSize("training", 4).fit(work)
    assert sizes == [4], "an error that has nothing to do with memory is tried again"


def test_accumulation_repeats_itself():
    runs = [make(minibatch_size=1, gradient_accumulation_steps=2, total_episodes=16) for _ in range(2)]
    for ppo in runs:
        ppo.train(PROMPTS)
    assert_same_run(*runs, "the same seed gave another run with accumulation")
    assert all(math.isfinite(value) for row in runs[0].history for value in row.values()), "a metric is not finite"
