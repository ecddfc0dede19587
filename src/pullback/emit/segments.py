"""A program cut into segments: each runs as machine code, or by PyTorch's operators."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..graph import Graph, Node, Value, values_in
from .builtins import facts_of, shares_memory_with

LEAST = 3  # operators that one call of machine code has to save


@dataclass(frozen=True)
class Segment:
    """A part of a program.

    graph: its inputs are what it reads of the rest, its outputs what the rest reads of it.
    is_native: whether it runs as machine code.
    """

    graph: Graph
    is_native: bool


def cut(graph: Graph, is_covered: Callable[[Node], bool], given: Sequence[Value] = ()) -> list[Segment]:
    """The segments of a program, in an order that computes.

    Arguments:
        is_covered: whether there is machine code for a node.
        given: values that are known without computing.

    A native segment that saves fewer than a few operators is left to PyTorch.

    Cost: the number of nodes times that of the segments.
    """
    native = {k for k, node in enumerate(graph.nodes) if is_covered(node)}
    while True:
        groups = list(_groups(graph, native, given))
        poor = [group for is_native, group in groups if is_native and _saved(graph, group) < LEAST]
        if not poor:
            break
        native -= {k for group in poor for k in group}
    return [_segment(graph, groups, k) for k in range(len(groups))]


def _saved(graph: Graph, group: Sequence[int]) -> int:
    """How many operators a group has, beside views."""
    return sum(shares_memory_with(graph.nodes[k]) is None for k in group)


def _groups(graph: Graph, native: set[int], given: Sequence[Value]) -> Iterator[tuple[bool, list[int]]]:
    """Numbers of nodes, of one kind after the other; each group takes all that can be computed by then."""
    known = {*graph.inputs, *given}
    waiting = list(range(len(graph.nodes)))
    is_native = True
    while waiting:
        group, rest, held = [], [], False
        for k in waiting:
            node = graph.nodes[k]
            draws = facts_of(node).is_random or facts_of(node).mutates
            if (k in native) == is_native and not (draws and held) and all(v in known for v in node.inputs):
                group.append(k)
                known.update(node.results)
            else:
                rest.append(k)
                held |= draws
        if group:
            yield is_native, group
        waiting, is_native = rest, not is_native


def _segment(graph: Graph, groups: Sequence[tuple[bool, list[int]]], number: int) -> Segment:
    is_native, group = groups[number]
    nodes = tuple(graph.nodes[k] for k in group)
    made = {v for node in nodes for v in node.results}
    others = [graph.nodes[k] for other, (_, rest) in enumerate(groups) if other != number for k in rest]
    wanted = set(values_in(([n.inputs for n in others], graph.outputs, graph.mutations)))
    read = dict.fromkeys(v for node in nodes for v in node.inputs if v not in made)
    outputs = tuple(v for node in nodes for v in node.results if v in wanted)
    return Segment(Graph(tuple(read), nodes, outputs), is_native)
