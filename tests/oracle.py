"""The slow, obvious meaning of a structured Jacobian: visit every setting of every label, and add up.

Nothing here shares code with the algebra under test; arrays are NumPy's, float64.
"""

from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

from pullback.graph import Value
from pullback.index import Axis, Index, Label, labels_of
from pullback.terms import Jac, Kernel, Pattern, Term, term_labels

Arrays = Mapping[Value, np.ndarray]
Grid = Mapping[Label, np.ndarray]


def grid_of(labels: Iterable[Label]) -> Grid:
    """Every setting of the labels: for each label its value at each point of the grid, as one flat array."""
    distinct = list(dict.fromkeys(labels))
    sizes = tuple(label.size for label in distinct)
    points = np.indices(sizes).reshape(len(sizes), prod(sizes))
    return dict(zip(distinct, points, strict=True))


def grid_size(grid: Grid) -> int:
    """The number of points; a grid of no labels is one point."""
    return len(next(iter(grid.values()))) if grid else 1


def position(index: Index, grid: Grid, arrays: Arrays) -> np.ndarray:
    """The position that an index means at each point of the grid."""
    if isinstance(index, Axis):
        result = np.full(grid_size(grid), index.offset, dtype=np.int64)
        for label, stride in index.parts:
            result += stride * grid[label]
        return result
    return read(index.table, index.axes, grid, arrays).astype(np.int64)


def flat_position(indices: Iterable[Index], shape: tuple[int, ...], grid: Grid, arrays: Arrays) -> np.ndarray:
    """The position in the flattened tensor; raises IndexError where an index leaves its axis."""
    result = np.zeros(grid_size(grid), dtype=np.int64)
    for index, extent in zip(indices, shape, strict=True):
        along = position(index, grid, arrays)
        if ((along < 0) | (along >= extent)).any():
            raise IndexError(f"{index!r} leaves an axis of size {extent}")
        result = result * extent + along
    return result


def read(value: Value, axes: Iterable[Index], grid: Grid, arrays: Arrays) -> np.ndarray:
    """The entries of a tensor at each point of the grid."""
    assert arrays[value].shape == value.shape
    return arrays[value].reshape(-1)[flat_position(axes, value.shape, grid, arrays)]


def dense_term(part: Term, out_shape: tuple[int, ...], in_shape: tuple[int, ...], arrays: Arrays) -> np.ndarray:
    """All entries of one term, of shape out_shape + in_shape."""
    grid = grid_of(term_labels(part))
    product = np.full(grid_size(grid), part.scale, dtype=complex if part.is_complex else float)
    for factor in part.factors:
        entries = read(factor.value, factor.axes, grid, arrays)
        product *= entries.conj() if factor.conj else entries
    shape = out_shape + in_shape
    result = np.zeros(prod(shape), dtype=product.dtype)
    np.add.at(result, flat_position(part.out + part.inp, shape, grid, arrays), product)
    return result.reshape(shape)


def dense(jac: Jac, arrays: Arrays) -> np.ndarray:
    """All entries of a Jacobian without kernels, of shape out_shape + in_shape."""
    result = np.zeros(jac.out_shape + jac.in_shape)
    for part in jac.parts:
        assert not isinstance(part, Kernel)
        result = result + dense_term(part, jac.out_shape, jac.in_shape, arrays)
    return result


def real_matrix(jac: Jac, arrays: Arrays) -> np.ndarray:
    """A Jacobian over the real numbers, where a complex number is a pair: its real and its imaginary part.

    Of shape (pairs of out, pairs of in), the pairs behind each other: first all real parts, then all imaginary ones.
    """
    linear = np.zeros(jac.out_shape + jac.in_shape, dtype=complex)
    antilinear = np.zeros_like(linear)
    for part in jac.parts:
        assert isinstance(part, Term)
        total = antilinear if part.antilinear else linear
        total += dense_term(part, jac.out_shape, jac.in_shape, arrays)
    rows, columns = prod(jac.out_shape), prod(jac.in_shape)
    a, b = linear.reshape(rows, columns), antilinear.reshape(rows, columns)
    blocks = np.block([[(a + b).real, (b - a).imag], [(a + b).imag, (a - b).real]])
    kept_rows = slice(None) if jac.out_dtype == "complex128" else slice(rows)
    kept_columns = slice(None) if jac.in_dtype == "complex128" else slice(columns)
    return blocks[kept_rows, kept_columns]


def matmul(left: np.ndarray, right: np.ndarray, rank: int) -> np.ndarray:
    """The product over the last `rank` axes on the left and the first on the right."""
    return np.tensordot(left, right, rank)


def positions(
    patterns: Iterable[Pattern], out_shape: tuple[int, ...], in_shape: tuple[int, ...], arrays: Arrays
) -> np.ndarray:
    """Whether any of the patterns allows an entry, of shape out_shape + in_shape."""
    allowed = np.zeros(out_shape + in_shape, dtype=bool)
    for p in patterns:
        allowed |= dense_term(Term(1, (), p.out, p.inp), out_shape, in_shape, arrays) != 0
    return allowed


def agreements(left: tuple[Index, ...], right: tuple[Index, ...], labels: list[Label], arrays: Arrays) -> list[tuple]:
    """Every setting of the labels for which two index maps meet, sorted."""
    grid = grid_of([*labels, *labels_of(left), *labels_of(right)])
    meets = np.full(grid_size(grid), True)
    for a, b in zip(left, right, strict=True):
        meets &= position(a, grid, arrays) == position(b, grid, arrays)
    return sorted(_settings(labels, grid, meets))


def images(mapping: Mapping[Label, Index], labels: list[Label], arrays: Arrays) -> list[tuple]:
    """Every setting of the labels that a substitution leaves, sorted, repeated where it is reached twice."""
    free = [label for label in labels if label not in mapping]
    grid = dict(grid_of([*free, *labels_of(mapping.values())]))
    every = np.full(grid_size(grid), True)
    bound = {label: position(image, grid, arrays) for label, image in mapping.items()}
    return sorted(_settings(labels, {**grid, **bound}, every))


def _settings(labels: list[Label], grid: Grid, chosen: np.ndarray) -> list[tuple]:
    if not labels:
        return [()] * int(chosen.sum())
    return [tuple(int(n) for n in setting) for setting in np.stack([grid[v][chosen] for v in labels], axis=1)]
