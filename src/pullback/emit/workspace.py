"""Small intermediate results live in a workspace that is made once, and views of them with it.

On small tensors it is not arithmetic that costs but making a tensor, and a view of it, at every call.  Results that
nobody else sees are computed `out=` into tensors of a workspace; a tensor serves several of them one after the other.
Each call takes a workspace of its own, so that a program may run in several threads at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..graph import Graph, Node, Value, replace_values, values_in
from .aliases import memory_roots
from .builtins import facts_of
from .reuse import INTO_GRADIENT

LARGEST = 2**16  # elements of one tensor: beyond, what its memory keeps from others is worth more than the time
LARGEST_TOTAL = 2**21  # elements of a workspace, which lasts as long as its program
LARGEST_VIEWED = 2**12  # elements of an input whose memory a view may keep alive

# Operators whose builtin takes `out=`.
_WITH_OUT = """
mm.default bmm.default mv.default addmm.default baddbmm.default addmv.default
add.Tensor sub.Tensor mul.Tensor div.Tensor sum.dim_IntList mean.dim cat.default
tanh.default sigmoid.default exp.default log.default sin.default cos.default sqrt.default rsqrt.default neg.default
reciprocal.default square.default abs.default maximum.default minimum.default addcmul.default addcdiv.default
pow.Tensor_Scalar binary_cross_entropy.default
"""
WITH_OUT = frozenset(f"aten.{op}" for op in _WITH_OUT.split())
_LOSSES = frozenset(("aten.binary_cross_entropy.default",))
KERNELS: Mapping[str, str] = {
    **INTO_GRADIENT,
    "aten.binary_cross_entropy_backward.default": "aten.binary_cross_entropy_backward.grad_input",
    "aten.mse_loss_backward.default": "aten.mse_loss_backward.grad_input",
}
VIEWS = frozenset(
    f"aten.{op}"
    for op in ("t.default", "permute.default", "transpose.int", "unsqueeze.default", "squeeze.dim", "expand.default")
    + ("slice.Tensor", "select.int")
)
RESHAPES = frozenset(f"aten.{op}.default" for op in ("view", "_unsafe_view", "reshape"))


@dataclass(frozen=True)
class Workspace:
    """A program that computes into a workspace.

    graph: the program.
    tensors: the tensors of a workspace, uninitialised when it is made.
    views: nodes that make views, of these and of inputs.
    viewed: the inputs that there are views of.
    """

    graph: Graph
    tensors: tuple[Value, ...] = ()
    views: tuple[Node, ...] = ()
    viewed: tuple[Value, ...] = ()

    @property
    def values(self) -> tuple[Value, ...]:
        """What a call unpacks from its workspace: as much of it as the program reads."""
        read = {v for node in self.graph.nodes for v in node.inputs}
        return tuple(v for v in (*self.tensors, *(node.results[0] for node in self.views)) if v in read)


def use_workspace(graph: Graph, constants: frozenset[Value], lasting: frozenset[Value]) -> Workspace:
    """The same program with a workspace for what is small and seen by nobody else.

    constants: values that outlive a call.
    lasting: inputs that are likely to be the same tensors at the next call, so that views of them are worth keeping.

    Cost: linear in the number of nodes.
    """
    if any("as_strided" in node.op or node.op == "batched" for node in graph.nodes):  # they see the layout
        return Workspace(graph)
    small = frozenset(v for v in lasting if v.size <= LARGEST_VIEWED)
    placement = _Placement(graph, constants, small)
    nodes = tuple(n for k, node in enumerate(graph.nodes) if (n := placement.placed(k, node)) is not None)
    result = Graph(graph.inputs, nodes, graph.outputs, graph.mutations)
    viewed = dict.fromkeys(v for node in placement.views for v in node.inputs if v in small)
    return Workspace(result, tuple(placement.tensors), tuple(placement.views), tuple(viewed))


class _Placement:
    """The state of one run: which tensors of the workspace are free, and what stands for each value."""

    def __init__(self, graph: Graph, constants: frozenset[Value], lasting: frozenset[Value]) -> None:
        self.tensors: list[Value] = []
        self.views: list[Node] = []
        self.inside: set[Value] = set(lasting)  # what lasts from call to call: tensors, inputs, and views of them
        self.became: dict[Value, Value] = {}
        self.placed_values: set[Value] = set()
        self.free: dict[str, list[Value]] = {}
        self.known_views: dict[str, Value] = {}
        self.root = memory_roots(graph)
        wanted = [self.root[v] for v in values_in((graph.outputs, graph.mutations))]
        self.kept = {*wanted, *graph.inputs, *(self.root[v] for v in constants)}
        last = {self.root[v]: k for k, n in enumerate(graph.nodes) for v in (*n.results, *n.inputs)}
        self.ending: dict[int, list[Value]] = {}
        for value, position in last.items():
            self.ending.setdefault(position, []).append(value)

    def placed(self, position: int, node: Node) -> Node | None:
        """The node, with its result in the workspace where it can be; None for a view that is made with it."""
        args, kwargs = replace_values((node.args, node.kwargs), lambda v: self.became.get(v, v))
        node = replace(node, args=args, kwargs=kwargs)
        placed: Node | None = node
        if self._is_lasting_view(node):
            self._view(node)
            placed = None
        elif facts_of(node).mutates and len(node.results) == 1 and node.inputs[0] in self.inside:
            self.became[node.results[0]] = node.inputs[0]
            placed = replace(node, outputs=())
        elif self._fits(node):
            placed = self._into(node)
        for value in self.ending.get(position, ()):
            if value in self.placed_values:
                tensor = self.became[value]
                self.free.setdefault(_kind(tensor), []).append(tensor)
        return placed

    def _is_lasting_view(self, node: Node) -> bool:
        """Whether a node makes a view of what lasts; one that may be a copy instead, only of a whole tensor."""
        if node.op not in VIEWS | RESHAPES or len(node.results) != 1 or not node.inputs:
            return False
        (viewed, *others) = node.inputs
        return viewed in self.inside and not others and (node.op in VIEWS or viewed in self.tensors)

    def _view(self, node: Node) -> None:
        """Make the view with the workspace, once."""
        key = f"{node.op} {node.inputs[0].serial} {node.args[1:]} {node.kwargs}"
        if key not in self.known_views:
            self.known_views[key] = node.results[0]
            self.views.append(node)
        self.became[node.results[0]] = self.known_views[key]
        self.inside.add(self.known_views[key])

    def _fits(self, node: Node) -> bool:
        if (node.op not in WITH_OUT and node.op not in KERNELS) or len(node.outputs) != 1 or not node.results:
            return False
        (value,) = node.results
        if node.op in _LOSSES and value.shape != node.inputs[0].shape:  # its builtin cannot reduce into a given tensor
            return False
        is_own = self.root[value] is value and value not in self.kept
        return is_own and value.is_floating and value.size <= LARGEST

    def _into(self, node: Node) -> Node:
        """The node, computing into a free tensor of the workspace; as it is where the workspace is full."""
        (value,) = node.results
        free = self.free.get(_kind(value))
        if not free and sum(t.size for t in self.tensors) + value.size > LARGEST_TOTAL:
            return node
        tensor = free.pop() if free else self._tensor(value)
        self.became[value] = tensor
        self.placed_values.add(value)
        op, keyword = (KERNELS[node.op], "grad_input") if node.op in KERNELS else (node.op, "out")
        return replace(node, op=op, kwargs=(*node.kwargs, (keyword, tensor)), outputs=())

    def _tensor(self, value: Value) -> Value:
        tensor = Value(f"{value.name}_memory", value.shape, value.dtype, value.device)
        self.tensors.append(tensor)
        self.inside.add(tensor)
        return tensor


def _kind(value: Value) -> str:
    return f"{value.type} {value.device}"
