"""`pullback.verification`: mistakes are found and located, correct programs raise no alarm."""

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import pullback
from faults import (
    BLOCKS,
    COMPLEX_BLOCKS,
    COMPLEX_KINDS,
    COMPLEX_OPERATORS,
    KINDS,
    OPERATORS,
    Fault,
    injected,
    long_function,
)
from pullback.differences import point_at
from pullback.transform import captured_call
from pullback.verification import verify
from support import reference
from test_random_programs import Program, inner, point, programs


def arguments(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn((4, 4), generator=generator, dtype=dtype) for _ in range(2))
    return x, w * 0.5, torch.randn(4, generator=generator, dtype=torch.float64)


REAL = [(kind, op) for op in OPERATORS for kind in KINDS]
COMPLEX = [(kind, op) for op in COMPLEX_OPERATORS for kind in COMPLEX_KINDS]


def drawn(pairs: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """One kind of mistake for each operator, and each kind about as often."""
    ops = list(dict.fromkeys(op for _, op in pairs))
    random.Random(seed).shuffle(ops)
    kinds = [k for k in dict.fromkeys(kind for kind, _ in pairs) for _ in ops]
    return [(kinds[n * len(kinds) // len(ops)], op) for n, op in enumerate(ops)]


def is_found(kind: str, op: str, seed: int, is_complex: bool = False) -> bool:
    """Whether there is a node where this mistake matters; if so, that it is found and named."""
    table, dtype = (COMPLEX_BLOCKS, torch.complex128) if is_complex else (BLOCKS, torch.float64)
    f, args = long_function(seed, table=table), arguments(seed, dtype)
    graph = captured_call(f, args, {}).captured.graph
    assert len(graph.nodes) >= 200
    values = point_at(graph, list(args)).values
    places = [(n, k) for n in graph.nodes if n.op == op for k, v in enumerate(n.inputs) if v.is_differentiable]
    candidates = [(n, k) for n, k in places if Fault(kind, op, k).matters(n, values)]
    if not candidates:
        return False
    node, operand = random.Random(seed).choice(candidates)
    with injected(Fault(kind, op, operand), node.results[0].name), pytest.raises(pullback.VerificationError) as caught:
        verify(pullback.grad(f, (0, 1, 2)), *args)
    message = str(caught.value)
    assert f"The first wrong node is\n  {node.results[0].name}: " in message
    assert node.op in message
    assert str(node.source) in message
    return True


@pytest.mark.parametrize(("kind", "op"), drawn(REAL, 2), ids=str)
def test_a_fault_is_found_and_located(kind: str, op: str) -> None:
    """Twenty of twenty, drawn by seed; where a kind of mistake makes no difference, the next one that does."""
    kinds = list(KINDS)
    start = kinds.index(kind)
    assert any(is_found(k, op, 2) for k in kinds[start:] + kinds[:start])


@pytest.mark.parametrize(("kind", "op"), drawn(COMPLEX, 3)[::2], ids=str)
def test_a_fault_between_complex_numbers_is_found(kind: str, op: str) -> None:
    kinds = list(COMPLEX_KINDS)
    start = kinds.index(kind)
    assert any(is_found(k, op, 3, True) for k in kinds[start:] + kinds[:start])


@pytest.mark.long
@pytest.mark.parametrize("op", OPERATORS)
def test_every_kind_of_fault_in_every_operator(op: str) -> None:
    """All but swapped operands, where an operator has only one, or two of different shapes."""
    missed = [kind for number, kind in enumerate(KINDS) if not is_found(kind, op, number)]
    assert missed in ([], ["swapped operands"])


@pytest.mark.long
@pytest.mark.parametrize("op", COMPLEX_OPERATORS)
def test_every_kind_of_fault_in_every_complex_operator(op: str) -> None:
    missed = {kind for number, kind in enumerate(COMPLEX_KINDS) if not is_found(kind, op, number, True)}
    assert missed <= {"swapped operands", "missing conjugate"}


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


def spirals(z: Tensor) -> Tensor:
    return ((z @ z.mH).exp() * z.conj()).imag.sin().sum()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers(dtype: torch.dtype) -> None:
    z = torch.complex(torch.linspace(-1, 1, 4), torch.linspace(0, 1, 4)).reshape(2, 2).to(dtype)
    x = z.real
    assert verify(pullback.grad(spirals), z).passed
    assert verify(pullback.jacobian(lambda z: (z @ z).abs()), z).passed
    assert verify(pullback.jacobian(lambda x: torch.complex(x, x.sin()).exp() @ z), x).passed
    assert verify(pullback.hessian(lambda x: spirals(x * z)), x).passed
    assert verify(pullback.batch_jacobian(lambda z: (z * z).abs()), z).passed
    assert pullback.vjp(lambda z: z @ z.conj(), z, verify=True)[0].shape == z.shape
    assert pullback.jvp(lambda z: z @ z.conj(), (z,), (z,), verify=True)[0].shape == z.shape
    assert pullback.linearize(lambda z: z @ z.conj(), z, verify=True)[0].shape == z.shape


def test_phases_of_vectors_raise_no_alarm() -> None:
    z = torch.complex(*torch.randn(2, 3, 3, dtype=torch.float64))
    f = lambda z: (torch.linalg.svd(z)[0].abs() ** 3).sum() + torch.linalg.eig(z)[1].abs().sin().sum()  # noqa: E731
    assert verify(pullback.grad(f), z).passed
    with (
        injected(Fault("sign", "aten.sin.default"), "sin"),
        pytest.raises(pullback.VerificationError, match=r"aten\.sin"),
    ):
        verify(pullback.grad(f), z)
    with (
        injected(Fault("zero", "aten._linalg_svd.default"), "linalg_svd"),
        pytest.raises(pullback.VerificationError, match=r"first wrong node is\n  .*_linalg_svd"),
    ):
        verify(pullback.grad(lambda z: (torch.linalg.svd(z * 2)[0].abs() ** 3).sum()), z)


@pytest.mark.parametrize("seed", range(5))
def test_a_derivative_that_is_zero_by_cancellation_raises_no_alarm(seed: int) -> None:
    """Whatever a processor rounds: differences are noise here, and as good as zero."""
    x = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert verify(pullback.grad(lambda x: (x.exp().log() - x * 1.0).sum() * 7 + x.sum() * 0), x).passed
    z = torch.complex(x, x.sin())
    assert verify(pullback.grad(lambda z: z.exp().abs().log().sum()), z).passed


def test_precision_is_that_of_the_least_precise_value() -> None:
    x = torch.randn(3, dtype=torch.float64)
    assert verify(pullback.grad(lambda x: x.float().sin().double().exp().sum()), x).passed


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
    fault = Fault("sign", "aten.sin.default")
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
    fault = Fault("sign", "aten.sin.default")
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
