"""Sums, means and extrema, and the softmax, which is made of them."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from ..graph import Node
from .arguments import bound
from .elements import FLOATS, MEMORY_TYPES, Computed, Entry, Read, cast, computed
from .layouts import Layout
from .nests import Reduction
from .state import Rule, Translation


def _dims(arguments: Mapping[str, Any], rank: int) -> tuple[int, ...]:
    dims = arguments.get("dim")
    if isinstance(dims, int):
        dims = (dims,)
    return tuple(sorted({d % rank for d in dims})) if dims and rank else tuple(range(rank))


def reduce_into(
    state: Translation, kind: str, entry: Entry, shape: Sequence[int], axes: Sequence[int], divisor: int = 1
) -> Read:
    """An buffer of what a reduction yields, without the axes that it reduces."""
    kept = [n for d, n in enumerate(shape) if d not in axes]
    target = state.new(kept, entry.dtype)
    state.kernels.append(Reduction(kind, tuple(shape), tuple(axes), entry, target.buffer, target.layout, divisor))
    return target


def _reduction(kind: str, is_mean: bool = False) -> Rule:
    def rule(state: Translation, node: Node) -> None:
        (result,), source = node.results, node.inputs[0]
        axes = _dims(bound(node), len(source.shape))
        entry = cast(state.entries[source], result.dtype)
        divisor = prod(source.shape[d] for d in axes) if is_mean else 1
        target = reduce_into(state, kind, entry, source.shape, axes, divisor)
        layout = target.layout.reshape(result.shape)
        assert layout is not None
        state.entries[result] = Read(target.buffer, layout)

    return rule


def repeated(read: Read, shape: Sequence[int], axes: Sequence[int]) -> Read:
    """A reduced buffer, repeated over the axes that it lacks."""
    layout = read.layout.reshape([1 if d in axes else n for d, n in enumerate(shape)])
    assert layout is not None
    return Read(read.buffer, layout.expand(shape))


def _softmax(state: Translation, node: Node) -> None:
    (result,), source = node.results, node.inputs[0]
    axes = _dims(bound(node), len(source.shape))
    shape = source.shape
    x = state.stored(source)
    largest = repeated(reduce_into(state, "max", x, shape, axes), shape, axes)
    powers = computed(lambda x, largest: (x - largest).call("exp"), x, largest)
    if node.op == "aten._log_softmax.default":
        total = repeated(reduce_into(state, "sum", powers, shape, axes), shape, axes)
        logarithm = state.new([1 if d in axes else n for d, n in enumerate(shape)], result.dtype)
        first = [Read(r.buffer, _first(r.layout, axes)) for r in (total, largest)]
        state.store(logarithm, computed(lambda total, largest: largest + total.call("log"), *first))
        whole = Read(logarithm.buffer, logarithm.layout.expand(shape))
        return state.define(result, Computed("{0} - {1}", result.dtype, (x, whole)))
    kept = state.new(shape, result.dtype)
    state.store(kept, powers)
    total = repeated(reduce_into(state, "sum", kept, shape, axes), shape, axes)
    return state.define(result, Computed("{0} / {1}", result.dtype, (kept, total)))


def _softmax_backward(state: Translation, node: Node) -> None:
    (result,), (gradient, output) = node.results, node.inputs[:2]
    axes, shape = _dims(bound(node), len(output.shape)), output.shape
    g, y = state.stored(gradient), state.stored(output)
    if node.op == "aten._log_softmax_backward_data.default":
        total = repeated(reduce_into(state, "sum", g, shape, axes), shape, axes)
        return state.define(result, computed(lambda g, y, total: g - y.call("exp") * total, g, y, total))
    product = Computed("{0} * {1}", result.dtype, (g, y))
    total = repeated(reduce_into(state, "sum", product, shape, axes), shape, axes)
    return state.define(result, Computed("{1} * ({0} - {2})", result.dtype, (g, y, total)))


def _first(layout: Layout, axes: Sequence[int]) -> Layout:
    """The first along some axes, which keep the size 1."""
    for d in axes:
        layout = layout.slice(d, 0, 1, 1)
    return layout


def is_float(node: Node) -> bool:
    """Whether all that a node takes and yields are real numbers of one dtype."""
    return all(v.dtype == node.results[0].dtype and v.dtype in FLOATS for v in node.inputs)


def _reduces_floats(node: Node) -> bool:
    return len(node.results) == 1 and node.results[0].dtype in FLOATS and node.inputs[0].dtype in MEMORY_TYPES


_OF_FLOATS = ("_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data")
REDUCTIONS: Mapping[str, Rule] = {
    "aten.sum.default": _reduction("sum"),
    "aten.sum.dim_IntList": _reduction("sum"),
    "aten.mean.default": _reduction("sum", is_mean=True),
    "aten.mean.dim": _reduction("sum", is_mean=True),
    "aten.amax.default": _reduction("max"),
    "aten.amin.default": _reduction("min"),
    "aten._softmax.default": _softmax,
    "aten._log_softmax.default": _softmax,
    "aten._softmax_backward_data.default": _softmax_backward,
    "aten._log_softmax_backward_data.default": _softmax_backward,
}
COVERED_REDUCTIONS: Mapping[str, Callable[[Node], bool]] = {
    op: is_float if op.split(".")[1] in _OF_FLOATS else _reduces_floats for op in REDUCTIONS
}
