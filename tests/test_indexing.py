"""Positions that are data: what lies outside of a tensor is refused by its derivatives too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import pullback

OUTSIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "an entry": lambda x, i: x[i].sum(),
    "entries": lambda x, i: x[i.reshape(1)].sum(),
    "of two axes": lambda x, i: x.expand(3, 3)[i, i].sum(),
    "of a flat tensor": lambda x, i: torch.take(x, i).sum(),
    "gathered": lambda x, i: x.gather(0, i.reshape(1)).sum(),
    "selected": lambda x, i: x.index_select(0, i.reshape(1)).sum(),
    "a class": lambda x, i: functional.nll_loss(x[None], i.reshape(1)),
    "classes": lambda x, i: functional.nll_loss(x[None], i.reshape(1), reduction="sum"),
}


@pytest.mark.parametrize("backend", ["python", "native"])
@pytest.mark.parametrize("position", [13, -7])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_derivative_refuses_positions_outside(name: str, position: int, backend: str) -> None:
    """Though it needs no entry of the tensor."""
    gradient = pullback.grad(OUTSIDE[name], backend=backend)
    gradient(torch.randn(3), torch.tensor(2))
    with pytest.raises((IndexError, RuntimeError), match=r"out of range|bounds"):
        gradient(torch.randn(3), torch.tensor(position))


def test_positions_in_long_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not listed there."""
    monkeypatch.setattr("pullback.rules.indexing.LARGEST_LIST", 2)
    f = pullback.grad(lambda x, i: x.expand(4, 3)[i, -i].square().sum())
    x = torch.randn(3)
    torch.testing.assert_close(f(x, torch.tensor([1, 2, 1])), torch.tensor([0.0, 2.0, 4.0]) * x)
    with pytest.raises(IndexError, match="out of range"):
        pullback.grad(lambda x, i: x[i].sum())(x, torch.tensor([5]))
