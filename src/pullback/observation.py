"""What a record sees: the modes that stand between the user's code and PyTorch while it runs.

`Above` stands above autograd.  It turns grad mode off around every function of PyTorch, so that autograd records
nothing, and leaves it to the user everywhere else, so that `no_grad`, `enable_grad` and questions about grad mode mean
what they always mean.  Results that have a derivative require gradients while the block runs, as they would in PyTorch:
whoever computes on them behind the record's back gets a tensor of autograd's, which the record then refuses.
`Below` stands below autograd, where it writes down each ATen operator that reads something with a derivative.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import torch_private as private
from .composites import COMPOSITES
from .interception import INTERCEPTED, KERNELS, Interceptor, is_initialisation, plain
from .mutations import ADAPTED, write
from .recipes import AS_STRIDED, RECIPES, Kind, recipe_of
from .recorded_control_flow import CONTROL_FLOW, CUSTOM_FUNCTION, not_done, run_control_flow
from .recorded_functions import record_operator
from .recording import CURRENT
from .scribe import Scribe, refuse
from .tapes import THREAD, decomposing

_PARALLEL = ("DistributedDataParallel.forward", "FullyShardedDataParallel.forward")


class Above(TorchFunctionMode):
    """Sees each function of PyTorch as the user calls it."""

    def __init__(self, scribe: Scribe) -> None:
        super().__init__()
        self.scribe = scribe
        self.outer_trace = CURRENT.trace
        self.marked: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function with autograd off, unless it is one that a record has to know about."""
        kwargs = kwargs or {}
        if THREAD.inside or self.scribe.paused or CURRENT.trace is not self.outer_trace:
            return function(*args, **kwargs)
        treatment = _treatment(function)
        if treatment.intercept is not None:
            return treatment.intercept(self, function, args, kwargs)
        return self.call(treatment.call, args, kwargs, treatment.stops)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], stops: bool = False) -> Any:
        """Call a function with autograd off, and mark what has a derivative; `stops`: as under `no_grad`."""
        thread, enabled = THREAD, torch.is_grad_enabled()
        if private.peek_interpreter() is not None:
            _refuse_transforms()
        thread.inside, thread.enabled = True, enabled and not stops
        cached = private.is_any_autocast_enabled() and torch.is_autocast_cache_enabled()
        try:
            private.set_grad_enabled(False)
            if cached:  # else a cast is shared with what was computed outside of the record
                torch.set_autocast_cache_enabled(False)
            result = function(*args, **kwargs)
            if enabled:
                self.mark(result)
        finally:
            private.set_grad_enabled(enabled)
            if cached:
                torch.set_autocast_cache_enabled(True)
            thread.inside = False
        return result

    def mark(self, result: Any) -> None:
        """Let results with a derivative require gradients, as long as the block runs."""
        scribe = self.scribe
        if scribe.fresh:
            fresh, scribe.fresh = scribe.fresh, []
            self.mark(fresh)
        slot = scribe.history.bindings.get(id(result))
        if slot is not None:
            if not slot.is_leaf and not result.requires_grad:
                base = private.base_of(result)  # a view requires gradients where its base does
                marked = result if base is None else base
                marked.requires_grad_()
                self.marked.append(marked)
        elif isinstance(result, (tuple, list)):
            for item in result:
                self.mark(item)


class _Treatment(NamedTuple):
    """What becomes of calls of one function: another function, or a call of `call`."""

    intercept: Interceptor | None
    call: Callable[..., Any]
    stops: bool


MOST_FUNCTIONS = 10_000
_TREATMENTS: dict[Any, _Treatment] = {}


def _treatment(function: Any) -> _Treatment:
    try:
        known = _TREATMENTS.get(function)
    except TypeError:  # not hashable
        return _Treatment(None, function, False)
    if known is not None:
        return known
    intercept = INTERCEPTED.get(function)
    if intercept is None and getattr(function, "__name__", "") == "__get__" and function not in VIEWS:
        intercept = plain
    if isinstance(function, private.HigherOrderOperator) and function.name() in (*CONTROL_FLOW, CUSTOM_FUNCTION):
        intercept = run_control_flow
    call = COMPOSITES.get(function, function)
    if function in KERNELS:
        call = partial(KERNELS[function], call)
    found = _Treatment(intercept, call, is_initialisation(function))
    if len(_TREATMENTS) < MOST_FUNCTIONS:  # else somebody makes functions as he goes
        _TREATMENTS[function] = found
    return found


def _refuse_transforms() -> None:
    interpreter = private.peek_interpreter()
    if not str(interpreter.key()).endswith(("Vmap", "Functionalize")):
        raise refuse(
            "a derivative of torch.func's is computed inside the block",
            "Use pullback's own transforms there, which are recorded as any other code.",
        )


def call(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operator from below autograd.

    There PyTorch forgets that a tensor is lazily conjugated, so that a kernel which conjugates inside (`linalg.pinv`)
    computes something else; with complex operands it is reminded.
    """
    for argument in args:
        if isinstance(argument, Tensor) and argument.is_complex():
            with private.lazy_conjugation():
                return op(*args, **kwargs)
    return op(*args, **kwargs)


class Below(private.TorchDispatchMode):
    """Sees each ATen operator, with autograd already past."""

    supports_higher_order_operators = True  # else they fail before we can name them

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call of all imports the whole of torch._dynamo

    def __init__(self, scribe: Scribe) -> None:
        super().__init__()
        self.scribe = scribe

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make one call, and write it down if it has a derivative."""
        kwargs, scribe = kwargs or {}, self.scribe
        if scribe.paused:
            return call(op, args, kwargs)
        recipe = RECIPES.get(op)
        if recipe is None and isinstance(op, private.HigherOrderOperator):
            raise not_done(op)
        recipe = recipe or recipe_of(op)
        kind = recipe.kind
        if kind is Kind.WRITE:
            return write(scribe, recipe, args, kwargs, self)
        if kind is Kind.CONSTANT:
            _refuse_parallel(op, args)
            return call(op, args, kwargs)
        enabled = THREAD.enabled if THREAD.inside else torch.is_grad_enabled()
        if kind is Kind.NODE and enabled and not kwargs and recipe.is_plain:
            references = scribe.plain_references(args)
            if references is not None:
                result = call(op, args, kwargs)
                if references:
                    scribe.record_plain(recipe, references, args, result)
                return result
        if not enabled or not (scribe.is_active(args) or (kwargs and scribe.is_active(kwargs.values()))):
            return call(op, args, kwargs)
        if kind is Kind.DECOMPOSED:
            with decomposing(), self:
                result = recipe.body(*args, **kwargs)  # type: ignore[misc]
            if result is not NotImplemented:
                return result
        if kind is Kind.OWN:
            return record_operator(scribe, op, args, kwargs)
        if op in ADAPTED:
            args = ADAPTED[op](*args)
        if op is AS_STRIDED:
            return scribe.bind_view(op(*args, **kwargs), scribe.slots_of(args[0])[1]).tensor
        operands, keywords = scribe.references(recipe, args), scribe.keywords(kwargs)
        result = call(op, args, kwargs)
        scribe.record(recipe, operands, keywords, result, scribe.root_of(args[0]) if kind is Kind.VIEW else None)
        return result


def _refuse_parallel(op: Any, args: tuple[Any, ...]) -> None:
    """Refuse the wrappers that wait for autograd to call them; they announce themselves to the profiler."""
    if op.namespace == "profiler" and args and isinstance(args[0], str) and args[0] in _PARALLEL:
        name = args[0].partition(".")[0]
        raise refuse(
            f"{name} exchanges gradients while torch.autograd computes them, which a record does not do",
            "Record the module inside (its .module), and exchange gradients yourself.",
        )


# Properties that compute a tensor.
VIEWS = frozenset(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag"))
