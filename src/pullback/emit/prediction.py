"""What a lowered program is predicted to take: seconds by the cost model, bytes by simulating what is alive."""

from math import prod

from ..cost import CostModel, node_multiplications
from ..graph import Graph, Node, Value, values_in
from .aliases import memory_roots
from .builtins import shares_memory_with
from .stacking import operands_of, slots

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
_PRODUCTS = frozenset("mm bmm addmm baddbmm mv dot addmv".split())


def predicted_seconds(graph: Graph, model: CostModel) -> float:
    """Seconds for one run of a lowered program, the function's own operators among them.

    Cost: linear in the number of nodes.
    """
    root, placed = memory_roots(graph), slots(graph)
    stacks = {slot.whole for slot in placed.values()}

    def seconds(node: Node) -> float:
        if node.results and node.results[0] in stacks:  # most of what it joins is there already
            return sum(model.elementwise(2 * v.size) for v in operands_of(node)[0] if root[v] not in placed)
        return _seconds(node, model)

    return sum(map(seconds, graph.nodes))


def _seconds(node: Node, model: CostModel) -> float:
    if node.op == "batched":
        return MAPPED * model.launch + model.entry * sum(v.size for v in (*node.inputs, *node.results))
    if shares_memory_with(node) is not None:
        return model.view
    name = node.op.split(".")[1] if "." in node.op else node.op
    entries = sum(v.size for v in (*node.inputs, *node.results))
    if name in _PRODUCTS or "convolution" in name:
        return model.contraction(node_multiplications(node), entries)
    return model.elementwise(entries, name in _HEAVY)


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
