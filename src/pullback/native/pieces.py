"""Values put together from parts, taken apart, or filled with a number."""

from collections.abc import Callable, Mapping
from typing import Any

from ..graph import Node
from .arguments import bound
from .elements import Read, cast, number, transformed
from .layouts import Layout
from .state import Rule, Translation


def _unbind(state: Translation, node: Node) -> None:
    dim = bound(node)["dim"] % len(node.inputs[0].shape)
    for position, value in enumerate(node.outputs):
        if value is not None:
            entry = transformed(state.entries[node.inputs[0]], lambda layout, k=position: layout.select(dim, k))  # type: ignore[misc]
            assert entry is not None
            state.entries[value] = entry


def _split(state: Translation, node: Node) -> None:
    arguments, source = bound(node), node.inputs[0]
    dim = arguments["dim"] % len(source.shape)
    sizes = arguments.get("split_sizes", arguments.get("split_size"))
    start = 0
    for position, value in enumerate(node.outputs):
        count = sizes[position] if isinstance(sizes, (tuple, list)) else min(sizes, source.shape[dim] - start)
        if value is not None:
            entry = transformed(
                state.entries[source],
                lambda layout, s=start, n=count: layout.slice(dim, s, n, 1),  # type: ignore[misc]
            )
            assert entry is not None
            state.entries[value] = entry
        start += count


def _full(state: Translation, node: Node) -> None:
    (result,), arguments = node.results, bound(node)
    name = node.op.split(".")[1].removesuffix("_like")
    given = {"zeros": 0, "ones": 1}.get(name)
    value = given if given is not None else arguments["s"] if "s" in arguments else arguments["fill_value"]
    state.entries[result] = number(value, result.dtype)


def _cat(state: Translation, node: Node) -> None:
    """Every operand is written to its part."""
    (result,), arguments = node.results, bound(node)
    target = state.new(result.shape, result.dtype)
    stacks = node.op == "aten.stack.default"
    dim = arguments["dim"] % len(result.shape)
    start = 0
    for value in arguments["tensors"]:
        count = 1 if stacks else value.shape[dim] if value.size else 0
        part = target.layout.select(dim, start) if stacks else target.layout.slice(dim, start, count, 1)
        if count:
            state.store(Read(target.buffer, part), cast(state.entries[value], result.dtype))
        start += count
    state.entries[result] = target


def _embedded(place: Callable[[Layout, dict[str, Any]], Layout]) -> Rule:
    """An operand put among zeros, at the places of a view."""

    def rule(state: Translation, node: Node) -> None:
        (result,), arguments = node.results, bound(node)
        target = state.new(result.shape, result.dtype)
        state.store(target, number(0, result.dtype))
        part = place(target.layout, arguments)
        state.store(Read(target.buffer, part), cast(state.entries[node.inputs[0]], result.dtype))
        state.entries[result] = target

    return rule


def _slice_part(layout: Layout, arguments: dict[str, Any]) -> Layout:
    dim = arguments["dim"] % len(layout.shape)
    positions = range(layout.shape[dim])[slice(arguments["start"], arguments["end"], arguments["step"])]
    return layout.slice(dim, positions.start, len(positions), arguments["step"])


def _select_part(layout: Layout, arguments: dict[str, Any]) -> Layout:
    dim = arguments["dim"] % len(layout.shape)
    return layout.select(dim, arguments["index"] % layout.shape[dim])


def _diagonal_part(layout: Layout, arguments: dict[str, Any]) -> Layout:
    rank = len(layout.shape)
    return layout.diagonal(arguments["offset"], arguments["dim1"] % rank, arguments["dim2"] % rank)


PIECES: Mapping[str, Rule] = {
    "aten.unbind.int": _unbind,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    **{f"aten.{op}.default": _full for op in ("zeros", "ones", "full", "scalar_tensor")},
    **{f"aten.{op}_like.default": _full for op in ("zeros", "ones", "full")},
    "aten.cat.default": _cat,
    "aten.stack.default": _cat,
    "aten.slice_backward.default": _embedded(_slice_part),
    "aten.select_backward.default": _embedded(_select_part),
    "aten.diagonal_backward.default": _embedded(_diagonal_part),
}
