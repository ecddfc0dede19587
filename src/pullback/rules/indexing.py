"""Indexing with tensors, and writing into a tensor: out-of-place forms of x[i] and x[i] = v.

Positions that are data are look-ups: y[i] = x[table[i]].  Where something is overwritten, its own derivative is cut by
a mask; where the same place is written twice, every writer gets the derivative, as in PyTorch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import MissingRuleError
from ..expressions import Symbol, broadcast
from ..index import Axis, Index, Indices, Lookup, plain_axes
from ..terms import Part, Scalar, Term
from .formulas import axis, positions, tensor, truth, view
from .kinds import B, Function, I, IndexMap, Rule, Sample, T, broadcast_axes, replaced
from .views import diagonal, one_of, sliced

Parts = Mapping[int, Sequence[Part]]
Image = tuple[Indices, Indices]
MASKS = ("bool", "uint8")  # the dtypes of index tensors that are masks
SELF, SOURCE = 0, 2  # numbers of the operands; operand 1 is the index
LARGEST_LIST = 2**20  # positions that are listed: 8 MiB
X, CUBE, TALL = T(2, 3), T(2, 3, 4), T(5, 2)

# ---------------------------------------------------------------- reading


def gathered(x: Symbol, dim: int, index: Symbol, *_: Any, **__: Any) -> Image:
    """Each entry from the position that the index names along an axis; the other axes are those of the index."""
    out = plain_axes(index.shape)
    if x.rank == 0:
        return out, ()
    own = out or (Axis(0),)
    return out, replaced(own, axis(dim, x.rank), Lookup(index.value, out))


def _gathered(x: Symbol, dim: int, index: Symbol, *_: Any, **__: Any) -> Image | list[Image]:
    """As `gathered`; an index without entries may be of any shape."""
    return gathered(x, dim, index) if index.size else []


def index_selected(x: Symbol, dim: int, index: Symbol) -> Image:
    """Whole slices of an axis, in the order of a vector of positions."""
    if x.rank == 0:
        return (), ()
    dim = axis(dim, x.rank)
    inp = plain_axes(x.shape)
    along = plain_axes(index.shape or (1,))
    return replaced(inp, dim, along[0]), replaced(inp, dim, Lookup(index.value, along[: index.rank]))


def _indexed(x: Symbol, indices: Sequence[Symbol | None], *, y: Symbol | None = None) -> Image:
    """x[indices]: the index tensors' axes stand where the first of them stood, in front if they were not adjacent."""
    if y is not None and any(t is not None and t.dtype in MASKS for t in indices):
        indices = _positions_for_masks(x, indices, y)
    rest = plain_axes(x.shape)
    tables = {d: t for d, t in enumerate(indices) if t is not None}
    shared = plain_axes(broadcast([t.shape for t in tables.values()]))
    inp: list[Index] = list(rest)
    for d, table in tables.items():
        inp[d] = Lookup(_from_the_front(table, x.shape[d]).value, broadcast_axes(shared, table.shape))
    first, last = min(tables, default=0), max(tables, default=-1)
    start = first if last - first + 1 == len(tables) else 0
    left = [i for d, i in enumerate(rest) if d not in tables]
    return (*left[:start], *shared, *left[start:]), tuple(inp)


def _positions_for_masks(x: Symbol, indices: Sequence[Symbol | None], y: Symbol) -> list[Symbol | None]:
    """Where each mask holds, one index tensor for each of its axes; how often it does is read off the result."""
    size = _size_of_selection(x, indices, y)
    found: list[Symbol | None] = []
    for table in indices:
        found += _coordinates(table, size) if table is not None and table.dtype in MASKS else [table]
    return found


def _size_of_selection(x: Symbol, indices: Sequence[Symbol | None], y: Symbol) -> int:
    """How many entries the masks select: a mask's axes become one, the others keep their sizes."""
    consumed = sum(t.rank if t is not None and t.dtype in MASKS else 1 for t in indices if t is not None)
    given = [d for d, t in enumerate(indices) if t is not None]
    adjacent = given[-1] - given[0] + 1 == len(given)
    shared = y.rank - (x.rank - consumed)
    start = given[0] if adjacent else 0
    return y.shape[start + shared - 1]


def _coordinates(mask: Symbol, size: int) -> list[Symbol]:
    """The positions at which a mask holds, along each of its axes."""
    places = tensor("nonzero.default", mask, shape=(size, mask.rank), dtype="int64")
    return [tensor("select.int", places, 1, d, shape=(size,), dtype="int64") for d in range(mask.rank)]


def _mask_selected(x: Symbol, mask: Symbol, *, y: Symbol) -> Image:
    """The entries where a mask holds, in one vector; both operands are broadcast first."""
    shape = broadcast([x.shape, mask.shape])
    whole = tensor("expand.default", mask, shape, shape=shape, dtype=mask.dtype) if mask.shape != shape else mask
    out = plain_axes(y.shape)
    tables = [Lookup(places.value, out) for places in _coordinates(whole, y.size)]
    return out, tuple(Axis(0) if n == 1 else t for n, t in zip(x.shape, tables[len(shape) - x.rank :], strict=True))


def _from_the_front(table: Symbol, size: int) -> Symbol:
    """Positions counted from the end become positions counted from the start; what lies beyond either end raises.

    The derivative of a sum of entries looks up nothing else that would.
    """
    table = table.to("int64")
    if size <= LARGEST_LIST:
        return _looked_up(positions(table, size), table)
    zeros = tensor("expand.default", positions(table, 1), (size,), shape=(size,), dtype="int64")  # of no memory
    return table.of("remainder.Scalar", table, size) + _looked_up(zeros, table)


def _looked_up(numbers: Symbol, table: Symbol) -> Symbol:
    return tensor("take.default", numbers, table, shape=table.shape, dtype="int64")


def _taken(x: Symbol, index: Symbol) -> Image:
    """Positions in the flattened tensor, taken apart into one for each axis."""
    out = plain_axes(index.shape)
    rest, inp = _from_the_front(index, x.size), []
    for size in reversed(x.shape):
        inp.append(Lookup(rest.of("remainder.Scalar", rest, size).value, out))
        rest = tensor("div.Scalar_mode", rest, size, shape=rest.shape, dtype="int64", rounding_mode="floor")
    return out, tuple(reversed(inp))


_INDEXED = (
    Sample(X, (I(4, bound=2),)),
    Sample(X, (None, I(2, 2, bound=3))),
    Sample(CUBE, (I(2, 1, bound=2), None, I(3, bound=4))),
    Sample(CUBE, (None, I(2, 1, bound=3), I(3, bound=4))),
    Sample(X, (I(bound=2), I(5, bound=3))),
)

_SELECTED = (Sample(X, (B(2, 3),)), Sample(CUBE, (None, B(3, 4))), Sample(CUBE, (None, B(3))))

READING: dict[str, Rule] = {
    "aten.gather.default": IndexMap(
        (
            Sample(X, 1, I(2, 2, bound=3)),
            Sample(X, 0, I(4, 2, bound=2)),
            Sample(T(3), -1, I(2, bound=3)),
            Sample(T(), 0, I(bound=1)),
            Sample(T(3), 0, I(2, 0, bound=3)),
        ),
        map=_gathered,
    ),
    "aten.index_select.default": IndexMap(
        (Sample(X, 1, I(4, bound=3)), Sample(CUBE, -3, I(2, bound=2)), Sample(X, 0, I(bound=2))), map=index_selected
    ),
    "aten.index.Tensor": IndexMap((*_INDEXED, *_SELECTED), map=_indexed),
    "aten.masked_select.default": IndexMap(
        (Sample(X, B(2, 3)), Sample(X, B(3)), Sample(T(1, 3), B(2, 1))), map=_mask_selected
    ),
    "aten._unsafe_index.Tensor": IndexMap(_INDEXED, map=_indexed),
    "aten.take.default": IndexMap((Sample(X, I(4, bound=6)), Sample(CUBE, I(2, 2, bound=24))), map=_taken),
}

# ---------------------------------------------------------------- writing at positions that are data


def _written(x: Symbol, kept: Symbol | None, operand: int | None, image: Image, scale: Scalar = 1) -> Parts:
    """X where `kept` holds (everywhere if it is None), plus what is written, at the places `image` = (out, inp) says.

    operand: the number of what is written; None if it is no tensor.
    """
    i = plain_axes(x.shape)
    own = () if kept is None else (kept[i],)
    return {SELF: (Term(1, own, i, i),), **({} if operand is None else {operand: (Term(scale, (), *image),)})}


def _put(x: Symbol, indices: Sequence[Symbol | None], values: Symbol, accumulate: bool = False, *_: Any) -> Parts:
    if any(t is not None and t.dtype in MASKS for t in indices):
        return _put_where(x, indices, values, accumulate)
    out, inp = _indexed(x, indices)
    kept = None
    if not accumulate:
        marked = (truth(x, x.shape, True), indices, truth(x, (), False))
        kept = tensor("index_put.default", *marked, shape=x.shape, dtype="bool")
    operand = 1 + sum(t is not None for t in indices)
    return _written(x, kept, operand, (inp, broadcast_axes(out, values.shape)))


def _put_where(x: Symbol, indices: Sequence[Symbol | None], values: Symbol, accumulate: bool) -> Parts:
    """The n-th place where a mask holds is given the n-th of the values, which lie along one axis in its place."""
    given = [d for d, t in enumerate(indices) if t is not None]
    mask = indices[given[0]]
    if len(given) > 1 or mask is None:
        raise MissingRuleError(
            "x[…] = v with a Boolean mask beside another index tensor has no derivative rule: write positions instead "
            f"of the mask, by torch.nonzero outside of the function (the index tensors are of shapes "
            f"{', '.join(str(indices[d].shape) for d in given)})"
        )
    start, stop = given[0], given[0] + mask.rank
    flat = tensor("reshape.default", mask, (mask.size,), shape=(mask.size,), dtype=mask.dtype).to("bool")
    number = view(_numbers(flat), mask.shape)
    i = plain_axes(x.shape)
    out: Indices = (*i[:start], Lookup(number.value, i[start:stop]), *i[stop:])
    inp: Indices = tuple(
        Axis(0) if n == 1 else a for n, a in zip(values.shape, out[-values.rank or len(out) :], strict=True)
    )
    holds = view(flat, mask.shape)[i[start:stop]]
    kept = () if accumulate else ((~view(flat, mask.shape))[i[start:stop]],)
    written = (Term(1, (holds,), i, inp),) if values.size else ()
    return {SELF: (Term(1, kept, i, i),), 2: written}


def _numbers(mask: Symbol) -> Symbol:
    """How many places before each hold, for the flattened mask."""
    return (tensor("cumsum.default", mask.to("int64"), 0, shape=mask.shape, dtype="int64") - 1).clamp_min(0)


def _scattered(x: Symbol, dim: int, index: Symbol, src: Any, *, reduce: str | None = None) -> Parts:
    out, inp = gathered(x, dim, index)
    kept = tensor("scatter.value", truth(x, x.shape, True), dim, index, False, shape=x.shape, dtype="bool")
    return _written(x, kept, SOURCE if isinstance(src, Symbol) else None, (inp, out))


def _scatter_added(x: Symbol, dim: int, index: Symbol, src: Symbol) -> Parts:
    out, inp = gathered(x, dim, index)
    return _written(x, None, SOURCE, (inp, out))


def _index_added(x: Symbol, dim: int, index: Symbol, source: Symbol, *, alpha: Scalar = 1) -> Parts:
    out, inp = index_selected(x, dim, index)
    return _written(x, None, SOURCE, (inp, out[: source.rank]), alpha)


def _untouched(x: Symbol, dim: int, index: Symbol) -> Symbol:
    """Which positions along an axis are not among those of an index tensor; broadcast along the others."""
    dim = axis(dim, x.rank)
    size = x.shape[dim] if x.rank else 1
    marked = (truth(x, (size,), True), 0, index, False)
    mask = tensor("index_fill.int_Scalar", *marked, shape=(size,), dtype="bool")
    return view(mask, tuple(size if d == dim else 1 for d in range(x.rank)))


def _index_copied(x: Symbol, dim: int, index: Symbol, source: Symbol) -> Parts:
    out, inp = index_selected(x, dim, index)
    return _written(x, _untouched(x, dim, index), SOURCE, (inp, out[: source.rank]))


def _index_filled(x: Symbol, dim: int, index: Symbol, value: Any) -> Parts:
    """A place that is named twice is filled once: the value's derivative is a mask."""
    kept, i = _untouched(x, dim, index), plain_axes(x.shape)
    parts: dict[int, Sequence[Part]] = {SELF: (Term(1, (kept[i],), i, i),)}
    return {**parts, SOURCE: (Term(1, ((~kept)[i],), i, ()),)} if isinstance(value, Symbol) else parts


def _put_flat(x: Symbol, index: Symbol, source: Symbol, accumulate: bool = False) -> Parts:
    """Positions are those in the flattened tensor."""
    out, inp = _taken(x, view(index, source.shape))
    kept = None
    if not accumulate:
        unmarked = view(truth(x, (index.size,), False), index.shape)
        kept = tensor("put.default", truth(x, x.shape, True), index, unmarked, shape=x.shape, dtype="bool")
    return _written(x, kept, SOURCE, (inp, out))


def _mask_scattered(x: Symbol, mask: Symbol, source: Symbol, *, y: Symbol) -> Parts:
    """The n-th place where the mask holds is given the n-th element of the source."""
    if mask.shape != y.shape:
        mask = tensor("expand.default", mask, y.shape, shape=y.shape, dtype="bool")
    flat = tensor("reshape.default", mask, (mask.size,), shape=(mask.size,), dtype="bool")
    i, inp = _taken(source, view(_numbers(flat), y.shape)) if source.size else (plain_axes(y.shape), ())
    written = (Term(1, (mask[i],), i, inp),) if source.size else ()
    return {SELF: (Term(1, ((~mask)[i],), i, broadcast_axes(i, x.shape)),), SOURCE: written}


# An index tensor without repetitions: a repeated place is written in no particular order.
ONE = I(1, bound=2)
_PUT = (
    Sample(X, (ONE,), T(1, 3)),
    Sample(X, (None, I(1, bound=3)), T()),
    Sample(CUBE, (ONE, None, I(1, bound=4)), T(3)),
    Sample(X, (I(4, bound=2),), T(4, 3), True),
    Sample(CUBE, (None, I(2, 1, bound=3), I(3, bound=4)), T(2, 2, 3), True),
)
_PUT_WHERE = (
    *(Sample(X, (B(2, 3),), T(1), accumulate) for accumulate in (False, True)),
    *(Sample(CUBE, (None, B(3, 4)), T(), accumulate) for accumulate in (False, True)),
    Sample(X, (None, B(3)), T(2, 1)),
)
_PLACES = "a place that is written keeps nothing of what was there"

WRITING: dict[str, Rule] = {
    "aten.index_put.default": Function((*_PUT, *_PUT_WHERE), body=_put, source=_PLACES),
    "aten._unsafe_index_put.default": Function(_PUT, body=_put, source=_PLACES),
    "aten.put.default": Function(
        (Sample(X, I(1, bound=6), T(1)), Sample(X, I(4, bound=6), T(2, 2), True)), body=_put_flat, source=_PLACES
    ),
    "aten.masked_scatter.default": Function(
        (Sample(X, B(2, 3), T(7)), Sample(CUBE, B(3, 1), T(4, 6)), Sample(T(3), B(2, 3), X)),
        body=_mask_scattered,
        source=_PLACES,
    ),
    "aten.scatter.src": Function(
        (Sample(X, 1, I(2, 1, bound=3), T(2, 1)), Sample(X, 0, I(1, 2, bound=2), X)), body=_scattered, source=_PLACES
    ),
    "aten.scatter.value": Function((Sample(X, 1, I(2, 2, bound=3), 1.5),), body=_scattered, source=_PLACES),
    "aten.scatter_add.default": Function(
        (Sample(X, 1, I(2, 4, bound=3), T(2, 5)), Sample(X, 0, I(4, 2, bound=2), T(4, 3))), body=_scatter_added
    ),
    "aten.index_add.default": Function(
        (Sample(X, 0, I(4, bound=2), T(4, 3)), Sample(CUBE, -1, I(3, bound=4), T(2, 3, 3), alpha=2)), body=_index_added
    ),
    "aten.index_copy.default": Function(
        (Sample(X, 0, ONE, T(1, 3)), Sample(T(), 0, I(bound=1), T())),
        body=_index_copied,
        source=_PLACES,
    ),
    "aten.index_fill.int_Scalar": Function(
        (Sample(X, 0, ONE, 1.5), Sample(T(), 0, I(1, bound=1), 1.5)), body=_index_filled, source=_PLACES
    ),
    "aten.index_fill.int_Tensor": Function((Sample(X, 1, I(2, bound=3), T()),), body=_index_filled, source=_PLACES),
}

# ---------------------------------------------------------------- writing at positions that are known


def _kept_outside_slice(x: Symbol, dim: int, start: int | None, end: int | None, step: int) -> Symbol | None:
    """Which positions along an axis a slice leaves alone; None for none of them."""
    dim = axis(dim, x.rank)
    size = x.shape[dim]
    chosen = range(size)[slice(start, end, step)]
    along = positions(x, size, dim, x.rank)
    sides = [along < chosen.start] if chosen.start > 0 else []
    sides += [along >= chosen.stop] if chosen.stop < size else []
    sides += [along.of("remainder.Scalar", along - chosen.start, step).ne(0)] if step > 1 else []
    if not sides:
        return None
    kept = sides[0]
    for side in sides[1:]:
        kept = kept | side
    return kept


def _slice_written(
    x: Symbol, src: Symbol, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Parts:
    out, inp = sliced(x, dim, start, end, step)
    kept = _kept_outside_slice(x, dim, start, end, step)
    parts = _written(x, kept, 1, (inp, out))
    everything = kept is None and src.shape == x.shape
    return {**parts, SELF: ()} if everything else parts


def _select_written(x: Symbol, src: Symbol, dim: int, index: int) -> Parts:
    out, inp = one_of(x, dim, index)
    d = axis(dim, x.rank)
    return _written(x, positions(x, x.shape[d], d, x.rank).ne(index % x.shape[d]), 1, (inp, out))


def _diagonal_written(x: Symbol, src: Symbol, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Parts:
    out, inp = diagonal(x, offset, dim1, dim2)
    rows, columns = (positions(x, x.shape[d], d, x.rank) for d in (axis(dim1, x.rank), axis(dim2, x.rank)))
    return _written(x, columns.of("sub.Tensor", columns, rows).ne(offset), 1, (inp, out))


WRITING_VIEWS: dict[str, Rule] = {
    "aten.slice_scatter.default": Function(
        (
            Sample(TALL, T(2, 2), 0, 1, 3),
            Sample(X, X),
            Sample(T(2, 7), T(2, 3), 1, 1, 6, 2),
            Sample(TALL, T(2, 2), 0, 0, 2),
            Sample(TALL, T(2, 2), 0, -2, 9223372036854775807),
            Sample(TALL, T(0, 2), 0, 2, 2),
        ),
        body=_slice_written,
        source=_PLACES,
    ),
    "aten.select_scatter.default": Function(
        (Sample(X, T(2), 1, 2), Sample(CUBE, T(2, 4), -2, -1)), body=_select_written, source=_PLACES
    ),
    "aten.diagonal_scatter.default": Function(
        (Sample(T(3, 4), T(3)), Sample(T(3, 2, 3), T(2, 2), 1, 0, 2)), body=_diagonal_written, source=_PLACES
    ),
}

RULES: dict[str, Rule] = {**READING, **WRITING, **WRITING_VIEWS}

__all__ = ["READING", "RULES", "SELF", "SOURCE", "WRITING", "WRITING_VIEWS", "gathered", "index_selected"]
