"""The functions that tasks are written in, by PyTorch.

A module, since that is what a user's code would import: what a function reads besides its arguments is compared at
every call by whatever guards a compiled program, and a class of our own would be one thing more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

sin, cos, sqrt, exp, log, erf = torch.sin, torch.cos, torch.sqrt, torch.exp, torch.log, torch.erf
abs, atan2, tanh, relu, sigmoid = torch.abs, torch.atan2, torch.tanh, torch.relu, torch.sigmoid
sum, mean, reshape, zeros_like = torch.sum, torch.mean, torch.reshape, torch.zeros_like
gelu, cross_entropy, binary_cross_entropy = (
    functional.gelu,
    functional.cross_entropy,
    functional.binary_cross_entropy,
)


def entries(x: Tensor) -> tuple[Tensor, ...]:
    return x.unbind(-1)


def join(entries: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(entries), -1)


def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.permute(axes)


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], scale, shift)


def convolution(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x, kernel, bias, padding=1)


def max_pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 2)
