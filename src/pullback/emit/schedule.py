"""The order in which a lowered program computes: what only a result needs comes as soon as it can.

A reverse sweep finds the gradient of a weight last, but the activation that it needs could be forgotten long before,
and its memory serve the next cotangent.  PyTorch's engine does the same: both gradients of a product at once.
"""

from dataclasses import replace

from ..graph import Graph, Value, values_in
from .builtins import facts_of, shares_memory_with


def schedule(graph: Graph) -> Graph:
    """The same program with every node that nothing but a result needs right behind what it reads.

    Cost: linear in the number of nodes, but for the sorting.
    """
    eager = _only_for_results(graph)
    place: dict[Value, int] = dict.fromkeys(graph.inputs, -1)
    keys = []
    for position, node in enumerate(graph.nodes):
        is_eager = position in eager
        key = max((place[v] for v in node.inputs), default=position) if is_eager else position
        place.update(dict.fromkeys(node.results, key))
        keys.append((key, is_eager, position))
    return replace(graph, nodes=tuple(graph.nodes[position] for _, _, position in sorted(keys)))


def _only_for_results(graph: Graph) -> set[int]:
    """Which nodes, by position, compute a result that no other node reads, or are views around such a node."""
    results = set(values_in((graph.outputs, graph.mutations)))
    read_otherwise: set[Value] = set()
    found: set[int] = set()
    for position in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[position]
        is_view = shares_memory_with(node) is not None
        may_move = not facts_of(node).is_random and not facts_of(node).mutates
        is_last = is_view or any(v in results for v in node.results)
        if is_last and not any(v in read_otherwise for v in node.results) and may_move:
            found.add(position)
            results.update(node.inputs if is_view else ())
        else:
            read_otherwise.update(node.inputs)
    return found
