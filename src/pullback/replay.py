"""From a record to a derivative: an interpreted walk, and from the third sighting on a compiled program.

Both read values that the record holds; neither computes any of them again.  The walk pulls a cotangent through one
step after the other, each by a small program that is compiled once for all steps of its kind.  A sequence of operators
that is seen a third time becomes one program, which calls the same operators on operands that lie in the same layouts:
the first sighting, a later one and one in another process give the same bits.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .collection import collection_paused
from .compilation import check_rules
from .emit.python import emit_python
from .emit.rehearsal import rehearse
from .errors import GaugeError, RecordError
from .history import History, Step
from .joining import joined, with_own_results
from .leaves import is_dense
from .paths import Path, find_path, follow
from .provenance import describe
from .pulls import Cache, Feed, needs, pull_program, values_of
from .rules.gauge import VECTORS
from .torch_private import count_writes, outside_autocast

INTERPRETED = 2  # sightings of a sequence before it is compiled
Hook = Callable[[int, Tensor], Tensor]


@dataclass
class Sighting:
    """A sequence of operators, an output and sources that were seen before: how often, and the program for them."""

    path: Path
    count: int = 0
    feed: Feed | None = None
    lock: Any = field(default_factory=threading.Lock)


SIGHTINGS = Cache(256)


def derivative(
    history: History, output: int, seed: Tensor, sources: Sequence[int] | None, *, fuse: bool, hook: Hook | None
) -> dict[int, Tensor]:
    """The derivative of one value in others, by their numbers, in the order in which PyTorch completes them.

    Arguments:
        seed: the cotangent of the output.
        sources: what to differentiate with respect to; None for every leaf.
        fuse: whether fused backward kernels may be used; not if what is computed here is recorded itself.
        hook: called with each value's number and complete cotangent, which it may replace.

    Raises:
        MissingRuleError: operators on the way have no rule.
        RecordError: a value that is needed was overwritten.
    """
    sighting = sighted(history, output, sources, fuse, seed.stride())
    path = sighting.path
    if not path.order:
        return {}
    if hook is not None:
        return walk(history, path, output, seed, fuse, hook)
    steps = [history.steps[k] for k in reversed(path.steps)]
    try:
        if sighting.feed is None:
            with sighting.lock:
                sighting.count += 1
                if sighting.feed is None and sighting.count > INTERPRETED and not _has_functions(steps):
                    sighting.feed = _compiled(history, path, output, seed, fuse)
        if sighting.feed is None:
            return walk(history, path, output, seed, fuse, None)
        inputs = [seed if k < 0 else _held(history, k, steps) for k in sighting.feed.inputs]
        found = outside_autocast(sighting.feed.run)(*inputs)
    except GaugeError as error:
        raise _located(error, steps) from None
    return dict(zip(path.order, found, strict=True))


def _located(error: GaugeError, steps: Sequence[Step]) -> GaugeError:
    """The error with the lines of these steps: a program may have been compiled for the same operators on others."""
    lines = [f"\n  at {step.place.source}" for step in steps if step.op in VECTORS and step.place.source]
    return GaugeError(str(error).partition("\n  at ")[0] + "".join(lines))


def sighted(
    history: History, output: int, sources: Sequence[int] | None, fuse: bool, strides: tuple[int, ...] = ()
) -> Sighting:
    """What is known about this sequence of operators; the first time, that all of them have rules.

    strides: how the cotangent of the output lies in memory.

    Raises MissingRuleError with every operator on the way that has no rule, and its line.
    """
    producer = history.producers[output]
    end = history.steps[producer].key_end if producer >= 0 else 0
    key = (tuple(history.keys[:end]), output, None if sources is None else tuple(sources), fuse, strides)
    known: Sighting | None = SIGHTINGS.get(key)
    if known is None:
        path = find_path(history, output, history.leaves if sources is None else sources)
        if path.steps:
            steps = [history.steps[k] for k in reversed(path.steps)]
            graph, values = history.graph(steps, [output])
            check_rules(graph, [values[k] for k in path.order])
        known = SIGHTINGS.put(key, Sighting(path))
    return known


def _has_functions(steps: Sequence[Step]) -> bool:
    return any(step.backward is not None for step in steps)


# ---------------------------------------------------------------- step by step


def walk(history: History, path: Path, output: int, seed: Tensor, fuse: bool, hook: Hook | None) -> dict[int, Tensor]:
    """Pull a cotangent through one step after the other."""

    def complete(k: int, cotangent: Tensor, is_own: bool) -> Tensor:
        if k in path.completed and not (is_own and is_dense(cotangent)):
            cotangent = cotangent.clone()
        return cotangent if hook is None else hook(k, cotangent)

    def pull(
        steps: Sequence[Step], given: Sequence[int], operands: Sequence[int], cotangents: Sequence[Tensor]
    ) -> Iterable[tuple[Tensor | None, bool]]:
        return _pull(history, steps, given, operands, cotangents, fuse)

    return follow(history, path, (output, seed), pull, lambda one, other, _: one + other, complete)


def _pull(
    history: History,
    steps: Sequence[Step],
    given: Sequence[int],
    operands: Sequence[int],
    cotangents: Sequence[Tensor],
    fuse: bool,
) -> Iterable[tuple[Tensor | None, bool]]:
    """The cotangents of steps' operands, of those of their results, and whether each has memory of its own.

    None stands where a user's backward gives none.
    """
    if steps[0].backward is not None:
        found = steps[0].backward.pull(steps[0], given, operands, cotangents, fuse)
        return [(value, False) for value in found]
    numbers = values_of(steps)
    feed = pull_program(history, steps, numbers, given, operands, fuse)
    inputs = [cotangents[-1 - k] if k < 0 else _held(history, numbers[k], steps) for k in feed.inputs]
    try:
        return zip(outside_autocast(feed.run)(*inputs), feed.own, strict=True)
    except GaugeError as error:
        raise _located(error, steps) from None


# ---------------------------------------------------------------- as a whole


def _compiled(history: History, path: Path, output: int, seed: Tensor, fuse: bool) -> Feed:
    """One program for a whole sequence: the walk through it, written down."""
    with collection_paused():
        graph, numbers = joined(history, path, output, fuse)
        steps = [history.steps[k] for k in reversed(path.steps)]
        inputs = [seed if k < 0 else _held(history, k, steps) for k in numbers]
        layouts = outside_autocast(rehearse)(graph, inputs) if fuse else None
        graph = with_own_results(graph, layouts)
        return Feed(emit_python(graph, "backward", plain=fuse, layouts=layouts).run, numbers, graph)


# ---------------------------------------------------------------- what the record holds


def _held(history: History, index: int, readers: Sequence[Step]) -> Tensor:
    """The tensor that holds a value, which has not been written to since."""
    held = history.tensors[index]
    if not isinstance(held, Tensor):
        return torch.full((), held, dtype=history.types[index][0])
    if count_writes(held) != history.versions[index]:
        raise _overwritten(history, index, readers)
    if history.addresses.get(index, held.data_ptr()) != held.data_ptr():
        raise RecordError(
            f"{_reading(history, index, readers)} reads a tensor ({describe(held)}) whose memory was replaced since "
            "(.data = …, set_ or resize_): compute the derivative before that"
        )
    return held


def _overwritten(history: History, index: int, readers: Sequence[Step]) -> RecordError:
    write = history.overwriting(index)
    who = "outside of the block" if write is None else f"by {write.op} ({write.place.source or 'an unknown line'})"
    kind = describe(history.tensors[index])
    return RecordError(
        f"{_reading(history, index, readers)} reads a value ({kind}) that was changed in place since, {who}\n"
        "  Compute the derivative before the change, or change a clone() instead."
    )


def _reading(history: History, index: int, readers: Sequence[Step]) -> str:
    """The step whose derivative reads a value."""
    step = next((step for step in readers if index in needs(history, step)), readers[0])
    return f"the derivative of {step.op} ({step.place.source or 'an unknown line'})"
