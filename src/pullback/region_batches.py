"""Programs of branches and loops, and the same regions over a batch, for `vmap` around them in a trace.

Which values have a batch axis is read off the graphs: what depends on an operand with one.  The condition of a loop
must not.  Inside of a rule for batches nothing can be captured, so that graphs over the batch are made before the call.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from . import torch_private as private
from .emit.program import Program
from .emit.python import emit_python
from .errors import CaptureError, MissingRuleError
from .graph import Graph
from .keys import Key, held, remember
from .library import LIBRARY
from .regions import COND, SCAN, WHILE, Region
from .retracing import captured_like

Flags = tuple[bool, ...]
_MADE: "WeakKeyDictionary[Region, dict[Any, Any]]" = WeakKeyDictionary()


def once(region: Region, what: Any, make: Callable[[], Any]) -> Any:
    """What was made for a region before, or is made now."""
    made = _MADE.setdefault(region, {})
    if what not in made:
        made[what] = make()
    return made[what]


def program(region: Region, number: int) -> Callable[..., tuple[Any, ...]]:
    """One of a region's graphs as a function."""
    program: Program = once(region, ("program", number), lambda: emit_python(region.graphs[number], name="region"))
    return program.run


def call_operator(region: Region, operands: Sequence[Tensor], key: int) -> list[Tensor]:
    """The results of a region as a node of a trace."""
    name = region.op.split(".")[1]
    return list(getattr(torch.ops.pullback, name).default(list(operands), int(key)))


def differs_from_sample_to_sample() -> CaptureError:
    """The refusal of a loop whose samples would not end together."""
    return CaptureError(
        "the condition of a while_loop differs from sample to sample under vmap, so that they would not end "
        "together: call the loop for one sample after the other, or bound it and use torch.where"
    )


# ---------------------------------------------------------------- which values have a batch axis


def _spread(graph: Graph, flags: Sequence[bool]) -> Flags:
    """Which outputs depend on an input that has a batch axis."""
    reached = {v for v, flag in zip(graph.inputs, flags, strict=True) if flag}
    for node in graph.nodes:
        if any(v in reached for v in node.inputs):
            reached.update(node.results)
    return tuple(v in reached for v in graph.outputs)


def _settled(region: Region, flags: Flags) -> tuple[Flags, Flags]:
    """Those of the operands, once what is carried has the batch axis that it gets on its way, and of the results."""
    if region.op == COND:
        pairs = zip(*(_spread(graph, flags[1:]) for graph in region.graphs), strict=True)
        return flags, tuple(map(any, pairs))
    step, count = region.graphs[-1], region.carried
    while True:
        after = _spread(step, flags)
        joined = (*(a or b for a, b in zip(flags[:count], after[:count], strict=True)), *flags[count:])
        if joined == flags:
            return flags, (*flags[:count], *after[count:])
        flags = joined


# ---------------------------------------------------------------- regions over a batch


def prepare_batches(region: Region, operands: Sequence[Tensor]) -> None:
    """Make the graphs over the batches of every `vmap` around a call, the innermost first.

    Raises CaptureError if the samples of a loop would not end together.
    """
    while level := max(map(private.batch_level, operands), default=0):
        flags = tuple(private.batch_level(t) == level for t in operands)
        inner = [private.without_batch(t) if flag else (t, None) for t, flag in zip(operands, flags, strict=True)]
        size = next(t.shape[dim] for t, dim in inner if dim is not None)
        region, operands = held(over_batch(region, flags, size)), [t for t, _ in inner]


def over_batch(region: Region, flags: Flags, size: int) -> Key:
    """The region over a batch that some of its operands have; results that depend on them have it first."""
    flags, results = _settled(region, flags)
    return once(region, ("batch", flags, size), lambda: remember(_MAKERS[region.op](region, flags, results, size)))


def _mapped(region: Region, number: int, flags: Flags, results: Flags, size: int) -> Graph:
    """One of a region's graphs, over a batch that comes first in the flagged inputs and outputs."""
    pairs = zip(region.graphs[number].inputs, flags, strict=True)
    like = tuple(replace(v, shape=(size, *v.shape)) if flag else v for v, flag in pairs)
    return captured_like(torch.vmap(program(region, number), _dims(flags), _dims(results)), like)


def _dims(flags: Flags) -> Any:
    return tuple(0 if flag else None for flag in flags)


def _branches(region: Region, flags: Flags, results: Flags, size: int) -> Region:
    graphs = tuple(_mapped(region, k, flags[1:], results, size) for k in (0, 1))
    return replace(region, graphs=graphs, results=graphs[0].outputs)


def _loop(region: Region, flags: Flags, results: Flags, size: int) -> Region:
    if any(_spread(region.graphs[0], flags)):
        raise differs_from_sample_to_sample()
    body, test = _mapped(region, 1, flags, results, size), program(region, 0)

    def condition(*xs: Tensor) -> Any:
        return test(*(x[0] if flag else x for x, flag in zip(xs, flags, strict=True)))

    return replace(region, graphs=(captured_like(condition, body.inputs), body), results=body.outputs)


def _slices(region: Region, flags: Flags, results: Flags, size: int) -> Region:
    body, count = _mapped(region, 0, flags, results, size), region.carried
    length = region.results[-1].shape[0] if len(region.results) > count else 0
    rows = [replace(v, shape=(length, *v.shape)) for v in body.outputs[count:]]
    return replace(region, graphs=(body,), results=(*body.outputs[:count], *rows))


_MAKERS: dict[str, Callable[..., Region]] = {COND: _branches, WHILE: _loop, SCAN: _slices}


# ---------------------------------------------------------------- the rule for batches


def _rule(info: Any, in_dims: Any, operands: list[Tensor], key: int) -> tuple[list[Tensor], list[int | None]]:
    region: Region = held(key)
    dims = list(in_dims[0])
    given = tuple(dim is not None for dim in dims)
    flags, results = _settled(region, given)
    count, end = region.carried, region.carried + region.sliced
    moved = []
    for k, (tensor, dim, flag) in enumerate(zip(operands, dims, flags, strict=True)):
        tensor = tensor.movedim(dim, 0) if dim is not None else tensor
        tensor = tensor.expand(info.batch_size, *tensor.shape) if flag and dim is None else tensor
        moved.append(tensor.movedim(0, 1) if flag and count <= k < end else tensor)
    derived = over_batch(region, given, info.batch_size)
    stacked = range(count, len(results)) if region.op == SCAN else ()
    axes = [(1 if k in stacked else 0) if flag else None for k, flag in enumerate(results)]
    return call_operator(held(derived), moved, derived), axes


def _refuse_pulls(info: Any, in_dims: Any, cotangents: list[Tensor], operands: list[Tensor], key: int) -> Any:
    raise MissingRuleError(
        "the pull back through a while_loop would be differentiated again, for several rows at once: take derivatives "
        "inside by forward mode, such as jacfwd"
    )


for _name in ("cond", "while_loop", "scan"):
    torch.library.register_vmap(f"pullback::{_name}", _rule, lib=LIBRARY)
torch.library.register_vmap("pullback::region_pulls", _refuse_pulls, lib=LIBRARY)
