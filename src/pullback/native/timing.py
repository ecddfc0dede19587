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
OPERATION, FUNCTION = 0.015e-9, 0.13e-9  # of each byte of one element: vectors hold twice as many floats as doubles
BYTE, STREAMED = 0.015e-9, 0.05e-9  # that is read or written: in a cache, and beyond
CACHED = 2**20  # bytes
FRESH = 0.13e-9  # for each byte of memory that the system hands out anew, in large pages
ADDITION = 0.2e-9  # of one element to a sum
MULTIPLICATION = {"float64": 0.022e-9, "float32": 0.012e-9}
COMPILER, COMPILED = 0.07, 0.02  # to start, and for each different kernel


def predicted_seconds(kernels: Iterable[Any], outputs: Sequence[Buffer]) -> float:
    """Seconds for one call of a function that returns these.

    Cost: linear in the number of kernels.
    """
    sizes = [buffer.size * BYTES[buffer.dtype] for buffer in outputs]
    return CALL + TENSOR * len(sizes) + large_memory(sizes) + sum(map(_seconds, kernels))


def large_memory(sizes: Iterable[int], far: float = 0.0) -> float:
    """Seconds that results of so many bytes take for being large: fresh memory, or `far` for each byte that is kept."""
    return sum(size * (FRESH if size > MOST else far) for size in sizes if size > LARGEST_KEPT)


def predicted_build(distinct: int) -> float:
    """Seconds until a function of so many different kernels can be called, where it was not built before."""
    return COMPILER + COMPILED * distinct


def _seconds(kernel: Any) -> float:
    if isinstance(kernel, Nest):
        sizes = [BYTES[store.buffer.dtype] for store in kernel.stores]
        return KERNEL + _elements(kernel.domain, [store.entry for store in kernel.stores], sum(sizes), max(sizes))
    if isinstance(kernel, Reduction):
        size = BYTES[kernel.entry.dtype]
        return KERNEL + _elements(kernel.domain, [kernel.entry], 0, size) + prod(kernel.domain) * ADDITION
    assert isinstance(kernel, Product)
    count, rows, columns, terms = kernel.extents
    work = count * rows * columns * terms * MULTIPLICATION[kernel.c.dtype]
    moved = _moved(count * rows * columns * BYTES[kernel.c.dtype])
    return (LIBRARY if kernel.way == "blas" else KERNEL) * count + work + moved


def _moved(size: int) -> float:
    return BYTE * min(size, CACHED) + STREAMED * max(size - CACHED, 0)


def _elements(domain: Sequence[int], entries: Sequence[Entry], written: int, size: int) -> float:
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
    work = size * (operations * OPERATION + functions * FUNCTION)
    return prod(domain) * work + _moved(prod(domain) * moved)
