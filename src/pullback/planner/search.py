"""The search as a whole: whatever can be proved is proved, and the rest of the work goes into looking for better."""

from collections.abc import Sequence
from dataclasses import dataclass

from .annealing import Annealing
from .beam import beam, greedy, steps_of_beam
from .exact import LARGEST, OutOfWork, cheaper_order
from .states import State, Work, cost_of

WIDEST = 512
SHARE_OF_BEAM, SHARE_OF_RUN = 0.25, 0.5  # how much of the work that is left goes to the beam, and to each annealing
SHORTEST_RUN = 20_000  # steps
STEPS_OF_EXACT = 800_000  # what an exact search may always take: enough for `LARGEST` vertices of numbers


@dataclass(frozen=True)
class Found:
    """A sequence, its cost, and a lower bound of what any sequence costs."""

    order: tuple[int, ...]
    cost: int
    bound: int


def search(start: State, least: Sequence[int], seeds: Sequence[Sequence[int]], work: Work, weight: float = 1) -> Found:
    """The cheapest sequence that can be found with so much work, never more expensive than one of the seeds.

    Arguments:
        start: the graph, of whose vertices 0 … n−1 none is eliminated.
        least: for each vertex a lower bound of the cost of its elimination; 0 where none is known.
        seeds: sequences to begin with, at least one.
        weight: how much more work a step is in this kind of graph than in one of numbers.

    Cost: as the work says, but for a few searches of the graph.
    """
    count, bound = len(least), sum(least)
    work = Work(work.left / weight)
    tried = [list(seed) for seed in seeds]
    if work.take(25 * count):
        tried.append(greedy(start, count))
    cost, order = min(((cost_of(start, one), one) for one in tried), key=lambda one: one[0])
    if cost <= bound:
        return Found(tuple(order), cost, bound)
    cost, order = _improved_by_beam(start, count, cost, order, work)
    if cost > bound and count <= LARGEST:
        try:
            cheaper = cheaper_order(start, least, cost, Work(max(work.left, STEPS_OF_EXACT / weight)))
        except OutOfWork:
            pass
        else:
            order = order if cheaper is None else cheaper
            cost = cost_of(start, order)
            return Found(tuple(order), cost, cost)
    cost, order = _improved_by_annealing(start, cost, order, bound, work)
    return Found(tuple(order), cost, bound)


def _improved_by_beam(start: State, count: int, cost: int, order: list[int], work: Work) -> tuple[int, list[int]]:
    width = 2
    while 2 * width <= WIDEST and steps_of_beam(count, 2 * width) < work.left * SHARE_OF_BEAM:
        width *= 2
    if steps_of_beam(count, width) > work.left * SHARE_OF_BEAM:
        return cost, order
    work.take(steps_of_beam(count, width))
    found = beam(start, count, width)
    return min((cost, order), (cost_of(start, found), found), key=lambda one: one[0])


def _improved_by_annealing(start: State, cost: int, order: list[int], bound: int, work: Work) -> tuple[int, list[int]]:
    """Several runs, each with a part of what is left: a second one from the best helps more than one twice as long."""
    seed = 0
    while cost > bound and work.left > 0:
        share = max(work.left * SHARE_OF_RUN, min(work.left, SHORTEST_RUN))
        run, part = Annealing(start, order, seed), Work(share)
        run.run(part, bound)
        work.take(share - part.left)
        if run.best < cost:
            cost, order = run.best, run.best_order
        seed += 1
    return cost, order
