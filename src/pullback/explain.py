"""The graph as a teacher draws it: the value of every node, the cotangent of every node, the Jacobian on every edge.

Plain and slow on purpose.  Every edge is evaluated by itself from its rule, with no elimination order, no lowering and no
fused kernel, so that what is shown here is also an independent check of the compiled program.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .capture import capture
from .errors import ArgumentError, MissingRuleError, ShapeError
from .evaluation import dense, evaluate, pull
from .expressions import Builder
from .graph import Graph, Node, Value, values_in
from .index import Axis, labels_of, whole_label
from .rules import RULES
from .rules.edges import edges_of, local_jacobian
from .stages import Edge
from .terms import Jac, Kernel, Pattern, pattern
from .torch_private import tree_flatten


@dataclass(frozen=True)
class LocalJacobian:
    """The Jacobian on one edge.

    dense: all of it, of shape target + source.
    formula: its terms, as text.
    structure: which of its entries can be other than zero, as text.
    """

    dense: torch.Tensor
    formula: str
    structure: str


@dataclass(frozen=True)
class TracedGraph(Graph):
    """A `Graph` that can be walked forward and backward, one node at a time.

    captured_tensors: what the function reads besides its arguments, in the order of the last inputs.
    """

    captured_tensors: tuple[torch.Tensor, ...] = field(default=(), repr=False)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge that a derivative can flow along, in the order of the nodes."""
        return tuple(edge for node in self.nodes for edge in edges_of(node))

    def forward(self, *args: Any) -> dict[str, torch.Tensor]:
        """The value of every input and node, by name.

        Arguments:
            args: what the traced function is called with, in the same shapes and dtypes.

        Raises ShapeError if a tensor does not look like the one that was traced.
        """
        tensors = [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, torch.Tensor)]
        flat = [*tensors, *self.captured_tensors]
        if len(flat) != len(self.inputs):
            raise ArgumentError(f"this graph takes {len(self.inputs) - len(self.captured_tensors)} tensors, not {len(tensors)}")
        for value, tensor in zip(self.inputs, flat, strict=True):
            if tuple(tensor.shape) != value.shape:
                raise ShapeError(f"{value.name} was traced as {value.type}; it is given shape {tuple(tensor.shape)}")
        with torch.no_grad():
            values = evaluate(self.nodes, dict(zip(self.inputs, flat, strict=True)))
        return {value.name: tensor.detach() for value, tensor in values.items()}

    def backward(self, values: Mapping[str, torch.Tensor], cotangent: Any = None) -> dict[str, torch.Tensor]:
        """The cotangent of every input and node by dz/dx = Σ Jᵀ dz/dy over its edges, by name.

        Arguments:
            values: what `forward` returned.
            cotangent: that of the output, in the output's structure; None stands for 1 if the output is one scalar.

        Raises ShapeError if there is no cotangent and the output is not a scalar, or if it does not fit.

        Cost: every edge is pulled back by enumerating its labels; meant for small graphs.
        """
        known = self._by_value(values)
        cotangents = self._seeds(cotangent)
        with torch.no_grad():
            for node in reversed(self.nodes):
                for edge in edges_of(node):
                    if edge.target in cotangents:
                        jac, extended = self._edge(edge, known)
                        arriving = pull(jac, extended, cotangents[edge.target]).to(known[edge.source].dtype)
                        before = cotangents.get(edge.source)
                        cotangents[edge.source] = arriving if before is None else before + arriving
        return {
            v.name: cotangents.get(v, torch.zeros_like(t)) for v, t in known.items() if v.is_floating
        }

    def local_jacobian(self, edge: Edge, values: Mapping[str, torch.Tensor]) -> LocalJacobian:
        """The Jacobian on an edge at the values that `forward` returned, dense, as a formula and as a structure.

        Cost: that of the dense Jacobian.
        """
        with torch.no_grad():
            jac, extended = self._edge(edge, self._by_value(values))
            whole = dense(jac, extended)
        return LocalJacobian(whole, self._formula(edge), structure_of(jac))

    def _edge(self, edge: Edge, known: Mapping[Value, torch.Tensor]) -> tuple[Jac, dict[Value, torch.Tensor]]:
        if edge.node.op not in RULES:
            raise MissingRuleError(f"{edge.node.op} has no derivative rule; it is used at {edge.node.source}")
        builder = Builder(edge.target.device)
        jac = local_jacobian(edge, builder)
        return jac, evaluate(builder.nodes, known)

    def _formula(self, edge: Edge) -> str:
        builder = Builder(edge.target.device)
        for value in values_in((self.inputs, [n.outputs for n in self.nodes])):
            builder.reserve(value.name)
        jac = local_jacobian(edge, builder)
        steps = [f"\n    where {_definition(node)}" for node in builder.nodes]
        return f"∂{edge.target.name} / ∂{edge.source.name} = {jac}{''.join(steps)}"

    def _by_value(self, values: Mapping[str, torch.Tensor]) -> dict[Value, torch.Tensor]:
        every = [*self.inputs, *(v for node in self.nodes for v in node.results)]
        missing = [v.name for v in every if v.name not in values]
        if missing:
            raise ArgumentError(f"values lack {', '.join(missing[:5])}: pass what forward() returned")
        return {v: values[v.name] for v in every}

    def _seeds(self, cotangent: Any) -> dict[Value, torch.Tensor]:
        outputs = [v for v in self.outputs if isinstance(v, Value) and v.is_floating]
        if cotangent is None:
            if len(outputs) != 1 or outputs[0].shape != ():
                raise ShapeError(f"the outputs are {', '.join(v.type for v in outputs)}: a cotangent must be given")
            flat = [torch.ones((), dtype=getattr(torch, outputs[0].dtype), device=outputs[0].device)]
        else:
            flat = tree_flatten(cotangent)[0]
        seeds: dict[Value, torch.Tensor] = {}
        for value, tensor in zip(outputs, flat, strict=True):
            if tuple(tensor.shape) != value.shape:
                raise ShapeError(f"the cotangent of {value!r} has shape {tuple(tensor.shape)}")
            seeds[value] = seeds[value] + tensor if value in seeds else tensor
        return seeds

    def __str__(self) -> str:
        return Graph.__str__(self)


def trace(f: Callable[..., Any], *args: Any) -> TracedGraph:
    """Capture a function as a graph of ATen operators that can be walked by hand.

    Arguments:
        f: a function of tensors, or of pytrees of them.
        args: example arguments; only their shapes, dtypes and devices are read.

    Returns:
        A `Graph` with `.nodes` (operator, shapes, the user's line), `.edges`, `.forward(*args)`, `.backward(values, cotangent)`
        and `.local_jacobian(edge, values)`; `print` shows it.

    Raises CaptureError: `f` branches on data, or takes a value out of the graph; names the line.

    >>> import torch, pullback
    >>> graph = pullback.trace(lambda x: (x * x).sum(), torch.tensor([1.0, 2.0]))
    >>> values = graph.forward(torch.tensor([1.0, 2.0]))
    >>> graph.backward(values)["x"]
    tensor([2., 4.])
    """
    flat, spec = tree_flatten((args, {}))
    captured = capture(f, flat, spec, keep=frozenset(RULES))
    graph = captured.graph
    return TracedGraph(graph.inputs, graph.nodes, graph.outputs, graph.mutations, tuple(captured.lifted))


# ---------------------------------------------------------------- words


def structure_of(jac: Jac) -> str:
    """The structure of a Jacobian in words: which output axes equal which input axes."""
    if not jac.parts:
        return "zero"
    words = []
    if any(isinstance(part, Kernel) for part in jac.parts):
        words.append("a linear operator, applied and never written out")
    terms = Jac(tuple(p for p in jac.parts if not isinstance(p, Kernel)), jac.out_shape, jac.in_shape)
    words += sorted(_pattern_words(p, jac) for p in pattern(terms))
    return " plus ".join(words)


def _pattern_words(p: Pattern, jac: Jac) -> str:
    ties = [
        f"output axis {i} = input axis {j}"
        for i, (a, m) in enumerate(zip(p.out, jac.out_shape, strict=True))
        for j, (b, n) in enumerate(zip(p.inp, jac.in_shape, strict=True))
        if a == b and whole_label(a, m) is not None and whole_label(b, n) is not None
    ]
    others = [i for i in (*p.out, *p.inp) if not isinstance(i, Axis) or i.offset or len(i.parts) > 1]
    if others:
        return f"an index map {p!r}"
    shared = set(labels_of(p.out)) & set(labels_of(p.inp))
    if not shared:
        return "dense"
    if shared == set(labels_of(p.out)) == set(labels_of(p.inp)):
        return "diagonal" if jac.out_shape == jac.in_shape else f"diagonal ({', '.join(ties)})"
    return f"block diagonal ({', '.join(ties)})"


def _definition(node: Node) -> str:
    return str(node).split("   #")[0]


def operators(graph: Graph) -> Sequence[str]:
    """The distinct operators of a graph, in order of first use."""
    return tuple(dict.fromkeys(node.op for node in graph.nodes))
