"""A training step with our derivative against the same step with `torch.autograd`: XOR, and a small CNN.

Ours goes through the public call, `pullback.value_and_grad` of a function of a dictionary of parameters; autograd gets
the module itself, which is the fastest way to use it.  Both sides make the same update, each of its own network.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import PAIRS, Comparison, Inputs, Step, Verdict, arguments, compare, conclude, sample_together
from torch import Tensor, nn
from torch.func import functional_call

import pullback
from pullback.emit.python import emit_python
from pullback.graph import live_nodes
from pullback.training.problems import DigitsNetwork, XorNetwork
from pullback.transform import Transform, find

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """One network twice, and a step of each.

    transform: our derivative of the loss with respect to the parameters.
    parameters: what our step changes.
    update: our update alone, of gradients by name.
    """

    name: str
    ours: Step
    autograd: Step
    inputs: Inputs
    transform: Transform
    parameters: dict[str, Tensor]
    update: Callable[[dict[str, Tensor]], None]


def value_and_grad_of(model: nn.Module, criterion: Loss) -> Transform:
    """Our derivative of a network's loss with respect to a dictionary of its parameters."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(model, parameters, (x,)), y)

    return pullback.value_and_grad(loss)


def xor() -> Training:
    """Two hidden units, four points, and an update written by hand."""
    torch.manual_seed(5)
    model, peer = XorNetwork(), XorNetwork()
    peer.load_state_dict(model.state_dict())
    criterion = nn.BCELoss()
    transform = value_and_grad_of(model, criterion)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours_flat, peer_flat = list(parameters.values()), list(peer.parameters())

    def update(gradients: dict[str, Tensor]) -> None:
        torch._foreach_add_(ours_flat, list(gradients.values()), alpha=-0.1)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        value, gradients = transform(parameters, x, y)
        update(gradients)
        return value

    def autograd(x: Tensor, y: Tensor) -> Tensor:
        value = criterion(peer(x), y)
        gradients = torch.autograd.grad(value, peer_flat)
        with torch.no_grad():
            torch._foreach_add_(peer_flat, gradients, alpha=-0.1)
        return value

    return Training("XOR, batch 4", ours, autograd, _points, transform, parameters, update)


def _points() -> tuple[Tensor, Tensor]:
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[torch.randperm(4)]
    return points, (points.sum(1, keepdim=True) == 1).float()


def cnn() -> Training:
    """Convolution, pooling, one linear layer; batches of 64 images of 28×28; Adam."""
    torch.manual_seed(0)
    model, peer = DigitsNetwork(), DigitsNetwork()
    peer.load_state_dict(model.state_dict())
    criterion = nn.CrossEntropyLoss()
    transform = value_and_grad_of(model, criterion)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    optimizer, peer_optimizer = torch.optim.Adam(model.parameters()), torch.optim.Adam(peer.parameters())

    def update(gradients: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        optimizer.step()

    def ours(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            value, gradients = transform(parameters, x, y)
        update(gradients)
        return value

    def autograd(x: Tensor, y: Tensor) -> Tensor:
        peer_optimizer.zero_grad()
        value = criterion(peer(x), y)
        value.backward()
        peer_optimizer.step()
        return value

    return Training("CNN, batch 64", ours, autograd, _images, transform, parameters, update)


def _images() -> tuple[Tensor, Tensor]:
    return torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))


# ---------------------------------------------------------------- what a step consists of


def parts(training: Training, rounds: int = PAIRS) -> dict[str, float]:
    """Seconds for each part of our step: medians over rounds in which the whole and every part are timed in turn.

    The backward part is the program less its forward part; the rest is what no other part accounts for.
    """
    transform, parameters = training.transform, training.parameters
    entry, flat = find(transform.kind, transform.f, (parameters, *training.inputs()), {})
    executable, weights = entry.program, flat[:-2]
    run, forward = executable.run, _forward_of(executable)
    results = run(*(t.detach() for t in flat))
    gradients = executable.finish(results)[1]
    steps: dict[str, Step] = {
        "whole": training.ours,
        "program": lambda x, y: run(*weights, x, y),
        "forward": lambda x, y: forward(*weights, x, y),
        "look-up": lambda x, y: entry.lookup(transform.f, (parameters, x, y), {}),
        "result structure": lambda x, y: executable.finish(results),
        "update": lambda x, y: training.update(gradients),
    }
    with torch.no_grad():
        _, samples = sample_together(list(steps.values()), training.inputs, rounds)
    rows = [_split(dict(zip(steps, times, strict=True))) for times in samples]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _forward_of(executable: Any) -> Step:
    """The part of a program that the loss alone needs."""
    graph = executable.compiled.program.graph
    nodes = live_nodes(graph.nodes, graph.outputs[-1:])
    return emit_python(replace(graph, nodes=nodes, outputs=graph.outputs[-1:]), name="forward", plain=True).run


def _split(times: dict[str, float]) -> dict[str, float]:
    whole, program = times.pop("whole"), times.pop("program")
    forward = times.pop("forward")
    found = {"look-up": times.pop("look-up"), "forward": forward, "backward": program - forward, **times}
    return found | {"the rest": whole - sum(found.values())}


def report(training: Training, pairs: int) -> Comparison:
    """Measure one network and print what was found."""
    check_equal(training)
    found = compare(training.ours, training.autograd, training.inputs, pairs)
    unit, factor = ("µs", 1e6) if found.first.median < 1e-3 else ("ms", 1e3)
    print(f"{training.name}: {pairs} pairs, {found.calls[0]} and {found.calls[1]} steps a sample")
    print(f"  ours      {_scaled(found.first, factor).text(unit)}")
    print(f"  autograd  {_scaled(found.second, factor).text(unit)}")
    print(f"  autograd's time / ours  {found.ratio.text(digits=3)}")
    split = parts(training, pairs)
    for name, seconds in split.items():
        print(f"    {name:<17} {seconds * factor:9.3f} {unit}   {seconds / sum(split.values()):6.1%}")
    return found


def _scaled(estimate: Any, factor: float) -> Any:
    return replace(estimate, median=estimate.median * factor, low=estimate.low * factor, high=estimate.high * factor)


def check_equal(training: Training) -> None:
    """Both sides have to compute the same loss before their times are worth comparing."""
    x, y = training.inputs()
    for _ in range(3):
        torch.testing.assert_close(training.ours(x, y), training.autograd(x, y).detach())


def main() -> int:
    """Run both networks."""
    options = arguments("A training step with our derivative against the same step with torch.autograd.")
    found = report(xor(), options.pairs)
    print()
    slow = report(cnn(), options.pairs)
    verdicts = [
        Verdict("XOR step, autograd's time / ours", found.ratio.median, 2.5, at_least=True),
        Verdict("CNN step, ours / autograd's time", 1 / slow.ratio.median, 1.05),
    ]
    return conclude(verdicts, options)


if __name__ == "__main__":
    sys.exit(main())
