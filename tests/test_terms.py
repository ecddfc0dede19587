"""The laws of the algebra of structured Jacobians, on random structures, against the dense oracle."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given

from oracle import dense, matmul, positions, real_matrix
from pullback.errors import GraphError
from pullback.graph import Value
from pullback.index import CANONICAL, Axis, Indices, Lookup, fresh, is_whole, of_label, plain_axes
from pullback.terms import (
    HOLE,
    Application,
    Chain,
    Factor,
    Jac,
    Kernel,
    Term,
    add,
    canonical,
    compose,
    compose_patterns,
    compose_terms,
    dense_pattern,
    free_labels,
    identity,
    is_relabelling,
    normalised,
    pattern,
    rename,
    summed_labels,
    term_labels,
    term_pattern,
    term_values,
    transpose,
    vanishes,
)
from structures import LAWS, NumpyRealiser, World, jac, shape, term, worlds

SMALL = (2, 3, 1, 0)


def make_term(out: Indices, inp: Indices, *factors: Factor) -> Term:
    """A term, in the order in which it is read: where, and then what."""
    return Term(1, factors, out, inp)


def same(left: Jac, right: Jac, world: World) -> None:
    """Equal entries; they are integers, so equality is exact."""
    left.check()
    right.check()
    assert (left.out_shape, left.in_shape) == (right.out_shape, right.in_shape)
    assert np.array_equal(dense(left, world.arrays), dense(right, world.arrays))


def product(left: Jac, right: Jac, world: World) -> Jac:
    """Composition by the realiser of these tests."""
    return compose(left, right, NumpyRealiser(world.arrays))


def chain(world: World, length: int, small: bool = False, **options: int | bool) -> list[Jac]:
    """Jacobians that can be multiplied in this order."""
    shapes = [shape(world, 2, SMALL) if small else shape(world, 2) for _ in range(length + 1)]
    return [jac(world, out, inp, **options) for out, inp in pairwise(shapes)]


# ---------------------------------------------------------------- composition


@LAWS
@given(worlds())
def test_dense_is_a_homomorphism(world: World) -> None:
    a, b = chain(world, 2)
    expected = matmul(dense(a, world.arrays), dense(b, world.arrays), len(a.in_shape))
    assert np.array_equal(dense(product(a, b, world), world.arrays), expected)


@LAWS
@given(worlds())
def test_composition_is_associative(world: World) -> None:
    a, b, c = chain(world, 3, small=True, most=2)
    same(product(product(a, b, world), c, world), product(a, product(b, c, world), world), world)


@LAWS
@given(worlds())
def test_composition_distributes_over_addition(world: World) -> None:
    a, b = chain(world, 2)
    more_left, more_right = jac(world, a.out_shape, a.in_shape, 1), jac(world, b.out_shape, b.in_shape, 1)
    same(product(add(a, more_left), b, world), add(product(a, b, world), product(more_left, b, world)), world)
    same(product(a, add(b, more_right), world), add(product(a, b, world), product(a, more_right, world)), world)


@LAWS
@given(worlds())
def test_transpose_reverses_products(world: World) -> None:
    a, b = chain(world, 2)
    same(transpose(product(a, b, world)), product(transpose(b), transpose(a), world), world)


@LAWS
@given(worlds())
def test_a_jacobian_times_itself_shares_no_labels(world: World) -> None:
    square = shape(world, 2)
    a = jac(world, square, square)
    once = dense(a, world.arrays)
    assert np.array_equal(dense(product(a, a, world), world.arrays), matmul(once, once, len(square)))


@LAWS
@given(worlds())
def test_identity_and_zero(world: World) -> None:
    (a,) = chain(world, 1)
    same(product(identity(a.out_shape, "float64"), a, world), a, world)
    same(product(a, identity(a.in_shape, "float64"), world), a, world)
    assert not product(Jac((), (2,), a.out_shape, "float64", "float64"), a, world).parts


@LAWS
@given(worlds())
def test_composition_leaves_its_operands_labels_alone(world: World) -> None:
    """A product may be multiplied again by either of its factors."""
    square = shape(world, 1, SMALL)
    a, b = jac(world, square, square, most=2), jac(world, square, square, most=2)
    x, y = dense(a, world.arrays), dense(b, world.arrays)
    rank = len(square)
    expected = matmul(matmul(matmul(x, y, rank), x, rank), y, rank)
    ab = product(a, b, world)
    assert np.array_equal(dense(product(ab, ab, world), world.arrays), expected)
    assert np.array_equal(dense(product(product(ab, a, world), b, world), world.arrays), expected)


def test_shapes_that_do_not_meet_are_refused() -> None:
    with pytest.raises(GraphError, match=r"\(3,\)"):
        compose(identity((2,), "float64"), identity((3,), "float64"), NumpyRealiser({}))
    with pytest.raises(GraphError, match="does not fit"):
        Jac((Term(1, (), (), ()),), (2,), ()).check()


# ---------------------------------------------------------------- complex numbers


DTYPES = ("complex128", "float64")


def complex_chain(world: World, length: int, terms: int = 2) -> list[Jac]:
    """Jacobians between real and complex tensors that can be multiplied in this order."""
    shapes = [shape(world, 1, SMALL) for _ in range(length + 1)]
    dtypes = [world.choose(*DTYPES) for _ in range(length + 1)]
    ends = list(zip(shapes, dtypes, strict=True))
    return [complex_jac(world, out, inp, terms) for out, inp in pairwise(ends)]


def complex_jac(world: World, out: tuple, inp: tuple, terms: int = 2) -> Jac:
    """A sum of terms, some of them complex and some antilinear, as a rule might return them."""
    made = jac(world, out[0], inp[0], terms, most=2).parts
    parts = tuple(complexified(world, part) for part in made)
    return normalised(Jac(parts, out[0], inp[0], out[1], inp[1]))


def complexified(world: World, part: Term) -> Term:
    """The same places, with other entries."""
    factors = tuple(
        Factor(world.value(f.value.shape, "complex128"), f.axes, world.choose(False, True))
        if world.choose(False, True)
        else f
        for f in part.factors
    )
    scale = world.choose(part.scale, 2j, 1 - 1j)
    return Term(scale, factors, part.out, part.inp, world.choose(False, True))


@LAWS
@given(worlds())
def test_complex_composition_is_that_of_real_matrices(world: World) -> None:
    """In both bracketings, whether what lies between is real or complex."""
    a, b, c = complex_chain(world, 3, terms=1)
    x, y, z = (real_matrix(j, world.arrays) for j in (a, b, c))
    ab, bc = product(a, b, world), product(b, c, world)
    assert np.array_equal(real_matrix(ab, world.arrays), x @ y)
    assert np.array_equal(real_matrix(product(ab, c, world), world.arrays), x @ y @ z)
    assert np.array_equal(real_matrix(product(a, bc, world), world.arrays), x @ y @ z)


@LAWS
@given(worlds())
def test_complex_composition_distributes_over_addition(world: World) -> None:
    a, b = complex_chain(world, 2)
    expected = real_matrix(a, world.arrays) @ real_matrix(b, world.arrays)
    assert np.array_equal(real_matrix(product(a, b, world), world.arrays), expected)


@LAWS
@given(worlds())
def test_the_complex_transpose_is_the_adjoint_of_the_real_inner_product(world: World) -> None:
    """Re⟨u, v⟩ is the inner product of the pairs, in which the adjoint is the transpose; it reverses products."""
    a, b = complex_chain(world, 2)
    assert np.array_equal(real_matrix(transpose(a), world.arrays), real_matrix(a, world.arrays).T)
    assert transpose(transpose(a)) == a
    reverse = product(transpose(b), transpose(a), world)
    expected = real_matrix(product(a, b, world), world.arrays).T
    assert np.array_equal(real_matrix(reverse, world.arrays), expected)


def test_real_jacobians_stay_as_cheap_as_they_are() -> None:
    """No term is split, conjugated or flagged where no number is complex."""
    i, x = fresh(5), Value("x", (5,), "float64")
    diagonal = Jac((make_term((of_label(i),), (of_label(i),), Factor(x, (of_label(i),))),), (5,), (5,))
    (part,) = compose(diagonal, diagonal, NumpyRealiser({})).parts
    assert part.scale == 1
    assert not part.antilinear
    assert not any(f.conj for f in part.factors)
    assert transpose(diagonal).parts[0].factors == diagonal.parts[0].factors


# ---------------------------------------------------------------- chains


@LAWS
@given(worlds())
def test_a_chain_is_the_product_of_its_factors(world: World) -> None:
    a, b, c, d = complex_chain(world, 4, terms=1)
    x, y, z, w = (real_matrix(j, world.arrays) for j in (a, b, c, d))
    chain_of = Jac((Chain((b, c)),), b.out_shape, c.in_shape, b.out_dtype, c.in_dtype)
    assert np.array_equal(real_matrix(product(a, chain_of, world), world.arrays), x @ y @ z)
    assert np.array_equal(real_matrix(product(chain_of, d, world), world.arrays), y @ z @ w)
    back = product(transpose(chain_of), transpose(a), world)
    assert np.array_equal(real_matrix(back, world.arrays), (x @ y @ z).T)
    whole = Jac((Chain((a, b)),), a.out_shape, b.in_shape, a.out_dtype, b.in_dtype)
    rest = Jac((Chain((c, d)),), c.out_shape, d.in_shape, c.out_dtype, d.in_dtype)
    assert np.array_equal(real_matrix(product(whole, rest, world), world.arrays), x @ y @ z @ w)


# ---------------------------------------------------------------- one term


@LAWS
@given(worlds())
def test_transposition_is_an_involution(world: World) -> None:
    (a,) = chain(world, 1)
    assert transpose(transpose(a)) == a
    expected = np.moveaxis(dense(a, world.arrays), range(len(a.out_shape)), range(-len(a.out_shape), 0))
    assert np.array_equal(dense(transpose(a), world.arrays), expected)


@LAWS
@given(worlds())
def test_canonical_is_idempotent_and_keeps_entries(world: World) -> None:
    (a,) = chain(world, 1)
    tidy = Jac(tuple(map(canonical, a.parts)), a.out_shape, a.in_shape)
    same(tidy, a, world)
    assert tuple(map(canonical, tidy.parts)) == tidy.parts


@LAWS
@given(worlds())
def test_rename_keeps_entries_and_the_canonical_form(world: World) -> None:
    (a,) = chain(world, 1)
    renamed = Jac(tuple(map(rename, a.parts)), a.out_shape, a.in_shape)
    same(renamed, a, world)
    assert tuple(map(canonical, renamed.parts)) == tuple(map(canonical, a.parts))
    for old, new in zip(a.parts, renamed.parts, strict=True):
        assert not set(term_labels(old)) & set(term_labels(new))


@LAWS
@given(worlds())
def test_canonical_terms_compose(world: World) -> None:
    """Canonical forms share label numbers with each other, and must not share them with fresh labels."""
    a, b = chain(world, 2)
    tidy = [Jac(tuple(map(canonical, x.parts)), x.out_shape, x.in_shape, "float64", "float64") for x in (a, b)]
    same(product(*tidy, world), product(a, b, world), world)


@LAWS
@given(worlds())
def test_reading_terms(world: World) -> None:
    part = term(world, shape(world, 2), shape(world, 2))
    free, summed = free_labels(part), summed_labels(part)
    assert len(set(free)) == len(free)
    assert set(free) | summed == set(term_labels(part))
    assert not set(free) & summed
    assert set(term_values(part)) <= set(world.arrays)
    assert {f.value for f in part.factors} <= set(term_values(part))


def test_fresh_labels_are_never_canonical_ones() -> None:
    part = Term(1, (), tuple(of_label(fresh(2)) for _ in range(40)), ())
    assert all(label.id < CANONICAL for label in term_labels(canonical(part)))
    first = "from pullback.index import fresh; print(fresh(2).id)"  # asked of a new process, where none is used up
    found = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, check=True)
    assert int(found.stdout) >= CANONICAL


def test_terms_differing_in_label_names_and_orders_are_equal_in_canonical_form() -> None:
    i, j, k, m = (fresh(n) for n in (2, 3, 2, 3))
    x, y = Value("x", (2,), "float64"), Value("y", (3,), "float64")
    reshape = Axis(0, ((i, 3), (j, 1)))
    left = make_term((reshape,), (of_label(j),), Factor(x, (of_label(i),)), Factor(y, (of_label(j),)))
    right = make_term(
        (Axis(0, ((m, 1), (k, 3))),), (of_label(m),), Factor(y, (of_label(m),)), Factor(x, (of_label(k),))
    )
    assert canonical(left) == canonical(right)


@LAWS
@given(worlds())
def test_what_vanishes_is_zero(world: World) -> None:
    a = jac(world, shape(world, 2), shape(world, 2))
    empty = Jac(tuple(part for part in a.parts if vanishes(part)), a.out_shape, a.in_shape)
    assert not dense(empty, world.arrays).any()


# ---------------------------------------------------------------- patterns


@LAWS
@given(worlds())
def test_entries_lie_within_the_pattern(world: World) -> None:
    (a,) = chain(world, 1)
    allowed = positions(pattern(a), a.out_shape, a.in_shape, world.arrays)
    assert not (dense(a, world.arrays) != 0)[~allowed].any()


@LAWS
@given(worlds())
def test_pattern_is_a_homomorphism(world: World) -> None:
    """With factors read at plain labels; see the next test for the others."""
    a, b = chain(world, 2, structured=False)
    assert pattern(product(a, b, world)) == compose_patterns(pattern(a), pattern(b), a.in_shape)


@LAWS
@given(worlds())
def test_entries_of_a_product_lie_within_the_product_of_patterns(world: World) -> None:
    """Bare patterns are sharper: a factor at `2i + j` that meets a look-up makes the term dense, and they have none."""
    a, b = chain(world, 2)
    ab = product(a, b, world)
    planned = compose_patterns(pattern(a), pattern(b), a.in_shape)
    allowed = positions(planned, ab.out_shape, ab.in_shape, world.arrays)
    assert not (dense(ab, world.arrays) != 0)[~allowed].any()
    assert not (allowed & ~positions(pattern(ab), ab.out_shape, ab.in_shape, world.arrays)).any()


@LAWS
@given(worlds())
def test_patterns_bound_products_in_either_bracketing(world: World) -> None:
    """Where look-ups or sliding windows meet, a pattern loses structure, and which depends on the bracketing."""
    a, b, c = chain(world, 3, small=True, most=2, structured=False)
    abc = product(product(a, b, world), c, world)
    pa, pb, pc = map(pattern, (a, b, c))
    left = compose_patterns(compose_patterns(pa, pb, a.in_shape), pc, b.in_shape)
    right = compose_patterns(pa, compose_patterns(pb, pc, b.in_shape), a.in_shape)
    for planned in (left, right):
        allowed = positions(planned, abc.out_shape, abc.in_shape, world.arrays)
        assert not (dense(abc, world.arrays) != 0)[~allowed].any()


@LAWS
@given(worlds())
def test_relabellings_read_and_write_whole_axes(world: World) -> None:
    (a,) = chain(world, 1, terms=1)
    if is_relabelling(a):
        (part,) = a.parts
        assert is_whole(part.out, a.out_shape)
        assert is_whole(part.inp, a.in_shape)
        assert len(np.unique(dense(a, world.arrays))) <= 2
    assert is_relabelling(identity(a.out_shape, "float64"))


# ---------------------------------------------------------------- closed forms stay closed


def closed(left: Term, right: Term, extents: tuple[int, ...]) -> Term:
    """The product, computed without a realiser."""
    composed = compose_terms(left, right, extents)
    assert composed is not None
    return composed


def test_diagonals_multiply_to_a_diagonal() -> None:
    i, x = fresh(5), Value("x", (5,), "float64")
    diagonal = make_term((of_label(i),), (of_label(i),), Factor(x, (of_label(i),)))
    square = closed(diagonal, diagonal, (5,))
    assert term_pattern(square) == term_pattern(diagonal)
    assert len(square.factors) == 2


def test_a_slice_of_a_slice_is_a_slice() -> None:
    i, j = fresh(3), fresh(6)
    every_second = make_term((of_label(i),), (Axis(0, ((i, 2),)),))
    from_four = make_term((of_label(j),), (Axis(4, ((j, 1),)),))
    assert str(canonical(closed(every_second, from_four, (6,)))) == "1 at (i | 4+2i)"


def test_flips_cancel() -> None:
    i = fresh(4)
    flip = make_term((of_label(i),), (Axis(3, ((i, -1),)),))
    assert term_pattern(closed(flip, flip, (4,))) == term_pattern(make_term((of_label(i),), (of_label(i),)))


def test_reshape_back_is_the_identity() -> None:
    i, j = fresh(2), fresh(3)
    flatten = make_term((Axis(0, ((i, 3), (j, 1))),), (of_label(i), of_label(j)))
    unflatten = make_term(flatten.inp, flatten.out)
    assert {term_pattern(closed(unflatten, flatten, (6,)))} == pattern(identity((2, 3), "float64"))


def test_pieces_of_a_concatenation_do_not_meet() -> None:
    i, j = fresh(2), fresh(3)
    first = make_term((of_label(i),), (of_label(i),))
    second = make_term((Axis(2, ((j, 1),)),), (of_label(j),))
    assert compose_terms(first, second, (5,)) is None


def test_a_repeated_sum_is_a_count() -> None:
    """Sum ∘ expand over an axis of 7."""
    total = make_term((), plain_axes((7,)))
    expand = make_term(plain_axes((7,)), ())
    assert closed(total, expand, (7,)) == Term(7, (), (), ())


def test_labels_only_under_a_look_up_into_one_position_are_counted() -> None:
    table = Value("t", (3,), "int64")
    scatter = make_term((Lookup(table, (of_label(fresh(3)),)),), ())
    assert closed(make_term((), (Axis(0),)), scatter, (1,)) == Term(3, (), (), ())


def test_gather_of_a_payload_stays_closed() -> None:
    i, j = fresh(3), fresh(5)
    table, x = Value("t", (3,), "int64"), Value("x", (5,), "float64")
    gather = make_term((of_label(i),), (Lookup(table, (of_label(i),)),))
    scaled = make_term((of_label(j),), (of_label(j),), Factor(x, (of_label(j),)))
    assert str(canonical(closed(gather, scaled, (5,)))) == "x[t[i]] at (i | t[i])"


def test_a_look_up_meets_a_strided_factor() -> None:
    """The left side is whole, but its factor at 2i has no closed form at a look-up: the right side is made dense."""
    i, j = fresh(3), fresh(4)
    x, table = Value("x", (6,), "float64"), Value("t", (4,), "int64")
    arrays = {x: np.arange(6.0), table: np.array([2, 0, 2, 1])}
    row = Jac((make_term((), (of_label(i),), Factor(x, (Axis(0, ((i, 2),)),))),), (), (3,))
    scatter = Jac((make_term((Lookup(table, (of_label(j),)),), (of_label(j),)),), (3,), (4,))
    entries = dense(compose(row, scatter, NumpyRealiser(arrays)), arrays)
    assert entries.tolist() == [4, 0, 4, 2]


# ---------------------------------------------------------------- kernels


def kernel(world: World, out_shape: tuple[int, ...], in_shape: tuple[int, ...]) -> tuple[Kernel, np.ndarray]:
    """Multiplication by a dense matrix, as a kernel and as entries."""
    push = world.value(out_shape + in_shape)
    matrix = world.arrays[push]
    pull = Value("transposed", in_shape + out_shape, "float64")
    world.arrays[pull] = np.moveaxis(matrix, range(len(out_shape)), range(-len(out_shape), 0))
    calls = [Application("multiply", (value, HOLE)) for value in (push, pull)]
    return Kernel(*calls), matrix


@LAWS
@given(worlds())
def test_kernels_compose_with_terms_and_kernels(world: World) -> None:
    out, middle, inp = (shape(world, 2, SMALL) for _ in range(3))
    (k, k_matrix), (m, m_matrix) = kernel(world, out, middle), kernel(world, middle, inp)
    left, right = Jac((k,), out, middle), Jac((m,), middle, inp)
    a, b = jac(world, out, middle, 1), jac(world, middle, inp, 1)
    rank = len(middle)
    cases = [
        (left, b, k_matrix, dense(b, world.arrays)),
        (a, right, dense(a, world.arrays), m_matrix),
        (left, right, k_matrix, m_matrix),
    ]
    for x, y, x_entries, y_entries in cases:
        expected = matmul(x_entries, y_entries, rank)
        assert np.array_equal(dense(product(x, y, world), world.arrays), expected)
        reverse = product(transpose(y), transpose(x), world)
        assert np.array_equal(dense(transpose(reverse), world.arrays), expected)


def test_a_kernel_has_a_dense_pattern_and_names_its_tensors() -> None:
    w = Value("w", (2, 3), "float64")
    k = Kernel(Application("multiply", (w, HOLE)), Application("pull", (w, HOLE)))
    j = Jac((k,), (2,), (3,))
    assert pattern(j) == {dense_pattern((2,), (3,))}
    assert list(k.push.values()) == [w]
    other = Value("u", (2, 3), "float64")
    assert list(k.push.replace_values(lambda _: other).values()) == [other]
    assert str(j) == "kernel multiply(w, □)"
