"""Views and joins: operators that put the entries of their operand elsewhere, at positions known beforehand.

Each is written as (out, inp): which entry of y is which entry of x.  The `*_backward` operators here are linear index
maps as well, the transposes of the views; they have no saved statistics, and are closed under differentiation.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import prod
from typing import Any

from ..expressions import Symbol
from ..index import Axis, Indices, Label, fresh, plain, plain_axes
from ..terms import HOLE, Kernel
from .formulas import axis
from .kernels import operation
from .kinds import IndexMap, Rule, Sample, T, broadcast_axes, replaced

Image = tuple[Indices, Indices]
X, CUBE = T(2, 3), T(2, 3, 4)

# ---------------------------------------------------------------- shapes


def _reshaped(x: Symbol, *_: Any, y: Symbol) -> Image | Kernel:
    """Digits common to both shapes; a kernel if there are none, as from (2, 3) to (3, 2)."""
    if x.size == 0:
        return plain_axes(y.shape), plain_axes(x.shape)
    digits = common_digits(x.shape, y.shape)
    if digits is None:
        push, pull = (operation("aten.view.default", HOLE, shape) for shape in (y.shape, x.shape))
        return Kernel(push, pull)
    return _grouped(y.shape, digits), _grouped(x.shape, digits)


def common_digits(first: Sequence[int], second: Sequence[int]) -> tuple[Label, ...] | None:
    """Labels, the slowest first, of which every axis of two shapes of equal size is a run; None if there are none."""
    bounds = sorted(_suffix_products(first) | _suffix_products(second))
    if any(large % small for small, large in pairwise(bounds)):
        return None
    return tuple(fresh(large // small) for small, large in pairwise(bounds))[::-1]


def _suffix_products(shape: Sequence[int]) -> set[int]:
    return {prod(shape[d:]) for d in range(len(shape) + 1)}


def _grouped(shape: Sequence[int], digits: Sequence[Label]) -> Indices:
    """Each axis as a mixed-radix number of the next digits."""
    rest, axes = list(digits), []
    for size in reversed(shape):
        parts: list[tuple[Label, int]] = []
        stride = 1
        while stride < size:
            label = rest.pop()
            parts.insert(0, (label, stride))
            stride *= label.size
        axes.append(Axis(0, tuple(parts)))
    return tuple(reversed(axes))


def _permuted(x: Symbol, dims: Sequence[int]) -> Image:
    inp = plain_axes(x.shape)
    return tuple(inp[axis(d, x.rank)] for d in dims), inp


def _transposed(x: Symbol, first: int = 0, second: int = 1) -> Image:
    dims = list(range(x.rank))
    if x.rank > 1:
        a, b = axis(first, x.rank), axis(second, x.rank)
        dims[a], dims[b] = dims[b], dims[a]
    return _permuted(x, dims)


def _expanded(x: Symbol, *_: Any, y: Symbol, **__: Any) -> Image:
    out = plain_axes(y.shape)
    return out, broadcast_axes(out, x.shape)


def _repeated(x: Symbol, repeats: Sequence[int]) -> Image:
    shape = (1,) * (len(repeats) - x.rank) + x.shape
    own = plain_axes(shape)
    out = tuple(Axis(0, ((fresh(r), n), *i.parts)) for r, n, i in zip(repeats, shape, own, strict=True))
    return out, own[len(repeats) - x.rank :]


SHAPES: dict[str, Rule] = {
    **{
        f"aten.{op}": IndexMap(
            (
                *(Sample(CUBE, (6, 4)), Sample(CUBE, (2, 12)), Sample(T(4, 6), (2, 2, 3, -1)), Sample(T(), (1, 1))),
                *(Sample(X, (3, 2)), Sample(T(2, 1, 3), (1, 6)), Sample(T(6, 4), (4, 6))),
            ),
            map=_reshaped,
        )
        for op in ("view.default", "_unsafe_view.default", "reshape.default")
    },
    "aten.permute.default": IndexMap((Sample(CUBE, (2, 0, 1)), Sample(X, (-1, 0)), Sample(T(), ())), map=_permuted),
    "aten.transpose.int": IndexMap((Sample(CUBE, 0, -1), Sample(T(), 0, -1)), map=_transposed),
    "aten.t.default": IndexMap((Sample(X), Sample(T(3))), map=_transposed),
    "aten.expand.default": IndexMap(
        (Sample(T(1, 3), (2, -1)), Sample(T(2, 1), (4, 2, 3)), Sample(T(), (2,))), map=_expanded
    ),
    "aten.unsqueeze.default": IndexMap((Sample(X, 1), Sample(X, -1), Sample(T(), 0)), map=_reshaped),
    "aten.squeeze.default": IndexMap((Sample(T(1, 2, 1)), Sample(X)), map=_reshaped),
    "aten.squeeze.dim": IndexMap((Sample(T(1, 2, 1), 0), Sample(T(1, 2), -1)), map=_reshaped),
    "aten.squeeze.dims": IndexMap((Sample(T(1, 2, 1), (0, -1)), Sample(T(1, 2), (1,))), map=_reshaped),
    "aten.repeat.default": IndexMap((Sample(X, (2, 2)), Sample(T(3), (2, 1, 2)), Sample(T(1), (3,))), map=_repeated),
}

# ---------------------------------------------------------------- parts of an axis


def affine(index: Axis, offset: int, stride: int = 1) -> Axis:
    """Offset + stride · index."""
    return Axis(offset + stride * index.offset, tuple((label, stride * s) for label, s in index.parts))


def stepped(size: int, start: int | None, end: int | None, step: int) -> tuple[Axis, Axis]:
    """Positions in a slice of an axis, and where in the axis they are."""
    chosen = range(size)[slice(start, end, step)]
    out = plain(len(chosen))
    return out, affine(out, chosen.start, step)


def sliced(x: Symbol, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Image:
    """A slice of one axis."""
    dim = axis(dim, x.rank)
    inp = plain_axes(x.shape)
    small, large = stepped(x.shape[dim], start, end, step)
    return replaced(inp, dim, small), replaced(inp, dim, large)


def one_of(x: Symbol, dim: int, index: int) -> Image:
    """One position of an axis, which is dropped."""
    dim = axis(dim, x.rank)
    inp = plain_axes(x.shape)
    return inp[:dim] + inp[dim + 1 :], replaced(inp, dim, Axis(index % x.shape[dim]))


def _split(x: Symbol, sizes: int | Sequence[int], dim: int = 0, *, output: int) -> Image:
    start = output * sizes if isinstance(sizes, int) else sum(sizes[:output])
    return sliced(x, dim, start, start + (sizes if isinstance(sizes, int) else sizes[output]))


def _unbound(x: Symbol, dim: int = 0, *, output: int) -> Image:
    return one_of(x, dim, output)


def _joined(xs: Sequence[Symbol], dim: int = 0, *, operand: int) -> Image | list[Image]:
    """Where one of several tensors goes; nowhere for an empty vector, which PyTorch allows among matrices."""
    x, rank = xs[operand], max(other.rank for other in xs)
    if x.rank < rank:
        return []
    dim = axis(dim, rank)
    inp = plain_axes(x.shape)
    start = sum(other.shape[dim] for other in xs[:operand] if other.rank > dim)
    return replaced(inp, dim, affine(inp[dim], start)), inp


def _stacked(xs: Sequence[Symbol], dim: int = 0, *, operand: int) -> Image:
    inp = plain_axes(xs[operand].shape)
    dim = axis(dim, len(inp) + 1)
    return (*inp[:dim], Axis(operand), *inp[dim:]), inp


def _padded(x: Symbol, pad: Sequence[int], value: float = 0) -> Image:
    """Zeros (or another constant) around; a negative width cuts off."""
    out, inp = [], []
    for d, size in enumerate(x.shape):
        place = 2 * (x.rank - 1 - d)
        before, after = pad[place : place + 2] if place < len(pad) else (0, 0)
        index = plain(max(size + min(before, 0) + min(after, 0), 0))
        out.append(affine(index, max(before, 0)))
        inp.append(affine(index, max(-before, 0)))
    return tuple(out), tuple(inp)


def _flipped(x: Symbol, dims: Sequence[int]) -> Image:
    out = plain_axes(x.shape)
    inp: Indices = out
    for d in dims:
        d = axis(d, x.rank)
        inp = inp if x.rank == 0 else replaced(inp, d, affine(out[d], x.shape[d] - 1, -1))
    return out, inp


def _rolled(x: Symbol, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> list[Image] | Kernel:
    """Two boxes for each axis that is rolled.  Without `dims`, the flattened tensor is."""
    shifts, dims = ((a,) if isinstance(a, int) else tuple(a) for a in (shifts, dims))
    if (not dims and x.rank != 1) or len({axis(d, x.rank) for d in dims}) > 2:
        back = tuple(-s for s in shifts)
        return Kernel(
            operation("aten.roll.default", HOLE, shifts, dims), operation("aten.roll.default", HOLE, back, dims)
        )
    by: dict[int, int] = {}
    for shift, d in zip(shifts, dims or (0,), strict=True):
        by[axis(d, x.rank)] = by.get(axis(d, x.rank), 0) + shift
    pieces = [_halves(n, by.get(d, 0)) for d, n in enumerate(x.shape)]
    return [(tuple(o for o, _ in choice), tuple(i for _, i in choice)) for choice in product(*pieces)]


def _halves(size: int, shift: int) -> list[tuple[Axis, Axis]]:
    """Where the two parts of a rolled axis come to lie."""
    shift %= max(size, 1)
    if shift == 0:
        index = plain(size)
        return [(index, index)]
    front, back = plain(size - shift), plain(shift)
    return [(affine(front, shift), front), (back, affine(back, size - shift))]


def diagonal(x: Symbol, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Image:
    """A diagonal of two axes, along a new last axis."""
    first, second = axis(dim1, x.rank), axis(dim2, x.rank)
    inp = plain_axes(x.shape)
    rows, columns = x.shape[first] + min(offset, 0), x.shape[second] - max(offset, 0)
    along = plain(max(min(rows, columns), 0))
    rest = tuple(i for d, i in enumerate(inp) if d not in (first, second))
    rows_at, columns_at = affine(along, max(-offset, 0)), affine(along, max(offset, 0))
    return (*rest, along), replaced(replaced(inp, first, rows_at), second, columns_at)


def _windows(x: Symbol, dim: int, size: int, step: int) -> Image:
    """`unfold`: position = step · window + place."""
    if x.rank == 0:
        return (plain(size),), ()
    dim = axis(dim, x.rank)
    window, place = plain((x.shape[dim] - size) // step + 1), plain(size)
    inp = plain_axes(x.shape)
    position = Axis(0, (*affine(window, 0, step).parts, *place.parts))
    return (*replaced(inp, dim, window), place), replaced(inp, dim, position)


def _trace(x: Symbol) -> Image:
    return (), diagonal(x)[1]


PARTS: dict[str, Rule] = {
    "aten.slice.Tensor": IndexMap(
        (
            Sample(X, 1, 1, 3),
            Sample(X, 0, -1, 9223372036854775807),
            Sample(T(7, 2), 0, 1, 6, 2),
            Sample(X),
            Sample(X, 1, 2, 2),
        ),
        map=sliced,
    ),
    "aten.select.int": IndexMap((Sample(X, 1, 2), Sample(CUBE, -2, -1), Sample(T(3), 0, 0)), map=one_of),
    **{
        f"aten.{op}": IndexMap((Sample(T(5, 2), (2, 0, 3)), Sample(T(2, 4), (1, 3), -1)), map=_split)
        for op in ("split_with_sizes.default", "unsafe_split_with_sizes.default")
    },
    **{
        f"aten.{op}": IndexMap((Sample(T(5, 2), 2), Sample(T(2, 4), 2, -1)), map=_split)
        for op in ("split.Tensor", "unsafe_split.Tensor")
    },
    "aten.unbind.int": IndexMap((Sample(X), Sample(CUBE, -1)), map=_unbound),
    "aten.cat.default": IndexMap(
        (Sample((X, X)), Sample((X, T(2, 1), T(2, 0)), -1), Sample((T(0), X), 1)), map=_joined, operand=None
    ),
    "aten.stack.default": IndexMap(
        (Sample((X, X)), Sample((X, X, X), -1), Sample((T(), T()))), map=_stacked, operand=None
    ),
    "aten.constant_pad_nd.default": IndexMap(
        (Sample(X, (1, 2)), Sample(CUBE, (0, 1, 2, 0), 1.5), Sample(X, (-1, 1)), Sample(X, (-1, -1, 0, -1))),
        map=_padded,
    ),
    "aten.flip.default": IndexMap((Sample(X, (0,)), Sample(CUBE, (0, -1)), Sample(T(1), (0,))), map=_flipped),
    "aten.roll.default": IndexMap(
        (
            *(Sample(X, (1,), (1,)), Sample(CUBE, (-1, 5), (0, 2)), Sample(X, (2,)), Sample(T(4), (1,))),
            *(Sample(CUBE, (1, 1, 1), (0, 1, 2)), Sample(X, (3,), (-1,))),
        ),
        map=_rolled,
    ),
    "aten.diagonal.default": IndexMap(
        (Sample(T(3, 4)), Sample(T(3, 2, 3), 1, 0, 2), Sample(T(4, 3), -2), Sample(T(1, 1))), map=diagonal
    ),
    "aten.unfold.default": IndexMap(
        (Sample(T(5, 2), 0, 3, 1), Sample(T(2, 6), 1, 2, 2), Sample(T(7), 0, 2, 3), Sample(T(3), 0, 3, 1)), map=_windows
    ),
    "aten.trace.default": IndexMap((Sample(T(3, 3)), Sample(X)), map=_trace),
}

# ---------------------------------------------------------------- transposes of views


class _Shape:
    """Stands for the operand of a view of which only the shape is known."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.rank = len(self.shape)


def _transpose_of(view: Callable[..., Image]) -> Callable[..., Image]:
    """The index map of `view_backward(g, sizes, *args)`."""

    def image(g: Symbol, sizes: Sequence[int], *args: Any) -> Image:
        out, inp = view(_Shape(sizes), *args)
        return inp, out

    return image


def _embedded(x: Symbol, offset: int = 0, dim1: int = -2, dim2: int = -1, *, y: Symbol) -> Image:
    return _transpose_of(diagonal)(x, y.shape, offset, dim1, dim2)


TRANSPOSES: dict[str, Rule] = {
    "aten.slice_backward.default": IndexMap(
        (
            Sample(X, (2, 5), 1, 1, 4, 1),
            Sample(X, (2, 7), -1, 1, 6, 2),
            Sample(X, (4, 3), 0, -2, 9223372036854775807, 1),
        ),
        map=_transpose_of(sliced),
    ),
    "aten.select_backward.default": IndexMap(
        (Sample(X, (2, 4, 3), 1, 2), Sample(T(), (3,), 0, -1)), map=_transpose_of(one_of)
    ),
    "aten.diagonal_backward.default": IndexMap(
        (Sample(T(3), (3, 4), 0, 0, 1), Sample(T(2, 2), (3, 2, 3), 1, 0, 2)), map=_transpose_of(diagonal)
    ),
    "aten.unfold_backward.default": IndexMap(
        (Sample(T(3, 2, 3), (5, 2), 0, 3, 1), Sample(T(2, 3, 2), (2, 6), 1, 2, 2)), map=_transpose_of(_windows)
    ),
    "aten.diag_embed.default": IndexMap((Sample(T(3)), Sample(X, 1), Sample(X, -1, 0, 2)), map=_embedded),
}

# ---------------------------------------------------------------- copies

COPIES: dict[str, Rule] = {
    f"aten.{op.replace('.', '_copy.', 1)}": {**SHAPES, **PARTS}[f"aten.{op}"]
    for op in (
        *("view.default", "permute.default", "transpose.int", "t.default", "expand.default", "unsqueeze.default"),
        *("squeeze.default", "squeeze.dim", "squeeze.dims", "slice.Tensor", "select.int", "split_with_sizes.default"),
        *("split.Tensor", "unbind.int", "diagonal.default", "unfold.default"),
    )
}


def _narrowed(x: Symbol, dim: int, start: int, length: int) -> Image:
    return sliced(x, dim, start, start + length if start >= 0 or start + length else None)


COPIES["aten.narrow_copy.default"] = IndexMap((Sample(X, 1, 1, 2), Sample(CUBE, -1, 0, 2)), map=_narrowed)

RULES: dict[str, Rule] = {**SHAPES, **PARTS, **TRANSPOSES, **COPIES}

__all__ = [
    "PARTS",
    "RULES",
    "SHAPES",
    "TRANSPOSES",
    "affine",
    "common_digits",
    "diagonal",
    "one_of",
    "sliced",
    "stepped",
]
