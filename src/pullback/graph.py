"""Computational graphs: typed values, and nodes that compute them.

One language for everything: a captured function, its derivative, and the derivative's derivative are all a `Graph`.
A captured node applies an ATen operator (`aten.mm.default`); a derived node may instead hold a labelled expression
(`contract`, `place`, `apply`: see `expressions.py`) that lowering turns into ATen operators.

Nothing here imports torch.  Dtypes are names ("float32"), devices are strings ("cpu"), and whatever else an operator
takes (a memory format, a layout, a generator) is carried along unread.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

from .errors import GraphError

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
COMPLEX = frozenset({"complex32", "complex64", "complex128"})
_COMPLEX_OF = {"float16": "complex32", "bfloat16": "complex64", "float32": "complex64", "float64": "complex128"}
_REAL_OF = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
_serial = count()


def real_of(dtype: str) -> str:
    """The dtype of the real part of numbers of some dtype."""
    return _REAL_OF.get(dtype, dtype)


def complex_of(dtype: str) -> str:
    """The complex dtype whose real part has some dtype."""
    return _COMPLEX_OF.get(dtype, dtype)


class DType(str):
    """A dtype as an operator's argument, by name; lowering puts PyTorch's object in its place."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The line of the user's program that a node comes from."""

    file: str
    line: int
    function: str = ""
    code: str = ""

    def __str__(self) -> str:
        code = f": {self.code}" if self.code else ""
        return f"{self.file}:{self.line}{code}"


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One tensor that a graph computes or is given.  Two values are equal only if they are the same object."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    serial: int = field(default_factory=lambda: next(_serial))

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether this value has real numbers for entries that vary continuously."""
        return self.dtype in FLOATING

    @property
    def is_differentiable(self) -> bool:
        """Whether a derivative with respect to this value exists at all: it is real or complex."""
        return self.dtype in FLOATING or self.dtype in COMPLEX

    @property
    def type(self) -> str:
        """The type in short, as in `float32[4, 2]`."""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        return f"{self.name}: {self.type}"


class Expression:
    """An argument that holds values inside, as those of derived nodes do."""

    __slots__ = ()

    def values(self) -> Iterator[Value]:
        """Every tensor that is read."""
        raise NotImplementedError

    def replace_values(self, replacement: Callable[[Value], Any]) -> "Expression":
        """The same expression of other tensors."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator applied to values and constants.

    op: "aten.mm.default", or the kind of a derived node.
    args, kwargs: as the operator takes them; a `Value` stands wherever a tensor does, also inside lists (as tuples).
    outputs: one value for each tensor that the operator returns; None for a result that nobody reads.
    source: the user's line.
    scope: the module it was called in, as in "encoder.fc1".
    inputs: every value among the arguments, in order, repeated where it is used twice.
    results: the outputs that somebody reads.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[Value | None, ...]
    source: Source | None = None
    scope: str = ""
    inputs: tuple[Value, ...] = field(init=False, repr=False)
    results: tuple[Value, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:  # once: every pass asks for them
        object.__setattr__(self, "inputs", tuple(values_in((self.args, self.kwargs))))
        object.__setattr__(self, "results", tuple(v for v in self.outputs if v is not None))

    def __str__(self) -> str:
        outputs = ", ".join("_" if v is None else repr(v) for v in self.outputs)
        arguments = [format_argument(a) for a in self.args] + [f"{k}={format_argument(a)}" for k, a in self.kwargs]
        where = f"   # {self.source}" if self.source else ""
        return f"{outputs} = {self.op}({', '.join(arguments)}){where}"


@dataclass(frozen=True)
class Graph:
    """A straight-line program: inputs, nodes in an order that computes, outputs.

    inputs: what the program is called with, in order.
    outputs: what it returns; a constant (a number, None) may stand beside the values.
    mutations: (input, value) pairs; after the program ran, `value` is copied into `input` (BatchNorm's buffers).
    """

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Any, ...]
    mutations: tuple[tuple[Value, Value], ...] = ()

    def producers(self) -> dict[Value, Node]:
        """The node that computes each value that is not an input."""
        return {v: node for node in self.nodes for v in node.results}

    def check(self) -> None:
        """Raise GraphError unless every value is defined once, and before it is read."""
        known: set[Value] = set(self.inputs)
        if len(known) != len(self.inputs):
            raise GraphError("a graph lists the same input twice")
        for node in self.nodes:
            for value in node.inputs:
                if value not in known:
                    raise GraphError(f"{value!r} is read by {node.op} before it is computed")
            for value in node.results:
                if value in known:
                    raise GraphError(f"{value!r} is computed twice, the second time by {node.op}")
                known.add(value)
        for value in values_in((self.outputs, self.mutations)):
            if value not in known:
                raise GraphError(f"the graph returns {value!r}, which nothing computes")

    def __str__(self) -> str:
        lines = [f"graph({', '.join(map(repr, self.inputs))}):"]
        lines += [f"  {node}" for node in self.nodes]
        lines += [f"  write {new.name} into {old.name}" for old, new in self.mutations]
        return "\n".join([*lines, f"  return {', '.join(format_argument(v) for v in self.outputs)}"])


def values_in(tree: Any) -> Iterator[Value]:
    """Every value in nested tuples, lists and `Expression`s, in order."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from values_in(item)
    elif isinstance(tree, Expression):
        yield from tree.values()


def replace_values(tree: Any, replacement: Callable[[Value], Any]) -> Any:
    """The same nested tuples with every value replaced."""
    if isinstance(tree, Value):
        return replacement(tree)
    if isinstance(tree, (tuple, list)):
        return tuple(replace_values(item, replacement) for item in tree)
    if isinstance(tree, Expression):
        return tree.replace_values(replacement)
    return tree


def live_nodes(nodes: tuple[Node, ...], wanted: Any) -> tuple[Node, ...]:
    """The nodes that `wanted` depends on, in the same order."""
    needed = set(values_in(wanted))
    kept = []
    for node in reversed(nodes):
        if any(v in needed for v in node.results):
            kept.append(node)
            needed.update(node.inputs)
    return tuple(reversed(kept))


def differentiable_inputs(graph: Graph, wanted: Any) -> tuple[int, ...]:
    """The numbers of the inputs that wanted values depend on, other than through `detach`."""
    found = set(values_in(wanted))
    for node in reversed(graph.nodes):
        if node.op != "aten.detach.default" and any(v in found and v.is_differentiable for v in node.results):
            found.update(v for v in node.inputs if v.is_differentiable)
    return tuple(k for k, value in enumerate(graph.inputs) if value in found and value.is_differentiable)


def format_argument(argument: Any) -> str:
    """A constant as Python writes it, a value by its name."""
    if isinstance(argument, Value):
        return argument.name
    if isinstance(argument, (tuple, list)):
        return f"[{', '.join(map(format_argument, argument))}]"
    return str(argument) if isinstance(argument, Expression) else repr(argument)
