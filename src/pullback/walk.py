"""A walk through objects: what each of them holds, and the path on which to read it again.

A path is an expression in `f`, such as `f.__closure__[0].cell_contents`.  Nothing on a path runs the user's code:
attributes are read from `__dict__`, never through properties.
"""

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CaptureError
from .guards import Script, are_the_objects, describe, guard_identity, guard_tensor, guard_value, is_constant
from .namespaces import has_slot, is_library, slots
from .torch_private import RECURRENT_WEIGHT_LISTS, is_traced

LARGEST_CONTAINER = 100
LARGEST_ENVIRONMENT = 50_000

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
MODULE_STATE = ("_parameters", "_buffers", "_modules", *HOOKS)
SUBCLASSED_VALUES = (int, float, complex, str, bytes)


@dataclass(frozen=True, slots=True)
class Item:
    """Something the function can reach: its object, the local name of the lookup that reads it, its name for people."""

    value: Any
    name: str
    text: str


class Walk:
    """A walk through containers, modules of networks and other objects, which writes their guards into a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.tensors: dict[int, Item] = {}
        self._seen: dict[int, Item] = {}
        self._pending: list[Item] = []
        self.containers: list[Any] = []

    def add(self, value: Any, name: str, text: str) -> None:
        """Walk from one object that the lookup knows by `name`.

        Raises CaptureError if there is no end to what can be reached from it.
        Cost: linear in the number of objects reached.
        """
        self._pending.append(Item(value, name, text))
        self._go_on()

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The local name under which the lookup reads a tensor, or None if nothing leads to it."""
        item = self.tensors.get(id(tensor))
        return None if item is None else item.name

    def _go_on(self) -> None:
        while self._pending:
            self._visit(self._pending.pop())

    def _visit(self, item: Item) -> None:
        if len(self._seen) > LARGEST_ENVIRONMENT:
            raise CaptureError(
                f"more than {LARGEST_ENVIRONMENT} objects can be reached from {item.text}, too many to check before "
                "every call: pass what the function needs as arguments"
            )
        if is_constant(item.value):
            guard_value(self.script, item.name, item.value, item.text)
            self._note(item.value)
        elif (known := self._seen.get(id(item.value))) is not None:
            self._guard_alias(item, known)
        else:
            self._seen[id(item.value)] = item
            self._visit_new(item)

    def _guard_alias(self, item: Item, known: Item) -> None:
        """Two paths to one object (tied parameters, a cycle) were one input of the trace, and have to stay one."""
        expected = f"the same object as {known.text}"
        self.script.miss_if(f"{item.name} is not {known.name}", item.text, expected, f"describe({item.name})")

    def _visit_new(self, item: Item) -> None:
        """Guard an object that has not been met before."""
        raise NotImplementedError

    def _visit_tensor(self, item: Item) -> None:
        if item.value.is_nested:
            return self._guard_same_object(item)
        self.tensors[id(item.value)] = item
        guard_tensor(self.script, item.name, item.value, item.text)
        state = None if is_traced(item.value) else _attributes(item.value)
        if state:
            self._enter_attributes(item, state)
        return None

    def _enter(self, value: Any, expression: str, text: str) -> None:
        """Go on to something that is read by an expression."""
        self._pending.append(Item(value, self.script.assign(expression, text), text))

    def _guard_type(self, item: Item) -> None:
        condition = f"type({item.name}) is not {self.script.constant(type(item.value))}"
        self.script.miss_if(condition, item.text, describe(item.value), f"describe({item.name})")

    def _guard_length(self, item: Item, name: str, length: int) -> None:
        expected = f"{length} entries"
        self.script.miss_if(f"len({name}) != {length}", f"the size of {item.text}", expected, f"len({name})")

    def _guard_same_object(self, item: Item) -> None:
        """Guard identity without keeping the object alive, if it can be referred to weakly."""
        try:
            reference = self.script.constant(weakref.ref(item.value))
        except TypeError:
            return guard_identity(self.script, item.name, item.value, item.text)
        condition = f"{item.name} is not {reference}()"
        return self.script.miss_if(condition, item.text, describe(item.value), f"describe({item.name})")

    def _visit_sequence(self, item: Item) -> None:
        self._visit_class_of(item)
        self._note(item.value)
        self._guard_length(item, item.name, len(item.value))
        for k, entry in enumerate(item.value):
            if k < LARGEST_CONTAINER or not isinstance(entry, torch.Tensor):
                self._enter(entry, f"{item.name}[{k}]", f"{item.text}[{k}]")
        self._guard_rest(item, f"{item.name}", list(item.value))
        self._enter_own_attributes(item)

    def _guard_rest(self, item: Item, entries: str, values: list[Any]) -> None:
        """Of tensors beyond the first hundred entries, only guard that each is still the same one."""
        rest = [k for k in range(LARGEST_CONTAINER, len(values)) if isinstance(values[k], torch.Tensor)]
        if rest:
            kept = self.script.constant({k: weakref.ref(values[k]) for k in rest})
            found = f"{self.script.constant(are_the_objects)}([*{entries}], {kept})"
            self.script.miss_if(f"not {found}", item.text, "the same tensors", "'other tensors'")

    def _visit_dict(self, item: Item) -> None:
        self._visit_class_of(item)
        self._note(item.value)
        self._guard_keys(item, item.name, list(item.value))
        for k, (key, entry) in enumerate(list(item.value.items())):
            if k < LARGEST_CONTAINER or not isinstance(entry, torch.Tensor):
                written = repr(key) if type(key) in (str, int) else self.script.constant(key)
                self._enter(entry, f"{item.name}[{written}]", f"{item.text}[{key!r}]")
        self._guard_rest(item, f"{item.name}.values()", list(item.value.values()))
        self._enter_own_attributes(item)

    def _guard_keys(self, item: Item, name: str, keys: list[Any]) -> None:
        """Guard the keys of a dictionary and their order, which is that in which a function goes through them."""
        kept = self.script.constant(keys)
        condition = f"[*{name}] != {kept}" if all(type(k) is str for k in keys) else f"not same([*{name}], {kept})"
        self.script.miss_if(condition, f"the keys of {item.text}", describe(keys), f"describe([*{name}])")

    def _note(self, container: Any) -> None:
        """Keep a list or dictionary in mind: the function may put a tensor of its trace there."""
        if isinstance(container, (list, dict)):
            self.containers.append(container)
            for entry in container.values() if isinstance(container, dict) else container:
                if type(entry) in (list, dict) and is_constant(entry):
                    self._note(entry)

    def _visit_set(self, item: Item) -> None:
        """A set: its entries, in the order in which it yields them."""
        self._guard_type(item)
        self._guard_length(item, item.name, len(item.value))
        entries = list(item.value)
        self._visit_sequence(Item(entries, self.script.assign(f"[*{item.name}]", item.text), item.text))

    def _visit_module(self, item: Item) -> None:
        """A module of a network: its class, every submodule, parameter and buffer, its flags and attributes.

        All is read from the module's dictionary: plain attribute access is slow on classes with a `__getattr__`.
        """
        state = object.__getattribute__(item.value, "__dict__")
        if any(type(state.get(part)) not in (dict, OrderedDict) for part in MODULE_STATE):
            return self._guard_same_object(item)
        self._visit_class_of(item)
        is_recurrent = isinstance(item.value, torch.nn.RNNBase)
        attributes = self._enter_attributes(item, state, ATTRIBUTES_READ[is_recurrent])
        empty = [f"{attributes}[{part!r}]" for part in MODULE_STATE if not state[part]]
        if empty:
            expected = "without hooks, or entries beyond these"
            self.script.miss_if(" or ".join(empty), item.text, expected, f"describe({item.name}) + ' with more'")
        for part in MODULE_STATE:
            if state[part]:
                self._enter_part(item, f"{attributes}[{part!r}]", state[part], is_named=part not in HOOKS)
        return None

    def _enter_part(self, item: Item, expression: str, entries: dict[str, Any], is_named: bool) -> None:
        """The parameters, buffers, submodules or hooks of a module."""
        name = self.script.assign(expression, item.text)
        self._note(entries)
        self._guard_keys(item, name, list(entries))
        for key, entry in entries.items():
            self._enter(entry, f"{name}[{key!r}]", f"{item.text}.{key}" if is_named else item.text)

    def _visit_object(self, item: Item) -> None:
        """Any other object: its class, and the attributes it keeps."""
        self._visit_class_of(item)
        for base in SUBCLASSED_VALUES:
            if isinstance(item.value, base):
                read = f"{self.script.constant(base)}.__repr__({item.name})"
                written = base.__repr__(item.value)
                self.script.miss_if(f"{read} != {written!r}", item.text, written, read)
        self._enter_own_attributes(item)

    def _enter_own_attributes(self, item: Item) -> None:
        """The attributes that an object keeps, or those of them that its class says are all that matters."""
        chosen = getattr(type(item.value), "guarded_attributes", None)
        state = _attributes(item.value)
        if state is not None:
            self._enter_attributes(item, state, None if chosen is None else chosen.__contains__)
        for name in slots(type(item.value)):  # type: ignore[arg-type]
            if (chosen is None or name in chosen) and has_slot(item.value, name):
                value = object.__getattribute__(item.value, name)
                self._enter(value, f"{item.name}.{name}", f"{item.text}.{name}")

    def _visit_class_of(self, item: Item) -> None:
        self._guard_type(item)
        self._enter_classes(type(item.value))

    def _enter_classes(self, lowest: type) -> None:
        """A class and those that it inherits from."""
        for cls in lowest.__mro__:
            if not is_library(cls) and id(cls) not in self._seen:
                self._enter(cls, self.script.constant(cls), describe(cls))

    def _enter_attributes(self, item: Item, state: dict[str, Any], chosen: Callable[[str], bool] | None = None) -> str:
        """Go on to the chosen entries of an object's dictionary, and return the dictionary's local name."""
        attributes = self.script.assign(f"{item.name}.__dict__", item.text)
        self._note(state)
        if chosen is None or chosen in ATTRIBUTES_READ:
            self._guard_length(item, attributes, len(state))
        for key, value in state.items():
            if chosen is None or chosen(key):
                self._enter(value, f"{attributes}[{key!r}]", f"{item.text}.{key}")
        return attributes


def _is_module_attribute(name: str) -> bool:
    """Whether a module reads this attribute as its own; the rest is machinery of `nn.Module`."""
    return name not in _machinery()


def _is_recurrent_attribute(name: str) -> bool:
    """The same for a recurrent module, whose lists of weights its `forward` renews from its parameters."""
    return name not in RECURRENT_WEIGHT_LISTS and _is_module_attribute(name)


ATTRIBUTES_READ = (_is_module_attribute, _is_recurrent_attribute)


@functools.cache
def _machinery() -> frozenset[str]:
    return frozenset(torch.nn.Module().__dict__) - {"training"}


def _attributes(value: Any) -> dict[str, Any] | None:
    """The dictionary in which an object keeps its attributes, if it has one."""
    try:
        state = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return state if type(state) is dict else None
