"""Jacobians some rows, or some columns, at a time.

The function runs once, whatever it draws at random or writes into its surroundings; what its derivatives need of it
is kept.  Then one program after the other is called with a few rows of an identity for a cotangent, or a few columns
for tangents.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .compilation import OrderName, Task, compile_derivative, jvp_task, merged_tasks, vjp_task
from .dtypes import torch_dtype
from .emit.python import emit_python
from .emit.splitting import split_program
from .errors import ArgumentError
from .graph import Graph, Value, live_nodes
from .stages import Search

Run = Callable[..., tuple[Any, ...]]


def check_real(sources: Sequence[Value], outputs: Sequence[Value], title: str, chunk_size: int | None) -> None:
    """Raise ArgumentError for a Jacobian between complex tensors, z ↦ A z + B z̄, and for chunks of complex ones."""
    of_complex = [v for v in sources if not v.is_floating]
    complex_ones = [v for v in outputs if not v.is_floating]
    if of_complex and complex_ones:
        raise ArgumentError(
            f"the Jacobian of {complex_ones[0].type} in {of_complex[0].type} ({title}) is linear over the real numbers "
            "only, and no array of numbers: write f in terms of torch.view_as_real(z) and let it return "
            "torch.view_as_real(f(z)), or use vjp or jvp"
        )
    if chunk_size is not None and (of_complex or complex_ones):
        seen = (of_complex or complex_ones)[0].type
        raise ArgumentError(
            f"chunk_size={chunk_size}: {title} takes or returns {seen}, and chunks are of real numbers: leave "
            "chunk_size out, or use torch.view_as_real"
        )


def jacobian_in_chunks(
    graph: Graph, sources: Sequence[Value], outputs: Sequence[Value], order: OrderName, chunk_size: int, plain: bool
) -> Run:
    """A function from a graph's inputs to each output's Jacobian in each source, followed by the graph's outputs.

    Arguments:
        outputs: the first outputs of the graph, those to be differentiated.
        order: "forward" goes by columns; any other by rows, in reverse where it says "auto".
        chunk_size: the number of rows or columns that are computed at once.
        plain: whether it will run on plain tensors only, outside all traces, so that rows can be written into place.

    Cost: the memory of `chunk_size` rows, of what is kept of the function, and of the result; of the result once more
        inside a trace.
    """
    if order == "forward":
        return _by_columns(graph, sources, outputs, chunk_size, _written if plain else _joined)
    order = "reverse" if order == "auto" or isinstance(order, Search) else order
    return _by_rows(graph, sources, outputs, order, chunk_size, _written if plain else _joined)


def _by_rows(
    graph: Graph, sources: Sequence[Value], outputs: Sequence[Value], order: OrderName, chunk_size: int, collect: Any
) -> Run:
    tasks = [vjp_task(graph, sources, [k], rows=chunk_size) for k in range(len(outputs))]
    forward, backward = _programs(graph, tasks, order)

    def run(*flat: torch.Tensor) -> tuple[Any, ...]:
        results = forward(*flat)
        kept = results[len(graph.outputs) :]
        jacobians: list[Any] = []
        for program, output in zip(backward, outputs, strict=True):
            rows = (program(*kept, _basis(output, start, chunk_size)) for start in _starts(output, chunk_size))
            stacked = collect(rows, 0, [(output.size, *s.shape) for s in sources], [s.dtype for s in sources])
            jacobians += [j.reshape(output.shape + s.shape) for j, s in zip(stacked, sources, strict=True)]
        return (*jacobians, *results[: len(graph.outputs)])

    return run


def _by_columns(graph: Graph, sources: Sequence[Value], outputs: Sequence[Value], chunk_size: int, collect: Any) -> Run:
    tasks = [jvp_task(graph, [source], range(len(outputs)), columns=chunk_size) for source in sources]
    forward, push = _programs(graph, tasks, "forward")

    def run(*flat: torch.Tensor) -> tuple[Any, ...]:
        results = forward(*flat)
        kept = results[len(graph.outputs) :]
        blocks: list[list[Any]] = []
        for program, source in zip(push, sources, strict=True):
            basis = (_basis(source, start, chunk_size).movedim(0, -1) for start in _starts(source, chunk_size))
            columns = (program(*kept, tangent) for tangent in basis)
            shapes, dtype = [(*o.shape, source.size) for o in outputs], source.dtype  # a tangent had the output's
            joined = collect(columns, -1, shapes, [dtype] * len(outputs))
            blocks.append([j.reshape(o.shape + source.shape) for j, o in zip(joined, outputs, strict=True)])
        jacobians = [block[k] for k in range(len(outputs)) for block in blocks]
        return (*jacobians, *results[: len(graph.outputs)])

    return run


Blocks = Iterable[Sequence[torch.Tensor]]


def _written(blocks: Blocks, axis: int, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> list[torch.Tensor]:
    """Blocks of rows or columns, each written into its place in the results before the next one is computed."""
    results: list[torch.Tensor] = []
    start = 0
    for block in blocks:
        if not results:
            kinds = zip(block, shapes, dtypes, strict=True)
            results = [b.new_empty(shape, dtype=torch_dtype(dtype)) for b, shape, dtype in kinds]
        for result, part in zip(results, block, strict=True):
            size = min(part.shape[axis], result.shape[axis] - start)
            result.narrow(axis, start, size).copy_(part.narrow(axis, 0, size))
        start += block[0].shape[axis]
    return results


def _joined(blocks: Blocks, axis: int, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> list[torch.Tensor]:
    """The same without writing, which a trace or a transform around it could not see."""
    parts = zip(*blocks, strict=True)
    joined = zip(parts, shapes, dtypes, strict=True)
    return [torch.cat(p, axis).narrow(axis, 0, shape[axis]).to(torch_dtype(d)) for p, shape, d in joined]


def _programs(graph: Graph, tasks: Sequence[Task], order: OrderName) -> tuple[Run, list[Run]]:
    """The function, which also returns what is kept; and for each task what takes that and one seed more."""
    merged = merged_tasks(graph, tasks)
    compiled = compile_derivative(merged, order, fuse=False, plain=False)
    first, second = split_program(compiled.program.graph, len(tasks), len(merged.pairs))
    kept, seeds = second.inputs[: -len(tasks)], second.inputs[-len(tasks) :]
    parts, start = [], 0
    for task, seed in zip(tasks, seeds, strict=True):
        wanted = second.outputs[start : start + len(task.pairs)]
        part = Graph((*kept, seed), live_nodes(second.nodes, wanted), wanted)
        parts.append(emit_python(part, name="chunk").run)
        start += len(task.pairs)
    return emit_python(first, name="function").run, parts


def _starts(value: Value, chunk_size: int) -> range:
    return range(0, max(value.size, 1), chunk_size)


def _basis(value: Value, start: int, count: int) -> torch.Tensor:
    """Rows `start` to `start + count` of an identity; rows beyond its end are zero."""
    rows = torch.zeros(count, value.size, dtype=torch_dtype(value.dtype), device=value.device)
    inside = torch.arange(min(count, value.size - start), device=value.device)
    rows[inside, inside + start] = 1
    return rows.reshape(count, *value.shape)
