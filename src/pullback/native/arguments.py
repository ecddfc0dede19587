"""The arguments of a node by the names that ATen gives them."""

from functools import cache
from typing import Any

from ..graph import Node
from ..torch_private import overload, schema


def bound(node: Node) -> dict[str, Any]:
    """The arguments of a node by name, in the order of the operator's, defaults included."""
    names, defaults, _ = _declared(node.op)
    given = {**defaults, **dict(zip(names, node.args, strict=False)), **dict(node.kwargs)}
    return {name: given[name] for name in names if name in given}


def keyword_names(op: str) -> tuple[str, ...]:
    """The arguments that an operator takes by name only."""
    return _declared(op)[2]


@cache
def _declared(op: str) -> tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]:
    declared = schema(overload(op)).arguments
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    return tuple(a.name for a in declared), defaults, tuple(a.name for a in declared if a.kwarg_only)
