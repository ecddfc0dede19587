"""PyTorch: arrays as tensors, and back."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

torch.set_num_threads(1)


def tensors(arrays: Sequence[numpy.ndarray]) -> tuple[Tensor, ...]:
    """Fresh tensors with memory of their own."""
    return tuple(torch.from_numpy(numpy.array(array)) for array in arrays)


def arrays(result: Any) -> list[numpy.ndarray]:
    """Flat arrays of a result of any structure."""
    return [leaf.detach().numpy() for leaf in torch.utils._pytree.tree_leaves(result)]


def about() -> str:
    """Versions."""
    return f"PyTorch {torch.__version__}"
