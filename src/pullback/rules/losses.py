"""Losses: operators that compare a prediction with a target; reduction 0 is "none", 1 is "mean", 2 is "sum"."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from ..expressions import Symbol, broadcast, where
from ..index import Indices, Lookup, plain_axes
from ..terms import Application, Factor, Part, Scalar, Term
from .kernels import given, operation, pulled_by, saved
from .kinds import Function, I, Rule, Sample, T, broadcast_axes

Parts = tuple[Part, ...]
Outputs = tuple[Symbol | None, ...]
MEAN = 1
PROBABILITY = (0.1, 0.9)

# ---------------------------------------------------------------- element by element

Slope = tuple[Symbol | None, Scalar, tuple[Symbol, ...]]


def _reduced(reduction: int, *slopes: Slope) -> Mapping[int, Parts]:
    """The Jacobian in each operand of a loss that is reduced over its elements.

    slopes: for each tensor argument the argument (or None), and the derivative of an element as a scale and factors.
    """
    shape = broadcast([v.shape for operand, _, factors in slopes if operand is not None for v in (operand, *factors)])
    i = plain_axes(shape)
    out: Indices = () if reduction else i
    share = 1 / max(prod(shape), 1) if reduction == MEAN else 1
    numbers = given(*(operand for operand, _, _ in slopes))
    return {
        number: (Term(scale * share, tuple(f[i] for f in factors), out, broadcast_axes(i, operand.shape)),)
        for number, (operand, scale, factors) in zip(numbers, slopes, strict=True)
        if number is not None and operand is not None
    }


def _mse_body(x: Symbol, t: Symbol, reduction: int = MEAN) -> Mapping[int, Parts]:
    d = x - t
    return _reduced(reduction, (x, 2, (d,)), (t, -2, (d,)))


def _smooth_l1_body(x: Symbol, t: Symbol, reduction: int = MEAN, beta: float = 1.0) -> Mapping[int, Parts]:
    d = (x - t).sign() if beta == 0 else (x - t).clamp(-beta, beta)
    return _reduced(reduction, (x, 1 / (beta or 1), (d,)), (t, -1 / (beta or 1), (d,)))


def _huber_body(x: Symbol, t: Symbol, reduction: int = MEAN, delta: float = 1.0) -> Mapping[int, Parts]:
    d = (x - t).clamp(-delta, delta)
    return _reduced(reduction, (x, 1, (d,)), (t, -1, (d,)))


def _soft_margin_body(x: Symbol, t: Symbol, reduction: int = MEAN) -> Mapping[int, Parts]:
    """The loss log(1 + exp(−t x))."""
    wrong = (-(x * t)).sigmoid()
    return _reduced(reduction, (x, -1, (t, wrong)), (t, -1, (x, wrong)))


def _binary_cross_entropy_body(
    x: Symbol, t: Symbol, weight: Symbol | None = None, reduction: int = MEAN
) -> Mapping[int, Parts]:
    """The loss −w (t log x + (1 − t) log(1 − x)).

    As in PyTorch, the loss cuts its logarithms off at −100, its slope in x cuts x (1 − x) off at 1e-12, and its slope
    in t cuts nothing off.
    """
    slope = (x - t) / ((1 - x) * x).clamp_min(1e-12)
    yes, no = x.log(), (1 - x).log()
    gain = t * yes.clamp_min(-100) + (1 - t) * no.clamp_min(-100)
    weights = () if weight is None else (weight,)
    return _reduced(reduction, (x, 1, (slope, *weights)), (t, 1, (no - yes, *weights)), (weight, -1, (gain,)))


def _pull_elementwise(name: str) -> Any:
    """PyTorch's kernel for the prediction, called as the loss is called."""

    def pull(x: Symbol, t: Symbol, *how: Any, g: Symbol) -> Application | None:
        defaults = _DEFAULTS[name][len(how) :]
        if x.shape != t.shape:
            return None
        return operation(f"aten.{name}_backward.default", g, x, t, *how, *defaults)

    return pulled_by(pull)


_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "mse_loss": (MEAN,),
    "smooth_l1_loss": (MEAN, 1.0),
    "huber_loss": (MEAN, 1.0),
    "soft_margin_loss": (MEAN,),
    "binary_cross_entropy": (None, MEAN),
}


def _elementwise(name: str, body: Callable[..., Mapping[int, Parts]], source: str, *samples: Sample) -> dict[str, Rule]:
    rule = Function(body=body, pull=_pull_elementwise(name), samples=samples, source=source)
    return {f"aten.{name}.default": rule}


_PAIR = (T(2, 3), T(2, 3))
_CHANCES = (T(2, 3, domain=PROBABILITY), T(2, 3, domain=PROBABILITY))

ELEMENTWISE: dict[str, Rule] = {
    **_elementwise(
        "mse_loss",
        _mse_body,
        "(x − t)²",
        Sample(*_PAIR),
        Sample(*_PAIR, 0),
        Sample(T(2, 1), T(3), 2),
        Sample(T(), T()),
    ),
    **_elementwise(
        "smooth_l1_loss",
        _smooth_l1_body,
        "(x − t)² / 2β near 0, |x − t| − β/2 elsewhere",
        Sample(*_PAIR),
        Sample(*_PAIR, 0, 0.5),
        Sample(*_PAIR, 2, 0.0),
    ),
    **_elementwise(
        "huber_loss",
        _huber_body,
        "β times the smooth absolute error",
        Sample(*_PAIR),
        Sample(*_PAIR, 0, 0.5),
        Sample(*_PAIR, 2, 2.0),
    ),
    **_elementwise(
        "soft_margin_loss",
        _soft_margin_body,
        "log(1 + exp(−t x))",
        Sample(*_PAIR),
        Sample(*_PAIR, 0),
        Sample(*_PAIR, 2),
    ),
    **_elementwise(
        "binary_cross_entropy",
        _binary_cross_entropy_body,
        "−w (t log x + (1 − t) log(1 − x))",
        Sample(*_CHANCES),
        Sample(*_CHANCES, None, 0),
        Sample(*_CHANCES, T(2, 3), 2),
    ),
}

# ---------------------------------------------------------------- one class among many


def _nll_body(
    x: Symbol, target: Symbol, weight: Symbol | None, reduction: int, ignore_index: int, *, ys: Outputs
) -> Mapping[Any, Parts]:
    """y[n] = −w[t] x[n,t] with t = target[n]; the mean divides by the total weight, which is the second result."""
    valid = target.ne(ignore_index)
    n = plain_axes(target.shape)
    choice = Lookup(where(valid, target, 0).value, n)
    entry: Indices = (choice,) if x.rank == 1 else (n[0], choice, *n[1:])
    out = n if reduction == 0 and x.rank > 1 else ()
    share = (saved(ys, 1).reciprocal()[()],) if reduction == MEAN else ()
    counts = (valid[n], *share)
    weights = () if weight is None else (Factor(weight.value, (choice,)),)
    table: dict[Any, Parts] = {(0, 0): (Term(-1, (*weights, *counts), out, entry),)}
    if weight is not None:
        through_total = (Term(-1, (saved(ys, 0)[()], *counts), out, (choice,)),) if reduction == MEAN else ()
        table[0, 2] = (Term(-1, (Factor(x.value, entry), *counts), out, (choice,)), *through_total)
        table[1, 2] = (Term(1, (valid[n],), (), (choice,)),) if reduction else ()
    return table


def _negative_log_likelihood(name: str, *samples: Sample) -> dict[str, Rule]:
    def pull(
        x: Symbol, target: Symbol, weight: Any, reduction: int, ignored: int, *, g: Symbol, ys: Outputs
    ) -> Application:
        return operation(f"aten.{name}_backward.default", g, x, target, weight, reduction, ignored, saved(ys, 1))

    rule = Function(
        body=_nll_body,
        pull=pulled_by(pull),
        differentiable=(0, 1),
        samples=samples,
        source="−w[t] x[n,t], averaged by weight; entries whose target is ignore_index do not count",
    )
    return {f"aten.{name}_forward.default": rule}


_WEIGHTS = T(3, domain=(0.2, 3.0))

CLASSES: dict[str, Rule] = {
    **_negative_log_likelihood(
        "nll_loss",
        Sample(T(4, 3), I(4, bound=3), None, 1, -100),
        Sample(T(4, 3), I(4, bound=3), _WEIGHTS, 1, 1),
        Sample(T(4, 3), I(4, bound=3), _WEIGHTS, 0, 1),
        Sample(T(4, 3), I(4, bound=3), _WEIGHTS, 2, -100),
        Sample(T(3), I(bound=3), _WEIGHTS, 1, -100),
        Sample(T(3), I(bound=3), None, 0, -100),
    ),
    **_negative_log_likelihood(
        "nll_loss2d",
        Sample(T(2, 3, 2, 2), I(2, 2, 2, bound=3), None, 1, -100),
        Sample(T(2, 3, 2, 1), I(2, 2, 1, bound=3), _WEIGHTS, 0, 1),
        Sample(T(2, 3, 1, 2), I(2, 1, 2, bound=3), _WEIGHTS, 1, 1),
        Sample(T(2, 3, 1, 2), I(2, 1, 2, bound=3), _WEIGHTS, 2, -100),
    ),
}

RULES: dict[str, Rule] = {**ELEMENTWISE, **CLASSES}

__all__ = ["RULES"]
