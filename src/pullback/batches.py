"""Derivatives of each sample of a batch by itself, from a function that takes the whole batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .api import normal_argnums, normal_order
from .compilation import Compiled, OrderName, batch_task
from .derivatives import Argnums, CapturedCall, Executable, Jacobian
from .emit.backends import CALLS, normal_backend
from .errors import ArgumentError, ShapeError
from .graph import Value
from .stages import Search
from .transform import Transform
from .verification import transform_of

Dims = int | tuple[int, ...]


@dataclass(frozen=True)
class BatchJacobian(Jacobian):
    """The Jacobian of each sample of the outputs in the same sample of the arguments.

    apart: whether it is known that the function keeps samples apart.
    """

    in_dims: Dims = 0
    out_dims: Dims = 0
    apart: bool = False

    def compile(self, call: CapturedCall) -> Executable:
        """The Jacobians, output by output."""
        sources, axes = self.sample_axes(call)
        output, _, count = call.result(False, 0)
        structure = self._structure(call, output, count, len(sources))
        compiled = self._cheapest(call, sources, axes)
        return Executable.of(compiled, structure, call.bridge(compiled.program.run, self))

    def sample_axes(self, call: CapturedCall) -> tuple[dict[Value, int], dict[int, int]]:
        """Which axis of sources and outputs counts the samples."""
        sources = self._source_axes(call)
        size = next(v.shape[axis] for v, axis in sources.items())
        return sources, self._output_axes(call, call.tensor_outputs(call.result(False, 0)[2]), size)

    def _cheapest(self, call: CapturedCall, sources: dict[Value, int], outputs: dict[int, int]) -> Compiled:
        """One batch axis is enough, at the outputs or at the inputs: a product of both is never needed."""
        rows = sum(v.size // max(v.shape[outputs[k]], 1) for k, v in enumerate(call.outputs) if k in outputs)
        columns = sum(v.size // max(v.shape[axis], 1) for v, axis in sources.items())
        searched = self.order == "auto" or isinstance(self.order, Search)
        chosen = [self.order, "forward"] if searched and columns < rows else [self.order]
        tasks = [batch_task(call.captured.graph, sources, outputs, call.title, order == "forward") for order in chosen]
        batches = [None if self.apart else task.batch for task in tasks]
        tasks = [replace(t, returns_outputs=call.keeps_outputs, batch=b) for t, b in zip(tasks, batches, strict=True)]
        compiled = [call.derivative(t, o, "batch_jacobian") for t, o in zip(tasks, chosen, strict=True)]
        return min(compiled, key=lambda one: one.plan().seconds)

    def _source_axes(self, call: CapturedCall) -> dict[Value, int]:
        """The batch axis of each tensor to differentiate; all of them must have the same size there."""
        places = call.positions(self.argnums)
        dims = _for_each(self.in_dims, len(places), "in_dims", "argument to differentiate")
        call.sources(self.argnums)
        axes: dict[Value, int] = {}
        for position, dim in zip(places, dims, strict=True):
            for value in call.argument_values[position]:
                if value is not None:
                    axes[value] = _axis(value, dim, f"argument {value.name!r} of {call.title}", "in_dims")
        sizes = {value.shape[axis] for value, axis in axes.items()}
        if len(sizes) > 1:
            seen = ", ".join(f"{v.name!r} has {v.shape[axis]} along axis {axis}" for v, axis in axes.items())
            raise ShapeError(f"the arguments of {call.title} must hold the same number of samples: {seen}")
        if not axes:
            raise ArgumentError(f"{call.title} is given no tensor to differentiate: choose another position by argnums")
        return axes

    def _output_axes(self, call: CapturedCall, outputs: Sequence[Value], size: int) -> dict[int, int]:
        dims = _for_each(self.out_dims, len(outputs), "out_dims", "output")
        axes = {}
        for number, (value, dim) in enumerate(zip(outputs, dims, strict=True)):
            axis = _axis(value, dim, f"output {number} of {call.title}{call.line_of(value)}", "out_dims")
            if value.shape[axis] != size:
                raise ShapeError(
                    f"output {number} of {call.title} is {value.type}{call.line_of(value)}: along axis {axis} it must "
                    f"have one entry for each of the {size} samples; give the axis by out_dims"
                )
            axes[number] = axis
        return axes


def _for_each(dims: Dims, count: int, name: str, what: str) -> tuple[int, ...]:
    if not isinstance(dims, tuple):
        return (dims,) * count
    if len(dims) != count:
        raise ArgumentError(f"{name}={dims} has {len(dims)} axes: give one for each {what}, of which there are {count}")
    return dims


def _axis(value: Value, dim: int, what: str, name: str) -> int:
    rank = len(value.shape)
    if not -rank <= dim < rank:
        raise ShapeError(f"{what} is {value.type}: it has no axis {dim} to hold the samples; give one by {name}")
    return dim % rank


def batch_jacobian(
    f: Callable[..., Any],
    argnums: Argnums = 0,
    in_dims: Dims = 0,
    out_dims: Dims = 0,
    *,
    order: OrderName = "auto",
    effort: float | None = None,
    backend: str = "auto",
    expected_calls: int = CALLS,
    verify: bool = False,
) -> Transform:
    """Return a function that computes the Jacobian of each sample of a batch by itself.

    Arguments:
        f: a function of whole batches, which returns any pytree of floating tensors with an axis for the samples.
        argnums: the position, or a tuple of positions, of the arguments to differentiate.
        in_dims: which axis of the differentiated arguments counts the samples; a tuple has one for each of `argnums`.
            Whether the other arguments have such an axis is the function's own affair.
        out_dims: which axis of the output does; a tuple has one for each output.
        order, effort, backend, expected_calls, verify: as for `jacobian`.

    Returns:
        A function of the arguments of `f`.  For B samples, an output of shape (m₁, …) and an argument of shape (n₁, …)
        without their batch axes it returns shape (B, m₁, …, n₁, …), in structures as `jacobian` does.

    Raises (when the function is called): as `jacobian`, and
        BatchError: an operator mixes samples (a BatchNorm in training, a softmax over the batch), or they cannot be
            shown to be kept apart; names it, with its line.  That is read off the graph, not off sizes.
        ShapeError: an axis does not exist, or has another number of samples.

    Cost: that of the Jacobian of one sample, for all of them at once; no entry between two samples is computed.

    >>> import torch, pullback
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> pullback.batch_jacobian(lambda x: x.prod(1))(x)
    tensor([[2., 1.],
            [4., 3.],
            [6., 5.]])
    """
    inward, outward = _dims(in_dims, "in_dims"), _dims(out_dims, "out_dims")
    kind = BatchJacobian(normal_argnums(argnums), order=normal_order(order, effort), in_dims=inward, out_dims=outward)
    return transform_of(f, kind, normal_backend(backend, expected_calls), verify)


def batch_hessian(
    f: Callable[..., Any],
    argnums: Argnums = 0,
    in_dims: Dims = 0,
    *,
    order: OrderName = "auto",
    effort: float | None = None,
    backend: str = "auto",
    expected_calls: int = CALLS,
    verify: bool = False,
) -> Transform:
    """Return a function that computes the second derivatives of each sample of a batch by itself.

    Arguments:
        f: a function of whole batches that returns one number for each of B samples, a tensor of shape (B,).
        argnums, in_dims, order, effort, backend, expected_calls, verify: as for `batch_jacobian`.

    Returns:
        A function of the arguments of `f`.  For an argument of shape (n₁, …) without its batch axis it returns shape
        (B, n₁, …, n₁, …); structures nest as in `hessian`.

    Raises (when the function is called): as `batch_jacobian`.

    Cost: that of the Hessian of one sample, for all of them at once.

    >>> import torch, pullback
    >>> pullback.batch_hessian(lambda x: (x ** 3).sum(1))(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[[ 6.,  0.],
             [ 0., 12.]],
    <BLANKLINE>
            [[18.,  0.],
             [ 0., 24.]]])
    """
    first = BatchJacobian(normal_argnums(argnums), in_dims=_dims(in_dims, "in_dims"))
    # What proves that f keeps samples apart proves it of its derivatives: sample b of f is a function of one sample.
    outer = replace(first, order=normal_order(order, effort), apart=True)
    return transform_of(Transform(f, first), outer, normal_backend(backend, expected_calls), verify)


def _dims(dims: Any, name: str) -> Dims:
    if isinstance(dims, (tuple, list)) and dims and all(type(k) is int for k in dims):
        return tuple(dims)
    if type(dims) is int:
        return dims
    raise ArgumentError(f"{name}={dims!r}: it must be an axis, or a tuple of axes")
