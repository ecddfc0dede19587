"""Scalar expressions: what a program computes, entry by entry, each written down once.

Equal expressions are the same object, so that what two entries share is computed once.  Nothing is simplified that
could change a result: `0 * x` stays, since x may be infinite; `x + 0` stays, since x may be −0.  Only a *structural*
zero, an entry that a placement left empty, is absent from sums and wipes out products.
"""

import operator
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

FLOATING = ("float64", "float32")
DTYPES = (*FLOATING, "int64", "int32", "int16", "int8", "uint8", "bool")
_COMPARISONS = {name: getattr(operator, name) for name in "lt le gt ge eq ne".split()}
_COMMUTATIVE = frozenset(("add", "mul", "eq", "ne", "and", "or", "xor"))


def _single(number: Any) -> float:
    """A number in single precision; what is too large is infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return float(np.float32(number))


def _wrapped(number: int, dtype: str) -> int:
    """What is left of an integer in a dtype that may be too narrow for it."""
    ends = np.iinfo(dtype)
    return (number - int(ends.min)) % (int(ends.max) - int(ends.min) + 1) + int(ends.min)


class Scalar:
    """One number that a program computes, of a table of such expressions.

    op: what it is: "input", "constant", "zero" (structural), "cast", or the name of an operation.
    dtype: its dtype's name.
    operands: what it is computed from.
    payload: the number of a constant; (tensor, position) of an input.
    serial: its number in the table; operands have smaller ones.
    varies: whether it depends on the sample.
    """

    __slots__ = ("dtype", "op", "operands", "payload", "serial", "table", "varies")

    def __init__(self, table: "Table", op: str, dtype: str, operands: tuple["Scalar", ...], payload: Any) -> None:
        self.table, self.op, self.dtype, self.operands, self.payload = table, op, dtype, operands, payload
        self.serial = len(table)
        self.varies: bool = any(operand.varies for operand in operands)

    def __add__(self, other: "Scalar | float") -> "Scalar":
        return self.table.add(self, self.table.lift(other, self.dtype))

    def __sub__(self, other: "Scalar | float") -> "Scalar":
        return self.table.subtract(self, self.table.lift(other, self.dtype))

    def __mul__(self, other: "Scalar | float") -> "Scalar":
        return self.table.multiply(self, self.table.lift(other, self.dtype))

    def __truediv__(self, other: "Scalar | float") -> "Scalar":
        return self.table.divide(self, self.table.lift(other, self.dtype))

    def __radd__(self, other: float) -> "Scalar":
        return self.table.lift(other, self.dtype) + self

    def __rsub__(self, other: float) -> "Scalar":
        return self.table.lift(other, self.dtype) - self

    def __rmul__(self, other: float) -> "Scalar":
        return self.table.lift(other, self.dtype) * self

    def __rtruediv__(self, other: float) -> "Scalar":
        return self.table.lift(other, self.dtype) / self

    def __neg__(self) -> "Scalar":
        return self.table.negate(self)

    def __repr__(self) -> str:
        return f"<{self.op} {self.dtype} {self.serial}>"

    def to(self, dtype: str) -> "Scalar":
        """The same number in another dtype."""
        return self.table.cast(self, dtype)

    def call(self, op: str, *others: "Scalar | float", dtype: str | None = None) -> "Scalar":
        """An operation on this number and others of its dtype."""
        operands = (self, *(self.table.lift(other, self.dtype) for other in others))
        return self.table.make(op, dtype or self.dtype, *operands)

    def compare(self, op: str, other: "Scalar | float") -> "Scalar":
        """A comparison: "lt", "le", "gt", "ge", "eq" or "ne"."""
        other = self.table.lift(other, self.dtype)
        if self.op == other.op == "constant":
            return self.table.constant(_COMPARISONS[op](self.payload, other.payload), "bool")
        return self.call(op, other, dtype="bool")

    def where(self, yes: "Scalar", no: "Scalar") -> "Scalar":
        """`yes` where this condition holds, `no` elsewhere."""
        if yes is no or self.op == "constant":
            return yes if yes is no or self.payload else no
        return self.table.make("where", yes.dtype, self, yes, no)

    def is_zero(self) -> bool:
        """Whether it is a structural zero."""
        return self.op == "zero"

    def is_number(self, number: float) -> bool:
        """Whether it is a constant of this value, the sign of a zero aside."""
        return self.op == "constant" and bool(self.payload == number)


class Table:
    """All expressions of one program, each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Scalar] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Scalar]:
        return iter(self._known.values())

    def _node(self, op: str, dtype: str, operands: tuple[Scalar, ...], payload: Any = None, key: Any = None) -> Scalar:
        identity = (op, dtype, key, *(operand.serial for operand in operands))
        found = self._known.get(identity)
        if found is None:
            found = self._known[identity] = Scalar(self, op, dtype, operands, payload)
        return found

    def input(self, tensor: int, position: tuple[int, int], dtype: str, *, varies: bool) -> Scalar:
        """An entry of the tensor of this number; `position` is what stands before and behind the sample's number."""
        found = self._node("input", dtype, (), (tensor, position), (tensor, position))
        found.varies = varies
        return found

    def constant(self, number: Any, dtype: str) -> Scalar:
        """A number, rounded to the dtype; integers run over."""
        if dtype in FLOATING:
            number = _single(number) if dtype == "float32" else float(number)
            return self._node("constant", dtype, (), number, struct.pack("d", number))
        number = bool(number) if dtype == "bool" else _wrapped(int(number), dtype)
        return self._node("constant", dtype, (), number, number)

    def zero(self, dtype: str) -> Scalar:
        """A structural zero."""
        return self._node("zero", dtype, ()) if dtype in FLOATING else self.constant(0, dtype)

    def lift(self, number: Any, dtype: str) -> Scalar:
        """A Python number as a constant; a scalar as it is."""
        return number if isinstance(number, Scalar) else self.constant(number, dtype)

    def make(self, op: str, dtype: str, *operands: Scalar) -> Scalar:
        """An operation; structural zeros become ordinary ones."""
        operands = tuple(self.constant(0.0, x.dtype) if x.op == "zero" else x for x in operands)
        if op in _COMMUTATIVE and operands[0].serial > operands[1].serial:
            operands = (operands[1], operands[0])
        return self._node(op, dtype, operands)

    def cast(self, x: Scalar, dtype: str) -> Scalar:
        """The same number in another dtype."""
        if x.dtype == dtype:
            return x
        if x.is_zero() and dtype in FLOATING:
            return self.zero(dtype)
        if x.op == "constant" and (dtype in FLOATING or x.dtype not in FLOATING):
            return self.constant(x.payload, dtype)
        return self.make("cast", dtype, x)

    def add(self, a: Scalar, b: Scalar) -> Scalar:
        """The sum; of integers that are known, the number."""
        if a.is_zero() or b.is_zero():
            return b if a.is_zero() else a
        return self._folded("add", a, b) or self.make("add", a.dtype, a, b)

    def subtract(self, a: Scalar, b: Scalar) -> Scalar:
        """The difference."""
        if a.is_zero() or b.is_zero():
            return -b if a.is_zero() else a
        return self._folded("sub", a, b) or self.make("sub", a.dtype, a, b)

    def multiply(self, a: Scalar, b: Scalar) -> Scalar:
        """The product, in which 1 is left out and −1 is a sign."""
        if a.is_zero() or b.is_zero():
            return self.zero(a.dtype)
        for one, other in ((a, b), (b, a)):
            if one.is_number(1):
                return other
            if one.is_number(-1) and a.dtype in FLOATING:
                return -other
        return self._folded("mul", a, b) or self.make("mul", a.dtype, a, b)

    def divide(self, a: Scalar, b: Scalar) -> Scalar:
        """The quotient of floating numbers."""
        return a if b.is_number(1) else self.make("div", a.dtype, a, b)

    def negate(self, a: Scalar) -> Scalar:
        """The number with the other sign."""
        if a.is_zero():
            return a
        if a.op == "constant" and a.dtype != "bool":
            return self.constant(-a.payload, a.dtype)
        return a.operands[0] if a.op == "neg" else self.make("neg", a.dtype, a)

    def _folded(self, op: str, a: Scalar, b: Scalar) -> Scalar | None:
        if not (a.op == b.op == "constant" and a.dtype == "int64"):
            return None
        x, y = a.payload, b.payload
        result = x + y if op == "add" else x - y if op == "sub" else x * y
        return self.constant(result, "int64") if abs(result) < 2**63 else None
