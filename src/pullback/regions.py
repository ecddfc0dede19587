"""Regions: nodes that run graphs of their own, a branch or a loop.

pullback.cond        operands: predicate, arguments      one of two graphs of the arguments
pullback.while_loop  operands: carried, constants        while graph 0 of the operands is true, carry graph 1
pullback.scan        operands: carried, slices, constants   graph 0, slice by slice; returns what is carried out of
                                                         the last step, and what each step returned besides, stacked

Complex numbers go into a region and come out of it as pairs of real ones, whose gradients are the pairs that PyTorch's
gradients are made of: what a region computes is a function of real numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .graph import COMPLEX, Graph, Node, Value, real_of

COND, WHILE, SCAN = "pullback.cond.default", "pullback.while_loop.default", "pullback.scan.default"
PULLED_LOOP = "pullback.region_pulls.default"  # stays a node of its own for a `while_loop` alone
REGIONS = (COND, WHILE, SCAN)


@dataclass(frozen=True, eq=False)
class Region:
    """What a node of one of these operators runs.

    op: the operator; graphs: as at the head of this file.
    carried, sliced: how many operands are carried, and how many are read slice by slice.
    results: what the node returns, as values that give shape and dtype.
    """

    op: str
    graphs: tuple[Graph, ...]
    results: tuple[Value, ...]
    carried: int = 0
    sliced: int = 0


def floating(values: Sequence[Value]) -> tuple[int, ...]:
    """The numbers of the values that have a derivative."""
    return tuple(k for k, v in enumerate(values) if v.is_floating)


def in_pairs(graph: Graph) -> Graph:
    """The same graph with a pair of real numbers, along a last axis, for each complex number that goes in or out."""
    inputs = tuple(_pair(v) if v.dtype in COMPLEX else v for v in graph.inputs)
    before = [node for v, pair in zip(graph.inputs, inputs, strict=True) if pair is not v for node in _joined(pair, v)]
    outputs, after = [], []
    for value in graph.outputs:
        is_complex = isinstance(value, Value) and value.dtype in COMPLEX
        outputs.append(_pair(value) if is_complex else value)
        after += _taken_apart(value, outputs[-1]) if is_complex else []
    return replace(graph, inputs=inputs, nodes=(*before, *graph.nodes, *after), outputs=tuple(outputs))


def _pair(z: Value) -> Value:
    return Value(f"{z.name}_parts", (*z.shape, 2), real_of(z.dtype), z.device)


def _joined(pair: Value, z: Value) -> tuple[Node, ...]:
    """By a copy: a view as complex numbers is not possible everywhere in memory."""
    parts = [Value(f"{z.name}_{part}", z.shape, pair.dtype, z.device) for part in ("re", "im")]
    taken = [Node("aten.select.int", (pair, -1, k), (), (part,)) for k, part in enumerate(parts)]
    return (*taken, Node("aten.complex.default", tuple(parts), (), (z,)))


def _taken_apart(z: Value, pair: Value) -> list[Node]:
    resolved = Value(f"{z.name}_resolved", z.shape, z.dtype, z.device)
    return [
        Node("aten.resolve_conj.default", (z,), (), (resolved,)),
        Node("aten.view_as_real.default", (resolved,), (), (pair,)),
    ]
