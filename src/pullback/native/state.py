"""The state of a translation: the entry of each value, and the kernels so far."""

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ..graph import Graph, Node, Value, values_in
from .elements import Buffer, Entry, Read, transformed
from .layouts import VIEWS, Layout, dense
from .nests import Nest, Store

CHEAP = 3  # operations that are rather done again than kept
LONGEST = 48  # operations of one entry
MANY_VIEWS = frozenset(("aten.unbind.int", "aten.split.Tensor", "aten.split_with_sizes.default"))
MULTIPLIES = frozenset(f"aten.{op}.default" for op in ("mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm"))


class Translation:
    """The state of one run: the entry of each value, and the kernels so far."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.kernels: list[Any] = []
        self.entries: dict[Value, Entry] = {}
        self.inputs: dict[Value, Buffer] = {}
        self.viewed: dict[Value, Node] = {}
        self.copies: dict[tuple[Buffer, Layout], Read] = {}
        self.uses = _uses(graph)
        self.operands = Counter(v for n in graph.nodes if n.op in MULTIPLIES for v in n.inputs)
        for value in graph.inputs:
            self.inputs[value] = Buffer(value.dtype, value.size)
            self.entries[value] = Read(self.inputs[value], dense(value.shape))

    # -------------------------------------------------- buffers

    def new(self, shape: Sequence[int], dtype: str) -> Read:
        """A dense buffer for intermediate results."""
        layout = dense(shape)
        return Read(Buffer(dtype, layout.size), layout)

    def store(self, target: Read, entry: Entry) -> None:
        """Write an entry to a place."""
        if target.layout.size:
            self.kernels.append(Nest(target.layout.shape, (Store(target.buffer, target.layout, entry),)))

    def stored(self, value: Value) -> Read:
        """The value in a buffer, in whatever layout: a view in that of the value that it is a view of."""
        entry = self.entries[value]
        if not isinstance(entry, Read) and (seen := self._view_of_stored(value)) is not None:
            self.entries[value] = entry = seen
        elif not isinstance(entry, Read):
            target = self.new(value.shape, value.dtype)
            self.store(target, entry)
            self.entries[value] = entry = target
        return entry

    def _view_of_stored(self, value: Value) -> Read | None:
        """The value as a view of another one, which is stored for that; None if it is none, or of a part only."""
        node = self.viewed.get(value)
        if node is None or node.inputs[0].size > value.size:
            return None
        source = self.stored(node.inputs[0])
        layout = VIEWS[node.op](source.layout, node)
        return None if layout is None else Read(source.buffer, layout)

    def broadcast(self, value: Value, shape: Sequence[int]) -> Entry:
        """The entry of a value repeated to a shape; what is long to compute is computed once."""
        entry = self.entries[value]
        if tuple(shape) == value.shape:
            return entry
        if prod(shape) > value.size and (entry.is_heavy or entry.operations > CHEAP):
            entry = self.stored(value)
        found = transformed(entry, lambda layout: layout.expand(shape))
        assert found is not None
        return found

    def define(self, value: Value, entry: Entry) -> None:
        """Let an entry stand for a value; written to a buffer if several will read it, and it is long."""
        self.entries[value] = entry
        is_long = entry.is_heavy or entry.operations > CHEAP
        if entry.operations > LONGEST or (is_long and self.uses[value] > 1):
            self.stored(value)


def _uses(graph: Graph) -> Counter[Value]:
    """How many nodes read each value, itself or through views, and how many results it is."""
    uses: Counter[Value] = Counter(values_in(graph.outputs))
    for node in reversed(graph.nodes):
        if node.op in VIEWS or node.op in MANY_VIEWS:
            uses[node.inputs[0]] += sum(uses[v] for v in node.results)
        else:
            uses.update(node.inputs)
    return uses


Rule = Callable[[Translation, Node], None]
