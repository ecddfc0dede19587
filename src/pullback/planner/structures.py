"""What a planner knows of a Jacobian: patterns, and which labels the payload of each depends on.  Sizes only.

A structure is a set of patterns; the product works pairwise, and addition is union, where equal patterns become one
whose payload depends on what either did.  So structures are a semiring, and the structure of an edge does not depend on
the sequence in which the vertices behind it were eliminated.  Structures are numbered, and products looked up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ..graph import Value
from ..index import Label, Unresolvable, labels_of, of_label, plain_axes
from ..terms import Chain, Factor, Jac, Kernel, Pattern, Term, canonical, compose_terms, rename, term_labels, vanishes

MOST_PATTERNS = 16  # a structure of more patterns is taken to be dense

_PAYLOAD = Value("payload", (), "float32")  # stands for whatever is read at the labels that a payload depends on

Price = Callable[[int, int], int]
"""The cost of a contraction, by its multiplications and by the entries of its result."""


KernelCost = Callable[[Kernel, Jac], int]
"""Multiplications of one application of a kernel, which is part of a Jacobian."""

Marked = tuple[Pattern, frozenset[Label] | None]
"""A pattern, and the labels that its payload depends on, as numbered in the pattern; None where there is no payload."""


@dataclass(frozen=True)
class Structure:
    """Patterns of one Jacobian, each with the labels that its payload depends on.

    kernel: multiplications of one application, where the Jacobian is an operator that is applied to rows or columns.
    """

    out_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    parts: tuple[Marked, ...]
    kernel: int = 0


class Structures:
    """The structures of one plan, numbered, with their products and sums."""

    def __init__(self, price: Price) -> None:
        self.price = price
        self.every: list[Structure] = []
        self._numbers: dict[Structure, int] = {}
        self._products: dict[tuple[int, int], tuple[int, int]] = {}
        self._sums: dict[tuple[int, int], int] = {}

    def number(self, structure: Structure) -> int:
        """The number of a structure; equal ones have the same."""
        known = self._numbers.get(structure)
        if known is None:
            known = self._numbers[structure] = len(self.every)
            self.every.append(structure)
        return known

    def of_jacobian(self, jac: Jac, kernel_cost: KernelCost) -> int:
        """The structure of a local Jacobian."""
        found: dict[Pattern, frozenset[Label] | None] = {}
        kernel = 0
        for part in jac.parts:
            if isinstance(part, Kernel):
                kernel += kernel_cost(part, jac)
            elif isinstance(part, Chain):
                kernel += _of_chain(part, kernel_cost)
            elif not vanishes(part):
                labels = {label for f in part.factors for label in labels_of(f.axes)}
                _join(found, _marked(part, labels if part.factors else None))
        if kernel:
            found = dict([_dense(jac.out_shape, jac.in_shape)])
        return self.number(_structure(jac.out_shape, jac.in_shape, found, kernel))

    def product(self, left: int, right: int) -> tuple[int, int]:
        """The structure of a product, and what it costs."""
        known = self._products.get((left, right))
        if known is None:
            known = self._products[left, right] = self._product(self.every[left], self.every[right])
        return known

    def total(self, left: int, right: int) -> int:
        """The structure of a sum."""
        key = (left, right) if left <= right else (right, left)
        known = self._sums.get(key)
        if known is None:
            a, b = self.every[left], self.every[right]
            found = dict(a.parts)
            for one in b.parts:
                _join(found, one)
            kernel = a.kernel + b.kernel
            known = self._sums[key] = self.number(_structure(a.out_shape, a.in_shape, found, kernel))
        return known

    def _product(self, a: Structure, b: Structure) -> tuple[int, int]:
        if a.kernel or b.kernel:
            return self._applied(a, b)
        found: dict[Pattern, frozenset[Label] | None] = {}
        cost = 0
        for one in a.parts:
            for other in b.parts:
                part, work = self._multiplied(one, other, a.in_shape)
                cost += work
                if part is not None:
                    _join(found, part)
        return self.number(_structure(a.out_shape, b.in_shape, found, 0)), cost

    def _applied(self, a: Structure, b: Structure) -> tuple[int, int]:
        """A kernel takes rows back, or columns forward; two kernels meet in an identity that is written out."""
        rows, columns = prod(a.out_shape), prod(b.in_shape)
        choices = []
        if b.kernel:
            choices.append(self.price(rows * b.kernel, rows * columns))
        if a.kernel:
            choices.append(self.price(columns * a.kernel, rows * columns))
        cost = sum(choices) if a.kernel and b.kernel else choices[0]
        return self.number(_structure(a.out_shape, b.in_shape, dict([_dense(a.out_shape, b.in_shape)]), 0)), cost

    def _multiplied(self, a: Marked, b: Marked, shape: tuple[int, ...]) -> tuple[Marked | None, int]:
        left, right = _term(a), rename(_term(b))
        try:
            product = compose_terms(left, right, shape)
        except Unresolvable:  # one of the two is written out
            left = Term(1, (Factor(_PAYLOAD, plain_axes(shape)),), left.out, plain_axes(shape))
            try:
                product = compose_terms(left, right, shape)
            except Unresolvable:
                return _dense_of(left, right), self.price(prod(shape), prod(shape))
        if product is None:
            return None, 0
        read = {label for f in product.factors for label in labels_of(f.axes)}
        free = {*labels_of(product.out), *labels_of(product.inp)}
        result = _marked(product, read & free if product.factors else None)
        if len(product.factors) < 2:  # one of them only renames
            summed = prod(label.size for label in read) if read - free else 0
            return result, self.price(0, summed) if summed else 0
        work = prod(label.size for label in read)
        return result, self.price(work, prod(label.size for label in read & free))


def _of_chain(chain: Chain, kernel_cost: KernelCost) -> int:
    """Multiplications of one row or column that goes through a product which is not multiplied out."""
    total = 0
    for factor in chain.factors:
        for part in factor.parts:
            if isinstance(part, Term):
                total += prod(label.size for label in dict.fromkeys(term_labels(part)))
            else:
                total += kernel_cost(part, factor) if isinstance(part, Kernel) else _of_chain(part, kernel_cost)
    return total


def _join(found: dict[Pattern, frozenset[Label] | None], part: Marked) -> None:
    pattern, labels = part
    known = found.get(pattern)
    found[pattern] = labels if known is None else known if labels is None else known | labels


def _marked(part: Term, payload: set[Label] | None) -> Marked:
    """A term's pattern, and the labels of its payload by the numbers that they have there."""
    factors = () if payload is None else (Factor(_PAYLOAD, tuple(map(of_label, sorted(payload, key=_by_number)))),)
    bare = canonical(Term(1, factors, part.out, part.inp))
    free = {*labels_of(bare.out), *labels_of(bare.inp)}
    labels = None if payload is None else frozenset(set(labels_of(bare.factors[0].axes)) & free)
    return Pattern(bare.out, bare.inp), labels


def _by_number(label: Label) -> int:
    return label.id


def _term(part: Marked) -> Term:
    pattern, labels = part
    factors = () if labels is None else (Factor(_PAYLOAD, tuple(of_label(s) for s in sorted(labels, key=_by_number))),)
    return Term(1, factors, pattern.out, pattern.inp)


def _dense(out_shape: tuple[int, ...], in_shape: tuple[int, ...]) -> Marked:
    out, inp = plain_axes(out_shape), plain_axes(in_shape)
    return _marked(Term(1, (), out, inp), set(labels_of(out + inp)))


def _dense_of(left: Term, right: Term) -> Marked:
    labels = {*labels_of(left.out), *labels_of(right.inp)}
    return _marked(Term(1, (), left.out, right.inp), labels)


def _structure(
    out_shape: tuple[int, ...], in_shape: tuple[int, ...], found: dict[Pattern, frozenset[Label] | None], kernel: int
) -> Structure:
    """A structure in canonical form: a single row or column is one tensor, and so is what has too many patterns."""
    narrow = min(prod(out_shape), prod(in_shape)) == 1 and any(labels is not None for labels in found.values())
    if not kernel and found and (len(found) > MOST_PATTERNS or (narrow and len(found) > 1)):
        found = dict([_dense(out_shape, in_shape)])
    return Structure(out_shape, in_shape, tuple(sorted(found.items(), key=repr)), kernel)
