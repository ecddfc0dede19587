"""Reductions into a tensor at positions that are data: each entry of the result puts a group of elements together.

A group is the elements of the source that go to one position and, unless it is left out, what stood there before.  A
mean is shared by all of them, an extreme evenly by those that attain it, as in PyTorch.  The derivative of a product is
the product of all others: scans over the sorted groups compute it without a division, so that it is exact, and can be
differentiated again, whatever is zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..expressions import Symbol, where
from ..index import Indices, plain_axes
from ..terms import Part, Scalar, Term
from .formulas import axis, constant, flip, shifted, tensor, truth, view
from .indexing import SELF, SOURCE, gathered, index_selected
from .kernels import bare
from .kinds import Function, I, Rule, Sample, T

Parts = Mapping[int, Sequence[Part]]
Derivative = Sequence[Symbol]  # the factors of an element's derivative: none are 1


@dataclass(frozen=True)
class _Groups:
    """What is reduced where.

    x: what stood there before.
    source: the elements that are read.
    index: where along `dim` each of them goes; of their shape.
    out, inp: which entry of x each entry of the source goes to.
    y: the result.
    """

    x: Symbol
    source: Symbol
    index: Symbol
    dim: int
    out: Indices
    inp: Indices
    y: Symbol

    def untouched(self) -> Symbol:
        """The entries of x to which nothing goes."""
        marked = (truth(self.x, self.x.shape, True), self.dim, self.index, False)
        return tensor("scatter.value", *marked, shape=self.x.shape, dtype="bool")

    def sums(self, before: Symbol, source: Symbol) -> Symbol:
        """The sum of each group."""
        args = (before, self.dim, self.index, source)
        return tensor("scatter_add.default", *args, shape=before.shape, dtype=before.dtype)

    def gathered(self, value: Symbol) -> Symbol:
        """For each element of the source what a tensor like x holds where it goes."""
        return tensor("gather.default", value, self.dim, self.index, shape=self.index.shape, dtype=value.dtype)

    def parts(self, of_self: Derivative, of_source: Derivative) -> Parts:
        """Both Jacobians."""
        i = plain_axes(self.x.shape)
        return {
            SELF: (Term(1, tuple(d[i] for d in of_self), i, i),),
            SOURCE: (Term(1, tuple(d[self.inp] for d in of_source), self.out, self.inp),),
        }


# ---------------------------------------------------------------- derivatives of one group


def _sum(groups: _Groups, include_self: bool) -> tuple[Derivative, Derivative]:
    return (), ()


def _ones(like: Symbol, shape: Sequence[int]) -> Symbol:
    return constant(like, "full.default", tuple(shape), 1, shape=shape, dtype="int64")


def _mean(groups: _Groups, include_self: bool) -> tuple[Derivative, Derivative]:
    """One over the number of elements."""
    number = groups.sums(_ones(groups.x, groups.x.shape), _ones(groups.x, groups.index.shape)) - int(not include_self)
    inverse = number.clamp_min(1).to(groups.x.dtype).reciprocal()
    return (inverse,), (groups.gathered(inverse),)


def _extreme(groups: _Groups, include_self: bool) -> tuple[Derivative, Derivative]:
    """Those that attain the extreme share evenly; what is left out is not one of them."""
    own, theirs = groups.x.eq(groups.y), groups.source.eq(groups.gathered(groups.y))
    counted = own if include_self else own & groups.untouched()
    inverse = groups.sums(counted.to("int64"), theirs.to("int64")).to(groups.x.dtype).reciprocal()
    return (own, inverse), (theirs, groups.gathered(inverse))


def _product(groups: _Groups, include_self: bool) -> tuple[Derivative, Derivative]:
    """The product of the source for x; of the others, and of x, for an element of the source."""
    x, others = groups.x, _others(groups)
    theirs = () if others is None else (others,)
    if not include_self:
        return (), theirs
    args = (_ones(x, x.shape).to(x.dtype), groups.dim, groups.index, groups.source, "prod")
    return (tensor("scatter_reduce.two", *args, shape=x.shape, dtype=x.dtype),), (*theirs, groups.gathered(x))


def _others(groups: _Groups) -> Symbol | None:
    """For each element of the source the product of the others that go to the same entry; None: there are none."""
    index, dim = groups.index, axis(groups.dim, groups.index.rank)
    if not index.rank or index.shape[dim] < 2:
        return None
    types = [(index.shape, index.dtype), (index.shape, "int64")]
    sort = index.builder.node("aten.sort.stable", bare((index,)), types, (("stable", True), ("dim", dim)))
    places, order = (Symbol(v, index.builder) for v in sort)
    sorted_source = _picked(groups.source, dim, order)
    ahead = _ahead(sorted_source, places, dim)
    behind = flip(_ahead(flip(sorted_source, dim), flip(places, dim), dim), dim)
    back = tensor("argsort.default", order, dim, shape=order.shape, dtype="int64")
    return _picked(ahead * behind, dim, back)


def _picked(value: Symbol, dim: int, index: Symbol) -> Symbol:
    return tensor("gather.default", value, dim, index, shape=index.shape, dtype=value.dtype)


def _ahead(x: Symbol, places: Symbol, dim: int) -> Symbol:
    """The product of the elements ahead of each in its run of equal places: a scan by doubling, in O(n log n)."""
    n = x.shape[dim]

    def from_ahead(value: Symbol, steps: int) -> Symbol:
        same = places.eq(shifted(places, dim, steps, -1))
        return where(same, shifted(value, dim, steps, 1.0), 1.0)

    product, reach = from_ahead(x, 1), 1
    while reach < n - 1:
        product, reach = product * from_ahead(product, reach), 2 * reach
    return product


_OF_GROUP: Mapping[str, Callable[[_Groups, bool], tuple[Derivative, Derivative]]] = {
    "sum": _sum,
    "add": _sum,
    "mean": _mean,
    "amax": _extreme,
    "amin": _extreme,
    "prod": _product,
    "multiply": _product,
}


def _reduced(groups: _Groups, reduce: str, include_self: bool) -> Parts:
    of_self, of_source = _OF_GROUP[reduce](groups, include_self)
    return groups.parts(of_self if include_self else (groups.untouched(),), of_source)


# ---------------------------------------------------------------- operators


def _scatter_reduced(
    x: Symbol, dim: int, index: Symbol, src: Symbol, reduce: str, *, include_self: bool = True, y: Symbol
) -> Parts:
    inp, out = gathered(x, dim, index)
    groups = _Groups(x, _corner(src, index.shape), index, dim, out, inp[: src.rank], y)
    return _reduced(groups, reduce, include_self)


def _scattered(x: Symbol, dim: int, index: Symbol, src: Symbol, *, reduce: str, y: Symbol) -> Parts:
    return _scatter_reduced(x, dim, index, src, reduce, y=y)


def _number_scattered(x: Symbol, dim: int, index: Symbol, value: Scalar, *, reduce: str, y: Symbol) -> Parts:
    """A position that is named twice takes the number twice."""
    ones = _ones(x, index.shape).to(x.dtype)
    source = tensor("full_like.default", ones, value, shape=index.shape, dtype=x.dtype)
    return {SELF: _scatter_reduced(x, dim, index, source, reduce, y=y)[SELF]}


def _index_reduced(
    x: Symbol, dim: int, index: Symbol, source: Symbol, reduce: str, *, include_self: bool = True, y: Symbol
) -> Parts:
    inp, out = index_selected(x, dim, index)
    along = tuple(index.size if d == axis(dim, source.rank) else 1 for d in range(source.rank))
    spread = view(index.to("int64"), along)
    if source.shape != along:
        spread = tensor("expand.default", spread, source.shape, shape=source.shape, dtype="int64")
    return _reduced(_Groups(x, source, spread, dim, out, inp[: source.rank], y), reduce, include_self)


def _corner(src: Symbol, shape: Sequence[int]) -> Symbol:
    """The leading elements along each axis: an index may be smaller than what it scatters."""
    for d, (n, size) in enumerate(zip(shape, src.shape, strict=False)):
        if n < size:
            smaller = (*src.shape[:d], n, *src.shape[d + 1 :])
            src = tensor("slice.Tensor", src, d, 0, n, shape=smaller, dtype=src.dtype)
    return view(src, shape)


X, CUBE = T(2, 3), T(2, 3, 2)
ALONG, DOWN = I(2, 4, bound=3), I(4, 2, bound=2)


def _samples(reduce: str) -> tuple[Sample, ...]:
    """Groups of every size, positions to which nothing goes, and what is left out."""
    return (
        *(Sample(X, 1, ALONG, T(2, 4), reduce), Sample(X, 0, DOWN, T(4, 2), reduce, include_self=False)),
        *(Sample(CUBE, -2, I(2, 5, 1, bound=3), T(2, 5, 1), reduce), Sample(T(), 0, I(3, bound=1), T(3), reduce)),
    )


def _index_samples(reduce: str) -> tuple[Sample, ...]:
    return (
        *(Sample(X, 1, I(4, bound=3), T(2, 4), reduce), Sample(T(4), 0, I(bound=4), T(1), reduce)),
        Sample(X, 0, I(5, bound=2), T(5, 3), reduce, include_self=False),
        Sample(CUBE, -2, I(4, bound=3), T(2, 4, 2), reduce),
    )


_SCATTERED = tuple(s for reduce in ("sum", "mean", "prod", "amax", "amin") for s in _samples(reduce))
_INDEXED = tuple(s for reduce in ("mean", "prod", "amax", "amin") for s in _index_samples(reduce))
_SOURCE = "scatter_reduce_backward of PyTorch; a product by the product rule"

RULES: dict[str, Rule] = {
    "aten.scatter_reduce.two": Function(_SCATTERED, body=_scatter_reduced, source=_SOURCE),
    "aten.index_reduce.default": Function(_INDEXED, body=_index_reduced, source=_SOURCE),
    "aten.scatter.reduce": Function(
        (Sample(X, 1, ALONG, T(2, 4), reduce="add"), Sample(X, 0, DOWN, T(4, 2), reduce="multiply")),
        body=_scattered,
        source=_SOURCE,
    ),
    "aten.scatter.value_reduce": Function(
        (Sample(X, 1, ALONG, 1.5, reduce="add"), Sample(X, 0, DOWN, 1.5, reduce="multiply")),
        body=_number_scattered,
        source=_SOURCE,
    ),
}

__all__ = ["RULES"]
