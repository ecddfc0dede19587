"""The same under `torch.compile`."""

import time
from dataclasses import replace
from typing import Any

import torch
from tasks.task import Task
from tasks.ways import bound, ways_of

from . import torch_functions
from .contender import Contender
from .torch_eager import TRANSFORMS, by_autograd
from .torch_space import about, arrays, tensors

__all__ = ["about", "contenders", "warm_up"]


def compiled(f: Any) -> Any:
    """Compiled for the shapes that come, and as a whole."""
    return torch.compile(f, fullgraph=True, dynamic=False)


def warm_up() -> None:
    """Let the compiler import itself, look for the processor's features and precompile its headers."""
    compiled(lambda x: x.sinh() * 2)(torch.ones(300))


def contenders(task: Task) -> dict[str, Contender]:
    """Every way, those that are quicker without the compiler first."""
    eager = ways_of(task, TRANSFORMS)
    given = tensors(task.arguments(0))
    order = sorted(eager, key=lambda name: _seconds(eager[name], given))
    ways = {name: Contender(name, compiled(eager[name]), tensors, arrays) for name in order}
    if task.derivative not in ("value_and_grad", "step"):
        return ways
    autograd = by_autograd(task, compiled(bound(task, torch_functions)))
    return {"autograd": replace(autograd, way="autograd of the compiled loss"), **ways}


def _seconds(way: Any, given: tuple[Any, ...]) -> float:
    """Of the second call; a way that fails comes last."""
    try:
        way(*given)
        begin = time.perf_counter()
        way(*given)
    except Exception:  # whatever it is, the compiled way will say it again
        return float("inf")
    return time.perf_counter() - begin
