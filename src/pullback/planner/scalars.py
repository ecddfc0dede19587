"""Graphs of numbers: every vertex is a scalar, every edge one entry, and a set of edges one integer.

What can be eliminated is numbered 0 … n−1 in a topological order; inputs and outputs have the bits above.  Only the
former keep their neighbours, for those of inputs and outputs are never asked for.
"""

from collections.abc import Sequence

from .states import Bits


class Scalars:
    """A `State` in which a vertex costs edges in × edges out.

    before, after: what each vertex has an edge from, and an edge to.
    free: for each vertex how many of the edges out of it are 1 and cost nothing to multiply with: an output on which
        others depend is eliminated, and stays an output at the end of such an edge.
    """

    __slots__ = ("after", "before", "free", "inside")

    def __init__(self, before: Sequence[Bits], after: Sequence[Bits], free: Sequence[int]) -> None:
        self.before, self.after, self.free = list(before), list(after), free
        self.inside = (1 << len(self.before)) - 1

    def copy(self) -> "Scalars":
        """The same graph, to be changed on its own."""
        twin = Scalars.__new__(Scalars)
        twin.before, twin.after = self.before.copy(), self.after.copy()
        twin.free, twin.inside = self.free, self.inside
        return twin

    def neighbours(self, vertex: int) -> Bits:
        """The vertices that can still be eliminated and share an edge with this one."""
        return (self.before[vertex] | self.after[vertex]) & self.inside

    def cost(self, vertex: int) -> int:
        """Edges in × edges out, but for those that are 1."""
        return self.before[vertex].bit_count() * (self.after[vertex].bit_count() - self.free[vertex])

    def growth(self, vertex: int) -> int:
        """By how much the costs of the others would grow: each neighbour loses one edge and gains those it lacks."""
        before, after = self.before, self.after
        into, out = before[vertex], after[vertex]
        total, rest = 0, into & self.inside
        while rest:
            low = rest & -rest
            rest ^= low
            source = low.bit_length() - 1
            total += before[source].bit_count() * ((out & ~after[source]).bit_count() - 1)
        rest = out & self.inside
        while rest:
            low = rest & -rest
            rest ^= low
            target = low.bit_length() - 1
            total += (after[target].bit_count() - self.free[target]) * ((into & ~before[target]).bit_count() - 1)
        return total

    def eliminate(self, vertex: int) -> None:
        """Join all edges into a vertex with all edges out of it."""
        before, after = self.before, self.after
        bit, into, out = 1 << vertex, before[vertex], after[vertex]
        rest = into & self.inside
        while rest:
            low = rest & -rest
            rest ^= low
            source = low.bit_length() - 1
            after[source] = (after[source] | out) ^ bit
        rest = out & self.inside
        while rest:
            low = rest & -rest
            rest ^= low
            target = low.bit_length() - 1
            before[target] = (before[target] | into) ^ bit
