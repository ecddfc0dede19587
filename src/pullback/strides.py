"""`as_strided` and its like in terms of entries: which entry of the operand each entry of the result is.

They read a tensor's memory, of which a graph knows nothing; but how the operand lies there is known where the call is
made.  So its entries are put in the order in which they lie, and what is taken from these are windows of windows: views
of a vector, whose derivatives are known to any order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .originals import offset_of
from .provenance import describe, refusal
from .recording import CURRENT

ATEN = torch.ops.aten


def as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """As `torch.as_strided` of a tensor whose entries fill the memory that is read.

    Raises CaptureError if they do not.
    """
    if 0 in size:
        return x.new_zeros(tuple(size))
    return _windows(_in_order(x), _start(x, storage_offset), size, stride, describe(x))


def as_strided_copy(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """As `torch.as_strided_copy`.  Raises as `as_strided`."""
    return as_strided(x, size, stride, storage_offset).clone()


def as_strided_scatter(
    x: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """As `torch.as_strided_scatter`: the operand, with a source where `as_strided` would read.  Raises as that."""
    if 0 in size:
        return x.clone()
    entries, order = _in_order(x), _order(x)
    numbers = torch.arange(x.numel(), device=x.device)
    places = _windows(numbers, _start(x, storage_offset), size, stride, describe(x))
    written = entries.index_put((places.reshape(-1),), src.expand(tuple(size)).reshape(-1))
    back = [order.index(axis) for axis in range(x.dim())]
    return written.reshape([x.shape[axis] for axis in order]).permute(back)


def _start(x: Tensor, storage_offset: int | None) -> int:
    """Where the result begins, counted from the operand's first entry."""
    if storage_offset is None:
        return 0
    trace = CURRENT.trace
    own = x.storage_offset() if trace is None or not trace.owns(x) else offset_of(trace, x)
    if own is None:
        raise refusal(
            f"as_strided is given a storage offset ({storage_offset}) where nobody knows at which offset its operand "
            f"({describe(x)}) will be",
            "Leave the offset out, and take a slice of the tensor first.",
        )
    return storage_offset - int(own)


def _order(x: Tensor) -> list[int]:
    """The axes, the one whose entries lie farthest apart first."""
    return sorted(range(x.dim()), key=lambda axis: (x.stride(axis), x.shape[axis]), reverse=True)


def _in_order(x: Tensor) -> Tensor:
    """The entries as a vector, in the order in which they lie in memory."""
    order, step = _order(x), 1
    for axis in reversed(order):
        if x.shape[axis] > 1 and x.stride(axis) != step:
            raise refusal(
                f"as_strided reads the memory of a tensor whose entries do not fill it ({describe(x)}, strides "
                f"{tuple(x.stride())})",
                "Use .contiguous() first, or indexing.",
            )
        step *= x.shape[axis]
    return x.permute(order).reshape(-1)


def _windows(entries: Tensor, start: int, size: Sequence[int], stride: Sequence[int], what: str) -> Tensor:
    """Y[i, j, …] = entries[start + i · stride₀ + j · stride₁ + …], which are windows of windows of a vector."""
    spans = [1]  # how many entries are reached by the last axes
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        spans.insert(0, spans[0] + (length - 1) * step)
    if start < 0 or start + spans[0] > entries.shape[0]:
        raise refusal(
            f"as_strided reads memory outside of its operand ({what}): entries {start} to {start + spans[0] - 1}",
            "Use the tensor that all of the memory belongs to.",
        )
    result = entries[start : start + spans[0]]
    for length, step, span in zip(size, stride, spans[1:], strict=True):
        if step:
            result = result.unfold(-1, span, step)
        else:
            result = result.unsqueeze(-2).expand(*result.shape[:-1], length, span)
    return result.squeeze(-1)


STRIDED: Mapping[Any, Callable[..., Any]] = {
    ATEN.as_strided.default: as_strided,
    ATEN.as_strided_copy.default: as_strided_copy,
    ATEN.as_strided_scatter.default: as_strided_scatter,
}

__all__ = ["STRIDED", "as_strided", "as_strided_copy", "as_strided_scatter"]
