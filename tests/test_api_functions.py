"""Every transform against `torch.func`, in float64, on every function of the catalogue."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

import catalogue_models
import catalogue_operators
import pullback
from catalogue import Case, weighted_sum
from pullback.capture import capture
from pullback.rules import RULES
from support import reference

CASES = [*catalogue_operators.CASES, *catalogue_models.CASES]
BY_NAME = {case.name: case for case in CASES}


def assert_close(ours: Any, expected: Any) -> None:
    """Equal structure, shapes, dtypes, and values up to rounding."""
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


def directions(arguments: Any, seed: int) -> Any:
    """A random tensor for each tensor."""
    generator = torch.Generator().manual_seed(seed)
    return tree_map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype), arguments)


@cache
def first_order(name: str) -> tuple[Any, Any, Any]:
    """Value and gradient of the scalar function, and the Jacobian, by `torch.func`."""
    case = BY_NAME[name]
    arguments, argnums = case.arguments(), case.argnums()
    with reference():
        gradient, value = torch.func.grad_and_value(case.scalar(), argnums)(*arguments)
        return value, gradient, torch.func.jacrev(case.f, argnums)(*arguments)


@cache
def second_order(name: str) -> Any:
    """The Hessian of the scalar function, by `torch.func`."""
    case = BY_NAME[name]
    with reference(), sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative there
        jacobian = torch.func.jacrev(torch.func.grad(case.scalar(), case.argnums()), case.argnums())
        return jacobian(*case.arguments())


def contracted(jacobian: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """A Jacobian's product with a tangent of its trailing axes."""
    return torch.tensordot(jacobian, vector, vector.dim())


def check_grad(case: Case) -> None:
    ours = pullback.grad(case.scalar(), case.argnums())(*case.arguments())
    assert_close(ours, first_order(case.name)[1])


def check_value_and_grad(case: Case) -> None:
    ours = pullback.value_and_grad(case.scalar(), case.argnums())(*case.arguments())
    assert_close(ours, first_order(case.name)[:2])


def check_vjp(case: Case) -> None:
    closed, arguments = case.closed()
    output, pull_back = pullback.vjp(closed, *arguments)
    assert_close(output, case.f(*case.arguments()))
    with reference():
        _, their_pull_back = torch.func.vjp(closed, *arguments)
        expected = their_pull_back(directions(output, 1))
    assert_close(pull_back(directions(output, 1)), expected)


def check_jvp(case: Case) -> None:
    closed, arguments = case.closed()
    tangents = directions(arguments, 2)
    output, tangent = pullback.jvp(closed, arguments, tangents)
    assert_close(output, case.f(*case.arguments()))
    jacobian = tree_leaves(first_order(case.name)[2])
    for k, leaf in enumerate(tree_leaves(tangent)):
        blocks = jacobian[k * len(tangents) : (k + 1) * len(tangents)]
        assert_close(leaf, sum(contracted(block, t) for block, t in zip(blocks, tangents, strict=True)))


def check_hvp(case: Case) -> None:
    closed, arguments = case.closed()
    tangents = directions(arguments, 3)
    ours = pullback.hvp(lambda *x: weighted_sum(closed(*x)), arguments, tangents)
    products = tuple(
        sum(contracted(block, t) for block, t in zip(row, tangents, strict=True)) for row in second_order(case.name)
    )
    gradient = first_order(case.name)[1]
    assert_close(ours, (gradient, products) if len(arguments) > 1 else (gradient[0], products[0]))


def check_hessian(case: Case) -> None:
    ours = pullback.hessian(case.scalar(), case.argnums())(*case.arguments())
    assert_close(ours, second_order(case.name))


def check_jacobian(order: str) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        ours = pullback.jacobian(case.f, case.argnums(), order=order)(*case.arguments())
        assert_close(ours, first_order(case.name)[2])

    return check


def check_jacobian_in_any_order(case: Case) -> None:
    """The vertices, shuffled."""
    arguments, argnums = case.arguments(), case.argnums()
    names = [v.name for v in pullback.jacobian(case.f, argnums).plan(*arguments).order.vertices]
    random.Random(case.name).shuffle(names)
    ours = pullback.jacobian(case.f, argnums, order=names)(*arguments)
    assert_close(ours, first_order(case.name)[2])


CHECKS: dict[str, Callable[[Case], None]] = {
    "grad": check_grad,
    "value_and_grad": check_value_and_grad,
    "jacobian": check_jacobian("auto"),
    "jacobian_forward": check_jacobian("forward"),
    "jacobian_reverse": check_jacobian("reverse"),
    "jacobian_in_any_order": check_jacobian_in_any_order,
    "vjp": check_vjp,
    "jvp": check_jvp,
    "hvp": check_hvp,
    "hessian": check_hessian,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_function(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


# ---------------------------------------------------------------- what the catalogue holds


def body(case: Case) -> str:
    """What a function says, whatever its name: `x @ y` is one body, of matrices as of vectors."""
    code = getattr(case.f, "__code__", None)
    return repr((code.co_code, code.co_consts[1:], code.co_names) if code else case.f)


def test_names_are_distinct() -> None:
    assert len(BY_NAME) == len(CASES)


def test_two_hundred_functions_have_distinct_bodies() -> None:
    assert len({body(case) for case in CASES}) >= 200


def test_eighty_operators_occur() -> None:
    operators: set[str] = set()
    for case in CASES:
        arguments, spec = tree_flatten((case.arguments(), {}))
        operators |= {node.op for node in capture(case.f, arguments, spec, keep=frozenset(RULES)).graph.nodes}
    differentiated = operators & RULES.keys()
    assert len(differentiated) >= 80, sorted(differentiated)
