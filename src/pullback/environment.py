"""The environment of a function: whatever it reads besides its arguments, and the path on which to read it again.

A path is an expression in `f`, such as `f.__closure__[0].cell_contents`.  It is evaluated anew at every call, because
`f` may be a lambda made anew, and its variables may have been rebound.  Nothing on a path runs the user's code:
attributes are read from `__dict__`, never through properties.
"""

import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CaptureError
from .guards import Script, describe, guard_identity, guard_tensor, guard_value, is_constant
from .namespaces import (
    attribute_names,
    global_names,
    has_slot,
    is_library,
    is_library_file,
    is_opaque,
    slots,
    special_methods,
)
from .torch_private import RECURRENT_WEIGHT_LISTS

LARGEST_CONTAINER = 100
LARGEST_ENVIRONMENT = 50_000

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
MODULE_STATE = ("_parameters", "_buffers", "_modules", *HOOKS)
STRONG_TYPES = (
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)
SUBCLASSED_VALUES = (int, float, complex, str, bytes)
BOUND_TYPES = (types.BuiltinFunctionType, types.MethodWrapperType)


@dataclass(frozen=True, slots=True)
class Item:
    """Something the function can reach: its object, the local name of the lookup that reads it, its name for people."""

    value: Any
    name: str
    text: str


class Environment:
    """A walk through everything that functions can reach, which writes the guards of what it finds into a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.tensors: dict[int, Item] = {}
        self._seen: dict[int, Item] = {}
        self._pending: list[Item] = []
        self._names: set[str] = {"forward"}
        self._owners: list[Item] = []
        self._members: set[tuple[int, str]] = set()

    def add(self, value: Any, name: str, text: str) -> None:
        """Walk from one object that the lookup knows by `name`.

        Raises CaptureError if there is no end to what can be reached from it.
        Cost: linear in the number of objects reached.
        """
        self._pending.append(Item(value, name, text))
        while self._pending:
            while self._pending:
                self._visit(self._pending.pop())
            self._visit_members()

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The local name under which the lookup reads a tensor, or None if nothing leads to it."""
        item = self.tensors.get(id(tensor))
        return None if item is None else item.name

    def _visit(self, item: Item) -> None:
        if len(self._seen) > LARGEST_ENVIRONMENT:
            raise CaptureError(
                f"more than {LARGEST_ENVIRONMENT} objects can be reached from {item.text}, too many to check before "
                "every call: pass what the function needs as arguments"
            )
        if is_constant(item.value):
            guard_value(self.script, item.name, item.value, item.text)
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
        value = item.value
        if isinstance(value, torch.Tensor):
            self.tensors[id(value)] = item
            return guard_tensor(self.script, item.name, value, item.text)
        for kind, visit in VISITS.items():
            if isinstance(value, kind):
                return visit(self, item)
        if isinstance(value, STRONG_TYPES):
            return self._visit_strong(item)
        if is_opaque(type(value)):
            return self._guard_same_object(item)
        return self._visit_object(item)

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

    def _visit_function(self, item: Item) -> None:
        function, name, code = item.value, item.name, item.value.__code__
        same_code = f"{name}.__code__ is not {self.script.constant(code)}"
        self.script.miss_if(same_code, item.text, describe(function), f"describe({name})")
        if function.__closure__:
            cells = self.script.assign(f"{name}.__closure__", item.text)
            for k, (variable, cell) in enumerate(zip(code.co_freevars, function.__closure__, strict=True)):
                if _is_filled(cell):
                    self._enter(cell.cell_contents, f"{cells}[{k}].cell_contents", f"{item.text}:{variable}")
        if not is_library_file(code.co_filename):
            self._enter_defaults(item)
            self._enter_globals(item)

    def _enter_defaults(self, item: Item) -> None:
        function, name = item.value, item.name
        for attribute in ("__defaults__", "__kwdefaults__"):
            self._enter(getattr(function, attribute), f"{name}.{attribute}", f"{item.text}.{attribute}")
        if function.__dict__:
            self._enter_attributes(item, function.__dict__)

    def _enter_globals(self, item: Item) -> None:
        function = item.value
        self._names |= attribute_names(function.__code__)
        found = [name for name in global_names(function.__code__) if name in function.__globals__]
        if found:
            namespace = self.script.assign(f"{item.name}.__globals__", item.text)
            for name in found:
                self._enter(function.__globals__[name], f"{namespace}[{name!r}]", f"{item.text}:{name}")

    def _visit_method(self, item: Item) -> None:
        self._guard_type(item)
        self._enter(item.value.__func__, f"{item.name}.__func__", item.text)
        self._enter(item.value.__self__, f"{item.name}.__self__", f"{item.text}.__self__")

    def _visit_partial(self, item: Item) -> None:
        self._guard_type(item)
        for attribute in ("func", "args", "keywords"):
            text = item.text if attribute == "func" else f"{item.text}.{attribute}"
            self._enter(getattr(item.value, attribute), f"{item.name}.{attribute}", text)

    def _visit_wrapper(self, item: Item) -> None:
        """A static method, a class method, or a property: what it wraps."""
        self._guard_type(item)
        for attribute in ("__func__", "fget"):
            wrapped = getattr(item.value, attribute, None)
            if wrapped is not None:
                self._enter(wrapped, f"{item.name}.{attribute}", item.text)

    def _visit_strong(self, item: Item) -> None:
        """What may be kept alive: builtin functions, classes, Python modules.  The user's own are looked into."""
        value = item.value
        owner = getattr(value, "__self__", None)
        if isinstance(value, BOUND_TYPES) and not isinstance(owner, (type, types.ModuleType, type(None))):
            self._guard_type(item)
            self._enter(value.__name__, f"{item.name}.__name__", item.text)
            return self._enter(owner, f"{item.name}.__self__", f"{item.text}.__self__")
        guard_identity(self.script, item.name, value, item.text)
        if isinstance(value, (type, types.ModuleType)) and not is_library(value):
            self._owners.append(item)
        return None

    def _visit_members(self) -> None:
        """Of the user's classes and modules, look at what is named in the code seen so far.

        New code may name more, so this runs again until nothing new turns up.
        """
        for item in self._owners:
            namespace = item.value.__dict__
            for name in sorted(self._names & namespace.keys()) + special_methods(item.value):
                text = f"{item.text}.{name}"
                key = (id(item.value), name)
                if key not in self._members:
                    self._members.add(key)
                    self._enter(namespace[name], f"{item.name}.__dict__[{name!r}]", text)

    def _visit_sequence(self, item: Item) -> None:
        self._visit_class_of(item)
        self._guard_length(item, item.name, len(item.value))
        for k, entry in enumerate(item.value):
            if k < LARGEST_CONTAINER:
                self._enter(entry, f"{item.name}[{k}]", f"{item.text}[{k}]")
        self._guard_rest(item, item.name, list(item.value))
        self._enter_own_attributes(item)

    def _guard_rest(self, item: Item, entries: str, values: list[Any]) -> None:
        """Beyond the first hundred entries, only guard that each is still the same object."""
        if len(values) > LARGEST_CONTAINER:
            kept = self.script.constant([id(value) for value in values[LARGEST_CONTAINER:]])
            found = f"[*map(id, {entries})][{LARGEST_CONTAINER}:]"
            self.script.miss_if(f"{found} != {kept}", item.text, "the same entries", "'other entries'")

    def _visit_dict(self, item: Item) -> None:
        self._visit_class_of(item)
        self._enter_entries(item, item.name, item.value, LARGEST_CONTAINER)
        self._guard_rest(item, f"{item.name}.values()", list(item.value.values()))
        self._enter_own_attributes(item)

    def _enter_entries(self, item: Item, name: str, entries: Any, limit: int | None = None) -> None:
        self._guard_length(item, name, len(entries))
        for key, entry in list(entries.items())[:limit]:
            written = repr(key) if type(key) in (str, int) else self.script.constant(key)
            self._enter(entry, f"{name}[{written}]", f"{item.text}[{key!r}]")

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
        self._guard_length(item, name, len(entries))
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
        for cls in type(item.value).__mro__:
            if not is_library(cls) and id(cls) not in self._seen:
                self._enter(cls, self.script.constant(cls), describe(cls))

    def _enter_attributes(self, item: Item, state: dict[str, Any], chosen: Callable[[str], bool] | None = None) -> str:
        """Go on to the chosen entries of an object's dictionary, and return the dictionary's local name."""
        attributes = self.script.assign(f"{item.name}.__dict__", item.text)
        if chosen is None or chosen in ATTRIBUTES_READ:
            self._guard_length(item, attributes, len(state))
        for key, value in state.items():
            if chosen is None or chosen(key):
                self._enter(value, f"{attributes}[{key!r}]", f"{item.text}.{key}")
        return attributes


VISITS: dict[Any, Callable[[Environment, Item], None]] = {
    types.FunctionType: Environment._visit_function,
    types.MethodType: Environment._visit_method,
    functools.partial: Environment._visit_partial,
    (staticmethod, classmethod, property): Environment._visit_wrapper,
    torch.nn.Module: Environment._visit_module,
    (tuple, list, deque): Environment._visit_sequence,
    (dict, types.MappingProxyType): Environment._visit_dict,
}


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


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
