"""Result structures: functions that put flat results back into tuples, lists and dictionaries, generated once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .torch_private import tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Leaf:
    """The place of one flat result."""

    position: int


Structure = Any


def is_leaf(tree: Any) -> bool:
    """Whether a part of a structure is the number of a flat result."""
    return isinstance(tree, Leaf)


def numbered(spec: Any, start: int = 0) -> Structure:
    """The pytree of a spec with a `Leaf` for every leaf, numbered from `start`."""
    return tree_unflatten([Leaf(start + k) for k in range(spec.num_leaves)], spec)


def positions_in(structure: Structure) -> list[int]:
    """The positions of the flat results that a structure is made of."""
    leaves = tree_flatten(structure, is_leaf=is_leaf)[0]
    return [leaf.position for leaf in leaves if isinstance(leaf, Leaf)]


def rebuilder(structure: Structure) -> Callable[[Sequence[Any]], Any]:
    """A function from flat results to the structure; plain containers become one generated expression.

    Cost: as much as the expression itself, about 0.1 µs an item.
    """
    constants: dict[str, Any] = {}
    source = _expression(structure, constants)
    if source is None:
        leaves, spec = tree_flatten(structure, is_leaf=is_leaf)
        order = [leaf.position if isinstance(leaf, Leaf) else leaf for leaf in leaves]
        chosen = [isinstance(leaf, Leaf) for leaf in leaves]
        return lambda r: tree_unflatten([r[o] if c else o for o, c in zip(order, chosen, strict=True)], spec)
    return eval(f"lambda r: {source}", constants)  # the source is made right here


def _expression(structure: Structure, constants: dict[str, Any]) -> str | None:
    """Python source that builds a structure, or None if it holds a container that is not plain."""
    if isinstance(structure, Leaf):
        return f"r[{structure.position}]"
    if type(structure) in (tuple, list):
        items = [_expression(item, constants) for item in structure]
        if None in items:
            return None
        body = ", ".join(str(item) for item in items)
        return f"[{body}]" if type(structure) is list else f"({body}{',' * (len(items) == 1)})"
    if type(structure) is dict:
        items = [_expression(item, constants) for item in structure.values()]
        keys = [_constant(key, constants) for key in structure]
        return None if None in items else "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, items, strict=True)) + "}"
    return None if tree_flatten(structure)[1].num_leaves != 1 else _constant(structure, constants)


def _constant(item: Any, constants: dict[str, Any]) -> str:
    if item is None or type(item) in (str, int, bool):
        return repr(item)
    name = f"constant_{len(constants)}"
    constants[name] = item
    return name
