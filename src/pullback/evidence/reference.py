"""What PyTorch says: the derivatives of a sample by `torch.autograd`, and by differences of its values.

This is the one side of a comparison; nothing here computes a result that anyone asked us for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .database import SEED, Example, Function

STEP = 1e-5

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Directions:
    """Random directions: a cotangent of each result, and two tangents of each primal."""

    cotangents: Tensors
    tangents: Tensors


@dataclass(frozen=True)
class Expected:
    """PyTorch's answers along some directions; None where PyTorch has none.

    pulled: the cotangents of the primals.
    pushed: the tangents of the results.
    twice: the derivative along the tangents of what is pulled.
    """

    values: Tensors
    directions: Directions
    pulled: Tensors
    pushed: Tensors | None
    twice: Tensors | None


def expected(example: Example) -> Expected:
    """Every derivative of one sample, by PyTorch."""
    generator = torch.Generator().manual_seed(SEED)
    primals = tuple(x.detach().requires_grad_() for x in example.primals)
    values = _run(example.function, primals)
    cotangents, tangents = ([_random(x, generator) for x in tensors] for tensors in (values, primals))
    pulled = _pull(values, primals, cotangents)
    pushed = _pushed(example, primals, tangents)
    twice = _twice(pulled, primals, tangents) if example.twice else None
    directions = Directions(tuple(cotangents), tuple(tangents))
    pushed, twice = (None if known is None else _plain(known) for known in (pushed, twice))
    return Expected(_plain(values), directions, _plain(pulled), pushed, twice)


def _run(function: Function, primals: Sequence[Tensor]) -> Tensors:
    torch.manual_seed(SEED)
    return function(*primals)


def _random(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=generator)


def _plain(tensors: Tensors) -> Tensors:
    return tuple(t.detach() for t in tensors)


def _pull(values: Sequence[Tensor], primals: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensors:
    return torch.autograd.grad(values, primals, cotangents, create_graph=True, materialize_grads=True)


def _pushed(example: Example, primals: Tensors, tangents: Sequence[Tensor]) -> Tensors | None:
    """Forward mode where PyTorch has it, else the derivative of the pull-back in its cotangent."""
    if example.forward_mode:
        try:
            return _forward(example, tangents)
        except NotImplementedError:
            pass
    values = _run(example.function, primals)
    cotangents = [torch.zeros_like(y).requires_grad_() for y in values]
    try:
        return _linear(_pull(values, primals, cotangents), cotangents, tangents)
    except (RuntimeError, NotImplementedError):  # a backward kernel without a derivative
        return None


def _forward(example: Example, tangents: Sequence[Tensor]) -> Tensors:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(example.primals, tangents, strict=True)]
        pairs = [forward_ad.unpack_dual(y) for y in _run(example.function, duals)]
        return tuple(torch.zeros_like(p) if t is None else t.clone() for p, t in pairs)


def _twice(pulled: Sequence[Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensors | None:
    try:
        return _linear(pulled, primals, tangents)
    except (RuntimeError, NotImplementedError):  # a backward kernel without a derivative
        return None


def _linear(pulled: Sequence[Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensors:
    """The derivative of ⟨tangents, pulled⟩."""
    linked = [(g, t) for g, t in zip(pulled, tangents, strict=True) if g.requires_grad]
    if not linked:
        return tuple(map(torch.zeros_like, primals))
    gradients, directions = zip(*linked, strict=True)
    return torch.autograd.grad(gradients, primals, directions, materialize_grads=True)


def quotients(example: Example, theirs: Expected) -> Tensors:
    """The tangents of the results, by central differences of the values."""
    ahead, behind = (_run(example.function, _moved(example, theirs, step)) for step in (STEP, -STEP))
    return _slopes(ahead, behind)


def second_quotients(example: Example, theirs: Expected) -> Tensors:
    """The derivative along the tangents of what is pulled, by central differences of PyTorch's pull-back."""

    def gradient(step: float) -> Tensors:
        primals = tuple(x.requires_grad_() for x in _moved(example, theirs, step))
        return _plain(_pull(_run(example.function, primals), primals, theirs.directions.cotangents))

    return _slopes(gradient(STEP), gradient(-STEP))


def _moved(example: Example, theirs: Expected, step: float) -> list[Tensor]:
    return [x + step * t for x, t in zip(example.primals, theirs.directions.tangents, strict=True)]


def _slopes(ahead: Tensors, behind: Tensors) -> Tensors:
    return tuple((a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True))
