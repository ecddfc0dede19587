"""From a record to a derivative: an interpreted walk, and from the third sighting on a compiled program.

Both read values that the record holds; neither computes any of them again.  The walk pulls a cotangent through one
step after the other, each by a small program that is compiled once for all steps of its kind.  A sequence of operators
that is seen a third time is compiled as a whole.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .collection import collection_paused
from .compilation import check_rules, compile_backward
from .errors import GaugeError, RecordError
from .graph import Graph, Node, Value, replace_values
from .history import History, Ref, Step, exact, ref
from .provenance import describe
from .rules import RULES
from .rules.gauge import VECTORS
from .torch_private import count_writes, outside_autocast

INTERPRETED = 2  # sightings of a sequence before it is compiled
Key = tuple[Any, ...]
Hook = Callable[[int, Tensor], Tensor]


class Cache:
    """A bounded dictionary for several threads that forgets what was not used for longest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: OrderedDict[Key, Any] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: Key) -> Any:
        """What is kept under a key, or None."""
        with self.lock:
            found = self.entries.get(key)
            if found is not None:
                self.entries.move_to_end(key)
            return found

    def put(self, key: Key, entry: Any) -> Any:
        """Keep an entry, unless another thread was quicker; returns the one that is kept."""
        with self.lock:
            entry = self.entries.setdefault(key, entry)
            self.entries.move_to_end(key)
            while len(self.entries) > self.size:
                self.entries.popitem(last=False)
            return entry

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self.entries.clear()


@dataclass(frozen=True)
class Feed:
    """A compiled program and where its inputs come from: numbers of values, or −1 − k for the k-th cotangent."""

    run: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[int, ...]


@dataclass
class Sighting:
    """A sequence of operators, an output and sources that were seen before.

    steps: the numbers of the steps on the way, the last first.
    order: the sources that the output depends on, in the order in which PyTorch would complete their gradients.
    completed: for each of them the first step that reads it, after which its gradient is complete.
    on_path: every value between sources and output.
    """

    steps: tuple[int, ...]
    order: tuple[int, ...]
    completed: dict[int, int]
    on_path: frozenset[int]
    count: int = 0
    feed: Feed | None = None
    lock: Any = field(default_factory=threading.Lock)


SIGHTINGS = Cache(256)
PULLS = Cache(4096)


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
    sighting = sighted(history, output, sources, fuse)
    if not sighting.order:
        return {}
    if hook is not None:
        return walk(history, sighting, output, seed, fuse, hook)
    if sighting.feed is None:
        with sighting.lock:
            sighting.count += 1
            if sighting.feed is None and sighting.count > INTERPRETED and not _has_functions(history, sighting):
                sighting.feed = _compiled(history, sighting, output, fuse)
    if sighting.feed is None:
        return walk(history, sighting, output, seed, fuse, None)
    steps = [history.steps[k] for k in reversed(sighting.steps)]
    found = _run(sighting.feed, _inputs(history, sighting, sighting.feed, (seed,)), steps)
    return dict(zip(sighting.order, found, strict=True))


def _run(feed: Feed, inputs: Sequence[Tensor], steps: Sequence[Step]) -> tuple[Tensor, ...]:
    """The results of a program, which may have been compiled for the same operators on other lines.

    Raises GaugeError with the lines of these steps.
    """
    try:
        return outside_autocast(feed.run)(*inputs)
    except GaugeError as error:
        lines = [f"\n  at {step.place.source}" for step in steps if step.op in VECTORS and step.place.source]
        raise GaugeError(str(error).partition("\n  at ")[0] + "".join(lines)) from None


def sighted(history: History, output: int, sources: Sequence[int] | None, fuse: bool) -> Sighting:
    """What is known about this sequence of operators; the first time, that all of them have rules.

    Raises MissingRuleError with every operator on the way that has no rule, and its line.
    """
    producer = history.producers[output]
    end = history.steps[producer].key_end if producer >= 0 else 0
    key = (tuple(history.keys[:end]), output, None if sources is None else tuple(sources), fuse)
    known: Sighting | None = SIGHTINGS.get(key)
    if known is None:
        fresh = _path(history, output, history.leaves if sources is None else sources)
        if fresh.steps:
            steps = [history.steps[k] for k in reversed(fresh.steps)]
            graph, values = history.graph(steps, [output])
            check_rules(graph, [values[k] for k in fresh.order])
        known = SIGHTINGS.put(key, fresh)
    return known


def _has_functions(history: History, sighting: Sighting) -> bool:
    return any(history.steps[k].backward is not None for k in sighting.steps)


def _path(history: History, output: int, sources: Sequence[int]) -> Sighting:
    """The steps between sources and an output, the last first, and the sources that they reach."""
    reached, needed = set(sources), {output}
    steps = history.steps[: history.producers[output] + 1]
    for step in steps:
        if any(k in reached for k in step.inputs):
            reached.update(k for k in step.outputs if k is not None and history.is_continuous(k))
    live: list[int] = []
    completed: dict[int, tuple[int, int]] = {}
    for number in range(len(steps) - 1, -1, -1):
        step = steps[number]
        if any(k in needed and k in reached for k in step.outputs if k is not None):
            read = [(place, k) for place, k in enumerate(step.inputs) if k in reached]
            if read:
                live.append(number)
            needed.update(k for _, k in read)
            completed.update((k, (-number, place)) for place, k in reversed(read))
    on_path = reached & needed if output in reached else set()
    place = {k: completed.get(k, (-len(steps), 0)) for k in on_path}
    order = sorted((k for k in dict.fromkeys(sources) if k in on_path), key=place.__getitem__)
    done = {k: -place[k][0] for k in order}
    return Sighting(tuple(live) if order else (), tuple(order), done, frozenset(on_path))


# ---------------------------------------------------------------- step by step


def walk(
    history: History, sighting: Sighting, output: int, seed: Tensor, fuse: bool, hook: Hook | None
) -> dict[int, Tensor]:
    """Pull a cotangent through one step after the other."""
    cotangents = {output: seed}
    found: dict[int, Tensor] = {}
    inputs = [k for k in sighting.order if history.producers[k] < 0]

    def take(k: int) -> Tensor | None:
        """The complete cotangent of a value, which no step further on adds to; None if nothing came back to it."""
        cotangent = cotangents.pop(k, None)
        if cotangent is None:
            return None
        cotangent = cotangent if hook is None else hook(k, cotangent)
        if k in sighting.completed:
            found[k] = cotangent.clone() if cotangent is seed else cotangent
        return cotangent

    for number in sighting.steps:
        step = history.steps[number]
        given = [k for k in step.outputs if k is not None and k in cotangents]
        operands = tuple(dict.fromkeys(k for k in step.inputs if k in sighting.on_path))
        arriving = [t for t in map(take, given) if t is not None]
        pulled = _pull(history, step, given, operands, arriving, fuse) if given else [None] * len(operands)
        for k, value in zip(operands, pulled, strict=True):
            if value is not None:
                cotangents[k] = cotangents[k] + value if k in cotangents else value
        while inputs and sighting.completed[inputs[0]] == number:
            take(inputs.pop(0))
    for k in sighting.order:  # those that no step further on computes or reads
        if k not in found:
            take(k)
    return {k: found[k] for k in sighting.order if k in found}


def _pull(
    history: History, step: Step, given: Sequence[int], operands: Sequence[int], cotangents: list[Tensor], fuse: bool
) -> tuple[Tensor | None, ...]:
    """The cotangents of a step's operands, of those of its results; None where a user's backward gives none."""
    if step.backward is not None:
        return tuple(step.backward.pull(step, given, operands, cotangents, fuse))
    feed = _pull_program(history, step, given, operands, fuse)
    numbers = (*dict.fromkeys(step.inputs), *(k for k in step.outputs if k is not None))
    inputs = [cotangents[-1 - k] if k < 0 else _held(history, numbers[k], step) for k in feed.inputs]
    return _run(feed, inputs, [step])


def _pull_program(history: History, step: Step, given: Sequence[int], operands: Sequence[int], fuse: bool) -> Feed:
    """The program of every step of this kind; its inputs are numbered within the step, results after operands."""
    inputs = tuple(dict.fromkeys(step.inputs))
    outputs = tuple(k for k in step.outputs if k is not None)
    local = {k: n for n, k in enumerate((*inputs, *outputs))}
    args = _renumbered(step.args, local)
    kwargs = tuple((name, _renumbered((a,), local)) for name, a in step.kwargs)
    types = tuple(history.types[k] for k in local)
    wanted = tuple(local[k] for k in operands)
    asked = tuple(local[k] for k in given)
    key = (step.op, exact(args), exact(kwargs), types, wanted, asked, tuple(k is None for k in step.outputs), fuse)
    known: Feed | None = PULLS.get(key)
    if known is None:
        graph, values = history.graph([step], given)
        program = compile_backward(graph, [values[k] for k in operands], range(len(given)), fuse=fuse, name="pull")
        numbers = {value: local[k] for k, value in values.items()}
        known = PULLS.put(key, Feed(program.run, _numbered(program.graph.inputs, numbers)))
    return known


def _renumbered(tree: tuple[Any, ...], local: Mapping[int, int]) -> tuple[Any, ...]:
    """Arguments that refer to values by their numbers within a step."""
    return tuple(
        ref(local[item.index])
        if isinstance(item, Ref)
        else _renumbered(item, local)
        if isinstance(item, tuple)
        else item
        for item in tree
    )


def _numbered(values: Sequence[Value], numbers: Mapping[Value, int]) -> tuple[int, ...]:
    """A program's inputs by number; cotangents, which are no values of the record, as −1, −2 …"""
    return tuple(
        numbers[value] if value in numbers else -1 - int(value.name.removeprefix("cotangent_")) for value in values
    )


def needs(history: History, step: Step) -> frozenset[int]:
    """The values that the derivative of a step reads, in every operand that may have one."""
    if step.needed is None:
        step.needed = _needed(history, step)
    return step.needed


def _needed(history: History, step: Step) -> frozenset[int]:
    if step.backward is not None:  # which checks for itself what it saved
        return frozenset()
    operands = [k for k in dict.fromkeys(step.inputs) if history.is_active(k)]
    given = [k for k in step.outputs if k is not None and history.is_continuous(k)]
    if not operands or not given or step.op not in RULES:
        return frozenset()
    numbers = (*dict.fromkeys(step.inputs), *(k for k in step.outputs if k is not None))
    feed = _pull_program(history, step, given, operands, True)
    return frozenset(numbers[k] for k in feed.inputs if k >= 0)


# ---------------------------------------------------------------- as a whole


def _compiled(history: History, sighting: Sighting, output: int, fuse: bool) -> Feed:
    """One program for a whole sequence."""
    with collection_paused():
        steps = [history.steps[k] for k in reversed(sighting.steps)]
        graph, values = history.graph(steps, [output])
        numbers = {value: k for k, value in values.items()}
        sources = []
        for k in sighting.order:
            source = values[k]
            if history.producers[k] >= 0:
                graph, source, beyond = _opened(graph, source)
                numbers[beyond] = k
            sources.append(source)
        program = compile_backward(graph, sources, [0], fuse=fuse)
    return Feed(program.run, _numbered(program.graph.inputs, numbers))


def _opened(graph: Graph, value: Value) -> tuple[Graph, Value, Value]:
    """The graph with an input added to one of its values, the input, and the sum, which stands in the value's place.

    The derivative in the input is that in the value, whatever the value was computed from.
    """
    added = Value(f"change_of_{value.name}", value.shape, value.dtype, value.device)
    total = Value(f"{value.name}_total", value.shape, value.dtype, value.device)

    def new(old: Value) -> Value:
        return total if old is value else old

    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(replace(node, args=replace_values(node.args, new), kwargs=replace_values(node.kwargs, new)))
        if value in node.results:
            nodes.append(Node("aten.add.Tensor", (value, added), (), (total,)))
    return Graph((*graph.inputs, added), tuple(nodes), replace_values(graph.outputs, new)), added, total


# ---------------------------------------------------------------- what the record holds


def _inputs(history: History, sighting: Sighting, feed: Feed, cotangents: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for k in feed.inputs:
        found.append(cotangents[-1 - k] if k < 0 else _held(history, k, sighting))
    return found


def _held(history: History, index: int, reader: Sighting | Step) -> Tensor:
    """The tensor that holds a value, which has not been written to since."""
    held = history.tensors[index]
    if not isinstance(held, Tensor):
        return torch.full((), held, dtype=history.types[index][0])
    if count_writes(held) != history.versions[index]:
        raise _overwritten(history, index, reader)
    if history.addresses.get(index, held.data_ptr()) != held.data_ptr():
        raise RecordError(
            f"{_reading(history, index, reader)} reads a tensor ({describe(held)}) whose memory was replaced since "
            "(.data = …, set_ or resize_): compute the derivative before that"
        )
    return held


def _overwritten(history: History, index: int, reader: Sighting | Step) -> RecordError:
    write = history.overwriting(index)
    who = "outside of the block" if write is None else f"by {write.op} ({write.place.source or 'an unknown line'})"
    kind = describe(history.tensors[index])
    return RecordError(
        f"{_reading(history, index, reader)} reads a value ({kind}) that was changed in place since, {who}\n"
        "  Compute the derivative before the change, or change a clone() instead."
    )


def _reading(history: History, index: int, reader: Sighting | Step) -> str:
    """The step whose derivative reads a value."""
    steps = [reader] if isinstance(reader, Step) else [history.steps[k] for k in reversed(reader.steps)]
    step = next((step for step in steps if index in needs(history, step)), steps[0])
    return f"the derivative of {step.op} ({step.place.source or 'an unknown line'})"
