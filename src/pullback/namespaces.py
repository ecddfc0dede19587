"""What Python's objects keep where, and which code and classes are the user's: only these can change between calls."""

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# Classes of the standard library whose instances are plain data; all other instances are only told apart.
STANDARD_DATA = (types.SimpleNamespace,)


@functools.cache
def slots(cls: Any) -> tuple[str, ...]:
    """The attributes that objects of a class keep outside a dictionary."""
    members = [(name, value) for base in cls.__mro__ for name, value in base.__dict__.items()]
    return tuple(name for name, value in members if isinstance(value, types.MemberDescriptorType))


def has_slot(value: Any, name: str) -> bool:
    """Whether such an attribute has been set."""
    try:
        object.__getattribute__(value, name)
    except AttributeError:
        return False
    return True


def special_methods(owner: Any) -> list[str]:
    """Operators such as `__call__` and `__add__` of a class, which run without being named."""
    if not isinstance(owner, type):
        return []
    is_special = [k for k, v in owner.__dict__.items() if k.startswith("__") and isinstance(v, types.FunctionType)]
    return [name for name in is_special if name not in ("__repr__", "__str__", "__del__")]


def is_opaque(cls: type) -> bool:
    """Whether objects of a class are only told apart: no attributes, or the insides of Python and PyTorch."""
    if issubclass(cls, STANDARD_DATA):
        return False
    module = cls.__module__ or ""
    top = module.partition(".")[0]
    is_standard = top in sys.stdlib_module_names and top != "__main__"
    return is_standard or module.startswith("torch._ops") or not (cls.__dictoffset__ or slots(cls))  # type: ignore[arg-type]


@functools.cache
def _library_places() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    places = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib") if key in paths]
    return (*places, str(Path(torch.__file__).parent), str(Path(__file__).parent), "<frozen", "<pullback")


@functools.cache
def is_library_file(file: str) -> bool:
    """Whether a file belongs to Python, PyTorch, `pullback` or an installed package: its globals do not change."""
    return file.startswith(_library_places()) or "site-packages" in file or "dist-packages" in file


def is_library(owner: Any) -> bool:
    """Whether a class or Python module is not the user's own, but Python's, PyTorch's or an installed package's."""
    name = (owner.__module__ if isinstance(owner, type) else owner.__name__) or ""
    top = name.partition(".")[0]
    if top == "__main__":
        return False
    if top in ("torch", "pullback") or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and is_library_file(file)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.lru_cache(maxsize=1024)
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function reads, functions inside it included."""
    names = {
        instruction.argval: None
        for inner in _codes(code)
        for instruction in dis.get_instructions(inner)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return tuple(names)


@functools.lru_cache(maxsize=1024)
def attribute_names(code: types.CodeType) -> frozenset[str]:
    """Every name that a function may read off an object."""
    return frozenset(name for inner in _codes(code) for name in inner.co_names)
