"""Array programs as machine code, beside the same operators of PyTorch's."""

import gc
import math
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import pullback
from emit_samples import SAMPLES
from pullback.capture import capture
from pullback.dtypes import dtype_name
from pullback.emit.loops import emit_loops
from pullback.emit.lowering import lower
from pullback.emit.python import emit_python
from pullback.errors import UnsupportedTorchError
from pullback.graph import Graph, Node, Value
from pullback.native import products
from pullback.native.building import is_there
from pullback.native.formulas import POINTWISE
from pullback.native.translation import is_covered
from pullback.torch_private import overload, tree_flatten

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
        outputs = tuple(None if r is None else value_of(r) for r in results)
        node = Node(op, self._values(tuple(args)), tuple((k, self._values(v)) for k, v in kwargs.items()), outputs)
        if not is_covered(node):
            return False
        self.nodes.append(node)
        self.expected += [(v, r, str(node)) for v, r in zip(outputs, results, strict=True) if v is not None]
        return True

    def product(self, a: torch.Tensor, b: torch.Tensor, turn_a: bool, turn_b: bool) -> None:
        """Append a product of transposed matrices."""
        operands, tensors = [], []
        for tensor, turn in ((a, turn_a), (b, turn_b)):
            operand, result = self._values(tensor), tensor.t() if turn else tensor
            if turn:
                view = value_of(result)
                self.nodes.append(Node("aten.t.default", (operand,), (), (view,)))
                operand = view
            operands.append(operand)
            tensors.append(result)
        result = torch.mm(*tensors)
        value = value_of(result)
        self.nodes.append(Node("aten.mm.default", tuple(operands), (), (value,)))
        self.expected.append((value, result, f"product {turn_a} {turn_b}"))

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
    for op in POINTWISE:
        for args, kwargs in (*SAMPLES.get(op, ()), *MORE.get(op, ())):
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            if (
                not all(a.dtype == torch.float32 and a.dim() == 2 for a in tensors)
                or len({a.shape for a in tensors}) > 1
            ):
                continue
            if op in ("aten.gelu.default", "aten.fmod.Tensor"):  # PyTorch's vectors are wrong at some numbers
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


@pytest.mark.parametrize("width", [16, 32, 64])
def test_products_on_processors_with_other_vectors(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """GCC makes vectors of any width out of those that there are."""
    monkeypatch.setattr(products, "vector_bytes", lambda: width)
    torch.manual_seed(0)
    builder = Builder()
    for dtype in (torch.float64, torch.float32):
        for rows, columns, terms in [(3, 5, 7), (9, 17, 33), (2, 40, 64), (70, 3, 20), (1, 11, 65)]:
            a, b = torch.randn(rows, terms, dtype=dtype), torch.randn(terms, columns, dtype=dtype)
            builder.call("aten.mm.default", (a, b), {})
            builder.product(a, b.t().contiguous(), False, True)
            builder.product(a.t().contiguous(), b, True, False)
    builder.check(2e-5)


def test_large_products_by_blas() -> None:
    """Every way in which operands can lie, started from a bias or not."""
    torch.manual_seed(0)
    builder, aten = Builder(), "aten.{}.default".format
    for dtype in (torch.float64, torch.float32):
        a, b = torch.randn(80, 90, dtype=dtype), torch.randn(90, 70, dtype=dtype)
        turned_a, turned_b, start = a.t().contiguous(), b.t().contiguous(), torch.randn(70, dtype=dtype)
        builder.call(aten("mm"), (a, b), {})
        builder.call(aten("addmm"), (start, a, b), {})
        builder.call(aten("bmm"), (torch.stack((a, a + 1)), torch.stack((b, b - 1))), {})
        for left, right in ((turned_a, b), (a, turned_b), (turned_a, turned_b)):
            builder.product(left, right, left is turned_a, right is turned_b)
    builder.check(2e-4)


def test_an_update_of_overlapping_arguments_is_refused() -> None:
    def step(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        value = ((p @ p.t()).tanh() @ q).sin()
        p.sub_(value @ value.t() @ p)
        return value.sum()

    program = pullback.compile(step, backend="native")
    expected = pullback.compile(step, backend="python")
    data = torch.randn(12, 5)
    p, q, r = data[:5].clone(), data[5:10].clone(), data[:5].clone()
    torch.testing.assert_close(program(p, q), expected(r, q))
    torch.testing.assert_close(p, r)
    apart, again = (
        torch.stack((data[:5], data[5:10]), -1)[..., 0],
        data[:5].clone(),
    )  # not dense: copied, and copied back
    assert not apart.is_contiguous()
    torch.testing.assert_close(program(apart, q), expected(again, q))
    torch.testing.assert_close(apart, again)
    with pytest.raises(pullback.ArgumentError, match="shares its memory"):
        program(data[:5], data[4:9])


def test_inputs_are_overwritten_in_the_end() -> None:
    """Momentum reads the old value of what is overwritten first; a product overwrites; one of two is read later."""

    def step(p: torch.Tensor, momentum: torch.Tensor, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        g = (p @ x).tanh() @ x.t()
        value = (g * p).sum()
        momentum.mul_(0.9).add_(g)
        p.sub_(0.1 * momentum + 0.01 * p)
        q.copy_(p @ x @ x.t() + q.t())
        return value + (q * p).sum()

    given = [torch.randn(6, 6, dtype=torch.float64) for _ in range(4)]
    native, python = ([t.clone() for t in given] for _ in range(2))
    for backend, tensors in (("native", native), ("python", python)):
        program = pullback.compile(step, backend=backend)
        for _ in range(3):
            tensors.append(program(*tensors[:4]))
    torch.testing.assert_close(native, python, rtol=1e-11, atol=1e-11)


def test_layer_normalisation() -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5)
    aten, builder = "aten.native_layer_norm{}.default".format, Builder()
    b, gradient = b.double(), torch.randn(3, 7, 5, dtype=torch.float64)
    for shape, weight, bias in [((7, 5), w, b), ((7, 5), w, None), ((5,), None, None), ((3, 7, 5), None, None)]:
        assert builder.call(aten(""), (x, shape, weight, bias, 1e-5), {})
        _, mean, deviation = torch.native_layer_norm(x, shape, weight, bias, 1e-5)
        args = (gradient, x, shape, mean, deviation, weight, bias, (True, weight is not None, bias is not None))
        assert builder.call(aten("_backward"), args, {})
    builder.check(1e-12)


def test_reductions_of_single_numbers() -> None:
    builder, aten, x = Builder(), "aten.{}".format, torch.tensor(0.7, dtype=torch.float64)
    for dim in (0, -1):
        for op in ("_softmax", "_log_softmax"):
            assert builder.call(aten(f"{op}.default"), (x, dim, False), {})
            assert builder.call(aten(f"{op}_backward_data.default"), (x, x.exp(), dim, torch.float64), {})
        for op in ("sum.dim_IntList", "mean.dim", "amax.default", "amin.default"):
            assert builder.call(aten(op), (x, (dim,), dim == 0), {})
    builder.check(1e-12)


def test_losses() -> None:
    torch.manual_seed(0)
    builder, aten = Builder(), "aten.{}.default".format
    p, y, w = (torch.rand(5, 3, dtype=torch.float64) for _ in range(3))
    p[0, 0], p[0, 1] = 0.0, 1.0
    scores, target = torch.randn(7, 4, dtype=torch.float64).log_softmax(-1), torch.tensor([0, 3, 1, -100, 2, 2, 1])
    for reduction in (0, 1, 2):
        for weight in (None, w):
            assert builder.call(aten("binary_cross_entropy"), (p, y, weight, reduction), {})
            gradient = torch.randn(p.shape if reduction == 0 else (), dtype=torch.float64)
            assert builder.call(aten("binary_cross_entropy_backward"), (gradient, p, y, weight, reduction), {})
        for s, t in ((scores, target), (scores[1].clone(), target[1].clone())):
            assert builder.call(aten("nll_loss_forward"), (s, t, None, reduction, -100), {})
            total = torch.ops.aten.nll_loss_forward(s, t, None, reduction, -100)[1]
            gradient = torch.randn(t.shape if reduction == 0 else (), dtype=torch.float64)
            assert builder.call(aten("nll_loss_backward"), (gradient, s, t, None, reduction, -100, total), {})
    builder.check(1e-12)


def test_what_pytorch_refuses_at_run_time_is_refused_with_its_error() -> None:
    def classes(w: torch.Tensor, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy((x @ w).tanh() @ w, target)

    def probability(w: torch.Tensor, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy((x @ w).tanh() * 1.5, target)

    x, w, target = torch.rand(6, 4), torch.rand(4, 4) * 0.1, torch.tensor([0, 1, 2, 3, 3, 0])
    for f, good, bad, change in (
        (classes, target, torch.tensor([0, 1, 2, 4, 3, 0]), 1.0),
        (probability, torch.rand(6, 4), torch.rand(6, 4), 100.0),
    ):
        program, plain = (pullback.value_and_grad(f, backend=name) for name in ("native", "python"))
        for a, b in zip(program(w, x, good), plain(w, x, good), strict=True):
            torch.testing.assert_close(a, b)
        with pytest.raises((IndexError, RuntimeError)) as found:
            program(w * change, x, bad)
        with pytest.raises(found.type) as expected:
            plain(w * change, x, bad)
        assert str(found.value) == str(expected.value)


def test_programs_are_cut_where_there_is_no_native_code() -> None:
    """A convolution, a sort and random numbers between element-wise operators; views on both sides of a cut."""
    torch.manual_seed(0)
    image, kernel = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)

    def f(image: torch.Tensor, kernel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = (image.sin() * 2 + image).exp() * 0.1
        kept = (image * 3 + 1).cos() * image  # no operator of PyTorch's reads it
        y = torch.nn.functional.conv2d(x, kernel).tanh()
        z = ((y * y + 1).log() * y).permute(0, 2, 3, 1)
        sorted_values = (z.flatten(1).sort(-1).values * 2 - 1).cos()
        return (sorted_values * sorted_values).sum(-1) + kept.flatten(1).sum(-1), z, z.transpose(1, 2)

    expected = pullback.compile(f, backend="python")(image, kernel)
    found = pullback.compile(f, backend="native")(image, kernel)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert found[1].data_ptr() == found[2].data_ptr()  # views of one another, as the function has it


def test_constants_in_any_layout() -> None:
    """What a program does not compute at every call is a transposed view here; its name is one of Python's words."""
    nodes: list[Node] = []

    def node(op: str, shape: tuple[int, ...], *args: Any) -> Value:
        value = Value("v", shape, "float64")
        nodes.append(Node(f"aten.{op}", args, (), (value,)))
        return value

    x = Value("x", (3, 2), "float64")
    seed = Value("seed", (2, 3), "float64")
    nodes.append(Node("aten.ones.default", ((2, 3),), (("dtype", torch.float64),), (seed,)))
    turned = node("permute.default", (3, 2), seed, (1, 0))
    ones = node("diagonal_backward.default", (2, 3, 2), turned, (2, 3, 2), 0, 0, 2)
    moved = node("permute.default", (2, 2, 3), ones, (0, 2, 1))
    product = node("mul.Tensor", (2, 2, 3), moved, node("t.default", (2, 3), x))
    total = node("add.Tensor", (2, 2, 3), node("sin.default", (2, 2, 3), product), product)
    graph = Graph((x,), tuple(nodes), (total,))
    given = torch.randn(3, 2, dtype=torch.float64)
    (found,), (expected,) = emit_loops(graph, "lambda", plain=True).run(given), emit_python(graph, "lambda").run(given)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_arguments_in_any_layout() -> None:
    x = torch.randn(6, 8, dtype=torch.float64)
    program = pullback.jacobian(lambda x, y: ((x @ y).tanh() @ y.t() * x).sum(0), (0, 1), backend="native")
    y = torch.randn(8, 6, dtype=torch.float64)
    dense = program(x, y)
    for given in [
        (x.t().clone().t(), y),
        (x.flip(0).flip(0), y[:, :]),
        (torch.stack((x, x), -1)[..., 0], y.t().clone().t()),
    ]:
        for a, b in zip(program(*given), dense, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_intermediate_results_are_never_read_before_they_are_written() -> None:
    """Scratch memory full of NaN, between calls too."""
    graph, tensors = random_graph(3)
    program = emit_loops(graph, plain=True)
    program.check()
    expected = emit_python(graph, plain=False).run(*tensors)
    pasted: dict[str, Any] = {}
    exec(program.code, pasted)
    assert all(torch.equal(a, b) for a, b in zip(pasted["program"](*tensors), program.run(*tensors), strict=True))
    pool = program.run.__globals__.get("pool", [])
    for _ in range(3):
        found = program.run(*tensors)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()) + 1e-12)
        assert pool, "a program with intermediate results has scratch memory"
        for scratch in pool:
            scratch.fill_(255)


def test_calls_keep_no_memory_and_results_are_fresh() -> None:
    graph, tensors = random_graph(4)
    run = emit_loops(graph, plain=True).run
    first = run(*tensors)
    copies = [r.clone() for r in first]
    assert len({r.data_ptr() for r in (*first, *run(*tensors))}) == 2 * len(first)
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))
    before = len(run.__globals__["pool"])
    for _ in range(20):
        run(*tensors)
    assert len(run.__globals__["pool"]) == before == 1


def test_a_program_is_freed_with_its_last_reference() -> None:
    graph, tensors = random_graph(4)
    program = emit_loops(graph, plain=True)
    program.run(*tensors)
    gc.collect()
    gc.disable()
    try:
        run = weakref.ref(program.run)
        del program
        assert run() is None
    finally:
        gc.enable()


def test_threads_share_a_program() -> None:
    graph, tensors = random_graph(5)
    run = emit_loops(graph, plain=True).run
    expected = run(*tensors)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: run(*tensors), range(64)))
    assert all(torch.equal(a, b) for found in results for a, b in zip(found, expected, strict=True))


def random_graph(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Graph, list[torch.Tensor]]:
    """A program of element-wise operators, views, reductions and products of matrices, all of one size."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    def doubled(value: Value) -> Value:
        result = Value("d", value.shape, value.dtype)
        nodes.append(Node("aten.mul.Tensor", (value, 2.0), (), (result,)))
        return result

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
            ("cat", (x, y)), ("cat", (x, y)), ("stack", (x, y)),
        ][draw(16)]  # fmt: skip
        if op == "sum":
            total = Value("s", (size,), dtype_name(dtype))
            nodes.append(Node("aten.sum.dim_IntList", (x, (draw(2),)), (), (total,)))
            op, args = "expand.default", (total, (size, size))
        elif op == "cat":
            dim, place = draw(2), 1 + draw(size - 1)
            shapes = [(n, size) if dim == 0 else (size, n) for n in (place, size - place)]
            parts = tuple(Value("p", shape, dtype_name(dtype)) for shape in shapes)
            nodes.append(Node("aten.slice.Tensor", (x, dim, 0, place), (), parts[:1]))
            nodes.append(Node("aten.slice.Tensor", (y, dim, place), (), parts[1:]))
            op, args = "cat.default", (parts if draw(2) else tuple(map(doubled, parts)), dim)
        elif op == "stack":
            pair = Value("p", (size, 2, size), dtype_name(dtype))
            nodes.append(Node("aten.stack.default", ((x, doubled(y)), 1), (), (pair,)))
            op, args = "amax.default", (pair, (1,))
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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_integers_run_over_as_those_of_pytorch(dtype: torch.dtype) -> None:
    """Though C leaves that open, so that a compiler may take x + 1 > x for true."""
    ends = torch.iinfo(dtype)
    x = torch.tensor([ends.max, 1, ends.min, 5] * 1000, dtype=dtype)

    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + 1 > x, x - 1 < x, (-x < 0) == (x > 0), x * x >= 0, (x * 3).double().amax()

    graph = lower(capture(f, *tree_flatten(((x,), {}))).graph)
    for found, right in zip(emit_loops(graph, plain=True).run(x), f(x), strict=True):
        assert torch.equal(found, right)
