"""A sum with a tensor that is zero almost everywhere is added to where that one is not.

The Jacobian of x + f(x) is J + 1, and that of a layer norm behind it has a block for each token: dense terms and
diagonal ones.  To write the diagonal ones out, as tensors of zeros, and to add those costs many times what they hold.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..graph import Graph, Node, Value, replace_values, values_in
from .aliases import memory_roots
from .destinations import FLAT

_ADD = "aten.add.Tensor"
_TURNS = frozenset(("aten.permute.default", "aten.t.default"))

# What each operator puts its operand into, as a view of the whole: the operator, and its arguments behind the tensor.
_PARTS: Mapping[str, Callable[..., tuple[str, tuple[Any, ...]]]] = {
    "aten.diagonal_backward.default": lambda sizes, *rest: ("aten.diagonal.default", rest),
    "aten.slice_backward.default": lambda sizes, *rest: ("aten.slice.Tensor", rest),
    "aten.select_backward.default": lambda sizes, *rest: ("aten.select.int", rest),
}


def add_where_nonzero(graph: Graph, untouchable: frozenset[Value] = frozenset()) -> Graph:
    """The same program, in which diagonals and other parts are added into sums that it has computed itself.

    untouchable: values that outlive a call.

    Cost: linear in the number of nodes.
    """
    if not any(node.op in _PARTS for node in graph.nodes):
        return graph
    return _Adding(graph, untouchable).result()


class _Adding:
    """The state of one run: who reads what, whose memory it is, and what stands for each sum."""

    def __init__(self, graph: Graph, untouchable: frozenset[Value]) -> None:
        self.graph, self.untouchable = graph, untouchable
        self.root = memory_roots(graph)
        self.producer = graph.producers()
        self.readers = Counter(v for node in graph.nodes for v in node.inputs)
        self.readers.update(values_in((graph.outputs, graph.mutations)))
        self.last = {self.root[v]: k for k, node in enumerate(graph.nodes) for v in node.inputs}
        self.last.update((self.root[v], len(graph.nodes)) for v in values_in((graph.outputs, graph.mutations)))
        for node in reversed(graph.nodes):  # what is put into a part may be read as late as the part
            if node.op in _PARTS and node.results:
                inner, whole = self.root[node.inputs[0]], self.root[node.results[0]]
                self.last[inner] = max(self.last[inner], self.last.get(whole, 0))
        kept = {self.root[v] for v in (*graph.inputs, *untouchable)}
        self.own = {v for n in graph.nodes if len(n.outputs) == 1 for v in n.results if self.root[v] is v} - kept
        self.became: dict[Value, Value] = {}
        self.merged: dict[Value, Value] = {}  # sums, and whose memory they lie in now
        self.gone: set[Value] = set()

    def result(self) -> Graph:
        """The program with every such sum done in place."""
        nodes: list[Node] = []
        for position, node in enumerate(self.graph.nodes):
            args, kwargs = replace_values((node.args, node.kwargs), self.new)
            found = self._operands(node, position)
            if found is None:
                nodes.append(replace(node, args=args, kwargs=kwargs))
                continue
            whole, part = found
            self.became[node.results[0]] = self.new(whole)
            root = self._root(whole)
            self.merged[node.results[0]] = root
            self.last[root] = self.last.pop(node.results[0], position)
            nodes += self._added(self.new(whole), part, node)
        outputs = replace_values(self.graph.outputs, self.new)
        mutations = tuple((old, self.new(value)) for old, value in self.graph.mutations)
        kept = tuple(node for node in nodes if not any(v in self.gone for v in node.results))
        return replace(self.graph, nodes=kept, outputs=outputs, mutations=mutations)

    def new(self, value: Value) -> Value:
        """What stands for a value by now."""
        return self.became.get(value, value)

    def _root(self, value: Value) -> Value:
        """The value in whose memory another lies by now."""
        root = self.root[value]
        while root in self.merged:
            root = self.merged[root]
        return root

    def _operands(self, node: Node, position: int) -> tuple[Value, Value] | None:
        """Of a sum: what may be added into, and what is zero almost everywhere."""
        if node.op != _ADD or len(node.args) != 2 or node.kwargs or not node.results:
            return None
        for whole, part in (node.args, node.args[::-1]):
            if not isinstance(whole, Value) or not isinstance(part, Value) or whole.type != node.results[0].type:
                continue
            if part.type != whole.type or not self._is_part(part) or not self._is_free(whole, position):
                continue
            if self._root(self._innermost(part)) is not self._root(whole):  # else the sum would read what it writes
                return whole, part
        return None

    def _innermost(self, part: Value) -> Value:
        """What a part is made of in the end."""
        while (made := self._unwrapped(part)) is not None:
            part = made[0]
        return part

    def _is_part(self, value: Value) -> bool:
        made = self.producer.get(value)
        is_own = self.readers[value] == 1 and value not in self.untouchable
        return made is not None and made.op in _PARTS and is_own

    def _is_free(self, value: Value, position: int) -> bool:
        """Whether nothing reads a value's memory later; a view of it will do that shows each element once."""
        root = self._root(value)
        if root not in self.own or self.last[root] != position:
            return False
        while value is not root:
            made = self.producer[value]
            if made.op not in FLAT | _TURNS | {_ADD}:
                return False
            value = self.new(value) if made.op == _ADD else made.inputs[0]
        return True

    def _added(self, whole: Value, part: Value, node: Node) -> Iterator[Node]:
        """Views of the whole down to where the part is not zero, and the sum there."""
        target = whole
        while (made := self._unwrapped(part)) is not None:
            self.gone.add(part)
            part, (op, args), shape = made
            view = Value(f"{whole.name}_part", shape, whole.dtype, whole.device)
            yield replace(node, op=op, args=(target, *args), outputs=(view,))
            target = view
        yield replace(node, op="aten.add_.Tensor", args=(target, self.new(part)), outputs=())

    def _unwrapped(self, part: Value) -> tuple[Value, tuple[str, tuple[Any, ...]], tuple[int, ...]] | None:
        """What a part is made of, and the view of the whole that it is added to."""
        made = self.producer.get(part)
        if made is None or self.readers[part] != 1 or made.op not in _TURNS | _PARTS.keys() or part in self.untouchable:
            return None
        inner = made.inputs[0]
        if made.op in _PARTS:
            return inner, _PARTS[made.op](*made.args[1:]), inner.shape
        if self._is_part(inner):
            dims = made.args[1] if len(made.args) > 1 else (1, 0)
            inverse = tuple(sorted(range(len(dims)), key=lambda d: dims[d]))
            return inner, ("aten.permute.default", (inverse,)), inner.shape
        return None
