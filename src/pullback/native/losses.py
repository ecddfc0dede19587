"""Losses whose arguments PyTorch checks while it computes them: class numbers, probabilities."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from ..graph import Node, Value
from .arguments import bound
from .elements import FLOATS, Computed, Entry, Position, Read, cast, computed, number
from .layouts import Layout
from .reductions import is_float, reduce_into
from .scalars import Scalar
from .state import Rule, Translation

_NONE, _MEAN = 0, 1
MOST_CLASSES = 256  # that are looked through for the right one


def _reduced(state: Translation, losses: Read, shape: Sequence[int], reduction: int) -> Read:
    """Losses as they are, their mean or their sum."""
    if reduction == _NONE:
        return losses
    divisor = prod(shape) if reduction == _MEAN else 1
    return reduce_into(state, "sum", losses, shape, tuple(range(len(shape))), divisor)


# ---------------------------------------------------------------- binary cross entropy


_LEAST = float(np.float32(1e-12))  # a float in PyTorch, for doubles too


def _at_least(x: Scalar, number: float) -> Scalar:
    return x.compare("lt", number).where(x.table.constant(number, x.dtype), x)


def _binary_cross_entropy(state: Translation, node: Node) -> None:
    arguments, (result,) = bound(node), node.results
    shape, dtype = arguments["self"].shape, result.dtype
    operands = tuple(state.broadcast(arguments[name], shape) for name in ("self", "target"))
    logarithms = (
        computed(lambda x: _at_least((-x).call("log1p"), -100), operands[0]),
        computed(lambda x: _at_least(x.call("log"), -100), operands[0]),
    )
    text, condition = "({1} - 1) * {2} - {1} * {3}", "{0} >= 0 && {0} <= 1"
    losses: Entry = Computed(text, dtype, (*operands, *logarithms), condition=condition)
    if arguments["weight"] is not None:
        losses = Computed("{0} * {1}", dtype, (losses, state.broadcast(arguments["weight"], shape)))
    kept = state.new(shape, dtype)
    state.store(kept, losses)
    state.entries[result] = _reduced(state, kept, shape, arguments["reduction"])


def _binary_cross_entropy_backward(state: Translation, node: Node) -> None:
    arguments, (result,) = bound(node), node.results
    shape, dtype = result.shape, result.dtype
    operands = [state.broadcast(arguments[name], shape) for name in ("grad_output", "self", "target")]
    least = computed(lambda x: _at_least((1 - x) * x, _LEAST), operands[1])
    entry: Entry = Computed("{0} * ({1} - {2}) / {3}", dtype, (*operands, least))
    if arguments["weight"] is not None:
        entry = Computed("{0} * {1}", dtype, (entry, state.broadcast(arguments["weight"], shape)))
    if arguments["reduction"] == _MEAN:
        entry = Computed("{0} / {1}", dtype, (entry, number(prod(shape), dtype)))
    state.define(result, entry)


# ---------------------------------------------------------------- negative log likelihood


def _positions(shape: Sequence[int]) -> Position:
    """The number of the class at each position."""
    return Position(Layout(tuple(shape), (0,) * (len(shape) - 1) + (1,)))


def _classes(state: Translation, target: Value, shape: Sequence[int]) -> Entry:
    """The right class at every position."""
    layout = state.stored(target).layout.reshape((*shape[:-1], 1))
    assert layout is not None
    return Read(state.stored(target).buffer, layout.expand(shape))


def _likelihood(state: Translation, node: Node) -> None:
    arguments, (result, total) = bound(node), node.outputs
    source, target, ignored = arguments["self"], arguments["target"], number(arguments["ignore_index"], "int64")
    shape, dtype, last = source.shape, source.dtype, len(source.shape) - 1
    operands = (state.entries[source], _classes(state, target, shape), _positions(shape))
    picked = reduce_into(state, "sum", Computed("{1} == {2} ? -{0} : 0", dtype, operands), shape, (last,))
    numbers = state.stored(target)
    classes = number(shape[last], "int64")
    condition = "{1} == {2} || ({1} >= 0 && {1} < {3})"
    losses = state.new(target.shape, dtype)
    entry = Computed("{1} == {2} ? 0 : {0}", dtype, (picked, numbers, ignored, classes), condition=condition)
    state.store(losses, entry)
    axes = tuple(range(len(target.shape)))
    # A gradient may need the weight alone, and has to refuse what the loss does.
    is_class = "{0} == {1} || ({0} >= 0 && {0} < {2})"
    counted = state.new(target.shape, dtype)
    is_counted = Computed("{0} != {1}", "bool", (numbers, ignored, classes), condition=is_class)
    state.store(counted, cast(is_counted, dtype))
    weight = reduce_into(state, "sum", counted, target.shape, axes)
    if total is not None:
        is_known = arguments["reduction"] != _NONE or len(shape) == 1  # PyTorch leaves it at zero otherwise
        state.entries[total] = weight if is_known else number(0, dtype)
    if result is not None:
        found = losses if arguments["reduction"] == _NONE else reduce_into(state, "sum", losses, target.shape, axes)
        is_mean = arguments["reduction"] == _MEAN
        state.entries[result] = Computed("{0} / {1}", dtype, (found, weight)) if is_mean else found


def _likelihood_backward(state: Translation, node: Node) -> None:
    arguments, (result,) = bound(node), node.results
    shape, dtype = result.shape, result.dtype
    reduction, ignored = arguments["reduction"], number(arguments["ignore_index"], "int64")
    gradient: Entry
    if reduction == _NONE:
        stored = state.stored(arguments["grad_output"])
        layout = stored.layout.reshape((*shape[:-1], 1))
        assert layout is not None
        gradient = Read(stored.buffer, layout.expand(shape))
    else:
        gradient = state.broadcast(arguments["grad_output"], shape)
    if reduction == _MEAN:
        gradient = Computed("{0} / {1}", dtype, (gradient, state.broadcast(arguments["total_weight"], shape)))
    target = _classes(state, arguments["target"], shape)
    operands = (gradient, target, _positions(shape), ignored, number(shape[-1], "int64"))
    condition = "" if reduction == _MEAN else "{1} == {3} || ({1} >= 0 && {1} < {4})"  # else the weight has refused
    state.define(result, Computed("{1} == {2} && {1} != {3} ? -{0} : 0", dtype, operands, condition=condition))


def _covers_likelihood(node: Node) -> bool:
    arguments = bound(node)
    scores, target = arguments["self"], arguments["target"]
    is_plain = arguments["weight"] is None and len(scores.shape) in (1, 2) and target.dtype == "int64"
    return is_plain and scores.dtype in FLOATS and scores.shape[-1] <= MOST_CLASSES


LOSSES: Mapping[str, Rule] = {
    "aten.binary_cross_entropy.default": _binary_cross_entropy,
    "aten.binary_cross_entropy_backward.default": _binary_cross_entropy_backward,
    "aten.nll_loss_forward.default": _likelihood,
    "aten.nll_loss_backward.default": _likelihood_backward,
}
COVERED_LOSSES: Mapping[str, Callable[[Node], bool]] = {
    op: _covers_likelihood if "nll" in op else is_float for op in LOSSES
}
