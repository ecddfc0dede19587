"""From a lowered graph to scalar expressions: every entry of every output, for one sample of a batch if there is one.

What carries samples is assumed of the inputs, and proved for everything else: an operation that would mix samples
raises.  So a wrong assumption is refused, and never makes a wrong program.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from math import prod
from typing import Any

import numpy as np

from ..dtypes import dtype_name
from ..graph import Graph, Node, Value, replace_values
from .arrays import Array, Batch, NotScalar, concatenate, pointwise, uniform, with_samples
from .formulas import POINTWISE, applied
from .scalars import DTYPES, Scalar, Table
from .structure import STRUCTURE

LARGEST = 4_000  # operations of a program; the compiler takes about a second for them
ATTEMPTS = 8
_SMALL_BATCH = 8  # of fewer samples every one may have expressions of its own


@dataclass(frozen=True)
class Expansion:
    """A program as scalar expressions.

    inputs: the tensors that it is given, by the number under which their entries are known.
    outputs: its results.
    samples: how many samples each tensor that has an axis for them holds; None where there is no such axis.
    table: all expressions.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    samples: int | None
    table: Table

    def operations(self) -> list[Scalar]:
        """The expressions that results depend on, operands first, in the order in which they are needed."""
        seen: set[Scalar] = set()
        ordered: list[Scalar] = []
        for array in self.outputs:
            for entry in array.entries.flat:
                _visit(entry, seen, ordered)
        return ordered


def packed(expansion: Expansion) -> tuple[Expansion, tuple[tuple[int, int | None], ...]]:
    """The same program with all results without axes, dtype by dtype, in one tensor: making many would take longest.

    Also for each result the number of its tensor, and its position there if it is one of many.
    """
    groups: dict[Any, list[int]] = {}
    for k, array in enumerate(expansion.outputs):
        alone = bool(array.shape) or expansion.samples is not None
        groups.setdefault(k if alone else array.dtype, []).append(k)
    outputs, places = [], {}
    for number, members in enumerate(groups.values()):
        arrays = [expansion.outputs[k] for k in members]
        outputs.append(arrays[0] if len(members) == 1 else concatenate([a.unsqueeze(0) for a in arrays], 0))
        places.update({k: (number, None if len(members) == 1 else at) for at, k in enumerate(members)})
    return replace(expansion, outputs=tuple(outputs)), tuple(places[k] for k in range(len(places)))


def _visit(entry: Scalar, seen: set[Scalar], ordered: list[Scalar]) -> None:
    """Append an expression behind all that it is computed from."""
    stack = [entry]
    while stack:
        scalar = stack[-1]
        missing = [x for x in scalar.operands if x not in seen]
        if missing and scalar not in seen:
            stack += reversed(missing)
            continue
        stack.pop()
        if scalar not in seen:
            seen.add(scalar)
            ordered.append(scalar)


def expand(graph: Graph) -> Expansion:
    """A lowered graph as scalar expressions, over a batch where it has one.

    Raises NotScalar: it is too large, has operators or dtypes that are not done, or mixes samples; says which.

    Cost: 2 µs for each entry of each value, up to a second.
    """
    _check_types(graph)
    problem: NotScalar | None = None
    for batches in islice(_assumptions(graph), ATTEMPTS):
        try:
            return _expanded(graph, batches)
        except NotScalar as error:
            problem = problem or error
    raise problem or NotScalar("it is given many entries, and no result has an axis for samples")


def _check_types(graph: Graph) -> None:
    if graph.mutations:
        raise NotScalar("it writes into what it is given")
    for value in (*graph.inputs, *(v for node in graph.nodes for v in node.results)):
        if value.dtype not in DTYPES or value.device != "cpu":
            raise NotScalar(f"it has a tensor {value.type} on {value.device}")
    for node in graph.nodes:
        if node.op not in POINTWISE and node.op not in STRUCTURE and node.op not in CREATION:
            raise NotScalar(f"{node.op} has no scalar expression")


def _assumptions(graph: Graph) -> Iterator[Mapping[Value, int]]:
    """Which axis of each input may hold samples: one as long as a result's leading one; or none, where all is small."""
    sizes = {v.shape[0] for v in graph.outputs if isinstance(v, Value) and v.shape and v.shape[0] >= _SMALL_BATCH}
    for size in sorted(sizes, reverse=True):
        places: list[list[int | None]] = [
            [d for d, n in enumerate(v.shape) if n == size] or [None] for v in graph.inputs
        ]
        for chosen in product(*places):
            found = {v: d for v, d in zip(graph.inputs, chosen, strict=True) if d is not None}
            if found:
                yield found
    if all(v.size <= 1000 for v in graph.inputs):
        yield {}


def _expanded(graph: Graph, batches: Mapping[Value, int]) -> Expansion:
    table = Table()
    inputs = tuple(_input(table, k, value, batches.get(value)) for k, value in enumerate(graph.inputs))
    known: dict[Value, Array] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        known.update(_results(node, known, table))
        if len(table) > 5 * LARGEST:
            raise NotScalar(f"it has more than {5 * LARGEST:,} operations")
    outputs = tuple(known[v] if isinstance(v, Value) else _refused(v) for v in graph.outputs)
    samples = next((value.shape[axis] for value, axis in batches.items()), None)
    if samples is not None:
        outputs = tuple(_for_each_sample(a, samples) for a in outputs)
    found = Expansion(inputs, outputs, samples, table)
    count = sum(x.op not in ("input", "constant", "zero") for x in found.operations())
    count += sum(a.entries.size for a in outputs)
    if count > LARGEST:
        raise NotScalar(f"it has {count:,} scalar operations, and {LARGEST:,} are the most")
    return found


def _for_each_sample(array: Array, samples: int) -> Array:
    """A result that is the same for all samples, as one that has an axis for them."""
    if array.batch is not None:
        return array
    if not array.shape or array.shape[0] != samples:
        raise NotScalar("a result belongs to no sample")
    batch = Batch(0, 1, 1)
    return replace(array, entries=with_samples(array, batch), batch=batch)


def _refused(output: Any) -> Array:
    raise NotScalar(f"it returns {output!r}, which is no tensor")


def _input(table: Table, number: int, value: Value, axis: int | None) -> Array:
    """The entries of an input, by their positions in its memory."""
    sizes = [1 if d == axis else n for d, n in enumerate(value.shape)]
    behind = 0 if axis is None else prod(value.shape[axis + 1 :])
    if prod(sizes) > 1000:
        raise NotScalar(f"it is given {value.type}")
    entries = np.empty(prod(sizes), dtype=object)
    for k in range(len(entries)):
        position = (0, k) if axis is None else divmod(k, behind)
        entries[k] = table.input(number, position, value.dtype, varies=axis is not None)
    batch = None if axis is None else Batch(axis, 1, 1)
    return Array(entries.reshape(sizes), value.shape, value.dtype, batch)


# ---------------------------------------------------------------- nodes


def _results(node: Node, known: Mapping[Value, Array], table: Table) -> Iterator[tuple[Value, Array]]:
    """What a node computes, with the shapes and dtypes that the graph has for it."""
    try:
        found = _apply(node, known, table)
    except NotScalar as error:
        raise NotScalar(f"{node.op}: {error}") from None
    except (TypeError, ValueError, IndexError) as error:  # arguments that no rule has been written for
        raise NotScalar(f"{node.op} with such arguments: {error}") from error
    results = found if isinstance(found, tuple) else (found,)
    for value, array in zip(node.outputs, results, strict=len(node.outputs) == len(results)):
        if value is not None:
            if array.shape != value.shape:
                raise NotScalar(f"{node.op}: {array.shape} was made of what is {value.type}")
            yield value, array.cast(value.dtype)


def _apply(node: Node, known: Mapping[Value, Array], table: Table) -> Any:
    """An operator on arrays, by the table that has it."""
    if node.op in POINTWISE:
        return _pointwise(node, known, table)
    args, kwargs = replace_values((node.args, node.kwargs), known.__getitem__)
    options = {name: argument for name, argument in kwargs if name not in _SAYS_NOTHING}
    result = node.results[0]
    if node.op in CREATION:
        return CREATION[node.op](table, result, args)
    dtype = options.pop("dtype", None)
    if dtype is not None and dtype_name(dtype) != args[0].dtype:
        args = (args[0].cast(dtype_name(dtype)), *args[1:])
    if _reduces(node.op) and args[0].dtype != result.dtype:
        args = (args[0].cast(result.dtype), *args[1:])
    return STRUCTURE[node.op](*args, **options)


def _reduces(op: str) -> bool:
    return op.split(".")[1] in ("sum", "prod", "cumsum", "mean")


def _pointwise(node: Node, known: Mapping[Value, Array], table: Table) -> Array:
    """Convert the operands, and apply the formula."""
    found = applied(node)
    arrays = [
        known[argument].cast(dtype) if isinstance(argument, Value) else uniform(table.constant(argument, dtype), ())
        for argument, dtype in found.operands
    ]
    return pointwise(found.formula, arrays, found.dtype)


# ---------------------------------------------------------------- tensors from nothing

_SAYS_NOTHING = ("layout", "device", "pin_memory", "non_blocking", "memory_format")


def _filled(number: Any) -> Any:
    return lambda table, result, args: uniform(table.constant(number, result.dtype), result.shape)


def _full(table: Table, result: Value, args: Sequence[Any]) -> Array:
    return uniform(table.constant(args[-1], result.dtype), result.shape)


def _arange(table: Table, result: Value, args: Sequence[Any]) -> Array:
    start, step = (0, 1) if len(args) == 1 else (args[0], args[2] if len(args) > 2 else 1)
    if result.size > 1000:
        raise NotScalar(f"it counts to {result.size:,}")
    entries = np.empty(result.shape, dtype=object)
    for k in range(result.size):
        entries[k] = table.constant(start + k * step, result.dtype)
    return Array(entries, result.shape, result.dtype)


def _eye(table: Table, result: Value, args: Sequence[Any]) -> Array:
    entries = np.full(result.shape, table.constant(0, result.dtype), dtype=object)
    np.fill_diagonal(entries, table.constant(1, result.dtype))
    return Array(entries, result.shape, result.dtype)


CREATION: Mapping[str, Any] = {
    **{f"aten.{name}.default": _filled(0) for name in ("zeros", "zeros_like", "new_zeros")},
    **{f"aten.{name}.default": _filled(1) for name in ("ones", "ones_like", "new_ones")},
    **{f"aten.{name}.default": _full for name in ("full", "full_like", "new_full", "scalar_tensor")},
    **{f"aten.arange.{name}": _arange for name in ("default", "start", "start_step")},
    "aten.eye.default": _eye,
    "aten.eye.m": _eye,
}
