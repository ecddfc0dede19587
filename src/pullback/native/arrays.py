"""Tensors as arrays of scalar expressions, and operations on them.

One axis of a tensor may hold the samples of a batch.  The array then has the entries of one sample only: what stands
for `outer · samples · inner` positions of that axis has `outer · inner` entries.  An operation that would mix samples,
or take one of them out, raises `NotScalar`; that it does not is the proof that samples are kept apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from .scalars import Scalar

LARGEST = 20_000  # entries of an array


class NotScalar(Exception):
    """A program is not one for scalar expressions; says why."""


@dataclass(frozen=True)
class Batch:
    """Where the samples lie: along `axis`, of size outer · samples · inner."""

    axis: int
    outer: int
    inner: int


@dataclass(frozen=True, eq=False)
class Array:
    """A tensor whose entries are expressions.

    entries: an array of `Scalar`; along the batch axis those of one sample.
    shape: the tensor's shape.
    dtype: its dtype's name.
    batch: where the samples lie, if it has an axis for them.
    """

    entries: Any
    shape: tuple[int, ...]
    dtype: str
    batch: Batch | None = None

    # ------------------------------------------------------------ axes in another order

    def permute(self, dims: Sequence[int]) -> "Array":
        """Axes in another order."""
        dims = [self.dim(d) for d in dims]
        batch = self.batch and replace(self.batch, axis=dims.index(self.batch.axis))
        return self._like(self.entries.transpose(dims), [self.shape[d] for d in dims], batch)

    def transpose(self, first: int, second: int) -> "Array":
        """Two axes exchanged."""
        dims = list(range(len(self.shape)))
        if dims:
            first, second = self.dim(first), self.dim(second)
            dims[first], dims[second] = second, first
        return self.permute(dims)

    def unsqueeze(self, dim: int) -> "Array":
        """A new axis of size 1."""
        dim %= len(self.shape) + 1
        batch = self.batch and replace(self.batch, axis=self.batch.axis + (dim <= self.batch.axis))
        return self._like(np.expand_dims(self.entries, dim), [*self.shape[:dim], 1, *self.shape[dim:]], batch)

    def squeeze(self, dims: Sequence[int] | None = None) -> "Array":
        """Those of some axes dropped that have size 1."""
        dims = range(len(self.shape)) if dims is None else [self.dim(d) for d in dims] if self.shape else []
        return self._drop([d for d in dims if self.shape[d] == 1])

    def _drop(self, dims: Sequence[int]) -> "Array":
        batch = self.batch and replace(self.batch, axis=self.batch.axis - sum(d < self.batch.axis for d in dims))
        shape = [n for d, n in enumerate(self.shape) if d not in dims]
        return self._like(np.squeeze(self.entries, tuple(dims)), shape, batch)

    def reshape(self, shape: Sequence[int]) -> "Array":
        """The same entries in another shape."""
        shape = _completed(shape, self.size)
        if shape == self.shape:
            return self
        batch = None if self.batch is None else self._batch_in(shape)
        sizes = list(shape)
        if batch is not None:
            sizes[batch.axis] = batch.outer * batch.inner
        return self._like(_reshaped(self.entries, sizes), shape, batch)

    def _batch_in(self, shape: tuple[int, ...]) -> Batch:
        """Where the samples lie once the tensor has another shape."""
        before, samples, behind = self.layout()
        for axis, size in enumerate(shape):
            outer, rest = divmod(before, prod(shape[:axis]))
            inner = size // max(outer * samples, 1)
            if rest == 0 and outer * samples * inner == size and inner * prod(shape[axis + 1 :]) == behind:
                return Batch(axis, outer, inner)
        raise NotScalar(f"a reshape from {self.shape} to {shape} takes the samples apart")

    def layout(self) -> tuple[int, int, int]:
        """How many positions lie ahead of the samples, how many samples there are, how many positions lie behind."""
        assert self.batch is not None
        axis, outer, inner = self.batch.axis, self.batch.outer, self.batch.inner
        samples = self.shape[axis] // (outer * inner)
        return prod(self.shape[:axis]) * outer, samples, inner * prod(self.shape[axis + 1 :])

    def expand(self, shape: Sequence[int]) -> "Array":
        """Axes of size 1 repeated, and new ones in front."""
        new = len(shape) - len(self.shape)
        sizes = [self.shape[k - new] if n == -1 else n for k, n in enumerate(shape)]
        batch = self.batch and replace(self.batch, axis=self.batch.axis + new)
        inside = list(sizes)
        if batch is not None:
            inside[batch.axis] = batch.outer * batch.inner
        return self._like(np.broadcast_to(self.entries, inside), sizes, batch)

    # ------------------------------------------------------------ parts of it

    def select(self, dim: int, index: int) -> "Array":
        """One position of an axis; the axis is dropped."""
        dim = self.within(dim)
        return self.slice(dim, index % self.shape[dim], index % self.shape[dim] + 1)._drop([dim])

    def slice(self, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> "Array":
        """Some positions of an axis."""
        dim = self.dim(dim)
        chosen = range(self.shape[dim])[slice(start, stop, step)]
        if len(chosen) == self.shape[dim]:
            return self
        dim = self.within(dim)
        key = (slice(None),) * dim + (slice(start, stop, step),)
        return self._like(self.entries[key], [*self.shape[:dim], len(chosen), *self.shape[dim + 1 :]], self.batch)

    def split(self, sizes: Sequence[int], dim: int = 0) -> tuple["Array", ...]:
        """Pieces of an axis, one behind the other."""
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        return tuple(self.slice(dim, start, start + size) for start, size in zip(starts, sizes, strict=True))

    def flip(self, dims: Sequence[int]) -> "Array":
        """Axes backwards."""
        return self._like(np.flip(self.entries, tuple(self.within(d) for d in dims)), self.shape, self.batch)

    def roll(self, shifts: Sequence[int], dims: Sequence[int]) -> "Array":
        """Axes moved in a circle."""
        return self._like(np.roll(self.entries, shifts, [self.within(d) for d in dims]), self.shape, self.batch)

    def diagonal(self, offset: int = 0, first: int = 0, second: int = 1) -> "Array":
        """The entries where two axes agree, along a new last axis."""
        first, second = self.within(first), self.within(second)
        found = np.diagonal(self.entries, offset, first, second)
        rest = [n for d, n in enumerate(self.shape) if d not in (first, second)]
        batch = self.batch
        if batch is not None:
            batch = replace(batch, axis=batch.axis - (first < batch.axis) - (second < batch.axis))
        return self._like(found, [*rest, found.shape[-1]], batch)

    def take(self, dim: int, positions: Any) -> "Array":
        """Positions of an axis that are known."""
        dim = self.within(dim)
        shape = [*self.shape[:dim], len(positions), *self.shape[dim + 1 :]]
        return self._like(np.take(self.entries, positions, dim), shape, self.batch)

    # ------------------------------------------------------------ entries

    @property
    def size(self) -> int:
        """The number of elements of the tensor."""
        return prod(self.shape)

    def dim(self, dim: int) -> int:
        """An axis's number, counted from 0."""
        return dim % max(len(self.shape), 1)

    def within(self, dim: int) -> int:
        """The number of an axis that does not hold the samples."""
        dim = self.dim(dim)
        if self.batch is not None and self.batch.axis == dim:
            raise NotScalar("it mixes samples, or takes some of them out")
        return dim

    def cast(self, dtype: str) -> "Array":
        """The entries in another dtype."""
        if dtype == self.dtype:
            return self
        return replace(self, entries=each(lambda x: x.to(dtype), self.entries), dtype=dtype)

    def sum(self, dims: Sequence[int], keep: bool = False) -> "Array":
        """Sums over some axes, each taken in halves."""
        return self.reduce(lambda a, b: a + b, dims, keep)

    def reduce(self, combine: Callable[[Scalar, Scalar], Scalar], dims: Sequence[int], keep: bool = False) -> "Array":
        """What an associative operation makes of all entries along some axes; there is at least one entry."""
        dims = sorted(self.within(d) for d in dims) if self.shape else []
        entries, shape = self.entries, list(self.shape)
        for dim in dims:
            entries, shape[dim] = _halved(combine, entries, dim), 1
        found = self._like(entries, shape, self.batch)
        return found if keep else found._drop(dims)

    def _like(self, entries: Any, shape: Sequence[int], batch: Batch | None) -> "Array":
        return Array(entries, tuple(shape), self.dtype, batch)


def each(function: Callable[..., Scalar], *entries: Any) -> Any:
    """A function of scalars at every entry of arrays that broadcast."""

    def apply(*entries: Any) -> Any:
        check_size(prod(np.broadcast_shapes(*map(np.shape, entries))))
        with np.errstate(all="ignore"):  # of constants that are no numbers, or too large
            return np.asarray(np.frompyfunc(function, len(entries), 1)(*entries), dtype=object)

    return once_where_equal(apply, np.broadcast_arrays(*entries))


def once_where_equal(function: Callable[..., Any], entries: Sequence[Any], kept: Sequence[int] = ()) -> Any:
    """Apply a function of arrays to one position of each axis along which all of them are the same, save those kept."""
    rank = entries[0].ndim
    equal = [d for d in range(rank) if d not in kept and all(_is_uniform(e, d) for e in entries)]
    key = tuple(slice(0, 1) if d in equal else slice(None) for d in range(rank))
    found = function(*(e[key] for e in entries))
    check_size(found.size)
    sizes = [entries[0].shape[d] if d in equal else n for d, n in enumerate(found.shape)]
    return np.broadcast_to(found, sizes)


def _is_uniform(entries: Any, axis: int) -> bool:
    """Whether an array says by its strides that it is the same all along an axis."""
    return entries.shape[axis] > 1 and entries.strides[axis] == 0


def _reshaped(entries: Any, sizes: Sequence[int]) -> Any:
    """Entries in another shape; what is the same all along an axis stays one entry, however long the axis is."""
    if entries.ndim and entries.size and all(n == 1 or _is_uniform(entries, d) for d, n in enumerate(entries.shape)):
        return np.broadcast_to(entries[(slice(0, 1),) * entries.ndim].reshape([1] * len(sizes)), sizes)
    if entries.ndim and sizes and entries.shape[0] == sizes[0] and _is_uniform(entries, 0):
        return np.broadcast_to(_reshaped(entries[:1].reshape(entries.shape[1:]), sizes[1:]), sizes)
    check_size(prod(sizes))
    return entries.reshape(sizes)


def _completed(shape: Sequence[int], size: int) -> tuple[int, ...]:
    known = prod(n for n in shape if n != -1)
    return tuple(size // max(known, 1) if n == -1 else n for n in shape)


def check_size(size: int) -> None:
    """Raise NotScalar if an array would have too many entries; before it is made, since it may not fit into memory."""
    if size > LARGEST:
        raise NotScalar(f"it has a tensor of {size:,} entries, and {LARGEST:,} are the most")


def _halved(combine: Callable[[Scalar, Scalar], Scalar], entries: Any, dim: int) -> Any:
    """An axis of size 1 from one of any other: pairs are combined until one is left."""

    def pairs(entries: Any) -> Any:
        half = entries.shape[dim] // 2
        first, second, rest = np.split(entries, [half, 2 * half], dim)
        return np.concatenate([each(combine, first, second), rest], dim)

    while entries.shape[dim] > 1:
        entries = once_where_equal(pairs, [entries], [dim])
    if entries.shape[dim] == 0:
        raise NotScalar("it reduces an axis without entries")
    return entries


def aligned(arrays: Sequence[Array]) -> tuple[list[Any], tuple[int, ...], Batch | None]:
    """The entries of arrays that broadcast, what shape that makes, and where the samples lie.

    What has no samples, but is the same at every position along their axis, serves all of them.
    """
    rank = max(len(a.shape) for a in arrays)
    shape = tuple(np.broadcast_shapes(*(a.shape for a in arrays)))
    places = {replace(a.batch, axis=a.batch.axis + rank - len(a.shape)) for a in arrays if a.batch is not None}
    if len(places) > 1:
        raise NotScalar("it pairs every sample with every other")
    batch = next(iter(places), None)
    entries = [a.entries if batch is None else _without_samples(a, batch.axis - rank) for a in arrays]
    return entries, shape, batch


def _without_samples(array: Array, axis: int) -> Any:
    """The entries with one in place of equal ones along the axis, from the end, that holds samples elsewhere."""
    if array.batch is not None or len(array.shape) < -axis or array.shape[axis] == 1:
        return array.entries
    if not _is_uniform(array.entries, axis):
        raise NotScalar("a tensor that is not taken for one of samples has as many entries as there are samples")
    return array.entries.take([0], axis)


def uniform(scalar: Scalar, shape: Sequence[int]) -> Array:
    """A tensor that holds the same everywhere."""
    entries = np.empty((), dtype=object)
    entries[()] = scalar
    return Array(np.broadcast_to(entries, tuple(shape)), tuple(shape), scalar.dtype)


def pointwise(function: Callable[..., Scalar], arrays: Sequence[Array], dtype: str) -> Array:
    """A function of scalars at every entry."""
    entries, shape, batch = aligned(arrays)
    return Array(each(function, *entries), shape, dtype, batch)


def concatenate(arrays: Sequence[Array], dim: int) -> Array:
    """Tensors one behind the other along an axis."""
    dim = arrays[0].dim(dim)
    places = {a.batch for a in arrays if a.batch is not None}
    if any(b.axis == dim for b in places):
        return _samples_in_blocks(arrays, dim)
    if len(places) > 1:
        raise NotScalar("its samples lie along two axes")
    batch = next(iter(places), None)
    entries = [a.entries if batch is None else with_samples(a, batch) for a in arrays]
    shape = list(arrays[0].shape)
    shape[dim] = sum(a.shape[dim] for a in arrays)
    joined = once_where_equal(lambda *pieces: np.concatenate(pieces, dim), entries, [dim])
    return Array(joined, tuple(shape), arrays[0].dtype, batch)


def _samples_in_blocks(arrays: Sequence[Array], dim: int) -> Array:
    """All samples of one tensor, then all of the next, along one axis."""
    batches = [a.batch for a in arrays if a.batch is not None]
    samples = {a.layout()[1] for a in arrays if a.batch is not None}
    if len(batches) < len(arrays) or len(samples) > 1 or len({(b.axis, b.inner) for b in batches}) > 1:
        raise NotScalar("it puts samples one behind the other")
    batch = Batch(dim, sum(b.outer for b in batches), batches[0].inner)
    shape = list(arrays[0].shape)
    shape[dim] = sum(a.shape[dim] for a in arrays)
    return Array(np.concatenate([a.entries for a in arrays], dim), tuple(shape), arrays[0].dtype, batch)


def with_samples(array: Array, batch: Batch) -> Any:
    """The entries of a tensor as one whose samples lie there."""
    if array.batch is not None and array.batch != batch:
        raise NotScalar("its samples lie along two axes")
    entries = _without_samples(array, batch.axis - len(array.shape))
    width = batch.outer * batch.inner
    return np.repeat(entries, width, batch.axis) if entries.shape[batch.axis] != width else entries


def embed(array: Array, shape: Sequence[int], places: Mapping[int, Any]) -> Array:
    """Structural zeros of some shape, with the entries put at positions of some axes."""
    if array.entries.size == 0:
        raise NotScalar("it has a tensor without entries")
    zero = array.entries.flat[0].table.zero(array.dtype)
    places = {array.within(d): place for d, place in places.items()}

    def put(entries: Any) -> Any:
        sizes = [shape[d] if d in places else n for d, n in enumerate(entries.shape)]
        check_size(prod(sizes))
        found = np.full(sizes, zero, dtype=object)
        found[tuple(places.get(d, slice(None)) for d in range(len(sizes)))] = entries
        return found

    return replace(array, entries=once_where_equal(put, [array.entries], [*places]), shape=tuple(shape))


def matmul(a: Array, b: Array) -> Array:
    """Products of rows with columns, over any common axes in front."""
    left, right = a.unsqueeze(len(a.shape)), b.unsqueeze(len(b.shape) - 2)
    product = pointwise(lambda x, y: x * y, [left, right], a.dtype)
    return product.sum([len(product.shape) - 2])
