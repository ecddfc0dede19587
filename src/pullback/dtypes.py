"""Dtypes and devices: the names that graphs have for them, and PyTorch's objects."""

from functools import cache, lru_cache

import torch

from .errors import GraphError


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
