"""Programs compiled by Inductor: they answer only after they were found right, and what cannot be one is refused."""

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback
from pullback import BackendWarning, NativeError
from pullback.emit import inductor
from pullback.emit.fx import to_graph_module
from pullback.emit.inductor import difference
from pullback.graph import Graph
from pullback.signature import CACHE

ROWS, COLUMNS = torch.tensor([0, 1, 2, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 0, 1])


def cubes(a: Tensor) -> Tensor:
    """What `torch.compile` of PyTorch 2.13 finds a wrong Hessian of."""
    lower = torch.zeros(2, 3, 3, dtype=a.dtype)
    lower[:, ROWS, COLUMNS] = a
    return (lower**3).sum()


def wave(x: Tensor) -> Tensor:
    return (x.sin() * x.t().cos()).sum(0)


def test_the_function_that_inductor_is_known_to_get_wrong() -> None:
    a = torch.randn(2, 6, dtype=torch.float64)
    before = random.getstate()
    transform = pullback.hessian(cubes, backend="inductor")
    found = transform(a)
    assert random.getstate() == before
    assert transform.plan(a).backend == "inductor"
    torch.testing.assert_close(found, torch.diag_embed(6 * a.flatten()).reshape(2, 6, 2, 6))
    assert torch.equal(transform(a), found)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Sequence[Tensor]]]:
    """Let the graph itself stand for what Inductor makes of it, changed by `change`; returns the inputs of all runs."""

    def install(change: Callable[[Sequence[Tensor], list[Tensor]], Sequence[Tensor]] = lambda _, r: r) -> Any:
        runs: list[Sequence[Tensor]] = []

        def compiled(graph: Graph, name: str) -> Any:
            module = to_graph_module(graph)

            def run(inputs: list[Tensor]) -> Sequence[Tensor]:
                runs.append(list(inputs))
                return change(inputs, list(module(*inputs)))

            return run

        CACHE.clear()  # programs of the test before
        monkeypatch.setattr(inductor, "_compile", compiled)
        return runs

    return install


def test_a_program_that_is_right_of_zeros_alone_is_not_believed(stub: Any) -> None:
    stub(lambda _, results: [results[0] * 1.01, *results[1:]])
    transform = pullback.grad(lambda x: (x**3).sum(), backend="inductor")
    before = torch.random.get_rng_state()
    with pytest.warns(BackendWarning, match="off by"):
        assert not transform(torch.zeros(6)).any()
    assert torch.equal(torch.random.get_rng_state(), before)
    x = torch.randn(6)
    torch.testing.assert_close(transform(x), 3 * x * x)


def test_what_python_refuses_of_random_numbers_is_asked_of_no_other_program(stub: Any) -> None:
    runs = stub()
    matrix = torch.eye(3, dtype=torch.float64)
    found = pullback.grad(lambda a: torch.linalg.cholesky(a).diagonal().log().sum(), backend="inductor")(matrix)
    torch.testing.assert_close(found, 0.5 * matrix)
    assert all(torch.equal(inputs[0], matrix) for inputs in runs)


@pytest.mark.parametrize("view", [torch._neg_view, torch.conj], ids=["negated", "conjugated"])
def test_arguments_hold_their_own_numbers(stub: Any, view: Callable[[Tensor], Tensor]) -> None:
    runs = stub()
    x = torch.randn(3, dtype=torch.complex128)
    f = pullback.compile(lambda x: (x * x).sum(), backend="inductor")
    torch.testing.assert_close(f(view(x)), (view(x) * view(x)).sum())
    assert not any(t.is_neg() or t.is_conj() for inputs in runs for t in inputs)


def test_what_is_written_into_overlaps_nothing(stub: Any) -> None:
    stub()

    def step(x: Tensor, y: Tensor) -> Tensor:
        x.add_(y)
        return (x * y).sum()

    f = pullback.compile(step, backend="inductor")
    memory = torch.arange(5.0)
    f(memory[:3].clone(), memory[2:].clone())
    with pytest.raises(pullback.PullbackError, match="shares its memory with"):
        f(memory[:3], memory[2:])
    assert torch.equal(memory, torch.arange(5.0))


@pytest.mark.parametrize("wrong", ["a number", "a NaN", "a shape", "a failure"])
def test_a_wrong_program_is_never_believed(stub: Any, wrong: str) -> None:
    def change(_: Sequence[Tensor], results: list[Tensor]) -> Sequence[Tensor]:
        if wrong == "a failure":
            raise RuntimeError("no such kernel")
        shift = {"a number": 1e-6, "a NaN": torch.nan, "a shape": torch.zeros(2, *results[0].shape)}[wrong]
        return [results[0] + shift, *results[1:]]

    stub(change)
    x = torch.randn(3, 3, dtype=torch.float64)
    transform = pullback.jacobian(wave, backend="inductor")
    with pytest.warns(BackendWarning, match="so that Inductor's program is not used, but the one in Python"):
        found = transform(x)
    torch.testing.assert_close(found, pullback.jacobian(wave, backend="python")(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(transform(x), found)


def test_arguments_are_contiguous_and_results_have_memory_of_their_own(stub: Any) -> None:
    runs = stub(lambda inputs, results: [results[0].copy_(results[0]), *results[1:]])
    x = torch.randn(4, 4, dtype=torch.float64).t()
    jacobian = pullback.jacobian(wave, backend="inductor")(x)
    torch.testing.assert_close(jacobian, pullback.jacobian(wave, backend="python")(x))
    assert runs
    assert all(t.is_contiguous() for inputs in runs for t in inputs)
    shared = torch.randn(4, 4, dtype=torch.float64)
    stub(lambda inputs, results: [inputs[0], *results[1:]])
    gradient = pullback.grad(lambda x: 0.5 * (x * x).sum(), backend="inductor")(shared)
    torch.testing.assert_close(gradient, shared)
    assert gradient.data_ptr() != shared.data_ptr()


def test_writes_happen_once(stub: Any) -> None:
    stub()
    weight = torch.tensor([1.0, 2.0])

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = pullback.value_and_grad(lambda w: (w * x).square().sum())(weight)
        weight.sub_(0.1 * gradient)
        return value, weight

    value, returned = pullback.compile(step, backend="inductor")(torch.ones(2))
    torch.testing.assert_close(weight, torch.tensor([0.8, 1.6]))
    assert returned is weight
    assert value == 5


def test_what_inductor_would_do_otherwise_is_refused() -> None:
    x = torch.ones(3)
    with pytest.raises(NativeError, match="draws random numbers"):
        pullback.compile(lambda x: x * torch.rand(3), backend="inductor")(x)
    with pytest.raises(NativeError, match="shares memory with the argument 'x'"):
        pullback.compile(lambda x: x.view(1, 3), backend="inductor")(x)


def test_without_a_compiler_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(NativeError, match=r"it needs a C\+\+ compiler .* use backend='python'"):
        pullback.grad(lambda x: (x.sinh() * 3).sum(), backend="inductor")(torch.ones(7))


def test_differences_beyond_rounding() -> None:
    x = torch.tensor([1.0, 1e6], dtype=torch.float64)
    assert not difference(x + 1e-5, x)
    assert "off by 0.1" in difference(x + 0.1, x)
    assert "NaNs" in difference(torch.tensor([torch.nan, 1e6], dtype=torch.float64), x)
    assert not difference(torch.tensor([torch.inf]), torch.tensor([torch.inf]))
    assert "not torch.float64" in difference(x.float(), x)
    assert "another one" in difference(torch.tensor([1]), torch.tensor([2]))
