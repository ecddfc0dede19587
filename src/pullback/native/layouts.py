"""Where the elements of a tensor lie: an offset and one stride for each axis, and what views make of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from ..graph import Node


@dataclass(frozen=True, slots=True)
class Layout:
    """Element [i, j, …] lies at `offset + i · strides[0] + j · strides[1] + …`, counted in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie one behind the other, in order."""
        return self.strides_without_units() == dense(self.shape).strides_without_units()

    def strides_without_units(self) -> tuple[int, ...]:
        """The strides of the axes that have more than one position."""
        return tuple(s for n, s in zip(self.shape, self.strides, strict=True) if n != 1)

    def permute(self, dims: Sequence[int]) -> "Layout":
        """The axes in another sequence."""
        return Layout(tuple(self.shape[d] for d in dims), tuple(self.strides[d] for d in dims), self.offset)

    def expand(self, shape: Sequence[int]) -> "Layout":
        """Axes of one position, and missing ones in front, repeated."""
        missing = len(shape) - len(self.shape)
        own = zip(self.shape, self.strides, shape[missing:], strict=True)
        strides = (0,) * missing + tuple(0 if n == 1 != m else s for n, s, m in own)
        return Layout(tuple(shape), strides, self.offset)

    def select(self, dim: int, position: int) -> "Layout":
        """One position of an axis, which is dropped."""
        rest = [d for d in range(len(self.shape)) if d != dim]
        return Layout(
            tuple(self.shape[d] for d in rest),
            tuple(self.strides[d] for d in rest),
            self.offset + position * self.strides[dim],
        )

    def slice(self, dim: int, start: int, count: int, step: int) -> "Layout":
        """`count` positions of an axis from `start` on, `step` apart."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + (start * strides[dim] if count else 0)
        shape[dim], strides[dim] = count, strides[dim] * step
        return Layout(tuple(shape), tuple(strides), offset)

    def diagonal(self, shift: int, first: int, second: int) -> "Layout":
        """The positions at which two axes agree, but for a shift, as a new last axis."""
        rows, columns = self.shape[first] - max(-shift, 0), self.shape[second] - max(shift, 0)
        count = max(min(rows, columns), 0)
        start = max(-shift, 0) * self.strides[first] + max(shift, 0) * self.strides[second]
        rest = [d for d in range(len(self.shape)) if d not in (first, second)]
        shape, strides = tuple(self.shape[d] for d in rest), tuple(self.strides[d] for d in rest)
        step = self.strides[first] + self.strides[second]
        return Layout((*shape, count), (*strides, step), self.offset + (start if count else 0))

    def reshape(self, shape: Sequence[int]) -> "Layout | None":
        """The same elements in the same order over other axes; None where no strides say that."""
        if self.size == 0:
            return dense(tuple(shape))
        blocks = _mergeable([(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1])
        strides: list[int] = []
        for extent in reversed(shape):
            if extent == 1:
                strides.append(0)
                continue
            if not blocks or blocks[-1][0] % extent:
                return None
            count, step = blocks.pop()
            strides.append(step)
            if count != extent:
                blocks.append((count // extent, step * extent))
        return Layout(tuple(shape), tuple(reversed(strides)), self.offset)


def dense(shape: Sequence[int]) -> Layout:
    """Elements one behind the other."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return Layout(tuple(shape), tuple(reversed(strides)))


def _mergeable(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring axes joined where one continues the other."""
    joined = axes[:1]
    for (_, _), (count, step) in pairwise(axes):
        before, wide = joined[-1]
        if wide == count * step:
            joined[-1] = (before * count, step)
        else:
            joined.append((count, step))
    return joined


# ---------------------------------------------------------------- views of ATen

View = Callable[[Layout, Node], "Layout | None"]


def _dim(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def given(node: Node, *defaults: Any) -> list[Any]:
    """The arguments behind the first one, with these defaults."""
    return [*node.args[1:], *defaults[len(node.args) - 1 :]]


def bounds(extent: int, start: int | None, stop: int | None, step: int) -> tuple[int, int]:
    """The first position of a slice and how many there are."""
    positions = range(extent)[slice(start, stop, step)]
    return positions.start, len(positions)


def _slice(layout: Layout, node: Node) -> Layout:
    dim, start, stop, step = given(node, 0, None, None, 1)
    dim = _dim(dim, len(layout.shape))
    first, count = bounds(layout.shape[dim], start, stop, step)
    return layout.slice(dim, first, count, step)


def _select(layout: Layout, node: Node) -> Layout:
    dim, position = given(node)
    dim = _dim(dim, len(layout.shape))
    return layout.select(dim, position % layout.shape[dim])


def _diagonal(layout: Layout, node: Node) -> Layout:
    shift, first, second = given(node, 0, 0, 1)
    rank = len(layout.shape)
    return layout.diagonal(shift, _dim(first, rank), _dim(second, rank))


def _transpose(layout: Layout, node: Node) -> Layout:
    rank = len(layout.shape)
    if not rank:
        return layout
    first, second = (_dim(d, rank) for d in given(node))
    dims = list(range(rank))
    dims[first], dims[second] = second, first
    return layout.permute(dims)


def _permute(layout: Layout, node: Node) -> Layout:
    return layout.permute([_dim(d, len(layout.shape)) for d in node.args[1]])


def _reshape(layout: Layout, node: Node) -> Layout | None:
    """`view`, `squeeze`, `unsqueeze`: what they have in common is the shape of their result."""
    return layout.reshape(node.results[0].shape)


def _expand(layout: Layout, node: Node) -> Layout:
    return layout.expand(node.results[0].shape)


_RESHAPES = "view _unsafe_view reshape squeeze squeeze.dim squeeze.dims unsqueeze detach alias lift_fresh".split()
VIEWS: Mapping[str, View] = {
    **{f"aten.{op}" if "." in op else f"aten.{op}.default": _reshape for op in _RESHAPES},
    "aten.t.default": lambda layout, node: layout.permute(range(len(layout.shape))[::-1]),
    "aten.permute.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.expand.default": _expand,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.diagonal.default": _diagonal,
}
