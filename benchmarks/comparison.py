"""One row of the table: ours and every peer on one task, in turn."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy
from harness import SHORTEST_SAMPLE, WARM_UP, Estimate
from peers.client import PEERS, Died, Peer, PeerError, Worker
from tasks.task import Task

OURS = "pullback"
REFERENCE = "torch.func"  # whose results in float64 all others are compared with
TOLERANCES = {"float64": 1e-9, "float32": 1e-3}  # relative to the largest entry; more is a wrong result
GRACE = 60  # seconds beyond its budget after which a peer is given up


@dataclass(frozen=True)
class Options:
    """How to measure.

    pairs: samples of each peer, each next to one of ours.
    budget: seconds that a peer may take until its first result, and again for its samples.
    backend, expected_calls: what ours is told: a back end, or "auto" and how many calls are to pay for building one.
    pin: the processor that all workers are bound to.
    cache: where torch.compile and ours find what they compiled in another run; None: they compile anew.
    """

    pairs: int = 40
    clock: str = "wall"
    budget: float = 150
    backend: str = "auto"
    expected_calls: int = 1_000_000
    pin: int | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class Cell:
    """What one contender was found to take; a wrong result is a problem, and takes no time.

    first: seconds of the first call, compilation included.
    seconds: of a later call; ratio: that over ours, pair by pair; both None where there was no time for samples.
    once: seconds of the quickest of the calls right after the first.
    error: the largest difference from the reference, relative to the largest entry.
    problem: why there is nothing of all that; final: whether it would be the same another time.
    """

    way: str = ""
    first: float | None = None
    once: float | None = None
    seconds: Estimate | None = None
    ratio: Estimate | None = None
    error: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    final: bool = False

    @property
    def may_change(self) -> bool:
        """Whether another run might find something where this one did not."""
        return bool(self.problem) and not self.final


@dataclass(frozen=True)
class Row:
    """A task and its cells, by the names of the peers; ours is among them.  `date`: the day of the last of them."""

    task: str
    cells: dict[str, Cell]
    date: str = ""

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those whose cells are yet to be measured, or have only a problem that may be gone another time."""
        return [name for name in names if name not in self.cells or self.cells[name].may_change]

    def joined(self, later: "Row") -> "Row":
        """With what a later run adds; ours stays as it was, and each ratio that of pairs of samples of one run."""
        kept = {name: cell for name, cell in self.cells.items() if not cell.problem}
        return Row(self.task, self.cells | later.cells | kept, later.date)


@dataclass
class _Entrant:
    """A worker that has given its first result; its pairs are seconds a call of ours and its own."""

    name: str
    worker: Worker
    cell: Cell
    calls: int
    pairs: list[tuple[float, float]] = field(default_factory=list)


def compare(task: Task, names: Sequence[str], options: Options, tell: Callable[[str], None]) -> Row:
    """Measure one task; `tell` is told what is being done."""
    cells: dict[str, Cell] = {}
    today = date.today().isoformat()
    with ExitStack() as stack:
        entrants: list[_Entrant] = []
        try:
            reference = _reference(task, options, tell)
        except PeerError as problem:
            return Row(task.name, {OURS: Cell(problem=f"the reference fails: {problem}")}, today)
        for name in (OURS, *names):
            tell(f"{task.name}: first call of {name}")
            try:
                entrants.append(_enter(stack, task, name, options, reference))
            except PeerError as problem:
                cells[name] = Cell(problem=str(problem), final=problem.final)
        if entrants and entrants[0].name == OURS:
            _sample(task, entrants, options, tell)
        cells.update((one.name, _finished(one)) for one in entrants)
    return Row(task.name, {name: cells[name] for name in (OURS, *names)}, today)


def _peer(name: str, options: Options) -> Peer:
    if name != OURS:
        return PEERS[name]
    return Peer(OURS, "ours", None, {"backend": options.backend, "expected_calls": options.expected_calls})


def _reference(task: Task, options: Options, tell: Callable[[str], None]) -> list[numpy.ndarray]:
    """The results in float64, by PyTorch."""
    tell(f"{task.name}: the reference")
    with Worker(PEERS[REFERENCE], options.pin) as worker:
        details = {"task": task.name, "seed": 0, "precision": "float64", "options": {}}
        answer = worker.ask("prepare", options.budget + GRACE, budget=0, **details)
    return answer["result"]


def _enter(stack: ExitStack, task: Task, name: str, options: Options, reference: list[numpy.ndarray]) -> _Entrant:
    """Start a worker and let it give its first result.  Raises PeerError."""
    try:
        worker, answer = _first_result(stack, task, name, options, options.budget)
    except Died:  # of one of its ways; without time for others it takes the first that works
        worker, answer = _first_result(stack, task, name, options, 0)
    about = worker.ask("about")["text"]
    error = None if name == "limit" else checked_error(answer["result"], reference, task.dtype)
    facts = {"about": about, **answer["facts"]}
    cell = Cell(answer["way"], answer["first"], answer["once"], error=error, facts=facts)
    return _Entrant(name, worker, cell, max(1, int(2 * SHORTEST_SAMPLE / answer["once"]) + 1))


def _first_result(
    stack: ExitStack, task: Task, name: str, options: Options, budget: float
) -> tuple[Worker, dict[str, Any]]:
    """A new worker, and what it says of its first result.  Raises PeerError."""
    peer = _peer(name, options)
    worker = stack.enter_context(Worker(peer, options.pin, options.cache))
    details = {"task": task.name, "seed": 0, "precision": "", "options": peer.options}
    return worker, worker.ask("prepare", options.budget + GRACE, budget=budget, **details)


def largest_error(found: Sequence[numpy.ndarray], reference: Sequence[numpy.ndarray]) -> float:
    """The largest difference over the largest entry, of the worst result.  Raises PeerError for other shapes."""
    shapes = [a.shape for a in found], [b.shape for b in reference]
    if shapes[0] != shapes[1]:
        raise PeerError(f"results of shapes {shapes[0]} where {shapes[1]} are right")
    pairs = zip(found, reference, strict=True)
    return float(numpy.max([abs(a - b).max() / max(abs(b).max(), 1e-300) for a, b in pairs]))  # of a NaN, NaN


def checked_error(found: Sequence[numpy.ndarray], reference: Sequence[numpy.ndarray], dtype: str) -> float:
    """The largest error.  Raises PeerError where it is more than rounding explains."""
    error = largest_error(found, reference)
    if not error <= TOLERANCES[dtype]:
        raise PeerError(f"wrong: an error of {error:.1e} where {TOLERANCES[dtype]:g} is allowed")
    return error


def _sample(task: Task, entrants: list[_Entrant], options: Options, tell: Callable[[str], None]) -> None:
    """Time the peers in turn, each next to ours, on arguments that are new for each pair.

    One that fails on the way has its problem as its cell; without ours there is nothing to compare with.
    """
    ours, *others = entrants
    rounds = WARM_UP + options.pairs
    timed = [one for one in others if one.cell.once * rounds <= options.budget] or [ours]
    for number in range(rounds):
        tell(f"{task.name}: {number + 1} of {rounds}")
        for place, one in enumerate(timed):
            if ours.cell.problem or one.cell.problem:
                continue
            pair = [ours] if one is ours else [ours, one] if number % 2 else [one, ours]
            times = _times(pair, 1 + number * len(entrants) + place, options)
            if times and number >= WARM_UP:
                one.pairs.append((times[OURS], times[one.name]))
    ours.pairs = [(first, first) for one in entrants for first, _ in one.pairs]


def _times(pair: Sequence[_Entrant], seed: int, options: Options) -> dict[str, float]:
    """Seconds a call of each; nothing if one fails, which then has a problem."""
    times = {}
    for one in pair:
        try:
            times[one.name] = one.worker.ask(
                "sample", options.budget + GRACE, seed=seed, calls=one.calls, clock=options.clock
            )["seconds"]
        except PeerError as problem:
            one.cell = Cell(problem=f"fails on other arguments: {problem}")
            return {}
    return times


def _finished(one: _Entrant) -> Cell:
    """The cell with its estimates."""
    if one.cell.problem or not one.pairs:
        return one.cell
    ratio = Estimate.of([theirs / ours for ours, theirs in one.pairs])
    return replace(one.cell, seconds=Estimate.of([theirs for _, theirs in one.pairs]), ratio=ratio)
