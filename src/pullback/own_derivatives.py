"""Derivatives that a user wrote: the backward of a `torch.autograd.Function`, or of an operator, as a graph.

The node `pullback.attach` returns what it is given and stands for such a derivative; it mentions it by a key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .graph import Graph, Source

ATTACH = "pullback.attach.default"
FUNCTION = "pullback.function.default"  # a step of a record whose derivative a user wrote: it is called as it is
PRODUCTS: dict[str, Callable[..., Any]] = {}  # what programs call for the operators of `library.py`


@dataclass(frozen=True, eq=False)
class OwnDerivative:
    """The backward that a user wrote.

    graph: takes a cotangent of each result, then what was saved; returns a cotangent of each tensor argument, or None.
    results: how many cotangents it takes.
    from_results: for what was saved and is itself a result: its place among the saved, and the number of the result.
    once: whether it is marked as `once_differentiable`.
    is_cut: whether it stands at the end of backwards that call each other, of which only so many are captured.
    title: what the user calls it; source: where it was called.
    """

    graph: Graph
    results: int
    from_results: Mapping[int, int]
    once: bool
    title: str
    source: Source | None
    is_cut: bool = False
