"""What a program computes once, when it computes the rest, and what it overwrites."""

import pytest
import torch

import pullback
from pullback.emit.constants import LARGEST, constants
from pullback.emit.destinations import INTO_GRADIENT
from pullback.emit.fx import to_graph_module
from pullback.emit.program import Program
from pullback.emit.python import emit_python
from pullback.emit.reuse import IN_PLACE, SMALLEST, reuse_memory
from pullback.emit.schedule import schedule
from pullback.graph import Graph, Node, Value
from pullback.torch_private import overload

SIDE = int(SMALLEST**0.5) + 1
KWARGS = (("dtype", torch.float32), ("device", torch.device("cpu")))


def value(name: str, *shape: int, dtype: str = "float32") -> Value:
    return Value(name, shape, dtype, "cpu")


def ones(result: Value) -> Node:
    return Node("aten.full.default", (result.shape, 1.0), KWARGS, (result,))


def call(op: str, *args: object, result: Value) -> Node:
    return Node(f"aten.{op}", args, (), (result,))


def plain(graph: Graph) -> Program:
    program = emit_python(graph, plain=True)
    program.check()
    return program


# ---------------------------------------------------------------- constants


def test_a_seed_is_computed_once() -> None:
    code = pullback.grad(lambda x: torch.nn.functional.mse_loss(x, x.detach() + 1)).plan(torch.rand(4)).code
    header, function = code.split("def ", 1)
    assert "full_0 = full(" in header
    assert "full(" not in function


def test_the_text_computes_the_same_as_the_program() -> None:
    x, one, row, total = value("x", 3), value("one"), value("row", 3), value("total", 3)
    nodes = (ones(one), call("expand.default", one, (3,), result=row), call("add.Tensor", x, row, result=total))
    program = plain(Graph((x,), nodes, (total,)))
    namespace: dict[str, object] = {}
    exec(program.code, namespace)
    given = torch.rand(3)
    assert torch.equal(program.run(given)[0], given + 1)
    assert torch.equal(namespace["program"](given)[0], given + 1)  # type: ignore[operator]


def test_what_a_caller_gets_is_made_anew_at_every_call() -> None:
    one, row = value("one"), value("row", 3)
    nodes = (ones(one), call("expand.default", one, (3,), result=row))
    run = plain(Graph((), nodes, (row,))).run
    run()[0].as_strided((1,), (1,)).fill_(7.0)
    assert torch.equal(run()[0], torch.ones(3))


def test_a_gradient_of_nothing_can_be_written_into() -> None:
    transform = pullback.grad(lambda x, y: (y * y).sum(), argnums=(0, 1))
    x, y = torch.rand(3), torch.rand(3)
    transform(x, y)[0].add_(5)
    assert torch.equal(transform(x, y)[0], torch.zeros(3))


def test_large_tensors_and_random_ones_are_no_constants() -> None:
    large, noise, x = value("large", LARGEST + 1), value("noise", 2), value("x", 2)
    two = value("two", 2)
    nodes = (
        ones(large),
        ones(two),
        Node("aten.bernoulli.p", (two, 0.5), (), (noise,)),
        call("add.Tensor", x, noise, result=value("y", 2)),
    )
    graph = Graph((x,), nodes, (nodes[-1].results[0],))
    assert set(constants(graph)) == {two}


def test_a_program_inside_a_trace_has_no_constants_of_its_own() -> None:
    f = lambda x: torch.nn.functional.mse_loss(x, x.detach() + 1)  # noqa: E731
    x = torch.rand(4)
    twice = pullback.jacobian(pullback.grad(f))
    torch.testing.assert_close(twice(x), torch.eye(4) / 2)
    mapped = torch.vmap(pullback.grad(f))
    torch.testing.assert_close(mapped(torch.stack((x, x))), torch.full((2, 4), -0.5))


# ---------------------------------------------------------------- order


def test_a_weights_gradient_is_computed_before_the_sweep_goes_on() -> None:
    def loss(w1: torch.Tensor, w2: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ((x @ w1).relu() @ w2).square().sum()

    tensors = (torch.rand(3, 4), torch.rand(4, 5), torch.rand(2, 3))
    code = pullback.grad(loss, (0, 1)).plan(*tensors).code
    assert code.index("d_loss_d_w2 =") < code.index("d_loss_d_w1 =")
    assert code.index("d_loss_d_w2 =") < code.index("threshold_backward(")


def test_the_schedule_keeps_every_node_behind_what_it_reads() -> None:
    x, a, b, c, d = (value(n, 3, 3) for n in "xabcd")
    nodes = (
        call("sin.default", x, result=a),
        call("cos.default", a, result=b),
        call("t.default", a, result=c),
        call("neg.default", c, result=d),
    )
    graph = schedule(Graph((x,), nodes, (d, b)))
    graph.check()
    given = torch.rand(3, 3)
    for one, other in zip(plain(graph).run(given), (-given.sin().t(), given.sin().cos()), strict=True):
        assert torch.equal(one, other)


def test_random_operators_keep_their_order() -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        first = torch.nn.functional.dropout(x, 0.5)
        return (first * torch.rand_like(x)).sum()

    x = torch.rand(50)
    torch.manual_seed(3)
    value_of_ours, _ = pullback.value_and_grad(loss)(x)
    torch.manual_seed(3)
    torch.testing.assert_close(value_of_ours, loss(x))


# ---------------------------------------------------------------- overwriting


def chain(*ops: str) -> tuple[Graph, list[Value]]:
    values = [value("x", SIDE, SIDE)]
    nodes = []
    for k, op in enumerate(ops):
        values.append(value(f"v{k}", SIDE, SIDE))
        nodes.append(call(op, values[k], result=values[-1]))
    return Graph((values[0],), tuple(nodes), (values[-1],)), values


def test_only_memory_of_the_programs_own_is_overwritten() -> None:
    graph, _ = chain("sin.default", "exp.default", "neg.default")
    ops = [n.op for n in reuse_memory(graph).nodes]
    assert ops == ["aten.sin.default", "aten.exp_.default", "aten.neg_.default"]
    x = torch.rand(SIDE, SIDE)
    before = x.clone()
    assert torch.equal(plain(graph).run(x)[0], -before.sin().exp())
    assert torch.equal(x, before)


def test_a_value_that_is_read_again_or_returned_is_kept() -> None:
    graph, (x, a, b) = chain("sin.default", "exp.default")
    both = Graph(graph.inputs, graph.nodes, (b, a))
    assert reuse_memory(both) == both
    c = value("c", SIDE, SIDE)
    again = Graph((x,), (*graph.nodes, call("mul.Tensor", a, b, result=c)), (c,))
    assert [n.op for n in reuse_memory(again).nodes] == ["aten.sin.default", "aten.exp.default", "aten.mul_.Tensor"]
    given = torch.rand(SIDE, SIDE)
    assert torch.equal(plain(again).run(given)[0], given.sin() * given.sin().exp())


def test_a_value_with_a_view_that_is_read_again_is_kept() -> None:
    x, a, v, b, c = (value(n, SIDE, SIDE) for n in "xavbc")
    nodes = (
        call("sin.default", x, result=a),
        call("t.default", a, result=v),
        call("exp.default", a, result=b),
        call("sub.Tensor", b, v, result=c),
    )
    graph = Graph((x,), nodes, (c,))
    assert [n.op for n in reuse_memory(graph).nodes][2] == "aten.exp.default"
    given = torch.rand(SIDE, SIDE)
    assert torch.equal(plain(graph).run(given)[0], given.sin().exp() - given.sin().t())


def test_an_operand_and_its_own_view_are_not_mixed() -> None:
    x, a, v, b = (value(n, SIDE, SIDE) for n in "xavb")
    nodes = (
        call("sin.default", x, result=a),
        call("t.default", a, result=v),
        call("mul.Tensor", a, v, result=b),
    )
    graph = Graph((x,), nodes, (b,))
    assert [n.op for n in reuse_memory(graph).nodes][2] == "aten.mul.Tensor"
    given = torch.rand(SIDE, SIDE)
    assert torch.equal(plain(graph).run(given)[0], given.sin() * given.sin().t())


def test_an_operand_that_is_broadcast_or_of_another_dtype_is_kept() -> None:
    x, row, total = value("x", SIDE, SIDE), value("row", SMALLEST), value("total", 2, SMALLEST)
    y = value("y", 2, SMALLEST)
    nodes = (call("sin.default", x, result=row), call("add.Tensor", row, y, result=total))
    assert [n.op for n in reuse_memory(Graph((x, y), nodes, (total,))).nodes][1] == "aten.add.Tensor"
    half, negative = (value(name, SIDE, SIDE, dtype="float16") for name in ("half", "negative"))
    wide = value("wide", SIDE, SIDE)
    nodes = (call("neg.default", half, result=negative), call("add.Tensor", negative, x, result=wide))
    assert [n.op for n in reuse_memory(Graph((half, x), nodes, (wide,))).nodes][1] == "aten.add.Tensor"


@pytest.mark.parametrize("op", [*IN_PLACE, *INTO_GRADIENT])
def test_the_table_names_operators_that_exist(op: str) -> None:
    schema = overload(op)._schema
    other = overload((IN_PLACE | dict(INTO_GRADIENT))[op])._schema  # type: ignore[operator]
    names = [a.name for a in schema.arguments]
    assert [a.name for a in other.arguments][: len(names)] == names
    assert other.arguments[0].is_write or other.arguments[-1].name == "grad_input"


@pytest.mark.parametrize("op", INTO_GRADIENT)
def test_a_fused_backward_kernel_may_write_into_its_cotangent(op: str) -> None:
    extra = {"threshold_backward": (0,), "leaky_relu_backward": (0.1, False)}.get(op.split(".")[1], ())
    x, y, g, r = (value(n, SIDE, SIDE) for n in "xygr")
    nodes = (call("sin.default", x, result=g), Node(op, (g, y, *extra), (), (r,)))
    graph = Graph((x, y), nodes, (r,))
    assert "grad_input=g" in plain(graph).code
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE) - 0.5
    expected = overload(op)(a.sin(), b, *extra)
    assert torch.equal(plain(graph).run(a, b)[0], expected)
    assert torch.equal(to_graph_module(graph)(a, b)[0], expected)


def test_small_values_are_left_alone() -> None:
    x, a, b = value("x", 3), value("a", 3), value("b", 3)
    graph = Graph((x,), (call("sin.default", x, result=a), call("exp.default", a, result=b)), (b,))
    assert reuse_memory(graph) == graph


def test_a_large_convolution_trains_as_before() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 8, 3, padding=1, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in conv.named_parameters()}

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(torch.func.functional_call(conv, p, (x,)).relu(), 2).square().sum()

    x = torch.rand(8, 1, 28, 28, dtype=torch.float64)
    transform = pullback.grad(loss)
    assert "relu_(" in transform.plan(parameters, x).code
    found, step = transform(parameters, x), 1e-6
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    ahead, back = (
        loss({name: p + sign * step * direction[name] for name, p in parameters.items()}, x) for sign in (1, -1)
    )
    expected = sum((found[name] * direction[name]).sum() for name in parameters)
    torch.testing.assert_close((ahead - back) / (2 * step), expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- what is not emitted


def test_axes_of_size_one_cost_nothing() -> None:
    def loss(w: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, w, b).sigmoid().square().sum()

    code = pullback.grad(loss, (0, 1, 2)).plan(torch.rand(1, 2), torch.rand(1), torch.rand(4, 2)).code
    assert not any(word in code for word in ("squeeze(", "reshape("))


def test_a_transposition_is_read_through() -> None:
    transform = pullback.grad(lambda x, w: (x @ w.t()).square().sum())
    targets = [str(n.target) for n in transform.graph_module(torch.rand(4, 2), torch.rand(3, 2)).graph.nodes]
    assert sum(".t." in f"{t}." or "permute" in t for t in targets) == 1
