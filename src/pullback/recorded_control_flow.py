"""`torch.cond`, `while_loop`, `scan` and `map` inside a record: the Python that they stand for, which is recorded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import torch_private as private
from .errors import RecordError
from .scribe import refuse
from .shared_settings import Shared, setting
from .tapes import THREAD

CUSTOM_FUNCTION = "custom_function_call"  # a `torch.autograd.Function` under `vmap`


def run_control_flow(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one of PyTorch's operators that take functions, with everything that it calls recorded."""
    if function.name() == CUSTOM_FUNCTION:
        return function(_batching_seen(args[0], above), *args[1:], **kwargs)
    with above:
        return CONTROL_FLOW[function.name()](*args, **kwargs)


def _batching_seen(cls: Any, above: Any) -> Any:
    """A `torch.autograd.Function` whose own rule for batches is code of the block, like any other."""
    rule = cls.vmap
    if rule is torch.autograd.Function.vmap:
        return cls

    def batched(*args: Any) -> Any:
        with above:
            return rule(*args)

    return type(cls.__name__, (cls,), {"vmap": staticmethod(batched)})


def not_done(function: Any) -> RecordError:
    """The refusal of any other operator that takes functions."""
    way_out = "Write it as Python's own control flow, which a record follows."
    return refuse(f"the block uses the operator {function.name()!r}, which is not done yet", way_out)


def _cond(predicate: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: Sequence[Any]) -> Any:
    return (yes if bool(predicate) else no)(*operands)


def _while_loop(condition: Any, body: Any, carried: Sequence[Any], constants: Sequence[Any] = ()) -> tuple[Any, ...]:
    given = carried
    while bool(condition(*carried, *constants)):
        carried = body(*carried, *constants)
    if carried is given:  # the results have memory of their own
        return tuple(t.clone() if isinstance(t, torch.Tensor) else t for t in carried)
    return tuple(carried)


def _scan(combine: Any, carried: Sequence[Any], slices: Sequence[Any], constants: Sequence[Any] = ()) -> Any:
    count, rows, spec = len(carried), [], None
    for t in range(len(slices[0])):
        results, spec = private.tree_flatten(combine(*carried, *(s[t] for s in slices), *constants))
        carried = results[:count]
        rows.append(results[count:])
    return private.tree_unflatten([*carried, *map(torch.stack, zip(*rows, strict=True))], spec)


def _map(function: Any, slices: Sequence[Any], constants: Sequence[Any] = ()) -> Any:
    return _scan(function, (), slices, constants)


CONTROL_FLOW: dict[str, Callable[..., Any]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "scan": _scan,
    "map_impl": _map,
}


def _where_nothing_records() -> Callable[..., Any]:
    """How PyTorch runs them, by compiling them first, in threads that record nothing; elsewhere just as they are."""
    compiled = private.compile_and_call()

    def call(function: Any, args: Any, kwargs: Any = None) -> Any:
        if any(not tape.paused for tape in THREAD.tapes):
            return function(*args, **(kwargs or {}))
        return compiled(function, args, kwargs)

    return call


UNCOMPILED = Shared(
    lambda: setting(
        private.compile_and_call,
        private.set_compile_and_call,
        _where_nothing_records(),
    )
)
