"""Tensors inside nested arguments of PyTorch's operators."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested lists, tuples and dicts with every tensor replaced; what holds no tensor is not copied."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        items = [map_tensors(item, change) for item in tree]
        if all(new is old for new, old in zip(items, tree, strict=True)):
            return tree
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        changed = {key: map_tensors(item, change) for key, item in tree.items()}
        return changed if any(changed[key] is not tree[key] for key in tree) else tree
    return tree


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


def flat_results(result: Any) -> list[Any]:
    """What an operator returned, one entry for each tensor, with None where a tensor is left undefined."""
    if isinstance(result, (list, tuple)):
        return [leaf for item in result for leaf in flat_results(item)]
    return [result]
