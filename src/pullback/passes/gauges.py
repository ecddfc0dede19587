"""Factors that are unique only up to phases, or to a basis: what is differentiated must not depend on them.

Such vectors move with one more source: along its first direction as the factorisation might have chosen them, along the
others anywhere.  What is differentiated is differentiated in that source too, in whatever order, and each derivative
passes through a node that raises GaugeError if the first slope is not zero beside the others (see `gauges.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..expressions import Builder
from ..graph import COMPLEX, Node, Value, real_of
from ..index import plain_axes
from ..rules.gauge import DIRECTIONS_OP, REQUIRE, VECTORS
from ..stages import LinearGraph
from ..terms import Factor, Jac, Term

DIRECTIONS = 4  # the first along the gauge, the others anywhere
# Relative to other slopes, and to the largest of all or to 1: what rounding leaves of a slope that is zero.
TOLERANCES = {"float64": (1e-7, 1e-12), "float32": (5e-4, 1e-5), "float16": (0.1, 1e-2), "bfloat16": (0.3, 1e-2)}


@dataclass(frozen=True)
class Gauge:
    """The source that moves what factorisations leave open.

    nodes: the directions in which it does so.
    dtype: the least precise one that derivatives pass through, by which rounding is judged.
    place: the factorisations and their lines, for the message.
    """

    source: Value
    nodes: tuple[Node, ...]
    dtype: str
    place: str

    def checked(
        self, builder: Builder, derivative: Value, target: Value, known: Mapping[tuple[Value, Value], Value]
    ) -> Value:
        """The derivative of a target behind the check; itself where the target depends on no such vectors."""
        slopes = known.get((target, self.source))
        if slopes is None:
            return derivative
        args = (derivative, slopes, *TOLERANCES[self.dtype], self.place)
        return builder.node(REQUIRE, args, [(derivative.shape, derivative.dtype)], name=derivative.name)[0]


def with_gauge(linear: LinearGraph) -> tuple[LinearGraph, Gauge | None]:
    """The linear graph with a source for what its factorisations leave open; itself, and None, if nothing is."""
    if not any(node.op in VECTORS for node in linear.graph.nodes):
        return linear, None
    moving = dict.fromkeys(e.target for e in linear.edges)
    open_ones = [found for node in linear.graph.nodes for found in _open_vectors(node) if found[1] in moving]
    if not open_ones:
        return linear, None
    dtype = _least_precise(v for e in linear.edges for v in (e.source, e.target))
    source = Value("gauge", (DIRECTIONS,), dtype, open_ones[0][1].device)
    nodes: list[Node] = []
    seeds = dict(linear.seeds)
    for node, vectors, own, are_rows in open_ones:
        name = f"gauge_directions_{len(nodes)}_of_{vectors.name}"
        directions = Value(name, (DIRECTIONS, *vectors.shape), vectors.dtype, vectors.device)
        nodes.append(
            Node(DIRECTIONS_OP, (vectors, own, are_rows, DIRECTIONS), (), (directions,), node.source, node.scope)
        )
        seeds[source, vectors] = _along(source, vectors, directions)
    graph = replace(linear.graph, nodes=(*linear.graph.nodes, *nodes))
    gauge = Gauge(source, tuple(nodes), dtype, _places(dict.fromkeys(node for node, *_ in open_ones)))
    return replace(linear, graph=graph, sources=(*linear.sources, source), seeds=seeds), gauge


def _open_vectors(node: Node) -> Iterator[tuple[Node, Value, int, bool]]:
    """The vectors among a node's results that are not unique: with how many of them come before a mere basis."""
    for number, are_rows in VECTORS.get(node.op, {}).items():
        vectors = node.outputs[number]
        if vectors is None or len(vectors.shape) < 2:  # unread, or left out by compute_uv=False
            continue
        own = min(node.inputs[0].shape[-2:])
        beyond = vectors.shape[-2 if are_rows else -1] - own
        if vectors.dtype in COMPLEX or beyond > 1:  # a single real one has but a sign
            yield node, vectors, own, are_rows


def _along(source: Value, vectors: Value, directions: Value) -> Jac:
    """∂ vectors / ∂ gauge: the directions."""
    k, *axes = plain_axes(directions.shape)
    entry = Factor(directions, (k, *axes))
    return Jac((Term(1, (entry,), tuple(axes), (k,)),), vectors.shape, source.shape, vectors.dtype, source.dtype)


def _least_precise(values: Iterator[Value]) -> str:
    precision = list(TOLERANCES)
    return max((real_of(v.dtype) for v in values), key=lambda dtype: precision.index(dtype))


def _places(nodes: Mapping[Node, None]) -> str:
    return "".join(f"\n  at {node.source}" for node in nodes if node.source)


__all__ = ["Gauge", "with_gauge"]
