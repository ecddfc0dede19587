"""Regions: nodes that run graphs of their own, a branch or a loop.

pullback.cond        operands: predicate, arguments      one of two graphs of the arguments
pullback.while_loop  operands: carried, constants        while graph 0 of the operands is true, carry graph 1
pullback.scan        operands: carried, slices, constants   graph 0, slice by slice; returns what is carried out of
                                                         the last step, and what each step returned besides, stacked
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Graph, Value

COND, WHILE, SCAN = "pullback.cond.default", "pullback.while_loop.default", "pullback.scan.default"
PULLED_LOOP = "pullback.region_pulls.default"  # stays a node of its own for a `while_loop` alone
REGIONS = (COND, WHILE, SCAN)


@dataclass(frozen=True, eq=False)
class Region:
    """What a node of one of these operators runs.

    op: the operator; graphs: as at the head of this file.
    carried, sliced: how many operands are carried, and how many are read slice by slice.
    results: what the node returns, as values that give shape and dtype.
    """

    op: str
    graphs: tuple[Graph, ...]
    results: tuple[Value, ...]
    carried: int = 0
    sliced: int = 0


def floating(values: Sequence[Value]) -> tuple[int, ...]:
    """The numbers of the values that have a derivative."""
    return tuple(k for k, v in enumerate(values) if v.is_floating)
