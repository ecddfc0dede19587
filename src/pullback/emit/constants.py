"""What a program need not compute at every call: small tensors that depend on no input, such as a gradient's seed."""

from collections.abc import Mapping
from typing import Any

import torch

from ..graph import Graph, Node, Value, replace_values, values_in
from ..torch_private import overload
from .builtins import facts_of, shares_memory_with

LARGEST = 4096  # elements; a larger one is cheaper to make again than to keep for as long as the program lives

_CREATORS = frozenset(
    f"aten.{op}"
    for op in ("zeros.default", "ones.default", "full.default", "scalar_tensor.default")
    + ("arange.default", "arange.start", "arange.start_step", "eye.default")
)
AS_EMITTED = {f"aten.{op}.default": "aten.reshape.default" for op in ("view", "_unsafe_view")}  # for any layout


def constants(graph: Graph) -> Mapping[Value, torch.Tensor]:
    """The small values that depend on no input, computed; none that a caller could write into, or that is random.

    Cost: linear in the number of nodes, and one call for each constant.
    """
    exposed = _exposed(graph)
    found: dict[Value, torch.Tensor] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if _is_constant(node, found) and not any(v in exposed for v in node.results):
                found.update(_compute(node, found))
    return found


def _exposed(graph: Graph) -> set[Value]:
    """Values that share memory with a result, or that an operator may write into."""
    exposed = set(values_in((graph.outputs, graph.mutations)))
    for node in reversed(graph.nodes):
        if facts_of(node).mutates or (shares_memory_with(node) is not None and any(v in exposed for v in node.results)):
            exposed.update(node.inputs)
    return exposed


def _is_constant(node: Node, known: Mapping[Value, torch.Tensor]) -> bool:
    if node.op == "batched" or len(node.outputs) != 1 or any(v.size > LARGEST for v in node.results):
        return False
    if not node.inputs:
        return node.op in _CREATORS
    return not facts_of(node).is_random and all(v in known for v in node.inputs)


def _compute(node: Node, known: Mapping[Value, torch.Tensor]) -> dict[Value, torch.Tensor]:
    """The node's value, unless what is computed here is no plain tensor: in a mode of PyTorch that makes other ones."""

    def computed(value: Value) -> Any:
        return known[value]

    op = overload(AS_EMITTED.get(node.op, node.op))
    result = op(*replace_values(node.args, computed), **dict(replace_values(node.kwargs, computed)))
    return {node.results[0]: result} if type(result) is torch.Tensor and node.results else {}
