"""`torch.autograd.Function`s, and operators with `register_autograd`, inside a record.

A call is one step.  Its forward runs unseen; its derivative is the backward that the user wrote, called as it is, with
the very tensors that were saved: a sequence of operators with such a step in it is never compiled.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .errors import RecordError
from .history import Step
from .nested import tensors_in
from .own_derivatives import FUNCTION
from .provenance import describe
from .recipes import Kind, Recipe
from .scribe import Scribe, refuse
from .torch_private import count_writes
from .user_functions import Call, call_function, call_operator, cotangents_of, is_continuous

RECIPE = Recipe(None, Kind.NODE, FUNCTION, -1)


@dataclass(frozen=True)
class Backward:
    """What a step of a user's function does to cotangents.

    call: the call, with what it saved; versions: how often each saved tensor had been changed in place by then.
    operands: the number of each floating argument's value; None for one without a derivative.
    """

    call: Call
    saved: tuple[Tensor, ...]
    versions: tuple[int, ...]
    operands: tuple[int | None, ...]

    def pull(
        self, step: Step, given: Sequence[int], wanted: Sequence[int], cotangents: Sequence[Tensor], last: bool
    ) -> list[Tensor | None]:
        """The cotangents of the wanted values, None for one that has none, of those of the given results.

        last: whether nothing differentiates this again.
        """
        self._check(step, last)
        arriving = dict(zip(given, cotangents, strict=True))
        results = [k for k in step.outputs if k is not None]
        pairs = zip(self.call.differentiable, results, strict=True)
        known = {number: arriving[k] for number, k in pairs if k in arriving}
        found: dict[int, Tensor] = {}
        for k, cotangent in zip(self.operands, cotangents_of(self.call, known), strict=True):
            if k is not None and cotangent is not None:
                found[k] = found[k] + cotangent if k in found else cotangent
        return [found.get(k) for k in wanted]

    def _check(self, step: Step, last: bool) -> None:
        where = f"{self.call.title} ({step.place.source or 'an unknown line'})"
        if self.call.once and not last:
            problem = f"{where} is marked once_differentiable, and its derivative is recorded"
            raise RecordError(f"{problem}: take the mark off if its backward may be differentiated")
        for tensor, version in zip(self.saved, self.versions, strict=True):
            if count_writes(tensor) != version:
                raise RecordError(
                    f"the backward of {where} reads a tensor ({describe(tensor)}) that was changed in place since\n"
                    "  Compute the derivative before the change, or change a clone() instead."
                )


def record_function(scribes: Sequence[Scribe], cls: Any, args: Any, kwargs: Any) -> Call:
    """Call a user's function unseen, and write it down as one step in each of the records in progress."""
    if any(private.is_functorch_wrapped(t) for t in tensors_in(args)):
        raise refuse(f"the block calls {cls.__qualname__}, a torch.autograd.Function, under vmap", "Write a loop.")

    def needs(argument: Any) -> bool:
        return is_continuous(argument) and any(scribe.slot_of(argument) is not None for scribe in scribes)

    with unseen(scribes):
        call = call_function(cls, args, kwargs, needs)
        given = {id(a) for a in call.arguments if isinstance(a, Tensor)}
        call = call.with_results(tuple(r.view_as(r) if id(r) in given else r for r in call.results))
    for scribe in scribes:
        _write(scribe, call)
    return call


def record_operator(scribe: Scribe, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a user's operator that has a derivative of its own, and write it down as one step."""
    result = op(*args, **kwargs)
    with unseen([scribe]):
        call = call_operator(op, args, kwargs, result)
    _write(scribe, call)
    return result


@contextmanager
def unseen(scribes: Sequence[Scribe]) -> Iterator[None]:
    """While it runs, nothing is recorded."""
    before = [scribe.paused for scribe in scribes]
    for scribe in scribes:
        scribe.paused = True
    try:
        with torch.no_grad():
            yield
    finally:
        for scribe, was_paused in zip(scribes, before, strict=True):
            scribe.paused = was_paused


def _write(scribe: Scribe, call: Call) -> None:
    """Write a call down."""
    inputs = call.inputs
    active = [scribe.slot_of(t) is not None for t in inputs]
    if not any(active) or not call.differentiable:
        return
    refs = tuple(scribe.read(t) for t in inputs)
    operands = tuple(r.index if is_active else None for r, is_active in zip(refs, active, strict=True))
    saved = tuple(tensors_in((call.context.saved_tensors, list(vars(call.context).values()))))
    outputs = [scribe.bind(call.results[k]) for k in call.differentiable]
    step = scribe.step(RECIPE, (refs,), (), outputs)
    step.backward = Backward(call, saved, tuple(map(count_writes, saved)), operands)
