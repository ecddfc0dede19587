"""What no guard can compare is refused where the traced function reads it: by whom, on which line, and what to do."""

import datetime
import logging
import os
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import random as draw
from random import uniform
from time import perf_counter as clock
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pullback
from pullback import CaptureError

X = torch.tensor([1.0, 2.0, 3.0])
python_generator = random.Random(3)
numpy_generator = np.random.default_rng(0)
legacy_generator = np.random.RandomState(0)
torch_generator = torch.Generator()
DRAW, PASS, SEED = "Draw with PyTorch", "pass it as an argument", "Seed outside"


def callee() -> float:
    return random.gauss(0.0, 1.0)


class Noisy(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * np.random.normal()  # noqa: NPY002


noisy = Noisy()


@dataclass(frozen=True)
class Read:
    """A function, and what its refusal says."""

    f: Callable[[Tensor], Any]
    said: str
    place: Callable[..., Any] | None = None  # where it stands, if not in f itself


READS = {
    "random": Read(lambda x: (x * random.random()).sum(), f"draws Python's random numbers.*{DRAW}"),
    "an imported name": Read(lambda x: (x * draw()).sum(), f"draws Python's random numbers.*{DRAW}"),
    "a method under a name": Read(lambda x: (x * uniform(0, 1)).sum(), f"draws Python's random numbers.*{DRAW}"),
    "choice": Read(lambda x: (x * random.choice([1, 2])).sum(), f"draws Python's random numbers.*{DRAW}"),
    "shuffle": Read(lambda x: (random.shuffle([1, 2, 3]), x.sum())[1], f"draws Python's random numbers.*{DRAW}"),
    "in a callee": Read(lambda x: (x * callee()).sum(), f"draws Python's random numbers.*{DRAW}", callee),
    "a generator of one's own": Read(lambda x: (x * python_generator.random()).sum(), f"python_generator.*{DRAW}"),
    "a generator made inside": Read(lambda x: (x * random.Random().random()).sum(), "seeds a generator by the system"),
    "NumPy's": Read(lambda x: (x * np.random.rand()).sum(), f"draws NumPy's random numbers.*{DRAW}"),  # noqa: NPY002
    "NumPy's in a module": Read(lambda x: noisy(x).sum(), f"NumPy's random numbers.*{DRAW}", Noisy.forward),
    "NumPy's generator": Read(lambda x: (x * numpy_generator.normal()).sum(), f"numpy_generator.*{DRAW}"),
    "NumPy's old generator": Read(lambda x: (x * legacy_generator.rand()).sum(), f"legacy_generator.*{DRAW}"),
    "NumPy's new one": Read(lambda x: (x * np.random.default_rng().normal()).sum(), f"of the system.*{PASS}"),
    "the system": Read(lambda x: (x * os.urandom(1)[0]).sum(), rf"system \(urandom\).*{PASS}"),
    "uuid": Read(lambda x: (x * (uuid.uuid4().int % 7)).sum(), rf"system \(urandom\).*{PASS}"),
    "secrets": Read(lambda x: (x * secrets.randbelow(7)).sum(), rf"system \(urandom\).*{PASS}"),
    "time": Read(lambda x: (x * time.time()).sum(), rf"reads the time \(time\).*{PASS}"),
    "a clock": Read(lambda x: (x * time.monotonic()).sum(), rf"reads the time \(monotonic\).*{PASS}"),
    "a clock under a name": Read(lambda x: (x * clock()).sum(), rf"reads the time \(perf_counter\).*{PASS}"),
    "now": Read(lambda x: (x * datetime.datetime.now().hour).sum(), rf"reads the time \(datetime.now\).*{PASS}"),
    "today": Read(lambda x: (x * date.today().day).sum(), rf"reads the time \(date.today\).*{PASS}"),
    "the environment": Read(lambda x: (x * float(os.environ["SCALE"])).sum(), f"variable 'SCALE'.*{PASS}"),
    "getenv": Read(lambda x: (x * float(os.getenv("SCALE", "1"))).sum(), f"variable 'SCALE'.*{PASS}"),
    "a file": Read(lambda x: (x * len(open(__file__).read())).sum(), rf"reads a file.*\(open\).*{PASS}"),  # noqa: SIM115
    "a path": Read(lambda x: (x * len(Path(__file__).read_text())).sum(), rf"reads a file.*\(open\).*{PASS}"),
    "a seed": Read(lambda x: (torch.manual_seed(0), (x * torch.rand(3)).sum())[1], f"seeds PyTorch's.*{SEED}"),
    "a seed of a generator": Read(
        lambda x: (torch_generator.manual_seed(0), (x * torch.rand(3, generator=torch_generator)).sum())[1],
        f"seeds PyTorch's.*{SEED}",
    ),
}


def states() -> tuple[Any, ...]:
    legacy = legacy_generator.get_state()[1].tolist()
    return random.getstate(), python_generator.getstate(), str(numpy_generator.bit_generator.state), legacy


@pytest.mark.parametrize("name", READS)
def test_it_is_refused_with_the_line_and_the_way_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALE", "2")
    read, before = READS[name], states()
    with pytest.raises(CaptureError, match=f"(?s)^f .*{read.said}") as refused:
        pullback.grad(read.f)(X)
    first = (read.place or read.f).__code__.co_firstlineno
    assert any(f"{__file__}:{first + k}" in str(refused.value) for k in range(2)), refused.value
    assert threading.active_count() > 1 or states() == before, "what was refused has drawn nothing"
    assert sys.getprofile() is None
    assert sys.gettrace() is None


@pytest.mark.parametrize("name", ["random", "NumPy's generator", "time", "the environment"])
def test_it_is_refused_inside_another_transform(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALE", "2")
    inner = pullback.grad(READS[name].f)
    for outer in (pullback.grad(lambda x: inner(x).sum()), lambda x: torch.func.vmap(inner)(x[:, None])):
        with pytest.raises(CaptureError, match=f"(?s){READS[name].said}"):
            outer(X)


def logs(x: Tensor) -> Tensor:
    logging.getLogger("test_impurity").warning("the logger reads a clock for itself")
    return x.sin().sum()


PURE = {
    "PyTorch's random numbers": lambda x: (x * torch.rand(3)).sum(),
    "a seeded generator made inside": lambda x: (x * np.random.default_rng(0).normal()).sum(),
    "a seeded generator of Python's": lambda x: (x * random.Random(0).random()).sum(),
    "a logger": logs,
    "an attribute called time": lambda x: (x * pytest.approx(1.0).expected + len("time")).sum(),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False).sum(),
}


@pytest.mark.parametrize("name", PURE)
def test_what_is_the_same_at_every_call_or_read_by_libraries_is_left_alone(name: str) -> None:
    gradient = pullback.grad(PURE[name])
    assert gradient(X).shape == X.shape
    assert gradient(X).shape == X.shape


def test_an_iterator_is_refused() -> None:
    numbers = iter([1.0, 2.0])

    def f(x: Tensor) -> Tensor:
        return (x * next(numbers)).sum()

    line = f.__code__.co_firstlineno
    with pytest.raises(CaptureError, match=rf"f \(.*:{line}\) reads f:numbers, a list_iterator.*pass what it gives"):
        pullback.grad(f)(X)
    assert next(numbers) == 1.0


def test_an_iterator_that_is_not_named_is_left_alone() -> None:
    class Owner:
        scale = 2.0

        def __init__(self) -> None:
            self.batches = iter([1.0, 2.0])

        def loss(self, x: Tensor) -> Tensor:
            return (x * self.scale).sum()

    torch.testing.assert_close(pullback.grad(Owner().loss)(X), torch.full_like(X, 2.0))


def test_another_thread_may_read_what_it_likes_meanwhile() -> None:
    stop, failures = threading.Event(), []

    def work() -> None:
        generator = random.Random(0)
        try:
            while not stop.is_set():
                time.time(), generator.random(), np.random.default_rng(0).normal(), os.environ.get("SCALE")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for k in range(10):
            gradient = pullback.grad(lambda x, k=k: (x * k).sum() + 0 * len("time"))
            torch.testing.assert_close(gradient(X), torch.full_like(X, k))
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_another_thread_that_draws_is_not_taken_for_the_function() -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            random.random(), np.random.rand(), torch.rand(2)  # noqa: NPY002

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    try:
        for k in range(10):
            gradient = pullback.grad(lambda x, k=k: (x * k).sum())
            torch.testing.assert_close(gradient(X), torch.full_like(X, k))
        with pytest.raises(CaptureError, match="draws Python's random numbers"):
            pullback.grad(lambda x: (x * random.random()).sum())(X)
    finally:
        stop.set()
        [thread.join() for thread in threads]


def test_a_profiler_in_use_is_left_alone() -> None:
    def profiler(*_: Any) -> None:
        return None

    sys.setprofile(profiler)
    try:
        pullback.grad(lambda x: (x.cos() * len("time")).sum())(X)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
