"""A small convolutional network that reads handwritten digits.

Run with `python cnn.py [EPOCHS]`; it needs scikit-learn for the digits.
"""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pullback.training.data import digits


class SimpleCNN(nn.Module):
    """Convolution 1→32, ReLU, max-pooling, linear to ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 14 * 14, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 1, 28, 28) to scores (n, 10)."""
        return self.fc1(self.pool(torch.relu(self.conv1(x))).flatten(1))


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
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
        print(f"epoch {epoch:>2}   loss {history[-1]:.4f}")
    return history


def main(epochs: int = 10) -> float:
    """Train on four fifths of the digits, and return the accuracy on the rest."""
    torch.manual_seed(0)
    data, model = digits(), SimpleCNN()
    dataloader = DataLoader(TensorDataset(data.inputs, data.targets), batch_size=64, shuffle=True)
    train_model(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.001), dataloader, epochs)
    with torch.no_grad():
        accuracy = (model(data.held_out_inputs).argmax(1) == data.held_out_targets).double().mean().item()
    print(f"held-out accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
