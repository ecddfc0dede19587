"""One thread for each test process, no help from `torch.autograd`, and files of this run alone.

Programs are generated Python unless a test asks for another back end: the compiler would take most of the time.
Tests of the choice itself use the fixture `compiler_on_offer`.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import support

support.put_up_gate()
torch.set_num_threads(1)

os.environ["PULLBACK_CACHE"] = tempfile.mkdtemp(prefix="pullback-tests-")
atexit.register(shutil.rmtree, os.environ["PULLBACK_CACHE"], ignore_errors=True)

from pullback.emit import backends  # noqa: E402  (the gate comes first)

NATIVE = backends.BACKENDS["native"]
backends.BACKENDS = {**backends.BACKENDS, "native": replace(NATIVE, offer=None)}


@pytest.fixture(autouse=True)
def no_autograd(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close the gate of `support.py` for the whole test, unless it is marked as a reference."""
    marked = request.node.get_closest_marker("reference")
    with nullcontext() if marked else support.no_autograd():
        yield


@pytest.fixture
def compiler_on_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `backend="auto"` choose machine code, as it does for users."""
    monkeypatch.setattr(backends, "BACKENDS", {**backends.BACKENDS, "native": NATIVE})
