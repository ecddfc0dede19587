"""The element-wise operators in C.

One row is one operator: its formula, in which the arguments have the names that ATen gives them.  Each argument is
converted first to the dtype that PyTorch computes in (`T` in a formula), and `{f}` ends the name of a function of the
C library in that dtype.  Where PyTorch says what becomes of a NaN, so do the comparisons here: a comparison with NaN is
false, and the branch that is taken then hands the NaN on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..graph import Node, Value
from ..promotion import promote
from ..torch_private import overload, schema
from .elements import C_TYPES, FLOATS

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Formula:
    """One operator.

    text: in C; or what makes it of the arguments, and may return None for what it does not cover.
    computes: "result" for the dtype of the result; "operands" for the one that the arguments are promoted to.
    heavy: whether it takes much longer than a multiplication.
    masks: arguments that are truth values.
    floats: whether there is a formula for real numbers only.
    """

    text: str | Callable[[Arguments], str | None]
    computes: str = "result"
    heavy: bool = False
    masks: tuple[str, ...] = ()
    floats: bool = False


def bound(node: Node) -> dict[str, Any]:
    """The arguments of a node by name, defaults included."""
    names, defaults = _arguments(node.op)
    return {**defaults, **dict(zip(names, node.args, strict=False)), **dict(node.kwargs)}


@cache
def _arguments(op: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    declared = schema(overload(op)).arguments
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    return tuple(a.name for a in declared), defaults


def formula_of(node: Node) -> tuple[Formula, str, dict[str, Any]] | None:
    """The row, the text and the arguments of a node; None where there is no formula for it."""
    row = FORMULAS.get(node.op)
    if row is None or len(node.outputs) != 1 or not node.results or node.results[0].dtype not in C_TYPES:
        return None
    arguments = bound(node)
    if any(v.dtype not in C_TYPES for v in node.inputs) or (row.floats and node.results[0].dtype not in FLOATS):
        return None
    text = row.text if isinstance(row.text, str) else row.text(arguments)
    return None if text is None else (row, text, arguments)


def computing_dtype(row: Formula, node: Node, arguments: Arguments) -> str:
    """The dtype that the arguments are converted to."""
    if row.computes == "result":
        return node.results[0].dtype
    return promote([a for name, a in arguments.items() if name not in row.masks and _is_number(a)])


def _is_number(argument: Any) -> bool:
    return isinstance(argument, (Value, bool, int, float))


# ---------------------------------------------------------------- rows that depend on their arguments

_POWERS = {
    2: "{self} * {self}",
    3: "{self} * {self} * {self}",
    0.5: "sqrt{f}({self})",
    -0.5: "1 / sqrt{f}({self})",
    -1: "1 / {self}",
    -2: "1 / ({self} * {self})",
    1: "{self}",
    0: "(T)1",
}


def _power(arguments: Arguments) -> str:
    return _POWERS.get(arguments["exponent"], "pow{f}({self}, {exponent})")


def _clamp(arguments: Arguments) -> str:
    low, high = arguments["min"] is not None, arguments["max"] is not None
    text = _from_below("{self}", "{min}") if low else "{self}"
    return _from_above(text, "{max}") if high else text


def _from_below(text: str, bound: str) -> str:
    return f"(({text}) < {bound} || {bound} != {bound} ? {bound} : ({text}))"


def _from_above(text: str, bound: str) -> str:
    return f"(({text}) > {bound} || {bound} != {bound} ? {bound} : ({text}))"


def _invert(arguments: Arguments) -> str:
    return "{self} ^ 1" if arguments["self"].dtype == "bool" else "~{self}"


def _gelu(arguments: Arguments) -> str:
    if arguments["approximate"] == "tanh":
        return f"(T)0.5 * {{self}} * (1 + tanh{{f}}({_GELU_INNER}))"
    return "(T)0.5 * {self} * (1 + erf{f}({self} * (T)0.70710678118654752440))"


_GELU_INNER = "(T)0.79788456080286535588 * ({self} + (T)0.044715 * {self} * {self} * {self})"


def _gelu_backward(arguments: Arguments) -> str | None:
    if arguments["approximate"] != "none":
        return None
    density = "(T)0.39894228040143267794 * exp{f}((T)-0.5 * {self} * {self})"
    share = "(T)0.5 * (1 + erf{f}({self} * (T)0.70710678118654752440))"
    return f"{{grad_output}} * ({share} + {{self}} * ({density}))"


def _leaky_relu_backward(arguments: Arguments) -> str:
    return "{self} > 0 ? {grad_output} : {grad_output} * {negative_slope}"


def _is_plain(text: str, *names: str) -> Callable[[Arguments], str | None]:
    """A formula that holds where these arguments keep their defaults."""
    return lambda arguments: text if all(arguments[name] in (1, None) for name in names) else None


_MAXIMUM = "{self} > {other} || {self} != {self} ? {self} : {other}"
_MINIMUM = "{self} < {other} || {self} != {self} ? {self} : {other}"
_SAME = ("clone", "alias", "detach", "lift_fresh_copy", "positive", "contiguous")
_LIBRARY = (
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "erf", "erfc"),
)
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

FORMULAS: dict[str, Formula] = {
    **{f"aten.{op}.default": Formula("{self}") for op in _SAME},
    "aten._to_copy.default": Formula("{self}"),
    "aten.copy.default": Formula("{src}"),
    **{f"aten.{op}.default": Formula(f"{op}{{f}}({{self}})", heavy=True, floats=True) for op in _LIBRARY},
    **{
        f"aten.{op}.{kind}": Formula(f"{{self}} {sign} {{other}}", computes="operands")
        for op, sign in _COMPARISONS.items()
        for kind in ("Tensor", "Scalar")
    },
    **{f"aten.{op}.{kind}": Formula(f"{{self}} {sign} {{alpha}} * {{other}}")
       for op, sign in (("add", "+"), ("sub", "-")) for kind in ("Tensor", "Scalar")},
    "aten.rsub.Tensor": Formula("{other} - {alpha} * {self}"),
    "aten.rsub.Scalar": Formula("{other} - {alpha} * {self}"),
    "aten.mul.Tensor": Formula("{self} * {other}"),
    "aten.mul.Scalar": Formula("{self} * {other}"),
    "aten.div.Tensor": Formula("{self} / {other}", floats=True),
    "aten.div.Scalar": Formula("{self} / {other}", floats=True),
    "aten.neg.default": Formula("-{self}"),
    "aten.abs.default": Formula("fabs{f}({self})", floats=True),
    "aten.square.default": Formula("{self} * {self}"),
    "aten.reciprocal.default": Formula("1 / {self}", floats=True),
    "aten.sqrt.default": Formula("sqrt{f}({self})", floats=True),
    "aten.rsqrt.default": Formula("1 / sqrt{f}({self})", floats=True),
    "aten.pow.Tensor_Scalar": Formula(_power, floats=True),
    "aten.pow.Tensor_Tensor": Formula("pow{f}({self}, {exponent})", heavy=True, floats=True),
    "aten.pow.Scalar": Formula("pow{f}({self}, {exponent})", heavy=True, floats=True),
    "aten.atan2.default": Formula("atan2{f}({self}, {other})", heavy=True, floats=True),
    "aten.sign.default": Formula("({self} > 0) - ({self} < 0)", floats=True),
    "aten.floor.default": Formula("floor{f}({self})", floats=True),
    "aten.ceil.default": Formula("ceil{f}({self})", floats=True),
    "aten.trunc.default": Formula("trunc{f}({self})", floats=True),
    "aten.round.default": Formula("rint{f}({self})", floats=True),
    "aten.isnan.default": Formula("{self} != {self}", computes="operands"),
    "aten.logical_not.default": Formula("{self} == 0", computes="operands"),
    "aten.logical_and.default": Formula("{self} != 0 && {other} != 0", computes="operands"),
    "aten.logical_or.default": Formula("{self} != 0 || {other} != 0", computes="operands"),
    "aten.logical_xor.default": Formula("({self} != 0) != ({other} != 0)", computes="operands"),
    "aten.maximum.default": Formula(_MAXIMUM),
    "aten.minimum.default": Formula(_MINIMUM),
    "aten.clamp.default": Formula(_clamp),
    "aten.clamp.Tensor": Formula(_clamp),
    "aten.clamp_min.default": Formula(_from_below("{self}", "{min}")),
    "aten.clamp_max.default": Formula(_from_above("{self}", "{max}")),
    "aten.hardtanh.default": Formula(_from_above(_from_below("{self}", "{min_val}"), "{max_val}"), floats=True),
    "aten.bitwise_not.default": Formula(_invert),
    **{f"aten.bitwise_{op}.{kind}": Formula(f"{{self}} {sign} {{other}}")
       for op, sign in (("and", "&"), ("or", "|"), ("xor", "^")) for kind in ("Tensor", "Scalar")},
    **{f"aten.where.{kind}": Formula("{condition} ? {self} : {other}", masks=("condition",))
       for kind in ("self", "Scalar", "ScalarSelf", "ScalarOther")},
    "aten.masked_fill.Scalar": Formula("{mask} ? {value} : {self}", masks=("mask",)),
    "aten.masked_fill.Tensor": Formula("{mask} ? {value} : {self}", masks=("mask",)),
    "aten.lerp.Scalar": Formula(
        "{weight} < (T)0.5 && {weight} > (T)-0.5 ? {self} + {weight} * ({end} - {self}) "
        ": {end} - ({end} - {self}) * (1 - {weight})", floats=True),
    "aten.addcmul.default": Formula("{self} + {value} * {tensor1} * {tensor2}"),
    "aten.addcdiv.default": Formula("{self} + {value} * {tensor1} / {tensor2}", floats=True),
    "aten.relu.default": Formula("{self} <= 0 ? 0 : {self}"),
    "aten.threshold_backward.default": Formula("{self} <= {threshold} ? 0 : {grad_output}"),
    "aten.leaky_relu.default": Formula("{self} > 0 ? {self} : {self} * {negative_slope}", floats=True),
    "aten.leaky_relu_backward.default": Formula(_leaky_relu_backward, floats=True),
    "aten.sigmoid.default": Formula("1 / (1 + exp{f}(-{self}))", heavy=True, floats=True),
    "aten.sigmoid_backward.default": Formula("{grad_output} * ((1 - {output}) * {output})", floats=True),
    "aten.tanh_backward.default": Formula("{grad_output} * (1 - {output} * {output})", floats=True),
    "aten.silu.default": Formula("{self} / (1 + exp{f}(-{self}))", heavy=True, floats=True),
    "aten.silu_backward.default": Formula(
        "{grad_output} * (1 / (1 + exp{f}(-{self}))) * (1 + {self} * (1 - 1 / (1 + exp{f}(-{self}))))",
        heavy=True, floats=True),
    "aten.softplus.default": Formula(
        "{self} * {beta} > {threshold} ? {self} : log1p{f}(exp{f}({self} * {beta})) / {beta}",
        heavy=True, floats=True),
    "aten.elu.default": Formula(
        "{self} > 0 ? {self} * {scale} : expm1{f}({self} * {input_scale}) * ({alpha} * {scale})",
        heavy=True, floats=True),
    "aten.gelu.default": Formula(_gelu, heavy=True, floats=True),
    "aten.gelu_backward.default": Formula(_gelu_backward, heavy=True, floats=True),
}  # fmt: skip
