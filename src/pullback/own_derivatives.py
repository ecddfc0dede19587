"""Derivatives that a user wrote: the backward of a `torch.autograd.Function`, or of an operator, as a graph.

The node `pullback.attach` returns what it is given and stands for such a derivative; it mentions it by a key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from .graph import Graph, Source

ATTACH = "pullback.attach.default"
_KNOWN: "WeakValueDictionary[int, OwnDerivative]" = WeakValueDictionary()
_serial = count(1)
PRODUCTS: dict[str, Callable[..., Any]] = {}  # what programs call for the operators of `own_products.py`


@dataclass(frozen=True, eq=False)
class OwnDerivative:
    """The backward that a user wrote.

    graph: takes a cotangent of each result, then what was saved; returns a cotangent of each tensor argument, or None.
    results: how many cotangents it takes.
    from_results: for what was saved and is itself a result: its place among the saved, and the number of the result.
    once: whether it is marked as `once_differentiable`.
    title: what the user calls it; source: where it was called.
    """

    graph: Graph
    results: int
    from_results: Mapping[int, int]
    once: bool
    title: str
    source: Source | None


class Key(int):
    """The number of an `OwnDerivative`, which lives as long as a graph that mentions it."""

    own: OwnDerivative


def remember(own: OwnDerivative) -> Key:
    """A key for a derivative."""
    number = next(_serial)
    _KNOWN[number] = own
    return holding(number)


def holding(number: int) -> Key:
    """The key of a number; it keeps what it stands for alive."""
    key = Key(number)
    key.own = _KNOWN[number]
    return key


def own_derivative(number: int) -> OwnDerivative:
    """What a key stands for."""
    return _KNOWN[number]
