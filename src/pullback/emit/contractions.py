"""Lowering of `contract`: a labelled product becomes views, multiplications, sums and matrix products.

Reading a factor turns its index maps into views (slice, select, diagonal, reshape) or, where an index is data, into a
gather. Two factors at a time are then multiplied: element by element when no label is summed, by `mm` or `bmm` when
one is. A sum over all positions up to another is a running sum.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from ..expressions import Contraction
from ..graph import COMPLEX, FLOATING, Value
from ..index import Axis, Label, fresh, labels_of
from ..promotion import as_precise
from ..terms import Factor, Scalar
from .reading import Labelled, align, read_factor
from .tensors import Tensors


def lower_contraction(expression: Contraction, dtype: str, tensors: Tensors) -> Value:
    """The tensor over `expression.axes`, in the given dtype."""
    expression = replace(expression, factors=tuple(_behind_permutation(f, tensors) for f in expression.factors))
    expression = replace(expression, factors=tuple(_floating(f, dtype, tensors) for f in expression.factors))
    expression = _conjugated(expression, tensors)
    expression = _as_wide(expression, dtype, tensors)
    if (product := _elementwise(expression, tensors)) is not None:
        return tensors.cast(product, dtype)
    expression = _with_unit_labels(expression)
    operands = [read_factor(f, tensors) for f in expression.factors]
    masks = [o for o in operands if o.value.dtype == "bool"]
    numbers = [o for o in operands if o.value.dtype != "bool"]
    wanted = expression.labels
    masks, numbers = _scanned(masks, numbers, wanted, tensors)
    late = [m for m in masks if numbers and set(m.labels) <= set(wanted) and not _covering(m, numbers)]
    masks, numbers = _apply_masks([m for m in masks if m not in late], numbers, tensors)
    if not numbers:
        return tensors.reshape(_constant(expression, masks, dtype, tensors), expression.shape)
    numbers = _scaled(numbers, expression.scale, wanted, tensors)
    result = _multiply_all(numbers, set(wanted), wanted, tensors)
    for mask in late:
        result = _choose(mask, result, wanted, tensors)
    return tensors.cast(tensors.reshape(arrange(result, wanted, tensors), expression.shape), dtype)


def _behind_permutation(factor: Factor, tensors: Tensors) -> Factor:
    """The same factor, read off the tensor that its own is a transposition of: one view less."""
    whole, places = tensors.behind_permutation(factor.value)
    return Factor(whole, tuple(factor.axes[places.index(d)] for d in range(len(places))), factor.conj)


def _conjugated(expression: Contraction, tensors: Tensors) -> Contraction:
    """The same product without conjugates of factors; a lone factor's is computed, others' are seen to by products."""
    if not any(f.conj for f in expression.factors):
        return expression
    lazy = len(expression.factors) > 1
    factors = (Factor(tensors.conjugate(f.value, lazy), f.axes) if f.conj else f for f in expression.factors)
    return replace(expression, factors=tuple(factors))


def _floating(factor: Factor, dtype: str, tensors: Tensors) -> Factor:
    """Integers in the result's dtype: times a number they would else become the default dtype."""
    if factor.value.dtype in FLOATING or factor.value.dtype in COMPLEX or factor.value.dtype == "bool":
        return factor
    return replace(factor, value=tensors.cast(factor.value, dtype))


def _as_wide(expression: Contraction, dtype: str, tensors: Tensors) -> Contraction:
    """Tensors of less precision than the result are widened where PyTorch would round to what they have."""
    precise = [as_precise(f.value.dtype, dtype) for f in expression.factors]
    narrow = [f for f, wide in zip(expression.factors, precise, strict=True) if wide != f.value.dtype]
    others = [f for f in expression.factors if f not in narrow and f.value.dtype != "bool"]
    if not narrow or not _rounds(expression, narrow, others):
        return expression
    factors = zip(expression.factors, precise, strict=True)
    return replace(expression, factors=tuple(replace(f, value=tensors.cast(f.value, wide)) for f, wide in factors))


def _rounds(expression: Contraction, narrow: Sequence[Factor], others: Sequence[Factor]) -> bool:
    """Whether narrow tensors meet numbers, each other, a sum, or what has no axes by then: all else is wide at once."""
    if len(narrow) > 1 or len(others) > 1 or abs(expression.scale) != 1:
        return True
    covering = set(labels_of(others[0].axes)) if others else set(expression.labels)
    return not set(labels_of(narrow[0].axes)) <= covering


def _elementwise(expression: Contraction, tensors: Tensors) -> Value | None:
    """The product, if every factor broadcasts against the result as it is; else None."""
    axes, shape = expression.axes, expression.shape
    masks = [f.value for f in expression.factors if f.value.dtype == "bool"]
    numbers = [f.value for f in expression.factors if f.value.dtype != "bool"]
    if not numbers or not all(_broadcasts(f, axes, shape) for f in expression.factors):
        return None
    if len(numbers) > 1 and any(v.shape == shape and tensors.is_turned(v) for v in numbers):
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


def _with_unit_labels(expression: Contraction) -> Contraction:
    """Labels of size 1 for the result's axes of size 1: a factor's own such axis need not be dropped, then."""
    axes, factors = list(expression.axes), list(expression.factors)
    for position in (k for k, axis in enumerate(axes) if not axis.parts):
        place = next(((k, d) for k, f in enumerate(factors) for d in _unit_axes(f)), None)
        if place is None:
            break
        number, dim = place
        axes[position] = Axis(0, ((fresh(1), 1),))
        factor = factors[number]
        factors[number] = replace(factor, axes=(*factor.axes[:dim], axes[position], *factor.axes[dim + 1 :]))
    return replace(expression, axes=tuple(axes), factors=tuple(factors))


def _unit_axes(factor: Factor) -> list[int]:
    """The axes of size 1 that no label runs over."""
    return [d for d, (i, n) in enumerate(zip(factor.axes, factor.value.shape, strict=True)) if n == 1 and i == Axis(0)]


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
        covering = _covering(mask, numbers)
        if not covering:
            dtype = numbers[0].value.dtype
            numbers = [*numbers, Labelled(tensors.masked(mask.value, 1.0, dtype), mask.labels)]
            continue
        best = min(covering, key=lambda k: numbers[k].elements)
        target = numbers[best]
        chosen = tensors.masked(align(mask, target.labels, tensors), target.value, target.value.dtype)
        numbers = [*numbers[:best], Labelled(chosen, target.labels), *numbers[best + 1 :]]
    return [], numbers


def _covering(mask: Labelled, numbers: Sequence[Labelled]) -> list[int]:
    """Which factors have all labels of a mask."""
    return [k for k, n in enumerate(numbers) if set(mask.labels) <= set(n.labels)]


def _choose(mask: Labelled, product: Labelled, wanted: Sequence[Label], tensors: Tensors) -> Labelled:
    """A product where a mask holds: as a factor, the mask would not rid it of what is not a number elsewhere."""
    order = tuple(_in_order({*mask.labels, *product.labels}, wanted))
    value = align(product, order, tensors)
    return Labelled(tensors.masked(align(mask, order, tensors), value, value.dtype), order)


def _scanned(
    masks: list[Labelled], numbers: list[Labelled], wanted: Sequence[Label], tensors: Tensors
) -> tuple[list[Labelled], list[Labelled]]:
    """A sum over all positions up to (or from) another is a running sum: O(n), where the mask has n² entries."""
    for step in (o for o in (*masks, *numbers) if len(o.labels) == 2 and _is_step(o.value, tensors)):
        rest = [[o for o in operands if o is not step] for operands in (masks, numbers)]
        elsewhere = {label for o in (*rest[0], *rest[1]) for label in o.labels}
        for summed, bound in (step.labels, step.labels[::-1]):
            if summed in wanted or bound in elsewhere or not any(summed in n.labels for n in rest[1]):
                continue
            kept = (*(label for label in wanted if label != bound), summed)
            product = _multiply_all(_apply_masks(rest[0], rest[1], tensors)[1], set(kept), kept, tensors)
            place = product.labels.index(summed)
            running = tensors.running_sum(product.value, place, backwards=summed == step.labels[0])
            return [], [Labelled(running, (*product.labels[:place], bound, *product.labels[place + 1 :]))]
    return masks, numbers


def _is_step(value: Value, tensors: Tensors) -> bool:
    """Whether an entry [k, j] says that j ≤ k, as a mask or as a number."""
    made = tensors.builder.producer.get(value)
    if made is not None and made.op == "aten._to_copy.default" and made.inputs[0].dtype == "bool":
        return _is_step(made.inputs[0], tensors)
    if made is not None and made.op == "aten.masked_fill.Scalar" and made.args[2] == 1.0:
        return _is_zero(made.inputs[0], tensors) and _is_step(made.inputs[1], tensors)
    if made is None or made.op != "aten.le.Tensor" or len(made.inputs) != 2:
        return False
    columns, rows = made.inputs
    numbers, view = (tensors.builder.producer.get(v) for v in (columns, rows))
    if numbers is None or numbers.op != "aten.arange.default" or len(numbers.args) != 1:
        return False
    return view is not None and view.inputs == (columns,) and rows.shape == (*columns.shape, 1)


def _is_zero(value: Value, tensors: Tensors) -> bool:
    made = tensors.builder.producer.get(value)
    return made is not None and made.op == "aten.zeros.default"


def _scaled(numbers: list[Labelled], scale: Scalar, wanted: Sequence[Label], tensors: Tensors) -> list[Labelled]:
    """The scale is multiplied into the smallest factor."""
    if scale == 1:
        return numbers
    smallest = min(range(len(numbers)), key=lambda k: numbers[k].elements)
    if len(numbers) == 1 and numbers[0].elements > prod(label.size for label in set(wanted) & set(numbers[0].labels)):
        numbers = [sum_out(numbers[0], set(wanted), tensors)]
    target = numbers[smallest]
    return [*numbers[:smallest], Labelled(tensors.scale(target.value, scale), target.labels), *numbers[smallest + 1 :]]


# ---------------------------------------------------------------- products


def _multiply_all(operands: list[Labelled], kept: set[Label], wanted: Sequence[Label], tensors: Tensors) -> Labelled:
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
        order = _as_in_memory(a, b, tensors) or tuple(_in_order({*a.labels, *b.labels}, wanted))
        product = Labelled(tensors.multiply(align(a, order, tensors), align(b, order, tensors)), order)
        return sum_out(product, kept, tensors)
    return _matrix_product(a, b, (batch, left, summed, right), wanted, tensors)


def _as_in_memory(a: Labelled, b: Labelled, tensors: Tensors) -> tuple[Label, ...] | None:
    """The labels of the one operand that has all of them, in the order in which it lies in memory."""
    large, small = (a, b) if a.elements >= b.elements else (b, a)
    if not set(small.labels) <= set(large.labels):
        return None
    _, places = tensors.behind_permutation(large.value)
    return tuple(label for _, label in sorted(zip(places, large.labels, strict=True), key=lambda pair: pair[0]))


def _first_own(operand: Labelled, other: Labelled, wanted: Sequence[Label]) -> int:
    """Where the first label that this operand alone brings to the result stands in the wanted order."""
    own = set(operand.labels) - set(other.labels)
    return min((k for k, label in enumerate(wanted) if label in own), default=len(wanted))


def _in_order(labels: set[Label], wanted: Sequence[Label]) -> list[Label]:
    place = {label: k for k, label in enumerate(wanted)}
    return sorted(labels, key=lambda label: (place.get(label, len(place)), label.id))


def _matrix_product(
    a: Labelled,
    b: Labelled,
    groups: tuple[list[Label], list[Label], list[Label], list[Label]],
    wanted: Sequence[Label],
    tensors: Tensors,
) -> Labelled:
    """`dot`, `mv`, `mm` or `bmm` over flattened groups of labels (batch, left, summed, right)."""
    batch, left, summed, right = groups
    if not batch and not left:
        a, b, left, right = b, a, right, left
    if not batch and left and right:
        outer = _outside(a, summed, tensors)
        if outer and _pays(a, b, outer):
            return _repeated_product(
                a, b, (outer, [label for label in left if label not in outer], summed, right), wanted, tensors
            )
    if not batch and not right:
        matrix = flatten(a, [left, summed] if left else [summed], tensors)
        result = tensors.matmul(matrix, flatten(b, [summed], tensors))
    elif not batch:
        result = tensors.matmul(flatten(a, [left, summed], tensors), flatten(b, [summed, right], tensors))
    else:
        result = tensors.matmul(flatten(a, [batch, left, summed], tensors), flatten(b, [batch, summed, right], tensors))
    order = (*batch, *left, *right)
    return Labelled(tensors.reshape(result, [label.size for label in order]), order)


def _outside(operand: Labelled, summed: Sequence[Label], tensors: Tensors) -> list[Label]:
    """The labels that lie in memory outside of those that are summed, if others lie inside: no matrix, but many."""
    whole, places = tensors.behind_permutation(operand.value)
    in_memory = [operand.labels[places.index(d)] for d in range(len(whole.shape))]
    first = min(in_memory.index(label) for label in summed)
    run = in_memory[first : first + len(summed)]
    is_between = set(run) == set(summed) and 0 < first < len(in_memory) - len(summed)
    return in_memory[:first] if is_between else []


def _pays(a: Labelled, b: Labelled, outer: Sequence[Label]) -> bool:
    """Whether to multiply many matrices by one costs less than to copy them into one first."""
    each = a.elements // max(prod(label.size for label in outer), 1)
    return a.elements >= 2**14 and each >= 2**8 and b.elements <= a.elements


def _repeated_product(
    a: Labelled,
    b: Labelled,
    groups: tuple[list[Label], list[Label], list[Label], list[Label]],
    wanted: Sequence[Label],
    tensors: Tensors,
) -> Labelled:
    """`bmm` of many matrices and one that is repeated, which costs no copy."""
    outer, left, summed, right = groups
    many = prod(label.size for label in outer)
    if _first_own(b, a, wanted) < min(list(wanted).index(label) if label in wanted else len(wanted) for label in left):
        matrix = flatten(b, [right, summed], tensors)
        one = tensors.expand(tensors.unsqueeze(matrix, 0), (many, *matrix.shape))
        result, order = tensors.matmul(one, flatten(a, [outer, summed, left], tensors)), (*outer, *right, *left)
    else:
        matrix = flatten(b, [summed, right], tensors)
        one = tensors.expand(tensors.unsqueeze(matrix, 0), (many, *matrix.shape))
        result, order = tensors.matmul(flatten(a, [outer, left, summed], tensors), one), (*outer, *left, *right)
    return Labelled(tensors.reshape(result, [label.size for label in order]), order)


def flatten(operand: Labelled, groups: Sequence[Sequence[Label]], tensors: Tensors) -> Value:
    """A tensor with one axis for each group of labels: a view wherever the labels of each lie side by side."""
    sizes = [prod(label.size for label in group) for group in groups]
    whole, places = tensors.behind_permutation(operand.value)
    axes = [[places[operand.labels.index(label)] for label in group] for group in groups]
    flat = [d for group in axes for d in group]
    in_memory = sorted((k for k, group in enumerate(axes) if group), key=lambda k: axes[k][0])
    if all(axes) and [d for k in in_memory for d in axes[k]] == sorted(flat):  # joined, then turned
        joined = tensors.reshape(whole, [sizes[k] for k in in_memory])
        return tensors.permute(joined, [in_memory.index(k) for k in range(len(groups))])
    return tensors.reshape(tensors.permute(whole, flat), sizes)


def sum_out(operand: Labelled, kept: set[Label], tensors: Tensors) -> Labelled:
    """The operand without the labels that nobody keeps."""
    dims = [d for d, label in enumerate(operand.labels) if label not in kept]
    labels = tuple(label for label in operand.labels if label in kept)
    return Labelled(tensors.sum(operand.value, dims), labels)


def arrange(operand: Labelled, wanted: Sequence[Label], tensors: Tensors) -> Value:
    """The tensor with exactly the wanted axes; labels that it lacks are repeated."""
    return tensors.expand(align(operand, wanted, tensors), [label.size for label in wanted])
