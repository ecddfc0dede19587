"""Fourier transforms, all of which are the complex one, from and to what is real or half of what is symmetric.

The complex transform is linear, and its adjoint is the opposite one with the same norm.
"""

from collections.abc import Sequence

from ..expressions import Symbol, where
from ..graph import complex_of
from ..terms import HOLE
from .differentials import Differential, of
from .formulas import positions, view
from .kernels import operation
from .kinds import C, Function, Parts, Rule, Sample, T

BY_NOTHING, BY_ROOT, BY_SIZE = 0, 1, 2


def _transformed(d: Differential, dims: Sequence[int], norm: int, forward: bool) -> Differential:
    """The complex transform of a differential."""
    push, pull = (
        operation("aten._fft_c2c.default", HOLE, tuple(dims), norm, way) for way in (bool(forward), not forward)
    )
    return d.mapped(push, pull)


def _complex(x: Symbol, dims: Sequence[int], norm: int, forward: bool) -> Parts:
    return {0: _transformed(of(x), dims, norm, forward).parts}


def _from_real(x: Symbol, dims: Sequence[int], norm: int, onesided: bool) -> Parts:
    """The complex transform of a real tensor, of which the second half of the last axis may be left out."""
    d = _transformed(of(x).to(complex_of(x.dtype)), dims, norm, True)
    if onesided:
        d = d.narrowed(dims[-1], 0, x.shape[dims[-1]] // 2 + 1)
    return {0: d.parts}


def _to_real(x: Symbol, dims: Sequence[int], norm: int, size: int) -> Parts:
    """The real part of the complex transform: what is left out of the last axis is the mirror image of what is not."""
    last = dims[-1] % x.rank
    given = x.shape[last]
    place = positions(x, given)
    alone = place.eq(0) | (place + place).eq(size)
    weights = where(alone, 1, 2).to(x.real_dtype)
    weighted = of(x).times(view(weights, tuple(given if k == last else 1 for k in range(x.rank))))
    return {0: _transformed(weighted.padded(last, 0, size), dims, norm, False).real().parts}


RULES: dict[str, Rule] = {
    "aten._fft_c2c.default": Function(
        (
            Sample(C(5), (0,), BY_NOTHING, True),
            Sample(C(2, 4), (1,), BY_SIZE, False),
            Sample(C(3, 2, 4), (0, 2), BY_ROOT, True),
        ),
        body=_complex,
    ),
    "aten._fft_r2c.default": Function(
        (
            Sample(T(5), (0,), BY_NOTHING, True),
            Sample(T(2, 4), (1,), BY_SIZE, False),
            Sample(T(3, 2, 4), (2, 0), BY_ROOT, True),
        ),
        body=_from_real,
    ),
    "aten._fft_c2r.default": Function(
        (
            Sample(C(3), (0,), BY_NOTHING, 4),
            Sample(C(2, 3), (1,), BY_SIZE, 5),
            Sample(C(3, 2, 4), (2, 0), BY_ROOT, 4),
        ),
        body=_to_real,
    ),
}

__all__ = ["RULES"]
