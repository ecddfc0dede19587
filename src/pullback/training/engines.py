"""Engines: objects that compute the loss of a network on a batch, and its gradient in every parameter."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.func import functional_call

from ..api import value_and_grad
from ..recorder import record

LossAndGradients = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Engine(Protocol):
    """What the training loop asks of an engine."""

    def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor) -> LossAndGradients:
        """The loss on a batch, and its gradient in each parameter by name, at the parameters' present values."""


class TraceEngine:
    """Our engine: the loss is traced once for each shape of batch and compiled together with its gradient.

    loss: the loss as a function of (parameters by name, x, y).
    derivative: `pullback.value_and_grad(loss)`; `.plan(parameters, x, y)` shows the program.
    """

    def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
        self.parameters = dict(network.named_parameters())
        self.loss = loss_of(network, criterion)
        self.derivative = value_and_grad(self.loss)

    def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor) -> LossAndGradients:
        """The loss on a batch, and its gradient in each parameter by name."""
        with torch.no_grad():  # else the results would belong to autograd's graph, as the parameters do
            return self.derivative(self.parameters, x, y)


class RecordEngine:
    """Our engine for any control flow: each step is recorded as Python runs it, and differentiated afterwards.

    A network whose examples take different numbers of steps is recorded one example at a time, so that equal lengths
    share a compiled program; the criterion has to be a mean over examples then.
    """

    def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
        self.network, self.criterion = network, criterion
        self.parameters = dict(network.named_parameters())
        self.one_by_one = getattr(network, "lengths_differ", False)

    def loss_and_gradients(self, x: torch.Tensor, y: torch.Tensor) -> LossAndGradients:
        """The loss on a batch, and its gradient in each parameter by name."""
        if not self.one_by_one:
            return self._recorded(x, y, 1.0)
        parts = [self._recorded(*part, 1 / len(x)) for part in zip(x.split(1), y.split(1), strict=True)]
        loss = torch.stack([loss for loss, _ in parts]).mean()
        return loss, {name: torch.stack([found[name] for _, found in parts]).sum(0) for name in self.parameters}

    def _recorded(self, x: torch.Tensor, y: torch.Tensor, share: float) -> LossAndGradients:
        """The loss on some examples of a batch, and the gradients of their share in the batch's loss."""
        with record() as tape:
            loss = self.criterion(self.network(x), y)
        return loss, tape.grad(loss, self.parameters, seed=torch.full_like(loss, share))


def loss_of(network: nn.Module, criterion: nn.Module) -> Callable[..., torch.Tensor]:
    """The loss of a network as a function of (parameters by name, x, y)."""

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return criterion(functional_call(network, parameters, (x,)), y)

    return loss
