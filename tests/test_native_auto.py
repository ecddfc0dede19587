"""When machine code is chosen by itself."""

import os
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import Tensor

import pullback
from published import PUBLISHED
from pullback.emit import backends
from pullback.native import building
from pullback.signature import CACHE
from pullback.stages import Plan

pytestmark = [
    pytest.mark.skipif(not building.is_there(), reason="needs a C compiler"),
    pytest.mark.usefixtures("compiler_on_offer"),
]


def arm(x: Tensor) -> Tensor:
    return torch.stack(PUBLISHED["robot arm"][0](*x.unbind(-1)), -1)


ANGLES = torch.stack(PUBLISHED["robot arm"][1])


def test_a_program_of_many_small_operators_is_native() -> None:
    f = pullback.jacobian(arm)
    plan = f.plan(ANGLES)
    assert plan.backend == "native"
    assert plan.reason.startswith("1,000 calls take ")
    assert plan.seconds < 2e-5
    assert f"back end                     native ({plan.reason})" in str(plan)
    torch.testing.assert_close(f(ANGLES), pullback.jacobian(arm, backend="python")(ANGLES), rtol=1e-12, atol=1e-14)


def test_the_choice_stays() -> None:
    f = pullback.jacobian(arm)
    assert torch.equal(f(ANGLES), f(ANGLES))
    assert torch.equal(f(ANGLES), pullback.jacobian(arm)(ANGLES))


def test_what_is_called_seldom_or_is_small_is_python() -> None:
    assert pullback.jacobian(arm, expected_calls=3).plan(ANGLES).backend == "python"
    plan = pullback.grad(lambda x: (x.sin() * 0.5).sum()).plan(torch.ones(3))
    assert plan.backend == "python"
    assert "less than building" in plan.reason


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has neither asked for a compiler nor warned of one."""
    CACHE.clear()
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setattr(building, "_loaded", {})
    building.toolchain.cache_clear()
    yield
    building.toolchain.cache_clear()


def plans(factor: float) -> list[Plan]:
    return [pullback.jacobian(lambda x, k=k: arm(x * factor / k)).plan(ANGLES) for k in (1, 2)]


@pytest.mark.usefixtures("told")
def test_without_a_compiler_nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    for plan in plans(0.75):
        assert plan.backend == "python"
        assert "native: there is no C compiler" in plan.reason


@pytest.mark.parametrize("named", ["no-such-compiler", "gcc 'half a quotation", os.curdir])
@pytest.mark.usefixtures("told")
def test_a_named_compiler_that_cannot_be_used_is_told_of_once(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("CC", named)
    with pytest.warns(RuntimeWarning, match="no C compiler was found|is no command") as caught:
        found = plans(0.625)
    assert len(caught) == 1
    for plan in found:
        assert plan.backend == "python"
        assert "native: " in plan.reason


@pytest.mark.usefixtures("told")
def test_a_compiler_that_fails_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()

    def fail(*_: object) -> None:
        raise building.NativeError(f"it is broken for the {next(numbers)}th time")

    monkeypatch.setattr(building, "_run", fail)
    with pytest.warns(RuntimeWarning, match="it is broken for the 0th time") as caught:
        found = plans(0.125)
    assert len(caught) == 1
    assert [plan.backend for plan in found] == ["python", "python"]
    assert [plan.reason for plan in found] == [f"native: it is broken for the {k}th time" for k in (0, 1)]
