"""Special functions, element by element; the same conventions as in `pointwise`."""

from math import pi, sqrt

from ..expressions import Operand, Symbol, where
from .kinds import POSITIVE, Domain, Pointwise, Rule

INSIDE: Domain = (0.1, 0.9)


def _away_from_zero(x: Symbol) -> Symbol:
    """X, and 1 where it is zero: the denominator of a quotient whose limit is put in its place."""
    return where(x.eq(0), 1, x)


def _i1(x: Symbol, y: Symbol) -> Operand:
    return where(x.eq(0), 0.5, x.i0() - y / _away_from_zero(x))


def _i1e(x: Symbol, y: Symbol) -> Operand:
    return where(x.eq(0), 0.5, x.special_i0e() - y * (x.sgn() + 1 / _away_from_zero(x)))


RULES: dict[str, Rule] = {
    "aten.special_erfcx.default": Pointwise(lambda x, y: 2 * x * y - 2 / sqrt(pi)),
    "aten.special_log_ndtr.default": Pointwise(lambda x: sqrt(2 / pi) / (x * -sqrt(0.5)).special_erfcx()),
    "aten.special_ndtri.default": Pointwise(lambda y: sqrt(2 * pi) * (y * y / 2).exp(), domain=INSIDE),
    "aten.i0.default": Pointwise(lambda x: x.special_i1()),
    "aten.special_i0e.default": Pointwise(lambda x, y: x.special_i1e() - x.sgn() * y, domain=POSITIVE),
    "aten.special_i1.default": Pointwise(_i1),
    "aten.special_i1e.default": Pointwise(_i1e, domain=POSITIVE),
}

__all__ = ["RULES"]
