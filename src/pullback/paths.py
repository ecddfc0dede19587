"""The way of cotangents through a record: which steps they pass, in which order, and where they are added up."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from .history import History, Step

T = TypeVar("T")
_PARTS = frozenset(("aten.select.int", "aten.slice.Tensor"))


@dataclass(frozen=True)
class Path:
    """The steps between a value and sources that it depends on.

    steps: the numbers of the steps on the way, the last first.
    order: the sources that the output depends on, in the order in which PyTorch would complete their gradients.
    completed: for each of them the first step that reads it, after which its gradient is complete.
    on_path: every value between sources and output.
    together: for steps that take parts of one value all of these; they are pulled back together at the first of them,
        so that parts which make up the whole are joined instead of added to zeros.
    """

    steps: tuple[int, ...]
    order: tuple[int, ...]
    completed: dict[int, int]
    on_path: frozenset[int]
    together: dict[int, tuple[int, ...]] = field(default_factory=dict)


def find_path(history: History, output: int, sources: Sequence[int]) -> Path:
    """The steps between sources and an output, the last first, and the sources that they reach."""
    reached, needed = set(sources), {output}
    steps = history.steps[: history.producers[output] + 1]
    for step in steps:
        if any(k in reached for k in step.inputs):
            reached.update(k for k in step.outputs if k is not None and history.is_continuous(k))
    live: list[int] = []
    completed: dict[int, tuple[int, int]] = {}
    for number in range(len(steps) - 1, -1, -1):
        step = steps[number]
        if any(k in needed and k in reached for k in step.outputs if k is not None):
            read = [(place, k) for place, k in enumerate(step.inputs) if k in reached]
            if read:
                live.append(number)
            needed.update(k for _, k in read)
            completed.update((k, (-number, place)) for place, k in reversed(read))
    on_path = reached & needed if output in reached else set()
    place = {k: completed.get(k, (-len(steps), 0)) for k in on_path}
    order = sorted((k for k in dict.fromkeys(sources) if k in on_path), key=place.__getitem__)
    done = {k: -place[k][0] for k in order}
    if not order:
        return Path((), (), done, frozenset(on_path))
    return Path(tuple(live), tuple(order), done, frozenset(on_path), _together(history, reversed(live)))


def _together(history: History, numbers: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """For each step that takes a part of a value the steps that take parts of it, the first one first."""
    readers: dict[int, list[int]] = {}
    for number in numbers:
        step = history.steps[number]
        if step.op in _PARTS:
            readers.setdefault(step.inputs[0], []).append(number)
    return {number: tuple(group) for group in readers.values() if len(group) > 1 for number in group}


def follow(
    history: History,
    path: Path,
    seed: tuple[int, T],
    pull: Callable[[Sequence[Step], Sequence[int], Sequence[int], Sequence[T]], Iterable[tuple[T | None, bool]]],
    add: Callable[[T, T, Step], T],
    complete: Callable[[int, T, bool], T],
) -> dict[int, T]:
    """Take a cotangent through all steps, and return those of the sources; nothing stands for no derivative.

    Arguments:
        seed: the value that is differentiated, and its cotangent.
        pull: from steps, the values among their results whose cotangents have come, the values among their operands
            that lie on the path, and those cotangents; to the cotangents of the operands, each with whether it has
            memory of its own.
        add: the sum of two cotangents, at a step.
        complete: called with each value, its complete cotangent and whether that has memory of its own; what is
            returned goes on.
    """
    cotangents, waiting, found = {seed[0]: (seed[1], False)}, dict[int, T](), dict[int, T]()
    inputs = [k for k in path.order if history.producers[k] < 0]

    def take(k: int) -> None:
        if k in cotangents:
            waiting[k] = complete(k, *cotangents.pop(k))
            if k in path.completed:
                found[k] = waiting[k]

    for number in path.steps:
        for k in history.steps[number].outputs:
            if k is not None:
                take(k)
        group = path.together.get(number, (number,))
        if number == group[0]:
            steps = [history.steps[n] for n in group]
            given = [k for step in steps for k in step.outputs if k in waiting]
            operands = tuple(dict.fromkeys(k for step in steps for k in step.inputs if k in path.on_path))
            arriving = [waiting.pop(k) for k in given]
            pulled = pull(steps, given, operands, arriving) if given else ()
            for k, (value, is_own) in zip(operands, pulled, strict=False):
                if value is not None:
                    known = cotangents.get(k)
                    cotangents[k] = (value, is_own) if known is None else (add(known[0], value, steps[0]), True)
        while inputs and path.completed[inputs[0]] == number:
            take(inputs.pop(0))
    for k in path.order:  # those that no step further on computes or reads
        if k not in found:
            take(k)
    return {k: found[k] for k in path.order if k in found}
