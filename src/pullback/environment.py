"""The environment of a function: whatever it reads besides its arguments, and the path on which to read it again.

A path is an expression in `f`, such as `f.__closure__[0].cell_contents`.  It is evaluated anew at every call, because
`f` may be a lambda made anew, and its variables may have been rebound.  Nothing on a path runs the user's code:
attributes are read from `__dict__`, never through properties.
"""

import contextvars
import functools
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch

from .guards import Script, describe, guard_identity
from .namespaces import (
    attribute_names,
    global_names,
    imported_modules,
    is_filled,
    is_library,
    is_library_file,
    is_opaque,
    members,
    named_in_strings,
    value_of_variable,
)
from .torch_private import is_traced
from .walk import Item, Walk

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
UNNAMED = ("forward", "backward", "setup_context", "jvp")  # what PyTorch calls without the user's code naming it
CACHED = type(functools.lru_cache(len))
ASKED = frozenset({"requires_grad", "grad"})
GENERATORS = (random.Random, numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)
BOUND_TYPES = (types.BuiltinFunctionType, types.MethodWrapperType)


class Environment(Walk):
    """A walk through everything that functions can reach, by way of their code, their classes and modules."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.generators: list[Item] = []
        self._iterators: list[Item] = []
        self._names: set[str] = set(UNNAMED)
        self._owners: list[Item] = []
        self._members: set[tuple[int, str]] = set()
        self._asked: set[tuple[int, str]] = set()

    def add(self, value: Any, name: str, text: str) -> None:
        """As `Walk.add`, and what the code that was found names of classes, modules and tensors."""
        super().add(value, name, text)
        while self._find_members():
            self._go_on()

    @property
    def names(self) -> frozenset[str]:
        """Every name that the code seen so far may read off an object."""
        return frozenset(self._names)

    def _visit_new(self, item: Item) -> None:
        value = item.value
        if isinstance(value, torch.Tensor):
            return self._visit_tensor(item)
        if isinstance(value, GENERATORS):
            self.generators.append(item)
        for kind, visit in VISITS.items():
            if isinstance(value, kind):
                return visit(self, item)
        if isinstance(value, types.BuiltinFunctionType):
            self._names.add(value.__name__)
        if isinstance(value, STRONG_TYPES):
            return self._visit_strong(item)
        if _is_standard_iterator(value):
            self._iterators.append(item)
        if is_opaque(type(value)):
            return self._guard_same_object(item)
        return self._visit_object(item)

    @property
    def iterators(self) -> list[Item]:
        """Iterators of Python's that the code seen names: what they yield next is no property that can be compared."""
        return [item for item in self._iterators if _is_named(item.text, self._names)]

    def _visit_function(self, item: Item) -> None:
        function, name, code = item.value, item.name, item.value.__code__
        same_code = f"{name}.__code__ is not {self.script.constant(code)}"
        self.script.miss_if(same_code, item.text, describe(function), f"describe({name})")
        if function.__closure__:
            cells = self.script.assign(f"{name}.__closure__", item.text)
            for k, (variable, cell) in enumerate(zip(code.co_freevars, function.__closure__, strict=True)):
                text = f"{item.text}:{variable}"
                if is_filled(cell):
                    self._enter(cell.cell_contents, f"{cells}[{k}].cell_contents", text)
                else:
                    filled = f"{self.script.constant(is_filled)}({cells}[{k}])"
                    self.script.miss_if(filled, text, "without a value", f"describe({cells}[{k}].cell_contents)")
        if not is_library_file(code.co_filename):
            self._names |= attribute_names(code)
            self._enter_defaults(item)
            self._enter_globals(item)
            self._enter_imports(item)

    def _enter_defaults(self, item: Item) -> None:
        function, name = item.value, item.name
        for attribute in ("__defaults__", "__kwdefaults__"):
            self._enter(getattr(function, attribute), f"{name}.{attribute}", f"{item.text}.{attribute}")
        if function.__dict__:
            self._enter_attributes(item, function.__dict__)

    def _enter_globals(self, item: Item) -> None:
        function = item.value
        names = (*global_names(function.__code__), *named_in_strings(function.__code__))
        if not names:
            return
        namespace = self.script.assign(f"{item.name}.__globals__", item.text)
        for name in names:
            if name in function.__globals__:
                self._enter(function.__globals__[name], f"{namespace}[{name!r}]", f"{item.text}:{name}")
        missing = [f"{name!r} in {namespace}" for name in names if name not in function.__globals__]
        if missing:
            expected = "without a global of the name of a builtin, or of one that was missing"
            self.script.miss_if(" or ".join(missing), item.text, expected, "'with one'")

    def _enter_imports(self, item: Item) -> None:
        """The user's modules that a function imports when it runs."""
        for name in imported_modules(item.value.__code__, item.value.__globals__.get("__package__")):
            module = sys.modules.get(name)
            if module is not None and not is_library(module):
                self._enter(module, f"{self.script.constant(sys.modules)}[{name!r}]", name)

    def _visit_method(self, item: Item) -> None:
        self._guard_type(item)
        self._enter(item.value.__func__, f"{item.name}.__func__", item.text)
        self._enter(item.value.__self__, f"{item.name}.__self__", f"{item.text}.__self__")

    def _visit_partial(self, item: Item) -> None:
        self._guard_type(item)
        for attribute in ("func", "args", "keywords"):
            text = item.text if attribute == "func" else f"{item.text}.{attribute}"
            self._enter(getattr(item.value, attribute), f"{item.name}.{attribute}", text)

    def _visit_reference(self, item: Item) -> None:
        """A weak reference: what it refers to."""
        self._guard_type(item)
        self._enter(item.value(), f"{item.name}()", item.text)

    def _visit_variable(self, item: Item) -> None:
        """A context variable: its value here."""
        self._guard_type(item)
        read = self.script.constant(value_of_variable)
        self._enter(value_of_variable(item.value), f"{read}({item.name})", item.text)

    def _visit_thread_local(self, item: Item) -> None:
        self._guard_type(item)
        self._enter(item.value.__dict__, f"{item.name}.__dict__", item.text)

    def _visit_wrapper(self, item: Item) -> None:
        """A static method, a class method, a property, a cached one or a cached function: what it wraps."""
        self._guard_type(item)
        for attribute in ("__func__", "fget", "func", "__wrapped__"):
            wrapped = getattr(item.value, attribute, None)
            if wrapped is not None:
                return self._enter(wrapped, f"{item.name}.{attribute}", item.text)
        return None

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
            if isinstance(value, type):
                self._guard_class(item)
        return None

    def _guard_class(self, item: Item) -> None:
        """A member that is added may hide an inherited one."""
        bases, size = self.script.constant(item.value.__mro__), len(item.value.__dict__)
        condition = f"{item.name}.__mro__ != {bases} or len({item.name}.__dict__) != {size}"
        self.script.miss_if(condition, item.text, "without other bases or members", "'with others'")
        self._visit_class_of(item)
        self._enter_classes(item.value)

    def _find_members(self) -> bool:
        """Of the user's classes and modules, look at what is named in the code seen so far; of tensors likewise.

        New code may name more, so this runs again until nothing new turns up.  Returns whether anything did.
        """
        for item in self._owners:
            namespace = item.value.__dict__
            for name in members(item.value, self._names):
                text = f"{item.text}.{name}"
                key = (id(item.value), name)
                if key not in self._members:
                    self._members.add(key)
                    self._enter(namespace[name], f"{item.name}.__dict__[{name!r}]", text)
        for attribute in sorted(ASKED & self._names):
            for item in list(self.tensors.values()):
                self._ask(item, attribute)
        return bool(self._pending)

    def _ask(self, item: Item, attribute: str) -> None:
        """Guard what a function asks of a tensor besides its type."""
        key = (id(item.value), attribute)
        if key not in self._asked and not is_traced(item.value) and (attribute != "grad" or item.value.is_leaf):
            self._asked.add(key)
            self._enter(getattr(item.value, attribute), f"{item.name}.{attribute}", f"{item.text}.{attribute}")


VISITS: dict[Any, Callable[[Environment, Item], None]] = {
    types.FunctionType: Environment._visit_function,
    types.MethodType: Environment._visit_method,
    functools.partial: Environment._visit_partial,
    functools.partialmethod: Environment._visit_partial,
    (staticmethod, classmethod, property, functools.cached_property, CACHED): Environment._visit_wrapper,
    weakref.ReferenceType: Environment._visit_reference,
    contextvars.ContextVar: Environment._visit_variable,
    threading.local: Environment._visit_thread_local,
    (set, frozenset): Environment._visit_set,
    torch.nn.Module: Environment._visit_module,
    (tuple, list, deque): Environment._visit_sequence,
    (dict, types.MappingProxyType): Environment._visit_dict,
}


def _is_standard_iterator(value: Any) -> bool:
    """Whether the state of an iterator is out of sight; that of one of the user's is among its attributes."""
    return isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")


def _is_named(text: str, names: set[str]) -> bool:
    """Whether a path ends in a variable, or in an attribute with one of the names; not every iterator is advanced."""
    return text.rpartition(":")[2].isidentifier() or text.rpartition(".")[2] in names
