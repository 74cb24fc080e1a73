"""A small model computes with one thread, unless somebody chose; a large one with as many as torch chose."""

import logging

import pytest
import torch
from torch import nn

from ppo_lib import worlds
from ppo_lib.ppo import PPOTrainer
from ppo_lib.running import threads


class OfSize(nn.Module):
    """A model of so many parameters, none of which takes memory for long."""

    def __init__(self, parameters: int, device="cpu"):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device).expand(parameters), requires_grad=False)


SMALL, LARGE = OfSize(threads.SMALL - 1), OfSize(threads.SMALL)


@pytest.fixture(autouse=True)
def two_by_default(monkeypatch):
    """A machine of two cores on which nobody has chosen; its number of threads is put back afterwards."""
    before = torch.get_num_threads()
    for name in threads.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_by_default", 2)
    monkeypatch.setattr(threads, "_lowered", False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_largest_model_decides_and_a_larger_one_gets_its_threads_back():
    assert threads.settle_threads(SMALL, None) == torch.get_num_threads() == 1, "a small model has threads that wait"
    assert threads.settle_threads(SMALL, LARGE) == torch.get_num_threads() == 2, "a large model is left with one thread"
    assert threads.settle_threads(LARGE) == 2, "a large model's threads are taken away"
    assert threads.settle_threads() == torch.get_num_threads() == 1, "without a model there are threads that wait"


@pytest.mark.parametrize("name", threads.CHOSEN)
def test_a_variable_of_the_environment_chooses(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    assert threads.settle_threads(SMALL) == torch.get_num_threads() == 2, f"threads chosen by {name} are overruled"


def test_set_num_threads_chooses():
    torch.set_num_threads(3)
    assert threads.settle_threads(SMALL) == torch.get_num_threads() == 3, "a number that was set is overruled"
    torch.set_num_threads(1)
    assert threads.settle_threads(LARGE) == torch.get_num_threads() == 1, "one thread that was set is overruled"


def test_a_gpu_leaves_the_cpu_alone():
    assert threads.settle_threads(OfSize(10, device="meta")) == torch.get_num_threads() == 2, (
        "a model that is not on the CPU changes the CPU's threads"
    )


def test_the_choice_is_told_once_in_the_log(caplog):
    with caplog.at_level(logging.INFO, logger="ppo_lib"):
        for _ in range(3):
            threads.settle_threads(SMALL)
    assert [record.message for record in caplog.records] == [
        f"1 of 2 CPU threads for {threads.SMALL - 1} parameters (OMP_NUM_THREADS chooses)"
    ], "the choice of threads is not told, is told again where nothing changes, or with wrong numbers"


def test_worlds_and_trainers_choose():
    worlds.load("reviews")
    assert torch.get_num_threads() == 1, "an embedded world is read with threads that wait"
    torch.set_num_threads(2)
    PPOTrainer(device="cpu")
    assert torch.get_num_threads() == 1, "a trainer of a small model has threads that wait"
