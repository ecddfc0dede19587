"""The memory of large results serves again once nobody holds it, and never before."""

import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback
from pullback.native import building
from pullback.native.pages import LARGEST_KEPT
from pullback.native.results import MEMORY, ResultMemory
from support import reference

LIKE = torch.empty((), dtype=torch.float64).expand(LARGEST_KEPT // 64 + 1, 8)
SIZE = LIKE.numel() * 8


def test_memory_serves_again_once_nobody_holds_it() -> None:
    memory = ResultMemory()
    first = memory.tensor(LIKE)
    assert first.shape == LIKE.shape and first.dtype == LIKE.dtype and first.is_contiguous() and first.is_leaf
    place = first.data_ptr()
    del first
    again = memory.tensor(LIKE)
    assert again.data_ptr() == place and memory.bytes() == SIZE
    assert memory.tensor(LIKE).data_ptr() != place


def _saved_by_autograd(y: Tensor) -> Any:
    with reference():
        return (torch.ones(8, dtype=torch.float64, requires_grad=True) * y).sum()


def _in_a_cycle(y: Tensor) -> Any:
    cycle: list[Any] = [y]
    cycle.append(cycle)
    return cycle


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y,
    "view": lambda y: y[7:9, 1],
    "detached": lambda y: y.detach(),
    "numpy array": lambda y: y.numpy()[3:4],
    "memoryview": lambda y: memoryview(y.numpy())[3:4],
    "untyped storage": lambda y: y.untyped_storage(),
    "typed storage": lambda y: y.storage(),
    "weak reference to its storage": lambda y: weakref.ref(y.untyped_storage()),
    "DLPack capsule": lambda y: y.__dlpack__(),
    "autograd": _saved_by_autograd,
    "cycle": _in_a_cycle,
    "another tensor on it": lambda y: torch.empty(0, dtype=torch.float32).set_(y.untyped_storage(), 0, (3,)),
    "parameter": lambda y: torch.nn.Parameter(y),
    "shared memory": lambda y: y.share_memory_().shape,
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_that_anybody_holds_is_left_alone(holder: str) -> None:
    memory = ResultMemory()
    y = memory.tensor(LIKE)
    held, place = HOLDERS[holder](y), y.data_ptr()
    del y
    new = memory.tensor(LIKE)
    assert new.data_ptr() != place
    other = new.data_ptr()
    del held, new
    gc.collect()
    assert memory.tensor(LIKE).data_ptr() in ({other} if holder == "shared memory" else {place, other})


def test_a_storage_that_changed_its_size_is_not_taken() -> None:
    memory = ResultMemory()
    y = memory.tensor(LIKE)
    y.untyped_storage().resize_(8)
    del y
    new = memory.tensor(LIKE)
    assert new.untyped_storage().nbytes() == SIZE
    new.fill_(1.0)


def test_so_much_is_remembered_and_no_more() -> None:
    memory = ResultMemory(2 * SIZE + 1)
    kept = [memory.tensor(LIKE) for _ in range(4)]
    assert memory.bytes() == 2 * SIZE
    assert len({y.data_ptr() for y in kept}) == 4
    huge = LIKE[:1].expand(3 * LIKE.shape[0], 8)
    assert memory.tensor(huge).shape == huge.shape and memory.bytes() == 2 * SIZE
    small = memory.tensor(LIKE[:5])
    assert small.shape == (5, 8) and memory.bytes() == 2 * SIZE


def test_results_are_as_others_to_pickle_copy_and_resize() -> None:
    memory = ResultMemory()
    y = memory.tensor(LIKE).fill_(2.0)
    assert pickle.loads(pickle.dumps(y[:2].clone())).sum() == 32
    assert y.clone().data_ptr() != y.data_ptr()
    assert y.untyped_storage().resizable()


@pytest.mark.skipif(not building.is_there(), reason="needs a C compiler")
def test_programs_on_arrays_use_memory_again_for_results_and_in_between() -> None:
    def mixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return ((x * x + 1) @ y).sum(0), (x @ y.T.sin()) * 2

    f = pullback.compile(mixed, backend="native")
    x = torch.linspace(-1, 1, LARGEST_KEPT // 8 + 64, dtype=torch.float64).reshape(-1, 64)
    y = torch.eye(64, dtype=torch.float64)
    first = f(x, y)
    place, kept = first[1].data_ptr(), first[1][-1].clone()
    later = f(-x, y)
    torch.testing.assert_close(first, mixed(x, y))
    torch.testing.assert_close(later, mixed(-x, y))
    assert later[1].data_ptr() != place and torch.equal(first[1][-1], kept)
    before = MEMORY.bytes()
    del first, later
    assert place in {f(x, y)[1].data_ptr() for _ in range(3)}
    assert MEMORY.bytes() == before


def test_threads_never_get_the_same_memory() -> None:
    memory, wrong = ResultMemory(), []

    def run(number: int) -> None:
        for _ in range(200):
            y = memory.tensor(LIKE)
            y[0, 0] = number
            for _ in range(20):
                if y[0, 0] != number:
                    wrong.append(number)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
