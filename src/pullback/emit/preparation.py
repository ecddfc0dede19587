"""What a lowered graph becomes before it is written as Python: the calls of a run, and where they compute to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

from ..graph import Graph, Value
from .aliases import protect_from_mutations
from .constants import constants
from .numbers import numbers_once
from .peepholes import rewrite
from .rehearsal import Layouts
from .reuse import reuse_memory
from .sparse_sums import add_where_nonzero
from .stacking import slots
from .updates import update_in_place
from .workspace import Workspace, use_workspace


@dataclass(frozen=True)
class Prepared:
    """A program as it is going to be written.

    workspace: the program, and what it computes into.
    constants: what is computed once and for all.
    written: inputs that are overwritten.
    """

    workspace: Workspace
    constants: Mapping[Value, torch.Tensor]
    written: tuple[Value, ...]


def prepared(graph: Graph, layouts: Layouts | None = None) -> Prepared:
    """The program of a lowered graph that runs on plain tensors; arguments as of `emit_python`.

    Cost: linear in the number of nodes.
    """
    protected = protect_from_mutations(graph if layouts is not None else rewrite(graph))
    known = dict(constants(protected))
    constant, written = frozenset(known), tuple(old for old, _ in protected.mutations)
    updated = protected if layouts is not None else add_where_nonzero(update_in_place(protected), constant)
    placed = slots(updated, known, layouts)
    reused = reuse_memory(updated, constant, smallest=1, slots=placed, layouts=layouts)
    workspace = use_workspace(reused, constant, frozenset(written), placed, layouts)
    final, numbers = numbers_once(workspace.graph)
    return Prepared(replace(workspace, graph=final), {**known, **numbers}, written)


def prepared_once(graph: Graph) -> Prepared:
    """The same, kept for `taken`: what is predicted of a program is predicted of that which will run."""
    if graph not in _KNOWN:
        _KNOWN[graph] = prepared(graph)
    return _KNOWN[graph]


def taken(graph: Graph, layouts: Layouts | None) -> Prepared:
    """What was prepared for a prediction, or is prepared now."""
    return prepared(graph, layouts) if layouts is not None or graph not in _KNOWN else _KNOWN.pop(graph)


def forget(graph: Graph) -> None:
    """Keep nothing for a graph that is not going to be written as Python."""
    _KNOWN.pop(graph, None)


_KNOWN: WeakKeyDictionary[Graph, Prepared] = WeakKeyDictionary()  # between a prediction and the emission
