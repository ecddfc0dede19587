"""Rules on complex numbers: every entry that holds for them, in real and in imaginary directions.

What a local Jacobian pushes forward is compared with difference quotients along complex directions, what it pulls back
with the inner product Re⟨u, v⟩ and with PyTorch; then the operator goes through the whole compiler, to second order.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback
from pullback import rules
from pullback.errors import ArgumentError, MissingRuleError
from pullback.evaluation import evaluate, pull, push
from pullback.expressions import Builder
from pullback.graph import Node, Value, replace_values
from pullback.rules import POSITIVE, RULES, B, I, Sample, T, complexes, fourier, linalg
from pullback.rules.edges import edges_of, local_jacobian
from pullback.stages import Edge
from pullback.terms import Chain, Jac, Kernel
from pullback.torch_private import overload
from pullback.verification import verify
from support import reference

NOT_FOR_PYTORCH = re.compile("is not implemented|an invalid gradient|does not support automatic differentiation")
WRONG_IN_PYTORCH = [  # a radius below zero; d²(0ˣ)/dx², which is not a number there
    ("aten.polar.default", RULES["aten.polar.default"].samples[0]),
    ("aten.pow.Scalar", Sample(0, T(2, 3, domain=POSITIVE, complex=True))),
]
# Some of an entry's samples are for real numbers alone.
NO_KERNEL = re.compile("not implemented for|not supported|does not support complex|isn't supported|cannot be cast")


RIGHT_HALF_PLANE = {"aten.pow.Scalar"}  # 0ᶻ is a number there alone


def made_complex(op: str, argument: Any) -> Any:
    """The same sample with complex tensors, in all four quadrants, for real ones."""
    if isinstance(argument, T):
        reach = max(map(abs, argument.domain))
        domain = argument.domain if op in RIGHT_HALF_PLANE else (-reach, reach)
        return T(*argument.shape, domain=domain, complex=True)
    return tuple(made_complex(op, a) for a in argument) if isinstance(argument, tuple) else argument


# What reads a triangle, takes an operand for Hermitian or has results of any phase, and its like: see test_linalg.py.
IN_CONTEXT = linalg.RULES.keys() - {"aten.linalg_lstsq.default"}


def complex_samples() -> Iterator[Any]:
    """Samples with complex tensors in them, and those of entries on the list with their tensors made complex."""
    for op, rule in RULES.items():
        if op in IN_CONTEXT:
            continue
        for k, sample in enumerate(rule.samples):
            if sample.is_complex or op in complexes.RULES | linalg.RULES | fourier.RULES:
                yield pytest.param(op, sample, id=f"{op}-{k}")
            elif op in complexes.HOLD_FOR_COMPLEX:
                args, kwargs = made_complex(op, sample.args), {n: made_complex(op, a) for n, a in sample.kwargs.items()}
                yield pytest.param(op, Sample(*args, **kwargs), id=f"{op}-{k}-complex")


# ---------------------------------------------------------------- one operator on one sample


@dataclass(frozen=True)
class Case:
    """An operator as a function of its operands, at a point, with a random direction on both sides."""

    node: Node
    tensors: dict[Value, Tensor]
    edges: tuple[Edge, ...]

    @property
    def operands(self) -> list[Value]:
        return list(dict.fromkeys(e.source for e in self.edges))

    @property
    def outputs(self) -> list[int]:
        return sorted({e.output for e in self.edges})

    def f(self, *x: Tensor) -> tuple[Tensor, ...]:
        """The results that have a derivative."""
        results = called(self.node, {**self.tensors, **dict(zip(self.operands, x, strict=True))})
        return tuple(results[k] for k in self.outputs)

    def one(self, edge: Edge, x: Tensor) -> Tensor:
        """One result as a function of one operand."""
        return called(self.node, {**self.tensors, edge.source: x})[edge.output]

    @property
    def x(self) -> tuple[Tensor, ...]:
        return tuple(self.tensors[v] for v in self.operands)


def called(node: Node, tensors: dict[Value, Tensor]) -> list[Tensor]:
    args, kwargs = replace_values((node.args, node.kwargs), tensors.__getitem__)
    result = overload(node.op)(*args, **dict(kwargs))
    return list(result) if isinstance(result, (tuple, list)) else [result]


def like(t: Tensor) -> Tensor:
    return torch.randn(t.shape, dtype=t.dtype)


def drawn(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(drawn, argument))
    if isinstance(argument, T):
        low, high = argument.domain
        real, imaginary = (low + (high - low) * torch.rand(argument.shape, dtype=torch.float64) for _ in range(2))
        return torch.complex(real, imaginary) if argument.complex else real
    if isinstance(argument, I):
        return torch.randint(argument.bound, argument.shape)
    return torch.rand(argument.shape) < 0.5 if isinstance(argument, B) else argument


def case_of(op: str, sample: Sample) -> Case:
    torch.manual_seed(0)
    tensors: dict[Value, Tensor] = {}

    def value(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(value, argument))
        if not isinstance(argument, Tensor):
            return argument
        made = Value(f"v{len(tensors)}", tuple(argument.shape), str(argument.dtype).removeprefix("torch."))
        tensors[made] = argument
        return made

    node = Node(op, value(drawn(sample.args)), tuple((k, value(drawn(a))) for k, a in sample.kwargs.items()), ())
    node = Node(op, node.args, node.kwargs, value(tuple(called(node, tensors))))
    kept = tuple(e for e in edges_of(node) if e.output in RULES[op].differentiable)
    return Case(node, tensors, kept)


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Re⟨a, b⟩ over all pairs."""
    return reduce(torch.add, [(s.conj() * t).real.sum() for s, t in zip(a, b, strict=True)])


def close(ours: Any, theirs: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def is_defined(op: str, sample: Sample) -> bool:
    """Whether PyTorch has such an operator on complex numbers."""
    try:
        case_of(op, sample)
    except RuntimeError as error:
        if NO_KERNEL.search(str(error)):
            return False
        raise
    return True


SAMPLES = [case for case in complex_samples() if is_defined(*case.values)]


@pytest.mark.parametrize("op", sorted(complexes.HOLD_FOR_COMPLEX))
def test_every_entry_on_the_list_is_checked(op: str) -> None:
    assert op in {case.values[0] for case in SAMPLES}


# ---------------------------------------------------------------- local Jacobians


def jacobians(case: Case) -> tuple[list[Jac], Builder]:
    builder = Builder()
    return [local_jacobian(edge, builder) for edge in case.edges], builder


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_local_jacobian(op: str, sample: Sample) -> None:
    """J v is the difference quotient along v, and Re⟨u, J v⟩ = Re⟨Jᵀ u, v⟩."""
    case = case_of(op, sample)
    found, builder = jacobians(case)
    values = evaluate(builder.nodes, case.tensors)
    for edge, jac in zip(case.edges, found, strict=True):
        x, h = case.tensors[edge.source], 1e-6
        v, u = like(x), like(values[edge.target])
        pushed = push(jac, values, v)
        quotient = (case.one(edge, x + h * v) - case.one(edge, x - h * v)) / (2 * h)
        close(pushed, quotient, 2e-6)
        close(inner([u], [pushed]), inner([pull(jac, values, u)], [v]))


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_declared_types_and_operators_with_rules(op: str, sample: Sample) -> None:
    """A node that a rule builds is of the type that PyTorch gives it, and can be differentiated itself."""
    case = case_of(op, sample)
    found, builder = jacobians(case)
    values = evaluate(builder.nodes, case.tensors)
    for value, held in values.items():
        assert (value.shape, f"torch.{value.dtype}") == (tuple(held.shape), str(held.dtype)), value
    used = {node.op for node in builder.nodes if node.op.startswith("aten.")}
    used |= {a for jac in found for a in applied(jac)}
    assert used <= RULES.keys() | rules.NONDIFFERENTIABLE


def applied(jac: Jac) -> Iterator[str]:
    for part in jac.parts:
        if isinstance(part, Kernel):
            yield from (part.push.op, part.pull.op)
        if isinstance(part, Chain):
            for factor in part.factors:
                yield from applied(factor)


# ---------------------------------------------------------------- through the compiler


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_products_of_both_orders(op: str, sample: Sample) -> None:
    if op == "aten.linalg_lstsq.default":  # it is traced in parts
        return
    case = case_of(op, sample)
    if not case.edges:
        return
    u, v = tuple(map(like, case.f(*case.x))), tuple(map(like, case.x))
    pulled, pushed = pullback.vjp(case.f, *case.x)[1](u), pullback.jvp(case.f, case.x, v)[1]
    hvp = pullback.hvp(loss(case, u), case.x, v)[1]
    product = hvp if len(case.x) > 1 else (hvp,)
    close(inner(u, pushed), inner(pulled, v))
    theirs = None if any((op, sample) == wrong for wrong in WRONG_IN_PYTORCH) else expected(case, u, v)
    if theirs is not None:
        close(pulled, theirs[0])
        close(product, theirs[1], 1e-8)
    else:
        close(inner(u, pushed), quotient(loss(case, u), case.x, v), 1e-6)
        gradient = pullback.grad(loss(case, u), tuple(range(len(v))))
        close(inner(product, v), quotient(lambda *x: inner(gradient(*x), v), case.x, v), 1e-6)


def quotient(f: Callable[..., Tensor], x: Sequence[Tensor], v: Sequence[Tensor], h: float = 1e-6) -> Tensor:
    """The difference quotient of a function along v."""
    low, high = (f(*(s + step * t for s, t in zip(x, v, strict=True))) for step in (-h, h))
    return (high - low) / (2 * h)


def loss(case: Case, u: Sequence[Tensor]) -> Callable[..., Tensor]:
    return lambda *x: inner(u, case.f(*x))


@reference()
def expected(case: Case, u: Sequence[Tensor], v: Sequence[Tensor]) -> tuple[Any, Any] | None:
    """PyTorch's gradient of the loss, and the product of its Hessian with v; None where it has no derivative."""
    try:
        return by_pytorch(case, u, v)
    except RuntimeError as error:
        if not NOT_FOR_PYTORCH.search(str(error)):
            raise
        return None


def by_pytorch(case: Case, u: Sequence[Tensor], v: Sequence[Tensor]) -> tuple[Any, Any]:
    x = [t.detach().requires_grad_() for t in case.x]
    options = {"materialize_grads": True, "allow_unused": True}
    gradient = torch.autograd.grad(loss(case, u)(*x), x, create_graph=True, **options)
    along = inner(gradient, v)
    product = torch.autograd.grad(along, x, **options) if along.requires_grad else [torch.zeros_like(t) for t in x]
    return tuple(t.detach() for t in gradient), tuple(t.detach() for t in product)


# ---------------------------------------------------------------- transforms

Z = torch.tensor([[0.3 + 1j, -0.7 + 0.2j], [1.1 - 0.4j, 0.5 + 0.5j]], dtype=torch.complex128)
W = torch.tensor([[1j, 0.2], [-0.3, 0.4 - 1j]], dtype=torch.complex128)
R = torch.tensor([[0.3, -0.7], [1.1, 0.5]], dtype=torch.float64)

PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {
    "real between": lambda z: ((z.real * W) @ z.conj()).angle().sum(),
    "complex between": lambda z: (torch.view_as_complex(torch.view_as_real(z).sin()).exp() * W).abs().log().sum(),
    "covariance": lambda z: (torch.cov(z) * W).real.sum() + torch.corrcoef(z.exp()).abs().sum(),
    "short-time transform": lambda z: torch.stft(z.view(-1), 2, 1, return_complex=True, onesided=False).abs().sum(),
    "filtered": lambda z: (torch.fft.irfft2(torch.fft.fft2(z) * W, s=(2, 3)) ** 2).sum(),
    "adjoint": lambda z: (z.mH @ z * W).real.sum(),
    "holomorphic": lambda z: (z @ W @ z).exp().imag.sum(),
    "lazily conjugated": lambda z: (z.conj() * z.sin().conj()).imag.mul(R).sum(),
    "mixed precision": lambda z: (z.to(torch.complex64).to(torch.complex128) * R).abs().sum(),
    "branches": lambda z: torch.where(z.abs() > 1, z * 2j, z.conj()).mul(W).real.sum(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_those_of_pytorch(name: str) -> None:
    f = PROGRAMS[name]
    with reference():
        expected_gradient = torch.func.grad(f)(Z)
    tolerance = 1e-6 if name == "mixed precision" else 1e-9
    for order in ("reverse", "forward", "auto"):
        close(pullback.grad(f, order=order)(Z), expected_gradient, tolerance)
    close(pullback.jacobian(f)(Z), expected_gradient, tolerance)
    assert not pullback.grad(f)(Z).is_conj()


def test_a_lazily_conjugated_argument_is_its_conjugate() -> None:
    f = PROGRAMS["real between"]
    close(pullback.grad(f)(Z.conj()), pullback.grad(f)(Z.conj().resolve_conj()))


def test_the_jacobian_of_a_complex_function_of_real_numbers() -> None:
    def f(x: Tensor) -> Tensor:
        return (torch.complex(x, x.sin()) @ W).exp()

    with reference():
        pairs = torch.func.jacrev(lambda x: torch.view_as_real(f(x)))(R)
    expected_jacobian = torch.complex(pairs[:, :, 0], pairs[:, :, 1])
    for order in ("reverse", "forward"):
        close(pullback.jacobian(f, order=order)(R), expected_jacobian)


def test_a_complex_cotangent_through_a_kernel_on_real_numbers() -> None:
    """A row of complex numbers meets a convolution of real ones: its real and imaginary parts are pulled back."""
    image, weight = torch.rand(1, 1, 3, 3, dtype=torch.float64), torch.rand(1, 1, 2, 2, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight) * (1 + 2j)

    ours = pullback.jacobian(f, order="reverse")(image)
    close(ours, pullback.jacobian(lambda x: torch.nn.functional.conv2d(x, weight))(image) * (1 + 2j))


def test_the_graph_is_walked_by_hand() -> None:
    f = PROGRAMS["lazily conjugated"]
    graph = pullback.trace(f, Z)
    values = graph.forward(Z)
    close(graph.backward(values)["z"], pullback.grad(f)(Z))
    local = graph.local_jacobian(next(e for e in graph.edges if "conj" in e.node.op), values)
    assert local.dense is None
    assert "∂z*[i,j] = 1" in local.formula


@pytest.mark.parametrize("name", PROGRAMS)
def test_complex_programs_are_verified(name: str) -> None:
    assert verify(pullback.grad(PROGRAMS[name]), Z).passed


def test_records_and_autograd_around_a_gradient() -> None:
    f = PROGRAMS["holomorphic"]
    z = Z.clone().requires_grad_()
    with pullback.record() as tape:
        loss = f(z)
    tape.backward(loss)
    close(z.grad, pullback.grad(f)(Z))
    beside = pullback.grad(f)(z)  # beside autograd, whose backward reaches through it
    with reference():
        (ours,) = torch.autograd.grad((beside.conj() * W).real.sum(), z)
        (gradient,) = torch.autograd.grad(f(z), z, create_graph=True)
        (theirs,) = torch.autograd.grad((gradient.conj() * W).real.sum(), z)
    close(ours, theirs)


def test_jacobians_between_complex_tensors_are_refused() -> None:
    with pytest.raises(ArgumentError, match="view_as_real"):
        pullback.jacobian(torch.exp)(Z)
    with pytest.raises(ArgumentError, match="chunk_size"):
        pullback.jacobian(torch.abs, chunk_size=2)(Z)


def test_the_gradient_of_a_complex_scalar_is_refused() -> None:
    with pytest.raises(ArgumentError, match="real scalar"):
        pullback.grad(lambda z: z.sum())(Z)


def test_a_rule_for_real_numbers_alone_is_refused_by_name() -> None:
    with pytest.raises(MissingRuleError, match=r"aten\.silu\.default on complex numbers"):
        pullback.grad(lambda z: torch.nn.functional.silu(z).abs().sum())(Z)
