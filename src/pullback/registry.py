"""What a rule that a user registers sets off, and the evidence on any rule: its samples, probed to order two.

Inner products of complex numbers are real ones, Re⟨u, v⟩, and they move along real and imaginary directions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .api import hvp, jvp, vjp
from .contexts import CONTEXTS, PLAIN
from .errors import GraphError, PullbackError, RuleError
from .pulls import PULLS
from .recipes import forget_recipes
from .replay import SIGHTINGS
from .rules import EVIDENCE, LISTENERS, RULES, B, I, Sample, T
from .signature import CACHE
from .torch_private import overload, tree_flatten, tree_leaves, tree_unflatten

STEP = 1e-5
SHARP, BY_DIFFERENCES = 1e-9, 1e-5  # |a − b| ≤ tolerance · (1 + |b|)

Tensors = tuple[Tensor, ...]


def forget(op: str) -> None:
    """Forget what was compiled while the operator had no rule.  Raises UnsupportedTorchError if it does not exist."""
    overload(op)
    for cache in (CACHE, SIGHTINGS, PULLS):
        cache.clear()
    forget_recipes()


@dataclass(frozen=True)
class Probe:
    """An operator on one sample, as a function of its differentiable operands, and random directions there."""

    op: str
    title: str
    function: Callable[..., Tensors]
    point: Tensors
    cotangents: Tensors
    tangents: Tensors
    others: Tensors

    def weighted(self, *primals: Tensor) -> Tensor:
        """⟨cotangents, results⟩."""
        return inner(self.cotangents, self.function(*primals))

    def gradient(self, *primals: Tensor) -> Tensors:
        """Of `weighted`, by the rule."""
        pulled: Tensors = vjp(self.function, *primals)[1](self.cotangents)
        return pulled

    def bent(self, tangents: Tensors) -> Tensors:
        """The derivative of the gradient along tangents, by the rule."""
        return tuple(tree_leaves(hvp(self.weighted, self.point, tangents)[1]))

    def slopes(self, function: Callable[..., Tensors]) -> Tensors:
        """The derivative of a function along the tangents, by central differences."""
        moved = [[x + h * t for x, t in zip(self.point, self.tangents, strict=True)] for h in (STEP, -STEP)]
        ahead, behind = (function(*primals) for primals in moved)
        return tuple((a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True))


def evidence(op: str) -> int:
    """Probe the rule of an operator on each of its samples.  Raises RuleError where a number does not agree."""
    samples = RULES[op].samples
    for number, sample in enumerate(samples):
        title = f"the rule of {op} on sample {number}, {sample}"
        try:
            examine(probe(op, sample, title))
        except Exception as error:
            if isinstance(error, PullbackError) and not isinstance(error, GraphError):
                raise
            message = str(error).partition("\n")[0]
            raise RuleError(f"{title}, does not fit the operator: {type(error).__name__}: {message}") from error
    return len(samples)


def examine(probe: Probe) -> None:
    """Compare the derivatives of first and second order with differences, and forward with backward."""
    pushed = tuple(jvp(probe.function, probe.point, probe.tangents)[1])
    agree(probe, "tangents and difference quotients", pushed, probe.slopes(probe.function), BY_DIFFERENCES)
    forward, backward = inner(probe.cotangents, pushed), inner(probe.gradient(*probe.point), probe.tangents)
    agree(probe, "⟨u, J v⟩ and ⟨Jᵀ u, v⟩", (forward,), (backward,), SHARP)
    bent = probe.bent(probe.tangents)
    agree(probe, "second derivatives and difference quotients", bent, probe.slopes(probe.gradient), BY_DIFFERENCES)
    one, other = inner(probe.others, bent), inner(probe.bent(probe.others), probe.tangents)
    agree(probe, "⟨w, H v⟩ and ⟨H w, v⟩", (one,), (other,), SHARP)


def agree(probe: Probe, what: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Raise RuleError unless two lists of tensors agree."""
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        far = ((a - b).abs() > tolerance * (1 + b.abs())) | (a.isnan() != b.isnan())
        if far.any():
            first = tuple(far.nonzero()[0].tolist())
            numbers = f"{a[first].item():.9g} and {b[first].item():.9g}"
            raise RuleError(f"{probe.title}: {what} differ, tensor {k} at {first}: {numbers}")


def inner(these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors: Re⟨a, b⟩; zero of none."""
    products = [(a.conj() * b).sum() for a, b in zip(these, those, strict=True)]
    return torch.stack([torch.zeros((), dtype=torch.float64), *(p.real for p in products)]).sum()


# ---------------------------------------------------------------- drawing a sample


def probe(op: str, sample: Sample, title: str) -> Probe:
    """A sample with random tensors, in double precision; the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    drawn = drawn_like((sample.args, dict(sample.kwargs)), generator)
    leaves, spec = tree_flatten(drawn)
    places = [k for k, leaf in enumerate(leaves) if is_continuous(leaf)]
    wanted, context = RULES[op].differentiable, CONTEXTS.get(op, PLAIN)
    operator = context.call or overload(op)

    def function(*primals: Tensor) -> Tensors:
        given = list(leaves)
        for place, primal in zip(places, primals, strict=True):
            given[place] = primal
        args, kwargs = tree_unflatten(given, spec)
        args, kwargs = context.before(*args, **kwargs)
        results = operator(*args, **kwargs)
        flat = list(results) if isinstance(results, (tuple, list)) else [results]
        if context.after is not None:
            return tuple(t for t in context.after(flat) if is_continuous(t))
        wanted_here = range(len(flat)) if isinstance(results, list) else wanted  # as many as the sample makes
        return tuple(flat[k] for k in wanted_here if is_continuous(flat[k]))

    point = tuple(leaves[k] for k in places)
    values = function(*point)
    cotangents, tangents, others = (
        tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in like) for like in (values, point, point)
    )
    return Probe(op, title, function, point, cotangents, tangents, others)


def is_continuous(leaf: Any) -> bool:
    """Whether an argument or result is a tensor that varies continuously."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _between(argument: T, generator: torch.Generator) -> Tensor:
    low, high = argument.domain
    return low + (high - low) * torch.rand(argument.shape, dtype=torch.float64, generator=generator)


def drawn_like(argument: Any, generator: torch.Generator) -> Any:
    """Random tensors in place of what stands for them in a sample."""
    if isinstance(argument, tuple):
        return tuple(drawn_like(a, generator) for a in argument)
    if isinstance(argument, dict):
        return {name: drawn_like(a, generator) for name, a in argument.items()}
    if isinstance(argument, T):
        drawn = [_between(argument, generator) for _ in range(1 + argument.complex)]
        return torch.complex(*drawn) if argument.complex else drawn[0]
    if isinstance(argument, I):
        return torch.randint(argument.bound, argument.shape, generator=generator)
    return torch.rand(argument.shape, generator=generator) < 0.5 if isinstance(argument, B) else argument


LISTENERS.append(forget)
EVIDENCE.append(evidence)
