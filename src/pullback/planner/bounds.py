"""A lower bound of vertex elimination, by minimum vertex cuts.

When a vertex is eliminated, what it has edges from at that moment cuts it off from the inputs in the graph as it was at
the beginning: on any path from an input the last vertex that is still there is one of them.  The same holds towards the
outputs.  So it costs at least (smallest cut from the inputs) × (smallest cut from the outputs), whatever the sequence.
"""

from collections.abc import Sequence

from .scalars import Scalars
from .states import Bits, Work, members


def least_costs(graph: Scalars, work: Work) -> list[int]:
    """For each vertex the least that its elimination can cost, in any sequence of vertices.

    When the work runs out, cuts count as 1, which is a bound as well.

    Cost: at most one search of the graph for each path in a cut.
    Source: Menger's theorem; the smallest cut is the number of disjoint paths.
    """
    count = len(graph.before)
    least = []
    for vertex in range(count):
        into, out = graph.before[vertex].bit_count(), graph.after[vertex].bit_count()
        if not into or not out:
            least.append(0)
            continue
        into = disjoint_paths(vertex, graph.before, count, work) if into > 1 else 1
        out = disjoint_paths(vertex, graph.after, count, work) if out > 1 else 1
        least.append(into * max(out - graph.free[vertex], 0))
    return least


def disjoint_paths(start: int, steps: Sequence[Bits], count: int, work: Work) -> int:
    """The number of paths from a vertex to ends (which are numbered from `count` on) that share no other vertex."""
    paths = _Paths(start, steps, count)
    most = steps[start].bit_count()
    found = 0
    while found < most and work.take(4) and paths.lengthen(work):
        found += 1
    return max(found, 1)


class _Paths:
    """Disjoint paths from one vertex; `previous` tells from where each vertex on one of them is entered."""

    def __init__(self, start: int, steps: Sequence[Bits], count: int) -> None:
        self.start, self.steps, self.count = start, steps, count
        self.previous: dict[int, int] = {}

    def lengthen(self, work: Work) -> bool:
        """Find one more path, by breadth-first search; whether there is one.

        A vertex has two sides: where it is entered, and where it is left.  One that lies on a path already can be
        entered only to follow that path back, and be left anew where the search comes out of it.
        """
        entered: dict[int, int] = {}  # vertex → from which one the search came to the side where it is entered
        left: dict[int, int] = {self.start: self.start}  # and to the side where it is left
        seen, front = 1 << self.start, [(self.start, False)]
        for vertex, entry in front:
            work.take(1)
            if not entry:
                fresh = self.steps[vertex] & ~seen
                seen |= fresh
                for target in members(fresh):
                    entered[target] = vertex
                    if target >= self.count and target not in self.previous:
                        self._turn(target, entered, left)
                        return True
                    front.append((target, True))
                if vertex in self.previous and not seen >> vertex & 1:
                    seen |= 1 << vertex
                    entered[vertex] = vertex
                    front.append((vertex, True))
            else:
                back = self.previous.get(vertex, vertex)
                if back not in left:
                    left[back] = vertex
                    front.append((back, False))
        return False

    def _turn(self, end: int, entered: dict[int, int], left: dict[int, int]) -> None:
        """Put the way that was found into the paths, and take out what it followed back."""
        added: dict[int, int] = {}
        vertex, entry = end, True
        while (vertex, entry) != (self.start, False):
            origin = entered[vertex] if entry else left[vertex]
            if origin != vertex and entry:
                added[vertex] = origin
            elif origin != vertex:
                del self.previous[origin]
            vertex, entry = origin, not entry
        self.previous |= added
