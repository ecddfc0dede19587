"""What one element of a buffer is computed from: entries, which are read, are numbers, or are computed from others.

All entries that a value is made of run over the axes of that value, so that a view of the value is a view of everything
that it reads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod
from typing import Any

from .layouts import Layout
from .operations import is_call, literal, nested
from .scalars import Scalar, Table

MEMORY_TYPES = {"float64": "double", "float32": "float", "int64": "int64_t", "int32": "int32_t", "bool": "uint8_t"}
BYTES = {"float64": 8, "float32": 4, "int64": 8, "int32": 4, "bool": 1}
FLOATS = ("float32", "float64")
_numbers = count()


@dataclass(frozen=True, eq=False, slots=True)
class Buffer:
    """Memory that a program reads or writes.

    size: how many elements it has.
    """

    dtype: str
    size: int
    number: int = field(default_factory=lambda: next(_numbers))


class Entry:
    """One element of a value, as a function of its position."""

    __slots__ = ()
    dtype: str
    operations: int
    is_heavy: bool


@dataclass(frozen=True, slots=True)
class Read(Entry):
    """An element of a buffer."""

    buffer: Buffer
    layout: Layout

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """The buffer's."""
        return self.buffer.dtype

    @property
    def operations(self) -> int:  # type: ignore[override]
        """Nothing is computed."""
        return 0

    @property
    def is_heavy(self) -> bool:  # type: ignore[override]
        """Reading is not."""
        return False


@dataclass(frozen=True, slots=True)
class Number(Entry):
    """The same number everywhere, rounded to its dtype."""

    value: Any
    dtype: str
    operations: int = 0
    is_heavy: bool = False

    @property
    def text(self) -> str:
        """The number as C writes it, exactly."""
        return literal(self.value, self.dtype)


@dataclass(frozen=True, slots=True)
class Position(Entry):
    """A whole number that is linear in the position: the offset that a layout says."""

    layout: Layout
    dtype: str = "int64"
    operations: int = 0
    is_heavy: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Computed(Entry):
    """A formula of other entries.

    text: in C, `{0}`, `{1}` … for the operands.
    condition: what has to hold, in C; where it does not, the function says so, and its results are worth nothing.
    operations: how many formulas there are below it, each as often as it is used.
    is_heavy: whether one of them takes much longer than a multiplication.
    """

    text: str
    dtype: str
    operands: tuple[Entry, ...]
    heavy: bool = False
    condition: str = ""
    operations: int = field(init=False)
    is_heavy: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", 1 + sum(e.operations for e in self.operands))
        object.__setattr__(self, "is_heavy", self.heavy or any(e.is_heavy for e in self.operands))


def number(value: Any, dtype: str) -> Number:
    """A Python number in a dtype."""
    return Number(Table().constant(value, dtype).payload, dtype)


def computed(formula: Callable[..., Scalar], *operands: Entry) -> Entry:
    """A formula of entries as one entry, however many operations it has."""
    table = Table()
    scalars = [
        table.constant(entry.value, entry.dtype)
        if isinstance(entry, Number)
        else table.input(k, (0, 0), entry.dtype, varies=True)
        for k, entry in enumerate(operands)
    ]
    result = formula(*scalars)
    if result.op == "constant":
        return Number(result.payload, result.dtype)
    if result.op == "input":
        return operands[result.payload[0]]
    needed = list(_expressions(result))
    read = sorted((x for x in needed if x.op == "input"), key=lambda x: x.serial)
    text = nested(result, {x: f"{{{k}}}" for k, x in enumerate(read)})
    heavy = any(map(is_call, needed))
    return Computed(text, result.dtype, tuple(operands[x.payload[0]] for x in read), heavy)


def _expressions(x: Scalar) -> Iterator[Scalar]:
    """An expression and all that it is computed from, each once."""
    waiting, seen = [x], {x}
    while waiting:
        one = waiting.pop()
        yield one
        new = [operand for operand in one.operands if operand not in seen]
        seen.update(new)
        waiting += reversed(new)


def cast(entry: Entry, dtype: str) -> Entry:
    """The entry in another dtype."""
    return computed(lambda x: x.to(dtype), entry)


def transformed(entry: Entry, view: Callable[[Layout], Layout | None]) -> Entry | None:
    """The same entry of a view of the value; None where something that it reads has no such view."""
    known: dict[int, Entry | None] = {}

    def new(one: Entry) -> Entry | None:
        if id(one) not in known:
            known[id(one)] = _transformed(one, view, new)
        return known[id(one)]

    return new(entry)


def _transformed(
    entry: Entry, view: Callable[[Layout], Layout | None], new: Callable[[Entry], Entry | None]
) -> Entry | None:
    if isinstance(entry, Read):
        layout = view(entry.layout)
        return None if layout is None else Read(entry.buffer, layout)
    if isinstance(entry, Position):
        layout = view(entry.layout)
        return None if layout is None else Position(layout, entry.dtype)
    if isinstance(entry, Computed):
        operands = [new(operand) for operand in entry.operands]
        if any(operand is None for operand in operands):
            return None
        return replace(entry, operands=tuple(o for o in operands if o is not None))
    return entry


def reads(entry: Entry) -> Iterator[Read]:
    """Every buffer that is read, and where."""
    seen: set[int] = set()
    waiting = [entry]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Read):
            yield one
        elif isinstance(one, Computed):
            waiting.extend(reversed(one.operands))


def is_whole(read: Read) -> bool:
    """Whether all of a buffer is read, in order."""
    return read.layout.offset == 0 and read.layout.is_dense and prod(read.layout.shape) == read.buffer.size
