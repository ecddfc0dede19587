"""Lowering of `place`: a payload is put into a tensor of zeros at the positions that its labels say.

Whole axes are a transposition and a reshape. What is left out of an axis (the transpose of a slice), what is repeated
(the transpose of a diagonal) and what is data (the transpose of a gather) each have an ATen operator; anything else
is added up by flat positions.
"""

from collections.abc import Sequence
from math import prod

from ..expressions import Placement
from ..graph import Value
from ..index import Axis, Index, Label, whole_label
from .reading import Labelled, align, one_lookup, position, run_of
from .tensors import Tensors


def lower_placement(placement: Placement, shape: tuple[int, ...], tensors: Tensors) -> Value:
    """The tensor of the given shape."""
    source = Labelled(placement.value, placement.labels)
    if all(isinstance(i, Axis) and _is_placeable(i) for i in placement.axes):
        return _place_views(source, placement.axes, shape, tensors)
    found = _scatter_along_one_axis(source, placement.axes, shape, tensors)
    return _add_flat(source, placement.axes, shape, tensors) if found is None else found


def _is_placeable(axis: Axis) -> bool:
    return len(axis.parts) < 2 or run_of(axis) is not None


def _place_views(source: Labelled, axes: Sequence[Index], shape: tuple[int, ...], tensors: Tensors) -> Value:
    """An axis for each occurrence of a label, joined to the axes asked for; partial axes are filled up with zeros."""
    digits = [[label for label, _ in sorted(_axis(i).parts, key=lambda part: -part[1])] for i in axes]
    occurrences = [label for own in digits for label in own]
    first_of_each = list(dict.fromkeys(occurrences))
    value = _spread_diagonals(align(source, first_of_each, tensors), first_of_each, occurrences, tensors)
    value = tensors.reshape(value, [prod(label.size for label in own) for own in digits])
    for dim, axis in enumerate(axes):
        value = _fill_up(value, dim, _axis(axis), shape[dim], tensors)
    return value


def _axis(index: Index) -> Axis:
    assert isinstance(index, Axis)
    return index


def _spread_diagonals(value: Value, labels: list[Label], occurrences: Sequence[Label], tensors: Tensors) -> Value:
    """Insert an axis for each further occurrence of a label, non-zero only where it agrees with the first."""
    labels = list(labels)
    for dim, label in enumerate(occurrences):
        if dim < len(labels) and labels[dim] == label:
            continue
        first = labels.index(label)
        last = tensors.permute(value, [*(d for d in range(len(labels)) if d != first), first])
        sizes = value.shape[:dim] + (label.size,) + value.shape[dim:]
        value = tensors.view_of("diagonal_backward.default", (last, sizes, 0, first, dim), sizes, value)
        labels.insert(dim, label)
    return value


def _fill_up(value: Value, dim: int, axis: Axis, extent: int, tensors: Tensors) -> Value:
    """Zeros where an axis has positions that no label reaches."""
    if value.shape[dim] == extent and (not axis.parts or whole_label(axis, extent) or len(axis.parts) > 1):
        return value
    sizes = value.shape[:dim] + (extent,) + value.shape[dim + 1 :]
    if not axis.parts:
        flat = tensors.squeeze(value, dim)
        return tensors.view_of("select_backward.default", (flat, sizes, dim, axis.offset), sizes, value)
    start, count = axis.offset, value.shape[dim]
    stride = min((s for _, s in axis.parts), key=abs)
    if stride < 0:
        value, start, stride = tensors.flip(value, dim), axis.offset + stride * (count - 1), -stride
    if count == extent:
        return value
    stop = start + stride * (count - 1) + 1
    return tensors.view_of("slice_backward.default", (value, sizes, dim, start, stop, stride), sizes, value)


def _scatter_along_one_axis(
    source: Labelled, axes: Sequence[Index], shape: tuple[int, ...], tensors: Tensors
) -> Value | None:
    """`index_add` or `scatter_add`, where one axis is looked up and the others are whole or of size 1."""
    found = one_lookup(axes, shape)
    if found is None:
        return None
    zeros = tensors.full(shape, 0, source.value.dtype)
    laid = align(source, found.labels, tensors)
    if found.by_vector:
        sizes = shape[: found.dim] + found.table.shape + shape[found.dim + 1 :]
        args = (zeros, found.dim, found.table, tensors.reshape(laid, sizes))
        return tensors.view_of("index_add.default", args, shape, source.value)
    args = (zeros, found.dim, found.table, tensors.reshape(laid, found.table.shape))
    return tensors.view_of("scatter_add.default", args, shape, source.value)


def _add_flat(source: Labelled, axes: Sequence[Index], shape: tuple[int, ...], tensors: Tensors) -> Value:
    """Add every element at its position in the flattened result: always possible, never fast."""
    flat: Value | None = None
    for dim, index in enumerate(axes):
        stride = prod(shape[dim + 1 :])
        where = position(index, source.labels, tensors)
        scaled = where if stride == 1 else tensors.pointwise("mul.Tensor", where, stride)
        flat = scaled if flat is None else tensors.add(flat, scaled)
    assert flat is not None
    flat = tensors.expand(flat, [label.size for label in source.labels])
    zeros = tensors.full((prod(shape),), 0, source.value.dtype)
    flat, values = tensors.reshape(flat, (source.elements,)), tensors.reshape(source.value, (source.elements,))
    added = tensors.view_of("index_add.default", (zeros, 0, flat, values), zeros.shape, source.value)
    return tensors.reshape(added, shape)
