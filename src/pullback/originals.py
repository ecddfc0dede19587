"""What a trace asks of the tensors that its fakes stand for: where they lie, and the values of integers.

A program that relies on an answer serves only calls for which it is the same: the inputs in question are noted in the
trace, and guarded.  A shape that depends on the values of integers or Booleans which the function only reads is known
in this way; one that depends on what it computes with real numbers is not.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .nested import flat_results, map_tensors, tensors_in
from .torch_private import storage

ATEN = torch.ops.aten
MASKS = (torch.bool, torch.uint8)  # the dtypes of index tensors that are masks


@dataclass(frozen=True)
class Assumptions:
    """What a graph takes for granted, by the numbers of its inputs: their places in memory, and their values."""

    places: frozenset[int] = frozenset()
    values: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.places or self.values)


NONE = Assumptions()


def offset_of(trace: Any, fake: Tensor) -> int | None:
    """Where a fake begins in its memory; of an input, where the real tensor does, or None if nobody can tell."""
    first, original = trace.originals.get(storage(fake), (None, None))
    if original is None:
        return int(fake.storage_offset())
    begin: int | None = None
    if private.is_traced(original):
        outer = trace.outer
        begin = offset_of(outer, original) if outer is not None and outer.owns(original) else None
    elif trace.may_assume:
        begin = int(original.storage_offset())
    trace.placed.add(id(first))
    return None if begin is None else begin + int(fake.storage_offset())


def value_of(trace: Any, fake: Tensor, until: int | None = None) -> Tensor | None:
    """The value of a fake that depends on integers and Booleans alone, or None.

    until: how many of the recorded calls have been made; by default all of them.
    """
    first, original = trace.originals.get(storage(fake), (None, None))
    if _is_written(trace, storage(fake)):
        return _rewritten(trace, fake, until) if original is None else None
    if first is not fake:
        return _computed(trace, fake)
    if id(original) in trace.created:
        return original
    if fake.is_floating_point() or fake.is_complex():
        return None
    value: Tensor | None = None
    if private.is_traced(original):
        outer = trace.outer
        value = value_of(outer, original) if outer is not None and outer.owns(original) else None
    elif trace.may_assume:
        value = original
    if value is not None:
        trace.valued.add(id(fake))
    return value


def _is_written(trace: Any, memory: int) -> bool:
    """Whether the function has changed anything in some memory."""
    writes = [step for step in trace.recorder.raw if step.mutates]
    return any(storage(tensor) == memory for step in writes for tensor in targets(step.op, step.args, step.kwargs))


def targets(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What a call writes into."""
    parameters = private.schema(op).arguments
    given = dict(zip([a.name for a in parameters], args, strict=False)) | dict(kwargs)
    written = [a.name for a in parameters if a.alias_info is not None and a.alias_info.is_write]
    return [tensor for name in written for tensor in tensors_in(given.get(name))]


def _rewritten(trace: Any, fake: Tensor, until: int | None) -> Tensor | None:
    """The value of what the function has made and then written into, by making those calls again in their order."""
    memory, values = storage(fake), dict[int, Tensor]()
    for position, step in enumerate(trace.recorder.raw[:until]):
        if all(storage(tensor) != memory for tensor in tensors_in((step.args, step.kwargs, step.results))):
            continue
        operands = {
            id(t): values.get(id(t)) if storage(t) == memory else value_of(trace, t, position)
            for t in tensors_in((step.args, step.kwargs))
        }
        results = _made_again(step, operands)
        if results is None:
            return None
        values.update((id(known), result) for known, result in zip(step.results, results, strict=True))
    return values.get(id(fake))


def _computed(trace: Any, fake: Tensor) -> Tensor | None:
    """The value of a result, by making the calls again that it comes from."""
    made = [
        *((0, step) for step in trace.recorder.steps),
        *enumerate(trace.recorder.raw),
    ]  # of the former no time is known
    found = next(((k, step) for k, step in reversed(made) if any(result is fake for result in step.results)), None)
    if found is None or found[1].mutates:
        return None
    position, step = found
    results = _made_again(step, {id(t): value_of(trace, t, position) for t in tensors_in((step.args, step.kwargs))})
    if results is None:
        return None
    return next(result for result, known in zip(results, step.results, strict=True) if known is fake)


def _made_again(step: Any, operands: dict[int, Tensor | None]) -> list[Any] | None:
    """The results of a call on known values; None where one is not known, or the call draws at random."""
    if torch.Tag.nondeterministic_seeded in step.op.tags or any(value is None for value in operands.values()):
        return None
    args, kwargs = map_tensors((step.args, step.kwargs), lambda tensor: operands[id(tensor)])
    with outside_of_traces():
        return flat_results(step.op(*args, **kwargs))


@contextmanager
def outside_of_traces() -> Iterator[None]:
    """Where operators compute on real tensors, whatever is in progress."""
    with private.disable_current_modes(), private.disable_function_modes():
        yield


# Operators whose results depend on values ----------------------------------------------------------------------------


def resolved(recorder: Any, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """The result of a call that PyTorch cannot make on fakes, if it depends on known values; None if it does not."""
    resolve = RESOLVED.get(op)
    try:
        return None if resolve is None else (resolve(recorder, *args, **kwargs),)
    except _UnknownValueError:
        return None


class _UnknownValueError(Exception):
    """A value is not known."""


def _known(recorder: Any, fake: Tensor) -> Tensor:
    value = value_of(recorder.trace, fake)
    if value is None:
        raise _UnknownValueError
    return value


def _number(recorder: Any, x: Tensor) -> Any:
    value = _known(recorder, x)
    with outside_of_traces():
        return value.item()


def _constants(recorder: Any, compute: Callable[[Tensor], Any], fake: Tensor) -> list[Tensor]:
    """What is computed of a known value, as constants of the graph."""
    value = _known(recorder, fake)
    with outside_of_traces():
        found = compute(value)
        tensors = [tensor.clone() for tensor in (found if isinstance(found, tuple) else (found,))]
    return [recorder.created(tensor) for tensor in tensors]


def _places(recorder: Any, mask: Tensor) -> list[Tensor]:
    return _constants(recorder, lambda value: value.nonzero(as_tuple=True), mask)


def _nonzero(recorder: Any, x: Tensor) -> Tensor:
    return _constants(recorder, torch.nonzero, x)[0]


def _repeats(recorder: Any, repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    return _constants(recorder, torch.repeat_interleave, repeats)[0]


def _indexed(recorder: Any, x: Tensor, indices: Any) -> Tensor:
    found: list[Tensor | None] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype in MASKS
        found += _places(recorder, index) if is_mask else [index]
    with recorder:
        return ATEN.index.Tensor(x, found)


def _mask_selected(recorder: Any, x: Tensor, mask: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    (places,) = _constants(recorder, lambda value: value.expand(shape).reshape(-1).nonzero().squeeze(1), mask)
    with recorder:
        return x.expand(shape).reshape(-1).index_select(0, places)


RESOLVED: dict[Any, Callable[..., Any]] = {
    ATEN._local_scalar_dense.default: _number,
    ATEN.nonzero.default: _nonzero,
    ATEN.repeat_interleave.Tensor: _repeats,
    ATEN.index.Tensor: _indexed,
    ATEN._unsafe_index.Tensor: _indexed,
    ATEN.masked_select.default: _mask_selected,
}

__all__ = ["NONE", "Assumptions", "offset_of", "outside_of_traces", "resolved", "targets", "value_of"]
