"""Functions of PyTorch that a record answers itself, or refuses by name.

Some would leave the record without its knowledge: an array that shares a tensor's memory, a tensor that is given other
memory.  Others belong to autograd, which does not run here: hooks, `backward`, functions with a derivative of their
own.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import torch_private as private
from .errors import RecordError
from .function_calls import is_checkpoint
from .provenance import describe
from .recorded_functions import record_function
from .recording import CURRENT
from .scribe import Scribe, refuse
from .shared_settings import WITHOUT_MKLDNN
from .tapes import THREAD
from .torch_private import storage

Interceptor = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]
CALL_TAPE = "a record keeps its own derivatives: call tape.backward(loss) or tape.grad(loss, inputs)"


def plain(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function as it is."""
    return function(*args, **kwargs)


def _refuse_backward(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise refuse(f"{function.__name__}() of torch.autograd is called inside the block", f"Not here: {CALL_TAPE}.")


def _intermediate(above: Any, tensor: Any) -> Any:
    """The slot of a tensor that was computed in the block, or None."""
    slot = above.scribe.history.bindings.get(id(tensor))
    return None if slot is None or slot.is_leaf else slot


def _register_hook(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A hook on an intermediate result is kept by the record; leaves keep theirs."""
    if _intermediate(above, args[0]) is None:
        return function(*args, **kwargs)
    hook = args[1] if len(args) > 1 else kwargs["hook"]
    _refuse_distributed(hook)
    index = above.scribe.read(args[0]).index
    hooks = above.scribe.history.hooks.setdefault(index, OrderedDict())
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def _refuse_distributed(owner: Any) -> None:
    """Refuse what PyTorch's distributed wrappers hang into autograd, which would wait for a backward pass."""
    module = getattr(owner, "__module__", "") or ""
    if module.startswith("torch.distributed"):
        wrapper = "fully_shard (FSDP)" if ".fsdp" in module else module
        raise refuse(
            f"{wrapper} shards and gathers parameters while torch.autograd runs backward, which a record does not do",
            "Record the module without it, and exchange gradients yourself.",
        )


def _retain_grad(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An intermediate result gets a `.grad` from `backward`."""
    if _intermediate(above, args[0]) is None:
        return function(*args, **kwargs)
    above.scribe.history.retained[above.scribe.read(args[0]).index] = args[0]
    return None


def _refuse_on_results(problem: str, way_out: str) -> Interceptor:
    """Refuse a function on what was computed in the block."""

    def intercept(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _intermediate(above, args[0]) is not None:
            raise refuse(f"{problem} ({describe(args[0])})", way_out)
        return function(*args, **kwargs)

    return intercept


def _set_requires_grad(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A leaf that stops requiring gradients is a constant from then on."""
    tensor, value = args[0], args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
    slot = above.scribe.history.bindings.get(id(tensor))
    if slot is not None and not slot.is_leaf:
        if value:
            return tensor
        raise refuse(
            f"requires_grad is set to False on a result of the block ({describe(tensor)})",
            "Use .detach() for a tensor without a derivative.",
        )
    if slot is not None and not value:
        del above.scribe.history.bindings[id(tensor)]
    return function(*args, **kwargs)


def _get_data(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`.data` as `.detach()`, through which changes are counted."""
    return args[0].detach()


def _set_data(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    history = above.scribe.history
    if id(args[0]) in history.bindings or id(args[0]) in history.constants:
        raise refuse(
            f".data of a recorded tensor ({describe(args[0])}) is replaced",
            "Use .copy_() under torch.no_grad(), or do it after the derivative.",
        )
    return function(*args, **kwargs)


def _other_memory(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A recorded tensor keeps its memory."""
    history = above.scribe.history
    if id(args[0]) in history.bindings or id(args[0]) in history.constants:
        raise refuse(
            f"a recorded tensor ({describe(args[0])}) is given other memory, by {function.__name__}",
            "Compute a new tensor instead, or do it after the derivative.",
        )
    return above.call(function, args, kwargs)


def _array(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An array that shares memory with a recorded tensor cannot be written to."""
    array = above.call(function, args, kwargs)
    if hasattr(array, "flags") and storage(args[0]) in above.scribe.history.storages():
        array.flags.writeable = False
    return array


def _get_grad_fn(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Results have none; a module that asks for it has hooks that would be skipped in silence."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == nn.modules.module.__file__:
        if frame.f_code is private.module_call_code and _intermediate(above, args[0]) is not None:
            raise refuse(_MODULE_HOOKS, _MODULE_HOOKS_WAY_OUT)
        frame = frame.f_back
    return None if _intermediate(above, args[0]) is not None else function(*args, **kwargs)


def _get_is_leaf(above: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _intermediate(above, args[0]) is None and function(*args, **kwargs)


_MODULE_HOOKS = "a module has backward hooks, which torch.autograd would call"
_MODULE_HOOKS_WAY_OUT = "Remove them, or use Tensor.register_hook on the tensor that is meant."
_DIFFERENTIATING = tuple(getattr(torch.autograd, name) for name in ("grad",))

_OWN: Any = Tensor  # whose properties are descriptors, which type checkers do not know

INTERCEPTED: dict[Any, Interceptor] = {
    private.set_grad_enabled: plain,
    Tensor.backward: _refuse_backward,
    **dict.fromkeys(_DIFFERENTIATING, _refuse_backward),
    Tensor.register_hook: _register_hook,
    Tensor.retain_grad: _retain_grad,
    Tensor.register_post_accumulate_grad_hook: _refuse_on_results(
        "a hook after accumulation is registered on a result of the block", "Only leaves accumulate: use register_hook."
    ),
    Tensor.__deepcopy__: _refuse_on_results(
        "a result of the block is copied by deepcopy, which has no derivative", "Use .clone(), or .detach() first."
    ),
    Tensor.requires_grad_: _set_requires_grad,
    _OWN.requires_grad.__set__: _set_requires_grad,
    _OWN.data.__get__: _get_data,
    _OWN.data.__set__: _set_data,
    _OWN.grad.__set__: plain,
    _OWN.grad_fn.__get__: _get_grad_fn,
    _OWN.is_leaf.__get__: _get_is_leaf,
    **dict.fromkeys((_OWN.resize_, _OWN.resize_as_), _other_memory),
    Tensor.numpy: _array,
    Tensor.__array__: _array,
}


def is_initialisation(function: Any) -> bool:
    """Whether a function is one of `torch.nn.init`, which turn grad mode off for themselves."""
    return getattr(function, "__module__", "") == "torch.nn.init"


def _without_mkldnn(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """With it, an LSTM is one opaque operator."""
    with WITHOUT_MKLDNN:
        return call(*args, **kwargs)


KERNELS: dict[Any, Callable[..., Any]] = {torch.lstm: _without_mkldnn}


# Autograd's own functions --------------------------------------------------------------------------------------------


def function_handler(tape: Any) -> Any:
    """What becomes of a call of an `autograd.Function` while a tape records."""

    def handler(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], plain: Callable[..., Any]) -> Any:
        scribe: Scribe = tape.scribe
        if CURRENT.trace is not tape.above.outer_trace or THREAD.tapes[-1] is not tape:
            return plain(*args, **kwargs)
        if scribe.paused or not torch.is_grad_enabled() or not scribe.is_active(args):
            return plain(*args, **kwargs)
        _refuse_distributed(cls)
        if cls is private.BackwardHookFunction:
            raise refuse(_MODULE_HOOKS, _MODULE_HOOKS_WAY_OUT)
        if is_checkpoint(cls):
            return args[0](*args[2:])
        tapes = [t for t in THREAD.tapes if not t.paused]
        call = record_function([t.scribe for t in tapes], cls, args, kwargs)
        for recording in tapes:
            recording.above.mark(call.results)
        return call.output

    return handler


_lock = threading.Lock()
_originals: list[Any] = []
_users = [0]


def _backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
    """`backward` of `torch.autograd` while records are in progress."""
    if THREAD.tapes and not THREAD.tapes[-1].paused and THREAD.tapes[-1].scribe.is_active((tensors,)):
        _refuse_backward(None, _backward, (), {})
    return _originals[0](tensors, *args, **kwargs)


_backward.__name__ = "backward"


def start_refusing_backward() -> None:
    """Let `backward` of `torch.autograd` be refused in threads that record; each call is to be undone once."""
    with _lock:
        if not _users[0]:
            _originals[:] = [torch.autograd.__dict__["backward"]]
            setattr(torch.autograd, "backward", _backward)  # noqa: B010
        _users[0] += 1


def stop_refusing_backward() -> None:
    """Undo one call of `start_refusing_backward`."""
    with _lock:
        _users[0] -= 1
        if not _users[0]:
            setattr(torch.autograd, "backward", _originals[0])  # noqa: B010


def say_what_to_call(*_: Any, **__: Any) -> None:
    """Stands in for `loss.backward` of a recorded loss."""
    raise RecordError(f"loss.backward() is called on a recorded loss: {CALL_TAPE}")


__all__ = [
    "INTERCEPTED",
    "KERNELS",
    "Interceptor",
    "function_handler",
    "is_initialisation",
    "plain",
    "say_what_to_call",
    "start_refusing_backward",
    "stop_refusing_backward",
]
