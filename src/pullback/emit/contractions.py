"""Lowering of `contract`: a labelled product becomes views, multiplications, sums and matrix products.

Reading a factor turns its index maps into views (slice, select, diagonal, reshape) or, where an index is data, into a
gather.  Two factors at a time are then multiplied: element by element when no label is summed, by `mm` or `bmm` when one is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..expressions import Contraction
from ..graph import Value
from ..index import Axis, Index, Label, Lookup, is_mixed_radix, labels_of, whole_label
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


def lower_contraction(expression: Contraction, dtype: str, tensors: Tensors) -> Value:
    """The tensor over `expression.axes`, in the given dtype."""
    if (product := _elementwise(expression, tensors)) is not None:
        return tensors.cast(product, dtype)
    operands = [read_factor(f, tensors) for f in expression.factors]
    masks = [o for o in operands if o.value.dtype == "bool"]
    numbers = [o for o in operands if o.value.dtype != "bool"]
    wanted = expression.labels
    masks, numbers = _apply_masks(masks, numbers, tensors)
    if not numbers:
        return tensors.reshape(_constant(expression, masks, dtype, tensors), expression.shape)
    numbers = _scaled(numbers, expression.scale, wanted, tensors)
    result = _multiply_all(numbers, set(wanted), wanted, tensors)
    return tensors.cast(tensors.reshape(arrange(result, wanted, tensors), expression.shape), dtype)


def _elementwise(expression: Contraction, tensors: Tensors) -> Value | None:
    """The product, if every factor broadcasts against the result as it is; None if it has to be moved or summed first."""
    axes, shape = expression.axes, expression.shape
    masks = [f.value for f in expression.factors if f.value.dtype == "bool"]
    numbers = [f.value for f in expression.factors if f.value.dtype != "bool"]
    if not numbers or not all(_broadcasts(f, axes, shape) for f in expression.factors):
        return None
    product = tensors.scale(numbers[0], expression.scale)
    for value in numbers[1:]:
        product = tensors.multiply(product, value)
    for mask in masks:
        product = tensors.masked(mask, product, product.dtype)
    return tensors.expand(product, shape) if product.shape != shape else product


def _broadcasts(factor: Factor, axes: Sequence[Axis], shape: Sequence[int]) -> bool:
    rank = len(factor.axes)
    if rank > len(axes):
        return False
    own = zip(factor.axes, factor.value.shape, axes[len(axes) - rank :], shape[len(axes) - rank :], strict=True)
    return all(n == 1 or (index == axis and n == m) for index, n, axis, m in own)


def _constant(expression: Contraction, masks: list[Labelled], dtype: str, tensors: Tensors) -> Value:
    """A product without any numeric tensor: a number, where the masks hold."""
    shape = tuple(label.size for label in expression.labels)
    if not masks:
        return tensors.full(shape, expression.scale, dtype)
    first, *rest = (Labelled(tensors.masked(m.value, 1.0, dtype), m.labels) for m in masks)
    numbers = _scaled([first, *rest], expression.scale, expression.labels, tensors)
    result = _multiply_all(numbers, set(expression.labels), expression.labels, tensors)
    return arrange(result, expression.labels, tensors)


def _apply_masks(
    masks: list[Labelled], numbers: list[Labelled], tensors: Tensors
) -> tuple[list[Labelled], list[Labelled]]:
    """A mask is laid on the smallest factor that has all its labels; where none has, it becomes a factor of its own."""
    if not numbers:
        return masks, numbers
    for mask in masks:
        covering = [k for k, n in enumerate(numbers) if set(mask.labels) <= set(n.labels)]
        if not covering:
            dtype = numbers[0].value.dtype
            numbers = [*numbers, Labelled(tensors.masked(mask.value, 1.0, dtype), mask.labels)]
            continue
        best = min(covering, key=lambda k: numbers[k].elements)
        target = numbers[best]
        chosen = tensors.masked(align(mask, target.labels, tensors), target.value, target.value.dtype)
        numbers = [*numbers[:best], Labelled(chosen, target.labels), *numbers[best + 1 :]]
    return [], numbers


def _scaled(numbers: list[Labelled], scale: float | int, wanted: Sequence[Label], tensors: Tensors) -> list[Labelled]:
    """The scale is multiplied into the smallest factor."""
    if scale == 1:
        return numbers
    smallest = min(range(len(numbers)), key=lambda k: numbers[k].elements)
    if len(numbers) == 1 and numbers[0].elements > prod(label.size for label in set(wanted) & set(numbers[0].labels)):
        numbers = [sum_out(numbers[0], set(wanted), tensors)]
    target = numbers[smallest]
    return [*numbers[:smallest], Labelled(tensors.scale(target.value, scale), target.labels), *numbers[smallest + 1 :]]


# ---------------------------------------------------------------- products


def _multiply_all(
    operands: list[Labelled], kept: set[Label], wanted: Sequence[Label], tensors: Tensors
) -> Labelled:
    """Multiply pair after pair, the cheapest pair first; labels are summed as soon as nothing else needs them."""
    operands = list(operands)
    while True:
        operands = [sum_out(o, _needed(operands, k, kept), tensors) for k, o in enumerate(operands)]
        if len(operands) == 1:
            return operands[0]
        first, second = _cheapest_pair(operands, kept)
        rest = [o for k, o in enumerate(operands) if k not in (first, second)]
        still = kept.union(*(o.labels for o in rest)) if rest else kept
        operands = [*rest, multiply(operands[first], operands[second], still, wanted, tensors)]


def _needed(operands: Sequence[Labelled], position: int, kept: set[Label]) -> set[Label]:
    return kept.union(*(o.labels for k, o in enumerate(operands) if k != position))


def _cheapest_pair(operands: Sequence[Labelled], kept: set[Label]) -> tuple[int, int]:
    def cost(pair: tuple[int, int]) -> tuple[int, int]:
        a, b = (set(operands[k].labels) for k in pair)
        others = kept.union(*(o.labels for k, o in enumerate(operands) if k not in pair))
        return prod(s.size for s in a | b), prod(s.size for s in (a | b) & others)

    pairs = [(i, j) for j in range(len(operands)) for i in range(j)]
    return min(pairs, key=cost)


def multiply(a: Labelled, b: Labelled, kept: set[Label], wanted: Sequence[Label], tensors: Tensors) -> Labelled:
    """The product of two tensors, summed over the labels that they share and nobody keeps."""
    if _first_own(b, a, wanted) < _first_own(a, b, wanted):
        a, b = b, a
    shared = [label for label in a.labels if label in b.labels]
    summed = [label for label in shared if label not in kept]
    batch = [label for label in shared if label in kept]
    left = [label for label in a.labels if label not in shared]
    right = [label for label in b.labels if label not in shared]
    if not summed or not (left or right or not batch):
        order = tuple(_in_order({*a.labels, *b.labels}, wanted))
        product = Labelled(tensors.multiply(align(a, order, tensors), align(b, order, tensors)), order)
        return sum_out(product, kept, tensors)
    return _matrix_product(a, b, (batch, left, summed, right), tensors)


def _first_own(operand: Labelled, other: Labelled, wanted: Sequence[Label]) -> int:
    """Where the first label that this operand alone brings to the result stands in the wanted order."""
    own = set(operand.labels) - set(other.labels)
    return min((k for k, label in enumerate(wanted) if label in own), default=len(wanted))


def _in_order(labels: set[Label], wanted: Sequence[Label]) -> list[Label]:
    place = {label: k for k, label in enumerate(wanted)}
    return sorted(labels, key=lambda label: (place.get(label, len(place)), label.id))


def _matrix_product(
    a: Labelled, b: Labelled, groups: tuple[list[Label], list[Label], list[Label], list[Label]], tensors: Tensors
) -> Labelled:
    """`dot`, `mv`, `mm` or `bmm` over flattened groups of labels (batch, left, summed, right)."""
    batch, left, summed, right = groups
    if not batch and not left:
        a, b, left, right = b, a, right, left
    if not batch and not right:
        matrix = flatten(a, [left, summed] if left else [summed], tensors)
        result = tensors.matmul(matrix, flatten(b, [summed], tensors))
    elif not batch:
        result = tensors.matmul(flatten(a, [left, summed], tensors), flatten(b, [summed, right], tensors))
    else:
        result = tensors.matmul(
            flatten(a, [batch, left, summed], tensors), flatten(b, [batch, summed, right], tensors)
        )
    order = (*batch, *left, *right)
    return Labelled(tensors.reshape(result, [label.size for label in order]), order)


def flatten(operand: Labelled, groups: Sequence[Sequence[Label]], tensors: Tensors) -> Value:
    """A tensor with one axis for each group of labels."""
    order = [label for group in groups for label in group]
    moved = tensors.permute(operand.value, [operand.labels.index(label) for label in order])
    return tensors.reshape(moved, [prod(label.size for label in group) for group in groups])


def sum_out(operand: Labelled, kept: set[Label], tensors: Tensors) -> Labelled:
    """The operand without the labels that nobody keeps."""
    dims = [d for d, label in enumerate(operand.labels) if label not in kept]
    labels = tuple(label for label in operand.labels if label in kept)
    return Labelled(tensors.sum(operand.value, dims), labels)


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


def arrange(operand: Labelled, wanted: Sequence[Label], tensors: Tensors) -> Value:
    """The tensor with exactly the wanted axes; labels that it lacks are repeated."""
    return tensors.expand(align(operand, wanted, tensors), [label.size for label in wanted])


# ---------------------------------------------------------------- reading


def read_factor(factor: Factor, tensors: Tensors) -> Labelled:
    """The tensor of a factor with one axis for each of its labels."""
    if all(_is_simple(i, n) for i, n in zip(factor.axes, factor.value.shape, strict=True)):
        return _read_views(factor.value, factor.axes, tensors)
    return _read_gather(factor.value, factor.axes, tensors)


def _is_simple(index: Index, extent: int) -> bool:
    return isinstance(index, Axis) and (len(index.parts) < 2 or is_split(index, extent))


def is_split(axis: Axis, extent: int) -> bool:
    """Whether an axis is its labels' mixed-radix number, and nothing of it is left out."""
    parts = sorted(axis.parts, key=lambda part: -part[1])
    whole = prod(label.size for label, _ in parts) == extent
    return axis.offset == 0 and whole and is_mixed_radix(parts) and (not parts or parts[-1][1] == 1)


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
    if gathered := _read_along_one_axis(value, axes, indexed, whole, tensors):
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


def _read_along_one_axis(
    value: Value, axes: Sequence[Index], indexed: list[int], whole: list[Label | None], tensors: Tensors
) -> Labelled | None:
    """`index_select` or `gather`, where one axis is looked up and the others are whole or of size 1."""
    looked_up = [d for d in indexed if isinstance(axes[d], Lookup)]
    others = [s for s in whole if s is not None]
    if len(looked_up) != 1 or any(value.shape[d] != 1 for d in indexed if d not in looked_up):
        return None
    dim = looked_up[0]
    lookup = axes[dim]
    assert isinstance(lookup, Lookup)
    inner = [whole_label(i, n) for i, n in zip(lookup.axes, lookup.table.shape, strict=True)]
    if len(set(others)) != len(others) or lookup.table.dtype != "int64":
        return None
    if len(inner) == 1 and inner[0] is not None and inner[0] not in others:
        shape = value.shape[:dim] + lookup.table.shape + value.shape[dim + 1 :]
        found = tensors._view("index_select.default", (value, dim, lookup.table), shape, value)
        labels = tuple(s for d, s in enumerate(whole) if d == dim or s is not None for s in [inner[0] if d == dim else s])
        return Labelled(tensors.reshape(found, [s.size for s in labels]), labels)
    fits = len(inner) == len(axes) and all(
        (i == w and i is not None) or (d == dim) or (value.shape[d] == lookup.table.shape[d] == 1)
        for d, (i, w) in enumerate(zip(inner, whole, strict=True))
    )
    if not fits or (inner[dim] is None and lookup.table.shape[dim] != 1) or inner[dim] in others:
        return None
    found = tensors._view("gather.default", (value, dim, lookup.table), lookup.table.shape, value)
    labels = tuple(s for s in inner if s is not None)
    return Labelled(tensors.reshape(found, [s.size for s in labels]), labels)


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
