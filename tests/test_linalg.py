"""Linear algebra through the compiler: products of both orders against PyTorch and difference quotients.

A factorisation reads a triangle of its operand, or takes it for Hermitian; and its factors are unique only up to signs
and phases.  So each operator is put between a function that makes a suitable operand and one that does not see phases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback
from pullback.rules import linalg
from support import reference

pytestmark = pytest.mark.filterwarnings("ignore:torch.(lu_solve|triangular_solve|cholesky|lu) is deprecated")

REAL, COMPLEX = torch.float64, torch.complex128
Function = Callable[..., Any]


def hermitian(a: Tensor) -> Tensor:
    return a + a.mH


def definite(a: Tensor) -> Tensor:
    return a @ a.mH + torch.eye(a.shape[-1], dtype=a.dtype)


def phaseless(u: Tensor) -> Tensor:
    """What is left of orthonormal columns when each is multiplied by a phase."""
    return u[..., :, None, :] * u[..., None, :, :].conj()


def factors(a: Tensor) -> tuple[Tensor, Tensor]:
    lu, pivots, _ = torch.linalg.lu_factor_ex(a)
    return lu, pivots


def svd(a: Tensor, full: bool) -> tuple[Tensor, ...]:
    """The factors as far as phases leave them alone; of columns beyond the singular values, the space they span."""
    u, s, vh = torch.linalg.svd(a, full_matrices=full)
    k, v = s.shape[-1], vh.mH
    spaces = [w[..., k:] @ w[..., k:].mH for w in (u, v)] if full else []
    return (s, phaseless(u[..., :k]), phaseless(v[..., :k]), u[..., :k] @ vh[..., :k, :], *spaces)


def eigh(a: Tensor, triangle: str) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(hermitian(a), triangle)
    return values, phaseless(vectors)


def eig(a: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eig(a)
    return torch.view_as_real(values), phaseless(vectors)


def triangular(op: Function, lower: bool = True) -> Function:
    """An operator on a triangular matrix, whose other triangle is zero."""
    return lambda a, *rest: op(a.tril() if lower else a.triu(), *rest)


CASES: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "solve": (torch.linalg.solve, ((3, 3), (3, 2))),
    "solve for a vector": (torch.linalg.solve, ((2, 3, 3), (2, 3))),
    "solve from the right": (lambda a, b: torch.linalg.solve(a, b, left=False), ((3, 3), (2, 2, 3))),
    "solve a batch of one right side": (torch.linalg.solve, ((2, 3, 3), (3, 2))),
    **{
        f"solve_triangular {upper} {left} {unit}": (
            lambda a, b, o=(upper, left, unit): torch.linalg.solve_triangular(
                a, b if o[1] else b.mT, upper=o[0], left=o[1], unitriangular=o[2]
            ),
            ((2, 3, 3), (3, 2)),
        )
        for upper in (True, False)
        for left in (True, False)
        for unit in (True, False)
    },
    "triangular_solve": (lambda a, b: torch.triangular_solve(b, a, False, True)[0], ((3, 3), (2, 3, 2))),
    "cholesky": (lambda a: torch.linalg.cholesky(definite(a)), ((2, 3, 3),)),
    "cholesky upper": (lambda a: torch.linalg.cholesky(definite(a), upper=True), ((3, 3),)),
    "cholesky_ex": (lambda a: torch.linalg.cholesky_ex(definite(a))[0], ((3, 3),)),
    "cholesky_inverse": (lambda a: torch.cholesky_inverse(torch.cholesky(definite(a))), ((3, 3),)),
    "cholesky_inverse upper": (
        lambda a: torch.cholesky_inverse(torch.linalg.cholesky(definite(a), upper=True), upper=True),
        ((2, 3, 3),),
    ),
    "cholesky_solve": (triangular(lambda a, b: torch.cholesky_solve(b, a)), ((3, 3), (2, 3, 2))),
    "cholesky_solve upper": (triangular(lambda a, b: torch.cholesky_solve(b, a, upper=True), False), ((3, 3), (3, 1))),
    **{
        f"lu_factor {rows} {columns}": (lambda a: factors(a)[0], ((2, rows, columns),))
        for rows, columns in ((3, 3), (2, 4), (4, 2))
    },
    **{
        f"lu {rows} {columns}": (lambda a: torch.linalg.lu(a)[1:], ((rows, columns),))
        for rows, columns in ((3, 4), (4, 3))
    },
    "lu_unpack": (lambda a: torch.lu_unpack(*factors(a))[1:], ((3, 2),)),
    **{
        f"lu_solve {left} {adjoint}": (
            lambda a, b, o=(left, adjoint): torch.linalg.lu_solve(
                *factors(a), b if o[0] else b.mT, left=o[0], adjoint=o[1]
            ),
            ((2, 3, 3), (3, 2)),
        )
        for left in (True, False)
        for adjoint in (True, False)
    },
    **{f"qr {rows} {columns}": (torch.linalg.qr, ((2, rows, columns),)) for rows, columns in ((3, 3), (2, 4), (4, 2))},
    "qr complete": (lambda a: torch.linalg.qr(a, "complete"), ((2, 3),)),
    "inv": (torch.linalg.inv, ((2, 3, 3),)),
    "det": (torch.linalg.det, ((2, 3, 3),)),
    "slogdet": (lambda a: torch.linalg.slogdet(a), ((2, 3, 3),)),
    "pinv": (torch.linalg.pinv, ((2, 3, 2),)),
    "pinv of low rank": (lambda a, b: torch.linalg.pinv(a @ b), ((3, 2), (2, 4))),
    **{
        f"svd {rows} {columns} {full}": (lambda a, o=full: svd(a, o), ((rows, columns),))
        for rows, columns in ((3, 3), (2, 4), (4, 2))
        for full in (False, True)
    },
    "svdvals": (torch.linalg.svdvals, ((2, 3, 2),)),
    "eigh": (lambda a: eigh(a, "L"), ((2, 3, 3),)),
    "eigh upper": (lambda a: eigh(a, "U"), ((3, 3),)),
    "eigvalsh": (lambda a: torch.linalg.eigvalsh(hermitian(a)), ((3, 3),)),
    "eig": (eig, ((3, 3),)),
    "_linalg_eigvals": (torch.ops.aten._linalg_eigvals, ((3, 3),)),
    "lstsq": (lambda a, b: torch.linalg.lstsq(a, b, driver="gelsd")[:2], ((2, 4, 2), (2, 4, 3))),
    "lstsq for a vector": (lambda a, b: torch.linalg.lstsq(a, b)[0], ((2, 4, 2), (2, 4))),
    "lstsq with fewer equations": (lambda a, b: torch.linalg.lstsq(a, b)[0], ((2, 2, 4), (2, 2, 3))),
    "eigvals": (torch.linalg.eigvals, ((2, 3, 3),)),
    "matrix_exp": (torch.linalg.matrix_exp, ((2, 3, 3),)),
    "householder_product": (torch.linalg.householder_product, ((2, 4, 3), (2, 3))),
    "fewer reflections than columns": (torch.linalg.householder_product, ((4, 3), (2,))),
    **{
        f"ormqr {left} {transpose}": (
            lambda a, tau, b, o=(left, transpose): torch.ormqr(a, tau, b if o[0] else b.mT, *o),
            ((2, 4, 3), (2, 3), (2, 4, 2)),
        )
        for left in (True, False)
        for transpose in (True, False)
    },
    "matrix_power": (lambda a: torch.linalg.matrix_power(a, -2), ((3, 3),)),
    "cond": (torch.linalg.cond, ((3, 3),)),
    "nuclear norm": (lambda a: torch.linalg.norm(a, "nuc"), ((3, 2),)),
    "spectral norm": (lambda a: torch.linalg.norm(a, 2), ((3, 2),)),
    "multi_dot": (lambda *a: torch.linalg.multi_dot(a), ((2, 3), (3, 4), (4, 2))),
    "tensorsolve": (torch.linalg.tensorsolve, ((2, 3, 6), (2, 3))),
    "tensorinv": (lambda a: torch.linalg.tensorinv(a, 1), ((6, 2, 3),)),
    "cross": (torch.linalg.cross, ((2, 3), (1, 3))),
    "kron": (torch.kron, ((2, 3), (3, 2))),
}


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Re⟨a, b⟩ over all pairs."""
    return torch.stack([(s.conj() * t).real.sum() for s, t in zip(a, b, strict=True)]).sum()


@dataclass(frozen=True)
class Case:
    """A function at a point, with a random direction on both sides."""

    f: Callable[..., tuple[Tensor, ...]]
    x: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    u: tuple[Tensor, ...]

    def loss(self, *x: Tensor) -> Tensor:
        return inner(self.u, self.f(*x))


def case_of(name: str, dtype: torch.dtype) -> Case:
    operator, shapes = CASES[name]

    def f(*x: Tensor) -> tuple[Tensor, ...]:
        result = operator(*x)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    torch.manual_seed(0)
    x = tuple(torch.randn(shape, dtype=dtype) for shape in shapes)
    v = tuple(torch.randn(shape, dtype=dtype) for shape in shapes)
    return Case(f, x, v, tuple(torch.randn_like(y) for y in f(*x)))


def close(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@reference()
def by_pytorch(case: Case) -> tuple[Any, Any]:
    """PyTorch's gradient of the loss, and the product of its Hessian with v."""
    x = [t.clone().requires_grad_() for t in case.x]
    gradient = torch.autograd.grad(case.loss(*x), x, create_graph=True)
    along = inner(gradient, case.v)
    product = torch.autograd.grad(along, x, materialize_grads=True, allow_unused=True) if along.requires_grad else None
    product = [torch.zeros_like(t) for t in x] if product is None else product
    return tuple(t.detach() for t in gradient), tuple(t.detach() for t in product)


def products(case: Case) -> tuple[Any, Tensor, Any]:
    """The gradient of the loss, its derivative along v, and the product of its Hessian with v."""
    pulled = pullback.vjp(case.f, *case.x)[1](case.u)
    pushed = inner(case.u, pullback.jvp(case.f, case.x, case.v)[1])
    second = pullback.hvp(case.loss, case.x, case.v)[1]
    return pulled, pushed, second if len(case.x) > 1 else (second,)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("name", CASES)
def test_products_of_both_orders(name: str, dtype: torch.dtype) -> None:
    case = case_of(name, dtype)
    pulled, pushed, second = products(case)
    gradient, product = by_pytorch(case) if name not in WRONG_IN_PYTORCH | NOT_IN_PYTORCH else (pulled, second)
    close(pulled, gradient)
    close(pushed, inner(gradient, case.v))
    close(second, product, 1e-7)
    h = 1e-6
    low, high = ([s + step * t for s, t in zip(case.x, case.v, strict=True)] for step in (-h, h))
    close(pushed, (case.loss(*high) - case.loss(*low)) / (2 * h), 1e-5)


# It takes the derivative in the columns beyond the singular values for zero, even of the space that they span.
WRONG_IN_PYTORCH = {f"svd {rows} {columns} True" for rows, columns in ((2, 4), (4, 2))}
NOT_IN_PYTORCH = {"_linalg_eigvals"}


@pytest.mark.parametrize(
    "name", ["solve", "cholesky", "lu_factor 2 4", "qr 4 2", "svd 4 2 False", "eigh", "inv", "det"]
)
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_jacobians(name: str, order: str) -> None:
    case = case_of(name, REAL)

    def f(*x: Tensor) -> Tensor:
        return case.f(*x)[0]

    ours = pullback.jacobian(f, tuple(range(len(case.x))), order=order)(*case.x)
    with reference():
        theirs = torch.func.jacrev(f, tuple(range(len(case.x))))(*case.x)
    close(ours, theirs)


def test_the_determinant_of_a_singular_matrix_has_its_cofactors_for_a_derivative() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 1.0, 5.0]], dtype=REAL)
    cofactors = torch.zeros(3, 3, dtype=REAL)
    for i in range(3):
        for j in range(3):
            minor = a[[k for k in range(3) if k != i]][:, [k for k in range(3) if k != j]]
            cofactors[i, j] = (-1) ** (i + j) * torch.linalg.det(minor)
    close(pullback.grad(torch.linalg.det)(a), cofactors)


def far_apart(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, where axes of size 1 have strides that lead nowhere."""
    strides = [50 if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)]
    memory = torch.ones(1000, dtype=x.dtype)  # rows that exist, where it holds pivots
    return memory.as_strided(x.shape, strides).copy_(x)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 1, 2, 2), (2, 3, 1, 2, 2)], ids=str)
def test_systems_are_solved_whatever_the_strides_of_axes_of_size_one(shape: tuple[int, ...]) -> None:
    """PyTorch's kernel reads beyond the factors here."""
    a = torch.randn(shape, dtype=REAL) + 3 * torch.eye(shape[-1], dtype=REAL)
    factors, pivots, _ = torch.linalg.lu_factor_ex(a)
    b = torch.randn(*shape[:-1], 2, dtype=REAL)
    solve = pullback.compile(torch.linalg.lu_solve)
    found = solve(far_apart(factors.mT).mT, far_apart(pivots), b)
    torch.testing.assert_close(found, torch.linalg.solve(a, b))


def test_determinants_of_a_batch_with_an_axis_of_size_one() -> None:
    x, v = torch.randn(2, 2, 1, 1, 1, dtype=REAL, generator=torch.Generator().manual_seed(1)).unbind()
    for f in (torch.linalg.det, lambda x: torch.linalg.det(x @ x.mT + torch.eye(1, dtype=REAL))):
        with reference():
            expected = torch.func.jvp(f, (x,), (v,))[1]
        for _ in range(3):
            torch.testing.assert_close(pullback.jvp(f, (x,), (v,))[1], expected)


@pytest.mark.parametrize("f", [torch.linalg.inv, torch.linalg.cholesky, lambda a: torch.linalg.solve(a, a[0])])
def test_what_has_no_solution_raises_as_it_does_in_pytorch(f: Function) -> None:
    singular = torch.zeros(2, 2, dtype=REAL)
    pullback.grad(lambda a: f(a).sum())(torch.eye(2, dtype=REAL))  # the program is compiled, and run on other numbers
    with pytest.raises(torch.linalg.LinAlgError):
        pullback.grad(lambda a: f(a).sum())(singular)


def test_what_qr_does_not_determine_is_refused() -> None:
    a = torch.rand(4, 2, dtype=REAL)
    for mode in ("complete", "r"):
        with pytest.raises(pullback.errors.RuleError, match=f"mode='{mode}'"):
            pullback.grad(lambda a, m=mode: torch.linalg.qr(a, m)[1].sum())(a)


@cache
def reached() -> frozenset[str]:
    """The operators that the cases above are made of."""
    cases = [case_of(name, REAL) for name in CASES]
    return frozenset(node.op for case in cases for node in pullback.trace(case.f, *case.x).nodes)


@pytest.mark.parametrize("op", sorted(linalg.RULES.keys() - {"aten.linalg_lstsq.default"}))  # traced in parts
def test_every_operator_with_a_rule_is_checked(op: str) -> None:
    assert op in reached()
