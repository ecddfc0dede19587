"""Changes in place under a record.

A change gives the changed tensor a new value, computed by the operator that returns what the other one writes; where
the tensor is a view, the root gets a new value too, into which that one is put.  Other views read theirs off the root
again when they are next used.  Which tensors are views of one another is what PyTorch says it is: a detached tensor
shares memory, but no derivative.
"""

from typing import Any

import torch
from torch import Tensor

from .geometry import Reshape, Select, Slice, lie_of
from .history import PENDING, Ref, Slot, ref
from .provenance import describe
from .recipes import Kind, Recipe, functional, recipe_of
from .scribe import ATEN, VIEW, Scribe, here, refuse
from .tapes import THREAD, decomposing
from .torch_private import count_writes, schema

SELECT_SCATTER = recipe_of(ATEN.select_scatter.default)
SLICE_SCATTER = recipe_of(ATEN.slice_scatter.default)
INDEX_PUT = recipe_of(ATEN.index_put.default)
TRANSPOSE = recipe_of(ATEN.transpose.int)
RENORM = ATEN.embedding_renorm_.default  # always under no_grad, where PyTorch's own code calls it
REPLACING = frozenset((ATEN.resize_.default, *(getattr(ATEN.set_, name) for name in ATEN.set_.overloads())))
RESHAPING = frozenset(
    f"aten.{name}.{overload}"
    for name in ("squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_", "swapaxes_", "swapdims_")
    for overload in getattr(ATEN, name).overloads()
)
DETACH_ = ATEN.detach_.default


def write(scribe: Scribe, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any], again: Any) -> Any:
    """Make a call that changes operands, and write down what that means for derivatives."""
    op = recipe.op
    targets = written_tensors(recipe, args, kwargs)
    _refuse_replacing(scribe, op, targets)
    enabled = (THREAD.enabled if THREAD.inside else torch.is_grad_enabled()) and op is not RENORM
    if op is DETACH_:
        scribe.history.bindings.pop(id(args[0]), None)
    if THREAD.depth:
        for target in targets:
            scribe.history.preserve(target)
    if not enabled or not scribe.is_active((*args, *kwargs.values())):
        return _unrecorded(scribe, recipe, targets, args, kwargs)
    if len(targets) != 1 or not args or args[0] is not targets[0]:
        raise refuse(
            f"{op} writes into {len(targets)} tensors at once, or by out=, and an operand has a derivative",
            "Use the operator that returns a new tensor; update parameters under torch.no_grad().",
        )
    return _recorded(scribe, recipe, args, kwargs, again)


def written_tensors(recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The operands that an operator writes into."""
    found: list[Tensor] = []
    for position, parameter in enumerate(schema(recipe.op).arguments):
        if parameter.name in recipe.written:
            given = args[position] if position < len(args) else kwargs.get(parameter.name)
            found.extend(t for t in (given if isinstance(given, (list, tuple)) else (given,)) if isinstance(t, Tensor))
    return found


def _refuse_replacing(scribe: Scribe, op: Any, targets: list[Tensor]) -> None:
    """Refuse to take the memory of a recorded tensor away."""
    history = scribe.history
    if op in REPLACING and any(id(t) in history.bindings or id(t) in history.constants for t in targets):
        raise refuse(
            f"{op} replaces the memory of a recorded tensor ({describe(targets[0])})",
            "Compute a new tensor instead, or do it before or after the block.",
        )


def _keep_needed(scribe: Scribe, target: Tensor) -> None:
    """Copy what lies in the target's memory and is read by the derivative of a step, before it is overwritten.

    Autograd would often refuse to compute the derivative, but not always where our rules read what it does not.
    """
    history = scribe.history
    for value in history.held_in(target):
        if any(value in scribe.needs(history, step) for step in history.steps_at(value)):
            history.copy_value(value)


def _unrecorded(
    scribe: Scribe, recipe: Recipe, targets: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A change that no derivative flows through, under `no_grad` or of constants by constants."""
    for target in targets:
        root = scribe.root_of(target)
        if root is not None and not root.is_leaf:
            _keep_needed(scribe, target)
    result = recipe.op(*args, **kwargs)
    if not THREAD.depth and scribe.history.tensors:
        place = here()
        for target in targets:
            scribe.history.note_write(target, recipe.name, place)
    return result


def _recorded(scribe: Scribe, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any], again: Any) -> Any:
    """A change of the first operand that derivatives flow through."""
    target, history = args[0], scribe.history
    slot, root = scribe.slots_of(target)
    _refuse_leaf(target, root)
    if recipe.name in RESHAPING:
        return _reshaped(scribe, recipe, slot, args, kwargs)
    into, place = functional(recipe.op), here()
    old = scribe.read(root.tensor) if root is not slot else None  # the root's value before this change
    if into is None or into.kind is Kind.DECOMPOSED or into.kind is Kind.WRITE:
        result, value = _by_copy(scribe, recipe, args, kwargs, again)
    elif into.kind is Kind.CONSTANT:
        _keep_needed(scribe, target)
        result = recipe.op(*args, **kwargs)
        value = history.input(target).value
    else:
        result, value = _by_step(scribe, recipe, into, args, kwargs)
    counted = 0 if THREAD.depth else 1
    if counted:
        history.note_write(target, recipe.name, place)
    slot.value = value
    if old is not None:
        root.value = _put(scribe, old, ref(value), target, root.tensor)
        scribe.settle(root, root.epoch + 1, counted)
        scribe.settle(slot, root.epoch, counted)
    else:
        scribe.settle(slot, slot.epoch + 1, counted)
    return result


def _refuse_leaf(target: Tensor, root: Slot) -> None:
    if root.is_leaf:
        what = "a leaf" if root.tensor is target else "a view of a leaf"
        raise refuse(
            f"{what} that requires gradients ({describe(target)}) is changed in place with gradients on",
            "Change it under torch.no_grad(), or compute a new tensor.",
        )


def _by_step(
    scribe: Scribe, recipe: Recipe, into: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, int]:
    """The change as one step."""
    target, history = args[0], scribe.history
    args = ADAPTED[recipe.op](*args) if recipe.op in ADAPTED else args
    arguments, keywords = scribe.references(into, args), scribe.keywords(kwargs)
    value = history.define(target, PENDING, (target.dtype, target.shape, target.device), len(history.steps))
    scribe.step(into, arguments, keywords, (value,))
    _keep_needed(scribe, target)
    return recipe.op(*args, **kwargs), value


def _by_copy(
    scribe: Scribe, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any], again: Any
) -> tuple[Any, int]:
    """The change as a new tensor, recorded as any other, that is copied into the old one."""
    target = args[0]
    into = functional(recipe.op)
    if into is None:
        raise refuse(
            f"{recipe.op} changes a tensor that has a derivative ({describe(target)}), and PyTorch has no form of it "
            "that returns a new one",
            "Compute a new tensor instead.",
        )
    copy, old, history = target.clone(), scribe.read(target).index, scribe.history
    history.bindings[id(copy)] = Slot(copy, old, count_writes(copy), len(history.writes))
    with decomposing(), again:
        new = into.op(copy, *args[1:], **kwargs)
    _keep_needed(scribe, target)
    target.copy_(new)
    return target, scribe.read(new).index


def _reshaped(scribe: Scribe, recipe: Recipe, slot: Slot, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A change of a tensor's own shape: a view that takes its operand's place."""
    into = TRANSPOSE if recipe.name == "aten.transpose_.default" else functional(recipe.op)
    if into is None or slot.root is not None or "as_strided" in recipe.name:
        raise refuse(
            f"{recipe.op} changes the shape of a tensor that has a derivative in place",
            "Use the function that returns a view.",
        )
    arguments = scribe.references(into, args)
    result = recipe.op(*args, **kwargs)
    target = args[0]
    slot.value = scribe.node(into, arguments, target)
    scribe.history.note_write(target, recipe.name, here())
    scribe.settle(slot, slot.epoch, 1)
    return result


def _put(scribe: Scribe, old: Ref, new: Ref, view: Tensor, root: Tensor) -> int:
    """The root's value after a view of it got a new one."""
    lie = lie_of(view, root)
    if isinstance(lie, Reshape):
        return scribe.node(VIEW, (new, tuple(root.shape)), root)
    if isinstance(lie, Select):
        return scribe.node(SELECT_SCATTER, (old, new, lie.axis, lie.position), root)
    if isinstance(lie, Slice):
        return scribe.node(SLICE_SCATTER, (old, new, lie.axis, lie.start, lie.stop, lie.step), root)
    flat = scribe.node(VIEW, (old, (-1,)), None, (root.numel(),))
    put = scribe.node(INDEX_PUT, (ref(flat), (scribe.read(lie.positions),), new), None, (root.numel(),))
    return scribe.node(VIEW, (ref(put), tuple(root.shape)), root)


def _without_masks(indices: Any) -> list[Any]:
    """Indices in which positions stand for every mask."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
            found.extend(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found


def _index(x: Tensor, indices: Any) -> tuple[Any, ...]:
    return (x, _without_masks(indices))


def _index_put(x: Tensor, indices: Any, *rest: Any) -> tuple[Any, ...]:
    return (x, _without_masks(indices), *rest)


# Operands that are put differently before the call is made and written down.
ADAPTED: dict[Any, Any] = {
    ATEN.index.Tensor: _index,
    ATEN.index_put.default: _index_put,
    ATEN.index_put_.default: _index_put,
}

__all__ = ["ADAPTED", "write", "written_tensors"]
