"""From a graph of ATen operators to kernels: loop nests, reductions and products over buffers.

An element-wise operator computes nothing yet: its value is an entry, in terms of what it reads, and is written to a
buffer when something needs it there, or when many would compute it again.  A view is a layout and costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import Graph, Node, Value
from .arrays import NotScalar
from .elements import MEMORY_TYPES, Buffer, Entry, Read, cast, computed, is_whole, number, transformed
from .formulas import POINTWISE, applied
from .layouts import VIEWS, dense
from .losses import COVERED_LOSSES, LOSSES
from .matrices import PRODUCTS, covers_product
from .normalisation import COVERED_NORMALISATION, NORMALISATION
from .pieces import PIECES
from .reductions import COVERED_REDUCTIONS, REDUCTIONS
from .scalars import Scalar, Table
from .state import CHEAP, Rule, Translation

RULES: Mapping[str, Rule] = {**PIECES, **REDUCTIONS, **NORMALISATION, **LOSSES, **PRODUCTS}
CONDITIONS: Mapping[str, Callable[[Node], bool]] = {
    **COVERED_REDUCTIONS,
    **COVERED_NORMALISATION,
    **COVERED_LOSSES,
    **dict.fromkeys(PRODUCTS, covers_product),
}


@dataclass(frozen=True)
class Kernels:
    """What computes a graph.

    inputs, outputs: the buffers of the graph's inputs and outputs, in order.
    kernels: loop nests, reductions and products, in an order that computes.
    """

    inputs: tuple[Buffer, ...]
    kernels: tuple[Any, ...]
    outputs: tuple[Buffer, ...]


def translated(graph: Graph) -> Kernels:
    """The kernels of a graph of covered operators; each output is a buffer of its own.

    Raises NativeError if there is no native code for a node.
    """
    state = Translation(graph)
    for node in graph.nodes:
        translate(state, node)
    inputs = tuple(state.inputs.values())
    outputs: list[Buffer] = []
    for value in graph.outputs:
        outputs.append(_output(state, value, {*inputs, *outputs}))
    return Kernels(inputs, tuple(state.kernels), tuple(outputs))


def _output(state: Translation, value: Value, taken: set[Buffer]) -> Buffer:
    entry = state.entries[value]
    if isinstance(entry, Read) and entry.buffer not in taken and is_whole(entry):
        return entry.buffer
    buffer = Buffer(value.dtype, value.size)
    state.store(Read(buffer, dense(value.shape)), entry)
    return buffer


def translate(state: Translation, node: Node) -> None:
    """Add what computes a node."""
    if node.op in VIEWS:
        return _view(state, node)
    if node.op in RULES:
        return RULES[node.op](state, node)
    return _elementwise(state, node)


def is_covered(node: Node) -> bool:
    """Whether there is native code for a node."""
    values = (*node.inputs, *node.results)
    if any(v.dtype not in MEMORY_TYPES or v.device != "cpu" for v in values) or not node.results:
        return False
    if node.op in VIEWS:
        return True
    if node.op in RULES:
        condition = CONDITIONS.get(node.op)
        return all(v.size for v in values) and (condition is None or condition(node))
    return node.op in POINTWISE and len(node.outputs) == 1 and _has_formula(node)


def _has_formula(node: Node) -> bool:
    """Whether there is a formula for such arguments."""
    table = Table()
    try:
        found = applied(node)
        found.formula(*(_operand_of(table, k, *operand) for k, operand in enumerate(found.operands)))
    except NotScalar:
        return False
    return True


def _operand_of(table: Table, number: int, argument: Any, dtype: str) -> Scalar:
    if isinstance(argument, Value):
        return table.input(number, (0, 0), dtype, varies=True)
    return table.constant(argument, dtype)


def _elementwise(state: Translation, node: Node) -> None:
    found, (result,) = applied(node), node.results
    operands = [_operand(state, argument, result.shape, dtype) for argument, dtype in found.operands]
    state.define(result, cast(computed(found.formula, *operands), result.dtype))


def _operand(state: Translation, argument: Any, shape: Sequence[int], dtype: str) -> Entry:
    if isinstance(argument, Value):
        return cast(state.broadcast(argument, shape), dtype)
    return number(argument, dtype)


def _view(state: Translation, node: Node) -> None:
    """A view of everything that the value reads; where there is none, the value is written down first."""
    source, (result,) = node.inputs[0], node.results
    view = VIEWS[node.op]
    state.viewed[result] = node
    entry = transformed(state.entries[source], lambda layout: view(layout, node))
    if entry is None and not isinstance(state.entries[source], Read):
        state.stored(source)
        entry = transformed(state.entries[source], lambda layout: view(layout, node))
    if entry is None:
        copy = state.new(source.shape, source.dtype)
        state.store(copy, state.entries[source])
        entry = transformed(copy, lambda layout: view(layout, node))
    assert entry is not None
    if result.size > source.size and (entry.is_heavy or entry.operations > CHEAP):
        entry = transformed(state.stored(source), lambda layout: view(layout, node))
        assert entry is not None
    state.entries[result] = entry
