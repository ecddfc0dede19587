"""What scalar programs are predicted to take, and their compiler; measured on a server's processor."""

from collections.abc import Iterable
from math import prod

import numpy as np

from .expansion import Expansion
from .operations import is_call
from .scalars import Scalar
from .timing import large_memory

CALL = 2.5e-6  # seconds from one call of a program to the next, and for each tensor that it returns
TENSOR = 0.6e-6
OPERATION, FUNCTION = 0.3e-9, 12e-9  # of one number
IN_VECTORS, FUNCTION_IN_VECTORS, MOVED = 0.045e-9, 1.2e-9, 0.15e-9  # for each sample
STREAMED = 0.02e-9  # for each byte of a large result, where its memory is not fresh
COMPILER, STATEMENT = 0.09, 4.5e-4  # to start, and for each operation


def predicted_seconds(expansion: Expansion) -> float:
    """Seconds for one call.  Cost: linear in the number of operations."""
    ordered = expansion.operations()
    seconds = CALL + TENSOR * len(expansion.outputs)
    if expansion.samples is None:
        return seconds + _work(ordered, OPERATION, FUNCTION)
    moved = sum(a.entries.size for a in expansion.outputs) + sum(x.op == "input" for x in ordered)
    work = _work(ordered, IN_VECTORS, FUNCTION_IN_VECTORS) + moved * MOVED
    sizes = [prod(a.shape) * np.dtype(a.dtype).itemsize for a in expansion.outputs]
    return seconds + expansion.samples * work + large_memory(sizes, STREAMED)


def _work(ordered: Iterable[Scalar], operation: float, function: float) -> float:
    return sum(function if is_call(x) else operation for x in ordered)


def predicted_build(expansion: Expansion) -> float:
    """Seconds until the program can be called, where it was not built before."""
    return COMPILER + STATEMENT * len(expansion.operations())
