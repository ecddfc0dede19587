"""Provenance: which line of the user's program a node comes from, and what the user calls its tensors."""

import dis
import inspect
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from . import torch_private as private
from .dtypes import device_name, dtype_name
from .errors import CallError, CaptureError, UnboundError
from .graph import Source, Value

_LIBRARY = tuple(os.path.dirname(path) + os.sep for path in (torch.__file__, __file__))
_STANDARD = sysconfig.get_paths()["stdlib"] + os.sep
_TRAINING = os.path.join(os.path.dirname(__file__), "training") + os.sep


# Where in the user's program -----------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Whether a file is the user's, and not PyTorch's, Python's or ours; networks that we ship are a user's."""
    if file.startswith(("<pullback", "<frozen", "<eval_with_key")):
        return False
    if file.startswith(_STANDARD):
        return "-packages" in file and not file.startswith(_LIBRARY)
    return file.startswith(_TRAINING) or not file.startswith(_LIBRARY)


@lru_cache(maxsize=16384)
def source_at(file: str, line: int, function: str) -> Source:
    """A line of a file, with its text."""
    return Source(file, line, function, linecache.getline(file, line).strip())


def user_source() -> Source | None:
    """The innermost line of the user's that is being executed now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if is_users(code.co_filename):
            return source_at(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return None


def source_of(error: BaseException) -> Source | None:
    """The innermost line of the user's that an error passed through."""
    source, traceback = None, error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(code.co_filename):
            source = source_at(code.co_filename, traceback.tb_lineno, code.co_name)
        traceback = traceback.tb_next
    return source


def refusal(problem: str, way_out: str, source: Source | None = None) -> CaptureError:
    """The error that says what cannot be captured, on which line of the user's, and what to do instead."""
    return CaptureError(f"{problem}\n  at {source or user_source() or 'an unknown line'}\n  {way_out}")


def is_written_by_user(frame: FrameType) -> bool:
    """Whether code is the user's own, and no package's, which may ask by the way."""
    file = frame.f_code.co_filename
    return is_users(file) and "-packages" not in file


def named(error: Exception) -> CaptureError | None:
    """An error of PyTorch's or Python's inside the user's function as one of ours; None for what the user raised."""
    if _is_raised_by_user(error):
        return None
    if isinstance(error, NameError):
        way_out = "Give it one before the function is called, or pass it as an argument."
        problem = f"f reads the variable {error.name!r}, which has no value"
        return UnboundError(str(refusal(problem, way_out, source_of(error))))
    if type(error) is RuntimeError or type(error).__module__.startswith("torch._subclasses"):
        way_out = "The function by itself fails in the same way on arguments of these shapes, dtypes and devices."
        if "no fake impl" in str(error):
            way_out = "It runs, but a trace has to know the shapes of its results without running it."
        problem = f"PyTorch refuses a call that f makes: {str(error).rstrip().partition(chr(10))[0]}"
        return CallError(str(refusal(problem, way_out, source_of(error))))
    return None


def _is_raised_by_user(error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or not is_users(traceback.tb_frame.f_code.co_filename):
        return False
    return dis.opname[traceback.tb_frame.f_code.co_code[traceback.tb_lasti]] == "RAISE_VARARGS"


# What the user calls it ----------------------------------------------------------------------------------------------


class Namer:
    """Values with names that are unique within one graph."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def value(self, tensor: Tensor, base: str) -> Value:
        """A value of the type of a tensor, named `base`, or `base_1` if that is taken."""
        return Value(self.unique(base), tuple(tensor.shape), dtype_name(tensor.dtype), device_name(tensor.device))

    def unique(self, base: str) -> str:
        """A name that has not been given before."""
        name = base
        while name in self.taken:
            self.taken[base] += 1
            name = f"{base}_{self.taken[base]}"
        self.taken[name] = 0
        return name


def describe(tensor: Tensor) -> str:
    """The dtype and shape of a tensor, as in `float32[3, 2]`."""
    return f"{dtype_name(tensor.dtype)}[{', '.join(map(str, tensor.shape))}]"


def argument_names(f: Callable[..., Any], flat_arguments: Sequence[Any], in_spec: Any) -> list[str]:
    """Names for the leaves of `(args, kwargs)`: a parameter of `f`, followed by keys and attributes.

    Under a string key the parameter is left out where that is clear: `params["fc1.weight"]` is `fc1.weight`.
    """
    paths, _ = private.tree_flatten_with_path(private.tree_unflatten(list(range(len(flat_arguments))), in_spec))
    parameters = parameters_of(f)
    long, short = [], []
    for (kind, place, *keys), _ in paths:
        positional = kind.idx == 0
        root = _nth_parameter(parameters, place.idx) if positional else str(place.key)
        parts = [_key(key) for key in keys]
        long.append(".".join([root, *parts]))
        short.append(".".join(parts) if keys and isinstance(keys[0], private.MappingKey) else long[-1])
    return [brief if short.count(brief) == 1 else full for brief, full in zip(short, long, strict=True)]


def parameters_of(f: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function; none where Python cannot tell."""
    try:
        return list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return []


def _nth_parameter(parameters: list[inspect.Parameter], place: int) -> str:
    for k, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return f"{parameter.name}_{place - k}"
        if k == place:
            return parameter.name
    return "x" if place == 0 and not parameters else f"x_{place}"


def _key(key: Any) -> str:
    """A step of a path as text: a key, an attribute, or a position."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def parameter_names(module: nn.Module) -> dict[int, str]:
    """The path of every parameter and buffer of a module, by identity; the first of two names for one tensor."""
    names: dict[int, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        names.setdefault(id(tensor), name)
    return names


def surrounding_names(f: Callable[..., Any]) -> dict[int, str]:
    """Names for tensors that a function closes over, or finds among its globals, by identity."""
    names: dict[int, str] = {}
    for name, value in _surroundings(f):
        if isinstance(value, Tensor):
            names.setdefault(id(value), name)
        elif isinstance(value, nn.Module):
            names = parameter_names(value) | names
    return names


def _surroundings(f: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    code = getattr(f, "__code__", None)
    if isinstance(f, nn.Module) or code is None:
        owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
        yield "self", owner
        return
    yield "self", getattr(f, "__self__", None)
    for name, cell in zip(code.co_freevars, getattr(f, "__closure__", None) or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    surroundings = getattr(f, "__globals__", {})
    yield from ((name, surroundings[name]) for name in code.co_names if name in surroundings)
