"""The networks: XOR's two hidden units, a convolutional one, and recurrent ones that read an image row by row."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

HIDDEN = 128
# Ink is what is at least three quarters as dark as can be.  Every digit of scikit-learn's set touches its first and
# last row faintly, so that a lower bar would leave all of them at 28 rows.
INK = 0.75

# As a layer that reads whole sequences of one length, and as the step that it consists of.
CELLS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "elman": (nn.RNN, nn.RNNCell),
    "gru": (nn.GRU, nn.GRUCell),
    "lstm": (nn.LSTM, nn.LSTMCell),
}


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


class RowsNetwork(nn.Module):
    """A recurrent layer that reads an image from its first row to its last, and scores for what it then holds."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.rnn = CELLS[cell][0](28, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to scores (n, 10)."""
        outputs, _ = self.rnn(x.squeeze(1))
        return self.fc(outputs[:, -1])


class InkedRowsNetwork(nn.Module):
    """The same for images of different heights: each is cropped to its inked rows, and read by a loop of its own."""

    lengths_differ = True

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.cell = CELLS[cell][1](28, HIDDEN)
        self.fc = nn.Linear(HIDDEN, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 28, 28) to scores (n, 10).  How many steps an image takes is read off its ink."""
        return self.fc(torch.cat([self.read(image[inked_rows(image)]) for image in x.squeeze(1)]))

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Map the rows (k, 28) of one image to the hidden state (1, 128) at its end."""
        state: Any = None
        for row in rows.unsqueeze(1):
            state = self.cell(row, state)
        return state[0] if isinstance(state, tuple) else state  # an LSTM's state has two parts


def inked_rows(image: torch.Tensor) -> slice:
    """The rows of an image (28, 28) from the first to the last with ink; all of them if none has."""
    inked = (image >= INK).any(1).nonzero()
    return slice(int(inked[0]), int(inked[-1]) + 1) if len(inked) else slice(None)
