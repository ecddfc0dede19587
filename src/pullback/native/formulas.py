"""What element-wise operators compute, as PyTorch's kernels do it, NaN and signed zeros included.

One entry an operator: how its operands are converted, and the formula of one entry.  Scalar programs expand it entry by
entry; loop nests have it as the text of one statement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fmod, inf, isnan, sqrt
from typing import Any

from ..graph import Node
from ..promotion import promote
from .arguments import bound, keyword_names
from .arrays import NotScalar
from .scalars import FLOATING, Scalar

Formula = Callable[..., Scalar]
_SAYS_NOTHING = ("dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format")


@dataclass(frozen=True)
class Pointwise:
    """An element-wise operator.

    formula: of scalars, and of what else the operator takes: in the order of its arguments, keywords by name.
    operands: the dtype that its operands are converted to: "result", "common" to all of them, or "bool".
    floating: whether it takes floating numbers only.
    numbers: how many of the leading arguments are operands; what follows is passed on as it is.
    mask: which operand is a truth value, whatever the others are.
    truth: the formula for truth values, where it is another one.
    """

    formula: Formula
    operands: str = "result"
    floating: bool = False
    numbers: int = 9
    mask: int | None = None
    truth: Formula | None = None


@dataclass(frozen=True)
class Application:
    """An operator with all its arguments but the operands filled in.

    formula: of the operands, as scalars.
    operands: numbers and values, each with the dtype that it is converted to.
    dtype: of what the formula makes.
    """

    formula: Formula
    operands: tuple[tuple[Any, str], ...]
    dtype: str


def applied(node: Node) -> Application:
    """The formula of a node, and what it is a formula of.

    Raises NotScalar: it has none for such arguments; says why.
    """
    entry, (result,) = POINTWISE[node.op], node.results
    every, options = _arguments_of(node)
    leading, rest = every[: entry.numbers], every[entry.numbers :]
    dtype = {"result": result.dtype, "bool": "bool"}.get(entry.operands) or promote(leading)
    if entry.floating and dtype not in FLOATING:
        raise NotScalar(f"it computes in {dtype}")
    formula = entry.truth if entry.truth is not None and dtype == "bool" else entry.formula
    given = [k for k, argument in enumerate(leading) if argument is not None]

    def complete(*scalars: Scalar) -> Scalar:
        found: list[Scalar | None] = [None] * len(leading)
        for k, scalar in zip(given, scalars, strict=True):
            found[k] = scalar
        return formula(*found, *rest, **options)

    operands = tuple((leading[k], "bool" if k == entry.mask else dtype) for k in given)
    return Application(complete, operands, result.dtype if entry.operands == "result" else "bool")


def _arguments_of(node: Node) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a node that an operator takes by place, and by name; defaults included."""
    arguments, keywords = bound(node), keyword_names(node.op)
    places = [arguments[name] for name in arguments if name not in keywords and name not in _SAYS_NOTHING]
    return places, {name: arguments[name] for name in keywords if name not in _SAYS_NOTHING}


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


def _clamp_min(x: Scalar, least: Scalar | None) -> Scalar:
    """Of equals, zeros of either sign, a bound that is a number gives way."""
    if least is None or _is_nan_number(least):
        return x if least is None else least
    return least.compare("gt", x).where(least, x) if least.op == "constant" else _maximum(x, least)


def _clamp_max(x: Scalar, most: Scalar | None) -> Scalar:
    if most is None or _is_nan_number(most):
        return x if most is None else most
    return most.compare("lt", x).where(most, x) if most.op == "constant" else _minimum(x, most)


def _is_nan_number(x: Scalar) -> bool:
    return x.op == "constant" and isnan(x.payload)


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
    return x.compare("lt", 0).where(small, x * scale)


def _silu_backward(g: Scalar, x: Scalar) -> Scalar:
    share = _sigmoid(x)
    return g * share * (1 + x * (1 - share))


_GELU_SLOPE = sqrt(2) * 1.1283791670955126 * 0.5  # √(2 / π)


def _gelu(x: Scalar, *, approximate: str = "none") -> Scalar:
    if approximate == "none":
        return x * 0.5 * (1 + (x * sqrt(0.5)).call("erf"))
    inner = (x + x * x * x * 0.044715) * _GELU_SLOPE
    return x * 0.5 * (1 + inner.call("tanh"))


def _gelu_backward(g: Scalar, x: Scalar, *, approximate: str = "none") -> Scalar:
    if approximate == "none":
        density = (x * x * -0.5).call("exp") * (_GELU_SLOPE * 0.5)
        return g * (0.5 * (1 + (x * sqrt(0.5)).call("erf")) + x * density)
    share = ((x + x * x * x * 0.044715) * _GELU_SLOPE).call("tanh")
    slope = (1 + x * x * (3 * 0.044715)) * _GELU_SLOPE
    return g * (0.5 * (1 + share) + x * 0.5 * (1 - share * share) * slope)


def _where(condition: Scalar, yes: Scalar, no: Scalar) -> Scalar:
    return condition.where(yes, no)


def _is_nan(x: Scalar) -> Scalar:
    return x.compare("ne", x)


def _is_infinite(x: Scalar) -> Scalar:
    return x.call("abs").compare("eq", inf)


def _is_finite(x: Scalar) -> Scalar:
    return x.call("abs").compare("lt", inf)


def _xlogy(x: Scalar, y: Scalar) -> Scalar:
    zero = x.table.constant(0, x.dtype)
    return _is_nan(y).where(y, x.compare("eq", 0).where(zero, x * y.call("log")))


def _and(x: Scalar, y: Scalar) -> Scalar:
    return x.call("and", y)


def _or(x: Scalar, y: Scalar) -> Scalar:
    return x.call("or", y)


def _xor(x: Scalar, y: Scalar) -> Scalar:
    return x.compare("ne", y) if x.dtype == "bool" else x.call("xor", y)


def _not(x: Scalar) -> Scalar:
    return x.call("not")


_SAME = "clone alias detach lift_fresh_copy contiguous positive _to_copy"
_FUNCTIONS = """
sqrt exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc
floor ceil trunc lgamma
"""

_FORMULAS: dict[str, Pointwise] = {
    "neg.default": Pointwise(lambda x: -x),
    "copy.default": Pointwise(lambda _, source: source),
    "abs.default": Pointwise(lambda x: x.call("abs")),
    "sign.default": Pointwise(_sign),
    "sgn.default": Pointwise(_sign),
    "round.default": Pointwise(lambda x: x.call("rint"), floating=True),
    "frac.default": Pointwise(lambda x: x - x.call("trunc"), floating=True),
    "reciprocal.default": Pointwise(lambda x: 1 / x, floating=True),
    "rsqrt.default": Pointwise(lambda x: 1 / x.call("sqrt"), floating=True),
    "square.default": Pointwise(lambda x: x * x),
    "sigmoid.default": Pointwise(_sigmoid, floating=True),
    "relu.default": Pointwise(lambda x: _clamp_min(x, x.table.constant(0, x.dtype))),
    "silu.default": Pointwise(lambda x: x / (1 + (-x).call("exp")), floating=True),
    "silu_backward.default": Pointwise(_silu_backward, floating=True),
    "softplus.default": Pointwise(_softplus, floating=True, numbers=1),
    "elu.default": Pointwise(_elu, floating=True, numbers=1),
    "gelu.default": Pointwise(_gelu, floating=True),
    "gelu_backward.default": Pointwise(_gelu_backward, floating=True),
    "leaky_relu.default": Pointwise(
        lambda x, slope=0.01: x.compare("gt", 0).where(x, x * slope), floating=True, numbers=1
    ),
    "leaky_relu_backward.default": Pointwise(
        lambda g, x, slope, _: x.compare("gt", 0).where(g, g * slope), floating=True, numbers=2
    ),
    "hardtanh.default": Pointwise(
        lambda x, low=-1, high=1: _clamp(x, x.table.lift(low, x.dtype), x.table.lift(high, x.dtype)),
        floating=True,
        numbers=1,
    ),
    "threshold_backward.default": Pointwise(
        lambda g, x, threshold: x.compare("le", threshold).where(g.table.constant(0, g.dtype), g), numbers=2
    ),
    "sigmoid_backward.default": Pointwise(lambda g, y: g * (1 - y) * y, floating=True),
    "tanh_backward.default": Pointwise(lambda g, y: g * (1 - y * y), floating=True),
    "add.Tensor": Pointwise(lambda x, y, alpha=1: x + y * alpha, truth=lambda x, y, alpha=1: _or(x, y) if alpha else x),
    "add.Scalar": Pointwise(lambda x, y, alpha=1: x + y * alpha),
    "sub.Tensor": Pointwise(lambda x, y, alpha=1: x - y * alpha),
    "sub.Scalar": Pointwise(lambda x, y, alpha=1: x - y * alpha),
    "rsub.Tensor": Pointwise(lambda x, y, alpha=1: y - x * alpha),
    "rsub.Scalar": Pointwise(lambda x, y, alpha=1: y - x * alpha),
    "mul.Tensor": Pointwise(lambda x, y: x * y, truth=_and),
    "mul.Scalar": Pointwise(lambda x, y: x * y),
    "div.Tensor": Pointwise(lambda x, y: x / y, floating=True),
    "div.Scalar": Pointwise(lambda x, y: x / y, floating=True),
    "pow.Tensor_Scalar": Pointwise(_power),
    "pow.Tensor_Tensor": Pointwise(lambda x, y: x.call("pow", y), floating=True),
    "pow.Scalar": Pointwise(lambda x, y: x.call("pow", y), floating=True),
    "atan2.default": Pointwise(lambda x, y: x.call("atan2", y), floating=True),
    "hypot.default": Pointwise(lambda x, y: x.call("hypot", y), floating=True),
    "copysign.Tensor": Pointwise(lambda x, y: x.call("copysign", y), floating=True),
    "fmod.Tensor": Pointwise(_remainder_of_truncation),
    "fmod.Scalar": Pointwise(_remainder_of_truncation),
    "xlogy.Tensor": Pointwise(_xlogy, floating=True),
    "maximum.default": Pointwise(_maximum),
    "minimum.default": Pointwise(_minimum),
    "clamp.default": Pointwise(_clamp),
    "clamp.Tensor": Pointwise(_clamp),
    "clamp_min.default": Pointwise(_clamp_min),
    "clamp_min.Tensor": Pointwise(_clamp_min),
    "clamp_max.default": Pointwise(_clamp_max),
    "clamp_max.Tensor": Pointwise(_clamp_max),
    "lerp.Scalar": Pointwise(lambda x, end, weight: _lerp(x, end, weight), floating=True),
    "lerp.Tensor": Pointwise(lambda x, end, weight: _lerp(x, end, weight), floating=True),
    "addcmul.default": Pointwise(lambda x, a, b, value=1: x + a * value * b),
    "addcdiv.default": Pointwise(lambda x, a, b, value=1: x + a * value / b, floating=True),
    **{f"where.{kind}": Pointwise(_where, mask=0) for kind in ("self", "Scalar", "ScalarSelf", "ScalarOther")},
    "masked_fill.Scalar": Pointwise(lambda x, mask, value: mask.where(value, x), mask=1),
    "masked_fill.Tensor": Pointwise(lambda x, mask, value: mask.where(value, x), mask=1),
    "logical_not.default": Pointwise(_not, operands="bool"),
    "logical_and.default": Pointwise(_and, operands="bool"),
    "logical_or.default": Pointwise(_or, operands="bool"),
    "logical_xor.default": Pointwise(_xor, operands="bool"),
    "bitwise_not.default": Pointwise(_not),
    **{
        f"bitwise_{name}.{kind}": Pointwise(formula)
        for name, formula in (("and", _and), ("or", _or), ("xor", _xor))
        for kind in ("Tensor", "Scalar")
    },
    "isnan.default": Pointwise(_is_nan, operands="common"),
    "isinf.default": Pointwise(_is_infinite, operands="common", floating=True),
    "isfinite.default": Pointwise(_is_finite, operands="common", floating=True),
}


def _lerp(x: Scalar, end: Scalar, weight: Scalar) -> Scalar:
    """From the end that is nearer."""
    near, far = x + weight * (end - x), end - (end - x) * (1 - weight)
    if weight.op == "constant":
        return near if abs(weight.payload) < 0.5 else far
    return weight.call("abs").compare("lt", 0.5).where(near, far)


POINTWISE: Mapping[str, Pointwise] = {
    **{f"aten.{name}.default": Pointwise(lambda x: x) for name in _SAME.split()},
    **{f"aten.{name}.default": _function(name) for name in _FUNCTIONS.split()},
    **{
        f"aten.{name}.{kind}": _comparison(name)
        for name in "eq ne lt le gt ge".split()
        for kind in ("Tensor", "Scalar")
    },
    **{f"aten.{name}": entry for name, entry in _FORMULAS.items()},
}
