"""XOR and the digits: a network, a loss, an update, and how an answer is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .data import Data, digits, mnist, xor_points
from .settings import Settings

Parameters = Mapping[str, nn.Parameter]
Update = Callable[[Mapping[str, torch.Tensor]], None]

# The first seed for which the network learns all four points; for most seeds a hidden unit dies (see `studies.py`).
DEFAULT_XOR_SEED = 5


class XorNetwork(nn.Module):
    """Two inputs, two hidden units with ReLU, the probability of a 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 2)
        self.fc2 = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map points (n, 2) to probabilities (n, 1)."""
        hidden = torch.relu(self.fc1(x))
        return torch.sigmoid(self.fc2(hidden))


class DigitsNetwork(nn.Module):
    """One convolution and one linear layer, from an image of 28×28 to ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(32 * 14 * 14, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to scores (n, 10)."""
        pooled = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        return self.fc1(pooled.flatten(1))


@dataclass(frozen=True)
class Problem:
    """What is trained.

    name: as on the command line.
    network: makes the network; its initial parameters are drawn from PyTorch's global generator.
    criterion: the loss, of (output, target).
    update: given the parameters and a learning rate, makes the step that takes gradients by name.
    judge: which outputs are right, as booleans.
    judged_each_epoch: whether the accuracy is worth a forward pass after every epoch.
    defaults: the settings of an ordinary run.
    """

    name: str
    data: Data
    network: Callable[[], nn.Module]
    criterion: nn.Module
    update: Callable[[Parameters, float], Update]
    judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    judged_each_epoch: bool
    defaults: Settings


def xor() -> Problem:
    """XOR with plain gradient descent.  The default seed is one of those for which both hidden units stay alive."""
    defaults = Settings(epochs=10_000, batch_size=4, learning_rate=0.1, seed=DEFAULT_XOR_SEED)
    return Problem("xor", xor_points(), XorNetwork, nn.BCELoss(), gradient_descent, _same_side, False, defaults)


def cnn(mnist_directory: Path | None = None) -> Problem:
    """Handwritten digits with Adam: scikit-learn's, or MNIST's if a directory is given.

    Raises TrainingError if the data cannot be read.
    """
    data = digits() if mnist_directory is None else mnist(mnist_directory)
    defaults = Settings(epochs=10, batch_size=64, learning_rate=0.001)
    return Problem("cnn", data, DigitsNetwork, nn.CrossEntropyLoss(), adam, _highest_score, True, defaults)


def gradient_descent(parameters: Parameters, rate: float) -> Update:
    """The update written by hand: p ← p − rate · ∂loss/∂p."""

    @torch.no_grad()
    def update(gradients: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.sub_(gradients[name], alpha=rate)

    return update


def adam(parameters: Parameters, rate: float) -> Update:
    """PyTorch's Adam, which finds our gradients where it looks for autograd's: in `.grad`."""
    optimizer = torch.optim.Adam(parameters.values(), lr=rate)

    def update(gradients: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        optimizer.step()

    return update


def _same_side(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output > 0.5) == (target > 0.5)


def _highest_score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.argmax(1) == target
