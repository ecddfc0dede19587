"""Bare elimination problems: plan the accumulation of a Jacobian from nothing but its graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from .errors import ArgumentError
from .planner.bounds import least_costs
from .planner.components import Component, components
from .planner.problems import connected_parts, read
from .planner.search import Found, search
from .planner.states import Work, cost_of

SHARE_OF_BOUND = 0.3  # of the work goes into proving how cheap an order can be
CLASS = "sequences of vertex eliminations"


@dataclass(frozen=True)
class EliminationPlan:
    """A sequence in which to eliminate the vertices of a graph, and what is known of its cost.

    order: every vertex to eliminate, once.
    multiplications: what that costs: for each vertex (edges in) × (edges out) at the time when it is eliminated.
    lower_bound: no sequence of the class costs less; None where that is not proved.
    bound_class: the class of sequences that the bound is proved for.
    forward, reverse: what it costs to eliminate all vertices from the inputs, and from the outputs.
    """

    order: tuple[int, ...]
    multiplications: int
    lower_bound: int | None
    forward: int
    reverse: int
    bound_class: str = CLASS

    @property
    def gap(self) -> float | None:
        """By what part of the lower bound the cost exceeds it; 0 means that no sequence of the class is cheaper."""
        if self.lower_bound is None or self.multiplications == self.lower_bound:
            return None if self.lower_bound is None else 0.0
        return self.multiplications / self.lower_bound - 1 if self.lower_bound else float("inf")

    def __str__(self) -> str:
        bound = "none proved" if self.lower_bound is None else f"{self.lower_bound:,} ({self.bound_class})"
        rows = [
            ("vertices to eliminate", f"{len(self.order):,}"),
            ("multiplications", f"{self.multiplications:,}"),
            ("  forward", f"{self.forward:,}"),
            ("  reverse", f"{self.reverse:,}"),
            ("lower bound", bound),
            *([("gap", f"{self.gap:.1%}")] if self.gap is not None else []),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def eliminate(problem: Mapping[str, Any], *, effort: float = 0.5) -> EliminationPlan:
    """Plan the elimination of the vertices of a graph, each of them a scalar.

    Arguments:
        problem: a dict as JSON has it.  "nin": the number of inputs, which are the vertices 0 … nin − 1; "N": the
            number of vertices; "edges": lists [from, to, …] of two vertices, of which further entries, if there are
            any, must be false or 0 (an edge that is 1, or a view, costs less, and is not counted here); "outs": the
            outputs; "elim" (optional): the vertices to eliminate, which are all others and the outputs that others
            depend on.  Further keys, such as "name", are not read.
        effort: about how many seconds to search, where nothing is proved before; counted in steps rather than by a
            clock, so that equal calls give equal plans.

    Returns:
        An `EliminationPlan`, never more expensive than forward or reverse.

    Raises:
        ArgumentError: the problem has no such form, or a cycle; names the entry.

    Cost: seeds and bounds are nearly linear in the number of edges; the search takes as long as `effort` says.
    Source: Griewank & Walther, Evaluating Derivatives (2nd ed.), chapters 9 and 10, for vertex elimination; minimum
        vertex cuts for the bound (see planner/bounds.py).

    >>> import pullback
    >>> edges = [[0, 2], [1, 2], [2, 3], [3, 4], [3, 5], [3, 6]]  # two inputs, a waist of two vertices, three outputs
    >>> plan = pullback.eliminate({"nin": 2, "N": 7, "edges": edges, "outs": [4, 5, 6]})
    >>> plan.order, plan.multiplications, plan.lower_bound
    ((2, 3), 8, 8)
    """
    if isinstance(effort, bool) or not isinstance(effort, (int, float)) or not isfinite(effort) or effort < 0:
        raise ArgumentError(f"effort={effort!r}: it must be a number of seconds, 0 or more")
    graph = read(problem)
    idle, parts = connected_parts(graph)
    whole = components(graph.topological(), graph.edges, graph.outputs)
    found = _planned(parts, Work.of_seconds(effort))
    planned = (part.vertices[k] for part, one in zip(parts, found, strict=True) for k in one.order)
    return EliminationPlan(
        order=(*idle, *planned),
        multiplications=sum(one.cost for one in found),
        lower_bound=sum(one.bound for one in found),
        forward=sum(cost_of(part.graph, range(len(part.vertices))) for part in whole),
        reverse=sum(cost_of(part.graph, range(len(part.vertices))[::-1]) for part in whole),
    )


def _planned(parts: Sequence[Component], work: Work) -> list[Found]:
    """A plan for each component; equal ones are planned once, and each gets its share of the work."""
    distinct = {part.key: part for part in parts}
    left = sum(len(part.vertices) for part in distinct.values())
    known: dict[object, Found] = {}
    for key, part in distinct.items():
        count = len(part.vertices)
        share = work.part(count / left)
        given, proof = share.left, share.part(SHARE_OF_BOUND)
        least = least_costs(part.graph, proof)
        share.take(given * SHARE_OF_BOUND - proof.left)
        known[key] = search(part.graph, least, (range(count), range(count)[::-1]), share)
        work.take(given - share.left)
        left -= count
    return [known[part.key] for part in parts]
