"""Plain numerical evaluation: every label visited, every product added up.

Slow, obvious, and free of the algebra, the passes and lowering: it is the oracle beside them.  Derived nodes and
structured Jacobians are read off their definitions, one grid point at a time; grids are visited in pieces, so memory
stays bounded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from .dtypes import torch_dtype
from .errors import GraphError
from .expressions import Contraction, Placement
from .graph import COMPLEX, DType, Node, Value
from .index import Axis, Index, Indices, Label, labels_of, of_label
from .terms import Application, Chain, Factor, Jac, Kernel, Scalar, Term, fill, transpose
from .torch_private import overload

Tensors = Mapping[Value, Tensor]
Read = tuple[Tensor, Indices]
PIECE = 2**22  # grid points visited at once


# ---------------------------------------------------------------- nodes


def evaluate(nodes: Iterable[Node], values: Tensors) -> dict[Value, Tensor]:
    """Run nodes one after the other.

    Arguments:
        nodes: in an order that computes; ATen operators, derived nodes or both.
        values: the tensors that the nodes read and do not compute.

    Returns:
        `values` and the outputs of all nodes.
    """
    known = dict(values)
    for node in nodes:
        results = results_of(node, known)
        for value, result in zip(node.outputs, results, strict=True):
            if value is not None:
                known[value] = result
    return known


def results_of(node: Node, values: Tensors) -> Sequence[Tensor]:
    """What one node computes, an entry for each of its outputs."""
    derived = _DERIVED.get(node.op)
    if derived is not None:
        return [derived(node, values)]
    args, kwargs = _tensors(node.args, values), {name: _tensors(a, values) for name, a in node.kwargs}
    return _as_results(_callable(node.op)(*args, **kwargs))


def _as_results(result: Any) -> Sequence[Tensor]:
    return result if isinstance(result, (tuple, list)) else [result]


def _callable(op: str) -> Any:
    """Views are reshapes here: what is contiguous in a compiled program need not be so in this one."""
    return torch.reshape if op in ("aten.view.default", "aten._unsafe_view.default") else overload(op)


def _tensors(tree: Any, values: Tensors) -> Any:
    if isinstance(tree, Value):
        return values[tree]
    if isinstance(tree, tuple):
        return tuple(_tensors(item, values) for item in tree)
    return torch_dtype(tree) if isinstance(tree, DType) else tree


def _contract(node: Node, values: Tensors) -> Tensor:
    expression: Contraction = node.args[0]
    reads = _reads(expression.factors, values)
    return _add_up(expression.scale, reads, expression.axes, expression.shape, values, _dtype(node))


def _place(node: Node, values: Tensors) -> Tensor:
    expression: Placement = node.args[0]
    read = (values[expression.value], tuple(map(of_label, expression.labels)))
    return _add_up(1, [read], expression.axes, node.results[0].shape, values, _dtype(node))


def _apply(node: Node, values: Tensors) -> Tensor:
    application, operand, width = node.args
    stacked = values[operand].reshape(prod(width), *operand.shape[len(width) :])
    rows = [_call(application, row, values) for row in stacked]
    result = torch.stack(rows) if rows else torch.zeros(0)
    return result.reshape(node.results[0].shape).to(_dtype(node))


def _batched(node: Node, values: Tensors) -> Tensor:
    op, args, kwargs, output, operand = node.args
    rows = [_call(Application(op, args, kwargs, output), row, values) for row in values[operand]]
    return torch.stack(rows)


_DERIVED: dict[str, Callable[[Node, Tensors], Tensor]] = {
    "contract": _contract,
    "place": _place,
    "apply": _apply,
    "batched": _batched,
    "cast": lambda node, values: _cast(values[node.args[0]], _dtype(node)),
    "zeros": lambda node, values: torch.zeros(node.args[0], dtype=_dtype(node)),
}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor if dtype.is_complex else _real(tensor)).to(dtype)


def _dtype(node: Node) -> torch.dtype:
    return torch_dtype(node.results[0].dtype)


def _call(application: Application, operand: Tensor, values: Tensors) -> Tensor:
    """A linear operator applied to one operand."""
    args = _tensors(fill(application.args, operand), values)
    kwargs = {name: _tensors(a, values) for name, a in application.kwargs}
    return _as_results(_callable(application.op)(*args, **kwargs))[application.output]


# ---------------------------------------------------------------- Jacobians


def dense(jac: Jac, values: Tensors) -> Tensor:
    """All entries of a structured Jacobian, of shape out_shape + in_shape.

    Raises GraphError for an antilinear term, which no array of numbers can stand for.

    Cost: one multiplication for every setting of a term's labels; one call for every row of a kernel.
    """
    dtype = torch_dtype(jac.pull_dtype)
    total = torch.zeros(jac.out_shape + jac.in_shape, dtype=dtype)
    for part in jac.parts:
        if not isinstance(part, Term):
            total += _dense_map(replace(jac, parts=(part,)), values, dtype)
            continue
        if part.antilinear:
            raise GraphError(f"{part!r} is not linear over the complex numbers: use push and pull")
        reads = _reads(part.factors, values)
        total += _add_up(part.scale, reads, part.out + part.inp, jac.out_shape + jac.in_shape, values, dtype)
    return total


def _dense_map(jac: Jac, values: Tensors, dtype: torch.dtype) -> Tensor:
    """A kernel or a chain, row by row; a row is the conjugate of what a cotangent is pulled back to."""
    rows = torch.eye(prod(jac.out_shape), dtype=torch_dtype(jac.out_dtype)).reshape(-1, *jac.out_shape)
    pulled = [pull(jac, values, row).conj().to(dtype) for row in rows]
    return (torch.stack(pulled) if pulled else torch.zeros(0)).reshape(jac.out_shape + jac.in_shape)


def pull(jac: Jac, values: Tensors, cotangent: Tensor) -> Tensor:
    """Jᵀ · cotangent, in the shape and dtype of the input side."""
    return push(transpose(jac), values, cotangent)


def push(jac: Jac, values: Tensors, tangent: Tensor) -> Tensor:
    """J · tangent, in the shape and dtype of the output side."""
    dtype = torch_dtype(jac.push_dtype)
    total = torch.zeros(jac.out_shape, dtype=dtype)
    for part in jac.parts:
        if isinstance(part, Kernel):
            total += _call(part.push, tangent, values)
        elif isinstance(part, Chain):
            moved = tangent
            for factor in part.factors[::-1]:
                moved = push(factor, values, moved)
            total += moved
        else:
            incoming = tangent.conj() if part.antilinear else tangent
            reads = [*_reads(part.factors, values), (incoming, part.inp)]
            total += _add_up(part.scale, reads, part.out, jac.out_shape, values, dtype)
    return total if jac.out_dtype in COMPLEX else _real(total).to(torch_dtype(jac.out_dtype))


def _real(tensor: Tensor) -> Tensor:
    return tensor.real if tensor.is_complex() else tensor


# ---------------------------------------------------------------- grids


def _reads(factors: Iterable[Factor], values: Tensors) -> list[Read]:
    return [(values[f.value].conj() if f.conj else values[f.value], f.axes) for f in factors]


def _add_up(
    scale: Scalar, reads: Sequence[Read], axes: Indices, shape: tuple[int, ...], values: Tensors, dtype: torch.dtype
) -> Tensor:
    """result[axes] += scale · Π read, over every setting of all labels; the real part, if the dtype is real."""
    if not dtype.is_complex and (isinstance(scale, complex) or any(tensor.is_complex() for tensor, _ in reads)):
        return _add_up(scale, reads, axes, shape, values, dtype.to_complex()).real
    result = torch.zeros(prod(shape), dtype=dtype)
    labels = dict.fromkeys([*labels_of(axes), *(s for _, read in reads for s in labels_of(read))])
    for grid, points in _grids(tuple(labels)):
        product = torch.full((points,), scale, dtype=dtype)
        for tensor, read in reads:
            product = product * _entries(tensor, read, grid, points, values).to(dtype)
        result.index_add_(0, _flat(axes, shape, grid, points, values), product)
    return result.reshape(shape)


def _grids(labels: Sequence[Label]) -> Iterator[tuple[dict[Label, Tensor], int]]:
    """Every setting of the labels, in pieces: the value of each label at each point, and the number of points."""
    total = prod(label.size for label in labels)
    for start in range(0, total, PIECE):
        rest = torch.arange(start, min(start + PIECE, total))
        points, grid = len(rest), {}
        for label in reversed(labels):
            grid[label] = rest % label.size
            rest = rest // label.size
        yield grid, points


def _position(index: Index, grid: Mapping[Label, Tensor], points: int, values: Tensors) -> Tensor:
    if not isinstance(index, Axis):
        return _entries(values[index.table], index.axes, grid, points, values).to(torch.int64)
    result = torch.full((points,), index.offset)
    for label, stride in index.parts:
        result = result + stride * grid[label]
    return result


def _flat(axes: Indices, shape: Sequence[int], grid: Mapping[Label, Tensor], points: int, values: Tensors) -> Tensor:
    """The position in the flattened tensor at each point."""
    result = torch.zeros(points, dtype=torch.int64)
    for index, extent in zip(axes, shape, strict=True):
        along = _position(index, grid, points, values)
        if bool(((along < 0) | (along >= extent)).any()):
            raise GraphError(f"index {index!r} leaves an axis of size {extent}")
        result = result * extent + along
    return result


def _entries(tensor: Tensor, axes: Indices, grid: Mapping[Label, Tensor], points: int, values: Tensors) -> Tensor:
    """What a tensor holds at each point."""
    return tensor.reshape(-1)[_flat(axes, tuple(tensor.shape), grid, points, values)]


__all__ = ["dense", "evaluate", "pull", "push"]
