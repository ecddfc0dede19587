"""Settings of the whole process that a trace changes: the first of several threads changes them, the last restores."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from . import torch_private as private


class Shared(AbstractContextManager[None]):
    """A context that several threads, or one of them several times, are in at once; it begins and ends only once."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        self._context: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._context = self._make()
                self._context.__enter__()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._context is not None:
                context, self._context = self._context, None
                context.__exit__(None, None, None)


@contextmanager
def setting(read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> Iterator[None]:
    """Another value while the context lasts."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def _folds(left: torch.Tensor, right: torch.Tensor, is_out: bool) -> bool:
    """Whether `matmul` folds a batch into rows; always, as autograd does to spare the weight's gradient a batch."""
    large, small = (left, right) if left.ndim >= right.ndim else (right, left)
    return large.ndim >= 3 and small.ndim <= 2


def _plain_compile(model: Any = None, **options: Any) -> Any:
    return model if model is not None else lambda function: function


def _attribute(owner: Any, name: str, value: Any) -> AbstractContextManager[None]:
    return setting(lambda: getattr(owner, name), lambda new: setattr(owner, name, new), value)


# With oneDNN, an LSTM is one opaque operator; so is a TransformerEncoderLayer on its fast path.
WITHOUT_MKLDNN = Shared(lambda: setting(private.get_mkldnn_enabled, private.set_mkldnn_enabled, False))
WITHOUT_FASTPATH = Shared(lambda: setting(private.get_fastpath_enabled, private.set_fastpath_enabled, False))
# Else the program depends on `requires_grad`.
FOLDING = Shared(lambda: _attribute(private.decompositions, "should_fold", _folds))
# PyTorch's control flow compiles itself, and would not come down to operators.
UNCOMPILED = Shared(lambda: _attribute(torch, "compile", _plain_compile))
EAGER = Shared(lambda: torch.compiler.set_stance("force_eager"))
