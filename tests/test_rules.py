"""The rules of tensor operators: every entry, on every sample, against PyTorch and against central differences."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from pullback import rules
from pullback.errors import RuleError
from pullback.evaluation import dense, evaluate, pull, push
from pullback.expressions import Builder
from pullback.graph import FLOATING, Node, Value, replace_values
from pullback.rules import (
    TABLES,
    activation,
    contraction,
    distances,
    indexing,
    pointwise,
    reduction,
    scans,
    scattering,
    views,
)
from pullback.rules.kinds import B, Call, I, Multilinear, Pointwise, T
from pullback.terms import Jac, Kernel, Term
from pullback.torch_private import overload

pytestmark = pytest.mark.reference  # PyTorch's own derivatives are what the rules are compared with

RULES = {
    op: rule
    for table in (pointwise, activation, contraction, views, indexing, scattering, reduction, scans, distances)
    for op, rule in table.RULES.items()
}
SAMPLES = [
    pytest.param(op, s.args, dict(s.kwargs), id=f"{op}-{k}")
    for op, rule in RULES.items()
    for k, s in enumerate(rule.samples)
    if not s.is_complex  # see test_rules_complex.py
]
FUSED = [case for case in SAMPLES if RULES[case.values[0]].pull]
# Buffers: what only PyTorch's own backward kernel reads, and the slopes that were drawn.
AUXILIARY = {("aten.log_sigmoid_forward.default", 1), ("aten.rrelu_with_noise_functional.default", 1)}
INEXACT = {"aten.hardsigmoid.default": 1e-7}  # PyTorch multiplies by 1 / 6 in single precision

KINKS = tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
TIES, OTHER = tensor([1.0, 2.0, 2.0, 0.0]), tensor([1.0, 1.0, 2.0, -0.0])
ZEROS = tensor([[2.0, 0.0, 3.0], [0.0, 0.0, 1.5], [1.0, 2.0, -1.0]])
EQUAL = tensor([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
PLACES = tensor([[0, 2, 0], [1, 1, 1], [2, 0, 0]])
AT_KINKS = [
    *(
        (f"aten.{op}.default", (KINKS,))
        for op in ["abs", "relu", "hardtanh", "leaky_relu", "elu", "silu", "hardsigmoid", "hardswish"]
    ),
    *(
        (f"aten.{op}.default", (KINKS,))
        for op in ["hardshrink", "softshrink", "softplus", "mish", "gelu", "log_sigmoid_forward"]
    ),
    ("aten.threshold.default", (KINKS, 0.5, 7.0)),
    ("aten._prelu_kernel.default", (KINKS, tensor([0.25]))),
    ("aten.sinc.default", (KINKS,)),
    ("aten.nan_to_num.default", (tensor([1.0, inf, -inf, torch.nan]),)),
    ("aten.clamp.default", (KINKS, -1.0, 0.5)),
    ("aten.clamp_min.default", (KINKS, 0.5)),
    ("aten.clamp_max.default", (KINKS, 0.5)),
    ("aten.clamp.Tensor", (tensor([0.0, 1.0, 2.0, 3.0]), tensor([1.0, 1.0, 1.0, 5.0]), tensor([2.0, 2.0, 2.0, 1.0]))),
    ("aten.clamp.Tensor", (TIES, OTHER, None)),
    ("aten.clamp.Tensor", (TIES, None, OTHER)),
    *((f"aten.clamp_{side}.Tensor", (TIES, OTHER)) for side in ("min", "max")),
    *((f"aten.{op}.default", (TIES, OTHER)) for op in ["maximum", "minimum", "fmax", "fmin"]),
    *((f"aten.{op}.default", (tensor([1.0, torch.nan]), tensor([torch.nan, 2.0]))) for op in ("fmax", "fmin")),
    ("aten.pow.Tensor_Scalar", (KINKS, 0)),
    ("aten.pow.Tensor_Scalar", (KINKS, 1)),
    ("aten.pow.Tensor_Scalar", (KINKS, 2.0)),
    ("aten.pow.Tensor_Tensor", (tensor([0.0, 0.0, 2.0, 0.0]), tensor([0.0, 2.0, 0.0, 1.0]))),
    ("aten.pow.Scalar", (0.0, tensor([0.0, 2.0]))),
    ("aten.copysign.Tensor", (KINKS, tensor(-1.0))),
    ("aten.xlogy.Tensor", (tensor([0.0, 0.0, 1.0]), tensor([-1.0, 2.0, 3.0]))),
    ("aten.xlogy.Scalar_Other", (tensor([0.0, 1.0]), 2.0)),
    ("aten.logit.default", (tensor([0.1, 0.3, 0.7, 0.9]), 0.3)),
    *((f"aten.{op}.default", (EQUAL,)) for op in ("max", "min", "amax", "amin", "aminmax")),
    *((f"aten.{op}.default", (EQUAL, (1,))) for op in ("amax", "amin")),
    *((f"aten.{op}.dim", (EQUAL, 1)) for op in ("max", "min", "median")),
    *((f"aten.{op}.default", (EQUAL, 1)) for op in ("cummax", "cummin")),
    *(("aten.linalg_vector_norm.default", (ZEROS[1:2] * n, p, (1,))) for n in (0.0, 1.0) for p in (2, 1, 3, inf, 1.5)),
    ("aten.linalg_vector_norm.default", (EQUAL, inf, (1,))),
    ("aten.std.correction", (EQUAL, (1,))),
    ("aten.prod.default", (ZEROS,)),
    ("aten.prod.dim_int", (ZEROS, 1)),
    ("aten.cumprod.default", (ZEROS, 1)),
    *((f"aten.{op}.default", (EQUAL,)) for op in ("median", "nanmedian")),
    ("aten.logcumsumexp.default", (EQUAL * 500, 1)),
    *(("aten.scatter_reduce.two", (ZEROS, 1, PLACES, ZEROS.flip(0), r)) for r in ("sum", "mean", "prod", "amax")),
    *(("aten.scatter_reduce.two", (EQUAL, 1, PLACES[:2], EQUAL.flip(1), r)) for r in ("amax", "amin")),
    *(("aten.index_reduce.default", (ZEROS, 0, PLACES[0], ZEROS.flip(1), r)) for r in ("mean", "prod", "amax", "amin")),
    *(("aten.dist.default", (EQUAL, EQUAL * n, p)) for n in (0.0, 1.0) for p in (2, 1, 3, inf, 1.5)),
    *(("aten._cdist_forward.default", (EQUAL, EQUAL.flip(0), p, None)) for p in (2.0, 1.0, 3.0, inf, 1.5, 0.5, 0.0)),
    ("aten._cdist_forward.default", (EQUAL, EQUAL, 2.0, None)),
    ("aten.index.Tensor", (ZEROS, (tensor([-1, 0, -3]), None))),
    ("aten.index_put.default", (ZEROS, (tensor([-1, 0]),), ZEROS[:2])),
    ("aten.index_put.default", (ZEROS, (tensor([-1, -1]),), ZEROS[:2], True)),
    ("aten.take.default", (ZEROS, tensor([-1, 0, 5]))),
    ("aten.cat.default", ((ZEROS[:, :0], ZEROS), 1)),
    ("aten.view.default", (ZEROS[:0], (3, 0))),
    ("aten.sum.dim_IntList", (ZEROS[:0], (0,))),
]


# ---------------------------------------------------------------- one call


@dataclass(frozen=True)
class Case:
    """An operator called on tensors, as a rule sees it."""

    call: Call
    tensors: dict[Value, Tensor]

    @property
    def node(self) -> Node:
        return self.call.node

    def edges(self) -> Iterator[tuple[int, int]]:
        """Every pair of a result that has a derivative and an operand that may have one."""
        for output, y in enumerate(self.node.outputs):
            for operand, x in enumerate(self.call.operands):
                if y.dtype in FLOATING and x.dtype in FLOATING and (self.node.op, output) not in AUXILIARY:
                    yield output, operand

    def jacobian(self, output: int, operand: int) -> Jac:
        y, x = self.node.outputs[output], self.call.operands[operand]
        assert y is not None
        jac = Jac(RULES[self.node.op].parts(self.call, output, operand), y.shape, x.shape, y.dtype, x.dtype)
        jac.check()
        return jac

    def values(self) -> dict[Value, Tensor]:
        """The tensors of the call, and of everything that a rule has computed from them."""
        return evaluate(self.call.builder.nodes, self.tensors)

    def function(self, output: int, operand: int) -> Callable[[Tensor], Tensor]:
        """One result as a function of one operand."""
        chosen = self.call.operands[operand]

        def run(x: Tensor) -> Tensor:
            return results(self.node, {**self.tensors, chosen: x})[output]

        return run

    def point(self, operand: int) -> Tensor:
        return self.tensors[self.call.operands[operand]]


def results(node: Node, tensors: dict[Value, Tensor]) -> list[Tensor]:
    args, kwargs = replace_values((node.args, node.kwargs), tensors.__getitem__)
    result = overload(node.op)(*args, **dict(kwargs))
    return list(result) if isinstance(result, (tuple, list)) else [result]


def draw(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(draw, argument))
    if isinstance(argument, T):
        low, high = argument.domain
        return low + (high - low) * torch.rand(argument.shape, dtype=torch.float64)
    if isinstance(argument, I):
        return torch.randint(argument.bound, argument.shape)
    return torch.rand(argument.shape) < 0.5 if isinstance(argument, B) else argument


def case_of(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype = torch.float64) -> Case:
    torch.manual_seed(0)
    tensors: dict[Value, Tensor] = {}

    def value(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(value, argument))
        if not isinstance(argument, Tensor):
            return argument
        argument = argument.to(dtype) if argument.is_floating_point() else argument
        made = Value(f"v{len(tensors)}", tuple(argument.shape), str(argument.dtype).removeprefix("torch."))
        tensors[made] = argument
        return made

    node = Node(op, value(draw(args)), tuple((k, value(draw(a))) for k, a in kwargs.items()), ())
    outputs = value(tuple(results(node, tensors)))
    return Case(Call(Node(op, node.args, node.kwargs, outputs), Builder()), tensors)


def differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    columns = []
    for k in range(x.numel()):
        change = torch.zeros(x.numel(), dtype=x.dtype)
        change[k] = step
        change = change.reshape(x.shape)
        columns.append((function(x + change) - function(x - change)) / (2 * step))
    y = function(x)
    shape = (*y.shape, *x.shape)
    return torch.stack(columns, -1).reshape(shape) if columns else torch.zeros(shape, dtype=x.dtype)


def reference(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """PyTorch's own Jacobian; central differences where it has none, or where its formula fails."""
    try:
        expected = torch.autograd.functional.jacobian(function, x, strict=False) if function(x).numel() else None
    except RuntimeError as error:
        if not re.search("not implemented|returned an invalid gradient", str(error)):
            raise
        return differences(function, x)
    return differences(function, x) if expected is None or not x.numel() else expected


# ---------------------------------------------------------------- the checks


@pytest.mark.parametrize("op", [op for table in TABLES.values() for op in table])
def test_every_entry_has_samples(op: str) -> None:
    assert rules.RULES[op].samples


@pytest.mark.parametrize(("op", "args", "kwargs"), SAMPLES)
def test_local_jacobian(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    case = case_of(op, args, kwargs)
    for output, operand in case.edges():
        ours = dense(case.jacobian(output, operand), case.values())
        function, x = case.function(output, operand), case.point(operand)
        torch.testing.assert_close(ours, reference(function, x), rtol=INEXACT.get(op, 1e-9), atol=1e-10)
        torch.testing.assert_close(ours, differences(function, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("op", "args", "kwargs"), SAMPLES)
def test_push_and_pull_agree(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    case = case_of(op, args, kwargs)
    for output, operand in case.edges():
        jac = case.jacobian(output, operand)
        values = case.values()
        u, v = (torch.randn(shape, dtype=torch.float64) for shape in (jac.out_shape, jac.in_shape))
        pushed, pulled = push(jac, values, v), pull(jac, values, u)
        torch.testing.assert_close((u * pushed).sum(), (pulled * v).sum())
        torch.testing.assert_close(pushed, torch.tensordot(dense(jac, values), v, v.dim()))


@pytest.mark.parametrize(("op", "args"), AT_KINKS)
def test_conventions_are_those_of_pytorch(op: str, args: tuple[Any, ...]) -> None:
    case = case_of(op, args, {})
    for output, operand in case.edges():
        ours = dense(case.jacobian(output, operand), case.values())
        expected = reference(case.function(output, operand), case.point(operand))
        torch.testing.assert_close(ours, expected, rtol=INEXACT.get(op, 1e-10), atol=1e-10, equal_nan=True)


@pytest.mark.parametrize(("op", "args", "kwargs"), FUSED)
def test_fused_kernel_agrees_with_the_formula(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    case = case_of(op, args, kwargs)
    y = case.node.results[0]
    cotangent = Value("g", y.shape, y.dtype)
    tensors = {**case.tensors, cotangent: torch.randn(y.shape, dtype=torch.float64)}
    fused = RULES[op].pull(case.call, [cotangent], [True] * len(case.call.operands))[0]
    jac = case.jacobian(0, 0)
    values = evaluate(case.call.builder.nodes, tensors)
    torch.testing.assert_close(values[fused], pull(jac, values, tensors[cotangent]))


@pytest.mark.parametrize(("op", "args", "kwargs"), SAMPLES)
def test_declared_types_are_those_of_the_tensors(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A node that a rule builds has the shape and dtype that PyTorch gives it, in single precision too."""
    case = case_of(op, args, kwargs, torch.float32)
    for output, operand in case.edges():
        case.jacobian(output, operand)
    for value, held in case.values().items():
        assert (value.shape, f"torch.{value.dtype}") == (tuple(held.shape), str(held.dtype)), value


@pytest.mark.parametrize(("op", "args", "kwargs"), SAMPLES)
def test_operators_in_formulas_have_rules_themselves(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    case = case_of(op, args, kwargs)
    jacs = [case.jacobian(*edge) for edge in case.edges()]
    used = {node.op for node in case.call.builder.nodes if node.op.startswith("aten.")}
    used |= {a.op for jac in jacs for part in jac.parts if isinstance(part, Kernel) for a in (part.push, part.pull)}
    assert used <= rules.RULES.keys() | rules.NONDIFFERENTIABLE


# ---------------------------------------------------------------- kinds and tables


def test_an_operator_with_two_entries_is_refused() -> None:
    with pytest.raises(RuleError, match=r"aten\.tanh\.default.*one already"):
        rules.merged({"a": {"aten.tanh.default": Pointwise(1)}, "b": {"aten.tanh.default": Pointwise(2)}})


def test_an_entry_for_a_constant_operator_is_refused() -> None:
    with pytest.raises(RuleError, match=r"aten\.sign\.default"):
        rules.merged({"a": {"aten.sign.default": Pointwise(0)}}, rules.NONDIFFERENTIABLE)


@pytest.mark.parametrize("form", ["ij,jk", "ij,jk->il", ""])
def test_a_form_that_is_no_einsum_is_refused(form: str) -> None:
    with pytest.raises(RuleError, match="einsum"):
        Multilinear(form=form)


@pytest.mark.parametrize("op", sorted(rules.NONDIFFERENTIABLE))
def test_constant_operators_exist(op: str) -> None:
    overload(op)


@pytest.mark.parametrize("op", sorted(rules.RULES))
def test_operators_with_rules_exist(op: str) -> None:
    overload(op)


@pytest.mark.parametrize(
    ("before", "after", "terms"),
    [
        ((2, 3), (6,), True),
        ((4, 6), (2, 2, 3, 2), True),
        ((2, 3), (3, 2), False),
        ((4, 3), (2, 6), True),
        ((), (1, 1), True),
    ],
)
def test_a_view_has_labels_where_its_shapes_refine_each_other(
    before: tuple[int, ...], after: tuple[int, ...], terms: bool
) -> None:
    (part,) = case_of("aten.view.default", (T(*before), after), {}).jacobian(0, 0).parts
    assert isinstance(part, Term) == terms


def test_masks_stay_masks() -> None:
    """A derivative of 0 or 1 is a Boolean factor, which lowering can turn into `where`."""
    for op in ("relu", "hardtanh", "clamp_min", "tril"):
        case = case_of(f"aten.{op}.default", (T(3, 3), *([0.1] if op == "clamp_min" else [])), {})
        (part,) = case.jacobian(0, 0).parts
        assert [f.value.dtype for f in part.factors] == ["bool"]


def test_a_kept_axis_is_a_delta() -> None:
    """Every label that a sum, a product or a norm does not mix is on both sides."""
    for op, args in (
        ("aten.sum.dim_IntList", ((1,),)),
        ("aten.logsumexp.default", ((1,),)),
        ("aten.cumsum.default", (1,)),
    ):
        (part,) = case_of(op, (T(2, 3), *args), {}).jacobian(0, 0).parts
        assert part.out[0] == part.inp[0]
