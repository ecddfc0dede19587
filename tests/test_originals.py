"""Shapes that depend on integers and masks: known where the function only reads them, compared at each call."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, tensor

import pullback
from support import reference

generator = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, dtype=torch.float64, generator=generator)


def slope(f: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """The gradient in the first argument by PyTorch."""
    with reference():
        leaf = args[0].detach().requires_grad_()
        return torch.autograd.grad(f(leaf, *args[1:]), leaf)[0]


def mask_of(*numbers: int) -> Tensor:
    mask = torch.zeros(12, dtype=torch.bool)
    mask[list(numbers)] = True
    return mask.reshape(3, 4)


SELECTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[Tensor]]] = {
    "mask": (lambda x, m: (x[m] ** 3).cumsum(0).sum(), [mask_of(1, 5, 6), mask_of(0, 2), mask_of()]),
    "rows": (lambda x, m: x[m].prod(1).sum(), [tensor([True, False, True]), tensor([False, True, False])]),
    "beside a slice": (lambda x, m: x[1:, m].sin().sum(), [mask_of(0, 2)[0], mask_of(3)[0]]),
    "masked_select": (lambda x, m: x.masked_select(m).exp().sum(), [mask_of(1, 4), mask_of(7)]),
    "broadcast": (lambda x, m: x.masked_select(m).exp().sum(), [mask_of(1)[:1], mask_of(0, 3)[:1]]),
    "computed": (lambda x, m: x[~m & (m.cumsum(1) < 2)].exp().sum(), [mask_of(1, 4), mask_of(7)]),
    "nonzero": (lambda x, n: (x[n.nonzero(as_tuple=True)] ** 2).sum(), [mask_of(1, 9).long(), mask_of(3).long()]),
    "repeats": (lambda x, n: (x.repeat_interleave(n, 0) ** 2).cumsum(0).sum(), [tensor([2, 0, 1]), tensor([1, 1, 1])]),
    "positions": (lambda x, n: (x.tensor_split(n, 1)[1] ** 2).sum(), [tensor([1, 3]), tensor([2, 3])]),
    "changed in place": (lambda x, m: (x[m.clone().logical_or_(m[0])] ** 2).sum(), [mask_of(1, 4), mask_of(7)]),
    "parts": (lambda x, n: (torch.tensor_split(x, n, 1)[0] ** 2).sum(), [tensor(2), tensor(4)]),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_each_value_has_its_program(name: str) -> None:
    """As an argument, and read from the surroundings and changed there."""
    f, choices = SELECTIONS[name]
    gradient = pullback.grad(f)
    for choice in (*choices, *choices):
        torch.testing.assert_close(gradient(X, choice), slope(f, X, choice))
    kept = choices[0].clone()
    closed = pullback.grad(lambda x: f(x, kept))
    for choice in (*choices, *choices):
        kept.copy_(choice)
        torch.testing.assert_close(closed(X), slope(f, X, choice))


@pytest.mark.parametrize("name", SELECTIONS)
def test_nested_transforms_compare_it_too(name: str) -> None:
    """The inner program is found again while the outer one is traced."""
    f, choices = SELECTIONS[name]
    kept = choices[0].clone()
    inner = pullback.grad(lambda x: f(x, kept))
    hessian = pullback.jacobian(inner)
    step = 1e-6 * torch.ones_like(X)
    for choice in choices[:2]:
        kept.copy_(choice)
        inner(X)
        difference = (slope(f, X + step, choice) - slope(f, X - step, choice)) / 2
        torch.testing.assert_close(hessian(X).sum((2, 3)) * 1e-6, difference, atol=1e-9, rtol=1e-5)


def test_a_whole_step_compares_it() -> None:
    weights = X.clone()

    @pullback.compile
    def step(weights: Tensor, mask: Tensor) -> Tensor:
        return weights - 0.1 * pullback.grad(lambda w: (w[mask] ** 2).sum())(weights)

    for mask in (mask_of(1, 5), mask_of(2, 6, 7), mask_of(1, 5)):
        torch.testing.assert_close(step(weights, mask), torch.where(mask, 0.8 * weights, weights))


def test_a_change_in_place_keeps_the_values_of_others() -> None:
    def f(x: Tensor, m: Tensor) -> Tensor:
        y = x * 2
        y[0] = 0
        return (y[m] ** 2).sum()

    for mask in (mask_of(1, 5), mask_of(5, 6, 7)):
        torch.testing.assert_close(pullback.grad(f)(X, mask), slope(f, X, mask))


def written(x: Tensor, mask: Tensor) -> Tensor:
    mask[0] = True
    return x[mask].sum()


REFUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "of real numbers": lambda x, m: x[m & (x > 0)].sum(),
    "drawn": lambda x, m: x[m & (torch.rand(3, 4) > 0.5)].sum(),
    "drawn as integers": lambda x, m: x[torch.randint(2, (3, 4)) > 0].sum(),
    "changed in place": written,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(pullback.CaptureError, match="shape depends on the values"):
        pullback.grad(REFUSED[name])(X, mask_of(1, 5))


def test_under_vmap_each_sample_has_a_mask_of_its_own() -> None:
    masks = torch.stack([mask_of(1, 5), mask_of(2, 3)])
    with pytest.raises(Exception, match=r"vmap|shape depends"):
        torch.vmap(pullback.grad(lambda x, m: x[m].sum()), (None, 0))(X, masks)


def test_what_outlives_the_call_does_not_rely_on_it() -> None:
    gradient = pullback.grad(lambda x, m: x[m].sum())
    with pytest.raises(pullback.ArgumentError, match="values of integers"):
        gradient.compile(X, mask_of(1))
    with pytest.raises(pullback.ArgumentError, match="values of integers"):
        gradient.graph_module(X, mask_of(1))
    with pytest.raises(pullback.CaptureError, match="shape depends on the values"):
        pullback.trace(lambda x, m: x[m].sum(), X, mask_of(1))


def test_a_branch_reads_it() -> None:
    mask = mask_of(1, 5)

    def f(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 100, lambda x: x.sin().sum(), lambda x: (x[mask] ** 2).sum(), (x,))

    gradient = pullback.grad(f)
    for choice in (mask_of(1, 5), mask_of(2), mask_of(1, 5)):
        mask.copy_(choice)
        torch.testing.assert_close(gradient(X), torch.where(choice, 2 * X, 0))


def test_modules_read_their_masks() -> None:
    """PyTorch's own code compares a mask with the causal one, and takes another way then."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double()
    module = torch.nn.TransformerEncoder(layer, 1)
    causal = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    x = torch.randn(2, 4, 8, dtype=torch.float64, generator=generator)
    gradient = pullback.grad(lambda x, mask: module(x, mask=mask).square().sum())
    for mask in (causal, torch.eye(4) > 0, causal):
        expected = slope(lambda x, m: module(x, mask=m).square().sum(), x, mask)
        torch.testing.assert_close(gradient(x, mask), expected, rtol=1e-9, atol=1e-9)


def test_only_pytorch_may_branch_on_it() -> None:
    with pytest.raises(pullback.CaptureError, match="branches on the value"):
        pullback.grad(lambda x, m: x.sum() if m.all() else x.prod())(X, mask_of(1))


def test_what_is_written_over_is_read_as_it_was() -> None:
    def f(x: Tensor, m: Tensor) -> Tensor:
        places = torch.zeros_like(m, dtype=torch.int64)
        before = places + 1
        places[0].masked_fill_(m[0], 1)
        between = places * 2
        places.masked_fill_(~m, 3)
        return x[before > 1].sum() + x[between > 0].exp().sum() + (x[places == 3] ** 2).sum()

    gradient = pullback.grad(f)
    for mask in (mask_of(0, 2, 5), mask_of(1, 7)):
        torch.testing.assert_close(gradient(X, mask), slope(f, X, mask))
