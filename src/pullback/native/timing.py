"""What kernels are predicted to take, and their compiler; measured on a server's processor."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from .elements import BYTES, Buffer, Computed, Entry, reads
from .nests import Nest, Reduction
from .pages import LARGEST_KEPT
from .products import Product
from .results import MOST

CALL, TENSOR = 1.5e-6, 0.8e-6  # seconds of one call, and for each tensor that it returns
KERNEL, LIBRARY = 2e-8, 3e-7  # to start a kernel, and BLAS
OPERATION, FUNCTION = 0.1e-9, 1.3e-9  # of one element
BYTE = 0.04e-9
FRESH, FAR = 0.3e-9, 0.06e-9  # for each byte of a large result: that the system hands out anew; beyond the caches
ADDITION = 0.2e-9  # of one element to a sum
MULTIPLICATION = {"float64": 0.022e-9, "float32": 0.012e-9}
COMPILER, COMPILED = 0.07, 0.02  # to start, and for each different kernel


def predicted_seconds(kernels: Iterable[Any], outputs: Sequence[Buffer]) -> float:
    """Seconds for one call of a function that returns these.

    Cost: linear in the number of kernels.
    """
    sizes = [buffer.size * BYTES[buffer.dtype] for buffer in outputs]
    return CALL + TENSOR * len(sizes) + large_memory(sizes) + sum(map(_seconds, kernels))


def large_memory(sizes: Iterable[int], fresh: float = FRESH, far: float = FAR) -> float:
    """Seconds that results of so many bytes take for being large: those that are too large to be kept are fresh."""
    return sum(size * (fresh if size > MOST else far) for size in sizes if size > LARGEST_KEPT)


def predicted_build(distinct: int) -> float:
    """Seconds until a function of so many different kernels can be called, where it was not built before."""
    return COMPILER + COMPILED * distinct


def _seconds(kernel: Any) -> float:
    if isinstance(kernel, Nest):
        written = sum(BYTES[store.buffer.dtype] for store in kernel.stores)
        return KERNEL + _elements(kernel.domain, [store.entry for store in kernel.stores], written)
    if isinstance(kernel, Reduction):
        return KERNEL + _elements(kernel.domain, [kernel.entry], 0) + prod(kernel.domain) * ADDITION
    assert isinstance(kernel, Product)
    count, rows, columns, terms = kernel.extents
    work = count * rows * columns * terms * MULTIPLICATION[kernel.c.dtype]
    moved = count * rows * columns * BYTES[kernel.c.dtype] * BYTE
    return (LIBRARY if kernel.way == "blas" else KERNEL) * count + work + moved


def _elements(domain: Sequence[int], entries: Sequence[Entry], written: int) -> float:
    seen: set[int] = set()
    operations = functions = 0
    waiting = list(entries)
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, Computed) and id(entry) not in seen:
            seen.add(id(entry))
            operations += 1
            functions += entry.heavy
            waiting.extend(entry.operands)
    moved = written + sum(BYTES[read.dtype] for entry in entries for read in reads(entry))
    return prod(domain) * (operations * OPERATION + functions * FUNCTION + moved * BYTE)
