"""Everyday functions of PyTorch, some one operator, some many: gradients, products, second derivatives.

What is not done is refused by name and with the user's line; nothing crashes, and nothing comes out wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import pullback
from pullback import derivatives
from pullback.compilation import Compiled
from support import reference

pytestmark = [
    pytest.mark.filterwarnings("ignore:index_reduce.. is in beta"),
    pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter"),
]

MASK = tensor([[True, False, True], [False, True, True]])
PLACES = tensor([[0, 2, 0], [1, 1, 0]])
SOME = tensor([0, 0, 2])
FLAT = tensor([0, -2, 0])
FREQUENCIES = tensor([1, 2, 1, 3])
INF = float("inf")

X, Y, SQUARE, TALL = (2, 3), (2, 3), (3, 3), (4, 3)

EVERYDAY: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "scatter_reduce_sum": (lambda x, s: x.scatter_reduce(1, PLACES, s, "sum"), (X, Y)),
    "scatter_reduce_mean": (lambda x, s: x.scatter_reduce(1, PLACES, s, "mean", include_self=False), (X, Y)),
    "scatter_reduce_prod": (lambda x, s: x.scatter_reduce(1, PLACES, s, "prod"), (X, Y)),
    "scatter_reduce_amax": (lambda x, s: x.scatter_reduce(1, PLACES, s, "amax"), (X, Y)),
    "index_reduce": (lambda x, s: x.index_reduce(1, SOME, s, "prod"), (X, Y)),
    "index_add": (lambda x, s: x.index_add(1, SOME, s, alpha=2), (X, Y)),
    "masked_scatter": (lambda x, s: x.masked_scatter(MASK, s), (X, (2, 3))),
    "masked_scatter_row": (lambda x, s: x.masked_scatter(MASK[0], s), (X, (4,))),
    "put": (lambda x, s: x.put(tensor([0, 4]), s), (X, (2,))),
    "put_accumulate": (lambda x, s: x.put(FLAT, s, accumulate=True), (X, (3,))),
    "take": (lambda x: x.take(FLAT), (X,)),
    "take_along_dim": (lambda x: x.take_along_dim(PLACES, 1), (X,)),
    "dist": (lambda x, y: torch.dist(x, y, 3), (X, Y)),
    "logcumsumexp": (lambda x: x.logcumsumexp(-2), (X,)),
    "median": (lambda x: x.median() * x.nanmedian(), (X,)),
    "median_along": (lambda x: x.median(1)[0] * x.nanmedian(1).values, (X,)),
    "nansum": (lambda x: x.nansum(1), (X,)),
    "aminmax": (lambda x: torch.stack(torch.aminmax(x)), (X,)),
    "kthvalue": (lambda x: x.kthvalue(2, 1)[0], (X,)),
    "mode": (lambda x: x.mode(1)[0], (X,)),
    "quantile": (lambda x: x.quantile(0.3, 1), (X,)),
    "cov": (lambda x: x.cov(), ((3, 4),)),
    "cov_weighted": (
        lambda x, w: torch.cov(x, correction=0, fweights=FREQUENCIES, aweights=w.abs()),
        ((3, 4), (4,)),
    ),
    "corrcoef": (lambda x: torch.corrcoef(x), ((3, 4),)),
    "tile": (lambda x: x.tile(2, 2), (X,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(tensor([1, 2, 0]), 1, output_size=3), (X,)),
    "meshgrid": (lambda x, y: torch.stack(torch.meshgrid(x, y, indexing="ij")), ((3,), (2,))),
    "tensor_split": (lambda x: x.tensor_split(2, 1)[1], (X,)),
    "addr": (lambda x, a, b: torch.addr(x, a, b, beta=2, alpha=3), (X, (2,), (3,))),
    "kron": (lambda x, y: torch.kron(x, y), (X, (2, 2))),
    "trapezoid": (lambda y, x: torch.trapezoid(y, x), (X, (3,))),
    "cumulative_trapezoid": (lambda y: torch.cumulative_trapezoid(y), (X,)),
    "cross": (lambda x, y: torch.linalg.cross(x, y), (X, (1, 3))),
    "renorm": (lambda x: x.renorm(2, 0, 1.0), (X,)),
    "rot90": (lambda x: x.rot90(), (X,)),
    "diff": (lambda x: x.diff(n=2, prepend=x[:, :1]), (X,)),
    "tril_indices": (lambda x: x[tuple(torch.tril_indices(3, 3))], (SQUARE,)),
    "block_diag": (lambda x, y: torch.block_diag(x, y), (X, (1, 2))),
    "diag_embed": (lambda x: x.diag_embed(), (X,)),
    "tensordot": (lambda x, y: torch.tensordot(x, y, dims=([1], [0])), (X, (3, 2))),
    "cumsum": (lambda x: x.cumsum(1) * x.cumsum(0), (X,)),
    "cumprod": (lambda x: x.cumprod(1), (X,)),
    "bilinear": (lambda x, y, w: torch.nn.functional.bilinear(x, y, w), (X, (2, 2), (4, 3, 2))),
    "pairwise_distance": (lambda x, y: torch.nn.functional.pairwise_distance(x, y), (X, Y)),
    "cdist_by_products": (lambda x, y: torch.cdist(x, y), ((27, 2), (4, 2))),
    "gradient": (lambda x: torch.gradient(x, dim=1)[0], (X,)),
    "float_power": (lambda x: (x * x).float_power(1.5), (X,)),
    "matrix_power": (lambda x: torch.linalg.matrix_power(x, 3), (SQUARE,)),
}


@dataclass(frozen=True)
class Case:
    """A scalar function that is not linear in the operator's result, at a point, with a tangent."""

    loss: Callable[..., Tensor]
    x: tuple[Tensor, ...]
    v: tuple[Tensor, ...]

    @property
    def argnums(self) -> tuple[int, ...]:
        return tuple(range(len(self.x)))


def case_of(f: Callable[..., Tensor], *x: Tensor) -> Case:
    u = torch.rand(f(*x).shape, dtype=torch.float64)
    return Case(lambda *x: (f(*x).sin() * u).sum(), x, tuple(torch.randn_like(t) for t in x))


def random(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.rand(shape, dtype=torch.float64) * 2 - 0.7 for shape in shapes)


def inner(a: Any, b: Any) -> Tensor:
    return sum(((s * t).sum() for s, t in zip(a, b, strict=True)), torch.zeros((), dtype=torch.float64))


def ours(case: Case) -> tuple[Any, Tensor, Any]:
    """The gradient, the derivative along v, and the Hessian times v."""
    gradient = pullback.grad(case.loss, case.argnums)
    second = pullback.grad(lambda *x: inner(gradient(*x), case.v), case.argnums)
    return gradient(*case.x), pullback.jvp(case.loss, case.x, case.v)[1], second(*case.x)


@reference()
def expected(case: Case) -> tuple[Any, Tensor, Any]:
    x = [t.clone().requires_grad_() for t in case.x]
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad(case.loss(*x), x, create_graph=True, **options)
    slope = inner(gradient, case.v)
    second = torch.autograd.grad(slope, x, **options) if slope.requires_grad else tuple(map(torch.zeros_like, x))
    return tuple(g.detach() for g in gradient), slope.detach(), second


def agree(f: Callable[..., Tensor], written_out: Callable[..., Tensor], x: tuple[Tensor, ...]) -> None:
    """Our derivatives of f are those that PyTorch has of the same function put otherwise."""
    torch.manual_seed(1)
    case = case_of(f, *x)
    torch.manual_seed(1)
    for mine, theirs in zip(ours(case), expected(case_of(written_out, *x)), strict=True):
        close(mine, theirs)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_function(name: str) -> None:
    f, shapes = EVERYDAY[name]
    case = case_of(f, *random(*shapes))
    for mine, theirs in zip(ours(case), expected(case), strict=True):
        close(mine, theirs)


# ------------------------------------------------------- where PyTorch has no second derivative, or none at all


def by_products(x: Tensor, index: Tensor, source: Tensor, include_self: bool) -> Tensor:
    """`scatter_reduce` along axis 1 by products, written out."""
    rows = []
    for r in range(x.shape[0]):
        groups = [[x[r, c]] if include_self or c not in index[r].tolist() else [] for c in range(x.shape[1])]
        for place, element in zip(index[r].tolist(), source[r], strict=False):
            groups[place].append(element)
        rows.append(torch.stack([multiplied(group) for group in groups]))
    return torch.stack(rows)


def multiplied(group: list[Tensor]) -> Tensor:
    result = group[0]
    for element in group[1:]:
        result = result * element
    return result


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
def test_products_of_groups_with_zeros(zeros: int, include_self: bool) -> None:
    """PyTorch refuses the second derivative where two zeros meet."""
    x, source = random((2, 3), (2, 5))
    index = tensor([[0, 0, 0, 2, 0], [1, 0, 1, 1, 2]])
    source[0, :zeros], source[1, 2], x[0, 0] = 0.0, 0.0, (0.0 if zeros == 1 else 0.3)
    agree(
        lambda x, s: x.scatter_reduce(1, index, s, "prod", include_self=include_self),
        lambda x, s: by_products(x, index, s, include_self),
        (x, source),
    )


@pytest.mark.parametrize("reduce", ["sum", "mean", "prod", "amax", "amin"])
def test_an_index_smaller_than_its_source(reduce: str) -> None:
    """PyTorch's own formulas fail on some of these."""
    index = tensor([[0, 2], [1, 1]])
    agree(
        lambda x, s: x.scatter_reduce(1, index, s, reduce),
        lambda x, s: x.scatter_reduce(1, index, s[:2, :2], reduce),
        random((3, 3), (4, 5)),
    )


def test_what_is_left_out_of_an_extreme_does_not_share_it() -> None:
    """PyTorch halves the derivative where an element that is left out happens to equal the maximum."""
    x, source = torch.zeros(2, dtype=torch.float64), tensor([-1.0, 0.0], dtype=torch.float64)
    gradient = pullback.grad(
        lambda x, s: x.scatter_reduce(0, tensor([0, 0]), s, "amax", include_self=False).sum(), (0, 1)
    )
    close(gradient(x, source), (tensor([0.0, 1.0]).double(), tensor([0.0, 1.0]).double()))


@pytest.mark.parametrize(("reduce", "same"), [("add", "sum"), ("multiply", "prod")])
def test_scatter_with_a_reduction(reduce: str, same: str) -> None:
    agree(
        lambda x, s: x.scatter(1, PLACES, s, reduce=reduce),
        lambda x, s: x.scatter_reduce(1, PLACES, s, same),
        random(X, Y),
    )


def test_scatter_of_a_number_with_a_reduction() -> None:
    (x,) = random(X)
    gradient = pullback.grad(lambda x: x.scatter(1, PLACES, 3.0, reduce="multiply").sum())(x)
    close(gradient, tensor([[9.0, 1.0, 3.0], [3.0, 9.0, 1.0]]).double())


def margins_between_labels(x: Tensor, labels: Tensor) -> Tensor:
    """`multilabel_margin_loss` of each row, as its documentation has it."""
    rows = []
    for scores, row in zip(x, labels.tolist(), strict=True):
        targets = row[: row.index(-1)] if -1 in row else row
        others = [k for k in range(len(scores)) if k not in targets]
        terms = [(1 - (scores[t] - scores[k])).clamp_min(0) for t in targets for k in others]
        rows.append(sum(terms, torch.zeros((), dtype=x.dtype)) / len(scores))
    return torch.stack(rows)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_labels_behind_the_first_that_is_none_do_not_count(reduction: str) -> None:
    """PyTorch's kernel leaves them out, the function that it takes the kernel apart by counts them as label 0."""
    labels = tensor([[0, 2, -1, 1], [-1, 0, 0, 0], [3, 2, 1, 0], [1, 1, -1, -1]])
    reduce = {"none": lambda t: t, "mean": torch.mean, "sum": torch.sum}[reduction]
    (x,) = random((4, 4))
    f = torch.nn.functional.multilabel_margin_loss
    agree(lambda x: f(x, labels, reduction=reduction), lambda x: reduce(margins_between_labels(x, labels)), (x,))
    close(pullback.vjp(lambda x: f(x, labels, reduction=reduction), x)[0], f(x, labels, reduction=reduction))
    close(pullback.grad(lambda x: f(x, labels[0]))(x[0]), 4 * pullback.grad(lambda x: f(x, labels))(x)[0])


HEADS = [((2, 4, 3, 2), (2, 2, 3, 2)), ((6, 3, 2), (2, 3, 2)), ((1, 2, 3, 2), (1, 2, 3, 2))]


@pytest.mark.parametrize("options", [{}, {"is_causal": True, "scale": 0.3}], ids=["plain", "causal"])
@pytest.mark.parametrize(("queries", "keys"), HEADS)
def test_heads_of_attention_that_share_keys(
    queries: tuple[int, ...], keys: tuple[int, ...], options: dict[str, Any]
) -> None:
    attention, groups = torch.nn.functional.scaled_dot_product_attention, queries[-3] // keys[-3]

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
        with sdpa_kernel(SDPBackend.MATH):
            return attention(q, k, v, **options)

    x = random(queries, keys, keys)
    agree(lambda q, k, v: attention(q, k, v, enable_gqa=True, **options), repeated, x)
    leaves = [t.clone().requires_grad_() for t in x]
    with pullback.record() as tape:
        loss = attention(*leaves, enable_gqa=True, **options).sin().sum()
    with reference():
        close(tape.grad(loss, leaves), list(torch.func.grad(lambda *x: repeated(*x).sin().sum(), (0, 1, 2))(*x)))


def test_a_function_that_pytorch_calls_is_traced_like_the_rest() -> None:
    def distance(x: Tensor, y: Tensor) -> Tensor:
        return 1 - torch.nn.functional.cosine_similarity(x, y)

    def loss(*x: Tensor) -> Tensor:
        return torch.nn.functional.triplet_margin_with_distance_loss(*x, distance_function=distance, reduction="none")

    agree(loss, lambda a, p, n: (1 + distance(a, p) - distance(a, n)).clamp_min(0), random((4, 3), (4, 3), (4, 3)))


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, 1.5, INF])
def test_distances_of_few_points(p: float) -> None:
    """PyTorch has the gradient alone."""
    agree(
        lambda x, y: torch.cdist(x, y, p),
        lambda x, y: torch.linalg.vector_norm(x[:, :, None] - y[:, None], p, -1),
        random((2, 3, 2), (2, 4, 2)),
    )


# ---------------------------------------------------------------- running sums


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """What is compiled during a test."""
    compiled: list[Compiled] = []
    original = derivatives.compile_derivative

    def compile_derivative(*args: Any, **kwargs: Any) -> Compiled:
        compiled.append(original(*args, **kwargs))
        return compiled[-1]

    monkeypatch.setattr(derivatives, "compile_derivative", compile_derivative)
    return compiled


def test_a_running_sum_takes_linear_time_both_ways(programs: list[Compiled]) -> None:
    """Neither sweep builds the triangular matrix, with one column and with several."""
    (x,) = random((3, 5))
    weights = torch.rand(5, 2, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return x.cumsum(1).sin().sum()

    close(pullback.grad(f)(x), x.cumsum(1).cos().flip(1).cumsum(1).flip(1))
    close(pullback.jvp(f, (x,), (x,))[1], (x.cumsum(1).cos() * x.cumsum(1)).sum())
    columns = pullback.jacobian(lambda w: (x @ (w * weights)[:, :1]).cumsum(0).sin(), order="forward")(weights)
    assert columns.shape == (3, 1, 5, 2)
    used = {node.op for one in programs for node in one.program.graph.nodes}
    assert "aten.cumsum.default" in used
    assert "aten.le.Tensor" not in used


def test_a_jacobian_of_running_sums_keeps_its_rows_apart() -> None:
    (x,) = random((2, 4))
    jacobian = pullback.jacobian(lambda x: x.exp().cumsum(1))(x)
    lower = torch.ones(4, 4, dtype=torch.float64).tril()
    close(jacobian, torch.einsum("ab,kj,aj->akbj", torch.eye(2).double(), lower, x.exp()))


# ---------------------------------------------------------------- refusals

REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "masked_select": lambda x: x.masked_select(x > 0),
    "index.Tensor": lambda x: x[x > 0],
    "histc": lambda x: x.histc(3) * x.sum(),
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_name(name: str) -> None:
    (x,) = random(X)
    with pytest.raises((pullback.CaptureError, pullback.MissingRuleError), match=name) as refusal:
        pullback.grad(lambda x: REFUSED[name](x).sum())(x)
    assert "test_everyday_operators.py" in str(refusal.value)
