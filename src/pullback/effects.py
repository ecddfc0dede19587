"""What a captured function does besides computing: which tensors of its surroundings it writes into, and how.

A graph holds a write as a copy into an input at its end.  What is noted here is what the graph alone cannot tell: a
write with gradients on, which eager PyTorch would record or refuse, and a result that is the very tensor written into.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import torch_private as private
from .errors import CaptureError
from .nested import tensors_in
from .provenance import describe, refusal
from .recording import Step, Trace
from .torch_private import storage

# Their running statistics have no derivative, whatever is written into them.
_STATISTICS = ("aten::_native_batch_norm_legit", "aten::_batch_norm_with_update", "aten::native_batch_norm")


@dataclass(frozen=True)
class Effects:
    """What a graph does not tell of its function's effects; tensors of the surroundings by their key in the trace.

    returned: by number of a result, the tensor that it is.
    recorded: tensors that were written into with gradients on.
    """

    returned: Mapping[int, Any]
    recorded: frozenset[Any]


def effects(trace: Trace, steps: Sequence[Step], leaves: Sequence[Any]) -> Effects:
    """Read the effects off a first pass; arguments go by their number, other tensors by their identity."""
    keys: dict[int, Any] = {id(fake): key for key, (_, fake) in trace.lifted.items()}
    keys |= {id(fake): f"argument {k}" for k, fake in enumerate(trace.inputs)}
    fakes = [*trace.inputs, *(fake for _, fake in trace.lifted.values())]
    written = {storage(t) for step in steps if _is_recorded(step) for t in _targets(step)} - trace.statistics
    return Effects(
        {k: keys[id(leaf)] for k, leaf in enumerate(leaves) if id(leaf) in keys},
        frozenset(keys[id(fake)] for fake in fakes if _is_continuous(fake) and storage(fake) in written),
    )


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_recorded(step: Step) -> bool:
    return step.mutates and not step.stopping and private.schema(step.op).name not in _STATISTICS


def _targets(step: Step) -> Iterator[Tensor]:
    """The tensors that a call writes into."""
    parameters = private.schema(step.op).arguments
    named = dict(zip([a.name for a in parameters], step.args, strict=False)) | dict(step.kwargs)
    for a in parameters:
        if a.alias_info is not None and a.alias_info.is_write:
            yield from tensors_in(named.get(a.name))


def check_writes(trace: Trace, steps: Sequence[Step], originals: dict[int, Tensor]) -> None:
    """Refuse a change of a tensor that shares its memory with another input, which would have to change too."""
    written = {id(step.args[0]) for step in steps if step.mutates}
    if not written:
        return
    originals = originals | {id(fake): tensor for tensor, fake in trace.lifted.values()}
    memory = Counter(storage(private.unwrapped(tensor)) for tensor in originals.values())
    for key in written:
        if memory[storage(private.unwrapped(originals[key]))] > 1:
            raise CaptureError(
                f"f changes {describe(originals[key])} in place, which shares its memory with another tensor that f "
                "reads: pass a clone of one of them, or compute a new tensor instead of changing this one"
            )


@contextmanager
def no_optimiser(trace: Trace) -> Iterator[None]:
    """Refuse an optimiser of PyTorch's by name: its state, and when to begin with it, is Python's."""
    thread = threading.get_ident()

    def refuse(optimiser: Any, *_: Any) -> None:
        if threading.get_ident() == thread and trace.is_current:
            raise refusal(
                f"f calls {type(optimiser).__name__}.step(), whose state no graph can hold",
                "Call it outside with the gradients as .grad, or write the update in tensors: "
                "`with torch.no_grad(): p.sub_(lr * g)`.",
            )

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
