"""Guards: generated checks that what a program was compiled for still holds.

A guard is a line of Python in a function that runs before every call, so it is written out once, flat: no loops, no
classes, constants bound by name.  The same lines make a second, slower function that tells which guard failed.
"""

import array
import functools
import hashlib
import math
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy
import torch

from .dtypes import dtype_name
from .originals import outside_of_traces
from .tapes import is_recording
from .torch_private import (
    HAS_DUAL_NUMBERS,
    count_function_modes,
    forward_ad,
    global_forward_hooks,
    global_pre_hooks,
    has_dual_numbers,
    is_any_autocast_enabled,
    peek_interpreter,
)

Lookup = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, ...] | None]

# What reading a path or a property can raise once the object there has become something else.
MISSES = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)

NUMBERS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice)
TORCH_CONSTANTS = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
NAMED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
ATOMS = frozenset(NUMBERS + TORCH_CONSTANTS)
BUFFERS = (bytearray, array.array)
CONTAINERS = frozenset((tuple, list, set, frozenset, dict, OrderedDict))
CPU = torch.device("cpu")
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a lookup: `name = expression`, or (without a name) a condition under which the program misses.

    text: what is read, in the words of the user's program.
    expected: what it has to be, for the log.
    seen: an expression for what it is instead.
    """

    source: str
    name: str = ""
    text: str = ""
    expected: str = ""
    seen: str = "None"


class Script:
    """A lookup function while it is being written."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.names: dict[str, Any] = {"describe": describe, "same": same, "MISSES": MISSES}
        self._constants: dict[int, str] = {}

    def assign(self, expression: str, text: str) -> str:
        """Read something into a new local name."""
        name = f"v{len(self.steps)}"
        self.steps.append(Step(expression, name, text))
        return name

    def unpack(self, expression: str, names: list[str], text: str) -> list[str]:
        """Read a sequence of known length into new local names, one for each given text."""
        start = len(self.steps)
        fresh = [f"v{start}_{k}" for k in range(len(names))]
        if fresh:
            self.steps.append(Step(expression, f"({', '.join(fresh)},)", text))
        return fresh

    def miss_if(self, condition: str, text: str, expected: str, seen: str) -> None:
        """Let the lookup miss under a condition."""
        self.steps.append(Step(condition, "", text, expected, seen))

    def constant(self, value: Any) -> str:
        """A global name of the generated code for an object; the same object gets the same name."""
        name = self._constants.setdefault(id(value), f"c{len(self._constants)}")
        self.names[name] = value
        return name

    def lookup(self, results: list[str]) -> tuple[Lookup, str]:
        """The function that returns `results`, or None on a miss, and its source."""
        lines = [f"{s.name} = {s.source}" if s.name else f"if {s.source}: return None" for s in self.steps]
        returned = f"({', '.join(results)},)" if results else "()"
        source = _function("lookup", [*lines, f"return {returned}"], "return None")
        return self._compile("lookup", source), source

    def failing(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Step, Any] | None:
        """The guard that a call fails, and what is seen instead; None if all hold."""
        failure = self._explanation(f, args, kwargs)
        return None if failure is None else (self.steps[failure[0]], failure[1])

    def failure(self, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Which guard a call fails, with the old and the new value; None if all hold."""
        failing = self.failing(f, args, kwargs)
        if failing is None:
            return None
        step, seen = failing
        if isinstance(seen, Exception):
            return f"{step.text} cannot be read any more ({type(seen).__name__}: {seen})"
        return f"{step.text} was {step.expected}, is {seen}"

    @functools.cached_property
    def _explanation(self) -> Callable[..., tuple[int, Any] | None]:
        """The function that returns the number of the step that failed, and what it saw there; None if all hold."""
        lines = []
        for k, step in enumerate(self.steps):
            lines.append(f"step = {k}")
            lines.append(f"{step.name} = {step.source}" if step.name else f"if {step.source}: return {k}, {step.seen}")
        source = _function("explanation", [*lines, "return None"], "return step, error")
        return self._compile("explanation", source)

    def _compile(self, name: str, source: str) -> Any:
        namespace = dict(self.names)
        exec(compile(source, "<pullback guards>", "exec"), namespace)
        return namespace.pop(name)  # else the function and its globals would hold each other


def _function(name: str, lines: list[str], otherwise: str) -> str:
    body = "\n".join(f"        {line}" for line in lines)
    return f"def {name}(f, args, kwargs):\n    try:\n{body}\n    except MISSES as error:\n        {otherwise}\n"


def guard_tensor(script: Script, name: str, tensor: torch.Tensor, text: str) -> None:
    """Guard class, shape, dtype, device and layout in memory of a tensor; never its values."""
    cls, device = type(tensor), tensor.device
    if cls in PLAIN_TENSORS:
        plain, parameter = map(script.constant, PLAIN_TENSORS)
        conditions = [f"type({name}) is not {plain} and type({name}) is not {parameter}"]
    else:
        conditions = [f"type({name}) is not {script.constant(cls)}"]
    conditions.append(f"{name}.shape != {script.constant(tensor.shape)}")
    conditions.append(f"{name}.dtype is not {script.constant(tensor.dtype)}")
    is_plain_cpu = cls in PLAIN_TENSORS and device.type == "cpu"
    conditions.append(f"not {name}.is_cpu" if is_plain_cpu else f"{name}.device != {script.constant(device)}")
    conditions += _layout_guard(script, name, tensor)
    script.miss_if(" or ".join(conditions), text, describe(tensor), f"describe({name})")


def _layout_guard(script: Script, name: str, tensor: torch.Tensor) -> list[str]:
    """One element has only one layout; contiguous tensors may differ in the strides of axes of size 1."""
    if tensor.layout != torch.strided:
        return [f"str({name}.layout) != {str(tensor.layout)!r}"]
    layout = f"{name}.layout is not {script.constant(torch.strided)}"
    if tensor.numel() <= 1:
        return [layout]
    steps = f"not {name}.is_contiguous()" if tensor.is_contiguous() else f"{name}.stride() != {tensor.stride()}"
    return [layout, steps]


def guard_place(script: Script, name: str, tensor: torch.Tensor) -> None:
    """Guard where in its memory a tensor begins."""
    expected, seen = int(tensor.storage_offset()), f"{name}.storage_offset()"
    script.miss_if(f"{seen} != {expected}", f"the storage offset of {describe(tensor)}", str(expected), seen)


def guard_values(script: Script, name: str, tensor: torch.Tensor) -> None:
    """Guard the values of a tensor, of which a copy is kept.  Cost: one pass over them."""
    with outside_of_traces():
        kept, is_same = script.constant(tensor.clone()), script.constant(same_values)
    script.miss_if(f"not {is_same}({name}, {kept})", f"the values of {describe(tensor)}", "as they were", "'changed'")


def same_values(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether two real tensors are equal, whatever modes are in progress."""
    with outside_of_traces():
        return torch.equal(tensor, kept)


def guard_identity(script: Script, name: str, value: Any, text: str) -> None:
    """Guard that an object is the very one.  Only for what may be kept alive: code, classes, modules, constants."""
    script.miss_if(f"{name} is not {script.constant(value)}", text, describe(value), f"describe({name})")


def guard_value(script: Script, name: str, value: Any, text: str) -> None:
    """Guard a number, a name, or containers of these, by type and value."""
    if value is None or isinstance(value, bool):
        return script.miss_if(f"{name} is not {value}", text, repr(value), f"describe({name})")
    kept = frozen_copy(value)
    constant = script.constant(kept)
    is_same = f"same({name}, {constant})"
    condition = f"{name} is not {constant} and not {is_same}" if kept is value else f"not {is_same}"
    return script.miss_if(condition, text, describe(value), f"describe({name})")


def is_constant(value: Any, depth: int = 8) -> bool:
    """Whether a value can be guarded by comparing it: a number, a name, an array, or containers of these."""
    cls = type(value)
    if cls in ATOMS or cls in BUFFERS or cls is numpy.ndarray or isinstance(value, (Enum, numpy.generic)):
        return cls is not slice or is_constant((value.start, value.stop, value.step), depth)
    if depth == 0 or cls not in CONTAINERS:
        return False
    items = [*value, *value.values()] if isinstance(value, dict) else value
    return all(is_constant(item, depth - 1) for item in items)


def frozen_copy(value: Any) -> Any:
    """A value that later writes into the original do not change; the original itself where it has no writable part."""
    cls = type(value)
    if cls in (list, dict, OrderedDict, set):
        items = value.items() if isinstance(value, dict) else value
        return cls((k, frozen_copy(v)) for k, v in items) if isinstance(value, dict) else cls(map(frozen_copy, items))
    if cls is tuple:
        copies = tuple(map(frozen_copy, value))
        return value if all(a is b for a, b in zip(copies, value, strict=True)) else copies
    if cls in BUFFERS:
        return value[:]
    return Fingerprint.of(value) if cls is numpy.ndarray else value


@dataclass(frozen=True)
class Fingerprint:
    """What stands in a guard for an array, so that it need not be kept: a write changes the digest."""

    dtype: str
    shape: tuple[int, ...]
    digest: bytes

    @classmethod
    def of(cls, array: "numpy.ndarray[Any, Any]") -> "Fingerprint":
        """The fingerprint of an array.  Cost: one pass over its bytes."""
        return cls(str(array.dtype), array.shape, hashlib.blake2b(array.tobytes()).digest())


def same(a: Any, b: Any) -> bool:
    """Whether two constants are of equal type and value: True ≠ 1, 0.0 ≠ −0.0, NaN = NaN."""
    if isinstance(b, Fingerprint):
        return type(a) is numpy.ndarray and Fingerprint.of(a) == b
    if type(a) is not type(b):
        return False
    if a is b and type(a) in ATOMS:
        return True
    return _COMPARISONS.get(type(a), _same_atom)(a, b)


def _same_atom(a: Any, b: Any) -> bool:
    return a.tobytes() == b.tobytes() if isinstance(a, numpy.generic) else bool(a == b)


def _same_float(a: float, b: float) -> bool:
    return (a == b and math.copysign(1.0, a) == math.copysign(1.0, b)) or (a != a and b != b)


def _same_complex(a: complex, b: complex) -> bool:
    return _same_float(a.real, b.real) and _same_float(a.imag, b.imag)


def _same_array(a: "array.array[Any]", b: "array.array[Any]") -> bool:
    return a.typecode == b.typecode and a.tobytes() == b.tobytes()


def _same_sequence(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def _same_dict(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return _same_sequence(list(a), list(b)) and _same_sequence(list(a.values()), list(b.values()))


def _same_set(a: Any, b: Any) -> bool:
    return len(a) == len(b) and {(type(v), v) for v in a} == {(type(v), v) for v in b}


_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    float: _same_float,
    complex: _same_complex,
    array.array: _same_array,
    tuple: _same_sequence,
    list: _same_sequence,
    dict: _same_dict,
    OrderedDict: _same_dict,
    set: _same_set,
    frozenset: _same_set,
}


def are_the_objects(entries: list[Any], references: dict[int, Callable[[], Any]]) -> bool:
    """Whether entries of a list, by their number, are still the objects that are referred to."""
    return all(entries[k] is reference() for k, reference in references.items())


def describe(value: Any) -> str:
    """An object in a few words, for a log line or an error; never its elements."""
    if isinstance(value, torch.Tensor):
        kind = "" if type(value) is torch.Tensor else f"{type(value).__name__} "
        return f"{kind}{dtype_name(value.dtype)}{list(value.shape)} on {value.device}{_strides(value)}"
    if is_constant(value) and type(value) is not numpy.ndarray:
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    if isinstance(value, NAMED):
        return f"{type(value).__name__} {getattr(value, '__qualname__', value.__name__)}"
    return f"a {type(value).__qualname__}"


def _strides(tensor: torch.Tensor) -> str:
    if tensor.layout != torch.strided:
        return f", {tensor.layout}"
    return "" if tensor.is_contiguous() else f", strides {tensor.stride()}"


def is_transforming() -> bool:
    """Whether a `torch.func` transform such as `vmap`, or a level of dual numbers, is running around this call."""
    return peek_interpreter() is not None or has_dual_numbers()


def default_device() -> torch.device:
    """The device of new tensors; only a mode can have changed it."""
    return torch.get_default_device() if count_function_modes() else CPU


def module_hooks() -> tuple[Callable[..., Any], ...]:
    """The hooks that run around every module, but for those of a capture in progress."""
    hooks = (*global_pre_hooks.values(), *global_forward_hooks.values())
    return tuple(hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith("pullback."))


def autocast_settings() -> tuple[Any, ...]:
    """What autocast does to each kind of device."""
    if not is_any_autocast_enabled():
        return ()
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)


SETTINGS: tuple[tuple[str, Callable[[], Any], str], ...] = (
    ("inference mode", torch.is_inference_mode_enabled, "{read}() is not {value}"),
    ("the default dtype", torch.get_default_dtype, "{read}() is not {value}"),
    ("whether a torch.func transform is running", is_transforming, "{read}() is not {value}"),
    ("whether a record is in progress", is_recording, "{read}() is not {value}"),
    ("whether there are dual numbers", has_dual_numbers, "{read}() is not {value}"),
    ("autocast", autocast_settings, "{read}() != {value}"),
    ("the default device", default_device, "{read}() != {value}"),
    ("the hooks of all modules", module_hooks, "{read}() != {value}"),
)

# The usual value of a setting is told at the cost of a tenth of a microsecond, without a call of Python's own.
QUICK: dict[Callable[[], Any], tuple[Any, str, Any]] = {
    is_transforming: (False, "{quick}() is not None", peek_interpreter),
    is_recording: (False, "{quick}() and {read}()", count_function_modes),
    has_dual_numbers: (False, HAS_DUAL_NUMBERS, forward_ad),
    autocast_settings: ((), "{quick}()", is_any_autocast_enabled),
    module_hooks: ((), "({quick}[0] or {quick}[1]) and {read}() != {value}", (global_pre_hooks, global_forward_hooks)),
    default_device: (CPU, "{quick}() and {read}() != {value}", count_function_modes),
}


def guard_settings(script: Script) -> None:
    """Guard the state of PyTorch that changes what a function computes, or of which kind its tensors are.

    Grad mode is not among it: functions are always captured with grad mode on.
    """
    for text, read, condition in SETTINGS:
        value = read()
        usual, quick_condition, quick = QUICK.get(read, (object(), "", None))
        chosen = quick_condition if value == usual else condition
        written = repr(value) if isinstance(value, bool) else script.constant(value)
        name = script.constant(read)
        source = chosen.format(read=name, value=written, quick=script.constant(quick))
        script.miss_if(source, text, str(value), f"{name}()")
