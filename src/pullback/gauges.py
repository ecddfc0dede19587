"""What a factorisation leaves open, and the check that no derivative depends on it, while a program runs.

Singular vectors and eigenvectors of complex matrices are unique up to a phase each, and the columns of `svd` beyond the
singular values (`full_matrices=True`) up to a change of basis: the gauge.  PyTorch's choice among them is arbitrary, so
that the derivative of a function that can tell them apart is no one number.
"""

from typing import Any

import torch
from torch import Tensor

from .errors import GaugeError
from .torch_private import is_traced

LIBRARY = torch.library.Library("pullback", "FRAGMENT")
LIBRARY.define("gauge_directions(Tensor vectors, int own, bool are_rows, int count) -> Tensor")
LIBRARY.define(
    "require_invariance(Tensor derivative, Tensor slopes, float tolerance, float floor, str place) -> Tensor"
)


def gauge_directions(vectors: Tensor, own: int, are_rows: bool, count: int) -> Tensor:
    """Directions in which vectors may move, along a first axis: one that PyTorch might have moved them in, and others.

    Arguments:
        vectors: columns, or rows if `are_rows`: those of an adjoint matrix, whose phases turn the other way.
        own: how many are unique up to a phase; those behind them are a basis of the space that is left.
        count: how many directions; the others may be any, and say what the slope along the first is to be small beside.
    """
    columns = vectors.mH if are_rows else vectors
    turned = torch.cat([_turned(columns[..., :own]), _rotated(columns[..., own:])], -1)
    others = [_drawn(columns, k) for k in range(1, count)]
    found = torch.stack([turned, *others])
    return (found.mH if are_rows else found).clone(memory_format=torch.contiguous_format)


def _turned(columns: Tensor) -> Tensor:
    """Each column along its phase, by an amount that no other has."""
    if not columns.is_complex():
        return torch.zeros_like(columns)
    count = columns[..., :1, :].numel()
    numbers = torch.arange(1, count + 1, dtype=torch.float64, device=columns.device)
    amounts = 1 + (numbers * 0.6180339887498949).frac()  # of the golden ratio, whose multiples do not meet
    return columns * (1j * amounts).reshape(columns[..., :1, :].shape).to(columns.dtype)


def _rotated(columns: Tensor) -> Tensor:
    """A basis along a rotation in the space that it spans."""
    size = columns.shape[-1]
    mixed = _drawn(columns[..., :1, :].expand(*columns.shape[:-2], size, size), 0)
    return columns @ (mixed - mixed.mH)


def _drawn(like: Tensor, seed: int) -> Tensor:
    """Numbers between −1 and 1 with no pattern to speak of; the same ones each time."""
    real, imaginary = (_scattered(like, seed + part) for part in (0.1, 0.7))
    return torch.complex(real, imaginary).to(like.dtype) if like.is_complex() else real.to(like.dtype)


def _scattered(like: Tensor, seed: float) -> Tensor:
    numbers = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device)
    return (((numbers + 37 * seed).sin() * 43758.5453).frac() * 2 - 1).reshape(like.shape)


def require_invariance(derivative: Tensor, slopes: Tensor, tolerance: float, floor: float, place: str) -> Tensor:
    """The derivative, once it is known that nothing of it depends on the gauge.

    Arguments:
        slopes: of what is differentiated, along the directions of `gauge_directions`, which lie along the last axis.
        tolerance: how large the first may be relative to the others; floor: relative to the largest of all, and at all.
        place: the factorisations and their lines.

    Raises GaugeError if it does depend on it.
    """
    if not is_traced(slopes) and slopes.device.type != "meta":
        along, others = slopes[..., 0].abs(), slopes[..., 1:].abs().amax(-1)
        if along.numel() and bool((along > tolerance * others + floor * (1 + others.max())).any()):
            raise GaugeError(refusal(float(along.max()), float(others.max()), place))
    return derivative.clone()


def refusal(along: float, others: float, place: str) -> str:
    """Why a derivative is refused."""
    return (
        "what is differentiated depends on what a factorisation leaves open: a phase for each singular vector or "
        "eigenvector of a complex matrix, or a basis of those beyond the singular values (full_matrices=True). Its "
        f"slope along them is {along:.3g} (along other changes of the vectors {others:.3g}), so that its derivative is "
        "no one number. Let it depend on V @ V.mH, on V.abs(), or on V * (V[:1].conj() / V[:1].abs()), where the "
        f"phases are fixed{place}"
    )


def _directions_batched(info: Any, axes: Any, vectors: Tensor, *rest: Any) -> tuple[Tensor, int]:
    return torch.ops.pullback.gauge_directions.default(vectors.movedim(axes[0], 0), *rest), 1


def _invariance_batched(info: Any, axes: Any, derivative: Tensor, slopes: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """The samples are checked together, and none is told from the others."""
    size = info.batch_size
    first, second = (
        t.expand(size, *t.shape) if axis is None else t.movedim(axis, 0)
        for t, axis in ((derivative, axes[0]), (slopes, axes[1]))
    )
    return torch.ops.pullback.require_invariance.default(first, second, *rest), 0


for _name, _function in (("gauge_directions", gauge_directions), ("require_invariance", require_invariance)):
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
torch.library.register_fake("pullback::gauge_directions", gauge_directions, lib=LIBRARY)
torch.library.register_fake("pullback::require_invariance", lambda d, *_: torch.empty_like(d).contiguous(), lib=LIBRARY)
torch.library.register_vmap("pullback::gauge_directions", _directions_batched, lib=LIBRARY)
torch.library.register_vmap("pullback::require_invariance", _invariance_batched, lib=LIBRARY)

__all__ = ["gauge_directions", "refusal", "require_invariance"]
