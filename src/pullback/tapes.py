"""Which records are in progress: each thread has its own, one inside another."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Thread(threading.local):
    """What the records in progress in one thread share.

    tapes: the records in progress, the outermost first.
    inside: whether a function of PyTorch is being called, for which grad mode has been turned off.
    enabled: grad mode as the user has it, while `inside`.
    depth: how many decompositions are under way; inside of one, PyTorch counts no changes in place.
    """

    def __init__(self) -> None:
        self.tapes: list[Any] = []
        self.inside = False
        self.enabled = True
        self.depth = 0


THREAD = Thread()


def is_recording() -> bool:
    """Whether what this thread computes now is being recorded."""
    return any(not tape.paused for tape in THREAD.tapes)


@contextmanager
def decomposing() -> Iterator[None]:
    """While an operator is replaced by others, from below autograd."""
    THREAD.depth += 1
    try:
        yield
    finally:
        THREAD.depth -= 1


MARK = "recorded_by_pullback"


def mark(tensor: Any) -> None:
    """Let a tensor that outlives its block say so; it is neither a constant nor autograd's."""
    setattr(tensor, MARK, True)


def was_recorded(tensor: Any) -> bool:
    """Whether a tensor was computed in a block that has ended."""
    return hasattr(tensor, MARK)


def other_tape_of(tensor: Any) -> Any:
    """The record in progress in which a tensor is an intermediate result; None if there is none."""
    for tape in THREAD.tapes:
        slot = tape.history.bindings.get(id(tensor))
        if slot is not None and not slot.is_leaf:
            return tape
    return None
