"""Where the results of a program's operators lie in memory, found by calling each of them once.

The same operator on the same numbers gives other bits where they lie otherwise: a sum follows the order of memory, a
product of matrices is done from another side.  A program that has to repeat bits keeps to the layouts found here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..graph import Graph, Node, Value, replace_values, values_in
from ..own_derivatives import PRODUCTS
from ..torch_private import overload
from .constants import AS_EMITTED

Layouts = Mapping[Value, tuple[int, ...]]
"""The strides of values."""


def rehearse(graph: Graph, inputs: Sequence[Tensor]) -> Layouts:
    """The strides of every value of a program, as its operators choose them for such inputs.

    Cost: a call of the program, without what makes it quicker.
    """
    if any(node.op == "batched" for node in graph.nodes):
        return {}
    tensors: dict[Value, Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    strides = {value: tensor.stride() for value, tensor in tensors.items()}
    with torch.no_grad():
        for node, forgotten in _with_last_uses(graph):
            op = PRODUCTS.get(node.op) or overload(AS_EMITTED.get(node.op, node.op))
            args, kwargs = replace_values((node.args, node.kwargs), tensors.__getitem__)
            results = op(*args, **dict(kwargs))
            results = results if isinstance(results, (tuple, list)) else (results,)
            found = {v: t for v, t in zip(node.outputs, results, strict=False) if v is not None}
            tensors.update(found)
            strides.update((value, tensor.stride()) for value, tensor in found.items())
            for value in forgotten:
                del tensors[value]
    return strides


def _with_last_uses(graph: Graph) -> Iterator[tuple[Node, list[Value]]]:
    """Each node, with the values that nothing reads after it."""
    last: dict[Value, int] = {}
    for position, node in enumerate(graph.nodes):
        last.update(dict.fromkeys((*node.inputs, *node.results), position))
    kept = {*graph.inputs, *values_in(graph.outputs)}
    ending: dict[int, list[Value]] = {}
    for value, position in last.items():
        if value not in kept:
            ending.setdefault(position, []).append(value)
    for position, node in enumerate(graph.nodes):
        yield node, ending.get(position, [])


def in_a_row(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether entries lie in memory in the order of their indices, without gaps."""
    plain = plain_strides(shape)
    return 0 in shape or all(n == 1 or s == p for n, s, p in zip(shape, strides, plain, strict=True))


def fills_memory(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether entries fill one stretch of memory, each in a place of its own."""
    axes = sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1)
    return in_a_row([n for _, n in reversed(axes)], [s for s, _ in reversed(axes)])


def plain_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor that is made without saying any."""
    strides: list[Any] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
