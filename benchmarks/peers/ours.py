"""pullback itself, through its public calls."""

from collections.abc import Callable
from typing import Any

import torch
from tasks.task import Task
from tasks.ways import Transforms, bound, ways_of

import pullback

from . import torch_functions
from .contender import Contender
from .torch_space import arrays, tensors


def about() -> str:
    """Versions."""
    return f"pullback {pullback.__version__}, PyTorch {torch.__version__}"


def warm_up() -> None:
    """Let PyTorch import its tracing machinery, and ours build what it builds once in a process."""
    for transform in (pullback.jacobian, pullback.grad):
        transform(lambda x: x.sinh().sum())(torch.ones(3, dtype=torch.float64))


def contenders(task: Task, **options: Any) -> dict[str, Contender]:
    """The one way; `options` are those of our transforms: which back end, and how many calls it is to pay within."""
    transform = _transform(task, options)
    given = tensors(task.arguments(0))
    facts = {"plan": lambda: _plan(transform, given)}
    return {"": Contender(task.derivative, transform, tensors, arrays, facts)}


def _plan(transform: Any, given: tuple[Any, ...]) -> dict[str, Any]:
    """What the plan says of a single derivative."""
    try:
        plan = transform.plan(*given)
    except pullback.PullbackError:  # a function as it stands has no plan
        return {}
    named = {name: str(getattr(plan, name)) for name in ("backend", "reason") if getattr(plan, name, None)}
    return {"multiplications": plan.multiplications, "seconds": plan.seconds, "order": plan.order.name} | named


def _transform(task: Task, options: dict[str, Any]) -> Callable[..., Any]:
    if task.derivative in ("step", "implicit"):
        return pullback.compile(next(iter(ways_of(task, _TRANSFORMS).values())), **options)
    kind = f"batch_{task.derivative}" if task.batched else task.derivative
    return getattr(pullback, kind)(bound(task, torch_functions), task.positions, **options)


_TRANSFORMS = Transforms(
    torch_functions,
    pullback.jacobian,
    pullback.jacobian,
    torch.vmap,
    pullback.value_and_grad,
    torch.linalg.solve,
    lambda a: torch.eye(len(a), dtype=a.dtype),
)
