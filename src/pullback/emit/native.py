"""A graph becomes machine code, called by a Python function of a few lines.

The text is Python that stands by itself, as that of the other back end: it holds the source in C, has it built, and
calls it.  Small and batched programs are scalar expressions; others are loops over arrays (`loops.py`).
"""

import linecache
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..cost import CostModel
from ..dtypes import torch_dtype
from ..errors import NativeError
from ..graph import Graph, Value
from ..native.arrays import Array, NotScalar
from ..native.building import has_vector_math, is_named, native_function, toolchain
from ..native.expansion import Expansion, expand, packed
from ..native.numbers import Numbers, are_made_at_once
from ..native.prediction import predicted_build, predicted_seconds
from ..native.results import LEAST, result_like
from ..native.source import Source, write
from .aliases import memory_roots
from .loops import emit_loops, offer_of_loops
from .namespace import without_cycles
from .offers import Declined, Offer
from .program import Program
from .python import identifier

LOG = logging.getLogger("pullback")
MOST_POINTERS = 200
_numbers = count(1)


def offer_of_native(graph: Graph, model: CostModel) -> Offer:
    """What machine code promises for a graph.

    Raises:
        Declined: it is of no kind that is done, or there is no compiler; says which.
        NativeError: the compiler that the user names cannot be used.
    """
    try:
        toolchain()
    except NativeError as error:
        if is_named():
            raise
        raise Declined("there is no C compiler") from error
    try:
        expansion = _EXPANDED[graph] = _expanded(graph, {})
    except NotScalar:
        return offer_of_loops(graph, model)
    return Offer(predicted_seconds(expansion), predicted_build(expansion))


def emit_native(
    graph: Graph, name: str = "program", *, plain: bool = False, returned: Mapping[int, Value] | None = None
) -> Program:
    """The program that computes a lowered graph, as machine code; arguments as of `emit_python`.

    Raises:
        Declined: it is part of a trace.
        NativeError: there is no compiler, or it does not do what it should.

    Cost: that of expansion, some milliseconds, and of the compiler, up to a second, at the first time on a machine.
    """
    if not plain:
        raise Declined("it is part of a trace")
    toolchain()
    try:
        found = _EXPANDED.pop(graph, None)
        expansion, places = packed(_expanded(graph, returned or {}) if found is None else found)
        kept = _kept(graph, returned or {})
    except NotScalar as reason:
        LOG.info("%s is no program for scalar expressions: %s", name, reason)
        return emit_loops(graph, name, plain=plain, returned=returned)
    source = write(expansion, identifier(name), vectors=has_vector_math())
    return _Caller(graph, source, expansion, places, kept).program()


_EXPANDED: WeakKeyDictionary[Graph, Expansion] = WeakKeyDictionary()  # between an offer and its acceptance


def _expanded(graph: Graph, returned: Mapping[int, Value]) -> Expansion:
    """The scalar expressions of what has to be computed."""
    kept = _kept(graph, returned)
    wanted = tuple(v for v, text in zip(graph.outputs, kept, strict=True) if text is None)
    found = expand(replace(graph, outputs=wanted))
    if len(graph.inputs) + len(wanted) > MOST_POINTERS:
        raise NotScalar(f"it takes and returns more than {MOST_POINTERS} tensors")
    return found


def _kept(graph: Graph, returned: Mapping[int, Value]) -> list[str | None]:
    """For each output how it is written if nothing computes it: an input, a constant, an earlier result."""
    root, inputs = memory_roots(graph), {value: k for k, value in enumerate(graph.inputs)}
    found: list[str | None] = []
    owners: set[Value] = set()
    first: dict[Value, int] = {}
    for number, value in enumerate(graph.outputs):
        if number in returned:
            raise NotScalar("it writes into what it is given")
        if not isinstance(value, Value):
            if value is not None and type(value) not in (bool, int, str):
                raise NotScalar(f"it returns {value!r}")
            found.append(repr(value))
        elif value in inputs:
            found.append(f"x{inputs[value]}")
        elif first.setdefault(value, number) != number:
            found.append(f"results[{first[value]}]")
        elif root[value] in inputs or root[value] in owners:
            raise NotScalar("it returns tensors that share memory")
        else:
            owners.add(root[value])
            found.append(None)
    return found


@dataclass(frozen=True)
class _Caller:
    """The Python function around a native one.

    places: for each computed output the number of its tensor, and its position there if it is one of several.
    kept: for each output of the graph how it is written if it is not computed.
    """

    graph: Graph
    source: Source
    expansion: Expansion
    places: Sequence[tuple[int, int | None]]
    kept: Sequence[str | None]

    def program(self) -> Program:
        """Build, and define the function."""
        source = self.source
        pointers = len(source.inputs) + len(self.expansion.outputs)
        arguments = (pointers, int(self.expansion.samples is not None))
        namespace: dict[str, Any] = {
            "__name__": "pullback.program",
            "native": native_function(source.text, source.name, *arguments),
            "empty_like": torch.empty_like,
            "contiguous_format": torch.contiguous_format,
            "result_like": result_like,
            "Numbers": Numbers,
            **{f"pool{k}": [] for k in self._at_once()},
        }
        header = ["from torch import contiguous_format, empty, empty_like, float32, float64, int32, int64"]
        header[0] += "\nfrom torch import bool as boolean"
        header += ["", "from pullback.native.building import native_function"]
        header += ["from pullback.native.numbers import Numbers"]
        header += ["from pullback.native.results import result_like", "", f'SOURCE = r"""\n{source.text}"""']
        header.append(f'native = native_function(SOURCE, "{source.name}", {arguments[0]}, {arguments[1]})')
        for k, array in enumerate(self.expansion.outputs):
            namespace[f"like{k}"] = torch.empty((), dtype=torch_dtype(array.dtype)).expand(array.shape)
            dtype = "boolean" if array.dtype == "bool" else array.dtype
            header.append(f"like{k} = empty((), dtype={dtype}).expand({array.shape})")
        header += [f"pool{k} = []" for k in sorted(self._at_once())]
        code = "\n".join([*header, "", "", *self.function(), ""])
        return Program(_defined(code, self.function(), namespace, source.name), code, self.graph, source.name)

    def _several(self) -> set[int]:
        """The tensors that hold several results without axes."""
        return {number for number, at in self.places if at is not None}

    def _at_once(self) -> set[int]:
        """Those of them whose results are made tensors by one call."""
        return self._several() if are_made_at_once() else set()

    def function(self) -> list[str]:
        """The lines of the function."""
        return [f"def {self.source.name}({', '.join(f'x{k}' for k in range(len(self.graph.inputs)))}):", *self._body()]

    def _body(self) -> Iterator[str]:
        """Lay inputs out, make the results, call."""
        for k in self.source.inputs:
            value = self.graph.inputs[k]
            conditions = [f"not x{k}.is_contiguous()"] * (value.size > 1) + [f"x{k}.is_neg()"] * value.is_floating
            if conditions:
                yield f"    if {' or '.join(conditions)}:"
                yield f"        x{k} = x{k}.clone(memory_format=contiguous_format)"
        at_once = self._at_once()
        for k, array in enumerate(self.expansion.outputs):
            is_large = array.size * torch_dtype(array.dtype).itemsize >= LEAST
            if k in at_once:
                yield from (f"    {line}" for line in _taken(k, array))
            else:
                yield f"    y{k} = {'result_like' if is_large else 'empty_like'}(like{k})"
        pointers = [f"x{k}.data_ptr()" for k in self.source.inputs]
        pointers += [f"y{k}.{'values' if k in at_once else 'data_ptr()'}" for k in range(len(self.expansion.outputs))]
        pointers += [] if self.expansion.samples is None else [f"{self.expansion.samples}"]
        yield f"    native({', '.join(pointers)})"
        for number in sorted(self._several()):
            members = [k for k, (owner, _) in enumerate(self.places) if owner == number]
            made = "tensors" if number in at_once else "unbind"
            yield f"    {', '.join(f'z{k}' for k in members)} = y{number}.{made}()"
        yield from (f"    pool{k}.append(y{k})" for k in sorted(at_once))
        computed = iter([f"y{n}" if at is None else f"z{k}" for k, (n, at) in enumerate(self.places)])
        results: list[str] = []
        for text in self.kept:
            again = text is not None and text.startswith("results[")
            results.append(next(computed) if text is None else results[int(text[8:-1])] if again else text)
        yield f"    return ({', '.join(results)}{',' if len(results) == 1 else ''})"


def _taken(number: int, array: Array) -> list[str]:
    """Take memory for numbers from the list of what no call uses."""
    made = f'Numbers({array.size}, "{array.dtype}", {torch_dtype(array.dtype).itemsize})'
    return ["try:", f"    y{number} = pool{number}.pop()", "except IndexError:", f"    y{number} = {made}"]


def _defined(code: str, function: Sequence[str], namespace: dict[str, Any], name: str) -> Callable[..., Any]:
    """Run the function's definition; a traceback shows it within its whole text."""
    file = f"<pullback native program {next(_numbers)}: {name}>"
    before = code.count("\n") - len(function)
    exec(compile("\n" * before + "\n".join(function), file, "exec"), namespace)
    run = without_cycles(namespace, name)
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    weakref.finalize(run, linecache.cache.pop, file, None)
    return run
