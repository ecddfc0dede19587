"""Predicted against measured: do plans tell the time that programs take, and is the chosen order the fastest?

    python benchmarks/predictions.py [--calibrate] [--task PATTERN] [--random N] [--backend python] [--clock cpu]

The tasks of the table, and random programs drawn from seeds, are compiled in the orders auto, forward and reverse, and
timed through the public call, in turn, on arguments that are new for each round.  The calibration uses none of them: it
times single operators.  A prediction is compared with the quickest of the rounds, which other work disturbed least, and
the orders with each other round by round.  `--out` writes a page, and all figures beside it as JSON.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import CLOCKS, environment, sample_together, use_clock
from peers import torch_functions
from peers.torch_space import tensors
from tasks.catalogue import TASKS
from tasks.task import Task
from tasks.ways import bound
from torch import Tensor

import pullback

OTHERS = ("forward", "reverse")
HOPELESS = 20  # times as long as the chosen order, predicted: not tried, it may not even fit into memory
ROUNDS = 7
Options = dict[str, Any]
LONGEST = 20.0  # seconds of samples of one program: of slower ones there are fewer rounds


@dataclass(frozen=True)
class Program:
    """A derivative to be planned: a transform that takes an order, and arguments from a seed."""

    name: str
    transform: Callable[..., Any]
    arguments: Callable[[int], tuple[Any, ...]]


def of_task(task: Task, options: Options) -> Program:
    """A task of the table."""
    kind = getattr(pullback, f"batch_{task.derivative}" if task.batched else task.derivative)

    def transform(order: str) -> Any:
        return kind(bound(task, torch_functions), task.positions, order=order, **options)

    return Program(task.name, transform, lambda seed: tensors(task.arguments(seed)))


def tasks(patterns: Sequence[str], options: Options) -> Iterator[Program]:
    """Those that are one derivative, which can be taken in several orders."""
    for task in TASKS.values():
        is_wanted = any(fnmatchcase(task.name, pattern) for pattern in patterns)
        if is_wanted and task.derivative in ("jacobian", "hessian", "value_and_grad"):
            yield of_task(task, options)


def random_program(seed: int, options: Options) -> Program:
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

    size = generator.choice([4, 16, 64])

    def arguments(_: int) -> tuple[Tensor, list[Tensor]]:
        return torch.randn(size), mixers

    return Program(f"random {seed}", lambda order: pullback.jacobian(f, order=order, **options), arguments)


@dataclass(frozen=True)
class Found:
    """What one program takes.

    order, backend: the chosen ones.
    predicted, measured: seconds of a call in the chosen order.
    behind: how many times as long as in the fastest of it, forward and reverse that takes.
    """

    name: str
    order: str
    backend: str
    predicted: float
    measured: float
    behind: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured

    @property
    def is_near(self) -> bool:
        """Whether the prediction is right within a factor of two."""
        return 0.5 <= self.ratio <= 2

    @property
    def is_fast(self) -> bool:
        """Whether the chosen order is the fastest, or within 15 % of it."""
        return self.behind <= 1.15


def measure(program: Program) -> Found:
    """Compile in all orders, and time them in turn."""
    first = program.arguments(0)
    auto = program.transform("auto")
    plan = auto.plan(*first)
    others = [
        program.transform(order)
        for order, one in plan.predictions.items()
        if order in OTHERS and order != plan.order.name and one.seconds < HOPELESS * plan.seconds
    ]
    chosen = [auto, *others]
    seeds = iter(range(1, 1_000))
    rounds = min(ROUNDS, max(1, int(LONGEST / sum(once(t, first) for t in chosen)) - 5))
    _, samples = sample_together(chosen, lambda: program.arguments(next(seeds)), rounds)
    behind = max([1.0, *(median(one[0] / one[k] for one in samples) for k in range(1, len(chosen)))])
    return Found(program.name, plan.order.name, plan.backend, plan.seconds, min(one[0] for one in samples), behind)


def once(transform: Any, arguments: tuple[Any, ...]) -> float:
    """Seconds of a call, by whatever clock."""
    transform(*arguments)
    _, samples = sample_together([transform], lambda: arguments, 1)
    return samples[0][0]


def main() -> int:
    """Measure all, and print what holds."""
    given = arguments()
    torch.set_num_threads(1)
    use_clock(given.clock)
    if given.calibrate:
        for dtype in (torch.float32, torch.float64):
            print(pullback.calibrate(dtype=dtype))
    head = f"{environment()}, {given.clock} clock, backend {given.backend}, {given.expected_calls:,} expected calls"
    print(head)
    options = {"backend": given.backend, "expected_calls": given.expected_calls}
    groups = {
        "tasks": list(tasks(given.task or ["*"], options)),
        "random programs": [random_program(seed, options) for seed in range(given.random)],
    }
    found = {name: [report(program) for program in programs] for name, programs in groups.items()}
    concluded = {name: conclusion(name, results) for name, results in found.items() if results}
    print("\n".join(concluded.values()))
    if given.out is not None:
        save(given.out, head, found, list(concluded.values()))
    return int(not all(holds(results) for results in found.values() if results))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Predicted seconds and chosen orders against measurements.")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first, and keep the figures")
    parser.add_argument("--task", action="append", help="only tasks that fit this pattern; may be repeated")
    parser.add_argument("--random", type=int, default=50, help="how many random programs (default %(default)s)")
    parser.add_argument("--backend", default="auto", help="default %(default)s")
    parser.add_argument("--expected-calls", type=int, default=1_000, help="default %(default)s")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default %(default)s")
    parser.add_argument("--out", type=Path, help="write a page to this file, and the figures beside it as JSON")
    return parser.parse_args()


def report(program: Program) -> Found:
    """Measure one, and print it."""
    found = measure(program)
    marks = "" if found.is_near and found.is_fast else "   <--"
    print(f"{found.name:36}{found.order:>9}{found.backend:>8}{text(found)}{marks}", flush=True)
    return found


def text(found: Found) -> str:
    """Predicted and measured seconds, and how far the chosen order is behind the fastest."""
    times = f"{found.predicted * 1e6:>11.1f} µs / {found.measured * 1e6:>11.1f} µs = {found.ratio:.2f}"
    return f"{times}   behind {found.behind:.2f}"


def conclusion(name: str, results: Sequence[Found]) -> str:
    """How many hold."""
    near, fast = sum(one.is_near for one in results), sum(one.is_fast for one in results)
    return f"{name}, {len(results)}: predicted within a factor 2: {near}; chosen within 15 % of the fastest: {fast}"


def holds(results: Sequence[Found]) -> bool:
    """Whether predictions are near, and choices good."""
    return sum(one.is_near for one in results) >= 0.8 * len(results) and all(one.is_fast for one in results)


def save(path: Path, head: str, found: dict[str, list[Found]], concluded: Sequence[str]) -> None:
    """Write a page, and all figures beside it as JSON."""
    data = {"environment": head, "results": {name: [asdict(one) for one in each] for name, each in found.items()}}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["# Predicted and measured", "", head, "", *(f"- {line}" for line in concluded), ""]
    lines += ["| | order | back end | predicted, µs | measured, µs | ratio | behind the fastest order |"]
    lines += ["|---|---|---|---:|---:|---:|---:|"]
    for one in (one for each in found.values() for one in each):
        times = f"{one.predicted * 1e6:.1f} | {one.measured * 1e6:.1f} | {one.ratio:.2f} | {one.behind:.2f}"
        lines.append(f"| {one.name.replace('*', '&#42;')} | {one.order} | {one.backend} | {times} |")
    path.with_suffix(".md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
