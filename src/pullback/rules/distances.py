"""Distances between points: norms of differences."""

from collections.abc import Mapping, Sequence
from math import inf

from ..expressions import Symbol, broadcast
from ..index import Lookup, plain_axes
from ..terms import Part, Term
from .formulas import constant, inserted, tensor, view
from .kinds import Function, Rule, Sample, T, broadcast_axes
from .reduction import norm_factors

Parts = Mapping[int, Sequence[Part]]


def _distance(x: Symbol, other: Symbol, p: float = 2, *, y: Symbol) -> Parts:
    """The norm of all differences."""
    if p == 0:
        return {}
    difference = x - other
    i = plain_axes(difference.shape)
    factors = tuple(norm_factors(difference, p, tuple(range(difference.rank)), i, y))
    own, theirs = (broadcast_axes(i, operand.shape) for operand in (x, other))
    return {0: (Term(1, factors, (), own),), 1: (Term(-1, factors, (), theirs),)}


def _pairwise_distances(a: Symbol, b: Symbol, p: float, compute_mode: int | None, *, y: Symbol) -> Parts:
    """Of every point of one set to every point of another; written in their differences, which nothing cancels in."""
    if p == 0:
        return {}
    left, right = view(a, inserted(a.shape, a.rank - 1, 1)), view(b, inserted(b.shape, b.rank - 2, 1))
    difference = left - right
    batch, (i, j, k) = plain_axes(broadcast([a.shape[:-2], b.shape[:-2]])), plain_axes(difference.shape[-3:])
    everywhere = (*batch, i, j, k)
    if p == inf:  # each coordinate that attains the maximum counts in full, unlike in `dist`
        attained = difference.abs().eq(view(y, (*y.shape, 1)))
        factors = [difference.sgn()[everywhere], attained[everywhere]]
    else:
        factors = norm_factors(difference, p, (difference.rank - 1,), everywhere, y)
    own, theirs = (broadcast_axes((*batch, n, k), operand.shape) for n, operand in ((i, a), (j, b)))
    out = (*batch, i, j)
    return {0: (Term(1, tuple(factors), out, own),), 1: (Term(-1, tuple(factors), out, theirs),)}


def _distances_within(x: Symbol, p: float = 2, *, y: Symbol) -> Parts:
    """Of every pair of points of one set, each pair once: those above the diagonal, row by row."""
    if p == 0 or not y.size:
        return {}
    shape = (x.shape[0], x.shape[0], 1)
    pairs = constant(x, "triu_indices.default", *shape, shape=(2, y.size), dtype="int64")
    first, second = (tensor("select.int", pairs, 0, k, shape=(y.size,), dtype="int64") for k in (0, 1))
    there, here = (
        tensor("index_select.default", x, 0, rows, shape=(y.size, x.shape[1]), dtype=x.dtype)
        for rows in (first, second)
    )
    difference = there - here
    pair, k = everywhere = plain_axes(difference.shape)
    if p == inf:
        attained = difference.abs().eq(view(y, (*y.shape, 1)))
        factors = [difference.sgn()[everywhere], attained[everywhere]]
    else:
        factors = norm_factors(difference, p, (1,), everywhere, y)
    sides = ((1, first), (-1, second))
    return {0: [Term(sign, tuple(factors), (pair,), (Lookup(rows.value, (pair,)), k)) for sign, rows in sides]}


_ORDERS = (2.0, 1.0, 3.0, 1.5, inf, 0.0)
_SOURCE = "norm_backward and _cdist_backward of PyTorch"

RULES: dict[str, Rule] = {
    "aten.dist.default": Function(
        (*(Sample(T(2, 3), T(2, 3), p) for p in _ORDERS if p), Sample(T(2, 1), T(3)), Sample(T(), T())),
        body=_distance,
        source=_SOURCE,
    ),
    "aten._pdist_forward.default": Function(
        (*(Sample(T(4, 3), p) for p in _ORDERS), Sample(T(2, 1)), Sample(T(1, 3))),
        body=_distances_within,
        source=_SOURCE,
    ),
    "aten._cdist_forward.default": Function(
        (
            *(Sample(T(3, 2), T(4, 2), p, None) for p in _ORDERS),
            *(Sample(T(2, 3, 2), T(1, 2, 2), 2.0, 2), Sample(T(2, 1, 3, 2), T(2, 2, 2), 3.0, None)),
            *(Sample(T(1, 1), T(2, 1), 2.0, None), Sample(T(3, 4), T(1, 4), 1.0, None)),
        ),
        body=_pairwise_distances,
        source=_SOURCE,
    ),
}

__all__ = ["RULES"]
