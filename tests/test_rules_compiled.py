"""Every rule through the whole compiler: products, Jacobians and second derivatives of each operator on each sample.

`test_rules.py` asks whether a local Jacobian is right; here the operator is captured inside a function, its Jacobian
accumulated, lowered, emitted and run.  Comparing with a random direction is comparing with every entry: an error that
happens to be orthogonal to it has probability zero.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support import reference
from torch import Tensor

import pullback
from pullback.graph import FLOATING
from pullback.rules import RULES, B, I, Sample, T
from pullback.torch_private import overload

pytestmark = pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")

SAMPLES = [pytest.param(op, k, id=f"{op}-{k}") for op, rule in RULES.items() for k in range(len(rule.samples))]

NOT_FOR_PYTORCH = (  # what PyTorch says where it cannot differentiate, or stumbles over its own formula
    "not implemented|returned an invalid gradient|not differentiable with respect|Expected a proper Tensor|"
    r"output_padding is not supported|shape '\[0\]' is invalid"
)
CONSTANT_STATISTICS = {  # further results that PyTorch holds for constants
    "aten.native_layer_norm.default",
    "aten._native_batch_norm_legit.no_stats",
    "aten._native_batch_norm_legit_functional.default",
}
WRONG_IN_PYTORCH = {("aten.pow.Scalar", 2)}  # d²(0ˣ)/dx² is not a number there
INEXACT = {"aten.hardsigmoid.default": 1e-7}  # PyTorch divides by 6 in single precision


# ---------------------------------------------------------------- one operator on one sample


@dataclass(frozen=True)
class Case:
    """An operator as a function of its floating operands, at a point, with a random direction on both sides.

    f: returns the results that have a derivative.
    x, v: the operands, and a tangent of each.
    u: a cotangent of each result.
    """

    f: Callable[..., tuple[Tensor, ...]]
    x: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    u: tuple[Tensor, ...]

    def loss(self, *x: Tensor) -> Tensor:
        """The weighted sum of all results."""
        return inner(self.f(*x), self.u)

    @property
    def argnums(self) -> tuple[int, ...]:
        return tuple(range(len(self.x)))


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """⟨a, b⟩ over all pairs."""
    return sum(((s * t).sum() for s, t in zip(a, b, strict=True)), start=torch.zeros((), dtype=torch.float64))


def case_of(op: str, sample: Sample, dtype: torch.dtype = torch.float64) -> Case:
    torch.manual_seed(0)
    args, kwargs = draw((sample.args, dict(sample.kwargs)), dtype)
    x: list[Tensor] = []
    collect((args, kwargs), x)
    call, differentiable = overload(op), RULES[op].differentiable

    def f(*operands: Tensor) -> tuple[Tensor, ...]:
        rest = iter(operands)
        new_args, new_kwargs = fill((args, kwargs), rest)
        results = as_tuple(call(*new_args, **new_kwargs))
        return tuple(r for k, r in enumerate(results) if k in differentiable and name_of(r.dtype) in FLOATING)

    v = tuple(torch.randn(t.shape, dtype=torch.float64).to(dtype) for t in x)
    torch.manual_seed(1)
    u = tuple(torch.randn(t.shape, dtype=torch.float64).to(t.dtype) for t in f(*x))
    return Case(f, tuple(x), v, u)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def draw(tree: Any, dtype: torch.dtype) -> Any:
    """Random tensors in place of T, I and B."""
    if isinstance(tree, (tuple, dict)):
        return mapped(tree, lambda item: draw(item, dtype))
    if isinstance(tree, T):
        low, high = tree.domain
        return (low + (high - low) * torch.rand(tree.shape, dtype=torch.float64)).to(dtype)
    if isinstance(tree, I):
        return torch.randint(tree.bound, tree.shape)
    if isinstance(tree, B):
        return torch.rand(tree.shape) < 0.5
    return tree.to(dtype) if is_operand(tree) else tree


def mapped(tree: Any, f: Callable[[Any], Any]) -> Any:
    return {k: f(item) for k, item in tree.items()} if isinstance(tree, dict) else tuple(map(f, tree))


def is_operand(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point()


def collect(tree: Any, found: list[Tensor]) -> None:
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, (tuple, dict)):
            collect(item, found)
        elif is_operand(item):
            found.append(item)


def fill(tree: Any, operands: Any) -> Any:
    """The same arguments with the next operands in place of the floating tensors."""
    if isinstance(tree, (tuple, dict)):
        return mapped(tree, lambda item: fill(item, operands))
    return next(operands) if is_operand(tree) else tree


def seeded(f: Callable[..., Any], *args: Any) -> Any:
    """The result of `f`, with the numbers that a random operator draws always the same."""
    torch.manual_seed(1)
    return f(*args)


# ---------------------------------------------------------------- our derivatives, and what they are compared with


def pulled(case: Case) -> tuple[Tensor, ...]:
    _, pull_back = seeded(pullback.vjp, case.f, *case.x)
    return pull_back(case.u)


def second(case: Case) -> tuple[Tensor, ...]:
    """The Hessian of the loss times the tangents."""
    product = seeded(pullback.hvp, case.loss, case.x, case.v)[1]
    return product if len(case.x) > 1 else (product,)


@dataclass(frozen=True)
class Expected:
    """The gradient of the loss and the product of its Hessian with the tangents, and how exact they are."""

    gradient: tuple[Tensor, ...]
    product: tuple[Tensor, ...]
    tolerance: float


def expected(case: Case, op: str, k: int) -> Expected:
    """PyTorch's derivatives; central differences where it has none, or wrong ones."""
    if op not in CONSTANT_STATISTICS and (op, k) not in WRONG_IN_PYTORCH:
        try:
            return Expected(*by_pytorch(case), INEXACT.get(op, 1e-9))
        except RuntimeError as error:
            assert re.search(NOT_FOR_PYTORCH, str(error)), error
    return Expected(by_differences(case), differences_of_gradient(case), 1e-6)


@reference()
def by_pytorch(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x = [t.clone().requires_grad_() for t in case.x]
    gradient = torch.autograd.grad(
        seeded(case.loss, *x), x, create_graph=True, materialize_grads=True, allow_unused=True
    )
    along = inner(gradient, case.v)
    if not along.requires_grad:
        return detached(gradient), tuple(map(torch.zeros_like, case.x))
    product = torch.autograd.grad(along, x, materialize_grads=True, allow_unused=True)
    return detached(gradient), detached(product)


def detached(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(t.detach() for t in tensors)


def by_differences(case: Case, step: float = 1e-6) -> tuple[Tensor, ...]:
    """The gradient of the loss."""
    gradient = []
    for k, x in enumerate(case.x):
        column = []
        for change in step * torch.eye(x.numel(), dtype=x.dtype):
            low, high = ((*case.x[:k], x + sign * change.reshape(x.shape), *case.x[k + 1 :]) for sign in (-1, 1))
            column.append((seeded(case.loss, *high) - seeded(case.loss, *low)) / (2 * step))
        gradient.append(torch.stack(column).reshape(x.shape) if column else torch.zeros_like(x))
    return tuple(gradient)


def differences_of_gradient(case: Case, step: float = 1e-6) -> tuple[Tensor, ...]:
    """The product of the Hessian with the tangents, from our own gradient."""
    low, high = (shifted(case.x, case.v, sign * step) for sign in (-1, 1))
    gradient = pullback.grad(case.loss, case.argnums)
    return tuple((b - a) / (2 * step) for a, b in zip(seeded(gradient, *low), seeded(gradient, *high), strict=True))


def shifted(x: Sequence[Tensor], v: Sequence[Tensor], step: float) -> tuple[Tensor, ...]:
    return tuple(s + step * t for s, t in zip(x, v, strict=True))


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    assert [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=max(tolerance, 1e-9), atol=tolerance)


# ---------------------------------------------------------------- every entry, every sample


@pytest.mark.parametrize(("op", "k"), SAMPLES)
def test_derivatives_of_first_and_second_order(op: str, k: int) -> None:
    case = case_of(op, RULES[op].samples[k])
    theirs = expected(case, op, k)
    close(pulled(case), theirs.gradient, theirs.tolerance)
    close(second(case), theirs.product, theirs.tolerance)


@pytest.mark.parametrize(("op", "k"), SAMPLES)
def test_jacobian_agrees_with_the_products(op: str, k: int) -> None:
    """In one of the two orders, in turn: uᵀJ is the pull back of u, and J v the push forward of v."""
    case = case_of(op, RULES[op].samples[k])
    order = ("forward", "reverse")[k % 2]
    jacobian = seeded(pullback.jacobian(case.f, case.argnums, order=order), *case.x)
    rows = pulled(case)
    for number, row in enumerate(rows):
        blocks = [torch.tensordot(u, block[number], u.dim()) for u, block in zip(case.u, jacobian, strict=True)]
        torch.testing.assert_close(torch.stack(blocks).sum(0), row, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("op", RULES)
def test_every_way_to_a_derivative_is_the_same(op: str) -> None:
    """⟨u, Jv⟩ = ⟨Jᵀu, v⟩, both orders of the Jacobian agree, the Hessian is symmetric, and differences confirm it."""
    case = case_of(op, RULES[op].samples[0])
    rows, pushed = pulled(case), seeded(pullback.jvp, case.f, case.x, case.v)[1]
    torch.testing.assert_close(inner(pushed, case.u), inner(rows, case.v))
    close(rows, by_differences(case), 1e-5)
    jacobian = seeded(pullback.jacobian(case.f, case.argnums, order="reverse"), *case.x)
    for tangent, blocks in zip(pushed, jacobian, strict=True):
        columns = [torch.tensordot(block, v, v.dim()) for block, v in zip(blocks, case.v, strict=True)]
        torch.testing.assert_close(torch.stack(columns).sum(0), tangent, rtol=1e-9, atol=1e-10)
    hessian = seeded(pullback.hessian(case.loss, case.argnums), *case.x)
    matrix = assembled(hessian, case.x)
    torch.testing.assert_close(matrix, matrix.T)
    close([matrix @ flat(case.v)], [flat(second(case))])


def assembled(hessian: Sequence[Sequence[Tensor]], x: Sequence[Tensor]) -> Tensor:
    """All blocks as one matrix."""
    return torch.cat(
        [
            torch.cat([b.reshape(s.numel(), t.numel()) for t, b in zip(x, row, strict=True)], 1)
            for s, row in zip(x, hessian, strict=True)
        ]
    )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("op", RULES)
def test_single_precision(op: str) -> None:
    case = case_of(op, RULES[op].samples[0], torch.float32)
    ours, double = pulled(case), pulled(in_double(case))
    assert all(t.dtype == torch.float32 for t in ours)
    close([t.double() for t in ours], double, 1e-3)


def in_double(case: Case) -> Case:
    x, v, u = (tuple(t.double() for t in group) for group in (case.x, case.v, case.u))
    return replace(case, x=x, v=v, u=u)


@pytest.mark.parametrize("op", RULES)
def test_bfloat16(op: str) -> None:
    try:
        case = case_of(op, RULES[op].samples[0], torch.bfloat16)
    except (RuntimeError, NotImplementedError) as error:
        assert re.search("not implemented|expected scalar type|Low precision dtypes not supported", str(error)), error
        pytest.skip("PyTorch has no kernel for it")
    for x, cotangent in zip(case.x, pulled(case), strict=True):
        assert (cotangent.shape, cotangent.dtype) == (x.shape, torch.bfloat16)
        assert cotangent.isfinite().all()
