"""Random index maps, terms and Jacobians for property tests, and a realiser that computes with NumPy.

Entries are small integers in float64, so that equal Jacobians have equal entries, to the last bit.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from oracle import dense_term
from pullback.graph import Value
from pullback.index import Axis, Index, Indices, Label, Lookup, fresh, is_whole, labels_of, of_label, plain_axes
from pullback.terms import Factor, Jac, Kernel, Term

LAWS = settings(max_examples=200, derandomize=True, deadline=None)

Shape = tuple[int, ...]
SCALES = (1, -2, 0)
EXTENTS = (2, 3, 1, 4, 6, 0)


@dataclass
class World:
    """What one example is made of: a source of choices, the arrays made so far, and labels that may be used again."""

    draw: st.DrawFn
    arrays: dict[Value, np.ndarray] = field(default_factory=dict)

    def choose(self, *options: object) -> object:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def value(self, shape: Shape, dtype: str = "float64", below: int = 4) -> Value:
        """A tensor of random entries: -3 … 3, 0 or 1 (bool), or positions below a bound (int64)."""
        random = np.random.default_rng(self.number(0, 9))
        low, high = {"float64": (-3, 4), "complex128": (-3, 4), "bool": (0, 2), "int64": (0, below)}[dtype]
        value = Value(f"v{len(self.arrays)}", shape, dtype)
        self.arrays[value] = random.integers(low, high, shape).astype(dtype)
        if dtype == "complex128":
            self.arrays[value] += 1j * random.integers(low, high, shape)
        return value

    def label(self, pool: list[Label], sizes: list[int], most: int) -> Label | None:
        """A label of one of the sizes: one that is in the pool, or a new one while there are fewer than `most`."""
        known = [label for label in pool if label.size in sizes]
        new = sizes if len(pool) < most else []
        if not known and not new:
            return None
        choice = self.draw(st.sampled_from([*new, *known]))
        if isinstance(choice, Label):
            return choice
        pool.append(fresh(choice))
        return pool[-1]


def index(world: World, extent: int, pool: list[Label], most: int) -> Index:
    """An index that stays inside an axis of this size, whatever its labels are."""
    if extent == 0:
        label = world.label(pool, [0], most + 3)
        assert label is not None
        return of_label(label)
    kind = world.choose("plain", "affine", "digits", "constant", "lookup")
    if kind == "constant":
        return Axis(world.number(0, extent - 1))
    if kind == "lookup":
        labels = [world.label(pool, [1, 2, 3], most) for _ in range(world.number(0, 2))]
        axes = tuple(of_label(label) for label in labels if label is not None)
        return Lookup(world.value(tuple(_extent(axis) for axis in axes), "int64", extent), axes)
    if kind == "plain":
        label = world.label(pool, [extent], most)
        return Axis(0) if label is None else Axis(0, ((label, 1),))
    return _affine(world, extent, pool, most, 1 if kind == "affine" else 2)


def _extent(axis: Axis) -> int:
    return axis.parts[0][0].size if axis.parts else 1


def _affine(world: World, extent: int, pool: list[Label], most: int, labels: int) -> Axis:
    """Slices, flips, reshapes and sliding windows."""
    room, low, parts = extent - 1, 0, {}
    for _ in range(labels):
        label = world.label(pool, list(range(1, min(room + 1, 4) + 1)), most)
        if label is None or label in parts or label.size > room + 1:
            continue
        longest = room // max(label.size - 1, 1)
        stride = world.choose(1, *range(longest, 0, -1), -1, -longest) if longest else 0
        if stride:
            parts[label] = stride
            reach = (label.size - 1) * stride
            room, low = room - abs(reach), low + min(reach, 0)
    return Axis(world.number(0, room) - low, tuple(parts.items()))


def indices(world: World, shape: Shape, pool: list[Label], most: int = 4) -> Indices:
    """One index for each axis."""
    return tuple(index(world, extent, pool, most) for extent in shape)


def factor(world: World, pool: list[Label], most: int, structured: bool) -> Factor:
    """A tensor read at labels of the pool and at new ones (which are summed)."""
    axes: list[Index] = []
    shape: list[int] = []
    for _ in range(world.number(0, 2)):
        extent = world.choose(2, 3, 1, 4)
        label = world.label(pool, [extent], most)
        if structured and world.choose(False, True):
            axes.append(index(world, extent, pool, most))
            shape.append(extent)
        elif label is not None:
            axes.append(Axis(0, ((label, 1),)))
            shape.append(label.size)
    return Factor(world.value(tuple(shape), world.choose("float64", "bool")), tuple(axes))


def term(world: World, out_shape: Shape, in_shape: Shape, most: int = 4, structured: bool = True) -> Term:
    """One term; its labels occur in no other."""
    pool: list[Label] = []
    out, inp = indices(world, out_shape, pool, most), indices(world, in_shape, pool, most)
    factors = tuple(factor(world, pool, most + 1, structured) for _ in range(world.number(0, 2)))
    return Term(world.choose(*SCALES), factors, out, inp)


def jac(world: World, out_shape: Shape, in_shape: Shape, terms: int = 2, most: int = 4, structured: bool = True) -> Jac:
    """A sum of up to so many terms."""
    parts = tuple(term(world, out_shape, in_shape, most, structured) for _ in range(world.number(0, terms)))
    return Jac(parts, out_shape, in_shape, "float64", "float64")


def shape(world: World, rank: int = 3, extents: Shape = EXTENTS) -> Shape:
    """A shape of at most this rank."""
    return tuple(world.choose(*extents) for _ in range(world.number(0, rank)))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """An example yet to be chosen."""
    return World(draw)


@dataclass
class NumpyRealiser:
    """Makes terms dense by the oracle, and enters the new tensors into the world's arrays."""

    arrays: dict[Value, np.ndarray]

    pushes = False

    def dense_input(self, part: Term, in_shape: Shape, dtype: str) -> Term:
        """The same term with plain labels on its input side; the output side keeps its labels."""
        kept = tuple(dict.fromkeys(labels_of(part.out)))
        if is_whole(part.inp, in_shape) and not set(kept) & set(labels_of(part.inp)):
            return part  # whatever its factors look like
        sizes = tuple(label.size for label in kept)
        payload = dense_term(
            Term(part.scale, part.factors, tuple(map(whole, kept)), part.inp), sizes, in_shape, self.arrays
        )
        axes = plain_axes(in_shape)
        factor = Factor(self._enter(payload), (*map(whole, kept), *axes))
        return Term(1, (factor,), part.out, axes, part.antilinear)

    def dense_output(self, part: Term, out_shape: Shape, dtype: str) -> Term:
        """The same term with plain labels on its output side; the input side keeps its labels."""
        return swapped(self.dense_input(swapped(part), out_shape, dtype))

    def identity(self, shape: Shape, dtype: str) -> Term:
        """A dense identity."""
        payload = np.eye(int(np.prod(shape))).reshape(shape + shape)
        out, inp = plain_axes(shape), plain_axes(shape)
        return Term(1, (Factor(self._enter(payload), out + inp),), out, inp)

    def pull(self, part: Term, kernel: Kernel, edge: Jac, dtype: str) -> Term:
        """The kernels of these tests are calls `multiply(matrix, □)`, where the matrix has the result's axes first."""
        adjoint = self.arrays[kernel.pull.args[0]]  # of a row it takes the transpose of the map, of its conjugate that
        return self._multiplied(part, adjoint if part.antilinear else adjoint.conj(), edge.in_shape)

    def push(self, kernel: Kernel, part: Term, edge: Jac, dtype: str) -> Term:
        """Matrix · tangent."""
        product = self._multiplied(swapped(part), self.arrays[kernel.push.args[0]], edge.out_shape)
        return swapped(product)

    def settled(self, jac: Jac, rows: bool) -> Jac:
        """As it is: what the laws say of a product does not depend on it."""
        return jac

    def _multiplied(self, part: Term, matrix: np.ndarray, shape: Shape) -> Term:
        """A term times a matrix from the axes of its input side to axes of this shape."""
        kept = tuple(dict.fromkeys(labels_of(part.out)))
        sizes = tuple(label.size for label in kept)
        bare = Term(part.scale, part.factors, tuple(map(whole, kept)), part.inp)
        rank = len(part.inp)
        payload = dense_term(bare, sizes, matrix.shape[len(shape) :], self.arrays)
        last = [range(array.ndim - rank, array.ndim) for array in (payload, matrix)]
        axes = plain_axes(shape)
        value = self._enter(np.tensordot(payload, matrix, (list(last[0]), list(last[1]))))
        return Term(1, (Factor(value, (*map(whole, kept), *axes)),), part.out, axes, part.antilinear)

    def _enter(self, payload: np.ndarray) -> Value:
        payload = np.asarray(payload, dtype=np.complex128 if np.iscomplexobj(payload) else np.float64)
        value = Value(f"dense{len(self.arrays)}", payload.shape, str(payload.dtype))
        self.arrays[value] = payload
        return value


def swapped(part: Term) -> Term:
    """The same entries, with the sides exchanged."""
    return replace(part, out=part.inp, inp=part.out)


def whole(label: Label) -> Axis:
    """The axis of a label, also of one with size 1."""
    return Axis(0, ((label, 1),))
