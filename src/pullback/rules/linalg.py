"""Linear algebra: solutions, factorisations, inverses, determinants.

A rule is the differential of the defining equation, solved for the differential of the result; `d` stands for that of
the operand.  The formulas hold for complex matrices, whose adjoint is Aᴴ.  Where a factorisation is unique only up to
signs or phases, derivatives are defined for functions that do not depend on them.
"""

from collections.abc import Sequence
from typing import Any

from ..errors import RuleError
from ..expressions import Symbol, where
from ..index import plain_axes
from ..terms import HOLE, Application, Term, conjugated
from . import matrices
from .differentials import Differential, of
from .formulas import positions, reduce, tensor
from .kernels import operation, saved
from .kinds import C, Function, I, Parts, Rule, Sample, T
from .matrices import adjoint, divided, factorised, gaps, part, permutation, product, solved

Ys = Sequence[Symbol | None]


def _parts(found: dict[Any, Differential]) -> Parts:
    return {key: d.parts for key, d in found.items()}


# ---------------------------------------------------------------- systems of equations


def _solve(a: Symbol, b: Symbol, *, left: bool = True, check_errors: bool = False, ys: Ys) -> Parts:
    """A X = B: dX = A⁻¹ (dB − dA X).  X A = B: dX = (dB − X dA) A⁻¹."""
    x = saved(ys, 0)
    is_vector = x.rank < a.rank
    solution = matrices.unsqueezed(x, -1) if is_vector else x
    batch, factors = solution.shape[:-2], factorised(a)

    def finished(d: Differential) -> Differential:
        d = divided(d.batched(batch), factors, left=left)
        return d.vector() if is_vector else d

    d = of(a, batch)
    change = d.right(solution) if left else d.left(solution)
    return _parts({0: finished(-change), 1: finished(of(b).column() if is_vector else of(b))})


def _solve_triangular(
    a: Symbol, b: Symbol, *, upper: bool, left: bool = True, unitriangular: bool = False, y: Symbol
) -> Parts:
    """As for any system, with the part of A that is read."""
    batch = y.shape[:-2]
    d = _triangle(of(a, batch), upper, unitriangular)
    change = d.right(y) if left else d.left(y)
    found = {0: -change, 1: of(b, batch)}
    return _parts({k: solved(d, a, is_upper=upper, left=left, unit=unitriangular) for k, d in found.items()})


def _triangle(d: Differential, is_upper: bool, unit: bool = False) -> Differential:
    return d.upper(int(unit)) if is_upper else d.lower(-int(unit))


def _triangular_solve(
    b: Symbol, a: Symbol, upper: bool = True, transpose: bool = False, unitriangular: bool = False, *, ys: Ys
) -> Parts:
    """The older operator: the matrix stands second, may be transposed, and is returned as well."""
    x = saved(ys, 0)
    batch = x.shape[:-2]
    matrix, is_upper = (matrices.transposed(a), not upper) if transpose else (a, upper)
    d = _triangle(of(a, batch), upper, unitriangular)
    found = {(0, 0): of(b, batch), (0, 1): -(d.mT if transpose else d).right(x)}
    solutions = {k: solved(d, matrix, is_upper=is_upper, unit=unitriangular) for k, d in found.items()}
    return _parts({**solutions, (1, 1): of(a, batch)})


def _lu_solve(
    factors: Symbol, pivots: Symbol, b: Symbol, *, left: bool = True, adjoint: bool = False, y: Symbol
) -> Parts:
    """A = P L U: dA = P (dL U + L dU)."""
    batch, pair = y.shape[:-2], (factors.value, pivots.value)
    d = of(factors, batch)
    change = (_lu_solve_left if left else _lu_solve_right)(d.lower(-1), d.upper(), factors, pair, y, adjoint)
    return _parts({0: -change, 2: divided(of(b, batch), pair, left=left, adjoint=adjoint)})


def _lu_solve_left(
    dl: Differential, du: Differential, factors: Symbol, pair: Any, x: Symbol, way: bool
) -> Differential:
    """A⁻¹ dA X, or A⁻ᴴ dAᴴ X."""
    l, u, p = _lower(factors), matrices.upper(factors), permutation(factors, *pair)
    if not way:
        inner = solved(dl.right(product(u, x)), l, is_upper=False, unit=True) + du.right(x)
        return solved(inner, u, is_upper=True)
    w = product(adjoint(p), x)
    inner = solved(du.mH.right(product(adjoint(l), w)), adjoint(u), is_upper=False) + dl.mH.right(w)
    return solved(inner, adjoint(l), is_upper=True, unit=True).left(p)


def _lu_solve_right(
    dl: Differential, du: Differential, factors: Symbol, pair: Any, x: Symbol, way: bool
) -> Differential:
    """X dA A⁻¹, or X dAᴴ A⁻ᴴ."""
    l, u, p = _lower(factors), matrices.upper(factors), permutation(factors, *pair)
    if way:
        inner = du.mH.left(x) + solved(
            dl.mH.left(product(x, adjoint(u))), adjoint(l), is_upper=True, left=False, unit=True
        )
        return solved(inner, adjoint(u), is_upper=False, left=False)
    w = product(x, p)
    inner = dl.left(w) + solved(du.left(product(w, l)), u, is_upper=True, left=False)
    return solved(inner, l, is_upper=False, left=False, unit=True).right(p, adjoint=True)


def _lower(factors: Symbol) -> Symbol:
    """L, whose diagonal of ones the factors leave out."""
    size = min(factors.shape[-2:])
    return matrices.lower(part(factors, -1, 0, size), -1) + _ones(factors, size)


def _ones(like: Symbol, size: int) -> Symbol:
    """Ones on the diagonal of a matrix with as many rows as another."""
    rows, columns = positions(like, like.shape[-2], 0, 2), positions(like, size, 1, 2)
    return rows.eq(columns).to(like.dtype)


S, W, V = T(2, 3, 3), T(2, 3, 2), T(3)
ZS, ZW = C(3, 3), C(3, 2)
LEFT, RIGHT = (Sample(S, W), Sample(T(3, 3), V), Sample(S, T(3, 2)), Sample(ZS, ZW)), Sample(S, T(2, 2, 3), left=False)
_TRIANGLES = tuple(
    Sample(matrix, b, upper=upper, left=left, unitriangular=unit)
    for matrix, rows, columns in ((S, W, T(2, 2, 3)), (ZS, ZW, C(2, 3)))
    for left, b in ((True, rows), (False, columns))
    for upper in (True, False)
    for unit in (False, True)
)

SYSTEMS: dict[str, Rule] = {
    "aten._linalg_solve_ex.default": Function((*LEFT, RIGHT), body=_solve, source="d(A X) = dB"),
    "aten.linalg_solve_triangular.default": Function(_TRIANGLES, body=_solve_triangular, source="d(A X) = dB"),
    "aten.triangular_solve.default": Function(
        (Sample(W, S), Sample(W, S, False), Sample(W, S, True, True, True), Sample(ZW, ZS, True, True)),
        differentiable=(0, 1),
        body=_triangular_solve,
        source="d(A X) = dB",
    ),
}


# ---------------------------------------------------------------- triangular factors


def _changes_of_lu(d: Differential, l: Symbol, u: Symbol, p: Symbol | None) -> tuple[Differential, Differential]:
    """A = P L U: L⁻¹ Pᵀ dA U⁻¹ = L⁻¹ dL + dU U⁻¹ =: φ, whose terms are strictly lower and upper triangular."""
    c, size = d if p is None else d.left(p, adjoint=True), min(d.shape[-2:])
    if d.shape[-2] <= d.shape[-1]:
        shifted = solved(c, l, is_upper=False, unit=True)
        square = part(u, -1, 0, size)
        below = solved(shifted.narrowed(-1, 0, size), square, is_upper=True, left=False).lower(-1)
        return below.left(l), shifted - below.right(u)
    shifted = solved(c, u, is_upper=True, left=False)
    above = solved(shifted.narrowed(-2, 0, size), part(l, -2, 0, size), is_upper=False, unit=True).upper()
    return shifted - above.left(l), above.right(u)


def _lu_factor(a: Symbol, *, pivot: bool = True, check_errors: bool = False, ys: Ys) -> Parts:
    factors, pivots = saved(ys, 0), saved(ys, 1)
    l, u = _lower(factors), matrices.upper(part(factors, -2, 0, min(a.shape[-2:])))
    p = permutation(factors, factors.value, pivots.value) if pivot else None
    dl, du = _changes_of_lu(of(a), l, u, p)
    return _parts({(0, 0): dl.padded(-1, 0, a.shape[-1]) + du.padded(-2, 0, a.shape[-2])})


def _lu(a: Symbol, *, pivot: bool = True, ys: Ys) -> Parts:
    p, l, u = (saved(ys, k) for k in range(3))
    dl, du = _changes_of_lu(of(a), l, u, p if pivot else None)
    return _parts({(1, 0): dl, (2, 0): du})


def _lu_unpack(
    factors: Symbol, pivots: Symbol, unpack_data: bool = True, unpack_pivots: bool = True, *, ys: Ys
) -> Parts:
    if not unpack_data:
        return {}
    size = min(factors.shape[-2:])
    dl, du = of(factors).narrowed(-1, 0, size).lower(-1), of(factors).narrowed(-2, 0, size).upper()
    return _parts({(1, 0): dl, (2, 0): du})


def _cholesky(a: Symbol, upper: bool = False, check_errors: bool = False, *, ys: Ys) -> Parts:
    """A = L Lᴴ: L⁻¹ dA L⁻ᴴ = L⁻¹ dL + (L⁻¹ dL)ᴴ.  Of a change that is not Hermitian, the Hermitian part counts."""
    y = saved(ys, 0)
    l = adjoint(y) if upper else y
    d = of(a)
    d = (d + d.mH).scaled(0.5)
    d = solved(solved(d, l, is_upper=False), adjoint(l), is_upper=True, left=False)
    d = (d.lower(-1) + d.diagonal().scaled(0.5).on_diagonal()).left(l)
    return _parts({(0, 0): d.mH if upper else d})


def _change_of_product(l: Symbol, upper: bool, batch: Sequence[int]) -> Differential:
    """The differential of L Lᴴ, or of Uᴴ U, in the triangle that is read."""
    d = of(l, batch)
    half = d.upper().left(l, adjoint=True) if upper else d.lower().right(l, adjoint=True)
    return half + half.mH


def _cholesky_inverse(l: Symbol, upper: bool = False, *, y: Symbol) -> Parts:
    """X = A⁻¹: dX = −X dA X."""
    read = matrices.upper(l) if upper else matrices.lower(l)
    return _parts({0: -_change_of_product(read, upper, l.shape[:-2]).left(y).right(y)})


def _cholesky_solve(b: Symbol, l: Symbol, upper: bool = False, *, y: Symbol) -> Parts:
    batch = y.shape[:-2]
    read = matrices.upper(l) if upper else matrices.lower(l)
    call = operation("aten.cholesky_solve.default", HOLE, l, upper)
    call = Application(call.op, call.args, leading=True)
    change = _change_of_product(read, upper, batch).right(y)
    return _parts({0: of(b, batch).mapped(call, call), 1: -change.mapped(call, call)})


def _qr(a: Symbol, mode: str = "reduced", *, ys: Ys) -> Parts:
    """A = Q R: Qᴴ dA R⁻¹ = Qᴴ dQ + dR R⁻¹, whose terms are skew-Hermitian, and upper triangular of a real diagonal."""
    rows, columns = a.shape[-2:]
    if mode == "r" or (mode == "complete" and rows > columns):
        raise RuleError(
            f"the derivative of linalg.qr(mode={mode!r}) of a matrix of {rows} rows and {columns} columns depends on "
            "what this mode does not determine; use mode='reduced'"
        )
    q, r = saved(ys, 0), saved(ys, 1)
    d, size = of(a), min(rows, columns)
    first = solved(d.narrowed(-1, 0, size), part(r, -1, 0, size), is_upper=True, left=False)
    c = first.left(q, adjoint=True)
    both = c + c.mH
    above = both.upper(1) + both.diagonal().scaled(0.5).on_diagonal()
    dq = first - above.left(q)
    return _parts({(0, 0): dq, (1, 0): (d - dq.right(r)).left(q, adjoint=True)})


A23, A32, M = T(2, 3), T(3, 2), T(2, 3, 3)
_FACTORED = tuple(map(Sample, (T(3, 3), A23, A32, M, ZS, C(2, 3), C(3, 2))))

FACTORS: dict[str, Rule] = {
    "aten.lu_unpack.default": Function(
        tuple(Sample(t, I(2, bound=2)) for t in (T(2, 2), T(2, 3), T(3, 2))), differentiable=(1, 2), body=_lu_unpack
    ),
    "aten.linalg_lu_solve.default": Function(
        tuple(
            Sample(matrix, I(3, bound=3), b, left=left, adjoint=way)
            for matrix, rows, columns in ((T(3, 3), W, T(2, 2, 3)), (ZS, ZW, C(2, 3)))
            for left, b in ((True, rows), (False, columns))
            for way in (False, True)
        ),
        body=_lu_solve,
        source="d(P L U X) = dB",
    ),
    **{
        f"aten.{op}.default": Function(
            (Sample(T(3, 3)), Sample(M, upper=True), Sample(ZS)), body=_cholesky, source="d(L Lᴴ) = dA"
        )
        for op in ("linalg_cholesky_ex", "cholesky")
    },
    "aten.cholesky_inverse.default": Function(
        (Sample(T(3, 3)), Sample(M, True), Sample(ZS)), body=_cholesky_inverse, source="d(L Lᴴ X) = 0"
    ),
    "aten.cholesky_solve.default": Function(
        (Sample(W, T(3, 3)), Sample(W, M, True), Sample(ZW, ZS)), body=_cholesky_solve, source="d(L Lᴴ X) = dB"
    ),
    "aten.linalg_lu_factor_ex.default": Function(_FACTORED, body=_lu_factor, source="d(P L U) = dA"),
    "aten.linalg_lu.default": Function(_FACTORED, differentiable=(1, 2), body=_lu, source="d(P L U) = dA"),
    "aten.linalg_qr.default": Function(
        (*_FACTORED, Sample(T(2, 3), "complete")), differentiable=(0, 1), body=_qr, source="d(Q R) = dA"
    ),
}


# ---------------------------------------------------------------- inverses and determinants


def _inverse(a: Symbol, *, check_errors: bool = False, ys: Ys) -> Parts:
    """X = A⁻¹: dX = −X dA X."""
    x = saved(ys, 0)
    return _parts({(0, 0): -of(a).left(x).right(x)})


def _determinant(a: Symbol, *, ys: Ys) -> Parts:
    """d det A = tr(adj(A) dA), where adj(A) = det(A) A⁻¹ also at the limit of a singular matrix.

    A pivot that is zero becomes a number so small that det(A) A⁻¹ is right to rounding.  The derivative of that is not:
    at a singular matrix there is no second derivative.
    """
    size = a.shape[-1]
    if size == 0:
        return {}
    value, pivots = factorised(a)
    factors = Symbol(value, a.builder)
    on_diagonal = matrices.diagonal(factors)
    tiny = {"float32": 1e-7, "complex64": 1e-7}.get(a.dtype, 2e-16)
    on_diagonal = on_diagonal + where(on_diagonal.eq(0), tiny, 0).to(a.dtype)
    own = positions(a, size) + 1
    exchanged = reduce("sum.dim_IntList", Symbol(pivots, a.builder).ne(own), (len(pivots.shape) - 1,), "int64")
    odd = exchanged.of("remainder.Scalar", exchanged, 2).to(a.dtype)
    sign = 1 - (odd + odd)
    determinant = tensor("prod.dim_int", on_diagonal, -1, True, shape=sign.shape, dtype=a.dtype) * sign
    repaired = where(matrices.on_diagonal(a, size), matrices.unsqueezed(on_diagonal, -1), factors)
    eye = tensor("expand.default", matrices.identity(a, size), a.shape, shape=a.shape, dtype=a.dtype)
    inverse = tensor("linalg_lu_solve.default", repaired, Symbol(pivots, a.builder), eye, shape=a.shape, dtype=a.dtype)
    cofactors = inverse * matrices.unsqueezed(determinant, -1)
    *b, i, j = plain_axes(a.shape)
    return {(0, 0): (Term(1, (cofactors[(*b, j, i)],), tuple(b), (*b, i, j)),)}


def _log_determinant(a: Symbol, *, ys: Ys) -> Parts:
    """With t = tr(A⁻¹ dA): d log|det A| = Re t, and the phase turns by Im t."""
    x = matrices.inverse(a)
    *b, i, j = plain_axes(a.shape)
    out, inp, entry = tuple(b), (*b, i, j), x[(*b, j, i)]
    found: dict[Any, Any] = {(1, 0): (Term(1, (entry,), out, inp),)}
    if a.is_complex:
        phase = saved(ys, 0)[out]
        found[0, 0] = (
            Term(0.5, (phase, entry), out, inp),
            Term(-0.5, (phase, conjugated(entry)), out, inp, antilinear=True),
        )
    return found


def _change_of_pseudoinverse(d: Differential, a: Symbol, x: Symbol) -> Differential:
    """Golub and Pereyra: X = A⁺, where the rank does not change; no square matrix of the longer side is made."""
    rows, columns = a.shape[-2:]
    if rows > columns:
        beside_rows = matrices.identity(a, columns) - product(x, a)
        first = d.mH.right(x, adjoint=True).right(x).left(beside_rows)
        second = d.mH.left(product(x, adjoint(x)))
        return first + (second - second.right(a).right(x)) - d.left(x).right(x)
    beside_columns = matrices.identity(a, rows) - product(a, x)
    first = d.mH.right(product(adjoint(x), x))
    second = d.mH.left(x, adjoint=True).left(x).right(beside_columns)
    return (first - first.left(a).left(x)) + second - d.left(x).right(x)


def _pseudoinverse(a: Symbol, *, atol: Any = None, rtol: Any = None, hermitian: bool = False, y: Symbol) -> Parts:
    return _parts({0: _change_of_pseudoinverse(of(a), a, y)})


def _least_squares(a: Symbol, b: Symbol, rcond: float | None = None, *, driver: str | None = None, ys: Ys) -> Parts:
    """X = A⁺ B for a matrix of full rank; the residuals are the squared norms of the columns of A X − B."""
    x = saved(ys, 0)
    *batch, rows, columns = a.shape
    is_vector = b.rank < a.rank
    solution, right = (matrices.unsqueezed(m, -1) if is_vector else m for m in (x, b))
    inverse = tensor("linalg_pinv.atol_rtol_tensor", a, shape=(*batch, columns, rows), dtype=a.dtype)
    batch = list(solution.shape[:-2])
    db = (of(b).column() if is_vector else of(b)).batched(batch)
    da = of(a, batch)
    found = {(0, 0): _change_of_pseudoinverse(da, a, inverse).right(right), (0, 1): db.left(inverse)}
    if ys[1] is not None and ys[1].size:
        rest = (product(a, solution) - right).conj()
        changes = {(1, 0): da.right(solution), (1, 1): -db}
        found |= {k: d.times(rest).scaled(2).summed(-2).real() for k, d in changes.items()}
    return _parts({k: (d.vector() if is_vector and k[0] == 0 else d) for k, d in found.items()})


def _matrix_exponential(a: Symbol) -> Parts:
    push, pull = (
        Application("pullback.matrix_exp_along.default", (m.value, HOLE), leading=True) for m in (a, adjoint(a))
    )
    return _parts({0: of(a).mapped(push, pull)})


INVERSES: dict[str, Rule] = {
    "aten.linalg_matrix_exp.default": Function(
        (Sample(T(3, 3)), Sample(M), Sample(ZS)), body=_matrix_exponential, source="Higham (2008), theorem 3.6"
    ),
    "aten.linalg_inv_ex.default": Function(tuple(map(Sample, (M, T(1, 1), ZS))), body=_inverse, source="d(A X) = 0"),
    "aten._linalg_det.default": Function(tuple(map(Sample, (M, T(1, 1), ZS))), body=_determinant, source="Jacobi"),
    "aten._linalg_slogdet.default": Function(
        tuple(map(Sample, (M, ZS))), differentiable=(0, 1), body=_log_determinant, source="Jacobi"
    ),
    "aten.linalg_pinv.atol_rtol_tensor": Function(
        tuple(map(Sample, (T(3, 3), A23, A32, M, C(3, 2)))), body=_pseudoinverse, source="Golub and Pereyra (1973)"
    ),
    "aten.linalg_lstsq.default": Function(
        (Sample(T(4, 2), T(4, 3)), Sample(T(2, 4, 2), T(2, 4)), Sample(A23, T(2, 2)), Sample(C(4, 2), C(4, 3))),
        differentiable=(0, 1),
        body=_least_squares,
        source="Golub and Pereyra (1973)",
    ),
}


# ---------------------------------------------------------------- spectra


def _changes_of_svd(
    d: Differential, u: Symbol, s: Symbol, vh: Symbol
) -> tuple[Differential, Differential, Differential]:
    """The differentials of U, S and V of A = U S Vᴴ in the reduced form."""
    c = d.left(u, adjoint=True).right(vh, adjoint=True)
    row, column = matrices.unsqueezed(s, -2), matrices.unsqueezed(s, -1)
    same = matrices.on_diagonal(s, s.shape[-1])
    between = gaps(s) * where(same, 1, (row + column).reciprocal())
    left, right = c.times(row), c.times(column)
    du, dv = (left + left.mH).times(between), (right + right.mH).times(between)
    if u.is_complex:  # the phases turn against each other, by halves
        turn = c.diagonal().imaginary().times(s.reciprocal()).scaled(0.5).on_diagonal()
        du, dv = du + turn, dv - turn
    du, dv = du.left(u), dv.left(vh, adjoint=True)
    if u.shape[-2] > u.shape[-1]:
        beside = d.right(vh, adjoint=True).times(row.reciprocal())
        du = du + beside - beside.left(u, adjoint=True).left(u)
    if vh.shape[-1] > vh.shape[-2]:
        beside = d.mH.right(u).times(row.reciprocal())
        dv = dv + beside - beside.left(vh).left(vh, adjoint=True)
    return du, c.diagonal().real(), dv


def _svd(
    a: Symbol, full_matrices: bool = False, compute_uv: bool = True, *, driver: str | None = None, ys: Ys
) -> Parts:
    """A = U S Vᴴ; columns beyond the singular values stay orthogonal to the others."""
    *batch, rows, columns = a.shape
    size = min(rows, columns)
    if compute_uv:
        u, s, vh = (saved(ys, k) for k in range(3))
    else:
        types = (((*batch, rows, size), a.dtype), ((*batch, size), a.real_dtype), ((*batch, size, columns), a.dtype))
        u, s, vh = matrices.results("_linalg_svd.default", a, types, a, False, True)
    own_u, own_vh = part(u, -1, 0, size), part(vh, -2, 0, size)
    du, ds, dv = _changes_of_svd(of(a), own_u, s, own_vh)
    if u.shape[-1] > size:
        du = _with_complement(du, own_u, part(u, -1, size, u.shape[-1] - size))
    if vh.shape[-2] > size:
        dv = _with_complement(dv, adjoint(own_vh), adjoint(part(vh, -2, size, vh.shape[-2] - size)))
    return _parts({(0, 0): du, (1, 0): ds, (2, 0): dv.mH} if compute_uv else {(1, 0): ds})


def _with_complement(d: Differential, basis: Symbol, complement: Symbol) -> Differential:
    """The change of an orthonormal basis and of its complement."""
    size, rest = basis.shape[-1], complement.shape[-1]
    beside = -d.mH.right(complement).left(basis)
    return d.padded(-1, 0, size + rest) + beside.padded(-1, size, size + rest)


def _eigh(a: Symbol, UPLO: str = "L", compute_v: bool = True, *, ys: Ys) -> Parts:
    """A V = V Λ for a Hermitian matrix, of which a change counts as if it were Hermitian."""
    if compute_v:
        values, vectors = saved(ys, 0), saved(ys, 1)
    else:
        types = ((a.shape[:-1], a.real_dtype), (a.shape, a.dtype))
        values, vectors = matrices.results("_linalg_eigh.default", a, types, a, UPLO, True)
    c = of(a).left(vectors, adjoint=True).right(vectors)
    found = {(0, 0): c.diagonal().real()}
    if compute_v:
        found[1, 0] = c.times(gaps(values)).left(vectors)
    return _parts(found)


def _changes_of_eig(a: Symbol, values: Symbol, vectors: Symbol) -> tuple[Differential, Differential]:
    """A V = V Λ with columns of norm 1, which change across their own direction up to a phase."""
    c = divided(of(a).to(vectors.dtype).right(vectors), factorised(vectors))
    d = c.times(gaps(values)).left(vectors)
    along = d.left(vectors, adjoint=True).diagonal().real()
    return c.diagonal(), d - along.on_diagonal().left(vectors)


def _eig(a: Symbol, *, ys: Ys) -> Parts:
    values, vectors = _changes_of_eig(a, saved(ys, 0), saved(ys, 1))
    return _parts({(0, 0): values, (1, 0): vectors})


def _eigvals(a: Symbol, *, y: Symbol) -> Parts:
    found = matrices.results("linalg_eig.default", a, ((y.shape, y.dtype), (a.shape, y.dtype)), a)
    return _parts({0: _changes_of_eig(a, *found)[0]})


_RECTANGULAR = tuple(Sample(m, full) for full in (False, True) for m in (T(3, 3), A23, A32, C(2, 3)))

SPECTRA: dict[str, Rule] = {
    "aten._linalg_svd.default": Function(
        (*_RECTANGULAR, Sample(A23, False, False)),
        differentiable=(0, 1, 2),
        body=_svd,
        source="d(U S Vᴴ) = dA, UᴴU = 1 = VᴴV",
    ),
    "aten._linalg_eigh.default": Function(
        (Sample(M), Sample(T(3, 3), "U"), Sample(T(3, 3), "L", False), Sample(ZS)),
        differentiable=(0, 1),
        body=_eigh,
        source="d(A V) = d(V Λ)",
    ),
    "aten.linalg_eig.default": Function(
        (Sample(M), Sample(ZS)), differentiable=(0, 1), body=_eig, source="Boeddeker et al., arXiv:1701.00392"
    ),
    "aten._linalg_eigvals.default": Function((Sample(M), Sample(ZS)), body=_eigvals, source="d(A V) = d(V Λ)"),
}

RULES: dict[str, Rule] = {**SYSTEMS, **FACTORS, **INVERSES, **SPECTRA}

__all__ = ["FACTORS", "INVERSES", "RULES", "SPECTRA", "SYSTEMS"]
