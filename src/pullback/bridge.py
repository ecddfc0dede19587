"""The bridge to PyTorch: a result of ours as one node of autograd's graph, or of what `torch.func` traces.

Where grad mode is on and a tensor that a program reads requires grad, its results belong to PyTorch's autograd graph;
inside `torch.func.grad` and its like they belong to that transform.  They become the outputs of one
`torch.autograd.Function`, whose backward is again a program of ours: the vector-Jacobian product of the program that
ran.  That one is bridged in turn, so that derivatives exist to any order.  Were PyTorch to differentiate our programs
operator by operator, it would take saved statistics for constants, and be wrong in silence.

Nothing but the inputs is saved.  A backward pass computes what it needs anew, and is compiled when it is first run, so
that a result of which nobody asks a derivative costs one node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .capture import capture
from .collection import collection_paused
from .compilation import Task, compile_derivative, compile_function, jvp_task, vjp_task
from .errors import AutogradError
from .graph import Graph, Value
from .guards import is_transforming
from .purity import Pure, as_before, pure, refuse, refuse_once_differentiable, runs_region
from .recording import is_tracing
from .rules import RULES
from .tapes import is_recording
from .torch_private import interpreter_stack, is_traced, outside_autocast, tree_flatten, unwrapped

Run = Callable[..., Any]
CAPACITY = 64


def requires_grad(tensors: Sequence[Tensor]) -> bool:
    """Whether what is computed of some tensors belongs into PyTorch's autograd graph."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_bare(tensors: Sequence[Tensor]) -> bool:
    """Whether no trace and no transform sees what is computed of some tensors."""
    return not (is_transforming() or is_tracing() or is_recording() or any(map(is_traced, tensors)))


# Functions that PyTorch may differentiate ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Level:
    """A function of tensors, the same at every run, described well enough to be differentiated.

    compile: makes the function: as a fast program, or (False) of operators that each have a rule.
    fixed: how many of its tensors come first whose layout in memory is always the same; the others may have any.
    derived: its derivatives and batches, by what distinguishes them.
    identity: what tells it from any other.
    """

    compile: Callable[[bool], Run]
    fixed: int
    derived: dict[Any, Any] = field(default_factory=dict)
    identity: object = field(default_factory=object)
    guarded_attributes: ClassVar = ("identity",)  # what a transform that reads this function must find again

    @cached_property
    def by_operators(self) -> Run:
        """The function, to be traced."""
        return self.compile(False)

    @cached_property
    def run(self) -> Run:
        """The function, for plain tensors."""
        return self.compile(True)

    def call(self, tensors: Sequence[Tensor], run: Run | None = None) -> tuple[Any, ...]:
        """The results, as the surroundings need them; `run` is another program for them, for plain tensors."""
        return outside_autocast(self._call)(tensors, run)

    def _call(self, tensors: Sequence[Tensor], run: Run | None) -> tuple[Any, ...]:
        if is_tracing() or is_recording():
            return self.by_operators(*tensors)
        if is_transforming():
            return as_transformed(self, tensors)
        if any(map(is_traced, tensors)):
            return self.by_operators(*tensors)
        run = run or self.run
        if requires_grad(tensors):
            return as_node(self, lambda *inputs: (run(*inputs), inputs), tensors)
        with torch.no_grad():
            return run(*tensors)

    def pullback(self, tensors: Sequence[Tensor], wanted: tuple[int, ...], given: tuple[int, ...]) -> "Level":
        """The function from (its tensors, cotangents of the given results) to cotangents of the wanted tensors."""

        def task(graph: Graph) -> Task:
            return vjp_task(graph, [graph.inputs[k] for k in wanted], given)

        return self._derivative(("pullback", wanted, given), tensors, task, "reverse")

    def push(self, tensors: Sequence[Tensor], wanted: tuple[int, ...]) -> "Level":
        """The function from (its tensors, tangents of the wanted ones) to tangents of its results that have one."""

        def task(graph: Graph) -> Task:
            return jvp_task(graph, [graph.inputs[k] for k in wanted], _differentiable(graph.outputs))

        return self._derivative(("push", wanted), tensors, task, "forward")

    def batch(self, tensors: Sequence[Tensor], dims: tuple[int | None, ...]) -> tuple["Level", tuple[Any, ...]]:
        """The function mapped over an axis of some tensors, which is the first of its results; and their kinds."""
        key = ("batch", dims, tuple(tuple(tensor.shape) for tensor in tensors))
        return self._known(key, lambda: _mapped(self, tensors, dims))

    def _derivative(self, key: Any, tensors: Sequence[Tensor], task: Callable[[Graph], Task], order: str) -> "Level":
        return self._known(key, lambda: _differentiated(self, tensors, task, order))

    def _known(self, key: Any, make: Callable[[], Any]) -> Any:
        """What is kept under a key, made if it is not there; only the last few are kept, each of which was compiled."""
        found = self.derived.get(key)
        if found is None:
            with collection_paused():
                found = outside_autocast(make)()
            if len(self.derived) >= CAPACITY:
                self.derived.pop(next(iter(self.derived)), None)
            self.derived[key] = found
        return found


def _differentiated(level: Level, tensors: Sequence[Tensor], task: Callable[[Graph], Task], order: str) -> Level:
    graph, lifted = _captured(level.by_operators, _laid_out(tensors, level.fixed))
    asked = replace(task(graph), returns_outputs=False)
    count, fixed = len(tensors), level.fixed

    def compiled(fast: bool) -> Run:
        run = compile_derivative(asked, order, fuse=fast, plain=fast, name="derivative").program.run

        def derivative(*inputs: Tensor) -> tuple[Any, ...]:
            inputs = _laid_out(inputs, fixed)
            return run(*inputs[:count], *lifted, *inputs[count:])

        return derivative

    return Level(compiled, fixed)


def _mapped(level: Level, tensors: Sequence[Tensor], dims: tuple[int | None, ...]) -> tuple[Level, tuple[Any, ...]]:
    kinds = _Kinds()

    def each(*inputs: Tensor) -> tuple[Tensor, ...]:
        return kinds.tensors_of(level.by_operators(*inputs))

    graph, lifted = _captured(torch.vmap(each, dims), _laid_out(tensors, 0))

    def compiled(fast: bool) -> Run:
        run = compile_function(graph, plain=fast).run
        return lambda *inputs: run(*_laid_out(inputs, 0), *lifted)

    return Level(compiled, 0), kinds.of


def _captured(function: Run, tensors: Sequence[Tensor]) -> tuple[Graph, tuple[Tensor, ...]]:
    _, spec = tree_flatten((tuple(tensors), {}))
    names = [f"x{k}" for k in range(len(tensors))]
    captured = capture(function, tensors, spec, keep=frozenset(RULES), names=names)
    return captured.graph, captured.lifted


def _differentiable(outputs: Sequence[Any]) -> list[int]:
    return [k for k, value in enumerate(outputs) if isinstance(value, Value) and value.is_differentiable]


def _laid_out(tensors: Sequence[Tensor], fixed: int) -> tuple[Tensor, ...]:
    """Tensors in the layout that programs are compiled for; a cotangent may come in any."""
    return (*tensors[:fixed], *(tensor.contiguous() for tensor in tensors[fixed:]))


# The node in autograd's graph ----------------------------------------------------------------------------------------


def as_node(level: Level, forward: Run, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """A function's results, as the outputs of one node of autograd's graph.

    Arguments:
        level: the function of what is saved; the tensors come first among that.
        forward: takes the tensors, and returns the results and what to save.
    """
    places: list[int] = []
    results = _Node.apply(level, forward, places, *tensors)
    return results if len(places) == len(results) else tuple(results[k] for k in places)


class _Node(torch.autograd.Function):
    """A program of ours in autograd's graph.  A tensor that is returned twice is one output."""

    @staticmethod
    def forward(ctx: Any, level: Level, forward: Run, places: list[int], *tensors: Tensor) -> tuple[Any, ...]:
        results, saved = forward(*tensors)
        numbers: dict[int, int] = {}
        places.extend(numbers.setdefault(id(result), len(numbers)) for result in results)
        ctx.level, ctx.firsts = level, [places.index(k) for k in range(len(numbers))]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        return tuple(results[k] for k in ctx.firsts)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        given = {first: c for first, c in zip(ctx.firsts, cotangents, strict=True) if c is not None}
        return (None, None, None, *_pulled_back(ctx, ctx.needs_input_grad[3:], given))


def _pulled_back(ctx: Any, needed: Sequence[bool], given: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The cotangents of a node's tensors, or None for those that need none."""
    wanted = tuple(k for k, is_needed in enumerate(needed) if is_needed)
    if not given or not wanted:
        return (None,) * len(needed)
    saved = ctx.saved_tensors
    level = ctx.level.pullback(saved, wanted, tuple(given))
    gradients = dict(zip(wanted, level.call((*saved, *given.values())), strict=True))
    return tuple(map(gradients.get, range(len(needed))))


def refuse_regions(graph: Graph, tensors: Sequence[Tensor]) -> None:
    """Refuse to be differentiated by PyTorch inside its transforms, where branches and loops run as they are.

    Raises AutogradError: PyTorch would differentiate what our program calls one by one, statistics of norms included.
    """
    levels = [str(level.key()) for level in interpreter_stack() or ()]
    inside = [level for level in levels if not level.endswith(("Vmap", "Functionalize"))]
    if inside or (torch.is_grad_enabled() and any(unwrapped(t).requires_grad for t in tensors)):
        node = next(n for n in graph.nodes if runs_region(n))
        raise AutogradError(
            f"{node.op.split('.')[1]} at {node.source or 'an unknown line'} is part of a transform of pullback's that "
            "a transform of torch.func's, or autograd around a vmap, is to differentiate, which is not done yet: use "
            "pullback's own transforms around it, or choose by torch.where"
        )


# The node inside PyTorch's transforms --------------------------------------------------------------------------------


def as_transformed(level: Level, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """A function's results as part of the transforms of `torch.func` around it; constants among them stay as they are.

    The function must be the same at every run.
    """
    kinds = _Kinds()
    results = iter(_Transformed.apply(level, kinds, *tensors))
    return tuple(next(results) if kind is Tensor else kind for kind in kinds.of)


class _Kinds:
    """What each of a function's results is, once it has run: `Tensor`, or the constant itself."""

    def __init__(self) -> None:
        self.of: tuple[Any, ...] = ()

    def tensors_of(self, results: Sequence[Any]) -> tuple[Tensor, ...]:
        """The tensors among some results."""
        self.of = tuple(Tensor if isinstance(result, Tensor) else result for result in results)
        return tuple(result for result in results if isinstance(result, Tensor))


class _Transformed(torch.autograd.Function):
    """A program of ours as `torch.func` sees it: how to pull back, push forward, and map it, is all our own."""

    @staticmethod
    def forward(level: Level, kinds: _Kinds, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = level.run(*tensors) if is_bare(tensors) else level.by_operators(*tensors)
        known = set(map(id, tensors))
        distinct = []
        for result in kinds.tensors_of(results):
            distinct.append(result.view_as(result) if id(result) in known else result)
            known.add(id(result))
        return tuple(distinct)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        level, kinds, *tensors = inputs
        ctx.level = level
        ctx.numbers = [k for k, kind in enumerate(kinds.of) if kind is Tensor]
        ctx.differentiable = [tensor.is_floating_point() or tensor.is_complex() for tensor in output]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        given = {k: c for k, c in zip(ctx.numbers, cotangents, strict=True) if c is not None}
        return (None, None, *_pulled_back(ctx, ctx.needs_input_grad[2:], given))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        moved = {k: t for k, t in enumerate(tangents[2:]) if t is not None}
        saved = ctx.saved_tensors
        found = iter(ctx.level.push(saved, tuple(moved)).call((*saved, *moved.values())))
        return tuple(next(found) if moves else None for moves in ctx.differentiable)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], level: Level, kinds: _Kinds, *tensors: Tensor) -> Any:
        batched, kinds.of = level.batch(tensors, in_dims[2:])
        return batched.call(tensors), 0


# From a captured function to one that PyTorch may differentiate ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bridge:
    """A captured function's program, on its way into autograd's graph or a transform of PyTorch's.

    graph: the function.
    run: the program for it; takes the inputs of the graph, and whatever the kind of derivative takes behind them.
    compile: makes such a program of another graph of the same function; its flag says whether it will run on plain
        tensors only, and is not to be differentiated.
    """

    graph: Graph
    run: Run
    compile: Callable[[Graph, bool], Run]

    def __call__(self, *tensors: Tensor) -> tuple[Any, ...]:
        """The program's results, in autograd's graph, or inside the transforms around this call."""
        if is_transforming() and self.pure.has_regions:
            refuse_regions(self.graph, tensors)
            return self.run(*tensors)
        if is_transforming():
            refuse(self.graph, replace(self.pure, overwritten=()), tensors)
            return as_transformed(self._level, self._drawn(tensors))
        refuse(self.graph, self.pure, tensors)
        return as_node(self._level, self._forward, tensors)

    @cached_property
    def pure(self) -> Pure:
        """The graph, so that it can be run again."""
        return pure(self.graph)

    @cached_property
    def _level(self) -> Level:
        """The function of: inputs of the graph, what comes behind them, and draws."""
        return Level(self._compiled, len(self.graph.inputs))

    def _compiled(self, fast: bool) -> Run:
        refuse_once_differentiable(self.graph, "the derivative of its derivative was asked of PyTorch")
        run, count, drawn = self.compile(self.pure.graph, fast), len(self.graph.inputs), len(self.pure.drawn)

        def again(*saved: Tensor) -> tuple[Any, ...]:
            end = len(saved) - drawn
            return run(*saved[:count], *saved[end:], *saved[count:end])

        return again

    def _forward(self, *tensors: Tensor) -> tuple[Sequence[Any], Sequence[Tensor]]:
        saved = as_before(self.pure, tensors)
        results = self._drawing(True)(*tensors)
        count = len(results) - len(self.pure.drawn)
        return results[:count], (*saved, *results[count:])

    def _drawn(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors and what is drawn, by operators that the transforms around this call see."""
        if self.pure.repeats:
            return tensors
        saved = as_before(self.pure, tensors)
        results = self._drawing(False)(*tensors)
        count = len(results) - len(self.pure.drawn)
        return (*saved, *(draw.detach() for draw in results[count:]))

    def _drawing(self, fast: bool) -> Run:
        """The program, which also returns what it draws."""
        if not self.pure.drawn and fast:
            return self.run
        if fast not in self._programs:
            self._programs[fast] = self.compile(self.pure.with_draws(self.graph), fast)
        return self._programs[fast]

    @cached_property
    def _programs(self) -> dict[bool, Run]:
        return {}
