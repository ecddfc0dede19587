"""Exclusive or, learned by general back-propagation: our backward pass, then an update written by hand.

Run with `python examples/xor.py [EPOCHS]`.
"""

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

import pullback

INPUTS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGETS = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
SEED = 5  # two ReLU units are few: with most seeds one of them dies, and the network stops at two or three points


class GeneralizedBackpropNN(nn.Module):
    """Linear 2→2, ReLU, linear 2→1, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 2)
        self.fc2 = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map points to the probability of a 1."""
        hidden = torch.relu(self.fc1(x))
        return torch.sigmoid(self.fc2(hidden))


def generalized_backward(
    model: nn.Module, loss_function: Callable[[Mapping[str, Tensor]], Tensor], learning_rate: float = 0.1
) -> Tensor:
    """Take one step of gradient descent, and return the loss before it.

    `loss_function` maps the parameters, by name, to the loss.  Its graph is traced once; from then on this runs the
    compiled program that multiplies dz/dx = Jᵀ dz/dy along every edge, and no path is followed twice.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():  # else loss and gradients would belong to autograd's graph, as the parameters do
        loss, gradients = pullback.value_and_grad(loss_function)(parameters)
        for name, parameter in parameters.items():
            parameter -= learning_rate * gradients[name]
    return loss


def main(epochs: int = 10_000) -> float:
    """Train, print the loss every 1,000 epochs, and return the accuracy."""
    torch.manual_seed(SEED)
    model, criterion = GeneralizedBackpropNN(), nn.BCELoss()

    def loss_function(parameters: Mapping[str, Tensor]) -> Tensor:
        return criterion(functional_call(model, dict(parameters), (INPUTS,)), TARGETS)

    for epoch in range(1, epochs + 1):
        loss = generalized_backward(model, loss_function)
        if epoch % 1000 == 0:
            print(f"epoch {epoch:>6,}   loss {loss:.4f}")
    with torch.no_grad():
        accuracy = ((model(INPUTS) > 0.5) == (TARGETS > 0.5)).double().mean().item()
    print(f"accuracy {accuracy:.0%}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
