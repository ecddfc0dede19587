"""What a plan says: the order, the multiplications it costs against closed forms, and paths against edge products."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import pullback

ORDERS = ("forward", "reverse")


def with_fan_out(layers: int) -> Callable[[Tensor], Tensor]:
    """Each layer uses its input twice: 2^layers paths."""

    def f(x: Tensor) -> Tensor:
        for _ in range(layers):
            x = x * x.sin()
        return x.sum()

    return f


def dense_layers(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for weight in weights:
        x = x @ weight
    return x


def weights_of(sizes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(m, n, generator=generator, dtype=torch.float64) for m, n in itertools.pairwise(sizes)]


def plan_of(sizes: Sequence[int], order: str, batch: int = 4) -> pullback.Plan:
    x = torch.ones(batch, sizes[0], dtype=torch.float64)
    return pullback.jacobian(dense_layers, order=order).plan(x, weights_of(sizes))


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("layers", [1, 2, 3, 10, 40, 200])
def test_exponentially_many_paths_by_linearly_many_products(layers: int) -> None:
    plan = pullback.grad(with_fan_out(layers)).plan(torch.ones(5))
    assert plan.paths == 2**layers
    assert plan.edge_products == 3 * layers + 1
    assert plan.multiplications <= 3 * 5 * layers + 5


def test_a_chain_has_one_path() -> None:
    plan = pullback.grad(lambda x: x.sin().cos().exp().sum()).plan(torch.ones(3))
    assert (plan.paths, plan.edge_products, len(plan.order.vertices)) == (1, 4, 4)


def test_paths_are_counted_for_all_inputs_and_outputs() -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y + x, y * y

    plan = pullback.jacobian(f, argnums=(0, 1)).plan(torch.ones(2), torch.ones(2))
    assert plan.paths == 2 + 1 + 2  # x → first: two; y → first: one; y → second: both operands of y * y


def test_an_input_that_is_not_used_has_no_path() -> None:
    plan = pullback.grad(lambda x, y: x.sum(), argnums=1).plan(torch.ones(2), torch.ones(2))
    assert (plan.paths, plan.edge_products, plan.multiplications) == (0, 0, 0)


# ---------------------------------------------------------------- multiplications


def cheapest_bracketing(sizes: tuple[int, ...]) -> int:
    """The classical chain of matrices, by trying every last product."""
    splits = range(1, len(sizes) - 1)
    both = (cheapest_bracketing(sizes[: k + 1]) + cheapest_bracketing(sizes[k:]) for k in splits)
    return min((cost + sizes[0] * sizes[k] * sizes[-1] for cost, k in zip(both, splits, strict=True)), default=0)


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("sizes", [(6, 5, 4, 3), (2, 3, 4, 9), (9, 4, 3, 2), (3, 3, 3, 3, 3), (5, 2, 7, 4, 6)])
def test_dense_layers_cost_what_the_literature_says(sizes: tuple[int, ...], batch: int) -> None:
    """The product of k matrices from the input or from the output; the batch is found to be a δ and costs nothing."""
    forward = sum(sizes[0] * m * n for m, n in itertools.pairwise(sizes[1:]))
    reverse = sum(sizes[-1] * m * n for m, n in itertools.pairwise(sizes[:-1]))
    assert plan_of(sizes, "forward", batch).multiplications == forward
    assert plan_of(sizes, "reverse", batch).multiplications == reverse
    auto = plan_of(sizes, "auto", batch)
    assert auto.multiplications == cheapest_bracketing(tuple(sizes)) <= min(forward, reverse)
    assert auto.alternatives["forward"] == forward
    assert auto.alternatives["reverse"] == reverse
    assert auto.lower_bound is not None
    assert auto.lower_bound.multiplications == auto.multiplications


def test_the_product_of_a_diagonal_and_a_matrix_costs_its_entries() -> None:
    weight = torch.randn(4, 3)
    plan = pullback.jacobian(lambda x: (weight @ x).tanh(), order="reverse").plan(torch.ones(3))
    derivative_of_tanh, product = 4, 4 * 3  # 1 − y², and each row of the matrix times it
    assert plan.multiplications == derivative_of_tanh + product


def test_wide_to_narrow_is_reversed_and_narrow_to_wide_is_not() -> None:
    assert plan_of((9, 6, 4, 2), "auto").order.name == "reverse"
    assert plan_of((2, 4, 6, 9), "auto").order.name == "forward"
    assert pullback.grad(lambda x: x.sin().sum()).plan(torch.ones(3)).order.name == "reverse"
    assert pullback.jacobian(lambda t: t * torch.ones(5)).plan(torch.tensor(1.0)).order.name == "forward"


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "fan-out": (with_fan_out(4), (torch.ones(3),)),
    "narrow waist": (lambda x: (x.sum() * x.prod()).expand(4).sin() * x.sum(), (torch.ones(5),)),
    "softmax": (lambda x: (x * 2).softmax(-1).log(), (torch.ones(2, 3),)),
    "layers": (lambda x, w, v: ((x @ w).tanh() @ v).sigmoid(), (torch.ones(2, 3), torch.ones(3, 5), torch.ones(5, 2))),
    "outer": (lambda x, y: (x[:, None] * y).sin().sum(0), (torch.ones(3), torch.ones(4))),
    "gather": (lambda x: x[[0, 2, 2]].cumsum(0) * x.max(), (torch.ones(3),)),
    "norm": (lambda x: nn.functional.layer_norm(x, (3,)) @ x.T, (torch.rand(2, 3),)),
    "convolution": (lambda x, w: nn.functional.conv1d(x, w).relu(), (torch.ones(1, 2, 6), torch.ones(3, 2, 3))),
    "rnn": (lambda x, w: ((x @ w).tanh() @ w).tanh() @ w, (torch.ones(3), torch.eye(3))),
}


@pytest.mark.parametrize("argnum", [0, -1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_auto_is_never_worse_than_either(name: str, argnum: int) -> None:
    f, arguments = FUNCTIONS[name]
    plans = {order: pullback.jacobian(f, argnum, order=order).plan(*arguments) for order in (*ORDERS, "auto")}
    # A gradient of one number is taken in reverse, without comparing: the best but for what a call or two takes.
    slack = 1e-3 if plans["auto"].predictions.keys() == {"reverse"} else 0.0
    assert plans["auto"].seconds <= (1 + slack) * min(plans[order].seconds for order in ORDERS)
    for order in ORDERS:
        alone = plans[order].predictions[order]
        assert plans["auto"].predictions.get(order, alone) == alone
    results = [pullback.jacobian(f, argnum, order=order)(*arguments) for order in (*ORDERS, "auto")]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["layers", "convolution", "softmax"])
def test_a_scalar_loss_is_not_cheaper_forward(name: str) -> None:
    f, arguments = FUNCTIONS[name]
    plans = {o: pullback.grad(lambda *a: f(*a).sum(), order=o).plan(*arguments) for o in (*ORDERS, "auto")}
    count = {order: plan.multiplications for order, plan in plans.items()}
    assert count["auto"] <= min(count["forward"], count["reverse"])


# ---------------------------------------------------------------- given orders


def diamond(x: Tensor) -> Tensor:
    a, b = x.sin(), x.exp()
    return torch.stack([(a * b).sum(), a.prod()])


def test_every_order_of_vertices_gives_the_same_derivative() -> None:
    x = torch.linspace(0.1, 0.9, 3, dtype=torch.float64)
    expected = pullback.jacobian(diamond)(x)
    vertices = [v.name for v in pullback.jacobian(diamond).plan(x).order.vertices]
    orders = list(itertools.permutations(vertices))
    for order in orders[:: len(orders) // 24]:
        given = pullback.jacobian(diamond, order=order)
        torch.testing.assert_close(given(x), expected, rtol=1e-12, atol=1e-12)
        plan = given.plan(x)
        assert plan.order.name == "given"
        assert tuple(v.name for v in plan.order.vertices) == order


def test_a_given_order_may_be_cheaper_than_both() -> None:
    """A narrow waist: eliminating towards it from both sides is what neither forward nor reverse does."""
    sizes = (8, 8, 1, 8, 8)
    x = torch.ones(2, 8, dtype=torch.float64)
    given = pullback.jacobian(dense_layers, order=["mm", "mm_2", "mm_1", "mm_3"])
    assert given.plan(x, weights_of(sizes)).multiplications == 3 * 8 * 8
    assert min(plan_of(sizes, order).multiplications for order in ORDERS) == 2 * 8 * 8 + 8 * 8 * 8
    expected = pullback.jacobian(dense_layers)(x, weights_of(sizes))
    torch.testing.assert_close(given(x, weights_of(sizes)), expected)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (["sin"], "missing: cos, sum.*the vertices are: sin, cos, sum"),
        (["sin", "cos", "sum", "tan"], "unknown: tan"),
        (["sin", "cos", "cos", "sum"], "repeated: cos"),
        (["x", "sin", "cos", "sum"], "unknown: x"),
        ([], "missing: sin, cos, sum"),
        ("sideways", "'sideways'.*'auto', 'forward', 'reverse' or a list"),
    ],
)
def test_wrong_orders_are_refused(order: object, said: str) -> None:
    with pytest.raises(pullback.OrderError, match=said):
        pullback.grad(lambda x: x.sin().cos().sum(), order=order)(torch.ones(2))


# ---------------------------------------------------------------- the plan as text, and as a program


def test_a_plan_in_words() -> None:
    text = str(pullback.jacobian(dense_layers).plan(torch.ones(4, 9), [w.float() for w in weights_of((9, 4, 3, 2))]))
    head, table, code = text.split("\n\n", 2)
    rows = {key.strip(): value.strip() for key, value in (line.split("  ", 1) for line in head.splitlines())}
    assert rows.pop("back end").startswith("python (native: ")  # what a compiler would take, or that there is none
    assert rows == {
        "order": "reverse",
        "vertices eliminated": "3",
        "paths from output to inputs": "1",
        "edge products performed": "3",
        "lower bound": "96 (sequences of vertex eliminations, every product of edges counted apart)",
    }
    counts = {line.split()[-6]: line.split()[-5] for line in table.splitlines()[1:3]}
    assert counts == {"reverse": f"{2 * 3 * 4 + 2 * 4 * 9}", "forward": f"{9 * 4 * 3 + 9 * 3 * 2}"}
    assert [line.startswith("*") for line in table.splitlines()[1:3]] == [True, False]
    assert "def jacobian_dense_layers(x, weights_0, weights_1, weights_2):" in code
    assert "d_output_d_x" in code


def test_huge_numbers_of_paths_stay_readable() -> None:
    x = torch.ones(2)
    assert "1,099,511,627,776" in str(pullback.grad(with_fan_out(40)).plan(x))
    assert "1.607e+60" in str(pullback.grad(with_fan_out(200)).plan(x))
    assert "10^361" in str(pullback.grad(with_fan_out(1200)).plan(x))


def test_the_code_of_a_plan_is_the_program() -> None:
    plan = pullback.grad(with_fan_out(2)).plan(torch.ones(3))
    compile(plan.code, "<plan>", "exec")
    module = pullback.grad(with_fan_out(2)).graph_module(torch.ones(3))
    gradient = module(torch.linspace(0.0, 1.0, 3))[0]
    torch.testing.assert_close(gradient, pullback.grad(with_fan_out(2))(torch.linspace(0.0, 1.0, 3)))


def test_planning_does_not_run_the_function() -> None:
    buffer = torch.zeros(())

    def f(x: Tensor) -> Tensor:
        buffer.add_(1)
        return x.sum()

    pullback.grad(f).plan(torch.ones(2))
    assert buffer == 0


def test_chunks_have_no_single_plan() -> None:
    transform = pullback.jacobian(torch.sin, chunk_size=2)
    for ask in (transform.plan, transform.graph_module):
        with pytest.raises(pullback.PullbackError, match="chunk_size"):
            ask(torch.ones(3))
