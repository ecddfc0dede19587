"""What a function changes of its surroundings while it is captured.

A function runs once when it is captured and never when its program runs.  If it rebinds what it reads, its program fits
only the state that it was captured in, and where that state is left behind at once, it is captured anew at every call:
slow, but as right as the function itself.  A tensor of the trace that it puts away is no tensor, and is refused.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CaptureError
from .guards import Fingerprint, Script, is_constant, same
from .torch_private import TreeSpec, is_fake


@dataclass(frozen=True)
class Before:
    """A call as it was before its function was captured.

    script: the guards of the call.
    names, generators: what the walk through the surroundings found: names in the function's code, and generators of
        random numbers with what they are called.
    containers: the lists and dictionaries that were found, each with a copy of what it held.
    tensors: identities of the tensors that were found.
    """

    script: Script
    names: frozenset[str]
    generators: tuple[tuple[Any, str], ...]
    containers: tuple[tuple[Any, Any], ...]
    tensors: frozenset[int]

    def change(self, after: Script, call: tuple[Any, Any, Any]) -> str | None:
        """What is no longer as it was, with its old and its new value; None if the guards hold.

        after: the guards of the same call, written now; if they are the same, nothing needs to be evaluated.
        """
        if _are_equal(self.script, after):
            return None
        return self.script.failure(*call)

    def refuse_kept_tensors(self, tensors: Mapping[int, tuple[torch.Tensor, str]], title: str) -> None:
        """Raise CaptureError if a tensor of the trace is among those that the surroundings hold now.

        tensors: by identity, with what they are called.
        """
        kept = [text for key, (tensor, text) in tensors.items() if key not in self.tensors and is_fake(tensor)]
        if kept:
            raise CaptureError(
                f"{title} puts a tensor that it computes into {kept[0]}, which outlives the call; that tensor belongs "
                "to the trace and has no values. Return it (through has_aux=True) and put it there outside, or write "
                "into a tensor that is there already"
            )

    def put_back(self) -> None:
        """Make each container what it was before if it holds a tensor of the trace now."""
        for container, before in self.containers:
            _put_back(container, before)


def copies_of(containers: Iterable[Any]) -> tuple[tuple[Any, Any], ...]:
    """Each list or dictionary with a copy of what it holds."""
    return tuple((container, container.copy()) for container in containers)


def _are_equal(one: Script, other: Script) -> bool:
    if one.steps != other.steps or one.names.keys() != other.names.keys():
        return False
    return all(_is_equal(value, other.names[name]) for name, value in one.names.items())


def _is_equal(a: Any, b: Any) -> bool:
    """Whether two constants of guards say the same; False where that is not known."""
    if a is b:
        return True
    if isinstance(a, weakref.ReferenceType):
        return isinstance(b, weakref.ReferenceType) and a() is b()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_equal(a[key], b[key]) for key in a)
    return bool(a == b) if isinstance(a, (Fingerprint, TreeSpec)) else is_constant(a) and same(a, b)


def _put_back(container: Any, before: Any) -> None:
    if any(isinstance(value, torch.Tensor) and is_fake(value) for value in _entries(container)):
        old = set(map(id, _entries(before)))
        if any(is_fake(value) and id(value) not in old for value in _entries(container) if torch.is_tensor(value)):
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(before)


def _entries(container: Any) -> Sequence[Any]:
    return list(container.values()) if isinstance(container, dict) else container
