"""Array programs as machine code, beside the same operators of PyTorch's."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from emit_samples import SAMPLES
from pullback.dtypes import dtype_name
from pullback.emit.loops import emit_loops
from pullback.emit.python import emit_python
from pullback.errors import UnsupportedTorchError
from pullback.graph import Graph, Node, Value
from pullback.native.building import is_there
from pullback.native.elementwise import FORMULAS
from pullback.native.translation import is_covered
from pullback.torch_private import overload

pytestmark = pytest.mark.skipif(not is_there(), reason="no compiler: the Python back end takes over")

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.3, -2.5, math.inf, -math.inf, math.nan, 1e-310, 700.0, -700.0]

A, B = torch.rand(3, 4), torch.rand(3, 4)
MORE: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "aten.hardtanh.default": [((A,), {}), ((A, -0.5, 0.25), {})],
    "aten.threshold_backward.default": [((A, B, 0), {}), ((A, B, 0.5), {})],
    "aten.leaky_relu.default": [((A,), {}), ((A, 0.2), {})],
    "aten.leaky_relu_backward.default": [((A, B, 0.1, False), {})],
    "aten.sigmoid_backward.default": [((A, B), {})],
    "aten.tanh_backward.default": [((A, B), {})],
    "aten.silu.default": [((A,), {})],
    "aten.silu_backward.default": [((A, B), {})],
    "aten.elu.default": [((A,), {}), ((A, 0.5, 2.0, 1.5), {})],
    "aten.gelu_backward.default": [((A, B), {})],
}


def value_of(tensor: torch.Tensor, name: str = "x") -> Value:
    return Value(name, tuple(tensor.shape), dtype_name(tensor.dtype))


class Builder:
    """Collects calls of operators as nodes of one graph, and what PyTorch computes for each."""

    def __init__(self) -> None:
        self.inputs: dict[int, tuple[Value, torch.Tensor]] = {}
        self.nodes: list[Node] = []
        self.expected: list[tuple[Value, torch.Tensor, str]] = []

    def call(self, op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Append a call if there is native code for it."""
        try:
            found = overload(op)(*args, **kwargs)
        except (RuntimeError, UnsupportedTorchError):  # PyTorch has no such call
            return False
        results = found if isinstance(found, (tuple, list)) else [found]
        outputs = tuple(value_of(r) for r in results)
        node = Node(op, self._values(tuple(args)), tuple((k, self._values(v)) for k, v in kwargs.items()), outputs)
        if not is_covered(node):
            return False
        self.nodes.append(node)
        self.expected += [(v, r, str(node)) for v, r in zip(outputs, results, strict=True)]
        return True

    def _values(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            known = self.inputs.setdefault(id(argument), (value_of(argument), argument))
            return known[0]
        return tuple(map(self._values, argument)) if isinstance(argument, (tuple, list)) else argument

    def graph(self) -> Graph:
        outputs = tuple(value for value, _, _ in self.expected)
        return Graph(tuple(v for v, _ in self.inputs.values()), tuple(self.nodes), outputs)

    def check(self, tolerance: float) -> None:
        graph = self.graph()
        run = emit_loops(graph, plain=True).run
        given = [tensor for _, tensor in self.inputs.values()]
        found, again = run(*given), run(*given)
        for (_, expected, text), value, second in zip(self.expected, found, again, strict=True):
            torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=text)
            torch.testing.assert_close(value, second, rtol=0, atol=0, equal_nan=True, msg=text)


def test_every_covered_operator_computes_what_pytorch_computes() -> None:
    """All samples of emission in one program; those of `float64` too."""
    builder, covered = Builder(), set()
    for op in (*SAMPLES, *MORE):
        for args, kwargs in (*SAMPLES.get(op, ()), *MORE.get(op, ())):
            if builder.call(op, args, kwargs):
                covered.add(op)
    builder.check(2e-6)
    assert len(covered) > 100, sorted(covered)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_special_values_are_those_of_pytorch(dtype: torch.dtype) -> None:
    grid = torch.tensor(SPECIAL, dtype=dtype)
    x, y = grid.repeat(len(SPECIAL)).reshape(12, 12), grid.repeat_interleave(len(SPECIAL)).reshape(12, 12)
    builder = Builder()
    for op in FORMULAS:
        for args, kwargs in (*SAMPLES.get(op, ()), *MORE.get(op, ())):
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            if (
                not all(a.dtype == torch.float32 and a.dim() == 2 for a in tensors)
                or len({a.shape for a in tensors}) > 1
            ):
                continue
            if op == "aten.gelu.default":  # of infinity PyTorch's vectors make NaN in float32, and its scalars do not
                continue
            replaced = iter((x, y, x.t().contiguous()))
            new = [next(replaced) if isinstance(a, torch.Tensor) else a for a in args]
            builder.call(op, new, kwargs)
    builder.check(1e-13 if dtype == torch.float64 else 3e-6)


def test_layouts_sizes_and_broadcasting() -> None:
    """Odd sizes, transposed, sliced and repeated operands, reductions over any axes, products of any shape."""
    torch.manual_seed(0)
    builder = Builder()
    aten = "aten.{}".format
    for rows, columns, terms in [(1, 1, 1), (3, 5, 7), (8, 16, 4), (17, 9, 33), (2, 40, 64), (70, 3, 20), (13, 24, 1)]:
        a, b = torch.randn(rows, terms, dtype=torch.float64), torch.randn(terms, columns, dtype=torch.float64)
        start = torch.randn(columns, dtype=torch.float64)
        builder.call(aten("mm.default"), (a, b), {})
        builder.call(aten("addmm.default"), (start, a, b), {})
        builder.call(aten("mv.default"), (a, b[:, 0].contiguous()), {})
        builder.call(
            aten("bmm.default"), (a.expand(3, rows, terms).contiguous(), b.expand(3, terms, columns).contiguous()), {}
        )
        builder.call(aten("sum.dim_IntList"), (a, (0,)), {})
        builder.call(aten("sum.dim_IntList"), (a, (1,), True), {})
        builder.call(aten("mean.default"), (a,), {})
        builder.call(aten("amax.default"), (b, (0,)), {})
        builder.call(aten("amin.default"), (b, (-1,)), {})
        builder.call(aten("add.Tensor"), (b, start), {"alpha": 2})
        builder.call(aten("_softmax.default"), (a, 0, False), {})
        builder.call(aten("_log_softmax.default"), (a, -1, False), {})
        builder.call(aten("cat.default"), ((a, a[:, :1].contiguous()), 1), {})
        builder.call(aten("slice_backward.default"), (a, (rows, terms + 3), 1, 2, terms + 2, 1), {})
        builder.call(aten("diagonal_backward.default"), (a, (rows, terms, terms), 0, 1, 2), {})
        builder.call(aten("select_backward.default"), (a, (rows, 4, terms), 1, 2), {})
    cube = torch.randn(5, 6, 7, dtype=torch.float32)
    for axes in [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)]:
        builder.call(aten("sum.dim_IntList"), (cube, axes), {})
        builder.call(aten("amax.default"), (cube, axes, True), {})
    builder.check(1e-6)


def random_graph(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Graph, list[torch.Tensor]]:
    """A program of element-wise operators, views, reductions and products of matrices, all of one size."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    size = 3 + draw(9)
    tensors = [torch.randn(size, size, generator=generator, dtype=dtype) for _ in range(3)]
    inputs = tuple(value_of(t, f"x{k}") for k, t in enumerate(tensors))
    known, nodes = list(inputs), []
    for _ in range(25):
        x, y = (known[-1 - draw(min(len(known), 6))] for _ in range(2))
        op, args = [
            ("mul.Tensor", (x, y)), ("add.Tensor", (x, y)), ("sub.Tensor", (x, y)), ("tanh.default", (x,)),
            ("sin.default", (x,)), ("mm.default", (x, y)), ("t.default", (x,)), ("flip", x), ("sum", x),
            ("where", (x, y)), ("mul.Tensor", (x, 0.25)), ("slice", x), ("_softmax.default", (x, draw(2), False)),
        ][draw(13)]  # fmt: skip
        if op == "sum":
            total = Value("s", (size,), dtype_name(dtype))
            nodes.append(Node("aten.sum.dim_IntList", (x, (draw(2),)), (), (total,)))
            op, args = "expand.default", (total, (size, size))
        elif op == "where":
            mask = Value("m", (size, size), "bool")
            nodes.append(Node("aten.gt.Tensor", args, (), (mask,)))
            op, args = "where.self", (mask, *args)
        elif op == "flip":
            op, args = "permute.default", (args, (1, 0))
        elif op == "slice":
            part = Value("p", (size - 1, size), dtype_name(dtype))
            nodes.append(Node("aten.slice.Tensor", (args, 0, 1), (), (part,)))
            op, args = "slice_backward.default", (part, (size, size), 0, 0, size - 1, 1)
        value = Value("v", (size, size), dtype_name(dtype))
        nodes.append(Node(f"aten.{op}", args, (), (value,)))
        known.append(value)
    return Graph(inputs, tuple(nodes), tuple(known[-4:])), tensors


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_agree_with_python(seed: int) -> None:
    graph, tensors = random_graph(seed)
    expected = emit_python(graph, plain=False).run(*tensors)
    found = emit_loops(graph, plain=True).run(*tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()) + 1e-12)
