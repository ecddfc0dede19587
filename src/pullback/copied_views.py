"""Views at places that are data: `x[i]` where i is a tensor of one integer, while a function is traced.

PyTorch reads the number and makes a view.  A trace, which does not know it, gathers: what it makes is a copy, and both
are kept equal.  What is written into the copy is written into the original at once; where the original was written
into, the copy is made again before it is next read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .nested import tensors_in
from .torch_private import storage

ATEN = torch.ops.aten
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)  # what is no mask


@dataclass(frozen=True, eq=False)
class CopiedView:
    """What lies at some places along one axis of a tensor: that tensor, the axis, the places, and the copy."""

    original: Tensor
    axis: int
    places: Tensor
    copy: Tensor

    @property
    def index(self) -> list[Tensor | None]:
        """The places as PyTorch's operators for indexing take them."""
        return [*[None] * self.axis, self.places]


class CopiedViews:
    """The copies that one trace has made, and those of them that no longer hold what they stand for."""

    def __init__(self) -> None:
        self._views: list[CopiedView] = []
        self._stale: set[int] = set()
        self._is_renewing = False

    def __bool__(self) -> bool:
        return bool(self._views)

    def make(self, original: Tensor, axis: int, places: Tensor) -> Tensor:
        """What lies at some places along an axis, as a view in all but memory."""
        view = CopiedView(original, axis, places, original)
        copy = ATEN.index.Tensor(original, view.index)
        self._views.append(replace(view, copy=copy))
        return copy

    def before(self, operands: Any, written: list[Tensor]) -> None:
        """Make copies again that a call is going to read, and keep places that it is going to overwrite."""
        if self._stale:
            for tensor in tensors_in(operands):
                self._renew(storage(tensor))
        memory = set(map(storage, written))
        for k, view in enumerate(self._views):
            if storage(view.places) in memory:
                self._views[k] = replace(view, places=view.places.clone())

    def after(self, written: list[Tensor]) -> None:
        """Write through what a call has written into a copy; remember the copies of what it has written into."""
        if self._is_renewing:
            return
        for memory in set(map(storage, written)):
            self._stale.update(self._copies_of(memory))
            for view in tuple(self._views):
                if storage(view.copy) == memory:
                    ATEN.index_put_.default(view.original, view.index, view.copy)
                    self._stale.discard(memory)

    def _copies_of(self, memory: int) -> Iterator[int]:
        for view in self._views:
            if storage(view.original) == memory:
                yield storage(view.copy)
                yield from self._copies_of(storage(view.copy))

    def _renew(self, memory: int) -> None:
        if memory not in self._stale:
            return
        self._stale.discard(memory)
        view = next(view for view in self._views if storage(view.copy) == memory)
        with torch.enable_grad():  # as views are, whatever they are read under
            value = ATEN.index.Tensor(view.original, view.index)
            self._is_renewing = True
            try:
                view.copy.copy_(value)
            finally:
                self._is_renewing = False


# What is called with such places -------------------------------------------------------------------------------------


def is_unknown_integer(item: Any) -> bool:
    """Whether an index is one integer whose value a trace does not know."""
    return (
        isinstance(item, Tensor)
        and not item.dim()
        and item.dtype in INTEGERS
        and getattr(item, "constant", None) is None
        and not private.is_functorch_wrapped(item)
    )


def getitem(views: CopiedViews, x: Tensor, index: Any) -> Tensor:
    """As `x[index]`."""
    x, index = _gathered(views, x, index)
    return x[index]


def setitem(views: CopiedViews, x: Tensor, index: Any, value: Any) -> None:
    """As `x[index] = value`."""
    x, index = _gathered(views, x, index)
    x[index] = value


def _gathered(views: CopiedViews, x: Tensor, index: Any) -> tuple[Tensor, Any]:
    """An indexed tensor with one entry on each axis that an unknown integer selects from, and 0 for that integer."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not any(map(is_unknown_integer, items)) or private.is_functorch_wrapped(x):
        return x, index
    for k, axis in _axes(x, items):
        if is_unknown_integer(items[k]):
            x, items[k] = views.make(x, axis, items[k].reshape(1).long()), 0
    return x, tuple(items)


def _axes(x: Tensor, items: list[Any]) -> Iterator[tuple[int, int]]:
    """For each position in an index: the axis of x that it starts to select from."""
    axis, widths = 0, [_width(item) for item in items]
    for k, (item, width) in enumerate(zip(items, widths, strict=True)):
        yield k, axis
        axis += x.dim() - sum(widths) if item is Ellipsis else width


def _width(item: Any) -> int:
    """How many axes one item of an index selects from."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    if isinstance(item, (list, tuple)):
        return _depth(item) if _is_mask(item) else 1
    is_mask = str(getattr(item, "dtype", "")).removeprefix("torch.") in ("bool", "uint8")  # NumPy's, too
    return int(item.ndim) if is_mask else 1


def _is_mask(item: Any) -> bool:
    return _is_mask(item[0]) if isinstance(item, (list, tuple)) and item else isinstance(item, bool)


def _depth(item: Any) -> int:
    return 1 + _depth(item[0]) if isinstance(item, (list, tuple)) and item else 0


def select(views: CopiedViews, input: Tensor, dim: int, index: Any) -> Tensor:
    """As `torch.select`."""
    if not is_unknown_integer(index) or private.is_functorch_wrapped(input):
        return torch.select(input, dim, index)
    axis = dim % max(input.dim(), 1)
    return views.make(input, axis, index.reshape(1).long()).select(axis, 0)


def narrow(views: CopiedViews, input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """As `torch.narrow`."""
    if not is_unknown_integer(start) or private.is_functorch_wrapped(input):
        return torch.narrow(input, dim, start, length)
    size = input.shape[dim]
    places = torch.where(start < 0, start + size, start) + torch.arange(length, device=input.device)
    return views.make(input, dim % input.dim(), places)


SELECTORS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: getitem,
    Tensor.__setitem__: setitem,
    torch.select: select,
    Tensor.select: select,
    torch.narrow: narrow,
    Tensor.narrow: narrow,
}

__all__ = ["SELECTORS", "CopiedViews"]
