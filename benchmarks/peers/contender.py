"""What a peer makes of a task: something that can be called again and again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class NotOffered(Exception):
    """A peer cannot be asked this; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One way to compute what a task asks for.

    way: what it is called.
    call: computes it, and returns when that is done.
    convert: from NumPy's arrays to what `call` takes.
    arrays: from what `call` returns to NumPy's arrays.
    facts: what else is known of it, for the table.
    loop: computes it so many times with the same arguments, where a loop of Python would count as well.
    """

    way: str
    call: Callable[..., Any]
    convert: Callable[[Sequence[numpy.ndarray]], tuple[Any, ...]]
    arrays: Callable[[Any], list[numpy.ndarray]]
    facts: dict[str, Any] = field(default_factory=dict)
    loop: Callable[[tuple[Any, ...], int], None] | None = None

    def seconds(self, arguments: tuple[Any, ...], calls: int, clock: Callable[[], float]) -> float:
        """Seconds a call."""
        call, loop = self.call, self.loop
        begin = clock()
        if loop is not None:
            loop(arguments, calls)
        else:
            for _ in repeat(None, calls):
                call(*arguments)
        return (clock() - begin) / calls


def quickest(
    ways: dict[str, Contender], arguments: Sequence[numpy.ndarray], budget: float
) -> tuple[Contender, float, Any]:
    """The quickest way, the seconds of its first call, and its result.

    A way is tried only as long as less than half of the budget of seconds is spent; one that fails is left out.
    """
    begin, best, failures = time.perf_counter(), None, []
    for contender in ways.values():
        if best is not None and time.perf_counter() - begin > budget / 2:
            break
        given = contender.convert(arguments)
        start = time.perf_counter()
        try:
            result = contender.call(*given)
        except Exception as failure:  # a way that a library does not support is no way
            failures.append(f"{contender.way}: {type(failure).__name__}: {failure}")
            continue
        first = time.perf_counter() - start
        seconds = min(contender.seconds(given, 1, time.perf_counter) for _ in range(3))
        if best is None or seconds < best[0]:
            best = seconds, contender, first, result
    if best is None:
        raise RuntimeError("; ".join(failures))
    return best[1:]
