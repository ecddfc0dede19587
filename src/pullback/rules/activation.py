"""Activation functions: operators on each element by itself, most of them with a fused backward kernel."""

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any

from ..expressions import Operand, Symbol, where
from ..index import plain_axes
from ..terms import Part, Term
from .kernels import saved
from .kinds import Domain, Function, Pointwise, Rule, Sample, T, fused

Entry = Any  # a `Symbol`; a product of symbols and numbers may be a number, which no formula here needs to allow for
FAR: Domain = (-5.0, 5.0)
BOTH = (Sample(T(2, 3)), Sample(T()))
X23 = T(2, 3)


def _gelu(x: Entry, *, approximate: str = "none") -> Operand:
    if approximate == "none":
        density = (-0.5 * (x * x)).exp() * (1 / sqrt(2 * pi))
        return 0.5 * ((x * sqrt(0.5)).erf() + 1) + x * density
    slope, cubic = sqrt(2 / pi), 0.044715
    t = (slope * (x + cubic * (x * x * x))).tanh()
    return 0.5 * (t + 1) + 0.5 * x * (1 - t * t) * (slope * (1 + 3 * cubic * (x * x)))


def _elu(x: Entry, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Operand:
    falling = (x.of("clamp_max.default", x, 0) * input_scale).exp()  # never ∞, which times 0 would be NaN
    return where(x > 0, scale, input_scale * alpha * scale * falling)


def _silu(x: Entry) -> Operand:
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


def _mish(x: Entry) -> Operand:
    t = x.of("softplus.default", x).tanh()
    return t + x * x.sigmoid() * (1 - t * t)


def _softplus(x: Entry, beta: float = 1, threshold: float = 20) -> Operand:
    return where(x * beta > threshold, 1, (x * beta).sigmoid())


def _pulled_hardsigmoid(x: Symbol, g: Symbol) -> Symbol:
    """PyTorch's kernel multiplies by 1 / 6 in single precision, in double too."""
    if x.dtype == "float64":
        return where((x > -3) & (x < 3), g / 6, 0)
    return fused("aten.hardsigmoid_backward.default", g, x)


def _outside(x: Entry, lambd: float = 0.5) -> Operand:
    return (x > lambd) | (x < -lambd)


def _log_sigmoid(x: Entry, ys: Any) -> dict[int, tuple[Part, ...]]:
    y = ys[0]
    derivative = x.sigmoid().neg() + 1 if y is None else -y.expm1()
    i = plain_axes(x.shape)
    return {0: (Term(1, (derivative[i],), i, i),)}


def _randomised(
    x: Symbol,
    noise: Symbol,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
    *,
    ys: Sequence[Symbol | None],
) -> dict[int, tuple[Part, ...]]:
    """The slope that was drawn, which the operator returns; without training, the middle of the range."""
    slope = saved(ys, 1) if training else where(x > 0, (x > 0).to(x.dtype), (lower + upper) / 2)
    i = plain_axes(x.shape)
    return {0: (Term(1, (slope[i],), i, i),)}


RULES: dict[str, Rule] = {
    "aten.relu.default": Pointwise(
        lambda y: y.ne(0),  # y is never negative, and a NaN has to get through
        fused=lambda g, y: fused("aten.threshold_backward.default", g, y, 0),
    ),
    "aten.threshold.default": Pointwise(
        lambda x, threshold, value: x > threshold,
        samples=[Sample(X23, 0.3, -7.0)],
        fused=lambda x, threshold, value, g: fused("aten.threshold_backward.default", g, x, threshold),
    ),
    "aten.hardtanh.default": Pointwise(
        lambda x, low=-1, high=1: (x > low) & (x < high),
        samples=[*BOTH, Sample(X23, 0.0, 0.5)],
        fused=lambda x, low=-1, high=1, *, g: fused("aten.hardtanh_backward.default", g, x, low, high),
    ),
    "aten.leaky_relu.default": Pointwise(
        lambda x, slope=0.01: where(x > 0, (x > 0).to(x.dtype), slope),
        samples=[*BOTH, Sample(X23, 0.2)],
        fused=lambda x, slope=0.01, *, g: fused("aten.leaky_relu_backward.default", g, x, slope, False),
    ),
    "aten._prelu_kernel.default": Pointwise(
        lambda x, weight: where(x > 0, 1, weight),
        lambda x, weight: where(x > 0, 0, x),
        samples=[Sample(T(2, 3), T(1, 3)), Sample(X23, X23)],
    ),
    "aten.elu.default": Pointwise(
        _elu,
        samples=[*BOTH, Sample(X23, 0.7, 1.3, 0.5)],
        fused=lambda x, alpha=1, scale=1, inner=1, *, g: fused(
            "aten.elu_backward.default", g, alpha, scale, inner, False, x
        ),
    ),
    "aten.celu.default": Pointwise(
        lambda x, alpha=1: _elu(x, alpha, 1, 1 / alpha),
        samples=[*BOTH, Sample(X23, 0.5)],  # PyTorch rounds 1 / alpha to single precision
        fused=lambda x, alpha=1, *, g: fused("aten.elu_backward.default", g, alpha, 1, 1 / alpha, False, x),
    ),
    "aten.gelu.default": Pointwise(
        _gelu,
        samples=[*BOTH, Sample(X23, approximate="tanh")],
        fused=lambda x, *, g, approximate="none": fused("aten.gelu_backward.default", g, x, approximate=approximate),
    ),
    "aten.silu.default": Pointwise(_silu, fused=lambda x, g: fused("aten.silu_backward.default", g, x)),
    "aten.mish.default": Pointwise(_mish, fused=lambda x, g: fused("aten.mish_backward.default", g, x)),
    "aten.softplus.default": Pointwise(
        _softplus,
        samples=[*BOTH, Sample(X23, 2.0, 1.0)],
        fused=lambda x, beta=1, threshold=20, *, g: fused("aten.softplus_backward.default", g, x, beta, threshold),
    ),
    "aten.hardsigmoid.default": Pointwise(
        lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 6,
        domain=FAR,
        fused=_pulled_hardsigmoid,
    ),
    "aten.hardswish.default": Pointwise(
        lambda x: where(x <= -3, 0, where(x >= 3, 1, x / 3 + 0.5)),
        domain=FAR,
        fused=lambda x, g: fused("aten.hardswish_backward.default", g, x),
    ),
    "aten.hardshrink.default": Pointwise(
        _outside,
        samples=[*BOTH, Sample(X23, 0.2)],
        fused=lambda x, lambd=0.5, *, g: fused("aten.hardshrink_backward.default", g, x, lambd),
    ),
    "aten.softshrink.default": Pointwise(
        _outside,
        samples=[*BOTH, Sample(X23, 0.2)],
        fused=lambda x, lambd=0.5, *, g: fused("aten.softshrink_backward.default", g, x, lambd),
    ),
    "aten.rrelu_with_noise_functional.default": Function(
        (Sample(X23, X23, 0.1, 0.3, False),), body=_randomised, source="the slopes that are drawn are constants"
    ),
    "aten.log_sigmoid_forward.default": Function(BOTH, body=_log_sigmoid, source="1 − σ(x) = 1 − exp(log σ(x))"),
}

__all__ = ["RULES"]
