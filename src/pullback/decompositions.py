"""Operators that are not worth a rule of their own, written by others: what PyTorch's core table does not hold.

Each takes what the operator takes and returns what it returns, without loops over entries.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .shared_settings import Shared, setting

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)


# Sampling a grid -----------------------------------------------------------------------------------------------------


def grid_sampler(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """As `aten.grid_sampler_2d` and `aten.grid_sampler_3d`: x at the places of a grid, coordinates last axis first.

    The neighbours along each axis lie along an axis of their own: shapes are (batch, neighbours …, places …).
    """
    sizes = x.shape[2:]
    positions, weights = [], []
    for axis, size in enumerate(sizes):
        place = _unnormalised(grid[..., len(sizes) - 1 - axis], size, align_corners)
        if mode != BICUBIC:
            place = _padded(place, size, padding, align_corners)
        neighbours, shares = _neighbours(place, mode)
        if mode == BICUBIC:
            neighbours = _padded(neighbours, size, padding, align_corners)
        own = [neighbours.shape[1] if d == axis else 1 for d in range(len(sizes))]
        shape = (x.shape[0], *own, *grid.shape[1:-1])
        positions.append(neighbours.reshape(shape))
        weights += [] if shares is None else [shares.reshape(shape).unsqueeze(1)]
    entries = _entries(x, positions)
    for weight in weights:
        entries = entries * weight
    return entries.sum(tuple(range(2, 2 + len(sizes))))


def _unnormalised(coordinate: Tensor, size: int, align_corners: bool) -> Tensor:
    """From −1 … 1 to positions along an axis."""
    return (coordinate + 1) * ((size - 1) / 2) if align_corners else ((coordinate + 1) * size - 1) / 2


def _padded(position: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    """Positions outside moved to the border, or reflected at it; zeros are put in later."""
    if padding == ZEROS:
        return position
    if padding == REFLECTION:
        low, high = (0, 2 * (size - 1)) if align_corners else (-1, 2 * size - 1)
        position = _reflected(position, low / 2, (high - low) / 2)
    return _clipped(position, size)


def _reflected(position: Tensor, low: float, span: float) -> Tensor:
    if span == 0:
        return torch.zeros_like(position)
    distance = (position - low).abs()
    flips, rest = (distance / span).floor(), distance.fmod(span)
    return torch.where(flips.remainder(2) == 0, rest + low, span - rest + low)


def _clipped(position: Tensor, size: int) -> Tensor:
    """Within the axis; without a derivative on its ends, as in PyTorch's kernel."""
    inside = (position > 0) & (position < size - 1)
    return torch.where(inside, position, position.detach().clamp(0, size - 1))


def _neighbours(place: Tensor, mode: int) -> tuple[Tensor, Tensor | None]:
    """The neighbours along an axis, and how much each of them weighs, along axis 1."""
    if mode == NEAREST:
        return place.detach().round().unsqueeze(1), None
    below = place.detach().floor()
    t = place - below
    if mode == BILINEAR:
        return torch.stack([below, below + 1], 1), torch.stack([1 - t, t], 1)
    around = torch.stack([below + k for k in range(-1, 3)], 1)
    return around, torch.stack([_outer(t + 1), _inner(t), _inner(1 - t), _outer(2 - t)], 1)


def _inner(t: Tensor, a: float = -0.75) -> Tensor:
    """Cubic convolution at a distance below 1."""
    return ((a + 2) * t - (a + 3)) * t * t + 1


def _outer(t: Tensor, a: float = -0.75) -> Tensor:
    """Cubic convolution at a distance between 1 and 2."""
    return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a


def _entries(x: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """X at whole positions, of shape (batch, channels, …); zero outside."""
    batch, channels, *sizes = x.shape
    inside, flat = (
        torch.ones((), dtype=torch.bool, device=x.device),
        torch.zeros((), dtype=torch.int64, device=x.device),
    )
    for position, size in zip(positions, sizes, strict=True):
        inside = inside & (position >= 0) & (position <= size - 1)
        flat = flat * size + position.nan_to_num(nan=-1.0).clamp(0, size - 1).to(torch.int64)
    shape = flat.shape[1:]
    index = flat.reshape(batch, 1, -1).expand(batch, channels, -1)
    entries = x.reshape(batch, channels, -1).gather(2, index).reshape(batch, channels, *shape)
    return torch.where(inside.unsqueeze(1), entries, 0)


# Reductions of segments ----------------------------------------------------------------------------------------------

NEUTRAL = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -inf, "min": inf}
MODES = {"sum": "sum", "mean": "sum", "prod": "prod", "max": "amax", "min": "amin"}


def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: float | None = None,
) -> Tensor:
    """As `aten.segment_reduce`: runs of an axis put together, by their lengths or their offsets."""
    if lengths is None:
        if offsets is None:
            return NotImplemented
        lengths = offsets.diff(dim=-1)
    ends = lengths.cumsum(-1)
    numbers = torch.arange(data.shape[axis], device=data.device).expand(*data.shape[:axis], -1).contiguous()
    segment = torch.searchsorted(ends.contiguous(), numbers.to(ends.dtype), right=True)
    trailing = (1,) * (data.dim() - axis - 1)
    index = segment.reshape(*segment.shape, *trailing).expand(data.shape)
    beyond, last = index >= lengths.shape[axis], max(lengths.shape[axis] - 1, 0)  # what belongs to no segment
    data, index = torch.where(beyond, NEUTRAL[reduce], data), index.clamp_max(last)
    start = NEUTRAL[reduce] if initial is None else initial
    shape = (*lengths.shape, *data.shape[axis + 1 :])
    before = torch.full(shape, start, dtype=data.dtype, device=data.device)
    result = before.scatter_reduce(axis, index, data, MODES[reduce])
    if reduce != "mean":
        return result
    count = lengths.reshape(*lengths.shape, *trailing)
    empty = torch.full_like(result, torch.nan if initial is None else initial)
    return torch.where(count > 0, result / count.clamp_min(1).to(data.dtype), empty)


# Undoing a maximum pooling -------------------------------------------------------------------------------------------


def max_unpool(x: Tensor, indices: Tensor, output_size: Sequence[int], *_: Any) -> Tensor:
    """As `aten.max_unpool2d` and `aten.max_unpool3d`: where a place is written twice, the last writer alone counts."""
    rank = len(output_size)
    entries, places = x.flatten(-rank), indices.flatten(-rank)
    writers = torch.arange(entries.shape[-1], device=x.device).expand(entries.shape)
    empty = entries.new_zeros((*entries.shape[:-1], prod(output_size)))
    last = empty.to(torch.int64).scatter(-1, places, writers).gather(-1, places)
    written = torch.where(last == writers, entries, 0)
    return empty.scatter_add(-1, places, written).reshape(*x.shape[:-rank], *output_size)


# Margins between labels ----------------------------------------------------------------------------------------------

NONE, MEAN = 0, 1


def multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """As `aten.multilabel_margin_loss_forward`; PyTorch's own counts what stands behind the first −1 as label 0."""
    scores, labels = torch.atleast_2d(x), torch.atleast_2d(target)
    size = scores.shape[-1]
    counted = ((labels < 0).cumsum(-1) == 0).unsqueeze(-1)
    chosen = labels.where(counted.squeeze(-1), 0)
    is_target = (counted & (chosen.unsqueeze(-1) == torch.arange(size, device=x.device))).any(-2)
    margins = (1 - scores.gather(-1, chosen).unsqueeze(-1) + scores.unsqueeze(-2)).clamp_min(0)
    losses = torch.where(counted & ~is_target.unsqueeze(-2), margins, 0).sum((-2, -1)) / size
    if reduction == NONE:
        result = losses.reshape(target.shape[:-1])
    else:
        result = losses.mean() if reduction == MEAN else losses.sum()
    return result, is_target.to(x.dtype).reshape(target.shape)


ATEN = torch.ops.aten
MARGINS = ATEN.multilabel_margin_loss_forward.default
# In a trace PyTorch takes it apart above all modes, so that a table alone would come too late.
OWN_MARGINS = Shared(
    lambda: setting(
        lambda: private.autograd_kernel(MARGINS),
        lambda kernel: private.set_autograd_kernel(MARGINS, kernel),
        multilabel_margin_loss,
    )
)
DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    ATEN.grid_sampler_2d.default: grid_sampler,
    ATEN.grid_sampler_3d.default: grid_sampler,
    ATEN.segment_reduce.default: segment_reduce,
    ATEN.max_unpool2d.default: max_unpool,
    ATEN.max_unpool3d.default: max_unpool,
    MARGINS: multilabel_margin_loss,
}
