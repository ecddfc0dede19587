"""NaN and infinity: the node that they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .differences import largest
from .errors import ArgumentError
from .evaluation import results_of
from .graph import Graph, Node, Source, Value
from .transform import Transform, captured_call, find


@dataclass(frozen=True)
class NonFinite:
    """The first value on the way to a result that is not finite.

    node: what computes it; None for an argument, or a tensor that the function reads.
    value: which of the node's results.
    kind: "input", "value" (of the function itself) or "derivative".
    count: how many of its entries are NaN or infinite.
    entries: the largest finite entry of each operand, by name, and how many of its entries are zero.
    source: the user's line.
    """

    node: Node | None
    value: Value
    kind: str
    count: int
    entries: tuple[str, ...]
    source: Source | None

    def __str__(self) -> str:
        what = {"input": "the input", "value": "the value", "derivative": "the derivative"}[self.kind]
        text = f"{self.count} of {self.value.size} entries of {what} {self.value!r} are not finite"
        if self.node is None:
            return f"{text}: it came in like that"
        operands = "".join(f"\n    {entry}" for entry in self.entries)
        where = self.source or "a line that was not recorded"
        return f"{text}\n  at {where}\n  computed by {self.node.op} of{operands}"


def first_nonfinite(transform: Transform, *args: Any, **kwargs: Any) -> NonFinite | None:
    """Where the NaN or infinity in a transform's result comes from.

    Arguments:
        transform: what `grad`, `jacobian`, `hessian` and their like return.
        args, kwargs: what it is called with.

    Returns:
        The first value that is not finite, computed of finite ones, on the way to a result that is not finite: a value
        of the function, or one of its derivative, with the line of the function that it belongs to.  None if all
        results are finite; an infinity that has no effect on them (a mask of −∞ in front of a softmax) is none.

    Raises:
        ArgumentError: this is not a transform, or one with a chunk_size, which has no single program; and whatever
            calling the transform raises.

    Cost: one run of the program, operator by operator, with every value kept.

    >>> import torch, pullback
    >>> found = pullback.first_nonfinite(pullback.grad(lambda x: (x * x).sqrt().sum()), torch.zeros(2))
    >>> found.kind, found.count
    ('derivative', 2)
    """
    if not isinstance(transform, Transform):
        raise ArgumentError(f"first_nonfinite needs a transform such as pullback.grad(f), not {transform!r}")
    entry, flat = find(transform.kind, transform.f, args, kwargs)
    if entry.program.compiled is None:
        raise ArgumentError("a transform with a chunk_size has no single program to look into: leave chunk_size out")
    graph: Graph = entry.program.compiled.program.graph
    function = captured_call(transform.f, args, kwargs).captured.graph
    names = frozenset(v.name for node in function.nodes for v in node.results)
    return _first(graph, [t.detach() for t in flat], names)


def _first(graph: Graph, inputs: Sequence[Tensor], names: frozenset[str]) -> NonFinite | None:
    """names: what the values of the function itself are called."""
    known = _evaluated(graph, inputs)
    guilty = _guilty(graph, known)
    if guilty is None:
        return None
    node = graph.producers().get(guilty)
    kind = "input" if node is None else "value" if guilty.name in names else "derivative"
    operands = tuple(dict.fromkeys(node.inputs)) if node else ()
    entries = tuple(_described(v, known[v]) for v in operands)
    return NonFinite(node, guilty, kind, _count(known[guilty]), entries, node.source if node else None)


def _evaluated(graph: Graph, inputs: Sequence[Tensor]) -> dict[Value, Tensor]:
    """Every value of a program; the generator is left as it was."""
    known = dict(zip(graph.inputs, inputs, strict=True))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for node in graph.nodes:
            results = results_of(node, known)
            known.update((v, r) for v, r in zip(node.outputs, results, strict=True) if v is not None)
    return known


def _guilty(graph: Graph, known: dict[Value, Tensor]) -> Value | None:
    """Back from the results along values that are not finite, to the first whose operands all are."""
    bad = [v for v in graph.outputs if isinstance(v, Value) and _count(known[v])]
    producers, seen = graph.producers(), set(bad)
    order = {v: k for k, v in enumerate((*graph.inputs, *(v for node in graph.nodes for v in node.results)))}
    origins = []
    while bad:
        value = bad.pop()
        node = producers.get(value)
        causes = [v for v in (node.inputs if node else ()) if _count(known[v])]
        if not causes:
            origins.append(value)
        fresh = [v for v in causes if v not in seen]
        seen.update(fresh)
        bad += fresh
    return min(origins, key=order.__getitem__, default=None)


def _count(tensor: Tensor) -> int:
    return int((~tensor.isfinite()).sum()) if tensor.is_floating_point() or tensor.is_complex() else 0


def _described(value: Value, tensor: Tensor) -> str:
    is_continuous = tensor.is_floating_point() or tensor.is_complex()
    finite = tensor[tensor.isfinite()] if is_continuous else tensor
    zeros = int((tensor == 0).sum())
    return f"{value!r}: largest finite entry {largest(finite):.4g}, {zeros} of {value.size} entries are zero"
