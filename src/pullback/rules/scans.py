"""Scans along an axis: sums, products and log-sums of all that lies ahead.

Over a few elements their Jacobians are written out.  Over many, a sum of everything up to each element is a running
sum, and the others are applied as linear recurrences, in O(n) at every order; see `recurrences.py`.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from ..expressions import Symbol, where
from ..index import Indices, Label, fresh, of_label, plain_axes
from ..terms import HOLE, Application, Factor, Part, Term
from .differentials import Differential, of
from .formulas import axis, inserted, positions, shifted, tensor, view
from .kinds import Function, Rule, Sample, T, replaced

Parts = Mapping[Any, Sequence[Part]]
X = T(2, 3)
RECURRENCE = "pullback.recurrence.default"
SHORT = 16  # up to so many elements a Jacobian of n² entries is written out


# ---------------------------------------------------------------- written out


def _scan_sides(x: Symbol, dim: int) -> tuple[Indices, Indices, Label, Label]:
    """Output and input axes of a scan, and the labels (k, j) along its axis."""
    inp = plain_axes(x.shape)
    k, j = fresh(x.shape[dim]), fresh(x.shape[dim])
    return replaced(inp, dim, of_label(k)), replaced(inp, dim, of_label(j)), k, j


def _until(x: Symbol, k: Label, j: Label) -> Factor:
    """1 for j ≤ k, else 0."""
    n = k.size
    mask = positions(x, n) <= positions(x, n, 0, 2)
    return mask[of_label(k), of_label(j)]


def _sum(x: Symbol, dim: int, *, dtype: Any = None) -> Parts:
    """A running sum, which is found by its mask when it is lowered."""
    if x.rank == 0:
        return {0: (Term(1, (), (), ()),)}
    out, inp, k, j = _scan_sides(x, axis(dim, x.rank))
    return {0: (Term(1, (_until(x, k, j),), out, inp),)}


def _product(x: Symbol, dim: int, *, dtype: Any = None, y: Symbol) -> Parts:
    """∂y[k]/∂x[j] = Π x[i] over i ≤ k, i ≠ j; exact where elements are zero."""
    if x.rank == 0:
        return {0: (Term(1, (), (), ()),)}
    dim = axis(dim, x.rank)
    n, shape = x.shape[dim], inserted(x.shape, dim, x.shape[dim])
    if n > SHORT:
        ahead = of(x).to(y.dtype).times(shifted(y, dim, 1, 1.0))
        return {0: solved(ahead, x.to(y.dtype), dim - x.rank, False).parts}
    out, inp, k, j = _scan_sides(x, dim)
    rank = len(shape)
    diagonal = positions(x, n, dim, rank).eq(positions(x, n, dim + 1, rank))
    left_out = where(diagonal, 1.0, view(x.to(y.dtype), inserted(x.shape, dim, 1)))
    products = tensor("cumprod.default", left_out, dim + 1, shape=shape, dtype=y.dtype)
    entry = products[(*inp[:dim], of_label(j), of_label(k), *inp[dim + 1 :])]
    return {0: (Term(1, (entry, _until(x, k, j)), out, inp),)}


def _log_sum(x: Symbol, dim: int, *, y: Symbol) -> Parts:
    """∂y[k]/∂x[j] = exp(x[j] − y[k]) for j ≤ k; what the mask cuts off must not overflow."""
    if x.rank == 0:
        return {0: (Term(1, (), (), ()),)}
    dim = axis(dim, x.rank)
    n = x.shape[dim]
    if n > SHORT:
        return {0: _log_sum_applied(x, y, dim).parts}
    out, inp, k, j = _scan_sides(x, dim)
    difference = view(x, inserted(x.shape, dim + 1, 1)) - view(y, inserted(x.shape, dim, 1))
    until = positions(x, n, dim, x.rank + 1) <= positions(x, n, dim + 1, x.rank + 1)
    entry = where(until, difference, 0.0).exp()[(*inp[:dim], of_label(j), of_label(k), *inp[dim + 1 :])]
    return {0: (Term(1, (entry, _until(x, k, j)), out, inp),)}


# ---------------------------------------------------------------- applied


def _log_sum_applied(x: Symbol, y: Symbol, dim: int) -> Differential:
    """Dy[k] = exp(y[k−1] − y[k]) dy[k−1] + exp(x[k] − y[k]) dx[k]: shares, which cannot overflow."""
    before = shifted(y, dim, 1, -inf)
    kept, new = (where(part.eq(-inf), -inf, part - y).exp() for part in (before, x))
    return solved(of(x).times(new), kept, dim - x.rank, False)


def solved(d: Differential, a: Symbol, dim: int, adjoint: bool) -> Differential:
    """The differential through a linear recurrence."""
    push, pull = (Application(RECURRENCE, (a.value, HOLE, dim, way), leading=True) for way in (adjoint, not adjoint))
    return d.mapped(push, pull)


def _recurrence(a: Symbol, b: Symbol, dim: int, adjoint: bool, *, y: Symbol) -> Parts:
    """Ds[k] = a[k] ds[k−1] + (da[k] s[k−1] + db[k]): the same recurrence."""
    of_b = solved(of(b), a, dim, adjoint).parts
    n = b.shape[dim]
    if n < 2:
        return {1: of_b}
    d = of(a).expanded(b.shape)
    if adjoint:
        moved = d.conj().times(y).narrowed(dim, 1, n - 1).padded(dim, 0, n)
    else:
        moved = d.times(shifted(y, dim % b.rank, 1, 0))
    return {0: solved(moved, a, dim, adjoint).parts, 1: of_b}


SCANNED = (Sample(X, 1), Sample(X, 0), Sample(T(2, 3, 2), -2), Sample(T(1), 0), Sample(T(), 0))
_MANY = (*SCANNED, Sample(T(SHORT + 3), 0), Sample(T(2, SHORT + 2, 2), 1))

RULES: dict[str, Rule] = {
    "aten.cumsum.default": Function(SCANNED, body=_sum),
    "aten.cumprod.default": Function(_MANY, body=_product, source="product rule"),
    "aten.logcumsumexp.default": Function(_MANY, body=_log_sum, source="softmax of what lies ahead"),
    RECURRENCE: Function(
        tuple(
            Sample(T(*a), T(*b), dim, way)
            for a, b, dim in (((4,), (4,), -1), ((3,), (2, 3), -1), ((2, 5, 2), (2, 5, 2), -2), ((1,), (1,), -1))
            for way in (False, True)
        ),
        body=_recurrence,
        source="the product rule, step by step",
    ),
}

__all__ = ["RECURRENCE", "RULES", "SCANNED"]
