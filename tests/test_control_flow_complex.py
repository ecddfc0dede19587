"""Branches and loops over complex numbers, beside real ones: PyTorch's derivatives of the same code in plain Python."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops import scan, while_loop
from torch.utils.checkpoint import checkpoint

import pullback
from support import reference

generator = torch.Generator().manual_seed(0)
Z = torch.randn(4, dtype=torch.complex128, generator=generator)
W = torch.tensor(0.7 - 0.4j, dtype=torch.complex128)
R = torch.linspace(-1, 1, 4, dtype=torch.float64) + 0.3
CLOSED = torch.randn(4, dtype=torch.complex128, generator=generator)
ROWS = torch.randn(5, 4, dtype=torch.complex128, generator=generator)
TANGENTS = (CLOSED, W * 0.3j, R.square())
ZERO = torch.zeros((), dtype=torch.int64)
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def branch(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    found = torch.cond(
        z.real.sum() > 0.5,
        lambda z, w: ((z.sin() * w * CLOSED.conj() * r).conj(), z.abs() * r),
        lambda z, w: (z * z.conj() * w + CLOSED * r, z.imag),
        (z, w),
    )
    return ((found[0].conj() * found[1]) ** 2).real.sum()


def branch_in_python(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    if z.real.sum() > 0.5:
        a, b = (z.sin() * w * CLOSED.conj() * r).conj(), z.abs() * r
    else:
        a, b = z * z.conj() * w + CLOSED * r, z.imag
    return ((a.conj() * b) ** 2).real.sum()


def scanned(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    def step(carried: Sequence[Tensor], row: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        c, x = carried
        return ((c * w + row).tanh(), x * c.abs().sum() * 0.1 + CLOSED.real), (c.conj() * row.conj() * x).sum()

    (c, x), rows = scan(step, (z, r), ROWS * w, reverse=True)
    return (c * c).real.sum() + x.sum() + (rows.abs() ** 2).sum()


def scanned_in_python(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    rows = []
    for row in (ROWS * w).flip(0):
        rows.append((z.conj() * row.conj() * r).sum())
        z, r = (z * w + row).tanh(), r * z.abs().sum() * 0.1 + CLOSED.real
    return (z * z).real.sum() + r.sum() + (torch.stack(rows).abs() ** 2).sum()


def nested(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    def step(c: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cond(c.abs().sum() > 2, lambda c: c * 0.5 * w, lambda c: c * row + w, (c,)), c.sum()

    return (scan(step, z, ROWS)[1] * r.sum()).abs().square().sum()


def nested_in_python(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    rows = []
    for row in ROWS:
        rows.append(z.sum())
        z = z * 0.5 * w if z.abs().sum() > 2 else z * row + w
    return (torch.stack(rows) * r.sum()).abs().square().sum()


def computed_again(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    return (checkpoint(lambda z: (z * w).tanh() * CLOSED.conj() + r, z, use_reentrant=False) ** 2).imag.sum()


def computed_once(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    return (((z * w).tanh() * CLOSED.conj() + r) ** 2).imag.sum()


def loop(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    def step(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return y * (1.2 + 0.3j) + w * x.sum(), x + y.abs()

    y, x = while_loop(lambda y, x: y.abs().sum() < 40, step, (z, r))
    return (y * w.conj()).imag.sum() * x.sum()


def loop_in_python(z: Tensor, w: Tensor, r: Tensor) -> Tensor:
    while z.abs().sum() < 40:
        z, r = z * (1.2 + 0.3j) + w * r.sum(), r + z.abs()
    return (z * w.conj()).imag.sum() * r.sum()


NESTING: dict[str, tuple[Function, Function]] = {
    "branch": (branch, branch_in_python),
    "scan": (scanned, scanned_in_python),
    "a branch in a scan": (nested, nested_in_python),
    "checkpoint": (computed_again, computed_once),
}
ALL = NESTING | {"while": (loop, loop_in_python)}
POINTS = [(Z, W, R), (Z + 1, W, R), (Z - 2, W.conj().resolve_conj(), -R)]


@reference()
def product_of(f: Function, point: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The derivative of the gradient along the tangents."""
    leaves = [x.clone().requires_grad_() for x in point]
    gradient = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    pairs = zip(gradient, TANGENTS, strict=True)
    slope = torch.stack([(g * t.conj()).real.sum() for g, t in pairs]).sum()
    return torch.autograd.grad(slope, leaves, materialize_grads=True)


@pytest.mark.parametrize("name", ALL)
def test_products(name: str) -> None:
    ours, theirs = ALL[name]
    for point in POINTS:
        with reference():
            value, gradient = theirs(*point), torch.func.grad(theirs, (0, 1, 2))(*point)
            pushed = torch.func.jvp(theirs, point, TANGENTS)
        torch.testing.assert_close(pullback.value_and_grad(ours, (0, 1, 2))(*point), (value, gradient))
        torch.testing.assert_close(pullback.jvp(ours, point, TANGENTS), pushed)
        leaves = tuple(x.clone().requires_grad_() for x in point)
        with pullback.record() as tape:
            loss = ours(*leaves)
        torch.testing.assert_close(tape.grad(loss, leaves), gradient)


@pytest.mark.parametrize("name", NESTING)
def test_second_order(name: str) -> None:
    ours, theirs = NESTING[name]
    for point in POINTS:
        torch.testing.assert_close(pullback.hvp(ours, point, TANGENTS)[1], product_of(theirs, point))


def test_jacobians_batches_and_steps() -> None:
    def f(z: Tensor) -> Tensor:
        return torch.cond(z.real.sum() > 0, lambda z: (z * z.conj()).real * R, lambda z: (z * W).imag, (z,))

    def in_python(z: Tensor) -> Tensor:
        return (z * z.conj()).real * R if z.real.sum() > 0 else (z * W).imag

    for z in (Z + 2, Z - 2):
        with reference():
            expected = torch.func.vjp(in_python, z)[1](R)[0]
        for order in ("forward", "reverse"):
            rows = pullback.jacobian(f, order=order)(z)
            torch.testing.assert_close(torch.einsum("i,ij->j", R.to(rows.dtype), rows), expected)
        torch.testing.assert_close(pullback.compile(lambda z: pullback.vjp(f, z)[1](R)[0])(z), expected)
    points = torch.stack([Z + 2, Z - 2])
    found = torch.vmap(pullback.grad(lambda z: f(z).sum()))(points)
    torch.testing.assert_close(found, torch.stack([pullback.grad(lambda z: f(z).sum())(z) for z in points]))


def test_what_is_lazily_conjugated() -> None:
    """Operands, closures and results; real parts that are lazily negated."""

    def f(z: Tensor) -> Tensor:
        closed, negated = z.conj(), z.conj().imag
        found = torch.cond(z.real.sum() > 9, lambda z: (z * closed).conj(), lambda z: z * negated, (z.conj(),))
        return found * scan(lambda c, row: (c * row, row.conj()), closed[0], negated)[0].conj()

    def in_python(z: Tensor) -> Tensor:
        found = (z.conj() * z.conj()).conj() if z.real.sum() > 9 else z.conj() * -z.imag
        return found * (z[0].conj() * (-z.imag).prod()).conj()

    for z in (Z, Z + 9):
        with reference():
            expected = torch.func.jvp(in_python, (z,), (CLOSED,)), torch.func.vjp(in_python, z)[1](ROWS[0])
        torch.testing.assert_close(pullback.jvp(f, (z,), (CLOSED,)), expected[0])
        torch.testing.assert_close(pullback.vjp(f, z)[1](ROWS[0]), expected[1])
