"""Detached tensors under in-place changes.

`detach` returns a view, through which functionalization would send later changes of the result back to its operand and
out again through the detachment, so that they lost their derivative.  Most detachments are private: PyTorch's own, of
what its factories make, and those of results under `no_grad`.  Nothing else sees their operands, so that they need not
be views.  What is written through any other is refused.
"""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from .nested import tensors_in
from .provenance import refusal
from .recording import DETACH, Step
from .torch_private import storage


def private_detachments(steps: Sequence[Step], outside: Sequence[Tensor], leaves: Sequence[Tensor]) -> frozenset[int]:
    """The identities of detached tensors whose operand's memory is read through them alone.

    outside: tensors that exist beyond the function; leaves: what it returns.
    """
    uses = Counter(id(t) for step in steps for t in tensors_in([step.args, step.kwargs]))
    uses.update(map(id, leaves))
    visible = set(map(storage, outside))
    private = set()
    for step in steps:
        if step.op is DETACH and uses[id(step.args[0])] == 1 and storage(step.args[0]) not in visible:
            private.add(id(step.results[0]))
        else:
            visible.update(storage(t) for t in tensors_in([step.args, step.kwargs]))
    return frozenset(private)


def refuse_writes(steps: Sequence[Step], private: frozenset[int], outside: Sequence[Tensor]) -> None:
    """Raise CaptureError where a detached view is written to, and a derivative would be lost or made up by that.

    Tensors that exist beyond the function may be written to through `.data`, by values that have no derivative.
    """
    detached: set[int] = set()
    surroundings = set(map(storage, outside))
    for step in steps:
        operands = [t for t in tensors_in([step.args, step.kwargs]) if id(t) in detached]
        if step.mutates:
            _refuse_write(step, detached, surroundings)
        elif step.op is DETACH and id(step.results[0]) not in private:
            detached.add(id(step.results[0]))
        elif operands:
            memory = set(map(storage, operands))
            detached.update(id(t) for t in tensors_in(step.results) if storage(t) in memory)


def _refuse_write(step: Step, detached: set[int], surroundings: set[int]) -> None:
    target, *others = tensors_in([step.args, step.kwargs])
    written = [t for t in others if t.is_floating_point() and id(t) not in detached]
    if id(target) in detached and not step.stopping and (written or storage(target) not in surroundings):
        raise refusal(
            "f changes a detached tensor in place",
            "It shares its memory with the tensor it was detached from: change a .clone() of it instead.",
            step.source,
        )
