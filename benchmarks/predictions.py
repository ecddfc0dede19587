"""Predicted against measured: do plans tell the time that programs take, and is the chosen order the fastest?

    python benchmarks/predictions.py [--calibrate] [--random N] [--clock cpu]

Each Jacobian is compiled in the orders forward, reverse and auto, and each program is timed through the public call.
The random programs are drawn from a seed; none of what is timed here is used by the calibration.
"""

import argparse
import itertools
import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

import pullback

ORDERS = ("auto", "forward", "reverse")
Task = tuple[str, Callable[..., Any], tuple[Any, ...]]


def weights_of(*sizes: int) -> list[Tensor]:
    return [torch.randn(m, n) / m**0.5 for m, n in itertools.pairwise(sizes)]


def layers(x: Tensor, weights: list[Tensor]) -> Tensor:
    for weight in weights:
        x = (x @ weight).tanh()
    return x


def recurrent(state: Tensor, weight: Tensor) -> Tensor:
    for _ in range(50):
        state = (state @ weight).tanh()
    return state


def transformer() -> Task:
    block = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0, batch_first=True)
    state = {name: p.detach() for name, p in block.named_parameters()}
    return "transformer block", lambda x: functional_call(block, state, (x,)), (torch.randn(1, 12, 32),)


def tasks() -> Iterator[Task]:
    yield "bottleneck 256-64-4-64-256", layers, (torch.randn(256), weights_of(256, 64, 4, 64, 256))
    yield "MLP 64-256-256-32", layers, (torch.randn(64), weights_of(64, 256, 256, 32))
    yield "hourglass", layers, (torch.randn(256), weights_of(256, 16, 256, 16, 256, 16, 256))
    yield "50 recurrent steps", recurrent, (torch.randn(8), torch.randn(8, 8) / 3)
    yield transformer()
    yield "softmax of rows", lambda x: x.softmax(-1).log(), (torch.randn(50, 20),)
    yield "element by element", lambda x: (x.sin() * x.exp()).tanh(), (torch.randn(300),)


def random_task(seed: int) -> Task:
    """A vector of some size through some steps, each of which reads one or two of the vectors before it."""
    generator = random.Random(seed)
    sizes = [generator.choice([4, 16, 64, 128]) for _ in range(generator.randint(3, 9))]
    choices = [(generator.choice(["mix", "mix", "wave", "gate"]), generator.random()) for _ in sizes]
    torch.manual_seed(seed)
    mixers = [torch.randn(size, 128) / 11 for size in sizes]

    def f(x: Tensor, mixers: list[Tensor]) -> Tensor:
        values = [x]
        for mixer, (kind, which) in zip(mixers, choices, strict=True):
            value, other = values[-1], values[int(which * len(values))]
            if kind == "mix":
                values.append(mixer[:, : len(value)] @ value + other.sum())
            else:
                values.append(value.sin() * value if kind == "wave" else value * other.mean().sigmoid())
        return values[-1]

    return f"random {seed}", f, (torch.randn(generator.choice([4, 16, 64])), mixers)


def seconds_of(transform: Callable[..., Any], arguments: tuple[Any, ...], clock: Callable[[], float]) -> float:
    """The median time of a call, of samples of at least 20 ms."""
    transform(*arguments)

    def sample(count: int) -> float:
        start = clock()
        for _ in range(count):
            transform(*arguments)
        return clock() - start

    count = 1
    while sample(count) < 0.02:
        count *= 2
    return median(sample(count) for _ in range(5)) / count


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted seconds and chosen orders against measurements.")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first, and keep the figures")
    parser.add_argument("--random", type=int, default=50, help="how many random programs")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    if arguments.calibrate:
        print(pullback.calibrate())
    near = fast = count = 0
    for name, f, given in itertools.chain(tasks(), map(random_task, range(arguments.random))):
        transforms = {order: pullback.jacobian(f, order=order) for order in ORDERS}
        measured = {order: seconds_of(transform, given, clock) for order, transform in transforms.items()}
        plan = transforms["auto"].plan(*given)
        ratio, behind = plan.seconds / measured["auto"], measured["auto"] / min(measured.values())
        near, fast, count = near + (0.5 <= ratio <= 2), fast + (behind <= 1.15), count + 1
        times = "  ".join(f"{order} {measured[order] * 1e6:>8.0f}" for order in ORDERS)
        print(f"{name:28}{times} µs   predicted/measured {ratio:.2f}   behind the fastest {behind:.2f}", flush=True)
    print(f"predicted within a factor 2: {near} of {count}; chosen within 15 % of the fastest: {fast} of {count}")


if __name__ == "__main__":
    main()
