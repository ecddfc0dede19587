"""The functions that the API is tested on: a name, a function, and what its arguments are drawn from.

An argument is given as a shape (normally distributed, float64) or by one of the makers below.  Floating arguments are
differentiated, the others are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

Maker = Callable[[torch.Generator], torch.Tensor]
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A function under test, and how to make arguments for it."""

    name: str
    f: Callable[..., Any]
    makers: tuple[tuple[int, ...] | Maker, ...]

    def __str__(self) -> str:
        return self.name

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """The same arguments each time."""
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        makers = [m if callable(m) else normal(*m) for m in self.makers]
        return tuple(make(generator) for make in makers)

    def argnums(self) -> tuple[int, ...]:
        """The positions of floating arguments."""
        return tuple(k for k, argument in enumerate(self.arguments()) if argument.is_floating_point())

    def closed(self) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
        """A function of the floating arguments alone, the others held fast; and those arguments."""
        arguments, argnums = self.arguments(), self.argnums()

        def closed(*floating: torch.Tensor) -> Any:
            given = dict(zip(argnums, floating, strict=True))
            return self.f(*(given.get(k, argument) for k, argument in enumerate(arguments)))

        return closed, tuple(arguments[k] for k in argnums)

    def scalar(self) -> Callable[..., torch.Tensor]:
        """A scalar function of the same arguments: the outputs, each entry with a weight of its own, summed."""

        def weighted(*arguments: torch.Tensor) -> torch.Tensor:
            return weighted_sum(self.f(*arguments))

        return weighted


def weighted_sum(output: Any) -> torch.Tensor:
    """A quadratic polynomial of every entry, each with a weight of its own, summed."""
    total = torch.zeros((), dtype=torch.float64)
    for k, leaf in enumerate(tree_leaves(output)):
        weight = torch.linspace(0.5, 1.5 + k, leaf.numel(), dtype=leaf.dtype).reshape(leaf.shape)
        total = total + (weight * leaf * (leaf + 1)).sum()
    return total


def normal(*shape: int) -> Maker:
    return lambda generator: torch.randn(shape, generator=generator, dtype=torch.float64)


def between(low: float, high: float, *shape: int) -> Maker:
    return lambda generator: low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def positive(*shape: int) -> Maker:
    return between(0.3, 2.0, *shape)


def unit(*shape: int) -> Maker:
    return between(0.1, 0.9, *shape)


def whole(below: int, *shape: int) -> Maker:
    return lambda generator: torch.randint(below, shape, generator=generator)


def mask(*shape: int) -> Maker:
    return lambda generator: torch.rand(shape, generator=generator) < 0.5


def transposed(*shape: int) -> Maker:
    return lambda generator: normal(*shape)(generator).mT


def expanded(*shape: int) -> Maker:
    """A tensor that is one row, seen several times."""
    return lambda generator: normal(1, *shape[1:])(generator).expand(shape)


def strided(size: int) -> Maker:
    return lambda generator: normal(2 * size)(generator)[::2]


def cases(table: dict[str, Row]) -> list[Case]:
    """The rows of a table as cases."""
    return [Case(name, row[0], row[1:]) for name, row in table.items()]
