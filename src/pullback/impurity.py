"""What a function reads that no guard can compare: random numbers of Python and NumPy, clocks, files, the environment.

It would be a constant of the program, so it is refused where it is seen while the function is captured.  A source of
random numbers has a state, which is compared before and after; only when it differs, the function is run again, line
by line, to find out where.  The other sources are calls.  They are watched, by Python's profiling hook of this thread,
only if the function's code contains a name that one of them goes by, because the hook makes a capture slower.
"""

import builtins
import datetime
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import numpy
import torch

from .namespaces import is_library_file
from .provenance import is_users, refusal, source_at
from .torch_private import disable_current_modes, disable_function_modes

Result = TypeVar("Result")

ARGUMENT = "Read it outside of the function, and pass it as an argument."
DRAWS = "Draw with PyTorch (torch.rand, torch.randn …), whose numbers are drawn anew at every call, or pass them."
SEEDS = "Seed outside of the function: a program draws its random numbers from where the generator stands."


# Sources with a state ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A generator of random numbers: what it is called, how its state is read and put back, and the way out."""

    text: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    way_out: str = DRAWS


def _own_sources() -> list[Source]:
    found = [Source("Python's random numbers", random.getstate, random.setstate)]
    if "numpy.random" in sys.modules:
        found.append(Source("NumPy's random numbers", _read_numpy, numpy.random.set_state))
    generator = torch.default_generator
    found.append(Source("the seed of PyTorch's random numbers", _read_torch, generator.set_state, SEEDS))
    return found


def _read_numpy() -> Any:
    return numpy.random.get_state()  # noqa: NPY002


def _read_torch() -> Any:
    with disable_current_modes(), disable_function_modes():
        return torch.default_generator.get_state()


def source_of_generator(generator: Any, text: str) -> Source:
    """The source that a generator of Python's or NumPy's is."""
    if isinstance(generator, random.Random):
        return Source(f"random numbers of {text}", generator.getstate, generator.setstate)
    bits = getattr(generator, "bit_generator", getattr(generator, "_bit_generator", generator))
    return Source(f"random numbers of {text}", lambda: bits.state, lambda state: setattr(bits, "state", state))


def _differ(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor):
        with disable_current_modes(), disable_function_modes():
            return not torch.equal(before, after)
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
            raise _drawn(source, state, work)
    return result


def _has_state(generator: Any) -> bool:
    return not isinstance(generator, random.SystemRandom)


# The line that draws -------------------------------------------------------------------------------------------------


class _Found(BaseException):
    """The line that draws has been passed."""


def _drawn(source: Source, before: Any, work: Callable[[], Any]) -> Exception:
    source.write(before)
    line = _line_that_draws(source, before, work)
    source.write(before)
    doing = "seeds PyTorch's random numbers" if source.way_out is SEEDS else f"draws {source.text}"
    return refusal(f"f {doing}, which a compiled program would not do again", source.way_out, line)


def _line_that_draws(source: Source, before: Any, work: Callable[[], Any]) -> Any:
    """Run the capture again, and stop at the first line of the user's after which the state differs."""
    if sys.gettrace() is not None:  # a debugger, or a measurement of coverage
        return None
    last: list[tuple[str, int, str]] = []

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if last and _differ(before, source.read()):
            raise _Found
        last[:] = [(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)]
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return on_line if is_users(frame.f_code.co_filename) else None

    sys.settrace(on_call)
    try:
        work()
    except BaseException as error:
        if not isinstance(error, (_Found, Exception)):
            raise
    finally:
        sys.settrace(None)
    return source_at(*last[0]) if last else None


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
SUSPICIOUS = frozenset(
    {function.__name__ for function in CLOCKS | ENTROPY | FILES}
    | {*DATES, *SEEDERS, "environ", "getenv", "set_rng_state", "fork_rng", "SystemRandom", "read_text", "read_bytes"}
    | {"uuid1", "uuid4", "secrets", "token_bytes", "token_hex", "token_urlsafe", "randbits", "randbelow", "choice"}
    | {"default_rng", "Random", "RandomState", "SeedSequence"}
)

# Through these, a call is still the user's own; through any other file of a library, it is the library's.
THIN = (
    *("torch.random", "random", "uuid", "secrets", "datetime", "_pydatetime"),
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
        if reading and _is_called_by_user(frame):
            seeding = called.__name__ in SEEDERS and isinstance(called.__self__, torch.Generator)
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


def _is_called_by_user(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename in _THIN_FILES:
        frame = frame.f_back
    return frame is not None and not is_library_file(frame.f_code.co_filename)
