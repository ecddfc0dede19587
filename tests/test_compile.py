"""`pullback.compile`: a function that calls transforms, update included, becomes one program, and does as before."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import pullback
from pullback import transform
from pullback.signature import CACHE


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def twice(step: Callable[..., Any], state: list[Tensor], calls: list[tuple[Any, ...]]) -> None:
    """Run a step compiled and as it stands, from the same state, and compare results and state after each call."""
    start = [t.detach().clone() for t in state]
    compiled = pullback.compile(step)
    found = [(compiled(*call), [t.detach().clone() for t in state]) for call in calls]
    with torch.no_grad():
        for tensor, before in zip(state, start, strict=True):
            tensor.copy_(before)
    for call, (result, after) in zip(calls, found, strict=True):
        expected = step(*call)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after, [t.detach() for t in state], rtol=1e-12, atol=1e-12)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    original = transform.capture

    def counted(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(f)
        return original(f, *args, **kwargs)

    monkeypatch.setattr(transform, "capture", counted)
    return seen


# ---------------------------------------------------------------- what is written


def squares(w: Tensor, x: Tensor) -> Tensor:
    return (x @ w).tanh().square().mean()


UPDATES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sub_": lambda p, g: p.sub_(0.1 * g),
    "sub_ with alpha": lambda p, g: p.sub_(g, alpha=0.1),
    "augmented": lambda p, g: p.__isub__(0.1 * g),
    "add_": lambda p, g: p.add_(g, alpha=-0.1),
    "foreach": lambda p, g: torch._foreach_add_([p], [g], alpha=-0.1),
    "copy_": lambda p, g: p.copy_(p - 0.1 * g),
    "mul_ and add_": lambda p, g: p.mul_(0.9).add_(g, alpha=-0.1),
    "add reversed": lambda p, g: p.copy_(-0.1 * g + p),
    "addcmul_": lambda p, g: p.addcmul_(g, g, value=-0.1),
    "a view": lambda p, g: p[0].sub_(g[0]),
    "an index": lambda p, g: p.__setitem__((slice(None), 1), g[:, 0]),
    "twice": lambda p, g: (p.sub_(0.1 * g), p.mul_(0.5)),
    "lerp_": lambda p, g: p.lerp_(g, 0.1),
    "zero_": lambda p, g: p.zero_(),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_in_place_updates_reach_the_very_tensor(update: Callable[[Tensor, Tensor], object]) -> None:
    w = normal(3, 2)

    def step(x: Tensor) -> Tensor:
        value, gradient = pullback.value_and_grad(squares)(w, x)
        update(w, gradient)
        return value

    twice(step, [w], [(normal(4, 3, seed=k),) for k in range(3)])


def test_an_argument_is_written_and_returned_itself() -> None:
    @pullback.compile
    def step(p: Tensor, x: Tensor) -> dict[str, Tensor]:
        p -= 0.1 * pullback.grad(squares)(p, x)
        return {"p": p}

    p, x = normal(3, 2), normal(4, 3)
    for _ in range(2):
        expected = p - 0.1 * pullback.grad(squares)(p, x)
        assert step(p, x)["p"] is p
        torch.testing.assert_close(p, expected)


def test_values_read_before_an_update_are_those_before_it() -> None:
    w, v = normal(3), normal(3, seed=7)

    def step(x: Tensor) -> tuple[Tensor, ...]:
        before = w.clone()
        w.add_(v)
        v.sub_(w)
        return before, w * x, v[:2].clone(), w.flip(0)

    twice(step, [w, v], [(normal(3, seed=k),) for k in range(3)])


def test_swap() -> None:
    a, b = normal(3), normal(3, seed=1)

    def step(x: Tensor) -> Tensor:
        old = a.clone()
        a.copy_(b)
        b.copy_(old)
        a.add_(b)
        return x + a

    twice(step, [a, b], [(normal(3),)] * 3)


def test_batch_normalisation_writes_its_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,)).square().mean()

    def step(x: Tensor) -> Tensor:
        value, gradients = pullback.value_and_grad(loss)(parameters, x)
        with torch.no_grad():
            for name, p in parameters.items():
                p -= 0.1 * gradients[name]
        return value.detach()

    state = [*parameters.values(), *model.buffers()]
    twice(step, state, [(normal(6, 3, seed=k),) for k in range(3)])
    assert model[1].num_batches_tracked == 3


def test_buffers_given_to_functional_call_are_written() -> None:
    model = nn.BatchNorm1d(3).double()
    buffers = {name: b.clone() for name, b in model.named_buffers()}

    def step(x: Tensor) -> Tensor:
        return functional_call(model, buffers, (x,)).square().sum().detach()

    twice(step, list(buffers.values()), [(normal(4, 3, seed=k),) for k in range(2)])
    assert torch.equal(model.running_mean, torch.zeros(3, dtype=torch.float64))


def test_adam_with_its_state_in_tensors() -> None:
    w, first, second, count = normal(3, 2), torch.zeros(3, 2).double(), torch.zeros(3, 2).double(), torch.zeros(())

    def step(x: Tensor) -> Tensor:
        value, g = pullback.value_and_grad(squares)(w, x)
        count.add_(1)
        first.lerp_(g, 0.1)
        second.mul_(0.999).addcmul_(g, g, value=0.001)
        scale = (second / (1 - 0.999**count)).sqrt_().add_(1e-8)
        w.addcdiv_(first / (1 - 0.9**count), scale, value=-0.01)
        return value

    twice(step, [w, first, second, count], [(normal(4, 3, seed=k),) for k in range(4)])


def test_a_parameter_set_to_new_memory_is_followed() -> None:
    model = nn.Linear(2, 1).double()

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            value, gradient = pullback.value_and_grad(lambda w: F.linear(x, w).square().sum())(model.weight)
            model.weight.sub_(0.1 * gradient)
        return value

    compiled = pullback.compile(step)
    x = normal(3, 2)
    compiled(x)
    model.weight.data = normal(1, 2, seed=9)
    before = model.weight.detach().clone()
    expected = before - 0.1 * pullback.grad(lambda w: F.linear(x, w).square().sum())(before)
    compiled(x)
    torch.testing.assert_close(model.weight.detach(), expected)
    model.weight = nn.Parameter(normal(1, 2, seed=11))
    before = model.weight.detach().clone()
    compiled(x)
    assert not torch.equal(before, model.weight.detach())


# ---------------------------------------------------------------- what is returned


def test_a_function_without_a_transform() -> None:
    twice(lambda x, k: {"y": (x * k).sin(), "k": k, "n": None}, [], [(normal(3), 2.0), (normal(3), 3.0)])


def test_results_share_memory_as_they_do_without_compiling() -> None:
    compiled = pullback.compile(lambda x: (x, x.detach(), x.t(), x.sin(), x.sin(), x.clone(), x.clone()))
    x = normal(2, 3)
    same, detached, view, *others = compiled(x)
    assert same is x and detached is not x
    assert detached.data_ptr() == view.data_ptr() == x.data_ptr()
    assert len({t.data_ptr() for t in (x, *others)}) == 5


def test_random_numbers_are_drawn_anew_as_without_compiling() -> None:
    def step(x: Tensor) -> Tensor:
        return pullback.grad(lambda x: (F.dropout(x, 0.5) ** 2).sum())(x) + torch.rand(3)

    compiled, x = pullback.compile(step), torch.ones(3)
    compiled(x)
    torch.manual_seed(3)
    found = [compiled(x), compiled(x)]
    torch.manual_seed(3)
    torch.testing.assert_close(found, [step(x), step(x)])
    assert not torch.equal(*found)


def test_transforms_of_every_kind_in_one_step() -> None:
    def step(x: Tensor) -> tuple[Any, ...]:
        def f(x: Tensor) -> Tensor:
            return F.softmax(x, 0).square().sum() + x.prod()

        output, pull_back = pullback.vjp(torch.sin, x)
        return (
            pullback.hessian(f)(x),
            pull_back(x * 2),
            pullback.jvp(torch.cos, (x,), (x,)),
            pullback.hvp(f, (x,), (output,)),
            torch.vmap(pullback.grad(f))(torch.stack([x, output])),
            pullback.jacobian(torch.exp, chunk_size=2)(x),
        )

    twice(step, [], [(normal(3, seed=k),) for k in range(2)])


# ---------------------------------------------------------------- inside, and around


def test_fused_kernels_stand_in_it_and_not_where_it_is_differentiated() -> None:
    step = pullback.compile(lambda x: pullback.grad(lambda x: F.softmax(x, 0).square().sum())(x))
    x = normal(4)
    step(x)
    assert "softmax_backward" in program_of(step, x).code
    outer = pullback.jacobian(step)
    assert "softmax_backward" not in outer.plan(x).code
    torch.testing.assert_close(outer(x), pullback.hessian(lambda x: F.softmax(x, 0).square().sum())(x))


def program_of(step: pullback.Transform, *args: Any) -> Any:
    entry, _ = transform.find(step.kind, step.f, args, {})
    return entry.program.program


def test_second_derivatives_inside_it_use_no_fused_kernel_below() -> None:
    x = normal(4)
    step = pullback.compile(lambda x: pullback.hessian(lambda x: F.softmax(x, 0).square().sum())(x))
    torch.testing.assert_close(step(x), pullback.hessian(lambda x: F.softmax(x, 0).square().sum())(x))


def test_it_nests_and_runs_under_vmap() -> None:
    inner = pullback.compile(lambda x: pullback.grad(lambda x: (x**3).sum())(x))
    x = normal(3)
    inner(x)
    torch.testing.assert_close(pullback.compile(lambda x: inner(x) + x)(x), 3 * x**2 + x)
    torch.testing.assert_close(pullback.jacobian(inner)(x), torch.diag(6 * x))
    torch.testing.assert_close(torch.vmap(inner)(torch.stack([x, -x])), torch.stack([3 * x**2] * 2))


def test_state_that_a_step_writes_is_differentiated_by_a_transform_around_it() -> None:
    """A plain program that was compiled before is not run in a trace: what it reads may be an outer variable's."""
    state = torch.zeros(2, dtype=torch.float64)
    double = pullback.compile(lambda: state * 2)
    double()

    def outer(x: Tensor) -> Tensor:
        state.copy_(x)
        return (double() * x).sum()

    x = normal(2)
    torch.testing.assert_close(pullback.grad(outer)(x), 4 * x)


def test_later_calls_are_not_traced(captures: list[Any]) -> None:
    w = normal(3, 2)
    CACHE.clear()

    @pullback.compile
    def step(x: Tensor) -> Tensor:
        value, gradient = pullback.value_and_grad(squares)(w, x)
        w.sub_(0.1 * gradient)
        return value

    for k in range(4):
        step(normal(4, 3, seed=k))
    assert len(captures) == 2  # the step, and the function in it
    step(normal(5, 3))
    assert len(captures) == 4


def test_a_rate_in_a_tensor_is_read_anew(captures: list[Any]) -> None:
    w, rate = torch.ones(2), torch.tensor(0.5)

    @pullback.compile
    def step(x: Tensor) -> None:
        w.sub_(rate * x)

    step(torch.ones(2))
    rate.fill_(0.25)
    step(torch.ones(2))
    assert torch.equal(w, torch.full((2,), 0.25)) and len(captures) == 1


def test_threads_share_a_step() -> None:
    step = pullback.compile(lambda x: pullback.value_and_grad(lambda x: x.tanh().square().sum())(x))
    inputs = [normal(5, seed=k) for k in range(8)]
    expected = [step(x) for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(200):
            if not all(map(torch.equal, step(inputs[k]), expected[k])):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------- what is refused


def test_gradients_that_eager_would_record() -> None:
    p = nn.Parameter(torch.ones(2))
    rate = torch.ones(2)

    def returns(x: Tensor) -> Tensor:
        return (p * x).sum()

    def writes(x: Tensor) -> None:
        rate.add_(p * x)

    for f in (returns, writes):
        compiled = pullback.compile(f)
        with pytest.raises(pullback.ArgumentError, match=r"requires gradients \(float32\[2\]"):
            compiled(torch.ones(2))
        with torch.no_grad():
            compiled(torch.ones(2))
        with pytest.raises(pullback.ArgumentError, match="no_grad"):
            compiled(torch.ones(2))


def test_an_in_place_change_of_a_leaf_with_gradients_on() -> None:
    def step(p: Tensor) -> None:
        p.sub_(1.0)

    compiled, p = pullback.compile(step), torch.ones(2, requires_grad=True)
    with pytest.raises(pullback.ArgumentError, match="no_grad"):
        compiled(p)
    assert torch.equal(p, torch.ones(2))
    compiled(torch.ones(2))
    with torch.no_grad():
        compiled(p)
    assert torch.equal(p, torch.zeros(2))


def test_results_that_are_detached_may_depend_on_parameters() -> None:
    p = nn.Parameter(torch.ones(2))
    result = pullback.compile(lambda x: (p * x).sum().detach())(torch.ones(2))
    assert not result.requires_grad


class Counter:
    def __init__(self) -> None:
        self.count = 0
        self.losses: list[Tensor] = []


def test_state_of_python_is_refused_by_name() -> None:
    counter = Counter()

    def counts(x: Tensor) -> Tensor:
        counter.count += 1
        return x

    def collects(x: Tensor) -> Tensor:
        counter.losses.append(x)
        return x

    with pytest.raises(pullback.CaptureError, match=r"counts:counter\.count was 0, is 1"):
        pullback.compile(counts)(torch.ones(2))
    with pytest.raises(pullback.CaptureError, match=r"counter\.losses"):
        pullback.compile(collects)(torch.ones(2))


def test_an_optimiser_is_refused_by_name() -> None:
    p = nn.Parameter(torch.ones(2))
    optimiser = torch.optim.SGD([p], lr=0.1)

    def step(x: Tensor) -> None:
        pullback.grad(lambda p: (p * x).sum())(p)
        optimiser.step()

    with pytest.raises(pullback.CaptureError, match=r"(?s)SGD\.step\(\).*optimiser\.step"):
        pullback.compile(step)(torch.ones(2))
    p.grad = torch.ones(2)
    optimiser.step()
    assert torch.equal(p, torch.full((2,), 0.9))


def test_branches_are_refused_with_their_line() -> None:
    with pytest.raises(pullback.CaptureError, match="branches on the value"):
        pullback.compile(lambda x: x if x.sum() > 0 else -x)(torch.ones(2))


def test_a_compiled_function_has_no_plan_of_its_own() -> None:
    with pytest.raises(pullback.PullbackError, match="no plan"):
        pullback.compile(torch.sin).plan(torch.ones(2))
    CACHE.clear()
