"""A graph of ATen operators becomes one Python function.

The text stands by itself: pasted into a file it runs, and it is what tracebacks show.  Operators are names of the
module that the function lives in; binding them as defaults or in a closure instead was measured to gain nothing.  A
value is forgotten after its last use, so that its memory serves the next one.
"""

import builtins
import keyword
import linecache
import os.path
import re
import unicodedata
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from math import isfinite, isnan
from typing import Any

import torch

from ..dtypes import torch_dtype
from ..errors import GraphError
from ..graph import Expression, Graph, Node, Source, Value, values_in
from ..own_derivatives import PRODUCTS
from ..terms import HOLE, fill
from ..torch_private import QUICKER, fast_overload
from .aliases import protect_from_mutations
from .builtins import BUILTINS, SPELLINGS, Call, facts, spell, with_defaults, without_defaults
from .namespace import without_cycles
from .overlap import NoOverlap
from .preparation import Prepared, taken
from .program import Program
from .rehearsal import Layouts, plain_strides
from .workspace import Workspace

WIDTH = 120
_numbers = count(1)


def emit_python(
    graph: Graph,
    name: str = "program",
    *,
    plain: bool = False,
    returned: Mapping[int, Value] | None = None,
    layouts: Layouts | None = None,
) -> Program:
    """The program that computes a lowered graph.

    Arguments:
        graph: what it computes.
        name: what the function is called.
        plain: whether it will run on plain tensors only, outside all traces; then small constants are computed once and
            for all, and large intermediate values are overwritten.
        returned: outputs, by number, that are an input itself, after it was written into.
        layouts: for a program whose operators are called as they stand, the strides of those results that may be
            computed into given memory, which then has these; None where it may be rewritten, to rounding.

    Raises GraphError if a node is neither an ATen operator nor `batched`.

    Cost: linear in the number of nodes; about 30 µs each, of which Python's own compiler takes a half.
    """
    ready = taken(graph, layouts) if plain else Prepared(Workspace(protect_from_mutations(graph)), {}, ())
    facts_of_run = (ready.constants, ready.workspace, ready.written)
    writer = _Writer(ready.workspace.graph, identifier(name), *facts_of_run, returned=returned or {})
    name, body, header = writer.name, writer.body(), writer.header()
    code = "\n".join([*header, *body, ""])
    file = f"<pullback program {next(_numbers)}: {name}>"
    # The header is text for readers: what it names is bound already, and operators by a callable that is quicker.
    exec(compile("\n" * len(header) + "\n".join(body), file, "exec"), writer.namespace)
    run = without_cycles(writer.namespace, name)
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    weakref.finalize(run, linecache.cache.pop, file, None)
    return Program(run, code, graph, name)


# ---------------------------------------------------------------- names

_RESERVED = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "_", "row", "torch", "vmap", "inf", "nan", "__debug__"}
    | {op.split(".")[1].strip("_") for op in (*BUILTINS, *SPELLINGS)}
    | {b.path.split(".")[-1] for b in BUILTINS.values()}
    | {"broadcast_to", "float16", "bfloat16", "float32", "float64", "int32", "int64"}
)


def identifier(name: str) -> str:
    """A Python name as near to `name` as can be: `fc1.weight` becomes `fc1_weight`."""
    plain = re.sub(r"\W", "_", unicodedata.normalize("NFKC", name)) or "value"
    if not plain.isidentifier():
        plain = f"_{plain}" if f"_{plain}".isidentifier() else re.sub(r"[^0-9A-Za-z_]", "_", f"_{plain}")
    return f"{plain}_" if keyword.iskeyword(plain) else plain


class _Names:
    """Names in use; those of operators come first."""

    def __init__(self, reserved: set[str]) -> None:
        self.taken = set(reserved)
        self.next: dict[str, int] = {}

    def claim(self, wanted: str) -> str:
        """`wanted`, or with a number behind it where it is taken."""
        name = wanted
        while name in self.taken:
            number = self.next.get(wanted, 0)
            self.next[wanted] = number + 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


# ---------------------------------------------------------------- writing


@dataclass
class _Writer:
    """The state of one emission: the names of values, and what the text refers to besides them."""

    graph: Graph
    name: str
    constants: Mapping[Value, torch.Tensor]
    workspace: Workspace
    written: tuple[Value, ...] = ()
    hoisted: list[str] = field(default_factory=list)
    namespace: dict[str, Any] = field(default_factory=dict)
    imports: dict[str, list[str]] = field(default_factory=dict)
    assignments: list[str] = field(default_factory=list)
    bound: dict[Any, str] = field(default_factory=dict)
    values: dict[Value, str] = field(default_factory=dict)
    returned: Mapping[int, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ops = {node.args[0] if node.op == "batched" else node.op for node in self.graph.nodes}
        self.operators = {*_RESERVED, *(op.split(".")[1] for op in ops if op.count(".") == 2)}
        self.names = _Names(self.operators)
        self.name = self.names.claim(self.name)
        self.namespace["__name__"] = "pullback.program"
        for value in self.graph.inputs:
            self._define(value)

    def body(self) -> list[str]:
        """The function, line by line; ahead of it the one that makes its workspace."""
        inputs = ", ".join(self.values[v] for v in self.graph.inputs)
        maker, opening, closing = self._workspace()
        lines = [f"def {self.name}({inputs}):"]
        if self.written:
            lines.append(f"    {self._overlap_check()}({inputs})")
        lines += opening
        last_uses = self._last_uses()
        source: Source | None = None
        for position, node in enumerate(self.graph.nodes):
            if any(v in self.constants for v in node.results):
                self._hoist(node)
                continue
            if node.source is not None and node.source != source:
                source = node.source
                lines.append(f"    # {_place(source)}")
            lines.append(f"    {self._statement(node)}")
            forgotten = [self.values[v] for v in last_uses.get(position, ())]
            if "_, " in lines[-1].partition("=")[0]:
                forgotten.append("_")
            if forgotten:
                lines.append(f"    del {', '.join(forgotten)}")
        lines += [f"    {self.values[old]}.copy_({self.values[new]})" for old, new in self.graph.mutations]
        outputs = [self.returned.get(k, output) for k, output in enumerate(self.graph.outputs)]
        return [*maker, *lines, *closing, f"    return {self._write(tuple(outputs))}"]

    def _workspace(self) -> tuple[list[str], list[str], list[str]]:
        """The function that makes a workspace, how a call takes one, and how it gives it back."""
        workspace, values = self.workspace, self.workspace.values
        if not values:
            return [], [], []
        make, store, own = (self.names.claim(name) for name in ("make_workspace", "workspaces", "workspace"))
        viewed = ", ".join(self.values[v] for v in workspace.viewed)
        lines = [f"def {make}({viewed}):"]
        for value in workspace.tensors:
            made = self._call(*_empty(value, workspace.strides.get(value)))
            lines.append(f"    {self._define(value)} = {made}")
        lines += [f"    {self._statement(node)}" for node in workspace.views]
        places = f"({''.join(f'{self.values[v]}.data_ptr(), ' for v in workspace.viewed)})"
        held = ", ".join(self.values[v] for v in values)
        lines += [f"    return {places}, {held}", "", "", f"{store} = []", "", ""]
        opening = ["    try:", f"        place, {held} = {own} = {store}.pop()"]
        opening += ["    except IndexError:", "        place = None"]
        opening += [f"    if place != {places}:", f"        _, {held} = {own} = {make}({viewed})"]
        return lines, opening, [f"    {store}.append({own})"]

    def _overlap_check(self) -> str:
        """Bind the check of what is written into."""
        names = tuple(v.name for v in self.graph.inputs)
        numbers = tuple(k for k, v in enumerate(self.graph.inputs) if v in self.written)
        check = self._import("pullback.emit.overlap", "NoOverlap", NoOverlap)
        return self._assign(self.names.claim("check"), f"{check}({names!r}, {numbers!r})", NoOverlap(names, numbers))

    def header(self) -> list[str]:
        """Imports and constants, in order of the alphabet; then what is computed once, in its own order."""
        lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(self.imports.items())]
        lines = ["import torch", *(wrapped for line in lines for wrapped in _wrap(line))]
        assignments = [*sorted(self.assignments), *self.hoisted]
        return [*lines, *([""] if assignments else []), *assignments, "", ""]

    def _last_uses(self) -> dict[int, list[Value]]:
        """Which values are forgotten after which node: neither inputs nor results."""
        kept = {*values_in((self.graph.inputs, self.graph.outputs, self.graph.mutations)), *self.constants}
        kept |= {*self.workspace.values}
        last: dict[int, list[Value]] = {}
        for position in range(len(self.graph.nodes) - 1, -1, -1):
            node = self.graph.nodes[position]
            for value in (*node.inputs, *node.results):
                if value not in kept:
                    kept.add(value)
                    last.setdefault(position, []).append(value)
        return last

    def _hoist(self, node: Node) -> None:
        """Compute a constant ahead of the function; the text says how."""
        self.hoisted.append(self._statement(node))
        self.namespace[self.values[node.results[0]]] = self.constants[node.results[0]]

    def _define(self, value: Value) -> str:
        return self.values.setdefault(value, self.names.claim(identifier(value.name)))

    def _statement(self, node: Node) -> str:
        if node.op == "batched":
            return f"{self._define(node.results[0])} = {self._batched(node)}"
        if node.op.count(".") != 2:
            raise GraphError(f"{node} is no ATen operator: lower the graph before a program is made of it")
        text = self._call(node.op, node.args, dict(node.kwargs))
        if not node.results:
            return text
        if not facts(node.op).returns_many:
            return f"{self._define(node.results[0])} = {text}"
        if len(node.results) == 1:
            number = next(k for k, v in enumerate(node.outputs) if v is not None)
            return f"{self._define(node.results[0])} = {text}[{number}]"
        return f"{', '.join('_' if v is None else self._define(v) for v in node.outputs)} = {text}"

    def _batched(self, node: Node) -> str:
        """`vmap` over the leading axis of the operand, with everything else as it is."""
        op, args, kwargs, output, operand = node.args
        row = Value("row", operand.shape[1:], operand.dtype, operand.device)
        self.values[row] = "row"
        text = self._call(op, fill(args, row), dict(kwargs))
        result = f"[{output}]" if facts(op).returns_many else ""
        return f"{self._builtin('vmap')}(lambda row: {text}{result})({self.values[operand]})"

    def _call(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        args, kwargs = without_defaults(op, args, kwargs)
        args = with_defaults(op, args) if op in QUICKER else args
        call = Call(op, args, kwargs, self._write, self._builtin)
        return spell(call) or call.text(self._overload(op), *args, **kwargs)

    # ------------------------------------------------------------ what the text refers to

    def _builtin(self, path: str) -> str:
        """Import a public function, given its path below `torch`."""
        if path not in self.bound:
            module, _, name = f"torch.{path}".rpartition(".")
            target = torch
            for part in path.split("."):
                target = getattr(target, part)
            self.bound[path] = self._import(module, name, target)
        return self.bound[path]

    def _import(self, module: str, name: str, target: Any) -> str:
        """Names of operators are kept free for them, so that only a second of the same name needs another."""
        free = name in self.operators or name not in self.names.taken
        used = name if free and self.namespace.get(name, target) is target else self.names.claim(name)
        self.names.taken.add(used)
        self.imports.setdefault(module, []).append(name if used == name else f"{name} as {used}")
        self.namespace[used] = target
        return used

    def _overload(self, op: str) -> str:
        """Bind an operator for which there is no builtin."""
        if op not in self.bound:
            name = op.split(".")[1]
            if name in self.namespace or name in _RESERVED:
                name = self.names.claim("_".join(op.split(".")[1:]))
            self.bound[op] = self._assign(name, f"torch.ops.{op}", PRODUCTS.get(op) or fast_overload(op))
        return self.bound[op]

    def _assign(self, name: str, text: str, target: Any) -> str:
        self.assignments.append(f"{name} = {text}")
        self.namespace[name] = target
        return name

    def _write(self, argument: Any) -> str:
        """An argument as Python text."""
        if isinstance(argument, Value):
            return self.values[argument]
        if argument is None or type(argument) in (bool, int, str, complex):
            return repr(argument)
        if isinstance(argument, float):
            return self._number(argument)
        if isinstance(argument, (tuple, list)):
            return f"({', '.join(map(self._write, argument))}{',' if len(argument) == 1 else ''})"
        if isinstance(argument, Expression) or argument is HOLE:
            raise GraphError(f"no operator takes {argument!r}: lower the graph before a program is made of it")
        return self._constant(argument)

    def _number(self, number: float) -> str:
        if isfinite(number):
            return repr(float(number))
        name = "nan" if isnan(number) else "inf"
        if name not in self.namespace:
            self._import("math", name, float(name))
        return f"-{name}" if number < 0 else name

    def _constant(self, argument: Any) -> str:
        """A dtype, a layout, a device, by name; anything else is bound as it is."""
        try:
            if argument in self.bound:
                return self.bound[argument]
        except TypeError:  # not hashable, so that it cannot be found again
            return self._assign(self.names.claim("constant"), repr(argument), argument)
        if isinstance(argument, (torch.dtype, torch.layout, torch.memory_format)):
            name = self._import("torch", str(argument).removeprefix("torch."), argument)
        elif isinstance(argument, torch.device):
            name = self.names.claim(identifier(str(argument)))
            self._assign(name, f'torch.device("{argument}")', argument)
        else:
            name = self._assign(self.names.claim("constant"), repr(argument), argument)
        self.bound[argument] = name
        return name


def _empty(value: Value, strides: tuple[int, ...] | None) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The operator and the arguments that make a tensor like a value."""
    kind = {"dtype": torch_dtype(value.dtype), "device": torch.device(value.device)}
    if strides is None or strides == plain_strides(value.shape):
        return "aten.empty.memory_format", (value.shape,), kind
    return "aten.empty_strided.default", (value.shape, strides), kind


def _place(source: Source) -> str:
    code = " ".join(source.code.split())
    code = f": {code}" if code else ""
    return f"{os.path.basename(source.file)}:{source.line}{code}"[: WIDTH - 6]


def _wrap(line: str) -> Iterator[str]:
    """An import on several lines, where it is too long for one."""
    if len(line) <= WIDTH:
        yield line
        return
    head, _, names = line.partition(" import ")
    yield f"{head} import ("
    yield from (f"    {name}," for name in names.split(", "))
    yield ")"
