"""The benchmarks' own arithmetic, and that their steps still run."""

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="an installed copy comes without its benchmarks")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in {"harness", "steps", "lookup", "compile_time"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_the_interval_is_that_of_the_order_statistics(load: object) -> None:
    harness: ModuleType = load("harness")  # type: ignore[operator]
    estimate = harness.Estimate.of([float(k) for k in range(40)])
    assert (estimate.median, estimate.low, estimate.high) == (19.5, 13.0, 26.0)  # Conover's table A3, n = 40


def test_a_comparison_tells_twice_the_work(load: object) -> None:
    harness: ModuleType = load("harness")  # type: ignore[operator]
    harness.use_clock("wall")

    def wait(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    found = harness.compare(lambda: wait(2e-4), lambda: wait(4e-4), lambda: (), 30)
    assert found.ratio.low <= 2.2
    assert found.ratio.high >= 1.8
    assert found.calls[0] > found.calls[1]


def test_a_verdict_knows_its_direction(load: object) -> None:
    harness: ModuleType = load("harness")  # type: ignore[operator]
    assert harness.Verdict("speed", 2.6, 2.5, at_least=True).holds
    assert not harness.Verdict("time", 1.2, 1.05).holds


@pytest.mark.parametrize("name", ["xor", "cnn"])
def test_our_step_trains(load: object, name: str) -> None:
    steps: ModuleType = load("steps")  # type: ignore[operator]
    training = getattr(steps, name)()
    x, y = training.inputs()
    losses = [training.ours(x, y) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert torch.isfinite(losses[-1])
