"""Dtypes and devices: the names that graphs have for them, PyTorch's objects, and tensors of a value's type."""

from functools import cache, lru_cache

import torch

from .errors import GraphError
from .graph import Value


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as a graph names it: "float32"."""
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=64)
def device_name(device: torch.device) -> str:
    """A device as a graph names it: "cpu", "cuda:0"."""
    return str(device)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype object of a dtype name.  Raises GraphError if there is none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise GraphError(f"{name!r} is no dtype of PyTorch's")
    return dtype


def zeros_of(value: Value) -> torch.Tensor:
    """Zeros of the type of a value."""
    return torch.zeros(value.shape, dtype=torch_dtype(value.dtype), device=value.device)


def empty_of(value: Value) -> torch.Tensor:
    """A tensor of the type of a value, whose entries nobody reads."""
    return torch.empty(value.shape, dtype=torch_dtype(value.dtype), device=value.device)
