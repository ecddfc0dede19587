"""Functions of the libraries that PyTorch has in it, found by their names."""

import ctypes
from functools import cache
from pathlib import Path

import torch

_NAMES = {"float64": "dgemm_", "float32": "sgemm_"}


def blas(dtype: str) -> int | None:
    """The address of BLAS's product of matrices; None where PyTorch's library does not export it."""
    return address_of(_NAMES[dtype])


@cache
def address_of(name: str) -> int | None:
    """The address of a function that PyTorch's library exports; None where it does not."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            function = getattr(ctypes.CDLL(str(path)), name)
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None
