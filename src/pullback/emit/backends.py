"""The back ends: from a lowered graph to a program that runs.  Another one is one entry here."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from ..cost import CostModel, shipped_model
from ..errors import ArgumentError, NativeError
from ..graph import FLOATING, Graph, Value
from ..native.prediction import CALL, COMPILER
from .inductor import emit_inductor
from .native import emit_native, offer_of_native
from .offers import BackEnd, Declined, Offer
from .prediction import predicted_seconds, seconds_of
from .preparation import forget
from .program import Program
from .python import emit_python

LOG = logging.getLogger("pullback")
CALLS = 1000  # that a program is expected to serve, where nobody says
CALL_OF_PYTHON = 3e-6  # seconds from one call of a program to the next, beyond its operators
WRITING = 3e-5  # seconds for each operator until a program of Python can be called
COMPILING, COMPILING_EACH = 8.0, 0.05  # the same for Inductor, which takes some seconds for the smallest program
FUSED = 0.2  # of the Python program's time is left, roughly, where Inductor fuses operators on a GPU


@dataclass(frozen=True)
class Auto:
    """The back end that pays within so many calls of the program."""

    calls: int = CALLS


def _offer_of_python(graph: Graph, model: CostModel) -> Offer:
    return Offer(CALL_OF_PYTHON + predicted_seconds(graph, model), WRITING * len(graph.nodes))


def _offer_of_inductor(graph: Graph, model: CostModel) -> Offer:
    if not any(value.device.startswith("cuda") for value in graph.inputs):
        raise Declined  # it is used where it is asked for
    return Offer(FUSED * predicted_seconds(graph, model), COMPILING + COMPILING_EACH * len(graph.nodes))


BACKENDS: Mapping[str, BackEnd] = {
    "python": BackEnd(emit_python, _offer_of_python),
    "native": BackEnd(emit_native, offer_of_native, gives_way=True, at_best=Offer(CALL, COMPILER)),
    "inductor": BackEnd(emit_inductor, _offer_of_inductor),
}
DEFAULT = "python"


def check_backend(backend: object) -> None:
    """Raise ArgumentError unless a back end of this name exists."""
    if not isinstance(backend, Auto) and backend != "auto" and backend not in BACKENDS:
        known = " and ".join(map(repr, ("auto", *BACKENDS)))
        raise ArgumentError(f"backend={backend!r}: {known} exist so far")


@dataclass(frozen=True)
class Choice:
    """A back end for one graph.

    name, reason: which one, and why.
    seconds: what it promises that a call takes.
    is_asked_for: whether it was named, and no other may stand in for it.
    """

    name: str
    reason: str
    seconds: float
    is_asked_for: bool = False


def choose(graph: Graph, backend: str | Auto, *, plain: bool, model: CostModel) -> Choice:
    """The back end for a lowered graph.

    Arguments:
        backend: a name, or `Auto`: the one with which all expected calls take the least time, building included.
        plain: as of `emit_python`; what is not plain is part of another program, and Python.
        model: what operators take.
    """
    if not plain:
        return Choice(DEFAULT, "it becomes part of another program", seconds_of(graph, model))
    if isinstance(backend, str) and backend != "auto":
        return Choice(backend, "asked for", _promised(graph, backend, model), not BACKENDS[backend].gives_way)
    calls = backend.calls if isinstance(backend, Auto) else CALLS
    offers, reasons = _offers(graph, model, calls)
    total = {name: one.total(calls) for name, one in offers.items()}
    best = min(total, key=total.__getitem__)
    for name in offers.keys() - {best}:
        ours, others = _spoken(total[best]), _spoken(total[name])
        reasons[name] = f"{calls:,} calls take {ours}, with {name} {others}, building included"
    return Choice(best, "; ".join(reasons.values()) or "the only one", offers[best].seconds)


def _spoken(seconds: float) -> str:
    """Two digits, or whole seconds: 0.076 s, 140 s."""
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:,.0f} s"


def _promised(graph: Graph, name: str, model: CostModel) -> float:
    """Seconds of a call with one back end; those of Python where it promises nothing."""
    offer = BACKENDS[name].offer or _offer_of_python
    try:
        return offer(graph, model).seconds
    except (Declined, NativeError):
        return _offer_of_python(graph, model).seconds


def emit(
    graph: Graph,
    name: str,
    *,
    plain: bool,
    backend: str | Auto | Choice = "auto",
    returned: Mapping[int, Value] | None = None,
) -> Program:
    """The program of a lowered graph.

    Arguments:
        graph, name, plain, returned: as of `emit_python`.
        backend: as of `choose`, or what it has chosen.

    Raises NativeError: the back end that is asked for by name cannot make this program.
    """
    given = backend if isinstance(backend, Choice) else choose(graph, backend, plain=plain, model=_shipped(graph))
    chosen, reason = given.name, given.reason
    try:
        program = BACKENDS[chosen].emit(graph, name, plain=plain, returned=returned)
    except (NativeError, Declined) as error:
        if given.is_asked_for:
            raise
        if isinstance(error, NativeError):
            _warn(chosen, error)
        program, reason = BACKENDS[DEFAULT].emit(graph, name, plain=plain, returned=returned), f"{chosen}: {error}"
        chosen = DEFAULT
    forget(graph)
    LOG.info("%s runs on the backend %r (%d operators): %s", name, chosen, len(graph.nodes), reason)
    return replace(program, backend=chosen, reason=reason)


_warned: set[str] = set()


def _warn(name: str, error: NativeError) -> None:
    """Tell a user once in a process that a back end fails; the reasons of plans say it of every program."""
    if name not in _warned:
        _warned.add(name)
        problem = f"the back end {name!r} fails, and programs run on {DEFAULT!r}: {error}"
        LOG.warning(problem)
        warnings.warn(problem, RuntimeWarning, stacklevel=3)


def _offers(graph: Graph, model: CostModel, calls: int) -> tuple[dict[str, Offer], dict[str, str]]:
    """What the back ends promise, and why some do not."""
    offers: dict[str, Offer] = {}
    reasons: dict[str, str] = {}
    for name, one in BACKENDS.items():
        best = min((offer.total(calls) for offer in offers.values()), default=inf)
        try:
            if one.at_best.total(calls) > best:
                raise Declined(f"{calls:,} calls take {_spoken(best)}, less than building")
            if one.offer is not None:
                offers[name] = one.offer(graph, model)
        except (Declined, NativeError) as reason:
            reasons.update({name: f"{name}: {reason}"} if reason.args else {})
            if isinstance(reason, NativeError):
                _warn(name, reason)
    return offers, reasons


def _shipped(graph: Graph) -> CostModel:
    first = next((v for v in graph.inputs if v.dtype in FLOATING), None)
    return shipped_model("cpu", "float32") if first is None else shipped_model(first.device, first.dtype)


def normal_backend(backend: object, expected_calls: object) -> str | Auto:
    """The back end that a user asks for.  Raises ArgumentError for what is none, and for what is no number of calls."""
    if type(expected_calls) is not int or expected_calls < 1:
        raise ArgumentError(f"expected_calls={expected_calls!r}: it must be a number of calls, 1 or more")
    check_backend(backend)
    assert isinstance(backend, (str, Auto))
    return Auto(expected_calls) if backend == "auto" and expected_calls != CALLS else backend
