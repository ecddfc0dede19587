"""Where native programs of batches spend their time, beside what the machine needs to write their results.

    python benchmarks/batches.py [--task 'heart dipole ×512'] [--clock cpu]

For each task: a public call; its kernel alone, into memory that is there; the same bytes set to zero through the
caches, and past them; the same memory handed out by the system; and what the kernel computes of one sample, with the
time that its divisions, roots and functions take by themselves.
"""

import argparse
import mmap
import re
import sys
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from statistics import median
from typing import Any

import harness
import torch
from peers import ours
from peers.torch_space import tensors
from tasks.catalogue import TASKS
from torch import Tensor

from pullback.native.building import has_vector_math, native_function
from pullback.native.operations import declarations

ROUNDS = 21
NUMBERS = 4096
FILL = """
#include <stdint.h>
typedef double line __attribute__((vector_size(64), may_alias));
void fill(double *to, int64_t count) { __builtin_memset(to, 0, count * 8); }
void stream(double *to, int64_t count)
{
  const line zero = {0};
  for (int64_t k = 0; k + 8 <= count; k += 8)
#ifdef __AVX512F__
    __asm__("vmovntdq %1, %0" : "=m"(*(line *)(to + k)) : "v"(zero));
#else
    *(line *)(to + k) = zero;
#endif
#ifdef __AVX512F__
  __asm__ volatile("sfence" ::: "memory");
#endif
}
void touch(char *to, int64_t bytes) { for (int64_t k = 0; k < bytes; k += 4096) to[k] = 1; }
"""
OPERATION = """
#include <stdint.h>
{declaration}
void apply(const double *x, double *y, int64_t count)
{{
  #pragma omp simd
  for (int64_t k = 0; k < count; ++k) y[k] = {expression};
}}
"""
INFIX = {"div": "x[k] / (x[k] + 1.0)", "sqrt": "__builtin_sqrt(x[k])"}


def seconds(run: Callable[[], Any], once: int = 1) -> float:
    """The median of a few samples, each of at least so many calls and a millisecond."""
    begin = harness.clock()
    run()
    calls = max(once, int(harness.SHORTEST_SAMPLE / max(harness.clock() - begin, 1e-7)))
    samples = []
    for _ in range(ROUNDS):
        begin = harness.clock()
        for _ in range(calls):
            run()
        samples.append((harness.clock() - begin) / calls)
    return median(samples)


def operation_seconds(name: str, known: dict[str, float]) -> float:
    """Of one number, in vectors."""
    if name not in known:
        own = "" if name in INFIX else "\n".join(declarations({(name, "float64")}, has_vector_math()))
        arguments = "x[k], 0.5" if name in ("atan2", "pow", "hypot") else "x[k]"
        source = OPERATION.format(declaration=own, expression=INFIX.get(name, f"p_{name}({arguments})"))
        apply = native_function(source, "apply", 2, 1)
        x = torch.linspace(0.1, 1.4, NUMBERS, dtype=torch.float64)
        y = torch.empty_like(x)
        known[name] = seconds(lambda: apply(x.data_ptr(), y.data_ptr(), NUMBERS)) / NUMBERS
    return known[name]


def counted(source: str) -> Counter[str]:
    """How often one sample is divided, rooted, and given to each function; and all operations."""
    body = source[source.index("#pragma omp simd") :]
    found = Counter(re.findall(r"= p_(\w+)\(", body))
    found["div"] = len(re.findall(r"const double t\d+ = \S+ / \S+;", body))
    found["sqrt"] = body.count("__builtin_sqrt")
    found["operations"] = body.count("const double t")
    return +found


def fresh(size: int, touch: Callable[..., None]) -> None:
    """Write to each page of new memory."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    touch(tensor.data_ptr(), size)


def kernel_of(transform: Any, given: tuple[Tensor, ...]) -> tuple[Callable[..., None], str]:
    """The function of C behind a compiled transform, and its source."""
    code = transform.compile(*given).code
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["native"], namespace["SOURCE"]


def describe(name: str, known: dict[str, float]) -> str:
    """The lines of a task."""
    given = tensors(TASKS[name].arguments(0))
    transform = ours._transform(TASKS[name], {"backend": "native"})
    result = transform(*given)
    native, source = kernel_of(transform, given)
    fill, stream, touch = (native_function(FILL, one, 1, 1) for one in ("fill", "stream", "touch"))
    room = torch.zeros(result.numel() + 8, dtype=torch.float64)
    y = room[(-room.data_ptr() // 8) % 8 :][: result.numel()]
    place, size = y.data_ptr(), result.nbytes
    del result
    times = {
        "call": seconds(lambda: transform(*given)),
        "kernel": seconds(lambda: native(given[0].data_ptr(), place, len(given[0]))),
        "zeros": seconds(lambda: fill(place, len(y))),
        "streamed": seconds(lambda: stream(place, len(y))),
        "fresh": seconds(lambda: fresh(size, touch)),
    }
    count = counted(source)
    heavy = {k: operation_seconds(k, known) for k in sorted(count) if k != "operations"}
    text = ", ".join(f"{count[k]} {k} of {1e9 * s:.2f} ns" for k, s in heavy.items()) or "no division, root or function"
    by_themselves = len(given[0]) * sum(count[k] * s for k, s in heavy.items())
    figures = ", ".join(f"{k} {1e6 * s:.1f}" for k, s in times.items())
    return (
        f"{name}: {size / 1e6:.3g} MB of results; in µs: {figures}, heavy {1e6 * by_themselves:.1f}\n"
        f"    one sample: {count['operations']} operations, among them {text}"
    )


def main() -> int:
    """Print every batched task of functions of numbers, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", metavar="NAME", help="a task, or a pattern with *; may be repeated")
    parser.add_argument("--clock", choices=harness.CLOCKS, default="wall", help="which clock (default %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    harness.use_clock(given.clock)
    print(f"{harness.environment()}, {given.clock} clock", flush=True)
    known: dict[str, float] = {}
    for name, task in TASKS.items():
        if task.batched and task.numbers is not None and any(fnmatchcase(name, p) for p in given.task or ["*"]):
            print(describe(name, known), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
