"""`torch.func` and `torch.autograd`, as they are."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from tasks.task import Task
from tasks.ways import RATE, Transforms, bound, ways_of
from torch import Tensor

from . import torch_functions
from .contender import Contender
from .torch_space import about, arrays, tensors

__all__ = ["about", "contenders", "warm_up"]


def value_and_grad(f: Any, argnums: Any) -> Any:
    """`grad_and_value` the other way round."""
    both = torch.func.grad_and_value(f, argnums)
    return lambda *arguments: both(*arguments)[::-1]


TRANSFORMS = Transforms(
    torch_functions,
    torch.func.jacrev,
    torch.func.jacfwd,
    torch.func.vmap,
    value_and_grad,
    torch.linalg.solve,
    lambda a: torch.eye(len(a), dtype=a.dtype),
)


def warm_up() -> None:
    """Let PyTorch import what its transforms need."""
    torch.func.jacfwd(torch.func.jacrev(lambda x: x.sinh().sum()))(torch.ones(3))


def contenders(task: Task) -> dict[str, Contender]:
    """Every way."""
    ways = {name: Contender(name, way, tensors, arrays) for name, way in ways_of(task, TRANSFORMS).items()}
    return {"autograd": by_autograd(task, bound(task, torch_functions)), **ways} if _is_loss(task) else ways


def _is_loss(task: Task) -> bool:
    return task.derivative in ("value_and_grad", "step")


def by_autograd(task: Task, loss: Any) -> Contender:
    """A loss and `torch.autograd.grad` on leaves, as training does it."""
    count = len(task.argnums)

    def call(*arguments: Tensor) -> Any:
        value = loss(*arguments)
        gradients = torch.autograd.grad(value, arguments[:count])
        if task.derivative == "value_and_grad":
            return value.detach(), gradients
        with torch.no_grad():
            return value.detach(), [p - RATE * g for p, g in zip(arguments, gradients, strict=False)]

    def leaves(given: Sequence[numpy.ndarray]) -> tuple[Tensor, ...]:
        made = tensors(given)
        return *(t.requires_grad_() for t in made[:count]), *made[count:]

    return Contender("autograd", call, leaves, arrays)
