"""Formulas in the precision of the result, where operands have less."""

from typing import Any

from ..expressions import Builder, Symbol
from ..graph import Value
from ..promotion import as_precise


def widened(operand: Value, result: str, builder: Builder) -> Symbol:
    """An operand in the precision of a result's dtype, in which PyTorch computes: 1 / x of float32 would be rounded."""
    return Symbol(builder.cast(operand, as_precise(operand.dtype, result)), builder)


def as_given(formula: Any) -> Any:
    """An operand that a formula returns as it is: as a factor, it is widened by what it is multiplied with."""
    node = formula.builder.producer.get(formula.value) if isinstance(formula, Symbol) else None
    return Symbol(node.args[0], formula.builder) if node is not None and node.op == "cast" else formula
