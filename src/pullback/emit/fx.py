"""Export as a `torch.fx.GraphModule`, for whatever takes one: Inductor, a printer, a quantiser."""

import operator
from collections.abc import Callable
from typing import Any

import torch

from ..errors import GraphError
from ..graph import Graph, Node, Value
from ..terms import HOLE
from ..torch_private import overload
from .aliases import protect_from_mutations
from .builtins import facts


def to_graph_module(graph: Graph, name: str = "program") -> torch.fx.GraphModule:
    """The same program as an `fx.GraphModule`: it takes the graph's inputs in order and returns a tuple.

    Raises GraphError if a node is no ATen operator: the graph has to be lowered first.
    """
    export = _Export(protect_from_mutations(graph))
    module = torch.fx.GraphModule(torch.nn.Module(), export.graph, class_name=name)
    export.graph.lint()
    return module


def apply_batched(
    op: str,
    args: tuple[Any, ...],
    kwargs: tuple[tuple[str, Any], ...],
    output: int | None,
    hole: tuple[int, ...],
    operand: Any,
) -> Any:
    """Map a linear operator over the leading axis of its operand.

    Of the operator's results, `output` says which is meant; None if it has only one.  `hole` says where the operand
    belongs among `args`: the position, and then the position inside the list there.
    """
    function, keywords = overload(op), dict(kwargs)

    def single(row: torch.Tensor) -> Any:
        result = function(*_fill(args, hole, row), **keywords)
        return result if output is None else result[output]

    return torch.vmap(single)(operand)


def _fill(args: tuple[Any, ...], hole: tuple[int, ...], row: Any) -> tuple[Any, ...]:
    first, *rest = hole
    inner = _fill(tuple(args[first]), tuple(rest), row) if rest else row
    return (*args[:first], inner, *args[first + 1 :])


def _find_hole(args: Any) -> tuple[int, ...] | None:
    for position, argument in enumerate(args):
        if argument is HOLE:
            return (position,)
        if isinstance(argument, (tuple, list)) and (inner := _find_hole(argument)) is not None:
            return (position, *inner)
    return None


class _Export:
    """The state of one export."""

    def __init__(self, graph: Graph) -> None:
        self.graph = torch.fx.Graph()
        self.nodes: dict[Value, torch.fx.Node] = {v: self.graph.placeholder(_target(v.name)) for v in graph.inputs}
        for node in graph.nodes:
            self._add(node)
        for old, new in graph.mutations:
            self.graph.call_function(overload("aten.copy_.default"), (self.nodes[old], self.nodes[new]))
        self.graph.output(self._argument(graph.outputs))

    def _add(self, node: Node) -> None:
        if node.op == "batched":
            result = self._batched(node)
        elif node.op.count(".") == 2:
            result = self._call(overload(node.op), self._argument(node.args), dict(self._argument(node.kwargs)), node)
        else:
            raise GraphError(f"{node} is no ATen operator: lower the graph before it is exported")
        if node.op == "batched" or not facts(node.op).returns_many:
            self.nodes.update((v, result) for v in node.results)
            return
        for k, value in enumerate(node.outputs):
            if value is not None:
                self.nodes[value] = self._call(operator.getitem, (result, k), {}, node)

    def _batched(self, node: Node) -> torch.fx.Node:
        op, args, kwargs, output, operand = node.args
        hole = _find_hole(args)
        if hole is None:
            raise GraphError(f"{node} leaves no argument open for its operand")
        output = output if facts(op).returns_many else None
        arguments = (op, self._argument(args), self._argument(kwargs), output, hole, self.nodes[operand])
        return self._call(apply_batched, arguments, {}, node)

    def _call(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], node: Node) -> torch.fx.Node:
        made = self.graph.call_function(function, args, kwargs)
        if node.source is not None:
            where = f'File "{node.source.file}", line {node.source.line}, in {node.source.function}'
            made.meta["stack_trace"] = f"{where}\n    {node.source.code}"
        return made

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, Value):
            return self.nodes[argument]
        if isinstance(argument, (tuple, list)):
            return tuple(map(self._argument, argument))
        return None if argument is HOLE else argument


def _target(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name) or "value"
