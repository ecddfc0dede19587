"""What of a captured function is the same at every run: a derivative may be computed from it later, or twice.

Random draws, and what the function overwrites in its surroundings, cannot be computed anew; they are inputs here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .emit.builtins import facts
from .errors import AutogradError, CaptureError
from .graph import Graph, Node, Value, live_nodes
from .own_derivatives import ATTACH
from .rules import RULES
from .rules.constant import PIECEWISE_CONSTANT
from .rules.edges import edges_of
from .rules.gauge import DIRECTIONS_OP, REQUIRE

_PLAIN = frozenset((ATTACH, DIRECTIONS_OP, REQUIRE))
PIECEWISE = frozenset(f"aten.{op}" for op in PIECEWISE_CONSTANT.split())


@dataclass(frozen=True)
class Pure:
    """A graph that can be run again: without draws, and without writes into its inputs.

    graph: takes the inputs, then what was drawn.
    drawn: the values of the original graph that are drawn at random.
    overwritten: the numbers of the inputs that the original graph writes into.
    problem: why it has no derivative all the same, or the empty string.
    """

    graph: Graph
    drawn: tuple[Value, ...]
    overwritten: tuple[int, ...]
    problem: str

    @property
    def has_regions(self) -> bool:
        """Whether there are branches or loops at run time, which `vmap` cannot map inside a trace."""
        return any(runs_region(node) for node in self.graph.nodes)

    @property
    def repeats(self) -> bool:
        """Whether the original graph itself may be run again."""
        return not self.drawn and not self.overwritten

    def with_draws(self, original: Graph) -> Graph:
        """The original graph, which also returns what it draws."""
        return replace(original, outputs=(*original.outputs, *self.drawn)) if self.drawn else original


def runs_region(node: Node) -> bool:
    """Whether a node calls graphs of its own when it runs."""
    return node.op.startswith("pullback.") and node.op not in _PLAIN


def pure(graph: Graph) -> Pure:
    """What of a graph is the same at each run."""
    drawn: list[Value] = []
    nodes: list[Node] = []
    problem = ""
    for node in graph.nodes:
        given = GIVEN.get(node.op)
        if given is not None and node.outputs[1] is not None:
            drawn.append(node.outputs[1])
            nodes.extend(given(node))
        elif node.op.count(".") != 2 or node.op in RULES or not facts(node.op).is_random:
            nodes.append(node)  # attention is said to draw, but has a rule only where it does not
        else:
            drawn.extend(node.results)
            problem = problem or (_depends(node) if edges_of(node) else "")
    changed = {old for old, _ in graph.mutations}
    overwritten = tuple(k for k, value in enumerate(graph.inputs) if value in changed)
    again = Graph((*graph.inputs, *drawn), live_nodes(tuple(nodes), graph.outputs), graph.outputs)
    return Pure(again, tuple(drawn), overwritten, problem)


def _depends(node: Node) -> str:
    where = f" (at {node.source})" if node.source else ""
    return (
        f"f draws random numbers by {node.op}{where}, which depend on tensors: no derivative of that is done yet; call "
        "the transform under torch.no_grad() if none is needed, or draw them outside of f"
    )


def _given_mask(node: Node) -> tuple[Node, ...]:
    """Dropout whose mask is an input:  y = x · mask / (1 − p)."""
    p, train = node.args[1:3]
    scale = 1.0 if train is False else 0.0 if p == 1 else 1 / (1 - p)
    return _times(node, node.outputs[1], scale)


def _given_noise(node: Node) -> tuple[Node, ...]:
    """A randomized ReLU whose slopes are an input, 1 where the operand is positive:  y = x · noise."""
    defaults: tuple[Any, ...] = (0.125, 1 / 3, False)
    lower, upper, training = (*node.args[2:5], *defaults[len(node.args) - 2 :])
    if training:
        return _times(node, node.outputs[1], 1.0)
    slope = (lower + upper) / 2
    return (Node("aten.leaky_relu.default", (node.args[0], slope), (), node.outputs[:1], node.source, node.scope),)


def _times(node: Node, factor: Value | None, scale: float) -> tuple[Node, ...]:
    """The first result as the first operand · factor · scale."""
    output = node.outputs[0]
    if output is None:
        return ()
    product = Value(f"{output.name}_product", output.shape, output.dtype, output.device)
    first = Node("aten.mul.Tensor", (node.args[0], factor), (), (product,), node.source, node.scope)
    return first, Node("aten.mul.Tensor", (product, scale), (), (output,), node.source, node.scope)


# What an operator computes of its second result, once that has been drawn.
GIVEN: dict[str, Callable[[Node], tuple[Node, ...]]] = {
    "aten.native_dropout.default": _given_mask,
    "aten.rrelu_with_noise_functional.default": _given_noise,
}


def as_before(again: Pure, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors, with copies of those that a program is about to overwrite."""
    return tuple(t.clone() if k in again.overwritten else t for k, t in enumerate(tensors))


def refuse(graph: Graph, again: Pure, tensors: Sequence[Tensor]) -> None:
    """Raise AutogradError if a graph's results have no derivative at these inputs.

    It has none if draws depend on the inputs; nor if one is overwritten that requires grad, or by what requires grad.
    """
    if again.problem:
        raise AutogradError(again.problem)
    if not again.overwritten:
        return
    inputs = dict(zip(graph.inputs, tensors, strict=False))
    reached = depending({value for value, tensor in inputs.items() if tensor.requires_grad}, graph)
    for old, new in graph.mutations:
        if old in reached or new in reached:
            raise AutogradError(
                f"f writes into {old.name} ({old.type}) in place what depends on a tensor that requires grad, and "
                "PyTorch's autograd would not learn of that: write a detached value, compute it under "
                "torch.no_grad() in f, return it instead, or call the transform under torch.no_grad()"
            )


def refuse_once_differentiable(graph: Graph, problem: str) -> None:
    """Raise CaptureError if a function in a graph has a derivative of which its author excludes a derivative."""
    for node in graph.nodes:
        if node.op == ATTACH and node.args[3].held.once:
            raise CaptureError(
                f"{node.args[3].held.title}, called at {node.source}, is marked once_differentiable, and {problem}: "
                "take the mark off if its backward may be differentiated"
            )


def depending(values: set[Value], graph: Graph) -> set[Value]:
    """These values, and those that a derivative leads to from them."""
    for node in graph.nodes:
        differentiable = getattr(RULES.get(node.op), "differentiable", None)
        for edge in edges_of(node):
            if edge.source in values and (differentiable is None or edge.output in differentiable):
                values.add(edge.target)
        if node.op in PIECEWISE and any(v in values for v in node.inputs):
            values.update(v for v in node.results if v.is_differentiable)  # its derivative exists, and is zero
    return values
