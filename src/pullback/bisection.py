"""Parts of a graph, whose derivative is probed by itself, and the search for the node that is wrong.

The part behind a cut is a function of the values that cross it.  A cut in the middle tells which half is wrong, until
one node is left.  Inner products are real ones, Re⟨u, v⟩, of which complex numbers have two dimensions each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .compilation import OrderName, Task, compile_derivative, differentiated_values, jvp_task, vjp_task
from .differences import Point, double, floating_outputs, random_direction, slope
from .dtypes import torch_dtype
from .emit.program import Program
from .errors import GaugeError
from .graph import COMPLEX, Graph, Node, Value, real_of, values_in
from .rules import RULES
from .rules.gauge import VECTORS

# Relative to the largest entry; what our program rounds is added to what differences leave uncertain.
TOLERANCES = {"float64": 1e-6, "float32": 5e-3, "float16": 0.2, "bfloat16": 0.5}
INNER_PRODUCT_TOLERANCES = {"float64": 1e-8, "float32": 2e-3, "float16": 0.2, "bfloat16": 0.5}
# Relative to the largest value in the graph: what rounding leaves of a derivative that is zero by cancellation.
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-1, "bfloat16": 1.0}
BLURRED = 1e-2  # differences less certain than this prove nothing
# Relative to the largest value in the graph: differences that are less than this, and as uncertain, prove a zero.
NOISE = {"float64": 1e-7, "float32": 1e-3, "float16": 1.0, "bfloat16": 1.0}


def tolerance(table: Mapping[str, float], graph: Graph) -> float:
    """That of the least precise dtype in a graph, which may be one in between."""
    values = (*graph.inputs, *(v for node in graph.nodes for v in node.results))
    return max((table[real_of(v.dtype)] for v in values if v.is_differentiable), default=0.0)


def rounding(point: Point, graph: Graph) -> float:
    """What a derivative may be off by that is zero by cancellation."""
    return tolerance(ROUNDING, graph) * point.largest


def noise(point: Point, graph: Graph) -> float:
    """What differences may leave of a derivative that is zero by cancellation: what they round, over their step."""
    return tolerance(NOISE, graph) * point.largest


@dataclass(frozen=True)
class Part:
    """The nodes from number `start` on, as a function of the values in front of them that are differentiated."""

    graph: Graph
    point: Point
    start: int
    sources: tuple[Value, ...]
    fuse: bool

    def complaint(self, generator: torch.Generator, probes: int) -> str:
        """What is wrong with its derivative, or the empty string."""
        try:
            return self._complaint(generator, probes)
        except GaugeError as error:
            return str(error).partition("\n")[0]

    def _complaint(self, generator: torch.Generator, probes: int) -> str:
        outputs = [k for k, v in enumerate(self.graph.outputs) if isinstance(v, Value) and v.is_differentiable]
        if not self.sources or not outputs:
            return ""
        inputs = [_as(v, self.point.values[v]) for v in self.graph.inputs]
        targets = floating_outputs(self.graph)
        cotangents = random_direction(targets, _ones(targets), generator)
        seeds = [_as(v, cotangents[v]) for v in targets]
        backward = self._compiled(vjp_task(self.graph, self.sources, outputs), "reverse")
        pulled = self._run(backward, inputs, seeds)[: len(self.sources)]
        directions = [random_direction(self.sources, self.point.values, generator) for _ in range(probes)]
        for direction in directions:
            if said := self._against_differences(pulled, seeds, direction):
                return said
        forward = self._compiled(jvp_task(self.graph, self.sources, outputs), "forward")
        moves = [_as(v, directions[0][v]) for v in self.sources]
        return self._against_forward(pulled, self._run(forward, inputs, moves)[: len(targets)], seeds, moves)

    def _compiled(self, task: Task, order: OrderName) -> Program:
        return compile_derivative(task, order, fuse=self.fuse).program

    def _run(self, program: Program, inputs: list[Tensor], seeds: list[Tensor]) -> tuple[Any, ...]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first = next((self.point.states[n] for n in self.graph.nodes if n in self.point.states), None)
            if first is not None:
                torch.set_rng_state(first)
            return program.run(*[t.clone() for t in (*inputs, *seeds)])

    def _against_differences(
        self, pulled: Sequence[Tensor], seeds: Sequence[Tensor], direction: Mapping[Value, Tensor]
    ) -> str:
        expected = slope(replace(self.point, graph=self.graph), 0, direction)
        left, size = _inner(pulled, [direction[v] for v in self.sources])
        seen, other = _inner(expected.values, seeds)
        size = max(size, other, 1e-300)
        doubt = sum(float((e * s.abs()).sum()) for e, s in zip(expected.errors, seeds, strict=True))
        if not doubt <= BLURRED * size:
            return ""
        if abs(left - seen) <= tolerance(TOLERANCES, self.graph) * size + 5 * doubt + rounding(self.point, self.graph):
            return ""
        return f"⟨Jᵀu, v⟩ = {left:.6g}, but differences give {seen:.6g}: {_ratio(left, seen)}"

    def _against_forward(
        self, pulled: Sequence[Tensor], pushed: Sequence[Tensor], seeds: Sequence[Tensor], moves: Sequence[Tensor]
    ) -> str:
        left, size = _inner(pulled, moves)
        right, other = _inner(pushed, seeds)
        size = max(size, other, 1e-300)
        allowed = tolerance(INNER_PRODUCT_TOLERANCES, self.graph) * size + rounding(self.point, self.graph)
        if not size < torch.inf or abs(left - right) <= allowed:
            return ""
        return f"⟨Jᵀu, v⟩ = {left:.6g}, but ⟨u, Jv⟩ = {right:.6g}"

    def behind(self, start: int) -> "Part":
        """The part from a later node on."""
        nodes = self.graph.nodes[start:]
        own = {v for n in nodes for v in n.results}
        read = dict.fromkeys(v for v in values_in(([n.inputs for n in nodes], self.graph.outputs)) if v not in own)
        targets = tuple(dict.fromkeys(floating_outputs(self.graph)))
        differentiated = differentiated_values(self.graph, self.sources, targets)
        crossing = tuple(v for v in read if v in differentiated)
        return replace(self, graph=Graph(tuple(read), nodes, self.graph.outputs), start=start, sources=crossing)

    def first_wrong_node(self, generator: torch.Generator, probes: int) -> Node | None:
        """The last node of the graph such that what follows it is right, and with it is wrong."""
        nodes = self.graph.nodes
        wrong, right = 0, len(nodes)
        while right - wrong > 1:
            middle = (wrong + right) // 2
            if self.behind(middle).complaint(generator, probes):
                wrong = middle
            else:
                right = middle
        if nodes[wrong].op in VECTORS and wrong:  # by itself it has vectors of any phase: the cuts alone tell
            return nodes[wrong]
        suspects = [*nodes[wrong : wrong + 1], *reversed(nodes)]  # should the cuts have missed it
        return next((n for n in suspects if single(n, self.point, self.fuse).complaint(generator, probes)), None)


def single(node: Node, point: Point, fuse: bool) -> Part:
    """One node as a graph of its own; without outputs if it leaves phases open, so that nothing can be said of it."""
    known = node.op in RULES
    sources = tuple(dict.fromkeys(v for v in node.inputs if v.is_differentiable)) if known else ()
    outputs = tuple(v for v in node.results if v.is_differentiable and node.op not in VECTORS)
    return Part(Graph(tuple(dict.fromkeys(node.inputs)), (node,), outputs), point, 0, sources, fuse)


def _as(value: Value, tensor: Tensor) -> Tensor:
    """A tensor in the dtype that the graph has for it."""
    return tensor.to(torch_dtype(value.dtype)) if value.is_differentiable else tensor


def _ones(values: Sequence[Value]) -> dict[Value, Tensor]:
    return {v: torch.ones(v.shape, dtype=torch.complex128 if v.dtype in COMPLEX else torch.float64) for v in values}


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[float, float]:
    """Re⟨left, right⟩ in float64, and the sum of absolute values, which says how large rounding may be."""
    products = [double(a).conj() * double(b) for a, b in zip(left, right, strict=True)]
    return sum(float(p.real.sum()) for p in products), sum(float(p.abs().sum()) for p in products)


def _ratio(ours: float, seen: float) -> str:
    return f"{ours / seen:.4g} times as much" if seen else "which is zero"
