"""Structured Jacobians: sums of products of tensor entries and δs.

A Jacobian ∂y/∂x is a list of terms.  A term

    scale · Π factor[…]     at output position `out`, input position `inp`

has an entry for every setting of its labels; a label on both sides is a δ, a label on neither side is summed.
`y = tanh x` is one term (1 − y²)[i] with out = (i), inp = (i); `y = A B` is B[k,j] with out = (i,j), inp = (i,k).
A linear map that no formula describes (a convolution) is a `Kernel`: it can be applied, forward or transposed.
A `Chain` is a product of Jacobians that is applied one after another and not multiplied out: A⁻¹ dA A⁻¹.

Complex numbers.  Between complex tensors a Jacobian is linear over the real numbers, z ↦ A z + B z̄, so that a term is
linear or antilinear; where y is real, y = Re Σ …, and all terms are linear.  Transposes are those of the inner product
Re⟨u, v⟩ = Re Σ ū v, as PyTorch's gradients are.  A row of a real y holds the conjugate of PyTorch's gradient.

Terms are never merged here: (w @ w).sum() must not become a tensor with n⁴ entries.  What has to be computed to go on
(a position that no closed form describes, a kernel applied to a payload) is asked of a `Realiser`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

from .errors import GraphError
from .graph import Value
from .index import (
    Disjoint,
    Index,
    Indices,
    Label,
    Unresolvable,
    fresh,
    is_whole,
    labels_of,
    normal,
    of_label,
    plain_axes,
    substitute,
    tables_of,
    unify,
)
from .parts import (
    HOLE,
    Application,
    Chain,
    Factor,
    Jac,
    Kernel,
    Part,
    Scalar,
    Term,
    complex_linear,
    conjugate,
    conjugate_payload,
    conjugated,
    fill,
    is_antilinear,
    linear_where_real,
    normalised,
    payload_dtype,
)


class Realiser(Protocol):
    """Computes what composition cannot leave unevaluated.

    pushes: whether the local Jacobian of a kernel is written out column by column, as in forward order, and never row
        by row, even where these are fewer.
    """

    pushes: bool

    def dense_input(self, term: Term, in_shape: tuple[int, ...], dtype: str) -> Term:
        """The same term with plain labels on its input side."""
        ...

    def dense_output(self, term: Term, out_shape: tuple[int, ...], dtype: str) -> Term:
        """The same term with plain labels on its output side."""
        ...

    def pull(self, term: Term, kernel: Kernel, edge: Jac, dtype: str) -> Term:
        """A term whose input side is dense, pulled back through the kernel of an edge; payloads of this dtype."""
        ...

    def push(self, kernel: Kernel, term: Term, edge: Jac, dtype: str) -> Term:
        """A term whose output side is dense, pushed through the kernel of an edge; payloads of this dtype."""
        ...

    def identity(self, shape: tuple[int, ...], dtype: str) -> Term:
        """A dense identity."""
        ...

    def settled(self, jac: Jac, rows: bool) -> Jac:
        """The same Jacobian before it is multiplied on, at its input side if `rows`: with few terms of few factors."""
        ...


# ---------------------------------------------------------------- the algebra


def identity(shape: tuple[int, ...], dtype: str) -> Jac:
    """∂x/∂x."""
    axes = plain_axes(shape)
    return Jac((Term(1, (), axes, axes),), shape, shape, dtype, dtype)


def add(left: Jac, right: Jac) -> Jac:
    """Join two parallel edges."""
    return replace(left, parts=left.parts + right.parts)


def transpose(jac: Jac) -> Jac:
    """Jᵀ, the adjoint in the inner product Re⟨u, v⟩."""
    return Jac(tuple(map(_transpose_part, jac.parts)), jac.in_shape, jac.out_shape, jac.in_dtype, jac.out_dtype)


def _transpose_part(part: Part) -> Part:
    if isinstance(part, Kernel):
        return Kernel(part.pull, part.push)
    if isinstance(part, Chain):
        return Chain(tuple(map(transpose, part.factors[::-1])))
    payload = part if part.antilinear else conjugate_payload(part)
    return replace(payload, out=part.inp, inp=part.out)


def compose(left: Jac, right: Jac, realiser: Realiser) -> Jac:
    """∂z/∂x = ∂z/∂y · ∂y/∂x, term by term; payloads stay unevaluated products wherever a closed form exists."""
    if left.in_shape != right.out_shape:
        raise GraphError(f"∂z/∂y has inputs {left.in_shape}, but ∂y/∂x has outputs {right.out_shape}")
    parts: list[Part] = []
    for b in right.parts:
        if isinstance(b, Chain):
            parts += _after_chain(left, b, realiser).parts if left.parts else ()
            continue
        for a in left.parts:
            if isinstance(a, Chain):
                parts += _before_chain(a, replace(right, parts=(b,)), realiser).parts
            else:
                parts += _compose_parts(a, b, left, right, realiser)
    return Jac(tuple(parts), left.out_shape, right.in_shape, left.out_dtype, right.in_dtype)


def _after_chain(left: Jac, chain: Chain, realiser: Realiser) -> Jac:
    """A Jacobian times a chain, from the left."""
    for factor in chain.factors:
        left = compose(realiser.settled(left, rows=True), factor, realiser)
    return left


def _before_chain(chain: Chain, right: Jac, realiser: Realiser) -> Jac:
    """A chain times a Jacobian, from the right."""
    for factor in chain.factors[::-1]:
        right = compose(factor, realiser.settled(right, rows=False), realiser)
    return right


def _compose_parts(a: Term | Kernel, b: Term | Kernel, left: Jac, right: Jac, realiser: Realiser) -> tuple[Part, ...]:
    if isinstance(b, Kernel):
        if isinstance(a, Kernel):
            eye = realiser.identity(right.in_shape, right.in_dtype)
            b_term = realiser.push(b, eye, right, right.push_dtype)
            return (realiser.push(a, b_term, left, left.push_dtype),)
        if realiser.pushes:
            eye = realiser.identity(right.in_shape, right.in_dtype)
            return _compose_parts(a, realiser.push(b, eye, right, right.push_dtype), left, right, realiser)
        dense = realiser.dense_input(a, left.in_shape, left.pull_dtype)
        return (realiser.pull(dense, b, right, replace(right, out_dtype=left.out_dtype).pull_dtype),)
    if isinstance(a, Kernel):
        dense = realiser.dense_output(b, right.out_shape, right.push_dtype)
        return (realiser.push(a, dense, left, replace(left, in_dtype=right.in_dtype).push_dtype),)
    products = (_multiply(x, y, left, right, realiser) for x, y in complex_linear(a, b, left, right))
    return tuple(
        p if not p.antilinear else linear_where_real(p, left.out_dtype, right.in_dtype)
        for p in products
        if p is not None
    )


def _multiply(a: Term, b: Term, left: Jac, right: Jac, realiser: Realiser) -> Term | None:
    try:
        return compose_terms(a, b, left.in_shape)
    except Unresolvable:
        columns_are_fewer = _count(b.inp) < _count(a.out)  # write out the smaller one: a tangent, or a cotangent
    if columns_are_fewer:
        b = realiser.dense_output(b, right.out_shape, right.push_dtype)
    else:
        a = realiser.dense_input(a, left.in_shape, left.pull_dtype)
    try:
        return compose_terms(a, b, left.in_shape)
    except Unresolvable:  # a factor of the dense one is read at 2i + j, where the other looks i up
        a = realiser.dense_input(a, left.in_shape, left.pull_dtype)
        return compose_terms(a, realiser.dense_output(b, right.out_shape, right.push_dtype), left.in_shape)


def _count(axes: Indices) -> int:
    """How many settings the labels of one side of a term have."""
    return prod(label.size for label in set(labels_of(axes)))


# ---------------------------------------------------------------- products of terms


def compose_terms(a: Term, b: Term, shape: tuple[int, ...]) -> Term | None:
    """The product of two terms that meet in a tensor of the given shape; None if it is zero.

    It is antilinear if b is; that a is must have been seen to.

    Raises Unresolvable where the labels on which they meet are no box.
    """
    if vanishes(a) or vanishes(b):
        return None
    if set(term_labels(a)) & set(term_labels(b)):
        b = rename(b)
    try:
        mapping = unify(a.inp, b.out, shape)
    except Disjoint:
        return None
    product = Term(
        a.scale * b.scale,
        _substitute_factors(a.factors + b.factors, mapping),
        tuple(substitute(i, mapping) for i in a.out),
        tuple(substitute(i, mapping) for i in b.inp),
        b.antilinear,
    )
    left = {*term_labels(a), *term_labels(b)} - mapping.keys() | set(labels_of(mapping.values()))
    repeats = left - set(term_labels(product))  # labels that nothing depends on any more: their sum is a count
    return replace(product, scale=product.scale * prod(label.size for label in repeats))


def vanishes(part: Term) -> bool:
    """Whether a term has no entries, or only zeros, whatever its payload is."""
    return part.scale == 0 or any(label.size == 0 for label in term_labels(part))


def _substitute_factors(factors: tuple[Factor, ...], mapping: dict[Label, Index]) -> tuple[Factor, ...]:
    if not mapping:
        return factors
    return tuple(Factor(f.value, tuple(substitute(i, mapping) for i in f.axes), f.conj) for f in factors)


# ---------------------------------------------------------------- reading terms


def term_labels(part: Term) -> Iterator[Label]:
    """Every label of a term: out, inp, then factors; with repetitions."""
    yield from labels_of(part.out)
    yield from labels_of(part.inp)
    for factor in part.factors:
        yield from labels_of(factor.axes)


def free_labels(part: Term) -> tuple[Label, ...]:
    """The labels that are not summed, outputs first, each once."""
    return tuple(dict.fromkeys([*labels_of(part.out), *labels_of(part.inp)]))


def summed_labels(part: Term) -> set[Label]:
    """The labels that occur in factors alone."""
    return {label for f in part.factors for label in labels_of(f.axes)} - set(free_labels(part))


def rename(part: Term) -> Term:
    """The same term with labels that occur nowhere else."""
    mapping: dict[Label, Index] = {label: of_label(fresh(label.size)) for label in dict.fromkeys(term_labels(part))}
    return _map_labels(part, mapping)


def canonical(part: Term) -> Term:
    """Labels numbered by first occurrence (output, input, factors by age of their value): equal products look equal."""
    factors = tuple(Factor(f.value, tuple(map(normal, f.axes)), f.conj) for f in part.factors)
    out, inp = tuple(map(normal, part.out)), tuple(map(normal, part.inp))
    in_order = tuple(sorted(factors, key=lambda f: (f.value.serial, f.conj)))
    ordered = Term(part.scale, in_order, out, inp, part.antilinear)
    mapping: dict[Label, Index] = {
        label: of_label(Label(k, label.size)) for k, label in enumerate(dict.fromkeys(term_labels(ordered)))
    }
    return _map_labels(ordered, mapping)


def _map_labels(part: Term, mapping: dict[Label, Index]) -> Term:
    return Term(
        part.scale,
        _substitute_factors(part.factors, mapping),
        tuple(substitute(i, mapping) for i in part.out),
        tuple(substitute(i, mapping) for i in part.inp),
        part.antilinear,
    )


def term_values(part: Term) -> Iterator[Value]:
    """Every tensor that a term reads, index tensors included."""
    yield from tables_of(part.out)
    yield from tables_of(part.inp)
    for factor in part.factors:
        yield factor.value
        yield from tables_of(factor.axes)


def is_relabelling(jac: Jac) -> bool:
    """Whether the Jacobian is one term that only renames, sums or repeats whole axes."""
    if len(jac.parts) != 1 or not isinstance(jac.parts[0], Term) or jac.parts[0].factors:
        return False
    part = jac.parts[0]
    return is_whole(part.out, jac.out_shape) and is_whole(part.inp, jac.in_shape)


# ---------------------------------------------------------------- patterns


@dataclass(frozen=True, slots=True)
class Pattern:
    """Where a term can be other than zero: a term without its payload, in canonical form."""

    out: Indices
    inp: Indices

    def __repr__(self) -> str:
        return f"({', '.join(map(repr, self.out))} | {', '.join(map(repr, self.inp))})"


def term_pattern(part: Term) -> Pattern:
    """The pattern of one term."""
    bare = canonical(Term(1, (), part.out, part.inp))
    return Pattern(bare.out, bare.inp)


def pattern(jac: Jac) -> frozenset[Pattern]:
    """The set of distinct patterns of a Jacobian: what the planner multiplies and adds.

    A semiring: the product works pairwise, addition is union.  (Merging on addition would not distribute.)
    """
    return frozenset(
        term_pattern(part) if isinstance(part, Term) else dense_pattern(jac.out_shape, jac.in_shape)
        for part in jac.parts
        if not isinstance(part, Term) or not vanishes(part)
    )


def dense_pattern(out_shape: tuple[int, ...], in_shape: tuple[int, ...]) -> Pattern:
    """The pattern without any structure."""
    return term_pattern(Term(1, (), plain_axes(out_shape), plain_axes(in_shape)))


def compose_patterns(left: Iterable[Pattern], right: Iterable[Pattern], shape: tuple[int, ...]) -> frozenset[Pattern]:
    """pattern(A) ∘ pattern(B), where A and B meet in a tensor of the given shape."""
    products = set()
    for a in left:
        for b in right:
            a_term, b_term = Term(1, (), a.out, a.inp), Term(1, (), b.out, b.inp)
            try:
                product = compose_terms(a_term, b_term, shape)
            except Unresolvable:
                product = compose_terms(replace(a_term, inp=plain_axes(shape)), b_term, shape)
            if product is not None:
                products.add(term_pattern(product))
    return frozenset(products)


__all__ = [
    "HOLE",
    "Application",
    "Chain",
    "Factor",
    "Jac",
    "Kernel",
    "Part",
    "Pattern",
    "Realiser",
    "Scalar",
    "Term",
    "add",
    "canonical",
    "complex_linear",
    "compose",
    "compose_patterns",
    "compose_terms",
    "conjugate",
    "conjugate_payload",
    "conjugated",
    "dense_pattern",
    "fill",
    "free_labels",
    "identity",
    "is_antilinear",
    "is_relabelling",
    "linear_where_real",
    "normalised",
    "pattern",
    "payload_dtype",
    "rename",
    "summed_labels",
    "term_labels",
    "term_pattern",
    "term_values",
    "transpose",
    "vanishes",
]
