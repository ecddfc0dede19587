"""`detach` under in-place changes: followed where nothing else sees the memory, else refused."""

from collections.abc import Callable

import pytest
import torch

import pullback
from programs import check, normal

X = normal(3)
BUFFER = torch.zeros(3, dtype=torch.float64)


def zeros(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(3, dtype=x.dtype)
    y[1:] = x[:2] * x[2]
    return y


def detached_zeros(x: torch.Tensor) -> torch.Tensor:
    y = torch.ones(3, dtype=x.dtype).detach()
    y *= x
    return y


def without_gradient(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = x * 2
    y += x * x
    return y


def of_a_result(x: torch.Tensor) -> torch.Tensor:
    y = (x * 2).detach()
    y.mul_(x)
    return y * x


def only_read(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    scale = y.detach().sum()
    y.mul_(scale)
    return y


@pytest.mark.parametrize("f", [zeros, detached_zeros, without_gradient, of_a_result, only_read])
def test_changed_in_place(f: Callable[[torch.Tensor], torch.Tensor]) -> None:
    check(lambda D: D.jacobian(f)(X))


def written(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.detach().mul_(x)
    return y


def counted(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.detach()[0].add_(1)
    return y


def into_data(x: torch.Tensor) -> torch.Tensor:
    BUFFER.data.add_(x)
    return BUFFER * x


@pytest.mark.parametrize("f", [written, counted, into_data])
def test_refused(f: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(pullback.CaptureError, match=r"detached tensor in place[\s\S]*test_detachment.py:\d+"):
        pullback.jacobian(f)(X)


def test_data_of_a_buffer_may_be_written() -> None:
    average = torch.zeros(3, dtype=torch.float64)

    def f(x: torch.Tensor) -> torch.Tensor:
        average.data.mul_(0.5).add_(x.detach())
        return (x * average).sum()

    gradient = pullback.grad(f)(X)
    assert torch.equal(gradient, X)
    assert torch.equal(average, X)
