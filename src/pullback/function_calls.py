"""Calls of `torch.autograd.Function`s, handed to whoever traces or records in this thread.

What is replaced, while anybody does, is the function that `apply` ends in: many programs keep an `apply` under another
name.  Under `vmap` PyTorch makes another function of it first.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import torch_private as private

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any], Callable[..., Any]], Any]
_lock = threading.Lock()
_users = [0]


class _Handlers(threading.local):
    """The handlers of one thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Handler] = []


_HANDLERS = _Handlers()


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    plain = private.plain_apply.__get__(None, cls)
    if not _HANDLERS.stack:
        return plain(*args, **kwargs)
    return _HANDLERS.stack[-1](cls, args, kwargs, plain)


@contextmanager
def function_calls_handled(handler: Handler) -> Iterator[None]:
    """Give this thread's calls to a handler: it takes the class, the arguments, and what PyTorch would call."""
    _HANDLERS.stack.append(handler)
    with _lock:
        _users[0] += 1
        private.FunctionBase.apply = classmethod(_apply)
    try:
        yield
    finally:
        _HANDLERS.stack.remove(handler)
        with _lock:
            _users[0] -= 1
            if not _users[0]:
                del private.FunctionBase.apply


def is_checkpoint(cls: Any) -> bool:
    """Whether a function is that of `torch.utils.checkpoint`: what is kept is decided for a whole program by us."""
    return bool(cls.__name__ == "CheckpointFunction" and cls.__module__ == "torch.utils.checkpoint")
