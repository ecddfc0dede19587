"""`x[i]` where i is a tensor of one integer: a view at a place that is data, read and written to."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, tensor

import pullback
from support import reference

generator = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
Y = torch.randn(5, dtype=torch.float64, generator=generator)
PLACES = [tensor(1), tensor(2), tensor(-3), tensor(0, dtype=torch.int32), tensor(2, dtype=torch.int8)]


def change(act: Callable[[Tensor, Tensor, Tensor], Tensor | None]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function that changes a copy of x in place, and reads all of it and what `act` returns."""

    def changed(x: Tensor, i: Tensor, y: Tensor) -> Tensor:
        z = x * 1
        seen = act(z, i, y)
        return (z**2).sum() if seen is None else (z**2).sum() + (seen**3).sum()

    return changed


def assigned(z: Tensor, i: Tensor, y: Tensor) -> None:
    z[i] = y


def assigned_inside(z: Tensor, i: Tensor, y: Tensor) -> None:
    z[1:, i, ..., None] = y[:2, None, None] * y[:, None]


def assigned_twice(z: Tensor, i: Tensor, y: Tensor) -> None:
    z[i, i] = y
    z[:, i, i] = 2.5


def added(z: Tensor, i: Tensor, y: Tensor) -> None:
    z[i] += y.sum()


def view_changed(z: Tensor, i: Tensor, y: Tensor) -> Tensor:
    row = z[i]
    row[0].mul_(y)
    return row


def view_of_view_changed(z: Tensor, i: Tensor, y: Tensor) -> Tensor:
    row = z[i]
    row[i].mul_(y)
    row.sin_()
    return row[0] * z[0, 0]


def base_changed(z: Tensor, i: Tensor, y: Tensor) -> Tensor:
    row, column = z[i][0], z[:, i]
    z.mul_(y)
    return row * column[0]


def overlapping(z: Tensor, i: Tensor, y: Tensor) -> Tensor:
    row, column = z[i], z[:, i]
    row.mul_(y)
    column.add_(y)
    return row


def place_changed(z: Tensor, i: Tensor, y: Tensor) -> Tensor:
    j = i.clone()
    row = z[j]
    j.zero_()
    row.mul_(y)
    z.add_(1)
    return row


READ: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "row": lambda x, i, y: x[i] ** 2 * y,
    "column": lambda x, i, y: x[:, i] ** 2,
    "last axis": lambda x, i, y: x[..., i] ** 2,
    "several": lambda x, i, y: x[i, i, i] ** 2,
    "beside slices": lambda x, i, y: x[None, i, 1:3, None, -2] ** 2,
    "computed": lambda x, i, y: x[-i.abs(), i % 2 + 1] ** 2,
    "beside tensors": lambda x, i, y: x[i, :, tensor([0, 2, 1])] ** 2,
    "beside a list": lambda x, i, y: x[:, [0, 2], i] ** 2,
    "beside a mask": lambda x, i, y: x[torch.eye(3, 4) > 0, i] ** 2,
    "beside a list of truths": lambda x, i, y: x[[True, False, True], i] ** 2,
    "select": lambda x, i, y: x.select(-1, i) ** 2 + torch.select(x, 2, i) ** 3,
    "narrow": lambda x, i, y: x.narrow(1, i.clamp(0, 2), 2) ** 2,
    "of numbers that are differentiated": lambda x, i, y: x[x.sum((1, 2)).argmax()] ** 2 * i,
    "a loop": lambda x, i, y: sum((x[k] * (n + 1) for n, k in enumerate(torch.stack([i, i * 0]))), y),
}
WRITTEN = {
    f.__name__: change(f)
    for f in (
        *(assigned, assigned_inside, assigned_twice, added, view_changed, view_of_view_changed),
        *(base_changed, overlapping, place_changed),
    )
}
FUNCTIONS = READ | WRITTEN


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_program_serves_all_places(name: str) -> None:
    f = FUNCTIONS[name]
    compiled = pullback.jacobian(f, argnums=(0, 2)).compile(X, PLACES[0], Y)
    for i in (PLACES[0], *PLACES[1:3]):
        with reference():
            expected = torch.func.jacrev(lambda x, y, i=i: f(x, i, y), (0, 1))(X, Y)
        torch.testing.assert_close(compiled(X, i, Y), expected)


@pytest.mark.parametrize("name", ["row", "beside tensors", "assigned_twice", "overlapping"])
def test_second_order_and_other_dtypes(name: str) -> None:
    f = FUNCTIONS[name]
    for i in PLACES[3:]:
        with reference():
            gradient = torch.func.grad(lambda x, i=i: f(x, i, Y).sum())
            expected = torch.func.jvp(gradient, (X,), (X,))
        ours = pullback.hvp(lambda x, i=i: f(x, i, Y).sum(), (X,), (X,))
        torch.testing.assert_close(ours, expected)


def script(seed: int) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """Views at places that are data, of each other, read and changed in any order."""
    choose = random.Random(seed)
    acts = [(choose.randrange(8), choose.random(), choose.randrange(99), choose.randrange(99)) for _ in range(8)]

    def f(x: Tensor, places: list[Tensor]) -> Tensor:
        views, total = [x * 1.5], x.sum() * 0
        for act, a, b, c in acts:
            view, i = views[b % len(views)], places[c % len(places)]
            if act <= 1 and view.dim():
                views.append(view[i] if c % 2 else view[..., i])
            elif act == 2:
                view.mul_(a + 0.5)
            elif act == 3 and view.dim():
                view[i] = view[0].sum() * a
            elif act == 4 and view.dim():
                view[-i] += a
            elif act == 5:
                view.sin_()
            else:
                total = total + (view.clone() ** 2).sum() * a
        return total + sum(view.clone().sin().sum() * (k + 1) for k, view in enumerate(views))

    return f


@pytest.mark.parametrize("seed", range(12))
def test_views_and_what_they_are_of_stay_equal(seed: int) -> None:
    f, x, places = script(seed), X[:, :3, :3].contiguous(), [tensor(1), tensor(2), tensor(0)]
    with reference():
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(f(leaf, places), leaf)
    torch.testing.assert_close(pullback.grad(f)(x, places), expected)


def test_what_is_read_under_no_grad_and_buffers() -> None:
    counts = torch.zeros(3, dtype=torch.float64)

    def f(x: Tensor, i: Tensor) -> Tensor:
        with torch.no_grad():
            counts[i] += 1
        return (x[i] * counts[i]).sum()

    gradient = pullback.grad(f)
    for place, times in ((0, 1), (2, 1), (2, 2)):
        expected = torch.zeros_like(X)
        expected[place] = times
        torch.testing.assert_close(gradient(X, tensor(place)), expected)
    assert counts.tolist() == [1, 0, 2]


@pytest.mark.parametrize("place", [3, -4])
def test_places_beyond_the_tensor(place: int) -> None:
    gradient = pullback.grad(lambda x, i: (x[i] ** 2).sum())
    gradient(X, tensor(0))
    with pytest.raises(IndexError, match="out of bounds"):
        gradient(X, tensor(place))
    with pytest.raises(pullback.CallError, match="too many indices"):
        pullback.grad(lambda x, i: x[i, i])(Y, tensor(0))


def test_a_place_for_each_sample() -> None:
    places = tensor([0, 2])
    found = torch.vmap(pullback.grad(lambda x, i: (x[i] ** 2).sum()), (None, 0))(X, places)
    expected = torch.stack([torch.zeros_like(X).index_copy(0, k.reshape(1), 2 * X[k][None]) for k in places])
    torch.testing.assert_close(found, expected)
