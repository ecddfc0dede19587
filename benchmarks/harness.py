"""Paired timing: two ways of doing the same thing, measured alternately in one run.

A machine that others share drifts by far more than the differences that matter here.  So each pair of samples is
taken back to back, in turn one or the other first, and what is compared is the ratio within the pair; the median of the
ratios stands with an interval that holds the true median with 95 % confidence.  Where the machine has more work than
processors, `--clock cpu` counts the process's own time only, which is the same for work on one thread.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from math import comb
from pathlib import Path
from typing import Any

import torch

SHORTEST_SAMPLE = 1e-3  # seconds; the clock and the loop around the call are lost in it
PAIRS = 40
WARM_UP = 5  # pairs that are thrown away

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

Step = Callable[..., Any]
Inputs = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval that holds it with 95 % confidence."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Estimate":
        """The estimate from independent samples, by their order statistics: no assumption on how they are spread."""
        ordered = sorted(samples)
        outside = _samples_outside(len(ordered))
        return cls(statistics.median(ordered), ordered[outside], ordered[-1 - outside])

    def text(self, unit: str = "", digits: int = 2) -> str:
        """As in `1.03 µs (1.01–1.06)`."""
        suffix = f" {unit}" if unit else ""
        return f"{self.median:.{digits}f}{suffix} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def _samples_outside(count: int) -> int:
    """How many samples at either end a 95 % interval of the median leaves out: a binomial tail of at most 2.5 %."""
    tail, outside = 0.0, -1
    while outside + 1 < count // 2 and (tail := tail + comb(count, outside + 1) / 2**count) <= 0.025:
        outside += 1
    return max(outside, 0)


@dataclass(frozen=True)
class Comparison:
    """What a paired run found.

    first, second: seconds a call.
    ratio: second over first, pair by pair: how many times as fast the first is.
    difference: first less second, pair by pair, in seconds.
    calls: how many calls each sample is the mean of, for the first and the second.
    """

    first: Estimate
    second: Estimate
    ratio: Estimate
    difference: Estimate
    calls: tuple[int, int]


clock: Callable[[], float] = time.perf_counter


def compare(first: Step, second: Step, inputs: Inputs, pairs: int = PAIRS) -> Comparison:
    """Time two functions alternately.

    Arguments:
        first, second: called with the same arguments.
        inputs: makes fresh arguments; called once for each pair of samples.
        pairs: how many pairs of samples count.
    """
    calls, samples = sample_together((first, second), inputs, pairs)
    return Comparison(
        Estimate.of([a for a, _ in samples]),
        Estimate.of([b for _, b in samples]),
        Estimate.of([b / a for a, b in samples]),
        Estimate.of([a - b for a, b in samples]),
        (calls[0], calls[1]),
    )


def sample_together(
    steps: Sequence[Step], inputs: Inputs, rounds: int = PAIRS
) -> tuple[list[int], list[tuple[float, ...]]]:
    """How many calls of each function make a sample, and round by round the seconds a call of each."""
    made = inputs()
    calls = [_calls_per_sample(step, made) for step in steps]
    samples = []
    for number in range(WARM_UP + rounds):
        made, times = inputs(), [0.0] * len(steps)
        for which in range(len(steps)) if number % 2 else reversed(range(len(steps))):
            times[which] = _sample(steps[which], made, calls[which])
        samples.append(tuple(times))
    return calls, samples[WARM_UP:]


def _sample(step: Step, arguments: tuple[Any, ...], calls: int) -> float:
    begin = clock()
    for _ in repeat(None, calls):
        step(*arguments)
    return (clock() - begin) / calls


def _calls_per_sample(step: Step, arguments: tuple[Any, ...]) -> int:
    """As many as make the shortest sample long enough; the first calls may compile, and do not count."""
    _sample(step, arguments, 3)
    once = min(_sample(step, arguments, 3) for _ in range(3))
    return max(1, int(2 * SHORTEST_SAMPLE / once) + 1)


# ---------------------------------------------------------------- the edges


@dataclass(frozen=True)
class Verdict:
    """One measured quantity and what it is meant to be."""

    name: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign, outcome = "≥" if self.at_least else "≤", "reached" if self.holds else "MISSED"
        return f"{self.name}: {self.value:.3g} {self.unit}".rstrip() + f" (target {sign} {self.limit:g}): {outcome}"


def arguments(description: str) -> argparse.Namespace:
    """Read the options that all benchmarks share, and set PyTorch up for timing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of samples (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="which clock (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    if options.pairs < 30:
        parser.error(f"--pairs {options.pairs}: fewer than 30 pairs say nothing on a shared machine")
    torch.set_num_threads(1)
    use_clock(options.clock)
    print(f"{environment()}, {options.clock} clock\n")
    return options


def use_clock(name: str) -> None:
    """Let all that follows be timed by one of `CLOCKS`."""
    global clock
    clock = CLOCKS[name]


def environment() -> str:
    """What the numbers were taken on."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"PyTorch {torch.__version__}, Python {platform.python_version()}, {_processor()}, "
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} thread used{load}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def conclude(verdicts: Sequence[Verdict], options: argparse.Namespace) -> int:
    """Print which targets are reached, write the results where asked, and return the exit status."""
    print("\n" + "\n".join(map(str, verdicts)))
    if options.json is not None:
        results = [asdict(v) | {"holds": v.holds} for v in verdicts]
        options.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")
    return int(options.strict and not all(v.holds for v in verdicts))
