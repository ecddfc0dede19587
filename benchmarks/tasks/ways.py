"""The ways in which users of a library with composable transforms ask for a derivative."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from .task import Task

RATE = 0.1  # of gradient descent
ITERATIONS = 30  # of a fixed point
Function = Callable[..., Any]


@dataclass(frozen=True)
class Transforms:
    """The transforms of one library, with one spelling for all.

    space: the functions that tasks are written in.
    value_and_grad: of a scalar function, in the sequence that its name says.
    vmap: takes a function and the batch axis of each argument.
    solve: a system of linear equations.
    eye_like: the identity of a square matrix's size.
    """

    space: Any
    jacrev: Function
    jacfwd: Function
    vmap: Function
    value_and_grad: Function
    solve: Function
    eye_like: Function


def ways_of(task: Task, transforms: Transforms) -> dict[str, Function]:
    """The functions that compute what a task asks for, each under the name of its transforms."""
    return WAYS[task.derivative](task, transforms)


def bound(task: Task, space: Any) -> Function:
    """The task's function, of its arguments alone; it holds no more than it needs, as a user's would."""
    function, count = task.function, len(task.arguments(0))
    if count == 1:
        return lambda x: function(space, x)
    return lambda *arguments: function(space, *arguments)


def _jacobians(task: Task, t: Transforms) -> dict[str, Function]:
    f = bound(task, t.space)
    found = {"jacrev": t.jacrev(f, task.positions), "jacfwd": t.jacfwd(f, task.positions)}
    return _mapped(task, t, found)


def _hessians(task: Task, t: Transforms) -> dict[str, Function]:
    f, both = bound(task, t.space), {"jacrev": t.jacrev, "jacfwd": t.jacfwd}
    found = {
        f"{outer}({inner})": both[outer](both[inner](f, task.positions), task.positions)
        for outer, inner in product(both, both)
    }
    return _mapped(task, t, found)


def _mapped(task: Task, t: Transforms, ways: dict[str, Function]) -> dict[str, Function]:
    if not task.batched:
        return ways
    axes = (0, *(None for _ in task.arguments(0)[1:]))
    return {f"vmap({name})": t.vmap(way, axes) for name, way in ways.items()}


def _losses(task: Task, t: Transforms) -> dict[str, Function]:
    return {"value_and_grad": t.value_and_grad(bound(task, t.space), task.positions)}


def _steps(task: Task, t: Transforms) -> dict[str, Function]:
    gradient = t.value_and_grad(bound(task, t.space), task.positions)

    def step(*arguments: Any) -> tuple[Any, ...]:
        value, gradients = gradient(*arguments)
        return value, *(p - RATE * g for p, g in zip(arguments, gradients, strict=False))

    return {"value_and_grad and an update": step}


def _implicit(task: Task, t: Transforms) -> dict[str, Function]:
    f = bound(task, t.space)

    def way(transform: Function) -> Function:
        derivatives = transform(f, task.positions)

        def jacobian(z: Any, *arguments: Any) -> Any:
            for _ in range(ITERATIONS):
                z = f(z, *arguments)
            by_state, by_input = derivatives(z, *arguments)
            return t.solve(t.eye_like(by_state) - by_state, by_input)

        return jacobian

    return {f"{name} and a solve": way(getattr(t, name)) for name in ("jacrev", "jacfwd")}


WAYS: dict[str, Callable[[Task, Transforms], dict[str, Function]]] = {
    "jacobian": _jacobians,
    "hessian": _hessians,
    "value_and_grad": _losses,
    "step": _steps,
    "implicit": _implicit,
}
