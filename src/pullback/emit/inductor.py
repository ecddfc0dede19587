"""Programs compiled by Inductor, PyTorch's own compiler, each checked once before it is believed.

Inductor has returned wrong numbers: in PyTorch 2.13, on a CPU, the Hessian of `(L**3).sum()` after `L[:, r, c] = a`.
So the first results of every program are compared with those of the Python back end, on the arguments of the first
call, and on random numbers in their place, since of zeros all is zero.  Where they differ, it is the Python program
that answers, then and ever after, and a warning says so.
"""

import random
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from ..dtypes import torch_dtype
from ..errors import BackendWarning, NativeError
from ..graph import Graph, Value
from ..torch_private import DisableAutocast, FakeTensorMode, inductor_tools, overload, storage
from .aliases import aliased_inputs, protect_from_mutations
from .fx import to_graph_module
from .overlap import NoOverlap
from .program import Program
from .python import emit_python

# How far off an entry may be, relative to the largest one of its tensor: sums are formed in another sequence.
TOLERANCES = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float16: 2e-2, torch.bfloat16: 1e-1}
OTHERS = 1e-3  # float32 and complex64


def emit_inductor(
    graph: Graph, name: str = "program", *, plain: bool = True, returned: Mapping[int, Value] | None = None
) -> Program:
    """The program that computes a lowered graph; arguments as of `emit_python`.

    Raises NativeError: the program draws random numbers, or returns memory of its arguments; there is no compiler; or
        Inductor fails.
    """
    _refuse(graph)
    program = emit_python(graph, name, plain=plain, returned=returned)
    run = _Checked(program, _Compiled(graph, name, returned or {}))
    return replace(program, run=run, code=f"# Compiled by Inductor; the same in Python:\n{program.code}")


def _refuse(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op.count(".") == 2 and torch.Tag.nondeterministic_seeded in overload(node.op).tags:
            raise NativeError(
                f"{node.op} draws random numbers, which Inductor would draw otherwise: use backend='python'"
            )
    shared = aliased_inputs(graph)
    for value in graph.outputs:
        if isinstance(value, Value) and value in shared:
            raise NativeError(
                f"the result {value.name!r} shares memory with the argument {shared[value].name!r}, which Inductor "
                "does not promise to keep so: return a copy of it, or use backend='python'"
            )


class _Compiled:
    """A graph as Inductor compiles it: a function without side effects, whose arguments are contiguous."""

    def __init__(self, graph: Graph, name: str, returned: Mapping[int, Value]) -> None:
        graph = protect_from_mutations(graph)
        self.constants = [None if isinstance(v, Value) else v for v in graph.outputs]
        self.places = [k for k, v in enumerate(graph.outputs) if isinstance(v, Value)]
        position = {value: k for k, value in enumerate(graph.inputs)}
        self.written = [position[old] for old, _ in graph.mutations]
        self.check = NoOverlap([v.name for v in graph.inputs], self.written)
        self.returned = {k: position[value] for k, value in returned.items()}
        outputs = (*(graph.outputs[k] for k in self.places), *(new for _, new in graph.mutations))
        self.copied: frozenset[int] = frozenset()  # results that Inductor gives the memory of something else
        self.run = _compile(replace(graph, outputs=outputs, mutations=()), name)

    def results(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What is returned, and then what is written, before it is written."""
        found: list[Tensor] = list(self.run([t.resolve_conj().resolve_neg().contiguous() for t in inputs]))
        for k in self.copied:
            found[k] = found[k].clone()
        return found

    def keep_apart(self, inputs: Sequence[Tensor]) -> None:
        """See from one run which results lie in the memory of an input or another result, and copy them ever after."""
        seen, shared = {storage(t) for t in inputs}, set()
        for k, result in enumerate(self.results(inputs)):
            if storage(result) in seen:
                shared.add(k)
            seen.add(storage(result))
        self.copied = frozenset(shared)

    def finish(self, inputs: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[Any, ...]:
        """Write what is to be written, and put results where they belong."""
        count, answer = len(self.places), list(self.constants)
        for place, new in zip(self.written, found[count:], strict=True):
            inputs[place].copy_(new)
        for place, result in zip(self.places, found[:count], strict=True):
            answer[place] = result
        for place, number in self.returned.items():
            answer[place] = inputs[number]
        return tuple(answer)


def _compile(graph: Graph, name: str) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """What Inductor makes of a graph without side effects.  Raises NativeError."""
    module = to_graph_module(graph, name)
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.view.default:  # Inductor may lay a value out otherwise than PyTorch's kernels
            node.target = torch.ops.aten.reshape.default
    module.recompile()
    tools = inductor_tools()
    try:
        with _undisturbed():
            with FakeTensorMode():
                examples = [torch.empty(v.shape, dtype=torch_dtype(v.dtype), device=v.device) for v in graph.inputs]
                traced = tools.make_fx(module, decomposition_table=tools.decompositions())(*examples)
            compiled: Callable[..., Any] = tools.compile(traced, examples)
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise NativeError(
            f"Inductor cannot compile {name}: {type(error).__name__}: {reason[0]}; on a CPU it needs a C++ "
            "compiler (g++, or what CXX names), on a GPU Triton; use backend='python', which needs neither"
        ) from error
    return compiled


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Outside of autograd and autocast; and whatever the compiler draws, the user's random numbers stay the same."""
    ours, theirs = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    try:
        with torch.no_grad(), DisableAutocast(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(ours)
        numpy.random.set_state(theirs)  # noqa: NPY002


class _Checked:
    """Runs a compiled program from the moment that its results have been compared with the Python program's."""

    def __init__(self, program: Program, compiled: _Compiled) -> None:
        self.program, self.compiled = program, compiled
        self.lock = threading.Lock()
        self.believed: bool | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Any, ...]:
        if self.believed is None:
            with self.lock:
                if self.believed is None:
                    self.believed = self._is_right(inputs)
        if not self.believed:
            return self.program.run(*inputs)
        if self.compiled.written:
            self.compiled.check(*inputs)
        return self.compiled.finish(inputs, self.compiled.results(inputs))

    def _is_right(self, inputs: Sequence[Tensor]) -> bool:
        """Whether both programs find the same, of the arguments and of random numbers."""
        problem = self._problem(inputs)
        if not problem and all(node.op.startswith("aten.") for node in self.program.graph.nodes):
            problem = self._problem(_random_like(inputs), is_probe=True)
        if problem:
            warnings.warn(
                f"{self.program.name}: {problem}, so that Inductor's program is not used, but the one in Python",
                BackendWarning,
                stacklevel=4,
            )
        return not problem

    def _problem(self, inputs: Sequence[Tensor], is_probe: bool = False) -> str:
        """How the programs differ; what either writes is written into copies.  A probe that Python refuses is none."""
        copies, compiled = [t.clone() for t in inputs], self.compiled
        try:
            right = self.program.run(*copies)
        except Exception:
            if is_probe:
                return ""
            raise
        try:
            if not is_probe:
                compiled.keep_apart(inputs)
            found = compiled.results(inputs)
        except Exception as error:
            return f"Inductor's program fails ({type(error).__name__}: {error})"
        expected = [right[k] for k in compiled.places] + [copies[k] for k in compiled.written]
        differences = (difference(a, b) for a, b in zip(found, expected, strict=True))
        return next(filter(None, differences), "")


def _random_like(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Random numbers for all but integers, which may be positions; nobody else's generator is drawn from."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        return torch.randn(tensor.shape, dtype=wide, generator=generator).to(tensor.device, tensor.dtype)

    return [drawn(tensor) for tensor in inputs]


def difference(found: Tensor, expected: Tensor) -> str:
    """In what a result differs from the expected one by more than rounding; nothing if it does not."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"a result is {found.dtype} of shape {tuple(found.shape)}, not {expected.dtype} {tuple(expected.shape)}"
    if not (found.is_floating_point() or found.is_complex()):
        return "" if torch.equal(found, expected) else f"a result of {found.dtype} is another one"
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(found.isnan(), expected.isnan()):
        return "infinities or NaNs are in other places"
    if not finite.any():
        return ""
    scale = float(expected[finite].abs().max())
    off = float((found[finite] - expected[finite]).abs().max())
    limit = TOLERANCES.get(found.dtype, OTHERS) * scale
    return "" if off <= limit else f"a result is off by {off:.2g} where its largest entry is {scale:.2g}"
