"""Index maps against enumeration of every label setting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracle import agreements, flat_position, grid_of, images, position
from pullback.graph import Value
from pullback.index import (
    Axis,
    Disjoint,
    Index,
    Label,
    Lookup,
    Unresolvable,
    fresh,
    is_mixed_radix,
    is_whole,
    labels_of,
    of_label,
    plain_axes,
    substitute,
    tables_of,
    unify,
    whole_label,
)
from structures import LAWS, World, index, indices, shape, worlds

STRIDES = st.integers(-4, 4).filter(bool)


def distinct(*sides: tuple[Index, ...]) -> list[Label]:
    """Every label, once."""
    return list(dict.fromkeys(label for side in sides for label in labels_of(side)))


def check_unification(left: tuple[Index, ...], right: tuple[Index, ...], extents: tuple[int, ...], arrays: dict) -> str:
    """Compare `unify` with enumeration: each setting that agrees is reached once, and no other."""
    labels = distinct(left, right)
    expected = agreements(left, right, labels, arrays)
    try:
        mapping = unify(left, right, extents)
    except Disjoint:
        assert not expected
        return "disjoint"
    except Unresolvable:
        return "unresolvable"
    assert images(mapping, labels, arrays) == expected
    assert not set(mapping) & set(labels_of(mapping.values())), "an image still holds a label that is replaced"
    return "solved"


# ---------------------------------------------------------------- unification


@LAWS
@given(worlds())
def test_unify_separate_labels(world: World) -> None:
    extents = shape(world)
    check_unification(indices(world, extents, [], 3), indices(world, extents, [], 3), extents, world.arrays)


@LAWS
@given(worlds())
def test_unify_shared_labels(world: World) -> None:
    extents, pool = shape(world), []
    check_unification(indices(world, extents, pool, 5), indices(world, extents, pool, 5), extents, world.arrays)


@LAWS
@given(worlds())
def test_plain_axes_meet_everything(world: World) -> None:
    extents = shape(world)
    other = indices(world, extents, [], 4)
    empty = 0 in {label.size for label in distinct(other)}
    for sides in ((plain_axes(extents), other), (other, plain_axes(extents))):
        assert check_unification(*sides, extents, world.arrays) == "solved" or empty


@LAWS
@given(st.integers(0, 5), st.integers(0, 5), STRIDES, STRIDES, st.integers(-9, 9))
def test_progressions_intersect(size_a: int, size_b: int, stride_a: int, stride_b: int, offset: int) -> None:
    left, right = (Axis(0, ((fresh(size_a), stride_a),)),), (Axis(offset, ((fresh(size_b), stride_b),)),)
    assert check_unification(left, right, (99,), {}) != "unresolvable"


@LAWS
@given(st.integers(0, 5), STRIDES, STRIDES, st.integers(-9, 9))
def test_progressions_of_one_label_meet_in_a_point(size: int, stride_a: int, stride_b: int, offset: int) -> None:
    label = fresh(size)
    left, right = (Axis(0, ((label, stride_a),)),), (Axis(offset, ((label, stride_b),)),)
    assert check_unification(left, right, (99,), {}) != "unresolvable"


@LAWS
@given(st.lists(st.tuples(st.integers(0, 4), STRIDES), min_size=1, max_size=3), st.integers(-9, 9), st.integers(-9, 9))
def test_solve_for_a_position(parts: list[tuple[int, int]], offset: int, target: int) -> None:
    axis = Axis(offset, tuple((fresh(size), stride) for size, stride in parts))
    outcomes = {
        check_unification((axis,), (Axis(target),), (99,), {}),
        check_unification((Axis(target),), (axis,), (99,), {}),
    }
    assert outcomes <= {"solved", "disjoint"} or len(parts) > 1


@LAWS
@given(st.permutations([(2, 6), (3, 2), (2, 1)]), st.permutations([(2, 6), (3, 2), (2, 1)]))
def test_equal_reshapes_agree_by_digits(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    a, b = (Axis(0, tuple((fresh(size), stride) for size, stride in parts)) for parts in (left, right))
    assert check_unification((a,), (b,), (12,), {}) == "solved"


def test_digits_that_share_labels() -> None:
    i, j, k = fresh(2), fresh(2), fresh(2)
    for a, b in (((j, i), (k, j)), ((i, j), (j, k)), ((i, j), (j, i)), ((i, j), (i, k))):
        left, right = (Axis(0, ((high, 2), (low, 1))) for high, low in (a, b))
        assert check_unification((left,), (right,), (4,), {}) == "solved"


def test_a_label_listed_twice_is_no_digit() -> None:
    i, j, k = fresh(2), fresh(2), fresh(2)
    check_unification((Axis(0, ((i, 2), (i, 1))),), (Axis(0, ((j, 2), (k, 1))),), (4,), {})


def test_lookup_into_an_axis_of_size_one_agrees_with_its_only_position() -> None:
    table = Value("t", (3,), "int64")
    lookup = Lookup(table, (of_label(fresh(3)),))
    assert check_unification((lookup,), (Axis(0),), (1,), {table: np.zeros(3, dtype=int)}) == "solved"


def test_two_lookups_are_left_to_the_caller() -> None:
    table = Value("t", (3,), "int64")
    with pytest.raises(Unresolvable):
        unify((Lookup(table, (of_label(fresh(3)),)),), (Lookup(table, (of_label(fresh(3)),)),), (3,))


def test_never_meeting_is_disjoint() -> None:
    with pytest.raises(Disjoint):
        unify((Axis(0, ((fresh(3), 2),)),), (Axis(1, ((fresh(3), 2),)),), (6,))
    with pytest.raises(Disjoint):
        unify((Axis(2),), (Axis(1),), (3,))


# ---------------------------------------------------------------- substitution


@LAWS
@given(worlds())
def test_substitution_is_composition_of_positions(world: World) -> None:
    outer = index(world, world.choose(2, 3, 4, 6), pool := [], 3)
    inner, inner_pool = {}, []
    for label in dict.fromkeys(pool):
        inner[label] = index(world, label.size, inner_pool, 4)
    try:
        composed = substitute(outer, inner)
    except Unresolvable:
        assert any(isinstance(image, Lookup) for image in inner.values())
        return
    grid = grid_of(inner_pool)
    through = {label: position(image, grid, world.arrays) for label, image in inner.items()}
    if through:
        assert (position(composed, grid, world.arrays) == position(outer, through, world.arrays)).all()


def test_labels_that_cancel_disappear() -> None:
    i, j = fresh(3), fresh(3)
    assert substitute(Axis(2, ((i, 1), (j, -1))), {i: of_label(j)}) == Axis(2)
    assert substitute(Axis(0, ((i, 1), (j, 1))), {i: of_label(j)}) == Axis(0, ((j, 2),))


# ---------------------------------------------------------------- reading


@LAWS
@given(worlds())
def test_whole_means_each_position_once(world: World) -> None:
    extents = tuple(n for n in shape(world) if n)
    axes = indices(world, extents, pool := [], 3)
    if is_whole(axes, extents):
        grid = grid_of(labels_of(axes))
        flat = flat_position(axes, extents, grid, world.arrays)
        assert sorted(flat) == list(range(len(flat)))
        assert len(pool) >= len(distinct(axes))
    for axis, extent in zip(axes, extents, strict=True):
        if (label := whole_label(axis, extent)) is not None:
            assert list(position(axis, grid_of([label]), world.arrays)) == list(range(extent))


@LAWS
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12)), max_size=3))
def test_mixed_radix_means_no_position_twice(parts: list[tuple[int, int]]) -> None:
    axis = Axis(0, tuple((fresh(size), stride) for size, stride in sorted(parts, key=lambda part: -part[1])))
    if is_mixed_radix(axis.parts):
        reached = position(axis, grid_of(labels_of([axis])), {})
        assert len(set(reached.tolist())) == len(reached)


def test_reading_nested_lookups() -> None:
    inner, outer, i = Value("s", (3,), "int64"), Value("t", (4,), "int64"), fresh(3)
    nested = Lookup(outer, (Lookup(inner, (of_label(i),)),))
    assert list(labels_of([nested])) == [i]
    assert list(tables_of([nested])) == [outer, inner]
    assert repr(nested) == f"t[s[{i!r}]]"


def test_an_axis_of_size_one_needs_no_label() -> None:
    assert of_label(fresh(1)) == Axis(0)
    assert plain_axes((1, 1)) == (Axis(0), Axis(0))
    assert is_whole(plain_axes((2, 1, 0)), (2, 1, 0))
