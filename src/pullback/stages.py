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
class Search:
    """The order that a search finds, for as long as `effort` says: about so many seconds."""

    effort: float = 0.5


@dataclass(frozen=True)
class Prediction:
    """What a program is predicted to take.

    multiplications: scalar multiplications of the derivative alone, beyond those of the function.
    seconds: of one run of the program, the function included, by the cost model.
    peak_bytes: the most that it holds at once beyond its inputs, by simulation.
    """

    multiplications: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Bound:
    """What no order of a class can be cheaper than, in multiplications."""

    multiplications: int
    of: str

    def __str__(self) -> str:
        return f"{self.multiplications:,} ({self.of})"


@dataclass(frozen=True)
class Plan:
    """How a derivative is computed, and what that costs.

    order: the elimination order that was chosen.
    predictions: for each order that was considered what it is predicted to take.
    lower_bound: what no order of a named class can be cheaper than; None where nothing is proved.
    model: the cost model that the seconds come from.
    paths: the number of paths from targets to sources in the graph, over which the chain rule sums.
    edge_products: the products of local Jacobians that were formed instead.
    code: the generated program.
    backend, reason: which back end made it, and why that one.
    """

    order: Order
    predictions: Mapping[str, Prediction]
    lower_bound: Bound | None
    model: str
    paths: int
    edge_products: int
    code: str
    backend: str = "python"
    reason: str = ""

    @property
    def multiplications(self) -> int:
        """Scalar multiplications of the derivative alone, beyond those of the function."""
        return self.predictions[self.order.name].multiplications

    @property
    def seconds(self) -> float:
        """Predicted seconds of one run, the function included."""
        return self.predictions[self.order.name].seconds

    @property
    def peak_bytes(self) -> int:
        """The most bytes held at once beyond the inputs, by simulation."""
        return self.predictions[self.order.name].peak_bytes

    @property
    def alternatives(self) -> Mapping[str, int]:
        """The multiplications of each order that was considered."""
        return {name: one.multiplications for name, one in self.predictions.items()}

    def __str__(self) -> str:
        rows = [
            ("order", self.order.name),
            ("back end", f"{self.backend} ({self.reason})" if self.reason else self.backend),
            ("vertices eliminated", f"{len(self.order.vertices)}"),
            ("paths from output to inputs", f"{_count(self.paths)}"),
            ("edge products performed", f"{self.edge_products:,}"),
            ("lower bound", "none proved" if self.lower_bound is None else str(self.lower_bound)),
        ]
        width = max(len(name) for name, _ in rows)
        text = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*text, "", *self._table(), "", self.code])

    def _table(self) -> list[str]:
        """What every order that was considered is predicted to take."""
        lines = [f"{'':<10}{'multiplications':>18}{'predicted time':>18}{'peak memory':>16}"]
        for name, one in self.predictions.items():
            mark = "*" if name == self.order.name else " "
            time, memory = f"{one.seconds * 1e6:,.1f} µs", f"{one.peak_bytes / 1024:,.1f} KiB"
            lines.append(f"{mark} {name:<8}{one.multiplications:>18,}{time:>18}{memory:>16}")
        return [*lines, f"* chosen; times by the cost model ({self.model}), memory by simulation"]


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"{number:.3e}" if number < 10**300 else f"10^{len(str(number)) - 1}"
