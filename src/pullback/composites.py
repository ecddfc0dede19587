"""Functions of PyTorch that are made of operators in a way which no graph can hold, written anew.

`torch.cosine_similarity` bounds the norms from below in place and under `no_grad`, so that the bound has no derivative
and the norms keep theirs.  `torch.cov` looks at the number of observations as a tensor to warn of too few of them, and
`torch.corrcoef` is made of it.  Dropout would copy its operand where nothing is dropped, so that a change of it in
place would be lost; and when PyTorch 2.13 takes a recurrent network apart, it loses the dropout between the layers.
Its module keeps a list of the weights that it saw last, which a capture must not leave full of fake ones.
The shapes of what `torch.linalg.lstsq` returns depend on the rank of the matrix, which is taken to be full.  Products
of reflections are one product of matrices.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .alignment import ctc_loss
from .matrix_functions import householder_product, ormqr
from .torch_private import RECURRENT_WEIGHT_LISTS, BatchNorm, after_any_module, before_any_module

ATEN = torch.ops.aten


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """As `torch.cosine_similarity`, with its derivative."""
    x1, x2 = torch.broadcast_tensors(x1, x2)
    return (_normalised(x1, dim, eps) * _normalised(x2, dim, eps)).sum(dim)


def _normalised(x: Tensor, dim: int, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, 2, dim, keepdim=True)
    return x / (norm + (norm.clamp_min(eps) - norm).detach())


def cov(
    input: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Tensor:
    """As `torch.cov`, without its warning and without its look at the signs of the weights."""
    if input.dim() > 2 or not (input.is_floating_point() or input.is_complex()):
        return torch.cov(input, correction=correction, fweights=fweights, aweights=aweights)
    x = input if input.dim() == 2 else input.reshape(1, -1)
    given = [w for w in (fweights, aweights) if w is not None]
    weights = given[0] * given[-1] if len(given) == 2 else given[0] if given else torch.ones_like(_real(x[0]))
    total = weights.sum()
    centred = x - (x * weights).sum(1, keepdim=True) / total
    lost = 1 if aweights is None else (weights * aweights).sum() / total
    freedom = (total - correction * lost).clamp_min(0)
    return ((centred * weights) @ centred.t().conj() / freedom).squeeze()


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def corrcoef(input: Tensor) -> Tensor:
    """As `torch.corrcoef`."""
    covariance = cov(input)
    if covariance.dim() == 0:
        return covariance / covariance
    deviation = _real(covariance.diagonal()).sqrt()
    correlation = covariance / deviation[:, None] / deviation
    if correlation.is_complex():
        return torch.complex(correlation.real.clamp(-1, 1), correlation.imag.clamp(-1, 1))
    return correlation.clamp(-1, 1)


def lstsq(A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None) -> Any:
    """As `torch.linalg.lstsq` of a matrix of full rank, on which the shape of its results depends."""
    is_vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])
    right = B.unsqueeze(-1) if is_vector else B
    solution = torch.linalg.pinv(A, rtol=rcond) @ right
    residuals = solution.new_zeros(0).abs()
    driver = driver or ("gelsy" if A.device.type == "cpu" else "gels")
    if A.shape[-2] > A.shape[-1] and driver != "gelsy":
        rest = A @ solution - right
        residuals = (rest * rest.conj()).real.sum(-2)
    values = torch.linalg.svdvals(A.detach()) if driver in ("gelsd", "gelss") else A.new_zeros(0).abs()
    solution = solution.squeeze(-1) if is_vector else solution
    return torch.return_types.linalg_lstsq(  # type: ignore[attr-defined]
        (solution, residuals, torch.linalg.matrix_rank(A.detach()), values)
    )


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `torch.nn.functional.dropout`: the very operand, where nothing is dropped."""
    drops = training and p != 0
    return functional.dropout(input, p, training, inplace) if drops or not 0 <= p <= 1 else input


def torch_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """As `torch.dropout`."""
    return dropout(input, p, train)


def recurrent(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`; layer by layer where there is dropout."""

    def run(input: Tensor, states: Any, weights: Any, *args: Any) -> Any:
        is_packed = isinstance(states, Tensor) and not states.is_floating_point()  # sizes; refused further on
        if is_packed:
            return function(input, states, weights, *args)
        has_biases, layers, p, train, bidirectional, batch_first = args
        if batch_first:  # PyTorch would transpose its result in place
            output, *final = run(input.transpose(0, 1), states, weights, *args[:-1], False)
            return (output.transpose(0, 1), *final)
        if not (p and train and layers > 1):
            return function(input, states, weights, *args)
        output, finals = input, []
        for k, (state, own) in enumerate(zip(_shares(states, layers), _shares(weights, layers), strict=True)):
            output = torch.dropout(output, p, True) if k else output
            output, *final = function(output, state, own, has_biases, 1, 0.0, train, bidirectional, False)
            finals.append(final)
        return (output, *map(torch.cat, zip(*finals, strict=True)))

    return run


def _shares(of_all: Any, layers: int) -> list[Any]:
    """What belongs to each layer: rows of a state, or of each of two; or a part of the list of weights."""
    if isinstance(of_all, tuple):
        return list(zip(*(_shares(state, layers) for state in of_all), strict=True))
    size = len(of_all) // layers
    return [of_all[k * size : (k + 1) * size] for k in range(layers)]


@contextmanager
def weight_lists_kept() -> Iterator[None]:
    """Give every recurrent module called inside its lists of weights back, as they were before its first call."""
    thread = threading.get_ident()
    kept: dict[nn.Module, dict[str, Any]] = {}

    def before(module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.RNNBase) and threading.get_ident() == thread and module not in kept:
            kept[module] = {name: module.__dict__[name] for name in RECURRENT_WEIGHT_LISTS if name in module.__dict__}

    handle = before_any_module(before)
    try:
        yield
    finally:
        handle.remove()
        for module, lists in kept.items():
            module.__dict__.update(lists)


@contextmanager
def cumulative_averages() -> Iterator[None]:
    """Let batch normalisation without a momentum compute with the number of batches, which it would read."""
    thread = threading.get_ident()
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def before(module: Any, _: Any) -> None:
        if threading.get_ident() == thread and module not in kept and _averages_cumulatively(module):
            kept[module] = module.running_mean, module.running_var
            module.momentum = 1.0  # so that the statistics of this batch are left alone
            module.running_mean, module.running_var = (torch.zeros_like(running) for running in kept[module])

    def after(module: Any, _: Any, result: Any) -> None:
        if threading.get_ident() == thread and module in kept:
            batch = module.running_mean, module.running_var
            restore(module)
            if result is not None:  # else it has raised
                _average(module, batch)

    def restore(module: Any) -> None:
        module.momentum = None
        module.running_mean, module.running_var = kept.pop(module)

    handles = before_any_module(before), after_any_module(after, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in [*kept]:
            restore(module)


def _averages_cumulatively(module: Any) -> bool:
    if not isinstance(module, BatchNorm) or module.momentum is not None or not module.training:
        return False
    return bool(module.track_running_stats) and module.num_batches_tracked is not None


def _average(module: Any, batch: tuple[Tensor, Tensor]) -> None:
    """Take one more batch into the averages of a module."""
    for running, latest in zip((module.running_mean, module.running_var), batch, strict=True):
        share = 1.0 / module.num_batches_tracked.to(running.dtype)
        running.mul_(1 - share).add_(share * latest.detach())


def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """As `torch.combinations`, which selects by a mask of which only the number of elements is read."""
    if input.dim() != 1 or r < 0:
        return torch.combinations(input, r, with_replacement)
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    chosen = list(choose(range(input.shape[0]), r))
    index = torch.tensor(chosen, dtype=torch.int64, device=input.device).reshape(len(chosen), r)
    return input[index] if r else input.new_empty(0)


def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """As `torch.tensor_split`, which reads the memory of a tensor of positions."""
    if isinstance(indices_or_sections, Tensor):
        where = indices_or_sections
        numbers = [int(ATEN._local_scalar_dense(k)) for k in where.reshape(-1).unbind()]
        indices_or_sections = numbers if where.dim() else numbers[0]
    return torch.tensor_split(input, indices_or_sections, dim)


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """As `torch.nn.functional.gaussian_nll_loss`, without its look at the signs of the variances."""
    if not isinstance(var, Tensor) or reduction not in ("none", "mean", "sum"):
        return functional.gaussian_nll_loss(input, target, var, full, eps, reduction)
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    elif var.shape != input.shape:
        different = [n for n, m in zip(var.shape, input.shape, strict=False) if n != m]
        if var.dim() != input.dim() or different != [1]:
            raise ValueError("var is of incorrect size")
    bounded = var + (var.clamp_min(eps) - var).detach()
    loss = 0.5 * (bounded.log() + (input - target) ** 2 / bounded)
    loss = loss + 0.5 * math.log(2 * math.pi) if full else loss
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As PyTorch's; heads of keys that several of the queries share are repeated, which its kernel does inside."""
    if enable_gqa and min(query.dim(), key.dim(), value.dim()) >= 3:
        heads = query.shape[-3]
        key, value = (t if heads % t.shape[-3] else t.repeat_interleave(heads // t.shape[-3], -3) for t in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def kron(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """As `torch.kron`, by views whose changes in place PyTorch counts."""
    if out is not None:
        return torch.kron(input, other, out=out)
    rank = max(input.dim(), other.dim())
    outer, inner = ((*(1,) * (rank - x.dim()), *x.shape) for x in (input, other))
    left = input.reshape([n for size in outer for n in (size, 1)])
    product = left * other.reshape([n for size in inner for n in (1, size)])
    return product.reshape([n * m for n, m in zip(outer, inner, strict=True)])


def linear_cross_entropy(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
    """As `torch.nn.functional.linear_cross_entropy`, in one piece: its chunks compute derivatives of their own."""
    return functional.linear_cross_entropy(*args, **kwargs)


COMPOSITES: dict[Any, Callable[..., Any]] = {
    torch.cosine_similarity: cosine_similarity,
    torch.cov: cov,
    torch.Tensor.cov: cov,
    torch.corrcoef: corrcoef,
    torch.linalg.lstsq: lstsq,
    torch.linalg.householder_product: householder_product,
    torch.orgqr: householder_product,
    torch.Tensor.orgqr: householder_product,
    torch.ormqr: ormqr,
    torch.Tensor.ormqr: ormqr,
    functional.dropout: dropout,
    torch.dropout: torch_dropout,
    **{function: recurrent(function) for function in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
    torch.Tensor.corrcoef: corrcoef,
    torch.combinations: combinations,
    torch.kron: kron,
    torch.Tensor.kron: kron,
    torch.tensor_split: tensor_split,
    torch.Tensor.tensor_split: tensor_split,
    functional.ctc_loss: ctc_loss,
    torch.ctc_loss: ctc_loss,
    functional.gaussian_nll_loss: gaussian_nll_loss,
    functional.scaled_dot_product_attention: scaled_dot_product_attention,
    functional.linear_cross_entropy: linear_cross_entropy,
}
