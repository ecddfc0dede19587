"""A program in two halves: what can be computed at once, and what has to wait for inputs that come later."""

from ..graph import Graph, values_in
from .aliases import own_memory


def split_program(graph: Graph, late: int, derivatives: int) -> tuple[Graph, Graph]:
    """Cut a lowered graph in two: what can be computed before its last `late` inputs are known, and the rest.

    The graph returns its derivatives first and then the function's outputs.  The first program returns those outputs
    and, behind them, the values that the second one takes ahead of the late inputs; the second returns the derivatives.
    """
    early_inputs, late_inputs = graph.inputs[: len(graph.inputs) - late], graph.inputs[len(graph.inputs) - late :]
    early, first, second = set(early_inputs), [], []
    for node in graph.nodes:
        if all(v in early for v in node.inputs):
            early.update(node.results)
            first.append(node)
        else:
            second.append(node)
    wanted = graph.outputs[:derivatives]
    kept = tuple(dict.fromkeys(v for v in values_in(([n.inputs for n in second], wanted)) if v in early))
    forward = Graph(early_inputs, tuple(first), (*graph.outputs[derivatives:], *kept), graph.mutations)
    backward = Graph((*kept, *late_inputs), tuple(second), wanted)
    return forward, own_memory(backward, derivatives)  # else a caller could write into what is kept
