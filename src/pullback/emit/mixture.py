"""A program as a mixture of machine code and PyTorch's operators, before anything is compiled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..dtypes import torch_dtype
from ..graph import COMPLEX, Graph, Node, Value, values_in
from ..native.building import has_vector_math
from ..native.functions import NestFunction, Shared, nest_function, shared_places
from ..native.translation import is_covered
from .aliases import memory_roots, protect_from_mutations
from .builtins import shares_memory_with
from .constants import constants
from .segments import Segment, cut


@dataclass(frozen=True)
class Mixture:
    """A program in segments.

    graph: its inputs, outputs and mutations; without nodes.
    constants: tensors that it does not compute at every call.
    functions: of the native segments, by their numbers.
    """

    graph: Graph
    constants: Mapping[Value, torch.Tensor]
    segments: Sequence[Segment]
    functions: Mapping[int, NestFunction]


def mixed(graph: Graph) -> Mixture:
    """Cut a lowered graph, and write the native segments in C.

    Cost: linear in the number of operators, about 0.15 ms each.
    """
    protected = protect_from_mutations(graph)
    ready, known = _with_numbers(protected, constants(protected))
    ready, views = _without_shared_views(ready)
    segments = cut(ready, is_covered, tuple(known))
    updates = _updates(ready, segments, views)
    shared = shared_places([*_between_functions(ready, segments, views), *updates.values()])
    functions = {
        k: _function(segment.graph, f"segment_{k}", shared, updates if k == len(segments) - 1 else {})
        for k, segment in enumerate(segments)
        if segment.is_native
    }
    if views:
        segments.append(Segment(Graph(tuple(dict.fromkeys(_read_by(views))), views, _made_by(views)), False))
    return Mixture(replace(protected, nodes=()), known, segments, functions)


def _between_functions(graph: Graph, segments: Sequence[Segment], views: tuple[Node, ...]) -> list[Value]:
    """What native segments hand to each other, and nobody else reads."""
    others = {v for segment in segments if not segment.is_native for v in segment.graph.inputs}
    others |= {*values_in((graph.outputs, graph.mutations)), *_read_by(views)}
    made = dict.fromkeys(v for segment in segments if segment.is_native for v in segment.graph.outputs)
    return [value for value in made if value not in others]


def _function(graph: Graph, name: str, shared: Shared, updates: Mapping[Value, Value]) -> NestFunction:
    """A native segment, which is given what it overwrites as well."""
    given = replace(graph, inputs=tuple(dict.fromkeys((*graph.inputs, *updates))))
    return nest_function(given, name, has_vector_math(), shared, updates)


def _updates(graph: Graph, segments: Sequence[Segment], views: tuple[Node, ...]) -> dict[Value, Value]:
    """What the last segment overwrites itself: inputs whose new values it computes for nobody else."""
    if not segments or not segments[-1].is_native:
        return {}
    kept = [*values_in(graph.outputs), *_read_by(views), *(new for _, new in graph.mutations)]
    return {
        old: new
        for old, new in graph.mutations
        if new in segments[-1].graph.outputs and kept.count(new) == 1 and old.type == new.type
    }


def _with_numbers(graph: Graph, known: Mapping[Value, torch.Tensor]) -> tuple[Graph, dict[Value, torch.Tensor]]:
    """The graph without what computes constants: one that repeats a number becomes that number."""
    nodes, tensors = [], {}
    for node in graph.nodes:
        value = node.results[0] if len(node.results) == 1 else None
        if value is None or value not in known:
            nodes.append(node)
        elif value.dtype not in COMPLEX and (number := _repeated_number(known[value])) is not None:
            kind = (("dtype", torch_dtype(value.dtype)), ("device", torch.device(value.device)))
            nodes.append(Node("aten.full.default", (value.shape, number), kind, (value,)))
        else:
            tensors[value] = known[value].contiguous()
    return replace(graph, nodes=tuple(nodes)), tensors


def _repeated_number(tensor: torch.Tensor) -> bool | int | float | None:
    """The number that a tensor holds everywhere; None where it holds several, a NaN or −0."""
    if not tensor.numel():
        return None
    first: bool | int | float = tensor.flatten()[0].item()
    is_one = bool((tensor == first).all()) and not (first == 0 and bool(tensor.signbit().any()))
    return first if is_one else None


def _without_shared_views(graph: Graph) -> tuple[Graph, tuple[Node, ...]]:
    """The graph without the results that are views of an input or of another result, and the nodes that make them."""
    root, producer = memory_roots(graph), graph.producers()
    outputs = list(dict.fromkeys(values_in(graph.outputs)))
    owners = [root[v] for v in outputs]
    taken = set(graph.inputs)
    shared = [v for v in outputs if root[v] is not v and (root[v] in taken or owners.count(root[v]) > 1)]
    nodes: dict[Node, None] = {}
    for value in shared:
        chain = []
        while (node := producer.get(value)) is not None and shares_memory_with(node) is not None:
            chain.append(node)
            value = node.inputs[0]
        nodes.update(dict.fromkeys(reversed(chain)))
    made = set(_made_by(tuple(nodes)))
    kept = tuple(v for v in outputs if v not in made) + tuple(root[v] for v in shared if root[v] not in taken)
    return replace(graph, outputs=tuple(dict.fromkeys(kept))), tuple(nodes)


def _made_by(nodes: Sequence[Node]) -> tuple[Value, ...]:
    return tuple(v for node in nodes for v in node.results)


def _read_by(nodes: Sequence[Node]) -> tuple[Value, ...]:
    made = set(_made_by(nodes))
    return tuple(v for node in nodes for v in node.inputs if v not in made)
