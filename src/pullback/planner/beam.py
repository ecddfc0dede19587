"""Beam search over sets of eliminated vertices.

After each step the best so many sets are kept, each once however many sequences lead to it.  They are ranked by the
cost so far and half of what the rest would cost if nothing changed any more: by the former alone a search leaves a mess
behind.
"""

import heapq
from dataclasses import dataclass

from .states import Bits, State, members, sequence

_VERTEX_BITS = 24  # ranks are compared as one integer: rank, number of the set, vertex


@dataclass(slots=True)
class _Set:
    """A set of vertices eliminated: the graph, what it took, and what each of the others would cost and entail.

    rest: what all the others would cost now; ranks: by how much 2 · spent + rest would grow with each of them.
    """

    eliminated: Bits
    state: State
    spent: int
    costs: list[int]
    rest: int
    ranks: list[int]


def beam(start: State, count: int, width: int) -> list[int]:
    """A sequence of all vertices, found by keeping `width` sets after each step.

    Cost: count² · width comparisons, and count · width eliminations; `steps_of_beam` says how many steps that is.
    """
    every = (1 << count) - 1
    costs = [start.cost(v) for v in range(count)]
    ranks = [costs[v] + start.growth(v) for v in range(count)]
    kept = [_Set(0, start, 0, costs, sum(costs), ranks)]
    last: dict[Bits, int] = {}
    for _ in range(count):
        kept = _best_successors(kept, every, width, last)
    return sequence(every, last)


def steps_of_beam(count: int, width: int) -> float:
    """About how much work a beam takes."""
    return count * width * (25 + 0.15 * count)


def _best_successors(kept: list[_Set], every: Bits, width: int, last: dict[Bits, int]) -> list[_Set]:
    keys: list[int] = []
    for number, one in enumerate(kept):
        base, ranks, low = 2 * one.spent + one.rest, one.ranks, number << _VERTEX_BITS
        keys += [(base + ranks[v]) << 2 * _VERTEX_BITS | low | v for v in members(every ^ one.eliminated)]
    keys.sort()
    chosen: dict[Bits, _Set] = {}
    for key in keys:
        vertex = key & (1 << _VERTEX_BITS) - 1
        one = kept[key >> _VERTEX_BITS & (1 << _VERTEX_BITS) - 1]
        larger = one.eliminated | 1 << vertex
        if larger not in chosen:
            chosen[larger] = _with_eliminated(one, vertex)
            last[larger] = vertex
            if len(chosen) == width:
                break
    return list(chosen.values())


def _with_eliminated(one: _Set, vertex: int) -> _Set:
    """The set with one vertex more; only what is near that vertex is counted anew."""
    state, costs, ranks = one.state.copy(), one.costs.copy(), one.ranks.copy()
    changed = state.neighbours(vertex)
    state.eliminate(vertex)
    rest, near = one.rest - costs[vertex], changed
    for other in members(changed):
        cost = state.cost(other)
        rest += cost - costs[other]
        costs[other] = cost
        near |= state.neighbours(other)
    for other in members(near):
        ranks[other] = costs[other] + state.growth(other)
    return _Set(one.eliminated | 1 << vertex, state, one.spent + costs[vertex], costs, rest, ranks)


def greedy(start: State, count: int) -> list[int]:
    """The sequence of a beam of width 1, which a heap finds faster in large graphs.

    Cost: linear in the number of eliminations times the size of their surroundings.
    """
    state, order = start.copy(), []
    ranks = [start.cost(v) + start.growth(v) for v in range(count)]
    heap = [(rank, v) for v, rank in enumerate(ranks)]
    heapq.heapify(heap)
    done = 0
    while heap:
        rank, vertex = heapq.heappop(heap)
        if done >> vertex & 1 or ranks[vertex] != rank:
            continue
        order.append(vertex)
        done |= 1 << vertex
        near = changed = state.neighbours(vertex)
        state.eliminate(vertex)
        for other in members(changed):
            near |= state.neighbours(other)
        for other in members(near):
            ranks[other] = state.cost(other) + state.growth(other)
            heapq.heappush(heap, (ranks[other], other))
    return order
