"""What the tests of records share: the same code run under a record and under autograd, and compared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import pullback
from pullback.pulls import PULLS
from pullback.replay import SIGHTINGS
from support import reference

Function = Callable[..., Tensor]


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Random tensors that require gradients, and no entry near zero."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5 for shape in shapes]
    return [v.to(dtype).requires_grad_() for v in values]


def expected(f: Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What autograd says of the same function at the same values."""
    with reference():
        copies = [t.detach().clone().requires_grad_() for t in inputs]
        found = torch.autograd.grad(f(*copies), copies, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True))


def recorded(f: Function, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """What a record says."""
    with pullback.record() as tape:
        loss = f(*inputs)
    found = tape.grad(loss, list(inputs), allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True))


def check(f: Function, *inputs: Tensor, times: int = 4, tolerance: float = 1e-11, same: Function | None = None) -> None:
    """Step by step, then as a compiled program: a record agrees with autograd, which is given `same` instead of f."""
    wanted = expected(same or f, inputs)
    for _ in range(times):
        for ours, theirs in zip(recorded(f, inputs), wanted, strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def forget() -> None:
    """Start with empty caches."""
    PULLS.clear()
    SIGHTINGS.clear()
