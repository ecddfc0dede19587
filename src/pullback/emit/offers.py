"""What back ends promise before they build anything."""

from collections.abc import Callable
from dataclasses import dataclass

from ..cost import CostModel
from ..graph import Graph
from .program import Program


@dataclass(frozen=True)
class Offer:
    """What a back end promises for a graph before it builds anything.

    seconds: of a call.
    build: seconds until the program can be called.
    """

    seconds: float
    build: float

    def total(self, calls: int) -> float:
        """Seconds that so many calls take, building included."""
        return self.build + calls * self.seconds


class Declined(Exception):
    """A back end leaves a graph to others; says why."""


@dataclass(frozen=True)
class BackEnd:
    """A way from a lowered graph to a program.

    emit: the program; arguments as of `emit_python`.  Raises NativeError where it cannot be made, Declined where the
        graph is left to others.
    offer: what it promises; None if it is taken only where it is asked for.  Raises Declined; NativeError where
        the user should know why.
    gives_way: whether generated Python serves where this one is asked for by name, and cannot make a program.
    at_best: what it promises for the smallest graph, so that nothing is worked out where that is too much already.
    """

    emit: Callable[..., Program]
    offer: Callable[[Graph, CostModel], Offer] | None
    gives_way: bool = False
    at_best: Offer = Offer(0.0, 0.0)
