"""What element-wise operators compute, as PyTorch's kernels do it, NaN and signed zeros included.

One entry an operator: how its operands are converted, and the formula of one entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fmod, sqrt
from typing import Any

from .arrays import NotScalar
from .scalars import FLOATING, Scalar

Formula = Callable[..., Scalar]


@dataclass(frozen=True)
class Pointwise:
    """An element-wise operator.

    formula: of scalars (numbers stay numbers), and of what else the operator takes by name.
    operands: the dtype that its operands are converted to: "result", "common" to all of them, "bool", or "own".
    floating: whether it takes floating numbers only.
    numbers: how many of the leading arguments are operands; what follows is passed on as it is.
    truth: the formula for truth values, where there is one.
    """

    formula: Formula
    operands: str = "result"
    floating: bool = False
    numbers: int = 9
    truth: Formula | None = None


def _function(name: str) -> Pointwise:
    return Pointwise(lambda x: x.call(name), floating=True)


def _comparison(name: str) -> Pointwise:
    return Pointwise(lambda x, y: x.compare(name, y), "common")


def _maximum(x: Scalar, y: Scalar) -> Scalar:
    """`x` where it is larger or NaN."""
    if x is y:
        return x
    larger = x.compare("gt", y)
    return (larger.call("or", x.compare("ne", x)) if x.dtype in FLOATING else larger).where(x, y)


def _minimum(x: Scalar, y: Scalar) -> Scalar:
    if x is y:
        return x
    smaller = x.compare("lt", y)
    return (smaller.call("or", x.compare("ne", x)) if x.dtype in FLOATING else smaller).where(x, y)


def _clamp_min(x: Scalar, bound: Scalar | None) -> Scalar:
    """Of equals, zeros of either sign, a bound that is a number gives way."""
    if bound is None:
        return x
    return bound.compare("gt", x).where(bound, x) if bound.op == "constant" else _maximum(x, bound)


def _clamp_max(x: Scalar, bound: Scalar | None) -> Scalar:
    if bound is None:
        return x
    return bound.compare("lt", x).where(bound, x) if bound.op == "constant" else _minimum(x, bound)


def _clamp(x: Scalar, low: Scalar | None = None, high: Scalar | None = None) -> Scalar:
    return _clamp_max(_clamp_min(x, low), high)


def _remainder_of_truncation(x: Scalar, y: Scalar) -> Scalar:
    if x.dtype in FLOATING:
        return x.call("fmod", y)
    if x.op != "constant" or y.op != "constant" or y.payload == 0:
        raise NotScalar("it divides integers")
    return x.table.constant(int(fmod(x.payload, y.payload)), x.dtype)


def _sign(x: Scalar) -> Scalar:
    zero, one = x.table.constant(0, x.dtype), x.table.constant(1, x.dtype)
    return x.compare("gt", 0).where(one, x.compare("lt", 0).where(-one, zero))


def _power(x: Scalar, exponent: Scalar) -> Scalar:
    """The exponents that PyTorch has formulas for, and the function."""
    if exponent.op != "constant":
        return x.call("pow", exponent)
    number = exponent.payload
    if x.dtype not in FLOATING:
        if number not in (0, 1, 2, 3):
            raise NotScalar(f"it takes an integer to the power of {number}")
        return (
            x.table.constant(1, x.dtype) if number == 0 else x if number == 1 else x * x if number == 2 else x * x * x
        )
    formulas: Mapping[float, Callable[[], Scalar]] = {
        0.0: lambda: x.table.constant(1, x.dtype),
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        0.5: lambda: x.call("sqrt"),
        -0.5: lambda: 1 / x.call("sqrt"),
        -1.0: lambda: 1 / x,
        -2.0: lambda: 1 / (x * x),
    }
    return formulas[number]() if number in formulas else x.call("pow", exponent)


def _sigmoid(x: Scalar) -> Scalar:
    return 1 / (1 + (-x).call("exp"))


def _softplus(x: Scalar, beta: float = 1, threshold: float = 20) -> Scalar:
    scaled = x * beta
    return scaled.compare("gt", threshold).where(x, scaled.call("exp").call("log1p") / beta)


def _elu(x: Scalar, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Scalar:
    small = (x * input_scale).call("expm1") * (alpha * scale)
    return x.compare("le", 0).where(small, x * scale)


def _gelu(x: Scalar, *, approximate: str = "none") -> Scalar:
    if approximate == "none":
        return x * 0.5 * (1 + (x * sqrt(0.5)).call("erf"))
    inner = (x + x * x * x * 0.044715) * sqrt(2) * 1.1283791670955126 * 0.5
    return x * 0.5 * (1 + inner.call("tanh"))


def _where(condition: Scalar, yes: Scalar, no: Scalar) -> Scalar:
    return condition.where(yes, no)


def _is_nan(x: Scalar) -> Scalar:
    return x.compare("ne", x)


def _xlogy(x: Scalar, y: Scalar) -> Scalar:
    zero = x.table.constant(0, x.dtype)
    return _is_nan(y).where(y, x.compare("eq", 0).where(zero, x * y.call("log")))


def _plain(formula: Formula, **options: Any) -> Pointwise:
    return Pointwise(formula, **options)


_FUNCTIONS = """
sqrt exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc
floor ceil trunc lgamma
"""

_FORMULAS: dict[str, Pointwise] = {
    "neg.default": _plain(lambda x: -x),
    "positive.default": _plain(lambda x: x),
    "abs.default": _plain(lambda x: x.call("abs")),
    "sign.default": _plain(_sign),
    "sgn.default": _plain(_sign),
    "round.default": _plain(lambda x: x.call("rint"), floating=True),
    "frac.default": _plain(lambda x: x - x.call("trunc"), floating=True),
    "reciprocal.default": _plain(lambda x: 1 / x, floating=True),
    "rsqrt.default": _plain(lambda x: 1 / x.call("sqrt"), floating=True),
    "square.default": _plain(lambda x: x * x),
    "sigmoid.default": _plain(_sigmoid, floating=True),
    "relu.default": _plain(lambda x: _clamp_min(x, x.table.constant(0, x.dtype))),
    "silu.default": _plain(lambda x: x / (1 + (-x).call("exp")), floating=True),
    "softplus.default": _plain(_softplus, floating=True, numbers=1),
    "elu.default": _plain(_elu, floating=True, numbers=1),
    "gelu.default": _plain(_gelu, floating=True),
    "leaky_relu.default": _plain(
        lambda x, slope=0.01: x.compare("gt", 0).where(x, x * slope), floating=True, numbers=1
    ),
    "hardtanh.default": _plain(
        lambda x, low=-1, high=1: _clamp(x, x.table.lift(low, x.dtype), x.table.lift(high, x.dtype)),
        floating=True,
        numbers=1,
    ),
    "threshold_backward.default": _plain(
        lambda g, x, threshold: x.compare("le", threshold).where(g.table.constant(0, g.dtype), g), numbers=2
    ),
    "sigmoid_backward.default": _plain(lambda g, y: g * (1 - y) * y, floating=True),
    "tanh_backward.default": _plain(lambda g, y: g * (1 - y * y), floating=True),
    "add.Tensor": _plain(lambda x, y, alpha=1: x + y * alpha, truth=lambda x, y: x.call("or", y)),
    "add.Scalar": _plain(lambda x, y, alpha=1: x + y * alpha),
    "sub.Tensor": _plain(lambda x, y, alpha=1: x - y * alpha),
    "sub.Scalar": _plain(lambda x, y, alpha=1: x - y * alpha),
    "rsub.Tensor": _plain(lambda x, y, alpha=1: y - x * alpha),
    "rsub.Scalar": _plain(lambda x, y, alpha=1: y - x * alpha),
    "mul.Tensor": _plain(lambda x, y: x * y, truth=lambda x, y: x.call("and", y)),
    "mul.Scalar": _plain(lambda x, y: x * y),
    "div.Tensor": _plain(lambda x, y: x / y, floating=True),
    "div.Scalar": _plain(lambda x, y: x / y, floating=True),
    "pow.Tensor_Scalar": _plain(_power),
    "pow.Tensor_Tensor": _plain(lambda x, y: x.call("pow", y), floating=True),
    "pow.Scalar": _plain(lambda x, y: x.call("pow", y), floating=True),
    "atan2.default": _plain(lambda x, y: x.call("atan2", y), floating=True),
    "hypot.default": _plain(lambda x, y: x.call("hypot", y), floating=True),
    "copysign.Tensor": _plain(lambda x, y: x.call("copysign", y), floating=True),
    "fmod.Tensor": _plain(_remainder_of_truncation),
    "fmod.Scalar": _plain(_remainder_of_truncation),
    "xlogy.Tensor": _plain(_xlogy, floating=True),
    "maximum.default": _plain(_maximum),
    "minimum.default": _plain(_minimum),
    "clamp.default": _plain(_clamp),
    "clamp.Tensor": _plain(_clamp),
    "clamp_min.default": _plain(_clamp_min),
    "clamp_min.Tensor": _plain(_clamp_min),
    "clamp_max.default": _plain(_clamp_max),
    "clamp_max.Tensor": _plain(_clamp_max),
    "lerp.Scalar": _plain(lambda x, end, weight: _lerp(x, end, weight), floating=True),
    "lerp.Tensor": _plain(lambda x, end, weight: _lerp(x, end, weight), floating=True),
    "addcmul.default": _plain(lambda x, a, b, value=1: x + a * b * value),
    "addcdiv.default": _plain(lambda x, a, b, value=1: x + a / b * value, floating=True),
    "where.self": _plain(_where, operands="choice"),
    "where.ScalarSelf": _plain(_where, operands="choice"),
    "where.ScalarOther": _plain(_where, operands="choice"),
    "where.Scalar": _plain(_where, operands="choice"),
    "masked_fill.Scalar": _plain(lambda x, mask, value: mask.where(value, x), operands="mask"),
    "masked_fill.Tensor": _plain(lambda x, mask, value: mask.where(value, x), operands="mask"),
    "logical_not.default": _plain(lambda x: x.call("not"), operands="bool"),
    "logical_and.default": _plain(lambda x, y: x.call("and", y), operands="bool"),
    "logical_or.default": _plain(lambda x, y: x.call("or", y), operands="bool"),
    "logical_xor.default": _plain(lambda x, y: x.compare("ne", y), operands="bool"),
    "bitwise_not.default": _plain(lambda x: x.call("not"), operands="logic"),
    "bitwise_and.Tensor": _plain(lambda x, y: x.call("and", y), operands="logic"),
    "bitwise_or.Tensor": _plain(lambda x, y: x.call("or", y), operands="logic"),
    "bitwise_xor.Tensor": _plain(lambda x, y: x.compare("ne", y), operands="logic"),
    "isnan.default": _plain(_is_nan, operands="common"),
    "isinf.default": _plain(lambda x: x.call("abs").compare("eq", float("inf")), operands="common", floating=True),
    "isfinite.default": _plain(lambda x: x.call("abs").compare("lt", float("inf")), operands="common", floating=True),
}


def _lerp(x: Scalar, end: Scalar, weight: Scalar) -> Scalar:
    """From the end that is nearer."""
    near, far = x + weight * (end - x), end - (end - x) * (1 - weight)
    if weight.op == "constant":
        return near if abs(weight.payload) < 0.5 else far
    return weight.call("abs").compare("lt", 0.5).where(near, far)


POINTWISE: Mapping[str, Pointwise] = {
    **{f"aten.{name}.default": _function(name) for name in _FUNCTIONS.split()},
    **{
        f"aten.{name}.{kind}": _comparison(name)
        for name in "eq ne lt le gt ge".split()
        for kind in ("Tensor", "Scalar")
    },
    **{f"aten.{name}": entry for name, entry in _FORMULAS.items()},
}
