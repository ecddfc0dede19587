"""What operators that move, join and reduce entries do to arrays of scalar expressions.

One entry an operator: a function of its arguments, with an `Array` for each tensor, that returns an `Array` or several.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .arrays import (
    Array,
    NotScalar,
    aligned,
    check_size,
    concatenate,
    each,
    embed,
    matmul,
    pointwise,
    uniform,
    with_samples,
)
from .formulas import POINTWISE
from .scalars import Scalar

Rule = Callable[..., Any]
_END = 2**62


def known_integers(array: Array) -> Any:
    """The entries of a tensor of indices, as numbers.  Raises NotScalar where they are data."""
    if array.batch is not None or any(x.op != "constant" for x in array.entries.flat):
        raise NotScalar("it has positions that are data")
    return np.frompyfunc(lambda x: x.payload, 1, 1)(array.entries).astype(np.int64)


# ---------------------------------------------------------------- entries elsewhere


def _slice(x: Array, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Array:
    stop = None if stop is not None and stop >= _END else stop
    return x.slice(dim, start, stop, step)


def _unbind(x: Array, dim: int = 0) -> tuple[Array, ...]:
    return tuple(x.select(dim, k) for k in range(x.shape[x.dim(dim)]))


def _split(x: Array, size: int, dim: int = 0) -> tuple[Array, ...]:
    whole = x.shape[x.dim(dim)]
    return x.split([min(size, whole - start) for start in range(0, max(whole, 1), size)], dim)


def _stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    dim %= len(tensors[0].shape) + 1
    return concatenate([x.unsqueeze(dim) for x in tensors], dim)


def _roll(x: Array, shifts: Any, dims: Any = ()) -> Array:
    shifts, dims = (s if isinstance(s, tuple) else (s,) for s in (shifts, dims))
    if not dims:
        return x.reshape((-1,)).roll(shifts, (0,)).reshape(x.shape)
    return x.roll(shifts, dims)


def _repeat(x: Array, repeats: Sequence[int]) -> Array:
    for _ in range(len(repeats) - len(x.shape)):
        x = x.unsqueeze(0)
    for dim, count in enumerate(repeats):
        x = x if count == 1 else concatenate([x] * count, x.within(dim))
    return x


def _pad(x: Array, widths: Sequence[int], value: float = 0) -> Array:
    for k in range(len(widths) // 2):
        before, behind = widths[2 * k : 2 * k + 2]
        if before or behind:
            dim = x.within(len(x.shape) - 1 - k)
            x = x.slice(dim, max(-before, 0), x.shape[dim] - max(-behind, 0))
            pieces = (_border(x, dim, before, value), x, _border(x, dim, behind, value))
            x = concatenate([piece for piece in pieces if piece is not None], dim)
    return x


def _border(x: Array, dim: int, width: int, value: float) -> Array | None:
    if width <= 0 or x.entries.size == 0:
        return None
    return uniform(x.entries.flat[0].table.constant(value, x.dtype), (*x.shape[:dim], width, *x.shape[dim + 1 :]))


def _triangle(lower: bool) -> Rule:
    def rule(x: Array, offset: int = 0) -> Array:
        rows, columns = x.within(-2), x.within(-1)
        kept = np.tri(x.shape[rows], x.shape[columns], offset if lower else offset - 1, dtype=bool) == lower
        return replace(x, entries=each(lambda e, keep: e if keep else e.table.constant(0, e.dtype), x.entries, kept))

    return rule


def _select_backward(x: Array, sizes: Sequence[int], dim: int, index: int) -> Array:
    dim %= len(sizes)
    index %= sizes[dim]
    return embed(x.unsqueeze(dim), sizes, {dim: slice(index, index + 1)})


def _slice_backward(x: Array, sizes: Sequence[int], dim: int, start: int, stop: int, step: int) -> Array:
    dim %= len(sizes)
    if x.shape[dim] == sizes[dim] and step == 1:
        return x
    return embed(x, sizes, {dim: slice(start, None if stop >= _END else stop, step)})


def _slice_scatter(
    x: Array, source: Array, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> Array:
    """Entries put in place of others."""
    dim = x.dim(dim)
    batch = x.batch or source.batch
    if batch is not None and batch.axis == dim:
        raise NotScalar("it writes over samples")
    base, given = (a.entries if batch is None else with_samples(a, batch) for a in (x, source))
    base = base.copy()
    base[(slice(None),) * dim + (slice(start, None if stop is not None and stop >= _END else stop, step),)] = given
    return replace(x, entries=base, batch=batch)


def _select_scatter(x: Array, source: Array, dim: int, index: int) -> Array:
    dim, index = x.dim(dim), index % x.shape[x.dim(dim)]
    return _slice_scatter(x, source.unsqueeze(dim), dim, index, index + 1)


def _diagonal_backward(x: Array, sizes: Sequence[int], offset: int, first: int, second: int) -> Array:
    """The last axis along the diagonal of two: an axis for each of them, of which one is looked up by the other."""
    first, second, length = first % len(sizes), second % len(sizes), x.shape[x.within(-1)]
    check_size(sizes[first] * length)
    rest = [d for d in range(len(sizes)) if d not in (first, second)]
    rows, columns = (np.arange(length) + max(sign * offset, 0) for sign in (-1, 1))
    pair = [*(sizes[d] for d in rest), sizes[first], length]
    spread = each(lambda e, on: e if on else e.table.zero(e.dtype), np.expand_dims(x.entries, -2),
                  np.arange(sizes[first])[:, None] == rows[None, :])  # fmt: skip
    wide = embed(replace(x, entries=spread, shape=tuple(pair)), [*pair[:-1], sizes[second]], {len(pair) - 1: columns})
    return wide.permute([[*rest, first, second].index(d) for d in range(len(sizes))])


# ---------------------------------------------------------------- known positions


def _index_select(x: Array, dim: int, index: Array) -> Array:
    return x.take(dim, known_integers(index).reshape(-1))


def _gather(x: Array, dim: int, index: Array) -> Array:
    if x.batch is not None:
        raise NotScalar("it looks entries of samples up one by one")
    found = np.take_along_axis(x.entries[tuple(slice(n) for n in _within(index.shape, x.shape, dim))],
                               known_integers(index), dim)  # fmt: skip
    return Array(found, index.shape, x.dtype)


def _within(index: Sequence[int], shape: Sequence[int], dim: int) -> list[int]:
    return [n if d == dim % len(shape) else m for d, (m, n) in enumerate(zip(index, shape, strict=True))]


def _index(x: Array, indices: Sequence[Array | None]) -> Array:
    """Advanced indexing at known positions; the samples' axis is not indexed."""
    places = [d for d, index in enumerate(indices) if index is not None]
    arrays = {d: known_integers(i) for d, i in enumerate(indices) if i is not None and i.dtype != "bool"}
    if len(arrays) < len(places):
        raise NotScalar("it looks up by a mask")
    key = tuple(arrays.get(d, slice(None)) for d in range(len(x.shape)))
    rank = max(a.ndim for a in arrays.values())
    together = places == list(range(places[0], places[-1] + 1))
    batch = None
    if x.batch is not None:
        axis = x.batch.axis
        [x.within(d) for d in places]
        ahead = axis if together and axis < places[0] else axis - sum(d < axis for d in places) + rank
        batch = replace(x.batch, axis=ahead)
    found = x.entries[key]
    shape = list(found.shape)
    if x.batch is not None and batch is not None:
        shape[batch.axis] = x.shape[x.batch.axis]
    return Array(found, tuple(shape), x.dtype, batch)


def _index_add(x: Array, dim: int, index: Array, source: Array, *, alpha: float = 1) -> Array:
    """Sums into positions that are known; what is added to zeros is put there."""
    batch = source.batch or x.batch
    base = x.entries if batch is None else with_samples(x, batch)
    added = source.entries if batch is None else with_samples(source, batch)
    dim = x.within(dim) if batch is None else replace(x, batch=batch).within(dim)
    base = each(lambda e: e.table.zero(e.dtype) if e.is_number(0) else e, base).copy()
    moved, pieces = np.moveaxis(base, dim, 0), np.moveaxis(added, dim, 0)
    for k, position in enumerate(known_integers(index).reshape(-1)):
        moved[position] = each(lambda a, b: a + b * alpha, moved[position], pieces[k])[()]
    return Array(base, x.shape, x.dtype, batch)


def _index_put(x: Array, indices: Sequence[Array | None], values: Array, accumulate: bool = False) -> Array:
    """Entries put, or added, at positions that are known; what is added to zeros is put there."""
    arrays = {d: known_integers(i) for d, i in enumerate(indices) if i is not None and i.dtype != "bool"}
    places = [d for d, i in enumerate(indices) if i is not None]
    if [*arrays] != list(range(places[0], places[-1] + 1)):
        raise NotScalar("it indexes axes that lie apart, or by a mask")
    front = places[0]
    tables = np.broadcast_arrays(*arrays.values())
    if x.batch is None and values.batch is not None:
        axis = values.batch.axis + len(x.shape) - len(places) + tables[0].ndim - len(values.shape)
        at = replace(values.batch, axis=axis if axis < front else axis - tables[0].ndim + len(places))
        x = replace(x, entries=with_samples(x, at), batch=at)
    (like, given), _, _ = aligned([_index(x, indices), values])
    given = np.broadcast_to(given, like.shape)
    base = each(lambda e: e.table.zero(e.dtype) if accumulate and e.is_number(0) else e, x.entries).copy()
    for place in np.ndindex(*tables[0].shape):
        key = (slice(None),) * front + tuple(table[place] for table in tables)
        piece = given[(slice(None),) * front + place]
        base[key] = each(lambda a, b: a + b, base[key], piece)[()] if accumulate else piece
    return replace(x, entries=base)


# ---------------------------------------------------------------- reductions


def _dims(x: Array, dims: Any) -> Sequence[int]:
    if isinstance(dims, int):
        return (dims,)
    return tuple(dims) if dims else range(len(x.shape))


def _sum(x: Array, dims: Any = None, keep: bool = False) -> Array:
    return x.sum(_dims(x, dims), keep)


def _mean(x: Array, dims: Any = None, keep: bool = False) -> Array:
    found = _sum(x, dims, keep)
    return replace(found, entries=each(lambda e: e / (x.size // max(found.size, 1)), found.entries))


def _reduction(combine: Callable[[Scalar, Scalar], Scalar]) -> Rule:
    return lambda x, dims=None, keep=False: x.reduce(combine, _dims(x, dims), keep)


def _running_sum(x: Array, dim: int) -> Array:
    if not x.shape:
        return x
    return replace(x, entries=np.add.accumulate(x.entries, x.within(dim)))


def _largest(x: Array, dim: int) -> Array:
    return x.reduce(POINTWISE["aten.maximum.default"].formula, (dim,), keep=True)


def _softmax(x: Array, dim: int, _: bool = False) -> Array:
    raised = pointwise(lambda a, b: (a - b).call("exp"), [x, _largest(x, dim)], x.dtype)
    return pointwise(lambda a, b: a / b, [raised, raised.sum((dim,), keep=True)], x.dtype)


def _log_softmax(x: Array, dim: int, _: bool = False) -> Array:
    shifted = pointwise(lambda a, b: a - b, [x, _largest(x, dim)], x.dtype)
    total = replace(shifted, entries=each(lambda e: e.call("exp"), shifted.entries)).sum((dim,), keep=True)
    return pointwise(lambda a, b: a - b.call("log"), [shifted, total], x.dtype)


# ---------------------------------------------------------------- products


def _vector(x: Array, dim: int) -> Array:
    return x.unsqueeze(dim)


def _dot(a: Array, b: Array) -> Array:
    return pointwise(lambda x, y: x * y, [a, b], a.dtype).sum((0,))


def _mv(a: Array, b: Array) -> Array:
    return matmul(a, b.unsqueeze(1)).squeeze((1,)) if a.shape[0] != 1 else matmul(a, b.unsqueeze(1)).reshape((1,))


def _outer(a: Array, b: Array) -> Array:
    return pointwise(lambda x, y: x * y, [a.unsqueeze(1), b.unsqueeze(0)], a.dtype)


def _added(product: Callable[[Array, Array], Array]) -> Rule:
    """beta · x + alpha · (a b), where a beta of zero leaves x out."""

    def rule(x: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1) -> Array:
        found = product(a, b)
        combine = (lambda u, v: v * alpha) if beta == 0 else lambda u, v: u * beta + v * alpha
        return pointwise(combine, [x, found], found.dtype)

    return rule


_RULES: dict[str, Rule] = {
    "t.default": lambda x: x.transpose(0, -1) if len(x.shape) == 2 else x,
    "transpose.int": lambda x, first, second: x.transpose(first, second),
    "permute.default": lambda x, dims: x.permute(dims),
    "unsqueeze.default": lambda x, dim: x.unsqueeze(dim),
    "squeeze.default": lambda x: x.squeeze(),
    "squeeze.dim": lambda x, dim: x.squeeze((dim,)),
    "squeeze.dims": lambda x, dims: x.squeeze(dims),
    **dict.fromkeys(
        ("view.default", "_unsafe_view.default", "reshape.default", "unsafe_view.default"),
        lambda x, shape: x.reshape(shape),
    ),
    "expand.default": lambda x, shape, **_: x.expand(shape),
    "select.int": lambda x, dim, index: x.select(dim, index),
    "slice.Tensor": _slice,
    "unbind.int": _unbind,
    "split.Tensor": _split,
    "split_with_sizes.default": lambda x, sizes, dim=0: x.split(sizes, dim),
    "cat.default": lambda tensors, dim=0: concatenate(tensors, dim),
    "stack.default": _stack,
    "flip.default": lambda x, dims: x.flip(dims),
    "roll.default": _roll,
    "repeat.default": _repeat,
    "diagonal.default": lambda x, offset=0, first=0, second=1: x.diagonal(offset, first, second),
    "constant_pad_nd.default": _pad,
    "tril.default": _triangle(lower=True),
    "triu.default": _triangle(lower=False),
    "select_backward.default": _select_backward,
    "slice_backward.default": _slice_backward,
    "diagonal_backward.default": _diagonal_backward,
    "slice_scatter.default": _slice_scatter,
    "select_scatter.default": _select_scatter,
    "index_select.default": _index_select,
    "gather.default": _gather,
    "index.Tensor": _index,
    "index_add.default": _index_add,
    "index_put.default": _index_put,
    "_unsafe_index_put.default": _index_put,
    "sum.default": _sum,
    "sum.dim_IntList": _sum,
    "mean.default": _mean,
    "mean.dim": _mean,
    "prod.default": _reduction(lambda a, b: a * b),
    "prod.dim_int": _reduction(lambda a, b: a * b),
    "amax.default": _reduction(POINTWISE["aten.maximum.default"].formula),
    "amin.default": _reduction(POINTWISE["aten.minimum.default"].formula),
    "max.default": _reduction(POINTWISE["aten.maximum.default"].formula),
    "min.default": _reduction(POINTWISE["aten.minimum.default"].formula),
    "cumsum.default": _running_sum,
    "_softmax.default": _softmax,
    "_log_softmax.default": _log_softmax,
    "mm.default": matmul,
    "bmm.default": matmul,
    "mv.default": _mv,
    "dot.default": _dot,
    "outer.default": _outer,
    "addmm.default": _added(matmul),
    "baddbmm.default": _added(matmul),
    "addmv.default": _added(_mv),
}

STRUCTURE: Mapping[str, Rule] = {f"aten.{name}": rule for name, rule in _RULES.items()}
