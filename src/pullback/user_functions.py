"""Functions that bring a derivative of their own: `torch.autograd.Function`, and operators with `register_autograd`.

While a function is captured, what such a call computes is recorded like anything else, but under `no_grad`; then its
results pass through the operator `pullback.attach`, which returns them as they are and stands for the derivative.  The
backward that the user wrote becomes a graph by itself, captured on cotangents like the results.

Saved tensors are operands of `attach`, so that they have derivatives too: the backward may be differentiated again.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import torch_private as private
from .dtypes import dtype_name
from .function_calls import function_calls_handled, is_checkpoint
from .graph import Graph, Value
from .keys import remember
from .library import LIBRARY
from .own_derivatives import OwnDerivative
from .pairs import as_before, as_pairs
from .provenance import refusal, user_source
from .recording import Trace

Capture = Callable[..., Any]


def _attach(values: list[Tensor], inputs: list[Tensor], saved: list[Tensor], key: int) -> list[Tensor]:
    return [value.clone() for value in values]


def _attach_fake(values: list[Tensor], inputs: list[Tensor], saved: list[Tensor], key: int) -> list[Tensor]:
    return [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device) for v in values]


def _attach_batched(info: Any, axes: Any, values: Any, inputs: Any, saved: Any, key: int) -> Any:
    """Under `vmap` nothing is traced, so that the values are all that matters."""
    return [value.clone() for value in values], axes[0]


LIBRARY.impl("attach", _attach, "CompositeExplicitAutograd")
torch.library.register_fake("pullback::attach", _attach_fake, lib=LIBRARY)
torch.library.register_vmap("pullback::attach", _attach_batched, lib=LIBRARY)


# ---------------------------------------------------------------- what the user's code is given


class Context:
    """What stands in for PyTorch's `ctx` while forward and backward are captured."""

    def __init__(self, needs_input_grad: tuple[bool, ...], title: str) -> None:
        self.needs_input_grad: tuple[Any, ...] = needs_input_grad
        self._title = title
        self._saved: tuple[Any, ...] = ()
        self._constant: tuple[Tensor, ...] = ()
        self._materialises = True

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What was saved for the backward."""
        return self._saved

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors for the backward."""
        self._saved = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """Keep tensors for PyTorch's forward mode, of which nothing is used."""

    def mark_non_differentiable(self, *results: Tensor) -> None:
        """Say that results have no derivative."""
        self._constant = results

    def set_materialize_grads(self, value: bool) -> None:
        """Whether the backward is given zeros, and not None, for results that have no derivative."""
        self._materialises = value

    def mark_dirty(self, *_: Tensor) -> None:
        """Refused: an argument is changed in place."""
        raise refusal(f"{self._title} changes an argument in place (mark_dirty)", "Return a new tensor instead.")


@dataclass(frozen=True)
class Call:
    """One call whose derivative the user wrote: arguments, results, and the backward with its context."""

    title: str
    arguments: tuple[Any, ...]
    results: tuple[Any, ...]
    context: Context
    backward: Callable[..., Any]
    once: bool
    is_sequence: bool

    @property
    def output(self) -> Any:
        """The results as the caller gets them."""
        return self.results if self.is_sequence else self.results[0]

    def with_results(self, results: tuple[Any, ...]) -> "Call":
        """The same call with other tensors for its results."""
        return replace(self, results=results)

    @property
    def differentiable(self) -> list[int]:
        """The numbers of the results that have a derivative."""
        constant = set(map(id, self.context._constant))
        return [k for k, r in enumerate(self.results) if is_continuous(r) and id(r) not in constant]

    @property
    def inputs(self) -> list[Tensor]:
        """The arguments that may be differentiated."""
        return [a for a in self.arguments if is_continuous(a)]


def call_function(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], needs: Callable[[Any], bool]) -> Call:
    """Run the forward of an `autograd.Function`; `needs`: whether an argument has a derivative."""
    title = cls.__qualname__
    arguments = tuple(_bound(cls, args, kwargs))
    context = Context(tuple(map(needs, arguments)), title)
    if cls.setup_context is not torch.autograd.Function.setup_context:
        output = cls.forward(*arguments)
        cls.setup_context(context, arguments, output)
    else:
        output = cls.forward(context, *arguments)
    backward = cls.vjp if cls.vjp is not torch.autograd.Function.vjp else cls.backward
    if backward is torch.autograd.Function.backward:
        problem = f"{title}, a torch.autograd.Function, has no backward"
        raise refusal(problem, "Give it one, or write it as plain tensor code.")
    is_sequence = isinstance(output, tuple)
    return Call(title, arguments, output if is_sequence else (output,), context, *_unwrapped(backward), is_sequence)


def call_operator(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Call:
    """A call of a user's operator with the derivative that `register_autograd` gave it; lists of tensors are flat."""
    definition = private.custom_operators[op._name.partition(".")[0]]
    arguments, keywords = _operator_arguments(op, args, kwargs)
    flat = tuple(item for a in arguments for item in _items(a, a))
    context = Context(tuple(map(is_continuous, flat)), str(op))  # the backward is told list by list
    if definition._setup_context_fn is not None:
        further = {"keyword_only_inputs": keywords} if keywords else {}
        definition._setup_context_fn(ctx=context, inputs=arguments, **further, output=result)
    context.needs_input_grad = tuple(map(_needs, arguments))
    backward, once = _unwrapped(definition._backward_fn)
    results, spec = private.tree_flatten(result)

    def flat_backward(ctx: Context, *cotangents: Any) -> tuple[Any, ...]:
        given = private.tree_unflatten(list(cotangents), spec)
        found = backward(ctx, *(given if isinstance(result, tuple) else (given,)))
        found = found if isinstance(found, tuple) else (found,)
        padded = (*found, *[None] * (len(arguments) - len(found)))
        return tuple(c for own, a in zip(padded, arguments, strict=False) for c in _items(own, a))

    return Call(str(op), flat, tuple(results), context, flat_backward, once, isinstance(result, (tuple, list)))


def _needs(argument: Any) -> Any:
    """Whether an argument may have a derivative; of a list, whether each of its items may."""
    return list(map(is_continuous, argument)) if isinstance(argument, (list, tuple)) else is_continuous(argument)


def _items(value: Any, argument: Any) -> list[Any]:
    """What belongs to an argument, item by item where that is a list."""
    if not isinstance(argument, (list, tuple)):
        return [value]
    return [None] * len(argument) if value is None else list(value)


def apply_function(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], trace: Trace, capture: Capture) -> Any:
    """Call an `autograd.Function` inside a capture, so that its own backward becomes its derivative."""
    args, kwargs = trace.own(args), trace.own(kwargs)
    if any(private.is_functorch_wrapped(a) for a in args if isinstance(a, Tensor)):
        problem = f"f calls {cls.__qualname__}, a torch.autograd.Function, under vmap"
        raise refusal(problem, "Write a loop, or plain tensor code.")
    with torch.no_grad():
        call = call_function(cls, args, kwargs, is_continuous)
    return _attached(call, trace, capture).output


def attach_operator(trace: Trace, capture: Capture, op: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    """The results of an operator; those of a user's, with the derivative that `register_autograd` gave it."""
    if not has_own_derivative(op):
        return result
    found = _attached(call_operator(op, args, kwargs, result), trace, capture).results
    return private.tree_unflatten(list(found), private.tree_flatten(result)[1])


def has_own_derivative(op: Any) -> bool:
    """Whether an operator is a user's, with a backward of its own."""
    if op.namespace in ("aten", "prims", "pullback"):
        return False
    definition = private.custom_operators.get(op._name.partition(".")[0])
    return definition is not None and definition._backward_fn is not None


def _operator_arguments(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that may be given by position, and those that are given by name, with their defaults."""
    positional, by_name = [], {}
    for k, argument in enumerate(private.schema(op).arguments):
        given = args[k] if k < len(args) else kwargs.get(argument.name, argument.default_value)
        if argument.kwarg_only:
            by_name[argument.name] = given
        else:
            positional.append(given)
    return tuple(positional), by_name


def _bound(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments in the order of `forward`, defaults filled in."""
    own = cls.setup_context is torch.autograd.Function.setup_context
    bound = inspect.signature(cls.forward).bind(*((None,) if own else ()), *args, **kwargs)
    bound.apply_defaults()
    return bound.args[1:] if own else bound.args


def _unwrapped(backward: Any) -> tuple[Callable[..., Any], bool]:
    """The backward that the user wrote, and whether it is marked as `once_differentiable`."""
    code = getattr(backward, "__code__", None)
    marked = code is not None and code is private.once_differentiable_code
    return (backward.__wrapped__, True) if marked else (backward, False)


def is_continuous(value: Any) -> bool:
    """Whether an argument or result is a tensor that may have a derivative."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


# ---------------------------------------------------------------- the backward as a graph


def _attached(call: Call, trace: Trace, capture: Capture) -> Call:
    """The same call; its results that have a derivative passed through `attach`, complex ones as pairs of numbers."""
    numbers, inputs = call.differentiable, call.inputs
    if not numbers or not inputs:
        return call
    own, saved = _captured_backward(call, capture)
    key = remember(own)
    trace.own_derivatives.append(key)
    values = [call.results[k] for k in numbers]
    attached = iter(torch.ops.pullback.attach.default(*map(as_pairs, (values, inputs, saved)), key))
    results = enumerate(call.results)
    return call.with_results(tuple(as_before(next(attached), r) if k in numbers else r for k, r in results))


class _Backwards(threading.local):
    """The backwards that are being captured in a thread, one inside the other."""

    def __init__(self) -> None:
        self.stack: list[Callable[..., Any]] = []


_BACKWARDS = _Backwards()
DEEPEST = 2  # so many captures of one backward inside each other: sine's calls cosine's, which calls sine's


def _captured_backward(call: Call, capture: Capture) -> tuple[OwnDerivative, list[Tensor]]:
    """The backward as a graph, and what that reads; what calls itself is cut off after some rounds."""
    stack = _BACKWARDS.stack
    if stack.count(call.backward) >= DEEPEST:
        values = as_pairs([call.results[k] for k in call.differentiable])
        given = tuple(Value("cotangent", tuple(v.shape), dtype_name(v.dtype)) for v in values)
        graph = Graph(given, (), (None,) * len(call.inputs))
        return OwnDerivative(graph, len(given), {}, call.once, call.title, user_source(), is_cut=True), []
    stack.append(call.backward)
    try:
        return _backward_graph(call, capture)
    finally:
        stack.pop()


def _backward_graph(call: Call, capture: Capture) -> tuple[OwnDerivative, list[Tensor]]:
    kept = call.context._saved
    saved = [t for t in kept if isinstance(t, Tensor)]
    values = [call.results[k] for k in call.differentiable]

    def backward(*tensors: Tensor) -> tuple[Any, ...]:
        own = [as_before(t, like) for t, like in zip(tensors, (*values, *saved), strict=True)]
        rest = iter(own[len(values) :])
        call.context._saved = tuple(next(rest) if isinstance(t, Tensor) else t for t in kept)
        given = dict(zip(call.differentiable, own[: len(values)], strict=True))
        found = cotangents_of(call, given)
        return tuple(None if c is None else as_pairs([c])[0] for c in found)

    flat = as_pairs([*values, *saved])
    names = [f"cotangent_{k}" for k in range(len(values))] + [f"saved_{k}" for k in range(len(saved))]
    _, spec = private.tree_flatten((tuple(flat), {}))
    examples = [torch.empty_like(t) for t in flat[: len(values)]] + flat[len(values) :]
    captured = capture(backward, examples, spec, names=names)
    if captured.graph.mutations:
        raise refusal(f"the backward of {call.title} changes a tensor in place", "Compute a new tensor instead.")
    saved = [*saved, *captured.lifted]
    arguments, results = set(map(id, call.arguments)), {id(v): k for k, v in enumerate(values)}
    places = {k: results[id(t)] for k, t in enumerate(saved) if id(t) in results and id(t) not in arguments}
    return OwnDerivative(captured.graph, len(values), places, call.once, call.title, user_source()), saved


def cotangents_of(call: Call, given: Mapping[int, Tensor]) -> tuple[Any, ...]:
    """What the user's backward returns for each floating argument, given cotangents of results by their number."""
    missing = call.context._materialises
    every = [given[k] if k in given else _zeros(r) if missing else None for k, r in enumerate(call.results)]
    found = call.backward(call.context, *every)
    found = found if isinstance(found, tuple) else (found,)
    padded = [*found, *[None] * (len(call.arguments) - len(found))]
    pairs = zip(call.arguments, padded, strict=False)
    return tuple(_fitted(c, a, call.title) for a, c in pairs if is_continuous(a))


def _zeros(result: Any) -> Any:
    is_tensor = isinstance(result, Tensor)
    return torch.zeros(result.shape, dtype=result.dtype, device=result.device) if is_tensor else None


def _fitted(cotangent: Any, argument: Tensor, title: str) -> Any:
    """A cotangent in shape and dtype of its argument; summed over what broadcasting repeats, as autograd does."""
    if cotangent is None:
        return None
    if not isinstance(cotangent, Tensor):
        raise refusal(f"the backward of {title} returns {cotangent!r}", "Return a tensor or None for each argument.")
    if cotangent.shape != argument.shape:
        try:
            cotangent = cotangent.sum_to_size(argument.shape)
        except RuntimeError:
            seen = f"{tuple(cotangent.shape)} for an argument of shape {tuple(argument.shape)}"
            problem = f"the backward of {title} returns a tensor of shape {seen}"
            raise refusal(problem, "Return one of the argument's shape.") from None
    return cotangent.to(argument.dtype)


# ---------------------------------------------------------------- while a function is captured


def own_functions(trace: Trace, capture: Capture) -> AbstractContextManager[None]:
    """Let `autograd.Function.apply` bring its own derivative into the trace."""

    def handler(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], plain: Callable[..., Any]) -> Any:
        if not trace.is_current:
            return plain(*args, **kwargs)
        if is_checkpoint(cls):
            return args[0](*args[2:])
        return apply_function(cls, args, kwargs, trace, capture)

    return function_calls_handled(handler)
