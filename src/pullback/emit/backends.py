"""The back ends: from a lowered graph to a program that runs.  Another one is one entry here."""

import logging
from collections.abc import Callable, Mapping

from ..errors import ArgumentError
from ..graph import Graph, Value
from .python import Program, emit_python

LOG = logging.getLogger("pullback")
BACKENDS: Mapping[str, Callable[..., Program]] = {"python": emit_python}
DEFAULT = "python"


def check_backend(backend: object) -> None:
    """Raise ArgumentError unless a back end of this name exists."""
    if backend != "auto" and backend not in BACKENDS:
        known = " and ".join(map(repr, ("auto", *BACKENDS)))
        raise ArgumentError(f"backend={backend!r}: {known} exist so far")


def emit(
    graph: Graph,
    name: str,
    *,
    plain: bool,
    backend: str = "auto",
    returned: Mapping[int, Value] | None = None,
) -> Program:
    """The program of a lowered graph, by the back end of this name or the best one; arguments as of `emit_python`."""
    chosen = DEFAULT if backend == "auto" else backend
    LOG.info("%s runs on the backend %r (%d operators)", name, chosen, len(graph.nodes))
    return BACKENDS[chosen](graph, name, plain=plain, returned=returned)
