"""What Python's objects keep where, and which code and classes are the user's: only these can change between calls."""

import contextvars
import dis
import functools
import importlib.util
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import torch

# Modules of the standard library, and classes, whose instances are plain data; all other instances are only told apart.
STANDARD_DATA = (types.SimpleNamespace,)
DATA_MODULES = ("collections", "argparse", "configparser")

# With these, a function may read attributes, or globals, whose names its code does not show.
REFLECTION = frozenset({"getattr", "vars", "__dict__", "attrgetter", "methodcaller"})
EVALUATION = frozenset({"globals", "eval", "exec", "vars", "locals"})
IDENTIFIER = re.compile(r"[^\W\d]\w*")
GLOBAL_READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


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


def is_filled(cell: types.CellType) -> bool:
    """Whether a closed-over variable has a value now."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def value_of_variable(variable: "contextvars.ContextVar[Any]") -> Any:
    """The value of a context variable here; None where it has none."""
    try:
        return variable.get()
    except LookupError:
        return None


def members(owner: Any, names: Set[str]) -> list[str]:
    """The members of a class or Python module that code with these names may read."""
    own = owner.__dict__
    if names & REFLECTION:
        chosen = [name for name in own if not name.startswith("__")]
    else:
        chosen = [name for name, value in own.items() if name in names or _is_class_data(owner, name, value)]
    return sorted(chosen) + special_methods(owner)


def _is_class_data(owner: Any, name: str, value: Any) -> bool:
    if not isinstance(owner, type) or name.startswith("__"):
        return False
    return not hasattr(type(value), "__get__") and not isinstance(value, type)


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
    if top in DATA_MODULES:
        return False
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
        if instruction.opname in GLOBAL_READS
    }
    return tuple(names)


@functools.lru_cache(maxsize=1024)
def attribute_names(code: types.CodeType) -> frozenset[str]:
    """Every name that a function may read off an object, those that it has as strings included."""
    names = {
        instruction.argval
        for inner in _codes(code)
        for instruction in dis.get_instructions(inner)
        if instruction.opcode in dis.hasname and not instruction.opname.startswith(("STORE_", "DELETE_"))
    }
    return frozenset(names | {text for text in _strings(code) if text.isidentifier()})


@functools.lru_cache(maxsize=1024)
def named_in_strings(code: types.CodeType) -> tuple[str, ...]:
    """What may be the names of globals among the strings of a function that evaluates code, or asks for `globals()`."""
    if not EVALUATION.intersection(global_names(code)):
        return ()
    return tuple(dict.fromkeys(name for text in _strings(code) for name in IDENTIFIER.findall(text)))


def _strings(code: types.CodeType) -> Iterator[str]:
    for inner in _codes(code):
        yield from (constant for constant in inner.co_consts if isinstance(constant, str))


@functools.lru_cache(maxsize=1024)
def imported_modules(code: types.CodeType, package: str | None) -> tuple[str, ...]:
    """The modules that a function imports when it runs."""
    names: dict[str, None] = {}
    for inner in _codes(code):
        instructions = list(dis.get_instructions(inner))
        for k, instruction in enumerate(instructions):
            if instruction.opname == "IMPORT_NAME":
                level = instructions[k - 2].argval if k >= 2 else 0
                names[_absolute(instruction.argval, level, package)] = None
    return tuple(names)


def _absolute(name: str, level: Any, package: str | None) -> str:
    relative = isinstance(level, int) and level > 0 and package
    return importlib.util.resolve_name("." * level + name, package) if relative else name
