"""Engines: objects that compute the loss of a network on a batch, and its gradient in every parameter."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.func import functional_call

from ..api import value_and_grad

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


def loss_of(network: nn.Module, criterion: nn.Module) -> Callable[..., torch.Tensor]:
    """The loss of a network as a function of (parameters by name, x, y)."""

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return criterion(functional_call(network, parameters, (x,)), y)

    return loss
