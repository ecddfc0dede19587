"""Python's garbage collector, held back while there is nothing for it to collect.

A full collection walks every object that PyTorch has made, about 0.1 s.  Importing and compiling make many objects that
last, which is what sets collections off, and next to no cycles.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keep the collector from running inside; whether it runs afterwards is as it was before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
