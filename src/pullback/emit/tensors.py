"""Tensor operations that lowering is written in: each returns a value of a builder, and does only what is needed.

A transposition of a transposition, a reshape to the same shape, a sum over no axes: none of them becomes a node.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from ..dtypes import torch_dtype
from ..expressions import Builder, broadcast, promote
from ..graph import COMPLEX, Node, Value, real_of
from .builtins import shares_memory_with

_RESHAPES = frozenset(
    f"aten.{op}" for op in ("view.default", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims")
)

_MANY = 2**14  # elements; what is smaller stays in a cache, in whatever order it is read
_REPEATED = 4  # times that each element is read, at least, where a copy pays


class Tensors:
    """Operations on the values of one builder."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def view_of(self, op: str, args: tuple[Any, ...], shape: Sequence[int], like: Value) -> Value:
        """An ATen operator whose result has this shape, and the dtype of `like`."""
        return self.builder.node(f"aten.{op}", args, [(tuple(shape), like.dtype)])[0]

    def _made_by(self, value: Value, op: str) -> Node | None:
        node = self.builder.producer.get(value)
        return node if node is not None and node.op == f"aten.{op}" else None

    def permute(self, value: Value, dims: Sequence[int]) -> Value:
        """Axes in another order."""
        if tuple(dims) == tuple(range(len(value.shape))):
            return value
        whole, places = self.behind_permutation(value)
        if whole is not value:
            return self.permute(whole, [places[d] for d in dims])
        return self.view_of("permute.default", (value, tuple(dims)), [value.shape[d] for d in dims], value)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape."""
        shape = tuple(shape)
        if shape == value.shape:
            return value
        before = self.builder.producer.get(value)
        if before is not None and before.op in _RESHAPES:
            return self.reshape(before.inputs[0], shape)
        return self.view_of("view.default", (value, shape), shape, value)

    def behind_permutation(self, value: Value) -> tuple[Value, tuple[int, ...]]:
        """The value that this one is a transposition of, and the axis there of each axis here."""
        node = self.builder.producer.get(value)
        rank = len(value.shape)
        dims = list(range(rank))
        if node is not None and node.op == "aten.permute.default":
            dims = [d % rank for d in node.args[1]]
        elif node is not None and (node.op == "aten.t.default" and rank == 2):
            dims = [1, 0]
        elif node is not None and node.op == "aten.transpose.int" and rank:
            first, second = node.args[1] % rank, node.args[2] % rank
            dims[first], dims[second] = second, first
        else:
            return value, tuple(dims)
        whole, further = self.behind_permutation(node.inputs[0])
        return whole, tuple(further[d] for d in dims)

    def is_turned(self, value: Value) -> bool:
        """Whether its axes lie in memory in another order."""
        _, places = self.behind_permutation(self._reshaped(value))
        return tuple(places) != tuple(range(len(places)))

    def _reshaped(self, value: Value) -> Value:
        node = self.builder.producer.get(value)
        return node.inputs[0] if node is not None and node.op in _RESHAPES else value

    def in_order(self, value: Value, result: int) -> Value:
        """A tensor to be repeated over a result of so many elements: copied, if small, so that it is read in a row."""
        if result < _MANY or result < _REPEATED * value.size or not self.is_turned(value):
            return value
        return self.dense(value)

    def dense(self, value: Value) -> Value:
        """A copy whose elements lie in a row, in the order of its axes."""
        kwargs = (("memory_format", torch.contiguous_format),)
        return self.builder.node("aten.clone.default", (value,), [(value.shape, value.dtype)], kwargs)[0]

    def unsqueeze(self, value: Value, dim: int) -> Value:
        """A new axis of size 1."""
        return self.view_of("unsqueeze.default", (value, dim), value.shape[:dim] + (1,) + value.shape[dim:], value)

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """Axes of size 1 repeated."""
        shape = tuple(shape)
        return value if shape == value.shape else self.view_of("expand.default", (value, shape), shape, value)

    def select(self, value: Value, dim: int, index: int) -> Value:
        """One position of an axis; the axis is dropped."""
        if value.shape[dim] == 1:
            return self.squeeze(value, dim)
        return self.view_of("select.int", (value, dim, index), value.shape[:dim] + value.shape[dim + 1 :], value)

    def squeeze(self, value: Value, dim: int) -> Value:
        """Drop an axis of size 1."""
        before = self._made_by(value, "view.default")
        if before is not None:
            return self.reshape(value, value.shape[:dim] + value.shape[dim + 1 :])
        return self.view_of("squeeze.dim", (value, dim), value.shape[:dim] + value.shape[dim + 1 :], value)

    def slice(self, value: Value, dim: int, start: int, step: int, count: int) -> Value:
        """`count` positions of an axis from `start` on; a negative step flips the axis first."""
        size = value.shape[dim]
        if step < 0:
            value, start, step = self.flip(value, dim), size - 1 - start, -step
        if start == 0 and step == 1 and count == size:
            return value
        stop = start + step * (count - 1) + 1 if count else start
        shape = value.shape[:dim] + (count,) + value.shape[dim + 1 :]
        return self.view_of("slice.Tensor", (value, dim, start, stop, step), shape, value)

    def flip(self, value: Value, dim: int) -> Value:
        """An axis backwards."""
        return self.view_of("flip.default", (value, (dim,)), value.shape, value)

    def diagonal(self, value: Value, first: int, second: int) -> Value:
        """The entries where two axes agree, along a new last axis."""
        rest = [n for d, n in enumerate(value.shape) if d not in (first, second)]
        return self.view_of("diagonal.default", (value, 0, first, second), [*rest, value.shape[first]], value)

    def sum(self, value: Value, dims: Sequence[int]) -> Value:
        """The sum over some axes, which are dropped."""
        if not dims:
            return value
        shape = [n for d, n in enumerate(value.shape) if d not in dims]
        if prod(value.shape[d] for d in dims) == 1:
            return self.reshape(value, shape)
        return self.view_of("sum.dim_IntList", (value, tuple(sorted(dims))), shape, value)

    def running_sum(self, value: Value, dim: int, *, backwards: bool) -> Value:
        """The sum of all elements up to each along an axis, or from each on."""
        if backwards:
            return self.flip(self.running_sum(self.flip(value, dim), dim, backwards=False), dim)
        return self.view_of("cumsum.default", (value, dim), value.shape, value)

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype."""
        if value.dtype == dtype:
            return value
        if value.dtype in COMPLEX and dtype not in COMPLEX:
            return self.cast(self.real_part(value), dtype)
        kwargs = (("dtype", torch_dtype(dtype)),)
        return self.builder.node("aten._to_copy.default", (value,), [(value.shape, dtype)], kwargs)[0]

    def pointwise(self, op: str, *arguments: Any, dtype: str | None = None) -> Value:
        """An element-wise operator on broadcast arguments."""
        return self.builder.pointwise(f"aten.{op}", *arguments, dtype=dtype)

    def multiply(self, a: Value, b: Value) -> Value:
        """The element-wise product; the older value stands first, so that a·b and b·a are one node."""
        size = prod(broadcast([a.shape, b.shape]))
        a, b = self.in_order(a, size), self.in_order(b, size)
        first, second = sorted((a, b), key=lambda v: v.serial)
        return self.pointwise("mul.Tensor", first, second)

    def real_part(self, value: Value) -> Value:
        """The real part of a complex tensor, in memory of its own."""
        shape, dtype = value.shape, real_of(value.dtype)
        pairs = self.builder.node("aten.view_as_real.default", (self._resolved(value),), [((*shape, 2), dtype)])[0]
        part = self.builder.node("aten.select.int", (pairs, len(shape), 0), [(shape, dtype)])[0]
        return self.builder.node("aten.clone.default", (part,), [(shape, dtype)])[0]

    def conjugate(self, value: Value, lazy: bool = False) -> Value:
        """The complex conjugate; as a view, if `lazy`, that the operator which reads it conjugates."""
        made = self._made_by(value, "_conj.default") or self._made_by(value, "_conj_physical.default")
        if made is not None:
            return made.inputs[0] if lazy else self._resolved(made.inputs[0])
        op = "_conj.default" if lazy else "_conj_physical.default"
        return self.view_of(op, (value,), value.shape, value)

    def _resolved(self, value: Value) -> Value:
        """The same numbers, and no view that is yet to be conjugated."""
        root: Node | None = self.builder.producer.get(value)
        while root is not None and shares_memory_with(root) is not None:
            if root.op in ("aten._conj.default", "aten._neg_view.default"):
                return self.view_of("clone.default", (value,), value.shape, value)
            root = self.builder.producer.get(root.inputs[0])
        return value if root is not None else self.view_of("clone.default", (value,), value.shape, value)

    def scale(self, value: Value, factor: complex | float | int) -> Value:
        """A tensor times a number."""
        if factor == 1:
            return value
        if factor == -1:
            return self.pointwise("neg.default", value)
        return self.pointwise("mul.Tensor", value, factor)

    def masked(self, mask: Value, value: Value | float | int, dtype: str) -> Value:
        """`value` where the mask holds, zero elsewhere."""
        if isinstance(value, Value):
            return self.pointwise("where.ScalarOther", mask, value, 0.0, dtype=value.dtype)
        shape = mask.shape
        filled = self.full(shape, 0.0, dtype)
        return self.pointwise("masked_fill.Scalar", filled, mask, value, dtype=dtype)

    def full(self, shape: Sequence[int], number: complex | float | int, dtype: str) -> Value:
        """A tensor that holds one number."""
        if isinstance(number, complex) and dtype not in COMPLEX:
            number = number.real
        kwargs = (("dtype", torch_dtype(dtype)), ("device", torch.device(self.builder.device)))
        op = "aten.zeros.default" if number == 0 else "aten.full.default"
        args = (tuple(shape),) if number == 0 else (tuple(shape), number)
        return self.builder.node(op, args, [(tuple(shape), dtype)], kwargs)[0]

    def arange(self, start: int, step: int, count: int) -> Value:
        """`start + step · range(count)`, as indices."""
        kwargs = (("dtype", torch.int64), ("device", torch.device(self.builder.device)))
        stop = start + step * count
        return self.builder.node("aten.arange.start_step", (start, stop, step), [((count,), "int64")], kwargs)[0]

    def matmul(self, a: Value, b: Value) -> Value:
        """`mm`, `bmm`, `mv` or `dot`, by the number of axes."""
        common = promote((a, b))
        a, b = self.cast(a, common), self.cast(b, common)
        op = {(1, 1): "dot", (2, 1): "mv", (2, 2): "mm", (3, 3): "bmm"}[len(a.shape), len(b.shape)]
        shape = {"dot": (), "mv": a.shape[:1], "mm": a.shape[:1] + b.shape[1:], "bmm": a.shape[:2] + b.shape[2:]}[op]
        return self.view_of(f"{op}.default", (a, b), shape, a)

    def add(self, a: Value, b: Value) -> Value:
        """The element-wise sum."""
        return self.pointwise("add.Tensor", a, b)

    def index(self, value: Value, indices: Sequence[Value]) -> Value:
        """Advanced indexing of the leading axes: the indices' common shape, then the remaining axes."""
        shape = broadcast([i.shape for i in indices]) + value.shape[len(indices) :]
        return self.view_of("index.Tensor", (value, tuple(indices)), shape, value)
