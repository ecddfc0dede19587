"""A function of C for a graph of array operators: its kernels one after the other, over one scratch memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import Graph, Value
from .elements import BYTES, MEMORY_TYPES, Buffer
from .nests import Nest, Reduction, join_nests, without_dead_stores
from .placing import computed_in_place
from .products import Product, blas_call, product_call
from .timing import predicted_build, predicted_seconds
from .translation import Kernels, translated
from .updating import updates_apart
from .writing import Call, nest_call, prelude, reduction_call

ALIGNMENT = 64


@dataclass(frozen=True)
class NestFunction:
    """A function of C, in the convention of `building`.

    source: a whole file.
    name: of the function.
    inputs, outputs: the values that it takes pointers to.
    scratch: how many bytes it needs beside them.
    updates: inputs that it overwrites in the end, unless its results are worth nothing.
    is_checked: whether it takes, last, a pointer to what it sets where its results are worth nothing.
    libraries: the functions of BLAS that it calls, as dtypes, in order.
    seconds: what a call is predicted to take.
    build: what it is predicted to take until it can be called.
    """

    source: str
    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scratch: int
    libraries: tuple[str, ...]
    seconds: float
    build: float
    is_checked: bool = False
    updates: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Shared:
    """Scratch memory in which functions that are called one after the other leave something for each other.

    places: where each value lies; bytes: how many these are; what a function needs for itself lies behind them.
    """

    places: Mapping[Value, int]
    bytes: int


def shared_places(values: Iterable[Value]) -> Shared:
    """A place for each value."""
    places, end = {}, 0
    for value in values:
        places[value] = end
        end += _aligned(value.size * BYTES[value.dtype])
    return Shared(places, end)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def nest_function(
    graph: Graph, name: str, vector_math: bool, shared: Shared, updates: Mapping[Value, Value] | None = None
) -> NestFunction:
    """The function that computes a graph of covered operators.

    updates: what is copied to each of some inputs in the end.

    It takes a pointer for each input and each output that is not shared, one for each function of BLAS, one to scratch
    memory, and one to what it sets if a condition does not hold.
    """
    state = translated(graph)
    given = {*state.inputs, *state.outputs}
    kernels = without_dead_stores(join_nests(computed_in_place(state.kernels, given)), set(state.outputs))
    last = updates_apart(kernels, _buffers_of(graph, state, updates or {}))
    kernels = [*last.kernels, *last.nests]
    calls = [_call(kernel) for kernel in kernels]
    places, scratch = scratch_places(kernels, given)
    texts = {text: f"kernel_{k}" for k, text in enumerate(dict.fromkeys(call.text for call in calls))}
    names = _pointer_names(graph, state, shared)
    names |= {buffer: _scratch(buffer, shared.bytes + offset) for buffer, offset in places.items()}
    libraries = tuple(dict.fromkeys(call.library for call in calls if call.library))
    is_checked = any(call.is_checked for call in calls)
    body = [f"  {_written(call, texts[call.text], names)}" for call in calls]
    if updates and is_checked:
        body.insert(len(last.kernels), "  if (*status) return;")
    body += [f"  __builtin_memcpy({names[old]}, {names[new]}, {_bytes(old)});" for new, old in last.copies]
    parameters = _parameters(names, state, libraries) + (", int64_t *status" if is_checked else "")
    functions = [text.replace("NAME", own, 1) for text, own in texts.items()]
    head = prelude(functions, vector_math)
    source = "\n".join([head, *functions, f"void {name}({parameters}) {{", *body, "}", ""])
    inputs, outputs = (tuple(v for v in vs if v not in shared.places) for vs in (graph.inputs, graph.outputs))
    fresh = [buffer for buffer in state.outputs if names[buffer].startswith("y")]
    predicted = predicted_seconds(kernels, fresh), predicted_build(len(texts))
    dtypes = tuple(_DTYPES[one] for one in libraries)
    return NestFunction(
        source, name, inputs, outputs, shared.bytes + scratch, dtypes, *predicted, is_checked, tuple(updates or ())
    )


def _buffers_of(graph: Graph, state: Kernels, updates: Mapping[Value, Value]) -> list[tuple[Buffer, Buffer]]:
    """The buffers of new values, and of the inputs that they overwrite."""
    inputs = dict(zip(graph.inputs, state.inputs, strict=True))
    outputs = dict(zip(graph.outputs, state.outputs, strict=True))
    return [(outputs[new], inputs[old]) for old, new in updates.items()]


def _bytes(buffer: Buffer) -> int:
    return buffer.size * BYTES[buffer.dtype]


_DTYPES = {f"gemm_{kind}": dtype for dtype, kind in MEMORY_TYPES.items()}


def _call(kernel: Any) -> Call:
    if isinstance(kernel, Nest):
        return nest_call(kernel)
    if isinstance(kernel, Reduction):
        return reduction_call(kernel)
    assert isinstance(kernel, Product)
    return blas_call(kernel) if kernel.way == "blas" else product_call(kernel)


def _parameters(names: Mapping[Buffer, str], state: Kernels, libraries: Sequence[str]) -> str:
    inputs = [f"{MEMORY_TYPES[b.dtype]} *{names[b]}" for b in state.inputs if names[b].startswith("x")]
    outputs = [f"{MEMORY_TYPES[b.dtype]} *restrict {names[b]}" for b in state.outputs if names[b].startswith("y")]
    return ", ".join([*inputs, *outputs, *(f"gemm {name}" for name in libraries), "char *restrict scratch"])


def _pointer_names(graph: Graph, state: Kernels, shared: Shared) -> dict[Buffer, str]:
    names = {}
    for letter, values, buffers in (("x", graph.inputs, state.inputs), ("y", graph.outputs, state.outputs)):
        for k, (value, buffer) in enumerate(zip(values, buffers, strict=True)):
            place = shared.places.get(value)
            names[buffer] = f"{letter}{k}" if place is None else _scratch(buffer, place)
    return names


def _scratch(buffer: Buffer, offset: int) -> str:
    return f"({MEMORY_TYPES[buffer.dtype]} *)(scratch + {offset})"


def _written(call: Call, name: str, names: dict[Buffer, str]) -> str:
    """A call, in a loop where it is made several times."""
    count, steps = call.batch
    arguments = [call.library] if call.library else []
    for k, (buffer, offset) in enumerate(call.arguments):
        moved = f" + n * {steps[k]}" if count != 1 and steps[k] else ""
        arguments.append(f"{names[buffer]}{f' + {offset}' if offset else ''}{moved}")
    if call.is_checked:
        arguments.append("status")
    loop = f"for (int64_t n = 0; n < {count}; n++) " if count != 1 else ""
    return f"{loop}{name}({', '.join(arguments)});"


def scratch_places(kernels: Sequence[Any], given: set[Buffer]) -> tuple[dict[Buffer, int], int]:
    """Where in scratch memory each buffer lies that is not given, and how many bytes there are.

    A buffer's place is free again behind the last kernel that reads or writes it.

    Cost: the number of kernels times that of the buffers alive at once.
    """
    last: dict[Buffer, int] = {}
    for position, kernel in enumerate(kernels):
        for buffer in (*kernel.read_buffers(), *kernel.written_buffers()):
            last[buffer] = position
    alive: list[tuple[int, int, Buffer]] = []
    places: dict[Buffer, int] = {}
    most = 0
    for position, kernel in enumerate(kernels):
        for buffer in kernel.written_buffers():
            if buffer not in given and buffer not in places:
                size = _aligned(_bytes(buffer))
                places[buffer] = offset = _gap(alive, size)
                alive = sorted([*alive, (offset, offset + size, buffer)], key=lambda one: one[0])
                most = max(most, offset + size)
        alive = [one for one in alive if last[one[2]] > position]
    return places, most


def _gap(alive: Sequence[tuple[int, int, Buffer]], size: int) -> int:
    """The first offset behind which so many bytes are free."""
    offset = 0
    for start, end, _ in alive:
        if start - offset >= size:
            return offset
        offset = max(offset, end)
    return offset
