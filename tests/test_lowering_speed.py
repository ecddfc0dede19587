"""What lowering saves: copies, passes over memory and calls, in closed form; the numbers stay what they were."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback import transform
from pullback.emit.fusions import fuse
from pullback.emit.python import emit_python
from pullback.emit.sparse_sums import add_where_nonzero
from pullback.graph import Graph, Node, Value
from support import reference


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def program_of(f: pullback.Transform, *args: Any) -> Any:
    f(*args)
    entry, _ = transform.find(f.kind, f.f, args, {})
    return entry.program.compiled.program


def calls(program: Any) -> Counter[str]:
    """How often the text calls each operator."""
    body = program.code.split(f"def {program.name}(", 1)[1]
    lines = (line.strip() for line in body.splitlines())
    found = (line.split("(")[0].split("=")[-1].split(".")[-1].strip() for line in lines if "(" in line)
    return Counter(name for name in found if name.isidentifier())


# ---------------------------------------------------------------- axis order


def network(x: Tensor, *weights: Tensor) -> Tensor:
    for weight in weights:
        x = torch.tanh(x @ weight)
    return x


def test_batched_jacobian_copies_weights_only() -> None:
    """The Jacobian of 32 samples is 32 · 20 rows: no reshape of it is a copy, only a weight's transpose is one."""
    weights = normal(24, 40), normal(40, 40), normal(40, 20)
    f = pullback.batch_jacobian(network, order="reverse")
    x = normal(32, 24)
    program = program_of(f, x, *weights)
    copied = [n for n in program.graph.nodes if n.op == "aten.clone.default"]
    assert max(n.results[0].size for n in copied) <= 40 * 20
    with reference():
        wanted = torch.func.vmap(torch.func.jacrev(network), in_dims=(0, None, None, None))(x, *weights)
    assert_close(f(x, *weights), wanted)
    contiguous = strided_views(program, (x, *weights))
    assert not contiguous, contiguous


def strided_views(program: Any, args: tuple[Tensor, ...]) -> list[str]:
    """The reshapes of a program that copy more than a weight."""
    found = []
    values = dict(zip(program.graph.inputs, args, strict=True))
    for node in program.graph.nodes:
        if node.op == "aten.view.default" and node.inputs[0] in values:
            source = values[node.inputs[0]]
            if source.reshape(node.args[1]).data_ptr() != source.data_ptr() and source.numel() > 2000:
                found.append(str(node))
    return found


def test_parts_of_a_projection_are_views() -> None:
    """The queries of an attention are entries 8 h + e of a projection: a slice and a reshape, no table of positions."""

    def attend(x: Tensor, w: Tensor) -> Tensor:
        q, k, v = (x @ w).chunk(3, -1)
        q, k, v = (t.reshape(6, 2, 4).transpose(0, 1) for t in (q, k, v))
        return ((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(0, 1).reshape(6, 8)

    x, w = normal(6, 8), normal(8, 24)
    f = pullback.jacobian(attend)
    operators = Counter(node.op for node in program_of(f, x, w).graph.nodes)
    assert not operators["aten.index.Tensor"]
    assert not operators["aten.arange.start_step"]
    with reference():
        assert_close(f(x, w), torch.func.jacrev(attend)(x, w))


# ---------------------------------------------------------------- sums kept apart as long as it pays


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(self.norm(x))))


@pytest.mark.parametrize("order", ["auto", "forward", "reverse"])
def test_residual_connections_cost_their_diagonal(order: str) -> None:
    """I + M is M with ones added to its diagonal: no tensor of zeros as large as the result is made or added."""
    blocks = nn.Sequential(Block(6), Block(6))

    def f(x: Tensor) -> Tensor:
        return blocks(x)  # type: ignore[no-any-return]

    x = normal(5, 6)
    jacobian = pullback.jacobian(f, order=order)
    with torch.no_grad():
        program = program_of(jacobian, x)
        found = jacobian(x)
    with reference():
        assert_close(found, torch.func.jacrev(f)(x).detach())
    assert calls(program)["diagonal_backward"] <= 1


def random_sums(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A program whose Jacobian has dense, diagonal, sliced and selected terms."""
    chosen = random.Random(seed)
    kinds = [chosen.choice("dstnrmp") for _ in range(5)]

    def f(x: Tensor, w: Tensor) -> Tensor:
        for kind in kinds:
            if kind == "d":
                x = x + (x @ w).tanh()
            elif kind == "s":
                x = x + torch.cat([x[1:].sin(), x[:1].cos()])
            elif kind == "t":
                x = x + x.t() @ w
            elif kind == "n":
                x = torch.nn.functional.layer_norm(x, (4,)) + x
            elif kind == "r":
                x = x + torch.stack([x.diagonal()] * 4)
            elif kind == "m":
                x = x + torch.nn.functional.pad(x[:, 1:3], (1, 1)) * x.softmax(-1)
            else:
                x = (x * x[0]).relu() - x.flip(0)
        return x

    return f


@pytest.mark.parametrize(("seed", "order"), [*((k, "reverse") for k in range(24)), *((k, "auto") for k in range(3))])
def test_sums_of_dense_and_diagonal_terms(seed: int, order: str) -> None:
    f = random_sums(seed)
    x, w = normal(4, 4, seed=seed), normal(4, 4, seed=1)
    jacobian = pullback.jacobian(f, argnums=(0, 1), order=order)
    with reference():
        wanted = torch.func.jacrev(f, argnums=(0, 1))(x, w)
    for _ in range(2):
        torch.testing.assert_close(jacobian(x, w), wanted, rtol=1e-10, atol=1e-10)


def value(name: str, *shape: int) -> Value:
    return Value(name, shape, "float64")


def test_what_a_diagonal_holds_is_read_before_it_is_overwritten() -> None:
    """The diagonal p is added to a sum that comes after one that overwrites p."""
    x, w = value("x", 4, 4), value("w", 4)
    p, b = value("p", 4), value("b", 4)
    q, a, e, g = (value(name, 4, 4) for name in "qaeg")
    part, small = value("part", 4), value("small", 1)
    nodes = (
        Node("aten.sin.default", (w,), (), (p,)),
        Node("aten.diagonal_backward.default", (p, (4, 4), 0, 0, 1), (), (q,)),
        Node("aten.slice.Tensor", (w, 0, 1, 2, 1), (), (small,)),
        Node("aten.slice_backward.default", (small, (4,), 0, 2, 3, 1), (), (part,)),
        Node("aten.add.Tensor", (p, part), (), (b,)),
        Node("aten.cos.default", (x,), (), (a,)),
        Node("aten.add.Tensor", (a, q), (), (e,)),
        Node("aten.mul.Tensor", (e, b), (), (g,)),
    )
    graph = Graph((x, w), nodes, (g,))
    given = normal(4, 4), normal(4)
    slow, quick = emit_python(graph), emit_python(graph, plain=True)
    assert_close(quick.run(*given), slow.run(*given))
    assert sum("add_" in node.op for node in add_where_nonzero(graph).nodes) == 1


# ---------------------------------------------------------------- several operators as one


def graph_of(make: Callable[..., Tensor], *shapes: tuple[int, ...]) -> tuple[Graph, tuple[Tensor, ...]]:
    """The graph of a function of tensors of these shapes, and such tensors."""
    args = tuple(normal(*shape, seed=k) for k, shape in enumerate(shapes))
    f = pullback.compile(make)
    f(*args)
    entry, _ = transform.find(f.kind, f.f, args, {})
    return entry.program.program.graph, args


FUSED: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "addmm": (lambda x, a, b: (x + a @ b).sin(), ((3, 5), (3, 4), (4, 5))),
    "baddbmm": (lambda x, a, b: (a @ b + x).sin(), ((2, 3, 5), (2, 3, 4), (2, 4, 5))),
    "addcmul": (lambda x, a, b: (x + a * b).sin(), ((3, 5), (3, 5), (5,))),
    "tanh_backward": (lambda g, y: g * (1 - y * y)[:, None].expand(3, 2, 5), ((2, 5), (3, 5))),
    "sigmoid_backward": (lambda g, y: (g * (y * (1 - y))).sin(), ((3, 5), (3, 5))),
}


@pytest.mark.parametrize("kernel", FUSED)
def test_kernels_of_several_operators(kernel: str) -> None:
    make, shapes = FUSED[kernel]
    graph, args = graph_of(make, *shapes)
    fused = fuse(graph)
    assert sum(node.op == f"aten.{kernel}.default" for node in fused.nodes) == 1
    assert len(fused.nodes) < len(graph.nodes)
    for plain in (False, True):
        assert_close(emit_python(fused, plain=plain).run(*args)[0], make(*args))


def test_what_passes_a_relu() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return x.relu() @ w

    x, w = normal(3, 4), normal(4, 5)
    jacobian = pullback.jacobian(f)
    found = calls(program_of(jacobian, x, w))
    assert found["threshold_backward"] == 1
    assert not found["where"] and not found["gt"]
    with reference():
        assert_close(jacobian(x, w), torch.func.jacrev(f)(x, w))


@pytest.mark.parametrize("make", [lambda x, a, b: x.float() + a @ b, lambda x, a, b: (x[0, 0] + a @ b) * (a @ b)])
def test_what_is_read_elsewhere_or_narrower_is_left(make: Callable[..., Tensor]) -> None:
    graph, args = graph_of(make, (3, 5), (3, 4), (4, 5))
    assert not any("addmm" in node.op for node in fuse(graph).nodes)
    assert_close(emit_python(graph, plain=True).run(*args)[0], make(*args))


def test_few_parts_of_a_tensor_are_made_one_by_one() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        a, b, c = (x @ w).split([2, 4, 1], 1)
        d, e = (x @ w).unbind(0)[1:]
        return a.sum() + (b * c).sum() + (d * e.sin()).sum()

    x, w = normal(3, 4), normal(4, 7)
    compiled = pullback.compile(f)
    assert_close(compiled(x, w), f(x, w))
    entry, _ = transform.find(compiled.kind, compiled.f, (x, w), {})
    assert not {"split_with_sizes", "unbind"} & calls(entry.program.program).keys()


def test_sums_of_sums_of_parts_seen_from_elsewhere() -> None:
    def points(q: Tensor) -> Tensor:
        s, c = torch.sin(q), torch.cos(q)
        x = c[0] * c[1] - s[2] * c[3] + q[4] * s[5]
        return torch.stack([x, s[0] * c[1] * c[2] + s[4], c[0] * torch.exp(-q[1])])

    def rows(x: Tensor) -> Tensor:
        return torch.stack([points(x.T)[0], points(x.T)[1], points(x.T)[2]], -1)

    x = normal(5, 6)
    jacobian = pullback.batch_jacobian(rows, backend="python")(x)
    with reference():
        assert_close(jacobian, torch.func.vmap(torch.func.jacrev(points))(x))


def test_a_sum_does_not_read_what_it_writes() -> None:
    x = Value("x", (1, 1, 3), "float64", "cpu")
    whole, first, part, total = (
        Value(n, s, "float64", "cpu") for n, s in zip("wfpt", ((1, 1, 3), (1, 1), (1, 1, 3), (1, 1, 3)), strict=True)
    )
    nodes = (
        Node("aten.sin.default", (x,), (), (whole,)),
        Node("aten.select.int", (whole, 2, 0), (), (first,)),
        Node("aten.select_backward.default", (first, (1, 1, 3), 2, 1), (), (part,)),
        Node("aten.add.Tensor", (whole, part), (), (total,)),
    )
    graph = Graph((x,), nodes, (total,))
    assert [node.op for node in add_where_nonzero(graph).nodes] == [node.op for node in nodes]
    number = normal(1, 1, 3)
    sine = number.sin()
    assert_close(
        emit_python(graph, plain=True).run(number)[0],
        sine + torch.stack([0 * sine[..., 0], sine[..., 0], 0 * sine[..., 0]], -1),
    )
