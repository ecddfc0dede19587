"""Large intermediate values are overwritten by the element-wise operator that reads them last.

It is not the arithmetic that an element-wise operator on a large tensor costs but the memory: a fresh result is a page
fault every 4 KiB.  Only memory that the program has made itself is written into, and only where no view of it is read
again.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ..graph import Graph, Node, Value, values_in
from .destinations import INTO_GRADIENT
from .rehearsal import Layouts
from .stacking import Slot, joint_roots

SMALLEST = 2**14  # elements; a smaller result comes from memory that was just set free

_IN_PLACE = """
relu.default sigmoid.default tanh.default exp.default log.default neg.default sin.default cos.default sqrt.default
rsqrt.default reciprocal.default mul.Tensor add.Tensor sub.Tensor div.Tensor clamp_min.default
addmm.default baddbmm.default addcmul.default
"""
_COMMUTATIVE = frozenset(("aten.mul.Tensor", "aten.add.Tensor"))

_RESHAPES = frozenset(
    f"aten.{op}"
    for op in ("view.default", "_unsafe_view.default", "reshape.default", "unsqueeze.default", "squeeze.dim")
)

IN_PLACE: Mapping[str, str] = {f"aten.{op}": "aten.{}_.{}".format(*op.split(".")) for op in _IN_PLACE.split()}


def reuse_memory(
    graph: Graph,
    untouchable: frozenset[Value] = frozenset(),
    smallest: int = SMALLEST,
    slots: Mapping[Value, Slot] = MappingProxyType({}),
    layouts: Layouts | None = None,
) -> Graph:
    """The same program, in which large values that are read for the last time are overwritten where an operator can.

    untouchable: values that outlive a call.
    smallest: how many elements a value has to have.
    slots: the values that are computed in their place of a stack, and not into another value's memory.
    layouts: as of `emit_python`.

    Cost: linear in the number of nodes.
    """
    if any("as_strided" in node.op for node in graph.nodes):  # it sees the layout, which overwriting may change
        return graph
    root = joint_roots(graph, slots)
    last = _last_reads(graph, root)
    own = {v for n in graph.nodes if n.op != "batched" and len(n.outputs) == 1 for v in n.results if root[v] is v}
    own -= untouchable
    whole = _whole(graph, own)
    nodes = []
    for position, node in enumerate(graph.nodes):
        free = [v for v in node.inputs if v in whole and last[root[v]] == position and _lies_alike(v, node, layouts)]
        placed = any(v in slots for v in node.results)
        nodes.append(node if placed else _overwriting(node, free, root, smallest))
    return replace(graph, nodes=tuple(nodes))


def _lies_alike(value: Value, node: Node, layouts: Layouts | None) -> bool:
    """Whether a node's result may lie where a value does."""
    if layouts is None or not node.results:
        return True
    return value in layouts and layouts[value] == layouts.get(node.results[0])


def _whole(graph: Graph, own: set[Value]) -> set[Value]:
    """The values that are all of some memory of their own: in its shape, or in another."""
    whole = set(own)
    for node in graph.nodes:
        if node.op in _RESHAPES and node.inputs[0] in whole:
            whole.update(node.results)
    return whole


def _last_reads(graph: Graph, root: Mapping[Value, Value]) -> dict[Value, int]:
    """Where memory is read for the last time through any view of it."""
    last = {root[v]: k for k, node in enumerate(graph.nodes) for v in node.inputs}
    last.update((root[v], len(graph.nodes)) for v in values_in((graph.outputs, graph.mutations)))
    return last


def _overwriting(node: Node, free: list[Value], root: Mapping[Value, Value], smallest: int) -> Node:
    """The node, writing into one of the values that it is the last to read; itself if it cannot."""
    if not (node.op in IN_PLACE or node.op in INTO_GRADIENT) or node.results[0].size < smallest:
        return node
    target = _target(node, free)
    if target is None or not target.is_floating:
        return node
    if [root[v] for v in node.inputs].count(root[target]) != 1:
        return node
    if node.op in INTO_GRADIENT:
        return replace(node, op=INTO_GRADIENT[node.op], kwargs=(*node.kwargs, ("grad_input", target)))
    others = [a for a in node.args if a is not target]
    return replace(node, op=IN_PLACE[node.op], args=(target, *others))


def _target(node: Node, free: list[Value]) -> Value | None:
    """The operand to be overwritten: the first, or either one of a sum or a product without further arguments."""
    operands = node.args[:1]
    if node.op in _COMMUTATIVE and len(node.args) == 2 and not node.kwargs:
        operands = node.args
    like = node.results[0].type
    return next((a for a in operands if isinstance(a, Value) and a in free and a.type == like), None)
