"""The kinds of rule, and what a rule is told about the call it describes.

A rule says everything that is known about an operator's derivative; products, both sweeps, sparsity and cost are read
off it.

    Pointwise     a formula for each operand                    ∂y[i]/∂x[j] = d · δ[i,j]; broadcasting is here, once
    Multilinear   an einsum form                                the Jacobian in one operand is the product of the others
    IndexMap      which entry of x each entry of y is           labels alone
    LinearMap     an operator linear in x, and its transpose    applied, never written out
    Function      parts written in labelled terms               for what is none of these (softmax, norms, losses)

How to read an entry.  A formula's parameters are the operator's arguments by position and name; a parameter called `y`
is its output.  A number instead of a formula is a constant derivative; None says that the operand has no derivative.
`pull` names a fused backward kernel that replaces the whole node in reverse mode; it is never differentiated itself.
Every entry carries the samples it is checked with, or a domain from which they are drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from typing import Any

from ..errors import RuleError
from ..expressions import Builder, Operand, Symbol
from ..graph import Node, Value
from ..index import Axis, Index, Indices, fresh, of_label, plain_axes
from ..terms import Application, Factor, Kernel, Part, Scalar, Term
from .precision import as_given, widened

Domain = tuple[float, float]
Parts = Mapping[Any, Sequence[Part]]
REAL: Domain = (-2.0, 2.0)
POSITIVE: Domain = (0.2, 3.0)
UNIT: Domain = (-0.9, 0.9)


# ---------------------------------------------------------------- samples


@dataclass(frozen=True)
class T:
    """A random floating tensor in a sample: its shape, and the open interval its entries are drawn from.

    complex: whether it has an imaginary part, which is drawn from the same interval.
    """

    shape: tuple[int, ...]
    domain: Domain = REAL
    complex: bool = False

    def __init__(self, *shape: int, domain: Domain = REAL, complex: bool = False) -> None:
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "complex", complex)


def C(*shape: int, domain: Domain = REAL) -> T:
    """A random complex tensor in a sample."""
    return T(*shape, domain=domain, complex=True)


@dataclass(frozen=True)
class I:  # noqa: E742
    """A random integer tensor in a sample: its shape, and the bound below which its entries lie."""

    shape: tuple[int, ...]
    bound: int

    def __init__(self, *shape: int, bound: int) -> None:
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "bound", bound)


@dataclass(frozen=True)
class B:
    """A random Boolean tensor in a sample."""

    shape: tuple[int, ...]

    def __init__(self, *shape: int) -> None:
        object.__setattr__(self, "shape", shape)


@dataclass(frozen=True)
class Sample:
    """Arguments to check a rule with; T, I and B stand for random tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", kwargs)

    @property
    def is_complex(self) -> bool:
        """Whether one of the tensors is complex."""
        return any(a.complex for a in _random_tensors((*self.args, *self.kwargs.values())))


def _random_tensors(arguments: tuple[Any, ...]) -> Iterator[T]:
    for argument in arguments:
        if isinstance(argument, T):
            yield argument
        elif isinstance(argument, tuple):
            yield from _random_tensors(argument)


# ---------------------------------------------------------------- calls


@dataclass(frozen=True)
class Call:
    """A node as a rule sees it: tensors as symbols, with a `precision` in that dtype's, everything else as it is."""

    node: Node
    builder: Builder
    precision: str = ""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        return tuple(self._symbolic(a) for a in self.node.args)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        return {name: self._symbolic(a) for name, a in self.node.kwargs}

    @property
    def operands(self) -> tuple[Value, ...]:
        """Every tensor among the arguments, in order; a rule is asked for the Jacobian in one of them by its number."""
        return self.node.inputs

    def output(self, number: int = 0) -> Symbol | None:
        """One of the results; None if nobody reads it."""
        value = self.node.outputs[number]
        return None if value is None else Symbol(value, self.builder)

    def evaluate(self, formula: Callable[..., Any], **special: Any) -> Any:
        """Call a formula with the arguments; `y` is the output, `ys` are all outputs, `g` a cotangent.

        A formula that has no other parameters is not given the arguments.
        """
        names = parameters(formula)
        if "y" in names:
            special["y"] = self.output(next(k for k, v in enumerate(self.node.outputs) if v is not None))
        if "ys" in names:
            special["ys"] = tuple(self.output(k) for k in range(len(self.node.outputs)))
        if names <= special.keys():
            return formula(**special)
        return formula(*self.args, **self.kwargs, **special)

    def _symbolic(self, argument: Any) -> Any:
        if isinstance(argument, Value):
            return widened(argument, self.precision, self.builder)
        if isinstance(argument, tuple):
            return tuple(self._symbolic(a) for a in argument)
        return argument


@cache
def parameters(formula: Callable[..., Any]) -> frozenset[str]:
    """The names of a formula's parameters."""
    return frozenset(signature(formula).parameters)


# ---------------------------------------------------------------- rules

Pull = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """What every kind of rule offers.

    samples: arguments it is checked with.
    pull: for a fused backward kernel: a function of (call, cotangents, wanted) that returns a Value or None for each
        operand, or None altogether if this call is not one that the kernel serves.
    differentiable: numbers of the outputs that have a derivative at all.
    """

    samples: tuple[Sample, ...] = ()
    pull: Pull | None = None
    differentiable: tuple[int, ...] = (0,)

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """The local Jacobian of one output in one operand; no parts: zero."""
        raise NotImplementedError


@dataclass(frozen=True, init=False)
class Pointwise(Rule):
    """An operator that maps each element by itself: ∂y[i]/∂x[j] = d · δ[i,j].

    derivatives: for each tensor operand a formula of the arguments (and `y`), a number, or None.
    domain: the open interval the samples are drawn from; it leaves out every point where d is not the derivative.
    fused: a formula of the arguments, `y` and the cotangent `g` (by keyword), for operand 0.
    """

    derivatives: tuple[Callable[..., Operand] | Scalar | None, ...] = ()
    fused: Callable[..., Symbol] | None = None

    def __init__(
        self,
        *derivatives: Callable[..., Operand] | Scalar | None,
        domain: Domain = REAL,
        samples: Sequence[Sample] = (),
        fused: Callable[..., Symbol] | None = None,
    ) -> None:
        drawn = tuple(samples) or _pointwise_samples(len(derivatives), domain)
        object.__setattr__(self, "samples", drawn)
        object.__setattr__(self, "derivatives", derivatives)
        object.__setattr__(self, "fused", fused)
        object.__setattr__(self, "differentiable", (0,))
        object.__setattr__(self, "pull", _pull_pointwise(fused) if fused else None)

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """One diagonal term, broadcast axes of the operand excepted."""
        formula = self.derivatives[operand]
        y = call.node.outputs[0]
        assert y is not None
        precise = replace(call, precision=y.dtype)
        derivative = as_given(precise.evaluate(formula)) if callable(formula) else formula
        i = plain_axes(y.shape)
        inp = broadcast_axes(i, call.operands[operand].shape)
        if derivative is None or (not isinstance(derivative, Symbol) and derivative == 0):
            return ()
        if isinstance(derivative, Symbol):
            return (Term(1, (derivative[i],), i, inp),)
        return (Term(derivative, (), i, inp),)


def _pointwise_samples(operands: int, domain: Domain) -> tuple[Sample, ...]:
    """Same shapes, a 0-d operand, and shapes that broadcast."""
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = (((2, 3),), ((),))
    if operands == 2:
        shapes = (((2, 3), (2, 3)), ((2, 1), (3,)), ((), (2,)), ((3,), ()))
    if operands == 3:
        shapes = (((2, 3), (2, 3), (2, 3)), ((2, 1), (3,), ()))
    return tuple(Sample(*(T(*shape, domain=domain) for shape in choice)) for choice in shapes)


def _pull_pointwise(fused: Callable[..., Symbol]) -> Pull:
    def pull(call: Call, cotangents: Sequence[Value], wanted: Sequence[bool]) -> tuple[Value | None, ...] | None:
        pulled = call.evaluate(fused, g=Symbol(cotangents[0], call.builder))
        return (pulled.value, *[None] * (len(call.operands) - 1))

    return pull


def fused(op: str, cotangent: Symbol, *arguments: Any, **keywords: Any) -> Symbol:
    """A fused backward kernel whose result has the shape and dtype of the cotangent."""
    bare = tuple(a.value if isinstance(a, Symbol) else a for a in (cotangent, *arguments))
    builder = cotangent.builder
    result = builder.node(op, bare, [(cotangent.shape, cotangent.dtype)], tuple(keywords.items()))
    return Symbol(result[0], builder)


@dataclass(frozen=True)
class Multilinear(Rule):
    """An operator that is an einsum, of which `form` is the whole description.

    The Jacobian in one operand is the product of the others.  A label that the operand shares with the output gives a
    δ; a label that was summed becomes an input label.

    Raises RuleError when `form` is not of the shape 'ij,jk->ik'.
    """

    form: str = ""

    def __post_init__(self) -> None:
        operands, arrow, output = self.form.partition("->")
        if not arrow or not set(output) <= set(operands):
            raise RuleError(
                f"{self.form!r} is not an einsum form: write 'ij,jk->ik', with every output label in an operand"
            )

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """The product of the other operands."""
        return multilinear_parts(self.form, call.operands, operand)


def multilinear_parts(form: str, operands: Sequence[Value], operand: int, scale: Scalar = 1) -> tuple[Part, ...]:
    """The Jacobian of an einsum form in one of its operands."""
    inputs, _, output = form.partition("->")
    letters = inputs.split(",")
    sizes = {s: n for group, v in zip(letters, operands, strict=True) for s, n in zip(group, v.shape, strict=True)}
    axis = {s: of_label(fresh(n)) for s, n in sizes.items()}
    others = tuple(
        Factor(v, tuple(axis[s] for s in group))
        for k, (v, group) in enumerate(zip(operands, letters, strict=True))
        if k != operand
    )
    return (Term(scale, others, tuple(axis[s] for s in output), tuple(axis[s] for s in letters[operand])),)


Image = tuple[Indices, Indices] | Kernel | Sequence[tuple[Indices, Indices]]


@dataclass(frozen=True)
class IndexMap(Rule):
    """An operator each of whose outputs' entries is an entry of one of its operands.

    map: a function of the arguments (and `y`) that returns (out, inp): which entry of y is which entry of x.  It may
        return a list of such pairs, or a `Kernel` where no labels describe the map.  Parameters called `operand` and
        `output` are the numbers of the operand and of the result that are meant.
    operand: which tensor operand is moved; the others (index tensors) have no derivative.  None: each of them is.
    """

    map: Callable[..., Image] | None = None
    operand: int | None = 0

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """Terms without a payload."""
        if self.operand not in (None, operand):
            return ()
        assert self.map is not None
        names = parameters(self.map)
        image = call.evaluate(self.map, **{k: n for k, n in (("operand", operand), ("output", output)) if k in names})
        if isinstance(image, Kernel):
            return (image,)
        pairs = [image] if isinstance(image, tuple) else image
        return tuple(Term(1, (), out, inp) for out, inp in pairs)


@dataclass(frozen=True)
class LinearMap(Rule):
    """An operator that is linear in each of some operands taken alone, given by calls rather than by a formula.

    kernels: for each tensor operand a function of the arguments (and `y`) that returns a `Kernel`, or None.
    """

    kernels: tuple[Callable[..., Kernel] | None, ...] = ()

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """One kernel."""
        make = self.kernels[operand] if operand < len(self.kernels) else None
        return () if make is None else (call.evaluate(make),)


@dataclass(frozen=True)
class Function(Rule):
    """An operator whose Jacobians are written out in labelled terms.

    body: a function of (the arguments, and `y` or `ys`) that returns {operand: parts} for output 0, or
        {(output, operand): parts}; an operand that is missing has the derivative zero.
    source: where the formulas come from.
    """

    body: Callable[..., Mapping[Any, Sequence[Part]]] | None = None
    source: str = ""

    def parts(self, call: Call, output: int, operand: int) -> tuple[Part, ...]:
        """The parts that the function returns for this pair."""
        assert self.body is not None
        table = call.evaluate(self.body)
        found = table.get((output, operand))
        if found is None and output == 0:
            found = table.get(operand)
        return tuple(found or ())


def broadcast_axes(out: Indices, shape: tuple[int, ...]) -> Indices:
    """Which entry of a smaller operand is read at each output position."""
    own = out[len(out) - len(shape) :]
    return tuple(Axis(0) if n == 1 else i for i, n in zip(own, shape, strict=True))


def replaced(axes: Indices, position: int, index: Index) -> Indices:
    """The same indices with one of them exchanged; a negative position counts from the end."""
    position %= max(len(axes), 1)
    return axes[:position] + (index,) + axes[position + 1 :]


__all__ = [
    "POSITIVE",
    "REAL",
    "UNIT",
    "Application",
    "B",
    "C",
    "Call",
    "Function",
    "I",
    "IndexMap",
    "LinearMap",
    "Multilinear",
    "Operand",
    "Parts",
    "Pointwise",
    "Rule",
    "Sample",
    "T",
    "broadcast_axes",
    "fused",
    "multilinear_parts",
    "replaced",
]
