"""Operators that PyTorch computes sooner where its operands lie otherwise: the last two axes in the other order.

GELU of contiguous tensors in single precision is left to oneDNN, which is entered 6 to 12 µs later than PyTorch's own
kernel.  The softmax of short rows is taken number by number, 0.2 µs a row; along the last but one axis it is taken in
vectors.  Attention's scores, which are a product of matrices, are computed in the other order at no cost.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..graph import Graph, Node, Value, live_nodes, replace_values, values_in

LARGEST = 2**14  # elements; of more, oneDNN's vectors outweigh how late it is entered
FEWEST_ROWS = 16
SHORT = {"float32": 15, "float64": 64}  # the longest rows that are taken number by number, or nearly so
_SCALINGS = frozenset(f"aten.{op}.{kind}" for op in ("mul", "div") for kind in ("Tensor", "Scalar"))
_VIEWS = frozenset(("aten.t.default", "aten.permute.default", "aten.transpose.int"))


def turn(graph: Graph) -> Graph:
    """The same program, to rounding, with operators on tensors that lie as they are computed sooner.

    Cost: linear in the number of nodes.
    """
    if not any(node.op in _TURNINGS and _is_small(node) for node in graph.nodes):
        return graph
    if any("as_strided" in node.op for node in graph.nodes):  # it sees the layout
        return graph
    turning = _Turning(graph)
    for node in graph.nodes:
        turning.take(node)
    outputs, mutations = replace_values((graph.outputs, graph.mutations), turning.current)
    nodes = live_nodes(tuple(turning.nodes), (outputs, mutations))
    return replace(graph, nodes=nodes, outputs=outputs, mutations=mutations)


def _is_small(node: Node) -> bool:
    (value,) = node.results if len(node.results) == 1 else (None,)
    is_matrix = value is not None and len(value.shape) >= 2 and min(value.shape[-2:]) > 1
    return is_matrix and value is not None and value.device == "cpu" and 0 < value.size <= LARGEST


class _Turning:
    """The state of one run: what is known in the other order, and what became of the values that are views of it.

    exchanged: for some values the same with the last two axes exchanged.
    turned: those of them that lie in memory like that.
    returned: values whose layout callers see.
    """

    def __init__(self, graph: Graph) -> None:
        self.producer = graph.producers()
        self.readers = Counter(v for node in graph.nodes for v in node.inputs)
        self.returned = frozenset(values_in((graph.outputs, graph.mutations)))
        self.nodes: list[Node] = []
        self.exchanged: dict[Value, Value] = {}
        self.turned: set[Value] = set()
        self.became: dict[Value, Value] = {}

    def current(self, value: Value) -> Value:
        """What stands for a value."""
        return self.became.get(value, value)

    def only_for_its_reader(self, value: Value) -> Node | None:
        """The node that computes a value which one other reads, and nobody else."""
        is_seen = self.readers[value] != 1 or value in self.returned
        return None if is_seen else self.producer.get(value)

    def take(self, node: Node) -> None:
        """Append a node, or what is sooner computed."""
        args, kwargs = replace_values((node.args, node.kwargs), self.current)
        node = replace(node, args=args, kwargs=kwargs)
        turning = _TURNINGS.get(node.op)
        if _swaps(node) and node.inputs[0] in self.exchanged:
            self.became[node.results[0]] = self.exchanged[node.inputs[0]]
        elif turning is None or not _is_small(node) or node.results[0] in self.returned or not turning(node, self):
            self.nodes.append(node)

    def other(self, value: Value) -> Value:
        """The value with its last two axes exchanged: a view, or what it is a view of."""
        if value in self.exchanged:
            return self.exchanged[value]
        maker = self.producer.get(value)
        if maker is not None and _swaps(maker):
            return self.current(maker.inputs[0])
        self.exchanged[value] = turned_like(value)
        self.nodes.append(_exchange(value, self.exchanged[value]))
        return self.exchanged[value]

    def define(self, node: Node, *args: object) -> None:
        """Append a node on turned arguments; its result is a view of what it computes."""
        (value,) = node.results
        self.exchanged[value] = result = turned_like(value)
        self.nodes += [replace(node, args=args, outputs=(result,)), _exchange(result, value)]


def turned_like(value: Value) -> Value:
    """A value with the last two axes exchanged."""
    shape = (*value.shape[:-2], value.shape[-1], value.shape[-2])
    return Value(f"{value.name}_turned", shape, value.dtype, value.device)


def _exchange(value: Value, result: Value) -> Node:
    """The view with the last two axes exchanged."""
    last = len(value.shape) - 1
    if last == 1:
        return Node("aten.t.default", (value,), (), (result,))
    return Node("aten.permute.default", (value, (*range(last - 1), last, last - 1)), (), (result,))


def _swaps(node: Node) -> bool:
    """Whether a node is a view of a matrix, or of several, with the last two axes exchanged."""
    if node.op not in _VIEWS or len(node.inputs[0].shape) < 2:
        return False
    last = len(node.inputs[0].shape) - 1
    if node.op == "aten.t.default":
        return True
    if node.op == "aten.transpose.int":
        return {d % (last + 1) for d in node.args[1:]} == {last - 1, last}
    return tuple(d % (last + 1) for d in node.args[1]) == (*range(last - 1), last, last - 1)


def _gelu(node: Node, turning: _Turning) -> bool:
    """In single precision, on what is not contiguous."""
    if any(v.dtype != "float32" or v.shape != node.results[0].shape for v in node.inputs):
        return False
    if any(v in turning.turned or _is_view(turning.producer.get(v)) for v in node.inputs):
        return False
    if dict(node.kwargs).get("approximate", "none") != "none":
        return False
    turning.define(node, *map(turning.other, node.inputs))
    return True


def _is_view(node: Node | None) -> bool:
    return node is not None and node.op in _VIEWS


def _softmax(node: Node, turning: _Turning) -> bool:
    """Across rows, where these are a product of matrices that nobody else reads."""
    source, dim, to_double = node.args
    rank, dtype = len(source.shape), node.results[0].dtype
    if to_double or dim % rank != rank - 1 or source.dtype != dtype or not _is_slow(source):
        return False
    scores = _product(source, turning)
    if scores is None:
        return False
    turning.define(node, scores, rank - 2, to_double)
    turning.turned.update(node.results)
    return True


def _is_slow(value: Value) -> bool:
    """Whether rows are short, and many."""
    return 1 < value.shape[-1] <= SHORT.get(value.dtype, 0) and value.size // value.shape[-1] >= FEWEST_ROWS


def _product(value: Value, turning: _Turning) -> Value | None:
    """A product of matrices, scaled or not, computed with its last two axes exchanged; None for anything else."""
    scalings: list[Node] = []
    while (
        turning.readers[value] == 1
        and value not in turning.returned
        and (node := turning.producer.get(value)) is not None
    ):
        if node.op == "aten.bmm.default":
            left, right = (turning.current(v) for v in node.args)
            result = turned_like(value)
            turning.nodes.append(replace(node, args=(turning.other(right), turning.other(left)), outputs=(result,)))
            for scaling in reversed(scalings):
                scaled = turned_like(scaling.results[0])
                turning.nodes.append(replace(scaling, args=(result, *scaling.args[1:]), outputs=(scaled,)))
                result = scaled
            return result
        if not _scales(node):
            return None
        scalings.append(node)
        value = node.args[0]
    return None


def _scales(node: Node) -> bool:
    return node.op in _SCALINGS and len(node.inputs) == 1 and node.inputs[0] is node.args[0] and not node.kwargs


def _softmax_backward(node: Node, turning: _Turning) -> bool:
    """Across rows, where the softmax was, and the cotangent is a product of matrices."""
    gradient, output, dim, dtype = node.args
    if output not in turning.turned or dim % len(output.shape) != len(output.shape) - 1:
        return False
    given = _product(gradient, turning)
    if given is None:
        return False
    turning.define(node, given, turning.exchanged[output], len(output.shape) - 2, dtype)
    turning.turned.update(node.results)
    return True


def _scaled(node: Node, turning: _Turning) -> bool:
    """What lies in the other order stays so when it is scaled."""
    if not _scales(node) or node.args[0] not in turning.turned or node.inputs[0].dtype != node.results[0].dtype:
        return False
    turning.define(node, turning.exchanged[node.args[0]], *node.args[1:])
    turning.turned.update(node.results)
    return True


_Rewriting = Callable[[Node, _Turning], bool]
_TURNINGS: Mapping[str, _Rewriting] = {
    "aten.gelu.default": _gelu,
    "aten.gelu_backward.default": _gelu,
    "aten._softmax.default": _softmax,
    "aten._softmax_backward_data.default": _softmax_backward,
    **dict.fromkeys(_SCALINGS, _scaled),
}
