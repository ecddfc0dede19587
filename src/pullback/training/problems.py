"""XOR, and the digits seen at once or row by row: a network, a loss, how an answer is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .data import Data, digits, mnist, xor_points
from .networks import CELLS, DigitsNetwork, InkedRowsNetwork, RowsNetwork, XorNetwork
from .settings import Settings, check_choice

# The first seed for which the network learns all four points; for most seeds a hidden unit dies (see `studies.py`).
DEFAULT_XOR_SEED = 5
LENGTHS = ("full", "real")


@dataclass(frozen=True)
class Problem:
    """What is trained.

    name: what its files are called.
    network: makes the network; its initial parameters are drawn from PyTorch's global generator.
    criterion: the loss, of (output, target).
    judge: which outputs are right, as booleans.
    defaults: the settings of an ordinary run.
    judged_each_epoch: whether the accuracy is worth a forward pass after every epoch.
    checkpoint_every: epochs from one checkpoint to the next.
    traceable: whether one graph stands for every input; not if Python's branches and loops depend on tensors' values.
    """

    name: str
    data: Data
    network: Callable[[], nn.Module]
    criterion: nn.Module
    judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    defaults: Settings
    judged_each_epoch: bool = True
    checkpoint_every: int = 1
    traceable: bool = True


def xor() -> Problem:
    """XOR with plain gradient descent.  The default seed is one of those for which both hidden units stay alive."""
    defaults = Settings(epochs=10_000, batch_size=4, learning_rate=0.1, seed=DEFAULT_XOR_SEED)
    return Problem("xor", xor_points(), XorNetwork, nn.BCELoss(), _same_side, defaults, False, 1000)


def cnn(mnist_directory: Path | None = None) -> Problem:
    """Handwritten digits with Adam: scikit-learn's, or MNIST's if a directory is given.

    Raises TrainingError if the data cannot be read.
    """
    defaults = Settings(epochs=10, batch_size=64, learning_rate=0.001, optimizer="adam")
    return Problem("cnn", _images(mnist_directory), DigitsNetwork, nn.CrossEntropyLoss(), _highest_score, defaults)


def rnn(cell: str, lengths: str = "full", mnist_directory: Path | None = None) -> Problem:
    """The same digits, read row by row.

    Arguments:
        cell: "elman", "gru" or "lstm".
        lengths: "full" for 28 rows each; "real" for the inked rows alone, which only a recorded run can follow.

    Raises TrainingError if there is no such cell or length, or the data cannot be read.
    """
    check_choice("cell", cell, CELLS)
    check_choice("lengths", lengths, LENGTHS)
    defaults = Settings(epochs=30, batch_size=64, learning_rate=0.001, optimizer="adam")
    real = lengths == "real"
    network = partial(InkedRowsNetwork if real else RowsNetwork, cell)
    name = f"rnn-{cell}-real" if real else f"rnn-{cell}"
    data, criterion = _images(mnist_directory), nn.CrossEntropyLoss()
    return Problem(name, data, network, criterion, _highest_score, defaults, traceable=not real)


def _images(mnist_directory: Path | None) -> Data:
    return digits() if mnist_directory is None else mnist(mnist_directory)


def _same_side(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output > 0.5) == (target > 0.5)


def _highest_score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.argmax(1) == target
