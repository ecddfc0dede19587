"""A random script, traced or recorded, against `torch.autograd`: values, uᵀJ, J v, the gradient and H v of a loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

import pullback
from random_scripts import Script
from support import reference

Tensors = tuple[Tensor, ...]
OPTIONS: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
REFUSED_BY_AUTOGRAD = (
    "modified by an inplace operation",  # it overwrites what a derivative needs
    "is a view and is being modified inplace",  # of a function that returns several views
    "is not implemented",  # second derivatives of a distance
)
# Relative, and relative to the largest entry.
TOLERANCES = {"double": (1e-8, 1e-9), "single": (1e-4, 1e-5), "rough": (1e-2, 1e-2)}
STEEPEST = 1e7  # derivatives beyond are as much rounding as anything


class Untried(Exception):
    """PyTorch refuses this script, or its numbers are none."""


@dataclass(frozen=True)
class Expected:
    """The results y; uᵀJ; J v; the gradient of ⟨u, y⟩ + ½‖y‖², and its Hessian times v."""

    y: Tensors
    pulled: Tensors
    pushed: Tensors
    gradient: Tensors
    product: Tensors


def inner(a: Any, b: Any) -> Tensor:
    return reduce(torch.add, ((s * t).sum() for s, t in zip(a, b, strict=True)))


def of_loss(y: Tensors, u: Tensors) -> Tensor:
    """A scalar whose Hessian mixes all results."""
    return inner(y, u) + 0.5 * inner(y, y)


def loss(script: Script, u: Tensors) -> Callable[..., Tensor]:
    return lambda *x: of_loss(script(*x), u)


def point(script: Script) -> tuple[Tensors, Tensors, Tensors]:
    try:
        return script.point()
    except (RuntimeError, IndexError, ValueError) as error:  # it ran where it was made
        raise Untried from error


@reference()
def expected(script: Script, x: Tensors, v: Tensors, u: Tensors) -> Expected:
    """What autograd says."""
    try:
        found = by_autograd(script, x, v, u)
    except RuntimeError as error:
        if any(text in str(error) for text in REFUSED_BY_AUTOGRAD):
            raise Untried from error
        raise
    for tensors in (found.y, found.pulled, found.pushed, found.gradient, found.product):
        if not all(bool((t.abs() < STEEPEST).all()) for t in tensors):
            raise Untried
    return found


def by_autograd(script: Script, x: Tensors, v: Tensors, u: Tensors) -> Expected:
    own = [t.clone().requires_grad_() for t in x]
    y = script(*own)
    dual = tuple(t.clone().requires_grad_() for t in u)  # J v is the derivative of ⟨uᵀJ, v⟩ in u
    pulled = _gradient(inner(y, dual), own, create_graph=True)
    pushed = _gradient(inner(pulled, v), dual, retain_graph=True)
    gradient = _gradient(of_loss(y, u), own, create_graph=True)
    product = _gradient(inner(gradient, v), own)
    groups = (y, pulled, pushed, gradient, product)
    return Expected(*(tuple(t.detach() for t in group) for group in groups))


def _gradient(value: Tensor, own: Any, **more: Any) -> Tensors:
    depends = value.requires_grad and value.grad_fn is not None
    return torch.autograd.grad(value, own, **OPTIONS, **more) if depends else tuple(map(torch.zeros_like, own))


def close(script: Script, what: str, ours: Any, theirs: Any) -> None:
    rtol, atol = TOLERANCES[script.precision]
    for a, b in zip(ours, theirs, strict=True):
        size = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * size, msg=lambda m: f"{what}: {m}\n{script!r}")


def traced(script: Script) -> None:
    x, v, u = point(script)
    theirs = expected(script, x, v, u)
    ours, pull_back = pullback.vjp(script.function, *x)
    close(script, "y", ours, theirs.y)
    close(script, "uᵀJ", pull_back(u), theirs.pulled)
    close(script, "J v", pullback.jvp(script.function, x, v)[1], theirs.pushed)
    gradient, product = pullback.hvp(loss(script, u), x, v)
    several = len(x) > 1
    close(script, "gradient", gradient if several else (gradient,), theirs.gradient)
    close(script, "H v", product if several else (product,), theirs.product)


def recorded(script: Script) -> None:
    x, v, u = point(script)
    theirs = expected(script, x, v, u)
    for _ in range(3):  # interpreted twice, then compiled
        own = [t.clone().requires_grad_() for t in x]
        with pullback.record() as tape:
            results = script(*own)
            along = inner(results, u)
            depends = along.requires_grad
        close(script, "y", [t.detach() for t in results], theirs.y)
        close(script, "uᵀJ", _derivative(tape, along, own, depends), theirs.pulled)
    twice(script, x, v, u, theirs)


def twice(script: Script, x: Tensors, v: Tensors, u: Tensors, theirs: Expected) -> None:
    """Records of a record's derivatives, in u and in x."""
    own, dual = ([t.clone().requires_grad_() for t in tensors] for tensors in (x, u))
    with pullback.record() as outer:
        with pullback.record() as first:
            y = script(*own)
            along, value = inner(y, dual), of_loss(y, u)
            known = along.requires_grad, value.requires_grad
        pulled, gradient = _derivative(first, along, own, known[0]), _derivative(first, value, own, known[1])
        of_u, of_x = inner(pulled, v), inner(gradient, v)
        known = of_u.requires_grad, of_x.requires_grad
    close(script, "J v", _derivative(outer, of_u, dual, known[0]), theirs.pushed)
    close(script, "gradient", [t.detach() for t in gradient], theirs.gradient)
    close(script, "H v", _derivative(outer, of_x, own, known[1]), theirs.product)


def _derivative(tape: Any, value: Tensor, own: list[Tensor], depends: bool) -> list[Tensor]:
    if not depends:
        return list(map(torch.zeros_like, own))
    found = tape.grad(value, own, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, own, strict=True)]


def checked(check: Callable[[Script], None]) -> Callable[[Script], None]:
    """A check that holds closely; or else, where single precision rounds what cancels, in double precision instead."""

    def either(script: Script) -> None:
        try:
            check(script)
        except AssertionError as error:
            if script.is_exact:
                raise
            check(replace(script, is_rough=True))
            try:
                check(script.in_double)
            except Untried:
                raise error from None

    return either


CHECKS: dict[str, Callable[[Script], None]] = {"traced": checked(traced), "recorded": checked(recorded)}
