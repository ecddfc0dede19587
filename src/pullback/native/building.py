"""From C to a function that Python can call: the compiler, the objects that are kept, and how they are loaded.

The convention of every native function: it returns nothing and takes one plain argument for each thing that it needs,
first a pointer for each tensor that it reads (`const T *`, in the order of the graph's inputs), then one for each that
it writes (`T *restrict`; fresh memory, which overlaps nothing), then any further pointers (to functions of a library,
to scratch memory), then its sizes (`int64_t`).  What a pointer points to is dense in the layout that the
program was made for; whoever calls sees to that.  A function keeps no state, so that threads may run it at once; the
interpreter's lock is released while it runs.

Arithmetic is that of IEEE 754, operation by operation as written: no flag lets the compiler contract, reassociate, or
assume that there are no infinities and NaNs.  Never `-ffast-math`: an object that is linked with it sets
flush-to-zero for the thread that loads it, and with it for all of PyTorch.

An object is kept under the hash of all that it depends on (source, flags, compiler, processor), as a file that is named
after its own hash, in a directory that this user alone can write to.  It appears by one rename, so that processes that
build the same one at the same time do not disturb each other.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import NativeError
from ..private_files import cache_directory, is_private

LOG = logging.getLogger("pullback")
LIMIT = 60  # seconds that a compiler may take
ANSWER_LIMIT = 10  # seconds within which it has to say its version
KEPT = 1000  # objects on disk, the least recently used of them removed first

# Vectors out of straight lines are left out: GCC 12 then takes (double)(float)x for x, and compiles twice as long.
FLAGS = (
    *("-std=gnu11", "-O2", "-march=native", "-fPIC", "-shared", "-fopenmp-simd", "-w", "-pipe"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fexcess-precision=standard"),
    *("-fno-tree-slp-vectorize", "-fwrapv"),  # integers run over as PyTorch's do: x + 1 > x is not always so
)
LIBRARIES = ("-lm",)
# What makes results depend on more than the operations that are written down.
_INEXACT = frozenset(
    "-ffast-math -Ofast -funsafe-math-optimizations -fassociative-math -freciprocal-math -ffinite-math-only "
    "-fno-signed-zeros -mdaz-ftz -ffp-model=fast -ffp-model=aggressive -fcx-limited-range".split()
)
_loaded: dict[str, ctypes.CDLL] = {}
_too_slow: dict[tuple[str, ...], str] = {}  # compilers that were stopped, and are not asked again


@dataclass(frozen=True)
class Toolchain:
    """The compiler of this machine.

    command: its words, without flags of ours.
    identity: what it says of its version, and what the processor can do.
    """

    command: tuple[str, ...]
    identity: str

    @property
    def flags(self) -> tuple[str, ...]:
        """What suits the processor: GCC would leave half of the widest vectors empty."""
        return ("-mprefer-vector-width=512",) if self.is_gcc and "avx512f" in self.identity else ()

    @property
    def is_gcc(self) -> bool:
        """Whether it takes GCC's attributes on functions."""
        return "Free Software Foundation" in self.identity


def build(source: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library that a C source makes, from disk where it was made before.

    Arguments:
        source: a whole file of C.
        flags: further flags of the compiler's, such as "-O3".

    Raises NativeError: there is no compiler, it refuses the source, takes longer than a minute (then it is not asked
        again in this process), or is told by `CC` to be inexact; or what it makes cannot be written or loaded.

    Cost: the compiler's at the first time on a machine; later 0.1 ms for each 100 kB; nothing in the same process.
    """
    chain = toolchain()
    words = (*FLAGS, *chain.flags, *_checked(flags))
    key = hashlib.sha256("\0".join((chain.identity, *chain.command, *words, source)).encode()).hexdigest()[:40]
    library = _loaded.get(key)
    if library is None:
        place = _directory() / key
        library = _loaded[key] = _load(_kept(place) or _compiled(chain, words, source, place))
    return library


def native_function(
    source: str, name: str, pointers: int, sizes: int = 0, flags: Sequence[str] = ()
) -> Callable[..., None]:
    """One function of a source, ready to be called with so many addresses and then so many sizes.

    Raises NativeError: as `build`.
    """
    library = build(source, flags)
    try:
        function = library[name]  # a new object each time, unlike an attribute
    except AttributeError as error:
        raise NativeError(f"the compiler left out what it was given: {error}; name another one by CC") from error
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * sizes
    function.restype = None
    return function


@cache
def toolchain() -> Toolchain:
    """The compiler that `CC` names, else the first of cc, gcc, clang on the path.

    Raises NativeError: there is none, or `CC` has flags that make results inexact.
    """
    words = _named()
    candidates = [words] if words else [("cc",), ("gcc",), ("clang",)]
    for command in candidates:
        _checked(command)
        executable = shutil.which(command[0])
        if executable is not None:
            command = (executable, *command[1:])
            return Toolchain(command, f"{_version(command)}\n{_processor()}")
    names = ", ".join(command[0] for command in candidates)
    raise NativeError(f"no C compiler was found (looked for {names}): install one, or name it by CC")


def _named() -> tuple[str, ...]:
    """The words of `CC`."""
    text = os.environ.get("CC", "")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise NativeError(f"CC={text!r} is no command: {error}") from error


def is_named() -> bool:
    """Whether the user names a compiler."""
    return bool(os.environ.get("CC", "").strip())


def is_there() -> bool:
    """Whether there is a compiler that can be used."""
    try:
        toolchain()
    except NativeError:
        return False
    return True


@cache
def has_vector_math() -> bool:
    """Whether the C library has functions such as sin for whole vectors (glibc's libmvec) and GCC can call them."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not toolchain().is_gcc:
        return False
    try:
        return hasattr(ctypes.CDLL("libmvec.so.1"), "_ZGVeN8v_erf")  # those of glibc 2.35 and later
    except OSError:
        return False


@cache
def _said(command: tuple[str, ...]) -> tuple[str, str]:
    """What a compiler says of its version, and what is wrong with it; asked once in a process."""
    words = [*command, "--version"]
    try:
        limits: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": ANSWER_LIMIT}
        return subprocess.run(words, env=_environment(), text=True, errors="replace", **limits).stdout, ""
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"{shlex.join(words)} does not run: {error}; name another compiler by CC"


def _version(command: tuple[str, ...]) -> str:
    version, problem = _said(command)
    if problem:
        raise NativeError(problem)
    return version


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(told))])


def _checked(words: Sequence[str]) -> Sequence[str]:
    inexact = [word for word in words if word in _INEXACT]
    if inexact:
        raise NativeError(
            f"{inexact[0]} makes results inexact, here and in the rest of the process: leave it out of CC"
        )
    return words


def _environment() -> dict[str, str]:
    """The environment without what would change a compiler's flags or headers, or the language of its messages."""
    meant = ("CPATH", "C_INCLUDE_PATH", "CCC_OVERRIDE_OPTIONS", "GCC_EXEC_PREFIX", "COMPILER_PATH")
    return {k: v for k, v in os.environ.items() if k not in meant} | {"LC_ALL": "C"}


# ---------------------------------------------------------------- objects on disk


def _directory() -> Path:
    """Where objects are kept: for this process alone where the cache is not private or cannot be written to."""
    place = cache_directory() / "native"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(place) and is_private(place.parent) and os.access(place, os.W_OK):
            return place
        problem = "others could write there, or we cannot"
    except OSError as error:
        problem = str(error)
    return _temporary(os.getpid(), f"{place} cannot keep native programs ({problem})")


@cache
def _temporary(process: int, reason: str) -> Path:
    try:
        place = tempfile.mkdtemp(prefix="pullback-")
    except OSError as error:
        raise NativeError(f"{reason}, and there is no place for temporary files: {error}") from error
    LOG.warning("%s: each process builds its own", reason)
    atexit.register(_remove, place, process)
    return Path(place)


def _remove(place: str, process: int) -> None:
    """Remove a directory at the end of the process that made it, but not at that of its forks."""
    if os.getpid() == process:
        shutil.rmtree(place, ignore_errors=True)


def _kept(place: Path) -> Path | None:
    """The object that was kept here; None where there is none that is whole and our own."""
    try:
        if not is_private(place):
            return None
        for name in sorted(os.listdir(place)):
            path = place / name
            if is_private(path) and path.suffix == ".so" and _digest(path) == path.stem:
                os.utime(place)
                return path
    except OSError:
        pass
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:40]


def _compiled(chain: Toolchain, flags: Sequence[str], source: str, place: Path) -> Path:
    """Compile in a directory of its own, and move the object to its place."""
    if chain.command in _too_slow:
        raise NativeError(_too_slow[chain.command])
    work = None
    try:
        work = Path(tempfile.mkdtemp(prefix="build-", dir=place.parent))
        (work / "program.c").write_text(source, encoding="utf-8")
        _run([*chain.command, *flags, "-o", "program.so", "program.c", *LIBRARIES], work)
        built = work / "program.so"
        built.chmod(0o700)
        path = place / f"{_digest(built)}.so"
        place.mkdir(mode=0o700, exist_ok=True)
        os.replace(built, path)
        _prune(place.parent)
    except _TooSlow as error:
        _too_slow[chain.command] = f"{error}; it is not asked again"
        raise
    except OSError as error:
        raise NativeError(f"a native program cannot be written to {place}: {error}") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return path


class _TooSlow(NativeError):
    """A compiler was stopped."""


def _run(command: Sequence[str], work: Path) -> None:
    """Run a compiler, and end all its processes where it takes too long."""
    environment = _environment() | {"TMPDIR": str(work)}
    options: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
    process = subprocess.Popen(
        command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", **options,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        raise _TooSlow(f"{command[0]} took more than {LIMIT} s for a program, and was stopped") from error
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL) if options else process.kill()
            process.communicate()
    if process.returncode != 0:
        raise NativeError(f"{shlex.join(command)} failed with status {process.returncode}: {said.strip()[:2000]}")


def _prune(directory: Path) -> None:
    """Remove what was not used for the longest time, where there is too much."""
    entries = [entry for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    if len(entries) > KEPT:
        for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime)[: len(entries) - KEPT * 3 // 4]:
            shutil.rmtree(entry.path, ignore_errors=True)


# ---------------------------------------------------------------- loading


def _load(path: Path) -> ctypes.CDLL:
    """Load an object, and see that the thread computes with subnormal numbers as before."""
    before = _keeps_subnormals()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"{path} cannot be loaded: {error}") from error
    if before and not _keeps_subnormals():
        torch.set_flush_denormal(False)
        raise NativeError(f"{path} sets flush-to-zero for the thread that loads it: name another compiler by CC")
    return library


def _keeps_subnormals() -> bool:
    return float("1e-310") * float("1.0") != 0.0
