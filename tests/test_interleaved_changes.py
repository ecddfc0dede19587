"""Changes of every guarded kind, interleaved with calls: no answer is ever one for a world that is gone.

The oracle computes anew, by `torch.func`, at every step.  `./test -m long tests/test_interleaved_changes.py` takes
10,000 steps.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback
from support import reference
from test_guards import WORLDS, World, X

STEPS = 30  # in one universe, where everything that was compiled once is found again sooner or later
PARTS = 6


def by_record(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), pullback.record() as tape:
        loss = f(leaf)
    found: Tensor = tape.grad(loss, leaf)
    return found


class Universe:
    """A few worlds at once: a function that reads all of them, of which one after the other is changed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.makers = self.random.sample(WORLDS, PARTS)
        self.worlds: list[World] = [make() for make in self.makers]
        self.changed = [False] * PARTS
        functions = [world.f for world in self.worlds]

        def f(x: Tensor) -> Tensor:
            return sum(function(x) for function in functions)  # type: ignore[return-value]

        self.f = f
        self.gradient = pullback.grad(f)
        self.engines: dict[str, Callable[[Tensor], Any]] = {
            "grad": self.gradient,
            "grad made anew": lambda x: pullback.grad(lambda y: f(y))(x),
            "value_and_grad": lambda x: pullback.value_and_grad(f)(x)[1],
            "jacobian": pullback.jacobian(f),
            "vjp": lambda x: pullback.vjp(f, x)[1](torch.ones_like(f(x).detach()))[0],
            "record": lambda x: by_record(f, x),
        }

    def step(self) -> str:
        """Change something, or nothing, and say what."""
        k = self.random.randrange(PARTS + 1)
        if k == PARTS:
            return "nothing"
        (self.worlds[k].undo if self.changed[k] else self.worlds[k].change)()
        self.changed[k] = not self.changed[k]
        return f"{'change' if self.changed[k] else 'undo'} {self.makers[k].__name__}"

    def undo(self) -> None:
        for world, changed in zip(self.worlds, self.changed, strict=True):
            if changed:
                world.undo()

    def check(self, after: str) -> None:
        x = X * self.random.choice([1.0, -0.5, 2.0])
        engine = self.random.choice(list(self.engines))
        with reference():
            expected = torch.func.grad(self.f)(x)
        found = self.engines[engine](x)
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{engine} after {after}\n{text}\n{self.makers}"
        )


@pytest.fixture(autouse=True)
def _one_at_a_time() -> Iterator[None]:
    yield
    assert torch.get_default_dtype() is torch.float32


def run(seed: int, steps: int) -> None:
    universe = Universe(seed)
    try:
        universe.check("the beginning")
        for _ in range(steps):
            universe.check(universe.step())
    finally:
        universe.undo()


@pytest.mark.parametrize("seed", range(10))
def test_three_hundred_steps(seed: int) -> None:
    run(seed, STEPS)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 210))
def test_ten_thousand_steps(seed: int) -> None:
    run(seed, 50)
