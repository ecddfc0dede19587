"""What the user calls a function, where it stands, and which functions could share a program."""

import functools
from collections.abc import Hashable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

from .provenance import parameters_of


def parameter_names(f: Any, count: int) -> list[str]:
    """What the function calls its first arguments."""
    names = [p.name for p in parameters_of(f) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (names + [f"args[{k}]" for k in range(len(names), count)])[:count]


def name_of(f: Any) -> str:
    """What the user calls a function."""
    while isinstance(f, functools.partial):
        f = f.func
    name = getattr(f, "__name__", None)
    return name if isinstance(name, str) else type(f).__name__


def title(f: Any) -> str:
    """A function as messages name it: what the user calls it, and where it stands."""
    return f"{name_of(f)}{_place(f)}"


def _place(f: Any) -> str:
    code = getattr(_function_of(f), "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""


def _function_of(f: Any) -> Any:
    """The Python function that runs when f is called, as far as that is known without calling it."""
    while not isinstance(f, FunctionType):
        if isinstance(f, MethodType):
            f = f.__func__
        elif isinstance(f, functools.partial):
            f = f.func
        else:
            return type(f)
    return f


def kind_of(f: Any) -> Hashable:
    """What all functions have in common that could share a program: the code of a function, or the class of an object.

    A lambda made anew has the code of the one before; code is told apart by identity, since equal code may differ in
    its source line.
    """
    if isinstance(f, BuiltinFunctionType) and isinstance(f.__self__, (ModuleType, type, NoneType)):
        return f
    function = _function_of(f)
    return id(function.__code__) if isinstance(function, FunctionType) else function
