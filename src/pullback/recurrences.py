"""Linear recurrences along an axis, s[k] = a[k] s[k−1] + b[k], in O(n) and without a division: what scans derive to.

Pairs of steps are joined, s[k] = a[k] a[k−1] s[k−2] + (a[k] b[k−1] + b[k]), which leaves a recurrence of half the
length; its results are every second one of the whole (Blelloch, CMU-CS-90-190, section 1.4).
"""

from typing import Any

import torch
from torch import Tensor

from .library import LIBRARY
from .own_derivatives import PRODUCTS
from .recording import is_tracing


def recurrence(a: Tensor, b: Tensor, dim: int, adjoint: bool) -> Tensor:
    """The values s of a recurrence; if `adjoint`, of the transposed one, s[k] = conj(a[k+1]) s[k+1] + b[k].

    Arguments:
        a: the factors, the first of which is not used; may lack leading axes of `b`.
        dim: counted from the end.
    """
    found: Tensor = (
        torch.ops.pullback.recurrence.default(a, b, dim, adjoint) if is_tracing() else _run(a, b, dim, adjoint)
    )
    return found


def _run(a: Tensor, b: Tensor, dim: int, adjoint: bool) -> Tensor:
    a, b = a.movedim(dim, -1), b.movedim(dim, -1)
    if adjoint:
        backwards = a.conj().flip(-1)
        a, b = torch.cat([backwards[..., :1], backwards[..., :-1]], -1), b.flip(-1)
    s = _solved(a, b)
    return (s.flip(-1) if adjoint else s).movedim(-1, dim)


def _solved(a: Tensor, b: Tensor) -> Tensor:
    n = b.shape[-1]
    if n < 2:
        return b.clone()
    half = n // 2
    second = a[..., 1::2]
    odd = _solved(second * a[..., 0 : 2 * half : 2], b[..., 1::2] + second * b[..., 0 : 2 * half : 2])
    even = torch.cat([b[..., :1], b[..., 2::2] + a[..., 2::2] * odd[..., : n - half - 1]], -1)
    pairs = torch.stack([even[..., :half], odd], -1).flatten(-2)
    return torch.cat([pairs, even[..., half:]], -1) if n % 2 else pairs


def _recurrence_like(a: Tensor, b: Tensor, dim: int, adjoint: bool) -> Tensor:
    return torch.empty(b.shape, dtype=torch.promote_types(a.dtype, b.dtype), device=b.device)


def _recurrence_batched(info: Any, axes: Any, a: Tensor, b: Tensor, dim: int, adjoint: bool) -> tuple[Tensor, int]:
    rank = b.dim() - (axes[1] is not None)
    a = a if axes[0] is None else a.movedim(axes[0], 0)
    a = a if axes[0] is None else a.reshape(a.shape[0], *[1] * (rank - a.dim() + 1), *a.shape[1:])
    b = b.expand(info.batch_size, *b.shape) if axes[1] is None else b.movedim(axes[1], 0)
    return torch.ops.pullback.recurrence.default(a, b, dim, adjoint), 0


LIBRARY.define("recurrence(Tensor a, Tensor b, int dim, bool adjoint) -> Tensor")
LIBRARY.impl("recurrence", lambda *args: _run(*args).contiguous(), "CompositeExplicitAutograd")
torch.library.register_fake("pullback::recurrence", _recurrence_like, lib=LIBRARY)
torch.library.register_vmap("pullback::recurrence", _recurrence_batched, lib=LIBRARY)
PRODUCTS["pullback.recurrence.default"] = recurrence

__all__ = ["recurrence"]
