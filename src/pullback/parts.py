"""The parts that Jacobians are made of: terms, kernels and chains; see `terms` for what they mean."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .errors import GraphError
from .graph import COMPLEX, Expression, Value, complex_of, real_of, replace_values, values_in
from .index import Indices

Scalar = complex | float | int


class Hole:
    """Where in an argument list the operand of a linear map goes."""

    def __repr__(self) -> str:
        return "□"


HOLE = Hole()


@dataclass(frozen=True, slots=True)
class Factor:
    """The entry of a tensor at a position, or its conjugate."""

    value: Value
    axes: Indices
    conj: bool = False

    def __repr__(self) -> str:
        name = f"{self.value.name}*" if self.conj else self.value.name
        return f"{name}[{', '.join(map(repr, self.axes))}]" if self.axes else name


@dataclass(frozen=True, slots=True)
class Term:
    """One product; see the head of this file.

    antilinear: whether it is multiplied on to the conjugate of what comes in.
    """

    scale: Scalar
    factors: tuple[Factor, ...]
    out: Indices
    inp: Indices
    antilinear: bool = False

    @property
    def is_complex(self) -> bool:
        """Whether entries may have an imaginary part."""
        return isinstance(self.scale, complex) or any(f.value.dtype in COMPLEX for f in self.factors)

    def __repr__(self) -> str:
        payload = " ".join(map(repr, self.factors))
        scale = "" if self.scale == 1 and payload else f"{self.scale:g}" + (" " if payload else "")
        bar = "*" if self.antilinear else ""
        return f"{scale}{payload} at ({', '.join(map(repr, self.out))} | {', '.join(map(repr, self.inp))}){bar}"


@dataclass(frozen=True)
class Application(Expression):
    """A linear operator call with its operand left open: `op(*args)` with `HOLE` for the operand.

    output: which of the operator's results is meant.
    leading: whether the operator leaves further leading axes of the operand alone, so that many operands can be
        passed at once by stacking them in front; otherwise they are mapped over.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()
    output: int = 0
    leading: bool = False

    def values(self) -> Iterator[Value]:
        """Every tensor but the operand."""
        return values_in((self.args, self.kwargs))

    def replace_values(self, replacement: Callable[[Value], Any]) -> "Application":
        """The same call on other tensors."""
        return replace(
            self, args=replace_values(self.args, replacement), kwargs=replace_values(self.kwargs, replacement)
        )

    def __repr__(self) -> str:
        arguments = ", ".join(a.name if isinstance(a, Value) else repr(a) for a in self.args)
        return f"{self.op}({arguments})"


def fill(arguments: tuple[Any, ...], operand: Any) -> tuple[Any, ...]:
    """The arguments with the operand in its place."""
    return tuple(operand if a is HOLE else fill(a, operand) if isinstance(a, tuple) else a for a in arguments)


@dataclass(frozen=True)
class Kernel:
    """A linear map from x to y by two operators: `push` takes a tangent of x to one of y, `pull` a cotangent back.

    x and y are both real, or both complex; then the map is linear over the complex numbers, and `pull` its adjoint.
    """

    push: Application
    pull: Application

    def __repr__(self) -> str:
        return f"kernel {self.push!r}"


@dataclass(frozen=True)
class Chain:
    """A product of Jacobians that is not multiplied out: they are applied one after another, the last one first."""

    factors: tuple["Jac", ...]

    def __repr__(self) -> str:
        return " ∘ ".join(f"({factor})" for factor in self.factors)


Part = Term | Kernel | Chain


@dataclass(frozen=True)
class Jac:
    """A Jacobian: parts that add up, the shapes on both sides, and the dtypes of both sides.

    No parts means zero.  A cotangent is cast to `in_dtype` after all that arrives at x has been summed; of a complex
    one the real part is taken where x is real.
    """

    parts: tuple[Part, ...]
    out_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_dtype: str = "float32"
    in_dtype: str = "float32"

    def check(self) -> None:
        """Raise GraphError unless every term has one index for each axis."""
        for part in self.parts:
            if isinstance(part, Term) and (len(part.out), len(part.inp)) != (len(self.out_shape), len(self.in_shape)):
                raise GraphError(f"term {part!r} does not fit shapes {self.out_shape} | {self.in_shape}")

    @property
    def pull_dtype(self) -> str:
        """The dtype of payloads that are to be multiplied on at the input side."""
        return payload_dtype(self, self.in_dtype)

    @property
    def push_dtype(self) -> str:
        """The dtype of payloads that are to be multiplied on at the output side."""
        return payload_dtype(self, self.out_dtype)

    def __str__(self) -> str:
        return " + ".join(map(repr, self.parts)) or "0"


def payload_dtype(jac: Jac, like: str) -> str:
    """The dtype of an edge's payloads: complex where either side is, in the precision of another dtype."""
    is_complex = jac.out_dtype in COMPLEX or jac.in_dtype in COMPLEX
    return complex_of(like) if is_complex else real_of(like)


# ---------------------------------------------------------------- complex numbers


def conjugated(factor: Factor) -> Factor:
    """The conjugate of an entry; the entry itself where it is real."""
    return replace(factor, conj=not factor.conj) if factor.value.dtype in COMPLEX else factor


def conjugate_payload(part: Term) -> Term:
    """The same term with the conjugates of its entries."""
    if not part.is_complex:
        return part
    return replace(part, scale=part.scale.conjugate(), factors=tuple(map(conjugated, part.factors)))


def conjugate(part: Term) -> Term:
    """The term that gives the conjugate of what this one gives."""
    return replace(conjugate_payload(part), antilinear=not part.antilinear)


def linear_where_real(part: Term, out_dtype: str, in_dtype: str) -> Term:
    """An antilinear term, as a linear one where either side is real: Re(b x̄) = Re(b̄ x)."""
    if in_dtype not in COMPLEX:
        return replace(part, antilinear=False)
    return part if out_dtype in COMPLEX else conjugate(part)


def is_antilinear(jac: Jac) -> bool:
    """Whether a Jacobian multiplies the conjugate of what comes in, so that no array of numbers stands for it."""
    return any(
        part.antilinear if isinstance(part, Term) else isinstance(part, Chain) and any(map(is_antilinear, part.factors))
        for part in jac.parts
    )


def normalised(jac: Jac) -> Jac:
    """The same Jacobian without antilinear terms, where either side is real."""
    if not any(isinstance(part, Term) and part.antilinear for part in jac.parts):
        return jac
    parts = (
        linear_where_real(p, jac.out_dtype, jac.in_dtype) if isinstance(p, Term) and p.antilinear else p
        for p in jac.parts
    )
    return replace(jac, parts=tuple(parts))


def complex_linear(a: Term, b: Term, left: Jac, right: Jac) -> tuple[tuple[Term, Term], ...]:
    """Pairs of terms whose products add up to that of a and b, which meet in y.

    Where y is complex, an antilinear a conjugates all of b.  Where y is real, b gives Re(b x) = ½(b x + b̄ x̄), and a
    counts by its real part if z is real too.
    """
    if left.in_dtype in COMPLEX:
        return ((replace(a, antilinear=False), conjugate(b)) if a.antilinear else (a, b),)
    if right.in_dtype not in COMPLEX and not b.is_complex:
        return ((a, b),)
    if left.out_dtype in COMPLEX:
        half = replace(b, scale=b.scale * 0.5)
        return ((a, half), (a, conjugate(half)))
    if not a.is_complex:
        return ((a, b),)
    half = replace(a, scale=a.scale * 0.5)
    return ((half, b), (conjugate_payload(half), b))
