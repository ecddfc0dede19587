"""Random scripts, traced and recorded: values and derivatives of first and second order against autograd.

`PULLBACK_EXAMPLES` sets how many are drawn (150 of either kind if unset, beside those of test_random_programs.py);
`./test -m long` draws 20,000.
"""

import os
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from torch import Tensor

import pullback
from random_scripts import Script, scripts
from support import reference

EXAMPLES = int(os.environ.get("PULLBACK_EXAMPLES", "150"))
LONG = 10_000
QUIET = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
Tensors = tuple[Tensor, ...]


def inner(a: Any, b: Any) -> Tensor:
    return reduce(torch.add, ((s * t).sum() for s, t in zip(a, b, strict=True)))


def loss(script: Script, u: Tensors) -> Callable[..., Tensor]:
    """A scalar whose Hessian mixes all results."""

    def run(*x: Tensor) -> Tensor:
        y = script(*x)
        return inner(y, u) + 0.5 * inner(y, y)

    return run


def expected(script: Script, x: Tensors, v: Tensors, u: Tensors) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    """What autograd says; a script that it refuses, since it overwrites what a derivative needs, is not tried."""
    try:
        return by_autograd(script, x, v, u)
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            reject()
        raise


@reference()
def by_autograd(script: Script, x: Tensors, v: Tensors, u: Tensors) -> tuple[Tensors, Tensors, Tensors, Tensors]:
    """The results y; uᵀJ; the gradient of ⟨u, y⟩ + ½‖y‖², and its Hessian times v."""
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    own = [t.clone().requires_grad_() for t in x]
    y = script(*own)
    pulled = _gradient(inner(y, u), own, options, retain_graph=True)
    gradient = _gradient(loss(script, u)(*own), own, options, create_graph=True)
    along_v = inner(gradient, v)
    product = _gradient(along_v, own, options)
    return tuple(tuple(t.detach() for t in group) for group in (y, pulled, gradient, product))  # type: ignore[return-value]


def _gradient(value: Tensor, own: list[Tensor], options: dict[str, Any], **more: Any) -> Tensors:
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, own))
    return torch.autograd.grad(value, own, **options, **more)


def close(script: Script, what: str, ours: Any, theirs: Any) -> None:
    rtol, atol = (1e-8, 1e-9) if script.is_exact else (1e-4, 1e-5)  # float32 rounds, in another order perhaps
    for a, b in zip(ours, theirs, strict=True):
        size = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * size, msg=lambda m: f"{what}: {m}\n{script!r}")


def traced(script: Script) -> None:
    x, v, u = script.point()
    y, pulled, gradient, product = expected(script, x, v, u)
    ours, pull_back = pullback.vjp(script.function, *x)
    close(script, "y", ours, y)
    close(script, "uᵀJ", pull_back(u), pulled)
    if y:
        pushed = pullback.jvp(script.function, x, v)[1]
        close(script, "⟨u, J v⟩", [inner(pushed, u)], [inner(pulled, v)])
    own_gradient, own_product = pullback.hvp(loss(script, u), x, v)
    several = len(x) > 1
    close(script, "gradient", own_gradient if several else (own_gradient,), gradient)
    close(script, "H v", own_product if several else (own_product,), product)


def recorded(script: Script) -> None:
    x, v, u = script.point()
    y, pulled, gradient, product = expected(script, x, v, u)
    for _ in range(3):  # interpreted twice, then compiled
        own = [t.clone().requires_grad_() for t in x]
        with pullback.record() as tape:
            results = script(*own)
            along = inner(results, u)
            is_constant = not along.requires_grad
        close(script, "y", [t.detach() for t in results], y)
        if is_constant:
            return close(script, "uᵀJ", map(torch.zeros_like, x), pulled)
        close(script, "uᵀJ", _filled(tape.grad(along, own, allow_unused=True), x), pulled)
    return twice(script, x, v, u, gradient, product)


def twice(script: Script, x: Tensors, v: Tensors, u: Tensors, gradient: Tensors, product: Tensors) -> None:
    """A record of a record's derivative."""
    own = [t.clone().requires_grad_() for t in x]
    with pullback.record() as outer:
        with pullback.record() as first:
            value = loss(script, u)(*own)
        found = _filled(first.grad(value, own, allow_unused=True), x)
        along_v = inner(found, v)
        is_constant = not along_v.requires_grad
    close(script, "gradient", [t.detach() for t in found], gradient)
    ours = tuple(map(torch.zeros_like, x)) if is_constant else outer.grad(along_v, own, allow_unused=True)
    close(script, "H v", _filled(ours, x), product)


def _filled(gradients: Any, x: Tensors) -> list[Tensor]:
    return [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, x, strict=True)]


@settings(max_examples=EXAMPLES, **QUIET)
@given(scripts(longest=30))
def test_traced_scripts(script: Script) -> None:
    traced(script)


@settings(max_examples=EXAMPLES, **QUIET)
@given(scripts(control=True, longest=30))
def test_recorded_scripts(script: Script) -> None:
    recorded(script)


@pytest.mark.long
@settings(max_examples=LONG, **QUIET)
@given(scripts())
def test_many_traced_scripts(script: Script) -> None:
    traced(script)


@pytest.mark.long
@settings(max_examples=LONG, **QUIET)
@given(scripts(control=True))
def test_many_recorded_scripts(script: Script) -> None:
    recorded(script)


def test_a_script_that_fails_prints_itself() -> None:
    script = Script(((2,),), ("v1 = v0.sin()", "v1.mul_(2)"), ("v1",), True)
    assert "def program(v0):\n    v1 = v0.sin()\n    v1.mul_(2)\n    return (v1,)" in repr(script)
    exec(repr(script), {})
