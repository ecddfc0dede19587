"""A recurrent network that reads handwritten digits row by row, each for as many rows as it has ink.

Run with `python rnn.py [EPOCHS] [IMAGES]`; it needs scikit-learn for the digits.
"""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pullback.training.data import digits
from pullback.training.networks import inked_rows


class SimpleRNN(nn.Module):
    """An LSTM of 128 hidden units, linear to ten scores.  How many steps an image takes is read off the image."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(28, 128)
        self.fc1 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 1, 28, 28) to scores (n, 10)."""
        return self.fc1(torch.cat([self.read(image[inked_rows(image)]) for image in x.squeeze(1)]))

    def read(self, rows: Tensor) -> Tensor:
        """Map the rows (k, 28) of one image to what is remembered of them (1, 128)."""
        state = None
        for row in rows.unsqueeze(1):
            state = self.cell(row, state)
        return state[0]


def train_model(
    model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, dataloader: DataLoader, epochs: int = 10
) -> list[float]:
    """Train, and return the mean loss of each epoch."""
    history = []
    for epoch in range(1, epochs + 1):
        losses = []
        for images, labels in dataloader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
        print(f"epoch {epoch:>2}   loss {history[-1]:.4f}")
    return history


def main(epochs: int = 10, images: int = 1437) -> float:
    """Train on the digits, all or the first of them, and return the accuracy on those held out."""
    torch.manual_seed(0)
    data, model = digits(), SimpleRNN()
    dataset = TensorDataset(data.inputs[:images], data.targets[:images])
    dataloader = DataLoader(dataset, batch_size=64, shuffle=True)
    train_model(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.001), dataloader, epochs)
    with torch.no_grad():
        accuracy = (model(data.held_out_inputs).argmax(1) == data.held_out_targets).double().mean().item()
    print(f"held-out accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
