"""Capture: from a function of tensors to a `Graph`.

The function runs once on fake tensors, which have a shape and a dtype but no data, under a mode that records each ATen
call below autograd and takes it apart by PyTorch's core decompositions.  If it changed anything in place, the record is
run a second time under functionalization, which turns in-place changes and views into a functional program.

What a graph cannot hold is refused.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from . import torch_private as private
from .adoption import adopt_assumptions, adopt_constants
from .composites import cumulative_averages, weight_lists_kept
from .control_flow import record_region
from .decompositions import DECOMPOSITIONS, OWN_MARGINS
from .detachment import private_detachments, refuse_writes
from .effects import Effects, check_writes, effects, no_optimiser
from .errors import ArgumentError
from .frontier import Frontier
from .graph import Graph, Node, Value
from .keys import holding
from .nested import map_tensors, tensors_in
from .originals import NONE, Assumptions
from .provenance import Namer, argument_names, named, parameter_names, refusal, source_of, surrounding_names
from .recording import CLONE, COPY, DETACH, Recorder, Step, Trace, unsupported_kind
from .shared_settings import EAGER, FOLDING, UNCOMPILED, WITHOUT_FASTPATH, WITHOUT_MKLDNN
from .strides import STRIDED
from .torch_private import schema
from .user_functions import attach_operator, own_functions

PASSES = 3  # decompositions may themselves write in place, which the next pass removes


@dataclass(frozen=True)
class Captured:
    """A function as a graph, and what it read besides its arguments.

    graph: its inputs are the flat tensor arguments, then the lifted tensors.
    lifted: tensors that the function read besides its arguments; the very objects.
    constants: for each of these, whether the function itself made it of Python numbers, so that it never changes.
    out_spec: the structure of the result, whose leaves are `graph.outputs`: values, or Python constants.
    returned: by number of an output, the input that is written into and then returned itself.
    recorded: the inputs that are written into with gradients on.
    assumed: what of the inputs the graph relies on besides their types.
    """

    graph: Graph
    lifted: tuple[Tensor, ...]
    constants: tuple[bool, ...]
    out_spec: Any
    returned: Mapping[int, Value]
    recorded: frozenset[Value]
    assumed: Assumptions = NONE


def capture(
    f: Callable[..., Any],
    flat_arguments: Sequence[Any],
    in_spec: Any,
    *,
    keep: frozenset[str] = frozenset(),
    names: Sequence[str] | None = None,
    is_final: bool = False,
    may_assume: bool = False,
) -> Captured:
    """Run `f` on fake tensors and return what it computes as a graph.

    Arguments:
        f: a function of any arguments, whose tensors become inputs; everything else is a constant of the graph.
        flat_arguments: the leaves of `(args, kwargs)`; of a tensor only shape, strides, dtype and device are read.
        in_spec: the structure of `(args, kwargs)`.
        keep: names of operators that have a rule of their own and are not to be decomposed.
        names: what to call the leaves; by default, after the parameters of `f` and the keys of dictionaries.
        is_final: whether nothing is going to differentiate the graph; then no operator is decomposed.
        may_assume: whether the graph may rely on more than the types of its inputs, as `assumed` says.

    Raises:
        ArgumentError: an argument is a tensor of a kind that a graph cannot hold.
        CaptureError: `f` takes a value out of the graph, or uses what is not done yet; names the line of `f`.

    Cost: about 0.2 ms an operator, and twice that where something is changed in place.  May be called while another
    capture runs: the outer one's tensors are then lifted, as any other.
    """
    names = list(names) if names is not None else argument_names(f, flat_arguments, in_spec)
    _check_arguments(flat_arguments, names)
    with (
        _surroundings() as inside_transform,
        Trace(inside_transform, is_final=is_final, may_assume=may_assume) as trace,
    ):
        table = {} if is_final else decompositions(keep)
        fakes = [trace.fake(a) if isinstance(a, Tensor) else a for a in flat_arguments]
        capture_inner = partial(capture, keep=keep, may_assume=may_assume)
        attach, region = partial(attach_operator, trace, capture_inner), partial(record_region, trace, capture_inner)
        recorder = Recorder(trace, table, True, attach, region)
        result = _first_pass(f, trace, recorder, fakes, in_spec, capture_inner)
        leaves, out_spec = private.tree_flatten(result)
        leaves = [trace.own(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        beyond = effects(trace, recorder.raw, leaves)
        steps, inputs, leaves = _functional(trace, recorder, table, trace.inputs, leaves)
    own_names = [name for a, name in zip(flat_arguments, names, strict=True) if isinstance(a, Tensor)]
    trace.names = surrounding_names(f) | trace.names
    check_writes(trace, steps, dict(zip(map(id, inputs), filter(torch.is_tensor, flat_arguments), strict=True)))
    captured = _assemble(trace, steps, inputs, leaves, own_names, out_spec, beyond)
    adopt_constants(t for t, is_made in zip(captured.lifted, captured.constants, strict=True) if is_made)
    adopt_assumptions(captured.assumed, (*filter(torch.is_tensor, flat_arguments), *captured.lifted))
    return captured


def _check_arguments(arguments: Sequence[Any], names: Sequence[str]) -> None:
    for argument, name in zip(arguments, names, strict=True):
        if isinstance(argument, Tensor) and (problem := unsupported_kind(argument)):
            raise ArgumentError(f"argument {name!r} is {problem}: convert it to an ordinary dense tensor first")


# First pass ----------------------------------------------------------------------------------------------------------


def _first_pass(
    f: Callable[..., Any],
    trace: Trace,
    recorder: Recorder,
    fakes: list[Any],
    in_spec: Any,
    capture_inner: Callable[..., Captured],
) -> Any:
    """The result of `f` on fake tensors; the recorder then holds every call."""
    trace.inputs = [fake for fake in fakes if isinstance(fake, Tensor)]
    args, kwargs = private.tree_unflatten(fakes, in_spec)
    patches = (
        *(own_functions(trace, capture_inner), no_optimiser(trace)),
        *(_module_scopes(trace), weight_lists_kept(), cumulative_averages()),
    )
    with ExitStack() as stack:
        for context in (*patches, trace.mode, recorder, Frontier(trace)):
            stack.enter_context(context)
        try:
            trace.copies.before(private.tree_leaves(result := f(*args, **kwargs)), [])
            return result
        except Exception as error:
            if "does not require grad and does not have a grad_fn" in str(error):
                problem = "f differentiates by torch.autograd, which does not run while f is captured"
                raise refusal(problem, "Use pullback's own transforms inside f.", source_of(error)) from error
            if (ours := named(error)) is not None:
                raise ours from error
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            problem = "f uses torch.compile, or a control-flow operator in a way that PyTorch cannot trace"
            raise refusal(problem, "Call the plain function; choose by torch.where.", source_of(error)) from error


@contextmanager
def _surroundings() -> Iterator[bool]:
    """Suspend every mode and transform in progress, and all settings under which PyTorch fuses operators.

    Yields whether a functorch transform such as `vmap` was in progress.
    """
    with ExitStack() as stack:
        stack.enter_context(private.disable_current_modes())
        interpreters = stack.enter_context(private.clear_interpreters())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for setting in (WITHOUT_MKLDNN, WITHOUT_FASTPATH, FOLDING, OWN_MARGINS, UNCOMPILED):
            stack.enter_context(setting)
        stack.enter_context(private.enable_python_dispatcher())  # else BatchNorm does not declare what it mutates
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)  # else a cast is shared with tensors outside the trace
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled, and the import takes seconds
            stack.enter_context(EAGER)
        yield bool(interpreters)


@contextmanager
def _module_scopes(trace: Trace) -> Iterator[None]:
    """Keep in `trace.scope` the path of the module that is being called, and learn the names of parameters."""
    thread, outer, paths = threading.get_ident(), [], {}  # type: ignore[var-annotated]

    def before(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread and trace.is_current:
            if not outer and id(module) not in paths:
                paths.update({id(part): name for name, part in module.named_modules()})
                trace.names.update(parameter_names(module) | trace.names)
            outer.append(trace.scope)
            trace.scope = paths.get(id(module), trace.scope)

    def after(*_: Any) -> None:
        if threading.get_ident() == thread and trace.is_current and outer:
            trace.scope = outer.pop()

    handles = [private.before_any_module(before), private.after_any_module(after, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Second pass ---------------------------------------------------------------------------------------------------------


@cache
def decompositions(keep: frozenset[str]) -> Mapping[Any, Callable[..., Any]]:
    """PyTorch's core table without what has a rule; it would turn `detach` into an identity, which loses a stop."""
    aten = torch.ops.aten
    without = {DETACH, aten.lift_fresh.default, aten.lift_fresh_copy.default}
    without |= {aten.eye.default, aten.eye.m}  # taken apart, it would count in uint16, which PyTorch cannot
    without.add(aten.bernoulli.default)  # taken apart, it would draw other numbers than eager
    table = {**private.core_decompositions(), **DECOMPOSITIONS, **STRIDED}
    return {op: body for op, body in table.items() if op not in without and str(op) not in keep}


def _functional(
    trace: Trace, recorder: Recorder, table: Mapping[Any, Any], inputs: list[Tensor], leaves: list[Any]
) -> tuple[list[Step], list[Tensor], list[Any]]:
    """The recorded program without in-place changes, but for copies into inputs at its end."""
    if recorder.decomposing and not any(step.mutates for step in recorder.steps):
        return recorder.steps, inputs, leaves
    steps = recorder.raw
    for _ in range(PASSES):
        steps, inputs, leaves = _second_pass(trace, steps, table, inputs, leaves)
        known = {id(fake) for fake in inputs} | {id(fake) for _, fake in trace.lifted.values()}
        left = [step for step in steps if step.mutates and not (step.op is COPY and id(step.args[0]) in known)]
        if not left:
            return steps, inputs, leaves
    raise refusal(f"{left[0].op} changes a tensor in place", "Compute a new tensor instead.", left[0].source)


def _second_pass(
    trace: Trace, steps: list[Step], table: Mapping[Any, Any], inputs: list[Tensor], leaves: list[Any]
) -> tuple[list[Step], list[Tensor], list[Any]]:
    """Run recorded steps again, functionalized; each new step keeps the source of the one that it comes from."""
    recorder = Recorder(trace, table, keep_raw=False)
    before = [*inputs, *(fake for _, fake in trace.lifted.values())]
    fresh = [trace.fake(fake) for fake in before]
    lifted = zip(trace.lifted.items(), fresh[len(inputs) :], strict=True)
    private_ones = private_detachments(steps, before, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
    refuse_writes(steps, private_ones, before)
    trace.lifted = {key: (tensor, fake) for (key, (tensor, _)), fake in lifted}

    with private.DisableAutocast(), trace.mode, recorder:
        wrapped = [private.to_functional(fake) for fake in fresh]
        known = {id(fake): tensor for fake, tensor in zip(before, wrapped, strict=True)}
        _replay(steps, recorder, known, private_ones)
        _write_back(recorder, fresh, wrapped)
        tensors = iter([_functional_value(known[id(leaf)]) for leaf in leaves if isinstance(leaf, Tensor)])
    leaves = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return recorder.steps, fresh[: len(inputs)], leaves


def _replay(steps: list[Step], recorder: Recorder, known: dict[int, Tensor], no_views: frozenset[int]) -> None:
    """Run steps on functional wrappers of fakes; `known` maps each recorded tensor to its wrapper."""
    for step in steps:
        recorder.source, recorder.scope = step.source, step.scope
        if _has_aliases(step.op) and not (step.op is DETACH and id(step.results[0]) in no_views):
            with _functionalization():
                results = step.op(*_replaced(step.args, known), **_replaced(step.kwargs, known))
        else:  # PyTorch would take apart some operators that need no functionalization
            args, kwargs = map_tensors((_replaced(step.args, known), _replaced(step.kwargs, known)), _functional_value)
            results = map_tensors(step.op(*args, **kwargs), private.to_functional)
        known.update(zip(map(id, tensors_in(step.results)), tensors_in(results), strict=True))


@cache
def _has_aliases(op: Any) -> bool:
    """Whether an operator writes into an argument or returns a view of one."""
    return any(a.alias_info is not None for a in (*schema(op).arguments, *schema(op).returns))


@contextmanager
def _functionalization() -> Iterator[None]:
    private.enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        private.disable_functionalization()


def _functional_value(tensor: Tensor) -> Tensor:
    """What a functional wrapper holds after all changes in place so far."""
    private.sync(tensor)
    return private.from_functional(tensor)


def _write_back(recorder: Recorder, inputs: list[Tensor], wrapped: list[Tensor]) -> None:
    """Record a copy into each input that was changed in place."""
    recorder.source = None
    for tensor, wrapper in zip(inputs, wrapped, strict=True):
        value = _functional_value(wrapper)
        if value is not tensor:
            tensor.copy_(value)


def _replaced(tree: Any, known: dict[int, Tensor]) -> Any:
    return map_tensors(tree, lambda tensor: known[id(tensor)])


# Into a graph --------------------------------------------------------------------------------------------------------


def _assemble(
    trace: Trace,
    steps: list[Step],
    inputs: list[Tensor],
    leaves: list[Any],
    names: Sequence[str],
    out_spec: Any,
    beyond: Effects,
) -> Captured:
    """The graph of the steps that the result, or a mutated input, depends on."""
    writes = [step for step in steps if step.mutates]
    wanted = {id(t) for t in tensors_in([leaves, [step.args[1] for step in writes]])}
    live, read = _live([step for step in steps if not step.mutates], wanted)
    read |= {id(step.args[0]) for step in writes}
    lifted = [
        (key, tensor, fake)
        for key, (tensor, fake) in trace.lifted.items()
        if id(fake) in read or id(fake) in trace.valued
    ]
    namer = Namer()
    values = {id(fake): namer.value(fake, name) for fake, name in zip(inputs, names, strict=True)}
    for key, _, fake in lifted:
        values[id(fake)] = namer.value(fake, trace.names.get(key, "constant" if key in trace.created else "tensor"))
    arguments = tuple(values.values())
    made = {id(fake) for key, _, fake in lifted if key in trace.created}
    nodes = tuple(_node(step, values, namer, made) for step in live)
    graph = Graph(
        arguments,
        tuple(node for node in nodes if node is not None),
        tuple(_argument(leaf, values) for leaf in leaves),
        tuple((values[id(step.args[0])], values[id(step.args[1])]) for step in writes),
    )
    graph.check()
    flags = tuple(key in trace.created for key, _, _ in lifted)
    keys = [*(f"argument {k}" for k in range(len(inputs))), *(key for key, _, _ in lifted)]
    by_key = dict(zip(keys, graph.inputs, strict=True))
    changed = dict(graph.mutations)
    returned = {k: by_key[key] for k, key in beyond.returned.items() if by_key.get(key) in changed}
    recorded = frozenset(by_key[key] for key in beyond.recorded if key in by_key)
    fakes = [*map(id, inputs), *(id(fake) for _, _, fake in lifted)]
    assumed = (frozenset(k for k, fake in enumerate(fakes) if fake in m) for m in (trace.placed, trace.valued))
    tensors = tuple(tensor for _, tensor, _ in lifted)
    return Captured(graph, tensors, flags, out_spec, returned, recorded, Assumptions(*assumed))


def _live(steps: list[Step], wanted: set[int]) -> tuple[list[Step], set[int]]:
    """The steps that the wanted tensors depend on, and every tensor that is read."""
    kept, read = [], set(wanted)
    for step in reversed(steps):
        if any(id(t) in read for t in tensors_in(step.results)):
            kept.append(step)
            read.update(id(t) for t in tensors_in([step.args, step.kwargs]))
    return kept[::-1], read


def _node(step: Step, values: dict[int, Value], namer: Namer, made: set[int]) -> Node | None:
    """A step as a node; None for a copy or a detachment (PyTorch's own, mostly) of what is constant anyway.

    made: identities of what the function makes of no other tensor.
    """
    if step.op in (CLONE, DETACH) and id(step.args[0]) in made:
        values[id(step.results[0])] = values[id(step.args[0])]
        return None
    if _is_factory(step):
        made.update(map(id, step.results))
    args = tuple(_argument(a, values) for a in step.args)
    if step.op.namespace == "pullback":
        names = [a.name for a in schema(step.op).arguments]
        args = tuple(holding(a) if name == "key" else a for name, a in zip(names, args, strict=True))
    kwargs = tuple((key, _argument(a, values)) for key, a in step.kwargs.items())
    base = schema(step.op).name.partition("::")[2].lstrip("_")
    outputs: list[Value | None] = []
    for result in step.results:
        new = isinstance(result, Tensor) and id(result) not in values  # unread ones too: a rule may read them
        if new:
            values[id(result)] = namer.value(result, base)
        outputs.append(values[id(result)] if new else None)
    return Node(str(step.op), args, kwargs, tuple(outputs), step.source, step.scope)


def _is_factory(step: Step) -> bool:
    name = schema(step.op).name
    return name.endswith("_like") or "::new_" in name or not any(True for _ in tensors_in([step.args, step.kwargs]))


def _argument(tree: Any, values: dict[int, Value]) -> Any:
    """Arguments with values in place of tensors, and tuples in place of lists."""
    if isinstance(tree, Tensor):
        return values[id(tree)]
    if isinstance(tree, (list, tuple)):
        return tuple(_argument(item, values) for item in tree)
    return tree
