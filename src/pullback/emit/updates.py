"""Updates of inputs in place: `p - 0.1 * g` that is to be written into `p` becomes `p.add_(g, alpha=-0.1)`.

A graph holds a write as a copy of a new value into an input at its end.  Where the new value is computed from the old
one by operators that can write, and nothing reads the old one later, they write at once; several updates of the same
kind become one call.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..graph import Graph, Node, Value, values_in
from .aliases import memory_roots

_WRITERS = """
add.Tensor sub.Tensor mul.Tensor div.Tensor add.Scalar sub.Scalar mul.Scalar div.Scalar lerp.Scalar lerp.Tensor
addcmul.default addcdiv.default neg.default clamp.default clamp_min.default clamp_max.default zero.default fill.Scalar
sqrt.default exp.default
"""
WRITERS: Mapping[str, str] = {f"aten.{op}": "aten.{}_.{}".format(*op.split(".")) for op in _WRITERS.split()}
_SCALED = ("aten.add.Tensor", "aten.sub.Tensor")
_SIGN = {"aten.add_.Tensor": 1, "aten.sub_.Tensor": -1}
_PRODUCTS = {"aten.mm.default": "aten.addmm_.default", "aten.mv.default": "aten.addmv_.default"}
_EXACT = ("float32", "float64")  # of others, a product that is rounded first is another number


def update_in_place(graph: Graph) -> Graph:
    """The same program, whose inputs are written into where the new value is computed, if nothing reads the old later.

    Cost: linear in the number of nodes.
    """
    if not graph.mutations:
        return graph
    update = _Update(graph)
    left = tuple(pair for pair in graph.mutations if not update.absorbed(*pair))
    nodes = [n for n in (update.became.get(id(node), node) for node in graph.nodes) if n is not None]
    return _together(_with_products(replace(graph, nodes=tuple(nodes), mutations=left)))


class _Update:
    """The state of one run: what each node became, None for one that is gone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.root = memory_roots(graph)
        self.place = {id(node): k for k, node in enumerate(graph.nodes)}
        self.producer = graph.producers()
        self.readers: dict[Value, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for value in dict.fromkeys(node.inputs):
                self.readers[value].append(node)
        self.last: dict[Value, list[int]] = defaultdict(list)
        for k, node in enumerate(graph.nodes):
            for value in node.inputs:
                self.last[self.root[value]].append(k)
        self.returned = set(values_in(graph.outputs))
        self.became: dict[int, Node | None] = {}

    def absorbed(self, old: Value, new: Value) -> bool:
        """Let the nodes from an input to its new value write into it; False if they cannot."""
        node = self.producer.get(new)
        if node is None or new in self.returned:
            return False
        if node.op.startswith("aten._foreach_"):
            return self._many(node)
        chain = self._chain(old, new)
        if not chain or any(self._is_read_from(old, n, chain) for n in chain):
            return False
        for n in chain:
            self.became[id(n)] = self._writing(n, old)
        return True

    def _chain(self, old: Value, new: Value) -> list[Node]:
        """The nodes, last first, through which an input becomes its new value; none if it does so otherwise."""
        chain: list[Node] = []
        value = new
        while value is not old:
            node = self.producer.get(value)
            if node is None or node.op not in WRITERS or id(node) in self.became or value.type != old.type:
                return []
            if chain and (len(self.readers[value]) != 1 or value in self.returned):
                return []
            chain.append(node)
            target = _target(node, old, self.producer)
            if target is None:
                return []
            value = target
        return chain

    def _is_read_from(self, old: Value, first: Node, chain: Sequence[Node]) -> bool:
        """Whether the old value is read at or behind a node, but for the first operand of a chain."""
        begin, own = self.place[id(first)], {self.place[id(n)] for n in chain}
        if [self.root[v] for n in chain for v in n.inputs].count(old) != 1:
            return True
        return any(k >= begin and k not in own for k in self.last[old])

    def _writing(self, node: Node, old: Value) -> Node:
        """The node, writing into what it would make anew."""
        target = _target(node, old, self.producer)
        others = [a for a in node.args if a is not target]
        writing = replace(node, op=WRITERS[node.op], args=(target, *others))
        scaled = self._scale(node, others)
        if scaled is None:
            return writing
        product, factor, number = scaled
        self.became[id(product)] = None
        return replace(writing, args=(target, factor), kwargs=(("alpha", number),))

    def _scale(self, node: Node, others: Sequence[Any]) -> tuple[Node, Value, Any] | None:
        """A product with a number which only this node reads, its other factor, and the number."""
        if node.op not in _SCALED or node.kwargs or len(others) != 1 or not isinstance(others[0], Value):
            return None
        product = self.producer.get(others[0])
        if product is None or product.op != "aten.mul.Tensor" or others[0] in self.returned or product.kwargs:
            return None
        factor, number = product.args
        if not isinstance(factor, Value) or isinstance(number, (Value, bool)) or len(self.readers[others[0]]) != 1:
            return None
        same = factor.dtype == others[0].dtype == node.results[0].dtype and factor.dtype in _EXACT
        return (product, factor, number) if same else None

    def _many(self, node: Node) -> bool:
        """Let one call on lists write into all of its first operands."""
        if id(node) in self.became:
            return True
        targets, new = dict(self.graph.mutations), node.outputs
        olds = node.args[0]
        writes = all(isinstance(v, Value) and targets.get(o) is v for o, v in zip(olds, new, strict=True))
        begin = self.place[id(node)]
        is_read = any(k > begin for o in olds for k in self.last[o])
        roots = [self.root[v] for v in node.inputs]
        if not writes or is_read or any(roots.count(o) != 1 for o in olds) or set(new) & self.returned:
            return False
        name, overload = node.op.split(".")[1:]
        self.became[id(node)] = replace(node, op=f"aten.{name}_.{overload}", outputs=())
        return not any(self.readers[v] for v in node.results) or self._undo(node)

    def _undo(self, node: Node) -> bool:
        del self.became[id(node)]
        return False


def _target(node: Node, old: Value, producer: Mapping[Value, Node]) -> Value | None:
    """The operand that a node may write into: the first one, or of a sum or product the one that leads to `old`."""
    operands = node.args[:1]
    if node.op in ("aten.add.Tensor", "aten.mul.Tensor") and len(node.args) == 2 and not node.kwargs:
        operands = node.args
    found = [a for a in operands if isinstance(a, Value)]
    return next((a for a in found if a is old), found[0] if found else None)


def _with_products(graph: Graph) -> Graph:
    """Updates by a product that nothing else reads add it right into the input: `p.addmm_(a, b, alpha)`."""
    producer, root = graph.producers(), memory_roots(graph)
    readers = Counter(v for node in graph.nodes for v in node.inputs)
    readers.update(values_in((graph.outputs, graph.mutations)))
    written = {root[n.inputs[0]] for n in graph.nodes if n.inputs and n.op.split(".")[1].endswith("_")}
    gone, became = set(), {}
    for node in graph.nodes:
        kind = _kind(node)
        product = producer.get(node.args[1]) if kind is not None else None
        if product is None or product.op not in _PRODUCTS or readers[node.args[1]] != 1 or product.kwargs:
            continue
        if not any(root[v] in written for v in product.inputs):
            gone.add(id(product))
            op, alpha = _PRODUCTS[product.op], kind[0]
            became[id(node)] = replace(node, op=op, args=(node.args[0], *product.args), kwargs=(("alpha", alpha),))
    nodes = (became.get(id(node), node) for node in graph.nodes if id(node) not in gone)
    return replace(graph, nodes=tuple(nodes))


def _together(graph: Graph) -> Graph:
    """Several updates `p.add_(g, alpha)` of one kind, whose results nothing reads, as one call at the last of them."""
    root = memory_roots(graph)
    last = {root[v]: k for k, node in enumerate(graph.nodes) for v in node.inputs}
    written = {root[n.args[0]] for n in graph.nodes if n.op in _SIGN}
    groups: dict[Any, list[int]] = defaultdict(list)
    for k, node in enumerate(graph.nodes):
        key = _kind(node)
        if key is not None and last[root[node.args[0]]] == k and root[node.args[1]] not in written:
            groups[key].append(k)
    nodes: list[Node | None] = list(graph.nodes)
    for (alpha, _, _), places in groups.items():
        if len(places) > 1:
            members = [graph.nodes[k] for k in places]
            for k in places:
                nodes[k] = None
            lists = (tuple(n.args[0] for n in members), tuple(n.args[1] for n in members))
            nodes[places[-1]] = replace(
                members[-1], op="aten._foreach_add_.List", args=lists, kwargs=(("alpha", alpha),), outputs=()
            )
    return replace(graph, nodes=tuple(n for n in nodes if n is not None))


def _kind(node: Node) -> Any:
    """What updates must have in common to be one call; None for a node that is no such update of an input."""
    if node.op not in _SIGN or len(node.args) != 2 or not isinstance(node.args[1], Value):
        return None
    target, step = node.args
    alpha = dict(node.kwargs).get("alpha", 1)
    if isinstance(alpha, Value) or target.dtype not in _EXACT or target.type != step.type:
        return None
    return alpha * _SIGN[node.op], target.dtype, target.device
