"""The gate itself: nothing of PyTorch that differentiates gets past it, and `reference()` opens it."""

import pytest
import torch
from torch._functorch.eager_transforms import grad_impl, jacfwd
from torch.func import jacrev as imported_before

from support import FUNCTIONALS, TRANSFORMS, AutogradUsed, reference


def square(x: torch.Tensor) -> torch.Tensor:
    return (x * x).sum()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_is_closed(name: str) -> None:
    x = torch.ones(2)
    extra = {"vjp": (x,), "jvp": ((x,), (x,)), "linearize": (x,)}.get(name, ())
    with pytest.raises(AutogradUsed, match=name):
        getattr(torch.func, name)(square, *extra)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_every_functional_is_closed(name: str) -> None:
    with pytest.raises(AutogradUsed, match=name):
        getattr(torch.autograd.functional, name)(square, torch.ones(2))


def test_the_engine_is_closed() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(AutogradUsed):
        square(x).backward()
    with pytest.raises(AutogradUsed):
        torch.autograd.grad(square(x), x)
    with pytest.raises(AutogradUsed):
        torch.autograd.backward(square(x))


def test_a_transform_is_closed_under_any_name() -> None:
    with pytest.raises(AutogradUsed):
        imported_before(square)(torch.ones(2))
    with pytest.raises(AutogradUsed):
        jacfwd(square)(torch.ones(2))
    with pytest.raises(AutogradUsed):
        grad_impl(square, 0, False, (torch.ones(2),), {})


def test_a_reference_is_let_through() -> None:
    x = torch.ones(2, requires_grad=True)
    with reference():
        assert torch.equal(torch.func.grad(square)(x), torch.func.jacfwd(square)(x))
    with pytest.raises(AutogradUsed):
        square(x).backward()


@pytest.mark.reference
def test_a_marked_test_is_let_through() -> None:
    """Autograd is the subject of this test."""
    x = torch.ones(2, requires_grad=True)
    square(x).backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))
