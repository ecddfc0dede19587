"""Accumulation: eliminate vertices in a given order until only edges from sources to targets are left.

Eliminating v multiplies every edge out of v with every edge into v. In reverse order this is classical
back-propagation: the one edge from v to the loss is its cotangent, summed before it is pulled back. What an edge holds
stays an unevaluated product until it has to be multiplied on; it is then *settled*: terms of equal pattern become one
payload, and an edge of a single row becomes one tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

from ..expressions import Builder
from ..graph import Node, Value
from ..rules.edges import local_jacobian, rule_of
from ..rules.kinds import Call, Pointwise
from ..stages import Edge, LinearGraph, Order
from ..terms import Jac, add, compose, is_relabelling
from .realisation import Realisation, grows


@dataclass(frozen=True)
class Accumulated:
    """The derivative of every target in every source that it depends on, and the count of edge products."""

    derivatives: dict[tuple[Value, Value], Value]
    edge_products: int


def accumulate(linear: LinearGraph, order: Order, builder: Builder, *, fuse: bool, by_target: bool) -> Accumulated:
    """Eliminate every vertex, then write the remaining edges out.

    Arguments:
        builder: takes the derived nodes.
        fuse: whether fused backward kernels may be used; not if the program will be differentiated again.
        by_target: whether a derivative takes the dtype of its target (forward mode) rather than of its source.

    Cost: one product for each pair of edges that meet in an eliminated vertex.
    """
    elimination = _Elimination(linear, builder, fuse, order.name == "forward")
    for vertex in order.vertices:
        elimination.eliminate(vertex)
    return elimination.result(by_target)


class _Elimination:
    """The edges that are left, and those that are still local: not yet asked of their rule."""

    def __init__(self, linear: LinearGraph, builder: Builder, fuse: bool, pushes: bool) -> None:
        self.linear = linear
        self.builder = builder
        self.fuse = fuse
        self.realisation = Realisation(builder, pushes)
        self.edges: dict[Value, dict[Value, Jac]] = {}
        self.sources_of: dict[Value, dict[Value, None]] = {}
        self.local: dict[tuple[Value, Value], list[Edge]] = {}
        self.products = 0
        for edge in linear.edges:
            self.local.setdefault((edge.source, edge.target), []).append(edge)
            self._note(edge.source, edge.target)
        for (source, target), jac in linear.seeds.items():
            self.edges.setdefault(source, {})[target] = jac
            self._note(source, target)
        self.node_of = {e.target: e.node for e in linear.edges}
        self.targets = set(linear.targets)

    def _note(self, source: Value, target: Value) -> None:
        self.edges.setdefault(source, {})
        self.sources_of.setdefault(target, {})[source] = None
        if (source, target) in self.local:
            self.edges[source].setdefault(target, _PENDING)

    def edge(self, source: Value, target: Value) -> Jac:
        """The edge, asked of its rule the first time."""
        pending = self.local.pop((source, target), None)
        if pending is not None:
            jac = self._local_jacobian(pending)
            known = self.edges[source][target]
            self.edges[source][target] = jac if known is _PENDING else add(known, jac)
        return self.edges[source][target]

    def _local_jacobian(self, pending: Sequence[Edge]) -> Jac:
        parallel = [local_jacobian(e, self.builder) for e in pending]
        return reduce(add, parallel)

    # ------------------------------------------------------------ one vertex

    def eliminate(self, vertex: Value) -> None:
        """Replace all paths through the vertex by products."""
        if not self.edges.get(vertex):
            self._drop(vertex)
            return
        if self.fuse and self._pull_fused(vertex):
            return
        sources = list(self.sources_of.get(vertex, ()))
        is_pushed = not any((s, vertex) in self.local for s in sources)
        incoming = {s: self._settle_incoming(s, vertex) for s in sources}
        lazy = len(incoming) == 1 and all(is_relabelling(jac) for jac in incoming.values())
        for target in list(self.edges[vertex]):
            is_applied = is_pushed and (vertex, target) in self.local and grows(self.edge(vertex, target))
            outgoing = self.edges[vertex][target]
            if not is_applied:
                outgoing = self._settle_outgoing(vertex, target, lazy, len(incoming) > 1)
            for source, jac in incoming.items():
                self._add(source, target, compose(outgoing, jac, self.realisation))
                self.products += 1
        self._drop(vertex)

    def _settle_outgoing(self, vertex: Value, target: Value, lazy: bool, shared: bool) -> Jac:
        jac = self.edge(vertex, target)
        if lazy and len(jac.parts) == 1 and self.realisation.in_dtype(jac, vertex.dtype):
            return jac
        name = f"d_{target.name}_d_{vertex.name}"
        return self.realisation.settle(replace(jac, in_dtype=vertex.dtype), vertex.dtype, name, shared=shared)

    def _settle_incoming(self, source: Value, vertex: Value) -> Jac:
        was_local = (source, vertex) in self.local and self.edges[source][vertex] is _PENDING
        jac = self.edge(source, vertex)
        if was_local:
            return jac
        return self.realisation.settle(jac, vertex.dtype, f"d_{vertex.name}_d_{source.name}", rows=False)

    def _add(self, source: Value, target: Value, jac: Jac) -> None:
        if not jac.parts:
            return
        known = self.edges.setdefault(source, {}).get(target)
        if known is _PENDING:
            known = self.edge(source, target)
        self.edges[source][target] = jac if known is None else add(known, jac)
        self.sources_of.setdefault(target, {})[source] = None

    def _drop(self, vertex: Value) -> None:
        for target in self.edges.pop(vertex, {}):
            self.sources_of[target].pop(vertex, None)
            self.local.pop((vertex, target), None)
        for source in self.sources_of.pop(vertex, ()):
            self.edges[source].pop(vertex, None)
            self.local.pop((source, vertex), None)

    # ------------------------------------------------------------ fused kernels

    def _pull_fused(self, vertex: Value) -> bool:
        """Let a fused backward kernel take the whole node back, if only single-row edges leave it."""
        node = self.node_of.get(vertex)
        if node is None or rule_of(node).pull is None:
            return False
        outputs = [v for v in node.outputs if v is not None and self.edges.get(v)]
        readers = {t: None for v in outputs for t in self.edges[v]}
        if any(t not in self.targets or prod(t.shape) != 1 for t in readers):
            return False
        if any(self.edges.get(s, {}).get(v) is not _PENDING for v in outputs for s in self.sources_of.get(v, ())):
            return False
        pulled = [(t, self._pull_for(node, outputs, t)) for t in readers]
        if any(result is None for _, result in pulled):
            return False
        for target, result in pulled:
            self._take(node, outputs, target, result or ())
        for v in outputs:
            self._drop(v)
        return True

    def _pull_for(self, node: Node, outputs: Sequence[Value], target: Value) -> Sequence[Value | None] | None:
        rule = rule_of(node)
        cotangents: list[Value | None] = []
        for v in node.outputs:
            if v is None or v not in outputs or target not in self.edges[v]:
                cotangents.append(None)
                continue
            settled = self.realisation.settle(self.edge(v, target), v.dtype, f"d_{target.name}_d_{v.name}")
            self.edges[v][target] = settled
            if isinstance(rule, Pointwise) and not self.realisation.is_tensor(settled):
                return None
            cotangents.append(self.realisation.cotangent(settled, v.dtype))
        wanted = [any((v, o) in self.local for o in outputs) for v in node.inputs]
        self.builder.source, self.builder.scope = node.source, node.scope
        assert rule.pull is not None
        return rule.pull(Call(node, self.builder), tuple(cotangents), tuple(wanted))

    def _take(self, node: Node, outputs: Sequence[Value], target: Value, pulled: Sequence[Value | None]) -> None:
        """Add what a kernel returned to the edges from the node's operands."""
        for operand, value in zip(node.inputs, pulled, strict=True):
            if value is not None and any((operand, o) in self.local for o in outputs):
                self._add(operand, target, self.realisation.row(value, target, operand))
                self.products += 1

    # ------------------------------------------------------------ the end

    def result(self, by_target: bool) -> Accumulated:
        """Every edge that is left, as a tensor."""
        derivatives = {}
        for source in self.linear.sources:
            for target in self.linear.targets:
                if target in self.edges.get(source, {}):
                    jac = self.edge(source, target)
                    dtype = target.dtype if by_target else source.dtype
                    name = f"d_{target.name}_d_{source.name}"
                    derivatives[target, source] = self.realisation.written_out(jac, dtype, name)
        return Accumulated(derivatives, self.products)


_PENDING = Jac((), (), ())
