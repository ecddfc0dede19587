"""Signatures: which compiled program fits a call, found by one generated function, and the cache of programs.

A program is compiled for the structure of the arguments, the shapes and dtypes of the tensors, the values of numbers,
the settings of PyTorch, and everything that the function reads besides its arguments.  `Entry.lookup` checks all of it
and collects the tensors that the program takes; it returns None if anything has changed.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .changes import Before, copies_of
from .environment import Environment
from .errors import ArgumentError, CaptureError
from .guards import (
    Lookup,
    Script,
    describe,
    guard_place,
    guard_settings,
    guard_tensor,
    guard_value,
    guard_values,
    is_constant,
    is_transforming,
    module_hooks,
)
from .originals import NONE, Assumptions
from .tapes import is_recording
from .titles import kind_of, name_of, parameter_names, title
from .torch_private import is_traced, tree_flatten, tree_flatten_with_path

LOG = logging.getLogger("pullback")
CAPACITY = 256
ENTRIES_PER_FUNCTION = 64


@dataclass(frozen=True, eq=False)
class Entry:
    """A compiled program and the calls that it fits.

    program: whatever the caller stored.
    lookup: called as `lookup(f, args, kwargs)`; returns the tensors that the program takes (those of the arguments in
        the order of their tree, then the lifted ones), or None if the program does not fit.
    code: the source of `lookup`.
    traced: whether the call was part of a trace, transform or record in progress.
    reusable: whether it may be kept; sizes or constants that belong to an outer trace may not.
    constants: the tensors that the trace itself made.
    assumed: what of these tensors is guarded besides their types.
    """

    program: Any
    lookup: Lookup
    code: str
    traced: bool
    reusable: bool
    script: Script = field(repr=False)
    constants: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    assumed: Assumptions = NONE

    def explain(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why the program does not fit a call, with the old and the new value; None if it does."""
        return self.script.failure(f, args, kwargs)


def make_entry(
    f: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    lifted: Sequence[torch.Tensor],
    constants: Sequence[bool],
    program: Any,
    before: Before | None = None,
    assumed: Assumptions = NONE,
) -> Entry:
    """The entry for a program that was compiled for this call.

    lifted: the tensors that capture found f to read besides its arguments.
    constants: for each of these, whether the trace itself made it, so that it is no variable of the user's.
    before: what `check_arguments` returned before f was captured; if f has changed what it reads since, its program
        does not fit the next call.
    assumed: what of its tensors the program relies on besides their types.

    Raises:
        ArgumentError: an argument is neither a tensor nor anything that can be compared at the next call.
        CaptureError: a lifted tensor cannot be found again from f; f keeps a tensor of the trace.
    """
    script, environment = _guarded(f, args, kwargs)
    change = None if before is None else _change(before, environment, f, args, kwargs)
    flat = [*environment.arguments, *_lifted_names(script, environment, f, lifted, constants)]
    tensors = [*environment.argument_tensors, *lifted]
    relied_on = [tensors[k] for k in assumed.places | assumed.values]
    if not any(map(is_traced, relied_on)):
        for k in sorted(assumed.places):
            guard_place(script, flat[k], tensors[k])
        for k in sorted(assumed.values):
            guard_values(script, flat[k], tensors[k])
    lookup, code = script.lookup(flat)
    traced = is_transforming() or is_recording() or any(map(is_traced, tensors))
    own = [t for t, constant in zip(lifted, constants, strict=True) if constant]
    static = all(type(size) is int for t in tensors for size in t.shape)
    reusable = static and change is None and not any(map(is_traced, [*own, *relied_on]))
    return Entry(program, lookup, code, traced, reusable, script, tuple(own), assumed)


@dataclass(frozen=True)
class Signature:
    """The calls that a compiled function takes, whatever it reads besides its arguments.

    lookup: called as `lookup(None, args, kwargs)`; returns the tensors among the arguments, or None for another call.
    """

    lookup: Lookup
    script: Script = field(repr=False)

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str]) -> "Signature":
        """The signature of a call, whose positional arguments have these names.

        Raises ArgumentError for an argument that cannot be compared, or is a function.
        """
        script = Script()
        walk = _Arguments(script)
        _guard_positional(walk, names, args)
        _guard_keywords(walk, kwargs)
        if walk.roots:
            value, _, text = walk.roots[0]
            required = "a compiled function takes tensors, numbers and strings: let it read functions from its closure"
            raise ArgumentError(f"argument {text} is {describe(value)}; {required}")
        return cls(script.lookup(walk.arguments)[0], script)

    def difference(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str, str]:
        """What differs first in a call that does not fit, what it has to be, and what it is."""
        failure = self.script.failing(None, args, kwargs)
        if failure is None:  # another thread may have changed a container in between
            return "an argument", "as it was", "changed while it was compared"
        step, seen = failure
        return step.text, step.expected or "readable", str(seen)


def check_arguments(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Before:
    """What f can reach, before it is captured.

    Raises ArgumentError if an argument could not be compared at the next call; worth knowing before a long trace.
    """
    script, walk = _guarded(f, args, kwargs)
    if walk.iterators:
        item = walk.iterators[0]
        raise CaptureError(
            f"{title(f)} reads {item.text}, {describe(item.value)}: what an iterator yields next cannot be compared at "
            "the next call. Call next() outside and pass what it gives as an argument, or keep a list and an index"
        )
    generators = tuple((item.value, item.text) for item in walk.generators)
    return Before(script, walk.names, generators, copies_of(walk.containers), frozenset(walk.tensors))


def _change(before: Before, walk: Environment, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What f has changed of what it reads."""
    before.refuse_kept_tensors({key: (item.value, item.text) for key, item in walk.tensors.items()}, title(f))
    change = before.change(walk.script, (f, args, kwargs))
    if change is not None:
        LOG.info("%s changes what it reads, so that its program serves one call only: %s", title(f), change)
    return change


def lift(f: Any, tensors: Sequence[torch.Tensor]) -> list[str]:
    """For each tensor that f reads, its name in the words of f, as in `loss:model.fc1.weight`.

    Raises CaptureError for a tensor that cannot be found again from f.
    """
    environment = Environment(Script())
    environment.add(f, "f", name_of(f))
    missing = [t for t in tensors if id(t) not in environment.tensors]
    if missing:
        raise _cannot_find(f, missing[0])
    return [environment.tensors[id(t)].text for t in tensors]


def _lifted_names(
    script: Script, environment: Environment, f: Any, lifted: Sequence[torch.Tensor], constants: Sequence[bool]
) -> list[str]:
    names = []
    for tensor, constant in zip(lifted, constants, strict=True):
        name = script.constant(tensor) if constant else environment.name_of(tensor)
        if name is None:
            raise _cannot_find(f, tensor)
        names.append(name)
    return names


def _cannot_find(f: Any, tensor: torch.Tensor) -> CaptureError:
    return CaptureError(
        f"a tensor ({describe(tensor)}) that {name_of(f)} reads cannot be found again from {title(f)}, so "
        "that a later change of it would go unnoticed: pass it as an argument, or keep it in a variable, an attribute "
        "or a module that the function names"
    )


class _Arguments(Environment):
    """The environment of a call: its arguments, and what functions among them can reach."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.arguments: list[str] = []
        self.argument_tensors: list[torch.Tensor] = []
        self.roots: list[tuple[Any, str, str]] = []

    def add_argument(self, value: Any, name: str, text: str) -> None:
        """Guard one argument: nested containers down to their leaves."""
        cls = type(value)
        if isinstance(value, torch.Tensor):
            if value.is_nested:
                raise ArgumentError(f"argument {text} is a nested tensor, which is not done yet: pad it to a dense one")
            guard_tensor(self.script, name, value, text)
            self.arguments.append(name)
            self.argument_tensors.append(value)
        elif cls is tuple or cls is list or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
            self._add_sequence(value, name, text)
        elif cls is dict or cls is OrderedDict:
            self._add_dict(value, name, text)
        else:
            self._add_leaf(value, name, text)

    def add_functions(self) -> None:
        """Walk from the functions and modules among the arguments, once all arguments have been read."""
        for root in self.roots:
            self.add(*root)

    def _add_sequence(self, value: Any, name: str, text: str) -> None:
        cls, size = self.script.constant(type(value)), len(value)
        condition = f"type({name}) is not {cls} or len({name}) != {size}"
        self.script.miss_if(condition, text, f"a {type(value).__name__} of {size}", _sized(name))
        fields = getattr(value, "_fields", None)
        texts = [f"{text}.{n}" for n in fields] if fields else [f"{text}[{k}]" for k in range(size)]
        self.add_all(value, self.script.unpack(name, texts, text), texts)

    def _add_dict(self, value: Any, name: str, text: str) -> None:
        script, keys = self.script, list(value)
        cls, kept = script.constant(type(value)), script.constant(keys)
        order = f"[*{name}] != {kept}" if all(type(k) is str for k in keys) else f"not same([*{name}], {kept})"
        expected = f"a {type(value).__name__} with keys {describe(keys)}"
        script.miss_if(f"type({name}) is not {cls} or {order}", text, expected, _sized(name))
        texts = [f"{text}[{key!r}]" for key in keys]
        self.add_all(value.values(), script.unpack(f"{name}.values()", texts, text), texts)

    def add_all(self, values: Any, names: list[str], texts: list[str]) -> None:
        """Guard several arguments."""
        for value, name, text in zip(values, names, texts, strict=True):
            self.add_argument(value, name, text)

    def _add_leaf(self, value: Any, name: str, text: str) -> None:
        if is_constant(value):
            guard_value(self.script, name, value, text)
        elif not tree_flatten(value)[1].is_leaf():
            self._add_registered(value, name, text)
        elif callable(value):
            self.roots.append((value, name, text))
        else:
            raise ArgumentError(
                f"argument {text} is {describe(value)}, which cannot be compared at the next call: pass tensors, "
                "numbers, strings, None, functions, or tuples, lists and dictionaries of these (register other "
                "containers as a pytree), or let the function read it from its closure"
            )

    def _add_registered(self, value: Any, name: str, text: str) -> None:
        """A container that is known to PyTorch's pytree only: taken apart by it at every call."""
        self._guard_type_of(value, name, text)
        paths, spec = tree_flatten_with_path(value)
        flatten, kept = self.script.constant(tree_flatten), self.script.constant(spec)
        leaves, found = self.script.unpack(f"{flatten}({name})", [text, text], text)
        self.script.miss_if(f"{found} != {kept}", text, str(spec), f"str({found})")
        texts = [f"{text}{''.join(map(str, path))}" for path, _ in paths]
        self.add_all([leaf for _, leaf in paths], self.script.unpack(leaves, texts, text), texts)

    def _guard_type_of(self, value: Any, name: str, text: str) -> None:
        cls = self.script.constant(type(value))
        self.script.miss_if(f"type({name}) is not {cls}", text, describe(value), f"describe({name})")


def _sized(name: str) -> str:
    """An expression for a container in few words."""
    return f"f'a {{type({name}).__name__}} of {{len({name})}}'"


def _guarded(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Script, _Arguments]:
    script = Script()
    walk = _Arguments(script)
    guard_settings(script)
    _guard_positional(walk, parameter_names(f, len(args)), args)
    _guard_keywords(walk, kwargs)
    walk.add_functions()
    walk.add(f, "f", name_of(f))
    for k, hook in enumerate(module_hooks()):
        name = script.assign(f"{script.constant(module_hooks)}()[{k}]", "the hooks of all modules")
        walk.add(hook, name, name_of(hook))
    return script, walk


def _guard_positional(walk: _Arguments, texts: Sequence[str], args: tuple[Any, ...]) -> None:
    expected = f"{len(args)}"
    walk.script.miss_if(f"len(args) != {len(args)}", "the number of positional arguments", expected, "len(args)")
    walk.add_all(args, walk.script.unpack("args", list(texts), "args"), list(texts))


def _guard_keywords(walk: _Arguments, kwargs: dict[str, Any]) -> None:
    names = list(kwargs)
    condition = f"[*kwargs] != {walk.script.constant(names)}" if names else "kwargs"
    walk.script.miss_if(condition, "the keyword arguments", str(names), "str([*kwargs])")
    walk.add_all(kwargs.values(), walk.script.unpack("kwargs.values()", names, "kwargs"), names)


class Cache:
    """Compiled programs by transform and function, the least recently used of them forgotten first.  Thread-safe.

    An entry keeps no tensor alive, neither arguments nor what the function reads; only constants made in the trace.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, tuple[Entry, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def find(
        self, key: Hashable, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Entry, tuple[Any, ...]] | None:
        """The entry whose program fits a call, and the tensors that the program takes; None if there is none.

        Cost: one lookup for each program that was compiled for this function under this key.
        """
        place = (key, kind_of(f))
        with self._lock:
            entries = self._entries.get(place, ())
            if entries:
                self._entries.move_to_end(place)
        for entry in entries:
            flat = entry.lookup(f, args, kwargs)
            if flat is not None:
                self._put(place, entry)
                return entry, flat
        if entries and LOG.isEnabledFor(logging.INFO):
            LOG.info("%s is traced again: %s", name_of(f), entries[0].explain(f, args, kwargs))
        return None

    def store(
        self,
        key: Hashable,
        f: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        lifted: Sequence[torch.Tensor],
        constants: Sequence[bool],
        program: Any,
        before: Before | None = None,
        assumed: Assumptions = NONE,
    ) -> Entry:
        """Keep a program for calls like this one, and return its entry.  Arguments and errors as of `make_entry`."""
        entry = make_entry(f, args, kwargs, lifted, constants, program, before, assumed)
        if entry.reusable:
            self._put((key, kind_of(f)), entry)
        return entry

    def clear(self) -> None:
        """Forget every program."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def _put(self, place: Hashable, entry: Entry) -> None:
        """Make an entry the first of its function's, and forget what exceeds the capacity."""
        with self._lock:
            before = self._entries.get(place, ())
            if before and before[0] is entry:
                return
            others = tuple(e for e in before if e is not entry)
            self._entries[place] = (entry, *others)[:ENTRIES_PER_FUNCTION]
            self._entries.move_to_end(place)
            while sum(map(len, self._entries.values())) > self._capacity and len(self._entries) > 1:
                self._entries.popitem(last=False)


CACHE = Cache()
