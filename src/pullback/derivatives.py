"""What can be asked of a function: its gradient, Jacobian, products with it.

Each kind of derivative turns a captured call into an `Executable`: which pairs of outputs and inputs to differentiate,
and how the flat results are put back into the structure that `torch.func` would return.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from . import gauges, own_products, recurrences, region_products  # noqa: F401  (define operators that programs call)
from .bridge import Bridge
from .capture import Captured
from .chunks import check_real, jacobian_in_chunks
from .compilation import (
    Compiled,
    OrderName,
    Task,
    check_sources,
    compile_derivative,
    jacobian_task,
    jvp_task,
)
from .emit.backends import Auto
from .emit.builtins import facts
from .emit.program import Program
from .errors import ArgumentError, CaptureError, ShapeError
from .graph import Graph, Value
from .provenance import describe
from .purity import depending
from .structure import Leaf, Structure, is_leaf, numbered, rebuilder
from .torch_private import tree_flatten, tree_unflatten

Argnums = int | tuple[int, ...]


@dataclass(frozen=True)
class Executable:
    """A program and what to do with its flat results.

    run: takes the flat tensors of a call.
    finish: gives the results their structure.
    compiled: how it came about; None where it is no single derivative.
    program: the one program that `run` is; None where there are several.
    structure: what `finish` builds of that program's results.
    returned: its results, by number, that are an input itself after it was written into.
    recorded: flat tensors, by number, of which none may require gradients while gradients are on.
    statistics: flat tensors, by number, that are written into without a derivative: running means and their like.
    name: what the function is called, for messages.
    as_node: as `run`, with results that belong to PyTorch's autograd graph, or to the transforms of `torch.func` around
        the call; None for a function that is compiled as it stands, and what it calls.
    """

    run: Callable[..., Any]
    finish: Callable[[Any], Any]
    compiled: Compiled | None = None
    program: Program | None = None
    structure: Structure = None
    returned: Mapping[int, Value] = field(default_factory=dict)
    recorded: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()
    name: str = ""
    as_node: Callable[..., Any] | None = None

    @classmethod
    def of(cls, compiled: Compiled, structure: Structure, as_node: Callable[..., Any] | None) -> "Executable":
        """A compiled derivative, and the structure of its results."""
        program = compiled.program
        return cls(program.run, rebuilder(structure), compiled, program=program, structure=structure, as_node=as_node)

    def check_recorded(self, flat: Sequence[torch.Tensor]) -> None:
        """Raise ArgumentError if eager PyTorch would record, or refuse, what the program computes as numbers."""
        found = next((k for k in self.recorded if flat[k].requires_grad), None)
        if found is not None:
            raise ArgumentError(
                f"{self.name} returns, or writes in place, what depends on a tensor that requires gradients "
                f"({describe(flat[found])}), while gradients are on: a compiled function computes numbers, outside "
                "PyTorch's autograd graph. Call it under torch.no_grad(), or, in it, return loss.detach() and write "
                "under `with torch.no_grad():`"
            )


@dataclass(frozen=True)
class CapturedCall:
    """A function captured at some arguments.

    argument_values: for each positional argument the graph inputs that its tensors became; None for a leaf that is no
        tensor.
    argument_specs: the pytree of each positional argument.
    fuse: whether fused backward kernels may be used: not inside another transform.
    plain: whether the program will run on plain tensors only, outside all traces.
    name, title: what the function is called, and that with the place where it stands, for messages.
    backend: what the program is to be made by.
    keeps_outputs: whether the program returns the function's own results though nobody asks for them.
    """

    captured: Captured
    argument_values: tuple[tuple[Value | None, ...], ...]
    argument_specs: tuple[Any, ...]
    fuse: bool
    plain: bool
    name: str
    title: str
    backend: str | Auto = "auto"
    keeps_outputs: bool = False

    @property
    def outputs(self) -> tuple[Any, ...]:
        """The function's flat results."""
        return self.captured.graph.outputs

    def bridge(self, run: Callable[..., Any], kind: Any) -> Bridge | None:
        """A program for this call, as PyTorch may differentiate it; `kind` compiles it for another graph."""
        if self.fuse and not self.plain:
            return None  # part of a function that is compiled as it stands
        bare = replace(self, captured=replace(self.captured, lifted=(), constants=()))  # keeps no tensor alive

        def compiled(graph: Graph, fuse: bool) -> Callable[..., Any]:
            captured = replace(bare.captured, graph=graph)
            call = replace(bare, captured=captured, fuse=fuse, plain=fuse, keeps_outputs=True)
            return kind.compile(call).run

        return Bridge(self.captured.graph, run, compiled)

    def sources(self, argnums: Argnums) -> tuple[Value, ...]:
        """The graph inputs that belong to some arguments.

        Raises ArgumentError for a tensor that has no derivative.
        """
        values = [v for k in self.positions(argnums) for v in self.argument_values[k] if v is not None]
        check_sources(values, lambda v: f"argument {v.name!r} of {self.title}")
        self._refuse_mutated(values)
        return tuple(values)

    def positions(self, argnums: Argnums) -> tuple[int, ...]:
        """The arguments' numbers, counted from 0."""
        return positions(argnums, len(self.argument_specs), self.title)

    def structure(self, argnums: Argnums, start: int) -> Structure:
        """The structure of a gradient: that of the arguments, with flat results numbered from `start`."""
        structures = []
        for k in self.positions(argnums):
            structures.append(numbered(self.argument_specs[k], start))
            start += self.argument_specs[k].num_leaves
        return tuple(structures) if isinstance(argnums, tuple) else structures[0]

    def result(self, has_aux: bool, start: int) -> tuple[Structure, Structure, int]:
        """The structures of the output and of what came beside it, and how many leaves the output has."""
        spec = self.captured.out_spec
        whole = numbered(spec, start)
        if not has_aux:
            return whole, None, spec.num_leaves
        if type(whole) is not tuple or len(whole) != 2:
            raise ArgumentError(
                f"has_aux=True: {self.title} must return a tuple (output, aux); it returns {_described(self, whole)}"
            )
        return whole[0], whole[1], tree_flatten(whole[0])[1].num_leaves

    def derivative(self, task: Task, order: OrderName, name: str) -> Compiled:
        """Compile a derivative for where this call was made."""
        name = f"{name}_{identifier(self.name)}"
        return compile_derivative(task, order, fuse=self.fuse, plain=self.plain, name=name, backend=self.backend)

    def _refuse_mutated(self, sources: Sequence[Value]) -> None:
        changed = dict(self.captured.graph.mutations)
        for value in sources:
            if value in changed:
                producers = self.captured.graph.producers()
                node = producers.get(changed[value])
                raise CaptureError(
                    f"{self.title} changes its argument {value.name!r} in place "
                    f"({node.source if node else 'by copy_'}), and is differentiated with respect to it; write the new "
                    "value to a new tensor instead"
                )

    def tensor_outputs(self, count: int) -> tuple[Value, ...]:
        """The first `count` outputs, which must be floating tensors."""
        for k, output in enumerate(self.outputs[:count]):
            if not isinstance(output, Value):
                raise ArgumentError(
                    f"{self.title} returns {output!r} as output {k}; only tensors can be differentiated: return a "
                    "tensor, or return it through has_aux=True"
                )
            if not output.is_differentiable:
                raise ArgumentError(
                    f"output {k} of {self.title} is {output.type}{self.line_of(output)}: it has no derivative; "
                    "return it through has_aux=True, or convert it to a floating dtype before it is computed"
                )
        return self.outputs[:count]

    def line_of(self, value: Value) -> str:
        """Where a value was computed, as a clause for a message."""
        node = self.captured.graph.producers().get(value)
        return f" (computed at {node.source})" if node is not None and node.source else ""


def positions(argnums: Argnums, count: int, title: str) -> tuple[int, ...]:
    """The numbers of the arguments from 0 on.  Raises ArgumentError for one that does not exist, or comes twice."""
    wanted = argnums if isinstance(argnums, tuple) else (argnums,)
    for k in wanted:
        if not -count <= k < count:
            raise ArgumentError(
                f"argnums={argnums}, but {title} was called with {count} positional arguments; those passed by keyword "
                "are never differentiated"
            )
    found = tuple(k % count for k in wanted)
    if len(set(found)) < len(found):
        raise ArgumentError(f"argnums={argnums} names an argument of {title} twice: name each once")
    return found


def check_call(argnums: Argnums | None, args: tuple[Any, ...], title: str) -> None:
    """Refuse, before anything is traced, positions that do not exist and arguments that hold more than tensors.

    argnums: the arguments to differentiate; None for all of them, of which there must be one.
    """
    if argnums is None and not args:
        raise ArgumentError(f"{title} is given no primals: pass the arguments to differentiate")
    for k in range(len(args)) if argnums is None else positions(argnums, len(args), title):
        for leaf in tree_flatten(args[k])[0]:
            if not isinstance(leaf, torch.Tensor):
                raise ArgumentError(
                    f"argument {k} of {title} is or holds {leaf!r}, which is not a tensor: only tensors can be "
                    "differentiated with respect to; make it one, leave it out of argnums, or pass it separately"
                )


def _described(call: CapturedCall, output: Structure) -> str:
    """An output of the wrong structure, in few words."""
    if isinstance(output, Leaf):
        value = call.outputs[0]
        return f"{value.type}{call.line_of(value)}" if isinstance(value, Value) else repr(value)
    return f"a {type(output).__name__} of {len(output)}" if isinstance(output, (tuple, list, dict)) else repr(output)


@dataclass(frozen=True)
class Gradient:
    """The gradient of a scalar output, with or without its value."""

    argnums: Argnums = 0
    has_aux: bool = False
    order: OrderName = "auto"
    with_value: bool = False
    value_first: bool = True
    is_final: ClassVar[bool] = False

    def compile(self, call: CapturedCall) -> Executable:
        """Raises ShapeError unless the output is one floating scalar."""
        sources = call.sources(self.argnums)
        output, aux, count = call.result(self.has_aux, len(sources))
        self._check_scalar(call, output, count)
        task = jacobian_task(call.captured.graph, sources, [0], ["loss"])
        task = replace(task, returns_outputs=call.keeps_outputs or self.with_value or self.has_aux)
        compiled = call.derivative(task, self.order, "grad")
        gradient = call.structure(self.argnums, 0)
        value = (output, aux) if self.has_aux else output
        pair = (value, gradient) if self.value_first else (gradient, value)
        structure = pair if self.with_value else (gradient, aux) if self.has_aux else gradient
        return Executable.of(compiled, structure, call.bridge(compiled.program.run, self))

    def _check_scalar(self, call: CapturedCall, output: Structure, count: int) -> None:
        if not isinstance(output, Leaf) or count != 1:
            raise ShapeError(
                f"grad needs a function that returns one scalar tensor; {call.title} returns "
                f"{_described(call, output)}: use jacobian or vjp, or return the others through has_aux=True"
            )
        (value,) = call.tensor_outputs(1)
        if value.shape != ():
            raise ShapeError(
                f"grad needs a scalar; {call.title} returns {value.type}{call.line_of(value)}: reduce it (for instance "
                "by .sum() or .mean()), or use jacobian"
            )
        if not value.is_floating:
            raise ArgumentError(
                f"grad needs a real scalar; {call.title} returns {value.type}{call.line_of(value)}: take its .real, "
                ".imag or .abs(), or use vjp, whose cotangent says which part of it is meant"
            )


@dataclass(frozen=True)
class Jacobian:
    """The Jacobian of every output in every argument asked for."""

    argnums: Argnums = 0
    has_aux: bool = False
    order: OrderName = "auto"
    chunk_size: int | None = None
    randomness: str = "same"
    is_final: ClassVar[bool] = False

    def sample_axes(self, call: CapturedCall) -> "tuple[dict[Value, int], dict[int, int]] | None":
        """Where each sample has a Jacobian of its own: which axis of sources and outputs counts the samples."""
        return None

    def compile(self, call: CapturedCall) -> Executable:
        """The Jacobians, output by output.  Raises ArgumentError for draws, unless every column may see the same."""
        if self.randomness != "same":
            _refuse_draws(call, self.randomness)
        sources = call.sources(self.argnums)
        output, _, count = call.result(self.has_aux, 0)
        outputs = call.tensor_outputs(count)
        check_real(sources, outputs, call.title, self.chunk_size)
        structure = self._structure(call, output, count, len(sources))
        if self.has_aux:  # the function's own results stand behind the Jacobians
            structure = (structure, call.result(True, count * len(sources))[1])
        if self.chunk_size is not None:
            run = jacobian_in_chunks(call.captured.graph, sources, outputs, self.order, self.chunk_size, call.plain)
            return Executable(run, rebuilder(structure), as_node=call.bridge(run, replace(self, chunk_size=None)))
        names = ["output"] if count == 1 else [f"output_{k}" for k in range(count)]
        task = jacobian_task(call.captured.graph, sources, range(count), names)
        task = replace(task, returns_outputs=call.keeps_outputs or self.has_aux)
        compiled = call.derivative(task, self.order, "jacobian")
        return Executable.of(compiled, structure, call.bridge(compiled.program.run, self))

    def _structure(self, call: CapturedCall, output: Structure, count: int, width: int) -> Structure:
        """The outputs' structure with the arguments' structure in each leaf."""
        _, spec = tree_flatten(output, is_leaf=is_leaf)
        blocks = [call.structure(self.argnums, k * width) for k in range(count)]
        return tree_unflatten(blocks, spec)


@dataclass(frozen=True)
class JacobianVector:
    """Outputs, and their tangents for given tangents of all arguments (passed behind the flat tensors of the call)."""

    has_aux: bool = False
    strict: bool = False
    argnums: ClassVar[None] = None
    is_final: ClassVar[bool] = False

    def compile(self, call: CapturedCall) -> Executable:
        """One program that computes both.  Raises ArgumentError if `strict` and an output depends on no argument."""
        argnums = tuple(range(len(call.argument_specs)))
        sources = call.sources(argnums)
        _, _, count = call.result(self.has_aux, 0)
        outputs = call.tensor_outputs(count)
        if self.strict:
            _refuse_independent(call, sources, outputs)
        task = jvp_task(call.captured.graph, sources, range(count))
        compiled = call.derivative(task, "forward", "jvp")
        output, aux, _ = call.result(self.has_aux, count)
        tangent = call.result(self.has_aux, 0)[0]
        structure = (output, tangent, aux) if self.has_aux else (output, tangent)
        return Executable.of(compiled, structure, call.bridge(compiled.program.run, self))


def _refuse_draws(call: CapturedCall, randomness: str) -> None:
    drawn = next((n for n in call.captured.graph.nodes if n.op.count(".") == 2 and facts(n.op).is_random), None)
    if drawn is not None:
        where = f" at {drawn.source}" if drawn.source else ""
        raise ArgumentError(
            f"{call.title} draws random numbers ({drawn.op}{where}), and randomness={randomness!r}: every column of a "
            "Jacobian is of one and the same run of it; say randomness='same' if that is what you want"
        )


def _refuse_independent(call: CapturedCall, sources: Sequence[Value], outputs: Sequence[Value]) -> None:
    reached = depending(set(sources), call.captured.graph)
    for k, output in enumerate(outputs):
        if output not in reached:
            raise ArgumentError(
                f"strict=True, and output {k} of {call.title} ({output.type}{call.line_of(output)}) is independent of "
                "the primals: leave strict False for a tangent of zero, or return it through has_aux=True"
            )


def identifier(name: str) -> str:
    """A name as part of a program's name."""
    cleaned = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return cleaned or "function"
