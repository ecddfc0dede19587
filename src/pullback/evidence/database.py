"""PyTorch's operator database: its samples, each as a function of the tensors that are differentiated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..torch_private import operator_database, tree_flatten, tree_leaves, tree_unflatten

SEED = 42  # what the database itself draws random operators with

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Example:
    """One sample of an operator.

    function: a function of the differentiated tensors alone, which returns every tensor that PyTorch differentiates.
    primals: the differentiated tensors.
    has_results: whether there is any such tensor among the results.
    forward_mode, twice: whether PyTorch has forward mode, and second derivatives, for the operator.
    """

    function: Function
    primals: tuple[Tensor, ...]
    has_results: bool
    forward_mode: bool
    twice: bool


@cache
def operators() -> dict[str, Any]:
    """Every differentiable operator of the database that a CPU can run, by name, in alphabetical order.

    Raises ModuleNotFoundError if a package that the database needs is not installed.
    """
    runnable = [op for op in operator_database() if op.supports_autograd and dtypes_of(op)]
    return {op.full_name: op for op in sorted(runnable, key=lambda op: op.full_name)}


def dtypes_of(op: Any) -> tuple[torch.dtype, ...]:
    """The dtypes that an operator is checked in: double precision, and complex double precision where it has that."""
    supported = op.supported_backward_dtypes("cpu")
    return tuple(dtype for dtype in (torch.float64, torch.complex128) if dtype in supported)


def chosen(patterns: list[str]) -> list[str]:
    """The names that equal or, with a star at the end, begin with one of the patterns; all names without patterns.

    Raises ArgumentError for a pattern that fits no operator.
    """
    found: set[str] = set()
    for pattern in patterns:
        stem = pattern.removesuffix("*")
        fitting = {n for n in operators() if n == pattern or (stem != pattern and n.startswith(stem))}
        if not fitting:
            required = "give a name such as nn.functional.relu, or the beginning of one and a star"
            raise ArgumentError(f"--op {pattern!r} is no differentiable operator of the database: {required}")
        found |= fitting
    return [name for name in operators() if name in found or not patterns]


def examples(name: str, dtype: torch.dtype, limit: int | None = None) -> Iterator[Example]:
    """The samples of an operator (the first `limit`); the same ones each time."""
    op = operators()[name]
    torch.manual_seed(crc32(name.encode()))
    for sample in islice(op.sample_inputs("cpu", dtype, requires_grad=True), limit):
        with torch.random.fork_rng(devices=[]):
            yield example_of(op, sample)


def count(name: str, dtype: torch.dtype) -> int:
    """How many samples of an operator there are."""
    torch.manual_seed(crc32(name.encode()))
    return sum(1 for _ in operators()[name].sample_inputs("cpu", dtype, requires_grad=True))


def example_of(op: Any, sample: Any) -> Example:
    """A sample as a function of those of its tensors that require a gradient."""
    leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    fixed = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    operator, wrapper, finish = op.get_op(), op.gradcheck_wrapper, sample.output_process_fn_grad

    def results(*tensors: Tensor) -> list[Any]:
        arguments = list(fixed)
        for place, tensor in zip(places, tensors, strict=True):
            arguments[place] = tensor
        first, args, kwargs = tree_unflatten(arguments, spec)
        return tree_leaves(finish(wrapper(operator, first, *args, **kwargs)))

    torch.manual_seed(SEED)
    reached = [isinstance(y, Tensor) and y.requires_grad for y in results(*(leaves[k] for k in places))]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(y for y, wanted in zip(results(*tensors), reached, strict=True) if wanted)

    primals = tuple(fixed[k] for k in places)
    return Example(function, primals, any(reached), op.supports_forward_ad, op.supports_gradgrad)
