"""Operators that divide by a statistic of their input: softmax and normalisations.

The statistics that a kernel saves (a mean, a reciprocal standard deviation) are results of the operator like any other:
the Jacobians below read them, *and* they have Jacobians of their own.  So the second derivative, which differentiates
these formulas, is exact; it never goes through a fused backward kernel, which takes the statistics for constants.

Notation: x̂ = (x − mean) · rstd;  K is the number of entries that a statistic is taken over;  i and j are positions that
share a statistic, so that  ∂y[i]/∂x[j] = w[i] rstd (δ[i,j] − 1/K − x̂[i] x̂[j] / K),  ∂rstd/∂x[j] = −rstd² x̂[j] / K.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..expressions import Symbol
from ..graph import DType
from ..index import Axis, Indices, plain, plain_axes
from ..terms import Application, Factor, Part, Term
from .formulas import view
from .kernels import given, operation, pulled_by, saved
from .kinds import POSITIVE, Function, Rule, Sample, T, replaced

Parts = tuple[Part, ...]
Outputs = tuple[Symbol | None, ...]

# ---------------------------------------------------------------- softmax


def _softmax_body(x: Symbol, dim: int, half_to_float: bool, *, y: Symbol) -> Mapping[int, Parts]:
    if not y.shape:  # a softmax over nothing is 1
        return {}
    i = plain_axes(y.shape)
    j = replaced(i, dim, plain(y.shape[dim]))
    return {0: (Term(1, (y[i],), i, i), Term(-1, (y[i], y[j]), i, j))}


def _log_softmax_body(x: Symbol, dim: int, half_to_float: bool, *, y: Symbol) -> Mapping[int, Parts]:
    if not y.shape:
        return {}
    i = plain_axes(y.shape)
    j = replaced(i, dim, plain(y.shape[dim]))
    return {0: (Term(1, (), i, i), Term(-1, (y.exp()[j],), i, j))}


def _pull_softmax(name: str) -> Any:
    def pull(x: Symbol, dim: int, half_to_float: bool, *, y: Symbol, g: Symbol) -> Application:
        return operation(f"aten.{name}_backward_data.default", g, y, dim, DType(x.dtype))

    return pulled_by(pull)


_SOFTMAX_SAMPLES = (
    Sample(T(2, 3), 1, False),
    Sample(T(2, 3, 2), -2, False),
    Sample(T(2, 1), 1, False),
    Sample(T(), 0, False),
)

SOFTMAX: dict[str, Rule] = {
    "aten._softmax.default": Function(
        body=_softmax_body,
        pull=_pull_softmax("_softmax"),
        samples=_SOFTMAX_SAMPLES,
        source="∂y[i]/∂x[j] = y[i] (δ[i,j] − y[j])",
    ),
    "aten._safe_softmax.default": Function(  # a row of −∞ gives zeros, of which the derivative is zero, too
        body=lambda x, dim, dtype=None, *, y: _softmax_body(x, dim, False, y=y),
        pull=pulled_by(
            lambda x, dim, dtype=None, *, y, g: operation(
                "aten._softmax_backward_data.default", g, y, dim, DType(x.dtype)
            )
        ),
        samples=(Sample(T(2, 3), 1), Sample(T(2, 3, 2), -2), Sample(T(2, 1), 1)),
        source="as _softmax",
    ),
    "aten._log_softmax.default": Function(
        body=_log_softmax_body,
        pull=_pull_softmax("_log_softmax"),
        samples=_SOFTMAX_SAMPLES,
        source="∂y[i]/∂x[j] = δ[i,j] − exp y[j]",
    ),
}

# ---------------------------------------------------------------- normalisations


@dataclass(frozen=True)
class _Normalised:
    """The labels and entries of which the Jacobians of a normalisation consist.

    i, j: two positions in x that share a statistic; statistic: the position of that statistic.
    weight: the entry of the weight at i, or nothing; rstd: the entry of the reciprocal standard deviation.
    standard: x̂ at i, and at j.
    count: K.
    """

    i: Indices
    j: Indices
    statistic: Indices
    weight: tuple[Factor, ...]
    rstd: Factor
    standard: tuple[Factor, Factor]
    count: int

    def of_result(self) -> Parts:
        """∂y/∂x."""
        at_i, at_j = self.standard
        scaled = (*self.weight, self.rstd)
        return (
            Term(1, scaled, self.i, self.i),
            Term(-1 / self.count, scaled, self.i, self.j),
            Term(-1 / self.count, (*scaled, at_i, at_j), self.i, self.j),
        )

    def jacobians(self, weight: int | None, bias: int | None, parameter: Indices) -> dict[Any, Parts]:
        """All of them; `weight` and `bias` are operand numbers, and `parameter` is the position in both at i."""
        at_i = self.standard[0]
        table: dict[Any, Parts] = {
            (0, 0): self.of_result(),
            (1, 0): (Term(1 / self.count, (), self.statistic, self.i),),
            (2, 0): (Term(-1 / self.count, (self.rstd, self.rstd, at_i), self.statistic, self.i),),
        }
        if weight is not None:
            table[0, weight] = (Term(1, (at_i,), self.i, parameter),)
        if bias is not None:
            table[0, bias] = (Term(1, (), self.i, parameter),)
        return table


def _layer_norm_body(
    x: Symbol, normalised: tuple[int, ...], weight: Symbol | None, bias: Symbol | None, eps: float, *, ys: Outputs
) -> Mapping[Any, Parts]:
    mean, rstd = saved(ys, 1), saved(ys, 2)
    rank = len(normalised)
    i = plain_axes(x.shape)
    lead = i[: len(i) - rank]
    j = lead + plain_axes(normalised)
    standard = (x - mean) * rstd
    entries = _Normalised(
        i=i,
        j=j,
        statistic=(*lead, *[Axis(0)] * rank),
        weight=() if weight is None else (weight[i],),
        rstd=rstd[i],
        standard=(standard[i], standard[j]),
        count=max(prod(normalised), 1),
    )
    _, w, b = given(x, weight, bias)
    return entries.jacobians(w, b, i[len(lead) :])


def _pull_layer_norm(
    x: Symbol,
    normalised: tuple[int, ...],
    weight: Symbol | None,
    bias: Symbol | None,
    eps: float,
    *,
    g: Symbol,
    ys: Outputs,
    mask: tuple[bool, ...],
) -> Application:
    saves = saved(ys, 1), saved(ys, 2)
    return operation("aten.native_layer_norm_backward.default", g, x, normalised, *saves, weight, bias, mask)


def _group_norm_body(
    x: Symbol,
    weight: Symbol | None,
    bias: Symbol | None,
    batch: int,
    channels: int,
    plane: int,
    groups: int,
    eps: float,
    *,
    ys: Outputs,
) -> Mapping[Any, Parts]:
    mean, rstd = saved(ys, 1), saved(ys, 2)
    inner = channels // groups
    split = (batch, groups, inner, *x.shape[2:])
    statistic = (batch, groups, *[1] * (len(split) - 2))
    standard = (view(x, split) - view(mean, statistic)) * view(rstd, statistic)
    a = plain_axes(split)
    b = a[:2] + plain_axes(split[2:])
    i, j = _joined(a, inner), _joined(b, inner)
    entries = _Normalised(
        i=i,
        j=j,
        statistic=a[:2],
        weight=() if weight is None else (weight[i[1]],),
        rstd=rstd[a[:2]],
        standard=(standard[a], standard[b]),
        count=max(inner * plane, 1),
    )
    _, w, shift = given(x, weight, bias)
    return entries.jacobians(w, shift, i[1:2])


def _joined(split: Indices, inner: int) -> Indices:
    """Group and channel within the group, as one channel axis."""
    batch, group, channel, *plane = split
    assert isinstance(group, Axis)
    assert isinstance(channel, Axis)
    parts = tuple((label, stride * inner) for label, stride in group.parts) + channel.parts
    return (batch, Axis(0, parts), *plane)


def _pull_group_norm(
    x: Symbol,
    weight: Symbol | None,
    bias: Symbol | None,
    *sizes: Any,
    g: Symbol,
    ys: Outputs,
    mask: tuple[bool, ...],
) -> Application | None:
    if weight is None and mask[2]:  # the kernel does not serve a bias without a weight
        return None
    saves = saved(ys, 1), saved(ys, 2)
    return operation("aten.native_group_norm_backward.default", g, x, *saves, weight, *sizes[:-1], mask)


# ---------------------------------------------------------------- batch normalisation


def _channelwise(statistic: Symbol, x: Symbol) -> Symbol:
    """A statistic of each channel, in a shape that broadcasts against x."""
    return view(statistic, statistic.shape + (1,) * (x.rank - 2))


def _trained_batch_norm(x: Symbol, weight: Symbol | None, bias: Symbol | None, ys: Outputs) -> Mapping[Any, Parts]:
    mean, rstd = saved(ys, 1), saved(ys, 2)
    standard = (x - _channelwise(mean, x)) * _channelwise(rstd, x)
    i = plain_axes(x.shape)
    j = replaced(plain_axes(x.shape), 1, i[1])
    channel = i[1:2]
    entries = _Normalised(
        i=i,
        j=j,
        statistic=channel,
        weight=() if weight is None else (weight[channel],),
        rstd=rstd[channel],
        standard=(standard[i], standard[j]),
        count=max(x.size // max(x.shape[1], 1), 1),
    )
    _, w, b = given(x, weight, bias)
    return entries.jacobians(w, b, channel)


def _evaluated_batch_norm(
    x: Symbol, weight: Symbol | None, bias: Symbol | None, mean: Symbol, variance: Symbol, eps: float
) -> Mapping[Any, Parts]:
    """With statistics that are inputs:  w (x − mean) / √(variance + eps) + b."""
    rstd = (variance + eps).rsqrt()
    standard = (x - _channelwise(mean, x)) * _channelwise(rstd, x)
    i = plain_axes(x.shape)
    channel = i[1:2]
    scaled = (*(() if weight is None else (weight[channel],)), rstd[channel])
    _, w, b, m, v = given(x, weight, bias, mean, variance)
    table: dict[Any, Parts] = {
        0: (Term(1, scaled, i, i),),
        m: (Term(-1, scaled, i, channel),),
        v: (Term(-0.5, (*scaled, rstd[channel], standard[i]), i, channel),),
    }
    if w is not None:
        table[w] = (Term(1, (standard[i],), i, channel),)
    if b is not None:
        table[b] = (Term(1, (), i, channel),)
    return table


def _batch_norm_body(
    x: Symbol,
    weight: Symbol | None,
    bias: Symbol | None,
    mean: Symbol,
    variance: Symbol,
    training: bool,
    momentum: float,
    eps: float,
    *,
    ys: Outputs,
) -> Mapping[Any, Parts]:
    if training:
        return _trained_batch_norm(x, weight, bias, ys)
    return _evaluated_batch_norm(x, weight, bias, mean, variance, eps)


def _pull_batch_norm(
    x: Symbol,
    weight: Symbol | None,
    bias: Symbol | None,
    mean: Symbol | None,
    variance: Symbol | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    g: Symbol,
    ys: Outputs,
    mask: tuple[bool, ...],
) -> Application:
    saves = (saved(ys, 1), saved(ys, 2)) if training else (None, None)
    op = "aten.native_batch_norm_backward.default"
    return operation(op, g, x, weight, mean, variance, *saves, training, eps, mask)


def _pull_evaluated(
    x: Symbol,
    weight: Symbol | None,
    bias: Symbol | None,
    mean: Symbol,
    variance: Symbol,
    momentum: float,
    eps: float,
    *,
    g: Symbol,
    mask: tuple[bool, ...],
) -> Application:
    return _pull_batch_norm(x, weight, bias, mean, variance, False, momentum, eps, g=g, ys=(), mask=mask)


def _pull_without_buffers(
    x: Symbol,
    weight: Symbol | None,
    bias: Symbol | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    g: Symbol,
    ys: Outputs,
    mask: tuple[bool, ...],
) -> Application:
    return _pull_batch_norm(x, weight, bias, None, None, training, momentum, eps, g=g, ys=ys, mask=mask)


_BUFFERS = (T(3), T(3, domain=POSITIVE))

NORMS: dict[str, Rule] = {
    "aten.native_layer_norm.default": Function(
        body=_layer_norm_body,
        pull=pulled_by(_pull_layer_norm, slots=(0, 2, 3)),
        differentiable=(0, 1, 2),
        samples=(
            Sample(T(2, 3), (3,), T(3), T(3), 1e-5),
            Sample(T(2, 3, 2), (3, 2), T(3, 2), None, 1e-2),
            Sample(T(2, 1, 4), (4,), None, T(4), 1e-5),
            Sample(T(4), (4,), None, None, 1e-5),
        ),
        source="the formula at the head of this file",
    ),
    "aten.native_group_norm.default": Function(
        body=_group_norm_body,
        pull=pulled_by(_pull_group_norm, slots=(0, 1, 2)),
        differentiable=(0, 1, 2),
        samples=(
            Sample(T(2, 4, 3), T(4), T(4), 2, 4, 3, 2, 1e-5),
            Sample(T(1, 4, 2, 2), None, T(4), 1, 4, 4, 1, 1e-2),
            Sample(T(2, 2, 3), T(2), None, 2, 2, 3, 2, 1e-5),
            Sample(T(2, 4), None, None, 2, 4, 1, 2, 1e-2),
        ),
        source="the formula at the head of this file",
    ),
    # The buffers that a training step updates are constants for the derivative, as in PyTorch.
    "aten._native_batch_norm_legit_functional.default": Function(
        body=_batch_norm_body,
        pull=pulled_by(_pull_batch_norm, slots=(0, 1, 2)),
        differentiable=(0, 1, 2),
        samples=(
            Sample(T(4, 3), T(3), T(3), *_BUFFERS, True, 0.1, 1e-5),
            Sample(T(2, 3, 2, 2), None, T(3), *_BUFFERS, True, 0.1, 1e-2),
            Sample(T(2, 3, 2), T(3), None, *_BUFFERS, False, 0.1, 1e-5),
        ),
        source="the formula at the head of this file",
    ),
    "aten._batch_norm_with_update_functional.default": Function(
        body=lambda x, w, b, mean, variance, momentum, eps, *, ys: _trained_batch_norm(x, w, b, ys),
        differentiable=(0, 1, 2),
        samples=(Sample(T(4, 3), T(3), T(3), *_BUFFERS, 0.1, 1e-5),),
        source="the formula at the head of this file",
    ),
    "aten._native_batch_norm_legit.no_stats": Function(
        body=lambda x, w, b, training, momentum, eps, *, ys: _trained_batch_norm(x, w, b, ys),
        pull=pulled_by(_pull_without_buffers, slots=(0, 1, 2)),
        differentiable=(0, 1, 2),
        samples=(Sample(T(2, 3, 2), T(3), T(3), True, 0.1, 1e-5), Sample(T(2, 1, 3), None, None, True, 0.1, 1e-5)),
        source="the formula at the head of this file",
    ),
    "aten._native_batch_norm_legit_no_training.default": Function(
        body=lambda x, w, b, mean, variance, momentum, eps: _evaluated_batch_norm(x, w, b, mean, variance, eps),
        pull=pulled_by(_pull_evaluated, slots=(0, 1, 2)),
        samples=(
            Sample(T(2, 3, 2), T(3), T(3), *_BUFFERS, 0.1, 1e-5),
            Sample(T(4, 3), None, None, *_BUFFERS, 0.1, 1e-2),
        ),
        source="affine in x, the weight and the bias",
    ),
}

RULES: dict[str, Rule] = {**SOFTMAX, **NORMS}

__all__ = ["RULES"]
