"""Transforms: functions that look their program up, and capture and compile it where there is none."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from .adoption import adopt_assumptions, adopt_constants, adopt_statistics
from .bridge import requires_grad
from .capture import Captured, capture
from .changes import Before
from .collection import collection_paused
from .compilation import Compiled
from .compiled import CompiledFunction, types_of
from .derivatives import Argnums, CapturedCall, Executable, check_call
from .emit.backends import DEFAULT, Auto, check_backend
from .errors import ArgumentError, CaptureError, PullbackError
from .files import Contents
from .graph import differentiable_inputs
from .guards import is_transforming
from .impurity import capture_purely
from .purity import refuse_once_differentiable
from .recording import CURRENT
from .rules import RULES
from .signature import CACHE, Entry, Signature, check_arguments
from .stages import Plan
from .structure import positions_in
from .tapes import is_recording
from .titles import parameter_names, title
from .torch_private import is_any_autocast_enabled, is_traced, outside_autocast, set_grad_enabled, tree_flatten


class Derivative(Protocol):
    """A kind of derivative: hashable, and able to compile a captured call."""

    def __hash__(self) -> int: ...

    @property
    def argnums(self) -> Argnums | None:
        """The arguments to differentiate; None for all of them."""
        ...

    @property
    def is_final(self) -> bool:
        """Whether the function is compiled as it stands, with its effects, rather than differentiated."""
        ...

    def compile(self, call: CapturedCall) -> Executable:
        """The program and its result structure."""
        ...


class Transform:
    """A function that computes a derivative of another function.

    f: the function that is differentiated.
    kind: what is computed of it.
    """

    guarded_attributes = ("f", "kind", "backend")  # what another transform must find unchanged to reuse its program

    def __init__(self, f: Callable[..., Any], kind: Derivative, backend: str | Auto = "auto") -> None:
        _check_function(f)
        check_backend(backend)
        self.f = f
        self.kind = kind
        self.backend = backend
        self._last: Entry | None = None
        functools.update_wrapper(self, f, assigned=("__name__", "__qualname__", "__doc__"), updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the derivative; see the function that made this transform."""
        last = self._last
        if last is not None and CURRENT.trace is None:
            known = last.lookup(self.f, args, kwargs)
            if known is not None:
                executable = last.program
                if not torch.is_grad_enabled():
                    return executable.finish(executable.run(*known))
                for tensor in known:
                    if tensor.requires_grad:
                        if executable.as_node is not None:
                            return run(last, known)
                        executable.check_recorded(known)
                        break
                set_grad_enabled(False)
                try:
                    return executable.finish(executable.run(*known))
                finally:
                    set_grad_enabled(True)
        if self.kind.is_final and (CURRENT.trace is not None or is_transforming()):
            return self.f(*args, **kwargs)  # part of what is traced around it
        entry, flat = find(self.kind, self.f, args, kwargs, self.backend)
        if entry.reusable and not entry.traced:
            self._last = entry
        return run(entry, flat)

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """How the derivative is computed for such arguments: order, multiplications, paths, and the generated code.

        Raises: as calling the transform.
        """
        return self._compiled("plan", args, kwargs).plan()

    def graph_module(self, *args: Any, **kwargs: Any) -> "torch.fx.GraphModule":
        """The derivative's program for such arguments as a `torch.fx.GraphModule`; it takes and returns flat tensors.

        Raises: as calling the transform.
        """
        return self._compiled("graph", args, kwargs).graph_module()

    def compile(self, *args: Any, **kwargs: Any) -> CompiledFunction:
        """Compile for such arguments once and for all: what is returned only checks its signature, and can be saved.

        Tensors that `f` reads besides its arguments are bound as they are now: changes of them in place are seen, other
        tensors in their place are not, nor is anything else that `f` reads.

        Raises: as calling the transform; ArgumentError inside another transform, or if an argument is a function.
        """
        if _context() != "plain":
            raise ArgumentError(f"{title(self.f)}: compile it outside of other transforms, and call the transform here")
        names = parameter_names(self.f, len(args))
        signature = Signature.of(args, kwargs, names)
        entry, flat = find(self.kind, self.f, args, kwargs, self.backend)
        self._refuse_assumptions(entry)
        executable: Executable = entry.program
        own, program = signature.lookup(None, args, kwargs), executable.program
        differentiable = executable.recorded
        if program is not None and not self.kind.is_final:
            results = [program.graph.outputs[k] for k in positions_in(executable.structure)]
            differentiable = differentiable_inputs(program.graph, results)
        contents = Contents(
            name=getattr(self.f, "__name__", type(self.f).__name__),
            title=title(self.f),
            args=types_of(args),
            kwargs=types_of(kwargs),
            names=tuple(names),
            graph=program.graph if program is not None else None,
            returned=executable.returned,
            structure=executable.structure,
            captured=tuple(flat[len(own or ()) :]),
            differentiable=differentiable,
            plan=str(executable.compiled.plan()) if executable.compiled is not None else "",
            backend=program.backend if program is not None else DEFAULT,
        )
        code = program.code if program is not None else ""
        return CompiledFunction(contents, executable.run, executable.finish, signature, code)

    def _refuse_assumptions(self, entry: Entry) -> None:
        if entry.assumed:
            raise ArgumentError(
                f"{title(self.f)} depends on the values of integers, or on where a tensor lies in memory, which only "
                "the transform itself compares at each call: call that, or select with positions instead of masks"
            )

    def _compiled(self, wanted: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compiled:
        entry, _ = find(self.kind, self.f, args, kwargs, self.backend)
        if wanted == "graph":
            self._refuse_assumptions(entry)
        executable: Executable = entry.program
        if executable.compiled is None:
            what = "a compiled function is no single derivative: ask the transforms in it"
            chunks = f"a transform with a chunk_size runs one program many times and has no single {wanted}"
            raise PullbackError(f"no {wanted}: {what if self.kind.is_final else chunks}")
        return executable.compiled

    def __repr__(self) -> str:
        return f"<pullback {self.kind!r} of {getattr(self.f, '__qualname__', self.f)!r}>"


def execute(
    kind: Derivative, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], behind: Sequence[Any] = ()
) -> Any:
    """Compute a derivative at once; `behind` are tensors that the program takes after those of the call."""
    entry, flat = find(kind, f, args, kwargs)
    return run(entry, (*flat, *behind))


def run(entry: Entry, flat: Sequence[Any]) -> Any:
    """Run an entry's program: as part of a trace in progress, as a node of PyTorch's, or outside of both."""
    executable: Executable = entry.program
    if CURRENT.trace is not None or (entry.traced and not is_transforming()):
        adopt_constants(entry.constants)
        adopt_assumptions(entry.assumed, flat)
        adopt_statistics(flat[k] for k in executable.statistics)
        return executable.finish(executable.run(*flat))
    if entry.traced or requires_grad(flat):
        if executable.as_node is not None:
            return executable.finish(executable.as_node(*flat))
        executable.check_recorded(flat)
    with torch.no_grad():
        return executable.finish(executable.run(*flat))


def find(
    kind: Derivative, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], backend: str | Auto = "auto"
) -> tuple[Entry, Sequence[Any]]:
    """The entry for a call, compiled if there is none, and the tensors that its program takes."""
    key = (kind, backend, _context())
    found = CACHE.find(key, f, args, kwargs)
    if found is not None:
        return found
    _check_function(f)
    check_call(kind.argnums, args, title(f))
    before = check_arguments(f, args, kwargs)
    try:
        with collection_paused():
            work = functools.partial(_compile, kind, f, args, kwargs, backend)
            captured, executable = capture_purely(work, before.names, before.generators)
            if kind.is_final:
                _refuse_changes(before, f, args, kwargs)
            lifted, constants, assumed = captured.lifted, captured.constants, captured.assumed
            entry = CACHE.store(key, f, args, kwargs, lifted, constants, executable, before, assumed)
    finally:
        before.put_back()
    return entry, flat_tensors(captured, args, kwargs)


def _compile(
    kind: Derivative, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], backend: str | Auto
) -> tuple[Captured, Executable]:
    """Capture the function at these arguments, and compile the derivative."""
    call = replace(captured_call(f, args, kwargs, is_final=kind.is_final), backend=backend)
    graph, recorded = call.captured.graph, call.captured.recorded
    written = dict(graph.mutations).keys() - recorded
    statistics = tuple(k for k, value in enumerate(graph.inputs) if value in written)
    return call.captured, _in_any_autocast(replace(kind.compile(call), statistics=statistics))


def _in_any_autocast(executable: Executable) -> Executable:
    """Under autocast, which is guarded, the same with programs that it does not change; else as it is."""
    if not is_any_autocast_enabled():
        return executable
    as_node = outside_autocast(executable.as_node) if executable.as_node is not None else None
    return replace(executable, run=outside_autocast(executable.run), as_node=as_node)


def captured_call(
    f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, is_final: bool = False
) -> CapturedCall:
    """Capture a function at the arguments of a call; `is_final` as of `capture`."""
    flat, spec = tree_flatten((args, kwargs))
    captured = capture(f, flat, spec, keep=frozenset(RULES), is_final=is_final, may_assume=True)
    inputs = iter(captured.graph.inputs)
    values = tuple(
        tuple(next(inputs) if isinstance(leaf, torch.Tensor) else None for leaf in tree_flatten(argument)[0])
        for argument in args
    )
    specs = tuple(tree_flatten(argument)[1] for argument in args)
    tensors = [t for t in (*flat, *captured.lifted) if isinstance(t, torch.Tensor)]
    context = "traced" if any(map(is_traced, tensors)) and CURRENT.trace is None else _context()
    name = getattr(f, "__name__", type(f).__name__)
    if context == "traced":
        refuse_once_differentiable(captured.graph, "is used inside another transform, which may differentiate it again")
    return CapturedCall(captured, values, specs, context != "traced", context == "plain", name, title(f))


def flat_tensors(captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """What the graph of a captured call takes: the tensors among the arguments, and those that the function reads."""
    flat = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    return (*flat, *captured.lifted)


def _context() -> str:
    """What becomes of this call: "traced" to be differentiated, traced as the "last" word, or "plain": not traced."""
    trace = CURRENT.trace
    if is_transforming() or is_recording() or (trace is not None and not trace.is_final):
        return "traced"
    return "plain" if trace is None else "last"


def _refuse_changes(before: Before, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a function that changed numbers, lists or attributes of its surroundings, which a program would not."""
    changed = before.script.failure(f, args, kwargs)
    if changed is not None:
        raise CaptureError(
            f"{title(f)} changes what is no tensor, which its program could not repeat: {changed}. Do that outside of "
            "it, or keep it in a tensor that is changed in place"
        )


SUSPENDED: dict[Callable[[Any], bool], str] = {
    inspect.isgeneratorfunction: "a generator function",
    inspect.iscoroutinefunction: "an async function",
    inspect.isasyncgenfunction: "an async generator function",
}


def _check_function(f: Any) -> None:
    if not callable(f):
        raise ArgumentError(f"a transform needs a function, not {f!r}: pass the function itself, not what it returns")
    for is_kind, kind in SUSPENDED.items():
        if is_kind(f) or is_kind(type(f).__call__):
            raise ArgumentError(
                f"{title(f)} is {kind}: calling it computes nothing yet; pass a function that returns its result"
            )
