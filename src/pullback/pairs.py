"""Complex tensors as pairs of real numbers, along a last axis, and back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def as_pairs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Real numbers for complex ones, whose gradients are the pairs that PyTorch's gradients are made of."""
    return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]


def as_before(given: Any, tensor: Tensor) -> Any:
    """A complex tensor again where `tensor` is one."""
    is_pair = isinstance(given, Tensor) and tensor.is_complex() and not given.is_complex()
    return torch.view_as_complex(given.contiguous()) if is_pair else given
