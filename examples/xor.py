"""Exclusive or, learned by back-propagation: a backward pass, then an update written by hand.

Run with `python xor.py [EPOCHS]`.
"""

import sys

import torch
from torch import Tensor, nn

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


def generalized_backward(model: nn.Module, loss: Tensor, learning_rate: float = 0.1) -> None:
    """Go backward from the loss, then take one step of gradient descent, written by hand."""
    pullback.generalized_backward(model, loss)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= learning_rate * parameter.grad
            parameter.grad = None


def main(epochs: int = 10_000) -> float:
    """Train, print the loss every 1,000 epochs, and return the accuracy."""
    torch.manual_seed(SEED)
    model, criterion = GeneralizedBackpropNN(), nn.BCELoss()
    for epoch in range(1, epochs + 1):
        with pullback.record():
            loss = criterion(model(INPUTS), TARGETS)
            generalized_backward(model, loss)
        if epoch % 1000 == 0:
            print(f"epoch {epoch:>6,}   loss {loss.item():.4f}")
    with torch.no_grad():
        accuracy = ((model(INPUTS) > 0.5) == (TARGETS > 0.5)).double().mean().item()
    print(f"accuracy {accuracy:.0%}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
