"""Calls of ATen operators inside rules: linear maps with their operand left open, and fused backward kernels."""

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import RuleError
from ..expressions import Symbol
from ..graph import Value
from ..terms import Application
from .kinds import Call, Pull, parameters


def operation(op: str, *args: Any, output: int = 0, **kwargs: Any) -> Application:
    """A call of an ATen operator on symbols and constants; `HOLE` stands for the operand of a linear map."""
    return Application(op, bare(args), tuple((name, bare(a)) for name, a in kwargs.items()), output)


def bare(tree: Any) -> Any:
    """The same nested tuples with values in place of symbols."""
    if isinstance(tree, Symbol):
        return tree.value
    if isinstance(tree, (tuple, list)):
        return tuple(map(bare, tree))
    return tree


def pulled_by(kernel: Callable[..., Application | None], slots: Sequence[int] = (0,)) -> Pull:
    """The fused backward kernel of a whole node, for a cotangent of its first result.

    Arguments:
        kernel: a formula of the operator's arguments and the cotangent `g` that returns the call, or None if the kernel
            does not serve these arguments.  It may have parameters `y`, `ys` and `mask`: which slots are wanted.
        slots: positions among the operator's arguments of the tensors to which the kernel's results belong, in order.

    The kernel is not used where one of the other results has a cotangent, or another operand's derivative is wanted.
    """

    def pull(call: Call, cotangents: Sequence[Value | None], wanted: Sequence[bool]) -> tuple[Value | None, ...] | None:
        operands = [_operand_at(call, slot) for slot in slots]
        mask = tuple(k is not None and wanted[k] for k in operands)
        if cotangents[0] is None or any(c is not None for c in cotangents[1:]) or sum(wanted) != sum(mask):
            return None
        special = {"mask": mask} if "mask" in parameters(kernel) else {}
        chosen = call.evaluate(kernel, g=Symbol(cotangents[0], call.builder), **special)
        return None if chosen is None else _results(call, chosen, operands, mask)

    return pull


def _operand_at(call: Call, slot: int) -> int | None:
    """The number of the operand at a position among the arguments; None if no tensor was passed there."""
    if slot >= len(call.node.args) or not isinstance(call.node.args[slot], Value):
        return None
    return sum(isinstance(a, Value) for a in call.node.args[:slot])


def _results(
    call: Call, chosen: Application, operands: Sequence[int | None], mask: Sequence[bool]
) -> tuple[Value | None, ...]:
    """Call the kernel, and hand each of its results to the operand to which it belongs."""
    belongs = [call.operands[k] if k is not None and m else None for k, m in zip(operands, mask, strict=True)]
    types = [None if v is None else (v.shape, v.dtype) for v in belongs]
    results = iter(call.builder.node(chosen.op, chosen.args, types, chosen.kwargs))
    pulled: list[Value | None] = [None] * len(call.operands)
    for k, wanted in zip(operands, mask, strict=True):
        if k is not None and wanted:
            pulled[k] = next(results)
    return tuple(pulled)


def saved(ys: Sequence[Symbol | None], number: int) -> Symbol:
    """A result of the operator that its derivative reads.

    Raises RuleError if the graph does not hold it: a capture keeps every result of an operator that has a rule.
    """
    result = ys[number]
    if result is None:
        raise RuleError(f"the derivative reads result {number} of the operator, which the graph does not keep")
    return result


def given(*arguments: Symbol | None) -> list[int | None]:
    """The operand number of each of some tensor arguments that stand in a row, some of which may be None."""
    numbers: list[int | None] = []
    for argument in arguments:
        numbers.append(None if argument is None else sum(n is not None for n in numbers))
    return numbers


def cotangent_or_zeros(call: Call, given: Value | None, like: Value) -> Value:
    """A result's cotangent as an operand; zeros of its type for a result that nobody differentiates."""
    if given is not None:
        return given
    return call.builder.node("zeros", (like.shape, like.dtype), [(like.shape, like.dtype)])[0]
