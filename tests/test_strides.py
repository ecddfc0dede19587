"""Operators that read a tensor's memory: derivatives, and what is asked of a tensor's place in it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback
from support import reference

X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Loss = Callable[[Tensor], Tensor]


def overwritten(x: Tensor) -> Tensor:
    """Views by strides that are written into, and overlap."""
    y = x.clone()
    y.as_strided((2, 2), (7, 1)).mul_(x[:2, :2])
    y.as_strided((3,), (5,), 2).copy_(x[0, :3] * 3)
    return (y**2).sum()


LOSSES: dict[str, Loss] = {
    "overlapping": lambda x: x.as_strided((3, 4), (1, 2)).sin().sum(),
    "transposed operand": lambda x: x.t().as_strided((3, 4), (1, 2), 3).sin().sum(),
    "repeated": lambda x: (x.as_strided((3, 2), (0, 2)) * torch.arange(6.0).reshape(3, 2)).exp().sum(),
    "one entry": lambda x: x.as_strided((), (), 5) ** 3,
    "nothing": lambda x: x.as_strided((0, 2), (1, 1)).sum() + x.sum(),
    "copy": lambda x: torch.as_strided_copy(x, (2, 2), (1, 6), 1).prod(),
    "written": overwritten,
}


def slope(loss: Loss, x: Tensor) -> Tensor:
    """The gradient by PyTorch."""
    with reference():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    loss = LOSSES[name]
    expected = slope(loss, X)
    torch.testing.assert_close(pullback.grad(loss)(X), expected)
    x = X.clone().requires_grad_()
    with pullback.record() as tape:
        recorded = loss(x)
    torch.testing.assert_close(tape.grad(recorded, [x])[0], expected)


@pytest.mark.parametrize("name", LOSSES)
def test_second_order(name: str) -> None:
    loss = LOSSES[name]
    step = 1e-6 * torch.ones_like(X)
    difference = (slope(loss, X + step) - slope(loss, X - step)) / 2e-6
    _, product = pullback.hvp(loss, (X,), (torch.ones_like(X),))
    torch.testing.assert_close(product, difference, atol=1e-6, rtol=1e-6)


def test_a_scattered_source_takes_the_places_from_the_operand() -> None:
    """PyTorch's backward gives the operand the cotangent of the places that are overwritten."""
    source = torch.arange(4.0, dtype=torch.float64).reshape(2, 2)
    weights = torch.arange(1.0, 25.0, dtype=torch.float64).reshape(4, 6)

    def loss(x: Tensor, source: Tensor) -> Tensor:
        return (torch.as_strided_scatter(x, source, (2, 2), (1, 2), 1) * weights).sum()

    for_operand, for_source = pullback.grad(loss, argnums=(0, 1))(X, source)
    expected = weights.clone()
    expected[0, 1:5] = 0
    assert torch.equal(for_operand, expected)
    assert torch.equal(for_source, weights.as_strided((2, 2), (1, 2), 1))


def test_a_storage_offset_counts_from_the_beginning_of_the_memory() -> None:
    """A program for a view at one place in its memory is not used for a view at another."""
    base = torch.arange(20.0, dtype=torch.float64)
    gradient = pullback.grad(lambda x: (x.as_strided((2, 2), (1, 2), 5) ** 2).sum())
    for start in (5, 4, 5):
        expected = torch.zeros(10, dtype=torch.float64)
        expected[5 - start : 9 - start] = 2 * base[5:9]
        assert torch.equal(gradient(base[start : start + 10]), expected)
    with pytest.raises(pullback.ArgumentError, match="where a tensor lies in memory"):
        gradient.compile(base[5:15])


REFUSED: dict[str, tuple[Loss, str]] = {
    "gaps": (lambda x: x[:, ::2].as_strided((2, 2), (1, 2)).sum(), r"do not fill it .*strides \(6, 2\)"),
    "shared places": (lambda x: x.expand(2, 4, 6).as_strided((2,), (1,)).sum(), "do not fill it"),
    "beyond": (lambda x: x.as_strided((5,), (6,)).sum(), "outside of its operand .*entries 0 to 24"),
    "before": (lambda x: x[1:].as_strided((2,), (1,), 0).sum(), "outside of its operand .*entries -6 to -5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_memory_that_is_not_the_operands_is_refused(name: str) -> None:
    loss, message = REFUSED[name]
    with pytest.raises(pullback.CaptureError, match=message):
        pullback.grad(loss)(X)


def test_a_record_refuses_to_read_between_the_entries_of_a_leaf() -> None:
    leaf = torch.randn(20, dtype=torch.float64)[5:15].requires_grad_()
    for size, stride, offset in (((2, 2), (1, 2), 0), ((2, 2), (1, 2), 14)):
        with pullback.record() as tape, pytest.raises(pullback.RecordError, match="outside of its operand"):
            tape.grad(leaf.as_strided(size, stride, offset).sum(), [leaf])


def test_a_product_of_kronecker_is_recorded_with_its_changes() -> None:
    a = (torch.zeros(2, 3, dtype=torch.float64) + 1.5).add_(1).requires_grad_()
    b = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).requires_grad_()
    with pullback.record() as tape:
        factor = a * 2
        product = torch.kron(factor, b)
        factor.mul_(3)
        loss = (product * product).sum()
    expected = 2 * torch.einsum("ikjl,ij->kl", product.detach().reshape(2, 3, 3, 2), 2 * a.detach())
    torch.testing.assert_close(tape.grad(loss, [b])[0], expected)
