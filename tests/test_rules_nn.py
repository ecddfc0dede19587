"""The rules of neural-network operators: every entry, on every sample, against PyTorch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback
from pullback import rules
from pullback.errors import RuleError
from pullback.evaluation import dense, evaluate, pull, push
from pullback.expressions import Builder
from pullback.graph import Node, Value
from pullback.rules import attention, losses, nn, normalisation
from pullback.rules.kinds import B, Call, I, Rule, Sample, T
from pullback.terms import HOLE, Application, Jac, Kernel
from pullback.torch_private import overload

pytestmark = [
    pytest.mark.reference,  # PyTorch's own derivatives are what the rules are compared with
    pytest.mark.filterwarnings("ignore:An output with one or more elements was resized"),
]

TABLES = (nn, normalisation, attention, losses)
RULES: dict[str, Rule] = {op: rule for table in TABLES for op, rule in table.RULES.items()}
CASES = [pytest.param(op, k, id=f"{op}-{k}") for op, rule in RULES.items() for k in range(len(rule.samples))]
FUSED = [case for case in CASES if RULES[case.values[0]].pull]

NOT_DIFFERENTIATED_BY_TORCH = {  # operands in which PyTorch refuses these; central differences are the reference
    "aten.binary_cross_entropy.default": ["x2"],
    "aten.nll_loss_forward.default": ["x2"],
    "aten.nll_loss2d_forward.default": ["x2"],
    "aten.soft_margin_loss.default": ["x1"],
    "aten._native_batch_norm_legit_functional.default": ["x3", "x4"],
    "aten._native_batch_norm_legit_no_training.default": ["x3", "x4"],
    "aten._batch_norm_with_update_functional.default": ["x3", "x4"],
    "aten._scaled_dot_product_flash_attention_for_cpu.default": ["attn_mask"],
    "aten.fractional_max_pool2d.default": ["x3"],
    "aten.fractional_max_pool3d.default": ["x3"],
    "aten._embedding_bag_forward_only.default": ["x0", "x6"],
}
STATISTICS = {*normalisation.NORMS, *attention.RULES}  # PyTorch holds their further results for constants


# ---------------------------------------------------------------- one call


@dataclass(frozen=True)
class Case:
    """An operator called on random tensors, as a rule sees it."""

    op: str
    rule: Rule
    call: Call
    tensors: dict[Value, Tensor]

    @property
    def operands(self) -> list[int]:
        return [k for k, v in enumerate(self.call.operands) if v.is_floating]

    @property
    def results(self) -> list[int]:
        outputs = self.call.node.outputs
        return [k for k in self.rule.differentiable if outputs[k] is not None and outputs[k].size]

    def jacobian(self, output: int, operand: int) -> Jac:
        y, x = self.call.node.outputs[output], self.call.operands[operand]
        jac = Jac(self.rule.parts(self.call, output, operand), y.shape, x.shape, y.dtype, x.dtype)
        jac.check()
        return jac

    def values(self) -> dict[Value, Tensor]:
        """The tensors of the call, and of everything that a rule has computed from them."""
        return evaluate(self.call.builder.nodes, self.tensors)

    def function(self, output: int, operand: int) -> Callable[[Tensor], Tensor]:
        """One result as a function of one operand."""
        node, chosen = self.call.node, self.call.operands[operand]

        def run(x: Tensor) -> Tensor:
            args, kwargs = filled(node, {**self.tensors, chosen: x})
            return as_tuple(overload(node.op)(*args, **kwargs))[output]

        return run


def filled(node: Node, tensors: dict[Value, Tensor]) -> tuple[list[Any], dict[str, Any]]:
    return [tensors.get(a, a) if isinstance(a, Value) else a for a in node.args], {
        name: tensors[a] if isinstance(a, Value) else a for name, a in node.kwargs
    }


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def draw(argument: Any) -> Any:
    if isinstance(argument, T):
        low, high = argument.domain
        real = low + (high - low) * torch.rand(argument.shape, dtype=torch.float64)
        return torch.complex(real, torch.rand_like(real)) if argument.complex else real
    if isinstance(argument, I):
        return torch.randint(argument.bound, argument.shape)
    return torch.rand(argument.shape) < 0.5 if isinstance(argument, B) else argument


def case_of(op: str, sample: Sample) -> Case:
    torch.manual_seed(0)
    args = [draw(a) for a in sample.args]
    return case_on(op, args, {name: draw(a) for name, a in sample.kwargs.items()})


def case_on(op: str, args: list[Any], kwargs: dict[str, Any]) -> Case:
    tensors: dict[Value, Tensor] = {}

    def value(argument: Any, name: str) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        made = Value(name, tuple(argument.shape), str(argument.dtype).removeprefix("torch."))
        tensors[made] = argument
        return made

    call_args = tuple(value(a, f"x{k}") for k, a in enumerate(args))
    call_kwargs = tuple((name, value(a, name)) for name, a in kwargs.items())
    results = as_tuple(overload(op)(*args, **kwargs))
    outputs = tuple(value(r, f"y{k}") for k, r in enumerate(results))
    node = Node(op, call_args, call_kwargs, tuple(v if isinstance(v, Value) else None for v in outputs))
    return Case(op, RULES[op], Call(node, Builder()), tensors)


def edges(case: Case) -> Iterator[tuple[int, int]]:
    return ((output, operand) for output in case.results for operand in case.operands)


def reference(case: Case, output: int, operand: int) -> Tensor:
    value = case.call.operands[operand]
    function = keep_mask(case, case.function(output, operand))
    if value.name in NOT_DIFFERENTIATED_BY_TORCH.get(case.op, ()) or (case.op in STATISTICS and output > 0):
        return differences(function, case.tensors[value])
    broken = "native_group_norm" in case.op and case.call.node.args[1] is None  # its kernel fails on a bias alone
    return (differences if broken else torch.autograd.functional.jacobian)(function, case.tensors[value])


def keep_mask(case: Case, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Dropout with the mask that was drawn in this case."""
    if "dropout" not in case.op:
        return function
    mask, (_, p, train) = case.tensors[case.call.node.outputs[1]], case.call.node.args
    return lambda x: x * mask / (1 - p) if train and p < 1 else x * mask


def differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences."""
    columns = []
    for k in range(x.numel()):
        shift = torch.zeros(x.numel(), dtype=x.dtype)
        shift[k] = step
        shift = shift.reshape(x.shape)
        columns.append((function(x + shift) - function(x - shift)) / (2 * step))
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


# ---------------------------------------------------------------- every entry


@pytest.mark.parametrize("op", RULES)
def test_entry_has_samples_and_a_source(op: str) -> None:
    assert RULES[op].samples
    assert getattr(RULES[op], "source", "linear")


@pytest.mark.parametrize(("op", "k"), CASES)
def test_local_jacobian_is_pytorchs(op: str, k: int) -> None:
    case = case_of(op, RULES[op].samples[k])
    for output, operand in edges(case):
        jac = case.jacobian(output, operand)
        found = dense(jac, case.values())
        torch.testing.assert_close(found, reference(case, output, operand), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("op", "k"), CASES)
def test_pull_is_the_transpose_of_push(op: str, k: int) -> None:
    case = case_of(op, RULES[op].samples[k])
    for output, operand in edges(case):
        jac = case.jacobian(output, operand)
        values = case.values()
        v, u = torch.randn(jac.in_shape, dtype=torch.float64), torch.randn(jac.out_shape, dtype=torch.float64)
        left, right = (u * push(jac, values, v)).sum(), (pull(jac, values, u) * v).sum()
        torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("op", RULES)
def test_kernels_can_be_mapped_over_many_operands(op: str) -> None:
    case = case_of(op, RULES[op].samples[0])
    jacobians = [case.jacobian(*edge) for edge in edges(case)]
    kernels = [(part, jac) for jac in jacobians for part in jac.parts if isinstance(part, Kernel)]
    values = case.values()
    for kernel, jac in kernels:
        for application, shape in ((kernel.push, jac.in_shape), (kernel.pull, jac.out_shape)):
            rows = torch.randn(3, *shape, dtype=torch.float64)
            one_by_one = torch.stack([applied(application, row, values) for row in rows])
            at_once = torch.func.vmap(lambda row, a=application: applied(a, row, values))(rows)
            torch.testing.assert_close(at_once, one_by_one)


def applied(application: Application, operand: Tensor, values: dict[Value, Tensor]) -> Tensor:
    args = [operand if a is HOLE else values[a] if isinstance(a, Value) else a for a in application.args]
    return as_tuple(overload(application.op)(*args))[application.output]


DERIVED = {"contract", "place", "apply", "cast"}


@pytest.mark.parametrize("op", RULES)
def test_formulas_have_rules_of_their_own(op: str) -> None:
    case = case_of(op, RULES[op].samples[0])
    for edge in edges(case):
        case.jacobian(*edge)
    written = {n.op for n in case.call.builder.nodes if any(v.is_floating for v in n.inputs)}
    assert written <= {*rules.RULES, *rules.NONDIFFERENTIABLE, *DERIVED}


@pytest.mark.parametrize(("op", "k"), FUSED)
def test_fused_kernel_is_the_body(op: str, k: int) -> None:
    case = case_of(op, RULES[op].samples[k])
    y = case.call.node.outputs[0]
    g = Value("g", y.shape, y.dtype)
    cotangent = torch.randn(y.shape, dtype=torch.float64)
    served = [k for k in case.operands if fused(case, g, [k]) is not None]
    for operands in ([k] for k in served):
        compare_fused(case, g, cotangent, operands)
    if fused(case, g, served) is not None:
        compare_fused(case, g, cotangent, served)


def fused(case: Case, g: Value, operands: list[int]) -> Any:
    cotangents = (g, *[None] * (len(case.call.node.outputs) - 1))
    return case.rule.pull(case.call, cotangents, tuple(k in operands for k in range(len(case.call.operands))))


def compare_fused(case: Case, g: Value, cotangent: Tensor, operands: list[int]) -> None:
    pulled = fused(case, g, operands)
    jacobians = {k: case.jacobian(0, k) for k in operands}
    values = evaluate(case.call.builder.nodes, {**case.tensors, g: cotangent})
    for k, value in enumerate(pulled):
        assert (value is not None) == (k in operands)
    for k, jac in jacobians.items():
        torch.testing.assert_close(values[pulled[k]], pull(jac, values, cotangent), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(("op", "k"), FUSED)
def test_fused_kernel_exists_for_the_first_operand(op: str, k: int) -> None:
    case = case_of(op, RULES[op].samples[k])
    y = case.call.node.outputs[0]
    nothing_to_do = "dropout" in op and case.call.node.args[1:] in ((0.4, False), (1.0, True))
    broadcast = "mse_loss" in op and case.call.operands[0].shape != case.call.operands[1].shape
    if not (nothing_to_do or broadcast):
        assert fused(case, Value("g", y.shape, y.dtype), [0]) is not None


# ---------------------------------------------------------------- conventions


def test_fused_kernel_is_not_used_for_the_statistics() -> None:
    op = "aten.native_layer_norm.default"
    case = case_of(op, RULES[op].samples[0])
    cotangents = tuple(Value(f"g{k}", y.shape, y.dtype) for k, y in enumerate(case.call.node.outputs))
    assert case.rule.pull(case.call, cotangents, (True, True, True)) is None


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_targets_outside_the_classes_are_ignored(reduction: int) -> None:
    x, target = torch.randn(4, 3, dtype=torch.float64), torch.tensor([2, -100, 0, -100])
    case = case_on("aten.nll_loss_forward.default", [x, target, None, reduction, -100], {})
    found = dense(case.jacobian(0, 0), case.values())
    torch.testing.assert_close(found, reference(case, 0, 0))


def test_loss_of_nothing_has_no_derivative() -> None:
    x, target = torch.randn(2, 3, dtype=torch.float64), torch.tensor([1, 1])
    case = case_on("aten.nll_loss_forward.default", [x, target, None, 1, 1], {})
    jac = case.jacobian(0, 0)
    values = case.values()
    valid = next(t for v, t in values.items() if v.dtype == "bool")
    assert not valid.any()  # the factor that lowering turns into a choice, so that 0 · ∞ does not arise
    assert jac.parts[0].factors[0].value.dtype == "bool"


def test_cross_entropy_of_certain_probabilities_is_cut_off_as_in_pytorch() -> None:
    x = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    t = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    case = case_on("aten.binary_cross_entropy.default", [x, t, None, 2], {})
    for operand in (0, 1):
        found = dense(case.jacobian(0, operand), case.values())
        torch.testing.assert_close(found, reference(case, 0, operand))


@pytest.mark.parametrize("op", ["aten.smooth_l1_loss.default", "aten.huber_loss.default"])
def test_kinks_of_absolute_losses(op: str) -> None:
    x, t = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    case = case_on(op, [x, t, 2, 1.0], {})
    torch.testing.assert_close(dense(case.jacobian(0, 0), case.values()), reference(case, 0, 0))


def test_maximum_of_equal_entries_is_pytorchs() -> None:
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    case = case_on("aten.max_pool2d_with_indices.default", [x, (2, 2)], {})
    torch.testing.assert_close(dense(case.jacobian(0, 0), case.values()), reference(case, 0, 0))


def test_fully_masked_attention_has_the_derivative_zero() -> None:
    q, k, v = (torch.randn(1, 1, 3, 2, dtype=torch.float64) for _ in range(3))
    mask = torch.zeros(3, 3, dtype=torch.float64)
    mask[1] = -torch.inf
    case = case_on("aten._scaled_dot_product_flash_attention_for_cpu.default", [q, k, v], {"attn_mask": mask})
    for operand in range(3):
        found = dense(case.jacobian(0, operand), case.values())
        assert not found[0, 0, 1].any()
        assert found.isfinite().all()


def test_scaling_by_frequency_is_refused() -> None:
    weight, indices = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 0])
    case = case_on("aten.embedding.default", [weight, indices, -1, True], {})
    with pytest.raises(RuleError, match="scale_grad_by_freq=False"):
        case.jacobian(0, 0)


def test_missing_statistics_are_named() -> None:
    op = "aten.native_layer_norm.default"
    case = case_of(op, RULES[op].samples[0])
    node = case.call.node
    bare = Call(Node(node.op, node.args, node.kwargs, (node.outputs[0], None, None)), Builder())
    with pytest.raises(RuleError, match="result 1"):
        case.rule.parts(bare, 0, 0)


@pytest.mark.parametrize("weighted", [True, False])
def test_group_norm_of_a_cotangent_that_does_not_lie_in_a_row(weighted: bool) -> None:
    """The kernel reads memory in order, whatever the strides are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, dtype=torch.float64, generator=generator) if weighted else None
    u = torch.randn(4, 3, 2, 6, dtype=torch.float64, generator=generator)

    def f(x: Tensor) -> Tensor:
        return torch.nn.functional.group_norm(x.sin(), 3, weight).permute(2, 3, 0, 1)

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(leaf), leaf, u)
    torch.testing.assert_close(pullback.vjp(f, x)[1](u)[0], expected)
    with pullback.record() as tape:
        value = (f(leaf) * u).sum()
    torch.testing.assert_close(tape.grad(value, [leaf])[0], expected)
