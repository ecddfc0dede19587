"""Pull programs: from cotangents of steps' results to those of their operands, compiled once for all of a kind."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .compilation import backward_graph
from .emit.aliases import memory_roots
from .emit.constants import constants
from .emit.peepholes import rewrite
from .emit.program import Program
from .emit.python import emit_python
from .emit.rehearsal import in_a_row
from .emit.sparse_sums import add_where_nonzero
from .graph import Graph, Node, Value
from .history import History, Ref, Step, exact, ref
from .rules import RULES

Key = tuple[Any, ...]
Order = tuple[int, ...] | None  # of the axes of a tensor in memory; None for their own

# Their cotangents cost least where they are computed as the operands lie: that of w.t() as the transpose of one of w.
_PRODUCTS = frozenset(f"aten.{op}.default" for op in ("mm", "bmm", "addmm", "baddbmm"))


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
    """A compiled program and where its inputs come from: numbers of values, or −1 − k for the k-th cotangent.

    graph: what it computes.
    own: for each result whether it has memory of its own, which no input and no other result shares.
    """

    run: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[int, ...]
    graph: Graph
    own: tuple[bool, ...] = ()


PULLS = Cache(4096)


def pull_program(
    history: History,
    steps: Sequence[Step],
    numbers: tuple[int, ...],
    given: Sequence[int],
    operands: Sequence[int],
    fuse: bool,
) -> Feed:
    """The program of all such steps, one or several that read the same.

    numbers: the values of the steps, by `values_of`, in whose order the inputs of the program are numbered.
    """
    local = {k: n for n, k in enumerate(numbers)}
    calls = _call(steps[0], local) if len(steps) == 1 else tuple([_call(step, local) for step in steps])
    types = tuple([history.types[k] for k in numbers])
    wanted = tuple([local[k] for k in operands])
    asked = tuple([local[k] for k in given])
    orders = tuple([_order_in_memory(history.tensors[k]) for k in operands]) if steps[0].op in _PRODUCTS else ()
    key = (calls, types, wanted, asked, orders, fuse)
    known: Feed | None = PULLS.get(key)
    if known is None:
        graph, values = history.graph(steps, given)
        sources = [values[k] for k in operands]
        program = _compiled(graph, sources, len(given), orders or (None,) * len(sources), fuse)
        inputs = _numbered(program.graph.inputs, {value: local[k] for k, value in values.items()})
        feed = Feed(program.run, inputs, program.graph, _own(program.graph))
        known = PULLS.put(key, feed)
    return known


def _compiled(graph: Graph, sources: Sequence[Value], count: int, orders: Sequence[Order], fuse: bool) -> Program:
    """The program from cotangents of `count` outputs to those of sources, which lie in memory in these orders.

    Every operator is called as its graph says, so that the same bits come out where that becomes a part of another.
    """
    graph, bases = _in_order(graph, sources, orders)
    lowered = _put_back(backward_graph(graph, bases, range(count), fuse=fuse), orders)
    if fuse:
        lowered = rewrite(lowered, sums=False)
        lowered = add_where_nonzero(lowered, frozenset(constants(lowered)))
    lowered.check()
    return emit_python(lowered, "pull", plain=fuse, layouts={})


def _in_order(graph: Graph, sources: Sequence[Value], orders: Sequence[Order]) -> tuple[Graph, list[Value]]:
    """The same graph, with sources as views of tensors whose axes lie in their own order; and these tensors."""
    bases, views = list(sources), []
    for k, (source, order) in enumerate(zip(sources, orders, strict=True)):
        if order is not None:
            bases[k] = Value(source.name, tuple(source.shape[d] for d in order), source.dtype, source.device)
            views.append(Node("aten.permute.default", (bases[k], _inverse(order)), (), (source,)))
    became = dict(zip(sources, bases, strict=True))
    return replace(graph, inputs=tuple(became.get(v, v) for v in graph.inputs), nodes=(*views, *graph.nodes)), bases


def _put_back(graph: Graph, orders: Sequence[Order]) -> Graph:
    """The same program, whose results have their axes in the order of the sources again."""
    outputs, views = list(graph.outputs), []
    for k, order in enumerate(orders):
        if order is not None:
            found, inverse = outputs[k], _inverse(order)
            shape = tuple(found.shape[d] for d in inverse)
            outputs[k] = Value(f"{found.name}_turned", shape, found.dtype, found.device)
            views.append(Node("aten.permute.default", (found, inverse), (), (outputs[k],)))
    return replace(graph, nodes=(*graph.nodes, *views), outputs=tuple(outputs))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _order_in_memory(tensor: Any) -> Order:
    """The order in which the axes of a tensor lie in memory, if it is another than their own."""
    if not isinstance(tensor, Tensor):
        return None
    strides = tensor.stride()
    if sorted(strides, reverse=True) == list(strides):
        return None
    order = tuple(sorted(range(len(strides)), key=lambda d: -strides[d]))
    return order if in_a_row([tensor.shape[d] for d in order], [strides[d] for d in order]) else None


def _own(graph: Graph) -> tuple[bool, ...]:
    """For each result whether nothing else shares its memory."""
    root = memory_roots(graph)
    roots = [root[value] for value in graph.outputs]
    return tuple(one not in graph.inputs and roots.count(one) == 1 for one in roots)


def _call(step: Step, local: Mapping[int, int]) -> Key:
    """What equal steps have in common besides the types of their values."""
    kwargs = tuple([(name, _renumbered((a,), local)) for name, a in step.kwargs]) if step.kwargs else ()
    unread = tuple([k is None for k in step.outputs])
    return step.op, exact(_renumbered(step.args, local)), exact(kwargs), unread


def _renumbered(tree: tuple[Any, ...], local: Mapping[int, int]) -> tuple[Any, ...]:
    """Arguments that refer to values by their numbers within a step."""
    return tuple(
        [
            ref(local[item.index]) if type(item) is Ref else _renumbered(item, local) if type(item) is tuple else item
            for item in tree
        ]
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
    numbers = values_of([step])
    feed = pull_program(history, [step], numbers, given, operands, True)
    return frozenset(numbers[k] for k in feed.inputs if k >= 0)


def values_of(steps: Sequence[Step]) -> tuple[int, ...]:
    """The values of steps, in the order in which their pull programs number them."""
    inputs = steps[0].inputs if len(steps) == 1 else [k for step in steps for k in step.inputs]
    return (*dict.fromkeys(inputs), *[k for step in steps for k in step.outputs if k is not None])
