"""Layer normalisation and its derivative, as sums over rows."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from ..graph import Node, Value
from .arguments import bound
from .elements import Computed, Entry, Read, computed
from .reductions import is_float, reduce_into, repeated
from .state import Rule, Translation


def _axes(shape: Sequence[int], normalised: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(len(shape) - len(normalised), len(shape)))


def _statistics(state: Translation, value: Value | None, read: Read) -> None:
    """A mean or a deviation as PyTorch returns it: with axes of one position for those that are reduced."""
    if value is not None:
        layout = read.layout.reshape(value.shape)
        assert layout is not None
        state.entries[value] = Read(read.buffer, layout)


def _forward(state: Translation, node: Node) -> None:
    arguments = bound(node)
    source, (result, mean, deviation) = arguments["input"], node.outputs
    shape, axes, dtype = source.shape, _axes(source.shape, arguments["normalized_shape"]), source.dtype
    count = prod(shape[d] for d in axes)
    x = state.stored(source)
    narrow = reduce_into(state, "sum", x, shape, axes, count)
    centred = Computed("{0} - {1}", dtype, (x, repeated(narrow, shape, axes)))
    variance = reduce_into(state, "sum", Computed("{0} * {0}", dtype, (centred,)), shape, axes, count)
    inverse = state.new(variance.layout.shape, dtype)
    state.store(inverse, computed(lambda v: 1 / (v + arguments["eps"]).call("sqrt"), variance))
    _statistics(state, mean, narrow)
    _statistics(state, deviation, inverse)
    if result is not None:
        entry: Entry = Computed("{0} * {1}", dtype, (centred, repeated(inverse, shape, axes)))
        state.define(result, _scaled(state, entry, arguments, shape))


def _scaled(state: Translation, entry: Entry, arguments: Mapping[str, Any], shape: Sequence[int]) -> Entry:
    for name, text in (("weight", "{0} * {1}"), ("bias", "{0} + {1}")):
        if arguments[name] is not None:
            entry = Computed(text, entry.dtype, (entry, state.broadcast(arguments[name], shape)))
    return entry


def _backward(state: Translation, node: Node) -> None:
    arguments = bound(node)
    gradient, source = state.stored(arguments["grad_out"]), state.stored(arguments["input"])
    shape, dtype = arguments["input"].shape, source.dtype
    axes = _axes(shape, arguments["normalized_shape"])
    mean, inverse = (state.broadcast(arguments[name], shape) for name in ("mean", "rstd"))
    normal = Computed("({0} - {1}) * {2}", dtype, (source, mean, inverse))
    scaled: Entry = gradient
    if arguments["weight"] is not None:
        scaled = Computed("{0} * {1}", dtype, (gradient, state.broadcast(arguments["weight"], shape)))
    to_input, to_weight, to_bias = node.outputs
    if to_input is not None:
        count = prod(shape[d] for d in axes)
        first = reduce_into(state, "sum", scaled, shape, axes, count)
        second = reduce_into(state, "sum", Computed("{0} * {1}", dtype, (scaled, normal)), shape, axes, count)
        operands = (inverse, scaled, repeated(first, shape, axes), normal, repeated(second, shape, axes))
        state.define(to_input, Computed("{0} * ({1} - {2} - {3} * {4})", dtype, operands))
    leading = tuple(d for d in range(len(shape)) if d not in axes)
    for value, entry in ((to_weight, Computed("{0} * {1}", dtype, (gradient, normal))), (to_bias, gradient)):
        if value is not None:
            state.entries[value] = reduce_into(state, "sum", entry, shape, leading) if leading else entry


def _covers(node: Node) -> bool:
    arguments = bound(node)
    of_results = all(v.dtype == node.inputs[0].dtype for v in node.results)
    return of_results and is_float(node) and len(arguments["normalized_shape"]) > 0


NORMALISATION: Mapping[str, Rule] = {
    "aten.native_layer_norm.default": _forward,
    "aten.native_layer_norm_backward.default": _backward,
}
COVERED_NORMALISATION: Mapping[str, Callable[[Node], bool]] = dict.fromkeys(NORMALISATION, _covers)
