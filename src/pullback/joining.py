"""A walk through a record, written down: the pull programs of its steps, one behind the other, as one graph.

Nothing is multiplied, summed or laid out in another way than in the walk, so that both give the same bits.  What the
program saves are the calls between its operators: views of views, equal calls, and fresh memory.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .emit.aliases import memory_roots
from .emit.builtins import facts_of
from .emit.rehearsal import Layouts, fills_memory
from .expressions import hashable
from .graph import Graph, Node, Value, replace_values
from .history import History, Step
from .paths import Path, follow
from .pulls import pull_program, values_of

_TURNS = frozenset(("aten.permute.default", "aten.t.default", "aten.transpose.int"))


def joined(history: History, path: Path, output: int, fuse: bool) -> tuple[Graph, tuple[int, ...]]:
    """The walk along a path as a graph, and the numbers of its inputs: of values, and −1 for the seed.

    fuse: as of `replay.walk`.
    """
    joining = _Joining(history, fuse)
    seed = joining.input(-1, output)
    found = follow(history, path, (output, seed), joining.pulled, joining.sum, lambda k, cotangent, is_own: cotangent)
    inputs, outputs = joining.inputs, tuple(found[k] for k in path.order)
    graph = Graph(tuple(inputs.values()), _live(joining.nodes, outputs), outputs)
    graph.check()
    return graph, tuple(inputs)


def _live(nodes: Sequence[Node], outputs: Sequence[Value]) -> tuple[Node, ...]:
    """The nodes that outputs depend on, and those that write into a tensor instead of returning one."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if not node.results or any(v in needed for v in node.results):
            kept.append(node)
            needed.update(node.inputs)
    return tuple(reversed(kept))


class _Joining:
    """The state of one run: inputs by number, nodes, and which node is equal to which."""

    def __init__(self, history: History, fuse: bool) -> None:
        self.history, self.fuse = history, fuse
        self.inputs: dict[int, Value] = {}
        self.nodes: list[Node] = []
        self.known: dict[Any, tuple[Value | None, ...]] = {}
        self.producer: dict[Value, Node] = {}

    def input(self, number: int, index: int) -> Value:
        """The input of a number, of the type of a value of the record."""
        if number not in self.inputs:
            name = "cotangent" if number < 0 else self.history.name(index)
            self.inputs[number] = self.history.value(index, name)
        return self.inputs[number]

    def pulled(
        self, steps: Sequence[Step], given: Sequence[int], operands: Sequence[int], arriving: Sequence[Value]
    ) -> list[tuple[Value | None, bool]]:
        """The cotangents of steps' operands, of those of their results; see `paths.follow`."""
        numbers = values_of(steps)
        feed = pull_program(self.history, steps, numbers, given, operands, self.fuse)
        became: dict[Value, Value] = {}
        for value, k in zip(feed.graph.inputs, feed.inputs, strict=True):
            became[value] = arriving[-1 - k] if k < 0 else self.input(numbers[k], numbers[k])
        names = {v: f"d_{self.history.name(k)}" for v, k in zip(feed.graph.outputs, operands, strict=True)}
        is_pure = not any(facts_of(node).mutates for node in feed.graph.nodes)  # else equal calls are not one
        source = steps[0].place.source
        for node in feed.graph.nodes:
            args, kwargs = replace_values((node.args, node.kwargs), lambda v: became.get(v, v))
            outputs = tuple(None if v is None else _another(v, names.get(v, v.name)) for v in node.outputs)
            found = self.add(replace(node, args=args, kwargs=kwargs, outputs=outputs, source=source), is_pure)
            became.update((v, f) for v, f in zip(node.outputs, found, strict=True) if v is not None and f is not None)
        return [(became[value], True) for value in feed.graph.outputs]

    def sum(self, first: Value, second: Value, step: Step) -> Value:
        """What comes back to a value along two ways."""
        total = _another(first, first.name)
        self.add(Node("aten.add.Tensor", (first, second), (), (total,), step.place.source), False)
        return total

    def add(self, node: Node, shared: bool) -> tuple[Value | None, ...]:
        """Append a node; return the results of an equal one where there is one, if they may be `shared`."""
        node = self.turned_once(node)
        if node.op == "aten.permute.default" and node.args[1] == tuple(range(len(node.args[1]))):
            return (node.args[0],)
        key = (node.op, hashable(node.args), hashable(node.kwargs))
        known = self.known.get(key) if shared else None
        if known is not None and all(k is not None or o is None for k, o in zip(known, node.outputs, strict=True)):
            return known
        self.nodes.append(node)
        self.producer.update((value, node) for value in node.results)
        if shared:
            self.known[key] = node.outputs
        return node.outputs

    def turned_once(self, node: Node) -> Node:
        """A view with axes in another order, of a value that is no such view itself."""
        if node.op not in _TURNS:
            return node
        order, source = _order_of(node), node.inputs[0]
        before = self.producer.get(source)
        if before is not None and before.op == "aten.permute.default":
            order, source = tuple(before.args[1][d] for d in order), before.inputs[0]
        return replace(node, op="aten.permute.default", args=(source, order), kwargs=())


def _another(value: Value, name: str) -> Value:
    return Value(name, value.shape, value.dtype, value.device)


def _order_of(turn: Node) -> tuple[int, ...]:
    """The axes of the operand in the order in which the result has them."""
    rank = len(turn.inputs[0].shape)
    if turn.op == "aten.permute.default":
        return tuple(d % rank for d in turn.args[1])
    order = list(range(rank))
    if rank > 1:
        one, other = (0, 1) if turn.op == "aten.t.default" else turn.args[1:]
        order[one], order[other] = order[other], order[one]
    return tuple(order)


def with_own_results(graph: Graph, layouts: Layouts | None) -> Graph:
    """The same program, whose results have memory of their own, all of it.

    layouts: the strides of its values, where they are known.
    """
    root, outputs, clones = memory_roots(graph), list(graph.outputs), []
    taken = {root[value] for value in graph.inputs}
    for k, value in enumerate(graph.outputs):
        strides = None if layouts is None else layouts.get(value)
        if root[value] in taken or (strides is not None and not fills_memory(value.shape, strides)):
            outputs[k] = _another(value, f"{value.name}_copy")
            clones.append(Node("aten.clone.default", (value,), (), (outputs[k],)))
        taken.add(root[value])
    return replace(graph, nodes=(*graph.nodes, *clones), outputs=tuple(outputs))
