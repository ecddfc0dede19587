"""Fused attention: y = P v with P = softmax(scale · q kᵀ + m), of which the kernel saves the output and L = log Σ exp.

With P = exp(scale · q kᵀ + m − L), which is computed again where it is needed,

    ∂y[i,e]/∂v[j,e] = P[i,j]
    ∂y[i,e]/∂s[i,j] = P[i,j] (v[j,e] − y[i,e])         s = scale · q kᵀ + m,  ∂s[i,j]/∂q[i,d] = scale · k[j,d],  …
    ∂L[i]/∂s[i,j]   = P[i,j]

L has Jacobians of its own, so that differentiating these formulas again is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from ..errors import RuleError
from ..expressions import Symbol
from ..index import Axis, fresh, of_label
from ..terms import Application, Factor, Part, Term
from .formulas import tensor
from .kernels import operation, pulled_by, saved
from .kinds import Function, Rule, Sample, T

Parts = tuple[Part, ...]
Outputs = tuple[Symbol | None, ...]


@dataclass(frozen=True)
class _Axes:
    """Labels: b, h of batch and head; i and j of query and key positions; d and e of query and value features."""

    b: Axis
    h: Axis
    i: Axis
    j: Axis
    d: Axis
    e: Axis

    def positions(self, letters: str) -> tuple[Axis, ...]:
        """Indices in the order of their letters: `positions("bhid")` is a position in q."""
        return tuple(getattr(self, letter) for letter in letters)


def _attention_body(
    q: Symbol,
    k: Symbol,
    v: Symbol,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Symbol | None = None,
    scale: float | None = None,
    ys: Outputs,
) -> Mapping[Any, Parts]:
    _refuse(q, k, dropout)
    y, scale = saved(ys, 0), 1 / sqrt(q.shape[-1]) if scale is None else scale
    axes = _Axes(*(of_label(fresh(n)) for n in (*q.shape[:3], k.shape[2], q.shape[3], v.shape[3])))
    at = axes.positions
    p = _probabilities(axes, q, k, saved(ys, 1), causal, attn_mask, scale)[at("bhij")]
    table: dict[Any, Parts] = {(0, 2): (Term(1, (p,), at("bhie"), at("bhje")),)}
    table |= _through_scores(axes, 0, "bhid", scale, (p, k[at("bhjd")]), v, y)
    table |= _through_scores(axes, 1, "bhjd", scale, (p, q[at("bhid")]), v, y)
    if attn_mask is not None:
        table |= _through_scores(axes, 3, "bhij", 1, (p,), v, y, attn_mask)
    return table


def _through_scores(
    axes: _Axes,
    operand: int,
    letters: str,
    scale: float,
    slope: tuple[Factor, ...],
    v: Symbol,
    y: Symbol,
    mask: Symbol | None = None,
) -> dict[Any, Parts]:
    """The Jacobians of y and L in an operand of the scores s, where `slope` is P · ∂s/∂operand."""
    at = axes.positions
    inp = at(letters) if mask is None else mask[at(letters)].axes
    return {
        (0, operand): (
            Term(scale, (*slope, v[at("bhje")]), at("bhie"), inp),
            Term(-scale, (*slope, y[at("bhie")]), at("bhie"), inp),
        ),
        (1, operand): (Term(scale, slope, at("bhi"), inp),),
    }


def _probabilities(
    axes: _Axes, q: Symbol, k: Symbol, logsumexp: Symbol, causal: bool, mask: Symbol | None, scale: float
) -> Symbol:
    """P, computed again from what the kernel saved."""
    factors = (q[axes.positions("bhid")], k[axes.positions("bhjd")])
    payload = q.builder.contract(scale, factors, axes.positions("bhij"), logsumexp.dtype)
    scores = Symbol(payload, q.builder)
    shape = (*logsumexp.shape, 1)
    level = tensor("unsqueeze.default", logsumexp, 3, shape=shape, dtype=logsumexp.dtype)
    p = ((scores if mask is None else scores + mask) - level).exp()
    return tensor("tril.default", p, shape=p.shape, dtype=p.dtype) if causal else p


def _pull_attention(
    q: Symbol,
    k: Symbol,
    v: Symbol,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Symbol | None = None,
    scale: float | None = None,
    g: Symbol,
    ys: Outputs,
) -> Application:
    _refuse(q, k, dropout)
    saves = saved(ys, 0), saved(ys, 1)
    op = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
    return operation(op, g, q, k, v, *saves, dropout, causal, attn_mask=attn_mask, scale=scale)


def _refuse(q: Symbol, k: Symbol, dropout: float) -> None:
    if dropout or q.shape[:2] != k.shape[:2]:
        raise RuleError(
            f"fused attention with dropout_p={dropout}, query {q.value.type} and key {k.value.type} has no rule: "
            "dropout must be 0, and both must have the same batch and heads; otherwise call it under "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        )


_QKV = (T(1, 2, 3, 2), T(1, 2, 4, 2), T(1, 2, 4, 2))

RULES: dict[str, Rule] = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": Function(
        body=_attention_body,
        pull=pulled_by(_pull_attention, slots=(0, 1, 2)),
        differentiable=(0, 1),
        samples=(
            Sample(*_QKV),
            Sample(*_QKV, 0.0, True, scale=0.3),
            Sample(*_QKV, attn_mask=T(3, 4)),
            Sample(*_QKV, attn_mask=T(1, 1, 3, 4), scale=0.5),
        ),
        source="the formulas at the head of this file",
    ),
}

__all__ = ["RULES"]
