"""All tasks, by name."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy
from numpy.random import Generator

from . import networks, published
from .task import Task

BATCHES = (512, 100_000)


def _of_array(numbers: Callable[..., Any], is_single: bool) -> Callable[..., Any]:
    """A function of numbers as one of the entries of an array; a single result is no array."""
    if is_single:
        return lambda np, x: numbers(np, *np.entries(x))[0]
    return lambda np, x: np.join(numbers(np, *np.entries(x)))


def _near(numbers: Callable[..., Any], samples: int | None, random: Generator) -> tuple[numpy.ndarray, ...]:
    """Arguments around those at which the function is usually evaluated."""
    centre = numpy.array(published.CENTRES[numbers])
    spread = random.standard_normal(centre.shape if samples is None else (samples, *centre.shape))
    return (centre * (1 + 0.03 * spread),)


def _published(name: str, numbers: Callable[..., Any], derivative: str = "jacobian") -> Iterator[Task]:
    """One sample, and batches of them."""
    function = _of_array(numbers, numbers is published.black_scholes)
    yield Task(name, function, partial(_near, numbers, None), derivative, numbers=numbers)
    for samples in BATCHES:
        make = partial(_near, numbers, samples)
        yield Task(f"{name} ×{samples}", function, make, derivative, batched=True, numbers=numbers)


def _separate(name: str, numbers: Callable[..., Any]) -> Task:
    """Every number as an argument of its own, and as a result of its own."""
    count = len(published.CENTRES[numbers])
    return Task(
        f"{name}, separate numbers",
        numbers,
        lambda random: tuple(_near(numbers, None, random)[0]),
        argnums=tuple(range(count)),
        numbers=numbers,
    )


def _jacobians() -> Iterator[Task]:
    yield from _published("roe flux 1-D", published.roe_flux_1d)
    yield _separate("roe flux 1-D", published.roe_flux_1d)
    yield from _published("roe flux 3-D", published.roe_flux_3d)
    yield from _published("robot arm", published.robot_arm)
    yield from _published("heart dipole", published.heart_dipole)
    yield from _published("propane combustion", published.propane_combustion)
    yield from _published("Black-Scholes gradient", published.black_scholes)
    yield from _published("Black-Scholes Hessian", published.black_scholes, "hessian")


def _networks() -> Iterator[Task]:
    thin, wide, narrow = (256, 64, 4, 64, 256), (64, 256, 256, 32), (256, 16, 256, 16, 256, 16, 256)
    dense, layers = networks.dense, networks.layers
    yield Task("bottleneck", layers, dense(*thin), limit="bottleneck")
    yield Task("bottleneck ×32", layers, dense(*thin, samples=32), batched=True, limit="bottleneck")
    yield Task("hourglass", layers, dense(*narrow))
    yield Task("MLP ×128", layers, dense(*wide, samples=128), batched=True, limit="MLP")
    yield Task("Elman RNN", networks.elman, networks.sequence, argnums=(0, 1))
    yield Task("transformer block", networks.block, networks.tokens)
    losses = {
        "MLP loss": (networks.mlp_loss, networks.mlp_data),
        "CNN loss": (networks.cnn_loss, networks.cnn_data),
        "RNN loss": (networks.rnn_loss, networks.rnn_data),
        "transformer loss": (networks.block_loss, networks.block_data),
    }
    for name, (loss, make) in losses.items():
        parameters = tuple(range(len(make(numpy.random.default_rng(0))) - 2))
        yield Task(name, loss, make, "value_and_grad", parameters)
    yield Task("fixed point", networks.fixed_point, networks.fixed_point_data, "implicit", (0, 1))


def _tasks() -> Iterator[Task]:
    yield from _jacobians()
    for task in _networks():
        yield task
        yield replace(task, name=f"{task.name}, float32", dtype="float32")
    yield Task("XOR step", networks.xor_loss, networks.xor_data, "step", (0, 1, 2, 3), dtype="float32")
    yield Task(
        "(x**2).sum(-1)",
        networks.squares,
        lambda random: (random.random((4000, 4000)),),
        batched=True,
        limit="squares",
    )


TASKS: dict[str, Task] = {task.name: task for task in _tasks()}
