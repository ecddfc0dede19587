"""Every rule through the whole compiler: products, Jacobians and second derivatives of each operator on each sample.

`test_rules.py` asks whether a local Jacobian is right; here the operator is captured inside a function, its Jacobian
accumulated, lowered, emitted and run.  Comparing with a random direction is comparing with every entry: an error that
happens to be orthogonal to it has probability zero.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback
from pullback.graph import FLOATING
from pullback.rules import RULES, B, I, IndexMap, Sample, T, complexes, fourier, linalg
from pullback.torch_private import overload
from support import reference

pytestmark = pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")

ELSEWHERE = complexes.RULES | fourier.RULES | linalg.RULES  # see test_rules_complex.py and test_linalg.py


def selects(op: str, sample: Sample) -> bool:
    """Whether a mask decides on the shape of the result: traces refuse that, and test_record_mutations.py has it."""
    masks = [a for argument in sample.args for a in (argument if isinstance(argument, tuple) else (argument,))]
    return op in ("aten.index.Tensor", "aten.masked_select.default") and any(isinstance(a, B) for a in masks)


REAL = [
    op
    for op, rule in RULES.items()
    if not rule.samples[0].is_complex and op not in ELSEWHERE and not selects(op, rule.samples[0])
]
SAMPLES = [
    pytest.param(op, k, id=f"{op}-{k}")
    for op in REAL
    for k, sample in enumerate(RULES[op].samples)
    if not sample.is_complex and not selects(op, sample)
]
# Of an operator that only moves entries the second derivative is zero whatever the sample; it is tried on two of them.
CURVED = [case for case in SAMPLES if case.values[1] < 2 or not isinstance(RULES[case.values[0]], IndexMap)]

NOT_FOR_PYTORCH = (  # what PyTorch says where it cannot differentiate, or stumbles over its own formula
    "Autograd not support dtype|not implemented|returned an invalid gradient|not differentiable with respect|"
    "Expected a proper Tensor|"
    r"output_padding is not supported|shape '\[0\]' is invalid"
)
CONSTANT_STATISTICS = {  # further results that PyTorch holds for constants
    "aten.native_layer_norm.default",
    "aten._native_batch_norm_legit.no_stats",
    "aten._native_batch_norm_legit_functional.default",
}
WRONG_IN_PYTORCH = {("aten.pow.Scalar", 2)}  # d²(0ˣ)/dx² is not a number there
INEXACT = {"aten.hardsigmoid.default": 1e-7}  # PyTorch multiplies by 1 / 6 in single precision


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
    return reduce(torch.add, [(s * t).sum() for s, t in zip(a, b, strict=True)])


def case_of(op: str, sample: Sample, dtype: torch.dtype = torch.float64) -> Case:
    torch.manual_seed(0)
    x: list[Tensor] = []
    args, kwargs = drawn((sample.args, dict(sample.kwargs)), dtype, x)
    call = overload(op)
    v = tuple(torch.randn(t.shape, dtype=torch.float64).to(dtype) for t in x)
    torch.manual_seed(1)
    operands = iter(x)
    results = as_tuple(call(*filled(args, operands), **filled(kwargs, operands)))
    chosen = [k for k in RULES[op].differentiable if name_of(results[k].dtype) in FLOATING]
    u = tuple(torch.randn(results[k].shape, dtype=torch.float64).to(results[k].dtype) for k in chosen)

    def f(*operands: Tensor) -> tuple[Tensor, ...]:
        rest = iter(operands)
        results = as_tuple(call(*filled(args, rest), **filled(kwargs, rest)))
        return tuple(results[k] for k in chosen)

    return Case(f, tuple(x), v, u)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


OPERAND = object()  # where a floating tensor goes


def drawn(tree: Any, dtype: torch.dtype, operands: list[Tensor]) -> Any:
    """Random tensors in place of I and B, and `OPERAND` in place of what is floating, which goes to `operands`."""
    if isinstance(tree, (tuple, dict)):
        return mapped(tree, lambda item: drawn(item, dtype, operands))
    if isinstance(tree, I):
        return torch.randint(tree.bound, tree.shape)
    if isinstance(tree, B):
        return torch.rand(tree.shape) < 0.5
    if isinstance(tree, T):
        low, high = tree.domain
        tree = low + (high - low) * torch.rand(tree.shape, dtype=torch.float64)
    if not isinstance(tree, Tensor) or not tree.is_floating_point():
        return tree
    operands.append(tree.to(dtype))
    return OPERAND


def mapped(tree: Any, f: Callable[[Any], Any]) -> Any:
    return {k: f(item) for k, item in tree.items()} if isinstance(tree, dict) else tuple(map(f, tree))


def filled(tree: Any, operands: Iterator[Tensor]) -> Any:
    """The same arguments with the next operands in their places."""
    if isinstance(tree, (tuple, dict)):
        return mapped(tree, lambda item: filled(item, operands))
    return next(operands) if tree is OPERAND else tree


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
            if not re.search(NOT_FOR_PYTORCH, str(error)):
                raise
    return Expected(by_differences(case), differences_of_gradient(case), 1e-6)


@reference()
def by_pytorch(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    x = [t.detach().requires_grad_() for t in case.x]
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
def test_first_order(op: str, k: int) -> None:
    """A product, and the Jacobian in one of the two orders, in turn: uᵀJ is the gradient of ⟨u, y⟩."""
    case = case_of(op, RULES[op].samples[k])
    theirs = expected(case, op, k)
    close(pulled(case), theirs.gradient, theirs.tolerance)
    jacobian = seeded(pullback.jacobian(case.f, case.argnums, order=("forward", "reverse")[k % 2]), *case.x)
    close(rows_along(jacobian, case), theirs.gradient, theirs.tolerance)


@pytest.mark.parametrize(("op", "k"), CURVED)
def test_second_order(op: str, k: int) -> None:
    case = case_of(op, RULES[op].samples[k])
    theirs = expected(case, op, k)
    close(second(case), theirs.product, theirs.tolerance)


def rows_along(jacobian: Sequence[Sequence[Tensor]], case: Case) -> list[Tensor]:
    """uᵀJ."""
    blocks = [[torch.tensordot(u, block, u.dim()) for block in row] for u, row in zip(case.u, jacobian, strict=True)]
    return [torch.stack(column).sum(0) for column in zip(*blocks, strict=True)]


@pytest.mark.parametrize("op", REAL)
def test_every_way_to_a_derivative_is_the_same(op: str) -> None:
    """⟨u, Jv⟩ = ⟨Jᵀu, v⟩, the Jacobian has both for products, the Hessian is symmetric, and differences confirm it."""
    case = case_of(op, RULES[op].samples[0])
    rows, pushed = pulled(case), seeded(pullback.jvp, case.f, case.x, case.v)[1]
    close([inner(pushed, case.u)], [inner(rows, case.v)], 1e-9)
    close(rows, by_differences(case), 1e-5)
    jacobian = seeded(pullback.jacobian(case.f, case.argnums, order="reverse"), *case.x)
    for tangent, blocks in zip(pushed, jacobian, strict=True):
        columns = [torch.tensordot(block, v, v.dim()) for block, v in zip(blocks, case.v, strict=True)]
        torch.testing.assert_close(torch.stack(columns).sum(0), tangent, rtol=1e-9, atol=1e-10)
    hessian = seeded(pullback.hessian(case.loss, case.argnums), *case.x)
    matrix = assembled(hessian, case.x)
    close([matrix], [matrix.T], 1e-9)
    close([matrix @ flat(case.v)], [flat(expected(case, op, 0).product)], 1e-6)


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


@pytest.mark.parametrize("op", REAL)
def test_single_precision(op: str) -> None:
    case = case_of(op, RULES[op].samples[0], torch.float32)
    ours, theirs = pulled(case), expected(in_double(case), op, 0)
    assert all(t.dtype == torch.float32 for t in ours)
    close([t.double() for t in ours], theirs.gradient, 1e-3)


def in_double(case: Case) -> Case:
    x, v, u = (tuple(t.double() for t in group) for group in (case.x, case.v, case.u))
    return replace(case, x=x, v=v, u=u)


@pytest.mark.parametrize("op", REAL)
def test_bfloat16(op: str) -> None:
    try:
        case = case_of(op, RULES[op].samples[0], torch.bfloat16)
    except RuntimeError as error:
        if not re.search("not implemented|expected scalar type|Low precision dtypes not supported", str(error)):
            raise
        pytest.skip("PyTorch has no kernel for it")
    for x, cotangent in zip(case.x, pulled(case), strict=True):
        assert (cotangent.shape, cotangent.dtype) == (x.shape, torch.bfloat16)
        assert cotangent.isfinite().all()


# ---------------------------------------------------------------- memory layouts and empty tensors

COMMON = """
add.Tensor sub.Tensor mul.Tensor div.Tensor pow.Tensor_Scalar maximum.default where.self neg.default exp.default
log.default sqrt.default rsqrt.default sin.default cos.default tanh.default sigmoid.default relu.default gelu.default
silu.default softplus.default leaky_relu.default elu.default abs.default clamp.default masked_fill.Scalar erf.default
mm.default bmm.default addmm.default mv.default dot.default sum.default sum.dim_IntList mean.default mean.dim
amax.default max.dim prod.default cumsum.default logsumexp.default var.correction linalg_vector_norm.default
sort.default topk.default view.default permute.default expand.default squeeze.dim unsqueeze.default slice.Tensor
select.int cat.default split.Tensor flip.default gather.default index_select.default embedding.default index.Tensor
index_put.default scatter_add.default constant_pad_nd.default diagonal.default tril.default native_layer_norm.default
_softmax.default _log_softmax.default convolution.default avg_pool2d.default max_pool2d_with_indices.default
mse_loss.default
""".split()
WITHOUT_TIES = {"aten.sort.default", "aten.topk.default"}  # among equal entries any order is right


def spread(x: Tensor) -> Tensor:
    """The same numbers with gaps between them in memory."""
    return torch.stack([x, -x], -1)[..., 0]


def transposed(x: Tensor) -> Tensor:
    """The same numbers with the axes in reverse order in memory."""
    axes = tuple(range(x.dim()))[::-1]
    return x.permute(axes).contiguous().permute(axes)


def repeated(x: Tensor) -> Tensor:
    """One row for all: entries along the first axis share their memory."""
    return x[:1].expand(x.shape) if x.dim() and x.numel() else x


@pytest.mark.parametrize("op", [name for name in map("aten.{}".format, COMMON) if name in RULES])
def test_memory_layouts(op: str) -> None:
    """A program compiled for one layout serves every other: layout is no part of the signature."""
    contiguous, strided = (case_of(op, RULES[op].samples[0]) for _ in range(2))
    strided = replace(strided, x=tuple(map(spread, strided.x)))
    for case in (strided, contiguous):
        for layout in (Tensor.contiguous, spread, transposed, repeated):
            if op not in WITHOUT_TIES or layout is not repeated:
                check_layout(replace(case, x=tuple(map(layout, case.x)), u=tuple(map(layout, case.u))), op)


def check_layout(case: Case, op: str) -> None:
    try:
        case.f(*case.x)
    except RuntimeError as error:  # as in PyTorch, `view` depends on the layout
        if "view size is not compatible" not in str(error):
            raise
    else:
        close(pulled(case), expected(case, op, 0).gradient)


EMPTY: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "relu": (torch.relu, ((0, 3),)),
    "exp": (torch.exp, ((0,),)),
    "clamp": (lambda x: x.clamp(-1, 1), ((2, 0),)),
    "multiplied": (lambda x, y: x * y, ((0, 3), (3,))),
    "broadcast": (lambda x, y: x + y.exp(), ((0, 1), (1, 4))),
    "chosen": (lambda x, y: torch.where(x > 0, x, y), ((0, 3), (1, 3))),
    "sum": (lambda x: x.sum(), ((0, 3),)),
    "sum of rows": (lambda x: x.exp().sum(0), ((0, 3),)),
    "mean of columns": (lambda x: x.mean(1), ((0, 3),)),
    "product": (lambda x: x.prod(), ((0,),)),
    "cumulated": (lambda x: x.cumsum(0), ((0, 3),)),
    "largest": (lambda x: x.amax(1), ((0, 3),)),
    "softmax": (lambda x: torch.softmax(x, 1), ((0, 3),)),
    "outer": (lambda x, y: x @ y, ((2, 0), (0, 3))),
    "rows": (lambda x, y: x @ y, ((0, 2), (2, 3))),
    "columns": (lambda x, y: x @ y, ((3, 2), (2, 0))),
    "batches": (torch.bmm, ((0, 2, 2), (0, 2, 3))),
    "linear": (torch.nn.functional.linear, ((0, 2), (3, 2), (3,))),
    "inner": (torch.dot, ((0,), (0,))),
    "joined": (lambda x, y: torch.cat([x, y.sin()]), ((0, 3), (2, 3))),
    "stacked": (lambda x, y: torch.stack([x, y * x]), ((0, 3), (0, 3))),
    "transposed": (lambda x: x.t().exp(), ((0, 3),)),
    "reshaped": (lambda x: x.reshape(3, 0).sin(), ((0, 3),)),
    "expanded": (lambda x: x.expand(0, 3).cos(), ((1, 3),)),
    "nothing sliced": (lambda x: x[2:2].sin(), ((3, 2),)),
    "nothing narrowed": (lambda x: x.narrow(1, 0, 0) * 2, ((3, 2),)),
    "nothing selected": (lambda x: x[torch.empty(0, dtype=torch.int64)] ** 2, ((3, 2),)),
    "nothing gathered": (lambda x: x.gather(0, torch.empty(0, 2, dtype=torch.int64)), ((3, 2),)),
    "split": (lambda x: torch.cat([p * k for k, p in enumerate(x.split([0, 2, 1]))]), ((3, 2),)),
    "padded": (lambda x: torch.nn.functional.pad(x, (0, 2)).exp(), ((0, 3),)),
    "layer norm": (lambda x: torch.nn.functional.layer_norm(x, (3,)), ((0, 3),)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_tensors(name: str) -> None:
    f, shapes = EMPTY[name]
    torch.manual_seed(0)
    x = tuple(torch.rand(shape, dtype=torch.float64) for shape in shapes)
    v = tuple(map(torch.rand_like, x))
    case = Case(lambda *x: (f(*x),), x, v, (torch.rand_like(f(*x)),))
    theirs = Expected(*by_pytorch(case), 1e-9)
    close(pulled(case), theirs.gradient)
    close(second(case), theirs.product)
    for order in ("forward", "reverse"):
        jacobian = pullback.jacobian(case.f, case.argnums, order=order)(*x)
        close(rows_along(jacobian, case), theirs.gradient)
    pushed = pullback.jvp(case.f, x, v)[1]
    close([inner(pushed, case.u)], [inner(theirs.gradient, v)])


# ---------------------------------------------------------------- detachment


def stopped(x: Tensor) -> Tensor:
    return (x * x.detach()) ** 2


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_nothing_flows_through_detach_at_any_order(chunk_size: int | None) -> None:
    """x̄² x² has the derivatives 2 x̄² x, 2 x̄² and 0, where x̄ is x held constant."""
    x = torch.tensor(0.7, dtype=torch.float64)
    first = pullback.jacobian(stopped, chunk_size=chunk_size)
    second_order = pullback.jacobian(first, chunk_size=chunk_size)
    torch.testing.assert_close(first(x), 2 * x**3)
    torch.testing.assert_close(second_order(x), 2 * x**2)
    torch.testing.assert_close(pullback.grad(second_order)(x), torch.zeros_like(x))


def test_nothing_flows_through_detach_beside_a_jacobian_in_chunks() -> None:
    x = torch.tensor(0.7, dtype=torch.float64)
    inner_jacobian = pullback.jacobian(lambda x: (x.sin(), stopped(x)), has_aux=True, chunk_size=1)
    _, beside = pullback.jacobian(inner_jacobian)(x)
    torch.testing.assert_close(beside, 2 * x**3)
