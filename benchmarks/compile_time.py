"""From a function to its derivative's program: the first public call, and how the time grows with the graph."""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
from harness import Verdict, arguments, conclude
from steps import cnn
from torch import Tensor

import pullback
from pullback.signature import CACHE

REPEATS = 5
SIZES = (500, 1000, 2000)


def operators(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of `count` operators: products, sums, element-wise ones, and an input that is used everywhere."""

    def f(x: Tensor, w: Tensor) -> Tensor:
        h = x
        for _ in range((count - 1) // 5):
            h = torch.tanh(h @ w) * 0.5 + x.sin()
        return h.sum()

    return f


def first_call(f: Callable[..., Any], call: tuple[Any, ...], argnums: Any = 0) -> float:
    """Seconds of a call for which there is no program yet."""
    CACHE.clear()
    transform = pullback.value_and_grad(f, argnums)
    begin = harness.clock()
    transform(*call)
    return harness.clock() - begin


def of_network() -> float:
    """Seconds to the program of the CNN's loss and gradient."""
    training = cnn()
    return first_call(training.transform.f, (training.parameters, *training.inputs()))


def in_new_process() -> float:
    """The same as the first thing that a process does after its imports."""
    command = [sys.executable, __file__, "--one"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(outcome.stdout)


def of_operators(count: int) -> float:
    """Seconds for `count` operators."""
    return first_call(operators(count), (torch.rand(4, 4), torch.rand(4, 4) / 4), (0, 1))


def main() -> int:
    """Measure the network and the growth."""
    options = arguments("From a function to its derivative's program.")
    fresh = statistics.median(in_new_process() for _ in range(REPEATS))
    of_network()
    warm = statistics.median(of_network() for _ in range(REPEATS))
    rounds = [{count: of_operators(count) for count in SIZES} for _ in range(REPEATS)]
    seconds = {count: statistics.median(r[count] for r in rounds) for count in SIZES}
    growth = statistics.median(r[2000] / r[500] for r in rounds)
    print(f"CNN, first in its process  {fresh:.3f} s\nCNN, later                 {warm:.3f} s")
    for count, taken in seconds.items():
        print(f"{count:>5} operators            {taken:.3f} s   {taken / count * 1e3:.2f} ms each")
    verdicts = [
        Verdict("CNN, first in its process", fresh, 0.5, "s"),
        Verdict("CNN, later", warm, 0.5, "s"),
        Verdict("1,000 operators", seconds[1000], 2.0, "s"),
        Verdict("time for 2,000 operators / for 500", growth, 5.0),
    ]
    return conclude(verdicts, options)


def is_one(argv: list[str]) -> bool:
    """Whether this process is to measure one first call, and nothing else."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--one", action="store_true")
    return parser.parse_known_args(argv)[0].one


if __name__ == "__main__":
    if is_one(sys.argv[1:]):
        torch.set_num_threads(1)
        print(of_network())
    else:
        sys.exit(main())
