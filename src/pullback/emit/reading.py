"""Reading a factor: index maps become views (slice, select, diagonal, reshape) or, where an index is data, a gather."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ..graph import Value
from ..index import Axis, Index, Label, Lookup, labels_of, whole_label
from ..terms import Factor
from .tensors import Tensors


@dataclass(frozen=True)
class Labelled:
    """A tensor with one distinct label for each of its axes."""

    value: Value
    labels: tuple[Label, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return self.value.size


def read_factor(factor: Factor, tensors: Tensors) -> Labelled:
    """The tensor of a factor with one axis for each of its labels."""
    if all(_is_simple(i, n) for i, n in zip(factor.axes, factor.value.shape, strict=True)):
        return _read_views(factor.value, factor.axes, tensors)
    return _read_gather(factor.value, factor.axes, tensors)


def _is_simple(index: Index, extent: int) -> bool:
    return isinstance(index, Axis) and (len(index.parts) < 2 or run_of(index) is not None)


def run_of(axis: Axis) -> tuple[int, int] | None:
    """The step and the count, if an axis of several labels is `offset + step · k` for each k that they count up."""
    parts = sorted(axis.parts, key=lambda part: -part[1])
    step = count = parts[-1][1]
    for label, stride in reversed(parts):
        if stride != count or stride < 1:
            return None
        count *= label.size
    return step, count // step


def _read_views(value: Value, axes: Sequence[Index], tensors: Tensors) -> Labelled:
    """Split, select and slice each axis; then keep the diagonal of repeated labels."""
    labels: list[Label] = []
    for axis in axes:
        assert isinstance(axis, Axis)
        dim = len(labels)
        if not axis.parts:
            value = tensors.select(value, dim, axis.offset)
        elif len(axis.parts) == 1:
            label, stride = axis.parts[0]
            value = tensors.slice(value, dim, axis.offset, stride, label.size)
            labels.append(label)
        else:
            parts = [label for label, _ in sorted(axis.parts, key=lambda part: -part[1])]
            step, count = run_of(axis) or (1, value.shape[dim])
            value = tensors.slice(value, dim, axis.offset, step, count)
            value = tensors.reshape(value, (*value.shape[:dim], *(s.size for s in parts), *value.shape[dim + 1 :]))
            labels += parts
    return _take_diagonals(value, labels, tensors)


def _take_diagonals(value: Value, labels: list[Label], tensors: Tensors) -> Labelled:
    while len(set(labels)) < len(labels):
        first = next(k for k, label in enumerate(labels) if label in labels[k + 1 :])
        second = labels.index(labels[first], first + 1)
        value = tensors.diagonal(value, first, second)
        labels = [s for k, s in enumerate(labels) if k not in (first, second)] + [labels[first]]
    return Labelled(value, tuple(labels))


def _read_gather(value: Value, axes: Sequence[Index], tensors: Tensors) -> Labelled:
    """Advanced indexing; the axes that are whole and share no label with an indexed one stay as they are."""
    whole = [whole_label(i, n) for i, n in zip(axes, value.shape, strict=True)]
    indexed = [d for d, label in enumerate(whole) if label is None]
    shared = set(labels_of(axes[d] for d in indexed))
    if gathered := _read_along_one_axis(value, axes, tensors):
        return gathered
    repeated = {s for s in whole if s is not None and whole.count(s) > 1}
    indexed = [d for d, label in enumerate(whole) if label is None or label in shared or label in repeated]
    joint = tuple(dict.fromkeys(labels_of(axes[d] for d in indexed)))
    free = [d for d in range(len(axes)) if d not in indexed]
    indices = [position(axes[d], joint, tensors) for d in indexed]
    moved = tensors.permute(value, [*indexed, *free])
    labels = joint + tuple(s for d in free if (s := whole[d]) is not None)
    found = tensors.index(moved, indices)
    shape = [label.size for label in labels]
    if prod(found.shape) != prod(shape):
        found = tensors.expand(found, [*(s.size for s in joint), *(value.shape[d] for d in free)])
    return Labelled(tensors.reshape(found, shape), labels)


def _read_along_one_axis(value: Value, axes: Sequence[Index], tensors: Tensors) -> Labelled | None:
    """`index_select` or `gather`, where one axis is looked up and the others are whole or of size 1."""
    found = one_lookup(axes, value.shape)
    if found is None:
        return None
    if found.by_vector:
        shape = value.shape[: found.dim] + found.table.shape + value.shape[found.dim + 1 :]
        read = tensors.view_of("index_select.default", (value, found.dim, found.table), shape, value)
    else:
        read = tensors.view_of("gather.default", (value, found.dim, found.table), found.table.shape, value)
    return Labelled(tensors.reshape(read, [label.size for label in found.labels]), found.labels)


def position(index: Index, joint: Sequence[Label], tensors: Tensors) -> Value:
    """An index map as an integer tensor that broadcasts over the joint labels."""
    if isinstance(index, Lookup):
        table = read_factor(Factor(index.table, index.axes), tensors)
        return tensors.reshape(align(table, joint, tensors), [s.size if s in table.labels else 1 for s in joint])
    total: Value | None = None
    for label, stride in index.parts:
        offset = index.offset if total is None else 0
        steps = Labelled(tensors.arange(offset, stride, label.size), (label,))
        part = tensors.reshape(steps.value, [s.size if s == label else 1 for s in joint])
        total = part if total is None else tensors.add(total, part)
    if total is None:
        return tensors.reshape(tensors.arange(index.offset, 1, 1), [1] * len(joint))
    return total


@dataclass(frozen=True)
class OneLookup:
    """The case that one axis is looked up in a table and all others are whole (or of size 1).

    by_vector: whether the table is a vector with a label of its own (`index_select`, `index_add`), rather than as
        large as the other axes (`gather`, `scatter_add`).
    labels: the labels of the axes in order, the looked-up one's being that of the table.
    """

    dim: int
    table: Value
    by_vector: bool
    labels: tuple[Label, ...]


def one_lookup(axes: Sequence[Index], shape: Sequence[int]) -> OneLookup | None:
    """The axis that is looked up, if this is the case that ATen has an operator for."""
    whole = [whole_label(i, n) for i, n in zip(axes, shape, strict=True)]
    looked_up = [(d, i) for d, i in enumerate(axes) if isinstance(i, Lookup)]
    others = [label for label in whole if label is not None]
    if len(looked_up) != 1 or len(set(others)) != len(others):
        return None
    (dim, lookup), table = looked_up[0], looked_up[0][1].table
    if table.dtype != "int64" or any(
        w is None and n != 1 for d, (w, n) in enumerate(zip(whole, shape, strict=True)) if d != dim
    ):
        return None
    inner = [whole_label(i, n) for i, n in zip(lookup.axes, table.shape, strict=True)]
    if len(inner) == 1 and inner[0] is not None and inner[0] not in others:
        labels = [inner[0] if d == dim else label for d, label in enumerate(whole)]
        return OneLookup(dim, table, True, tuple(label for label in labels if label is not None))
    if len(inner) != len(axes) or inner[dim] in others or (inner[dim] is None and table.shape[dim] != 1):
        return None
    if any((i is None or i != w) and not n == m == 1 for i, w, n, m in _beside(dim, inner, whole, shape, table.shape)):
        return None
    return OneLookup(dim, table, False, tuple(label for label in inner if label is not None))


def _beside(dim: int, *columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The rows of several columns without that of one axis."""
    return [row for d, row in enumerate(zip(*columns, strict=True)) if d != dim]


def align(operand: Labelled, order: Sequence[Label], tensors: Tensors) -> Value:
    """The tensor with its axes in the order of `order`, and size 1 where it lacks a label."""
    present = [label for label in order if label in operand.labels]
    moved = tensors.permute(operand.value, [operand.labels.index(label) for label in present])
    if len(present) == len(order):
        return moved
    missing_in_front = list(order[len(order) - len(present) :]) == present
    if missing_in_front:
        return moved
    return tensors.reshape(moved, [label.size if label in operand.labels else 1 for label in order])
