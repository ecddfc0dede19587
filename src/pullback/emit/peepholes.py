"""Small rewritings of a lowered program: the same values by a cheaper call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..dtypes import torch_dtype
from ..graph import Graph, Node, Value
from .constants import LARGEST
from .fusions import fuse
from .turning import turn

_MEAN, _NONE = 1, 0
_FLOATS = ("float32", "float64")
_FEW_ROWS = 64
_FEW_VIEWS = 8  # more are made sooner by one call
_FULL = "aten.full.default"
Rewriting = Callable[[Node, Mapping[Value, Node]], list[Node] | None]


def rewrite(graph: Graph, *, sums: bool = True) -> Graph:
    """The same program with every node that has a cheaper form in that form.

    Cost: linear in the number of nodes.
    """
    producer = graph.producers()
    nodes: list[Node] = []
    for node in graph.nodes:
        rewriting = REWRITINGS.get(node.op)
        nodes += (rewriting(node, producer) if rewriting is not None else None) or [node]
    return turn(fuse(replace(graph, nodes=tuple(nodes)), sums=sums))


def _seeded_mean(node: Node, producer: Mapping[Value, Node]) -> list[Node] | None:
    """The backward of a mean whose cotangent is a constant: of a sum, whose cotangent is that constant divided.

    PyTorch's kernel divides its whole result in a second pass.
    """
    given: list[Any] = [*node.args, *(None, _MEAN)[len(node.args) - 3 :]]
    seed, prediction, target, weight, reduction = given
    source = producer.get(seed)
    if reduction != _MEAN or node.kwargs or source is None or source.op != _FULL or not prediction.size:
        return None
    shape, number = source.args[0], source.args[1]
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    share = Value(f"{seed.name}_share", seed.shape, seed.dtype, seed.device)
    constant = replace(source, args=(shape, number / prediction.size), outputs=(share,))
    return [constant, replace(node, args=(share, prediction, target, weight, _NONE))]


def _sum_of_rows(node: Node, _: Mapping[Value, Node]) -> list[Node] | None:
    """The sum of a few rows as a product with ones, which is entered sooner than a reduction."""
    if node.kwargs or len(node.args) != 2 or node.args[1] is None or tuple(node.args[1]) != (0,):
        return None
    source, (result,) = node.args[0], node.results
    if len(source.shape) != 2 or source.dtype not in _FLOATS:
        return None
    if not 0 < source.shape[0] <= _FEW_ROWS or not 0 < source.size <= LARGEST:
        return None
    rows, columns = source.shape
    turned = Value(f"{source.name}_t", (columns, rows), source.dtype, source.device)
    ones = Value("ones", (rows,), source.dtype, source.device)
    kind = (("dtype", torch_dtype(source.dtype)), ("device", torch.device(source.device)))
    return [
        replace(node, op="aten.t.default", args=(source,), outputs=(turned,)),
        replace(node, op="aten.ones.default", args=((rows,),), kwargs=kind, outputs=(ones,)),
        replace(node, op="aten.mv.default", args=(turned, ones), outputs=(result,)),
    ]


def _mean_loss(node: Node, _: Mapping[Value, Node]) -> list[Node] | None:
    """A mean of few losses as their product with a constant: PyTorch's reduction takes longer than all the rest."""
    given: list[Any] = [*node.args, *(None, _MEAN)[len(node.args) - 2 :]]
    prediction, target, weight, reduction = given
    (result,) = node.results
    if reduction != _MEAN or node.kwargs or prediction.dtype not in _FLOATS or not 0 < prediction.size <= LARGEST:
        return None
    kind = (("dtype", torch_dtype(prediction.dtype)), ("device", torch.device(prediction.device)))
    each = Value(f"{result.name}_each", prediction.shape, prediction.dtype, prediction.device)
    flat = Value(f"{result.name}_flat", (prediction.size,), prediction.dtype, prediction.device)
    shares = Value("shares", (prediction.size,), prediction.dtype, prediction.device)
    return [
        replace(node, args=(prediction, target, weight, _NONE), outputs=(each,)),
        replace(node, op="aten.view.default", args=(each, (prediction.size,)), outputs=(flat,)),
        replace(node, op=_FULL, args=((prediction.size,), 1 / prediction.size), kwargs=kind, outputs=(shares,)),
        replace(node, op="aten.dot.default", args=(flat, shares), outputs=(result,)),
    ]


def _slices(node: Node, _: Mapping[Value, Node]) -> list[Node] | None:
    """A few parts of a tensor as views of their own: each is made sooner, or once and for all."""
    source, _, dim = (*node.args, 0)[:3]
    if len(node.outputs) > _FEW_VIEWS or node.kwargs:
        return None
    found, start, dim = [], 0, dim % len(source.shape)
    sizes = _split_sizes(node, source.shape[dim])
    for value, size in zip(node.outputs, sizes, strict=True):
        args = (source, dim, start, start + size, 1)
        found.append(replace(node, op="aten.slice.Tensor", args=args, outputs=(value,)))
        start += size
    return [n for n in found if n.results]


def _split_sizes(node: Node, extent: int) -> Sequence[int]:
    if isinstance(node.args[1], int):
        size = max(node.args[1], 1)
        return [min(size, extent - start) for start in range(0, max(extent, 1), size)]
    return tuple(node.args[1])


def _entries(node: Node, _: Mapping[Value, Node]) -> list[Node] | None:
    """The same of `unbind`."""
    source, dim = (*node.args, 0)[:2]
    if len(node.outputs) > _FEW_VIEWS or node.kwargs:
        return None
    found = enumerate(node.outputs)
    return [replace(node, op="aten.select.int", args=(source, dim, k), outputs=(v,)) for k, v in found if v is not None]


REWRITINGS: Mapping[str, Rewriting] = {
    "aten.binary_cross_entropy_backward.default": _seeded_mean,
    "aten.binary_cross_entropy.default": _mean_loss,
    "aten.sum.dim_IntList": _sum_of_rows,
    "aten.split.Tensor": _slices,
    "aten.split_with_sizes.default": _slices,
    "aten.unbind.int": _entries,
}
