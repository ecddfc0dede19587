"""What the stages hand to each other: the linear graph, the order, and the plan."""

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import GraphError
from .graph import Graph, Node, Value
from .terms import Jac


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` depends on `source` through operand number `operand` of the node that computes it."""

    source: Value
    target: Value
    node: Node
    output: int
    operand: int

    def __str__(self) -> str:
        return f"{self.source.name} → {self.target.name} ({self.node.op})"


@dataclass(frozen=True)
class LinearGraph:
    """The part of a graph that derivatives flow through.

    sources: what is differentiated with respect to; targets: what is differentiated.
    vertices: every value strictly between, in the order in which they are computed.
    edges: one for each operand through which a vertex or target depends on a source or vertex.
    seeds: edges that are not part of the function: a cotangent's or tangent's, and the identity into each target.
    """

    graph: Graph
    sources: tuple[Value, ...]
    targets: tuple[Value, ...]
    vertices: tuple[Value, ...]
    edges: tuple[Edge, ...]
    seeds: Mapping[tuple[Value, Value], Jac]

    def check(self) -> None:
        """Raise GraphError unless every edge runs forward between known vertices."""
        place = {v: k for k, v in enumerate((*self.sources, *self.vertices, *self.targets))}
        pairs = [(e.source, e.target) for e in self.edges] + list(self.seeds)
        for source, target in pairs:
            if place.get(source, len(place)) >= place.get(target, -1):
                raise GraphError(f"edge {source!r} → {target!r} does not run forward")

    def __str__(self) -> str:
        lines = [f"{len(self.vertices)} vertices, {len(self.edges)} edges"]
        return "\n".join([*lines, *(f"  {edge}" for edge in self.edges)])


@dataclass(frozen=True)
class Batch:
    """Which axis of each source, and of each differentiated output, counts the samples that are to be kept apart.

    title: what the function is called, with the place where it stands, for messages.
    """

    sources: Mapping[Value, int]
    outputs: Mapping[Value, int]
    title: str


@dataclass(frozen=True)
class Order:
    """The sequence in which vertices are eliminated."""

    name: str
    vertices: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(v.name for v in self.vertices)}"


@dataclass(frozen=True)
class Plan:
    """How a derivative is computed, and what that costs.

    order: the elimination order that was chosen.
    multiplications: scalar multiplications of the derivative alone, beyond those of the function.
    alternatives: the same count for each order that was considered.
    paths: the number of paths from targets to sources in the graph, over which the chain rule sums.
    edge_products: the products of local Jacobians that were formed instead.
    code: the generated program.
    """

    order: Order
    multiplications: int
    alternatives: Mapping[str, int]
    paths: int
    edge_products: int
    code: str

    def __str__(self) -> str:
        several = len(self.alternatives) > 1
        rows = [
            ("order", self.order.name),
            ("vertices eliminated", f"{len(self.order.vertices)}"),
            ("multiplications", f"{self.multiplications:,}"),
            *((f"  with order {name!r}", f"{count:,}") for name, count in self.alternatives.items() if several),
            ("paths from output to inputs", f"{_count(self.paths)}"),
            ("edge products performed", f"{self.edge_products:,}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name:<{width}}  {value}" for name, value in rows), "", self.code])


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"{number:.3e}" if number < 10**300 else f"10^{len(str(number)) - 1}"
