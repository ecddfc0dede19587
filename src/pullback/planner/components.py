"""Taking a graph apart: what no path runs through costs nothing, and what is not connected is planned by itself."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .scalars import Scalars

Edge = tuple[int, int]


@dataclass(frozen=True)
class Component:
    """Vertices that are connected with each other by edges between them; those of a graph as `Scalars` numbers them.

    key: equal for components that differ in nothing but the names of their vertices.
    """

    vertices: tuple[int, ...]
    graph: Scalars
    key: tuple[object, ...]


def idle_vertices(order: Sequence[int], edges: Sequence[Edge], kept: Collection[int]) -> list[int]:
    """The vertices that lie on no path between ends, in an order in which their elimination costs nothing.

    order: the vertices to eliminate, each after those that it depends on; every other vertex is an end.
    kept: those of them that are outputs as well, and so are ends of paths, too.

    Cost: linear in the number of edges.
    """
    dead = set(_unreached(order, edges, ()))
    backward = [(target, source) for source, target in edges]
    blind = [v for v in _unreached(order[::-1], backward, kept) if v not in dead]
    return [*(v for v in order if v in dead), *blind]


def _unreached(order: Sequence[int], edges: Sequence[Edge], ends: Collection[int]) -> list[int]:
    """The vertices that no path from an end reaches."""
    inside, entered = set(order), _targets_of(edges)
    reached = set(ends)
    for source, targets in entered.items():
        if source not in inside:
            reached.update(targets)
    for vertex in order:
        if vertex in reached:
            reached.update(entered.get(vertex, ()))
    return [v for v in order if v not in reached]


def _targets_of(edges: Iterable[Edge]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for source, target in edges:
        found.setdefault(source, []).append(target)
    return found


def components(order: Sequence[int], edges: Sequence[Edge], kept: Collection[int]) -> list[Component]:
    """The connected components of what is to be eliminated: each can be planned by itself, and the costs add up.

    Arguments:
        order: the vertices to eliminate, each after those that it depends on; every other vertex is an end.
        kept: those of them that are outputs as well.

    Cost: linear in the number of edges.
    """
    root = {v: v for v in order}
    for source, target in edges:
        if source in root and target in root:
            root[_find(root, source)] = _find(root, target)
    groups: dict[int, list[int]] = {}
    for vertex in order:
        groups.setdefault(_find(root, vertex), []).append(vertex)
    of_group: dict[int, list[Edge]] = {}
    for source, target in edges:
        if source in root or target in root:
            of_group.setdefault(_find(root, source if source in root else target), []).append((source, target))
    return [_component(group, of_group.get(name, []), kept) for name, group in groups.items()]


def _find(root: dict[int, int], vertex: int) -> int:
    while root[vertex] != vertex:
        root[vertex] = vertex = root[root[vertex]]
    return vertex


def _component(vertices: list[int], edges: list[Edge], kept: Collection[int]) -> Component:
    number = {v: k for k, v in enumerate(vertices)}
    for edge in sorted(edges, key=lambda edge: tuple(number.get(v, len(vertices)) for v in edge)):
        for vertex in edge:
            number.setdefault(vertex, len(number))
    before, after, free = [0] * len(vertices), [0] * len(vertices), [0] * len(vertices)
    for source, target in ((number[s], number[t]) for s, t in edges):
        if target < len(vertices):
            before[target] |= 1 << source
        if source < len(vertices):
            after[source] |= 1 << target
    for k, vertex in enumerate(vertices):
        if vertex in kept:
            after[k] |= 1 << len(number) + k
            free[k] = 1
    return Component(tuple(vertices), Scalars(before, after, free), (*before, *after, *free))
