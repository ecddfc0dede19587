"""Whole steps as one program: XOR with its update, and an LSTM's loss and gradient, against `torch.autograd`.

XOR is the network of two hidden units on four points, in float32, through the public call of `pullback.compile(step)`.
Autograd gets the same network as a module: with `torch.optim.SGD`; with an update written by hand,
`p -= 0.1 * p.grad`; and with the quickest there is, `torch.autograd.grad` and `torch._foreach_add_`.  The LSTM reads
28 rows of 28, batches of 64, and has 128 hidden units.
"""

import sys
from collections.abc import Callable

import torch
from harness import PAIRS, Comparison, Verdict, arguments, compare, conclude
from torch import Tensor, nn
from torch.func import functional_call

import pullback
from pullback.training.problems import XorNetwork

Step = Callable[[Tensor, Tensor], Tensor]
RATE = 0.1


def points() -> tuple[Tensor, Tensor]:
    """The four points of exclusive or, in a new order."""
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[torch.randperm(4)]
    return x, (x.sum(1, keepdim=True) == 1).float()


def compiled_step() -> Step:
    """Our step: loss, gradient and update in one program."""
    model, criterion = xor_network(), nn.BCELoss()
    parameters = dict(model.named_parameters())

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(model, p, (x,)), y)

    @pullback.compile
    def step(x: Tensor, y: Tensor) -> Tensor:
        value, gradients = pullback.value_and_grad(loss)(parameters, x, y)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter -= RATE * gradients[name]
        return value.detach()

    return step


def xor_network() -> XorNetwork:
    """The same network each time."""
    torch.manual_seed(5)
    return XorNetwork()


def with_optimiser() -> Step:
    """Autograd and `torch.optim.SGD`."""
    model, criterion = xor_network(), nn.BCELoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimiser.zero_grad()
        value = criterion(model(x), y)
        value.backward()
        optimiser.step()
        return value.detach()

    return step


def by_hand() -> Step:
    """Autograd and an update as one writes it."""
    model, criterion = xor_network(), nn.BCELoss()
    parameters = list(model.parameters())

    def step(x: Tensor, y: Tensor) -> Tensor:
        value = criterion(model(x), y)
        value.backward()
        with torch.no_grad():
            for p in parameters:
                p -= RATE * p.grad
                p.grad = None
        return value.detach()

    return step


def in_one_call() -> Step:
    """Autograd and the quickest update that PyTorch has."""
    model, criterion = xor_network(), nn.BCELoss()
    parameters = list(model.parameters())

    def step(x: Tensor, y: Tensor) -> Tensor:
        value = criterion(model(x), y)
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-RATE)
        return value.detach()

    return step


class LastRow(nn.Module):
    """An LSTM over the rows of a digit, and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(28, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits."""
        return self.out(self.cell(x)[0][:, -1])


def recurrent() -> tuple[Step, Step]:
    """The LSTM's loss and gradient, ours and autograd's."""
    torch.manual_seed(0)
    model, criterion = LastRow(), nn.CrossEntropyLoss()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    leaves = list(model.parameters())

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(model, p, (x,)), y)

    transform = pullback.value_and_grad(loss)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return transform(parameters, x, y)[0]

    def autograd(x: Tensor, y: Tensor) -> Tensor:
        value = criterion(model(x), y)
        torch.autograd.grad(value, leaves)
        return value.detach()

    return ours, autograd


def rows() -> tuple[Tensor, Tensor]:
    """A batch of 64 digits, row by row."""
    return torch.randn(64, 28, 28), torch.randint(0, 10, (64,))


def report(name: str, found: Comparison, factor: float, unit: str) -> None:
    """Print one comparison."""
    ours, theirs = found.first.median * factor, found.second.median * factor
    print(f"{name}: ours {ours:.2f} {unit}, autograd {theirs:.2f} {unit}, ratio {found.ratio.text(digits=3)}")


def against(name: str, peer: Step, pairs: int = PAIRS) -> float:
    """How many times as fast our XOR step is as another."""
    ours = compiled_step()
    for x, y in (points() for _ in range(3)):
        torch.testing.assert_close(ours(x, y), peer(x, y))
    found = compare(ours, peer, points, pairs)
    report(f"XOR, autograd {name}", found, 1e6, "µs")
    return found.ratio.median


def main() -> int:
    """Measure both networks."""
    options = arguments("Whole steps as one program, against torch.autograd.")
    optimiser = against("with torch.optim.SGD", with_optimiser(), options.pairs)
    hand = against("and an update by hand", by_hand(), options.pairs)
    against("and torch._foreach_add_", in_one_call(), options.pairs)
    ours, autograd = recurrent()
    x, y = rows()
    torch.testing.assert_close(ours(x, y), autograd(x, y))
    found = compare(ours, autograd, rows, options.pairs)
    report("LSTM, 28 steps, batch 64", found, 1e3, "ms")
    verdicts = [
        Verdict("XOR step, autograd with SGD / ours", optimiser, 4.0, at_least=True),
        Verdict("XOR step, autograd and an update by hand / ours", hand, 3.5, at_least=True),
        Verdict("LSTM loss and gradient, ours / autograd's time", 1 / found.ratio.median, 1.05),
    ]
    return conclude(verdicts, options)


if __name__ == "__main__":
    sys.exit(main())
