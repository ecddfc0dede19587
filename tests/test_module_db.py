"""Every module of PyTorch's database, in training and in evaluation: value and gradient as autograd has them."""

import copy
import warnings

import pytest
import torch

import pullback
from module_cases import SEED, Case, case_of, numbers
from support import reference

NAMES = sorted({name for name, _, _ in numbers(1)})


def check(name: str, training: bool, number: int) -> None:
    """Value and gradient, in every parameter and floating argument, under trace and under record."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        case = case_of(name, training, number)
        if case is not None:
            theirs = case.theirs()
            for derivative in (traced, recorded):
                agree(case, derivative(case), theirs)


def recorded(case: Case) -> list[torch.Tensor]:
    torch.manual_seed(SEED)
    leaves = [t.clone().requires_grad_() for t in case.tensors]
    with pullback.record() as tape:
        value = case.function(*leaves)
        is_constant = not value.requires_grad
    if is_constant:
        return [value, *map(torch.zeros_like, leaves)]
    gradients = tape.grad(value, leaves, allow_unused=True)
    pairs = zip(leaves, gradients, strict=True)
    return [value.detach(), *(torch.zeros_like(t) if g is None else g for t, g in pairs)]


def traced(case: Case) -> list[torch.Tensor]:
    torch.manual_seed(SEED)
    value, gradients = pullback.value_and_grad(case.function, tuple(range(len(case.tensors))))(*case.tensors)
    return [value, *gradients]


def agree(case: Case, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for name, one, other in zip(("value", *case.names), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_first_call_in_either_mode(name: str) -> None:
    for training in (True, False):
        check(name, training, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_call(name: str) -> None:
    for case, training, number in numbers():
        if case == name:
            check(name, training, number)


def test_averages_over_all_batches() -> None:
    """Without a momentum, PyTorch divides by the number of batches, which a program counts too."""
    module = torch.nn.BatchNorm1d(4, momentum=None).double()
    theirs = copy.deepcopy(module)
    gradient = pullback.grad(lambda x: module(x).pow(3).sum())
    for seed in range(3):
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + seed
        with reference():
            leaf = x.clone().requires_grad_()
            theirs(leaf).pow(3).sum().backward()
        torch.testing.assert_close(gradient(x), leaf.grad, rtol=1e-9, atol=1e-9)
        for ours, other in zip(module.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-14, atol=1e-14)
    assert module.momentum is None
    with pytest.raises(pullback.CallError):
        gradient(torch.ones(5, 3, dtype=torch.float64))
    assert module.momentum is None and module.running_mean.shape == (4,)
