"""Operators that map each element by itself.

A formula returns the derivative of one element of the result in the matching element of the operand; a mask stands for
0 or 1.  Where a function has a kink, the formula says what PyTorch says there.
"""

from cmath import log as complex_log
from math import inf, log, pi, sqrt
from typing import Any

from ..expressions import Operand, Symbol, where
from ..index import plain_axes
from ..terms import Term
from .formulas import positions, tensor
from .kinds import POSITIVE, UNIT, B, Domain, Function, Pointwise, Rule, Sample, T, broadcast_axes, fused

Entry = Any  # a `Symbol`, or a number where the operator takes one
LN2, LN10 = log(2), log(10)
ABOVE_ONE: Domain = (1.1, 3.0)
INSIDE: Domain = (0.1, 0.9)
X23, P23 = T(2, 3), T(2, 3, domain=POSITIVE)


def inverse(a: Operand) -> Operand:
    """1 / a, for a tensor or a number."""
    return a.reciprocal() if isinstance(a, Symbol) else 1 / a if a else inf


def unless(mask: Symbol, derivative: Operand) -> Symbol:
    """The derivative, zero where the mask holds."""
    return where(mask, 0, derivative)


def logarithm(a: Operand) -> Operand:
    """Log a, for a tensor or a number; of integers in double precision, as of `reciprocal`."""
    if isinstance(a, Symbol):
        return (a if a.value.is_differentiable else a.to("float64")).log()
    return complex_log(a) if isinstance(a, complex) else log(a) if a > 0 else -inf


def _radius_squared(x: Symbol, y: Symbol) -> Operand:
    """x² + y²; infinite at the origin, where PyTorch lets the derivatives of the angle be zero."""
    total = x * x + y * y
    return where(total.eq(0), inf, total)


# ---------------------------------------------------------------- functions of one tensor


def _logit(x: Symbol, eps: float | None = None) -> Operand:
    derivative = 1 / (x * (1 - x))
    return derivative if eps is None else unless((x < eps) | (x > 1 - eps), derivative)


ELEMENTARY: dict[str, Rule] = {
    "aten.abs.default": Pointwise(lambda x: x.sgn().conj()),
    "aten.neg.default": Pointwise(-1),
    "aten.exp.default": Pointwise(lambda y: y),
    "aten.exp2.default": Pointwise(lambda y: y * LN2),
    "aten.expm1.default": Pointwise(lambda y: y + 1),
    "aten.log.default": Pointwise(lambda x: 1 / x, domain=POSITIVE),
    "aten.log1p.default": Pointwise(lambda x: 1 / (x + 1), domain=(-0.8, 2.0)),
    "aten.log2.default": Pointwise(lambda x: 1 / (x * LN2), domain=POSITIVE),
    "aten.log10.default": Pointwise(lambda x: 1 / (x * LN10), domain=POSITIVE),
    "aten.sqrt.default": Pointwise(lambda y: 0.5 / y, domain=POSITIVE),
    "aten.rsqrt.default": Pointwise(lambda y: -0.5 * y**3, domain=POSITIVE),
    "aten.reciprocal.default": Pointwise(lambda y: -(y * y), domain=POSITIVE),
    "aten.square.default": Pointwise(lambda x: 2 * x),
    "aten.sin.default": Pointwise(lambda x: x.cos()),
    "aten.cos.default": Pointwise(lambda x: -x.sin()),
    "aten.tan.default": Pointwise(lambda y: 1 + y * y, domain=UNIT),
    "aten.asin.default": Pointwise(lambda x: (1 - x * x).rsqrt(), domain=UNIT),
    "aten.acos.default": Pointwise(lambda x: -(1 - x * x).rsqrt(), domain=UNIT),
    "aten.atan.default": Pointwise(lambda x: 1 / (x * x + 1)),
    "aten.sinh.default": Pointwise(lambda x: x.cosh()),
    "aten.cosh.default": Pointwise(lambda x: x.sinh()),
    "aten.tanh.default": Pointwise(lambda y: 1 - y * y, fused=lambda g, y: fused("aten.tanh_backward.default", g, y)),
    "aten.asinh.default": Pointwise(lambda x: (x * x + 1).rsqrt()),
    # √(z² − 1) is the wrong root left of the imaginary axis.
    "aten.acosh.default": Pointwise(lambda x: (x - 1).rsqrt() * (x + 1).rsqrt(), domain=ABOVE_ONE),
    "aten.atanh.default": Pointwise(lambda x: 1 / (1 - x * x), domain=UNIT),
    "aten.sigmoid.default": Pointwise(
        lambda y: y * (1 - y), fused=lambda g, y: fused("aten.sigmoid_backward.default", g, y)
    ),
    "aten.erf.default": Pointwise(lambda x: 2 / sqrt(pi) * (-(x * x)).exp()),
    "aten.erfc.default": Pointwise(lambda x: -2 / sqrt(pi) * (-(x * x)).exp()),
    "aten.erfinv.default": Pointwise(lambda y: sqrt(pi) / 2 * (y * y).exp(), domain=UNIT),
    "aten.lgamma.default": Pointwise(lambda x: x.digamma(), domain=POSITIVE),
    "aten.digamma.default": Pointwise(lambda x: x.of("polygamma.default", 1, x), domain=POSITIVE),
    "aten.polygamma.default": Pointwise(
        lambda n, x: x.of("polygamma.default", n + 1, x), samples=[Sample(k, P23) for k in (1, 2)]
    ),
    "aten.sinc.default": Pointwise(lambda x, y: unless(x.eq(0), ((x * pi).cos() - y) / where(x.eq(0), 1, x))),
    "aten.deg2rad.default": Pointwise(pi / 180),
    "aten.rad2deg.default": Pointwise(180 / pi),
    "aten.frac.default": Pointwise(1),
    "aten.positive.default": Pointwise(1),
    "aten.nan_to_num.default": Pointwise(lambda x, *_: x.abs() < inf),
    "aten.logit.default": Pointwise(
        _logit,
        samples=[Sample(T(2, 3, domain=INSIDE)), Sample(T(5, domain=INSIDE), 0.3)],
        fused=lambda x, eps=None, *, g: fused("aten.logit_backward.default", g, x, eps),
    ),
}

COPIES: dict[str, Rule] = {
    **{
        f"aten.{op}.default": Pointwise(1)
        for op in [
            "clone",
            "alias",
            "lift",
            "lift_fresh",
            "lift_fresh_copy",
            "_to_copy",
            "contiguous",
        ]
    },
    "aten.copy.default": Pointwise(None, 1, samples=[Sample(X23, X23), Sample(X23, T(3)), Sample(X23, T())]),
    "aten.fill.Tensor": Pointwise(None, 1, samples=[Sample(X23, T())]),
}

# ---------------------------------------------------------------- arithmetic

PAIRS = (Sample(X23, X23), Sample(T(2, 1), T(3)), Sample(T(), T(2)), Sample(T(3), T()))
POSITIVE_PAIRS = (Sample(P23, P23), Sample(T(2, 1, domain=POSITIVE), T(3, domain=POSITIVE)))
ROUNDED = {"rounding_mode": "floor"}


def _sum(sign: int) -> Pointwise:
    samples = [*PAIRS, Sample(X23, T(3), alpha=2), Sample(X23, 1.5)]
    return Pointwise(1, lambda x, other, *, alpha=1: sign * alpha, samples=samples)


def _base(x: Entry, exponent: Operand) -> Operand:
    """∂(x^e)/∂x; zero, not 0 · ∞, where e = 0."""
    if isinstance(exponent, Symbol):
        return unless(exponent.eq(0), exponent * (x ** (exponent - 1)))
    return exponent * x ** (exponent - 1)


def _exponent(x: Operand, exponent: Entry, y: Symbol) -> Operand:
    """∂(x^e)/∂e; zero, not 0 · ∞, where x = 0 and e ≥ 0."""
    if isinstance(x, Symbol):
        return unless(x.eq(0) & (_real(exponent) >= 0), y * x.to(y.dtype).log())
    if x == 0:
        return _flat_or_steep(exponent, y)
    return y * logarithm(complex(x) if y.is_complex else x)


def _flat_or_steep(exponent: Entry, y: Symbol) -> Operand:
    """∂(0^e)/∂e."""
    return where(_real(exponent) >= 0, 0, -inf).to(y.dtype)


def _real(number: Entry) -> Entry:
    return number.real_part() if isinstance(number, Symbol) else number.real


def _quotient() -> Pointwise:
    samples = [*POSITIVE_PAIRS, Sample(X23, 1.5), Sample(T(2), T(domain=POSITIVE))]
    return Pointwise(lambda x, other: inverse(other), lambda x, other, y: -(y / other), samples=samples)


def _rounded(number: int, x: Operand, other: Operand, y: Symbol, rounding_mode: str | None = None) -> Operand:
    if rounding_mode is not None:
        return 0
    return inverse(other) if number == 0 else -(y / other)


def _rounded_quotient(*samples: Sample) -> Pointwise:
    return Pointwise(
        lambda x, other, *, rounding_mode=None, y: _rounded(0, x, other, y, rounding_mode),
        lambda x, other, *, rounding_mode=None, y: _rounded(1, x, other, y, rounding_mode),
        samples=samples,
    )


def _whole_quotient(x: Entry, other: Operand, mode: str) -> Symbol:
    shaped = x / other  # its shape and dtype
    overload = "div.Tensor_mode" if isinstance(other, Symbol) else "div.Scalar_mode"
    return tensor(overload, x, other, shape=shaped.shape, dtype=shaped.dtype, rounding_mode=mode)


def _lead(x: Symbol, other: Symbol) -> Symbol:
    """X − other; zero, not ∞ − ∞, where both are the same infinity."""
    return where(x.eq(other) & (x.abs() >= inf), 0, x - other)


ARITHMETIC: dict[str, Rule] = {
    "aten.add.Tensor": _sum(1),
    "aten.sub.Tensor": _sum(-1),
    "aten.add.Scalar": Pointwise(1, samples=[Sample(X23, 1.5)]),
    "aten.sub.Scalar": Pointwise(1, samples=[Sample(X23, 1.5)]),
    "aten.rsub.Scalar": Pointwise(lambda x, other, alpha=1: -alpha, samples=[Sample(X23, 1.5), Sample(X23, 1.5, 2)]),
    "aten.rsub.Tensor": Pointwise(lambda x, other, *, alpha=1: -alpha, 1, samples=[*PAIRS, Sample(X23, X23, alpha=3)]),
    "aten.mul.Tensor": Pointwise(lambda x, other: other, lambda x, other: x, samples=[*PAIRS, Sample(X23, 1.5)]),
    "aten.mul.Scalar": Pointwise(lambda x, other: other, samples=[Sample(X23, 1.5)]),
    "aten.div.Tensor": _quotient(),
    "aten.div.Scalar": Pointwise(lambda x, other: inverse(other), samples=[Sample(X23, 1.5)]),
    "aten.div.Tensor_mode": _rounded_quotient(
        Sample(P23, P23, rounding_mode=None), Sample(P23, P23, **ROUNDED), Sample(X23, 1.5, **ROUNDED)
    ),
    "aten.div.Scalar_mode": _rounded_quotient(Sample(X23, 1.5, **ROUNDED)),
    "aten.pow.Tensor_Scalar": Pointwise(
        _base,
        samples=[Sample(X23, 2), Sample(X23, 3), Sample(P23, 0.5), Sample(P23, -1.5), Sample(X23, 0), Sample(X23, 1)],
    ),
    "aten.pow.Tensor_Tensor": Pointwise(_base, _exponent, samples=[*POSITIVE_PAIRS, Sample(P23, T())]),
    "aten.pow.Scalar": Pointwise(_exponent, samples=[Sample(2, X23), Sample(0.5, X23), Sample(0, P23)]),
    "aten.remainder.Scalar": Pointwise(1, samples=[Sample(X23, 0.7)]),
    "aten.remainder.Tensor": Pointwise(1, lambda x, other: -_whole_quotient(x, other, "floor"), samples=POSITIVE_PAIRS),
    "aten.fmod.Scalar": Pointwise(1, samples=[Sample(X23, 0.7)]),
    "aten.fmod.Tensor": Pointwise(1, lambda x, other: -_whole_quotient(x, other, "trunc"), samples=POSITIVE_PAIRS),
    "aten.addcmul.default": Pointwise(
        1,
        lambda x, a, b, *, value=1: b * value,
        lambda x, a, b, *, value=1: a * value,
        samples=[Sample(X23, X23, T(3)), Sample(X23, X23, X23, value=2)],
    ),
    "aten.addcdiv.default": Pointwise(
        1,
        lambda x, a, b, *, value=1: value / b,
        lambda x, a, b, *, value=1: -value * (a / (b * b)),
        samples=[Sample(X23, X23, T(3, domain=POSITIVE)), Sample(X23, X23, P23, value=2)],
    ),
    "aten.lerp.Scalar": Pointwise(
        lambda x, end, weight: 1 - weight, lambda x, end, weight: weight, samples=[Sample(X23, T(3), 0.3)]
    ),
    "aten.lerp.Tensor": Pointwise(
        lambda x, end, weight: 1 - weight, lambda x, end, weight: weight, lambda x, end, weight: end - x
    ),
    "aten.atan2.default": Pointwise(
        lambda x, other: other / _radius_squared(x, other), lambda x, other: -x / _radius_squared(x, other)
    ),
    "aten.hypot.default": Pointwise(lambda x, other, y: x / y, lambda x, other, y: other / y),
    "aten.logaddexp.default": Pointwise(
        lambda x, other: _lead(x, other).sigmoid(), lambda x, other: _lead(other, x).sigmoid()
    ),
    "aten.logaddexp2.default": Pointwise(
        lambda x, other: (_lead(x, other) * LN2).sigmoid(), lambda x, other: (_lead(other, x) * LN2).sigmoid()
    ),
    "aten.xlogy.Tensor": Pointwise(
        lambda x, other: unless(x.eq(0) & (other <= 0), logarithm(other)),
        lambda x, other: x / other,
        samples=POSITIVE_PAIRS,
    ),
    "aten.xlogy.Scalar_Self": Pointwise(lambda x, other: x / other, samples=[Sample(1.5, P23)]),
    "aten.xlogy.Scalar_Other": Pointwise(
        lambda x, other: unless(x.eq(0), logarithm(other)) if other <= 0 else logarithm(other),
        samples=[Sample(X23, 1.5)],
    ),
    "aten.copysign.Tensor": Pointwise(lambda x, other, y: x.sgn() * y.sgn(), None, samples=PAIRS),
    "aten.ldexp.Tensor": Pointwise(lambda x, other: other.to(x.dtype).exp2(), lambda y: y * LN2, samples=[*PAIRS]),
    "aten.frexp.Tensor": Pointwise(lambda x, ys: ys[1].neg().to(x.dtype).exp2(), domain=POSITIVE),
    "aten.nextafter.default": Pointwise(lambda x, other: x.ne(other), None, samples=PAIRS),
    "aten.copysign.Scalar": Pointwise(lambda x, other, y: x.sgn() * y.sgn(), samples=[Sample(X23, -2.0)]),
}

# ---------------------------------------------------------------- choices


def _larger(x: Symbol, other: Symbol) -> Operand:
    """1 where x is the larger of two, ½ where they are equal."""
    return where(x.eq(other), 0.5, (x > other).to(x.dtype))


def _clamp(x: Symbol, low: float | None = None, high: float | None = None) -> Operand:
    if low is None:
        return x <= (inf if high is None else high)
    return x >= low if high is None else (x >= low) & (x <= high)


def _clamp_tensor(x: Symbol, min: Symbol | None = None, max: Symbol | None = None, *, y: Symbol) -> dict[int, Any]:
    """Bounds that are tensors; where they cross, the upper one holds."""
    if min is not None and max is not None:
        masks = [(x >= min) & (x <= max), (min < max) & (x < min), (x > max) | (max < min)]
    else:
        masks = [x >= min, x < min] if min is not None else [x <= max, x > max] if max is not None else []
    i, operands = plain_axes(y.shape), [a for a in (x, min, max) if a is not None]
    pairs = enumerate(zip(masks, operands, strict=True))
    return {k: (Term(1, (mask[i],), i, broadcast_axes(i, operand.shape)),) for k, (mask, operand) in pairs}


def _triangle(x: Symbol, diagonal: int, lower: bool) -> Symbol:
    rows, columns = (positions(x, n, d, 2) for d, n in enumerate(x.shape[-2:]))
    offset = columns.of("sub.Tensor", columns, rows)
    return offset <= diagonal if lower else offset >= diagonal


_BOUNDS = (Sample(X23, -0.5, 0.5), Sample(X23, None, 0.3), Sample(X23, 0.3))
_TENSOR_BOUNDS = (Sample(X23, T(3), T()), Sample(X23, None, X23), Sample(X23, X23))
_TRIANGLES = (Sample(T(3, 4)), Sample(T(2, 3, 3), -1), Sample(T(4, 3), 1))

SELECTIONS: dict[str, Rule] = {
    "aten.where.self": Pointwise(
        None,
        lambda c, a, b: c,
        lambda c, a, b: ~c,
        samples=[Sample(B(2, 3), X23, X23), Sample(B(3), T(2, 1), T()), Sample(B(2, 3), T(), T(3))],
    ),
    "aten.where.ScalarSelf": Pointwise(None, lambda c, a, b: ~c, samples=[Sample(B(2, 3), 1.5, T(3))]),
    "aten.where.ScalarOther": Pointwise(None, lambda c, a, b: c, samples=[Sample(B(2, 3), T(2, 1), 0.0)]),
    "aten.masked_fill.Scalar": Pointwise(
        lambda x, mask, value: ~mask, None, samples=[Sample(X23, B(2, 3), 1.5), Sample(X23, B(3), 0)]
    ),
    "aten.masked_fill.Tensor": Pointwise(
        lambda x, mask, value: ~mask, None, lambda x, mask, value: mask, samples=[Sample(X23, B(2, 1), T())]
    ),
    "aten.maximum.default": Pointwise(_larger, lambda x, other: _larger(other, x)),
    "aten.minimum.default": Pointwise(lambda x, other: _larger(other, x), _larger),
    "aten.fmax.default": Pointwise(
        lambda x, other: (x >= other) | other.ne(other), lambda x, other: ~((x >= other) | other.ne(other))
    ),
    "aten.fmin.default": Pointwise(
        lambda x, other: (x <= other) | other.ne(other), lambda x, other: ~((x <= other) | other.ne(other))
    ),
    "aten.clamp.default": Pointwise(_clamp, samples=_BOUNDS),
    "aten.clamp.Tensor": Function(_TENSOR_BOUNDS, body=_clamp_tensor, source="clamp_backward_min_max of PyTorch"),
    "aten.clamp_min.default": Pointwise(lambda x, low: x >= low, samples=[Sample(X23, 0.3)]),
    "aten.clamp_max.default": Pointwise(lambda x, high: x <= high, samples=[Sample(X23, 0.3)]),
    "aten.clamp_min.Tensor": Pointwise(lambda x, low: x >= low, lambda x, low: x < low),
    "aten.clamp_max.Tensor": Pointwise(lambda x, high: x <= high, lambda x, high: x > high),
    "aten.tril.default": Pointwise(
        lambda x, diagonal=0: _triangle(x, diagonal, lower=True),
        samples=_TRIANGLES,
        fused=lambda x, diagonal=0, *, g: fused("aten.tril.default", g, diagonal),
    ),
    "aten.triu.default": Pointwise(
        lambda x, diagonal=0: _triangle(x, diagonal, lower=False),
        samples=_TRIANGLES,
        fused=lambda x, diagonal=0, *, g: fused("aten.triu.default", g, diagonal),
    ),
}

RULES: dict[str, Rule] = {**ELEMENTARY, **COPIES, **ARITHMETIC, **SELECTIONS}


__all__ = ["ARITHMETIC", "COPIES", "ELEMENTARY", "RULES", "SELECTIONS"]
