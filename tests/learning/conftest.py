"""What all learning tests share."""

import json

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small run faster without a thread pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Thresholds:
    """Thresholds of learning; how far each was passed goes into the test's report, which `make sturdy` stores."""

    def __init__(self, record_property):
        self.record_property = record_property

    def above(self, value: float, threshold: float, what: str) -> None:
        self._note(value, threshold, what, above=True)
        assert value > threshold, f"{what} is {value:.2f}, not above {threshold}"

    def below(self, value: float, threshold: float, what: str) -> None:
        self._note(value, threshold, what, above=False)
        assert value < threshold, f"{what} is {value:.2f}, not below {threshold}"

    def _note(self, value: float, threshold: float, what: str, above: bool) -> None:
        note = {"what": what, "value": float(value), "threshold": threshold, "above": above}
        self.record_property("margin", json.dumps(note))


@pytest.fixture
def threshold(record_property):
    return Thresholds(record_property)
