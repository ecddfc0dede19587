"""What `import pullback` costs, and what it offers."""

import inspect
import os
import subprocess
import sys

import pytest

import pullback

BUDGET = 0.150  # seconds on top of `import torch`
ATTEMPTS = 5

# Seconds of the processor, not of the clock: importing does nothing but compute, and tests share the machine.
MEASURE = """
import time, torch
before = time.process_time()
import pullback
print(time.process_time() - before)
"""

LOADED = """
import sys, torch
before = set(sys.modules)
import pullback
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def run_python(program: str) -> str:
    """Run a program in a new process, which may keep compiled bytecode, as any installation does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_import_is_quick() -> None:
    """The best of a few attempts: other processes only ever make it slower."""
    seconds = float("inf")
    for _ in range(ATTEMPTS):
        seconds = min(seconds, float(run_python(MEASURE)))
        if seconds <= BUDGET:
            return
    milliseconds, allowed = seconds * 1000, BUDGET * 1000
    pytest.fail(f"`import pullback` adds {milliseconds:.0f} ms to `import torch`, and {allowed:.0f} are allowed")


def test_import_loads_no_optional_extra() -> None:
    extras = {"typer", "rich", "sklearn", "matplotlib", "scipy", "pytest", "hypothesis"}
    assert not extras & set(run_python(LOADED).split())


def test_every_public_name_is_there() -> None:
    missing = [name for name in pullback.__all__ if not hasattr(pullback, name)]
    assert not missing
    assert len(set(pullback.__all__)) == len(pullback.__all__)


@pytest.mark.parametrize("name", sorted(set(pullback.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    item = getattr(pullback, name)
    assert (inspect.getdoc(item) or "").strip(), f"pullback.{name} has no docstring"
    if not inspect.isclass(item):
        return
    for attribute, member in vars(item).items():
        if callable(member) and not attribute.startswith("_"):
            assert inspect.getdoc(member), f"pullback.{name}.{attribute} has no docstring"


@pytest.mark.parametrize("name", sorted(set(pullback.__all__) - {"__version__"}))
def test_every_error_is_ours(name: str) -> None:
    item = getattr(pullback, name)
    if inspect.isclass(item) and issubclass(item, BaseException) and not issubclass(item, Warning):
        assert issubclass(item, pullback.PullbackError)
