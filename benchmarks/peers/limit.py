"""What no program can be faster than, where that is known: the products of matrices, or the memory, that it takes."""

from collections.abc import Callable
from typing import Any

import torch
from tasks.task import Task
from torch import Tensor

from .contender import Contender, NotOffered
from .torch_space import about, tensors

__all__ = ["about", "contenders", "warm_up"]


def warm_up() -> None:
    """Nothing to be done."""


def contenders(task: Task) -> dict[str, Contender]:
    """The one limit of a task."""
    if task.limit is None:
        raise NotOffered("not known")
    way, make = LIMITS[task.limit]
    known: list[Callable[[], Any]] = []

    def convert(given: Any) -> tuple[Any, ...]:
        known[:] = [make(*tensors(given))]
        return ()

    return {"": Contender(way, lambda: known[0](), convert, lambda _: [])}


def _bottleneck(x: Tensor, *weights: Tensor) -> Callable[[], Any]:
    """The last product, whose factors are as narrow as the bottleneck, into memory that is there already."""
    samples = x.shape[:-1].numel()
    left, right = (torch.randn(samples, *shape, dtype=x.dtype) for shape in ((256, 4), (4, 256)))
    out = torch.empty(samples, 256, 256, dtype=x.dtype)
    return lambda: torch.bmm(left, right, out=out)


def _mlp(x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Callable[[], Any]:
    """Forward, and the two products of reverse mode for all samples at once, into memory that is there already."""
    samples, wide, rows = len(x), second.shape[0], third.shape[1]
    hidden, pulled = (torch.randn(n, wide, dtype=x.dtype) for n in (samples, samples * rows))
    one, two = torch.empty_like(hidden), torch.empty_like(pulled)
    narrow = torch.empty(samples * rows, first.shape[0], dtype=x.dtype)

    def run() -> None:
        torch.mm(x, first, out=one)
        torch.mm(hidden, second, out=one)
        hidden @ third
        torch.mm(pulled, second, out=two)
        torch.mm(two, first.t(), out=narrow)

    return run


def _squares(x: Tensor) -> Callable[[], Any]:
    """The closed form."""
    return lambda: 2 * x


LIMITS: dict[str, tuple[str, Callable[..., Callable[[], Any]]]] = {
    "bottleneck": ("last product", _bottleneck),
    "MLP": ("its products", _mlp),
    "squares": ("2 * x", _squares),
}
