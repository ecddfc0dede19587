"""Simulated annealing of a sequence: one vertex at a time is moved past a vertex with which it shares an edge.

Only such a move changes anything for the two, and only the graphs between the two places have to be looked at again,
since all others have the same vertices eliminated.
"""

import math
from random import Random

from .states import State, Work, members

HOTTEST, COLDEST = 0.25, 0.05  # temperatures, in mean costs of a vertex
LONGEST = 150  # the longest part of a sequence that a move may change
BETWEEN_LOOKS = 32  # moves until the temperature is set again


class Annealing:
    """A sequence and the graph before each of its steps."""

    def __init__(self, start: State, order: list[int], seed: int) -> None:
        self.order, self.random = list(order), Random(seed).random
        self.place = [0] * len(order)
        self.before: list[State] = [start] * len(order)  # before[k]: the graph when step k is about to be taken
        self.costs = [0] * len(order)
        self.weight = 1 + len(order) / 400  # of a step: graphs are copied, and sets of vertices are as long as these
        self._settle(0, len(order))
        self.cost = sum(self.costs)
        self.best, self.best_order = self.cost, list(order)

    def run(self, work: Work, enough: int) -> None:
        """Change the sequence until the work is done or the cost is not above `enough`."""
        whole = max(work.left, 1)
        hottest = HOTTEST * self.cost / len(self.order)
        while work.left > 0 and self.best > enough:
            temperature = hottest * (COLDEST / HOTTEST) ** (1 - work.left / whole)
            for _ in range(BETWEEN_LOOKS):
                work.take(self.weight * self._move(temperature))

    def _move(self, temperature: float) -> float:
        """Propose one move; what it took, in steps."""
        order = self.order
        here = int(self.random() * len(order))
        vertex = order[here]
        related = list(members(self.before[here].neighbours(vertex)))  # all of them are eliminated later
        if not related:
            return 0.5
        there = self.place[related[int(self.random() * len(related))]]
        if there - here > LONGEST:
            return 1
        past = self.random() < 0.5  # past the other one, or the other one ahead of this one
        changed = [*order[here + 1 : there + 1], vertex] if past else [order[there], *order[here:there]]
        known = sum(self.costs[here : there + 1])
        limit = known - temperature * math.log(1 - self.random())
        cost, steps = self._cost(here, changed, limit)
        if cost > limit:
            return 2 + steps
        order[here : there + 1] = changed
        self._settle(here, there + 1)
        self.cost += cost - known
        if self.cost < self.best:
            self.best, self.best_order = self.cost, list(order)
        return 2 + 3 * steps

    def _cost(self, here: int, changed: list[int], limit: float) -> tuple[int, int]:
        """What part of a sequence costs, and how many steps it took to see; stops where it exceeds the limit."""
        state, cost = self.before[here].copy(), 0
        for steps, vertex in enumerate(changed):
            cost += state.cost(vertex)
            if cost > limit:
                return cost, steps
            state.eliminate(vertex)
        return cost, len(changed)

    def _settle(self, start: int, stop: int) -> None:
        """Note costs, places and graphs of part of the sequence."""
        for k in range(start, stop):
            vertex, state = self.order[k], self.before[k]
            self.place[vertex], self.costs[k] = k, state.cost(vertex)
            if k + 1 < stop:
                self.before[k + 1] = state = state.copy()
                state.eliminate(vertex)
