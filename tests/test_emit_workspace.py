"""Workspaces, updates in place and cheaper calls: the same numbers, and nothing that anybody else could notice."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pullback
from emit_samples import SAMPLES
from pullback import transform
from pullback.emit.builtins import METHODS
from pullback.emit.destinations import KERNELS, WITH_OUT
from pullback.emit.peepholes import rewrite
from pullback.emit.program import Program
from pullback.emit.python import emit_python
from pullback.graph import Graph, Node, Value
from pullback.torch_private import QUICKER, overload


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


def program_of(f: pullback.Transform, *args: Any) -> Program:
    f(*args)
    entry, _ = transform.find(f.kind, f.f, args, {})
    return entry.program.program


def functional(op: str) -> str:
    name, variant = op.split(".")[1:]
    return f"aten.{name.removesuffix('_')}.{variant}"


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("op", sorted(METHODS))
def test_methods_do_what_their_operators_do(op: str) -> None:
    given = SAMPLES.get(functional(op), [((torch.rand(2, 3), 0.5), {})])
    for args, kwargs in given[:1]:
        if functional(op) in ("aten.addmm.default", "aten.addmv.default"):
            matrix, other = torch.rand(2, 3), torch.rand(3, 2) if "addmm" in op else torch.rand(3)
            args = (torch.rand(2, 2) if "addmm" in op else torch.rand(2), matrix, other)
        if functional(op) == "aten.baddbmm.default":
            args = (torch.rand(2, 3, 3), torch.rand(2, 3, 4), torch.rand(2, 4, 3))
        if functional(op) == "aten.copy.default":
            args = (torch.rand(2), torch.rand(2))
        if functional(op) == "aten.zero.default":
            args = (torch.rand(2),)
        target = args[0].clone()
        values = [Value(f"v{k}", tuple(a.shape), "float32") for k, a in enumerate(args) if isinstance(a, Tensor)]
        named = iter(values)
        node = Node(op, tuple(next(named) if isinstance(a, Tensor) else a for a in args), tuple(kwargs.items()), ())
        text = emit_python(Graph(tuple(values), (node,), (values[0],)))
        assert f".{op.split('.')[1]}(" in text.code
        text.run(target, *(a for a in args[1:] if isinstance(a, Tensor)))
        assert torch.equal(target, overload(functional(op))(*args, **kwargs))


def called(op: str, out: bool) -> tuple[Callable[..., Any], str]:
    """A program of one operator, whose result is read by another, so that it may live in a workspace."""
    args, kwargs = next(s for s in SAMPLES.get(op, []) if isinstance(s[0][0], Tensor | tuple))
    tensors = [t for a in args for t in (a if isinstance(a, tuple | list) else [a]) if isinstance(t, Tensor)]
    names = iter([Value(f"x{k}", tuple(t.shape), str(t.dtype)[6:]) for k, t in enumerate(tensors)])
    inputs: list[Value] = []

    def value(item: Any) -> Any:
        if isinstance(item, Tensor):
            inputs.append(next(names))
            return inputs[-1]
        return tuple(map(value, item)) if isinstance(item, tuple | list) else item

    result = overload(op)(*args, **kwargs)
    middle = Value("middle", tuple(result.shape), str(result.dtype)[6:])
    last = Value("last", tuple(result.shape), str(result.dtype)[6:])
    nodes = (
        Node(op, tuple(map(value, args)), tuple(kwargs.items()), (middle,)),
        Node("aten.clone.default", (middle,), (), (last,)),
    )
    program = emit_python(Graph(tuple(inputs), nodes, (last,)), plain=out)
    return lambda: program.run(*tensors)[0], program.code


@pytest.mark.parametrize("op", sorted(op for op in WITH_OUT if op in SAMPLES))
def test_out_computes_the_same(op: str) -> None:
    run, code = called(op, out=True)
    assert "out=" in code or "mv(" in code
    expected = called(op, out=False)[0]()
    torch.testing.assert_close(run(), expected)
    torch.testing.assert_close(run(), expected)


def test_the_tables_name_operators() -> None:
    for op in (*WITH_OUT, *KERNELS, *KERNELS.values(), *METHODS, *QUICKER):
        overload(op)


def test_builtins_with_other_defaults_are_given_all_arguments() -> None:
    """`torch._C._nn.binary_cross_entropy(x, y)` does not reduce, and its operator does."""
    x, y = torch.rand(3, 2), torch.rand(3, 2)
    for f in (F.binary_cross_entropy, F.mse_loss):
        for reduction in ("mean", "sum", "none"):
            expected = f(x, y, reduction=reduction)
            found = pullback.compile(lambda x, f=f, r=reduction: f(x, y, reduction=r))(x)
            torch.testing.assert_close(found, expected)
            used = pullback.compile(lambda x, f=f, r=reduction: f(x, y, reduction=r).exp() * 2)(x)
            torch.testing.assert_close(used, expected.exp() * 2)


def test_means_of_losses_and_sums_of_rows_are_products() -> None:
    x, y, w = torch.rand(5, 1), torch.rand(5, 1), torch.rand(5, 1)

    def loss(x: Tensor) -> Tensor:
        return F.binary_cross_entropy(x, y, weight=w) * 1.0

    step = pullback.compile(lambda x: pullback.value_and_grad(loss)(x))
    code = program_of(step, x).code
    value, gradient = step(x)
    torch.testing.assert_close(value, F.binary_cross_entropy(x, y, weight=w))
    expected = w * (x - y) / (x * (1 - x)) / 5
    torch.testing.assert_close(gradient, expected)
    assert "dot(" in code and "mean" not in code.split("def step")[-1].split("dot")[0]
    summed = pullback.compile(lambda x: (x * 2).sum(0))
    assert "mv(" in program_of(summed, x).code
    torch.testing.assert_close(summed(x), (x * 2).sum(0))


def test_rewriting_leaves_what_it_does_not_know() -> None:
    x, total = Value("x", (200, 3), "float32"), Value("sum", (3,), "float32")
    for dims in ((0,), None):
        graph = Graph((x,), (Node("aten.sum.dim_IntList", (x, dims), (), (total,)),), (total,))
        assert rewrite(graph).nodes == graph.nodes


# ---------------------------------------------------------------- workspaces


def network(w: list[Tensor], x: Tensor) -> Tensor:
    h = torch.tanh(x @ w[0] + w[1])
    return (torch.sigmoid(h @ w[2]) * h[:, :1]).square().sum()


def test_nothing_that_a_caller_gets_lies_in_the_workspace() -> None:
    w, x = [normal(3, 4), normal(4), normal(4, 1)], normal(5, 3)
    step = pullback.value_and_grad(network)
    first = step(w, x)
    kept = [first[0].clone(), *(g.clone() for g in first[1])]
    step(w, normal(5, 3, seed=9))
    torch.testing.assert_close([first[0], *first[1]], kept, rtol=0, atol=0)
    for gradient in first[1]:
        gradient.fill_(float("nan"))
    torch.testing.assert_close(list(step(w, x)[1]), kept[1:], rtol=0, atol=0)


def test_a_call_that_fails_half_way_leaves_nothing_behind() -> None:
    x = torch.ones(3, 3)
    program = program_of(pullback.compile(lambda x: (x @ x).tanh().sum()), x)
    expected = program.run(x)[0]
    with pytest.raises(RuntimeError):
        program.run(torch.ones(3, 4))
    assert torch.equal(program.run(x)[0], expected)


def test_threads_have_workspaces_of_their_own() -> None:
    w = [normal(30, 40), normal(40), normal(40, 1)]
    step = pullback.compile(lambda x: pullback.value_and_grad(network)(w, x))
    inputs = [normal(50, 30, seed=k) for k in range(8)]
    expected = [step(x)[1][0].clone() for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        if not all(torch.equal(step(inputs[k])[1][0], expected[k]) for _ in range(100)):
            wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_views_of_parameters_are_made_anew_where_the_memory_is_another() -> None:
    weight = torch.nn.Parameter(normal(4, 3))

    @pullback.compile
    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            gradient = pullback.grad(lambda w: F.linear(x, w).tanh().sum())(weight)
            weight.sub_(0.1 * gradient)
            return gradient

    x = normal(2, 3)
    assert ".data_ptr()" in program_of(step, x).code
    for seed in range(3):
        weight.data = normal(4, 3, seed=seed)
        expected = pullback.grad(lambda w: F.linear(x, w).tanh().sum())(weight.detach().clone())
        torch.testing.assert_close(step(x), expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_workspaces_made_in_any_mode_serve_in_any_other(mode: Any) -> None:
    compiled = pullback.grad(lambda x: (x @ x).tanh().sum()).compile(torch.ones(3, 3))
    expected = compiled(torch.ones(3, 3))
    for _ in range(2):
        with mode():
            assert torch.equal(compiled(torch.ones(3, 3)), expected)
        assert torch.equal(compiled(torch.ones(3, 3)), expected)


def test_a_program_with_a_workspace_checks_and_stands_by_itself() -> None:
    w, x = [normal(3, 4), normal(4), normal(4, 1)], normal(5, 3)

    def step(w: list[Tensor], x: Tensor) -> Tensor:
        value, gradients = pullback.value_and_grad(network)(w, x)
        torch._foreach_add_(w, list(gradients), alpha=-0.1)
        return value

    program = program_of(pullback.compile(step), [t.clone() for t in w], x)
    program.check()
    assert "workspaces.pop()" in program.code
    namespace: dict[str, Any] = {}
    exec(program.code, namespace)
    ours, theirs = [t.clone() for t in w], [t.clone() for t in w]
    assert torch.equal(program.run(*ours, x)[0], namespace["step"](*theirs, x)[0])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ---------------------------------------------------------------- updates


def updated(update: Callable[[Tensor, Tensor], object], dtype: torch.dtype = torch.float64) -> str:
    w, x = normal(3, 2, dtype=dtype), normal(4, 3, dtype=dtype)

    @pullback.compile
    def step(x: Tensor) -> None:
        update(w, pullback.grad(lambda w: (x @ w).square().sum())(w))

    return "\n".join(line for line in program_of(step, x).code.splitlines() if not line.lstrip().startswith("#"))


def test_updates_are_made_in_place() -> None:
    assert "addmm_(" in updated(lambda p, g: p.sub_(0.1 * g))
    assert "addmm_(" in updated(lambda p, g: p.add_(g, alpha=-0.1))
    for update in (lambda p, g: p.mul_(0.5).sub_(g), lambda p, g: p.sub_(0.1 * g), lambda p, g: p.lerp_(g, 0.5)):
        assert "copy_" not in updated(update)
    assert "alpha=0.1" not in updated(lambda p, g: p.sub_(0.1 * g), torch.bfloat16)  # a rounding would be left out


def test_updates_of_a_kind_are_one_call() -> None:
    w = [normal(3), normal(4)]

    @pullback.compile
    def step(x: Tensor) -> None:
        gradients = pullback.grad(lambda w: (w[0].sum() * w[1] * x).sin().sum())(w)
        for p, g in zip(w, gradients, strict=True):
            p -= 0.1 * g

    code = program_of(step, normal(4)).code
    assert code.count("_foreach_add_(") == 1 and "copy_" not in code


def test_a_value_that_is_read_later_is_not_overwritten() -> None:
    a, b = torch.ones(2), torch.full((2,), 2.0)

    @pullback.compile
    def step(x: Tensor) -> Tensor:
        old = a * 1.0
        a.add_(b)
        b.add_(old)
        return a * old

    assert torch.equal(step(torch.ones(2)), torch.full((2,), 3.0))
    assert torch.equal(a, torch.full((2,), 3.0)) and torch.equal(b, torch.full((2,), 3.0))


def test_overlap_that_came_later_is_refused() -> None:
    step = pullback.compile(lambda p, x: p.sub_(x.flip(0)))
    memory = torch.arange(6.0)
    step(memory[:3], memory.clone()[3:])
    step(memory[:3], memory[3:])
    before = memory.clone()
    with pytest.raises(pullback.ArgumentError, match=r"p is changed in place, and shares its memory with x.*clone"):
        step(memory[1:4], memory[3:])
    assert torch.equal(memory, before)


def test_an_integer_in_a_quotient_is_divided_by_in_double_precision() -> None:
    n = torch.tensor(3)
    gradient = pullback.grad(lambda x: x.sum() / n)(torch.ones(2, dtype=torch.float64))
    assert torch.equal(gradient, torch.full((2,), 1 / 3, dtype=torch.float64))
