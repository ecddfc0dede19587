"""Horizontal contraction: products over steps done at once, what is stacked computed in its place."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import pullback
from pullback import compilation, transform
from pullback.cost import shipped_model
from pullback.emit.horizontal import _in_order, contract_horizontally
from pullback.emit.prediction import predicted_seconds
from pullback.graph import Graph, Node, Value
from support import reference

STEPS, BATCH, INPUTS, HIDDEN = 7, 4, 3, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def recurrent(parameters: tuple[Tensor, ...], x: Tensor) -> Tensor:
    u, w, b = parameters
    h = torch.zeros(x.shape[1], w.shape[0], dtype=x.dtype)
    for t in range(x.shape[0]):
        h = torch.tanh(x[t] @ u + h @ w + b)
    return (h * h).sum()


PARAMETERS = (normal(INPUTS, HIDDEN), normal(HIDDEN, HIDDEN), normal(HIDDEN))


class Seen:
    """The programs before and after horizontal contraction, as the compiler passes them on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs: list[tuple[Graph, Graph]] = []
        monkeypatch.setattr(compilation, "contract_horizontally", self.contract)

    def contract(self, graph: Graph, model: Any) -> Graph:
        after = contract_horizontally(graph, model)
        self.pairs.append((graph, after))
        return after


def counts(graph: Graph) -> Counter[str]:
    return Counter(node.op.split(".")[1] for node in graph.nodes)


def plainly(monkeypatch: pytest.MonkeyPatch, make: Callable[[], pullback.Transform], *args: Any) -> Any:
    """The results of a transform whose products are all done one by one."""
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "contract_horizontally", lambda graph, model: graph)
        return make()(*args)


def assert_close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- how many products there are


def test_products_of_a_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward T products of the state and one of all inputs; backward T − 1, and one for each of two weights."""
    seen = Seen(monkeypatch)
    x = normal(STEPS, BATCH, INPUTS)
    found = pullback.grad(recurrent)(PARAMETERS, x)
    before, after = (counts(graph) for graph in seen.pairs[0])
    assert before["mm"] == 5 * STEPS - 1
    assert after["mm"] == 2 * STEPS + 2
    assert before["sum"] - after["sum"] == STEPS - 1  # the gradient of the bias
    assert after["add"] == STEPS + 2  # the bias is added to all inputs at once; the gradient of h · h has two terms
    assert_close(found, plainly(monkeypatch, lambda: pullback.grad(lambda p, x: recurrent(p, x)), PARAMETERS, x))


def test_gradient_in_the_inputs_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    x = normal(STEPS, BATCH, INPUTS)
    found = pullback.grad(recurrent, argnums=1)(PARAMETERS, x)
    after = counts(seen.pairs[0][1])
    assert after["mm"] == 2 * STEPS + 1
    assert_close(found, plainly(monkeypatch, lambda: pullback.grad(recurrent, argnums=1), PARAMETERS, x))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("layers", [1, 2])
def test_modules_equal_what_they_were(monkeypatch: pytest.MonkeyPatch, kind: type[nn.RNNBase], layers: int) -> None:
    module = kind(INPUTS, HIDDEN, num_layers=layers, batch_first=True).double()  # type: ignore[call-arg]
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(module, parameters, (x,))[0].square().sum()

    seen = Seen(monkeypatch)
    x = normal(BATCH, STEPS, INPUTS)
    found = pullback.grad(loss, argnums=(0, 1))(parameters, x)
    before, after = (counts(graph) for graph in seen.pairs[0])
    assert before["mm"] - after["mm"] >= layers * (STEPS - 1)
    assert_close(found, plainly(monkeypatch, lambda: pullback.grad(loss, argnums=(0, 1)), parameters, x))
    assert_close(pullback.grad(loss, argnums=(0, 1))(parameters, x), found)


def test_equal_layers_of_different_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that read one weight: one product where the operands are parts of one tensor."""

    def heads(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack([(x[k] @ w).tanh().sum() for k in range(6)])

    seen = Seen(monkeypatch)
    x, w = normal(6, 4, 3), normal(3, 3)
    found = pullback.jacobian(heads, argnums=1, order="reverse")(x, w)
    assert_close(found, plainly(monkeypatch, lambda: pullback.jacobian(heads, argnums=1, order="reverse"), x, w))
    assert counts(seen.pairs[0][1])["mm"] < counts(seen.pairs[0][0])["mm"]


def test_steps_that_wait_for_each_other_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def powers(x: Tensor, w: Tensor) -> Tensor:
        for _ in range(6):
            x = (x @ w).sin()
        return x

    seen = Seen(monkeypatch)
    x, w = normal(4, 3), normal(3, 3)
    pullback.jvp(lambda x: powers(x, w), (x,), (x,))
    assert [counts(graph)["mm"] for graph in seen.pairs[0]] == [12, 12]
    pullback.jvp(lambda w: powers(x, w), (w,), (w,))  # x_k · dw waits for no other tangent
    assert [counts(graph)["mm"] for graph in seen.pairs[1]] == [17, 12]


# ---------------------------------------------------------------- never worse


def test_never_predicted_to_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large operands that would have to be copied stay where they are."""
    seen = Seen(monkeypatch)
    for steps, batch, hidden in [(2, 1, 2), (3, 400, 8), (4, 8, 200), (12, 2, 4)]:
        parameters = (normal(hidden, hidden), normal(hidden, hidden), normal(hidden))
        pullback.grad(recurrent)(parameters, normal(steps, batch, hidden))
        pullback.grad(lambda p, x: recurrent(p, x.relu()))(parameters, normal(steps, batch, hidden))
    model = shipped_model("cpu", "float64")
    for before, after in seen.pairs:
        assert predicted_seconds(after, model) <= predicted_seconds(before, model)


# ---------------------------------------------------------------- stacks


def random_stacks(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A program that joins values, joins of values and parts of them, and goes on reading what it has joined."""
    chosen = random.Random(seed)
    steps = [(chosen.choice("mtajcsk"), chosen.random(), chosen.random(), chosen.randint(0, 1)) for _ in range(18)]

    def f(x: Tensor, w: Tensor) -> Tensor:
        values, joined = [x, w], [torch.cat((x, w))]
        for kind, first, second, dim in steps:
            a, b = values[int(first * len(values))], values[int(second * len(values))]
            whole = joined[int(first * len(joined))]
            if kind == "m":
                values.append(a @ b / 4)
            elif kind == "t":
                values.append(a.tanh())
            elif kind == "a":
                values.append(a + b)
            elif kind == "j":
                joined.append(torch.cat((a.sin(), b.tanh(), a * b), dim))
            elif kind == "c":
                joined.append(torch.cat((whole[:4, :4].cos(), (a @ b / 4).exp().tanh()), dim))
            elif kind == "s":
                values.append((whole[:4, :4] + whole.sum()).tanh())
            else:
                values.append(whole[-4:, -4:].sin())
        return torch.stack([v.sum() for v in (*values, *joined)])

    return f


@pytest.mark.parametrize("seed", range(40))
def test_what_is_joined_in_place_is_what_it_was(seed: int) -> None:
    f = random_stacks(seed)
    x, w = normal(4, 4), normal(4, 4, seed=1)
    compiled = pullback.compile(f)
    gradient = pullback.jacobian(f, argnums=(0, 1), order="reverse")
    compiled(x, w), gradient(x, w)
    for k in range(2):
        x, w = normal(4, 4, seed=7 + k), normal(4, 4, seed=3 + k)
        assert_close(compiled(x, w), f(x, w))
        units = torch.eye(16, dtype=torch.float64).view(16, 4, 4) * 1e-5
        wanted = torch.stack([(f(x + e, w) - f(x - e, w)) / 2e-5 for e in units], -1)
        torch.testing.assert_close(gradient(x, w)[0].flatten(1), wanted, rtol=1e-5, atol=1e-6)


def test_a_stack_costs_no_copy() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([(x @ w).tanh(), (x * w).sin(), x - w]).sum(0).exp()

    x, w = normal(4, 4), normal(4, 4, seed=1)
    compiled = pullback.compile(f)
    assert_close(compiled(x, w), f(x, w))
    entry, _ = transform.find(compiled.kind, compiled.f, (x, w), {})
    assert not any(line.strip().startswith("cat(") for line in entry.program.program.code.splitlines())


def test_a_stack_that_becomes_a_result_is_no_part_of_a_workspace() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([(x @ w).tanh(), (x * w).sin()]).reshape(2, 16).exp()

    x, w = normal(4, 4), normal(4, 4, seed=1)
    compiled = pullback.compile(f)
    first = compiled(x, w)
    compiled(w, x)
    assert_close(first, f(x, w))


def test_nodes_stand_behind_what_they_read() -> None:
    a, b, c = (Value(name, (2, 2), "float64", "cpu") for name in "abc")
    first, second = Node("aten.sin.default", (a,), (), (b,)), Node("aten.cos.default", (b,), (), (c,))
    assert _in_order([first, second]) == _in_order([second, first]) == (first, second)
    assert _in_order([replace(first, args=(c,)), second]) is None


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_products_without_elements(shape: tuple[int, int]) -> None:
    def f(w: Tensor, x: Tensor) -> Tensor:
        return (x @ w).sum() + ((x + 1) @ w).sin().sum() + ((x * 2) @ w).cos().sum()

    w, x = torch.ones(shape[1], 2, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    assert pullback.grad(f)(w, x).shape == w.shape


def test_bicubic_interpolation() -> None:
    """Its weights are views of constants."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def f(x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, (5, 3), mode="bicubic")

    y, pull = pullback.vjp(f, x)
    with reference():
        expected, theirs = torch.func.vjp(f, x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(pull(y), theirs(y))
