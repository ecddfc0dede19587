"""Loop nests: statements that are carried out at every position of one domain, and which of them share a nest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .elements import Buffer, Entry, Read, reads
from .layouts import Layout

WINDOW = 16  # how many kernels back a nest looks for one to join
LONGEST = 100  # operations of one nest: compilers, and what walks through entries, take them one inside the other


@dataclass(frozen=True, eq=False, slots=True)
class Store:
    """An entry is written to a buffer.

    layout: where, for each position of the domain.
    """

    buffer: Buffer
    layout: Layout
    entry: Entry


@dataclass(frozen=True, eq=False, slots=True)
class Nest:
    """Stores at every position of a domain, in order."""

    domain: tuple[int, ...]
    stores: tuple[Store, ...]

    def read_buffers(self) -> Iterator[Buffer]:
        """Every buffer that is read."""
        for store in self.stores:
            yield from (read.buffer for read in reads(store.entry))

    def written_buffers(self) -> Iterator[Buffer]:
        """Every buffer that is written."""
        yield from (store.buffer for store in self.stores)


@dataclass(frozen=True, eq=False, slots=True)
class Reduction:
    """An entry is summed, or its largest is found, over some axes of a domain.

    kind: "sum", "max" or "min"; the last two hand on a NaN.
    axes: those that are reduced.
    layout: where the results lie, for each position of the other axes.
    divisor: what a sum is divided by in the end.
    """

    kind: str
    domain: tuple[int, ...]
    axes: tuple[int, ...]
    entry: Entry
    buffer: Buffer
    layout: Layout
    divisor: int = 1

    def read_buffers(self) -> Iterator[Buffer]:
        """Every buffer that is read."""
        yield from (read.buffer for read in reads(self.entry))

    def written_buffers(self) -> Iterator[Buffer]:
        """The buffer that is written."""
        yield self.buffer


def join_nests(kernels: Sequence[object]) -> list[object]:
    """The same kernels, with nests over equal domains joined where nothing between them is in the way.

    Cost: linear in the number of kernels.
    """
    joined: list[object] = []
    for kernel in kernels:
        if isinstance(kernel, Nest) and (place := _partner(joined, kernel)) is not None:
            other = joined[place]
            assert isinstance(other, Nest)
            joined[place] = replace(other, stores=(*other.stores, *kernel.stores))
        else:
            joined.append(kernel)
    return joined


def _partner(kernels: Sequence[object], nest: Nest) -> int | None:
    """The number of a nest that this one can join."""
    wanted, written = set(nest.read_buffers()), set(nest.written_buffers())
    for place in range(len(kernels) - 1, max(len(kernels) - 1 - WINDOW, -1), -1):
        other = kernels[place]
        if isinstance(other, Nest) and other.domain == nest.domain and _can_join(other, nest):
            return place
        others = set(other.written_buffers())  # type: ignore[attr-defined]
        if wanted & others or written & others:
            return None
    return None


def _can_join(first: Nest, second: Nest) -> bool:
    """Whether the second reads the first's results where they are written, and writes to none of them."""
    if sum(store.entry.operations + 1 for store in (*first.stores, *second.stores)) > LONGEST:
        return False
    written = {store.buffer: store.layout for store in first.stores}
    if any(store.buffer in written for store in second.stores):
        return False
    places = [read for store in second.stores for read in reads(store.entry) if read.buffer in written]
    return all(read.layout == written[read.buffer] for read in places)


def without_dead_stores(kernels: Sequence[object], kept: set[Buffer]) -> list[object]:
    """The same kernels without what is written and read by nobody but in the same place of the same nest.

    Cost: linear in the number of kernels.
    """
    needed = set(kept)
    result: list[object] = []
    for kernel in reversed(kernels):
        if isinstance(kernel, Nest):
            stores = _needed_stores(kernel, needed)
            if not stores:
                continue
            kernel = replace(kernel, stores=stores)
        needed.update(kernel.read_buffers())  # type: ignore[attr-defined]
        result.append(kernel)
    return result[::-1]


def _needed_stores(nest: Nest, needed: set[Buffer]) -> tuple[Store, ...]:
    """The stores of a nest that somebody needs, with what its own other stores computed put in for reading it."""
    entries: dict[Buffer, Store] = {}
    stores = []
    for store in nest.stores:
        entry = _forwarded(store.entry, entries)
        store = replace(store, entry=entry)
        entries[store.buffer] = store
        if store.buffer in needed:
            stores.append(store)
    return tuple(stores)


def _forwarded(entry: Entry, entries: dict[Buffer, Store], known: dict[int, Entry] | None = None) -> Entry:
    """The entry with the entry itself in place of a read of it."""
    known = {} if known is None else known
    if id(entry) not in known:
        known[id(entry)] = _forward_one(entry, entries, known)
    return known[id(entry)]


def _forward_one(entry: Entry, entries: dict[Buffer, Store], known: dict[int, Entry]) -> Entry:
    if isinstance(entry, Read):
        store = entries.get(entry.buffer)
        return entry if store is None else store.entry
    operands = getattr(entry, "operands", ())
    if not operands:
        return entry
    new = tuple(_forwarded(operand, entries, known) for operand in operands)
    return entry if all(a is b for a, b in zip(new, operands, strict=True)) else replace(entry, operands=new)  # type: ignore[type-var]
