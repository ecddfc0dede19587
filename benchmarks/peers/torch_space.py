"""PyTorch: what tasks are written in, and the conversion of arrays."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional

torch.set_num_threads(1)


class Space:
    """The functions that tasks are written in, by PyTorch."""

    sin, cos, sqrt, exp, log, erf, abs, atan2 = (
        torch.sin, torch.cos, torch.sqrt, torch.exp, torch.log, torch.erf, torch.abs, torch.atan2
    )  # fmt: skip
    tanh, relu, sigmoid = torch.tanh, torch.relu, torch.sigmoid
    sum, mean, reshape, zeros_like = torch.sum, torch.mean, torch.reshape, torch.zeros_like
    gelu = functional.gelu
    cross_entropy = functional.cross_entropy
    binary_cross_entropy = functional.binary_cross_entropy

    @staticmethod
    def entries(x: Tensor) -> tuple[Tensor, ...]:
        return x.unbind(-1)

    @staticmethod
    def join(entries: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(entries), -1)

    @staticmethod
    def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return x.permute(axes)

    @staticmethod
    def softmax(x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    @staticmethod
    def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], scale, shift)

    @staticmethod
    def convolution(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(x, kernel, bias, padding=1)

    @staticmethod
    def max_pool(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2)


def tensors(arrays: Sequence[numpy.ndarray]) -> tuple[Tensor, ...]:
    """Fresh tensors with memory of their own."""
    return tuple(torch.from_numpy(numpy.array(array)) for array in arrays)


def arrays(result: Any) -> list[numpy.ndarray]:
    """Flat arrays of a result of any structure."""
    return [leaf.detach().numpy() for leaf in torch.utils._pytree.tree_leaves(result)]


def about() -> str:
    """Versions."""
    return f"PyTorch {torch.__version__}"
