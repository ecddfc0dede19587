"""Control flow as nodes: `torch.cond`, `while_loop`, `scan` and `map` while a function is captured.

PyTorch's functions end in operators that take Python functions.  These are captured one by one; what they read besides
their arguments becomes an operand of the node.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .dtypes import device_name, dtype_name, torch_dtype
from .graph import COMPLEX, Graph, Value
from .keys import held, remember
from .library import LIBRARY
from .pairs import as_pairs
from .provenance import refusal
from .recording import Trace
from .regions import COND, SCAN, WHILE, Region, in_pairs

Capture = Callable[..., Any]


def _empty_results(operands: list[Tensor], key: int) -> list[Tensor]:
    region: Region = held(key)
    device = operands[0].device
    return [torch.empty(v.shape, dtype=torch_dtype(v.dtype), device=device) for v in region.results]


for _name in ("cond", "while_loop", "scan"):
    torch.library.register_fake(f"pullback::{_name}", _empty_results, lib=LIBRARY)


def record_region(trace: Trace, capture: Capture, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record one of PyTorch's control-flow operators as a node, and return its results.

    Raises CaptureError for one that is not done yet, and for branches or steps that do not fit each other.
    """
    recorders: dict[str, Callable[..., Any]] = {
        "cond": _cond,
        "while_loop": _while_loop,
        "scan": _scan,
        "map_impl": _map,
    }
    if op.name() not in recorders:
        problem = f"f uses the control-flow operator {op.name()!r}, which is not done yet"
        raise refusal(problem, "Write it as plain tensor code, or use torch.cond, while_loop, scan or map.")
    return recorders[op.name()](_Recording(trace, capture, op.name()), *args, **kwargs)


class _Recording:
    """One control-flow operator that is being recorded: its graphs, and the tensors that these read besides."""

    def __init__(self, trace: Trace, capture: Capture, name: str) -> None:
        self.trace, self._capture, self.name = trace, capture, name
        self.read: dict[int, Tensor] = {}

    def graph(self, function: Callable[..., Any], operands: Sequence[Tensor]) -> tuple[Any, Any]:
        """A function of tensors as a captured graph, and the structure of its result."""
        flat, spec = private.tree_flatten((tuple(operands), {}))
        examples = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in flat]
        captured = self._capture(function, examples, spec, names=[f"operand_{k}" for k in range(len(flat))])
        if captured.graph.mutations:
            raise refusal(f"a function inside {self.name} changes a tensor in place", "Return a new tensor instead.")
        if not all(isinstance(v, Value) for v in captured.graph.outputs):
            raise refusal(f"a function inside {self.name} returns what is no tensor", "Return tensors alone.")
        self.read.update((id(t), t) for t in captured.lifted)
        return captured, captured.out_spec

    def complete(self, captured: Any) -> Graph:
        """The graph with every tensor for an input that any of the operator's graphs reads; in pairs of numbers."""
        own = len(captured.graph.inputs) - len(captured.lifted)
        known = dict(zip(map(id, captured.lifted), captured.graph.inputs[own:], strict=True))
        rest = tuple(known.get(key) or _value_like(t, f"read_{k}") for k, (key, t) in enumerate(self.read.items()))
        return in_pairs(replace(captured.graph, inputs=(*captured.graph.inputs[:own], *rest)))

    def record(self, region: Region, operands: Sequence[Tensor], results: Sequence[Value]) -> list[Tensor]:
        """The results of the node, which are like `results`: complex ones are pairs of numbers inside."""
        key = remember(region)
        self.trace.own_derivatives.append(key)
        call = getattr(torch.ops.pullback, region.op.split(".")[1]).default
        found = call(as_pairs([*operands, *self.read.values()]), key)
        return [_joined(t, v) for t, v in zip(found, results, strict=True)]


def _value_like(tensor: Tensor, name: str) -> Value:
    return Value(name, tuple(tensor.shape), dtype_name(tensor.dtype), device_name(tensor.device))


def _joined(tensor: Tensor, value: Value) -> Tensor:
    return torch.view_as_complex(tensor) if value.dtype in COMPLEX else tensor


def _types(values: Sequence[Any]) -> list[str]:
    return [v.type for v in values]


def _cond(recording: _Recording, predicate: Any, yes: Any, no: Any, operands: Any) -> Any:
    flat = private.tree_leaves(tuple(operands))
    (first, spec), (second, other) = (recording.graph(_on(f, operands), flat) for f in (yes, no))
    if spec != other or _types(first.graph.outputs) != _types(second.graph.outputs):
        seen = f"{_types(first.graph.outputs)} and {_types(second.graph.outputs)}"
        raise refusal(f"the branches of cond return {seen}", "Let both return the same structure, shapes and dtypes.")
    graphs = recording.complete(first), recording.complete(second)
    region = Region(COND, graphs, graphs[0].outputs)
    results = recording.record(region, [predicate, *flat], first.graph.outputs)
    return private.tree_unflatten(results, spec)


def _while_loop(recording: _Recording, condition: Any, body: Any, carried: Any, constants: Any, **options: Any) -> Any:
    if any(not isinstance(t, Tensor) for t in (*carried, *constants)):
        raise refusal("while_loop carries a number that is no tensor", "Make it a tensor.")
    flat = [*carried, *constants]
    (test, _), (step, spec) = (recording.graph(f, flat) for f in (condition, body))
    _check_carried(recording.name, step.graph.outputs, step.graph.inputs[: len(carried)])
    graphs = recording.complete(test), recording.complete(step)
    region = Region(WHILE, graphs, graphs[1].outputs, carried=len(carried))
    return private.tree_unflatten(recording.record(region, flat, step.graph.outputs), spec)


def _scan(recording: _Recording, combine: Any, carried: Any, slices: Any, constants: Any) -> Any:
    count, length = len(carried), slices[0].shape[0]
    step, spec = recording.graph(combine, [*carried, *(s[0] for s in slices), *constants])
    outputs = step.graph.outputs
    _check_carried(recording.name, outputs[:count], step.graph.inputs[:count])
    graph = recording.complete(step)
    stacked = tuple(replace(v, shape=(length, *v.shape)) for v in graph.outputs[count:])
    region = Region(SCAN, (graph,), (*graph.outputs[:count], *stacked), carried=count, sliced=len(slices))
    return private.tree_unflatten(recording.record(region, [*carried, *slices, *constants], outputs), spec)


def _map(recording: _Recording, function: Any, slices: Any, constants: Any) -> Any:
    """A scan that carries nothing."""
    return _scan(recording, function, (), slices, constants)


def _check_carried(name: str, after: Sequence[Any], before: Sequence[Any]) -> None:
    if _types(after) != _types(before):
        seen = f"{_types(before)} into a step and {_types(after)} out of it"
        raise refusal(f"{name} carries {seen}", "Let a step return what it was given, in shape and dtype.")


def _on(function: Callable[..., Any], operands: Any) -> Callable[..., Any]:
    """A branch as a function of flat operands."""
    _, spec = private.tree_flatten(tuple(operands))
    return lambda *flat: function(*private.tree_unflatten(list(flat), spec))
