"""What a call costs besides its program: the public call less the bare program, by kind of arguments."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from harness import Estimate, Verdict, arguments, compare, conclude
from torch import Tensor
from torch.func import functional_call

import pullback
from pullback.training.problems import XorNetwork
from pullback.transform import find


def overhead(f: Callable[..., Any], call: tuple[Any, ...], pairs: int) -> Estimate:
    """Microseconds of the public gradient of `f` beyond those of its program."""
    transform = pullback.grad(f)
    transform(*call)
    entry, flat = find(transform.kind, f, call, {})
    run = entry.program.run

    def bare() -> None:
        run(*flat)

    def public() -> None:
        transform(*call)

    found = compare(public, bare, lambda: (), pairs).difference  # in grad mode, as users call it
    return Estimate(found.median * 1e6, found.low * 1e6, found.high * 1e6)


def cases() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], float | None]]:
    """A function, its arguments, and the most microseconds that its look-up may take."""
    x, y = torch.rand(4, 2), torch.rand(4, 1)
    small = {"w": torch.rand(2, 1), "b": torch.rand(1)}
    network = XorNetwork()
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def of_module(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(functional_call(network, p, (x,)), y)

    def of_dictionary(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return ((x @ p["w"] + p["b"] - y) ** 2).mean()

    return {
        "one tensor": (lambda x: x.sin().sum(), (x,), 2.0),
        "a dictionary of two, and two tensors": (of_dictionary, (small, x, y), 10.0),
        "a module's four parameters, and two tensors": (of_module, (parameters, x, y), None),
    }


def main() -> int:
    """Measure every case."""
    options = arguments("What a call costs besides its program.")
    verdicts = []
    for name, (f, call, limit) in cases().items():
        found = overhead(f, call, options.pairs)
        print(f"{name:<44} {found.text('µs')}")
        if limit is not None:
            verdicts.append(Verdict(f"look-up of {name}", found.median, limit, "µs"))
    return conclude(verdicts, options)


if __name__ == "__main__":
    sys.exit(main())
