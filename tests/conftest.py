"""One thread for each test process, and no help from `torch.autograd`."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

import support

support.put_up_gate()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_autograd(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close the gate of `support.py` for the whole test, unless it is marked as a reference."""
    marked = request.node.get_closest_marker("reference")
    with nullcontext() if marked else support.no_autograd():
        yield
