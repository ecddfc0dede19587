"""The mode above autograd, where a trace still sees which function the user called.

It lifts the tensors that a function reads, and refuses what would take a value out of the graph.
"""

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import torch_private as private
from .composites import COMPOSITES
from .copied_views import SELECTORS
from .nested import map_tensors, tensors_in
from .originals import value_of
from .provenance import describe, is_written_by_user, refusal
from .reads import ADOPTERS, ASKED, MAKERS, NUMBERS, READS, SETTERS, VIEWS
from .recording import Trace


class Frontier(TorchFunctionMode):
    """See each torch function before autograd does: lift the tensors it reads, refuse to read their values."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make one call on tensors of the trace alone."""
        kwargs = kwargs or {}
        if not self.trace.is_current:
            return function(*args, **kwargs)
        self.check(function, args, kwargs)
        name = getattr(function, "__name__", "")
        if name == "__set__" or (name == "__get__" and function not in VIEWS):
            return function(*args, **kwargs)
        if function is torch.nn.functional.triplet_margin_with_distance_loss:
            kwargs = {**kwargs, "distance_function": self.seen(kwargs["distance_function"])}
        own = self.trace.own(args)
        result = self.call_of(function)(*own, **self.trace.own(kwargs))
        if own and result is own[0] and isinstance(result, Tensor):
            return args[0]  # `state += 1` is to put back what it was given
        if function in ADOPTERS and isinstance(result, Tensor) and not self.trace.owns(result):
            self.trace.created.add(id(result))
            return self.trace.lift(result)
        return result

    def call_of(self, function: Any) -> Any:
        """What is called in place of a function."""
        if not getattr(function, "__hash__", None):
            return function
        if isinstance(function, private.HigherOrderOperator):
            return lambda *args, **kwargs: function(*map_tensors(args, _resolved), **map_tensors(kwargs, _resolved))
        known = COMPOSITES.get(function, function)
        return partial(SELECTORS[function], self.trace.copies) if function in SELECTORS else known

    def seen(self, function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """A function that the user passes to one of PyTorch's, which calls it where this mode is off."""

        def called(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)  # type: ignore[misc]

        return called if function is not None else None

    def check(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise CaptureError for a call that a graph cannot hold."""
        if not getattr(function, "__hash__", None):
            return
        if function in READS and not self.is_known(function, args, kwargs, sys._getframe(2)):
            doing, way_out = READS[function]
            kinds = ", ".join(describe(t) for t in tensors_in((args, kwargs)))
            raise refusal(f"f {doing}: {kinds}", f"Its value is not known when f is captured: {way_out}.")
        if function in MAKERS and self.copies_values(function, args, kwargs):
            way_out = "Join tensors with torch.stack or torch.cat; copy one with .clone()."
            raise refusal(f"f makes a new tensor out of the values of tensors ({function.__name__})", way_out)
        if function in ASKED and is_written_by_user(sys._getframe(2)) and any(map(self.trace.owns, tensors_in(args))):
            way_out = "What a transform differentiates is chosen by argnums: pass what decides as a Python argument."
            raise refusal(f"f asks for .{ASKED[function]} of a tensor, which is PyTorch's book-keeping", way_out)
        if function in SETTERS:
            raise refusal(f"f assigns to {SETTERS[function]} of a tensor", "Compute a new tensor instead.")

    def copies_values(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call such as `torch.tensor([x[0], x[1]])` reads values; `torch.as_tensor(x)` does not."""
        data = args[0] if args else kwargs.get("data", kwargs.get("obj"))
        if isinstance(data, Tensor) and function is not torch.tensor:
            return False
        return any(not self.is_constant(tensor) for tensor in tensors_in(data))

    def is_known(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], caller: FrameType) -> bool:
        """Whether the values that a call reads are known; those of integers are, to PyTorch's own code."""
        others = [tensor for tensor in tensors_in((args, kwargs)) if not self.is_constant(tensor)]
        may_ask = function in NUMBERS and not is_written_by_user(caller)
        return all(may_ask and self.trace.owns(t) and value_of(self.trace, t) is not None for t in others)

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether the value of a tensor is known: it was made of Python numbers inside f."""
        return self.trace.owns(tensor) and getattr(tensor, "constant", None) is not None


def _resolved(tensor: Tensor) -> Tensor:
    """Without lazy conjugation and negation, for which PyTorch's control flow is not registered."""
    return tensor.resolve_conj().resolve_neg()
