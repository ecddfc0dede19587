"""`torch.autograd` as the reference: the engine to compare with, and the comparison.

Nothing here computes a result of `pullback`; it is what `--engine torch` and `--check` stand for.
"""

import math

import torch
from torch import nn

from .engines import Engine, LossAndGradients

ABSOLUTE_LIMIT_FLOAT64 = 1e-9
RELATIVE_LIMIT_FLOAT32 = 1e-4
# A gradient smaller than this is compared to this: it is a sum of larger terms that cancel, and float32 rounds those.
SMALLEST_SCALE = 1e-3


class TorchEngine:
    """Plain PyTorch: a forward pass recorded by autograd, then a backward pass."""

    def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
        self.network, self.criterion = network, criterion
        self.parameters = dict(network.named_parameters())

    def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor) -> LossAndGradients:
        """The loss on a batch, and its gradient in each parameter by name."""
        with torch.enable_grad():
            loss = self.criterion(self.network(x), y)
            gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        return loss.detach(), dict(zip(self.parameters, gradients, strict=True))


class CheckedEngine:
    """An engine with `torch.autograd` beside it, which remembers how far the two ever differed.

    largest: the largest difference of any entry of any gradient so far: absolute in float64, in float32 relative to the
        largest entry of that gradient (or to 1e-3, if that is larger).  Infinite if a gradient was not finite.
    """

    def __init__(self, engine: Engine, reference: Engine, dtype: torch.dtype) -> None:
        self.engine, self.reference = engine, reference
        self.relative = dtype is not torch.float64
        self.limit = RELATIVE_LIMIT_FLOAT32 if self.relative else ABSOLUTE_LIMIT_FLOAT64
        self.largest = 0.0
        self.steps = 0

    def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor) -> LossAndGradients:
        """What the engine computes; compared with the reference on the way."""
        loss, gradients = self.engine.loss_and_gradients(x, y)
        _, expected = self.reference.loss_and_gradients(x, y)
        differences = [self._difference(gradients[name], value) for name, value in expected.items()]
        self.largest = max(self.largest, *differences)
        self.steps += 1
        return loss, gradients

    @property
    def passed(self) -> bool:
        """Whether every difference was within the limit."""
        return self.largest <= self.limit

    def report(self) -> str:
        """One sentence: the largest difference, and the limit."""
        kind = "relative" if self.relative else "absolute"
        return (
            f"--check: over {self.steps:,} steps the gradients differed from torch.autograd's by at most "
            f"{self.largest:.2e} ({kind}; the limit is {self.limit:.0e})"
        )

    def _difference(self, gradient: torch.Tensor, expected: torch.Tensor) -> float:
        if gradient.shape != expected.shape or gradient.dtype != expected.dtype:
            return math.inf
        difference = float((gradient - expected).abs().max())
        scale = max(float(expected.abs().max()), SMALLEST_SCALE) if self.relative else 1.0
        return difference / scale if math.isfinite(difference) else math.inf
