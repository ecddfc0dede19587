"""Difference quotients of a captured function: evidence on a derivative that knows nothing of rules.

The graph's own operators are run again with some values moved.  What has no derivative by definition (`detach`, what
was drawn at random, rounding) stays as it was at the point, and random operators draw again what they drew there.
Graphs of float32 and below are run in float64, so that differences are sharp, unless they draw random numbers; complex
numbers likewise, and they move along real and imaginary directions alike.

Notation: f(h) is what comes out when all values are moved by h · direction; D(h) = (f(h) − f(−h)) / 2h.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .emit.builtins import facts
from .evaluation import results_of
from .graph import COMPLEX, FLOATING, DType, Graph, Node, Value, replace_values
from .keys import held
from .own_derivatives import ATTACH, PRODUCTS
from .rules import NONDIFFERENTIABLE
from .rules.own import saved_values

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)  # relative to the size of what is moved
Values = dict[Value, Tensor]


@dataclass(frozen=True)
class Point:
    """A graph, the value of everything in it, and the state of the generator before each random operator."""

    graph: Graph
    values: Values
    states: Mapping[Node, Tensor]

    @cached_property
    def largest(self) -> float:
        """The largest of all entries that are numbers."""
        finite = [t[t.isfinite()] for v, t in self.values.items() if v.is_differentiable]
        return max(map(largest, finite), default=0.0)

    def moved(self, start: int, moves: Mapping[Value, Tensor]) -> list[Tensor]:
        """The graph's floating outputs when values computed before node number `start` are moved."""
        known = {v: self.values[v] + step for v, step in moves.items()}
        for node in self.graph.nodes[start:]:
            if node.op in NONDIFFERENTIABLE or not any(v in known for v in node.inputs):
                continue
            if node in self.states:
                torch.set_rng_state(self.states[node])
            here = {v: known.get(v, self.values[v]) for v in node.inputs}
            results = self._own(node, here) if node.op == ATTACH else results_of(node, here)
            for value, result in zip(node.outputs, results, strict=True):
                if value is not None and value not in known:
                    known[value] = result
        return [known.get(v, self.values[v]) for v in floating_outputs(self.graph)]

    def _own(self, node: Node, here: Values) -> list[Tensor]:
        """What has a derivative by its author moves by that one, which need not be the one of what it computes."""
        _, inputs, _, key = node.args
        saved = [self.values[v] for v in saved_values(node, held(key))]
        push = PRODUCTS["pullback.own_push.default"]
        moved = []
        for k, value in enumerate(node.results):
            steps = [(i, here[v] - self.values[v]) for i, v in enumerate(inputs) if here[v] is not self.values[v]]
            pushed = [push(t, saved, key, k, i) for i, t in steps if held(key).graph.outputs[i] is not None]
            moved.append(sum(pushed, self.values[value]))
        return moved


def floating_outputs(graph: Graph) -> list[Value]:
    """The outputs that have a derivative."""
    return [v for v in graph.outputs if isinstance(v, Value) and v.is_differentiable]


def point_at(graph: Graph, inputs: Sequence[Tensor]) -> Point:
    """Run a captured graph at a point, starting from the generator's present state, which is left as it was."""
    graph, known = _sharpened(graph, [t.detach() for t in inputs])
    states: dict[Node, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for node in graph.nodes:
            if facts(node.op).is_random:
                states[node] = torch.get_rng_state()
            results = results_of(node, known)
            known.update((v, r) for v, r in zip(node.outputs, results, strict=True) if v is not None)
    return Point(graph, known, states)


def _sharpened(graph: Graph, inputs: Sequence[Tensor]) -> tuple[Graph, Values]:
    """The same graph in float64, node by node, but for one that draws: it would draw other numbers."""
    known = dict(zip(graph.inputs, inputs, strict=True))
    if any(facts(node.op).is_random for node in graph.nodes):
        return graph, known
    nodes = tuple(_sharp_node(node) for node in graph.nodes)
    return Graph(graph.inputs, nodes, graph.outputs), {v: _sharp_tensor(t) for v, t in known.items()}


def _sharp_tensor(tensor: Tensor) -> Tensor:
    return double(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor


def double(tensor: Tensor) -> Tensor:
    """A tensor in double precision."""
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()


def _sharp_node(node: Node) -> Node:
    args, kwargs = _sharp_dtypes(node.args), tuple((k, _sharp_dtypes(a)) for k, a in node.kwargs)
    same = (args, kwargs) == (node.args, node.kwargs)
    return node if same else Node(node.op, args, kwargs, node.outputs, node.source)


def _sharp_dtypes(tree: Any) -> Any:
    if isinstance(tree, tuple):
        return tuple(map(_sharp_dtypes, tree))
    if isinstance(tree, torch.dtype):
        return torch.float64 if tree.is_floating_point else torch.complex128 if tree.is_complex else tree
    if isinstance(tree, DType):
        return DType("float64") if tree in FLOATING else DType("complex128") if tree in COMPLEX else tree
    return replace_values(tree, lambda v: v)


# ---------------------------------------------------------------- quotients


@dataclass(frozen=True)
class Slope:
    """A derivative along a direction by differences: one tensor for each floating output, and a bound on its error.

    The bound counts what halving the step changes, and a kink at the point (where both sides differ).
    """

    values: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]

    @property
    def worst(self) -> float:
        """The largest bound relative to the largest entry."""
        return max(map(largest, self.errors), default=0.0) / max(self.scale, 1e-300)

    @property
    def scale(self) -> float:
        """The largest entry."""
        return max(map(largest, self.values), default=0.0)


def slope(point: Point, start: int, direction: Mapping[Value, Tensor]) -> Slope:
    """The derivative of the outputs along a direction of values that are computed before node number `start`.

    Cost: four runs of the nodes for each of the steps that are tried; the one with the least error counts.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        base = [point.values[v] for v in floating_outputs(point.graph)]
        tried = [_quotient(point, start, direction, base, step) for step in STEPS]
    return min(tried, key=lambda s: s.worst)


def _quotient(
    point: Point, start: int, direction: Mapping[Value, Tensor], base: Sequence[Tensor], step: float
) -> Slope:
    def at(h: float) -> list[Tensor]:
        return point.moved(start, {v: h * d for v, d in direction.items()})

    full, half = [(at(h), at(-h), h) for h in (step, step / 2)]
    values, errors = [], []
    for k, here in enumerate(base):
        wide, narrow = [(up[k] - down[k]) / (2 * h) for up, down, h in (full, half)]
        # f'(+) − f'(−) is proportional to h where f is smooth, and stays where there is a kink.
        kinks = [(up[k] - 2 * here + down[k]) / h for up, down, h in (full, half)]
        error = (wide - narrow).abs() + (2 * kinks[1] - kinks[0]).abs()
        values.append((4 * narrow - wide) / 3)
        errors.append(error.nan_to_num(torch.inf, torch.inf, torch.inf))
    return Slope(tuple(values), tuple(errors))


def largest(tensor: Tensor) -> float:
    """The largest absolute entry; infinite where there is one that is no number."""
    return float(tensor.detach().abs().max().double().nan_to_num(torch.inf)) if tensor.numel() else 0.0


def random_direction(values: Sequence[Value], at: Mapping[Value, Tensor], generator: torch.Generator) -> Values:
    """A random direction in each of the values, of the size of its entries there."""
    return {v: _random_like(at[v], generator) for v in values}


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers; entry by entry no larger than a tensor's typical entry, and 1 for one of zeros."""
    finite = double(tensor)[tensor.isfinite()].abs()
    size = float(finite.square().mean().sqrt()) if finite.numel() else 1.0
    drawn = torch.randn(tensor.shape, generator=generator, dtype=_sharp_tensor(tensor).dtype)
    return (drawn * (min(max(size, 1e-3), 1e3) if size else 1.0)).to(tensor.dtype)
