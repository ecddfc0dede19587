"""What a program brings into the trace of which it becomes a part: constants, writes, and what it relies on."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .originals import Assumptions, offset_of, value_of
from .recording import CURRENT
from .torch_private import storage, unwrapped


def adopt_constants(tensors: Iterable[Tensor]) -> None:
    """Let what a nested trace made of Python numbers be constants of the trace in progress, too, if there is one."""
    trace = CURRENT.trace
    for tensor in tensors:
        if trace is not None and not trace.owns(tensor):
            trace.lift(tensor)
            trace.created.add(id(tensor))


def adopt_statistics(tensors: Iterable[Tensor]) -> None:
    """Let writes of a nested program into these tensors be as little recorded in the trace in progress as they were."""
    trace = CURRENT.trace
    if trace is not None:
        trace.statistics.update(storage(unwrapped(trace.own(tensor))) for tensor in tensors)


def adopt_assumptions(assumed: Assumptions, flat: Sequence[Any]) -> None:
    """Let the trace in progress rely on what a program, of which it becomes a part, relies on."""
    trace = CURRENT.trace
    if trace is not None and assumed:
        for k in assumed.places:
            offset_of(trace, unwrapped(trace.own(flat[k])))
        for k in assumed.values:
            value_of(trace, unwrapped(trace.own(flat[k])))
