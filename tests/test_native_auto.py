"""When machine code is chosen by itself."""

import pytest
import torch
from torch import Tensor

import pullback
from published import PUBLISHED
from pullback.native import building

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


def test_without_a_compiler_nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    building.toolchain.cache_clear()
    try:
        plan = pullback.jacobian(lambda x: arm(x * 0.75)).plan(ANGLES)
    finally:
        building.toolchain.cache_clear()
    assert plan.backend == "python"
    assert "native: there is no C compiler" in plan.reason


def test_a_compiler_that_fails_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise building.NativeError("it is broken today")

    monkeypatch.setattr(building, "_run", fail)
    f = pullback.jacobian(lambda x: arm(x * 0.125))
    with pytest.warns(RuntimeWarning, match="it is broken today"):
        plan = f.plan(ANGLES)
    assert (plan.backend, plan.reason) == ("python", "native: it is broken today")
