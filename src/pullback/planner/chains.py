"""Chains: a graph that falls apart at vertices through which every path runs.

Between two of these lies a block: a single edge, or a graph of its own.  What has been accumulated over some
neighbouring blocks can be multiplied with what lies beside it, pulled back through a block, or pushed forward through
one.

Source: Griewank & Naumann, Accumulating Jacobians as chained sparse matrix products (2003), and Naumann, Matrix-Free
    Jacobian Chaining (arXiv:2406.11862), for multiply, push and pull over intervals.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .search import Found
from .states import cost_of
from .structured import Edge, StructuredGraph
from .structures import Structures

LONGEST = 150  # blocks: the programme looks at every split of every interval


@dataclass(frozen=True)
class Block:
    """What lies between two vertices on every path; `inner` are the vertices in between, in topological order.

    first, last: the vertices at its ends.
    key: equal for blocks that differ in nothing but the names of their vertices.
    """

    first: int
    last: int
    inner: tuple[int, ...]
    edges: tuple[Edge, ...]
    key: tuple[object, ...] = field(compare=False, default=())


@dataclass(frozen=True)
class _Way:
    """The cheapest known way to accumulate some neighbouring blocks."""

    cost: int
    structure: int
    order: tuple[int, ...]


def blocks_of(count: int, edges: Sequence[Edge], source: int, target: int) -> list[Block]:
    """The blocks between one source and one target, nearest the source first.

    count: vertices 0 … count − 1 are in topological order.

    Cost: linear in the number of edges.
    """
    place = {source: -1, target: count}
    spans = [(place.get(s, s), place.get(t, t)) for s, t, _ in edges]
    reach = [0] * (count + 2)  # how many edges run over each vertex
    for start, stop in spans:
        reach[start + 2] += 1
        reach[stop + 1] -= 1
    cuts, over = [-1], 0
    for vertex in range(count):
        over += reach[vertex + 1]
        if over == 0:
            cuts.append(vertex)
    cuts.append(count)
    names = {-1: source, count: target}
    found: list[list[Edge]] = [[] for _ in cuts[1:]]
    block_of = {}
    for k, (start, stop) in enumerate(pairwise(cuts)):
        block_of.update(dict.fromkeys(range(start, stop), k))
    for (start, _), edge in zip(spans, edges, strict=True):
        found[block_of[start]].append(edge)
    return [
        _block(names.get(start, start), names.get(stop, stop), tuple(range(start + 1, stop)), tuple(own))
        for start, stop, own in zip(cuts, cuts[1:], found, strict=False)
    ]


def _block(first: int, last: int, inner: tuple[int, ...], edges: tuple[Edge, ...]) -> Block:
    number = {v: k for k, v in enumerate((*inner, first, last))}
    key = (len(inner), *sorted((number[s], number[t], structure) for s, t, structure in edges))
    return Block(first, last, inner, edges, key)


class Chain:
    """The dynamic programme over intervals of blocks."""

    def __init__(
        self, structures: Structures, blocks: Sequence[Block], plan: Callable[[StructuredGraph], Found]
    ) -> None:
        self.structures, self.blocks, self.plan = structures, blocks, plan
        self.planned: dict[tuple[object, ...], tuple[Found, int]] = {}
        self.passed: dict[tuple[object, ...], int] = {}
        self.exact = True

    def cheapest(self) -> _Way:
        """The cheapest way over all blocks.

        Cost: cubic in the number of blocks, apart from planning each distinct block once.
        """
        blocks, count = self.blocks, len(self.blocks)
        best = {(k, k + 1): self._accumulated(blocks[k]) for k in range(count)}
        for length in range(2, count + 1):
            for start in range(count - length + 1):
                stop = start + length
                best[start, stop] = self._joined(best, start, stop)
        return best[0, count]

    def _accumulated(self, block: Block) -> _Way:
        """A block by itself; equal ones are planned once."""
        if not block.inner:
            return _Way(0, self._edge(block), ())
        known = self.planned.get(block.key)
        if known is None:
            graph = self._graph(block, None, None)
            found = self.plan(graph)
            self.exact = self.exact and found.cost == found.bound
            known = self.planned[block.key] = found, self._result(block, found.order)
        found, structure = known
        return _Way(found.cost, structure, tuple(block.inner[k] for k in found.order))

    def _joined(self, best: dict[tuple[int, int], _Way], start: int, stop: int) -> _Way:
        product, blocks = self.structures.product, self.blocks
        choices = []
        for split in range(start + 1, stop):
            inner, outer = best[start, split], best[split, stop]
            cost = inner.cost + outer.cost + product(outer.structure, inner.structure)[1]
            choices.append((cost, 0, split))
        structure = product(best[split, stop].structure, best[start, split].structure)[0]
        if blocks[start].inner:
            outer = best[start + 1, stop]
            choices.append((outer.cost + self._through(blocks[start], outer.structure, True), 1, start + 1))
        if blocks[stop - 1].inner:
            inner = best[start, stop - 1]
            choices.append((inner.cost + self._through(blocks[stop - 1], inner.structure, False), 2, stop - 1))
        cost, kind, split = min(choices)
        return _Way(cost, structure, self._order(best, start, stop, kind, split))

    def _order(
        self, best: dict[tuple[int, int], _Way], start: int, stop: int, kind: int, split: int
    ) -> tuple[int, ...]:
        middle = self.blocks[split].first
        if kind == 0:
            return (*best[start, split].order, *best[split, stop].order, middle)
        if kind == 1:  # pulled back
            return (*best[split, stop].order, middle, *self.blocks[start].inner[::-1])
        return (*best[start, split].order, middle, *self.blocks[split].inner)

    def _through(self, block: Block, structure: int, back: bool) -> int:
        """What it costs to take an accumulated Jacobian through a block, vertex by vertex."""
        key = (block.key, structure, back)
        known = self.passed.get(key)
        if known is None:
            graph = self._graph(block, None if back else structure, structure if back else None)
            count = len(block.inner)
            order = [count, *range(count)[::-1]] if back else [0, *range(1, count + 1)]
            known = self.passed[key] = cost_of(graph, order)
        return known

    def _graph(self, block: Block, before: int | None, after: int | None) -> StructuredGraph:
        """A block as a graph; with what was accumulated in front of it, or behind it, as one more edge."""
        vertices = [*([block.first] if before is not None else []), *block.inner]
        vertices += [block.last] if after is not None else []
        number = {v: k for k, v in enumerate(vertices)}
        for end in (block.first, block.last):
            number.setdefault(end, len(number))
        edges = [(number[s], number[t], structure) for s, t, structure in block.edges]
        if before is not None:
            edges.append((len(number), number[block.first], before))
        if after is not None:
            edges.append((number[block.last], len(number), after))
        return StructuredGraph(self.structures, len(vertices), edges)

    def _edge(self, block: Block) -> int:
        total = block.edges[0][2]
        for _, _, structure in block.edges[1:]:
            total = self.structures.total(total, structure)
        return total

    def _result(self, block: Block, order: Sequence[int]) -> int:
        """The structure of a block that has been accumulated: its ends are kept as vertices for that."""
        count = len(block.inner)
        number = {v: k for k, v in enumerate((*block.inner, block.first, block.last))}
        edges = [(number[s], number[t], structure) for s, t, structure in block.edges]
        graph = StructuredGraph(self.structures, count + 2, edges)
        for vertex in order:
            graph.eliminate(vertex)
        return graph.after[count][count + 1]
