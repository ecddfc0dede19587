"""Ctrl-C while a network trains: what has begun is finished, so that the run can be kept."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_interrupt_waits(announce: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C is announced and remembered; the second raises KeyboardInterrupt at once.

    Yields a function that tells whether there has been one.  Outside the main thread, which alone hears signals, it is
    as if there were none.
    """
    heard: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise KeyboardInterrupt
        announce()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)
