"""Linear maps written as functions of a differential, as in a textbook: d(A⁻¹) = −A⁻¹ dA A⁻¹.

A `Differential` stands for dx; each operation on it appends a step.  The steps become one chain of Jacobians, which is
applied from either end and never multiplied out, so that what is written is the order of computation forward, and its
adjoint the order backward.  Matrices lie along the last two axes; the axes before them are a batch and broadcast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..expressions import Symbol, promote
from ..graph import COMPLEX, Value, complex_of, real_of
from ..index import Axis, Index, Indices, Label, fresh, of_label, plain_axes
from ..terms import HOLE, Application, Chain, Factor, Jac, Kernel, Part, Scalar, Term, add, conjugated, normalised
from .kinds import broadcast_axes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Differential:
    """A linear function of dx.

    shape, dtype: of its value.
    steps: the Jacobians that are applied to dx, the first one first.
    """

    shape: Shape
    dtype: str
    steps: tuple[Jac, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The Jacobian that the steps amount to."""
        if not self.steps:
            axes = plain_axes(self.shape)
            return (Term(1, (), axes, axes),)
        return self.steps[0].parts if len(self.steps) == 1 else (Chain(self.steps[::-1]),)

    # ------------------------------------------------------------ steps

    def by(self, shape: Sequence[int], *parts: Part, dtype: str = "") -> "Differential":
        """One more step."""
        dtype = dtype or self.dtype
        step = normalised(Jac(tuple(parts), tuple(shape), self.shape, dtype, self.dtype))
        return Differential(tuple(shape), dtype, (*self.steps, step))

    def read(self, shape: Sequence[int], out: Indices, inp: Indices, *factors: Factor) -> "Differential":
        """One more step that is one term."""
        tensors = [Value("d", (1,), self.dtype), *(Value("d", (1,), f.value.dtype) for f in factors)]
        return self.by(shape, Term(1, factors, out, inp), dtype=promote(tensors))

    def __add__(self, other: "Differential") -> "Differential":
        """The sum; steps that both have in common at first are taken once."""
        common = 0
        while common < min(len(self.steps), len(other.steps)) and self.steps[common] is other.steps[common]:
            common += 1
        before = self.steps[:common]
        jacs = [_joined(d, common) for d in (self, other)]
        return Differential(self.shape, self.dtype, (*before, add(*jacs)))

    def __sub__(self, other: "Differential") -> "Differential":
        return self + other.scaled(-1)

    def __neg__(self) -> "Differential":
        return self.scaled(-1)

    def scaled(self, scale: Scalar) -> "Differential":
        """Times a number."""
        axes = plain_axes(self.shape)
        dtype = complex_of(self.dtype) if isinstance(scale, complex) else self.dtype
        return self.by(self.shape, Term(scale, (), axes, axes), dtype=dtype)

    def times(self, entries: Symbol) -> "Differential":
        """Element by element."""
        axes = plain_axes(self.shape)
        return self.read(self.shape, axes, axes, entries[axes])

    def conj(self) -> "Differential":
        """The complex conjugate."""
        if self.dtype not in COMPLEX:
            return self
        axes = plain_axes(self.shape)
        return self.by(self.shape, Term(1, (), axes, axes, antilinear=True))

    def real(self) -> "Differential":
        """The real part."""
        axes = plain_axes(self.shape)
        return self.by(self.shape, Term(1, (), axes, axes), dtype=real_of(self.dtype)) if self._is_complex else self

    def imaginary(self) -> "Differential":
        """The imaginary part, times i."""
        axes = plain_axes(self.shape)
        return self.by(self.shape, Term(0.5, (), axes, axes), Term(-0.5, (), axes, axes, antilinear=True))

    def to(self, dtype: str) -> "Differential":
        """In another dtype."""
        axes = plain_axes(self.shape)
        return self if dtype == self.dtype else self.by(self.shape, Term(1, (), axes, axes), dtype=dtype)

    @property
    def _is_complex(self) -> bool:
        return self.dtype in COMPLEX

    # ------------------------------------------------------------ shapes

    def expanded(self, shape: Sequence[int]) -> "Differential":
        """Broadcast to a larger shape."""
        if tuple(shape) == self.shape:
            return self
        out = plain_axes(shape)
        return self.read(shape, out, broadcast_axes(out, self.shape))

    def batched(self, batch: Sequence[int]) -> "Differential":
        """A matrix for each member of a batch."""
        return self.expanded((*batch, *self.shape[-2:]))

    @property
    def mT(self) -> "Differential":
        """The transpose."""
        *batch, rows, columns = self.shape
        axes = plain_axes(self.shape)
        return self.read((*batch, columns, rows), (*axes[:-2], axes[-1], axes[-2]), axes)

    @property
    def mH(self) -> "Differential":
        """The adjoint."""
        return self.mT.conj()

    def column(self) -> "Differential":
        """A vector as a matrix of one column."""
        axes = plain_axes(self.shape)
        return self.read((*self.shape, 1), (*axes, Axis(0)), axes)

    def vector(self) -> "Differential":
        """A matrix of one column as a vector."""
        axes = plain_axes(self.shape[:-1])
        return self.read(self.shape[:-1], axes, (*axes, Axis(0)))

    def diagonal(self) -> "Differential":
        """The entries where row and column agree."""
        size = min(self.shape[-2:])
        axes = plain_axes((*self.shape[:-2], size))
        return self.read((*self.shape[:-2], size), axes, (*axes, axes[-1]))

    def on_diagonal(self) -> "Differential":
        """A diagonal matrix."""
        axes = plain_axes(self.shape)
        return self.read((*self.shape, self.shape[-1]), (*axes, axes[-1]), axes)

    def narrowed(self, dim: int, start: int, size: int) -> "Differential":
        """Some positions of an axis, counted from the end."""
        axes, label = _with_label(self.shape, dim, size)
        shape = _with(self.shape, dim, size)
        return self.read(shape, _with(axes, dim, of_label(label)), _with(axes, dim, _from(start, label)))

    def padded(self, dim: int, start: int, size: int) -> "Differential":
        """Zeros around an axis, counted from the end, which becomes this size."""
        axes, label = _with_label(self.shape, dim, self.shape[dim])
        shape = _with(self.shape, dim, size)
        return self.read(shape, _with(axes, dim, _from(start, label)), _with(axes, dim, of_label(label)))

    def summed(self, dim: int) -> "Differential":
        """The sum over an axis."""
        axes = plain_axes(self.shape)
        dim %= len(axes)
        return self.read(self.shape[:dim] + self.shape[dim + 1 :], axes[:dim] + axes[dim + 1 :], axes)

    # ------------------------------------------------------------ products

    def left(self, matrix: Symbol, adjoint: bool = False) -> "Differential":
        """M d, or Mᴴ d."""
        *batch, inner, columns = self.shape
        rows = matrix.shape[-1] if adjoint else matrix.shape[-2]
        *b, i, k, j = plain_axes((*batch, rows, inner, columns))
        return self.read((*batch, rows, columns), (*b, i, j), (*b, k, j), entry(matrix, (*b, i, k), adjoint))

    def right(self, matrix: Symbol, adjoint: bool = False) -> "Differential":
        """D M, or d Mᴴ."""
        *batch, rows, inner = self.shape
        columns = matrix.shape[-2] if adjoint else matrix.shape[-1]
        *b, i, k, j = plain_axes((*batch, rows, inner, columns))
        return self.read((*batch, rows, columns), (*b, i, j), (*b, i, k), entry(matrix, (*b, k, j), adjoint))

    def lower(self, diagonal: int = 0) -> "Differential":
        """The entries on or below a diagonal."""
        return self._masked("tril.default", diagonal)

    def upper(self, diagonal: int = 0) -> "Differential":
        """The entries on or above a diagonal."""
        return self._masked("triu.default", diagonal)

    def _masked(self, op: str, diagonal: int) -> "Differential":
        kernel = Application(f"aten.{op}", (HOLE, diagonal), leading=True)
        return self.by(self.shape, Kernel(kernel, kernel))

    def mapped(self, push: Application, pull: Application) -> "Differential":
        """Through a linear operator that leaves the shape alone; `pull` is its adjoint."""
        return self.by(self.shape, Kernel(push, pull))


def _joined(d: Differential, common: int) -> Jac:
    """The steps behind the common ones as one Jacobian."""
    rest = replace(d, steps=d.steps[common:])
    if rest.steps:
        return replace(rest.steps[0], parts=rest.parts, out_shape=d.shape, out_dtype=d.dtype)
    return Jac(rest.parts, d.shape, d.shape, d.dtype, d.dtype)


def entry(matrix: Symbol, axes: Indices, adjoint: bool = False) -> Factor:
    """An entry of a matrix, or of its adjoint."""
    if not adjoint:
        return matrix[axes]
    return conjugated(matrix[(*axes[:-2], axes[-1], axes[-2])])


def of(operand: Symbol, batch: Sequence[int] | None = None) -> Differential:
    """The differential of an operand; if `batch` is given, with that batch of matrices."""
    d = Differential(operand.shape, operand.dtype)
    return d if batch is None else d.batched(batch)


def _with_label(shape: Shape, dim: int, size: int) -> tuple[Indices, Label]:
    return plain_axes(shape), fresh(size)


def _with(items: tuple[Any, ...], dim: int, item: Any) -> tuple[Any, ...]:
    dim %= len(items)
    return (*items[:dim], item, *items[dim + 1 :])


def _from(start: int, label: Label) -> Index:
    return Axis(start, ((label, 1),) if label.size != 1 else ())
