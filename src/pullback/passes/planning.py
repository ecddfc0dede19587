"""The search for a cheap order: the linear graph as structures, taken apart where it can be, and planned.

A chain of blocks is planned by dynamic programming over intervals, a block or any other graph of up to sixteen vertices
exactly over sets, and what is larger by search, for as long as `effort` says.
"""

from ..cost import CostModel, kernel_multiplications
from ..expressions import Builder
from ..graph import Value
from ..planner.chains import LONGEST, Block, Chain, blocks_of
from ..planner.search import Found, search
from ..planner.states import Work, cost_of
from ..planner.structured import Edge, StructuredGraph
from ..planner.structures import Price, Structures
from ..rules.edges import local_jacobian
from ..stages import Bound, LinearGraph, Order
from ..terms import Jac, Kernel

LARGEST = 3_000  # vertices: beyond, the graph's structures alone would take longer to read than a search may


def planned_order(linear: LinearGraph, model: CostModel, effort: float) -> Order | None:
    """The cheapest order that is found under a cost model, or None where forward and reverse are as good.

    Cost: reading the structures is linear in the number of edges; the search takes about `effort` seconds at most.
    """
    count = len(linear.vertices)
    if not 1 < count <= LARGEST or effort <= 0:
        return None
    structures = Structures(_price(model))
    graph, edges = _structured(linear, structures)
    found = _found(linear, graph, edges, structures, effort)
    baseline = min(cost_of(graph, range(count)), cost_of(graph, range(count)[::-1]))
    if found.cost >= baseline:
        return None
    return Order("planned", tuple(linear.vertices[k] for k in found.order))


def _price(model: CostModel) -> Price:
    """Seconds in units that are whole numbers, so that sums do not depend on their sequence."""

    def price(multiplications: int, entries: int) -> int:
        return int(model.contraction(multiplications, entries) * 1e12)

    return price


def _structured(linear: LinearGraph, structures: Structures) -> tuple[StructuredGraph, list[Edge]]:
    """The linear graph with the structure of every edge; parallel edges are one."""
    number = {v: k for k, v in enumerate((*linear.vertices, *linear.sources, *linear.targets))}
    builder = Builder()
    joined: dict[tuple[int, int], int] = {}

    def join(source: Value, target: Value, jac: Jac) -> None:
        key = number[source], number[target]
        structure = structures.of_jacobian(jac, _of_kernel)
        joined[key] = structures.total(joined[key], structure) if key in joined else structure

    for edge in linear.edges:
        join(edge.source, edge.target, local_jacobian(edge, builder))
    for (source, target), jac in linear.seeds.items():
        join(source, target, jac)
    edges = [(source, target, structure) for (source, target), structure in joined.items()]
    return StructuredGraph(structures, len(linear.vertices), edges), edges


def _of_kernel(kernel: Kernel, jac: Jac) -> int:
    return kernel_multiplications(kernel.push, jac.in_shape, jac.out_shape, jac.out_dtype)


def _found(
    linear: LinearGraph, graph: StructuredGraph, edges: list[Edge], structures: Structures, effort: float
) -> Found:
    count = len(linear.vertices)
    work = Work.of_seconds(effort)

    def plan(part: StructuredGraph) -> Found:
        size = len(part.after)
        seeds = (range(size), range(size)[::-1])
        return search(part, [0] * size, seeds, work.part(size / max(count, 1)), weight=STRUCTURED)

    blocks = _blocks(linear, edges)
    if blocks:
        chain = Chain(structures, blocks, plan)
        way = chain.cheapest()
        return Found(way.order, way.cost, way.cost if chain.exact else 0)
    return plan(graph)


def _blocks(linear: LinearGraph, edges: list[Edge]) -> list[Block]:
    """The blocks of a chain between one source and one target; none where there is no chain, or too long a one."""
    if len(linear.sources) != 1 or len(linear.targets) != 1:
        return []
    count = len(linear.vertices)
    blocks = blocks_of(count, edges, count, count + 1)
    return blocks if 1 < len(blocks) <= LONGEST else []


def proved_bound(linear: LinearGraph, known: int) -> Bound | None:
    """What no sequence of vertex eliminations can be cheaper than, where that is quickly proved.

    known: multiplications that are known to be enough; what is not below them proves nothing.
    """
    rows, columns = sum(t.size for t in linear.targets), sum(s.size for s in linear.sources)
    if not 0 < len(linear.vertices) <= LONGEST or min(rows, columns) <= 1:
        return None
    structures = Structures(lambda multiplications, entries: multiplications)
    graph, edges = _structured(linear, structures)
    blocks = _blocks(linear, edges)
    if len(blocks) == len(linear.vertices) + 1:
        least = Chain(structures, blocks, lambda part: Found((), 0, 0)).cheapest().cost
    elif len(linear.vertices) <= QUICKLY:
        count = len(linear.vertices)
        found = search(graph, [0] * count, (range(count),), Work(0))
        least = found.cost if found.cost == found.bound else 0
    else:
        return None
    return Bound(least, CLASS) if 0 < least <= known else None


QUICKLY = 9  # vertices of which all sets are looked at for the sake of a bound
CLASS = "sequences of vertex eliminations, every product of edges counted apart"
STRUCTURED: float = 5
"""How many steps of work an elimination over structures takes, counted in those over numbers."""
