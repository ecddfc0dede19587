"""Building machine code: what is kept, what is refused, and that the process stays as it was."""

import ctypes
import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pullback
from pullback.errors import NativeError
from pullback.native import building
from pullback.native.building import build, native_function, toolchain

pytestmark = pytest.mark.skipif(not building.is_there(), reason="needs a C compiler")
DOUBLE = "void twice(const double *x, double *restrict y) { *y = *x * 2.0; }\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, as another process would see it."""
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "_loaded", {})
    monkeypatch.setattr(building, "_too_slow", {})
    toolchain.cache_clear()
    yield tmp_path / "cache" / "native"
    toolchain.cache_clear()


def call(source: str, number: float) -> float:
    x, y = torch.tensor(number, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    native_function(source, "twice", 2)(x.data_ptr(), y.data_ptr())
    return y.item()


def objects(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.so"))


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("the compiler was called")

    monkeypatch.setattr(building, "_run", run)
    monkeypatch.setattr(building, "_loaded", {})


def test_an_object_is_kept_private_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(DOUBLE, 1.5) == 3
    (path,) = objects(cache)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert os.listdir(cache) == [path.parent.name]  # nothing that was only needed meanwhile
    forbid_compiling(monkeypatch)
    assert call(DOUBLE, 2.5) == 5


def test_a_change_of_source_or_flags_is_another_object(cache: Path) -> None:
    build(DOUBLE)
    build(DOUBLE + "\n")
    build(DOUBLE, ("-O1",))
    assert len(objects(cache)) == 3


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"no object at all" * 100])
def test_a_damaged_object_is_built_anew(cache: Path, damage: bytes) -> None:
    build(DOUBLE)
    (path,) = objects(cache)
    path.unlink()  # it is mapped: another file in its place
    path.write_bytes(damage)
    building._loaded.clear()
    assert call(DOUBLE, 1.5) == 3
    assert building._digest(path) == path.stem


def test_what_others_could_have_written_is_neither_read_nor_added_to(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build(DOUBLE)
    building._loaded.clear()
    cache.chmod(0o777)
    assert call(DOUBLE + "//\n", 1.5) == 3
    assert len(objects(cache)) == 1
    assert "each process builds its own" in caplog.text
    cache.chmod(0o700)
    objects(cache)[0].chmod(0o722)
    assert building._kept(objects(cache)[0].parent) is None
    objects(cache)[0].chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert building._kept(objects(cache)[0].parent) is None


def test_a_link_in_place_of_the_directory_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.parent.mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert call(DOUBLE, 1.5) == 3
    assert not os.listdir(tmp_path / "elsewhere")


def test_subnormal_numbers_survive(cache: Path) -> None:
    x = torch.tensor([1e-310], dtype=torch.float64)
    assert call(DOUBLE, 1e-310) == 2e-310
    assert (x * 1.0).item() == 1e-310


def test_an_object_that_flushes_subnormals_is_refused(cache: Path) -> None:
    source = "__attribute__((constructor)) void f() { __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); }\n"
    if "x86" not in os.uname().machine:
        pytest.skip("the register is one of x86")
    with pytest.raises(NativeError, match="flush-to-zero"):
        build(source)
    assert (torch.tensor([1e-310], dtype=torch.float64) * 1.0).item() == 1e-310


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-funsafe-math-optimizations"])
def test_inexact_flags_are_refused(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    with pytest.raises(NativeError, match=flag):
        build(DOUBLE, (flag,))
    monkeypatch.setenv("CC", f"gcc {flag}")
    toolchain.cache_clear()
    with pytest.raises(NativeError, match=flag):
        build(DOUBLE)


def test_products_and_sums_are_not_contracted() -> None:
    source = "void twice(const double *x, double *restrict y) { *y = *x * *x - 1.0000000149011612; }\n"
    x = 1.0 + 2.0**-27
    assert call(source, x) == x * x - 1.0000000149011612


def test_a_source_that_is_no_c_names_the_compilers_words() -> None:
    with pytest.raises(NativeError, match=r"failed with status 1: .*error"):
        build("this is no C\n")


def compiler(path: Path, version: str, work: str) -> str:
    """A compiler that writes down its calls, and does these things when asked for its version or a program."""
    path.write_text(f"#!/bin/sh\necho $1 >> {path}.calls\ncase $1 in --version) {version};; *) {work};; esac\n")
    path.chmod(0o700)
    return str(path)


def calls_of(path: str) -> int:
    return len(Path(f"{path}.calls").read_text().splitlines())


def test_a_compiler_that_takes_too_long_is_stopped_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", slow := compiler(tmp_path / "slow", "echo slow", "sleep 100"))
    monkeypatch.setattr(building, "LIMIT", 0.3)
    toolchain.cache_clear()
    with pytest.raises(NativeError, match="took more than"):
        build(DOUBLE)
    with pytest.raises(NativeError, match=r"took more than .* it is not asked again"):
        build(DOUBLE + "\n")
    assert calls_of(slow) == 2


def test_a_compiler_that_says_nothing_of_its_version_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", mute := compiler(tmp_path / "mute", "sleep 100", "true"))
    monkeypatch.setattr(building, "ANSWER_LIMIT", 0.3)
    toolchain.cache_clear()
    for _ in range(2):
        with pytest.raises(NativeError, match=r"does not run: .* timed out .* name another compiler by CC"):
            build(DOUBLE)
    assert calls_of(mute) == 1


@pytest.mark.parametrize(
    ("work", "match"),
    [
        ("echo nonsense > program.so", "cannot be loaded"),
        ("true", "cannot be written"),
        ("cc -shared -fPIC -x c -o program.so /dev/null", "left out what it was given"),
        ("kill -9 $$", "failed with status -9"),
    ],
)
def test_what_a_strange_compiler_makes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, match: str
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path / "strange", "echo strange", work))
    toolchain.cache_clear()
    with pytest.raises(NativeError, match=match):
        call(DOUBLE, 1.5)


def test_a_command_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "gcc 'half a quotation")
    toolchain.cache_clear()
    with pytest.raises(NativeError, match="is no command: No closing quotation"):
        build(DOUBLE)


@pytest.mark.parametrize("prefix", ["build-", "pullback-"])
def test_without_space_on_the_disk(cache: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    def full(prefix: str, dir: Path | None = None) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if prefix == "pullback-":
        cache.parent.write_text("no directory")
    monkeypatch.setattr(building.tempfile, "mkdtemp", full)
    building._temporary.cache_clear()
    with pytest.raises(NativeError, match="No space left on device"):
        build(DOUBLE)


def test_of_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as a container's, who is but a number."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PULLBACK_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert call(DOUBLE, 1.5) == 3
    assert [path.parent.parent.parent.parent for path in tmp_path.glob("**/*.so")] == [tmp_path]
    x = torch.ones(2)
    assert torch.equal(pullback.grad(lambda x: (x * x).sum())(x), 2 * x)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    toolchain.cache_clear()
    assert not building.is_there()
    with pytest.raises(NativeError, match="no C compiler was found"):
        build(DOUBLE)


def test_threads_and_processes_build_at_the_same_time(cache: Path) -> None:
    script = "from pullback.native.building import build; import sys; build(sys.argv[1])"
    others = [subprocess.Popen([sys.executable, "-c", script, DOUBLE]) for _ in range(2)]
    found: list[ctypes.CDLL] = []
    threads = [threading.Thread(target=lambda: found.append(build(DOUBLE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in others] == [0, 0]
    assert len(found) == 4
    assert call(DOUBLE, 1.5) == 3
    assert len(objects(cache)) == 1


def test_the_least_recently_used_objects_are_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "KEPT", 4)
    names = []
    for k in range(5):
        build(DOUBLE + f"// {k}\n")
        names += {path.parent for path in objects(cache)} - {*names}
        os.utime(names[-1], (k, k))
    assert {path.parent for path in objects(cache)} == {*names[2:]}
