"""What a function reads that no guard can compare: random numbers of Python and NumPy, clocks, files, the environment.

It would be a constant of the program, so it is refused where it is seen while the function is captured.  A source of
random numbers has a state, which is compared before and after; only when it differs, the function is run again, line
by line, to find out where, and whether it was not another thread that drew.  The other sources are calls.  They are
watched, by Python's profiling hook of this thread, only if the function's code contains a name that one of them goes
by, because the hook makes a capture slower.
"""

import builtins
import datetime
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, TypeVar

import numpy
import torch

from .namespaces import attribute_names, is_library_file
from .provenance import is_users, refusal, source_at

Result = TypeVar("Result")

ARGUMENT = "Read it outside of the function, and pass it as an argument."
DRAWS = "Draw with PyTorch (torch.rand, torch.randn …), whose numbers are drawn anew at every call, or pass them."
SEEDS = "Seed outside of the function: a program draws its random numbers from where the generator stands."


# Sources with a state ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A generator of random numbers: what it is called, and how its state is read and put back."""

    text: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _own_sources() -> list[Source]:
    found = [Source("Python's random numbers", random.getstate, random.setstate)]
    if "numpy.random" in sys.modules:
        found.append(Source("NumPy's random numbers", _read_numpy, numpy.random.set_state))
    return found


def _read_numpy() -> Any:
    return numpy.random.get_state()  # noqa: NPY002


def source_of_generator(generator: Any, text: str) -> Source:
    """The source that a generator of Python's or NumPy's is."""
    if isinstance(generator, random.Random):
        return Source(f"random numbers of {text}", generator.getstate, generator.setstate)
    bits = getattr(generator, "bit_generator", getattr(generator, "_bit_generator", generator))
    return Source(f"random numbers of {text}", lambda: bits.state, lambda state: setattr(bits, "state", state))


def _differ(before: Any, after: Any) -> bool:
    return bool(pickle.dumps(before) != pickle.dumps(after)) if not _is_plain(before) else bool(before != after)


def _is_plain(state: Any) -> bool:
    return isinstance(state, tuple) and not any(isinstance(part, numpy.ndarray) for part in state)


def capture_purely(work: Callable[[], Result], names: Set[str], generators: Iterable[tuple[Any, str]]) -> Result:
    """The result of a capture that read nothing which may be different at the next call.

    Arguments:
        work: captures the function.
        names: the names in its code.
        generators: generators of Python's and NumPy's that it can reach, with their names in its words.

    Raises CaptureError if it drew or seeded random numbers, or read a clock, a file or the environment of the process.
    Cost: some 20 µs, and, if the names are suspicious, half of what the capture costs.
    """
    sources = _own_sources() + [source_of_generator(*generator) for generator in generators if _has_state(generator[0])]
    before = [source.read() for source in sources]
    with _watched_calls(names):
        result = work()
    for source, state in zip(sources, before, strict=True):
        if _differ(state, source.read()):
            _refuse_draws(source, state, work)
    return result


def _has_state(generator: Any) -> bool:
    return not isinstance(generator, random.SystemRandom)


# The line that draws -------------------------------------------------------------------------------------------------


RUNS = 3
Line = tuple[str, int, str]  # file, number, function


def _refuse_draws(source: Source, before: Any, work: Callable[[], Any]) -> None:
    """Raise CaptureError for the line that draws; where there are other threads, these may have drawn instead."""
    alone = threading.active_count() == 1
    lines: list[Line | None]
    if sys.gettrace() is not None:  # a debugger, or a measurement of coverage
        lines = [None] if alone else []
    elif alone:
        source.write(before)
        lines = [*_lines_that_draw(source, work, _is_of_user), None]
        source.write(before)
    else:  # a line of ours draws each time it runs; that of another thread would have to meet the same line each time
        first, *others = [_lines_that_draw(source, work, _may_draw) for _ in range(RUNS)]
        lines = [line for line in first if all(line in other for other in others)]
    if lines:
        line = None if lines[0] is None else source_at(*lines[0])
        raise refusal(f"f draws {source.text}, which a compiled program would not do again", DRAWS, line)


def _is_of_user(code: CodeType) -> bool:
    return is_users(code.co_filename)


def _may_draw(code: CodeType) -> bool:
    return is_users(code.co_filename) and bool(DRAWERS & attribute_names(code))


def _lines_that_draw(source: Source, work: Callable[[], Any], chosen: Callable[[CodeType], bool]) -> list[Line]:
    """Run the capture again, and find the lines, in the chosen code, after which the state differs."""
    found: dict[Line, None] = {}
    last: list[Any] = [None, source.read()]

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        state = source.read()
        if last[0] is not None and _differ(last[1], state):
            found[last[0]] = None
        last[:] = [(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name), state]
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return on_line if chosen(frame.f_code) else None

    sys.settrace(on_call)
    try:
        work()
    except Exception:  # a function that draws may take another way each time
        return list(found)
    finally:
        sys.settrace(None)
    return list(found)


# Calls ---------------------------------------------------------------------------------------------------------------

CLOCKS = frozenset(
    getattr(time, name)
    for name in (
        *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"),
        *("process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns"),
        *("localtime", "gmtime", "ctime", "asctime", "strftime"),
    )
    if hasattr(time, name)
)
ENTROPY = frozenset(getattr(os, name) for name in ("urandom", "getrandom") if hasattr(os, name))
FILES = frozenset({builtins.open, os.open, os.listdir, os.scandir, os.stat, os.getcwd, builtins.input})
DATES = ("now", "today", "utcnow")
VARIABLES = frozenset({type(os.environ).__getitem__.__code__})
SEEDERS = ("manual_seed", "seed", "set_state")
DRAWERS = frozenset(
    name
    for owner in (random, numpy.random.Generator, numpy.random.RandomState)
    for name in dir(owner)
    if not name.startswith("_")
)
SUSPICIOUS = frozenset(
    {function.__name__ for function in CLOCKS | ENTROPY | FILES}
    | {*DATES, *SEEDERS, "environ", "getenv", "set_rng_state", "fork_rng", "SystemRandom", "read_text", "read_bytes"}
    | {"uuid1", "uuid4", "secrets", "token_bytes", "token_hex", "token_urlsafe", "randbits", "randbelow", "choice"}
    | {"default_rng", "Random", "RandomState", "SeedSequence"}
)

# Through these, a call is still the user's own; through any other file of a library, it is the library's.
TORCH = (os.path.dirname(torch.__file__) + os.sep,)
THIN = (
    *("random", "uuid", "secrets", "datetime", "_pydatetime"),
    *("os", "pathlib", "io", "codecs", "_collections_abc"),
)
_THIN_FILES = frozenset(
    file for name in THIN if (file := getattr(sys.modules.get(name), "__file__", None) or f"<frozen {name}>")
) | {f"<frozen {name}>" for name in THIN}


@contextmanager
def _watched_calls(names: Set[str]) -> Iterator[None]:
    """Refuse calls of the user's that read what no guard can compare, if the names of the code give reason to watch."""
    if not names & SUSPICIOUS or sys.getprofile() is not None:
        yield
        return
    sys.setprofile(_on_event)
    try:
        yield
    finally:
        sys.setprofile(None)


def _on_event(frame: FrameType, event: str, called: Any) -> None:
    if event == "c_call":
        reading = _reading(called, frame)
        seeding = called.__name__ in SEEDERS and isinstance(called.__self__, torch.Generator)
        if reading and _is_called_by_user(frame, TORCH if seeding else ()):
            raise refusal(f"f {reading}, which a compiled program would not do again", SEEDS if seeding else ARGUMENT)
    elif event == "call" and frame.f_code in VARIABLES and _is_called_by_user(frame.f_back):
        name = frame.f_locals.get("key")
        raise refusal(f"f reads the environment variable {name!r}, which would be a constant from then on", ARGUMENT)


def _reading(called: Any, frame: FrameType) -> str:
    """What a builtin function reads, in words; the empty string if it is none of those."""
    name, owner = called.__name__, getattr(called, "__self__", None)
    if isinstance(owner, type):
        return f"reads the time ({owner.__name__}.{name})" if name in DATES and issubclass(owner, datetime.date) else ""
    if isinstance(owner, torch.Generator):
        return f"seeds PyTorch's random numbers ({name})" if name in SEEDERS else ""
    if isinstance(owner, random.Random):
        return "seeds a generator by the system" if name == "seed" and frame.f_locals.get("a") is None else ""
    if called in CLOCKS:
        return f"reads the time ({name})"
    if called in ENTROPY:
        return f"draws random numbers of the system ({name})"
    return f"reads a file, or what surrounds the process ({name})" if called in FILES else ""


def _is_called_by_user(frame: FrameType | None, through: tuple[str, ...] = ()) -> bool:
    while frame is not None and (
        frame.f_code.co_filename in _THIN_FILES or frame.f_code.co_filename.startswith(through or "\0")
    ):
        frame = frame.f_back
    return frame is not None and not is_library_file(frame.f_code.co_filename)
