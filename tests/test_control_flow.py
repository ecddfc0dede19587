"""Branches and loops as nodes: derivatives of every order against PyTorch's of the same code in plain Python."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops import scan, while_loop
from torch._higher_order_ops.map import map as map_over

import pullback
from pullback import torch_private as private
from pullback.verification import verify
from support import reference

X = torch.linspace(-1, 1, 4, dtype=torch.float64)
W = torch.tensor(1.5, dtype=torch.float64)
ROWS = torch.linspace(-0.8, 0.9, 20, dtype=torch.float64).reshape(5, 4)
CLOSED = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
Function = Callable[..., Tensor]


# Each: with control flow as PyTorch's operators, and the same in Python.


def branch(x: Tensor, w: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0.5, lambda x: x.sin() * w * CLOSED, lambda x: x * x * w, (x,)).sum() * w


def branch_in_python(x: Tensor, w: Tensor) -> Tensor:
    return ((x.sin() * w * CLOSED) if x.sum() > 0.5 else x * x * w).sum() * w


def nested(x: Tensor, w: Tensor) -> Tensor:
    def inner(x: Tensor) -> dict[str, Tensor]:
        return {"a": torch.cond(x[0] > 0, torch.exp, torch.sin, (x,)), "b": x.prod()}

    found = torch.cond(w > 0, inner, lambda x: {"a": x, "b": x[0] * w}, (x,))
    return (found["a"] * found["b"]).sum()


def nested_in_python(x: Tensor, w: Tensor) -> Tensor:
    a, b = ((x.exp() if x[0] > 0 else x.sin()), x.prod()) if w > 0 else (x, x[0] * w)
    return (a * b).sum()


def scanned(x: Tensor, w: Tensor) -> Tensor:
    carried, rows = scan(lambda c, s: ((c * w + s).tanh(), (c * s).sum()), x, ROWS * w)
    return carried.sum() + (rows * rows).sum()


def scanned_in_python(x: Tensor, w: Tensor) -> Tensor:
    rows = []
    for s in ROWS * w:
        rows.append((x * s).sum())
        x = (x * w + s).tanh()
    return x.sum() + (torch.stack(rows) ** 2).sum()


def scanned_backwards(x: Tensor, w: Tensor) -> Tensor:
    def step(c: Any, s: Tensor) -> Any:
        count, y = c
        y = torch.where(count % 2 == 0, (y * s * CLOSED).sin(), y * w)
        return (count + 1, y), y * s

    (count, y), rows = scan(step, (torch.zeros((), dtype=torch.int64), x), ROWS, reverse=True)
    return (y * count).sum() + (rows[0] * rows[-1]).sum()


def scanned_backwards_in_python(x: Tensor, w: Tensor) -> Tensor:
    rows = []
    for k, s in enumerate(ROWS.flip(0)):
        x = (x * s * CLOSED).sin() if k % 2 == 0 else x * w
        rows.append(x * s)
    return (x * 5).sum() + (rows[0] * rows[-1]).sum()


def loop(x: Tensor, w: Tensor) -> Tensor:
    def step(i: Tensor, y: Tensor) -> Any:
        return i + 1, (y * w).sin() + CLOSED

    return while_loop(lambda i, y: i < 3, step, (torch.zeros((), dtype=torch.int64), x))[1].sum()


def loop_in_python(x: Tensor, w: Tensor) -> Tensor:
    for _ in range(3):
        x = (x * w).sin() + CLOSED
    return x.sum()


def mapped(x: Tensor, w: Tensor) -> Tensor:
    found = map_over(lambda row, y: {"a": (row * y * w).sin(), "b": row.sum() * CLOSED}, ROWS * w, x)
    return (found["a"] * found["b"]).sum()


def mapped_in_python(x: Tensor, w: Tensor) -> Tensor:
    rows = ROWS * w
    return ((rows * x * w).sin() * (rows.sum(1, keepdim=True) * CLOSED)).sum()


NESTING: dict[str, tuple[Function, Function]] = {
    "branch": (branch, branch_in_python),
    "nested branches": (nested, nested_in_python),
    "scan": (scanned, scanned_in_python),
    "map": (mapped, mapped_in_python),
    "scan from the end": (scanned_backwards, scanned_backwards_in_python),
}
ALL = NESTING | {"while": (loop, loop_in_python)}
POINTS = [X, X + 0.6, X - 0.4]


@pytest.mark.parametrize("name", ALL)
def test_values_and_products(name: str) -> None:
    ours, theirs = ALL[name]
    for x in POINTS:
        with reference():
            value, gradient = theirs(x, W), torch.func.grad(theirs, (0, 1))(x, W)
        torch.testing.assert_close(pullback.value_and_grad(ours, (0, 1))(x, W), (value, gradient))
        pushed = (gradient[0] * x).sum() + gradient[1] * W
        torch.testing.assert_close(pullback.jvp(ours, (x, W), (x, W))[1], pushed)


@pytest.mark.parametrize("name", NESTING)
def test_every_transform_nests(name: str) -> None:
    ours, theirs = NESTING[name]
    with reference():
        hessian = torch.func.hessian(theirs, (0, 1))(X, W)
        third = torch.func.jacrev(torch.func.hessian(theirs, 1), 0)(X, W)
    torch.testing.assert_close(pullback.hessian(ours, (0, 1))(X, W), hessian)
    torch.testing.assert_close(pullback.jacobian(pullback.hessian(ours, 1), 0)(X, W), third)
    product = pullback.hvp(ours, (X, W), (X, W))[1]
    torch.testing.assert_close(product[1], (hessian[1][0] * X).sum() + hessian[1][1] * W)


@pytest.mark.parametrize("name", ALL)
def test_a_record_follows_the_python_that_they_stand_for(name: str) -> None:
    ours, theirs = ALL[name]
    for x in (*POINTS, X):  # some step by step, some compiled
        leaves = x.clone().requires_grad_(), W.clone().requires_grad_()
        with pullback.record() as tape:
            value = ours(*leaves)
        with reference():
            expected = torch.func.grad_and_value(theirs, (0, 1))(x, W)
        found = tape.grad(value, leaves, allow_unused=True)  # of one branch alone
        gradient = tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True))
        torch.testing.assert_close((gradient, value), expected)


def test_outside_of_records_pytorch_runs_them_as_ever() -> None:
    with pullback.record():
        during = private.compile_and_call()
    assert private.compile_and_call() is not during
    assert torch.equal(torch.cond(X.sum() > 0, torch.sin, torch.cos, (X,)), X.sin() if X.sum() > 0 else X.cos())


def test_a_loop_has_forward_derivatives_of_every_order() -> None:
    def pushed(x: Tensor) -> Tensor:
        return pullback.jvp(lambda x: pullback.jvp(loop, (x, W), (CLOSED, W))[1], (x,), (X,))[1]

    with reference():
        hessian = torch.func.hessian(loop_in_python, (0, 1))(X, W)
    torch.testing.assert_close(pushed(X), CLOSED @ hessian[0][0] @ X + W * hessian[1][0] @ X)
    third = pullback.jvp(pushed, (X,), (CLOSED,))[1]
    torch.testing.assert_close(third, (pushed(X + 1e-5 * CLOSED) - pushed(X - 1e-5 * CLOSED)) / 2e-5)


def halved(x: Tensor) -> Tensor:
    """A loop whose length depends on its values."""
    return while_loop(lambda y, z: y.norm() > 0.3, lambda y, z: (y * 0.7, z.sin() * y), (x, x * x))[1]


def halved_in_python(x: Tensor) -> Tensor:
    z = x * x
    while x.norm() > 0.3:
        x, z = x * 0.7, z.sin() * x
    return z


def vectors(f: Function) -> Callable[[Tensor], Tensor]:
    """Several results, on which the rest of a function depends."""
    return lambda x: torch.stack([f(x, W), f(x * x, W * 2)]).tanh()


NESTS: dict[str, tuple[Any, Any]] = {
    "auto": (pullback.jacobian, pullback.jacobian),
    "forward": (pullback.jacfwd, pullback.jacfwd),
    "mixed": (pullback.jacrev, pullback.jacfwd),
}


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("name", NESTING)
def test_jacobians_nest(name: str, nest: str) -> None:
    outer, inner = NESTS[nest]
    ours, theirs = map(vectors, NESTING[name])
    with reference():
        expected = torch.stack([_one_by_one(theirs, k) for k in (0, 1)])
    torch.testing.assert_close(outer(inner(ours))(X), expected)


def _one_by_one(f: Function, k: int) -> Tensor:
    """The Hessian of one of a function's results; a branch of Python cannot be differentiated under `vmap`."""
    return torch.autograd.functional.hessian(lambda x: f(x)[k], X)  # type: ignore[no-untyped-call, no-any-return]


@pytest.mark.parametrize(("ours", "theirs"), [(halved, halved_in_python), (vectors(loop), vectors(loop_in_python))])
def test_jacobians_of_a_loop_nest_by_forward_mode(ours: Function, theirs: Function) -> None:
    size = len(theirs(X))
    with reference():
        expected = torch.stack([_one_by_one(theirs, k) for k in range(size)])
    torch.testing.assert_close(pullback.jacfwd(pullback.jacfwd(ours))(X), expected)
    third = pullback.jacfwd(pullback.jacfwd(pullback.jacfwd(ours)))(X)
    moved = [pullback.jacfwd(pullback.jacfwd(ours))(X + h * CLOSED) for h in (1e-5, -1e-5)]
    torch.testing.assert_close(third @ CLOSED, (moved[0] - moved[1]) / 2e-5, rtol=1e-6, atol=1e-7)
    with pytest.raises(pullback.MissingRuleError, match="forward mode"):
        pullback.jacfwd(pullback.jacobian(ours, order="reverse"))(X)


def test_a_loop_is_not_pulled_back_twice() -> None:
    with pytest.raises(pullback.MissingRuleError, match=r"while_loop.*forward mode.*test_control_flow.py"):
        pullback.hessian(loop)(X, W)


def test_the_condition_is_read_anew_at_every_call() -> None:
    def doubled(x: Tensor, n: Tensor) -> Tensor:
        return while_loop(lambda i, y: i < n, lambda i, y: (i + 1, y * 2), (n * 0, x))[1].sum()

    gradient = pullback.grad(doubled)
    counts = [gradient(X, torch.tensor(n))[0].item() for n in (0, 1, 5, 2)]
    assert counts == [1.0, 2.0, 32.0, 4.0]


def test_jacobians_batches_and_compiled_steps() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.square, (x,))

    for x in (X + 1, X - 1):
        expected = torch.diag(x.cos() if x.sum() > 0 else 2 * x)
        for order in ("forward", "reverse"):
            torch.testing.assert_close(pullback.jacobian(f, order=order)(x), expected)
        torch.testing.assert_close(pullback.jacobian(f, chunk_size=2)(x), expected)
    points = torch.stack([X + 1, X - 1])
    rows = torch.func.vmap(pullback.grad(lambda x: f(x).sum()))(points)
    torch.testing.assert_close(rows, torch.stack([(X + 1).cos(), 2 * (X - 1)]))
    step = pullback.compile(lambda x, w: pullback.grad(loop, (0, 1))(x, w))
    torch.testing.assert_close(step(X, W), pullback.grad(loop, (0, 1))(X, W))


def test_verification_follows_the_branch() -> None:
    assert verify(pullback.grad(branch, (0, 1)), X, W).passed
    assert verify(pullback.grad(scanned, (0, 1)), X, W).passed


def test_results_have_memory_of_their_own() -> None:
    x = X.clone()
    kept = pullback.value_and_grad(lambda x: torch.cond(x[0] > 9, torch.sin, lambda x: x.clone(), (x,)).sum())
    value, gradient = kept(x)
    gradient.zero_()
    torch.testing.assert_close(x, X)
    assert value == X.sum()


def in_place(x: Tensor) -> Tensor:
    return x.mul_(2)


def differing(x: Tensor) -> Tensor:
    return torch.cond(x[0] > 0, torch.sin, torch.sum, (x,))


REFUSED: dict[str, tuple[Function, str]] = {
    "shapes differ": (differing, r"branches of cond return \['float64\[4\]'\] and \['float64\[\]'\]"),
    "in place": (lambda x: torch.cond(x[0] > 0, in_place, torch.sin, (x,)), "inside cond changes a tensor in place"),
    "a number": (lambda x: torch.cond(x[0] > 0, lambda x: 1, lambda x: 1, (x,)) * x, "returns what is no tensor"),
    "carried shapes": (
        lambda x: while_loop(lambda y: y.sum() > 0, lambda y: y[:1], (x,)),
        r"while_loop carries \['float64\[4\]'\] into a step and \['float64\[1\]'\]",
    ),
    "another operator": (
        lambda x: torch.ops.higher_order.strict_mode(torch.sin, (x,)),
        "'strict_mode', which is not done yet",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_line(name: str) -> None:
    f, said = REFUSED[name]
    with pytest.raises(pullback.CaptureError, match=rf"(?s){said}.*test_control_flow.py"):
        pullback.jacobian(f)(X)


@pytest.mark.reference
def test_pytorch_s_own_transforms_around_a_branch_are_refused() -> None:
    """They would differentiate what our program calls, one by one; `vmap` alone is fine."""

    def f(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.square, (x,)).sum()

    with pytest.raises(pullback.AutogradError, match=r"cond at .*test_control_flow.py.*torch.func"):
        torch.func.grad(lambda x: pullback.grad(f)(x).sum())(X)
    with pytest.raises(pullback.AutogradError, match=r"cond at .*test_control_flow.py"):
        torch.func.vmap(pullback.grad(f))(torch.stack([X, X + 1]).requires_grad_())
    torch.testing.assert_close(torch.func.vmap(pullback.grad(f))(torch.stack([X + 1])), (X + 1).cos()[None])
