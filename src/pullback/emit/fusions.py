"""Several operators as one kernel of PyTorch's: the same values by fewer passes over memory, and fewer calls.

A product that is added to something is one call, and g · (1 − y²) is what `tanh_backward` computes.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..graph import Graph, Node, Value, live_nodes, values_in
from .destinations import FLAT

_FLOATS = ("float32", "float64")
_TURNS = frozenset(("aten.permute.default", "aten.t.default", "aten.expand.default"))


def fuse(graph: Graph, *, sums: bool = True) -> Graph:
    """The same program, to rounding, with operators taken together where PyTorch has one kernel for them.

    sums: whether products may be added to something in one call, which may round once instead of twice.

    Cost: linear in the number of nodes.
    """
    if not any(node.op in _FUSIONS for node in graph.nodes):
        return graph
    fusing = _Fusing(graph)
    for node in graph.nodes:
        fusing.take(node, _FUSIONS.get(node.op) if sums or node.op != _ADD else None)
    return replace(graph, nodes=live_nodes(tuple(fusing.nodes), (graph.outputs, graph.mutations)))


class _Fusing:
    """The state of one run: what computes each value, and how many read it."""

    def __init__(self, graph: Graph) -> None:
        self.producer = graph.producers()
        self.readers = Counter(v for node in graph.nodes for v in node.inputs)
        self.readers.update(values_in((graph.outputs, graph.mutations)))
        self.nodes: list[Node] = []

    def take(self, node: Node, fusion: "_Fusion | None") -> None:
        """Append a node, or what it is with those that only it reads."""
        is_float = len(node.results) == 1 and all(v.dtype in _FLOATS for v in node.results)
        fused = fusion(node, self) if fusion is not None and is_float and not node.kwargs else None
        self.nodes.append(node if fused is None else fused)
        self.producer.update((v, self.nodes[-1]) for v in node.results)

    def made(self, value: Any, op: str) -> Node | None:
        """The node that computes a value, if it is such an operator on tensors of one dtype."""
        node = self.producer.get(value) if isinstance(value, Value) else None
        if node is None or node.op != f"aten.{op}" or node.kwargs:
            return None
        return node if all(v.dtype == value.dtype for v in node.inputs) else None

    def viewed(self, value: Value) -> tuple[Value, list[Node]]:
        """What a value is a view of, and the views from there to it."""
        views: list[Node] = []
        while (node := self.producer.get(value)) is not None and node.op in FLAT | _TURNS:
            views.append(node)
            value = node.inputs[0]
        return value, views[::-1]

    def view(self, value: Value, views: list[Node]) -> Value:
        """The same views of another value."""
        for node in views:
            shown = Value(f"{value.name}_view", node.results[0].shape, value.dtype, value.device)
            self.nodes.append(replace(node, args=(value, *node.args[1:]), outputs=(shown,)))
            value = shown
        return value


def _sum(node: Node, fusing: _Fusing) -> Node | None:
    """x + a·b, by matrices or by elements, in one call."""
    if len(node.args) != 2 or not all(isinstance(a, Value) for a in node.args):
        return None
    (result,) = node.results
    for added, product in (node.args, node.args[::-1]):
        if (
            added is product
            or fusing.readers[product] != 1
            or product.type != result.type
            or added.dtype != result.dtype
        ):
            continue
        for op, fused in _WITH_SUM.items():
            made = fusing.made(product, op)
            is_row = op == "mm.default" and added.shape == result.shape[1:]
            if made is not None and len(made.inputs) == 2 and (added.type == result.type or is_row):
                return replace(node, op=f"aten.{fused}", args=(added, *made.args))
    return None


def _product(node: Node, fusing: _Fusing) -> Node | None:
    """g · (1 − y²) and g · s · (1 − s), the derivatives of tanh and sigmoid, in one call."""
    if len(node.args) != 2 or not all(isinstance(a, Value) and a.dtype == node.results[0].dtype for a in node.args):
        return None
    for cotangent, slope in (node.args, node.args[::-1]):
        base, views = fusing.viewed(slope)
        for kernel, match in _SLOPES:
            if (y := match(base, fusing)) is not None:
                further = (0,) if kernel == _THRESHOLD else ()
                return replace(node, op=kernel, args=(cotangent, fusing.view(y, views), *further))
    return None


def _tanh_slope(value: Value, fusing: _Fusing) -> Value | None:
    """The y of 1 − y²."""
    difference = fusing.made(value, "rsub.Scalar")
    if difference is None or difference.args[1:] not in ((1,), (1, 1)):
        return None
    square = fusing.made(difference.args[0], "mul.Tensor")
    return square.args[0] if square is not None and square.args[0] is square.args[1] else None


def _sigmoid_slope(value: Value, fusing: _Fusing) -> Value | None:
    """The s of s · (1 − s)."""
    product = fusing.made(value, "mul.Tensor")
    for s, rest in () if product is None or len(product.inputs) != 2 else (product.args, product.args[::-1]):
        difference = fusing.made(rest, "rsub.Scalar")
        if difference is not None and difference.args[0] is s and difference.args[1:] in ((1,), (1, 1)):
            return s
    return None


def _choice(node: Node, fusing: _Fusing) -> Node | None:
    """What passes where a relu does, in one call."""
    mask, value, other = node.args
    if not isinstance(value, Value) or isinstance(other, Value) or other != 0:
        return None
    base, views = fusing.viewed(mask)
    x = _positive(base, fusing)
    if x is None or x.dtype != value.dtype:
        return None
    return replace(node, op=_THRESHOLD, args=(value, fusing.view(x, views), 0))


def _positive(mask: Value, fusing: _Fusing) -> Value | None:
    """The y of y ≠ 0, if it is never negative, so that y > 0 says the same; a NaN passes either way."""
    compared = fusing.producer.get(mask)
    if compared is None or compared.op != "aten.ne.Scalar" or compared.args[1] != 0:
        return None
    made = fusing.producer.get(compared.args[0])
    return compared.args[0] if made is not None and made.op == "aten.relu.default" else None


def _relu_slope(value: Value, fusing: _Fusing) -> Value | None:
    """The y of ones where y ≠ 0, y = relu(x)."""
    filled = fusing.producer.get(value)
    if filled is None or filled.op != "aten.masked_fill.Scalar" or filled.args[2] != 1.0:
        return None
    zeros = fusing.producer.get(filled.args[0])
    y = _positive(filled.args[1], fusing) if zeros is not None and zeros.op == "aten.zeros.default" else None
    return y if y is not None and y.dtype == value.dtype else None


_THRESHOLD = "aten.threshold_backward.default"
_WITH_SUM = {"mm.default": "addmm.default", "bmm.default": "baddbmm.default", "mul.Tensor": "addcmul.default"}
_SLOPES: tuple[tuple[str, Callable[[Value, _Fusing], Value | None]], ...] = (
    ("aten.tanh_backward.default", _tanh_slope),
    ("aten.sigmoid_backward.default", _sigmoid_slope),
    (_THRESHOLD, _relu_slope),
)
_Fusion = Callable[[Node, _Fusing], Node | None]
_ADD = "aten.add.Tensor"
_FUSIONS: Mapping[str, _Fusion] = {
    _ADD: _sum,
    "aten.mul.Tensor": _product,
    "aten.where.ScalarOther": _choice,
}
