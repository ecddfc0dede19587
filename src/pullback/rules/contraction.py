"""Products of matrices and vectors: einsum forms, some of them with a term added."""

from collections.abc import Callable, Mapping, Sequence

from ..expressions import Symbol
from ..index import plain_axes
from ..terms import Part, Scalar, Term
from .kinds import Function, Multilinear, Rule, Sample, T, broadcast_axes, multilinear_parts

Parts = Mapping[int, Sequence[Part]]


def _sum_of(bias: Symbol, shape: Sequence[int], beta: Scalar) -> tuple[Part, ...]:
    """∂(β · bias)/∂bias, where the bias is broadcast to the shape of the result."""
    if beta == 0:
        return ()
    out = plain_axes(shape)
    return (Term(beta, (), out, broadcast_axes(out, bias.shape)),)


def _added(form: str) -> Callable[..., Parts]:
    """Y = β · bias + α · form(a, b)."""

    def body(bias: Symbol, a: Symbol, b: Symbol, *, beta: Scalar = 1, alpha: Scalar = 1, y: Symbol) -> Parts:
        product = {k + 1: multilinear_parts(form, (a.value, b.value), k, alpha) for k in (0, 1)}
        return {0: _sum_of(bias, y.shape, beta), **(product if alpha else {})}

    return body


def _trilinear(a: Symbol, b: Symbol, c: Symbol, *expanded: Sequence[int], unroll_dim: int = 1) -> Parts:
    """Three factors, each without the axes in its own list of `expanded`; those in the last list are summed."""
    *missing, summed = (tuple(dims) for dims in expanded[:4])
    letters = "abcdefghijklmnopqrstuvwxyz"[: a.rank + len(missing[0])]
    groups = ["".join(s for d, s in enumerate(letters) if d not in dims) for dims in (*missing, summed)]
    form = f"{','.join(groups[:3])}->{groups[3]}"
    return {k: multilinear_parts(form, (a.value, b.value, c.value), k) for k in range(3)}


def _bias_samples(bias: T, shared: T, a: T, b: T) -> tuple[Sample, ...]:
    return (Sample(bias, a, b), Sample(shared, a, b, beta=0.5, alpha=2), Sample(T(), a, b), Sample(bias, a, b, beta=0))


_ADDED = "β · bias + α · product: bilinear in the product's operands, linear in the bias"

RULES: dict[str, Rule] = {
    "aten.mm.default": Multilinear((Sample(T(2, 3), T(3, 4)), Sample(T(1, 3), T(3, 1))), form="ij,jk->ik"),
    "aten.bmm.default": Multilinear(
        (Sample(T(2, 2, 3), T(2, 3, 4)), Sample(T(1, 2, 3), T(1, 3, 1))), form="nij,njk->nik"
    ),
    "aten.mv.default": Multilinear((Sample(T(2, 3), T(3)),), form="ij,j->i"),
    "aten.dot.default": Multilinear((Sample(T(3), T(3)), Sample(T(1), T(1))), form="i,i->"),
    "aten.outer.default": Multilinear((Sample(T(2), T(3)),), form="i,j->ij"),
    "aten.addmm.default": Function(
        _bias_samples(T(2, 4), T(4), T(2, 3), T(3, 4)), body=_added("ij,jk->ik"), source=_ADDED
    ),
    "aten.addmv.default": Function(_bias_samples(T(2), T(1), T(2, 3), T(3)), body=_added("ij,j->i"), source=_ADDED),
    "aten.addr.default": Function(_bias_samples(T(2, 3), T(3), T(2), T(3)), body=_added("i,j->ij"), source=_ADDED),
    "aten.baddbmm.default": Function(
        _bias_samples(T(2, 2, 4), T(2, 1, 4), T(2, 2, 3), T(2, 3, 4)), body=_added("nij,njk->nik"), source=_ADDED
    ),
    "aten._trilinear.default": Function(
        (Sample(T(2, 3), T(4, 3, 2), T(2, 2), (1, 3), (0,), (1, 2), (2, 3)),), body=_trilinear, source="trilinear"
    ),
    "aten.addbmm.default": Function(
        _bias_samples(T(2, 4), T(4), T(2, 2, 3), T(2, 3, 4)), body=_added("nij,njk->ik"), source=_ADDED
    ),
}

__all__ = ["RULES"]
