"""Functions that generated code has defined, apart from the globals that they were defined in."""

from types import FunctionType
from typing import Any


def without_cycles(namespace: dict[str, Any], name: str) -> FunctionType:
    """Take a function out of its globals, and give the others there globals of their own: none holds itself."""
    run: FunctionType = namespace.pop(name)
    others = {key: f for key, f in namespace.items() if isinstance(f, FunctionType) and f.__globals__ is namespace}
    rest = {key: value for key, value in namespace.items() if key not in others}
    namespace.update({key: FunctionType(f.__code__, rest, key) for key, f in others.items()})
    return run
