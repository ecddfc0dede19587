"""Writing a record: which value each operand of a call holds, and what the call adds to the history."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import torch_private as private
from .errors import RecordError
from .geometry import Reshape, Select, Slice, lie_of
from .history import REFS, History, Place, Ref, Slot, Step, exact, note_refs, ref, refs_in
from .provenance import describe, is_users
from .recipes import Recipe, recipe_of
from .recording import unsupported_kind
from .tapes import THREAD, other_tape_of, was_recorded
from .torch_private import count_writes

ATEN = torch.ops.aten
NOWHERE = Place(None, 0)
CONTINUOUS = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128)
)
EXACT = (torch.float32, torch.float64)  # dtypes in which a Python number and a tensor of it are the same operand
ALIAS, VIEW, INDEX = recipe_of(ATEN.alias.default), recipe_of(ATEN.view.default), recipe_of(ATEN.index.Tensor)
SELECT, SLICE = recipe_of(ATEN.select.int), recipe_of(ATEN.slice.Tensor)
Keywords = tuple[tuple[str, Any], ...]


def here() -> Place:
    """The innermost line of the user's that is being executed now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if is_users(code.co_filename):
            return Place(code, frame.f_lasti)
        frame = frame.f_back
    return NOWHERE


def refuse(problem: str, way_out: str) -> RecordError:
    """The error that says what cannot be recorded, on which line of the user's, and what to do instead."""
    return RecordError(f"{problem}\n  at {here().source or 'an unknown line'}\n  {way_out}")


class Scribe:
    """Writes one history.

    needs: which values the derivative of a step reads, by number.
    paused: whether calls are let through unseen.
    fresh: tensors that got a derivative since the last call from above, by being written into.
    """

    def __init__(self, history: History, needs: Callable[[History, Step], frozenset[int]]) -> None:
        self.history = history
        self.needs = needs
        self.paused = False
        self.fresh: list[Tensor] = []

    # ------------------------------------------------------------ what has a derivative

    def is_active(self, args: Any) -> bool:
        """Whether anything among arguments has a derivative."""
        bindings = self.history.bindings
        for argument in args:
            if isinstance(argument, Tensor):
                if id(argument) in bindings or self.slot_of(argument) is not None:
                    return True
            elif type(argument) in (list, tuple) and self.is_active(argument):
                return True
        return False

    def slot_of(self, tensor: Tensor) -> Slot | None:
        """The slot of a tensor that has a derivative; a leaf gets one when it is first read."""
        bindings = self.history.bindings
        slot = bindings.get(id(tensor))
        if slot is not None:
            return slot
        base = private.base_of(tensor)
        if base is not None and id(base) in bindings:  # a view that was made before its base had a derivative
            return self.bind_view(tensor, bindings[id(base)])
        return self.leaf(tensor) if tensor.requires_grad else None

    def leaf(self, tensor: Tensor) -> Slot:
        """A slot for a tensor that requires gradients."""
        if tensor.grad_fn is not None:
            raise refuse(
                f"a tensor ({describe(tensor)}) was computed by torch.autograd, outside of the record or in another "
                f"thread ({tensor.grad_fn.name()}): what it was computed from would get no derivative",
                "Compute it in the block and in its thread, or detach() it.",
            )
        is_leaf = len(THREAD.tapes) < 2 or other_tape_of(tensor) is None  # else it is a result of an outer record
        return self.history.leaf(_checked(tensor), is_leaf)

    def bind_view(self, tensor: Tensor, root: Slot) -> Slot:
        """A slot for a view that was not recorded as one; its value is read when it is needed."""
        slot = Slot(tensor, root.value, -1, len(self.history.writes), root)
        slot.epoch = -1
        self.history.bindings[id(tensor)] = slot
        return slot

    def root_of(self, tensor: Tensor) -> Slot | None:
        """The slot of what a view of this tensor is a view of."""
        slot = self.history.bindings.get(id(tensor))
        return None if slot is None else slot.root or slot

    def slots_of(self, tensor: Tensor) -> tuple[Slot, Slot]:
        """The slot of a tensor and that of its root; a constant gets one, for it is about to have a derivative."""
        slot = self.slot_of(tensor)
        if slot is not None:
            return slot, slot.root or slot
        base = private.base_of(tensor)
        if base is None:
            slot = self.promoted(tensor)
            return slot, slot
        root = self.promoted(base)
        return self.bind_view(tensor, root), root

    def promoted(self, tensor: Tensor) -> Slot:
        """A slot for a constant."""
        history = self.history
        slot = Slot(tensor, self.constant(tensor), count_writes(tensor), len(history.writes))
        history.bindings[id(tensor)] = slot
        history.constants.pop(id(tensor), None)
        self.fresh.append(tensor)
        return slot

    # ------------------------------------------------------------ operands

    def plain_references(self, args: tuple[Any, ...]) -> list[Any] | None:
        """As `references`, in one go for a call without lists of tensors; empty where nothing has a derivative.

        None for a call with such lists.
        """
        bindings, found, is_active, constants = self.history.bindings, [], False, False
        for argument in args:
            kind = type(argument)
            if kind is Tensor or kind is Parameter:
                slot = bindings.get(id(argument)) or self.slot_of(argument)
                if slot is None:
                    constants = True
                    found.append(argument)
                    continue
                is_active = True
                if slot.root is not None or slot.version != count_writes(argument):
                    self.renew(slot)
                found.append(REFS[slot.value] if slot.value < len(REFS) else ref(slot.value))
            elif kind is list or kind is tuple:
                if argument and type(argument[0]) is not int:
                    return None
                found.append(tuple(argument))
            elif isinstance(argument, Tensor):
                return None
            else:
                found.append(argument)
        if not is_active:
            return []
        return [ref(self.constant(a)) if isinstance(a, Tensor) else a for a in found] if constants else found

    def record_plain(self, recipe: Recipe, references: list[Any], args: tuple[Any, ...], result: Any) -> None:
        """As `record`, for such a call of an operator whose results are no views."""
        if recipe.lifted:
            self.lift(recipe, references, args)
        operands = tuple(references)
        if type(result) is not Tensor or recipe.results:
            return self.record(recipe, operands, (), result, None)
        history = self.history
        tensors, kind, version = history.tensors, (result.dtype, result.shape, result.device), count_writes(result)
        index, number, written = len(tensors), len(history.steps), len(history.writes)
        tensors.append(result)
        history.versions.append(version)
        history.types.append(kind)
        history.written.append(written)
        history.producers.append(number)
        slots = history.bindings if kind[0] in CONTINUOUS else history.constants
        slots[id(result)] = Slot(result, index, version, written)
        inputs = tuple([a.index for a in operands if type(a) is Ref])
        step = Step(recipe.name, operands, (), inputs, (index,), here())
        history.steps.append(step)
        history.keys.append((recipe.number, exact(operands), (), kind[1]))
        step.key_end = len(history.keys)
        return None

    def lift(self, recipe: Recipe, references: list[Any], args: Any) -> None:
        """Let Python numbers be inputs, where the recipe says so."""
        for place in recipe.lifted:
            if place < len(args) and _is_exact(args[place], args[0]):
                references[place] = ref(self.history.number(args[place], args[0].dtype))

    def references(self, recipe: Recipe | None, args: Any) -> tuple[Any, ...]:
        """Arguments with a `Ref` in place of each tensor, and of each number that is to be an input."""
        found: list[Any] = []
        for argument in args:
            if isinstance(argument, Tensor):
                found.append(self.read(argument))
            elif type(argument) in (list, tuple):
                found.append(self.references(None, argument) if argument else ())
            else:
                found.append(argument)
        if recipe is not None and recipe.lifted:
            self.lift(recipe, found, args)
        return tuple(found)

    def keywords(self, kwargs: dict[str, Any]) -> Keywords:
        """Keyword arguments, likewise."""
        return tuple(zip(kwargs, self.references(None, kwargs.values()), strict=True)) if kwargs else ()

    def read(self, tensor: Tensor) -> Ref:
        """The value that a tensor holds now."""
        slot = self.history.bindings.get(id(tensor)) or self.slot_of(tensor)
        if slot is None:
            return ref(self.constant(tensor))
        self.renew(slot)
        return ref(slot.value)

    def constant(self, tensor: Tensor) -> int:
        """The value of a tensor that has no derivative."""
        slot = self.history.constants.get(id(tensor))
        if slot is not None and slot.version == count_writes(tensor):
            return slot.value
        if was_recorded(tensor):
            raise refuse(
                f"a tensor ({describe(tensor)}) was computed in a record that has ended: its derivative would be lost",
                "Record both in one block, or detach() it where no derivative is to flow.",
            )
        return self.history.constant(_checked(tensor)).value

    # ------------------------------------------------------------ steps

    def record(self, recipe: Recipe, args: tuple[Any, ...], kwargs: Keywords, result: Any, root: Slot | None) -> None:
        """Write down a call whose results are new tensors; `root`: what they are views of."""
        outputs: list[int | None] = []
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                outputs.append(self.bind(tensor, root))
            else:
                outputs.append(None)
        self.step(recipe, args, kwargs, outputs)

    def bind(self, tensor: Tensor, root: Slot | None = None) -> int:
        """A value that the next step computes, and a tensor that holds it."""
        history = self.history
        version = count_writes(tensor if root is None or THREAD.depth else root.tensor)
        index = history.define(tensor, version, (tensor.dtype, tensor.shape, tensor.device), len(history.steps))
        slots = history.bindings if history.is_continuous(index) else history.constants
        slots[id(tensor)] = Slot(tensor, index, version, len(history.writes), root)
        return index

    def step(self, recipe: Recipe, args: tuple[Any, ...], kwargs: Keywords, outputs: Sequence[int | None]) -> Step:
        """Write down a call whose results are values already."""
        if recipe.results:
            outputs = (*outputs, *[None] * (recipe.results - len(outputs)))
        inputs: list[int] = []
        note_refs(args, inputs)
        for _, argument in kwargs:
            note_refs((argument,), inputs)
        step = Step(recipe.name, args, kwargs, tuple(inputs), tuple(outputs), here())
        self.history.add(step, (recipe.number, exact(args), exact(kwargs) if kwargs else ()))
        return step

    def node(self, recipe: Recipe, args: tuple[Any, ...], tensor: Tensor | None, shape: Sequence[int] = ()) -> int:
        """Write down an operator that is not called, since a tensor holds its result already.

        tensor: where the result lies; None if nobody will read it, and then `shape` is its shape.
        """
        history = self.history
        first = history.types[next(refs_in(args)).index]
        kind = (first[0], torch.Size(shape), first[2])
        if tensor is not None:
            kind = (tensor.dtype, tensor.shape, tensor.device)
        version = 0 if tensor is None else count_writes(tensor)
        index = history.define(tensor, version, kind, len(history.steps))
        self.step(recipe, args, (), (index,))
        return index

    # ------------------------------------------------------------ after a change in place

    def renew(self, slot: Slot) -> None:
        """Give a tensor a new value, if its memory was written to since it got the one that it has."""
        if slot.root is not None and slot.epoch != slot.root.epoch:
            self.follow(slot)
        elif slot.version != count_writes(slot.tensor):
            self.keep(slot)

    def follow(self, slot: Slot) -> None:
        """Read a view's value off its root again, since something was written into the root."""
        root, view = slot.root, slot.tensor
        assert root is not None
        old, lie = self.read(root.tensor), lie_of(view, root.tensor)
        if isinstance(lie, Reshape):
            slot.value = self.node(VIEW, (old, tuple(view.shape)), view)
        elif isinstance(lie, Select):
            slot.value = self.node(SELECT, (old, lie.axis, lie.position), view)
        elif isinstance(lie, Slice):
            slot.value = self.node(SLICE, (old, lie.axis, lie.start, lie.stop, lie.step), view)
        else:
            flat = self.node(VIEW, (old, (-1,)), None, (root.tensor.numel(),))
            slot.value = self.node(INDEX, (ref(flat), (self.read(lie.positions),)), view)
        self.settle(slot, root.epoch)

    def keep(self, slot: Slot) -> None:
        """Give a tensor a new value of the same derivative: it was changed where no derivative was to be recorded.

        Raises RecordError if the record did not see the change.
        """
        if self.history.unseen_writes(slot):
            raise refuse(
                f"a recorded tensor ({describe(slot.tensor)}) was changed in place where the record could not see it, "
                "such as in another thread",
                "Compute on recorded tensors in the thread that records them, or on a clone().",
            )
        slot.value = self.node(ALIAS, (ref(slot.value),), slot.tensor)
        self.settle(slot, slot.epoch)

    def settle(self, slot: Slot, epoch: int, coming: int = 0) -> None:
        """Note that a slot's value is up to date.

        coming: how often PyTorch will count the change that is being recorded, which it does only afterwards.
        """
        history = self.history
        slot.version, slot.written = count_writes(slot.tensor) + coming, len(history.writes)
        slot.epoch = epoch
        if history.tensors[slot.value] is slot.tensor:
            history.versions[slot.value], history.written[slot.value] = slot.version, slot.written


def _is_exact(argument: Any, operand: Any) -> bool:
    return type(argument) in (float, int) and isinstance(operand, Tensor) and operand.dtype in EXACT


def _checked(tensor: Tensor) -> Tensor:
    """Raise RecordError for a kind of tensor that a graph cannot hold."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        problem = unsupported_kind(tensor)
        if problem:
            raise refuse(f"the block reads {problem}", "Use ordinary dense tensors.")
    elif tensor.layout is not torch.strided or tensor.is_quantized:
        raise refuse(f"the block reads {unsupported_kind(tensor)}", "Convert it to an ordinary dense tensor first.")
    return tensor
