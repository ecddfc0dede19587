"""Rules that users register, and the evidence that `pullback.rules.check` runs on any rule."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import pullback
from pullback import MissingRuleError, RuleError, UnsupportedTorchError, registry, rules
from pullback.contexts import CONTEXTS
from pullback.rules import RULES, C, Function, Multilinear, Pointwise, Sample, T
from pullback.rules.kinds import multilinear_parts
from support import reference

LIBRARY = torch.library.Library("test_registry", "DEF")
LIBRARY.define("cube(Tensor x) -> Tensor")
LIBRARY.define("weigh(Tensor a, Tensor b) -> Tensor")
LIBRARY.impl("cube", lambda x: x**3, "CompositeExplicitAutograd")
LIBRARY.impl("weigh", lambda a, b: a @ b, "CompositeExplicitAutograd")
torch.library.register_fake("test_registry::cube", torch.empty_like, lib=LIBRARY)
torch.library.register_fake("test_registry::weigh", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), lib=LIBRARY)
CUBE = Pointwise(lambda x: 3 * x * x)
OURS = [
    *("aten.tanh.default", "aten.mul.Tensor", "aten.addmm.default", "aten.gather.default", "aten.special_i1.default"),
    *("aten._softmax.default", "aten._pdist_forward.default", "aten.split.Tensor", "aten.convolution.default"),
    *("aten.polar.default", "aten._fft_r2c.default", "aten.embedding.default", "aten.hardsigmoid.default"),
    *CONTEXTS,
]
X = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


@pytest.fixture(autouse=True)
def rules_as_before() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)
    registry.forget("aten.sin.default")


def cube(x: Tensor) -> Tensor:
    return torch.ops.test_registry.cube(x).sum()


@pytest.mark.parametrize(
    "op", ["test_registry::cube", "test_registry.cube.default", torch.ops.test_registry.cube], ids=["::", ".", "object"]
)
def test_an_operator_of_a_library_is_taught(op: object) -> None:
    with pytest.raises(MissingRuleError, match=r"test_registry\.cube\.default"):
        pullback.grad(cube)(X)
    rules.register(op, CUBE)
    torch.testing.assert_close(pullback.grad(cube)(X), 3 * X**2)
    torch.testing.assert_close(pullback.hessian(cube)(X), torch.diag(6 * X))
    assert rules.check(op) == len(CUBE.samples)


def test_a_record_knows_it_too() -> None:
    x = X.clone().requires_grad_()
    with pullback.record() as tape:
        loss = cube(x)
    with pytest.raises(pullback.PullbackError):
        tape.grad(loss, x)
    rules.register("test_registry::cube", CUBE)
    with pullback.record() as tape:
        loss = cube(x)
    torch.testing.assert_close(tape.grad(loss, x), 3 * X**2)


def test_a_multilinear_operator_is_taught() -> None:
    op = "test_registry::weigh"
    rules.register(op, Multilinear(form="ij,jk->ik", samples=(Sample(T(2, 3), T(3, 4)),)))
    assert rules.check(op) == 1
    a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    ours = pullback.jacobian(torch.ops.test_registry.weigh, (0, 1))(a, b)
    with reference():
        expected = torch.func.jacrev(torch.matmul, (0, 1))(a, b)
    torch.testing.assert_close(ours, expected)


def test_an_operator_of_pytorch_is_taught() -> None:
    rules.register("aten.special_bessel_j0.default", Pointwise(lambda x: -x.special_bessel_j1()))
    x = torch.tensor([0.5, 1.5], dtype=torch.float64)
    gradient = pullback.grad(lambda x: torch.special.bessel_j0(x).sum())(x)
    torch.testing.assert_close(gradient, -torch.special.bessel_j1(x))
    with pytest.raises(MissingRuleError, match="bessel_j1"):  # the second derivative is not known yet
        rules.check("aten.special_bessel_j0.default")


# ---------------------------------------------------------------- evidence


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Pointwise(lambda x: 2 * x * x), "tangents and difference quotients differ"),
        (Pointwise(lambda x: -3 * x * x), "tangents and difference quotients differ"),
        (Pointwise(None), "tangents and difference quotients differ"),
        (Pointwise(lambda x: 3 * x * x, fused=lambda x, g: 3 * g * x), "⟨Jᵀ u, v⟩ differ"),
        (Pointwise(lambda x: 3 * x.detach() * x), "second derivatives and difference quotients differ"),
    ],
    ids=["factor", "sign", "zero", "kernel", "second order"],
)
def test_a_wrong_rule_is_found(rule: Pointwise, said: str) -> None:
    rules.register("test_registry::cube", rule)
    with pytest.raises(RuleError, match=rf"test_registry\.cube\.default on sample 0, .*{said}.*: \S+ and \S+"):
        rules.check("test_registry::cube")


def test_swapped_operands_are_found() -> None:
    def body(a: Tensor, b: Tensor) -> dict:
        parts = [multilinear_parts("ij,jk->ik", (a.value, b.value), k) for k in (0, 1)]
        return {0: parts[1], 1: parts[0]}

    rules.register("test_registry::weigh", Function((Sample(T(2, 2), T(2, 2)),), body=body))
    with pytest.raises(RuleError, match="differ"):
        rules.check("test_registry::weigh")


@pytest.mark.parametrize("form", ["ij,jk->ik", "ij,kj->ik"], ids=["right", "transposed"])
def test_complex_samples_are_complex(form: str) -> None:
    rules.register("test_registry::weigh", Multilinear((Sample(C(3, 3), C(3, 3)),), form=form))
    if form == "ij,jk->ik":
        assert rules.check("test_registry::weigh") == 1
    else:
        with pytest.raises(RuleError, match="differ"):
            rules.check("test_registry::weigh")


@pytest.mark.long
def test_every_rule_of_ours_passes() -> None:
    for op, rule in RULES.items():
        assert rules.check(op) == len(rule.samples), op


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", dict.fromkeys(OURS))
def test_our_own_rules_pass(op: str) -> None:
    assert rules.check(op) == len(RULES[op].samples)


# ---------------------------------------------------------------- wrong uses


@pytest.mark.parametrize("form", ["ij,jk->ki", "ij,ij->i"])
def test_a_rule_that_does_not_fit_the_operator(form: str) -> None:
    samples = (Sample(T(2, 3), T(3, 4)),)
    rules.register("test_registry::weigh", Multilinear(form=form, samples=samples))
    with pytest.raises(RuleError, match=r"the rule of test_registry\.weigh\.default on sample 0.*, does not fit"):
        rules.check("test_registry::weigh")


@torch.library.custom_op("test_registry::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x * 2


def test_operators_without_shapes_for_a_trace() -> None:
    with pytest.raises(pullback.CallError, match=r"(?s)no fake impl.*It runs, but a trace has to know the shapes"):
        pullback.grad(lambda x: opaque(x).sum())(X)
    LIBRARY.define("blind(Tensor x) -> Tensor")
    LIBRARY.impl("blind", lambda x: x * 2, "CPU")
    with pytest.raises(pullback.CaptureError, match=r"(?s)cannot trace test_registry\.blind.*register_fake"):
        pullback.grad(lambda x: torch.ops.test_registry.blind(x).sum())(X)


@pytest.mark.parametrize(
    ("op", "rule", "error", "said"),
    [
        ("aten.sin.default", CUBE, RuleError, "has a rule already"),
        ("aten.sign.default", CUBE, RuleError, "no derivative by definition"),
        ("test_registry::cube", lambda x: x, RuleError, "one of the kinds"),
        ("test_registry::weigh", Multilinear(form="ij,jk->ik"), RuleError, "no samples"),
        ("test_registry::square", CUBE, UnsupportedTorchError, "no operator 'test_registry.square.default'"),
    ],
)
def test_registering_what_makes_no_sense(op: str, rule: object, error: type[Exception], said: str) -> None:
    before = set(RULES)
    with pytest.raises(error, match=said):
        rules.register(op, rule)
    assert set(RULES) == before


def test_checking_an_operator_without_a_rule() -> None:
    with pytest.raises(RuleError, match=r"test_registry\.cube\.default.*no rule"):
        rules.check("test_registry::cube")
