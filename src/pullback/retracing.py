"""Programs that call products of user-written derivatives or of regions, made ready to be differentiated again.

A product is one operator in a compiled program, and has no rule.  A trace of the program sees what it is made of.
"""

from collections.abc import Callable
from typing import Any

from .capture import capture
from .dtypes import empty_of
from .emit.python import emit_python
from .graph import Graph, Node, Value
from .own_derivatives import PRODUCTS
from .rules import RULES
from .rules.edges import WITHOUT_SAMPLES
from .torch_private import outside_autocast, tree_flatten


def differentiable(graph: Graph) -> Graph:
    """The same program without products, whose derivative nobody knows; the graph itself where it has none.

    Cost: that of a capture, where there is one.
    """
    if not any(_is_product(node) for node in graph.nodes):
        return graph
    program = emit_python(graph, name="program")
    return captured_like(program.run, graph.inputs)


def captured_like(function: Callable[..., Any], inputs: tuple[Value, ...]) -> Graph:
    """A function of tensors of these types as a graph."""
    flat, spec = tree_flatten((tuple(map(empty_of, inputs)), {}))
    names = [value.name for value in inputs]
    return outside_autocast(capture)(function, flat, spec, keep=frozenset(RULES), names=names).graph


def _is_product(node: Node) -> bool:
    op = node.args[0] if node.op == "batched" else node.op
    return op in PRODUCTS and op not in WITHOUT_SAMPLES and op not in RULES
