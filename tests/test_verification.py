"""`pullback.verification`: mistakes are found and located, correct programs raise no alarm."""

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import pullback
from faults import FAULTS, Fault, injected, long_function
from pullback.verification import verify
from support import reference
from test_random_programs import Program, inner, point, programs


def arguments(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, w, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 4), (4, 4), (4,)))
    return x, w * 0.5, b


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_fault_is_found_and_located(number: int) -> None:
    fault, f, args = FAULTS[number], long_function(number), arguments(number)
    graph = pullback.trace(f, *args)
    assert len(graph.nodes) >= 200
    candidates = [n for n in graph.nodes if n.op == fault.op and is_wrong_there(fault, n)]
    node = random.Random(number).choice(candidates)
    with injected(fault, node.results[0].name), pytest.raises(pullback.VerificationError) as caught:
        verify(pullback.grad(f, (0, 1, 2)), *args)
    message = str(caught.value)
    assert f"The first wrong node is\n  {node.results[0].name}: " in message
    assert node.op in message
    assert str(node.source) in message


def is_wrong_there(fault: Fault, node: Any) -> bool:
    """Whether the mistake makes a difference: an operand that is broadcast, two operands that are tensors."""
    if fault.kind == "wrong broadcast sum" and fault.alter is not None and fault.op != "aten.sigmoid.default":
        return len(node.inputs) > fault.operand and node.inputs[fault.operand].shape != node.results[0].shape
    if fault.kind == "swapped operands":
        return len(node.inputs) == 2 and node.inputs[0] is not node.inputs[1] and same_shapes(node)
    return len(node.inputs) > fault.operand


def same_shapes(node: Any) -> bool:
    return len({v.shape for v in node.inputs}) == 1


def test_a_fault_in_a_fused_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel replaces the rule in reverse mode alone, so that forward and reverse differ."""
    right = pullback.rules.RULES["aten.tanh.default"]
    assert right.pull is not None

    def doubled(call: Any, *rest: Any) -> Any:
        pulled, *others = right.pull(call, *rest)
        return (call.builder.node("aten.add.Tensor", (pulled, pulled), [(pulled.shape, pulled.dtype)])[0], *others)

    wrong = pullback.rules.Pointwise(lambda y: 1 - y * y)
    object.__setattr__(wrong, "pull", doubled)
    pullback.signature.CACHE.clear()
    monkeypatch.setitem(pullback.rules.RULES, "aten.tanh.default", wrong)
    with pytest.raises(pullback.VerificationError, match=r"aten\.tanh\.default"):
        verify(pullback.grad(lambda x: x.tanh().sin().sum()), torch.randn(3, dtype=torch.float64))
    pullback.signature.CACHE.clear()


@settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_no_alarm_on_correct_programs(program: Program) -> None:
    no_alarm(program)


@pytest.mark.long
@settings(max_examples=500, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_no_alarm_on_500_correct_programs(program: Program) -> None:
    no_alarm(program)


def no_alarm(program: Program) -> None:
    x, _, u = point(program)
    argnums = tuple(range(len(x)))
    verify(pullback.grad(lambda *args: inner(program(*args), u), argnums), *x)
    verify(pullback.jacobian(program, argnums), *x)


def kinky(x: Tensor) -> Tensor:
    return x.relu().sum()


def test_where_differences_have_no_limit_nothing_is_claimed() -> None:
    found = verify(pullback.grad(kinky), torch.zeros(3, dtype=torch.float64))
    assert not found.passed
    assert found.blurred == found.probes
    assert "was not verified" in str(found)
    assert verify(pullback.grad(kinky), torch.ones(3, dtype=torch.float64)).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    x = torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype)
    assert verify(pullback.jacobian(lambda x: (x.sin() @ x.T).tanh()), x).passed


def test_hessian_dropout_detach_and_captured_parameters() -> None:
    layer = torch.nn.Linear(3, 2).double()

    def f(x: Tensor) -> Tensor:
        kept = torch.nn.functional.dropout(layer(x), 0.5)
        return (kept * kept).sum() * x.detach().sum()

    x = torch.randn(4, 3, dtype=torch.float64)
    with torch.no_grad():
        assert verify(pullback.value_and_grad(f), x).passed
        assert verify(pullback.hessian(lambda x: layer(x).tanh().sum()), x).passed
        assert verify(pullback.jacobian(layer, chunk_size=2), x).passed


def test_a_fault_of_second_order_is_named_by_the_inner_transform() -> None:
    fault = next(f for f in FAULTS if f.op == "aten.sin.default")
    with injected(fault, "sin"), pytest.raises(pullback.VerificationError, match=r"aten\.sin\.default"):
        verify(pullback.hessian(lambda x: x.sin().sum()), torch.ones(2, dtype=torch.float64))


@pytest.mark.reference
def test_against_torch_func() -> None:
    x = torch.randn(3, dtype=torch.float64)
    for transform in (pullback.grad(lambda x: x.sin().sum()), pullback.hessian(lambda x: (x**3).sum())):
        assert verify(transform, x, against="torch.func").passed


def cubes(x: Tensor) -> Tensor:
    return (x.sin() ** 3).sum(-1)


ASKED = {
    "grad": lambda **k: pullback.grad(lambda x: cubes(x).sum(), **k),
    "value_and_grad": lambda **k: pullback.value_and_grad(lambda x: cubes(x).sum(), **k),
    "grad_and_value": lambda **k: pullback.grad_and_value(lambda x: cubes(x).sum(), **k),
    "jacobian": lambda **k: pullback.jacobian(cubes, **k),
    "jacrev": lambda **k: pullback.jacrev(cubes, chunk_size=2, **k),
    "jacfwd": lambda **k: pullback.jacfwd(cubes, **k),
    "hessian": lambda **k: pullback.hessian(lambda x: cubes(x).sum(), **k),
    "batch_jacobian": lambda **k: pullback.batch_jacobian(cubes, **k),
    "batch_hessian": lambda **k: pullback.batch_hessian(cubes, **k),
    "vjp": lambda **k: lambda x: pullback.vjp(cubes, x, **k)[0],
    "jvp": lambda **k: lambda x: pullback.jvp(cubes, (x,), (x,), **k),
    "hvp": lambda **k: lambda x: pullback.hvp(lambda x: cubes(x).sum(), (x,), (x,), **k),
    "linearize": lambda **k: lambda x: pullback.linearize(cubes, x, **k)[0],
}


@pytest.mark.parametrize("name", ASKED)
def test_every_transform_verifies_itself_if_asked(name: str) -> None:
    """The right program raises no alarm, and gives what it gives without; a wrong one is not handed out."""
    x = torch.linspace(0.2, 1.4, 6, dtype=torch.float64).reshape(2, 3)
    plain, verified = ASKED[name]()(x), ASKED[name](verify=True)
    torch.testing.assert_close(verified(x), plain)
    torch.testing.assert_close(verified(x), plain)  # from its program, verified before
    fault = next(f for f in FAULTS if f.op == "aten.sin.default")
    with injected(fault, "sin"), pytest.raises(pullback.VerificationError, match=r"aten\.sin\.default"):
        ASKED[name](verify=True)(x)


def test_verify_refuses_what_it_cannot_check() -> None:
    with pytest.raises(pullback.ArgumentError, match="verify needs a transform"):
        verify(torch.sin, torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(pullback.ArgumentError, match="against='jax'"):
        verify(pullback.grad(torch.sum), torch.ones(2), against="jax")


# ---------------------------------------------------------------- NaN


def test_the_origin_of_a_nan_in_a_derivative() -> None:
    def norm(x: Tensor) -> Tensor:
        squares = (x * x).sum()
        return squares.sqrt()

    found = pullback.first_nonfinite(pullback.grad(norm), torch.zeros(3))
    assert found is not None
    assert found.kind == "derivative"
    assert found.source is not None
    assert found.source.code == "return squares.sqrt()"
    assert "return squares.sqrt()" in str(found)


def test_the_origin_of_an_infinite_value() -> None:
    def loss(x: Tensor) -> Tensor:
        shares = torch.softmax(x + torch.full((2, 2), -torch.inf).triu(1), -1)
        return shares.log().sum()

    found = pullback.first_nonfinite(pullback.value_and_grad(loss), torch.ones(2, 2))
    assert found is not None
    assert (found.kind, found.count) == ("value", 1)
    assert found.node is not None
    assert found.node.op == "aten.log.default"
    assert "1 of 4 entries are zero" in str(found)


def test_an_infinity_without_effect_is_none() -> None:
    def attention(x: Tensor) -> Tensor:
        return torch.softmax(x + torch.full((2, 2), -torch.inf).triu(1), -1).square().sum()

    assert pullback.first_nonfinite(pullback.value_and_grad(attention), torch.ones(2, 2)) is None


def test_a_nan_that_came_in() -> None:
    found = pullback.first_nonfinite(pullback.jacobian(lambda x: x * x), torch.tensor([1.0, torch.nan]))
    assert found is not None
    assert (found.kind, found.node, found.value.name) == ("input", None, "x")
    assert "came in like that" in str(found)


def test_against_an_independent_search() -> None:
    """The node that is named is the first, in PyTorch's own run, whose result is not finite."""

    def f(x: Tensor) -> Tensor:
        y = (x - 1).exp()
        z = (y - y).reciprocal()
        return (z * y).sum()

    x = torch.ones(2)
    with reference():
        assert not torch.func.grad(f)(x).isfinite().any()
    found = pullback.first_nonfinite(pullback.value_and_grad(f), x)
    assert found is not None
    assert found.node is not None
    assert found.node.op == "aten.reciprocal.default"
