"""Reductions, and selections along an axis.

The labels of the reduced axes occur on the input side alone; what a derivative depends on is written as factors of the
shape that it has (an element of x, a result for each row), so that nothing is spread out before it has to be.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from ..expressions import Operand, Symbol, where
from ..index import Axis, Indices, Lookup, plain_axes
from ..terms import Factor, Part, Term, conjugated
from .formulas import axis, count, flip, kept, reduce, reduced_dims, shifted, tensor, view
from .kernels import saved
from .kinds import POSITIVE, Function, IndexMap, Rule, Sample, T, replaced
from .scans import SCANNED

Dims = int | Sequence[int] | None
Parts = Mapping[Any, Sequence[Part]]
X, P = T(2, 3), T(2, 3, domain=POSITIVE)
ALONG = (Sample(X, (1,)), Sample(X, (0, -1), True), Sample(T(2, 3, 2), (0, 2)), Sample(T(), (0,)))


def _sides(x: Symbol, dims: Sequence[int], keepdim: bool) -> tuple[Indices, Indices]:
    """Plain input axes, and those of them that are left."""
    inp = plain_axes(x.shape)
    if keepdim:
        return tuple(Axis(0) if d in dims else i for d, i in enumerate(inp)), inp
    return tuple(i for d, i in enumerate(inp) if d not in dims), inp


def _rows(value: Symbol, inp: Indices, dims: Sequence[int]) -> Factor:
    """An entry of a reduction's result, which may or may not have kept its axes."""
    if value.rank == len(inp):
        return value[inp]
    return Factor(value.value, tuple(i for d, i in enumerate(inp) if d not in dims))


# ---------------------------------------------------------------- sums and moments


def _sum(x: Symbol, dims: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> tuple[Indices, Indices]:
    return _sides(x, reduced_dims(dims, x.rank), keepdim)


def _mean(x: Symbol, dims: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Parts:
    over = reduced_dims(dims, x.rank)
    out, inp = _sides(x, over, keepdim)
    return {0: (Term(1 / max(count(x, over), 1), (), out, inp),)}


def _freedom(x: Symbol, over: Sequence[int], correction: float | None) -> float:
    """1 / (n − correction)."""
    rest = count(x, over) - (1 if correction is None else correction)
    return 1 / rest if rest > 0 else inf


def _moments(x: Symbol, dims: Dims, correction: float | None, keepdim: bool, y: Symbol | None) -> Parts:
    """The variance, or with its value `y` the standard deviation; zero where that is zero; and the mean."""
    over = reduced_dims(dims, x.rank)
    out, inp = _sides(x, over, keepdim)
    centred = x - reduce("mean.dim", x, over)
    scale = 2 * _freedom(x, over, correction)
    factors: tuple[Factor, ...] = (conjugated(centred[inp]),)
    if y is not None:
        scale, factors = scale / 2, (*factors, _rows(_inverse(y), inp, over))
    return {(0, 0): (Term(scale, factors, out, inp),), (1, 0): (Term(1 / max(count(x, over), 1), (), out, inp),)}


def _inverse(y: Symbol) -> Symbol:
    """1 / y, zero where y is zero."""
    return where(y.eq(0), 0, 1 / y)


def _variance(x: Symbol, dims: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Parts:
    return _moments(x, dims, correction, keepdim, None)


def _deviation(
    x: Symbol,
    dims: Dims = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
    ys: Sequence[Symbol | None],
) -> Parts:
    return _moments(x, dims, correction, keepdim, saved(ys, 0))


_MOMENTS = (
    *(Sample(X), Sample(X, (1,)), Sample(T(2, 3, 2), (0, 2))),
    *(Sample(X, (1,), correction=0, keepdim=True), Sample(X, (0,), correction=0.5)),
)
_OF_MOMENTS = "∂σ²/∂x = 2 (x − μ) / (n − c); the mean's own derivative drops out"

SUMS: dict[str, Rule] = {
    "aten.sum.default": IndexMap((Sample(X), Sample(T())), map=_sum),
    "aten.sum.dim_IntList": IndexMap((*ALONG, Sample(X, ()), Sample(X, None)), map=_sum),
    "aten.mean.default": Function((Sample(X), Sample(T())), body=_mean),
    "aten.mean.dim": Function((*ALONG, Sample(X, None)), body=_mean),
    "aten.var.correction": Function(_MOMENTS, body=_variance, source=_OF_MOMENTS),
    "aten.var_mean.correction": Function(_MOMENTS, differentiable=(0, 1), body=_variance, source=_OF_MOMENTS),
    "aten.std.correction": Function(_MOMENTS, body=_deviation, source=_OF_MOMENTS),
    "aten.std_mean.correction": Function(_MOMENTS, differentiable=(0, 1), body=_deviation, source=_OF_MOMENTS),
}

# ---------------------------------------------------------------- norms, log-sum-exp


def _logsumexp(x: Symbol, dims: Dims, keepdim: bool = False, *, y: Symbol) -> Parts:
    over = reduced_dims(dims, x.rank)
    out, inp = _sides(x, over, keepdim)
    share = (x - kept(y, x, over)).exp()
    return {0: (Term(1, (share[inp],), out, inp),)}


def _norm(
    x: Symbol, ord: float = 2, dims: Dims = None, keepdim: bool = False, *, dtype: Any = None, y: Symbol
) -> Parts:
    over = reduced_dims(dims, x.rank)
    out, inp = _sides(x, over, keepdim)
    return {0: () if ord == 0 else (Term(1, tuple(norm_factors(x, ord, over, inp, y)), out, inp),)}


def norm_factors(x: Symbol, ord: float, over: Sequence[int], inp: Indices, y: Symbol) -> list[Factor]:
    """∂‖x‖ₚ/∂x = sgn x · (|x| / ‖x‖ₚ)ᵖ⁻¹, conjugated; zero where the norm is zero."""
    if ord == 2:
        return [conjugated(x[inp]), _rows(_inverse(y), inp, over)]
    if ord == 1:
        return [conjugated(x.sgn()[inp])]
    if abs(ord) == inf:
        return [conjugated(x.sgn()[inp]), *_shared(x.abs(), y, over, inp)]
    share = x.abs() / kept(y, x, over)
    power = where(x.eq(0), 0, share ** (ord - 1))
    return [conjugated(x.sgn()[inp]), power[inp]]


def _shared(x: Symbol, y: Symbol, over: Sequence[int], inp: Indices) -> list[Factor]:
    """Which elements are the extreme one, and the inverse of how many they are: they share the derivative evenly."""
    extreme = kept(y, x, over)
    ties = x.eq(extreme) | (x.ne(x) & extreme.ne(extreme))  # a NaN is the greatest and the least
    number = reduce("sum.dim_IntList", ties, over, "int64").to(x.dtype)
    return [ties[inp], number.reciprocal()[inp]]


def _shared_or_nan(x: Symbol, y: Symbol, over: Sequence[int], inp: Indices) -> list[Factor]:
    """The same for `amax` and `amin`, all of whose derivatives are NaN where the result is."""
    ties = x.eq(kept(y, x, over)).to(x.dtype)
    share = ties / reduce("sum.dim_IntList", ties, over)
    return [share[inp]]


def _extreme(x: Symbol, *, y: Symbol) -> Parts:
    over = reduced_dims(None, x.rank)
    out, inp = _sides(x, over, False)
    return {0: (Term(1, tuple(_shared(x, y, over, inp)), out, inp),)}


def _extreme_along(x: Symbol, dims: Dims = None, keepdim: bool = False, *, y: Symbol) -> Parts:
    over = reduced_dims(dims, x.rank)
    out, inp = _sides(x, over, keepdim)
    return {0: (Term(1, tuple(_shared_or_nan(x, y, over, inp)), out, inp),)}


def _both_extremes(x: Symbol, *, dim: int | None = None, keepdim: bool = False, ys: Sequence[Symbol | None]) -> Parts:
    over = reduced_dims(dim, x.rank)
    out, inp = _sides(x, over, keepdim)
    known = {(k, 0): y for k, y in enumerate(ys) if y is not None}
    return {k: (Term(1, tuple(_shared_or_nan(x, y, over, inp)), out, inp),) for k, y in known.items()}


_NORMS = tuple(
    Sample(X, ord, *rest) for ord in (2, 1, 3, 2.5, inf, -inf, 0.5, 0) for rest in ((), ((1,),), ((0,), True))
)
_EVENLY = "evenly_distribute_backward and scale_grad_by_count of PyTorch"

NORMS: dict[str, Rule] = {
    "aten.logsumexp.default": Function(ALONG[:3], body=_logsumexp, source="softmax of the reduced axes"),
    "aten.linalg_vector_norm.default": Function(_NORMS, body=_norm, source="norm_backward of PyTorch"),
    "aten.amax.default": Function((*ALONG, Sample(X)), body=_extreme_along, source=_EVENLY),
    "aten.amin.default": Function((*ALONG, Sample(X)), body=_extreme_along, source=_EVENLY),
    "aten.max.default": Function((Sample(X), Sample(T())), body=_extreme, source=_EVENLY),
    "aten.min.default": Function((Sample(X), Sample(T())), body=_extreme, source=_EVENLY),
    "aten.median.default": Function((Sample(X), Sample(T())), body=_extreme, source=_EVENLY),
    "aten.nanmedian.default": Function((Sample(X), Sample(T())), body=_extreme, source=_EVENLY),
    "aten.aminmax.default": Function(
        (Sample(X), Sample(X, dim=1), Sample(X, dim=0, keepdim=True)),
        differentiable=(0, 1),
        body=_both_extremes,
        source=_EVENLY,
    ),
}

# ---------------------------------------------------------------- products and selections


def _but_one(x: Symbol, dim: int) -> Operand:
    """The product of all other elements along an axis; exact where some are zero.  Two scans, in O(n)."""
    if x.shape[dim] < 2:
        return 1
    return _before(x, dim) * flip(_before(flip(x, dim), dim), dim)


def _before(x: Symbol, dim: int) -> Symbol:
    """The product of the elements ahead of each."""
    return tensor("cumprod.default", shifted(x, dim, 1, 1.0), dim, shape=x.shape, dtype=x.dtype)


def _product_along(x: Symbol, dim: int, keepdim: bool = False, *, dtype: Any = None, y: Symbol) -> Parts:
    x = x.to(y.dtype)
    if x.rank == 0:
        return {0: (Term(1, (), (), ()),)}
    dim = axis(dim, x.rank)
    out, inp = _sides(x, (dim,), keepdim)
    others = _but_one(x, dim)
    return {0: (Term(1, (others[inp],) if isinstance(others, Symbol) else (), out, inp),)}


def _product(x: Symbol, *, dtype: Any = None, y: Symbol) -> Parts:
    others = _but_one(view(x.to(y.dtype), (x.size,)), 0)
    inp = plain_axes(x.shape)
    factors = (view(others, x.shape)[inp],) if isinstance(others, Symbol) else ()
    return {0: (Term(1, factors, (), inp),)}


def _along(position: int, default: int = -1) -> Any:
    """An index map for `(values, indices)` along the axis that is argument number `position`."""

    def image(x: Symbol, *args: Any, ys: Sequence[Symbol | None], **kwargs: Any) -> tuple[Indices, Indices]:
        dim = kwargs.get("dim", args[position - 1] if len(args) >= position else default)
        picked, dim = saved(ys, 1), axis(dim, x.rank)
        out = plain_axes(picked.shape)
        if x.rank == 0:
            return out, ()
        inp = out if picked.rank == x.rank else (*out[:dim], Axis(0), *out[dim:])
        return out, replaced(inp, dim, Lookup(picked.value, out))

    return image


_REDUCED = (Sample(X, 1), Sample(X, 0, True), Sample(T(2, 3, 2), -2), Sample(T(), 0))

SELECTIONS: dict[str, Rule] = {
    "aten.prod.default": Function((Sample(X), Sample(T()), Sample(T(1))), body=_product, source="product rule"),
    "aten.prod.dim_int": Function(_REDUCED, body=_product_along, source="product rule"),
    "aten.cummax.default": IndexMap(SCANNED, map=_along(1)),
    "aten.cummin.default": IndexMap(SCANNED, map=_along(1)),
    "aten.max.dim": IndexMap(_REDUCED, map=_along(1)),
    "aten.min.dim": IndexMap(_REDUCED, map=_along(1)),
    "aten.median.dim": IndexMap(_REDUCED, map=_along(1)),
    "aten.nanmedian.dim": IndexMap(_REDUCED, map=_along(1)),
    "aten.mode.default": IndexMap((Sample(X), *_REDUCED), map=_along(1)),
    "aten.kthvalue.default": IndexMap((Sample(X, 2), Sample(X, 1, 0, True)), map=_along(2)),
    "aten.sort.default": IndexMap((Sample(X), Sample(X, 0, True), Sample(T())), map=_along(1)),
    "aten.sort.stable": IndexMap(
        (Sample(X, stable=True), Sample(X, stable=True, dim=0, descending=True)), map=_along(1)
    ),
    "aten.topk.default": IndexMap((Sample(X, 2), Sample(X, 1, 0), Sample(X, 2, 1, False)), map=_along(2)),
}

RULES: dict[str, Rule] = {**SUMS, **NORMS, **SELECTIONS}

__all__ = ["NORMS", "RULES", "SELECTIONS", "SUMS", "norm_factors"]
