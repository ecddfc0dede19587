"""Matrix functions: what a derivative of the exponential is, products of reflections, factorisations that fail.

Operators of our own are composite: a trace sees what they are made of, so that they can be differentiated again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

REPORTING = frozenset(
    f"aten.{op}.default"
    for op in ("_linalg_solve_ex", "linalg_inv_ex", "linalg_cholesky_ex", "linalg_lu_factor_ex", "linalg_ldl_factor_ex")
)
LIBRARY = torch.library.Library("pullback", "FRAGMENT")
LIBRARY.define("matrix_exp_along(Tensor matrix, Tensor direction) -> Tensor")


def matrix_exp_along(matrix: Tensor, direction: Tensor) -> Tensor:
    """The derivative of exp A along a direction E: exp [[A, E], [0, A]] holds it beside exp A.

    Cost: an exponential of twice the size.
    Source: Higham, Functions of Matrices (2008), theorem 3.6.
    """
    size = matrix.shape[-1]
    shape = torch.broadcast_shapes(matrix.shape, direction.shape)
    matrix, direction = matrix.expand(shape), direction.expand(shape)
    above = torch.cat([matrix, direction], -1)
    below = torch.cat([torch.zeros_like(matrix), matrix], -1)
    return torch.linalg.matrix_exp(torch.cat([above, below], -2))[..., :size, size:].clone()


LIBRARY.impl("matrix_exp_along", matrix_exp_along, "CompositeImplicitAutograd")


def householder_product(A: Tensor, tau: Tensor) -> Tensor:
    """As `torch.linalg.householder_product`: the leading columns of H₁ … Hₖ."""
    v, t = _reflections(A, tau)
    rows, columns = A.shape[-2:]
    return torch.eye(rows, columns, dtype=A.dtype, device=A.device) - v @ (t @ v[..., :columns, :].mH)


def ormqr(input: Tensor, tau: Tensor, other: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    """As `torch.ormqr`: Q C, Qᴴ C, C Q or C Qᴴ, where Q is the product of all reflections."""
    v, t = _reflections(input, tau)
    t = t.mH if transpose else t
    return other - v @ (t @ (v.mH @ other)) if left else other - ((other @ v) @ t) @ v.mH


def _reflections(a: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """V and T of H₁ … Hₖ = 1 − V T Vᴴ, where Hᵢ = 1 − τᵢ vᵢ vᵢᴴ and vᵢ has its leading one on the diagonal.

    Source: Schreiber and Van Loan (1989); T = (1 + D S)⁻¹ D with D = diag τ and S = striu(Vᴴ V), so that τ may be zero.
    """
    count = tau.shape[-1]
    v = a[..., :count].tril(-1) + torch.eye(a.shape[-2], count, dtype=a.dtype, device=a.device)
    inner = torch.eye(count, dtype=a.dtype, device=a.device) + tau.unsqueeze(-1) * (v.mH @ v).triu(1)
    return v, torch.linalg.solve_triangular(inner, torch.diag_embed(tau), upper=True, unitriangular=True)


def raise_errors(steps: Sequence[Any], info: Tensor) -> bool:
    """Let the factorisation whose report a call looks at raise an error itself if it fails; whether there is one.

    steps: the calls so far, of which the last that returned `info` is changed.
    """
    for step in reversed(steps):
        if str(step.op) in REPORTING and any(result is info for result in step.results):
            step.kwargs = {**step.kwargs, "check_errors": True}
            return True
    return False


__all__ = ["householder_product", "matrix_exp_along", "ormqr", "raise_errors"]
