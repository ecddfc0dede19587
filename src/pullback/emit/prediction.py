"""What a lowered program is predicted to take: seconds by the cost model, bytes by simulating what is alive."""

from collections.abc import Mapping
from math import prod

from ..cost import CostModel, node_multiplications
from ..graph import Graph, Node, Value, values_in
from ..native.pages import LARGEST_KEPT
from .aliases import memory_roots
from .builtins import facts_of, shares_memory_with
from .preparation import prepared_once

_HEAVY = frozenset(
    "sin cos tan asin acos atan atan2 sinh cosh tanh exp expm1 log log1p log2 log10 pow sigmoid erf erfc erfinv "
    "softplus gelu silu _softmax _log_softmax logsumexp lgamma digamma special_ndtr mish elu".split()
)
_BYTES = {
    "float64": 8,
    "int64": 8,
    "complex64": 8,
    "complex128": 16,
    "float32": 4,
    "int32": 4,
    "bfloat16": 2,
    "float16": 2,
}
MAPPED = 40  # launches that mapping an operator over an axis by `vmap` takes
MATRIX = 1e-7  # seconds for each matrix of a batch
CONVOLVED = 2  # times as long as in a product of matrices a multiplication of a convolution takes
POOLED = 4e-9  # seconds for each entry that a window for maxima looks at
VECTOR = 64  # bytes of which a product of matrices computes all, however few of its columns there are
# Launches until an operator has begun, where it is more than one.
_ENTERED: Mapping[str, float] = {
    "convolution": 25,
    "convolution_backward": 50,
    "_softmax": 4,
    "_softmax_backward_data": 3,
    "native_layer_norm": 2.5,
    "native_layer_norm_backward": 3,
    "gelu": 4,
    "gelu_backward": 6,
    "binary_cross_entropy": 4,
    "logsumexp": 4,
    "index": 3,
    "where": 2,
    "linalg_solve_ex": 9,
    "_linalg_solve_ex": 9,
    "addmm": 1.5,
    "bmm": 1.5,
    "baddbmm": 1.5,
    "mean": 1.5,
}
_PRODUCTS = frozenset("mm bmm addmm baddbmm mv dot addmv".split())


def predicted_seconds(graph: Graph, model: CostModel) -> float:
    """Seconds for one run of a lowered program on plain tensors, the function's own operators among them.

    It is the program as it is going to run that is looked at: fused, in a workspace, without what is constant.

    Cost: linear in the number of nodes.
    """
    ready = prepared_once(graph)
    emitted = ready.workspace.graph
    made = sum(_seconds(node, model) for node in emitted.nodes if ready.constants.keys().isdisjoint(node.results))
    return made + model.fresh * _fresh_bytes(emitted)


def seconds_of(graph: Graph, model: CostModel) -> float:
    """Seconds for one run of operators as they stand, which is what a program takes that is part of another one.

    Cost: linear in the number of nodes.
    """
    return sum(_seconds(node, model) for node in graph.nodes)


def _seconds(node: Node, model: CostModel) -> float:
    entries = sum(v.size for v in (*dict.fromkeys(node.inputs), *node.results))
    if node.op == "batched":
        return MAPPED * model.launch + model.moved(entries)
    if shares_memory_with(node) is not None and not facts_of(node).mutates:
        return model.view
    name = node.op.split(".")[1].rstrip("_") if "." in node.op else node.op
    entered = (_ENTERED.get(name, 1) - 1) * model.launch
    if name in _PRODUCTS:
        return entered + _product(node, entries, model)
    if "convolution" in name:
        return entered + model.contraction(CONVOLVED * node_multiplications(node), entries)
    pooled = POOLED * node.results[0].size * prod(node.args[1]) if name in _POOLS and node.results else 0.0
    return entered + model.elementwise(entries + _repeated(node), name in _HEAVY) + pooled


def _repeated(node: Node) -> int:
    """The entries that operands lack which are repeated along an axis: they are not read in the order of memory."""
    largest = max((v.size for v in (*node.inputs, *node.results)), default=0)
    return sum(largest for v in dict.fromkeys(node.inputs) if 1 < v.size < largest and len(v.shape) > 1)


_POOLS = frozenset(("max_pool2d_with_indices", "max_pool3d_with_indices"))


def _product(node: Node, entries: int, model: CostModel) -> float:
    """Products of matrices, of which those with few columns take as long as if they had more."""
    left, right = [a for a in node.args if isinstance(a, Value)][-2:]
    rows, terms = (1, *left.shape)[-2:]
    columns, count = right.shape[-1] if len(right.shape) > 1 else 1, prod(left.shape[:-2])
    if rows > 1 and columns > 1:
        columns = max(columns, VECTOR // _BYTES.get(left.dtype, 4))
    return model.contraction(count * rows * terms * columns, entries) + MATRIX * count * (len(left.shape) > 2)


def _fresh_bytes(graph: Graph) -> int:
    """The bytes of results so large that their memory is given back to the system, and handed out anew each time."""
    own = [v for node in graph.nodes if not facts_of(node).mutates for v in _made_anew(node)]
    return sum(size for size in map(_bytes, own) if size >= LARGEST_KEPT)


def _made_anew(node: Node) -> tuple[Value, ...]:
    return node.results if shares_memory_with(node) is None else ()


def peak_bytes(graph: Graph) -> int:
    """The most bytes that a lowered program holds at once, beyond its inputs; views hold none of their own.

    Cost: linear in the number of nodes.
    """
    root = memory_roots(graph)
    inputs = {root[v] for v in graph.inputs}
    last: dict[Value, int] = {}
    for k, node in enumerate(graph.nodes):
        last.update((root[v], k) for v in (*node.inputs, *node.results))
    kept = {root[v] for v in values_in((graph.outputs, graph.mutations))}
    ends: dict[int, list[Value]] = {}
    for value, k in last.items():
        if value not in kept and value not in inputs:
            ends.setdefault(k, []).append(value)
    alive = peak = 0
    for k, node in enumerate(graph.nodes):
        alive += sum(_bytes(v) for v in node.results if root[v] is v)
        peak = max(peak, alive)
        alive -= sum(map(_bytes, ends.get(k, ())))
    return peak


def _bytes(value: Value) -> int:
    return prod(value.shape) * _BYTES.get(value.dtype, 1)
