"""Realisation: when and how the unevaluated products on an edge become tensors.

Terms of equal pattern add up to one payload; terms of different patterns stay apart, unless the edge has a single row
or is a result. A payload runs over the labels that it depends on: what is merely repeated stays a label without a
tensor.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import cast

from ..expressions import Builder
from ..graph import COMPLEX, Value, real_of
from ..index import Axis, Indices, Label, is_whole, labels_of, plain_axes
from ..terms import (
    Application,
    Factor,
    Jac,
    Kernel,
    Part,
    Pattern,
    Term,
    canonical,
    compose,
    conjugate_payload,
    free_labels,
    payload_dtype,
    rename,
    summed_labels,
    term_pattern,
)
from ..terms import identity as identity_jac

MOST_PATTERNS = 4  # an edge with more distinct patterns is written out: its terms would multiply on and on


class Realisation:
    """Turns terms into derived nodes of one builder; the `Realiser` that composition asks."""

    def __init__(self, builder: Builder, pushes: bool = False) -> None:
        self.builder = builder
        self.pushes = pushes

    # ------------------------------------------------------------ settling edges

    def settle(self, jac: Jac, dtype: str, name: str, rows: bool = True, shared: bool = False) -> Jac:
        """The same edge with at most one factor in each term, and as few terms as the patterns allow.

        dtype: that of the vertex which is to be eliminated; payloads are cast to it after summing.
        rows: whether that vertex is the input side (an edge on its way down from the targets).
        shared: whether several edges will be multiplied on to it, so that its scale had better be multiplied in once.
        """
        if not jac.parts or not all(isinstance(part, Term) for part in jac.parts):
            return jac
        dtype = payload_dtype(jac, dtype)
        terms = [part for part in jac.parts if isinstance(part, Term)]
        scaled = shared and any(t.factors and abs(t.scale) != 1 for t in terms)
        if len(terms) == 1 and not scaled and (self._is_simple(terms[0], dtype) or self._chooses(terms[0], shared)):
            return jac
        narrow = prod(jac.out_shape if rows else jac.in_shape) == 1
        groups = self._payloads(terms, jac, dtype, name, scaled)
        if len(groups) > 1 and not narrow:
            groups = self._with_identities(groups, dtype, name)
        one_kind = len({t.antilinear for t in groups}) == 1  # a linear and an antilinear term are two tensors
        sparse = narrow and (len(groups) > 1 or not self._is_dense(groups[0], jac, rows))
        if one_kind and (sparse or len(groups) > MOST_PATTERNS):
            return self._one_tensor(groups, jac, dtype, name)
        return replace(jac, parts=tuple(groups))

    def _is_simple(self, term: Term, dtype: str) -> bool:
        """Whether a term can be multiplied on as it is."""
        if len(term.factors) > 1 or summed_labels(term):
            return False
        return all(f.value.dtype == dtype for f in term.factors)  # a lone mask has yet to become numbers

    def _chooses(self, term: Term, shared: bool) -> bool:
        """Whether a term is a mask that is laid on one tensor: a choice, which no NaN of what is left out survives."""
        return not shared and len(term.factors) == 1 and term.factors[0].value.dtype == "bool"

    def _is_dense(self, term: Term, jac: Jac, rows: bool) -> bool:
        side, shape = (term.inp, jac.in_shape) if rows else (term.out, jac.out_shape)
        return is_whole(side, shape)

    def settled(self, jac: Jac, rows: bool) -> Jac:
        """The same Jacobian with few terms of few factors, to be multiplied on."""
        return self.settle(jac, jac.in_dtype if rows else jac.out_dtype, "product", rows)

    def in_dtype(self, jac: Jac, dtype: str) -> bool:
        """Whether every payload has this dtype already."""
        dtype = payload_dtype(jac, dtype)
        return all(
            isinstance(part, Term) and all(f.value.dtype in (dtype, "bool") for f in part.factors) for part in jac.parts
        )

    def _payloads(self, terms: list[Term], jac: Jac, dtype: str, name: str, scaled: bool = False) -> list[Term]:
        """One term for each distinct pattern."""
        groups: dict[tuple[Pattern, bool], list[Term]] = {}
        for term in terms:
            term = canonical(term)
            groups.setdefault((term_pattern(term), term.antilinear), []).append(term)
        shape = jac.out_shape + jac.in_shape
        return [rename(self._payload(group, shape, dtype, name, scaled)) for group in groups.values()]

    def _payload(self, group: list[Term], shape: tuple[int, ...], dtype: str, name: str, scaled: bool) -> Term:
        first = group[0]
        if len(group) == 1 and self._is_simple(first, dtype) and not scaled:
            return first
        constant = sum(t.scale for t in group if not t.factors)
        if isinstance(constant, complex) and dtype not in COMPLEX:
            constant = constant.real
        payloads = [t for t in group if t.factors]
        if not payloads:
            return replace(first, scale=constant)
        depends = {label for t in payloads for f in t.factors for label in labels_of(f.axes)}
        labels = tuple(label for label in free_labels(first) if label in depends)
        axes = _axes_of(labels)
        if is_whole(first.out + first.inp, shape) and len(labels) == len(free_labels(first)):
            axes = cast(tuple[Axis, ...], first.out + first.inp)  # keeps the axes of size 1
        total: Value | None = None
        for t in payloads:
            one = self.builder.contract(t.scale, t.factors, axes, dtype, name)
            total = (
                one if total is None else self.builder.pointwise("aten.add.Tensor", total, one, dtype=dtype, name=name)
            )
        assert total is not None
        if constant:
            total = self.builder.pointwise("aten.add.Tensor", total, constant, dtype=dtype, name=name)
        return Term(1, (Factor(total, axes),), first.out, first.inp, first.antilinear)

    def _with_identities(self, terms: list[Term], dtype: str, name: str) -> list[Term]:
        """Identities are added to tensors of our own that have a place for them: I + M is one factor."""
        kept = [t for t in terms if t.factors or t.antilinear]
        for eye in (t for t in terms if not t.factors and not t.antilinear):
            for k, term in enumerate(kept):
                axes = _within(eye, term)
                if axes is None or term.factors[0].value not in self.builder.producer:
                    continue
                value = term.factors[0].value
                labels = tuple(dict.fromkeys(labels_of(axes)))
                ones = self.builder.contract(eye.scale, (), _axes_of(labels), dtype, name)
                placed = self.builder.place(ones, labels, axes, value.shape, name)
                total = self.builder.pointwise("aten.add.Tensor", value, placed, dtype=dtype, name=name)
                kept[k] = replace(term, factors=(Factor(total, term.factors[0].axes),))
                break
            else:
                kept.append(eye)
        return kept

    def _one_tensor(self, terms: list[Term], jac: Jac, dtype: str, name: str) -> Jac:
        """An edge whose only term is a whole tensor."""
        value = self._sum(terms, jac, dtype, name)
        out, inp = plain_axes(jac.out_shape), plain_axes(jac.in_shape)
        return replace(jac, parts=(Term(1, (Factor(value, out + inp),), out, inp, terms[0].antilinear),))

    # ------------------------------------------------------------ writing out

    def written_out(self, jac: Jac, dtype: str, name: str) -> Value:
        """The whole Jacobian as a tensor of shape out_shape + in_shape; that of a real y in a complex x conjugated."""
        terms = [term for part in jac.parts for term in self._as_terms(part, jac)]
        if jac.in_dtype in COMPLEX and jac.out_dtype not in COMPLEX:
            terms = list(map(conjugate_payload, terms))
        return self._sum(terms, jac, payload_dtype(jac, dtype), name)

    def _as_terms(self, part: Part, jac: Jac) -> list[Term]:
        if isinstance(part, Term):
            return [part]
        eye = Jac((self.identity(jac.in_shape, jac.in_dtype),), jac.in_shape, jac.in_shape, jac.in_dtype, jac.in_dtype)
        product = compose(replace(jac, parts=(part,)), eye, self)
        return [term for term in product.parts if isinstance(term, Term)]

    def _sum(self, terms: list[Term], jac: Jac, dtype: str, name: str) -> Value:
        """The sum of terms over all positions of an edge."""
        shape = jac.out_shape + jac.in_shape
        groups = self._payloads(terms, jac, dtype, name)
        joined = self._concatenated(groups, shape, dtype, name)
        if joined is not None:
            return joined
        total: Value | None = None
        for term in sorted(groups, key=lambda t: not is_whole(t.out + t.inp, shape)):  # the others are added to it
            one = self._placed(term, term.out + term.inp, shape, dtype, name)
            total = (
                one if total is None else self.builder.pointwise("aten.add.Tensor", total, one, dtype=dtype, name=name)
            )
        return total if total is not None else self.builder.node("zeros", (shape, dtype), [(shape, dtype)])[0]

    def _placed(self, term: Term, axes: Indices, shape: tuple[int, ...], dtype: str, name: str) -> Value:
        """One term as a tensor: its payload, put where its labels say."""
        if is_whole(axes, shape):
            return self.builder.contract(term.scale, term.factors, cast(tuple[Axis, ...], axes), dtype, name)
        labels = tuple(dict.fromkeys(labels_of(axes)))
        value = self.builder.contract(term.scale, term.factors, _axes_of(labels), dtype, name)
        return self.builder.place(value, labels, axes, shape, name)

    def _concatenated(self, terms: list[Term], shape: tuple[int, ...], dtype: str, name: str) -> Value | None:
        """Terms that cover an axis piece by piece (the transposes of split and unbind) are joined, not added."""
        if len(terms) < 2:
            return None
        axes = [t.out + t.inp for t in terms]
        partial = {d for a in axes for d, n in enumerate(shape) if not _covers(a[d], n)}
        if len(partial) != 1:
            return None
        dim = partial.pop()
        pieces = sorted(((_start(a[dim]), t, a) for t, a in zip(terms, axes, strict=True)), key=lambda p: p[0])
        position = 0
        for start, _, a in pieces:
            if start != position or not _is_piece(a, dim):
                return None
            position += _extent(a[dim])
        if position != shape[dim]:
            return None
        parts = []
        for _, term, a in pieces:
            size = _extent(a[dim])
            whole = a[:dim] + (Axis(0, _parts(a[dim])),) + a[dim + 1 :]
            parts.append(self._placed(term, whole, shape[:dim] + (size,) + shape[dim + 1 :], dtype, name))
        return self.builder.node("aten.cat.default", (tuple(parts), dim), [(shape, dtype)], name=name)[0]

    # ------------------------------------------------------------ single rows

    def row(self, value: Value, target: Value, source: Value) -> Jac:
        """A single-row edge that holds one tensor."""
        inp = plain_axes(source.shape)
        out = tuple(Axis(0) for _ in target.shape)
        factor = Factor(value, inp, conj=value.dtype in COMPLEX)
        return Jac((Term(1, (factor,), out, inp),), target.shape, source.shape, target.dtype, source.dtype)

    def is_tensor(self, jac: Jac) -> bool:
        """Whether a settled single-row edge holds one tensor as large as the vertex."""
        part = jac.parts[0] if len(jac.parts) == 1 else None
        return isinstance(part, Term) and len(part.factors) == 1 and part.factors[0].value.size == prod(jac.in_shape)

    def cotangent(self, jac: Jac, dtype: str) -> Value:
        """A single-row edge as a tensor in the shape of its vertex."""
        row = replace(jac, out_shape=(), parts=tuple(map(_without_rows, jac.parts)))
        return self.written_out(row, dtype, "cotangent")

    # ------------------------------------------------------------ what composition asks for

    def dense_input(self, term: Term, in_shape: tuple[int, ...], dtype: str) -> Term:
        """The same term with whole, distinct labels on its input side, at which its factors are read."""
        labels = tuple(dict.fromkeys(labels_of(term.out)))
        if is_whole(term.inp, in_shape) and not set(labels) & set(labels_of(term.inp)) and _reads_plainly(term):
            return term
        return self._dense(term, labels, term.inp, in_shape, dtype, False)

    def dense_output(self, term: Term, out_shape: tuple[int, ...], dtype: str) -> Term:
        """The same term with whole, distinct labels on its output side, at which its factors are read."""
        labels = tuple(dict.fromkeys(labels_of(term.inp)))
        if is_whole(term.out, out_shape) and not set(labels) & set(labels_of(term.out)) and _reads_plainly(term):
            return term
        return self._dense(term, labels, term.out, out_shape, dtype, True)

    def _dense(
        self, term: Term, labels: tuple[Label, ...], side: Indices, shape: tuple[int, ...], dtype: str, output: bool
    ) -> Term:
        rows: Indices = _axes_of(labels)
        sizes = tuple(s.size for s in labels)
        value = self._placed(term, rows + side, sizes + shape, dtype, "dense")
        whole = plain_axes(shape)
        factor = Factor(
            value, tuple(Axis(0) if n == 1 else i for i, n in zip(rows + whole, sizes + shape, strict=True))
        )
        out, inp = (whole, term.inp) if output else (term.out, whole)
        return Term(1, (factor,), out, inp, term.antilinear)

    def pull(self, term: Term, kernel: Kernel, edge: Jac, dtype: str) -> Term:
        """A dense cotangent (or several) pulled back through a kernel; a row is the conjugate of a cotangent."""
        labels = tuple(dict.fromkeys(labels_of(term.out)))
        cotangent = term if term.antilinear else conjugate_payload(term)
        operand = self._operand(cotangent, labels, term.inp, dtype)
        value = self._apply(kernel.pull, operand, labels, edge.in_shape, edge.in_dtype)
        rows, inp = _axes_of(labels), plain_axes(edge.in_shape)
        factor = Factor(value, rows + inp, conj=value.dtype in COMPLEX and not term.antilinear)
        return Term(1, (factor,), term.out, inp, term.antilinear)

    def push(self, kernel: Kernel, term: Term, edge: Jac, dtype: str) -> Term:
        """A dense tangent (or several) pushed through a kernel."""
        labels = tuple(dict.fromkeys(labels_of(term.inp)))
        operand = self._operand(term, labels, term.out, dtype)
        value = self._apply(kernel.push, operand, labels, edge.out_shape, edge.out_dtype)
        columns, out = _axes_of(labels), plain_axes(edge.out_shape)
        return Term(1, (Factor(value, columns + out),), out, term.inp, term.antilinear)

    def _apply(
        self, application: Application, operand: Value, labels: tuple[Label, ...], shape: tuple[int, ...], kind: str
    ) -> Value:
        """A linear operator applied; one on real numbers to the real and the imaginary part of a complex operand.

        kind: the dtype of what the operator is a map of.
        """
        width = tuple(s.size for s in labels)
        if kind in COMPLEX or operand.dtype not in COMPLEX:
            return self.builder.apply(application, operand, width, shape, operand.dtype)
        axes = plain_axes(operand.shape)
        result = plain_axes(width + shape)
        parts = []
        for scale in (1, -1j):
            part = self.builder.contract(scale, (Factor(operand, axes),), axes, real_of(operand.dtype))
            parts.append(self.builder.apply(application, part, width, shape, part.dtype))
        first, second = (
            self.builder.contract(scale, (Factor(part, result),), result, operand.dtype)
            for scale, part in zip((1, 1j), parts, strict=True)
        )
        return self.builder.pointwise("aten.add.Tensor", first, second, dtype=operand.dtype)

    def _operand(self, term: Term, labels: tuple[Label, ...], side: Indices, dtype: str) -> Value:
        rows: Indices = _axes_of(labels)
        sizes = tuple(s.size for s in labels)
        side_shape = tuple(1 if not i.parts else i.parts[0][0].size for i in side if isinstance(i, Axis))
        return self._placed(term, rows + side, sizes + side_shape, dtype, "operand")

    def identity(self, shape: tuple[int, ...], dtype: str) -> Term:
        """A δ with distinct labels on both sides, written out."""
        part = identity_jac(shape, dtype).parts[0]
        assert isinstance(part, Term)
        return self.dense_output(part, shape, dtype)


def grows(jac: Jac) -> bool:
    """Whether an edge has a product of factors that is larger than these: an outer product, which is better applied."""
    return any(
        isinstance(part, Term) and _size(part.factors) > sum(_size((f,)) for f in part.factors) for part in jac.parts
    )


def _size(factors: Sequence[Factor]) -> int:
    """The number of elements of a product of factors over all of their labels."""
    return prod(label.size for label in {label for f in factors for label in labels_of(f.axes)})


def _reads_plainly(term: Term) -> bool:
    """Whether each axis of each factor is read at one label, which another term may put anything in place of."""
    return all(len(tuple(labels_of([axis]))) <= 1 for factor in term.factors for axis in factor.axes)


def _axes_of(labels: tuple[Label, ...]) -> tuple[Axis, ...]:
    return tuple(Axis(0, ((label, 1),)) for label in labels)


def _without_rows(part: Part) -> Part:
    return replace(part, out=()) if isinstance(part, Term) else part


def _covers(index: object, extent: int) -> bool:
    """Whether an axis reaches every position by its labels."""
    if not isinstance(index, Axis) or index.offset:
        return False
    return prod(label.size for label, _ in index.parts) == extent


def _start(index: object) -> int:
    return index.offset if isinstance(index, Axis) else -1


def _extent(index: object) -> int:
    return prod(label.size for label, _ in index.parts) if isinstance(index, Axis) else 0


def _parts(index: object) -> tuple[tuple[Label, int], ...]:
    return index.parts if isinstance(index, Axis) else ()


def _is_piece(axes: Indices, dim: int) -> bool:
    """A contiguous run along one axis, whose label no other axis has."""
    axis = axes[dim]
    if not isinstance(axis, Axis) or len(axis.parts) > 1 or any(stride != 1 for _, stride in axis.parts):
        return False
    return not set(labels_of([axis])) & set(labels_of(axes[:dim] + axes[dim + 1 :]))


def _within(eye: Term, term: Term) -> Indices | None:
    """Where the entries of a term without factors lie in the one factor of another; None if not all of them do."""
    if len(term.factors) != 1 or term.scale != 1 or term.factors[0].conj or term.antilinear:
        return None
    images: dict[Label, Label] = {}
    for own, other in zip(term.out + term.inp, eye.out + eye.inp, strict=True):
        label, image = _only_label(own), _only_label(other)
        if label is None or image is None:
            if own != other:
                return None
        elif images.setdefault(label, image) != image or label.size != image.size:
            return None
    axes = term.factors[0].axes
    labels = list(labels_of(axes))
    if len(labels) != len(axes) or any(label not in images for label in labels):
        return None
    rest = [image for label, image in images.items() if label not in labels]
    inside = {images[label] for label in labels}
    if len(set(rest)) < len(rest) or inside & set(rest):
        return None
    return tuple(Axis(0, ((images[label], 1),)) for label in labels)


def _only_label(index: object) -> Label | None:
    """The label of an axis that is one label from the first position on."""
    if isinstance(index, Axis) and index.offset == 0 and len(index.parts) == 1 and index.parts[0][1] == 1:
        return index.parts[0][0]
    return None
