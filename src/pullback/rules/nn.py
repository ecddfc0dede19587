"""Neural-network operators that move or weigh entries: convolution, pooling, resampling, dropout, embedding.

Most are linear maps that come in pairs, each the transpose of the other (`avg_pool2d` and `avg_pool2d_backward`): the
pair is closed under differentiation, and one function makes both entries.

No rule is written for a backward kernel that reads saved statistics.  `convolution_backward` is not such a kernel: each
of its results is a slot of the trilinear form ⟨g, w ∗ x⟩ left open, so that its derivatives are the other slots.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..errors import RuleError
from ..expressions import Symbol
from ..index import Index, Indices, Lookup, plain, plain_axes
from ..terms import HOLE, Application, Factor, Kernel, Part, Term
from .formulas import constant, positions, tensor, truth
from .kernels import operation, pulled_by, saved
from .kinds import Function, I, IndexMap, LinearMap, Rule, Sample, T

Outputs = tuple[Symbol | None, ...]

# ---------------------------------------------------------------- convolution


def _convolution(x: Any, weight: Any, geometry: tuple[Any, ...]) -> Application:
    return operation("aten.convolution.default", x, weight, None, *geometry)


def _open_slot(slot: int, g: Any, x: Any, weight: Any, geometry: tuple[Any, ...]) -> Application:
    """⟨g, w ∗ x⟩ as a function of x (slot 0) or w (slot 1), by its coefficients."""
    mask = (slot == 0, slot == 1, False)
    return operation("aten.convolution_backward.default", g, x, weight, None, *geometry, mask, output=slot)


def _convolution_body(
    x: Symbol, weight: Symbol, bias: Symbol | None, *geometry: Any, y: Symbol
) -> Mapping[int, tuple[Part, ...]]:
    i = plain_axes(y.shape)
    return {
        0: (Kernel(_convolution(HOLE, weight, geometry), _open_slot(0, HOLE, x, weight, geometry)),),
        1: (Kernel(_convolution(x, HOLE, geometry), _open_slot(1, HOLE, x, weight, geometry)),),
        2: (Term(1, (), i, (i[1],)),),
    }


def _convolution_backward_body(
    g: Symbol, x: Symbol, weight: Symbol, bias_sizes: Any, *geometry: Any
) -> Mapping[tuple[int, int], tuple[Part, ...]]:
    geometry = geometry[:-1]  # without the last argument, which says which results are wanted
    i = plain_axes(g.shape)

    def slot(number: int, g: Any, x: Any, weight: Any) -> Application:
        return _open_slot(number, g, x, weight, geometry)

    return {
        (0, 0): (Kernel(slot(0, HOLE, x, weight), _convolution(HOLE, weight, geometry)),),
        (0, 2): (Kernel(slot(0, g, x, HOLE), slot(1, g, HOLE, weight)),),
        (1, 0): (Kernel(slot(1, HOLE, x, weight), _convolution(x, HOLE, geometry)),),
        (1, 1): (Kernel(slot(1, g, HOLE, weight), slot(0, g, x, HOLE)),),
        (2, 0): (Term(1, (), (i[1],), i),),
    }


def _pull_convolution(
    x: Symbol, weight: Symbol, bias: Symbol | None, *geometry: Any, g: Symbol, mask: tuple[bool, ...]
) -> Application:
    sizes = None if bias is None else bias.shape
    return operation("aten.convolution_backward.default", g, x, weight, sizes, *geometry, mask)


def _geometry(rank: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> tuple[Any, ...]:
    return (stride,) * rank, (padding,) * rank, (dilation,) * rank, False, (0,) * rank, groups


_TRANSPOSED_2D = ((2, 2), (1, 1), (1, 1), True, (1, 1), 1)

CONVOLUTION: dict[str, Rule] = {
    "aten.convolution.default": Function(
        body=_convolution_body,
        pull=pulled_by(_pull_convolution, slots=(0, 1, 2)),
        samples=(
            Sample(T(2, 2, 5), T(3, 2, 3), T(3), *_geometry(1, padding=1)),
            Sample(T(2, 2, 5, 4), T(3, 2, 3, 2), T(3), *_geometry(2, stride=2, padding=1)),
            Sample(T(1, 4, 5, 4), T(4, 2, 2, 2), None, *_geometry(2, dilation=2, groups=2)),
            Sample(T(1, 2, 3, 3), T(2, 3, 2, 2), T(3), *_TRANSPOSED_2D),
            Sample(T(1, 2, 3, 3, 2), T(1, 2, 2, 2, 2), T(1), *_geometry(3)),
        ),
        source="trilinear in the cotangent, the input and the weight",
    ),
    "aten.convolution_backward.default": Function(
        body=_convolution_backward_body,
        differentiable=(0, 1, 2),
        samples=(
            Sample(T(2, 3, 5), T(2, 2, 5), T(3, 2, 3), (3,), *_geometry(1, padding=1), (True, True, True)),
            Sample(T(1, 4, 3, 2), T(1, 4, 5, 4), T(4, 2, 2, 2), (4,), *_geometry(2, 1, 0, 2, 2), (True, True, True)),
            Sample(T(1, 3, 5, 5), T(1, 2, 3, 3), T(2, 3, 2, 2), (3,), *_TRANSPOSED_2D, (True, True, True)),
        ),
        source="the slots of the form of which convolution is one",
    ),
}

# ---------------------------------------------------------------- maxima


def _chosen(rank: int) -> Callable[..., tuple[Indices, Indices]]:
    """Which entry each maximum is: its number in the flattened plane, taken apart into one table for each axis."""

    def entries(x: Symbol, *_: Any, ys: Outputs) -> tuple[Indices, Indices]:
        number = saved(ys, 1)
        out = plain_axes(number.shape)
        along: list[Index] = []
        for axis in range(rank, 0, -1):
            size, stride = x.shape[-axis], prod(x.shape[x.rank - axis + 1 :])
            table = number if stride == 1 else number.of("floor_divide.Scalar", number, stride)
            if axis < rank:
                table = table.of("remainder.Scalar", table, size)
            along.append(Lookup(table.value, out))
        return out, (*out[: len(out) - rank], *along)

    return entries


def _pull_max_pool(rank: int) -> Callable[..., Application]:
    def pull(
        x: Symbol,
        size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        *,
        g: Symbol,
        ys: Outputs,
    ) -> Application:
        op = f"aten.max_pool{rank}d_with_indices_backward.default"
        return operation(op, g, x, size, stride or size, padding, dilation, ceil_mode, saved(ys, 1))

    return pull


def _max_pool(rank: int, *samples: Sample) -> Rule:
    return IndexMap(map=_chosen(rank), pull=pulled_by(_pull_max_pool(rank)), samples=samples)


def _adaptive_max_pool(rank: int, *samples: Sample) -> Rule:
    def pull(x: Symbol, size: Any, *, g: Symbol, ys: Outputs) -> Application:
        return operation(f"aten.adaptive_max_pool{rank}d_backward.default", g, x, saved(ys, 1))

    return IndexMap(map=_chosen(rank), pull=pulled_by(pull), samples=samples)


def _put_back(g: Symbol, x: Symbol, *geometry: Any) -> tuple[Indices, Indices]:
    """The transpose: every entry goes to where the maximum came from; the last argument is its number."""
    out, inp = _chosen(2)(x, ys=(None, geometry[-1]))
    return inp, out


MAXIMA: dict[str, Rule] = {
    "aten.max_pool2d_with_indices.default": _max_pool(
        2,
        Sample(T(2, 2, 4, 4), (2, 2)),
        Sample(T(2, 5, 4), (3, 2), (2, 1), (1, 1), (1, 1), True),
        Sample(T(1, 2, 1, 6), (1, 2), (1, 1), 0, (1, 2)),
    ),
    "aten.max_pool3d_with_indices.default": _max_pool(
        3, Sample(T(1, 2, 2, 4, 3), (2, 2, 1)), Sample(T(1, 3, 3, 3), (2, 2, 2), 1)
    ),
    "aten.adaptive_max_pool2d.default": _adaptive_max_pool(
        2, Sample(T(2, 2, 5, 4), (3, 2)), Sample(T(2, 3, 3), (1, 1))
    ),
    **{
        f"aten.fractional_max_pool{rank}d.default": IndexMap(map=_chosen(rank), samples=samples)
        for rank, samples in (
            (2, (Sample(T(2, 2, 5, 4), (2, 2), (3, 2), T(2, 2, 2, domain=(0.1, 0.9))),)),
            (3, (Sample(T(1, 2, 4, 5, 3), (2, 2, 1), (2, 3, 2), T(1, 2, 3, domain=(0.1, 0.9))),)),
        )
    },
    "aten.max_pool2d_with_indices_backward.default": IndexMap(
        map=_put_back,
        samples=(Sample(T(1, 2, 2), T(1, 4, 5), (2, 2), (2, 2), (0, 0), (1, 1), False, I(1, 2, 2, bound=20)),),
    ),
    "aten.adaptive_max_pool3d.default": _adaptive_max_pool(3, Sample(T(1, 2, 3, 4, 3), (2, 3, 1))),
}

# ---------------------------------------------------------------- linear maps in pairs

Pair = dict[str, Rule]


def _linear(kernel: Callable[..., Kernel], *samples: Sample) -> Rule:
    return LinearMap(kernels=(kernel,), samples=samples)


def _average_pool(rank: int, there: tuple[Sample, ...], back: tuple[Sample, ...]) -> Pair:
    """Averages over windows; the transpose takes the input for its shape."""
    forward, backward = f"aten.avg_pool{rank}d.default", f"aten.avg_pool{rank}d_backward.default"

    def geometry(
        size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        pad_counts: bool = True,
        divisor: int | None = None,
    ) -> tuple[Any, ...]:
        return size, stride or size, padding, ceil_mode, pad_counts, divisor

    def kernel(x: Symbol, *given: Any) -> Kernel:
        window = geometry(*given)
        return Kernel(operation(forward, HOLE, *window), operation(backward, HOLE, x, *window))

    def transposed(g: Symbol, x: Symbol, *given: Any) -> Kernel:
        window = geometry(*given)
        return Kernel(operation(backward, HOLE, x, *window), operation(forward, HOLE, *window))

    return {forward: _linear(kernel, *there), backward: _linear(transposed, *back)}


def _adaptive_average_pool(rank: int, there: Sample, back: Sample) -> Pair:
    """Averages over as many windows as the output has entries."""
    forward, backward = f"aten._adaptive_avg_pool{rank}d.default", f"aten._adaptive_avg_pool{rank}d_backward.default"

    def kernel(x: Symbol, size: Any) -> Kernel:
        return Kernel(operation(forward, HOLE, size), operation(backward, HOLE, x))

    def transposed(g: Symbol, x: Symbol) -> Kernel:
        return Kernel(operation(backward, HOLE, x), operation(forward, HOLE, g.shape[-rank:]))

    return {forward: _linear(kernel, there), backward: _linear(transposed, back)}


def _resampling(name: str, there: Sample, back: Sample) -> Pair:
    """Interpolation; the transpose is told the input's shape."""
    forward, backward = f"aten.{name}.default", f"aten.{name}_backward.default"

    def kernel(x: Symbol, size: Any, *how: Any) -> Kernel:
        return Kernel(operation(forward, HOLE, size, *how), operation(backward, HOLE, size, x.shape, *how))

    def transposed(g: Symbol, size: Any, shape: Any, *how: Any) -> Kernel:
        return Kernel(operation(backward, HOLE, size, shape, *how), operation(forward, HOLE, size, *how))

    return {forward: _linear(kernel, there), backward: _linear(transposed, back)}


def _padding(name: str, there: Sample, back: Sample) -> Pair:
    """Padding with entries of the operand itself."""
    forward, backward = f"aten.{name}.default", f"aten.{name}_backward.default"

    def kernel(x: Symbol, widths: Any) -> Kernel:
        return Kernel(operation(forward, HOLE, widths), operation(backward, HOLE, x, widths))

    def transposed(g: Symbol, x: Symbol, widths: Any) -> Kernel:
        return Kernel(operation(backward, HOLE, x, widths), operation(forward, HOLE, widths))

    return {forward: _linear(kernel, there), backward: _linear(transposed, back)}


def _columns(x: Symbol, *windows: Any) -> Kernel:
    back = operation("aten.col2im.default", HOLE, x.shape[-2:], *windows)
    return Kernel(operation("aten.im2col.default", HOLE, *windows), back)


def _from_columns(x: Symbol, size: Any, *windows: Any) -> Kernel:
    back = operation("aten.im2col.default", HOLE, *windows)
    return Kernel(operation("aten.col2im.default", HOLE, size, *windows), back)


_WINDOWS = ((2, 2), (1, 1), (1, 0), (2, 1))  # kernel size, dilation, padding, stride

PAIRS: dict[str, Rule] = {
    **_average_pool(
        2,
        (
            Sample(T(2, 2, 4, 4), (2, 2)),
            Sample(T(2, 5, 4), (3, 2), (2, 1), (1, 1), True, False),
            Sample(T(1, 1, 4, 4), (2, 2), (), 0, False, True, 3),
        ),
        (Sample(T(1, 2, 2, 2), T(1, 2, 4, 4), (2, 2), (2, 2), (0, 0), False, True, None),),
    ),
    **_average_pool(
        3,
        (Sample(T(1, 2, 2, 4, 3), (2, 2, 1)),),
        (Sample(T(1, 1, 1, 2, 3), T(1, 1, 2, 4, 3), (2, 2, 1), (2, 2, 1), (0, 0, 0), False, True, None),),
    ),
    **_adaptive_average_pool(2, Sample(T(2, 2, 5, 4), (3, 2)), Sample(T(1, 2, 3, 2), T(1, 2, 5, 4))),
    **_adaptive_average_pool(3, Sample(T(1, 2, 3, 4, 3), (2, 3, 1)), Sample(T(1, 1, 2, 3, 1), T(1, 1, 3, 4, 3))),
    **_resampling("upsample_nearest1d", Sample(T(2, 2, 3), (5,)), Sample(T(2, 2, 5), (5,), (2, 2, 3))),
    **_resampling("upsample_nearest2d", Sample(T(1, 2, 3, 2), (5, 4)), Sample(T(1, 2, 5, 4), (5, 4), (1, 2, 3, 2))),
    **_resampling(
        "upsample_nearest3d", Sample(T(1, 1, 2, 3, 2), (3, 5, 4)), Sample(T(1, 1, 3, 5, 4), (3, 5, 4), (1, 1, 2, 3, 2))
    ),
    **_resampling("upsample_linear1d", Sample(T(2, 2, 3), (5,), False), Sample(T(2, 2, 5), (5,), (2, 2, 3), False)),
    **_resampling(
        "upsample_bilinear2d", Sample(T(1, 2, 3, 2), (5, 4), True), Sample(T(1, 2, 5, 4), (5, 4), (1, 2, 3, 2), False)
    ),
    **_resampling(
        "upsample_trilinear3d",
        Sample(T(1, 1, 2, 3, 2), (3, 5, 4), True),
        Sample(T(1, 1, 3, 5, 4), (3, 5, 4), (1, 1, 2, 3, 2), False),
    ),
    **_resampling(
        "upsample_bicubic2d", Sample(T(1, 1, 3, 2), (5, 4), True), Sample(T(1, 1, 5, 4), (5, 4), (1, 1, 3, 2), False)
    ),
    **{
        op: rule
        for name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
        for op, rule in _resampling(
            name, Sample(T(1, 2, 5, 6), (3, 4), False), Sample(T(1, 2, 3, 4), (3, 4), (1, 2, 5, 6), True)
        ).items()
    },
    **_padding("reflection_pad1d", Sample(T(2, 2, 4), (2, 1)), Sample(T(2, 2, 7), T(2, 2, 4), (2, 1))),
    **_padding("reflection_pad2d", Sample(T(1, 3, 4), (2, 1, 1, 0)), Sample(T(1, 4, 7), T(1, 3, 4), (2, 1, 1, 0))),
    **_padding("replication_pad1d", Sample(T(2, 2, 4), (2, 1)), Sample(T(2, 2, 7), T(2, 2, 4), (2, 1))),
    **_padding("replication_pad2d", Sample(T(1, 3, 4), (2, 1, 1, 0)), Sample(T(1, 4, 7), T(1, 3, 4), (2, 1, 1, 0))),
    "aten.im2col.default": _linear(_columns, Sample(T(1, 2, 4, 3), *_WINDOWS)),
    "aten.col2im.default": _linear(_from_columns, Sample(T(1, 8, 6), (4, 3), *_WINDOWS)),
}

# ---------------------------------------------------------------- dropout and embedding


def _dropout_body(x: Symbol, p: float, train: bool | None, *, ys: Outputs) -> Mapping[int, tuple[Part, ...]]:
    i = plain_axes(x.shape)
    if train is False:
        return {0: (Term(1, (), i, i),)}
    return {0: (Term(1 / (1 - p), (saved(ys, 1)[i],), i, i),)} if p < 1 else {}


def _pull_dropout(x: Symbol, p: float, train: bool | None, *, g: Symbol, ys: Outputs) -> Application | None:
    if train is False or p == 1:
        return None
    return operation("aten.native_dropout_backward.default", g, saved(ys, 1), 1 / (1 - p))


def _embedding_body(
    weight: Symbol, indices: Symbol, padding_idx: int = -1, by_frequency: bool = False, sparse: bool = False
) -> Mapping[int, tuple[Part, ...]]:
    _refuse_frequencies(by_frequency)
    rows, column = plain_axes(indices.shape), plain(weight.shape[1])
    counts = () if padding_idx < 0 else (indices.ne(padding_idx)[rows],)
    return {0: (Term(1, counts, (*rows, column), (Lookup(indices.value, rows), column)),)}


def _pull_embedding(
    weight: Symbol,
    indices: Symbol,
    padding_idx: int = -1,
    by_frequency: bool = False,
    sparse: bool = False,
    *,
    g: Symbol,
) -> Application:
    _refuse_frequencies(by_frequency)
    return operation("aten.embedding_dense_backward.default", g, indices, weight.shape[0], padding_idx, False)


def _refuse_frequencies(by_frequency: bool) -> None:
    if by_frequency:
        raise RuleError(
            "embedding with scale_grad_by_freq=True has no derivative: PyTorch divides its gradient by how often each "
            "row occurs; pass scale_grad_by_freq=False, and scale the gradient afterwards if you want that"
        )


@dataclass(frozen=True)
class _Bags:
    """Which elements belong to which bag.

    n, column: labels of the elements and of the columns of the weight.
    bag: for each element the number of its bag.
    counted: 1 for each element that is not the padding; None if there is no padding.
    """

    n: Index
    column: Index
    bag: Symbol
    counted: Symbol | None

    def sizes(self, number: int, dtype: str) -> Symbol:
        """How many elements are counted in each bag; 1 for an empty one."""
        ones = truth(self.bag, self.bag.shape, True) if self.counted is None else self.counted
        zeros = constant(self.bag, "full.default", (number,), 0, shape=(number,), dtype="int64")
        total = tensor("scatter_add.default", zeros, 0, self.bag, ones.to("int64"), shape=(number,), dtype="int64")
        return total.clamp_min(1).to(dtype)


def _bags(weight: Symbol, indices: Symbol, offsets: Symbol, padding_idx: int) -> _Bags:
    numbers = positions(weight, indices.size)
    shape = {"shape": indices.shape, "dtype": "int64"}
    behind = tensor("searchsorted.Tensor", offsets.to("int64"), numbers, right=True, **shape)
    counted = indices.ne(padding_idx) if padding_idx >= 0 else None
    return _Bags(plain(indices.size), plain(weight.shape[1]), behind - 1, counted)


def _embedding_bag_body(
    weight: Symbol,
    indices: Symbol,
    offsets: Symbol,
    by_frequency: bool = False,
    mode: int = 0,
    sparse: bool = False,
    scales: Symbol | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
    *,
    ys: Outputs,
) -> Mapping[int, tuple[Part, ...]]:
    """Mode 0 sums the rows of a bag, weighted by `scales`; 1 takes their mean, 2 the largest entry of each column."""
    _refuse_frequencies(by_frequency)
    if not indices.size:
        return {}
    bags = _bags(weight, indices, offsets, padding_idx)
    n, column = bags.n, bags.column
    y = saved(ys, 0)
    if mode == 2:
        return {0: (_largest_of_bag(weight, bags, saved(ys, 3), y),)}
    out, row = (Lookup(bags.bag.value, (n,)), column), Lookup(indices.value, (n,))
    shared = [] if bags.counted is None else [bags.counted[n]]
    if mode == 1:
        sizes = bags.sizes(y.shape[0], weight.dtype)
        inverse = tensor(
            "index_select.default", sizes.reciprocal(), 0, bags.bag, shape=indices.shape, dtype=weight.dtype
        )
        shared.append(inverse[n])
    own = [] if scales is None else [scales[n]]
    table = {0: (Term(1, (*shared, *own), out, (row, column)),)}
    if scales is not None:
        table[3] = (Term(1, (*shared, Factor(weight.value, (row, column))), out, (n,)),)
    return table


def _largest_of_bag(weight: Symbol, bags: _Bags, chosen: Symbol, y: Symbol) -> Term:
    """Each entry comes from one row; that of an empty bag from none."""
    b, column = plain_axes(y.shape)
    zeros = constant(weight, "full.default", (y.shape[0],), 0, shape=(y.shape[0],), dtype="int64")
    ones = truth(weight, bags.bag.shape, True) if bags.counted is None else bags.counted
    args = (zeros, 0, bags.bag, ones.to("int64"))
    filled = tensor("scatter_add.default", *args, shape=zeros.shape, dtype="int64") > 0
    row = Lookup(chosen.clamp_min(0).value, (b, column))
    return Term(1, (filled[b],), (b, column), (row, column))


OFFSETS = I(2, bound=1)  # an empty bag, and one with everything
_BAGGED = (
    *(Sample(T(5, 3), I(4, bound=5), OFFSETS, False, mode) for mode in (0, 1, 2)),
    *(Sample(T(5, 3), I(4, bound=5), OFFSETS, False, mode, False, None, False, 1) for mode in (0, 1, 2)),
    Sample(T(5, 3), I(4, bound=5), OFFSETS, False, 0, False, T(4)),
)

LOOKUPS: dict[str, Rule] = {
    **{
        f"aten.{op}.default": Function(
            body=_embedding_bag_body, samples=_BAGGED, source="a bag is a group of rows; the padding row is left out"
        )
        for op in ("_embedding_bag", "_embedding_bag_forward_only")
    },
    "aten.native_dropout.default": Function(
        body=_dropout_body,
        pull=pulled_by(_pull_dropout),
        samples=(Sample(T(4, 5), 0.4, True), Sample(T(3), 0.4, False), Sample(T(3), 1.0, True)),
        source="the mask is a result of the operator",
    ),
    "aten.embedding.default": Function(
        body=_embedding_body,
        pull=pulled_by(_pull_embedding),
        samples=(Sample(T(4, 3), I(2, 3, bound=4)), Sample(T(4, 3), I(5, bound=4), 1), Sample(T(4, 1), I(bound=4))),
        source="row indices[i] of the weight; the row padding_idx has the derivative zero",
    ),
}

RULES: dict[str, Rule] = {**CONVOLUTION, **MAXIMA, **PAIRS, **LOOKUPS}

__all__ = ["RULES"]
