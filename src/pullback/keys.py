"""Keys: how a node mentions what no argument of an operator can hold, such as a graph.

An operator takes the number; a graph holds a `Key`, which keeps what it stands for alive.
"""

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

_KNOWN: "WeakValueDictionary[int, Any]" = WeakValueDictionary()
_serial = count(1)


class Key(int):
    """A number, and what it stands for."""

    held: Any


def remember(value: Any) -> Key:
    """A new key."""
    number = next(_serial)
    _KNOWN[number] = value
    return holding(number)


def holding(number: int) -> Key:
    """The key of a number."""
    key = Key(number)
    key.held = _KNOWN[number]
    return key


def held(number: int) -> Any:
    """What a key stands for."""
    return _KNOWN[number]
