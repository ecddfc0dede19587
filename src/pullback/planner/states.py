"""What a search moves through: graphs of which some vertices have been eliminated, and the work that it may take."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

Bits = int  # a set of vertices: bit k stands for vertex k

STEPS_PER_SECOND = 500_000  # eliminations of scalar vertices, on a machine that is not fast


class State(Protocol):
    """A graph of which some vertices have been eliminated.

    It depends on the set of those vertices, not on the sequence: an edge is there if there is a path through them.
    """

    def copy(self) -> Self:
        """The same graph, to be changed on its own."""
        ...

    def neighbours(self, vertex: int) -> Bits:
        """The vertices that can still be eliminated and share an edge with this one."""
        ...

    def cost(self, vertex: int) -> int:
        """What it costs to eliminate a vertex now."""
        ...

    def growth(self, vertex: int) -> int:
        """By how much the costs of all the others together would grow if this one were eliminated now."""
        ...

    def eliminate(self, vertex: int) -> None:
        """Join all edges into a vertex with all edges out of it."""
        ...


@dataclass
class Work:
    """How many steps a search may still take.  Steps are counted rather than timed: equal calls give equal plans."""

    left: float

    @classmethod
    def of_seconds(cls, seconds: float) -> "Work":
        """About so many seconds."""
        return cls(seconds * STEPS_PER_SECOND)

    def take(self, steps: float) -> bool:
        """Count steps; whether they were still there to be taken."""
        self.left -= steps
        return self.left >= 0

    def part(self, share: float) -> "Work":
        """Some of the work that is left, for one purpose."""
        return Work(max(self.left, 0) * share)


def members(bits: Bits) -> Iterator[int]:
    """The vertices of a set, lowest first."""
    while bits:
        low = bits & -bits
        bits ^= low
        yield low.bit_length() - 1


def cost_of(start: State, order: Iterable[int]) -> int:
    """What it costs to eliminate vertices in this order."""
    state, total = start.copy(), 0
    for vertex in order:
        total += state.cost(vertex)
        state.eliminate(vertex)
    return total


def sequence(eliminated: Bits, last: dict[Bits, int]) -> list[int]:
    """The way to a set, where `last` holds the last step to it and to every set on that way."""
    order: list[int] = []
    while eliminated:
        order.append(last[eliminated])
        eliminated ^= 1 << order[-1]
    return order[::-1]
