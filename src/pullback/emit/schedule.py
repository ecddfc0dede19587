"""The order in which a lowered program computes: what only a result needs comes as soon as it can.

A reverse sweep finds the gradient of a weight last, but the activation that it needs could be forgotten long before,
and its memory serve the next cotangent.  PyTorch's engine does the same: both gradients of a product at once.
"""

from dataclasses import replace

import torch

from ..graph import Graph, Node, Value, values_in
from ..torch_private import overload
from .builtins import facts


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
        is_view = node.op != "batched" and facts(node.op).aliases
        is_last = is_view or any(v in results for v in node.results)
        if is_last and not any(v in read_otherwise for v in node.results) and _may_move(node):
            found.add(position)
            results.update(node.inputs if is_view else ())
        else:
            read_otherwise.update(node.inputs)
    return found


def _may_move(node: Node) -> bool:
    if node.op == "batched":
        return True
    operator = overload(node.op)
    return torch.Tag.nondeterministic_seeded not in operator.tags and not operator._schema.is_mutable
