"""Derivatives in double precision, of functions that read tensors of less: nothing is rounded to what those have."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback
from support import reference

F64, C128 = torch.float64, torch.complex128
X = torch.tensor([1.1, 1.7, 0.6], dtype=F64)
U = torch.tensor([0.3, -0.7, 0.9], dtype=F64)
OPERANDS = {
    "vector": torch.tensor([1.1, 1.3, 1.7]),
    "number": torch.tensor(1.1),
    "bfloat16": torch.tensor([1.1, 1.3, 1.7], dtype=torch.bfloat16),
    "integers": torch.tensor([3, 7, 9]),
}
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scaled product": lambda x, k: x * k * 0.7,
    "product of several": lambda x, k: x * k * k * 0.3,
    "quotient": lambda x, k: x / k,
    "divisor": lambda x, k: k / x / k,
    "interpolation": lambda x, k: torch.lerp(x * k, x.square(), 0.3),
    "addcmul": lambda x, k: torch.addcmul(x, x, k if k.is_floating_point() else k.double(), value=0.1),
    "addcdiv": lambda x, k: torch.addcdiv(x, x, k.double(), value=0.1),
    "angle": lambda x, k: torch.atan2(x, k),
    "power": lambda x, k: (1 / k.double()) ** x + x**k,
    "xlogy": lambda x, k: torch.xlogy(x, k) + torch.xlogy(k, x),
    "in place": lambda x, k: (x + 0).mul_(k).div_(k).mul_(0.7),
    "sum of the operand": lambda x, k: x.sum()[None] * k.expand(3) * x,
    "outer product": lambda x, k: (x[:, None] * k.expand(3)).sum(0) / k.double().sum(),
    "complex numbers": lambda x, k: (torch.complex(x, 2 * x) * k * (0.3 + 0.1j) / k).abs(),
}
EXACT = {"rtol": 1e-13, "atol": 1e-14}


@reference()
def exact(f: Callable[[Tensor, Tensor], Tensor], k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Jᵀ u, J u and H u of ½‖f‖², by PyTorch, with the operand in double precision from the start."""
    k = k.double()
    pulled = torch.func.vjp(lambda x: f(x, k), X)[1](U)[0]
    pushed = torch.func.jvp(lambda x: f(x, k), (X,), (U,))[1]
    gradient = torch.func.grad(lambda x: f(x, k).square().sum() / 2)
    return pulled, pushed, torch.func.jvp(gradient, (X,), (U,))[1]


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operands_of_less_precision(name: str, operand: str) -> None:
    f, k = FUNCTIONS[name], OPERANDS[operand]
    pulled, pushed, product = exact(f, k)
    torch.testing.assert_close(pullback.vjp(lambda x: f(x, k), X)[1](U)[0], pulled, **EXACT)
    torch.testing.assert_close(pullback.jvp(lambda x: f(x, k), (X,), (U,))[1], pushed, **EXACT)
    torch.testing.assert_close(pullback.hvp(lambda x: f(x, k).square().sum() / 2, (X,), (U,))[1], product, **EXACT)


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operands_of_less_precision_in_a_record(name: str, operand: str) -> None:
    f, k = FUNCTIONS[name], OPERANDS[operand]
    x = X.clone().requires_grad_()
    with pullback.record() as tape:
        value = (f(x, k) * U).sum()
    torch.testing.assert_close(tape.grad(value, [x])[0], exact(f, k)[0], **EXACT)


def test_a_lone_operand_is_a_factor_without_a_copy() -> None:
    """A product of two precisions is computed in the wider one anyway."""
    plan = pullback.grad(lambda x: (x * OPERANDS["vector"]).sin().sum(), backend="python").plan(X)
    assert ".mul_(tensor)" in plan.code
    assert ".to(" not in plan.code


def test_hardsigmoid_is_a_sixth_exactly() -> None:
    """PyTorch's backward kernel multiplies by 1 / 6 in single precision, in double too."""
    x = torch.tensor([-3.5, -3.0, -2.9, 0.0, 1.3, 3.0, torch.inf, torch.nan], dtype=F64)
    cotangent = torch.tensor([1.0, 2.0, -3.0, 0.7, 1e6, 5.0, torch.inf, 1.0], dtype=F64)
    exact = torch.where((x > -3) & (x < 3), cotangent / 6, 0)
    hardsigmoid = torch.nn.functional.hardsigmoid
    torch.testing.assert_close(pullback.vjp(hardsigmoid, x)[1](cotangent)[0], exact, rtol=1e-15, atol=0)
    leaf = x.clone().requires_grad_()
    for _ in range(4):  # step by step, then compiled
        with pullback.record() as tape:
            y = hardsigmoid(leaf)
        torch.testing.assert_close(tape.grad(y, leaf, seed=cotangent), exact, rtol=1e-15, atol=0)


def test_programs_do_not_feel_autocast() -> None:
    """What it casts was cast when the function was traced; a program of single precision stays one."""
    w, x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randn(5, 4)

    def f(w: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (x @ w).square().mean()

    def seen() -> list[Tensor]:
        pulled, pushed = pullback.vjp(f, w)[1], pullback.linearize(f, w)[1]
        leaf = w.clone().requires_grad_()
        with torch.enable_grad(), reference():
            bridged = torch.autograd.grad(pullback.grad(f)(leaf).square().sum(), leaf)
        with pullback.record() as tape:
            value = f(leaf)
        recorded = tape.grad(value, [leaf])
        return [pullback.grad(f)(w), pullback.hessian(f)(w), *pulled(torch.ones(())), pushed(w), *bridged, *recorded]

    plain = seen()
    for _ in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = seen()
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
