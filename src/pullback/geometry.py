"""How a view lies in the tensor that it is a view of, told from sizes, strides and offsets alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import RecordError


@dataclass(frozen=True)
class Select:
    """One position along an axis, which is gone."""

    axis: int
    position: int


@dataclass(frozen=True)
class Slice:
    """Every `step`-th position along an axis."""

    axis: int
    start: int
    stop: int
    step: int


@dataclass(frozen=True)
class Reshape:
    """Every entry, in the same order."""


@dataclass(frozen=True, eq=False)
class Scattered:
    """Entries anywhere: `positions` has the view's shape and counts the root's entries from 0."""

    positions: Tensor


Lie = Select | Slice | Reshape | Scattered


def lie_of(view: Tensor, root: Tensor) -> Lie:
    """Where a view's entries are in its root.

    Cost: constant, except that entries which are no simple part take an index of the root's size to be found.
    """
    offset = int(view.storage_offset()) - int(root.storage_offset())
    if offset == 0 and view.numel() == root.numel() and view.is_contiguous() and root.is_contiguous():
        return Reshape()
    simple = _select(view, root, offset) if view.dim() == root.dim() - 1 else _slice(view, root, offset)
    return simple or _scattered(view, root, offset)


def _select(view: Tensor, root: Tensor, offset: int) -> Select | None:
    for axis in range(root.dim()):
        stride, size = root.stride(axis), root.shape[axis]
        rest = (root.shape[:axis] + root.shape[axis + 1 :], root.stride()[:axis] + root.stride()[axis + 1 :])
        fits = stride > 0 and offset % stride == 0 and offset // stride < size
        if fits and (view.shape, view.stride()) == rest:
            return Select(axis, offset // stride)
    return None


def _slice(view: Tensor, root: Tensor, offset: int) -> Slice | None:
    if view.dim() != root.dim() or view.numel() == 0:
        return None
    different = [k for k in range(root.dim()) if view.shape[k] != root.shape[k] or view.stride(k) != root.stride(k)]
    if len(different) != 1:
        return None
    axis = different[0]
    stride = root.stride(axis)
    if stride == 0 or offset % stride or view.stride(axis) % stride or view.stride(axis) == 0:
        return None
    start, step = offset // stride, view.stride(axis) // stride
    stop = start + (view.shape[axis] - 1) * step + 1
    return Slice(axis, start, stop, step) if stop <= root.shape[axis] else None


def _scattered(view: Tensor, root: Tensor, offset: int) -> Scattered:
    """Raises RecordError for a view of memory that is not the root's."""
    entries, reach = _extent(root), offset + _extent(view)
    numbers = torch.full((max(entries, reach),), -1, dtype=torch.int64, device=root.device)
    own = numbers.as_strided(root.shape, root.stride())
    own.copy_(torch.arange(root.numel(), device=root.device).reshape(root.shape))
    positions = numbers.as_strided(view.shape, view.stride(), max(offset, 0))
    if offset < 0 or (positions < 0).any():
        raise RecordError(
            f"as_strided reads memory outside of its operand (entries {offset} to {reach - 1} of {entries}), whose "
            "derivative is not known: use the tensor that all of the memory belongs to"
        )
    return Scattered(positions.contiguous())


def _extent(tensor: Tensor) -> int:
    """How many places there are from the first entry of a tensor to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps) if tensor.numel() else 0
