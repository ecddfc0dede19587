"""Programs on arrays as machine code: what there is native code for runs as one function of C, or a few of them.

Between them stand PyTorch's operators, for what there is no native code for.  Intermediate results lie in scratch
memory that they share; what a caller gets is fresh memory at every call.
"""

import ctypes
import linecache
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..cost import CostModel
from ..dtypes import empty_of, torch_dtype
from ..graph import Graph, Value
from ..native.building import native_function
from ..native.functions import NestFunction
from ..native.layouts import dense
from ..native.libraries import blas
from ..native.results import LEAST, result_like
from .mixture import Mixture, mixed
from .namespace import without_cycles
from .offers import Declined, Offer
from .overlap import NoOverlap
from .prediction import predicted_seconds
from .program import Program
from .python import emit_python, identifier
from .segments import Segment

LARGEST = 2**12  # elements of a result that a pattern is kept for, of which a new one is made sooner
LONGEST_BUILD = 20  # seconds
LARGEST_KEPT = 2**23  # bytes of scratch memory that outlive a call
_numbers = count(1)


def emit_loops(
    graph: Graph, name: str = "program", *, plain: bool = False, returned: Mapping[int, Value] | None = None
) -> Program:
    """The program of a lowered graph, native wherever that saves anything; arguments as of `emit_python`.

    Raises:
        Declined: it would save nothing, or take the compiler too long.
        NativeError: there is no compiler.

    Cost: the compiler's, about 0.02 s for each different kernel, the first time on a machine.
    """
    if not plain:
        return emit_python(graph, name, plain=plain, returned=returned)
    mixture = _PREPARED.pop(graph, None) or _worthwhile(graph)
    return _Writer(mixture, name, returned or {}).program(graph)


def offer_of_loops(graph: Graph, model: CostModel) -> Offer:
    """What machine code for loops over arrays promises.

    Raises Declined: it would save nothing, or take the compiler too long.

    Cost: linear in the number of operators; about 0.15 ms each, which emission is saved.
    """
    mixture = _PREPARED[graph] = _worthwhile(graph)
    others = [segment.graph for segment in mixture.segments if not segment.is_native]
    seconds = sum(predicted_seconds(other, model) for other in others)
    seconds += sum(function.seconds for function in mixture.functions.values())
    return Offer(seconds, sum(function.build for function in mixture.functions.values()))


def _worthwhile(graph: Graph) -> Mixture:
    mixture = mixed(graph)
    if not mixture.functions:
        raise Declined("there is nothing that machine code would save")
    build = sum(function.build for function in mixture.functions.values())
    if build > LONGEST_BUILD:
        raise Declined(f"the compiler would take {build:.0f} s for its different kernels, more than {LONGEST_BUILD}")
    return mixture


_PREPARED: WeakKeyDictionary[Graph, Mixture] = WeakKeyDictionary()  # between an offer and its acceptance


@dataclass(frozen=True)
class _Instead:
    """The Python program, for arguments that PyTorch refuses."""

    graph: Graph
    name: str
    returned: Mapping[int, Value]

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """What the Python program returns, or raises."""
        return emit_python(self.graph, self.name, plain=True, returned=self.returned).run(*arguments)

    def __str__(self) -> str:
        return f"{self.name} in PyTorch's operators"


@dataclass
class _Writer:
    """Writes the Python around the segments."""

    mixture: Mixture
    title: str
    returned: Mapping[int, Value]
    names: dict[Value, str] = field(default_factory=dict)
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "pullback.program"})
    header: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    dense: dict[Value, str] = field(default_factory=dict)
    scratch: int = 0
    is_checked: bool = False

    def program(self, original: Graph) -> Program:
        """The program, compiled."""
        self._bind("empty_like", torch.empty_like, "from torch import empty_like, empty_strided")
        self._bind("empty_strided", torch.empty_strided)
        self._bind("contiguous_format", torch.contiguous_format, "from torch import contiguous_format")
        for value, tensor in self.mixture.constants.items():
            self._bind(
                self._name(value),
                tensor,
                f"{self._name(value)} = torch.tensor({tensor.tolist()}, dtype={tensor.dtype})",
            )
        inputs = ", ".join(self._name(v) for v in self.mixture.graph.inputs)
        calls = [
            line for number, segment in enumerate(self.mixture.segments) for line in self._segment(number, segment)
        ]
        opening, closing = self._scratch()
        updated = {old for function in self.mixture.functions.values() for old in function.updates}
        left = [(old, new) for old, new in self.mixture.graph.mutations if old not in updated]
        writes = [f"{self._name(old)}.copy_({self._name(new)})" for old, new in left]
        if self.is_checked:
            opening.insert(0, self._status(original))
        if self.mixture.graph.mutations:
            opening.insert(0, self._overlap_check(inputs))
        outputs = [self.returned.get(k, output) for k, output in enumerate(self.mixture.graph.outputs)]
        result = "".join(f"{self._written(output)}, " for output in outputs).removesuffix(" ")
        body = [*opening, *calls, *closing, *writes, f"return ({result})"]
        name = identifier(self.title)
        while name in self.namespace:
            name += "_"
        lines = [f"def {name}({inputs}):", *(f"    {line}" for line in body)]
        return self._compiled(name, lines, original)

    def _status(self, original: Graph) -> str:
        """What a native function sets where PyTorch refuses the arguments: then PyTorch is asked, for its own error."""
        self._bind("c_int64", ctypes.c_int64, "from ctypes import byref, c_int64")
        self._bind("byref", ctypes.byref)
        instead = _Instead(original, self.title, self.returned)
        self._bind("instead", instead, f"instead = None  # {instead}")
        return "status = c_int64()"

    def _overlap_check(self, inputs: str) -> str:
        """What refuses a tensor that is written into where it shares memory with another one."""
        given, written = self.mixture.graph.inputs, {old for old, _ in self.mixture.graph.mutations}
        names, numbers = tuple(v.name for v in given), tuple(k for k, v in enumerate(given) if v in written)
        self.header.append("from pullback.emit.overlap import NoOverlap")
        self._bind("check", NoOverlap(names, numbers), f"check = NoOverlap({names!r}, {numbers!r})")
        return f"check({inputs})"

    def _compiled(self, name: str, lines: Sequence[str], original: Graph) -> Program:
        header = ["import torch", *dict.fromkeys(self.header), "", ""]
        code = "\n".join([*header, *self.others, *lines, ""])
        file = f"<pullback program {next(_numbers)}: {name}>"
        exec(compile("\n".join(lines), file, "exec"), self.namespace)
        run = without_cycles(self.namespace, name)
        linecache.cache[file] = (len(code), None, [f"{line}\n" for line in lines], file)
        weakref.finalize(run, linecache.cache.pop, file, None)
        return Program(run, code, original, self.title)

    def _bind(self, name: str, target: Any, text: str = "") -> str:
        self.namespace[name] = target
        if text:
            self.header.append(text)
        return name

    def _name(self, value: Value) -> str:
        return self.names.setdefault(value, f"v{len(self.names)}_{re.sub(r'[^0-9A-Za-z_]', '_', value.name)}")

    def _written(self, output: Any) -> str:
        if isinstance(output, Value):
            return self._name(output)
        if output is None or isinstance(output, (bool, int, float, complex, str)):
            return repr(output)
        return self._bind(f"constant_{len(self.namespace)}", output, "")

    def _segment(self, number: int, segment: Segment) -> list[str]:
        """What calls a segment."""
        graph = segment.graph
        if segment.is_native:
            return self._native(self.mixture.functions[number])
        part = emit_python(graph, f"{self.title}_part_{number}", plain=True)
        self.others.append(part.code)
        name = self._bind(part.run.__name__, part.run)
        results = "".join(f"{self._name(v)}, " for v in graph.outputs)
        return [f"{results}= {name}({', '.join(self._name(v) for v in graph.inputs)})"]

    def _native(self, function: NestFunction) -> list[str]:
        """What makes fresh memory for the results, and calls the function."""
        name = function.name
        pointers = len(function.inputs) + len(function.outputs) + len(function.libraries) + 1 + function.is_checked
        compiled = native_function(function.source, name, pointers)
        self.header.append("from pullback.native.building import native_function")
        self._bind(name, compiled, f'{name} = native_function(r"""{function.source}""", "{name}", {pointers})')
        self.scratch = max(self.scratch, function.scratch)
        given = {
            *self.mixture.graph.inputs,
            *(v for s in self.mixture.segments if not s.is_native for v in s.graph.outputs),
        }
        lines = [line for v in function.inputs if v in given for line in self._laid_out(v)]
        lines += [f"{self._name(v)} = {self._empty(v)}" for v in function.outputs]
        arguments = [self._pointer(v) for v in (*function.inputs, *function.outputs)]
        back = [line for v in function.updates for line in self._written_back(v)]
        arguments += [self._library(dtype) for dtype in function.libraries]
        arguments.append("scratch.data_ptr()" if function.scratch else "0")
        if not function.is_checked:
            return [*lines, f"{name}({', '.join(arguments)})", *back]
        self.is_checked = True
        inputs = ", ".join(self._name(v) for v in self.mixture.graph.inputs)
        lines += [f"{name}({', '.join([*arguments, 'byref(status)'])})", "if status.value:"]
        return [*lines, f"    return instead({inputs})", *back]

    def _laid_out(self, value: Value) -> Iterator[str]:
        """What makes a copy of a tensor that does not lie as functions expect, once in a program."""
        name = self._name(value)
        conditions = [f"not {name}.is_contiguous()"] * (value.size > 1) + [f"{name}.is_neg()"] * value.is_floating
        if conditions and value not in self.dense:
            copy = self.dense[value] = f"dense_{name}"
            yield f"{copy} = {name}.clone(memory_format=contiguous_format) if {' or '.join(conditions)} else {name}"

    def _pointer(self, value: Value) -> str:
        return f"{self.dense.get(value, self._name(value))}.data_ptr()"

    def _written_back(self, value: Value) -> Iterator[str]:
        """What an overwritten copy of a tensor is copied back by."""
        copy = self.dense.get(value)
        if copy is not None:
            yield f"if {copy} is not {self._name(value)}: {self._name(value)}.copy_({copy})"

    def _empty(self, value: Value) -> str:
        kind = self._bind(value.dtype, torch_dtype(value.dtype), f"from torch import {value.dtype}")
        if value.size * torch_dtype(value.dtype).itemsize >= LEAST:
            return self._remembered(value.shape, value.dtype)
        if value.size <= LARGEST:
            key = f"like_{value.dtype}_{'_'.join(map(str, value.shape))}"
            if key not in self.namespace:
                self._bind(key, empty_of(value), f"{key} = torch.empty({value.shape}, dtype=torch.{kind})")
            return f"empty_like({key})"
        return f"empty_strided({value.shape}, {dense(value.shape).strides}, dtype={kind}, device='cpu')"

    def _remembered(self, shape: Sequence[int], dtype: str) -> str:
        """What makes a large tensor, where an earlier one lay that nobody holds any more."""
        key = f"large_{dtype}_{'_'.join(map(str, shape))}"
        self._bind("result_like", result_like, "from pullback.native.results import result_like")
        text = f"{key} = torch.empty((), dtype=torch.{dtype}).expand({tuple(shape)})"
        return f"result_like({self._bind(key, torch.empty((), dtype=torch_dtype(dtype)).expand(shape), text)})"

    def _library(self, dtype: str) -> str:
        name = f"blas_{dtype}"
        self.header.append("from pullback.native.libraries import blas")
        return name if name in self.namespace else self._bind(name, blas(dtype), f'{name} = blas("{dtype}")')

    def _scratch(self) -> tuple[list[str], list[str]]:
        """How a call takes scratch memory, and how it gives it back."""
        if not self.scratch:
            return [], []
        make = f"torch.empty({self.scratch}, dtype=torch.uint8, device='cpu')"
        self._bind("torch", torch)
        if self.scratch > LARGEST_KEPT:
            return [f"scratch = {self._remembered((self.scratch,), 'uint8')}"], []
        pool = self._bind("pool", [], "pool = []")
        return ["try:", f"    scratch = {pool}.pop()", "except IndexError:", f"    scratch = {make}"], [
            f"{pool}.append(scratch)"
        ]
