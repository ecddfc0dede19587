"""Derivatives that are functions: `pull_back` of `vjp`, and `push_forward` of `linearize`.

The program comes in two parts.  The first runs at once; the second runs whenever it is given cotangents, or tangents,
and takes what the first one kept.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .bridge import Level, as_node, is_bare, refuse_regions, requires_grad
from .compilation import Task, compile_derivative, compile_function, jvp_task, vjp_task
from .derivatives import CapturedCall, Executable
from .dtypes import device_name, torch_dtype
from .emit.python import emit_python
from .emit.splitting import split_program
from .errors import ArgumentError, ShapeError
from .graph import Graph, Value
from .guards import describe as describe_any
from .guards import is_transforming
from .provenance import describe
from .purity import Pure, as_before, pure, refuse, refuse_once_differentiable
from .recording import is_tracing
from .structure import Structure, is_leaf, rebuilder
from .torch_private import outside_autocast, tree_flatten, version

Run = Callable[..., Any]


@dataclass(frozen=True)
class VectorJacobian:
    """Outputs, and a function from cotangents of the outputs to cotangents of all arguments."""

    has_aux: bool = False
    argnums: ClassVar[None] = None
    is_final: ClassVar[bool] = False

    def compile(self, call: CapturedCall) -> Executable:
        """Two programs: the first runs at once, the second whenever it is given cotangents."""
        argnums = tuple(range(len(call.argument_specs)))
        sources = call.sources(argnums)
        output, aux, count = call.result(self.has_aux, 0)
        outputs = call.tensor_outputs(count)
        parts = _Parts.of(call, lambda graph: vjp_task(graph, sources, range(count)), "reverse", "vjp")
        finish_gradient = rebuilder(call.structure(argnums, 0))
        finish_output, title = rebuilder((output, aux) if self.has_aux else output), call.title

        def finish(results: tuple[Any, ...]) -> Any:
            outcome, later = finish_output(results[0]), parts.later(*results)

            def pull_back(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
                """The cotangents of the primals, given those of the output."""
                _check_flags(title, retain_graph, create_graph)
                flat = _check_seeds(cotangents, output, outputs, "cotangent", title)
                return finish_gradient(later(flat, retain_graph, create_graph))

            return (outcome[0], pull_back, outcome[1]) if self.has_aux else (outcome, pull_back)

        return parts.executable(finish)


@dataclass(frozen=True)
class Linearisation:
    """Outputs, and a function from tangents of all arguments to tangents of the outputs."""

    argnums: ClassVar[None] = None
    is_final: ClassVar[bool] = False

    def compile(self, call: CapturedCall) -> Executable:
        """Two programs: the first runs at once, the second whenever it is given tangents."""
        argnums = tuple(range(len(call.argument_specs)))
        sources = call.sources(argnums)
        output, _, count = call.result(False, 0)
        call.tensor_outputs(count)
        parts = _Parts.of(call, lambda graph: jvp_task(graph, sources, range(count)), "forward", "linearize")
        finish_output, primals, title = rebuilder(output), call.structure(argnums, 0), call.title

        def finish(results: tuple[Any, ...]) -> Any:
            outcome, later = finish_output(results[0]), parts.later(*results)

            def push_forward(*tangents: Any) -> Any:
                """The tangent of the output, given those of the primals."""
                flat = _check_seeds(tangents, primals, sources, "tangent", title)
                return finish_output(later(flat, True, None))

            return outcome, push_forward

        return parts.executable(finish)


@dataclass(frozen=True, eq=False)
class _Parts:
    """A derivative's program in two parts.

    graph: the function; what it draws at random comes behind its outputs, wherever its results may have to be computed
        anew.
    outputs: how many outputs it has besides.
    again: the function without draws and writes.
    first, second: the two programs.
    function, derivative: the function, and its derivative, as autograd sees them.
    plain: whether they run on plain tensors, outside of other transforms.
    """

    graph: Graph
    outputs: int
    again: Pure
    first: Run
    second: Run
    function: Level
    derivative: Level
    plain: bool
    title: str
    compiled: Any

    @classmethod
    def of(cls, call: CapturedCall, task: Callable[[Graph], Task], order: str, name: str) -> "_Parts":
        again = pure(call.captured.graph)
        graph = call.captured.graph if is_tracing() else again.with_draws(call.captured.graph)
        whole = task(graph)
        late, count = len(whole.graph.inputs) - len(graph.inputs), len(whole.pairs)
        compiled = call.derivative(whole, order, name)
        first, second = split_program(compiled.program.graph, late, count)

        def derivative(fast: bool) -> Run:
            refuse_once_differentiable(again.graph, "the derivative of its derivative was asked for")
            asked = replace(task(again.graph), returns_outputs=False)
            return compile_derivative(asked, order, fuse=fast, plain=fast).program.run

        fixed = len(again.graph.inputs)
        return cls(
            graph=graph,
            outputs=len(call.outputs),
            again=again,
            first=emit_python(first, name="forward").run,
            second=emit_python(second, name="backward").run,
            function=Level(lambda fast: compile_function(again.graph, plain=fast).run, fixed),
            derivative=Level(derivative, fixed),
            plain=call.plain,
            title=call.title,
            compiled=compiled,
        )

    def executable(self, finish: Callable[[Any], Any]) -> Executable:
        """The whole of it, with a function that puts its results into structure."""
        return Executable(self.run, finish, self.compiled, as_node=self.as_node)

    def run(self, *tensors: Tensor) -> tuple[Any, ...]:
        """The outputs; what the derivative is computed from anew; what the second program takes."""
        before = as_before(self.again, tensors)
        results = self.first(*tensors)
        end = len(self.graph.outputs)
        return results[: self.outputs], (*before, *results[self.outputs : end]), results[end:]

    def as_node(self, *tensors: Tensor) -> tuple[Any, ...]:
        """The same, with outputs that belong to autograd's graph, or to the transforms around this call."""
        if is_transforming() and self.again.has_regions:
            refuse_regions(self.graph, tensors)
            return self.run(*tensors)
        if is_transforming():
            refuse(self.graph, replace(self.again, overwritten=()), tensors)
            read = self._read(tensors)
            return self.function.call(read), read, None
        refuse(self.graph, self.again, tensors)
        found: list[tuple[Any, ...]] = []

        def forward(*inputs: Tensor) -> tuple[Any, ...]:
            found.append(self.run(*inputs))
            return found[0][:2]

        outputs = as_node(self.function, forward, tensors)
        return (outputs, *found[0][1:])

    def _read(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors as they were before, and what is drawn in a run that the transforms around this call see."""
        if self.again.repeats:
            return tuple(tensors)
        read = self.run(*tensors)[1]
        return (*read[: len(tensors)], *(draw.detach() for draw in read[len(tensors) :]))

    def later(self, _: Any, read: tuple[Any, ...], kept: tuple[Any, ...] | None) -> "_Later":
        """The second part, for the results of a run."""
        return _Later(self, read, kept)


class _Later:
    """The second program, with what one run of the first has left for it.

    read: what the derivative is computed from anew, where a transform or autograd is to see how.
    kept: what the second program takes; None where the derivative is always to be computed anew.
    """

    guarded_attributes = ("level", "read", "kept")  # what a transform that calls this must find again

    def __init__(self, parts: _Parts, read: tuple[Any, ...], kept: tuple[Any, ...] | None) -> None:
        self.parts, self.level = parts, parts.derivative
        self.read, self.kept = read, kept
        self.versions = [_versions(read), _versions(kept or ())] if parts.plain else None
        self.is_released = False

    def __call__(self, seeds: Sequence[Tensor], retain: bool, create_graph: bool | None) -> tuple[Any, ...]:
        """The derivatives, for cotangents or tangents that fit."""
        if self.is_released:
            raise ArgumentError(
                f"what vjp kept of {self.parts.title} was let go by retain_graph=False: leave it True in every call "
                "but the last"
            )
        with nullcontext() if create_graph is None else torch.set_grad_enabled(create_graph):
            found = outside_autocast(self._results)(seeds)
        if not retain:
            self.read, self.kept, self.is_released = (), (), True
        return found

    def _results(self, seeds: Sequence[Tensor]) -> tuple[Any, ...]:
        tensors = (*self.read, *seeds)
        if self.kept is None:
            return self.level.call(tensors)
        if not self.parts.plain:
            return self.parts.second(*self.kept, *seeds)
        if requires_grad(tensors) or not is_bare(seeds):
            self._check(self.read, 0)
        if requires_grad(tensors):
            refuse(self.parts.graph, replace(self.parts.again, overwritten=()), self.read)
        return self.level.call(tensors, self._fast)

    def _fast(self, *tensors: Tensor) -> tuple[Any, ...]:
        assert self.kept is not None
        self._check(self.kept, 1)
        return self.parts.second(*self.kept, *tensors[len(self.read) :])

    def _check(self, tensors: Sequence[Tensor], which: int) -> None:
        if self.versions is not None and _versions(tensors) != self.versions[which]:
            raise ArgumentError(
                f"a tensor that {self.parts.title} read or returned was changed in place after vjp, and pull_back "
                "needs it as it was: change a .clone() of it instead"
            )


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each tensor had been changed in place by now."""
    return list(map(version, tensors))


def _check_flags(title: str, retain_graph: Any, create_graph: Any) -> None:
    if not isinstance(retain_graph, bool) or not (create_graph is None or isinstance(create_graph, bool)):
        seen = f"retain_graph={describe_any(retain_graph)}, create_graph={describe_any(create_graph)}"
        raise ArgumentError(
            f"the cotangents of {title} must be one argument, a tuple where the output is one; behind it pull_back "
            f"takes retain_graph and create_graph, which are True or False: it was given {seen}"
        )


def _check_seeds(given: Any, structure: Structure, values: Sequence[Value], what: str, title: str) -> Sequence[Tensor]:
    """The leaves of the cotangents or tangents, which must have the structure, shapes and dtypes of some values."""
    like = "output" if what == "cotangent" else "primals"
    flat, spec = tree_flatten(given)
    _, wanted = tree_flatten(structure, is_leaf=is_leaf)
    if spec != wanted:
        raise ArgumentError(f"the {what}s of {title} must have the structure of its {like}, {wanted}; not {spec}")
    for k, (tensor, value) in enumerate(zip(flat, values, strict=True)):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{what} {k} of {title} is {tensor!r}, not a tensor")
        if tuple(tensor.shape) != value.shape or tensor.dtype != torch_dtype(value.dtype):
            required = f"{what} {k} of {title} must be {value.type} like the {like}"
            raise ShapeError(f"{required}; it is {describe(tensor)}")
        if device_name(tensor.device) != value.device or tensor.layout is not torch.strided:
            seen = f"it is on {tensor.device}, {tensor.layout}"
            raise ArgumentError(f"{what} {k} of {title} must be dense, on {value.device} like the {like}; {seen}")
    return flat
