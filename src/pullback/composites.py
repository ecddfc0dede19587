"""Functions of PyTorch that are made of operators in a way which no graph can hold, written anew.

`torch.cosine_similarity` bounds the norms from below in place and under `no_grad`, so that the bound has no derivative and
the norms keep theirs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """As `torch.cosine_similarity`, with its derivative."""
    x1, x2 = torch.broadcast_tensors(x1, x2)
    return (_normalised(x1, dim, eps) * _normalised(x2, dim, eps)).sum(dim)


def _normalised(x: Tensor, dim: int, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, 2, dim, keepdim=True)
    return x / (norm + (norm.clamp_min(eps) - norm).detach())


COMPOSITES: dict[Any, Callable[..., Any]] = {torch.cosine_similarity: cosine_similarity}
