"""What tests share: the gate in front of `torch.autograd`, and the one way through it.

While a test runs, the gate is closed: every function of PyTorch that differentiates raises `AutogradUsed`, so that a
result which came from there cannot pass for ours.  A test that needs a reference value computes it through the gate:

    with reference():
        expected = torch.func.grad(f)(x)

Never call `pullback` inside `reference()`: that is what the gate is there to catch.  A test of something that is made
of `torch.autograd` by definition (the engine that training is compared with) is marked `pytest.mark.reference` instead.
The gate is open while modules are imported and tests are collected.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import torch
import torch.autograd.forward_ad
import torch.autograd.functional

TRANSFORMS = ("grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "grad_and_value", "linearize")
FUNCTIONALS = ("jacobian", "hessian", "vjp", "jvp", "vhp", "hvp")

# Everything in PyTorch that computes a derivative.  The transforms of `torch.func` end in `torch.autograd.grad` or in
# dual numbers, so that a transform imported by name before the gate was put up is caught all the same.
GATED: tuple[tuple[Any, str], ...] = (
    (torch.autograd, "grad"),
    (torch.autograd, "backward"),
    (torch.Tensor, "backward"),
    (torch.autograd.forward_ad, "make_dual"),
    *((torch.func, name) for name in TRANSFORMS),
    *((torch.autograd.functional, name) for name in FUNCTIONALS),
)


class AutogradUsed(AssertionError):
    """A test of our derivatives reached PyTorch's."""


class _Gate:
    """Closed while a test runs, opened again by `reference()`; both nest."""

    def __init__(self) -> None:
        self.is_open = True

    @contextmanager
    def set(self, is_open: bool) -> Iterator[None]:
        before, self.is_open = self.is_open, is_open
        try:
            yield
        finally:
            self.is_open = before


_GATE = _Gate()


@contextmanager
def reference() -> Iterator[None]:
    """Let `torch.autograd` and `torch.func` compute a reference in this block (or, as a decorator, in a function)."""
    with _GATE.set(True):
        yield


@contextmanager
def no_autograd() -> Iterator[None]:
    """Make every function of PyTorch that differentiates raise `AutogradUsed`."""
    with _GATE.set(False):
        yield


def put_up_gate() -> None:
    """Put the gate in front of every name in `GATED`; done once, before any test module is imported."""
    for owner, name in GATED:
        original = getattr(owner, name)
        if not hasattr(original, "__gated__"):
            setattr(owner, name, _gated(original, f"{_name_of(owner)}.{name}"))


def _gated(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(original)
    def gated(*args: Any, **kwargs: Any) -> Any:
        if not _GATE.is_open:
            raise AutogradUsed(f"{name} was called while testing our own derivatives: see tests/support.py")
        return original(*args, **kwargs)

    gated.__gated__ = True  # type: ignore[attr-defined]
    return gated


def _name_of(owner: Any) -> str:
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__name__}"
