"""Tensor operations that formulas are written in, beyond arithmetic: each adds a node to the builder of its operand."""

from collections.abc import Sequence
from math import prod
from typing import Any

from ..expressions import Symbol
from .kernels import bare


def tensor(op: str, *args: Any, shape: Sequence[int], dtype: str, **kwargs: Any) -> Symbol:
    """The first result of an ATen operator on symbols and constants, the first of which is a symbol."""
    builder = args[0].builder
    return Symbol(builder.node(f"aten.{op}", bare(args), [(tuple(shape), dtype)], tuple(kwargs.items()))[0], builder)


def constant(like: Symbol, op: str, *args: Any, shape: Sequence[int], dtype: str) -> Symbol:
    """A tensor that does not depend on any other, on the device of `like`."""
    kwargs = (("device", like.value.device),)
    return Symbol(like.builder.node(f"aten.{op}", args, [(tuple(shape), dtype)], kwargs)[0], like.builder)


def view(x: Symbol, shape: Sequence[int]) -> Symbol:
    """The same elements in another shape."""
    return x if tuple(shape) == x.shape else tensor("view.default", x, tuple(shape), shape=shape, dtype=x.dtype)


def inserted(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """A shape with one more axis."""
    return (*shape[:dim], size, *shape[dim:])


def resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """A shape with one axis of another size."""
    return (*shape[:dim], size, *shape[dim + 1 :])


def flip(x: Symbol, dim: int) -> Symbol:
    """An axis backwards."""
    return tensor("flip.default", x, (dim,), shape=x.shape, dtype=x.dtype)


def shifted(x: Symbol, dim: int, steps: int, filler: float | int) -> Symbol:
    """Each element moved along an axis by some steps; what moves in is the filler."""
    rest = x.shape[dim] - steps
    ahead = tensor("slice.Tensor", x, dim, 0, rest, shape=resized(x.shape, dim, rest), dtype=x.dtype)
    padding = (0, 0) * (x.rank - 1 - dim) + (steps, 0)
    return tensor("constant_pad_nd.default", ahead, padding, filler, shape=x.shape, dtype=x.dtype)


def positions(like: Symbol, size: int, dim: int = 0, rank: int = 1) -> Symbol:
    """0, 1, …, size − 1 along one axis of a tensor of that rank."""
    numbers = constant(like, "arange.default", size, shape=(size,), dtype="int64")
    return view(numbers, tuple(size if d == dim else 1 for d in range(rank)))


def truth(like: Symbol, shape: Sequence[int], holds: bool) -> Symbol:
    """A mask that holds everywhere, or nowhere."""
    return constant(like, "full.default", tuple(shape), holds, shape=shape, dtype="bool")


def axis(dim: int, rank: int) -> int:
    """The number of an axis, counted from the front."""
    return dim % max(rank, 1)


def reduced_dims(dims: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """The axes that a reduction runs over; None and an empty list mean all of them."""
    if rank == 0:
        return ()
    if dims is None or dims == ():
        return tuple(range(rank))
    return tuple(sorted(axis(d, rank) for d in ((dims,) if isinstance(dims, int) else dims)))


def kept(y: Symbol, x: Symbol, dims: Sequence[int]) -> Symbol:
    """The result of a reduction of x, with an axis of size 1 for each that was reduced."""
    return view(y, tuple(1 if d in dims else n for d, n in enumerate(x.shape)))


def count(x: Symbol, dims: Sequence[int]) -> int:
    """The number of elements that a reduction puts together."""
    return prod(x.shape[d] for d in dims)


def reduce(op: str, x: Symbol, dims: Sequence[int], dtype: str | None = None) -> Symbol:
    """A reduction that keeps its axes with size 1."""
    shape = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    return tensor(op, x, tuple(dims), True, shape=shape, dtype=dtype or x.dtype) if dims else x


__all__ = [
    "axis",
    "constant",
    "count",
    "flip",
    "inserted",
    "kept",
    "positions",
    "reduce",
    "reduced_dims",
    "resized",
    "shifted",
    "tensor",
    "truth",
    "view",
]
