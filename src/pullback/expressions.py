"""Derived nodes: the labelled expressions that derivatives are made of until lowering; the builder that shares them.

    contract   out[labels] = scale · Σ Π factor[…]                a product of entries, summed over all other labels
    place      out[axes] += value[labels], zero elsewhere          a payload put where its labels say
    apply      a linear operator call on an operand with leading axes

and pointwise ATen operators.  The shape of a derived node is read off its labels and its dtype is that of the value it
is adjoint (or tangent) of, so nothing here needs to know what an operator does.  Equal expressions are one node.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Union, cast, overload

from .graph import COMPLEX, Expression, Graph, Node, Source, Value, real_of, values_in
from .index import Axis, Indices, Label, labels_of, tables_of
from .promotion import broadcast, promote
from .terms import Application, Factor, Scalar, Term, canonical


@dataclass(frozen=True)
class Contraction(Expression):
    """out[labels] = scale · Σ Π factor[…], summed over the labels that are not in `labels`.

    axes: the labels as axes of the result, with `Axis(0)` for every axis of size 1 that is to stand between them.
    """

    scale: Scalar
    factors: tuple[Factor, ...]
    axes: tuple[Axis, ...]

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels of the result, in the order of its axes."""
        return tuple(labels_of(self.axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(axis.parts[0][0].size if axis.parts else 1 for axis in self.axes)

    def values(self) -> Iterator[Value]:
        """Every tensor that is read."""
        for factor in self.factors:
            yield factor.value
            yield from tables_of(factor.axes)

    def replace_values(self, replacement: Callable[[Value], Any]) -> "Contraction":
        """The same expression of other tensors."""
        factors = (Factor(replacement(f.value), _replace_tables(f.axes, replacement), f.conj) for f in self.factors)
        return replace(self, factors=tuple(factors))

    def __str__(self) -> str:
        summed = {label for f in self.factors for label in labels_of(f.axes)} - set(self.labels)
        sigma = f"Σ{''.join(map(repr, sorted(summed, key=lambda s: s.id)))} " if summed else ""
        scale = "" if self.scale == 1 and self.factors else f"{self.scale:g} "
        return f"[{', '.join(map(repr, self.axes))}] {scale}{sigma}{' '.join(map(repr, self.factors))}"


@dataclass(frozen=True)
class Placement(Expression):
    """out[axes] += value[labels] for every setting of the labels; zero elsewhere."""

    value: Value
    labels: tuple[Label, ...]
    axes: Indices

    def values(self) -> Iterator[Value]:
        """Every tensor that is read."""
        yield self.value
        yield from tables_of(self.axes)

    def replace_values(self, replacement: Callable[[Value], Any]) -> "Placement":
        """The same placement of another tensor."""
        return replace(self, value=replacement(self.value), axes=_replace_tables(self.axes, replacement))

    def __str__(self) -> str:
        return f"{self.value.name}[{', '.join(map(repr, self.labels))}] at ({', '.join(map(repr, self.axes))})"


def _replace_tables(axes: Indices, replacement: Callable[[Value], Any]) -> Indices:
    return tuple(
        i if isinstance(i, Axis) else replace(i, table=replacement(i.table), axes=_replace_tables(i.axes, replacement))
        for i in axes
    )


# ---------------------------------------------------------------- building


class Builder:
    """Collects nodes; an expression that was built before is returned, not built again."""

    def __init__(self, device: str = "cpu") -> None:
        self.nodes: list[Node] = []
        self.device = device
        self.source: Source | None = None
        self.scope = ""
        self._known: dict[Any, tuple[Value | None, ...]] = {}
        self._names: dict[str, int] = {}
        self.producer: dict[Value, Node] = {}

    def node(
        self,
        op: str,
        args: tuple[Any, ...],
        types: Sequence[tuple[tuple[int, ...], str] | None],
        kwargs: tuple[tuple[str, Any], ...] = (),
        name: str = "",
    ) -> tuple[Value, ...]:
        """The results of an operator call, one for each (shape, dtype) in `types`."""
        known = self._known.get(_key(op, args, kwargs, types))
        if known is not None and all(k is not None or t is None for k, t in zip(known, types, strict=True)):
            return tuple(k for k, t in zip(known, types, strict=True) if k is not None and t is not None)
        outputs = tuple(
            None if t is None else Value(self.name(name or _short(op)), tuple(t[0]), t[1], self.device) for t in types
        )
        return self._append(Node(op, args, kwargs, outputs, self.source, self.scope))

    def adopt(self, node: Node, *, shared: bool = True) -> tuple[Value | None, ...]:
        """Append a node that exists already; where an equal one is there, return that one's outputs instead.

        shared: whether a later equal node may be this one; not if it draws random numbers.
        """
        known = self._known.get(_key_of(node))
        if known is not None and all(k is not None or o is None for k, o in zip(known, node.outputs, strict=True)):
            return known
        for value in node.results:
            self.reserve(value.name)
        self._append(node, shared)
        return node.outputs

    def _append(self, node: Node, shared: bool = True) -> tuple[Value, ...]:
        self.nodes.append(node)
        self.producer.update((v, node) for v in node.results)
        if shared:
            self._known[_key_of(node)] = node.outputs
        return node.results

    def name(self, wanted: str) -> str:
        """`wanted`, or with a number behind it where it is taken."""
        number = self._names.get(wanted, 0)
        self._names[wanted] = number + 1
        return f"{wanted}_{number}" if number else wanted

    def reserve(self, name: str) -> None:
        """Keep a name for a value that comes from elsewhere."""
        self._names[name] = self._names.get(name, 0) + 1

    def pointwise(self, op: str, *arguments: Any, dtype: str | None = None, name: str = "") -> Value:
        """An operator that works element by element on broadcast arguments."""
        tensors = [a for a in arguments if isinstance(a, Value)]
        shape = broadcast([v.shape for v in tensors])
        return self.node(op, arguments, [(shape, dtype or promote(arguments))], name=name)[0]

    def contract(
        self, scale: Scalar, factors: tuple[Factor, ...], axes: tuple[Axis, ...], dtype: str, name: str = ""
    ) -> Value:
        """The payload of a term over some of its labels, one for each axis; `Axis(0)` is an axis of size 1."""
        shape = tuple(axis.parts[0][0].size if axis.parts else 1 for axis in axes)
        only = factors[0] if len(factors) == 1 and not factors[0].conj else None
        if scale == 1 and only is not None and only.axes == axes and only.value.shape == shape:
            return self.cast(only.value, dtype)
        if isinstance(scale, complex) and dtype not in COMPLEX and all(f.value.dtype not in COMPLEX for f in factors):
            scale = scale.real
        term = canonical(Term(scale, factors, axes, ()))
        expression = Contraction(scale, term.factors, cast(tuple[Axis, ...], term.out))
        return self.node("contract", (expression,), [(shape, dtype)], name=name)[0]

    def place(
        self, value: Value, labels: tuple[Label, ...], axes: Indices, shape: tuple[int, ...], name: str = ""
    ) -> Value:
        """A payload put into a tensor of zeros at the positions its labels say."""
        return self.node("place", (Placement(value, labels, axes),), [(shape, value.dtype)], name=name)[0]

    def apply(
        self, application: Application, operand: Value, width: tuple[int, ...], shape: tuple[int, ...], dtype: str
    ) -> Value:
        """A linear operator applied to each of the operands that lie along the leading axes `width`."""
        return self.node("apply", (application, operand, width), [(width + shape, dtype)])[0]

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype."""
        return value if value.dtype == dtype else self.pointwise("cast", value, dtype, dtype=dtype)


def _key(op: str, args: Any, kwargs: Any, types: Sequence[tuple[tuple[int, ...], str] | None]) -> Any:
    """What equal calls have in common.

    An ATen operator's arguments determine its results; those of an expression do not say its dtype, or how large the
    tensor is that it is placed into.
    """
    results = () if op.startswith("aten.") else tuple(None if t is None else (tuple(t[0]), t[1]) for t in types)
    return op, hashable(args), hashable(kwargs), results


def _key_of(node: Node) -> Any:
    types = [None if v is None else (v.shape, v.dtype) for v in node.outputs]
    return _key(node.op, node.args, node.kwargs, types)


def hashable(tree: Any) -> Any:
    """A key under which 1, 1.0 and True differ, and so do 0.0 and −0.0."""
    if isinstance(tree, tuple):
        return tuple(map(hashable, tree))
    if isinstance(tree, (bool, int, float, complex)):
        return (type(tree), repr(tree))
    return tree


def _short(op: str) -> str:
    return op.split(".")[1] if "." in op else op


def builder_for(graph: Graph) -> Builder:
    """A builder of derived nodes, whose names are none of the graph's."""
    builder = Builder(graph.inputs[0].device if graph.inputs else "cpu")
    for value in values_in((graph.inputs, [n.outputs for n in graph.nodes])):
        builder.reserve(value.name)
    return builder


# ---------------------------------------------------------------- writing formulas

Operand = Union["Symbol", Scalar]


class Symbol:
    """A tensor in a formula: arithmetic on it adds nodes to a builder; `x[i, j]` is an entry of it."""

    __slots__ = ("builder", "value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Value, builder: Builder) -> None:
        self.value = value
        self.builder = builder

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    rank = property(lambda self: len(self.value.shape))
    size = property(lambda self: prod(self.value.shape))

    def __getitem__(self, axes: Any) -> Factor:
        """The entry at these indices; leading axes that a smaller tensor lacks, and axes of size 1, are broadcast."""
        indices = axes if isinstance(axes, tuple) else (axes,)
        own = indices[len(indices) - len(self.shape) :]
        return Factor(self.value, tuple(Axis(0) if n == 1 else i for i, n in zip(own, self.shape, strict=True)))

    def __add__(self, other: Operand) -> "Symbol":
        return self if _is(other, 0) else self.of("add.Tensor", self, other)

    @property
    def is_complex(self) -> bool:
        """Whether its entries are complex numbers."""
        return self.value.dtype in COMPLEX

    @property
    def real_dtype(self) -> str:
        """The dtype of its real part."""
        return real_of(self.dtype)

    def conj(self) -> "Symbol":
        """The complex conjugate; itself where it is real."""
        return self.of("_conj_physical.default", self) if self.is_complex else self

    def real_part(self) -> "Symbol":
        """The real part; itself where it is real."""
        return self.to(real_of(self.dtype))

    def __radd__(self, other: Scalar) -> "Symbol":
        return self + other

    def __sub__(self, other: Operand) -> "Symbol":
        return self if _is(other, 0) else self.of("sub.Tensor", self, other)

    def __rsub__(self, other: Scalar) -> "Symbol":
        return -self if _is(other, 0) else self.of("rsub.Scalar", self, other)

    @overload
    def __mul__(self, other: "Symbol") -> "Symbol": ...

    @overload
    def __mul__(self, other: Operand) -> Operand: ...

    def __mul__(self, other: Operand) -> Operand:
        if _is(other, 0):
            return 0
        return self if _is(other, 1) else -self if _is(other, -1) else self.of("mul.Tensor", self, other)

    def __rmul__(self, other: Scalar) -> Operand:
        return self * other

    def __truediv__(self, other: Operand) -> "Symbol":
        return self if _is(other, 1) else self.of("div.Tensor", self, other)

    def __rtruediv__(self, other: Scalar) -> Operand:
        return 0 if _is(other, 0) else other * self.reciprocal()

    def reciprocal(self) -> "Symbol":
        """1 / x; of an integer in double precision, since what it is multiplied by may have it."""
        exact = self if self.value.is_differentiable else self.to("float64")
        return exact.of("reciprocal.default", exact)

    def __pow__(self, exponent: Operand) -> Operand:
        if isinstance(exponent, Symbol):
            return self.of("pow.Tensor_Tensor", self, exponent)
        return 1 if exponent == 0 else self if exponent == 1 else self.of("pow.Tensor_Scalar", self, exponent)

    def __neg__(self) -> "Symbol":
        node = self.builder.producer.get(self.value)
        if node is not None and node.op == "aten.neg.default":
            return Symbol(node.inputs[0], self.builder)
        return self.of("neg.default", self)

    def __gt__(self, other: Operand) -> "Symbol":
        return self.compare("gt", other)

    def __lt__(self, other: Operand) -> "Symbol":
        return self.compare("lt", other)

    def __ge__(self, other: Operand) -> "Symbol":
        return self.compare("ge", other)

    def __le__(self, other: Operand) -> "Symbol":
        return self.compare("le", other)

    def eq(self, other: Operand) -> "Symbol":
        """Whether each element equals the other."""
        return self.compare("eq", other)

    def ne(self, other: Operand) -> "Symbol":
        """Whether each element differs from the other."""
        return self.compare("ne", other)

    def __and__(self, other: "Symbol") -> "Symbol":
        return self.of("logical_and.default", self, other, dtype="bool")

    def __or__(self, other: "Symbol") -> "Symbol":
        return self.of("logical_or.default", self, other, dtype="bool")

    def __invert__(self) -> "Symbol":
        return self.of("logical_not.default", self, dtype="bool")

    def compare(self, name: str, other: Operand) -> "Symbol":
        """A mask from a comparison."""
        overload = "Tensor" if isinstance(other, Symbol) else "Scalar"
        return self.of(f"{name}.{overload}", self, other, dtype="bool")

    def __getattr__(self, name: str) -> Callable[..., "Symbol"]:
        """Any other pointwise operator by its ATen name: `x.cos()`, `x.clamp_min(0)`."""
        if name.startswith("__"):
            raise AttributeError(name)
        dtype = self.real_dtype if name in ("abs", "angle") and self.is_complex else None
        return lambda *others: self.of(f"{name}.default", self, *others, dtype=dtype)

    def to(self, dtype: str) -> "Symbol":
        """The same numbers in another dtype."""
        return Symbol(self.builder.cast(self.value, dtype), self.builder)

    def of(self, op: str, *arguments: Any, dtype: str | None = None) -> "Symbol":
        """A pointwise operator on symbols and numbers."""
        bare = tuple(a.value if isinstance(a, Symbol) else a for a in arguments)
        return Symbol(self.builder.pointwise(f"aten.{op}", *bare, dtype=dtype), self.builder)


def where(condition: Symbol, yes: Operand, no: Operand) -> Symbol:
    """Choose element by element; the dtype is that of the choices."""
    if not isinstance(yes, Symbol) and not isinstance(no, Symbol):
        return condition.of("where.Scalar", condition, yes, no)
    choices = [a.value if isinstance(a, Symbol) else a for a in (yes, no)]
    overload = {(True, True): "self", (True, False): "ScalarOther", (False, True): "ScalarSelf"}[
        (isinstance(yes, Symbol), isinstance(no, Symbol))
    ]
    return condition.of(f"where.{overload}", condition, yes, no, dtype=promote(choices))


def _is(operand: Any, number: int) -> bool:
    return not isinstance(operand, Symbol) and operand == number


__all__ = ["Builder", "Contraction", "Operand", "Placement", "Symbol", "broadcast", "builder_for"]
__all__ += ["hashable", "promote", "where"]
