"""Lowering: a graph with labelled expressions becomes a graph of ATen operators alone.

Captured nodes pass through unchanged, except that a repeated one is dropped; a `contract`, `place` or `apply` becomes
the views, products and kernels that compute it.  What two expressions have in common is computed once.
"""

from dataclasses import replace
from math import prod
from typing import Any

from ..dtypes import torch_dtype
from ..expressions import Builder
from ..graph import DType, Graph, Node, Value, live_nodes, replace_values, values_in
from ..own_derivatives import ATTACH
from ..terms import Application, fill
from .builtins import facts, facts_of
from .contractions import lower_contraction
from .placements import lower_placement
from .tensors import Tensors

# Operators that return their operand where the shape stays the same.  A derivative that is not to flow through `detach`
# has been cut off by now, unless the program is to be differentiated again.
_IDENTITIES = frozenset(
    f"aten.{op}.default" for op in ("view", "_unsafe_view", "reshape", "expand", "detach", "alias", "unsafe_view")
)
# Kernels that read their operands as if these lay in a row; PyTorch's autograd copies them first.
_READ_IN_A_ROW = frozenset(("aten.native_group_norm_backward.default",))
# Kernels that go through a batch by the stride of its last axis, which means nothing where that has size 1: they would
# read beyond the memory of their first two operands.
_STEP_BY_LAST_AXIS = frozenset(("aten.linalg_lu_solve.default", "aten.linalg_ldl_solve.default"))
_STOP = "aten.detach.default"
_DROPOUT = "aten.native_dropout.default"


def lower(graph: Graph, *, keep_stops: bool = False) -> Graph:
    """The same program in ATen operators.

    keep_stops: whether `detach` stays, because another transform is going to trace the program.

    Cost: linear in the number of nodes.
    """
    lowering = _Lowering(graph, _IDENTITIES - {_STOP} if keep_stops else _IDENTITIES)
    for node in graph.nodes:
        lowering.lower(node)
    return lowering.result()


def _with_dtypes(tree: Any) -> Any:
    """The same arguments with PyTorch's dtype objects in place of names."""
    if isinstance(tree, tuple):
        return tuple(map(_with_dtypes, tree))
    return torch_dtype(tree) if isinstance(tree, DType) else tree


class _Lowering:
    """The state of one run: a builder for the new nodes, and what became of each old value."""

    def __init__(self, graph: Graph, identities: frozenset[str]) -> None:
        self.graph = graph
        self.identities = identities
        self.builder = Builder(graph.inputs[0].device if graph.inputs else "cpu")
        self.tensors = Tensors(self.builder)
        self.became: dict[Value, Value] = {}
        self.names: dict[Value, str] = {}
        for value in graph.inputs:
            self.builder.reserve(value.name)

    def lower(self, node: Node) -> None:
        """Append what computes this node."""
        args = replace_values(node.args, self._new)
        self.builder.source, self.builder.scope = node.source, node.scope
        if node.op == "contract":
            self._define(node, lower_contraction(args[0], node.results[0].dtype, self.tensors))
        elif node.op == "place":
            self._define(node, lower_placement(args[0], node.results[0].shape, self.tensors))
        elif node.op == "apply":
            application, operand, width = args
            self._define(node, self._apply(application, operand, width, node.results[0]))
        elif node.op == "cast":
            self._define(node, self.tensors.cast(args[0], args[1]))
        elif node.op == "zeros":
            self._define(node, self.tensors.full(node.results[0].shape, 0, node.results[0].dtype))
        else:
            self._adopt(replace(node, args=_with_dtypes(args), kwargs=replace_values(node.kwargs, self._new)))

    def _new(self, value: Value) -> Value:
        return self.became.get(value, value)

    def _in_a_row(self, op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same arguments, copied where a kernel does not look at how they lie in memory."""
        if op in _READ_IN_A_ROW:
            return tuple(replace_values(args, self._dense))
        if op in _STEP_BY_LAST_AXIS and len(args[0].shape) > 3 and args[0].shape[-3] == 1:
            return (*replace_values(args[:2], self._dense), *args[2:])
        return args

    def _dense(self, value: Value) -> Value:
        return self.tensors.dense(value) if value.size > 1 else value

    def _define(self, node: Node, value: Value) -> None:
        """Let a lowered value stand for the old one, and keep the old one's name if it says what the value is."""
        old = node.results[0]
        self.became[old] = value
        if old.name.startswith("d_") and value in self.builder.producer:
            self.names.setdefault(value, old.name)

    def _adopt(self, node: Node) -> None:
        """Append an ATen node, unless an equal one is there, or it changes nothing."""
        if node.op == ATTACH and _STOP in self.identities:
            self.became.update((o, v) for o, v in zip(node.outputs, node.args[0], strict=True) if o is not None)
            return
        if node.op in self.identities and node.inputs[0].shape == node.outputs[0].shape:  # type: ignore[union-attr]
            self.became[node.outputs[0]] = node.inputs[0]  # type: ignore[index]
            return
        node = replace(node, args=self._in_a_row(node.op, node.args))
        known = self.builder.adopt(node, shared=not facts_of(node).is_random)
        self.became.update((o, k) for o, k in zip(node.outputs, known, strict=True) if o is not None and k is not None)
        if node.op == _DROPOUT and _STOP not in self.identities and node.outputs[1] is not None:
            mask = self.became[node.outputs[1]]  # of numbers under `vmap(…, randomness="same")`
            self.became[node.outputs[1]] = self.builder.node("aten.ne.Scalar", (mask, 0), [(mask.shape, "bool")])[0]

    def _apply(self, application: Application, operand: Value, width: tuple[int, ...], old: Value) -> Value:
        """Call a linear operator once, or mapped over the leading axes of its operand."""
        shape = old.shape[len(width) :]
        if not width or application.leading:
            args = _with_dtypes(fill(application.args, operand))
            return self._call(application, args, old.shape, operand.dtype)
        stacked = self.tensors.reshape(operand, (prod(width), *operand.shape[len(width) :]))
        args = (application.op, _with_dtypes(application.args), application.kwargs, application.output, stacked)
        result = self.builder.node("batched", args, [((prod(width), *shape), operand.dtype)])[0]
        return self.tensors.reshape(result, old.shape)

    def _call(self, application: Application, args: tuple[Any, ...], shape: tuple[int, ...], dtype: str) -> Value:
        count = facts(application.op).results
        types = [(shape, dtype) if k == application.output else None for k in range(count)]
        args = self._in_a_row(application.op, args)
        return self.builder.node(application.op, args, types, application.kwargs)[0]

    def result(self) -> Graph:
        """The lowered graph without dead nodes, its derivatives named after what they are."""
        outputs = replace_values(self.graph.outputs, self._new)
        mutations = tuple((old, self._new(new)) for old, new in self.graph.mutations)
        nodes = live_nodes(tuple(self.builder.nodes), (outputs, mutations))
        read = set(values_in(([n.inputs for n in nodes], outputs, mutations)))
        renamed = {old: replace(old, name=self.builder.name(name)) for old, name in self.names.items()}

        def new(value: Value) -> Value:
            return renamed.get(value, value)

        def kept(value: Value | None) -> Value | None:
            return renamed.get(value, value) if value in read else None

        nodes = tuple(
            replace(
                n,
                args=replace_values(n.args, new),
                kwargs=replace_values(n.kwargs, new),
                outputs=tuple(map(kept, n.outputs)),
            )
            for n in nodes
        )
        return Graph(self.graph.inputs, nodes, replace_values(outputs, new), replace_values(mutations, new))
