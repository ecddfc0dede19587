"""What stands around an operator while its rule is checked: suitable operands in front, and behind it what is unique.

A factorisation reads one triangle of its operand, or takes it to be Hermitian; a difference quotient that moved the
operand itself would leave what it is defined on.  So each such operator is checked between a function that makes a
suitable operand of any, and one that leaves out phases.  All of these are differentiated along with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Context:
    """What is done to an operator's arguments and results.

    before: takes the operator's arguments, and returns suitable ones.
    after: takes the results, as a list; None where they are compared as they are.
    call: what is called instead, where the operator by itself cannot be traced.
    """

    before: Callable[..., Arguments]
    after: Callable[[list[Any]], list[Any]] | None = None
    call: Callable[..., Any] | None = None


def _of_first(function: Callable[[Tensor], Tensor]) -> Callable[..., Arguments]:
    return lambda a, *rest, **options: ((function(a), *rest), options)


def _of_second(function: Callable[[Tensor], Tensor]) -> Callable[..., Arguments]:
    return lambda b, a, *rest, **options: ((b, function(a), *rest), options)


def _as_they_are(*args: Any, **options: Any) -> Arguments:
    return args, options


def definite(a: Tensor) -> Tensor:
    """A positive definite matrix."""
    return a @ a.mH + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def hermitian(a: Tensor) -> Tensor:
    """A Hermitian matrix, whose eigenvalues are apart."""
    return a + a.mH + 4 * torch.arange(a.shape[-1], dtype=torch.float64).diag().to(a.dtype)


def regular(a: Tensor) -> Tensor:
    """A matrix that is far from singular."""
    return a + 5 * torch.eye(a.shape[-2], a.shape[-1], dtype=a.dtype, device=a.device)


def spread(a: Tensor) -> Tensor:
    """A matrix whose singular values, and eigenvalues, are apart."""
    count = min(a.shape[-2:])
    ramp = 4 * torch.arange(1, count + 1, dtype=torch.float64).to(a.dtype)
    return a + torch.eye(a.shape[-2], a.shape[-1], dtype=a.dtype, device=a.device) * torch.nn.functional.pad(
        ramp, (0, a.shape[-1] - count)
    )


def phaseless(columns: Tensor) -> Tensor:
    """What is left of vectors when each may be multiplied by a phase."""
    return columns[..., :, None, :] * columns[..., None, :, :].conj()


def _of_svd(results: list[Any]) -> list[Any]:
    u, s, vh = results
    if not u.numel():  # without vectors
        return [s]
    count = s.shape[-1]
    own, own_vh = u[..., :count], vh[..., :count, :]
    beyond = [w[..., count:] @ w[..., count:].mH for w in (u, vh.mH)]
    return [s, phaseless(own), phaseless(own_vh.mH), own @ own_vh, *beyond]


def _of_spectrum(results: list[Any]) -> list[Any]:
    values, vectors = results
    return [values, phaseless(vectors)] if vectors.numel() else [values]


def _in_order(factors: Tensor, pivots: Tensor, *rest: Any, **options: Any) -> Arguments:
    """Pivots that exchange nothing; factors far from singular."""
    rows = torch.arange(1, pivots.shape[-1] + 1, dtype=torch.int32).expand(pivots.shape).contiguous()
    return (regular(factors), rows, *rest), options


def _padded(weight: Tensor, indices: Tensor, padding: int = -1, *rest: Any) -> Arguments:
    """A row that is never to be learned does not move."""
    rows = torch.arange(weight.shape[0])[:, None] != padding
    return (weight * rows, indices, padding, *rest), {}


def _without_draws(x: Tensor, rate: float, training: bool | None = None) -> Arguments:
    return (x, rate, False), {}


_REGULAR = ("_linalg_solve_ex", "linalg_inv_ex", "_linalg_slogdet", "linalg_lu_factor_ex", "linalg_lu", "linalg_qr")
CONTEXTS: Mapping[str, Context] = {
    **{f"aten.{op}.default": Context(_of_first(regular)) for op in _REGULAR},
    "aten.linalg_pinv.atol_rtol_tensor": Context(_of_first(regular)),
    "aten.linalg_solve_triangular.default": Context(_of_first(regular)),
    "aten.triangular_solve.default": Context(_of_second(regular)),
    "aten.cholesky_solve.default": Context(_of_second(regular)),
    "aten.cholesky_inverse.default": Context(_of_first(lambda a: torch.linalg.cholesky(definite(a)))),
    "aten.cholesky.default": Context(_of_first(definite)),
    "aten.linalg_cholesky_ex.default": Context(_of_first(definite)),
    "aten.lu_unpack.default": Context(_in_order),
    "aten.linalg_lu_solve.default": Context(_in_order),
    "aten.linalg_lstsq.default": Context(
        _of_first(regular), after=lambda results: results[:1], call=torch.linalg.lstsq
    ),
    "aten._linalg_svd.default": Context(_of_first(spread), _of_svd),
    "aten._linalg_eigh.default": Context(_of_first(hermitian), _of_spectrum),
    "aten.linalg_eig.default": Context(_of_first(spread), _of_spectrum),
    "aten._linalg_eigvals.default": Context(_of_first(spread)),
    "aten.embedding.default": Context(_padded),
    "aten.native_dropout.default": Context(_without_draws),
}
PLAIN = Context(_as_they_are)
