"""What one operation on scalars is in C, and the functions of the C library that such operations are.

Functions such as sin are declared under names of our own.  Under their real ones GCC would join the sine and cosine of
an argument into one function of complex numbers, which no loop over vectors may call; and these declarations are what
tells it of the vectors' versions in glibc's libmvec, which are right to 4 units in the last place.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import copysign, isfinite, isnan
from typing import Any

from .scalars import FLOATING, Scalar

C_TYPES: Mapping[str, str] = {
    "float64": "double",
    "float32": "float",
    "int64": "int64_t",
    "int32": "int32_t",
    "int16": "int16_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "_Bool",
}

_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
            "ne": "!=", "and": "&", "or": "|", "xor": "^"}  # fmt: skip
# Done by one instruction each, whatever the width of the vector.
_BUILTINS = {"sqrt": "sqrt", "abs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint",
             "copysign": "copysign"}  # fmt: skip
VECTOR_FUNCTIONS = frozenset(
    "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 sin sinh tan tanh "
    "atan2 hypot pow".split()
)
FUNCTIONS = VECTOR_FUNCTIONS | {"fmod", "lgamma"}
_OF_TWO = frozenset(("atan2", "hypot", "pow", "fmod"))


def is_call(x: Scalar) -> bool:
    """Whether an operation is a function of the C library."""
    return x.op in FUNCTIONS


def declarations(called: Collection[tuple[str, str]], vectors: bool) -> list[str]:
    """The functions of the C library that are called, each an operation and its dtype, under names of our own.

    vectors: whether the library has them for vectors.
    """
    lines = []
    for op, dtype in sorted(called):
        kind = C_TYPES[dtype]
        arguments = ", ".join([kind] * (2 if op in _OF_TWO else 1))
        clause = 'const, simd("notinbranch")' if vectors and op in VECTOR_FUNCTIONS else "const"
        name, real = own_name(op, dtype), _real_name(op, dtype)
        lines.append(f'__attribute__(({clause})) {kind} {name}({arguments}) __asm__("{real}");')
    return [*lines, ""] if lines else []


def _real_name(op: str, dtype: str) -> str:
    return op + ("f" if dtype == "float32" else "")


def own_name(op: str, dtype: str) -> str:
    """The name under which a function of the C library is declared."""
    return f"p_{_real_name(op, dtype)}"


def literal(number: Any, dtype: str) -> str:
    """A constant in C, exactly."""
    if dtype not in FLOATING:
        return f"INT64_C({number})" if dtype == "int64" and number != -(2**63) else f"({int(number)})"
    ending = "f" if dtype == "float32" else ""
    if isnan(number):
        return f'__builtin_nan{ending}("")'
    if not isfinite(number):
        return f"(-__builtin_inf{ending}())" if number < 0 else f"__builtin_inf{ending}()"
    text = repr(number) + ending
    return f"({text})" if copysign(1.0, number) < 0 else text


def _cast(x: Scalar, operand: str) -> str:
    if x.dtype == "bool":
        return f"{operand} != 0"
    return f"({C_TYPES[x.dtype]}){operand}"


def _wrapped(sign: str) -> Callable[[Scalar, str, str], str]:
    """Integers run over without being undefined."""
    return lambda x, a, b: f"({C_TYPES[x.dtype]})((uint64_t){a} {sign} (uint64_t){b})"


# Operations that are neither an infix symbol nor a function.
_FORMS: Mapping[str, Callable[..., str]] = {
    "input": lambda x: "",
    "constant": lambda x: literal(x.payload, x.dtype),
    "zero": lambda x: literal(0.0, x.dtype),
    "cast": _cast,
    "neg": lambda x, a: f"-{a}" if x.dtype in FLOATING else f"({C_TYPES[x.dtype]})(-(uint64_t){a})",
    "not": lambda x, a: f"!{a}" if x.dtype == "bool" else f"({C_TYPES[x.dtype]})~{a}",
    "where": lambda x, condition, a, b: f"{condition} ? {a} : {b}",
}


def nested(x: Scalar, known: Mapping[Scalar, str]) -> str:
    """An expression in C, in one piece.

    Both branches of a choice are computed, so that a loop around it can be done in vectors.

    known: texts for what it is computed from.
    """
    if x in known:
        return known[x]
    operands = [f"({nested(o, known)})" if o.operands else nested(o, known) for o in x.operands]
    if x.op == "where" and x.dtype in FLOATING:
        return f"{_real_name('pick', x.dtype)}({', '.join(operands)})"
    return expression(x, operands)


def expression(x: Scalar, operands: Sequence[str]) -> str:
    """One operation in C, of operands that are names or literals."""
    if x.op in _FORMS:
        return _FORMS[x.op](x, *operands)
    if x.op in ("add", "sub", "mul") and x.dtype not in FLOATING:
        return _wrapped(_SYMBOLS[x.op])(x, *operands)
    if x.op in _SYMBOLS:
        return f"{operands[0]} {_SYMBOLS[x.op]} {operands[1]}"
    if x.op == "abs" and x.dtype not in FLOATING:
        return f"{operands[0]} < 0 ? ({C_TYPES[x.dtype]})(-(uint64_t){operands[0]}) : {operands[0]}"
    if x.op in _BUILTINS:
        return f"__builtin_{_real_name(_BUILTINS[x.op], x.dtype)}({', '.join(operands)})"
    return f"{own_name(x.op, x.dtype)}({', '.join(operands)})"
