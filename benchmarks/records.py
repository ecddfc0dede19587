"""A recorded training step against the same step with `torch.autograd`: XOR, and a small CNN.

Both sides are the same plain PyTorch script, optimiser included; ours wraps the loss in `pullback.record()` and calls
`tape.backward(loss)` where the other calls `loss.backward()`.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from harness import Inputs, Step, Verdict, arguments, compare, conclude
from torch import Tensor, nn

import pullback
from pullback.training.problems import DigitsNetwork, XorNetwork

Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def steps(make: Callable[[], nn.Module], criterion: nn.Module, optimiser: Optimiser) -> tuple[Step, Step]:
    """A step of each side, of two equal networks."""
    torch.manual_seed(0)
    model, peer = make(), make()
    peer.load_state_dict(model.state_dict())
    own, other = optimiser(model.parameters()), optimiser(peer.parameters())

    def ours(x: Tensor, y: Tensor) -> Tensor:
        own.zero_grad()
        with pullback.record() as tape:
            loss: Tensor = criterion(model(x), y)
        tape.backward(loss)
        own.step()
        return loss

    def autograd(x: Tensor, y: Tensor) -> Tensor:
        other.zero_grad()
        loss: Tensor = criterion(peer(x), y)
        loss.backward()
        other.step()
        return loss

    return ours, autograd


def xor() -> tuple[Step, Step, Inputs]:
    """Two hidden units, four points, SGD."""
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    targets = (points.sum(1, keepdim=True) == 1).float()
    return *steps(XorNetwork, nn.BCELoss(), lambda p: torch.optim.SGD(p, lr=0.1)), lambda: (points, targets)


def cnn() -> tuple[Step, Step, Inputs]:
    """Convolution, pooling, one linear layer; batches of 64 images of 28×28; Adam."""
    ours, autograd = steps(DigitsNetwork, nn.CrossEntropyLoss(), torch.optim.Adam)
    return ours, autograd, lambda: (torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,)))


def report(name: str, made: tuple[Any, Any, Any], pairs: int) -> float:
    """Our time over autograd's."""
    ours, autograd, inputs = made
    for _ in range(3):
        torch.testing.assert_close(ours(*inputs()), autograd(*inputs()).detach(), rtol=1.0, atol=1.0)
    found = compare(ours, autograd, inputs, pairs)
    print(f"{name}: {found.first.median * 1e6:.0f} µs recorded, {found.second.median * 1e6:.0f} µs with autograd")
    return 1 / found.ratio.median


def main() -> int:
    """Run both networks."""
    options = arguments("A recorded training step against the same step with torch.autograd.")
    verdicts = [
        Verdict("XOR, recorded / autograd's time", report("XOR, batch 4", xor(), options.pairs), 2.0),
        Verdict("CNN, recorded / autograd's time", report("CNN, batch 64", cnn(), options.pairs), 1.1),
    ]
    return conclude(verdicts, options)


if __name__ == "__main__":
    sys.exit(main())
