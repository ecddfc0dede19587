"""Results without axes are tensors of their own, made by one call."""

import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor

import pullback
from pullback.emit import native
from pullback.native import building
from pullback.native.numbers import Numbers
from pullback.torch_private import storage_uses, tree_leaves

pytestmark = pytest.mark.skipif(not building.is_there(), reason="needs a C compiler")

PLACES = (0, 1)
X, Y = torch.tensor(2.0, dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64)


def products(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Functions of two numbers."""
    return x * y, x + y, x / y


def entries() -> list[Tensor]:
    """The six entries of the Jacobian."""
    return tree_leaves(pullback.jacobian(products, argnums=PLACES, backend="native")(X, Y))


def test_each_has_memory_of_its_own() -> None:
    flat = entries()
    assert [t.item() for t in flat] == [4, 2, 1, 1, 0.25, -0.125]
    assert {t.untyped_storage().nbytes() for t in flat} == {8}
    assert len({t.untyped_storage().data_ptr() for t in flat}) == 6
    flat[0].resize_(3).fill_(7.0)
    assert [t.item() for t in flat[1:]] == [2, 1, 1, 0.25, -0.125]


def test_they_are_no_views_and_count_their_own_changes() -> None:
    flat = entries()
    assert not any(t._is_view() for t in flat)
    flat[0].mul_(2)
    assert [t._version for t in flat] == [1, 0, 0, 0, 0, 0]
    weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert flat[1].mul_(weight).requires_grad  # PyTorch refuses this for views that were made without gradients


def test_nobody_else_holds_them() -> None:
    flat = entries()
    assert [storage_uses(t.untyped_storage()) for t in flat] == [2] * 6  # the tensor, and the object asked
    gone = weakref.ref(flat[3])
    del flat
    gc.collect()
    assert gone() is None


def test_numbers_of_every_dtype() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        small = x.float()
        return (
            x * 2,
            small + 1,
            x > 1,
            x.long(),
            x.sin(),
            small.cos(),
            x < 1,
            x.long() * 3,
            x.to(torch.int8),
            x.to(torch.int8),
        )

    for x in (X, Y, -X):
        found, expected = pullback.compile(f, backend="native")(x), f(x)
        assert [t.dtype for t in found] == [t.dtype for t in expected]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_threads_get_their_own_numbers() -> None:
    f = pullback.jacobian(products, argnums=PLACES, backend="native")
    f(X, Y)
    wrong: list[float] = []

    def run(number: float) -> None:
        x = torch.tensor(number, dtype=torch.float64)
        for _ in range(300):
            if [t.item() for t in tree_leaves(f(x, Y))] != [4, number, 1, 1, 0.25, -number / 16]:
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(float(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failure_to_make_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Numbers(3, "float64", 8)
    monkeypatch.setattr(numbers, "_make", lambda address: 1)
    with pytest.raises(MemoryError, match="3 numbers"):
        numbers.tensors()


def test_without_the_functions_of_pytorch_they_are_parts_of_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "are_made_at_once", lambda: False)
    assert [t.item() for t in entries()] == [4, 2, 1, 1, 0.25, -0.125]
