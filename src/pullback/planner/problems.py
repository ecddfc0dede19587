"""Bare elimination problems as JSON has them: read, checked, and taken apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..errors import ArgumentError
from .components import Component, Edge, components, idle_vertices


@dataclass(frozen=True)
class Problem:
    """A problem that has been checked; `vertices` are those to eliminate."""

    edges: tuple[Edge, ...]
    outputs: frozenset[int]
    vertices: tuple[int, ...]

    def topological(self) -> list[int]:
        """The vertices to eliminate, each after those that it depends on.  Raises ArgumentError if there is a cycle."""
        sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(self.vertices, ()))
        for source, target in self.edges:
            sorter.add(target, source)
        inside = set(self.vertices)
        try:
            return [v for v in sorter.static_order() if v in inside]
        except CycleError as error:
            cycle = " → ".join(map(str, error.args[1]))
            raise ArgumentError(f"problem: the edges run in a circle, {cycle}; a graph of values has none") from None


def read(problem: Mapping[str, Any]) -> Problem:
    """The problem that a dict describes.  Raises ArgumentError, with the entry, if it describes none."""
    if not isinstance(problem, Mapping):
        raise ArgumentError(f"problem must be a dict with 'nin', 'N', 'edges' and 'outs', not {type(problem).__name__}")
    missing = [key for key in ("nin", "N", "edges", "outs") if key not in problem]
    if missing:
        raise ArgumentError(f"problem lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, problem))}")
    count = _number(problem["N"], "'N'", 0, None)
    inputs = _number(problem["nin"], "'nin'", 0, count)
    edges = tuple(dict.fromkeys(_edge(edge, k, inputs, count) for k, edge in enumerate(problem["edges"])))
    outputs = frozenset(_number(v, f"'outs'[{k}]", 0, count - 1) for k, v in enumerate(problem["outs"]))
    return Problem(edges, outputs, _vertices(problem, edges, outputs, inputs, count))


def _vertices(
    problem: Mapping[str, Any], edges: Sequence[Edge], outputs: frozenset[int], inputs: int, count: int
) -> tuple[int, ...]:
    sources = {source for source, _ in edges}
    every = tuple(v for v in range(inputs, count) if v not in outputs or v in sources)
    if "elim" not in problem:
        return every
    given = [_number(v, f"'elim'[{k}]", inputs, count - 1) for k, v in enumerate(problem["elim"])]
    if len(set(given)) < len(given):
        repeated = sorted({v for v in given if given.count(v) > 1})
        raise ArgumentError(f"problem['elim'] names {', '.join(map(str, repeated))} more than once")
    left = [v for v in every if v not in outputs and v not in set(given)]
    if left:
        raise ArgumentError(
            f"problem['elim'] leaves out {', '.join(map(str, left))}: every vertex that is neither an input nor an "
            "output must be eliminated; add them, or leave 'elim' out"
        )
    return tuple(given)


def _edge(edge: Any, position: int, inputs: int, count: int) -> Edge:
    name = f"'edges'[{position}]"
    if not isinstance(edge, Sequence) or len(edge) < 2:
        raise ArgumentError(f"problem[{name}] is {edge!r}: it must be a list [from, to]")
    if any(edge[2:]):
        raise ArgumentError(
            f"problem[{name}] is {list(edge)!r}, an edge that is 1 or a view: only edges of which each costs a "
            "multiplication are counted here; merge the two vertices, or write [from, to]"
        )
    source, target = _number(edge[0], name, 0, count - 1), _number(edge[1], name, inputs, count - 1)
    return source, target


def _number(value: Any, name: str, least: int, most: int | None) -> int:
    if type(value) is not int or value < least or (most is not None and value > most):
        upper = "" if most is None else f" to {most}"
        raise ArgumentError(f"problem[{name}] has {value!r}: it must be a whole number from {least}{upper}")
    return value


def connected_parts(graph: Problem) -> tuple[list[int], list[Component]]:
    """The vertices that cost nothing if they are eliminated first, in that order, and the components of the rest."""
    order = graph.topological()
    idle = idle_vertices(order, graph.edges, graph.outputs)
    without = set(idle)
    edges = [edge for edge in graph.edges if without.isdisjoint(edge)]
    return idle, components([v for v in order if v not in without], edges, graph.outputs)
