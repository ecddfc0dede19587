"""Labels and index maps: where in a tensor an entry lies, as a function of labels.

A *label* is a bound index with a size.  An *index* says which position along one axis is meant:

    Axis(offset, ((label, stride), …))      offset + Σ stride · label         (δ, reshape, slice, flip, select, pad …)
    Lookup(table, (index, …))               table[index, …]                   (gather, sort, max, embedding)

An axis is *plain* when it is one label that runs over all of it.  The extent of an axis is kept by whoever holds it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import gcd

from .graph import Value

CANONICAL = 1000  # labels of canonical forms are numbered below; a fresh label must never be one of them
_ids = count(CANONICAL)


@dataclass(frozen=True, slots=True)
class Label:
    """A bound index that runs over range(size)."""

    id: int
    size: int

    def __repr__(self) -> str:
        return f"{_letter(self.id)}"


@dataclass(frozen=True, slots=True)
class Axis:
    """The position `offset + Σ stride · label`."""

    offset: int
    parts: tuple[tuple[Label, int], ...] = ()

    def __repr__(self) -> str:
        terms = [repr(label) if stride == 1 else f"{stride}{label!r}" for label, stride in self.parts]
        return "+".join(([str(self.offset)] if self.offset or not terms else []) + terms)


@dataclass(frozen=True, slots=True)
class Lookup:
    """The position that an integer tensor holds."""

    table: Value
    axes: tuple["Index", ...]

    def __repr__(self) -> str:
        return f"{self.table.name}[{', '.join(map(repr, self.axes))}]"


Index = Axis | Lookup
Indices = tuple[Index, ...]


class Unresolvable(Exception):
    """Two index maps meet in a way that has no closed form here; the caller makes one of them dense."""


class Disjoint(Exception):
    """Two index maps never meet: their product is zero."""


def fresh(size: int) -> Label:
    """A label that occurs nowhere else."""
    return Label(next(_ids), size)


def plain(size: int) -> Axis:
    """A whole axis of its own; an axis of size 1 needs no label."""
    return Axis(0) if size == 1 else Axis(0, ((fresh(size), 1),))


def plain_axes(shape: Iterable[int]) -> tuple[Axis, ...]:
    """Whole axes, each with a label of its own."""
    return tuple(plain(size) for size in shape)


def of_label(label: Label) -> Axis:
    """The axis over which one label runs."""
    return Axis(0) if label.size == 1 else Axis(0, ((label, 1),))


def whole_label(index: Index, extent: int) -> Label | None:
    """The label of a plain axis, or None if the axis is anything else."""
    if isinstance(index, Axis) and index.offset == 0 and len(index.parts) == 1:
        label, stride = index.parts[0]
        if stride == 1 and label.size == extent:
            return label
    return None


def is_whole(indices: Indices, shape: tuple[int, ...]) -> bool:
    """Whether every axis is plain (or of size 1) and no label is used twice."""
    labels = [whole_label(i, n) for i, n in zip(indices, shape, strict=True) if n != 1 or isinstance(i, Lookup)]
    return None not in labels and len(set(labels)) == len(labels)


def labels_of(indices: Iterable[Index]) -> Iterator[Label]:
    """Every label, in order of occurrence, with repetitions."""
    for index in indices:
        if isinstance(index, Axis):
            for label, _ in index.parts:
                yield label
        else:
            yield from labels_of(index.axes)


def tables_of(indices: Iterable[Index]) -> Iterator[Value]:
    """Every integer tensor that the indices look positions up in."""
    for index in indices:
        if isinstance(index, Lookup):
            yield index.table
            yield from tables_of(index.axes)


def substitute(index: Index, mapping: Mapping[Label, Index]) -> Index:
    """Replace labels by index maps.  Raises Unresolvable where a look-up would have to be scaled or shifted."""
    if isinstance(index, Lookup):
        return Lookup(index.table, tuple(substitute(a, mapping) for a in index.axes))
    if not any(label in mapping for label, _ in index.parts):
        return index
    offset, parts = index.offset, []
    for label, stride in index.parts:
        new = mapping.get(label)
        if new is None:
            parts.append((label, stride))
        elif isinstance(new, Axis):
            offset += stride * new.offset
            parts += [(inner, stride * s) for inner, s in new.parts]
        elif len(index.parts) == 1 and stride == 1 and index.offset == 0:
            return new
        else:
            raise Unresolvable
    return Axis(offset, _collect(parts))


def normal(index: Index) -> Index:
    """The same positions without labels of size 1, largest stride first: index maps that are equal look equal."""
    if isinstance(index, Lookup):
        return Lookup(index.table, tuple(map(normal, index.axes)))
    parts = [part for part in _collect(index.parts) if part[0].size != 1]
    return Axis(index.offset, tuple(sorted(parts, key=lambda part: (-part[1], -part[0].size, part[0].id))))


def _collect(parts: Iterable[tuple[Label, int]]) -> tuple[tuple[Label, int], ...]:
    """Add up the strides of a label that occurs twice."""
    strides: dict[Label, int] = {}
    for label, stride in parts:
        strides[label] = strides.get(label, 0) + stride
    return tuple((label, stride) for label, stride in strides.items() if stride)


def unify(left: Indices, right: Indices, shape: tuple[int, ...]) -> dict[Label, Index]:
    """The substitution of labels that makes two index maps into the same axes agree.

    Raises:
        Disjoint: they never agree.
        Unresolvable: they agree on a set that is not a box of labels.

    Cost: linear in the number of axes times the number of labels already bound.
    """
    mapping: dict[Label, Index] = {}
    for a, b, extent in zip(left, right, shape, strict=True):
        if extent == 1:  # there is but one position, even for a look-up
            continue
        a, b = normal(substitute(a, mapping)), normal(substitute(b, mapping))
        if a == b:
            continue
        for label, image in _agree(a, b, extent).items():
            image = substitute(image, mapping)  # an image may hold a label that the axis itself has just bound
            if image == of_label(label):
                continue
            if label in set(labels_of([image])):
                raise Unresolvable
            mapping = {known: substitute(old, {label: image}) for known, old in mapping.items()}
            mapping[label] = image
    return mapping


def _agree(a: Index, b: Index, extent: int) -> dict[Label, Index]:
    """The substitution that makes two positions along one axis equal."""
    for one, other in ((a, b), (b, a)):
        label = whole_label(one, extent)
        if label is not None and label not in set(labels_of([other])):
            return {label: other}
    if isinstance(a, Lookup) or isinstance(b, Lookup):
        raise Unresolvable
    if not a.parts:
        return _solve_constant(b, a.offset)
    if not b.parts:
        return _solve_constant(a, b.offset)
    if len(a.parts) == 1 and len(b.parts) == 1:
        return _intersect(a, b)
    return _match_digits(a, b)


def _solve_constant(axis: Axis, position: int) -> dict[Label, Index]:
    """Labels for which a mixed-radix axis hits one position."""
    rest = position - axis.offset
    if any(stride < 0 for _, stride in axis.parts) and len(axis.parts) > 1:
        raise Unresolvable
    solution: dict[Label, Index] = {}
    parts = sorted(axis.parts, key=lambda part: -abs(part[1]))
    for k, (label, stride) in enumerate(parts):
        reach = sum((inner.size - 1) * s for inner, s in parts[k + 1 :])
        if reach >= abs(stride):
            raise Unresolvable
        digit = rest // stride
        if not 0 <= digit < label.size:
            raise Disjoint
        solution[label] = Axis(digit)
        rest -= digit * stride
    if rest:
        raise Disjoint
    return solution


def _intersect(a: Axis, b: Axis) -> dict[Label, Index]:
    """Two arithmetic progressions meet in a third, or nowhere."""
    (la, sa), (lb, sb) = a.parts[0], b.parts[0]
    if la == lb:
        return _fixed_point(la, sa - sb, b.offset - a.offset)
    step = gcd(sa, sb)
    if (b.offset - a.offset) % step:
        raise Disjoint
    ka, kb = sb // step, sa // step  # la = p + ka·t, lb = q + kb·t
    p = ((b.offset - a.offset) // step * pow(sa // step, -1, abs(ka)) % abs(ka)) if abs(ka) > 1 else 0
    q = (a.offset + sa * p - b.offset) // sb
    lows = [_bounds(p, ka, la.size), _bounds(q, kb, lb.size)]
    first, last = max(low for low, _ in lows), min(high for _, high in lows)
    if first > last:
        raise Disjoint
    t = of_label(fresh(last - first + 1))
    shift_a, shift_b = p + ka * first, q + kb * first
    return {la: _scaled(t, shift_a, ka), lb: _scaled(t, shift_b, kb)}


def _scaled(axis: Axis, offset: int, stride: int) -> Axis:
    return Axis(offset, tuple((label, stride) for label, _ in axis.parts))


def _bounds(start: int, step: int, size: int) -> tuple[int, int]:
    """The t for which 0 ≤ start + step·t < size."""
    if step > 0:
        return -(start // step), (size - 1 - start) // step
    return -((size - 1 - start) // -step), start // -step


def _fixed_point(label: Label, stride: int, target: int) -> dict[Label, Index]:
    """The one value of a label where stride · label = target."""
    if stride == 0 or target % stride or not 0 <= target // stride < label.size:
        raise Disjoint
    return {label: Axis(target // stride)}


def _match_digits(a: Axis, b: Axis) -> dict[Label, Index]:
    """Two mixed-radix axes with the same radices agree digit by digit."""
    if a.offset != b.offset:
        raise Unresolvable
    left, right = (sorted(x.parts, key=lambda part: -part[1]) for x in (a, b))
    if [(label.size, s) for label, s in left] != [(label.size, s) for label, s in right] or not is_mixed_radix(left):
        raise Unresolvable
    return {la: of_label(lb) for (la, _), (lb, _) in zip(left, right, strict=True) if la != lb}


def is_mixed_radix(parts: Iterable[tuple[Label, int]]) -> bool:
    """Whether no two settings of the labels give the same position; `parts` with the largest stride first."""
    reach = 0
    for label, stride in reversed(list(parts)):
        if stride <= reach:
            return False
        reach += (label.size - 1) * stride
    return True


def _letter(number: int) -> str:
    letters = "ijklmnpqrstuvwxyzabcdefgh"
    return letters[number % len(letters)] + (str(number // len(letters)) if number >= len(letters) else "")
