"""Complex numbers: what takes them apart and puts them together, and which other entries hold for them.

A derivative d of a function of a complex x means dy = d · dx, without a conjugate: whatever PyTorch conjugates in a
gradient follows from the transposition.  Where x is complex and y is real, dy = Re(d · dx).  An antilinear term stands
for d · dx̄.
"""

from math import inf

from ..expressions import Symbol, where
from ..index import Axis, plain_axes
from ..terms import Factor, Term
from .kinds import C, Function, Operand, Parts, Pointwise, Rule, Sample, T, broadcast_axes

Z, X = C(2, 3), T(2, 3)


def _conjugate(x: Symbol) -> Parts:
    i = plain_axes(x.shape)
    return {0: (Term(1, (), i, i, antilinear=x.is_complex),)}


def _view_as_real(x: Symbol) -> Parts:
    """Re z = Re(1 · z) and Im z = Re(−i · z)."""
    i = plain_axes(x.shape)
    return {0: (Term(1, (), (*i, Axis(0)), i), Term(-1j, (), (*i, Axis(1)), i))}


def _view_as_complex(x: Symbol) -> Parts:
    i = plain_axes(x.shape[:-1])
    return {0: (Term(1, (), i, (*i, Axis(0))), Term(1j, (), i, (*i, Axis(1))))}


def _polar(radius: Symbol, angle: Symbol, *, y: Symbol) -> Parts:
    unit = y.of("polar.default", radius.of("ones_like.default", radius), angle, dtype=y.dtype)
    i = plain_axes(y.shape)
    along = (Term(1, (unit[i],), i, broadcast_axes(i, radius.shape)),)
    return {0: along, 1: (Term(1j, (y[i],), i, broadcast_axes(i, angle.shape)),)}


def _angle(x: Symbol) -> Operand:
    """Im(dz / z), and zero at zero; that of a real number is constant."""
    return where(x.eq(0), 0, where(x.eq(0), 1, x).reciprocal() * -1j) if x.is_complex else 0


def _sign(x: Symbol, *, y: Symbol) -> Parts:
    """The change of z / |z| across its direction: (dz − s² dz̄) / 2|z|, and zero at zero."""
    if not x.is_complex:
        return {}
    i, size = plain_axes(x.shape), x.abs()
    inverse = (1 / where(size.eq(0), inf, size))[i]
    return {0: (Term(0.5, (inverse,), i, i), Term(-0.5, (y[i], y[i], inverse), i, i, antilinear=True))}


def _inner_product(x: Symbol, other: Symbol) -> Parts:
    """Σ x̄ y."""
    (i,) = plain_axes(x.shape)
    left = Term(1, (Factor(other.value, (i,)),), (), (i,), antilinear=x.is_complex)
    return {0: (left,), 1: (Term(1, (Factor(x.value, (i,), conj=x.is_complex),), (), (i,)),)}


RULES: dict[str, Rule] = {
    **{
        f"aten.{op}.default": Function((Sample(Z), Sample(C()), *samples), body=_conjugate)
        for op, samples in (("_conj", ()), ("_conj_physical", (Sample(X),)))
    },
    "aten._neg_view.default": Pointwise(-1),
    "aten.resolve_conj.default": Pointwise(1),
    "aten.resolve_neg.default": Pointwise(1),
    "aten.view_as_real.default": Function((Sample(Z), Sample(C())), body=_view_as_real),
    "aten.view_as_complex.default": Function((Sample(T(3, 2)), Sample(T(2))), body=_view_as_complex),
    "aten.complex.default": Pointwise(1, 1j),
    "aten.polar.default": Function((Sample(X, X), Sample(T(2, 1), T(3))), body=_polar, source="y = r exp(iφ)"),
    "aten.angle.default": Pointwise(_angle, samples=[Sample(Z), Sample(X)]),
    "aten.sgn.default": Function((Sample(Z), Sample(C())), body=_sign, source="s = z / |z|, s s̄ = 1"),
    "aten.vdot.default": Function((Sample(C(3), C(3)), Sample(T(3), T(3))), body=_inner_product, source="sesquilinear"),
}

# Operators whose results are constant where the operand is real, though not where it is complex.
CONSTANT_FOR_REALS = frozenset({"aten.sgn.default", "aten.angle.default"})

_POINTWISE = """
abs neg exp exp2 expm1 log log1p log2 log10 sqrt rsqrt reciprocal square sin cos tan asin acos atan sinh cosh tanh asinh
acosh atanh sigmoid sinc positive clone alias lift lift_fresh lift_fresh_copy _to_copy contiguous copy addcmul addcdiv
logaddexp tril triu
"""
_OVERLOADED = """
fill.Tensor add.Tensor sub.Tensor add.Scalar sub.Scalar rsub.Scalar rsub.Tensor mul.Tensor mul.Scalar div.Tensor
div.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar lerp.Scalar lerp.Tensor where.self where.ScalarSelf
where.ScalarOther masked_fill.Scalar masked_fill.Tensor
logsumexp.default logcumsumexp.default mean.default mean.dim var.correction var_mean.correction std.correction
std_mean.correction linalg_vector_norm.default
prod.default prod.dim_int cumsum.default cumprod.default
addmm.default addmv.default addr.default baddbmm.default addbmm.default
index_put.default _unsafe_index_put.default put.default masked_scatter.default scatter.src scatter.value
scatter_add.default index_add.default index_copy.default index_fill.int_Scalar index_fill.int_Tensor
slice_scatter.default select_scatter.default diagonal_scatter.default
dist.default ldexp.Tensor im2col.default col2im.default
"""
_PADDINGS = [
    f"{kind}_pad{rank}d{way}" for kind in ("reflection", "replication") for rank in (1, 2) for way in ("", "_backward")
]

# Entries of other tables whose formulas hold for complex operands, which the tests check with such ones.
HOLD_FOR_COMPLEX = frozenset(
    {f"aten.{op}.default" for op in (*_POINTWISE.split(), *_PADDINGS)}
    | {f"aten.{op}" for op in _OVERLOADED.split()}
    | RULES.keys()
    | {"pullback.recurrence.default"}
)

__all__ = ["CONSTANT_FOR_REALS", "HOLD_FOR_COMPLEX", "RULES"]
