"""Inputs that are overwritten: by loops over both, where nothing reads them later."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .elements import Buffer, reads
from .nests import Nest, Store


@dataclass(frozen=True)
class Updates:
    """Kernels, and what overwrites inputs behind all of them.

    kernels: what computes everything else.
    nests: loops that write new values over old ones.
    copies: new values, and the inputs that they have to be copied to.
    """

    kernels: tuple[Any, ...]
    nests: tuple[Nest, ...]
    copies: tuple[tuple[Buffer, Buffer], ...]


def updates_apart(kernels: Sequence[Any], wanted: Sequence[tuple[Buffer, Buffer]]) -> Updates:
    """The kernels with the stores of new values taken out, to be done last.

    wanted: the buffers of new values, and the inputs that they overwrite.

    A store stays where it is, and is followed by a copy, if other kernels read the new value, or if the old one is read
    in other places or behind its being overwritten.

    Cost: linear in the number of kernels, for each update.
    """
    rest, nests, copies = list(kernels), [], []
    overwritten: set[Buffer] = set()
    for new, old in wanted:
        found = _store_of(rest, new)
        if found is None or not _may_overwrite(rest[found[0]].stores[found[1]], old, overwritten):
            copies.append((new, old))
            continue
        number, position = found
        nest = rest[number]
        nests.append(Nest(nest.domain, (replace(nest.stores[position], buffer=old),)))
        rest[number] = replace(nest, stores=nest.stores[:position] + nest.stores[position + 1 :])
        overwritten.add(old)
    kept = tuple(kernel for kernel in rest if not isinstance(kernel, Nest) or kernel.stores)
    return Updates(kept, tuple(nests), tuple(copies))


def _store_of(kernels: Sequence[Any], buffer: Buffer) -> tuple[int, int] | None:
    """The only store to a buffer, by kernel and position, if nothing reads the buffer."""
    found = None
    for number, kernel in enumerate(kernels):
        if buffer in set(kernel.read_buffers()):
            return None
        if buffer in set(kernel.written_buffers()):
            if found is not None or not isinstance(kernel, Nest):
                return None
            positions = [k for k, store in enumerate(kernel.stores) if store.buffer is buffer]
            found = (number, positions[0])
    return found


def _may_overwrite(store: Store, old: Buffer, overwritten: set[Buffer]) -> bool:
    """Whether an entry reads the old value in its own place only, and none that was overwritten by then."""
    if not store.layout.is_dense or store.layout.offset or store.layout.size != old.size:
        return False
    found = list(reads(store.entry))
    return all(read.layout == store.layout for read in found if read.buffer is old) and not any(
        read.buffer in overwritten for read in found
    )
