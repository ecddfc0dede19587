"""Matrix operations that rules of linear algebra are written in: each adds nodes to the builder of its operand."""

from collections.abc import Sequence
from math import prod

from ..expressions import Symbol, broadcast, where
from ..graph import Value
from ..terms import HOLE, Application
from .differentials import Differential
from .formulas import positions, tensor
from .kernels import operation


def batch_of(*matrices: Symbol) -> tuple[int, ...]:
    """The batch that several matrices broadcast to."""
    return broadcast([m.shape[:-2] for m in matrices])


def transposed(matrix: Symbol) -> Symbol:
    """The transpose."""
    *batch, rows, columns = matrix.shape
    return tensor("transpose.int", matrix, -2, -1, shape=(*batch, columns, rows), dtype=matrix.dtype)


def adjoint(matrix: Symbol) -> Symbol:
    """The transpose of the conjugate."""
    return transposed(matrix.conj())


def product(a: Symbol, b: Symbol) -> Symbol:
    """A B, over their common batch."""
    batch = batch_of(a, b)
    size, shape = prod(batch), (*batch, a.shape[-2], b.shape[-1])
    flat = [_stacked(m, batch, size) for m in (a, b)]
    result = tensor("bmm.default", *flat, shape=(size, *shape[-2:]), dtype=flat[0].dtype)
    return tensor("view.default", result, shape, shape=shape, dtype=result.dtype)


def _stacked(matrix: Symbol, batch: Sequence[int], size: int) -> Symbol:
    """The matrices along one leading axis."""
    sides = matrix.shape[-2:]
    whole = (*batch, *sides)
    if matrix.shape != whole:
        matrix = tensor("expand.default", matrix, whole, shape=whole, dtype=matrix.dtype)
    return tensor("reshape.default", matrix, (size, *sides), shape=(size, *sides), dtype=matrix.dtype)


def on_diagonal(like: Symbol, size: int) -> Symbol:
    """Whether row and column agree."""
    return positions(like, size, 0, 2).eq(positions(like, size, 1, 2))


def identity(like: Symbol, size: int) -> Symbol:
    """The identity matrix, in the dtype of another."""
    return on_diagonal(like, size).to(like.dtype)


def gaps(numbers: Symbol) -> Symbol:
    """1 / (s[j] − s[i]), and zero on the diagonal."""
    same = on_diagonal(numbers, numbers.shape[-1])
    difference = unsqueezed(numbers, -2) - unsqueezed(numbers, -1)
    return where(same, 0, 1 / where(same, 1, difference))


def part(x: Symbol, dim: int, start: int, size: int) -> Symbol:
    """Some positions of an axis."""
    dim %= x.rank
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return x if shape == x.shape else tensor("slice.Tensor", x, dim, start, start + size, shape=shape, dtype=x.dtype)


def lower(x: Symbol, diagonal: int = 0) -> Symbol:
    """The entries on or below a diagonal."""
    return tensor("tril.default", x, diagonal, shape=x.shape, dtype=x.dtype)


def upper(x: Symbol, diagonal: int = 0) -> Symbol:
    """The entries on or above a diagonal."""
    return tensor("triu.default", x, diagonal, shape=x.shape, dtype=x.dtype)


def diagonal(x: Symbol) -> Symbol:
    """The entries where row and column agree."""
    shape = (*x.shape[:-2], min(x.shape[-2:]))
    return tensor("diagonal.default", x, 0, -2, -1, shape=shape, dtype=x.dtype)


def unsqueezed(x: Symbol, dim: int) -> Symbol:
    """One more axis of size 1, counted from the end of the result."""
    place = dim % (x.rank + 1)
    shape = (*x.shape[:place], 1, *x.shape[place:])
    return tensor("view.default", x, shape, shape=shape, dtype=x.dtype)


def results(op: str, like: Symbol, types: Sequence[tuple[Sequence[int], str] | None], *args: object) -> list[Symbol]:
    """The wanted results of an operator with several; None stands for one that is not."""
    bare = tuple(a.value if isinstance(a, Symbol) else a for a in args)
    wanted = [None if t is None else (tuple(t[0]), t[1]) for t in types]
    return [Symbol(v, like.builder) for v in like.builder.node(f"aten.{op}", bare, wanted)]


# ---------------------------------------------------------------- triangular and general systems


def _triangular(a: Symbol, *, is_upper: bool, left: bool, unit: bool) -> tuple[Application, Application]:
    """X ↦ A⁻¹ X (or X A⁻¹) and its adjoint, where only a triangle of A is read."""
    op = "aten.linalg_solve_triangular.default"
    options = {"left": left, "unitriangular": unit}
    push = operation(op, a, HOLE, upper=is_upper, **options)
    pull = operation(op, adjoint(a), HOLE, upper=not is_upper, **options)
    return _leading(push), _leading(pull)


def _leading(application: Application) -> Application:
    return Application(application.op, application.args, application.kwargs, application.output, leading=True)


def solved(d: Differential, a: Symbol, *, is_upper: bool, left: bool = True, unit: bool = False) -> Differential:
    """A⁻¹ d (or d A⁻¹ if not `left`) for a triangular matrix; with an adjoint matrix pass that."""
    return d.to(a.dtype).mapped(*_triangular(a, is_upper=is_upper, left=left, unit=unit))


def solve_triangular(a: Symbol, b: Symbol, *, is_upper: bool, left: bool = True, unit: bool = False) -> Symbol:
    """A⁻¹ B, or B A⁻¹."""
    shape = (*batch_of(a, b), *b.shape[-2:])
    options = {"upper": is_upper, "left": left, "unitriangular": unit}
    return tensor("linalg_solve_triangular.default", a, b, shape=shape, dtype=a.dtype, **options)


def factorised(a: Symbol) -> tuple[Value, Value]:
    """The LU factors of a square matrix, and the rows that were exchanged."""
    types = ((a.shape, a.dtype), (a.shape[:-1], "int32"), None)
    factors, pivots = results("linalg_lu_factor_ex.default", a, types, a)
    return factors.value, pivots.value


def divided(d: Differential, factors: tuple[Value, Value], *, left: bool = True, adjoint: bool = False) -> Differential:
    """A⁻¹ d (or d A⁻¹), or with A⁻ᴴ, by the LU factors of A."""
    push, pull = (
        Application("aten.linalg_lu_solve.default", (*factors, HOLE), (("left", left), ("adjoint", way)), leading=True)
        for way in (adjoint, not adjoint)
    )
    return d.to(factors[0].dtype).mapped(push, pull)


def inverse(a: Symbol) -> Symbol:
    """A⁻¹."""
    return results("linalg_inv_ex.default", a, ((a.shape, a.dtype), None), a)[0]


def permutation(like: Symbol, factors: Value, pivots: Value) -> Symbol:
    """P of A = P L U."""
    rows = factors.shape[-2]
    shape = (*factors.shape[:-2], rows, rows)
    types = ((shape, factors.dtype), None, None)
    return results("lu_unpack.default", like, types, factors, pivots, False)[0]
