"""Results that are only copied to a part of another buffer are computed there."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .elements import Buffer, Computed, Entry, Read, is_whole
from .layouts import Layout
from .nests import Nest, Reduction
from .products import Product, blas_form

Change = Callable[[Read], Read]


def computed_in_place(kernels: Sequence[Any], given: set[Buffer]) -> list[Any]:
    """The same kernels without copies of whole buffers, where what computes the one can write to the other.

    given: buffers of inputs and outputs, which stay what they are.

    Cost: linear in the number of kernels, and in that of the copies times that of what reads and writes the buffer.
    """
    result: list[Any] = list(kernels)
    users = _users(result)
    filled = {
        b for b, layouts in _written(result).items() if any(x.size == b.size for x in layouts) and len(layouts) > 1
    }
    for number in range(len(result)):
        copy = _copied(result[number])
        if copy is None:
            continue
        source, target = copy
        if source.buffer in given or target.buffer in filled or target.buffer is source.buffer:
            continue
        places = [k for k in users[source.buffer] if k != number and result[k] is not None]
        change = _shift(source, target) or _only_writer(result, places, source, target)
        if change is not None:
            for k in places:
                result[k] = replaced(result[k], change)
                users[target.buffer].append(k)
            result[number] = None
    return [kernel for kernel in result if kernel is not None]


def _users(kernels: Sequence[Any]) -> dict[Buffer, list[int]]:
    users: dict[Buffer, list[int]] = {}
    for number, kernel in enumerate(kernels):
        for buffer in dict.fromkeys((*kernel.read_buffers(), *kernel.written_buffers())):
            users.setdefault(buffer, []).append(number)
    return users


def _written(kernels: Sequence[Any]) -> dict[Buffer, list[Layout]]:
    """Where each buffer is written."""
    found: dict[Buffer, list[Layout]] = {}
    for kernel in kernels:
        for target in _targets(kernel):
            found.setdefault(target.buffer, []).append(target.layout)
    return found


def _targets(kernel: Any) -> list[Read]:
    if isinstance(kernel, Nest):
        return [Read(store.buffer, store.layout) for store in kernel.stores]
    return [kernel.c] if isinstance(kernel, Product) else [Read(kernel.buffer, kernel.layout)]


def _copied(kernel: Any) -> tuple[Read, Read] | None:
    """What a kernel reads and where it writes it, if it does nothing but copy a whole buffer."""
    if not isinstance(kernel, Nest) or len(kernel.stores) != 1:
        return None
    (store,) = kernel.stores
    if not isinstance(store.entry, Read) or not is_whole(store.entry) or store.entry.dtype != store.buffer.dtype:
        return None
    return store.entry, Read(store.buffer, store.layout)


def _shift(source: Read, target: Read) -> Change | None:
    """Every use of the source moved to the target, whose elements lie one behind the other as well."""
    if not target.layout.is_dense:
        return None

    def change(read: Read) -> Read:
        if read.buffer is not source.buffer:
            return read
        return Read(target.buffer, replace(read.layout, offset=read.layout.offset + target.layout.offset))

    return change


def _only_writer(kernels: Sequence[Any], places: Sequence[int], source: Read, target: Read) -> Change | None:
    """The one kernel that writes the source, and nobody else reads, made to write to the target."""
    if len(places) != 1 or source.buffer in set(kernels[places[0]].read_buffers()):
        return None
    (own,) = (read for read in _targets(kernels[places[0]]) if read.buffer is source.buffer)
    layout = target.layout.reshape(own.layout.shape) if is_whole(own) else None
    if layout is None:
        return None

    def change(read: Read) -> Read:
        return Read(target.buffer, layout) if read.buffer is source.buffer else read

    writer = replaced(kernels[places[0]], change)
    is_possible = not isinstance(writer, Product) or writer.way != "blas" or blas_form(writer) is not None
    return change if is_possible else None


# ---------------------------------------------------------------- kernels with other buffers


def replaced(kernel: Any, change: Change) -> Any:
    """The same kernel with every place that it reads or writes replaced."""
    if isinstance(kernel, Nest):
        stores = []
        for store in kernel.stores:
            target = change(Read(store.buffer, store.layout))
            entry = _changed(store.entry, change, {})
            stores.append(replace(store, buffer=target.buffer, layout=target.layout, entry=entry))
        return replace(kernel, stores=tuple(stores))
    if isinstance(kernel, Reduction):
        target = change(Read(kernel.buffer, kernel.layout))
        entry = _changed(kernel.entry, change, {})
        return replace(kernel, buffer=target.buffer, layout=target.layout, entry=entry)
    assert isinstance(kernel, Product)
    start = None if kernel.start is None else change(kernel.start)
    return replace(kernel, a=change(kernel.a), b=change(kernel.b), c=change(kernel.c), start=start)


def _changed(entry: Entry, change: Change, known: dict[int, Entry]) -> Entry:
    if id(entry) not in known:
        if isinstance(entry, Read):
            known[id(entry)] = change(entry)
        elif isinstance(entry, Computed):
            operands = tuple(_changed(operand, change, known) for operand in entry.operands)
            same = all(a is b for a, b in zip(operands, entry.operands, strict=True))
            known[id(entry)] = entry if same else replace(entry, operands=operands)
        else:
            known[id(entry)] = entry
    return known[id(entry)]
