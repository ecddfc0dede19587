"""The cheapest sequence, exactly: dynamic programming over sets of eliminated vertices.

A graph of which a set has been eliminated does not depend on the sequence, so that the best way to get there is the
best way to one of the sets with one vertex less, and a step.  There are 2ⁿ sets; those that cannot lead to anything
cheaper than what is known already are left out.

Source: Bentert, Crane, Drange, Mizutani & Sullivan, arXiv:2506.17521, for the dynamic programme.
"""

from collections.abc import Sequence

from .states import Bits, State, Work, members, sequence

LARGEST = 16  # vertices; beyond, the number of sets is taken to be too large


def cheaper_order(start: State, least: Sequence[int], known: int, work: Work) -> list[int] | None:
    """The cheapest sequence of all, if it is cheaper than a known one; None if nothing is.

    Arguments:
        least: for each vertex a lower bound of what its elimination costs; it only makes the search faster.
        known: the cost of the known sequence.

    Raises OutOfWork before it takes more work than there is.

    Cost: at most 2ⁿ sets with n steps out of each.
    """
    count = len(least)
    every = (1 << count) - 1
    reached: dict[Bits, int] = {0: sum(least)}  # set → cost so far, and the least that the rest can cost
    states: dict[Bits, State] = {0: start}
    last: dict[Bits, int] = {}
    for _ in range(count):
        found: dict[Bits, int] = {}
        origins: dict[Bits, State] = {}
        for eliminated, bound in reached.items():
            state = states[eliminated]
            for vertex in members(every ^ eliminated):
                total = bound + state.cost(vertex) - least[vertex]
                larger = eliminated | 1 << vertex
                if total < found.get(larger, known):
                    found[larger], last[larger] = total, vertex
                    origins[larger] = state
        if not work.take(3 * len(found) + len(reached) * count / 2):
            raise OutOfWork
        reached, states = found, {s: _after(origin, last[s]) for s, origin in origins.items()}
    return sequence(every, last) if every in reached else None


class OutOfWork(Exception):
    """A search that cannot stop half way would have taken more work than there is."""


def _after(state: State, vertex: int) -> State:
    state = state.copy()
    state.eliminate(vertex)
    return state
