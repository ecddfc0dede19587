"""Which back end makes a program, and why."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pullback
from pullback import ArgumentError
from pullback.emit import backends
from pullback.emit.backends import BackEnd, Declined, Offer
from pullback.emit.program import Program
from pullback.emit.python import emit_python
from pullback.errors import NativeError


def wave(x: torch.Tensor) -> torch.Tensor:
    return x.sin().sum()


def declining(*_: object) -> Offer:
    raise Declined("waves are not for it")


def failing(*_: object, **__: object) -> Program:
    raise NativeError("its compiler is broken")


@pytest.fixture
def offering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add a back end by the name of "quick", which takes no time but a second to be built."""

    def add(emit: Any = emit_python, offer: Any = lambda graph, model: Offer(0.0, 1.0)) -> None:
        known = {"python": backends.BACKENDS["python"], "quick": BackEnd(emit, offer)}
        monkeypatch.setattr(backends, "BACKENDS", known)

    return add


def test_building_is_weighed_against_the_calls_that_are_expected(offering: Callable[..., None]) -> None:
    offering()
    x = torch.ones(3)
    few = pullback.grad(wave, expected_calls=1).plan(x)
    assert few.backend == "python"
    assert few.reason.startswith("1 calls take ")
    many = pullback.grad(wave, expected_calls=10**9).plan(x)
    assert many.backend == "quick"
    assert "e+" not in many.reason  # seconds are said as people say them
    assert f"back end                     quick ({many.reason})" in str(many)


def test_an_order_is_chosen_by_what_its_back_end_takes(offering: Callable[..., None]) -> None:
    def several(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.sin().sum(), x.cos().prod(), x.exp().sum()])

    x = torch.ones(3)
    python = pullback.jacobian(several, backend="python").plan(x)
    offering(offer=lambda graph, model: Offer(float(len(graph.nodes)), 0.0))
    longer = {
        name: one.seconds for name, one in pullback.jacobian(several, backend="quick").plan(x).predictions.items()
    }
    assert all(seconds == int(seconds) for seconds in longer.values())
    offering(offer=lambda graph, model: Offer(1e-9 / len(graph.nodes), 0.0))
    plan = pullback.jacobian(several).plan(x)
    assert plan.backend == "quick"
    assert plan.order.name == max(longer, key=longer.__getitem__)
    assert plan.seconds < 1e-9 < python.seconds


def test_the_number_of_calls_matters_only_where_something_is_weighed() -> None:
    assert pullback.grad(wave, backend="python", expected_calls=5).backend == "python"
    assert pullback.grad(wave, expected_calls=1000).backend == pullback.grad(wave).backend == "auto"
    assert pullback.hessian(wave, expected_calls=5).backend == backends.Auto(5)


def test_what_is_traced_again_is_python(offering: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    offering()
    with caplog.at_level(logging.INFO, logger="pullback"):
        plan = pullback.hessian(wave, backend="quick").plan(torch.ones(3))
    assert (plan.backend, plan.reason) == ("quick", "asked for")
    assert any("'python'" in line and "part of another program" in line for line in caplog.messages)


def test_a_back_end_may_decline_or_fail(offering: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    x = torch.ones(4)
    offering(offer=declining)
    assert pullback.grad(wave).plan(x).reason == "quick: waves are not for it"
    offering(emit=failing)
    plan = pullback.grad(wave, expected_calls=10**9).plan(x)
    assert (plan.backend, plan.reason) == ("python", "quick: its compiler is broken")
    assert "its compiler is broken" in caplog.text
    with pytest.raises(NativeError, match="its compiler is broken"):
        pullback.grad(wave, backend="quick")(x)


@pytest.mark.parametrize("calls", [0, -1, 2.0, True, "many"])
def test_a_number_of_calls_is_one(calls: Any) -> None:
    transforms = pullback.grad, pullback.jacobian, pullback.hessian, pullback.batch_jacobian, pullback.compile
    for transform in transforms:
        with pytest.raises(ArgumentError, match=r"expected_calls=.*: it must be a number of calls, 1 or more"):
            transform(wave, expected_calls=calls)
