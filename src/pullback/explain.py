"""The graph as a teacher draws it: the value of every node, the cotangent of every node, the Jacobian on every edge.

Plain and slow on purpose.  Every edge is evaluated by itself from its rule, with no elimination order, no lowering and
no fused kernel, so that what is shown here is also an independent check of the compiled program.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .capture import capture
from .dtypes import torch_dtype
from .errors import ArgumentError, MissingRuleError, ShapeError
from .evaluation import dense, evaluate, pull
from .expressions import Builder
from .graph import COMPLEX, Graph, Node, Source, Value, format_argument, values_in
from .notation import formula, structure
from .rules import RULES
from .rules.edges import edges_of, holds_for_complex, local_jacobian
from .stages import Edge
from .terms import Jac, is_antilinear
from .torch_private import tree_flatten

WIDEST = 40  # characters; cells of the printed table that are longer push the rest of their line aside


@dataclass(frozen=True)
class LocalJacobian:
    """The Jacobian on one edge.

    dense: all of it, of shape target + source; None where it multiplies the conjugate of what comes in.
    formula: the entries that can be other than zero, as text.
    structure: where these lie, in words.
    """

    dense: torch.Tensor | None
    formula: str
    structure: str

    def __str__(self) -> str:
        return f"{self.formula}\n    {self.structure}"


@dataclass(frozen=True)
class TracedGraph(Graph):
    """A `Graph` that can be walked forward and backward, one node at a time.

    captured_tensors: what the function reads besides its arguments, in the order of the last inputs.
    arguments: the leaves of the example arguments, with a mark for each tensor.
    in_spec, out_spec: the structures of arguments and result.
    """

    captured_tensors: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    in_spec: Any = field(default=None, repr=False)
    out_spec: Any = field(default=None, repr=False)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge that a derivative can flow along, in the order of the nodes."""
        return tuple(edge for node in self.nodes for edge in edges_of(node))

    def edge(self, source: str, target: str, operand: int | None = None) -> Edge:
        """The edge between two values, by their names.

        operand: which tensor operand of the node is meant, counted from 0, where several are the same value (`x * x`).

        Raises ArgumentError if there is no such edge, or more than one.
        """
        pairs = [e for e in self.edges if (e.source.name, e.target.name) == (source, target)]
        found = [e for e in pairs if operand is None or e.operand == operand]
        if len(found) == 1:
            return found[0]
        if pairs:
            places = ", ".join(str(e.operand) for e in pairs)
            raise ArgumentError(f"{source!r} is operand {places} of {target!r}: name one of these as `operand`")
        ways = ", ".join(e.source.name for e in self.edges if e.target.name == target)
        known = f"{target!r} has edges from {ways}" if ways else f"no edge leads to {target!r}: see `.edges`"
        raise ArgumentError(f"no edge leads from {source!r} to {target!r}; {known}")

    def forward(self, *args: Any) -> dict[str, torch.Tensor]:
        """The value of every input and node, by name; nothing is written back to buffers.

        Arguments:
            args: what the traced function is called with, in the same shapes and dtypes.

        Raises ArgumentError or ShapeError if an argument does not look like the one that was traced.
        """
        flat, spec = tree_flatten((args, {}))
        if spec != self.in_spec:
            raise ArgumentError(f"the function was traced with arguments {self.in_spec}; it is given {spec}")
        for traced, given in zip(self.arguments, flat, strict=True):
            is_tensor = isinstance(given, torch.Tensor)
            if is_tensor != (traced is _TENSOR) or not (is_tensor or _same(given, traced)):
                seen = "a tensor" if is_tensor else repr(given)
                raise ArgumentError(f"the function was traced with {traced!r} where it is given {seen}: trace it again")
        tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
        known = dict(zip(self.inputs, (*tensors, *self.captured_tensors), strict=True))
        for value, tensor in known.items():
            _check_type(value, tensor, f"{value.name} was traced")
        with torch.no_grad():
            values = evaluate(self.nodes, known)
        return {value.name: tensor.detach() for value, tensor in values.items()}

    def backward(self, values: Mapping[str, torch.Tensor], cotangent: Any = None) -> dict[str, torch.Tensor]:
        """The cotangent of every input and node by dz/dx = Σ Jᵀ dz/dy over its edges, by name.

        Arguments:
            values: what `forward` returned.
            cotangent: that of the output, in the output's structure, with None for what is no floating tensor; None
                alone stands for 1 if the output is one scalar.

        Raises ShapeError if there is no cotangent and the output is not a scalar, or if it does not fit.

        Cost: every edge is pulled back by enumerating its labels; meant for small graphs.
        """
        known = self._by_value(values)
        cotangents = self._seeds(cotangent)
        with torch.no_grad():
            for node in reversed(self.nodes):
                for edge in edges_of(node):
                    if edge.target in cotangents:
                        jac, extended, _ = self._edge(edge, known)
                        arriving = pull(jac, extended, cotangents[edge.target])
                        before = cotangents.get(edge.source)
                        cotangents[edge.source] = arriving if before is None else before + arriving
        return {v.name: cotangents.get(v, torch.zeros_like(t)) for v, t in known.items() if v.is_differentiable}

    def local_jacobian(self, edge: Edge, values: Mapping[str, torch.Tensor]) -> LocalJacobian:
        """The Jacobian on an edge at the values that `forward` returned, dense, as a formula and as a structure.

        Cost: that of the dense Jacobian.
        """
        with torch.no_grad():
            jac, extended, nodes = self._edge(edge, self._by_value(values))
            whole = None if is_antilinear(jac) else dense(jac, extended)
        return LocalJacobian(whole, formula(jac, edge.target, edge.source, nodes), structure(jac))

    def _edge(
        self, edge: Edge, known: Mapping[Value, torch.Tensor]
    ) -> tuple[Jac, dict[Value, torch.Tensor], Sequence[Node]]:
        """The local Jacobian, the values it is made of, and the nodes that compute those beyond the graph's."""
        is_complex = any(v.dtype in COMPLEX for v in (*edge.node.inputs, *edge.node.results))
        if edge.node.op not in RULES or (is_complex and not holds_for_complex(edge.node.op)):
            raise MissingRuleError(
                f"{edge} has no derivative rule for {edge.source.type}; it is used at {edge.node.source}: rewrite the "
                "function without it, or cut it off with `.detach()`"
            )
        builder = Builder(edge.target.device)
        for value in values_in((self.inputs, [n.outputs for n in self.nodes])):
            builder.reserve(value.name)
        jac = local_jacobian(edge, builder)
        return jac, evaluate(builder.nodes, known), builder.nodes

    def _by_value(self, values: Mapping[str, torch.Tensor]) -> dict[Value, torch.Tensor]:
        every = [*self.inputs, *(v for node in self.nodes for v in node.results)]
        missing = [v.name for v in every if v.name not in values]
        if missing:
            raise ArgumentError(f"values lack {', '.join(missing[:5])}: pass what forward() returned")
        return {v: values[v.name] for v in every}

    def _seeds(self, cotangent: Any) -> dict[Value, torch.Tensor]:
        """The cotangents of the outputs, added up where one value is returned twice."""
        flat, spec = ([None] * len(self.outputs), self.out_spec) if cotangent is None else tree_flatten(cotangent)
        if spec != self.out_spec:
            raise ArgumentError(f"the cotangent must have the structure of the output, {self.out_spec}; it has {spec}")
        seeds: dict[Value, torch.Tensor] = {}
        for value, tensor in zip(self.outputs, flat, strict=True):
            if isinstance(value, Value) and value.is_differentiable:
                tensor = _one(value, self.outputs) if cotangent is None else tensor
                _check_type(value, tensor, "its cotangent must be given")
                seeds[value] = seeds[value] + tensor if value in seeds else tensor
        return seeds

    def __str__(self) -> str:
        described = ["read by the function" if k >= self._own else "argument" for k in range(len(self.inputs))]
        rows = [(v.name, v.type, text, "", "") for v, text in zip(self.inputs, described, strict=True)]
        rows += [_row(node) for node in self.nodes]
        widths = [min(WIDEST, max((len(row[k]) for row in rows), default=0)) for k in range(4)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows]
        lines += [f"write {new.name} into {old.name}" for old, new in self.mutations]
        return "\n".join([*lines, f"return {', '.join(map(format_argument, self.outputs))}"])

    @property
    def _own(self) -> int:
        """How many inputs are the function's own arguments."""
        return len(self.inputs) - len(self.captured_tensors)


def trace(f: Callable[..., Any], *args: Any) -> TracedGraph:
    """Capture a function as a graph of ATen operators that can be walked by hand.

    Arguments:
        f: a function of tensors, or of pytrees of them.
        args: example arguments; only their shapes, dtypes and devices are read.

    Returns:
        A `Graph` with `.nodes` (operator, shapes, the user's line), `.edges` and `.edge(source, target)`,
        `.forward(*args)`, `.backward(values, cotangent)` and `.local_jacobian(edge, values)`; `print` shows it.  What
        the function reads besides its arguments, such as a module's parameters, is an input with a name of its own.

    Raises CaptureError: `f` branches on data, or takes a value out of the graph; names the line.

    Cost: about 0.3 ms an operator.

    >>> import torch, pullback
    >>> graph = pullback.trace(lambda x: (x * x).sum(), torch.tensor([1.0, 2.0]))
    >>> values = graph.forward(torch.tensor([1.0, 2.0]))
    >>> graph.backward(values)["x"]
    tensor([2., 4.])
    """
    if not callable(f):
        raise ArgumentError(f"trace needs a function, not {f!r}")
    flat, spec = tree_flatten((args, {}))
    captured = capture(f, flat, spec, keep=frozenset(RULES))
    graph, arguments = captured.graph, tuple(_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in flat)
    tensors = tuple(captured.lifted)
    return TracedGraph(
        graph.inputs, graph.nodes, graph.outputs, graph.mutations, tensors, arguments, spec, captured.out_spec
    )


class _Tensor:
    """Stands for a tensor among the leaves of the arguments."""

    def __repr__(self) -> str:
        return "a tensor"


_TENSOR = _Tensor()


def _same(given: Any, traced: Any) -> bool:
    return given is traced or (type(given) is type(traced) and bool(given == traced))


def _check_type(value: Value, tensor: Any, requirement: str) -> None:
    """Raise ShapeError unless a tensor is of the type of a value."""
    is_tensor = isinstance(tensor, torch.Tensor)
    if not is_tensor or tuple(tensor.shape) != value.shape or tensor.dtype != torch_dtype(value.dtype):
        seen = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if is_tensor else repr(tensor)
        raise ShapeError(f"{requirement} as {value.type}; it is given {seen} for {value.name!r}")


def _one(value: Value, outputs: Sequence[Any]) -> torch.Tensor:
    """The cotangent of a scalar function's output in itself."""
    if len(outputs) != 1 or value.shape != ():
        types = ", ".join(v.type if isinstance(v, Value) else repr(v) for v in outputs)
        raise ShapeError(f"the output is {types}, not one scalar: a cotangent of its structure must be given")
    return torch.ones((), dtype=torch_dtype(value.dtype), device=value.device)


def _row(node: Node) -> tuple[str, str, str, str, str]:
    """A node as the cells of a table: names, types, operator, module, and the user's line."""
    outputs = [v for v in node.outputs if v is not None]
    arguments = [format_argument(a) for a in node.args] + [f"{k}={format_argument(a)}" for k, a in node.kwargs]
    operator = f"{node.op.removesuffix('.default')}({', '.join(arguments)})"
    return (
        ", ".join(v.name for v in outputs),
        ", ".join(v.type for v in outputs),
        operator,
        node.scope,
        _line(node.source),
    )


def _line(source: Source | None) -> str:
    return f"# {os.path.basename(source.file)}:{source.line}: {source.code}" if source else ""
