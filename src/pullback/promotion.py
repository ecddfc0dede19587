"""What PyTorch makes of several arguments: the dtype that it computes in, and the shape that they broadcast to."""

from collections.abc import Sequence
from typing import Any

from .graph import COMPLEX, FLOATING, Value, complex_of, real_of

_RANK = {"bool": 0, "uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float16": 6, "bfloat16": 6}
_RANK |= {"float32": 7, "float64": 8, "complex32": 9, "complex64": 10, "complex128": 11}

_BEYOND_BOTH = {frozenset(("float16", "bfloat16")): "float32", frozenset(("uint8", "int8")): "int16"}


def promote(arguments: Sequence[Any], default: str = "float32") -> str:
    """The dtype PyTorch computes in: tensors with axes before 0-d tensors before Python numbers, by category.

    A complex number among real tensors makes them complex in the precision that they have.
    """
    classes: list[str] = ["", "", ""]
    for argument in arguments:
        if isinstance(argument, Value):
            place, dtype = (0 if argument.shape else 1), argument.dtype
        elif isinstance(argument, (bool, int, float, complex)):
            place, dtype = 2, {bool: "bool", int: "int64", float: default, complex: "complex64"}[type(argument)]
        else:
            continue
        classes[place] = _wider(classes[place], dtype)
    result = ""
    for dtype in classes:
        if dtype and (not result or _category(dtype) > _category(result)):
            result = complex_of(result) if dtype in COMPLEX and result in FLOATING else dtype
    return result or default


def as_precise(dtype: str, result: str) -> str:
    """The dtype of its kind, real or complex, with a result's precision; a dtype that has as much stays."""
    wide = real_of(result) if dtype in FLOATING else result
    kinds = (FLOATING, COMPLEX)
    return wide if any(dtype in k and wide in k for k in kinds) and _RANK[dtype] < _RANK[wide] else dtype


def _wider(a: str, b: str) -> str:
    if not a or not b:
        return a or b
    if (both := _BEYOND_BOTH.get(frozenset((a, b)))) is not None:
        return both
    if (a in COMPLEX) != (b in COMPLEX):
        a, b = (complex_of(dtype) if dtype in FLOATING else dtype for dtype in (a, b))
    return a if _RANK[a] >= _RANK[b] else b


def _category(dtype: str) -> int:
    return 3 if dtype in COMPLEX else 2 if dtype in FLOATING else 0 if dtype == "bool" else 1


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that several shapes broadcast to; they are known to fit."""
    rank = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))
