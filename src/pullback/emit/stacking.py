"""What is concatenated is computed in its place: the operands of a `cat` are written into parts of its result.

A sum of products over the steps of a recurrence is one product of stacked operands.  To stack them costs nothing where
each is computed `out=` into the memory of the stack.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..graph import Graph, Node, Value, values_in
from .aliases import memory_roots
from .destinations import FLAT, KERNELS, WITH_OUT
from .rehearsal import Layouts, in_a_row

LARGEST = 2**19  # elements of a stack, which lasts as long as its program
CAT = "aten.cat.default"

# Operators with as many arguments that round each entry in the same way wherever it lies.  Most others have one
# formula for entries that fill vectors, and another one for what is left at the end of a row.
_SAME = {"mul.Tensor": 2, "add.Tensor": 2, "sub.Tensor": 2, "div.Tensor": 2, "neg.default": 1}
_SAME |= {"tanh_backward.default": 2, "sigmoid_backward.default": 2, "threshold_backward.default": 3}
SAME_IN_ANY_LAYOUT: Mapping[str, int] = {f"aten.{op}": count for op, count in _SAME.items()}


@dataclass(frozen=True)
class Slot:
    """The part of a stack that a value is computed into: `length` positions of an axis from `start` on."""

    whole: Value
    dim: int
    start: int
    length: int


def operands_of(cat: Node) -> tuple[tuple[Value, ...], int]:
    """What a `cat` joins, and along which axis."""
    values, dim = cat.args[0], cat.args[1] if len(cat.args) > 1 else 0
    return tuple(values), dim % max(len(values[0].shape), 1)


def slots(graph: Graph, constants: Collection[Value] = (), layouts: Layouts | None = None) -> dict[Value, Slot]:
    """The values that can be computed in their place of a stack; each is a whole tensor with memory of its own.

    constants: values that outlive a call.
    layouts: as of `emit_python`; then only what has the same bits there as elsewhere is computed in its place.

    Cost: linear in the number of nodes.
    """
    root, producer = memory_roots(graph), graph.producers()
    kept = {root[v] for v in (*graph.inputs, *constants, *values_in((graph.outputs, graph.mutations)))}
    readers = Counter(v for node in graph.nodes for v in node.inputs)
    found: dict[Value, Slot] = {}
    if any("as_strided" in node.op or node.op == "batched" for node in graph.nodes):  # they see the layout
        return found
    for node in reversed(graph.nodes):  # a stack of stacks first
        if node.op == CAT and node.results and node.results[0].size <= LARGEST and node.results[0] not in kept:
            placed = _slots_of(node, root, producer, kept, found)
            if layouts is not None:
                placed = {v: slot for v, slot in placed.items() if _has_equal_bits(v, slot, producer, readers, layouts)}
            found.update(placed)
    return found


def _has_equal_bits(
    value: Value, slot: Slot, producer: Mapping[Value, Node], readers: Mapping[Value, int], layouts: Layouts
) -> bool:
    """Whether a value, and what is computed from it, has the same bits in its place of a stack as by itself."""
    whole = slot.whole
    if any(v not in layouts or not in_a_row(v.shape, layouts[v]) for v in (whole, value)):
        return False
    node = producer[value]
    is_exact = node.op in SAME_IN_ANY_LAYOUT and len(node.args) == SAME_IN_ANY_LAYOUT[node.op] and not node.kwargs
    return (is_exact and readers[value] == 1) or not any(n > 1 for n in whole.shape[: slot.dim])


def joint_roots(graph: Graph, placed: Mapping[Value, Slot]) -> dict[Value, Value]:
    """Whose memory each value has, where some of them are computed in their place of a stack."""

    def outermost(value: Value) -> Value:
        return outermost(placed[value].whole) if value in placed else value

    return {value: outermost(own) for value, own in memory_roots(graph).items()}


def _slots_of(
    cat: Node,
    root: Mapping[Value, Value],
    producer: Mapping[Value, Node],
    kept: set[Value],
    taken: Mapping[Value, Slot],
) -> dict[Value, Slot]:
    """The slots of one stack; none unless half of its entries are computed in place."""
    whole = cat.results[0]
    operands, dim = operands_of(cat)
    if not whole.is_floating or any(v.dtype != whole.dtype or len(v.shape) != len(whole.shape) for v in operands):
        return {}
    roots = [root[v] for v in operands]
    exact = dim > 0 or (whole in taken and taken[whole].dim > 0)
    found: dict[Value, Slot] = {}
    start = covered = 0
    for value, own in zip(operands, roots, strict=True):
        node = producer.get(own)
        is_free = node is not None and own not in kept and own not in taken and roots.count(own) == 1
        if is_free and node is not None and can_be_placed(node) and _is_whole(value, own, producer, exact):
            found[own] = Slot(whole, dim, start, value.shape[dim])
            covered += value.size
        start += value.shape[dim]
    return found if 2 * covered >= whole.size else {}


def can_be_placed(node: Node) -> bool:
    """Whether an operator can compute into memory that it is given."""
    return (node.op in WITH_OUT or node.op in KERNELS) and len(node.outputs) == 1 and bool(node.results)


def _is_whole(value: Value, own: Value, producer: Mapping[Value, Node], exact: bool) -> bool:
    """Whether a value is all of a tensor in its order; `exact`: with the same axes, but for those of size 1."""
    if exact and [n for n in value.shape if n != 1] != [n for n in own.shape if n != 1]:
        return False
    while value is not own:
        node = producer[value]
        if node.op not in FLAT:
            return False
        value = node.inputs[0]
    return True
