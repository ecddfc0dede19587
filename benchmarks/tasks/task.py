"""A task: a function, the derivative of it that is asked for, and its arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.random import Generator, default_rng

Array = numpy.ndarray


@dataclass(frozen=True)
class Task:
    """One row of the table.

    function: takes the functions of a peer, as `Space` names them, and then the arguments.
    make: arguments from a generator of random numbers.
    derivative: "jacobian", "hessian", "value_and_grad"; "step": a step of gradient descent; "implicit": the Jacobian of
        a fixed point of the function's first argument in its second.
    argnums: which arguments are differentiated.
    batched: whether each sample of the first argument is differentiated by itself.
    numbers: the same function with numbers in and out, where it can be written so.
    limit: the name of what no program can be faster than, in `limits`.
    """

    name: str
    function: Callable[..., Any]
    make: Callable[[Generator], tuple[Array, ...]]
    derivative: str = "jacobian"
    argnums: tuple[int, ...] = (0,)
    batched: bool = False
    dtype: str = "float64"
    numbers: Callable[..., tuple[Any, ...]] | None = None
    limit: str | None = None

    def arguments(self, seed: int) -> tuple[Array, ...]:
        """The same arguments for the same seed, in every process."""
        return tuple(as_dtype(array, self.dtype) for array in self.make(default_rng(seed)))

    @property
    def positions(self) -> int | tuple[int, ...]:
        """The argnums as transforms take them: one number alone where there is one."""
        return self.argnums[0] if len(self.argnums) == 1 else self.argnums


def as_dtype(array: Array, dtype: str) -> Array:
    """Floating numbers in another precision; whole numbers as they are."""
    array = numpy.asarray(array)
    return array.astype(dtype) if array.dtype.kind == "f" else array
