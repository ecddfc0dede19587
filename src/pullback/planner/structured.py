"""Graphs whose edges are structures: what a vertex costs is the products of its edges in with its edges out."""

from collections.abc import Iterable

from .states import Bits, members
from .structures import Structures

Edge = tuple[int, int, int]
"""From, to, and the number of a structure."""


class StructuredGraph:
    """A `State` over structures.  Vertices to eliminate are 0 … count − 1; sources and targets have numbers above."""

    __slots__ = ("after", "before", "inside", "structures")

    def __init__(self, structures: Structures, count: int, edges: Iterable[Edge]) -> None:
        self.structures = structures
        self.before: list[dict[int, int]] = [{} for _ in range(count)]
        self.after: list[dict[int, int]] = [{} for _ in range(count)]
        self.inside = (1 << count) - 1
        for source, target, structure in edges:
            self._add(source, target, structure)

    def copy(self) -> "StructuredGraph":
        """The same graph, to be changed on its own; a vertex's edges are never changed in place."""
        twin = StructuredGraph.__new__(StructuredGraph)
        twin.structures, twin.inside = self.structures, self.inside
        twin.before, twin.after = self.before.copy(), self.after.copy()
        return twin

    def neighbours(self, vertex: int) -> Bits:
        """The vertices that can still be eliminated and share an edge with this one."""
        found = 0
        for other in (*self.before[vertex], *self.after[vertex]):
            found |= 1 << other
        return found & self.inside

    def cost(self, vertex: int) -> int:
        """The products of all edges in with all edges out."""
        product, into = self.structures.product, self.before[vertex].values()
        return sum(product(out, inp)[1] for out in self.after[vertex].values() for inp in into)

    def growth(self, vertex: int) -> int:
        """By how much the costs of the others would grow, found by trying."""
        near = list(members(self.neighbours(vertex)))
        known = sum(map(self.cost, near))
        tried = self.copy()
        tried.eliminate(vertex)
        return sum(map(tried.cost, near)) - known

    def eliminate(self, vertex: int) -> None:
        """Join all edges into a vertex with all edges out of it."""
        into, out = self.before[vertex], self.after[vertex]
        product = self.structures.product
        for source in into:
            if source < len(self.after):
                self.after[source] = {t: s for t, s in self.after[source].items() if t != vertex}
        for target in out:
            if target < len(self.before):
                self.before[target] = {t: s for t, s in self.before[target].items() if t != vertex}
        for source, inner in into.items():
            for target, outer in out.items():
                self._add(source, target, product(outer, inner)[0])

    def _add(self, source: int, target: int, structure: int) -> None:
        """One more edge, joined with a parallel one; edges between ends are of no further interest."""
        inner, outer = source < len(self.after), target < len(self.before)
        known = self.after[source].get(target) if inner else self.before[target].get(source) if outer else None
        total = structure if known is None else self.structures.total(known, structure)
        if inner:
            self.after[source] = {**self.after[source], target: total}
        if outer:
            self.before[target] = {**self.before[target], source: total}
