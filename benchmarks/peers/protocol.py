"""Messages between the table and its workers: dictionaries of plain values and arrays, through pipes.

Each message is its length in eight bytes, and a pickle of plain values only, so that the two ends may have different
versions of NumPy.
"""

import os
import pickle
import select
import struct
import time
from typing import Any

import numpy

_LENGTH = struct.Struct("<Q")


class Closed(Exception):
    """The other end is gone."""


class Late(Exception):
    """The other end has not answered in time."""


def send(pipe: int, message: dict[str, Any]) -> None:
    """Write a message."""
    body = pickle.dumps({key: _plain(value) for key, value in message.items()}, protocol=5)
    rest = memoryview(_LENGTH.pack(len(body)) + body)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def receive(pipe: int, seconds: float | None = None) -> dict[str, Any]:
    """Read a message.  Raises Closed if there will be none, Late if it takes longer than so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size, deadline))
    message = pickle.loads(_read(pipe, length, deadline))
    return {key: _array(value) for key, value in message.items()}


def _read(pipe: int, length: int, deadline: float | None) -> bytes:
    parts = []
    while length:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not select.select([pipe], [], [], left)[0]:
            raise Late
        part = os.read(pipe, min(length, 1 << 20))
        if not part:
            raise Closed
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, numpy.ndarray):
        return {"dtype": value.dtype.str, "shape": value.shape, "bytes": value.tobytes()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _array(value: Any) -> Any:
    if isinstance(value, dict) and "bytes" in value:
        return numpy.frombuffer(value["bytes"], value["dtype"]).reshape(value["shape"])
    return [_array(one) for one in value] if isinstance(value, list) else value
